"""What ends a run before its time: somebody who cancels or kills it, or a problem in one of its threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable


class Control:
    def __init__(self) -> None:
        self.problems: list[BaseException] = []
        self._cancelled = threading.Event()
        self._killed = threading.Event()

    @property
    def is_cancelled(self) -> bool:
        return self._cancelled.is_set()

    @property
    def is_killed(self) -> bool:
        return self._killed.is_set()

    def cancel(self) -> None:
        self._cancelled.set()

    def kill(self) -> None:
        """No step runs any more, be its condition what it may."""
        self._killed.set()
        self._cancelled.set()

    def guard(self, function: Callable[[], None]) -> None:
        """Call it in a thread of the run: what it raises is kept for who waits for the run, and cancels it."""
        try:
            function()
        except BaseException as problem:
            self.problems.append(problem)
            self.cancel()

    def parallel(self, functions: Iterable[Callable[[], None]]) -> None:
        """Call them all at the same time, and wait for them."""
        threads = [threading.Thread(target=self.guard, args=(function,), daemon=True) for function in functions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

"""The concurrency groups of a repository: one run of a group goes on, one waits, a newer one takes its place.

With `queue: max` all wait, each for its turn.
https://docs.github.com/en/actions/how-tos/write-workflows/choose-when-workflows-run/control-workflow-concurrency
"""

from __future__ import annotations

import threading

from workflow.control import Control


class Concurrency:
    """Each run is known by its control."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running: dict[str, Control] = {}
        self._waiting: dict[str, list[Control]] = {}

    def enter(self, group: str, run: Control, queues: bool = False) -> bool:
        """Wait for one's turn; False if the run was cancelled or replaced meanwhile."""
        with self._changed:
            line = self._waiting.setdefault(group, [])
            line[:] = [*line, run] if queues else [run]
            self._changed.notify_all()
            while run in line and (group in self._running or line[0] is not run) and not run.is_cancelled:
                self._changed.wait(0.1)  # who cancels does not notify
            if run not in line:
                return False
            line.remove(run)
            if run.is_cancelled:
                return False
            self._running[group] = run
            return True

    def leave(self, group: str) -> None:
        with self._changed:
            del self._running[group]
            self._changed.notify_all()

    def waits(self, run: Control) -> bool:
        with self._changed:
            return any(run in line for line in self._waiting.values())

"""The concurrency groups of a repository: one run of a group goes on, one waits, a newer one takes its place."""

from __future__ import annotations

import threading

from workflow.control import Control


class Concurrency:
    """Each run is known by its control."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running: dict[str, Control] = {}
        self._waiting: dict[str, Control] = {}

    def enter(self, group: str, run: Control) -> bool:
        """Wait for one's turn; False if the run was cancelled or replaced meanwhile."""
        with self._changed:
            self._waiting[group] = run
            self._changed.notify_all()
            while group in self._running and self.waits(run) and not run.is_cancelled:
                self._changed.wait(0.1)  # who cancels does not notify
            if not self.waits(run):
                return False
            del self._waiting[group]
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
            return run in self._waiting.values()

"""On a runner or a laptop: of the connections to many machines only so many begin at once.

An sshd begins to drop connections when ten are there that have not logged in yet (MaxStartups 10:30:100), also one that
is the gateway to all machines; and two processors cannot make fifty key exchanges at once.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Iterator

AT_ONCE = 8  # fewer than an sshd begins to drop at
APART = 0.02  # seconds between the begin of one and of the next


class Places:
    """So many, each for a `with` block, but for no longer than `hold` seconds: then it is the next one's, too."""

    def __init__(self, number: int = AT_ONCE, hold: float = math.inf) -> None:
        self.number, self.hold = number, hold
        self.ends: list[float] = []  # of those that are taken, as monotonic time
        self.changed = threading.Condition()

    @contextlib.contextmanager
    def one(self, deadline: float = math.inf) -> Iterator[bool]:
        """Wait for one until the deadline (monotonic seconds), and take it; whether there was one."""
        end = self.take(deadline)
        try:
            yield end is not None
        finally:
            with self.changed:
                if end in self.ends:
                    self.ends.remove(end)
                self.changed.notify()

    def take(self, deadline: float) -> float | None:
        with self.changed:
            while (now := time.monotonic()) < deadline:
                self.ends = [end for end in self.ends if end > now]
                if len(self.ends) < self.number:
                    self.ends.append(now + self.hold)
                    return self.ends[-1]
                until = min(deadline, *self.ends)
                self.changed.wait(None if until == math.inf else until - now)
            return None

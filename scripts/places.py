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
from typing import Callable

AT_ONCE = 8  # fewer than an sshd begins to drop at
APART = 0.02  # seconds between the begin of one and of the next


class Places:
    """So many, each for a `with` block, but for no longer than `hold` seconds: then it is the next one's, too."""

    def __init__(self, number: int = AT_ONCE, hold: float = math.inf) -> None:
        self.number, self.hold = number, hold
        self.taken: dict[object, float] = {}  # until when, as monotonic time
        self.changed = threading.Condition()

    @contextlib.contextmanager
    def one(self, deadline: float = math.inf) -> Iterator[Callable[[], None] | None]:
        """Wait for one until the deadline (monotonic seconds), and take it: what gives it back early, or None."""
        place = object()
        if not self.take(place, deadline):
            yield None
            return
        try:
            yield lambda: self.leave(place)
        finally:
            self.leave(place)

    def take(self, place: object, deadline: float) -> bool:
        with self.changed:
            while (now := time.monotonic()) < deadline:
                self.taken = {one: end for one, end in self.taken.items() if end > now}
                if len(self.taken) < self.number:
                    self.taken[place] = now + self.hold
                    return True
                until = min(deadline, *self.taken.values())
                self.changed.wait(None if until == math.inf else until - now)
            return False

    def leave(self, place: object) -> None:
        with self.changed:
            self.taken.pop(place, None)
            self.changed.notify()

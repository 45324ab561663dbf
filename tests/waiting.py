"""The one way in which tests wait: for a fact, and not for a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_for(fact: Callable[[], T], what: str, seconds: float = 30, pause: float = 0.02) -> T:
    """Ask again and again until the answer is true, and return it; that `what` is not so in time is a failure."""
    end = time.monotonic() + seconds
    while not (found := fact()):
        assert time.monotonic() < end, f"{what}: not within {seconds:g} s"
        time.sleep(pause)
    return found

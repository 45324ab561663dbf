"""The one way in which tests wait: for a fact, not for a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_for(fact: Callable[[], T], seconds: float = 30, every: float = 0.02) -> T:
    """Ask again and again until the answer is true, and return it; after so many seconds that is a failure."""
    end = time.monotonic() + seconds
    while not (found := fact()):
        assert time.monotonic() < end, f"not within {seconds:g} s: {getattr(fact, '__doc__', None) or fact}"
        time.sleep(every)
    return found

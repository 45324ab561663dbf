"""What the caller of a run sets: the event, the repository with its secrets, and how its steps are executed."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from workflow.events import Event


@dataclasses.dataclass(frozen=True)
class Settings:
    """
    workdir: one new directory per run; each leg gets its own workspace, home and temp below it.
    repository: what actions/checkout fetches from (a path or a URL).
    secrets: an empty one is not there.
    token: github.token; api: where what speaks to GitHub is to go.
    wrap: put before each step's command; it must exec it (`ip netns exec NAME` does).
    clock: in seconds; time limits are measured by it, and how long a step may take to end after a signal.
    on_line: called with the leg's name and each (masked) line of its log, from several threads.
    """

    event: Event
    workdir: Path
    repository: str = ""
    secrets: Mapping[str, str] = dataclasses.field(default_factory=dict)
    token: str = ""
    api: str = "https://api.github.com"
    wrap: Sequence[str] = ()
    clock: Callable[[], float] = time.monotonic
    on_line: Callable[[str, str], None] | None = None

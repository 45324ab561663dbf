"""What the caller of a run sets: the event, the repository with its secrets, and how its steps are executed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from workflow.events import Event


@dataclasses.dataclass(frozen=True)
class Settings:
    """
    workdir: one new directory per run; each leg gets its own workspace, home and temp below it.
    repository: what actions/checkout fetches from (a path or a URL).
    secrets: an empty one is not there.
    wrap: put before each step's command; it must exec it (`ip netns exec NAME` does).
    minute: seconds in a minute of timeout-minutes; grace: seconds after SIGINT and SIGTERM.
    on_line: called with the leg's name and each (masked) line of its log, from several threads.
    """

    event: Event
    workdir: Path
    repository: str = ""
    secrets: Mapping[str, str] = dataclasses.field(default_factory=dict)
    wrap: Sequence[str] = ()
    minute: float = 60.0
    grace: tuple[float, float] = (7.5, 2.5)
    on_line: Callable[[str, str], None] | None = None

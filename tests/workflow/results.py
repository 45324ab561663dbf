"""What a run leaves for those who look at it: its jobs, their legs, and the steps of each."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from workflow.commands import Annotation


@dataclasses.dataclass
class Step:
    """`outcome`: success, failure, cancelled or skipped."""

    name: str = ""
    outcome: str = "skipped"
    outputs: dict[str, str] = dataclasses.field(default_factory=dict)
    exit_code: int | None = None


@dataclasses.dataclass
class Leg:
    """One run of a job: the whole job, or one combination of its matrix."""

    name: str
    job: str
    matrix: dict[str, Any]
    directory: Path
    conclusion: str = ""  # success, failure or cancelled: its own, whatever continue-on-error says
    continue_on_error: bool = False
    environment: str = ""
    is_recorded: bool = False  # GitHub makes a deployment of it, which ends as the leg does
    steps: list[Step] = dataclasses.field(default_factory=list)
    annotations: list[Annotation] = dataclasses.field(default_factory=list)
    outputs: dict[str, str] = dataclasses.field(default_factory=dict)
    dropped: list[str] = dataclasses.field(default_factory=list)  # outputs that GitHub dropped: a secret was in them
    summary: str = ""
    log: str = ""
    unmasked_log: str = ""  # what the steps wrote, before GitHub hid the secrets in it
    started: float = 0.0
    ended: float = 0.0

    @property
    def green(self) -> bool:
        return self.conclusion == "success"

    @property
    def workspace(self) -> Path:
        return self.directory / "work"

    @property
    def temp(self) -> Path:
        return self.directory / "temp"

    @property
    def home(self) -> Path:
        return self.directory / "home"

    def messages(self, level: str) -> list[str]:
        """The annotations of this level that the steps made (not the runner's own)."""
        return [one.message for one in self.annotations if one.level == level and not one.by_runner]


@dataclasses.dataclass
class Job:
    """`result` is what `needs.X.result` says of it."""

    id: str
    result: str = ""
    legs: list[Leg] = dataclasses.field(default_factory=list)
    outputs: dict[str, str] = dataclasses.field(default_factory=dict)

"""What is known while a run goes on: of the run as a whole, and of each leg."""

from __future__ import annotations

import dataclasses
import math
import threading
import uuid
from collections.abc import Mapping
from typing import Any

from workflow import expressions
from workflow.commands import Annotation, Masker
from workflow.concurrency import Concurrency
from workflow.control import Control
from workflow.results import Job, Leg
from workflow.settings import Settings

MINUTES = 360  # GitHub's limit where the workflow sets none


@dataclasses.dataclass(frozen=True)
class RunState:
    id: str
    name: str  # the workflow's
    workflow: Mapping[str, Any]
    inputs: Mapping[str, Any]
    settings: Settings
    control: Control
    jobs: Mapping[str, Job]
    concurrency: Concurrency
    called: Mapping[str, Called] = dataclasses.field(default_factory=dict)  # by the jobs that call a workflow
    caller: str = ""  # the job that has called this one, as people see it
    has_secrets: bool = True

    def before(self, job: str) -> list[str]:
        """The jobs that this one needs, the nearest first."""
        needed = self.workflow["jobs"][job].get("needs")
        return [needed, *self.before(needed)] if needed else []

    def contexts(self, job: str) -> dict[str, Any]:
        """The contexts that are the same in all legs of a job."""
        needed = [self.jobs[name] for name in self.before(job)[:1]]
        secrets = self.settings.secrets if self.has_secrets else {}
        return {
            "github": {**self.settings.event.github(), "token": self.settings.token},
            "inputs": self.inputs,
            "needs": {one.id: {"result": one.result, "outputs": dict(one.outputs)} for one in needed},
            "secrets": {key: value for key, value in secrets.items() if value},
        }


@dataclasses.dataclass(frozen=True)
class Called:
    """A workflow that a job calls."""

    workflow: Mapping[str, Any]
    jobs: Mapping[str, Job]


class LegState:
    """`outlives_cancel`: the leg began when its run was cancelled already, and goes on to its end."""

    def __init__(self, run: RunState, job: str, matrix: dict[str, Any], index: int, outlives_cancel: bool) -> None:
        self.run = run
        self.settings = run.settings
        self.spec = run.workflow["jobs"][job]
        self.status = "success"
        self.contexts = {**run.contexts(job), "matrix": matrix, "steps": {}}
        self.masker = Masker([*self.contexts["secrets"].values(), self.settings.token])
        self.tracking_id = f"github_{uuid.uuid4()}"
        name = str(self.evaluate(self.spec.get("name", job), "text"))
        before = f"{run.caller} / " if run.caller else ""
        folder = f"{run.caller}-{job}-{index}" if run.caller else f"{job}-{index}"
        self.leg = Leg(before + name, job, matrix, self.settings.workdir / folder)
        self._outlives_cancel = outlives_cancel
        self._deadline = math.inf
        self._log_lock = threading.Lock()

    def evaluate(self, tree: Any, form: str = "value") -> Any:
        return expressions.evaluate(tree, self.contexts, self.status == "success", form)

    def wants(self, step: Mapping[str, Any]) -> bool:
        """What the step's `if` says, as things are now."""
        return bool(self.evaluate(step["if"], "condition"))

    def write(self, line: str) -> None:
        """Add to the log."""
        masked = self.masker.mask(line)
        with self._log_lock:
            self.leg.unmasked_log += line + "\n"
            self.leg.log += masked + "\n"
        if self.settings.on_line:
            self.settings.on_line(self.leg.name, masked)

    def error(self, message: str) -> None:
        """An annotation of the runner's own that belongs to no step."""
        self.write(f"##[error]{message}")
        self.leg.annotations.append(Annotation("error", message, by_runner=True))

    def minutes(self, spec: Mapping[str, Any]) -> float:
        """The time limit of a job or step."""
        return float(self.evaluate(spec.get("timeout-minutes", MINUTES)))

    def deadline(self, spec: Mapping[str, Any]) -> float:
        """When a job or step that begins now has to end, by the clock."""
        return self.settings.clock() + 60 * self.minutes(spec)

    def start_clock(self) -> None:
        self._deadline = self.deadline(self.spec)

    def stop_reason(self) -> str:
        """Why this leg is to end, if it is."""
        control = self.run.control
        if control.is_killed or (control.is_cancelled and not self._outlives_cancel):
            return "cancelled"
        return "time" if self.settings.clock() > self._deadline else ""

    def notice_stop(self) -> None:
        """From the first reason to end on, the leg is cancelled."""
        reason = self.stop_reason()
        if not reason or self.status == "cancelled":
            return
        self.status = "cancelled"
        if reason == "time":
            limit = self.minutes(self.spec)
            self.error(f"The job has exceeded the maximum execution time of {limit:g} minutes")

"""A run of a workflow file: its jobs in the order of their needs, and what people see and do of it."""

from __future__ import annotations

import functools
import threading
import uuid
from pathlib import Path
from typing import Any

from workflow import expressions
from workflow.commands import Annotation
from workflow.concurrency import Concurrency
from workflow.control import Control
from workflow.events import Event, inputs_of
from workflow.job import run_job
from workflow.results import Job, Leg
from workflow.settings import Settings
from workflow.state import RunState
from workflow.supported import refuse_unsupported


class Run:
    """One run of a workflow file. `start()`, perhaps `cancel()`, `wait()`; `run_workflow` does it in one."""

    def __init__(
        self, file: Path, event: Event, *, workdir: Path, concurrency: Concurrency | None = None, **settings: Any
    ) -> None:
        """`settings` are the fields of Settings; raises WorkflowError, and Unsupported."""
        workflow, names = expressions.parse_with_names(file)
        refuse_unsupported(workflow, names)
        self.event = event
        self.jobs = {name: Job(name) for name in workflow["jobs"]}
        self.conclusion = ""
        self._control = Control()
        self._group = workflow["concurrency"]["group"] if "concurrency" in workflow else ""
        self._concurrency = concurrency or Concurrency()
        self._state = RunState(
            id=str(uuid.uuid4().int % 10**10),
            name=workflow.get("name", file.name),
            workflow=workflow,
            inputs=inputs_of(event, workflow["on"]),
            settings=Settings(event, workdir, **settings),
            control=self._control,
            jobs=self.jobs,
        )
        self._thread = threading.Thread(target=self._control.guard, args=(self._go,), daemon=True)

    # What people and tests use

    def start(self) -> Run:
        self._thread.start()
        return self

    def wait(self, seconds: float | None = None) -> Run:
        """Wait for the end; past `seconds`, and when interrupted, all of the run's processes are killed."""
        try:
            self._thread.join(seconds)
            if self._thread.is_alive():
                raise TimeoutError(f"the run did not end within {seconds} s:\n{self.log}")
        except BaseException:
            self.kill()
            raise
        if self._control.problems:
            raise self._control.problems[0]
        return self

    def cancel(self) -> None:
        """What the button "Cancel workflow" does."""
        self._control.cancel()

    def kill(self) -> None:
        """End everything at once; no step runs any more."""
        self._control.kill()
        if self._thread.is_alive():
            self._thread.join(20)

    @property
    def waits(self) -> bool:
        """Whether another run of its concurrency group has to end first."""
        return self._concurrency.waits(self._control)

    @property
    def legs(self) -> list[Leg]:
        return [leg for job in self.jobs.values() for leg in job.legs]

    def leg(self, job: str, **matrix: Any) -> Leg:
        """The leg of this job with these matrix values."""
        found = [leg for leg in self.jobs[job].legs if matrix.items() <= leg.matrix.items()]
        if len(found) != 1:
            raise LookupError(f"{len(found)} legs of {job} have {matrix}")
        return found[0]

    @property
    def summary(self) -> str:
        """The run's summary page, as markdown."""
        return "\n".join(leg.summary for leg in self.legs if leg.summary)

    @property
    def annotations(self) -> list[Annotation]:
        return [annotation for leg in self.legs for annotation in leg.annotations]

    @property
    def log(self) -> str:
        return "".join(f"===== {leg.name}: {leg.conclusion}\n{leg.log}" for leg in self.legs)

    # How it goes

    def _go(self) -> None:
        if not self._group:
            self._run_jobs()
        elif self._concurrency.enter(self._group, self._control):
            try:
                self._run_jobs()
            finally:
                self._concurrency.leave(self._group)
        else:
            self.conclusion = "cancelled"

    def _run_jobs(self) -> None:
        ended = {name: threading.Event() for name in self.jobs}
        self._control.parallel(functools.partial(self._run_job, job, ended) for job in self.jobs.values())
        self.conclusion = self._conclude()

    def _run_job(self, job: Job, ended: dict[str, threading.Event]) -> None:
        try:
            for name in self._state.before(job.id):
                ended[name].wait()
            if not self._control.problems:
                run_job(self._state, job)
        finally:
            ended[job.id].set()

    def _conclude(self) -> str:
        results = {job.result for job in self.jobs.values()}
        if "failure" in results:
            return "failure"
        if self._control.is_cancelled or "cancelled" in results:
            return "cancelled"
        return "skipped" if results == {"skipped"} else "success"


def run_workflow(file: Path, event: Event, *, seconds: float | None = None, **options: Any) -> Run:
    """Run a workflow file to its end (see `Run` for the options)."""
    return Run(file, event, **options).start().wait(seconds)

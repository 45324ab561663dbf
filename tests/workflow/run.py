"""A run of a workflow file: its jobs in the order of their needs, and what people see and do of it."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Collection
from pathlib import Path
from typing import Any

from workflow import expressions, job
from workflow.called import called_by
from workflow.commands import Annotation
from workflow.concurrency import Concurrency
from workflow.control import Control
from workflow.events import Event, inputs_of
from workflow.results import Job, Leg
from workflow.settings import Settings
from workflow.state import Called, RunState
from workflow.supported import refuse_unsupported


class Run:
    """One run of a workflow file. `start()`, perhaps `cancel()`, `wait()`; `run_workflow` does it in one."""

    def __init__(
        self,
        file: Path,
        event: Event,
        *,
        workdir: Path,
        concurrency: Concurrency | None = None,
        without: Collection[str] = (),
        **settings: Any,
    ) -> None:
        """`settings` are the fields of Settings; `without`: jobs that are left out, for what they take.

        Raises WorkflowError, and Unsupported.
        """
        workflow, names = expressions.parse_with_names(file)
        workflow["jobs"] = {name: job for name, job in workflow["jobs"].items() if name not in without}
        refuse_unsupported(workflow, names)
        self.event = event
        own = {name: Job(name) for name in workflow["jobs"]}
        called = {
            name: Called(other, {one: Job(one) for one in other["jobs"]})
            for name, other in called_by(file, workflow).items()
        }
        # those of a workflow that one of them calls are there as `job/its job`
        self.jobs = {**own, **{f"{name}/{id}": inner for name, one in called.items() for id, inner in one.jobs.items()}}
        self.conclusion = ""
        self._control = Control()
        self._concurrency = concurrency or Concurrency()
        self._state = RunState(
            id=str(uuid.uuid4().int % 10**10),
            name=workflow.get("name", file.name),
            workflow=workflow,
            inputs=inputs_of(event, workflow["on"]),
            settings=Settings(event, workdir, **settings),
            control=self._control,
            jobs=own,
            concurrency=self._concurrency,
            called=called,
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
        self.conclusion = job.run_workflow(self._state)


def run_workflow(file: Path, event: Event, *, seconds: float | None = None, **options: Any) -> Run:
    """Run a workflow file to its end (see `Run` for the options)."""
    return Run(file, event, **options).start().wait(seconds)

"""Runs a GitHub Actions workflow file for real, the way GitHub's runner does, on this host.

GitHub's own parser and expression evaluator read the file (workflow.mjs); every `run` step is executed by
bash, inside a prefix command of the caller's (`ip netns exec ...`). What our workflows do not use is refused with
`Unsupported`, never passed over. Each module imports only from those above it:

errors.py       why a workflow is not run, or not to its end
expressions.py  GitHub's parser and expression evaluator
supported.py    what of a workflow file is executed here
events.py       what starts a run, and the inputs that it gives
commands.py     a step's output: secrets, workflow commands, annotations
results.py      jobs, legs and steps, as a run leaves them
processes.py    a step's process and its end
control.py      cancelling and killing a run, and problems in its threads
concurrency.py  one run of a group at a time
called.py       a workflow that a job calls
settings.py     what the caller of a run sets
state.py        what is known while a run goes on
environment.py  the environment of a step's process
checkout.py     actions/checkout
bash.py         a `run` step
leg.py          the steps of a leg in turn, and its outputs
job.py          the jobs of a workflow in turn; the legs of a job, and its result
run.py          one run, and what people see and do of it
"""

from workflow.commands import Annotation
from workflow.concurrency import Concurrency
from workflow.errors import Unsupported, WorkflowError
from workflow.events import Event, dispatch, push, schedule
from workflow.expressions import parse
from workflow.results import Job, Leg, Step
from workflow.run import Run, run_workflow

__all__ = [
    "Annotation",
    "Concurrency",
    "Event",
    "Job",
    "Leg",
    "Run",
    "Step",
    "Unsupported",
    "WorkflowError",
    "dispatch",
    "parse",
    "push",
    "run_workflow",
    "schedule",
]

"""Runs a GitHub Actions workflow file for real, the way GitHub's runner does, on this host.

GitHub's own parser and expression evaluator read the file (workflow.mjs); every `run` step is executed by
bash, inside a prefix command of the caller's (`ip netns exec ...`). What a workflow of this repository does
not use is refused with `Unsupported`, never passed over.
"""

from workflow.commands import Annotation
from workflow.expressions import WorkflowError, parse
from workflow.run import Concurrency, Event, Job, Leg, Run, Step, Unsupported, dispatch, push, run_workflow

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
]

"""One job: whether it runs, its legs at the same time, and the one result that is made of theirs."""

from __future__ import annotations

import functools

from workflow import expressions
from workflow.leg import run_leg
from workflow.results import Job, Leg
from workflow.state import LegState, RunState


def run_job(run: RunState, job: Job) -> None:
    """The jobs that it needs have ended. Leaves what came of it in `job`."""
    # A job that begins although the run was cancelled before (its `if` says always()) runs to its end.
    was_cancelled = run.control.is_cancelled
    if not _is_wanted(run, job, was_cancelled):
        # What had not begun when the run was cancelled is "cancelled", not "skipped".
        job.result = "cancelled" if was_cancelled else "skipped"
        return
    strategy = run.workflow["jobs"][job.id].get("strategy")
    matrix = strategy["matrix"]["include"] if strategy else [{}]
    legs = [LegState(run, job.id, values, index, was_cancelled) for index, values in enumerate(matrix)]
    job.legs += [state.leg for state in legs]
    run.control.parallel(functools.partial(_run_leg, job, state) for state in legs)
    job.result = _result(job)


def _is_wanted(run: RunState, job: Job, was_cancelled: bool) -> bool:
    """What the job's `if` says; success() looks at all jobs before it."""
    success = not was_cancelled and all(run.jobs[name].result == "success" for name in run.before(job.id))
    condition = run.workflow["jobs"][job.id]["if"]
    return bool(expressions.evaluate(condition, run.contexts(job.id), success, "condition"))


def _run_leg(job: Job, state: LegState) -> None:
    run_leg(state)
    job.outputs.update(state.leg.outputs)  # as they end: of equal keys the last one stays


def _result(job: Job) -> str:
    results = {_counts_as(leg) for leg in job.legs}
    return next((one for one in ("failure", "cancelled") if one in results), "success")


def _counts_as(leg: Leg) -> str:
    # Under continue-on-error a failure counts as success here (actions/runner#1161); being cancelled does not.
    return "success" if leg.conclusion == "failure" and leg.continue_on_error else leg.conclusion

"""One job: whether it runs, its legs at the same time, and the one result that is made of theirs."""

from __future__ import annotations

import dataclasses
import functools
import threading
from typing import Any

from workflow import called, expressions
from workflow.leg import run_leg
from workflow.results import Job, Leg
from workflow.state import LegState, RunState


def run_workflow(run: RunState) -> str:
    """All jobs of a workflow, when it is its turn in its concurrency group; what came of them."""
    about = run.workflow.get("concurrency")
    if not about:
        return _run_jobs(run)
    if not run.concurrency.enter(about["group"], run.control, about.get("queue") == "max"):
        return "cancelled"
    try:
        return _run_jobs(run)
    finally:
        run.concurrency.leave(about["group"])


def _run_jobs(run: RunState) -> str:
    """Each job when those that it needs have ended."""
    ended = {name: threading.Event() for name in run.jobs}
    run.control.parallel(functools.partial(_run_in_turn, run, job, ended) for job in run.jobs.values())
    results = {job.result for job in run.jobs.values()}
    if "failure" in results:
        return "failure"
    if run.control.is_cancelled or "cancelled" in results:
        return "cancelled"
    return "skipped" if results == {"skipped"} else "success"


def _run_in_turn(run: RunState, job: Job, ended: dict[str, threading.Event]) -> None:
    try:
        for name in run.before(job.id):
            ended[name].wait()
        if not run.control.problems:
            run_job(run, job)
    finally:
        ended[job.id].set()


def run_job(run: RunState, job: Job) -> None:
    """The jobs that it needs have ended. Leaves what came of it in `job`."""
    # A job that begins although the run was cancelled before (its `if` says always()) runs to its end.
    was_cancelled = run.control.is_cancelled
    if not _is_wanted(run, job, was_cancelled):
        # What had not begun when the run was cancelled is "cancelled", not "skipped".
        job.result = "cancelled" if was_cancelled else "skipped"
        return
    if job.id in run.called:
        job.result = _call(run, job)
        return
    strategy = run.workflow["jobs"][job.id].get("strategy")
    matrix = strategy["matrix"]["include"] if strategy else [{}]
    legs = [LegState(run, job.id, values, index, was_cancelled) for index, values in enumerate(matrix)]
    job.legs += [state.leg for state in legs]
    run.control.parallel(functools.partial(_run_leg, job, state) for state in legs)
    job.result = _result(job)


def _call(run: RunState, job: Job) -> str:
    """Run the workflow that a job calls, with the event of this one, and with its secrets only if it gives them."""
    spec, found = run.workflow["jobs"][job.id], run.called[job.id]
    given: dict[str, Any] = expressions.evaluate(spec.get("with", {}), run.contexts(job.id), True, "value")
    return run_workflow(
        dataclasses.replace(
            run,
            workflow=found.workflow,
            jobs=found.jobs,
            inputs=called.inputs_of(found.workflow, given),
            called={},
            caller=str(spec.get("name", job.id)),
            has_secrets=spec.get("secrets") == "inherit",
        )
    )


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

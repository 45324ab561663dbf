"""One leg of a job: its steps in turn, in directories of its own, and the outputs that it ends with."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from workflow.bash import BashStep
from workflow.checkout import checkout
from workflow.commands import Annotation, Output
from workflow.errors import Unsupported, WorkflowError
from workflow.processes import kill_orphans
from workflow.results import Step
from workflow.state import LegState

OUTPUTS_LIMIT = 1024 * 1024


def run_leg(state: LegState) -> None:
    """Leaves what came of it in `state.leg`."""
    leg = state.leg
    if state.stop_reason():
        leg.conclusion = "cancelled"
        return
    leg.started = time.time()
    try:
        _prepare(state)
        for spec in state.spec["steps"]:
            _step(state, spec)
        _outputs(state)
    except WorkflowError as error:  # an expression that cannot be evaluated fails the job
        state.status = "failure"
        state.error(str(error))
    finally:
        for name in kill_orphans(state.tracking_id):
            state.write(f"Terminate orphan process: {name}")
        leg.ended = time.time()
        leg.conclusion = state.status


def _prepare(state: LegState) -> None:
    leg = state.leg
    for directory in (leg.workspace, leg.temp, leg.home):
        directory.mkdir(parents=True)
    state.start_clock()
    leg.continue_on_error = bool(state.evaluate(state.spec.get("continue-on-error", False)))
    environment = state.evaluate(state.spec.get("environment", ""), "text")
    about = environment if isinstance(environment, dict) else {"name": environment}
    leg.environment = about["name"]  # an empty one is none
    leg.is_recorded = bool(leg.environment) and about.get("deployment", "true") == "true"


def _step(state: LegState, spec: Mapping[str, Any]) -> None:
    state.notice_stop()
    step, output = Step(), Output(state.masker, state.write)
    state.leg.steps.append(step)
    try:
        step.name = _name(state, spec)
        if not state.run.control.is_killed and state.wants(spec):
            _run_step(state, spec, step, output)
    except WorkflowError as error:
        step.outcome = "failure"
        output.annotate("error", str(error), by_runner=True)
    _conclude(state, spec, step, output)


def _name(state: LegState, spec: Mapping[str, Any]) -> str:
    if "name" in spec:
        return str(state.evaluate(spec["name"], "text"))
    what = str(state.evaluate(spec.get("uses", spec.get("run")), "text"))
    return "Run " + what.strip().partition("\n")[0]


def _run_step(state: LegState, spec: Mapping[str, Any], step: Step, output: Output) -> None:
    state.write(f"##[group]{step.name}")
    if "uses" in spec:
        checkout(state, spec, step, output)
    else:
        BashStep(state, spec, step, output).run()
    if output.refused:
        raise Unsupported(", ".join(output.refused))


def _conclude(state: LegState, spec: Mapping[str, Any], step: Step, output: Output) -> None:
    if step.outcome == "cancelled" or (step.outcome == "failure" and state.status == "success"):
        state.status = step.outcome
    state.leg.annotations += output.annotations
    if "id" in spec:
        known = {"outputs": step.outputs, "outcome": step.outcome, "conclusion": step.outcome}
        state.contexts["steps"][spec["id"]] = known


def _outputs(state: LegState) -> None:
    """The leg's outputs: an empty one is left out, and one in which a secret occurs is dropped.

    https://docs.github.com/en/actions/reference/limits: 1 MB for a job, in UTF-16.
    """
    leg = state.leg
    for name, value in state.evaluate(state.spec.get("outputs", {}), "text").items():
        if state.masker.mask(value) != value:
            leg.dropped.append(name)
            message = f"Skip output '{name}' since it may contain secret."
            leg.annotations.append(Annotation("warning", message, by_runner=True))
        elif value:
            leg.outputs[name] = value
    if sum(len(value.encode("utf-16-le")) for value in leg.outputs.values()) > OUTPUTS_LIMIT:
        raise WorkflowError("The job's outputs are larger than 1 MB")

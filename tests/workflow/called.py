"""A workflow that a job calls: found, and checked as GitHub does before a run begins.

https://docs.github.com/en/actions/reference/workflows-and-actions/reusing-workflow-configurations
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workflow import expressions
from workflow.errors import Unsupported, WorkflowError
from workflow.supported import refuse_unsupported

LEVELS = ("none", "read", "write")


def called_by(file: Path, workflow: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The workflows that the jobs of a file call, by the job; raises WorkflowError, and Unsupported."""
    calls = {name: job for name, job in workflow["jobs"].items() if "uses" in job}
    return {name: _called(file.parents[2], f"job {name}", job, workflow) for name, job in calls.items()}


def _called(root: Path, where: str, job: Mapping[str, Any], caller: Mapping[str, Any]) -> dict[str, Any]:
    """It is taken from the same commit as the workflow that calls it."""
    path = root / job["uses"]
    if not path.is_file():
        raise WorkflowError(f"{where}: {job['uses']}: workflow was not found")
    workflow, names = expressions.parse_with_names(path)
    refuse_unsupported(workflow, names)
    if "workflow_call" not in workflow["on"]:
        raise WorkflowError(
            f"{where}: {job['uses']}: workflow is not reusable as it is missing a workflow_call trigger"
        )
    groups = [one.get("concurrency", {}).get("group") for one in (caller, workflow)]
    if groups[0] and groups[0] == groups[1]:
        raise WorkflowError(f"{where}: a deadlock for concurrency group '{groups[0]}'")
    if any("uses" in one for one in workflow["jobs"].values()):
        raise Unsupported(f"{where}: {job['uses']}: calls another one")
    declared = (workflow["on"]["workflow_call"] or {}).get("inputs", {})
    if unknown := set(job.get("with", {})) - set(declared):
        raise WorkflowError(f"{where}: invalid input, {', '.join(unknown)} is not defined in the referenced workflow")
    granted = job.get("permissions", caller.get("permissions"))
    for name, one in workflow["jobs"].items():
        _check_permissions(f"{where}: {name}", one.get("permissions", workflow.get("permissions")), granted)
    return workflow


def _check_permissions(where: str, asked: Mapping[str, str] | None, granted: Mapping[str, str] | None) -> None:
    """A called workflow may have less than what the job that calls it has, and never more."""
    if granted is None:
        return
    for name, level in (asked or {}).items():
        allowed = granted.get(name, "none")
        if LEVELS.index(level) > LEVELS.index(allowed):
            raise WorkflowError(f"{where} is requesting '{name}: {level}', but is only allowed '{name}: {allowed}'")


def inputs_of(called: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The call's inputs, with defaults and types."""
    declared = (called["on"]["workflow_call"] or {}).get("inputs", {})
    found = {name: given.get(name, about["default"]) for name, about in declared.items()}
    return {
        name: value in (True, "true") if declared[name]["type"] == "boolean" else value for name, value in found.items()
    }

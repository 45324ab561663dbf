"""What starts a run: the event, and the inputs that it gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from workflow.errors import WorkflowError


@dataclasses.dataclass(frozen=True)
class Event:
    """What starts a run."""

    name: str
    sha: str
    branch: str = "main"
    inputs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fork: bool = False  # whether the repository is one
    visibility: str = "public"  # of the repository: public, internal or private

    def github(self) -> dict[str, Any]:
        """What the context `github` says of it. A schedule's payload has nothing of the repository."""
        payload: dict[str, Any] = {} if self.name == "schedule" else {"repository": {"fork": self.fork}}
        return {"ref": f"refs/heads/{self.branch}", "event": payload, "repository_visibility": self.visibility}


def push(sha: str, branch: str = "main") -> Event:
    """A push to (or merge into) a branch that has made `sha` its newest commit."""
    return Event("push", sha, branch)


def dispatch(sha: str, branch: str = "main", **inputs: Any) -> Event:
    """Somebody pressed "Run workflow" on a branch whose newest commit was `sha`."""
    return Event("workflow_dispatch", sha, branch, inputs)


def schedule(sha: str, branch: str = "main") -> Event:
    """It is time, and `sha` is the newest commit of the default branch: no other one has schedules."""
    return Event("schedule", sha, branch)


def inputs_of(event: Event, triggers: Mapping[str, Any]) -> dict[str, Any]:
    """The event's inputs with defaults and types, or WorkflowError as GitHub's answer to a wrong event."""
    if event.name not in triggers:
        raise WorkflowError(f"the workflow does not start on {event.name}")
    trigger = triggers[event.name] or {}
    if event.name == "schedule":
        return {}
    if event.branch not in trigger.get("branches", [event.branch]):
        raise WorkflowError(f"the workflow does not start on a push to {event.branch}")
    declared = trigger.get("inputs", {})
    if unknown := set(event.inputs) - set(declared):
        raise WorkflowError(f"Unexpected inputs provided: {sorted(unknown)}")
    return {name: _input(name, about, event.inputs.get(name)) for name, about in declared.items()}


def _input(name: str, about: Mapping[str, Any], given: Any) -> Any:
    value = about["default"] if given is None else given
    if about["type"] == "boolean":
        return value in (True, "true")
    if about["type"] == "choice" and value not in about["options"]:
        raise WorkflowError(f"Provided value '{value}' for input '{name}' not in the list of allowed values")
    return str(value)

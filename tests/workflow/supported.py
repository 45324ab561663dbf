"""What of a workflow file is executed here: what ours use. All else is refused, before anything runs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from workflow.errors import Unsupported

WORKFLOW = {"name", "on", "permissions", "concurrency", "jobs"}
JOB = {
    "name", "runs-on", "needs", "if", "outputs", "steps", "strategy", "environment", "timeout-minutes",
    "continue-on-error", "permissions",
}  # fmt: skip
CALL = {"name", "needs", "if", "permissions", "uses", "with", "secrets"}  # a job that calls another workflow
RUN = {"name", "id", "if", "env", "timeout-minutes", "shell", "run"}
USES = {"name", "if", "uses", "with"}
INPUT = {"description", "type", "default", "options"}
# contexts and functions; the parser itself makes `format` of a text with expressions in it
NAMES = {"inputs", "matrix", "needs", "secrets", "steps", "always", "format", "success", "toJSON"}
NAMES |= {"github.ref", "github.event.repository.fork", "github.repository_visibility", "github.token"}
PERMISSIONS: list[Any] = [None, {"contents": "read"}, {"contents": "read", "deployments": "write"}]
PERMISSIONS += [{"contents": "write"}, {"contents": "write", "deployments": "write"}]


def refuse_unsupported(workflow: Mapping[str, Any], names: Collection[str]) -> None:
    """`names`: the contexts and functions in the workflow's expressions."""
    _keys("an expression", dict.fromkeys(names), NAMES)
    _keys("the workflow", workflow, WORKFLOW)
    _value("permissions", workflow.get("permissions"), *PERMISSIONS)
    _triggers(workflow["on"])
    if "concurrency" in workflow:
        _concurrency(workflow["concurrency"])
    for name, job in workflow["jobs"].items():
        _job(f"job {name}", job)


def _concurrency(about: Any) -> None:
    _keys("concurrency", about, {"group", "cancel-in-progress", "queue"})
    _plain("concurrency: group", about["group"])
    _value("cancel-in-progress", about.get("cancel-in-progress", False), False)
    _value("queue", about.get("queue", "single"), "single", "max")


def _triggers(triggers: Any) -> None:
    _keys("on", triggers, {"push", "workflow_dispatch", "schedule", "workflow_call"})
    if "push" in triggers:
        _keys("on: push", triggers["push"], {"branches"}, needed={"branches"})
        for branch in triggers["push"]["branches"]:
            if set(branch) & set("*?+[!"):
                raise Unsupported(f"on: push: branches: {branch}")
    for trigger in ("workflow_dispatch", "workflow_call"):
        about = triggers.get(trigger) or {}
        _keys(f"on: {trigger}", about, {"inputs"})
        for name, one in about.get("inputs", {}).items():
            _keys(f"input {name}", one, INPUT, needed={"type", "default"})
            _value(f"input {name}: type", one["type"], "choice", "string", "boolean")
    for entry in triggers.get("schedule", []):
        _keys("on: schedule", entry, {"cron"})


def _job(where: str, job: Mapping[str, Any]) -> None:
    if "uses" in job:
        _call(where, job)
        return
    _keys(where, job, JOB)
    _value(f"{where}: runs-on", job["runs-on"], "ubuntu-24.04")
    _plain(f"{where}: needs", job.get("needs", ""))
    if "strategy" in job:
        _strategy(where, job)
    _value(f"{where}: permissions", job.get("permissions"), *PERMISSIONS)
    environment = job.get("environment", "")
    if not isinstance(environment, str):
        _keys(f"{where}: environment", environment, {"$expression", "name", "deployment"})
    for step in job["steps"]:
        _step(f"a step of {where}", step)


def _call(where: str, job: Mapping[str, Any]) -> None:
    _keys(where, job, CALL)
    _plain(f"{where}: needs", job.get("needs", ""))
    _value(f"{where}: permissions", job.get("permissions"), *PERMISSIONS)
    _value(f"{where}: secrets", job.get("secrets"), None, "inherit")
    if not job["uses"].startswith("./.github/workflows/"):
        raise Unsupported(f"{where}: uses: {job['uses']}")


def _strategy(where: str, job: Mapping[str, Any]) -> None:
    if "name" not in job:
        raise Unsupported(f"{where}: a strategy, but no name")
    strategy = job["strategy"]
    _keys(f"{where}: strategy", strategy, {"fail-fast", "matrix"}, needed={"fail-fast", "matrix"})
    _value(f"{where}: fail-fast", strategy["fail-fast"], False)
    _keys(f"{where}: matrix", strategy["matrix"], {"include"})
    if not isinstance(strategy["matrix"]["include"], list):
        raise Unsupported(f"{where}: matrix: include: {strategy['matrix']['include']}")


def _step(where: str, step: Mapping[str, Any]) -> None:
    if "uses" not in step:
        _keys(where, step, RUN)
        _value(f"{where}: shell", step.get("shell"), "bash")
        return
    _keys(where, step, USES)
    if not step["uses"].startswith("actions/checkout@"):
        raise Unsupported(f"{where}: uses: {step['uses']}")
    options = step.get("with") or {}
    _keys("actions/checkout", options, {"persist-credentials", "fetch-depth"}, needed={"persist-credentials"})
    _value("persist-credentials", options["persist-credentials"], "false")
    _value("fetch-depth", options.get("fetch-depth"), None, "0")


def _keys(where: str, found: Any, known: set[str], needed: Collection[str] = ()) -> None:
    """`found` is a mapping that has some of the known keys, the needed ones among them."""
    if not isinstance(found, dict):
        raise Unsupported(f"{where}: {found}")
    if unknown := set(found) - known:
        raise Unsupported(f"{where}: {', '.join(sorted(unknown))}")
    if missing := set(needed) - set(found):
        raise Unsupported(f"{where} without {', '.join(sorted(missing))}")


def _value(where: str, found: Any, *known: Any) -> None:
    if found not in known:
        raise Unsupported(f"{where}: {found}")


def _plain(where: str, found: Any) -> None:
    if not isinstance(found, str):
        raise Unsupported(f"{where}: {found}")

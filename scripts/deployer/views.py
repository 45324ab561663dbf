"""What people and programs are shown: plan, history, the status in words. Nothing here changes more than the mirror."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from typing import Any

from deployer import (
    attempt,
    build,
    config,
    deploy,
    files,
    host,
    inputs,
    lock,
    memory,
    releases,
    signatures,
    standing,
    steps,
)


def plan(request: memory.Request) -> attempt.Result:
    """Say what deploy would do and why; changes nothing but the mirror."""
    machine, progress = request.machine, attempt.begin(request)
    source = deploy.mirror_of(machine)
    with lock.hold(request, lambda waits: None):
        wanted, _ = deploy.find_target(progress, source)
        signatures.check(machine, source, wanted)
        commit = source.load(wanted, source.tree(wanted))
        roles = host.roles_of(machine, commit.settings)
        current = releases.current(machine)
        around = build.look_around(machine, commit)
        decisions = steps.decide(
            commit, machine.roles, around, releases.kept_trees(machine), request.full, machine.shared
        )
        ahead = source.count(current.commit if current else None, commit.id)
    bad = memory.bad_commits(machine).get(commit.id)
    outdated = deploy.what_changed(machine, current) if current and current.commit == commit.id else ""
    (units, reloads), slotted = config.units_of(roles), config.slots_of(roles)
    same = bool(current and current.commit == commit.id and not request.full and not outdated)
    return {
        "schema": files.SCHEMA,
        "machine": machine.name,
        "roles": list(machine.roles),
        "current": current.commit if current else None,
        "wanted": commit.id,
        "commits": ahead,
        "nothing_to_do": same,
        "bad": bad["why"] if bad else None,
        "anew": outdated,
        "steps": [] if same else [shown(decision) for decision in decisions],
        "replace": [slotted.slots] if slotted else [],
        "restart": units,
        "reload": reloads,
    }


def shown(decision: steps.Decision) -> dict[str, Any]:
    """What a plan says of one step. depends: what its result depends on, each with a content id or a value."""
    about = {"name": decision.step.name, "action": "run" if decision.needed else "skip", "why": decision.why}
    found = {**decision.fingerprint, **decision.seen}
    depends = {inputs.in_words(name): value for name, value in found.items() if value}
    return {**about, "run": shlex.join(decision.step.run), "depends": depends}


def show_plan(result: attempt.Result, why: bool = False) -> str:
    """why: name what each step depends on."""
    if result["nothing_to_do"]:
        return f"{result['machine']}: {memory.short(result['wanted'])} already runs; deploy would do nothing\n"
    span = f"from {memory.short(result['current'])} to {memory.short(result['wanted'])}"
    lines = [f"{result['machine']}: {span} ({result['commits']} commits)"]
    if result["anew"]:
        lines.append(f"  it runs already, and is made ready anew: {result['anew']}")
    if result["bad"]:
        lines.append(f"  this commit is remembered as bad ({result['bad']})")
    for step in result["steps"]:
        lines.append(f"  {step['action']:4}  {step['name']}: {step['why']}")
        if step["action"] == "run":
            lines.append(f"          {step['run']}")
        if why:
            lines += [f"          {name}  {value[:40]}" for name, value in step["depends"].items()]
    what = [f"{verb} {', '.join(result[verb])}" for verb in ("replace", "restart", "reload") if result[verb]]
    return "\n".join([*lines, f"  {'; '.join(what) or 'no service is touched'}", ""])


def show_status(result: attempt.Result) -> str:
    lines = serving_lines(result)
    if result["running"]:
        stage, trigger, began = (result["running"].get(key, "unknown") for key in ("stage", "trigger", "started"))
        lines.append(f"  now       a deploy is going on: {stage} ({trigger}, since {began})")
    if result["interrupted"]:
        lines.append("  note      the last deploy was interrupted; the next one cleans up after it")
    lines += [f"  warning   {warning}" for warning in warnings_of(result)]
    lines += [f"  by hand   {one['name']}: {standing.WORDS[one['kind']]}" for one in result["drift"] or ()]
    lines += [f"  bad       {bad['commit'][:8]}: {bad['why']} ({bad['when']})" for bad in result["bad_commits"]]
    told = result.get("history", result["attempts"])
    attempts = "last attempts\n" + show_history({"history": told}) if told else ""
    failure = result["last_failure"]
    if failure and not any(one["started"] == failure["started"] for one in told):
        attempts += "last failure\n" + show_history({"history": [failure]})
    return "\n".join([*lines, attempts])


def serving_lines(result: attempt.Result) -> list[str]:
    name = f"{result['machine']} ({', '.join(result['roles']) or 'no role'})"
    if not result["commit"]:
        return [f"{name}: nothing is deployed yet"]
    since = f"since {result['since']} ({ago(result['since'])})"
    return [
        f"{name} runs {memory.short(result['commit'])} {since}, deployed by {result['trigger']}",
        f"  release   {result['release']}",
        *(f"  service   {service['unit']}: {service['state']}{times(service)}" for service in result["services"]),
        f"  health    {'ok' if result['healthy'] else result['problem'] or 'unknown'}",
        *branch_lines(result),
    ]


def branch_lines(result: attempt.Result) -> list[str]:
    """How what runs stands to the branch, as far as this machine knows."""
    tip = result["tip"]
    if not tip:
        return []
    held = ", which was rolled back by hand" if tip["held"] else ""
    where = "the newest commit"
    if tip["behind"]:
        where = f"{tip['behind']} commit{'s' * (tip['behind'] != 1)} behind {memory.short(tip['commit'])}"
        where += f", since {ago(tip['since'])}"
    return [f"  branch    {where}{held}, as fetched {ago(tip['fetched'])}"]


def times(service: Mapping[str, str]) -> str:
    """How often a service ended by itself since it was started."""
    number = service.get("restarts", "0")
    return f" (ended by itself {number} times)" if number != "0" else ""


def warnings_of(result: attempt.Result) -> list[Any]:
    last = result["last"] or {}
    told: Any = last.get("warnings") if last.get("release") == result["release"] else None
    over: Any = last.get("installed")  # is looked at anew
    told, over = (found if isinstance(found, list) else [] for found in (told, over))
    return [*result["installed"], *(warning for warning in told if warning not in over)]


def ago(timestamp: str) -> str:
    """`3 h ago` for a time as files.now() writes it."""
    seconds = max(0.0, time.time() - standing.seconds(timestamp))
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def history(request: memory.Request) -> attempt.Result:
    """All recorded results, oldest first."""
    host.must_own(request.machine)
    results = memory.read_history(request.machine)
    return {"schema": files.SCHEMA, "machine": request.machine.name, "history": results}


def show_history(result: attempt.Result) -> str:
    return "".join(
        f"  {entry['started']}  {entry['trigger']:6}  {entry['outcome']:22}  {memory.short(entry['commit']):8}"
        f"  {entry['seconds']:6.1f} s  {entry['message']}{again(entry)}\n"
        for entry in result["history"]
    )


def again(entry: Mapping[str, Any]) -> str:
    return f" ({entry['times']} times)" if entry.get("times") else ""

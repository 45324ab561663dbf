"""How this machine stands, in a bounded time: what runs since when, how well, as a deploy left it, how far behind."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, Callable

from deployer import (
    attempt,
    config,
    drift,
    errors,
    files,
    health,
    host,
    installed,
    lock,
    memory,
    mirror,
    releases,
    run,
    services,
    slots,
)

NOTHING_DONE = ("unchanged", "superseded", "busy", "unreachable")  # outcomes of which only the last in a row is shown
SHOWN = 5  # attempts
MANY = 300  # entries of the history
SPARE = 0.3  # seconds of the time that is granted, for the answer itself
HISTORY = ("started", "trigger", "outcome", "commit", "wanted", "previous", "seconds", "message", "reason")
Questions = Mapping[str, Callable[[], Any]]


def status(request: memory.Request) -> attempt.Result:
    """What runs now, and the last results. Reads only.

    With request.within it ends within so many seconds, and names under `unknown` what did not come.
    """
    machine = request.machine
    host.must_own(machine)  # it runs the check command, and what failed steps printed is not for everybody
    run.OWN["DEPLOY_RUN"] = memory.run_mark({"pid": os.getpid(), "started": files.now()})
    current, history = releases.current(machine), memory.read_history(machine)
    running, is_held = memory.read_running(machine), lock.is_held(machine)
    questions: Questions = {
        "health": lambda: observe(machine, current),
        "drift": lambda: drift_of(machine, current, history),
        "installed": lambda: installed.warnings(machine, current),
        "tip": lambda: tip_of(machine, current),
    }
    found, unknown = answers(questions, memory.process_start() + request.within - SPARE if request.within else None)
    reports, problem = found["health"] or ([], "")
    since = activated(machine, current)
    failure = last_failure(history)
    result = {
        "schema": files.SCHEMA,
        "machine": machine.name,
        "roles": list(machine.roles),
        "commit": current.commit if current else None,
        "release": current.name if current else None,
        "since": since,
        "activated": since,
        "services": reports,
        "restarts": sum(int(report.get("restarts") or 0) for report in reports),
        "healthy": not problem if current and "health" not in unknown else None,
        "problem": problem,
        "drift": found["drift"],
        "installed": found["installed"] or [],
        "tip": found["tip"],
        "unknown": unknown,
        "bad_commits": [{"commit": commit, **about} for commit, about in memory.bad_commits(machine).items()],
        "running": running if is_held else None,
        "interrupted": bool(running) and not is_held,
        "last": memory.read_last(machine),
        "last_failure": failure,
        "failing": failure is not None and is_last_word(failure, history),
        "trigger": current.meta.get("trigger") if current else None,
        "attempts": folded(history)[-SHOWN:],
        "releases": [{"release": r.name, "commit": r.commit, "good": r.is_good} for r in releases.all_of(machine)],
    }
    if request.since:
        result["history"] = [brief(one) for one in history if one["started"] >= request.since][-MANY:]
    reason = reason_of(result)
    return {**result, "reason": reason, "well": not reason}


def answers(questions: Questions, deadline: float | None) -> tuple[dict[str, Any], list[str]]:
    """Ask all at the same time, until the deadline (monotonic seconds); what came, and the names of what did not."""
    asked = {name: run.Background(work) for name, work in questions.items()}
    for background in asked.values():
        background.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
    came = {name: background.outcome[0] for name, background in asked.items() if background.outcome}
    if any(background.is_alive() for background in asked.values()):
        run.end_leftovers(run.OWN["DEPLOY_RUN"])  # a check that would go on; what becomes of it is no answer
    unknown = [name for name in questions if name not in came]
    return {**dict.fromkeys(unknown), **came}, unknown


def observe(machine: host.Machine, current: releases.Release | None) -> tuple[list[dict[str, str]], str]:
    """The services and what is wrong; that they could not be seen is a problem, too."""
    try:
        return health.observe(machine, current, slots.units_of(machine, current))
    except (errors.DeployError, OSError) as error:
        return [], str(error)


def drift_of(
    machine: host.Machine, current: releases.Release | None, history: Sequence[Mapping[str, Any]]
) -> list[dict[str, str]] | None:
    """What was changed by hand, at most so much as is shown; None: nobody knows."""
    if not current:
        return []
    found = drift.of_files(machine, current)
    if found is not None and machine.owns_services:
        states = services.states_of(slots.units_of(machine, current))
        own = config.units_of(host.roles_of(machine, current.settings()))[1]
        readers = {unit: state for unit, state in states.items() if unit not in own}
        last = history[-1]["started"] if history else ""
        found = found + drift.of_units(states) + drift.of_settings(machine, current, readers, seconds(last))
    return None if found is None else [one._asdict() for one in found[: drift.SHOWN]]


def tip_of(machine: host.Machine, current: releases.Release | None) -> dict[str, Any] | None:
    """The branch's newest commit as it was fetched last, and how far what runs is behind it."""
    source = mirror.Mirror(machine.mirror, machine.repo, "")
    tip = source.tip()
    if not tip:
        return None
    fetched = (machine.mirror / "FETCH_HEAD").stat().st_mtime
    behind, since = source.behind(current.commit if current else "", tip)
    return {
        "branch": machine.branch or (current.settings().branch if current else ""),
        "commit": tip,
        "fetched": as_time(fetched),
        "merged": as_time(source.time_of(tip)),
        "behind": behind,  # commits
        "since": as_time(since) if behind else None,  # when the first of them was merged
        "held": (memory.bad_commits(machine).get(tip) or {}).get("kind") == "person",
    }


def activated(machine: host.Machine, current: releases.Release | None) -> str | None:
    """When what runs was switched to; of a release of a version that did not note it, the link's own time."""
    if not current:
        return None
    return str(current.meta.get("activated") or as_time(os.lstat(machine.current).st_mtime))


def as_time(moment: float) -> str:
    return time.strftime(files.TIME, time.gmtime(moment))


def seconds(text: str) -> float:
    """A time as files.now() writes it, in seconds since 1970; 0: it is none."""
    with contextlib.suppress(ValueError, OverflowError):
        return files.seconds(text)
    return 0.0


# --- the history


def folded(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The results; of those in a row that did nothing, in the same way, only the last, with how many they were."""
    found: list[dict[str, Any]] = []
    for result in history:
        before, number = found[-1] if found else {}, 1
        if result["outcome"] in NOTHING_DONE and all(before.get(key) == result[key] for key in ("outcome", "commit")):
            number += found.pop().get("times", 1)
        found.append({**result, "times": number} if number > 1 else dict(result))
    return found


def last_failure(history: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    return next((result for result in reversed(history) if errors.exit_code(result["outcome"]) in (10, 11, 12)), None)


def is_last_word(failure: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> bool:
    """Whether nothing has ended well since that failure."""
    later = reversed(history)
    return next((one is failure for one in later if one["outcome"] not in ("busy", "unreachable")), False)


def brief(result: Mapping[str, Any]) -> dict[str, Any]:
    return {key: result.get(key) for key in HISTORY}


def reason_of(result: Mapping[str, Any]) -> str:
    """Why all is not well, in few words; nothing, if it is."""
    failure, drifted = result["last_failure"], result["drift"]
    reasons = [
        (not result["commit"], "nothing is deployed"),
        ("health" in result["unknown"], "its health did not come in time"),
        (bool(result["problem"]), result["problem"]),
        (result["interrupted"], "the last deploy was interrupted"),
        (result["failing"], failure and (failure.get("reason") or failure["message"])),
        (bool(drifted), drifted and changes(drifted)),
        (bool(result["installed"]), result["installed"] and result["installed"][0]),
        (bool(result["unknown"]), f"{', '.join(result['unknown'])}: did not come in time"),
    ]
    return next((attempt.brief(str(words)) for is_so, words in reasons if is_so), "")


def changes(drifted: Sequence[Mapping[str, str]]) -> str:
    first = f"{drifted[0]['name']}: {WORDS[drifted[0]['kind']]}"
    return first + (f", and {len(drifted) - 1} more" if len(drifted) > 1 else "")


WORDS = {kind: f"{kind} by hand" for kind in ("changed", "deleted", "added")}
WORDS |= {"reload": "changed, systemctl daemon-reload is due", "newer": "newer than what runs"}

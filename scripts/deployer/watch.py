"""Once a minute: a release that was well and falls ill within its probation is taken back; later, that is told."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from deployer import (
    attempt,
    commands,
    draining,
    errors,
    files,
    health,
    host,
    lock,
    log,
    memory,
    messages,
    metrics,
    releases,
    replacing,
    run,
    services,
    slots,
    switching,
)

PAUSE = 5.0  # seconds between two questions: one that fails may be no more than a moment
MANY = 2  # so many times a process may not end by itself


class Look(NamedTuple):
    """state/watch.json: what the last look at a release has seen."""

    release: str
    boot: str
    since: float  # seconds of CLOCK_BOOTTIME at which it was first looked at in this boot: its probation begins
    process: str  # which start of the web service the workers are of
    workers: list[str]
    deaths: int  # workers that ended by themselves since then
    told: str  # the problem that was told last


def watch(request: memory.Request) -> attempt.Result:
    """Look whether what serves is well; the result is recorded only if something was done or has changed."""
    request = request._replace(trigger="watch", lock_timeout=0.1)
    progress = attempt.begin(request)
    try:
        with lock.hold(request, lambda waits: None) as progress.lock:
            outcome = attempt.outcome_of(progress, look)
            result = attempt.result_of(progress, outcome)
            if outcome.name != "unchanged":
                attempt.report(progress, result)
            else:  # a directory that is missing is told by each deploy, and not once a minute
                metrics.write(request.machine, outcome.healthy)
            memory.clear_running(request.machine)
    except errors.Busy as error:  # a deploy is going on: it looks by itself
        return attempt.result_of(progress, memory.Outcome("busy", str(error)))
    if outcome.name != "unchanged":
        attempt.tell_team(request.machine, result)
    if outcome.name != "unchanged" or outcome.healthy is not None:  # else there was nothing to look at
        messages.ping(request.machine, bool(outcome.name == "unchanged" and outcome.healthy))
    return result


def look(progress: memory.Progress) -> memory.Outcome:
    machine, current = progress.machine, releases.current(progress.machine)
    draining.look_after_left(machine, current)
    if not current or not machine.owns_services:
        return memory.Outcome("unchanged", "nothing is deployed")
    if memory.read_intent(machine):  # a deploy was interrupted or ended broken: the next one ends that
        return memory.Outcome("unchanged", f"{current.short} is not confirmed")
    seen = next_look(machine, current)
    problem = problem_of(machine, current, seen)
    good = releases.good_before(machine, current)
    if problem and good and is_on_probation(machine, current, seen):
        log.error(f"{current.short} was well and is not any more: {problem}")
        return switching.go_back(progress, current, good, errors.Unhealthy(problem))
    if problem != seen.told:
        tell(machine, current, problem)
    files.write_json(machine.state / "watch.json", seen._replace(told=problem)._asdict(), durable=False)
    return memory.Outcome("unchanged", problem or f"{current.short} is well", healthy=not problem)


def begin(machine: host.Machine, release: releases.Release) -> None:
    """Begin the probation of a release that was just seen to be well."""
    (machine.state / "watch.json").unlink(missing_ok=True)
    if machine.owns_services:
        files.write_json(machine.state / "watch.json", next_look(machine, release)._asdict(), durable=False)


def next_look(machine: host.Machine, release: releases.Release) -> Look:
    """What is seen now, added to what was seen before."""
    found: dict[str, Any] = files.read_json(machine.state / "watch.json") or {}
    (process, now), moment = workers_of(machine, release), time.clock_gettime(time.CLOCK_BOOTTIME)
    if (found.get("release"), found.get("boot")) != (release.name, slots.boot_id()):
        return Look(release.name, slots.boot_id(), moment, process, now, 0, "")
    gone = set(found["workers"]) - set(now) if process == found["process"] else set()
    deaths = found["deaths"] + (len(gone) if gone and not lives_for_a_while(machine, release) else 0)
    return Look(release.name, found["boot"], found["since"], process, now, deaths, found["told"])


def workers_of(machine: host.Machine, release: releases.Release) -> tuple[str, list[str]]:
    """The workers of the web service, and of which start of it they are."""
    role = slots.role_of(machine, release)
    slot = slots.serving(release, slots.slots_of(role)) if role else None
    if not slot:
        return "", []
    state = slots.state_of(slot)
    return state["InvocationID"], services.workers(state)


def lives_for_a_while(machine: host.Machine, release: releases.Release) -> bool:
    """Whether a worker may end although all is well: it is no gunicorn's, or has a number of requests to live."""
    program = release.path / ".venv/bin/gunicorn"
    if not program.exists():
        return True
    argv = [str(program), "--config", "gunicorn.conf.py", "--print-config"]
    env = commands.variables(machine, release, release.commit)
    done = run.command(argv, cwd=release.path, env=env, timeout=20, check=False)
    return ["max_requests", "=", "0"] not in [line.split() for line in done.out.splitlines()]


def problem_of(machine: host.Machine, release: releases.Release, seen: Look) -> str:
    """What is wrong with what serves; nothing, if it is well."""
    units = slots.units_of(machine, release)
    for unit, state in services.states_of(units).items():
        times = int(state["NRestarts"] or 0)
        if times >= MANY:
            return f"{unit} ended by itself {times} times"
        if state["ActiveState"] == "failed":
            return f"{unit} failed ({state['Result']})"
    if seen.deaths >= MANY:
        return f"{seen.deaths} of its workers ended by themselves"
    problem = answer_of(machine, release, units)
    if problem:
        time.sleep(PAUSE)
        problem = answer_of(machine, release, units)
    return problem


def answer_of(machine: host.Machine, release: releases.Release, units: Sequence[str]) -> str:
    """What is wrong with its answers, directly and on the way that users' requests take; nothing, if they are well."""
    subject = health.serving(machine, release, units)
    answer = health.probe(subject, time.monotonic() + health.PROBE_TIMEOUT)
    return answer.problem or replacing.through_nginx(machine, release)


def is_on_probation(machine: host.Machine, release: releases.Release, seen: Look) -> bool:
    """Whether a release that falls ill now is taken back by itself."""
    roles = host.roles_of(machine, release.settings())
    probation = max(role.probation for role in roles)
    return time.clock_gettime(time.CLOCK_BOOTTIME) - seen.since < probation


def tell(machine: host.Machine, release: releases.Release, problem: str) -> None:
    """Say once that a release fell ill after its probation, and once that it is well again."""
    text = f"{release.short} is not well: {problem}" if problem else f"{release.short} is well again"
    (log.error if problem else log.notice)(text)
    messages.post(machine, f"{machine.name}: {text}", [])

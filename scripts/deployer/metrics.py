"""How this machine stands, as metrics: a file for node_exporter's textfile collector, if machine.ini names a place."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from deployer import drift, errors, files, host, log, memory, releases, services, slots

STATES = ("broken", "unhealthy", "failed", "drifted", "nothing", "unknown", "ok")  # the first that fits
HELP = {
    "info": "What runs here; the value is always 1.",
    "state": "1 for the state that this machine is in, 0 for the others.",
    "healthy": "Whether what runs was well when it was looked at last.",
    "last_attempt_info": "How the last deploy ended; the value is always 1.",
    "last_attempt_timestamp_seconds": "When the last deploy began.",
    "last_success_timestamp_seconds": "When a deploy ended well for the last time, if there was nothing to do, too.",
    "activated_timestamp_seconds": "Since when what runs serves.",
    "deploy_duration_seconds": "How long the last deploy of another release took.",
    "service_restarts": "How often services ended by themselves and were restarted since they were started.",
    "drifted_files": "Files of the release that runs that somebody has changed by hand.",
}


class Sample(NamedTuple):
    """One line: `labels` beside those of the machine."""

    name: str
    value: float
    labels: Mapping[str, str] = {}


def write(machine: host.Machine, healthy: bool | None, is_new: bool = False) -> str:
    """Replace the file, if one is wanted; why that cannot be, or nothing. It never changes what becomes of a deploy.

    is_new: what runs was just built and started, so that nobody has changed it.
    """
    if not machine.metrics:
        return ""
    try:
        samples = list(seen(machine, healthy, is_new))
        labels = {"machine": machine.name, **({"app": machine.app} if machine.app else {})}
        files.write(place(machine), shown(samples, labels), durable=False)
    except (OSError, ValueError, errors.DeployError) as error:
        return f"metrics = {machine.metrics}: {getattr(error, 'strerror', None) or error}"
    return ""


def tell(machine: host.Machine, healthy: bool | None, is_new: bool) -> None:
    """The same, with a warning if that cannot be."""
    if problem := write(machine, healthy, is_new):
        log.warning(problem)


def place(machine: host.Machine) -> Path:
    return Path(machine.metrics) / f"{host.named_user('deploy_machine', machine.app)}.prom"


def seen(machine: host.Machine, healthy: bool | None, is_new: bool) -> Iterable[Sample]:
    """What is to be told of a machine."""
    current, history = releases.current(machine), memory.read_history(machine)
    drifted = 0 if is_new or not current else drifted_files(machine, current)
    state = state_of(current is not None, healthy, history, drifted)
    yield from (Sample("state", float(state == name), {"state": name}) for name in STATES)
    if healthy is not None:
        yield Sample("healthy", float(healthy))
    if drifted is not None:
        yield Sample("drifted_files", drifted)
    yield from of_attempts(history)
    if current:
        about = {"commit": current.commit, "release": current.name, "roles": " ".join(machine.roles)}
        yield Sample("info", 1, about)
        yield from moment("activated_timestamp_seconds", str(current.meta.get("activated")))
        states = {} if is_new else services.states_of(slots.units_of(machine, current))
        yield Sample("service_restarts", sum(int(one["NRestarts"] or 0) for one in states.values()))


def of_attempts(history: Sequence[Mapping[str, Any]]) -> Iterable[Sample]:
    if not history:
        return
    last = history[-1]
    yield Sample("last_attempt_info", 1, {"outcome": last["outcome"], "trigger": last["trigger"]})
    yield from moment("last_attempt_timestamp_seconds", last["started"])
    good = [one for one in history if errors.exit_code(one["outcome"]) == 0]
    if good:
        yield from moment("last_success_timestamp_seconds", good[-1]["started"], good[-1]["seconds"])
    if made := [one for one in good if one["outcome"] == "deployed"]:
        yield Sample("deploy_duration_seconds", made[-1]["seconds"])


def moment(name: str, text: str, later: float = 0.0) -> Iterable[Sample]:
    """A time as files.now() writes it; none is told of another."""
    try:
        yield Sample(name, files.seconds(text) + later)
    except (ValueError, OverflowError):
        return


def state_of(is_deployed: bool, healthy: bool | None, history: Sequence[Mapping[str, Any]], drifted: int | None) -> str:
    ended = [one["outcome"] for one in history if one["outcome"] not in ("busy", "unreachable")]
    last = ended[-1] if ended else ""
    facts = {
        "broken": last == "broken" and not healthy,
        "unhealthy": healthy is False,
        "failed": errors.exit_code(last or "unchanged") != 0,
        "drifted": bool(drifted),
        "nothing": not is_deployed,
        "unknown": healthy is None,
    }
    return next((name for name in STATES if facts.get(name)), "ok")


def drifted_files(machine: host.Machine, release: releases.Release) -> int | None:
    with contextlib.suppress(errors.DeployError):  # a mirror that is damaged, say: the rest is known
        found = drift.of_files(machine, release)
        return None if found is None else len(found)
    return None


# --- the text format: https://prometheus.io/docs/instrumenting/exposition_formats


def shown(samples: Sequence[Sample], labels: Mapping[str, str]) -> str:
    """All lines of a metric stand together, behind what it is."""
    lines = []
    for name, about in HELP.items():
        own = [sample for sample in samples if sample.name == name]
        if own:
            lines += [f"# HELP deploy_machine_{name} {about}", f"# TYPE deploy_machine_{name} gauge"]
        lines += [f"deploy_machine_{name}{braces({**labels, **one.labels})} {number(one.value)}" for one in own]
    return "".join(line + "\n" for line in lines)


def braces(labels: Mapping[str, str]) -> str:
    return "{" + ",".join(f'{name}="{escaped(value)}"' for name, value in labels.items()) + "}"


def escaped(text: str) -> str:
    text = text.encode("utf-8", "replace").decode()
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def number(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:.3f}"

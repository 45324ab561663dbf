"""The slot that was left: what is under way there ends in its own time, or it serves again; then it is ended."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deployer import config, errors, files, host, log, releases, services, slots

SOCKETS = Path("/proc/net/unix")
Release = releases.Release
Slot = slots.Slot


def leave(machine: host.Machine, slot: Slot) -> None:
    """Remember that a slot was left: requests that it has begun end in their own time, or it serves again."""
    about = {"slot": slot.name, "since": time.clock_gettime(time.CLOCK_BOOTTIME), "boot": slots.boot_id(), "looks": 0}
    files.write_json(machine.state / "left.json", about, durable=False)


def leave_others(machine: host.Machine, release: Release) -> None:
    """Leave whatever slot runs beside the one that the current release serves from."""
    role = slots.role_of(machine, release)
    both = slots.slots_of(role) if role else []
    for slot in both:
        if slot != slots.serving(release, both) and slots.is_running(slot):
            leave(machine, slot)


def read_left(machine: host.Machine) -> dict[str, Any]:
    """What was left in this boot."""
    left = files.read_json(machine.state / "left.json") or {}
    return left if left.get("boot") == slots.boot_id() else {}


def time_left(left: Mapping[str, Any], role: config.Role) -> float:
    """The seconds that requests of what was left may still take; 0 for a slot of which nobody knows since when."""
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    return role.drain_timeout - (now - float(left["since"])) if left else 0.0


def look_after_left(machine: host.Machine, release: Release | None) -> None:
    """Once a minute: end the slot that was left, if nothing is under way there any more, or if it had its time."""
    role, left = slots.role_of(machine, release), read_left(machine)
    if not role or not left or not release:
        return
    both = slots.slots_of(role)
    slot = next(slot for slot in both if slot.name == left["slot"])
    if slot == slots.serving(release, both):
        (machine.state / "left.json").unlink(missing_ok=True)
    elif time_left(left, role) <= 0 or (left["looks"] and not connections(slot)):  # it may serve again for a minute
        end(slot, role, machine)
    else:
        files.write_json(machine.state / "left.json", {**left, "looks": left["looks"] + 1}, durable=False)


def connections(slot: Slot) -> int:
    """How many requests wait in a socket's queue or are answered: its connections, as the kernel lists them."""
    lines = [line.split() for line in SOCKETS.read_text().splitlines()]
    return sum(len(line) > 7 and line[7] == slot.bound and line[3] != "00010000" for line in lines)  # which listens


def end(slot: Slot, role: config.Role, machine: host.Machine, state: services.UnitState | None = None) -> None:
    """End a slot that does not serve: first its socket, which would start it again; then what is under way, in time.

    state: as it was just seen, else it is asked for.
    """
    left, timeout = read_left(machine), 60.0
    left = left if left.get("slot") == slot.name else {}
    if slots.is_running(slot, state):
        services.systemctl("stop --no-block" if not slot.name else "stop", slot.socket_unit, timeout)
        wait_for(lambda: not connections(slot), max(5.0, time_left(left, role)), f"{slot.service} still answers")
        services.systemctl("stop --no-block", slot.service, timeout)
        if not wait_for(lambda: not slots.is_running(slot), 120.0, f"{slot.service} is ending"):
            raise errors.CommandError(f"{slot.service} does not end")
        slots.forget_failure(slot)
    if not slot.name:
        for unit in (slot.socket_unit, slot.service):
            services.systemctl("disable", unit, timeout)
    if left:
        (machine.state / "left.json").unlink(missing_ok=True)


def give_up(slot: Slot) -> None:
    """Stop one that is not well: nobody waits for it, so that it gets five seconds."""
    for verb, unit in (("stop", slot.socket_unit), ("stop --no-block", slot.service)):
        services.systemctl(verb, unit, 60)
    if not wait_for(lambda: not slots.is_running(slot), 5.0, f"{slot.service} is ending"):
        services.systemctl("kill --signal=KILL", slot.service, 60)
        wait_for(lambda: not slots.is_running(slot), 60.0, f"{slot.service} is ending")
    slots.forget_failure(slot)


def stop_others(machine: host.Machine) -> list[str]:
    """Stop what runs beside the slot that serves, unless a good deploy has left it; returns which those were."""
    release = releases.current(machine)
    role, left = slots.role_of(machine, release), read_left(machine)
    if not role or not release:
        return []
    both = slots.slots_of(role)
    now = slots.serving(release, both)
    others = [slot for slot in both if slot.name and now and slot != now and left.get("slot") != slot.name]
    stopped = [slot for slot in others if slots.is_running(slot)]
    for slot in stopped:
        give_up(slot)
    return [slot.service for slot in stopped]


def wait_for(fact: Any, seconds: float, what: str) -> bool:
    """Wait for a fact, saying for what and for how long; whether it came about."""
    deadline, told = time.monotonic() + seconds, False
    while not (found := bool(fact())) and time.monotonic() < deadline:
        if not told:
            log.info(f"waiting for at most {seconds:.0f} s: {what}")
            told = True
        time.sleep(0.03)
    return found

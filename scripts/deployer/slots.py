"""The two instances of a web service: the one that serves; the other, proved before it does; the one that was left.

A release in a slot has the link `.socket` to the slot's socket, and nginx passes to `current/.socket`: so one rename
switches code, static files and socket.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from deployer import config, errors, files, health, host, log, memory, releases, services

SOCKETS = Path("/proc/net/unix")
STOPPED = ("inactive", "failed")
Release = releases.Release


class Slot(NamedTuple):
    """One of the two, or what stood there before slots did."""

    name: str  # blue or green; empty: neither
    service: str
    socket_unit: str
    socket: str  # its path
    bound: str  # the name by which the kernel knows that


def role_of(machine: host.Machine, release: Release | None) -> config.Role | None:
    """The role with slots, if this machine has one. Without machine.ini no service is touched."""
    if not release or not machine.owns_services:
        return None
    return config.slots_of(config.roles_of(machine.roles, release.settings()))


@functools.cache
def slots_of(role: config.Role) -> list[Slot]:
    """Both slots, and the socket and service that stand where slots do not yet. Raises CommandError: not installed."""
    names = [config.instance(role.slots, name, kind) for name in config.SLOTS for kind in ("service", "socket")]
    states = services.states_of(names)
    for unit, state in states.items():
        if state["LoadState"] != "loaded":
            raise errors.CommandError(f"{unit} is not installed ({state['LoadState']}): run setup_machine.py")
    slots = []
    for name in config.SLOTS:
        service, unit = (config.instance(role.slots, name, kind) for kind in ("service", "socket"))
        path = states[unit].get("Listen", "").partition(" ")[0]
        slots.append(Slot(name, service, unit, path, path))
    unit, service = services.before_slots(role)
    bound = services.states_of([unit])[unit].get("Listen", "").partition(" ")[0]
    return [*slots, Slot("", service, unit, f"/run/{service[: -len('.service')]}-old.sock", bound)]


def serving(release: Release, slots: Sequence[Slot]) -> Slot | None:
    """The slot that a release serves from, or would."""
    path = health.socket_of(release)
    return next((slot for slot in slots if slot.socket == path), None)


def units_of(machine: host.Machine, release: Release | None) -> list[str]:
    """All units of a release that serves: services, what is reloaded, and its slot."""
    if not release or not machine.owns_services:
        return []
    roles = config.roles_of(machine.roles, release.settings())
    units, reloads = config.units_of(roles)
    role = config.slots_of(roles)
    slot = serving(release, slots_of(role)) if role else None
    return [*units, *reloads, *([slot.service] if slot else [])]


def state_of(slot: Slot) -> str:
    return services.states_of([slot.service])[slot.service]["ActiveState"]


def is_running(slot: Slot) -> bool:
    return state_of(slot) not in STOPPED


# --- the idle one


def prove(progress: memory.Progress, release: Release) -> Slot | None:
    """Start the release in the slot that does not serve and wait until it is well: nobody notices.

    Returns the slot, or None if this is no way: nothing serves from a slot now (at a boot, say), the role has no
    slots, or there is no memory for two. Raises Unhealthy; then the slot is stopped and nothing was switched.
    """
    machine, current = progress.machine, releases.current(progress.machine)
    role = role_of(machine, release)
    if not role or not current:
        return None
    slots = slots_of(role)
    now = serving(current, slots)
    if not now or not is_running(now) or not has_memory(now):
        return None
    slot = idle(slots, now)
    log.ready()  # an instance is ordered behind the unit of a boot's deploy; one serves already
    progress.stage("proving")
    is_same = is_running(slot) and release_in(machine, slot) == release  # it was left, and has not ended yet
    try:
        if not is_same:
            end(slot, role, machine)
            place(machine, slot, release)
            start(slot, release.settings().service_timeout)
        health.wait_until_healthy(newcomer(machine, release, role, slot))
    except (errors.Unhealthy, errors.CommandError) as error:
        detail = error.detail or services.journal_of(slot.service)
        give_up(slot)
        raise errors.Unhealthy(str(error), detail) from None
    return slot


def newcomer(machine: host.Machine, release: Release, role: config.Role, slot: Slot) -> health.Subject:
    """A release that runs in a slot and does not serve yet; asked so often that each worker is likely to answer."""
    subject = health.Subject(machine, release, release.settings(), (role,), (slot.service,), {}, slot.socket, True)
    return subject._replace(times=max(3, min(20, 2 * len(workers(slot.service)))))


def idle(slots: Sequence[Slot], now: Slot | None) -> Slot:
    """The slot for the next release."""
    return next(slot for slot in slots if slot.name and slot != now)


def has_memory(slot: Slot) -> bool:
    """Whether there is room for a second one like this."""
    main = services.states_of([slot.service])[slot.service].get("MainPID", "0")
    pids = [main, *(worker.partition(" ")[0] for worker in workers(slot.service))]
    needed = sum(kilobytes(f"/proc/{pid}/status", "VmRSS") for pid in pids)
    available = kilobytes("/proc/meminfo", "MemAvailable")
    if available < needed:
        room = f"{files.megabytes(available * 1000)} are free and it has {files.megabytes(needed * 1000)}"
        log.warning(f"no memory for a second {slot.service} ({room}): it is stopped, then started")
    return available >= needed


def kilobytes(path: str, name: str) -> int:
    """A figure of /proc; 0 for a process that has ended."""
    with contextlib.suppress(OSError):
        for line in Path(path).read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1])
    return 0


def release_in(machine: host.Machine, slot: Slot) -> Release | None:
    """The release that a slot's link leads to. It is only changed while nothing runs there."""
    try:
        return Release(machine.releases / os.path.basename(os.readlink(machine.slots / slot.name)))
    except OSError:
        return None


def place(machine: host.Machine, slot: Slot, release: Release) -> None:
    """Lead a slot that is not running to a release, and the release, unless it serves, to the slot's socket."""
    machine.slots.mkdir(exist_ok=True)
    files.replace_link(machine.slots / slot.name, f"../releases/{release.name}")
    (release.path / f".starting-{boot_id()}").touch()  # in this boot the unit may start although it does not serve
    if release != releases.current(machine):
        files.replace_link(release.path / ".socket", slot.socket)


def boot_id() -> str:
    """systemd's %b."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")


def start(slot: Slot, timeout: float) -> None:
    forget_failure(slot)
    services.systemctl("start", slot.socket_unit, timeout)
    services.systemctl("start", slot.service, timeout)


def give_up(slot: Slot) -> None:
    """Stop one that is not well: nobody waits for it, so that it gets five seconds."""
    for verb, unit in (("stop", slot.socket_unit), ("stop --no-block", slot.service)):
        services.systemctl(verb, unit, 60)
    if not wait_for(lambda: not is_running(slot), 5.0, f"{slot.service} is ending"):
        services.systemctl("kill --signal=KILL", slot.service, 60)
        wait_for(lambda: not is_running(slot), 60.0, f"{slot.service} is ending")
    forget_failure(slot)


def forget_failure(slot: Slot) -> None:
    """That it had to be killed is told in the deploy's own words; nobody has to look after the unit."""
    if state_of(slot) == "failed":
        services.systemctl("reset-failed", slot.service, 60)


def workers(unit: str) -> list[str]:
    """The processes that a unit's main one has started, each as pid and start: no other one will have both."""
    main = services.states_of([unit])[unit].get("MainPID", "0")
    found = []
    for task in Path(f"/proc/{main}/task").glob("*/children") if main != "0" else ():
        for pid in task.read_text().split():
            try:
                found.append(f"{pid} {Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[19]}")
            except OSError:
                continue  # it has ended
    return sorted(found)


# --- the one that serves


def bring(progress: memory.Progress, release: Release) -> list[dict[str, str]]:
    """See that the current release serves from its slot; what was done. Nothing if no role has slots."""
    machine, role = progress.machine, role_of(progress.machine, release)
    if not role:
        return []
    slots = slots_of(role)
    slot = serving(release, slots)
    if not slot:  # it was never in one: at a boot, or where slots are new
        slot = idle(slots, None)
        end(slot, role, machine)
        place(machine, slot, release)
        files.replace_link(release.path / ".socket", slot.socket)
    action, is_other = "none", bool(slot.name) and release_in(machine, slot) != release
    if is_other or not is_running(slot):
        for other in slots:
            if is_running(other) and (other != slot or is_other):  # there is no memory for two, or it was not well
                end(other, role, machine)
        if slot.name:
            place(machine, slot, release)
        start(slot, release.settings().service_timeout)
        action = "started"
    return [{"unit": slot.service, "state": state_of(slot), "action": action}]


def renew(progress: memory.Progress, release: Release) -> None:
    """Start the release that serves anew: in the other slot, then the rename of its `.socket`. Raises Unhealthy."""
    machine, role = progress.machine, role_of(progress.machine, release)
    assert role
    slots = slots_of(role)
    now = serving(release, slots)
    if slot := prove(progress, release):
        files.replace_link(release.path / ".socket", slot.socket)
    elif now:
        end(now, role, machine)
        start(now, release.settings().service_timeout)
    if slot and now:
        leave(machine, now)


def through_nginx(machine: host.Machine, release: Release) -> str:
    """What is wrong on the way that users' requests take: nginx has to reach the release. Empty: nothing."""
    role = role_of(machine, release)
    paths = [url for url in role.health if url.startswith("/")] if role else []
    if not role or not paths or "nginx.service" not in role.reload:
        return ""
    answer = health.ask(f"http://127.0.0.1{paths[0]}", health.PROBE_TIMEOUT, role.health_headers)
    # what it answers itself it was asked before: a redirect to https, or another site's 404, is no fault of its
    is_fault = bool(answer.problem) and (answer.status >= 500 or not answer.status)
    return f"through nginx, {answer.problem}" if is_fault else ""


# --- the one that was left


def leave(machine: host.Machine, slot: Slot) -> None:
    """Remember that a slot was left: requests that it has begun end in their own time, or it serves again."""
    about = {"slot": slot.name, "since": time.clock_gettime(time.CLOCK_BOOTTIME), "boot": boot_id(), "looks": 0}
    files.write_json(machine.state / "left.json", about, durable=False)


def leave_others(machine: host.Machine, release: Release) -> None:
    """Leave whatever slot runs beside the one that the current release serves from."""
    role = role_of(machine, release)
    slots = slots_of(role) if role else []
    for slot in slots:
        if slot != serving(release, slots) and is_running(slot):
            leave(machine, slot)


def read_left(machine: host.Machine) -> dict[str, Any]:
    """What was left in this boot."""
    left = files.read_json(machine.state / "left.json") or {}
    return left if left.get("boot") == boot_id() else {}


def look_after_left(machine: host.Machine, release: Release | None) -> None:
    """Once a minute: end the slot that was left, if nothing is under way there any more, or if it had its time."""
    role, left = role_of(machine, release), read_left(machine)
    if not role or not left or not release:
        return
    slots = slots_of(role)
    slot = next(slot for slot in slots if slot.name == left["slot"])
    waited = time.clock_gettime(time.CLOCK_BOOTTIME) - float(left["since"])
    if slot == serving(release, slots):
        (machine.state / "left.json").unlink(missing_ok=True)
    elif waited >= role.drain_timeout or (left["looks"] and not connections(slot)):  # it may serve again for a minute
        end(slot, role, machine)
    else:
        files.write_json(machine.state / "left.json", {**left, "looks": left["looks"] + 1}, durable=False)


def connections(slot: Slot) -> int:
    """How many requests wait in a socket's queue or are answered: its connections, as the kernel lists them."""
    lines = [line.split() for line in SOCKETS.read_text().splitlines()]
    return sum(len(line) > 7 and line[7] == slot.bound and line[3] != "00010000" for line in lines)  # which listens


def end(slot: Slot, role: config.Role, machine: host.Machine) -> None:
    """End a slot that does not serve: first its socket, which would start it again; then what is under way, in time."""
    left, timeout = read_left(machine), 60.0
    if is_running(slot):
        services.systemctl("stop --no-block" if not slot.name else "stop", slot.socket_unit, timeout)
        waited = time.clock_gettime(time.CLOCK_BOOTTIME) - float(left.get("since", 0)) if left else role.drain_timeout
        wait_for(lambda: not connections(slot), max(5.0, role.drain_timeout - waited), f"{slot.service} still answers")
        services.systemctl("stop --no-block", slot.service, timeout)
        if not wait_for(lambda: not is_running(slot), 120.0, f"{slot.service} is ending"):
            raise errors.CommandError(f"{slot.service} does not end")
        forget_failure(slot)
    if not slot.name:
        for unit in (slot.socket_unit, slot.service):
            services.systemctl("disable", unit, timeout)
    if left.get("slot") == slot.name:
        (machine.state / "left.json").unlink(missing_ok=True)


def wait_for(fact: Any, seconds: float, what: str) -> bool:
    """Wait for a fact, saying for what and for how long; whether it came about."""
    deadline, told = time.monotonic() + seconds, False
    while not (found := bool(fact())) and time.monotonic() < deadline:
        if not told:
            log.info(f"waiting for at most {seconds:.0f} s: {what}")
            told = True
        time.sleep(0.1)
    return found


def stop_others(machine: host.Machine) -> list[str]:
    """Stop what runs beside the slot that serves, unless a good deploy has left it; returns which those were."""
    release = releases.current(machine)
    role, left = role_of(machine, release), read_left(machine)
    if not role or not release:
        return []
    slots = slots_of(role)
    now = serving(release, slots)
    others = [slot for slot in slots if slot.name and now and slot != now and left.get("slot") != slot.name]
    stopped = [slot for slot in others if is_running(slot)]
    for slot in stopped:
        give_up(slot)
    return [slot.service for slot in stopped]

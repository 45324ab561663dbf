"""A web service is replaced, not restarted: the new release starts beside the old one, and proves itself first."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from deployer import config, draining, errors, files, health, host, log, memory, releases, run, services, slots

Release = releases.Release
Slot = slots.Slot


def prove(progress: memory.Progress, release: Release) -> Slot | None:
    """Start the release in the slot that does not serve and wait until it is well: nobody notices.

    Returns the slot, or None if this is no way: nothing serves from a slot now (at a boot, say), the role has no
    slots, or there is no memory for two. Raises Unhealthy; then the slot is stopped and nothing was switched.
    """
    machine, current = progress.machine, releases.current(progress.machine)
    role = slots.role_of(machine, release)
    if not role or not current:
        return None
    both = slots.slots_of(role)
    now = slots.serving(current, both)
    if not now:
        return None
    slot = slots.idle(both, now)
    serves, rests = slots.states_of([now, slot])
    if not slots.is_running(now, serves) or not has_memory(now, serves):
        return None
    log.ready()  # an instance is ordered behind the unit of a boot's deploy; one serves already
    progress.stage("proving")
    runs = slots.is_running(slot, rests)
    was_left = runs and slots.release_in(machine, slot) == release  # and has not ended yet
    try:
        if not was_left:
            draining.end(slot, role, machine, rests)
            slots.place(machine, slot, release)
            slots.start(slot, release.settings().service_timeout, None if runs else rests)
        subject = newcomer(machine, release, role, slot)
        health.wait_until_healthy(subject._replace(is_spoiled=progress.pending.is_spoiled))
    except (errors.Unhealthy, errors.CommandError) as error:
        detail = error.detail or services.journal_of(slot.service)
        draining.give_up(slot)
        raise errors.Unhealthy(str(error), detail) from None
    return slot


@contextlib.contextmanager
def making_room(progress: memory.Progress) -> Iterator[None]:
    """While a release is made, end what the last deploy left in the slot where it is to start, if nobody is served."""
    machine, current = progress.machine, releases.current(progress.machine)
    role = slots.role_of(machine, current)
    both = slots.slots_of(role) if role else []
    now = slots.serving(current, both) if current else None
    left = slots.idle(both, now) if now else None
    if not role or not left or not slots.is_running(left) or draining.connections(left):
        yield
        return
    ending = run.Background(lambda: draining.end(left, role, machine))
    try:
        yield
    finally:
        if ending.is_alive():
            progress.stage("making room")
        ending.join(10)  # if it takes longer, the proof waits for it, and says so


def give_slot(progress: memory.Progress, release: Release) -> None:
    """Before a release serves, also one that could not be proved first: the rename of `current` switches all."""
    machine, current = progress.machine, releases.current(progress.machine)
    role = slots.role_of(machine, release)
    both = slots.slots_of(role) if role else []
    if role and not slots.serving(release, both):
        slot = slots.idle(both, slots.serving(current, both) if current else None)
        draining.end(slot, role, machine)
        slots.place(machine, slot, release)


def newcomer(machine: host.Machine, release: Release, role: config.Role, slot: Slot) -> health.Subject:
    """A release that runs in a slot and does not serve yet."""
    return health.Subject(machine, release, release.settings(), (role,), (slot.service,), {}, slot.socket, True)


def has_memory(slot: Slot, state: services.UnitState) -> bool:
    """Whether there is room for a second one like this."""
    pids = [state.get("MainPID", "0"), *(worker.partition(" ")[0] for worker in services.workers(state))]
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


def bring(progress: memory.Progress, release: Release) -> list[dict[str, str]]:
    """See that the current release serves from its slot; what was done. Nothing if no role has slots."""
    machine, role = progress.machine, slots.role_of(progress.machine, release)
    if not role:
        return []
    both = slots.slots_of(role)
    slot = slots.serving(release, both)
    if not slot:  # it was never in one: at a boot, or where slots are new
        slot = slots.idle(both, None)
        draining.end(slot, role, machine)
        slots.place(machine, slot, release)
        files.replace_link(release.path / ".socket", slot.socket)
    action, is_other = "none", bool(slot.name) and slots.release_in(machine, slot) != release
    state = slots.state_of(slot)
    if is_other or not slots.is_running(slot, state):
        for other in both:
            if slots.is_running(other) and (other != slot or is_other):  # no memory for two, or it was not well
                draining.end(other, role, machine)
        if slot.name:
            slots.place(machine, slot, release)
        slots.start(slot, release.settings().service_timeout)
        action, state = "started", slots.state_of(slot)
    return [{"unit": slot.service, "state": state["ActiveState"], "action": action}]


def renew(progress: memory.Progress, release: Release) -> None:
    """Start the release that serves anew: in the other slot, then the rename of its `.socket`. Raises Unhealthy."""
    machine, role = progress.machine, slots.role_of(progress.machine, release)
    assert role
    both = slots.slots_of(role)
    now = slots.serving(release, both)
    if slot := prove(progress, release):
        files.replace_link(release.path / ".socket", slot.socket)
    elif now:
        draining.end(now, role, machine)
        slots.start(now, release.settings().service_timeout)
    if slot and now:
        draining.leave(machine, now)


def through_nginx(machine: host.Machine, release: Release) -> str:
    """What is wrong on the way that users' requests take: nginx has to reach the release. Empty: nothing."""
    role = slots.role_of(machine, release)
    paths = [url for url in role.health if url.startswith("/")] if role else []
    if not role or not paths or "nginx.service" not in role.reload:
        return ""
    headers = role.health_headers
    if machine.server_name and "host" not in {name.lower() for name, _ in headers}:
        headers = (("Host", machine.server_name.split()[0].replace("*", "www")), *headers)
    answer = health.ask(f"http://127.0.0.1{paths[0]}", health.PROBE_TIMEOUT, headers)
    # what it answers itself it was asked before: a redirect to https, or another site's 404, is no fault of its
    is_fault = bool(answer.problem) and (answer.status >= 500 or not answer.status)
    return f"through nginx, {answer.problem}" if is_fault else ""

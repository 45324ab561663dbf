"""The two instances of a web service, blue and green: which there are, which serves, what runs in each.

A release in a slot has the link `.socket` to the slot's socket, and nginx passes to `current/.socket`: so one rename
switches code, static files and socket.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from deployer import config, errors, files, health, host, releases, services

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
    return config.slots_of(host.roles_of(machine, release.settings()))


@functools.cache
def slots_of(role: config.Role) -> list[Slot]:
    """Both slots, and what version 0.1 served from, where that is still there. Raises CommandError: not installed."""
    names = [config.instance(role.slots, name, kind) for name in config.SLOTS for kind in ("service", "socket")]
    unit_before, service_before = services.before_slots(role)
    states = services.states_of([*names, unit_before])
    for unit in names:
        if (found := states[unit]["LoadState"]) != "loaded":
            raise errors.CommandError(f"{unit} is not installed ({found}): run setup_machine.py")
    slots = []
    for name in config.SLOTS:
        service, unit = (config.instance(role.slots, name, kind) for kind in ("service", "socket"))
        path = states[unit].get("Listen", "").partition(" ")[0]
        slots.append(Slot(name, service, unit, path, path))
    about = states[unit_before]
    if "/slots.conf" not in about.get("DropInPaths", ""):  # by which setup has tied it in: else a person's own
        return slots
    bound = about.get("Listen", "").partition(" ")[0]
    path = f"/run/{service_before[: -len('.service')]}-old.sock"
    return [*slots, Slot("", service_before, unit_before, path, bound)]


def serving(release: Release, slots: Sequence[Slot]) -> Slot | None:
    """The slot that a release serves from, or would."""
    path = health.socket_of(release)
    return next((slot for slot in slots if slot.socket == path), None)


def idle(slots: Sequence[Slot], now: Slot | None) -> Slot:
    """The slot for the next release."""
    return next(slot for slot in slots if slot.name and slot != now)


def units_of(machine: host.Machine, release: Release | None) -> list[str]:
    """All units of a release that serves: services, what is reloaded, and its slot."""
    if not release or not machine.owns_services:
        return []
    roles = host.roles_of(machine, release.settings())
    units, reloads = config.units_of(roles)
    role = config.slots_of(roles)
    slot = serving(release, slots_of(role)) if role else None
    return [*units, *reloads, *([slot.service] if slot else [])]


def state_of(slot: Slot) -> services.UnitState:
    return states_of([slot])[0]


def states_of(slots: Sequence[Slot]) -> list[services.UnitState]:
    """What systemd says of the service of each, in one call."""
    return list(services.states_of([slot.service for slot in slots]).values())


def is_running(slot: Slot, state: services.UnitState | None = None) -> bool:
    """state: as it was just seen, else it is asked for."""
    return (state or state_of(slot))["ActiveState"] not in STOPPED


def release_in(machine: host.Machine, slot: Slot) -> Release | None:
    """The release that a slot's link leads to. It is only changed while nothing runs there."""
    try:
        return Release(machine.releases / os.path.basename(os.readlink(machine.slots / slot.name)))
    except OSError:
        return None


def boot_id() -> str:
    """systemd's %b."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")


# --- to start one


def place(machine: host.Machine, slot: Slot, release: Release) -> None:
    """Lead a slot that is not running to a release, and the release, unless it serves, to the slot's socket."""
    machine.slots.mkdir(exist_ok=True)
    files.replace_link(machine.slots / slot.name, f"../releases/{release.name}")
    (release.path / f".starting-{boot_id()}").touch()  # in this boot the unit may start although it does not serve
    if release != releases.current(machine):
        files.replace_link(release.path / ".socket", slot.socket)


def start(slot: Slot, timeout: float, state: services.UnitState | None = None) -> None:
    """Start a slot. state: as it was just seen, else it is asked for."""
    forget_failure(slot, state)
    services.systemctl("start", slot.socket_unit, timeout)
    services.systemctl("start", slot.service, timeout)


def forget_failure(slot: Slot, state: services.UnitState | None = None) -> None:
    """That it had to be killed is told in the deploy's own words; nobody has to look after the unit."""
    if (state or state_of(slot))["ActiveState"] == "failed":
        services.systemctl("reset-failed", slot.service, 60)

"""The units of this machine's roles: what systemd says of them, and bringing them to a release. Only here: sudo."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from deployer import config, errors, host, log, releases, run, telling

SYSTEMCTL = "/usr/bin/systemctl"  # absolute: sudo grants exactly these calls and no others
FIND = "/usr/bin/find"
NGINX_TEST = ("/usr/sbin/nginx", "-t", "-q")
RUNNING = ("active", "reloading", "deactivating")

Release = releases.Release
UnitState = Mapping[str, str]


# --- what root is asked for


def systemctl(verb: str, unit: str, timeout: float) -> None:
    run.command(["sudo", "-n", *privileged(verb, unit)], timeout=timeout, live=True)


def privileged(verb: str, unit: str) -> tuple[str, ...]:
    """The call that runs as root, word for word."""
    return NGINX_TEST if verb == "test" else (SYSTEMCTL, *verb.split(), unit)


def privileged_calls(settings: config.Config, roles: Sequence[config.Role]) -> list[tuple[str, ...]]:
    """Exactly the calls that a deploy may make as root on a machine of these roles: what sudo is to grant."""
    units, reloads = config.units_of(roles)
    verbs: dict[str, tuple[str, ...]] = dict.fromkeys(units, ("start", "stop", "restart", "reset-failed"))
    verbs |= dict.fromkeys(reloads, ("reload", "start", "reset-failed"))
    role = config.slots_of(roles)
    for slot in config.SLOTS if role else ():
        assert role
        verbs[config.instance(role.slots, slot)] = (
            "start",
            "stop --no-block",
            "kill --signal=KILL",
            "reset-failed",
        )
        verbs[config.instance(role.slots, slot, "socket")] = ("start", "stop")
    if role:  # what was there before slots were
        verbs |= dict.fromkeys(before_slots(role), ("stop --no-block", "disable"))
    verbs |= dict.fromkeys(foreign_units(settings, roles), ("disable --now",))
    calls = [privileged(verb, unit) for unit in verbs for verb in verbs[unit]]
    return calls + [NGINX_TEST] * ("nginx.service" in reloads)


def before_slots(role: config.Role) -> tuple[str, str]:
    """The socket and the service that stand where slots do not yet: `gunicorn.socket` for `gunicorn@.service`."""
    return role.slots.replace("@.service", ".socket"), role.slots.replace("@.service", ".service")


def foreign_units(settings: config.Config, roles: Sequence[config.Role]) -> list[str]:
    """Units that only roles of other machines have, and the sockets that would start them."""
    units, reloads = config.units_of(roles)
    others = [*config.units_of(settings.roles.values())[0]]
    own = config.slots_of(roles)
    templates = {role.slots for role in settings.roles.values() if role.slots and not (own and own.slots == role.slots)}
    others += [config.instance(template, slot) for template in sorted(templates) for slot in config.SLOTS]
    foreign = [unit for unit in others if unit not in units + reloads]
    return foreign + [unit[:-8] + ".socket" for unit in foreign if unit.endswith(".service")]


def share_call(root: Path, app: str) -> tuple[str, ...]:
    """What runs as the user of the services: their group, in which deploys are, may write what they have written."""
    return (FIND, str(root / "shared"), "!", "-type", "l", "-user", app, "!", "-perm", "-g+w",
            "-exec", "chmod", "g+w", "{}", "+")  # fmt: skip


def open_shared(machine: host.Machine) -> None:
    """Have the services' files below shared/ opened to their group; without the right to it that is told."""
    app = host.named_user("app", machine.app)
    try:
        run.command(["sudo", "-n", "-u", app, *share_call(machine.root, app)], timeout=300)
    except errors.CommandError as error:
        log.warning(
            f"what {app} has written below {machine.shared} may be closed to steps: {error}: run setup_machine.py"
        )


# --- units


def states_of(units: Sequence[str]) -> dict[str, UnitState]:
    """What systemd says of each unit, in one call (no privilege needed).

    InvocationID is another one after each start, also one by systemd itself (systemd.exec(5)); so it alone tells
    whether a process is still the one that was seen before.
    """
    if not units:
        return {}
    names = "LoadState,ActiveState,SubState,NRestarts,UnitFileState,InvocationID,Result,MainPID,Listen,DropInPaths,"
    names += "NeedDaemonReload,ActiveEnterTimestampMonotonic"
    done = run.command([SYSTEMCTL, "show", "--no-pager", f"--property={names}", "--", *units])
    blocks = [dict(line.partition("=")[::2] for line in block.splitlines()) for block in done.out.strip().split("\n\n")]
    return dict(zip(units, blocks))


def workers(state: UnitState) -> list[str]:
    """The processes that a unit's main one has started, each as pid and start: no other one will have both."""
    main = state.get("MainPID", "0")
    found = []
    with contextlib.suppress(OSError):  # the main one has ended
        for task in Path(f"/proc/{main}/task").glob("*/children") if main != "0" else ():
            found += [identity for pid in task.read_text().split() if (identity := identity_of(pid))]
    return sorted(found)


def identity_of(pid: str) -> str:
    """A process id and the clock ticks at which it was started; empty if it has ended."""
    try:
        return f"{pid} {Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[19]}"
    except OSError:
        return ""


def own_states(machine: host.Machine, settings: config.Config) -> dict[str, UnitState]:
    """The states of all units that this machine's deploys touch; without machine.ini there are none."""
    roles, settings = host.roles_of(machine, settings), host.of_app(settings, machine.app)
    if not machine.owns_services:
        return {}
    units, reloads = config.units_of(roles)
    return states_of([*units, *reloads, *foreign_units(settings, roles)])


def bring(
    machine: host.Machine, settings: config.Config, states: Mapping[str, UnitState], old: Mapping[str, UnitState] | None
) -> list[dict[str, str]]:
    """Bring all units to where they belong; return what was done with each, and its state.

    Stops units of other machines' roles and starts what does not run.
    states: as they are now. old: as they were when the release was switched: what is still the same process
    is restarted, and the rest reloaded; None: there was no switch. Without machine.ini it touches nothing.
    """
    if not machine.owns_services:
        return []
    roles, timeout = host.roles_of(machine, settings), settings.service_timeout
    settings = host.of_app(settings, machine.app)
    units, reloads = config.units_of(roles)
    for unit in units + reloads:
        if states[unit]["LoadState"] != "loaded":
            raise errors.Unhealthy(f"{unit} is not installed ({states[unit]['LoadState']}): run setup_machine.py")
    foreign = foreign_units(settings, roles)
    actions = {unit: stop_foreign(unit, states[unit], timeout) for unit in foreign}
    # with slots the rename has switched all that nginx reads; a reload would only close what clients keep open
    needless = {"nginx.service"} if config.slots_of(roles) else set()
    wanted = set(reloads) - needless if old is not None else set()
    reloading = run.Background(
        lambda: {unit: reload_unit(unit, states[unit], unit in wanted, timeout) for unit in reloads}
    )
    try:
        actions.update({unit: bring_unit(unit, states[unit], (old or {}).get(unit), timeout) for unit in units})
    finally:
        reloading.join()
    actions.update(reloading.result())
    if set(actions.values()) > {"none"}:
        states = states_of(list(states))
    told = [unit for unit, action in actions.items() if action != "none" or unit not in foreign]
    return [{"unit": unit, "state": states[unit]["ActiveState"], "action": actions[unit]} for unit in told]


def stop_foreign(unit: str, state: UnitState, timeout: float) -> str:
    """Stop and disable a unit that has no place on this machine, if it is here; return what was done."""
    if state["ActiveState"] not in ("active", "activating", "reloading") and state["UnitFileState"] != "enabled":
        return "none"
    log.info(f"{unit} belongs to a role that this machine does not have: stopping it")
    systemctl("disable --now", unit, timeout)
    return "stopped"


def bring_unit(unit: str, state: UnitState, old: UnitState | None, timeout: float) -> str:
    """Start a unit, or restart it so that it runs the present release; return what was done."""
    running = state["ActiveState"] in RUNNING
    # a plain start would sit out the delay of a unit that systemd is about to start again,
    crashed = state["SubState"] == "auto-restart"
    # and one that hangs in its start would not take notice of the release that it is to run now
    stuck = old is not None and state["ActiveState"] == "activating"
    if crashed or stuck or (running and is_same_process(state, old)):
        return start("restart", unit, state, timeout)
    return "none" if running else start("start", unit, state, timeout)


def is_same_process(state: UnitState, old: UnitState | None) -> bool:
    return old is not None and state["InvocationID"] == old["InvocationID"]


def reload_unit(unit: str, state: UnitState, wanted: bool, timeout: float) -> str:
    """Reload a unit that runs, start one that does not; return what was done."""
    running = state["ActiveState"] in ("active", "reloading")
    if running and not wanted:
        return "none"
    if running:
        systemctl("reload", unit, timeout)
        return "reloaded"
    return start("start", unit, state, timeout)


def start(verb: str, unit: str, state: UnitState, timeout: float) -> str:
    if state["ActiveState"] == "failed" or state["NRestarts"] not in ("", "0"):
        systemctl("reset-failed", unit, timeout)  # else a crash loop's start limit refuses the start
    try:
        systemctl(verb, unit, timeout)
    except errors.CommandError as error:  # systemctl knows no more than that; the journal does
        told = journal_of(unit)
        said = telling.line(told) or error.said
        raise errors.CommandError(f"{error}: {said}", told or error.detail, said) from None
    return verb + "ed"


def test_reloads(settings: config.Config, roles: Sequence[config.Role]) -> None:
    """Before anything is touched: nginx would take its files. Raises CommandError with nginx's own line."""
    if "nginx.service" in config.units_of(roles)[1]:
        try:
            systemctl("test", "nginx.service", settings.service_timeout)
        except errors.CommandError as error:
            told = re.findall(r"\[emerg\](?: \d+#\d+:)? (.+)", error.detail)
            raise errors.CommandError(f"nginx -t: {(told or [str(error)])[0]}", error.detail) from None


def journal_of(unit: str) -> str:
    """The last lines that a unit logged, if this user may read them."""
    argv = ["journalctl", "--no-pager", "--quiet", "--output=cat", "--lines=15", f"--unit={unit}"]
    try:
        done = run.command(argv, check=False, most=0)
    except errors.DeployError:
        return ""
    return run.tail(done.out)

"""The services of this machine's roles: their units, and whether they are well. No other room calls sudo."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any, Callable

from deployer import VERSION, build, config, errors, log, run
from deployer.config import Config, Role
from deployer.host import Machine
from deployer.releases import Release

SYSTEMCTL = "/usr/bin/systemctl"  # absolute: sudo grants exactly these calls and no others
NGINX_TEST = ("/usr/sbin/nginx", "-t", "-q")
RUNNING = ("active", "reloading", "deactivating")
STAYS_HEALTHY = 0.1  # seconds that a release with a health check must stay healthy: seen twice, that is
STAYS_ACTIVE = 3.0  # the same where "its process lives" is all that can be seen
PROBE_TIMEOUT = 10.0  # seconds for one question

UnitState = Mapping[str, str]


# --- what root is asked for


def systemctl(verb: str, unit: str, timeout: float) -> None:
    run.command(["sudo", "-n", *privileged(verb, unit)], timeout=timeout, live=True)


def privileged(verb: str, unit: str) -> tuple[str, ...]:
    """The call that runs as root, word for word."""
    return NGINX_TEST if verb == "test" else (SYSTEMCTL, *verb.split(), unit)


def privileged_calls(settings: Config, roles: Sequence[Role]) -> list[tuple[str, ...]]:
    """Exactly the calls that a deploy may make as root on a machine of these roles: what sudo is to grant."""
    units, reloads = config.units_of(roles)
    verbs: dict[str, tuple[str, ...]] = dict.fromkeys(units, ("start", "stop", "restart", "reset-failed"))
    verbs |= dict.fromkeys(reloads, ("reload", "start", "reset-failed"))
    verbs |= dict.fromkeys(foreign_units(settings, roles), ("disable --now",))
    calls = [privileged(verb, unit) for unit in verbs for verb in verbs[unit]]
    return calls + [NGINX_TEST] * ("nginx.service" in reloads)


def foreign_units(settings: Config, roles: Sequence[Role]) -> list[str]:
    """Units that only roles of other machines have, and the sockets that would start them."""
    units, reloads = config.units_of(roles)
    foreign = [unit for unit in config.units_of(settings.roles.values())[0] if unit not in units + reloads]
    return foreign + [unit[:-8] + ".socket" for unit in foreign if unit.endswith(".service")]


# --- units


def states_of(units: Sequence[str]) -> dict[str, UnitState]:
    """What systemd says of each unit, in one call (no privilege needed).

    InvocationID is another one after each start, also one by systemd itself (systemd.exec(5)); so it alone tells
    whether a process is still the one that was seen before.
    """
    if not units:
        return {}
    names = "LoadState,ActiveState,SubState,NRestarts,UnitFileState,InvocationID,Result"
    done = run.command([SYSTEMCTL, "show", "--no-pager", f"--property={names}", "--", *units])
    blocks = [dict(line.partition("=")[::2] for line in block.splitlines()) for block in done.out.strip().split("\n\n")]
    return dict(zip(units, blocks))


def own_states(machine: Machine, settings: Config) -> dict[str, UnitState]:
    """The states of all units that this machine's deploys touch; without machine.ini there are none."""
    roles = config.roles_of(machine.roles, settings)
    if not machine.owns_services:
        return {}
    units, reloads = config.units_of(roles)
    return states_of([*units, *reloads, *foreign_units(settings, roles)])


def bring(
    machine: Machine, settings: Config, states: Mapping[str, UnitState], old: Mapping[str, UnitState] | None
) -> list[dict[str, str]]:
    """Bring all units to where they belong; return what was done with each, and its state.

    Stops units of other machines' roles and starts what does not run.
    states: as they are now. old: as they were when the release was switched: what is still the same process
    is restarted, and the rest reloaded; None: there was no switch. Without machine.ini it touches nothing.
    """
    if not machine.owns_services:
        return []
    roles, timeout = config.roles_of(machine.roles, settings), settings.service_timeout
    units, reloads = config.units_of(roles)
    for unit in units + reloads:
        if states[unit]["LoadState"] != "loaded":
            raise errors.Unhealthy(f"{unit} is not installed ({states[unit]['LoadState']}): run setup_machine.py")
    foreign = foreign_units(settings, roles)
    actions = {unit: stop_foreign(unit, states[unit], timeout) for unit in foreign}
    wanted = old is not None
    reloading = run.Background(lambda: {unit: reload_unit(unit, states[unit], wanted, timeout) for unit in reloads})
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
    if unit == "nginx.service":
        systemctl("test", unit, timeout)  # a reload with a broken file goes unnoticed
    if running:
        systemctl("reload", unit, timeout)
        return "reloaded"
    return start("start", unit, state, timeout)


def start(verb: str, unit: str, state: UnitState, timeout: float) -> str:
    if state["ActiveState"] == "failed" or state["NRestarts"] not in ("", "0"):
        systemctl("reset-failed", unit, timeout)  # else a crash loop's start limit refuses the start
    systemctl(verb, unit, timeout)
    return verb + "ed"


def journal_of(unit: str) -> str:
    """The last lines that a unit logged, if this user may read them."""
    argv = ["journalctl", "--no-pager", "--quiet", "--output=cat", "--lines=15", f"--unit={unit}"]
    try:
        done = run.command(argv, check=False)
    except errors.DeployError:
        return ""
    return run.tail(done.out)


# --- health


class Patient(socket.socket):
    """A socket whose answer must end by a deadline, however slowly it comes; meanwhile `watch` is called."""

    def __init__(self, family: int, deadline: float, watch: Callable[[], object]) -> None:
        super().__init__(family, socket.SOCK_STREAM)
        self.deadline, self.watch, self.has_begun = deadline, watch, False
        self.settimeout(max(0.1, deadline - time.monotonic()))

    def recv_into(self, *arguments: Any) -> int:
        while (left := self.deadline - time.monotonic()) > 0:
            self.settimeout(min(left, 0.5))
            with contextlib.suppress(socket.timeout):
                received = super().recv_into(*arguments)
                self.has_begun = True
                return received
            self.watch()
        if self.has_begun:
            raise errors.Unhealthy("the health check does not end")
        raise TimeoutError("timed out")


def http_status(url: str, timeout: float, watch: Callable[[], object] = bool) -> tuple[int, str]:
    """GET a URL (http:// or http+unix://) within `timeout` seconds; its status and the beginning of the body.

    Raises OSError, and Unhealthy if an answer begins and does not end. watch: called every half second.
    """
    import http.client  # noqa: PLC0415 - takes as long as all other imports together, and is not always needed

    deadline = time.monotonic() + timeout
    if url.startswith("http+unix://"):
        place, _, path = url[len("http+unix://") :].partition(":")
        connection = http.client.HTTPConnection("localhost")
        connection.sock = connected([(socket.AF_UNIX, place)], deadline, watch)
    else:
        host, slash, path = url[len("http://") :].partition("/")
        connection, path = http.client.HTTPConnection(host), slash + path
        found = socket.getaddrinfo(connection.host, connection.port, type=socket.SOCK_STREAM)
        connection.sock = connected([(entry[0], entry[4]) for entry in found], deadline, watch)
    with contextlib.closing(connection):
        try:
            headers = {"User-Agent": f"deploy-machine/{VERSION}", "Connection": "close"}
            connection.request("GET", path or "/", headers=headers)
            response = connection.getresponse()
            return response.status, response.read(500).decode("utf-8", "replace")
        except http.client.HTTPException as error:
            raise OSError(f"no HTTP: {str(error) or type(error).__name__}") from None


def connected(places: Sequence[tuple[int, Any]], deadline: float, watch: Callable[[], object]) -> Patient:
    """A connection to the first of the places (family and address) that takes one. Raises OSError."""
    problem = OSError("no address")
    for family, address in places:
        connection = Patient(family, deadline, watch)
        try:
            connection.connect(address)
            return connection
        except OSError as error:
            connection.close()
            problem = error
    raise problem


def probe(
    machine: Machine, roles: Sequence[Role], release: Release, deadline: float, watch: Callable[[], object] = bool
) -> str:
    """Ask every health URL and run every check once, until the deadline; return what is wrong, or nothing."""
    for role in roles:
        left = max(1.0, deadline - time.monotonic())
        if role.health and machine.owns_services:
            if wrong := ask(role.health, min(left, PROBE_TIMEOUT), watch):
                return wrong
        if role.check:
            env = build.variables(machine, release, release.commit)
            try:
                run.command(role.check, cwd=release.path, env=env, timeout=min(left, 60.0))
            except errors.CommandError as error:
                return f"check of role {role.name} failed: {error}{errors.last_words(error)}"
    return ""


def ask(url: str, timeout: float, watch: Callable[[], object]) -> str:
    """What is wrong with a health URL, or nothing."""
    try:
        status, body = http_status(url, timeout, watch)
    except errors.Unhealthy as error:
        return str(error)
    except OSError as error:
        return f"{url} does not answer: {str(error) or type(error).__name__}"
    if status == 200:
        return ""
    return f"{url} answers {status}" + (f": {' '.join(body.split())[:200]}" if body.strip() else "")


class Watch:
    """Looks at the units of a release that is to become healthy, again and again."""

    def __init__(self, units: Sequence[str], reloads: Sequence[str], old: Mapping[str, UnitState]) -> None:
        self.units, self.reloads, self.old = units, reloads, old
        self.first: dict[str, UnitState] = {}

    def look(self) -> str:
        """What is wrong with a unit and may pass. Raises Unhealthy for what waiting cannot help."""
        problem = ""
        for unit, state in states_of([*self.units, *self.reloads]).items():
            old = self.old.get(unit) if unit in self.units else None
            wrong, final = unit_problem(unit, state, old, self.first.setdefault(unit, state))
            if final:
                raise errors.Unhealthy(wrong, journal_of(unit))
            problem = problem or wrong
        return problem


def unit_problem(unit: str, state: UnitState, old: UnitState | None, first: UnitState) -> tuple[str, bool]:
    """What is wrong with a unit, or nothing; and whether waiting longer cannot help.

    old: as it was at the switch, if it was to be restarted. first: as it was when it was first looked at.
    """
    if state["ActiveState"] == "failed":
        return f"{unit} failed ({state['Result']})", True
    was_up = first["ActiveState"] in ("activating", *RUNNING)
    if state["SubState"] == "auto-restart" or (was_up and not is_same_process(state, first)):
        return f"{unit} ended by itself soon after its start ({state['Result']})", True
    if state["ActiveState"] != "active":
        return f"{unit} is {state['ActiveState']} ({state['SubState']})", False
    if is_same_process(state, old):
        return f"{unit} was not restarted: it still runs the previous release", True
    return "", False


def wait_until_healthy(
    machine: Machine, settings: Config, release: Release, old: Mapping[str, UnitState] | None = None
) -> None:
    """Wait until the release is healthy and stays so. Raises Unhealthy, saying what was seen last.

    old: the units as they were when it was switched to: their processes must be other ones now.
    """
    roles = config.roles_of(machine.roles, settings)
    units, reloads = config.units_of(roles if machine.owns_services else [])
    stay = STAYS_ACTIVE if any(role.services and not (role.health or role.check) for role in roles) else STAYS_HEALTHY
    stay = stay if units else 0.0
    deadline = time.monotonic() + settings.health_timeout
    watch = Watch(units, reloads, old or {})
    healthy_since, told = 0.0, False
    while True:
        problem = watch.look() or probe(machine, roles, release, deadline, watch.look)
        if problem:
            healthy_since = 0.0
            log.progress(f"waiting for the services: {problem}")
        else:
            healthy_since = healthy_since or time.monotonic()
            if time.monotonic() - healthy_since >= stay:
                return
        if time.monotonic() >= deadline:
            detail = "\n".join(map(journal_of, units))
            raise errors.Unhealthy(f"not healthy within {settings.health_timeout:g} s: {problem}", detail)
        if problem and not told:
            log.info(f"waiting up to {settings.health_timeout:g} s: {problem}")
            told = True
        time.sleep(0.1)


def reports_of(machine: Machine, release: Release | None) -> list[dict[str, str]]:
    """The present state of a release's services; nothing is done with them."""
    roles = config.roles_of(machine.roles, release.settings()) if release and machine.owns_services else []
    units, reloads = config.units_of(roles)
    states = states_of(units + reloads)
    return [{"unit": unit, "state": state["ActiveState"], "action": "none"} for unit, state in states.items()]


def observe(machine: Machine, release: Release | None) -> tuple[list[dict[str, str]], str]:
    """The present state of a release's services, and what is wrong, if anything is."""
    if not release:
        return [], "nothing is deployed"
    reports = reports_of(machine, release)
    down = [f"{report['unit']} is {report['state']}" for report in reports if report["state"] != "active"]
    roles = config.roles_of(machine.roles, release.settings())
    return reports, down[0] if down else probe(machine, roles, release, time.monotonic() + PROBE_TIMEOUT)


def observe_safely(machine: Machine, release: Release | None) -> tuple[list[dict[str, str]], str]:
    """The same; that it could not be seen is a problem, too."""
    try:
        return observe(machine, release)
    except (errors.DeployError, OSError) as error:
        return [], str(error)

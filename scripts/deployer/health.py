"""Whether a release is well: its units stay up, its URLs answer, its checks pass. Waits until it is."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any, Callable

from deployer import VERSION, build, config, errors, host, log, releases, run, services

Release = releases.Release
UnitState = services.UnitState
STAYS_HEALTHY = 0.1  # seconds that a release with a health check must stay healthy: seen twice, that is
STAYS_ACTIVE = 3.0  # the same where "its process lives" is all that can be seen
PROBE_TIMEOUT = 10.0  # seconds for one question


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
        place, slash, path = url[len("http://") :].partition("/")
        connection, path = http.client.HTTPConnection(place), slash + path
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
    machine: host.Machine,
    roles: Sequence[config.Role],
    release: Release,
    deadline: float,
    watch: Callable[[], object] = bool,
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
        for unit, state in services.states_of([*self.units, *self.reloads]).items():
            old = self.old.get(unit) if unit in self.units else None
            wrong, final = unit_problem(unit, state, old, self.first.setdefault(unit, state))
            if final:
                raise errors.Unhealthy(wrong, services.journal_of(unit))
            problem = problem or wrong
        return problem


def unit_problem(unit: str, state: UnitState, old: UnitState | None, first: UnitState) -> tuple[str, bool]:
    """What is wrong with a unit, or nothing; and whether waiting longer cannot help.

    old: as it was at the switch, if it was to be restarted. first: as it was when it was first looked at.
    """
    if state["ActiveState"] == "failed":
        return f"{unit} failed ({state['Result']})", True
    was_up = first["ActiveState"] in ("activating", *services.RUNNING)
    if state["SubState"] == "auto-restart" or (was_up and not services.is_same_process(state, first)):
        return f"{unit} ended by itself soon after its start ({state['Result']})", True
    if state["ActiveState"] != "active":
        return f"{unit} is {state['ActiveState']} ({state['SubState']})", False
    if services.is_same_process(state, old):
        return f"{unit} was not restarted: it still runs the previous release", True
    return "", False


def wait_until_healthy(
    machine: host.Machine,
    settings: config.Config,
    release: Release,
    old: Mapping[str, UnitState] | None = None,
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
            detail = "\n".join(map(services.journal_of, units))
            raise errors.Unhealthy(f"not healthy within {settings.health_timeout:g} s: {problem}", detail)
        if problem and not told:
            log.info(f"waiting up to {settings.health_timeout:g} s: {problem}")
            told = True
        time.sleep(0.1)


def observe(machine: host.Machine, release: Release | None) -> tuple[list[dict[str, str]], str]:
    """The present state of a release's services, and what is wrong, if anything is."""
    if not release:
        return [], "nothing is deployed"
    reports = services.reports_of(machine, release)
    down = [f"{report['unit']} is {report['state']}" for report in reports if report["state"] != "active"]
    roles = config.roles_of(machine.roles, release.settings())
    return reports, down[0] if down else probe(machine, roles, release, time.monotonic() + PROBE_TIMEOUT)


def observe_safely(machine: host.Machine, release: Release | None) -> tuple[list[dict[str, str]], str]:
    """The same; that it could not be seen is a problem, too."""
    try:
        return observe(machine, release)
    except (errors.DeployError, OSError) as error:
        return [], str(error)

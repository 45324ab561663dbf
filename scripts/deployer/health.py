"""Whether a release is well: its units stay up, its URLs answer, its checks pass. Waits until it is."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any, Callable, NamedTuple

from deployer import VERSION, commands, config, errors, host, log, releases, run, services

STAYS_HEALTHY = 0.1  # seconds that a release with a health check must stay healthy: seen twice, that is
STAYS_ACTIVE = 3.0  # the same where "its process lives" is all that can be seen
PROBE_TIMEOUT = 10.0  # seconds for one question
STEADY = 10.0  # seconds after which a release that answers nothing but 5xx is not waited for any longer
MANY_DEATHS = 3  # so many times over may each worker of a release that does not answer yet have ended

Release = releases.Release
UnitState = services.UnitState


class Subject(NamedTuple):
    """What is looked at."""

    machine: host.Machine
    release: Release
    settings: config.Config
    roles: tuple[config.Role, ...]  # whose health is asked, and whose checks are run
    units: tuple[str, ...] = ()  # that must be active
    old: Mapping[str, UnitState] = {}  # units as they were before: their processes must be other ones now
    socket: str = ""  # of the slot that paths are asked through; empty: nginx, at 127.0.0.1
    is_new: bool = False  # it does not serve yet: no question may go the way of the users, and each worker is asked
    was_proved: bool = False  # a moment ago, by these very processes: one look is enough
    is_spoiled: Callable[[], bool] = bool  # whether what it answers does not matter any more

    def questions(self) -> list[tuple[str, tuple[tuple[str, str], ...]]]:
        """The URLs to ask, with their headers."""
        found = []
        way = f"http+unix://{self.socket}:" if self.socket else "http://127.0.0.1"
        for role in self.roles if self.machine.owns_services else ():
            for url in role.health:
                if url.startswith("/"):  # Host as through nginx at 127.0.0.1, unless another one is named
                    found.append((way + url, (("Host", "127.0.0.1"), *role.health_headers)))
                elif not self.is_new:
                    found.append((url, role.health_headers))
        return found


# --- one look


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


def http_status(
    url: str, timeout: float, headers: Sequence[tuple[str, str]] = (), watch: Callable[[], object] = bool
) -> tuple[int, str]:
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
            own = {"User-Agent": f"deploy-machine/{VERSION}", "Connection": "close"}
            connection.request("GET", path or "/", headers={**own, **dict(headers)})
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


class Answer(NamedTuple):
    """What is wrong (nothing, if it is well), and the HTTP status behind it, if there is one."""

    problem: str = ""
    status: int = 0


def probe(subject: Subject, deadline: float, watch: Callable[[], object] = bool, times: int = 1) -> Answer:
    """Ask every health URL so many times and run every check once, until the deadline."""
    for url, headers in subject.questions():
        for _ in range(times):
            answer = ask(url, min(max(1.0, deadline - time.monotonic()), PROBE_TIMEOUT), headers, watch)
            if answer.problem:
                return answer
    for role in subject.roles:
        if role.check:
            env = commands.variables(subject.machine, subject.release, subject.release.commit)
            left = min(max(1.0, deadline - time.monotonic()), 60.0)
            try:
                run.command(role.check, cwd=subject.release.path, env=env, timeout=left, most=0)
            except errors.CommandError as error:
                return Answer(f"check of role {role.name} failed: {error}{errors.last_words(error)}")
    return Answer()


def ask(url: str, timeout: float, headers: Sequence[tuple[str, str]], watch: Callable[[], object] = bool) -> Answer:
    """Whether a URL answers 200."""
    try:
        status, body = http_status(url, timeout, headers, watch)
    except errors.Unhealthy as error:
        return Answer(str(error))
    except OSError as error:
        return Answer(f"{url} does not answer: {str(error) or type(error).__name__}")
    if status == 200:
        return Answer()
    return Answer(f"{url} answers {status}" + (f": {' '.join(body.split())[:200]}" if body.strip() else ""), status)


# --- until it is well


class Watch:
    """Looks at the units of a release that is to become healthy, again and again."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.first: dict[str, UnitState] = {}
        self.workers: set[str] = set()  # all that were seen of a release that does not serve yet
        self.most = 1  # so many of them at once

    def look(self) -> str:
        """What is wrong with a unit and may pass. Raises Unhealthy for what waiting cannot help."""
        if self.subject.is_spoiled():
            raise errors.Unhealthy("a step is to be run first")
        problem = ""
        for unit, state in services.states_of(self.subject.units).items():
            wrong, final = unit_problem(unit, state, self.subject.old.get(unit), self.first.setdefault(unit, state))
            if final:
                raise errors.Unhealthy(wrong, services.journal_of(unit))
            problem = problem or wrong
            if self.subject.is_new:
                self.look_at_workers(unit, state)
        return problem

    def times(self) -> int:
        """How often a release that does not serve yet is asked, so that each of its workers is likely to answer."""
        return max(3, min(20, 2 * self.most)) if self.subject.is_new else 1

    def look_at_workers(self, unit: str, state: UnitState) -> None:
        """Raise Unhealthy if they end again and again: the unit itself would stay active for ever."""
        now = services.workers(state)
        self.workers.update(now)
        self.most = max(self.most, len(now))
        if (ended := len(self.workers) - len(now)) > MANY_DEATHS * self.most:
            raise errors.Unhealthy(f"{ended} workers of {unit} ended soon after their start", services.journal_of(unit))


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


def wait_until_healthy(subject: Subject) -> None:
    """Wait until it is healthy and stays so. Raises Unhealthy, saying what was seen last."""
    asks_nothing = not subject.questions() and not any(role.check for role in subject.roles)
    stay = STAYS_ACTIVE if asks_nothing else STAYS_HEALTHY
    if subject.was_proved or not subject.units:
        stay = 0.0
    limit = subject.settings.health_timeout
    deadline = time.monotonic() + limit
    watch = Watch(subject)
    healthy_since, erring_since, told = 0.0, 0.0, False
    while True:
        answer = Answer(watch.look())
        times = 1 if healthy_since else watch.times()  # the second look: does it stay so
        answer = answer if answer.problem else probe(subject, deadline, watch.look, times)
        moment = time.monotonic()
        erring_since = (erring_since or moment) if answer.status >= 500 else 0.0
        healthy_since = 0.0 if answer.problem else healthy_since or moment
        if healthy_since and moment - healthy_since >= stay:
            return
        if moment >= deadline or (erring_since and moment - erring_since >= STEADY):
            detail = "\n".join(map(services.journal_of, subject.units))
            waited = f"not healthy within {min(limit, moment - deadline + limit):.3g} s"
            raise errors.Unhealthy(f"{waited}: {answer.problem}", detail)
        if answer.problem:
            log.progress(f"waiting for the services: {answer.problem}")
            if not told:
                log.info(f"waiting up to {limit:g} s: {answer.problem}")
                told = True
        time.sleep(0.1)


# --- what serves


def serving(
    machine: host.Machine, release: Release, units: Sequence[str], old: Mapping[str, UnitState] | None = None
) -> Subject:
    """A release that serves. units: that must be active; old: as they were at the switch, those to be restarted."""
    settings = release.settings()
    roles = tuple(host.roles_of(machine, settings))
    return Subject(machine, release, settings, roles, tuple(units), old or {}, socket_of(release))


def socket_of(release: Release) -> str:
    """The socket that nginx reaches a release through; empty if it has none."""
    try:
        return os.readlink(release.path / ".socket")
    except OSError:
        return ""


def observe(machine: host.Machine, release: Release | None, units: Sequence[str]) -> tuple[list[dict[str, str]], str]:
    """The present state of a release's units, and what is wrong, if anything is."""
    if not release:
        return [], "nothing is deployed"
    reports = reports_of(units)
    down = [f"{report['unit']} is {report['state']}" for report in reports if report["state"] != "active"]
    if down:
        return reports, down[0]
    return reports, probe(serving(machine, release, units), time.monotonic() + PROBE_TIMEOUT).problem


def reports_of(units: Sequence[str]) -> list[dict[str, str]]:
    """The present state of units, and how often each ended by itself since it was started; nothing is done to them."""
    return [
        {"unit": unit, "state": state["ActiveState"], "action": "none", "restarts": state["NRestarts"] or "0"}
        for unit, state in services.states_of(units).items()
    ]

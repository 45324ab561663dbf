"""GitHub's page of deployments tells what machines really run: its records are made of what was seen, and of no more.

A machine's environment has its name. What is known of a machine are facts: a commit, and what became of it there. The
last record of what it runs is the active one; a commit that a machine which is off will fetch when it boots is queued.
What is there already is not made again, by whomever. Nothing that a machine says gets into a record: no host, no user,
no message.
"""

from __future__ import annotations

import contextlib
import re
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import github_api
import webhook

TIME_LIMIT = 60.0  # seconds, for all machines
LISTED = 30  # of a machine's records, the newest
DESCRIPTION = 140  # characters: GitHub's limit

RUNS, FAILED, QUEUED = "success", "failure", "queued"  # what a commit is on a machine, in GitHub's words
INACTIVE, PAST = "inactive", "past"  # past: older than what runs, so that nobody asks
WAITING = ("", "pending", "queued", "in_progress", "waiting")  # the first: one without a status
BY = ("cd", "boot", "manual", "watch")


class Fact(NamedTuple):
    """What is known of a machine now. The words of a failure are ours, never the machine's."""

    machine: str
    commit: str  # the whole id
    state: str = RUNS
    since: str = ""  # a time in UTC
    by: str = ""  # who brought it there
    words: str = ""


class Record(NamedTuple):
    """A deployment, as GitHub has it."""

    id: int
    commit: str
    state: str


class Change(NamedTuple):
    """A status for a record; for a new one if its id is 0."""

    id: int
    state: str
    description: str


# --- what is to be recorded


def changes(records: Sequence[Record], fact: Fact) -> list[Change]:
    """What to add to the records of a fact's machine, which are given newest first."""
    own = next((record for record in records if record.commit == fact.commit), None)
    left = [record for record in records if record.state in WAITING and record is not own]
    found = Change(own.id if own and is_open(own, fact) else 0, fact.state, description_of(fact))
    later = [Change(record.id, INACTIVE, "another commit took its place") for record in left]
    if own and is_recorded(own, fact):
        return [change for change in later if change.id < own.id]
    return [found, *later]


def is_recorded(own: Record, fact: Fact) -> bool:
    """Whether the newest record of this commit says it already, or knows more."""
    if fact.state == QUEUED:  # it was deployed there, tried or superseded: whoever runs an old workflow again
        return own.state != ""
    return own.state == fact.state or (fact.state == FAILED and own.state == "error")


def is_open(own: Record, fact: Fact) -> bool:
    """Whether the newest record of this commit is the one to be continued: what ran and is broken now is the same."""
    return own.state in WAITING or (fact.state == FAILED and own.state == RUNS)


def description_of(fact: Fact) -> str:
    if fact.state == QUEUED:
        return "the machine is off; it catches up when it boots"
    if fact.state == FAILED:
        return (fact.words or "failed")[:DESCRIPTION]
    since = f" since {fact.since[:16].replace('T', ' ')} UTC" if fact.since else ""
    return f"runs{since}" + (f", by {fact.by}" if fact.by else "")


def checked(facts: Iterable[Sequence[str]]) -> dict[str, list[Fact]]:
    """Machine -> its facts, of those that are of the right form; what runs comes last, so that it stands on top."""
    found: dict[str, list[Fact]] = {}
    for fact in (Fact(*values) for values in facts):
        named = re.fullmatch("[A-Za-z][A-Za-z0-9_-]{0,63}", fact.machine)
        commit = re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", fact.commit)
        if named and commit and fact.state in (RUNS, FAILED, QUEUED):
            since = fact.since if re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", fact.since, re.ASCII) else ""
            own = found.setdefault(fact.machine, [])
            own.append(fact._replace(since=since, by=fact.by if fact.by in BY else ""))
            own.sort(key=lambda one: one.state == RUNS)
    return found


# --- GitHub


class NotRecorded(Exception):
    """Why nothing can be recorded now: one line."""


class NotTaken(Exception):
    """GitHub does not take this one, and may take others."""


class GitHub(github_api.Api):
    """The deployments of a repository: https://docs.github.com/rest/deployments."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        place = f"{variables['GITHUB_API_URL']}/repos/{variables['GITHUB_REPOSITORY']}/deployments"
        super().__init__(place, variables["GITHUB_TOKEN"])
        run, server = variables.get("GITHUB_RUN_ID"), variables.get("GITHUB_SERVER_URL")
        self.log = f"{server}/{variables['GITHUB_REPOSITORY']}/actions/runs/{run}" if run and server else ""

    def ask(self, method: str, path: str = "", body: Mapping[str, Any] | None = None) -> Any:
        """One request. Raises NotRecorded, NotTaken, ValueError, RecursionError."""
        try:
            return super().ask(method, path, body)
        except github_api.Refused as error:
            raise problem_of(error) from None
        except github_api.NoAnswer as error:
            raise NotRecorded(f"no answer ({error})") from None

    def listed(self, machine: str, **more: str) -> list[tuple[int, str]]:
        """The newest deployments of a machine, newest first: id and commit."""
        query = urllib.parse.urlencode({"environment": machine, "per_page": LISTED, **more})
        found = self.ask("GET", f"?{query}")
        return sorted(((int(one["id"]), str(one["sha"])) for one in found), reverse=True)

    def records(self, machine: str) -> list[Record]:
        """The same with their states, as far as what runs last."""
        found: list[Record] = []
        for number, commit in self.listed(machine):
            past = bool(found) and found[-1].state in (RUNS, PAST)
            found.append(Record(number, commit, PAST if past else self.state_of(number)))
        return found

    def state_of(self, number: int) -> str:
        statuses = self.ask("GET", f"/{number}/statuses?per_page=100")
        return str(max(statuses, key=lambda status: int(status["id"]))["state"]) if statuses else ""

    def make(self, change: Change, fact: Fact, known: int) -> None:
        """known: the newest deployment that was seen; a later one of this commit is another run's, at the same time."""
        number = change.id
        if not number:
            number = self.create(fact)
            others = [other for other, commit in self.listed(fact.machine, sha=fact.commit) if other > known]
            if others and min(others) < number:  # of the two the first one stays
                self.say(number, Change(number, INACTIVE, "recorded twice"))
                with contextlib.suppress(NotTaken):  # then it stays, inactive
                    self.ask("DELETE", f"/{number}")
                return
        self.say(number, change)

    def create(self, fact: Fact) -> int:
        body = {"ref": fact.commit, "environment": fact.machine, "auto_merge": False, "required_contexts": []}
        # of an environment that is no production one GitHub makes inactive what ran before
        return int(self.ask("POST", body={**body, "production_environment": False})["id"])

    def say(self, number: int, change: Change) -> None:
        body = {"state": change.state, "description": change.description, "auto_inactive": change.state == RUNS}
        self.ask("POST", f"/{number}/statuses", {**body, **({"log_url": self.log} if self.log else {})})


def problem_of(refused: github_api.Refused) -> Exception:
    if refused.is_limit:
        return NotRecorded("GitHub's limit of requests is reached; the next run records what is missing")
    if refused.code in (401, 403, 404):
        return NotRecorded(f"GitHub answered {refused}: the job needs `deployments: write` among its permissions")
    return (NotTaken if refused.code in (409, 422) else NotRecorded)(f"GitHub answered {refused}")


def record(facts: Iterable[Sequence[str]], variables: Mapping[str, str]) -> str:
    """Bring GitHub's records to what is known of machines; return what went wrong, in one line, or nothing.

    Each fact: machine, commit, state (RUNS, FAILED, QUEUED), and since, by, words as in Fact. It needs GITHUB_TOKEN and
    what GitHub sets: GITHUB_API_URL, GITHUB_REPOSITORY; without them nothing is done. It ends within TIME_LIMIT.
    """
    if not all(variables.get(name) for name in ("GITHUB_TOKEN", "GITHUB_API_URL", "GITHUB_REPOSITORY")):
        return ""

    def work() -> str:
        return "; ".join(work_off(GitHub(variables), checked(facts)))

    problem = webhook.within(TIME_LIMIT, work, "GitHub did not answer")
    return f"GitHub's page could not be brought up to date: {problem}" if problem else ""


def work_off(github: GitHub, facts: Mapping[str, Sequence[Fact]]) -> list[str]:
    """Record the facts of all machines; what went wrong."""
    problems = []
    try:
        for machine, own in facts.items():
            for fact in own:
                records = github.records(machine)
                known = records[0].id if records else 0
                try:
                    for change in changes(records, fact):
                        github.make(change, fact, known)
                except NotTaken as error:
                    problems.append(f"{machine}, {fact.commit[:8]}: {error}")
    except NotRecorded as error:
        problems.append(str(error))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        problems.append("its answer is of another kind than this script knows")
    return problems

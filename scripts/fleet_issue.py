"""One issue on GitHub for all machines: opened when somebody must act, kept as it is true, closed when all is over.

It is found again by a mark in its body, and only an issue of our own is taken: anybody may open one with that mark.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import fleet_alerts
import fleet_page
import fleet_states
import github
import github_api
from deployer import errors
from fleet_alerts import Alerts, Line
from fleet_states import STATES, View

MARK = "<!-- deploy-machine: the machines -->"
TITLE = "Machines: somebody must act"
WAITS = f"{MARK}\n\nAll that was told is over. Something else was seen, and the next look says whether it holds.\n"
PER_PAGE = 100  # GitHub's most
PAGES = 50  # of issues that are open; where there are more, none is opened
MOST_ROWS = 100  # a body has room for 65,536 characters
OURS = {"OWNER", "MEMBER", "COLLABORATOR"}  # who may write in the repository


class IssueError(Exception):
    """What kept the issue from being told: one line for people, without the token."""


class Api(github_api.Api):
    """Its issues: as far as this is about those of one repository."""

    def __init__(self, url: str, repository: str, token: str) -> None:
        super().__init__(f"{url.rstrip('/')}/repos/{repository}", token)

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Raises IssueError."""
        try:
            return super().ask(method, path, body)
        except github_api.Refused as error:
            raise IssueError(f"{method} {path}: {error}{advice(error.code)}") from None
        except github_api.NoAnswer as error:
            raise IssueError(f"{method} {path}: {error}") from None
        except (ValueError, RecursionError) as error:
            raise IssueError(f"{method} {path}: {type(error).__name__}") from None


def advice(code: int) -> str:
    if code in (401, 403, 404):
        return ", does the token have `issues: write`?"
    return ", issues are turned off there" if code == 410 else ""


def api_of(variables: Mapping[str, str]) -> Api:
    """The API, as a job of a workflow finds it. Raises UsageError."""
    token, repository = variables.get("GITHUB_TOKEN", ""), variables.get("GITHUB_REPOSITORY", "")
    url = variables.get("GITHUB_API_URL") or "https://api.github.com"
    if not re.fullmatch(r"[\x21-\x7e]+", token):
        raise errors.UsageError("--issue: set GITHUB_TOKEN in the environment, a token with `issues: write`")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository, re.ASCII):
        raise errors.UsageError("--issue: set GITHUB_REPOSITORY in the environment, as OWNER/NAME")
    if not re.fullmatch(r"https?://[\x21-\x7e]+", url):
        raise errors.UsageError("--issue: GITHUB_API_URL is no address of the form https://HOST/PATH")
    return Api(url, repository, token)


# --- the issue


def find(api: Api) -> Mapping[str, Any] | None:
    """Our issue, if it is open. Raises IssueError, also if there are too many to say that there is none."""
    for page in range(1, PAGES + 1):
        query = f"/issues?state=open&sort=created&direction=asc&per_page={PER_PAGE}&page={page}"
        issues = api.ask("GET", query)
        if not isinstance(issues, list):
            raise IssueError("GET /issues: its answer is of another kind than this script knows")
        for issue in issues:
            if is_ours(issue):
                return dict(issue)
        if len(issues) < PER_PAGE:
            return None
    raise IssueError(f"there are more than {PAGES * PER_PAGE} open issues, and the first of them are not ours")


def is_ours(issue: Any) -> bool:
    if not isinstance(issue, dict) or "pull_request" in issue or not isinstance(issue.get("number"), int):
        return False
    user, body = issue.get("user"), issue.get("body")
    is_bot = isinstance(user, dict) and user.get("type") == "Bot"
    trusted = is_bot or issue.get("author_association") in OURS
    return trusted and isinstance(body, str) and body.startswith(MARK)


def bring(api: Api, body: str, comment: str, opens: bool) -> None:
    """Make the issue say this. body: empty to close it. opens: also open one if there is none. Raises IssueError.

    An issue that a person has closed is left so until there is something new to say.
    """
    issue = find(api)
    if not issue:
        if body and opens:
            api.ask("POST", "/issues", {"title": TITLE, "body": body})
        return
    place = f"/issues/{issue['number']}"
    if comment:
        api.ask("POST", f"{place}/comments", {"body": comment})
    if not body:
        api.ask("PATCH", place, {"state": "closed", "state_reason": "completed"})
    elif str(issue["body"]).replace("\r\n", "\n").strip() != body.strip():
        api.ask("PATCH", place, {"title": TITLE, "body": body})


# --- what it says


def body_of(views: Sequence[View], alerts: Mapping[str, Alerts], tells: bool) -> str:
    """All that is told and not over; nothing, if that is nothing. tells: with the reasons, which machines gave."""
    rows = []
    for view in views:
        for state in sorted(alerts.get(view.machine.name, {}), key=STATES.index):
            alert = alerts[view.machine.name][state]
            if alert.told:
                rows.append(row(view, state, "comes and goes" if alert.returns else "", tells))
    if not rows:
        return ""
    head = ["| machine | state | since | why | what to do |", "|---|---|---|---|---|"]
    if len(rows) > MOST_ROWS:
        rows[MOST_ROWS:] = ["", f"And {len(rows) - MOST_ROWS} more."]
    own = "`scripts/fleet_status.py --alert --issue` keeps this as it is true, and closes it when all is over."
    return "\n".join([MARK, "", *head, *rows, "", own]) + "\n"


def row(view: View, state: str, returns: str, tells: bool) -> str:
    question = next((one for one in ("runs", "well") if view.since[one][0] == state), "")
    since = fleet_page.moment(view.since[question][1]) if question and not returns else returns
    why = view.whys.get(question, "") if tells_why(state, tells) else ""
    cells = [view.machine.name, state, since or "-", why or "-", fleet_states.ADVICE[state]]
    return f"| {' | '.join(github.cell(text) for text in cells)} |"


def tells_why(state: str, tells: bool) -> bool:
    """Whether a reason may be read by all who may read the repository."""
    return state in fleet_page.FIXED or (tells and state != "REFUSES")


def comment_of(lines: Sequence[Line], now: float, tells: bool) -> str:
    return "\n".join(f"- {fleet_alerts.sentence(one, now, tells_why(one.state, tells))}" for one in lines[:MOST_ROWS])

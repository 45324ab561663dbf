"""--alert: the team is told by the webhook and, if that is wanted, by an issue. What fails is told at the next look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import fleet_alerts
import fleet_issue
import webhook
from deployer import errors
from fleet_alerts import CHANGED, NEW, OVER, Alerts, Line
from fleet_answers import Known, as_time
from fleet_handover import Seen
from fleet_states import View

ISSUE_TIMEOUT = 30.0  # seconds for all questions about the issue


class Channels(NamedTuple):
    """Where alerts are told."""

    url: str = ""  # the webhook's
    issue: fleet_issue.Api | None = None
    tells: bool = False  # the issue may have the reasons of failures


class Told(NamedTuple):
    """What is kept of a look at which the team may have been told something."""

    known: Mapping[str, tuple[Mapping[str, Sequence[Any]], str]]  # machine -> its alerts, and which look that was
    problems: Sequence[str] = ()  # what kept somebody from being told

    def with_alerts(self, name: str, known: Known) -> Known:
        alerts, alerted = self.known.get(name, (known.alerts, known.alerted))
        return known._replace(alerts=alerts, alerted=alerted)


NOBODY = Told({})


def channels(variables: Mapping[str, str], issue: bool, tells: bool) -> Channels:
    """Raises UsageError."""
    url = variables.get("DEPLOY_WEBHOOK_URL", "").strip()
    if not url and not issue:
        raise errors.UsageError("--alert: set DEPLOY_WEBHOOK_URL in the environment, or give --issue")
    return Channels(url, fleet_issue.api_of(variables) if issue else None, tells)


def tell(
    views: Sequence[View], seen: Mapping[str, Seen], before: Mapping[str, Known], to: Channels, now: float
) -> Told:
    """views: all machines. seen: what came of this look; one that was counted before (a job is run again) is none."""
    known = {view.machine.name: before.get(view.machine.name, Known()) for view in views}
    looks = {name: as_time(one.at) for name, one in seen.items() if as_time(one.at) != known[name].alerted}
    alerts = {name: fleet_alerts.restored(one) for name, one in known.items()}
    telling = fleet_alerts.tell([view for view in views if view.machine.name in looks], alerts, now)
    problem = told_by_webhook(telling.lines, to.url, now)
    kept = {**alerts, **(telling.untold if problem else telling.told)}
    problems = [problem]
    if to.issue:
        true = {**alerts, **telling.told}
        problems.append(within(ISSUE_TIMEOUT, to.issue, views, true, telling.lines, to.tells, now))
        if not problems[-1]:
            kept = {name: fleet_alerts.in_issue(states, true[name], now) for name, states in kept.items()}
    stored = {
        name: ({state: [*one] for state, one in states.items()}, looks.get(name, known[name].alerted))
        for name, states in kept.items()
    }
    return Told(stored, [problem for problem in problems if problem])


def told_by_webhook(lines: Sequence[Line], url: str, now: float) -> str:
    """What went wrong, or nothing."""
    if not url or not lines:
        return ""
    return webhook.tell(url, fleet_alerts.text(lines, now), {"alerts": fleet_alerts.for_programs(lines)})


def told_by_issue(
    api: fleet_issue.Api,
    views: Sequence[View],
    alerts: Mapping[str, Alerts],
    lines: Sequence[Line],
    tells: bool,
    now: float,
) -> None:
    """alerts: as they are if all is told. Raises IssueError."""
    fresh, ended = fleet_alerts.for_issue(alerts)
    body = fleet_issue.body_of(views, alerts, tells)
    seen_once = any(one.looks.endswith("1") for states in alerts.values() for one in states.values())
    if not body and seen_once:  # the next look says whether it holds
        if not ended:  # what was known may be lost, and an issue that is open be right then
            return
        body = fleet_issue.WAITS
    said = [line for line in lines if (line.machine, line.state) in fresh | ended or line.kind == CHANGED]
    missing = (fresh | ended) - {(line.machine, line.state) for line in said}  # that could not be said before
    states = {view.machine.name: view.state for view in views}
    said += [
        Line(name, state, NEW if (name, state) in fresh else OVER, states[name]) for name, state in sorted(missing)
    ]
    opens = bool(fresh) or any(line.kind != OVER for line in lines)
    fleet_issue.bring(api, body, fleet_issue.comment_of(said, now, tells), opens)


def within(limit: float, api: fleet_issue.Api, *rest: Any) -> str:
    """What went wrong, or nothing: however slowly GitHub answers."""

    def work() -> str:
        try:
            told_by_issue(api, *rest)
        except fleet_issue.IssueError as error:
            return str(error)
        return ""

    problem = webhook.within(limit, work)
    return f"the issue could not be told: {problem}" if problem else ""

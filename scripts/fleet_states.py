"""In which state each machine is: does it run what it should, and is it well. Pure functions, by value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import fleet_answers
from fleet_answers import ANSWERED, OFF, REFUSES, SLOW, Answer, Contact, Known, as_time, seconds_of

ALWAYS, AT_TIMES = "always", "at-times"
# all states; of those that fit a machine the first one counts. Words in capitals mean: somebody must act
STATES = "REFUSES BROKEN UNHEALTHY FAILED SILENT DRIFTED BEHIND held deploying LOST off unknown ok".split()
ADVICE = {
    "REFUSES": "look at its sshd, its host key and the secrets",
    "BROKEN": "look at that machine now, beginning with its journal",
    "UNHEALTHY": "see `deploy_machine.py status` there; `rollback` if it is the code",
    "FAILED": "see its log; fix and merge",
    "SILENT": "switch it on, or see why it cannot be reached",
    "DRIFTED": "commit it, or deploy with --full, which replaces it",
    "BEHIND": "deploy there, or see why it was not",
    "LOST": "it went away in the middle of a deploy: see that it comes back",
    "held": "a person went back from the newest commit",
    "off": "it catches up when it boots",
}


class Machine(NamedTuple):
    """One section of machines.ini."""

    name: str
    roles: tuple[str, ...] = ()
    on: str = ALWAYS
    silent_days: float = 14.0
    behind_minutes: float = 30.0


class Branch(NamedTuple):
    """What is known of the branch, and from a clone that is here: how far each commit is behind it."""

    tip: str = ""
    merged: str = ""
    behind: Mapping[str, tuple[int, str]] = {}  # commit -> number of commits, and when the first was merged
    name: str = ""  # as the machines that know this commit call it; empty if none says so, or not all the same


class View(NamedTuple):
    """One machine as it is shown."""

    machine: Machine
    state: str
    since: Mapping[str, tuple[str, str]]  # of "state", "runs" and "well": the word, and since when
    answered: bool
    seen: str  # when the answer was given that is shown; empty: never
    answer: Answer
    behind: tuple[int, str]  # commits (0: none, or nobody knows), and since when
    why: str
    whys: Mapping[str, str] = {}  # of "runs" and "well"


def is_act(state: str) -> bool:
    return state.isupper()


def first_of(states: Sequence[str]) -> str:
    return min(states, key=STATES.index)


def newest(answers: Sequence[Answer], before: tuple[str, str], now: float) -> tuple[str, str]:
    """The branch's newest commit that anybody has seen, and when it was merged; none from the future counts."""
    found = [before, *((one.tip, one.merged) for one in answers if one.tip)]
    return max(found, key=lambda tip: seconds_of(tip[1]) if seconds_of(tip[1]) < now + 86400 else -1.0)


def name_of(answers: Sequence[Answer], tip: str) -> str:
    names = {one.branch for one in answers if one.branch and one.tip == tip}
    return names.pop() if len(names) == 1 else ""


def behind_of(answer: Answer, branch: Branch) -> tuple[int, str]:
    """How many commits what runs is behind the branch, and since when; 0: nobody knows how many."""
    if not answer.commit or answer.commit == branch.tip or not branch.tip:
        return 0, ""
    if answer.commit in branch.behind:
        return branch.behind[answer.commit]
    if answer.tip == branch.tip:
        return (answer.behind, answer.behind_since) if answer.behind else (0, "")
    return 0, answer.behind_since or branch.merged


def runs(machine: Machine, contact: Contact, answer: Answer | None, behind: str, now: float) -> tuple[str, str]:
    """Whether it runs what it should, and why not. behind: since when it does not."""
    if not answer:
        return "unknown", ""
    late = bool(behind) and now - seconds_of(behind) > 60 * machine.behind_minutes
    if answer.failing:
        return "FAILED", answer.failure
    if answer.drift:
        more = f" and {len(answer.drift) - 1} more" if len(answer.drift) > 1 else ""
        return "DRIFTED", f"by hand: {answer.drift[0]}{more}"
    if late and not answer.running and not answer.held and contact.kind == ANSWERED:
        return "BEHIND", "it does not run the newest commit"
    if answer.held:
        return "held", ""
    return ("deploying", "") if answer.running and contact.kind == ANSWERED else ("ok", "")


def well(machine: Machine, contact: Contact, known: Known, answer: Answer | None, now: float) -> tuple[str, str]:
    """Whether it is well, and why not. known: what was known before it was asked."""
    if contact.kind == REFUSES:
        return "REFUSES", contact.why
    if contact.kind == OFF:
        return silent(machine, known, now)
    if contact.kind == SLOW or not answer:
        return "unknown", contact.why
    if answer.healthy is None:
        return "unknown", answer.reason
    if answer.healthy:
        return "ok", ""
    if answer.outcome == "broken":
        return "BROKEN", answer.reason
    if contact.unhealthy > 1 or known.unhealthy:
        return "UNHEALTHY", answer.reason
    return "unknown", answer.reason  # it may be no more than a moment


def silent(machine: Machine, known: Known, now: float) -> tuple[str, str]:
    """What it means that nobody is there."""
    if machine.on == ALWAYS:
        return "SILENT", "it is to be on always, and does not answer"
    last = seconds_of(known.answered or known.asked) or now
    if now - last > 86400 * machine.silent_days:
        return "SILENT", f"it has not answered for {machine.silent_days:g} days"
    if not known.answer:
        return "unknown", "it has never answered yet"
    return ("LOST", "") if known.answer.running else ("off", "")


def view(machine: Machine, contact: Contact, known: Known, branch: Branch, now: float) -> tuple[View, Known]:
    """One machine as it is shown, and what is known of it from now on."""
    fresh = contact.answer if contact.kind == ANSWERED else None
    answer = fresh or known.answer
    behind = behind_of(answer or Answer(), branch)
    (one, why), (two, other) = (
        runs(machine, contact, answer, behind[1], now),
        well(machine, contact, known, answer, now),
    )
    state = first_of([one, two])
    since = {}
    for question, word in (("state", state), ("runs", one), ("well", two)):
        before = known.since.get(question, ("", ""))
        since[question] = (word, before[1] if before[0] == word and before[1] else as_time(now))
    seen = as_time(now) if fresh else known.answered
    reason, reasons = other if state == two else why, {"runs": why, "well": other}
    shown = View(machine, state, since, bool(fresh), seen, answer or Answer(), behind, reason, reasons)
    after = Known(
        answer=answer,
        answered=seen,
        asked=known.asked or as_time(now),
        looked=as_time(now),
        unhealthy=fresh.healthy is False if fresh else known.unhealthy,
        since=since,
        history=fleet_answers.merged(known.history, contact.history),
        alerts=known.alerts,
        alerted=known.alerted,
    )
    return shown, after


def recall(machine: Machine, known: Known, branch: Branch) -> View:
    """One machine that nobody has asked now, as it was seen last."""
    since = {}
    for question in ("state", "runs", "well"):
        word, time = known.since.get(question, ("", ""))
        since[question] = (word if word in STATES else "unknown", time)
    answer = known.answer or Answer()
    return View(machine, since["state"][0], since, False, known.answered, answer, behind_of(answer, branch), "")


def all_well(views: Sequence[View]) -> bool:
    """Whether nobody must act; silence is no proof: somebody must have answered."""
    return any(view.answered for view in views) and not any(is_act(view.state) for view in views)

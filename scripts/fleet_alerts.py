"""Which states of machines are told, and when: each once, again after a day, then weekly, and when it is over.

Pure functions, by value. What is kept of an alert holds no word of a machine's: of a reason, it is a hash.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import fleet_states
import fleet_table
import webhook
from fleet_answers import Known, as_time, seconds_of, time_of
from fleet_states import STATES, View

DAY, WEEK = 86400.0, 7 * 86400.0
HELD = 2  # so many of the last LOOKS looks must have seen a state before it is told
LOOKS = 3
REASONS = 5  # of one state that are told before it is over
SHOWN = 30  # lines of a message
NEW, CHANGED, STILL, OVER = "new", "changed", "still", "over"  # what there is to say of an alert
RUNS = {"FAILED", "DRIFTED", "BEHIND"}  # these say whether a machine runs what it should, all others whether it is well
UNSEEN = {"REFUSES", "SILENT", "LOST"}  # in these a machine does not answer
NOBODY_KNOWS = {"unknown", "deploying"}
NUMBERS = re.compile(r"#(?:[.:,/]?#)*(?: ?(?:ms|s|min|h|d|days?)\b)?")


class Alert(NamedTuple):
    """What is kept of one state of one machine."""

    looks: str = ""  # the last ones: 1, it was in that state; 0, it was not
    reason: str = ""  # a key, as the last of them saw it
    told: str = ""  # when people were told last that it holds; empty: as far as they know, it does not
    times: int = 0  # so often since it began
    reasons: Sequence[str] = ()  # keys that they were told
    over: str = ""  # when they were told last that it is over
    gone: str = ""  # since when it is
    returns: bool = False  # it came back within a day of that
    issue: bool = False  # the issue says that it holds


Alerts = Mapping[str, Alert]  # of one machine: state -> alert


class Line(NamedTuple):
    """What is to be said of one state of one machine."""

    machine: str
    state: str
    kind: str
    now: str  # the state that the machine is shown in
    since: str = ""
    why: str = ""
    returns: bool = False


class Telling(NamedTuple):
    """What is to be said after a look, and what is kept of it."""

    lines: list[Line]
    told: dict[str, Alerts]  # machine -> alerts, if it could be said
    untold: dict[str, Alerts]  # and if not: the next look says it


def tell(views: Sequence[View], before: Mapping[str, Alerts], now: float) -> Telling:
    """views: of the machines that were asked at this look. before: what was kept of the last one."""
    found = Telling([], {}, {})
    for view in views:
        told, untold = dict[str, Alert](), dict[str, Alert]()
        kept = before.get(view.machine.name, {})
        for state in sorted({*kept, *acts(view)}, key=STATES.index):
            holds, why = holds_now(view, state), why_of(view, state)
            alert = seen(kept.get(state, Alert()), holds, key(view.machine.name, state, why), now)
            kind = due(alert, kept.get(state, Alert()).reason, holds, now)
            told[state], untold[state] = after(alert, kind, now), alert
            if kind:
                since = view.since[question_of(state)][1] if holds else ""
                name, returns = view.machine.name, told[state].returns
                found.lines.append(Line(name, state, kind, view.state, since, why, returns))
        for result, alerts in ((found.told, told), (found.untold, untold)):
            result[view.machine.name] = {state: one for state, one in alerts.items() if not is_past(one, now)}
    return found


# --- a state of a machine


def question_of(state: str) -> str:
    return "runs" if state in RUNS else "well"


def acts(view: View) -> list[str]:
    """The states of a machine in which somebody must act: one of each question."""
    words = [view.since[question][0] for question in ("runs", "well")]
    return [word for word in words if fleet_states.is_act(word)]


def holds_now(view: View, state: str) -> bool | None:
    """Whether a machine is in a state; None: this look has not shown it."""
    if state in acts(view):
        return True
    if view.answered and state in UNSEEN:
        return False
    word, well = view.since[question_of(state)][0], view.since["well"][0]
    if word in NOBODY_KNOWS or not (view.answered or well == "off"):
        return None
    return None if fleet_states.is_act(word) and fleet_states.first_of([word, state]) == word else False


def why_of(view: View, state: str) -> str:
    return view.whys.get(question_of(state), "") if state in acts(view) else ""


def key(machine: str, state: str, reason: str) -> str:
    """By this an alert is known again, whatever numbers and commits its reason has; empty if there is no reason."""
    if not reason:
        return ""
    plain = NUMBERS.sub("#", re.sub(r"[\w-]+", without_numbers, reason))
    # the end may be cut off, at a place that depends on how long the numbers are
    return hashlib.sha256(f"{machine}\0{state}\0{plain[:40]}".encode()).hexdigest()[:12]


def without_numbers(word: re.Match[str]) -> str:
    return "#" if re.search(r"[0-9]", word[0]) or re.fullmatch("[a-f]{7,}", word[0]) else word[0]


# --- the rules


def seen(alert: Alert, holds: bool | None, reason: str, now: float) -> Alert:
    """An alert after a look; nothing was told yet."""
    told, over, gone = (earlier(time, now) for time in (alert.told, alert.over, alert.gone))
    alert = alert._replace(told=told, over=over, gone=gone)
    if holds is None:
        return alert
    looks = (alert.looks + str(int(holds)))[-LOOKS:]
    if holds:
        return alert._replace(looks=looks, reason=reason or alert.reason, gone="")
    return alert._replace(looks=looks, gone=alert.gone or as_time(now))


def earlier(time: str, now: float) -> str:
    """A time that is not after now: where a clock was put back, what it said before must keep nobody waiting."""
    return as_time(min(seconds_of(time), now)) if time else ""


def due(alert: Alert, reason_before: str, holds: bool | None, now: float) -> str:
    """What there is to say of an alert; mostly nothing."""
    if not alert.told:
        return NEW if holds and alert.looks.count("1") >= HELD else ""
    if holds is False:
        return "" if alert.returns and now - seconds_of(alert.gone) < DAY else OVER
    is_new = alert.reason not in alert.reasons and alert.reason == reason_before
    if holds and is_new and alert.reason and len(alert.reasons) < REASONS:
        return CHANGED
    return STILL if now - seconds_of(alert.told) >= (DAY if alert.times < 2 else WEEK) else ""


def after(alert: Alert, kind: str, now: float) -> Alert:
    """An alert after that was told."""
    moment, reasons = as_time(now), (alert.reason,) if alert.reason else ()
    if kind == NEW:
        returns = bool(alert.over) and now - seconds_of(alert.over) < DAY
        return alert._replace(told=moment, times=1, reasons=reasons, returns=returns)
    if kind == CHANGED:
        return alert._replace(told=moment, times=1, reasons=(*alert.reasons, *reasons))
    if kind == STILL:
        return alert._replace(told=moment, times=alert.times + 1)
    if kind == OVER:
        return Alert(looks="0", over=moment, issue=alert.issue)
    return alert


def is_past(alert: Alert, now: float) -> bool:
    """Whether nothing is to be kept of it."""
    lately = bool(alert.over) and now - seconds_of(alert.over) < DAY
    return not (alert.told or alert.issue or "1" in alert.looks or lately)


# --- the issue


def for_issue(alerts: Mapping[str, Alerts]) -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
    """What the issue does not say yet, and what it says although that is over: each machine and state."""
    every = [(name, state, one) for name, states in alerts.items() for state, one in states.items()]
    fresh = {(name, state) for name, state, one in every if one.told and not one.issue}
    return fresh, {(name, state) for name, state, one in every if one.issue and not one.told}


def in_issue(alerts: Alerts, true: Alerts, now: float) -> Alerts:
    """The alerts of a machine, whose issue says what is true, whatever else was told of it."""
    found = {state: one._replace(issue=bool(true.get(state, Alert()).told)) for state, one in alerts.items()}
    return {state: one for state, one in found.items() if not is_past(one, now)}


# --- words


def text(lines: Sequence[Line], now: float) -> str:
    """The message: one for all machines."""
    acting = [f"{line.machine} is {line.state}" for line in lines if line.kind != OVER]
    over = [f"{line.machine} is not {line.state} any more" for line in lines if line.kind == OVER]
    head = "; ".join(filter(None, [", ".join(acting[:SHOWN]), ", ".join(over[:SHOWN])]))
    shown = [f"{symbol(line)} {sentence(line, now)}" for line in lines[:SHOWN]]
    more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return "\n".join([f"Machines: {head}", *shown, *more, webhook.run_link()]).strip()


def symbol(line: Line) -> str:
    return "✅" if line.kind == OVER and not fleet_states.is_act(line.now) else "❌"


def sentence(line: Line, now: float, tells: bool = True) -> str:
    """`frontend: FAILED for 2 d: why; what to do`. tells: with the reason, which is a machine's."""
    if line.kind == OVER:
        return f"{line.machine}: no longer {line.state}, it is {line.now} now"
    spent = fleet_table.age(line.since, now)
    still = {STILL: "still ", CHANGED: "still ", NEW: ""}[line.kind]
    words = [f"{line.machine}: {still}{line.state}", "again, it comes and goes" if line.returns else ""]
    words += [f"for {spent}" if spent and line.kind != NEW and not line.returns else ""]
    why = webhook.chat(line.why) if tells and line.why else ""
    because = f": {'now ' if line.kind == CHANGED else ''}{why}" if why else ""
    return f"{' '.join(filter(None, words))}{because}; {fleet_states.ADVICE[line.state]}"


def for_programs(lines: Sequence[Line]) -> list[dict[str, str]]:
    return [
        {"machine": one.machine, "state": one.state, "kind": one.kind, "since": one.since, "reason": one.why}
        for one in lines
    ]


# --- what is kept


def restored(known: Known) -> Alerts:
    """The alerts of a machine, as they were kept; what is no alert is left out."""
    found = {state: one for state, values in known.alerts.items() if (one := read(values))}
    return {state: one for state, one in found.items() if state in STATES and fleet_states.is_act(state)}


def read(values: Sequence[Any]) -> Alert | None:
    usual = Alert()
    if len(values) != len(usual) or any(type(got) is not type(want) for got, want in zip(values, usual) if want != ()):
        return None
    one = Alert(*values)
    reasons = [word for word in one.reasons if isinstance(word, str)] if isinstance(one.reasons, (list, tuple)) else []
    return one._replace(
        looks="".join(char for char in one.looks if char in "01")[-LOOKS:],
        reason=one.reason[:12],
        reasons=tuple(word[:12] for word in reasons[:REASONS]),
        told=time_of(one.told),
        over=time_of(one.over),
        gone=time_of(one.gone),
    )

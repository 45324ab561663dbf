"""How people and programs see the machines: a table of 80 columns, the history, JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import fleet_states
import github
from fleet_answers import Known, seconds_of
from fleet_states import Branch, View

WIDTH = 80
# what became of an attempt, in a word or two
OUTCOMES = {
    "deployed": "updated",
    "unchanged": "nothing new",
    "superseded": "newer runs",
    "rolled_back_on_request": "went back",
    "rolled_back": "rolled back",
    "unreachable": "no repository",
}


def age(since: str, now: float) -> str:
    """`12 min`, `2 d`; nothing for no time."""
    spent = max(0.0, now - seconds_of(since))
    if not since:
        return ""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if spent >= 2 * size or (unit == "min" and spent >= size):
            return f"{min(spent / size, 9999):.0f} {unit}"
    return f"{spent:.0f} s"


def summary(views: Sequence[View], branch: Branch, seconds: float, now: float) -> str:
    answered = sum(view.answered for view in views)
    name = branch.name or "the newest commit"
    newest = f"{name} is {branch.tip[:8]}, merged {age(branch.merged, now)} ago" if branch.tip else ""
    known = newest or "no machine has said what the newest commit is"
    machines = f"{len(views)} machine{'s' * (len(views) != 1)} asked"
    asked = f"{machines}, {answered or 'none'} answered" + (f", {seconds:.1f} s" if seconds else "")
    line = f"{known}; {asked}\n"
    return line if len(line) <= WIDTH + 1 else f"{known};\n{asked}\n"


def row(view: View, branch: Branch, now: float) -> list[str]:
    answer, mark = view.answer, "" if view.answered else "?"
    commits, since = view.behind
    behind = ", ".join(filter(None, [str(commits) if commits else "", age(since, now)])) or "-"
    by = ", ".join(filter(None, [age(answer.since, now), answer.by])) or "-"
    outcome = OUTCOMES.get(answer.outcome, answer.outcome.replace("_", " "))
    last = f"{outcome} {age(answer.attempted, now)} ago" if outcome and answer.attempted else "-"
    return [view.machine.name, view.state, answer.commit[:8] + mark if answer.commit else "-", behind, by, last]


def notes(view: View, now: float) -> list[str]:
    """What is to be said below a machine's row."""
    found = []
    if not view.answered and view.seen:
        stamp = view.seen[:16].replace("T", " ")
        found.append(f"? as last seen {age(view.seen, now)} ago ({stamp} UTC)")
    advice = fleet_states.ADVICE.get(view.state, "")
    said = "; ".join(filter(None, [view.why, advice if view.state != "unknown" else ""]))
    return [*found, *([said] if said else [])]


def show(views: Sequence[View], branch: Branch, seconds: float, now: float) -> str:
    """The table; no line of it is wider than WIDTH."""
    head = ["machine", "state", "runs", "behind", "since, by", "last attempt"]
    rows = [head, *(row(view, branch, now) for view in views)]
    widths = [min(most, max(len(cells[at]) for cells in rows)) for at, most in enumerate((16, 9, 9, 10, 14))]
    widths.append(WIDTH - sum(widths) - 2 * len(widths))
    lines = [summary(views, branch, seconds, now)]
    for number, cells in enumerate(rows):
        fitted = [cell if len(cell) <= width else cell[: width - 1] + "~" for cell, width in zip(cells, widths)]
        lines.append("  ".join(cell.ljust(width) for cell, width in zip(fitted, widths)).rstrip())
        for text in notes(views[number - 1], now) if number else ():
            indent = " " * (widths[0] + 2)
            lines += textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent, max_lines=4)
    return "\n".join(lines) + "\n"


def show_history(known: Mapping[str, Known], names: Sequence[str]) -> str:
    """All that is known of what was deployed, oldest first."""
    lines = []
    for name in names:
        for entry in known[name].history if name in known else ():
            cells = [entry["started"], name[:16].ljust(12), entry["trigger"].ljust(6), entry["outcome"].ljust(12)]
            lines.append("  ".join([*cells, entry["commit"][:8], entry["reason"]]).rstrip())
    return "".join(line + "\n" for line in sorted(lines)) or "no deploy is known\n"


def as_json(
    views: Sequence[View], branch: Branch, seconds: float, is_well: bool, known: Mapping[str, Known] | None
) -> dict[str, Any]:
    """The same for programs; known: where the history is wanted, too."""
    machines = []
    for view in views:
        answer = view.answer
        about: dict[str, Any] = {"name": view.machine.name, "roles": list(view.machine.roles), "on": view.machine.on}
        about |= {"answered": view.answered, "seen": view.seen or None, "why": view.why}
        about |= {"state": view.state, "state_since": view.since["state"][1], "act": fleet_states.is_act(view.state)}
        about |= {name: dict(zip(("state", "state_since"), view.since[name])) for name in ("runs", "well")}
        about |= {"commit": answer.commit or None, "since": answer.since or None, "by": answer.by}
        about |= {"behind": {"commits": view.behind[0] or None, "since": view.behind[1] or None}}
        about |= {"last": {"outcome": answer.outcome, "started": answer.attempted}}
        about |= {"drift": None if answer.drift is None else list(answer.drift), "reason": answer.reason}
        if known is not None:
            about["history"] = list(known[view.machine.name].history)
        machines.append(about)
    tip = {"commit": branch.tip or None, "merged": branch.merged or None}
    return {"schema": github.SCHEMA, "well": is_well, "seconds": round(seconds, 1), "tip": tip, "machines": machines}

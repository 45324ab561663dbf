"""The machines as markdown: what a run's summary shows, and the page of the branch `deploy-status`.

Whoever may read the repository reads it: it has no host, no user, and the reasons of failures only where `tells` says
that the repository is known to be private. Times stand there as times, not as ages: a page is read later.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence

import fleet_answers
import fleet_handover
import fleet_states
import fleet_table
import github
from fleet_answers import Known, Memory
from fleet_states import Branch, View

SHOWN = 10  # deploys of a machine that the page shows
FIXED = {"SILENT", "LOST", "off", "BEHIND"}  # why a machine is in one of these is said in words of our own


def moment(time: str) -> str:
    return f"{short(time)} UTC" if time else ""


def short(time: str) -> str:
    """For tables; below them stands that times are in UTC."""
    return time[:16].replace("T", " ")


def commit_cell(commit: str) -> str:
    """A commit, linked where GitHub says where the repository is."""
    server, repository = (os.environ.get(f"GITHUB_{name}", "") for name in ("SERVER_URL", "REPOSITORY"))
    if not commit:
        return "-"
    text = f"`{commit[:8]}`"
    return f"[{text}]({server}/{repository}/commit/{commit})" if server and repository else text


def headline(views: Sequence[View]) -> str:
    """One line that says it all."""
    acting = [f"{github.cell(view.machine.name)} is {view.state}" for view in views if fleet_states.is_act(view.state)]
    if acting:
        return f"Act: {', '.join(acting)}"
    return "All is well" if fleet_states.all_well(views) else "Nobody knows: no machine answered"


def table(views: Sequence[View], branch: Branch, tells: bool) -> str:
    """What stands where, and what is to be done."""
    name = github.cell(branch.name) if branch.name else "The newest commit"
    tip = f"{name} is {commit_cell(branch.tip)}, merged {moment(branch.merged)}." if branch.tip else ""
    lines = [
        tip,
        "",
        "| machine | state | runs | behind | runs it since, by | last attempt |",
        "|---|---|---|---|---|---|",
    ]
    lines += [f"| {' | '.join(row(view))} |" for view in views]
    notes = [note for view in views if (note := note_of(view, tells))]
    return "\n".join([*lines, "", *notes, *([""] if notes else []), "Times are in UTC."]).strip() + "\n"


def row(view: View) -> list[str]:
    answer, state = view.answer, view.state
    shown = f"**{state}**" if fleet_states.is_act(state) else state
    since = short(view.since["state"][1])
    commits, behind = view.behind
    number = f"{commits} commit{'s' * (commits != 1)}" if commits else ""
    far = ", ".join(filter(None, [number, f"since {short(behind)}" if behind else ""]))
    by = ", ".join(filter(None, [short(answer.since), github.cell(answer.by)]))
    last = f"{outcome(answer.outcome)}, {short(answer.attempted)}" if answer.outcome and answer.attempted else ""
    runs = commit_cell(answer.commit) + ("" if view.answered or not answer.commit else " ?")
    shown += f" since {since}" if since else ""
    return [github.cell(view.machine.name), shown, runs, far or "-", by or "-", last or "-"]


def outcome(word: str) -> str:
    return github.cell(fleet_table.OUTCOMES.get(word, word.replace("_", " ")))


def note_of(view: View, tells: bool) -> str:
    """What is to be said of a machine below the table."""
    why = view.why if view.state in FIXED or (tells and view.state != "REFUSES") else ""
    advice = fleet_states.ADVICE.get(view.state, "") if view.state != "unknown" else ""
    said = "; ".join(filter(None, [github.cell(why), advice]))
    seen = f"`?`: it was seen last {moment(view.seen)}" if view.seen and not view.answered else ""
    text = ". ".join(filter(None, [said, seen]))
    return f"- **{github.cell(view.machine.name)}** ({view.state}): {text}" if text else ""


def summary(views: Sequence[View], branch: Branch, tells: bool) -> str:
    """What the page of a run shows."""
    return f"## {headline(views)}\n\n{table(views, branch, tells)}"


def page(views: Sequence[View], memory: Memory, branch: Branch, looked: str, tells: bool) -> str:
    """README.md of the branch: the table, and the last deploys of each machine."""
    answered = sum(view.answered for view in views)
    asked = f"Looked at last {moment(looked)}; {answered or 'none'} of {len(views)} answered."
    parts = [f"# {headline(views)}", table(views, branch, tells).rstrip(), asked]
    parts += [deploys(view.machine.name, memory.machines[view.machine.name], tells) for view in views]
    own = "This page is written by `scripts/fleet_status.py --record`: a change made here is lost at the next look."
    return "\n\n".join([*parts, own]) + "\n"


def deploys(name: str, known: Known, tells: bool) -> str:
    """The last attempts on a machine that did something, the newest first; all of them are in its file."""
    entries = [entry for entry in known.history if entry["outcome"] != "unchanged"][-SHOWN:]
    head = f"## {github.cell(name)}\n\n"
    if not entries:
        return head + "No deploy is known."
    lines = ["| when | by | what became of it | ran then |", "|---|---|---|---|"]
    for entry in reversed(entries):
        why = f": {github.cell(entry['reason'])}" if tells and entry["reason"] else ""
        cells = [short(entry["started"]), github.cell(entry["trigger"]) or "-", outcome(entry["outcome"]) + why]
        lines.append(f"| {' | '.join([*cells, commit_cell(entry['commit'])])} |")
    return head + "\n".join(lines) + f"\n\nAll that is known: [machines/{name}.jsonl](machines/{name}.jsonl)"


def files(views: Sequence[View], memory: Memory, branch: Branch, looked: str, tells: bool) -> dict[str, str]:
    """All that the branch is to hold of these machines."""
    names = [view.machine.name for view in views]
    told = {name: memory.machines[name] for name in names}
    told = told if tells else {name: fleet_handover.quiet_known(known) for name, known in told.items()}
    kept = fleet_answers.as_json(Memory({name: known._replace(history=()) for name, known in told.items()}, memory.tip))
    found = {"README.md": page(views, memory, branch, looked, tells), "fleet.json": json.dumps(kept, indent=1) + "\n"}
    for name, known in told.items():
        found[f"machines/{name}.jsonl"] = "".join(json.dumps(entry) + "\n" for entry in known.history)
    return found


def subject(views: Sequence[View], before: Mapping[str, Known]) -> str:
    """What has changed, as the first line of a commit; nothing if no machine is in another state than before."""
    changes = []
    for view in views:
        known = before.get(view.machine.name, Known()).since.get("state")
        old = (known[0] if known else "unknown") if before else ""
        if old != view.state:
            changes.append(f"{view.machine.name}: {old + ' to ' if old else ''}{view.state}")
    text = ", ".join(changes)
    return text if len(text) <= 72 else text[:69] + "..."

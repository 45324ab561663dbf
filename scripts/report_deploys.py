#!/usr/bin/env python3
"""On the CI runner: all machines' outcomes, one report, one verdict.

Reads each machine's result in hex, as push_deploy.py left it in the job's outputs: from $NAME_RESULT
(FRONTEND_RESULT for frontend), or all from $DEPLOY_RESULTS, a JSON object NAME -> result, which has room
for a few only: Linux takes 128 KB in one variable. Writes a table to $GITHUB_STEP_SUMMARY and annotations to
the log, tells $DEPLOY_WEBHOOK_URL if there is one, brings GitHub's page of deployments up to date if $GITHUB_TOKEN is
set, and ends with the run's verdict:

  0  every machine that answered runs the commit (or something newer); others are offline
  1  a machine that answered does not, or an expected machine left no result
  2  usage error

It needs Python 3.9 or newer and, beside it, github.py, github_api.py, deployments.py, webhook.py and
deployer/.
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 9):
    sys.stderr.write(
        "report_deploys.py needs Python 3.9 or newer, but %s is %d.%d: install a newer python3\n"
        % (sys.executable, sys.version_info[0], sys.version_info[1])
    )
    raise SystemExit(2)

import dataclasses
import json
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import deployments
import github
import webhook
from deployer import errors

EXIT_BAD = 1
PAGE_BYTES = 900_000  # of the page: GitHub throws one of more than 1 MiB away
GANTT_CHARS = 40_000  # mermaid draws nothing if there are more than 50,000
STEPS = 30  # of a machine that are shown
ANNOTATIONS = 10  # of a kind that GitHub shows per step; the last one counts the rest

# What a machine can end with; and, of the report alone, that one left nothing.
OUTCOMES: Mapping[str, errors.Outcome] = {
    **errors.OUTCOMES,
    "missing": errors.Outcome(EXIT_BAD, "", "left no result", "see the log of its job; run this again"),
}


# --- the results ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Machine:
    """One machine and what its deploy left; every field is checked, none is trusted."""

    name: str
    outcome: str
    message: str = ""
    commit: str = ""
    previous: str = ""
    wanted: str = ""
    seconds: float = 0.0
    detail: str = ""
    steps: tuple[Mapping[str, Any], ...] = ()
    result: Mapping[str, Any] | None = None

    @property
    def about(self) -> errors.Outcome:
        return OUTCOMES[self.outcome]

    @property
    def is_bad(self) -> bool:
        return not self.about.is_good and self.outcome != "offline"

    @property
    def symbol(self) -> str:
        return "✅" if self.about.is_good else "❌" if self.is_bad else "💤"


def read_machines(expected: Sequence[str], variables: Mapping[str, str]) -> list[Machine]:
    """Every expected machine, and others that left a result; one whose result is unreadable is `missing`."""
    try:
        results = json.loads(variables.get("DEPLOY_RESULTS") or "{}")
    except (ValueError, RecursionError):
        results = {}
    if not isinstance(results, dict):
        results = {}
    others = [name for name in results if name not in expected and results[name]]
    found = {name: variables.get(f"{github.prefix(name)}_RESULT") or results.get(name) for name in [*expected, *others]}
    lost = "no result arrived: its job ended before it could say anything"
    return [
        read_machine(words(name), value, lost if is_passed_on(name, variables) else not_passed_on(name))
        for name, value in found.items()
    ]


def is_passed_on(name: str, variables: Mapping[str, str]) -> bool:
    return f"{github.prefix(name)}_RESULT" in variables or "DEPLOY_RESULTS" in variables


def not_passed_on(name: str) -> str:
    return f"cd.yml does not pass its result on: add {github.prefix(name)}_RESULT to the env of the step Report"


def read_machine(name: str, value: Any, lost: str) -> Machine:
    if not value:
        return Machine(name, "missing", lost)
    limit = 2 * github.LINE_BYTES
    try:
        text = bytes.fromhex(value[:limit]).decode("utf-8", "replace")
    except (ValueError, TypeError):
        return Machine(name, "missing", "its result could not be read")
    found = github.parse_result(text, len(value) <= limit)
    if found is None or not github.is_result(found) or found["outcome"] not in errors.OUTCOMES:
        return Machine(name, "missing", "its result is of another kind than this report knows")
    result = github.fitted(found)
    steps = result.get("steps")
    return Machine(
        name=name,
        outcome=result["outcome"],
        message=words(result.get("message")),
        commit=commit_id(result.get("commit")),
        previous=commit_id(result.get("previous")),
        wanted=commit_id(result.get("wanted")),
        seconds=duration(result.get("seconds")),
        detail="\n".join(github.plain(line)[:300] for line in str(result.get("detail") or "").splitlines()[-20:]),
        steps=tuple(step for step in steps if isinstance(step, dict)) if isinstance(steps, list) else (),
        result=result,
    )


def words(value: Any) -> str:
    return " ".join(github.plain(str(value or "")).split())


def duration(value: Any) -> float:
    """Seconds, if that is what it is."""
    return float(value) if isinstance(value, (int, float)) and 0 <= value <= 1e7 else 0.0


def commit_id(value: Any) -> str:
    return value if isinstance(value, str) and re.fullmatch("[0-9a-f]{7,64}", value) else ""


def verdict(machines: Sequence[Machine]) -> int:
    """The run's exit code. Failures are looked at first: an offline machine never hides one."""
    return EXIT_BAD if any(machine.is_bad for machine in machines) else 0


def headline(machines: Sequence[Machine]) -> str:
    """One line that says it all."""
    groups = [
        ("FAILED", [m.name for m in machines if m.is_bad]),
        ("updated", [m.name for m in machines if m.outcome == "deployed"]),
        ("up to date", [m.name for m in machines if m.about.is_good and m.outcome != "deployed"]),
        ("offline", [m.name for m in machines if m.outcome == "offline"]),
    ]
    line = "; ".join(f"{word}: {', '.join(names)}" for word, names in groups if names)
    return line if any(m.outcome != "offline" for m in machines) else f"nothing was updated; {line}"


# --- the summary page ----------------------------------------------------------------------------------


def commits_cell(machine: Machine) -> str:
    """From which commit to which, linked where GitHub says where the repository is."""
    if not machine.commit:
        return "-"
    place = f"{os.environ.get('GITHUB_SERVER_URL', '')}/{os.environ.get('GITHUB_REPOSITORY', '')}"
    old, new = machine.previous, machine.commit
    if not old or old == new:
        return f"[{new[:8]}]({place}/commit/{new})" if len(place) > 1 else new[:8]
    number = count_commits(old, new)
    span = f"{old[:8]} → {new[:8]}" + (f" ({number} commit{'s' if number != 1 else ''})" if number else "")
    return f"[{span}]({place}/compare/{old}...{new})" if len(place) > 1 else span


def count_commits(old: str, new: str) -> int:
    """How many commits lie between, as far as the checkout here has them; 0 if it cannot tell."""
    try:
        done = subprocess.run(
            ["git", "rev-list", "--count", f"{old}..{new}"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return int(done.stdout) if done.returncode == 0 else 0


def steps_cell(machine: Machine) -> str:
    ran = [step for step in machine.steps if step.get("result") != "skipped"]
    skipped = [step for step in machine.steps if step.get("result") == "skipped"]
    parts = [
        f"{'**failed** ' if step.get('result') == 'failed' else ''}{github.cell(str(step.get('name')), 40)}:"
        f" {github.cell(str(step.get('why')), 120)}"
        for step in ran[:STEPS]
    ]
    parts += [f"and {len(ran) - STEPS} more"] if len(ran) > STEPS else []
    if skipped:
        parts.append("unchanged: " + ", ".join(github.cell(str(step.get("name")), 40) for step in skipped[:STEPS]))
    return "<br>".join(parts) or "-"


def summary(machines: Sequence[Machine]) -> str:
    """The page, as markdown. Where there is no room for all, the table has all machines, and their steps go first."""
    lines = [f"## {headline(machines)}", "", "| machine | outcome | commits | time | steps |", "|---|---|---|---|---|"]
    room = PAGE_BYTES // 2
    for machine in machines:
        row = row_of(machine, steps_cell(machine))
        row = row if len(row.encode()) < room else row_of(machine, "...")
        room -= len(row.encode())
        lines.append(row)
    room += PAGE_BYTES // 2
    parts = [*(note for machine in machines for note in notes_of(machine)), "\n".join(gantt(machines))]
    for part in parts:
        if len(part.encode()) < room:
            room -= len(part.encode()) + 1
            lines += [part] if part else []
    return "\n".join(lines) + "\n"


def row_of(machine: Machine, steps: str) -> str:
    outcome = f"{machine.symbol} {machine.about.words}"
    time = f"{machine.seconds:.1f} s" if machine.result else "-"
    return f"| {' | '.join([github.cell(machine.name), outcome, commits_cell(machine), time, steps])} |"


def notes_of(machine: Machine) -> list[str]:
    """What there is to say of it below the table: what to do, and the last lines of what failed."""
    advice, notes = machine.about.advice, []
    if advice:
        notes.append(
            f"\n**{github.cell(machine.name)}**: {github.cell(machine.message, 1000)}  \nWhat to do: {advice}."
        )
    if machine.is_bad and machine.detail:
        notes.append("\n".join(["", *("    " + line for line in machine.detail.splitlines())]))
    return notes


def gantt(machines: Sequence[Machine]) -> list[str]:
    """The steps of each machine on a common time line, if any ran."""
    if not any(step.get("result") != "skipped" for machine in machines for step in machine.steps):
        return []
    lines = ["", "```mermaid", "gantt", "    dateFormat x", "    axisFormat %M:%S"]
    room = GANTT_CHARS
    for machine in machines:
        section = section_of(machine)
        room -= sum(map(len, section))
        lines += section if room > 0 else []
    return [*lines, "```"]


def section_of(machine: Machine) -> list[str]:
    """A machine's steps one after the other."""
    ran = [step for step in machine.steps if step.get("result") != "skipped"][:STEPS]
    lines = [f"    section {label(machine.name)}"] if ran else []
    begin = 0
    for step in ran:
        length = max(1, int(duration(step.get("seconds")) * 1000))
        kind = "crit, " if step.get("result") == "failed" else ""
        lines.append(f"    {label(str(step.get('name')))} :{kind}{begin}, {begin + length}")
        begin += length
    return lines


def label(text: str) -> str:
    """Text that cannot mean anything to mermaid."""
    return re.sub(r"[^A-Za-z0-9_. -]", " ", text)[:40].strip() or "unnamed"


# --- annotations and the webhook ---------------------------------------------------------------------------


def annotation_lines(machines: Sequence[Machine]) -> list[str]:
    """A warning for each offline machine, an error for each bad one, within GitHub's limits."""
    lines = []
    for level, chosen in (
        ("error", [m for m in machines if m.is_bad]),
        ("warning", [m for m in machines if m.outcome == "offline"]),
    ):
        shown = chosen if len(chosen) <= ANNOTATIONS else chosen[: ANNOTATIONS - 1]
        for machine in shown:
            last = machine.detail.splitlines()[-8:] if level == "error" else []
            text = "\n".join([f"{machine.name}: {machine.message}"[:2000], *(line[:200] for line in last)])
            lines.append(github.annotation(level, f"{machine.name}: {machine.about.words}", text))
        if len(shown) < len(chosen):
            rest = ", ".join(machine.name for machine in chosen[len(shown) :])
            lines.append(github.annotation(level, f"and {len(chosen) - len(shown)} more", rest))
    return lines


def webhook_text(machines: Sequence[Machine]) -> str:
    lines = [headline(machines)]
    for machine in machines:
        is_update = machine.outcome == "deployed" and machine.previous
        span = f" {machine.previous[:8]} to {machine.commit[:8]}" if is_update else ""
        why = f": {webhook.chat(machine.message)}" if machine.is_bad else ""
        lines.append(f"{machine.symbol} {machine.name}: {machine.about.words}{span}{why}")
    return "\n".join([*lines, webhook.run_link()]).strip()


# --- GitHub's page of deployments ------------------------------------------------------------------------------


def facts_of(machine: Machine, merged: str) -> list[deployments.Fact]:
    """What is known of a machine now. merged: this run's commit; another one, which a person chose, no boot brings."""
    if machine.outcome == "offline":
        waits = machine.wanted == merged
        return [deployments.Fact(machine.name, merged, deployments.QUEUED)] if waits else []
    words = machine.about.words
    wanted = machine.wanted or (merged if os.environ.get("GITHUB_EVENT_NAME") == "push" else "")  # it got not so far
    failed = dict.fromkeys([wanted] if machine.is_bad and wanted != machine.commit else [])
    if machine.outcome == "broken":
        failed[machine.commit] = None
    facts = [deployments.Fact(machine.name, commit, deployments.FAILED, words=words) for commit in failed]
    if machine.outcome == "broken" or not machine.commit:
        return facts
    by = "cd" if machine.outcome == "deployed" else ""  # else it was there before, whoever brought it
    return [*facts, deployments.Fact(machine.name, machine.commit, deployments.RUNS, by=by)]


# --- all of it ------------------------------------------------------------------------------------------------


def tell(machines: Sequence[Machine], annotates: bool = True) -> int:
    """Tell everybody who is to know; return the verdict. annotates: warnings and errors are for GitHub's page."""
    page = os.environ.get("GITHUB_STEP_SUMMARY")
    if page:
        with open(page, "a", encoding="utf-8") as file:
            file.write(summary(machines))
    for machine in machines:
        print(f"{machine.symbol} {machine.name}: {machine.about.words}: {machine.message}")
    for line in annotation_lines(machines) if annotates else ():
        print(line)
    url = os.environ.get("DEPLOY_WEBHOOK_URL", "")
    results = [machine.result for machine in machines if machine.result]
    problem = webhook.tell(url, webhook_text(machines), {"results": results}) if url else ""
    if problem:
        print(github.annotation("warning", "webhook", problem) if annotates else problem)
    merged = os.environ.get("GITHUB_SHA", "")
    problem = deployments.record([fact for machine in machines for fact in facts_of(machine, merged)], os.environ)
    if problem:
        print(github.annotation("warning", "deployments", problem) if annotates else problem)
    print(headline(machines))
    return verdict(machines)


# --- command line --------------------------------------------------------------------------------------------


def main_inner(arguments: Sequence[str]) -> int:
    """Return the verdict. Raises errors.UsageError."""
    parser = github.Parser(
        prog="report_deploys.py", allow_abbrev=False, description="Report all deploys; give the verdict."
    )
    parser.add_argument(
        "--expect",
        required=True,
        nargs="+",
        type=github.machine_name,
        metavar="NAME",
        help="machines that must have a result",
    )
    options = parser.parse_args(arguments)
    return tell(read_machines(list(dict.fromkeys(options.expect)), os.environ))


def main() -> NoReturn:
    try:
        sys.exit(main_inner(sys.argv[1:]))
    except errors.UsageError as error:
        print(f"report_deploys.py: {error}", file=sys.stderr)
        sys.exit(errors.EXIT_USAGE)


if __name__ == "__main__":
    main()

"""Runs one sequence on two roots, incrementally on the one and afresh on the other; tells their first difference."""

from __future__ import annotations

import dataclasses
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, NamedTuple

from oracle import comparison, machines, packages, sequences
from oracle.machines import Conditions, Machine, Outcome, Repository

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
from deployer import host, releases

MEMORY = Path("/dev/shm")  # what is synced there costs nothing


class Difference(NamedTuple):
    """What was found, after which event of the sequence."""

    number: int  # of the event; 0 is the first commit
    event: str
    kind: str  # holds, does, starts, ends, breaks, skips or proves: see Trial
    text: str

    def __str__(self) -> str:
        return f"after event {self.number} ({self.event}), it {self.kind}: {self.text}"


@dataclasses.dataclass
class Report:
    """What running one sequence showed."""

    sequence: sequences.Sequence
    difference: Difference | None = None
    outcomes: list[str] = dataclasses.field(default_factory=list)  # of the incremental deploys
    ran: int = 0  # steps of incremental deploys
    skipped: int = 0
    seconds: float = 0.0


class Afresh(NamedTuple):
    """What deploying a commit to an empty root gave."""

    outcome: Outcome
    held: comparison.Held
    seen: dict[str, Any]


class Found(Exception):
    """The two differ."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind, self.text = kind, text


def judge(sequence: sequences.Sequence, patch: str = "") -> Report:
    """Run the sequence in a directory of its own. patch: how the program is changed, see tests/program/preloaded.py."""
    report, began = Report(sequence), time.monotonic()
    place = MEMORY if MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="oracle-", dir=place) as directory:
        trial = Trial(Path(directory), sequence, patch, report)
        for number, event in enumerate(["first", *sequence.events]):
            try:
                trial.happen(event, number)
                if number == len(sequence.events):
                    trial.prune()
            except Found as found:
                report.difference = Difference(number, event, found.kind, found.text)
                break
    report.seconds = time.monotonic() - began
    return report


class Trial:
    """One sequence on its way."""

    def __init__(self, directory: Path, sequence: sequences.Sequence, patch: str, report: Report) -> None:
        self.directory, self.patch, self.report = directory, patch, report
        self.application = sequence.application
        self.repository = Repository(directory, self.application, sequence.keep)
        self.conditions = machines.first_conditions(self.repository.wheels)
        self.incremental = Machine(directory / "home-00", self.repository)
        self.incremental.set(self.conditions)
        self.known: dict[tuple[str, Conditions], Afresh] = {}
        self.made: dict[str, Conditions] = {}  # the incremental root's releases, and how the machine was then
        self.carried: set[tuple[str, str]] = set()  # what earlier releases held where old files stay
        self.refusable = any(part.refusable == "*" for part in self.application)
        self.forced = False

    # -- what happens

    def happen(self, event: str, number: int) -> None:
        """One event, the deploy after it, and the comparison."""
        words = event.split("+")
        for word in words:
            self.conditions = self.conditions.changed_by(word, number)
            self.refusable |= word == "production"  # without development packages a build may be impossible
        self.incremental.set(self.conditions)
        if "restored" in words:
            self.incremental.lose_data()
        self.commit(words)
        name, _, which = event.partition(":")
        if name == "rollback":
            return self.roll_back()
        commit, options = self.repository.commits[-1], ["--force"] * self.forced
        if name == "back":
            commit = self.repository.commits[int(which) % len(self.repository.commits)]
            options = ["--commit", commit, "--force"]
        self.forced, runs = False, self.incremental.revision()
        outcome = self.incremental.run("deploy", *options, patch=self.patch)
        self.note(outcome)
        fresh = self.afresh(commit)
        self.compare_outcomes(commit, outcome, fresh.outcome)
        if outcome.is_good:
            self.made.setdefault(self.incremental.release.name, self.conditions)
            self.compare(commit, fresh)
        elif self.incremental.revision() != runs:
            raise Found("ends", f"it was refused, and {self.incremental.revision()[:8]} runs instead of {runs[:8]}")
        self.compare_skips(outcome)
        if event == "docs" and outcome.is_good and self.repository.commits[-2:-1] == [runs]:
            self.compare_what_ran(outcome)
        return None

    def commit(self, words: list[str]) -> None:
        """Make the commit of an event, if it has one."""
        changes = {f"{part.name}.{name}": part for part in self.application for name in part.changes}
        files: dict[str, packages.Content] = {}
        for word in words:
            name, _, which = word.partition(":")
            if word in changes:
                change = word.partition(".")[2]
                files.update(changes[word].changes[change])
                self.refusable |= changes[word].refusable == change
            elif word == "docs":
                files["docs/README"] = "documentation {n}\n"
            elif word == "fail":
                files["FAIL"] = "the last step fails\n"
            elif name == "revert":
                self.repository.revert_to(int(which))
        if files:
            self.repository.commit(files)

    def roll_back(self) -> None:
        """Go back; what runs then is compared if the machine is as it was when that release was made."""
        outcome = self.incremental.run("rollback", patch=self.patch)
        if outcome.code == 2:  # there is nothing to go back to
            return
        self.report.outcomes.append(str(outcome.result.get("outcome")))
        if not outcome.is_good:
            raise Found("ends", f"rollback ended with {outcome.code}: {outcome.message}")
        self.forced = True
        if self.made.get(self.incremental.release.name) == self.conditions:
            commit = self.incremental.revision()
            self.compare(commit, self.afresh(commit))

    def prune(self) -> None:
        """Remove all releases before the current one, as later deploys will: what runs must not need them."""
        machine = self.incremental
        if not (machine.root / "current").exists():
            return
        before = machine.start()
        releases.prune(host.load(machine.root, self.conditions.roles), 1)
        if (after := machine.start()) != before:
            raise Found("does", f"{unlike(after, before)} once the releases before it were removed")

    def afresh(self, commit: str) -> Afresh:
        """What the commit is when it is the first that an empty root gets, in the present conditions."""
        if (commit, self.conditions) not in self.known:
            machine = Machine(self.directory / f"home-{len(self.known) + 1:02}", self.repository)
            machine.set(self.conditions)
            options = [] if commit == self.repository.commits[-1] else ["--commit", commit]
            outcome = machine.run("deploy", "--full", *options, patch=self.patch)
            held = comparison.held(machine.release, machine.root) if outcome.is_good else {}
            self.known[commit, self.conditions] = Afresh(outcome, held, machine.start() if outcome.is_good else {})
            machine.remove()
        return self.known[commit, self.conditions]

    # -- what must be the same

    def note(self, outcome: Outcome) -> None:
        self.report.outcomes.append(str(outcome.result.get("outcome")))
        self.report.ran += len(outcome.steps("ran"))
        self.report.skipped += len(outcome.steps("skipped"))

    def compare_outcomes(self, commit: str, outcome: Outcome, fresh: Outcome) -> None:
        """Both deploy, or both refuse with a line; to refuse is right only where something is wrong."""
        for who, each in (("incremental", outcome), ("fresh", fresh)):
            if "\nTraceback" in f"\n{each.log}":
                raise Found("breaks", f"the {who} deploy: {each.log[-1000:]}")
            if each.code not in (0, 10) or not each.message:
                raise Found("ends", f"the {who} deploy ended with {each.code}: {each.message}")
        if outcome.code != fresh.code:
            raise Found("ends", f"{outcome.message}; the fresh deploy: {fresh.message}")
        if not outcome.is_good and commit not in self.repository.failing and not self.refusable:
            raise Found("ends", f"nothing is wrong with it, and it is refused: {outcome.message}")

    def compare(self, commit: str, fresh: Afresh) -> None:
        """The release that runs now is as a fresh one, and so is what the application does."""
        machine = self.incremental
        if machine.revision() != commit:
            raise Found("ends", f"{commit[:8]} was to be deployed, and {machine.revision()[:8]} runs")
        seen, held = machine.start(), comparison.held(machine.release, machine.root)
        if lacking := [f"{look}: {value}" for look, value in fresh.seen.items() if is_error(value)]:
            raise Found("starts", f"deployed afresh, the application lacks something: {'; '.join(lacking)}")
        if seen != fresh.seen:
            raise Found("does", f"{unlike(seen, fresh.seen)} when it is deployed afresh")
        if lines := comparison.difference(held, fresh.held, self.carried):
            raise Found("holds", "; ".join(lines[:5]) + f" (and {len(lines) - 5} more)" * (len(lines) > 5))
        folders = tuple(f"{part.carries}/" for part in self.application if part.carries)
        self.carried |= {(path, what) for path, what in held.items() if folders and path.startswith(folders)}

    def compare_skips(self, outcome: Outcome) -> None:
        """What is skipped is proven in words."""
        for step, why in outcome.steps("skipped").items():
            if not re.search(r"\bsame \S|^asked the database: ", why):
                raise Found("proves", f"{step} was skipped, and why does not name what is the same: {why!r}")

    def compare_what_ran(self, outcome: Outcome) -> None:
        """What concerns nobody is skipped: a program that does everything always would be right, too."""
        for step in [part.skips for part in self.application if part.skips]:
            if why := outcome.steps("ran").get(step):
                raise Found("skips", f"{step} ran again for a commit that changes docs/ only: {why}")


def is_error(value: object) -> bool:
    return isinstance(value, str) and value.startswith("ERROR ")


def unlike(one: dict[str, Any], other: dict[str, Any]) -> str:
    """`import greet: 1, but 2`: where what the application does differs."""
    looks = [look for look in {**one, **other} if one.get(look) != other.get(look)]
    return "; ".join(f"{look}: {one.get(look)!r}, but {other.get(look)!r}" for look in looks)


# -- the shortest sequence with the same difference


def shorten(report: Report, patch: str = "", seconds: float = 300.0) -> Report:
    """Leave out events and parts, one after the other, as long as a difference of this kind remains.

    hypothesis could do that as well, but each try costs seconds here, and it would need hundreds.
    """
    assert report.difference
    until = time.monotonic() + seconds
    best, candidates = cut_off(report), shorter(cut_off(report).sequence)
    while time.monotonic() < until and (sequence := next(candidates, None)):
        tried = judge(sequence, patch)
        if tried.difference and tried.difference.kind == report.difference.kind:
            best, candidates = cut_off(tried), shorter(cut_off(tried).sequence)
    return best


def cut_off(report: Report) -> Report:
    """What comes after the difference has no part in it."""
    assert report.difference
    events = report.sequence.events[: report.difference.number]
    return dataclasses.replace(report, sequence=report.sequence._replace(events=events))


def shorter(sequence: sequences.Sequence) -> Iterator[sequences.Sequence]:
    """The same with one part or one event less, or with one that is simpler."""
    for part in sequence.names if len(sequence.names) > 1 else ():
        events = [without(event, lambda word, part=part: word.startswith(f"{part}.")) for event in sequence.events]
        yield sequence._replace(names=tuple(name for name in sequence.names if name != part), events=tuple(events))
    for index, event in enumerate(sequence.events):
        before, after = sequence.events[:index], sequence.events[index + 1 :]
        yield sequence._replace(events=(*before, *after))
        for word in event.split("+") if event != "docs" else ():
            simpler = without(event, lambda other, word=word: other == word)
            yield sequence._replace(events=(*before, simpler, *after))


def without(event: str, is_gone: Callable[..., bool]) -> str:
    return "+".join(word for word in event.split("+") if not is_gone(word)) or "docs"

"""The campaign of the oracle (tests/oracle/): many sequences at random, and each mend taken out once."""

from __future__ import annotations

import collections
import concurrent.futures
import multiprocessing
import statistics
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from bench.report import table
from lab.image import say
from oracle import judge, mends, sequences

SHARE_SKIPPED = 0.25  # of all steps, at least: else the oracle would be content with a program that never skips
MOST_TRIES = 60  # sequences in which a mend that was taken out must be found
COMMAND = "./dev bench faults --oracle"

GROUPS = {
    "pip": ("pip", "uvpip"),
    "uv": ("uv", "uv-"),
    "Poetry": ("poetry",),
    "an environment of a step of its own": ("own-venv",),
    "npm": ("npm",),
    "manage.py collectstatic": ("collect",),
    "none of these": (),
}


def judge_one(sequence: sequences.Sequence) -> judge.Report:
    """Run one sequence; one that shows a difference is made as short as it can be."""
    report = judge.judge(sequence)
    return judge.shorten(report) if report.difference else report


def run_all(count: int, seed: int, jobs: int) -> list[judge.Report]:
    """So many sequences, as many at the same time as there are jobs."""
    reports = []
    with workers(jobs) as pool:
        for report in pool.map(judge_one, sequences.sample(count, seed)):
            reports.append(report)
            say(f"{len(reports)} of {count}: {report.seconds:.1f} s, {report.sequence}{told(report)}")
    return reports


def workers(jobs: int) -> concurrent.futures.ProcessPoolExecutor:
    return concurrent.futures.ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"))


def told(report: judge.Report) -> str:
    return f": DIFFERENT {report.difference}" if report.difference else ""


def problems_of(reports: Sequence[judge.Report]) -> list[str]:
    """Each difference with the command that shows it again, and too few skips."""
    problems = [
        f"`{COMMAND} --sequence '{report.sequence}'`: {report.difference}" for report in reports if report.difference
    ]
    ran, skipped = sum(report.ran for report in reports), sum(report.skipped for report in reports)
    if skipped < SHARE_SKIPPED * (ran + skipped):
        problems.append(f"only {skipped} of {ran + skipped} steps were skipped: so it proves little")
    return problems


def sequences_table(reports: Sequence[judge.Report]) -> str:
    """By what the applications are made of."""
    groups = collections.defaultdict(list)
    for report in reports:
        for group in groups_of(report.sequence):
            groups[group].append(report)
    rows = [row(f"with {name}" if GROUPS[name] else name, groups[name]) for name in GROUPS if groups[name]]
    head = ["applications", "sequences", "deploys", "steps that ran", "skipped", "differences", "seconds each"]
    return table(head, [*rows, row("all", reports)])


def groups_of(sequence: sequences.Sequence) -> Iterator[str]:
    found = [
        group
        for group, names in GROUPS.items()
        if any(p == n or p.startswith(f"{n.rstrip('-')}-") for p in sequence.names for n in names)
    ]
    yield from found or ["none of these"]


def row(name: str, reports: Sequence[judge.Report]) -> list[str]:
    deploys = sum(len(report.outcomes) for report in reports)
    ran, skipped = sum(report.ran for report in reports), sum(report.skipped for report in reports)
    different = sum(bool(report.difference) for report in reports)
    seconds = f"{statistics.mean(report.seconds for report in reports):.1f}"
    return [name, str(len(reports)), str(deploys), str(ran), str(skipped), str(different), seconds]


def outcomes_line(reports: Sequence[judge.Report]) -> str:
    counts = collections.Counter(outcome for report in reports for outcome in report.outcomes)
    return (
        f"Outcomes of the incremental deploys: {', '.join(f'{name} {count}' for name, count in counts.most_common())}."
    )


# --- each mend taken out


class Search(NamedTuple):
    """How a case was found again when its mend was out of the program."""

    mend: mends.Mend
    tries: int
    report: judge.Report | None  # None: it was not found

    @property
    def problem(self) -> str:
        return "" if self.report else f"{self.mend.case}: not found in {self.tries} sequences: {self.mend.what}"


def missed(jobs: int) -> list[str]:
    """Take out each mend and try its witness: one line for each that is not found, or not mended."""
    with workers(jobs) as pool:
        problems = []
        for mend, problem in zip(mends.MENDS, pool.map(mends.missed, mends.MENDS)):
            say(problem or f"{mend.case}: found when its mend is taken out, and not with it")
            problems += [problem] * bool(problem)
    return problems


def mends_line(problems: Sequence[str]) -> str:
    count, found = len(mends.MENDS), len(mends.MENDS) - len(problems)
    return f"Of {count} cases that once failed, {found} are found when their mend is taken out, and not with it."


def search(mend: mends.Mend, seed: int) -> Search:
    """Draw sequences of applications that have the witness's parts, until one shows the case."""
    for tries, sequence in enumerate(sequences.sample(MOST_TRIES, seed, mend.parts), 1):
        report = judge.judge(sequence, mend.patch)
        if report.difference and report.difference.kind != "breaks":
            return Search(mend, tries, judge.shorten(report, mend.patch, seconds=120))
    return Search(mend, MOST_TRIES, None)


def mutate(seed: int, jobs: int) -> list[Search]:
    searches = []
    with workers(jobs) as pool:
        for found in pool.map(search, mends.MENDS, [seed] * len(mends.MENDS)):
            searches.append(found)
            say(f"{found.mend.case}: {found.problem or f'found in sequence {found.tries}'}")
    return searches


def mends_table(searches: Sequence[Search]) -> str:
    head = ["case", "without its mend", "found in sequence", "made as short as it can be"]
    rows = []
    for found in searches:
        shortest = f"`{found.report.sequence}`" if found.report else "**not found**"
        rows.append([found.mend.case, found.mend.what, str(found.tries), shortest])
    return table(head, rows)

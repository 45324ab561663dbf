"""A web service that is well at first and falls ill: within its probation it is taken back by itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from faults import open_loop, replacing, state
from faults.open_loop import Answer
from faults.replacing import Report, Scenario, Site
from lab.machine import Deploy, Machine

PAUSE = 3.0  # seconds between two looks; the timer's are a minute apart
USAGE_ERROR = 2

ILLS = (
    Scenario("workers that die after 2 s", good=False, defect="worker dies", seconds=2),
    Scenario("workers that die after 5 s", good=False, defect="worker dies", seconds=5),
    Scenario("workers that die after 20 s", good=False, defect="worker dies", seconds=20),
    Scenario("a master that dies after 10 s", good=False, defect="master dies", seconds=10),
)


@dataclass(frozen=True)
class Patience:
    """For how long is looked."""

    within: float = 600.0  # seconds of the probation
    after: float = 5.0  # seconds of load after it was taken back


def run(site: Site, ill: Scenario, patience: Patience) -> Report:
    """Deploy it under load. It may be refused at once; else it must be taken back, and then nobody notices it."""
    commit = site.prepare(ill)
    with open_loop.running(site.world, site.frontend.address) as load:
        time.sleep(replacing.WARM_UP)
        done = site.act(ill)
        seconds, problems = until_back(site.frontend, commit, patience.within, lambda: serves(site))
        back = time.monotonic()
        time.sleep(patience.after)
    report = Report(ill.name, len(load.answers), sum(answer.failed for answer in load.answers))
    report.bad = sum(answer.commit == commit for answer in load.answers)
    report.problems += [*said(report, done, seconds), *problems, *since(load.answers, back, site.runs)]
    report.problems += site.left_alone()
    return report


def serves(site: Site) -> bool:
    """Whether the commit that was well answers."""
    return site.frontend.health() == {"status": 200, "commit": site.runs}


def until_back(machine: Machine, commit: str, within: float, serves: Callable[[], bool]) -> tuple[float, list[str]]:
    """Look as the timer does until the commit before serves and this one is bad; the seconds, and what went wrong."""
    began = time.monotonic()
    while not (state.is_bad(machine, commit) and serves()):
        code, log = state.watch(machine)
        if code == USAGE_ERROR:
            return within, [f"not taken back: watch ended with {code}: {log.strip()[-200:]}"]
        if time.monotonic() - began > within:
            return within, [f"not taken back within {within:g} s; watch ended with {code}: {log.strip()[-500:]}"]
        time.sleep(PAUSE)
    return time.monotonic() - began, []


def said(report: Report, done: Deploy, seconds: float) -> list[str]:
    """Put what the deploy said into the report; whether it is one of what it may say."""
    report.outcome, report.code, report.seconds = done.outcome, done.code, seconds
    if (done.outcome, done.code) in (("deployed", 0), ("rolled_back", 11)):
        return []
    return [f"the deploy ended with {done.code}, {done.outcome}: {done.message}"]


def since(answers: list[Answer], back: float, commit: str) -> list[str]:
    """What was wrong with the requests that began after it was taken back."""
    wrong = [answer for answer in answers if answer.began > back and (answer.failed or answer.commit != commit)]
    return [f"{len(wrong)} requests failed or met it after it was taken back: {wrong[0]}"] if wrong else []

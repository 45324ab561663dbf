"""./dev bench faults: what the users of a site notice of a deploy, by an open-loop load; rounds and tables."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Sequence

from bench.report import table
from faults import falling_ill, replacing, scheduling
from faults.falling_ill import Patience
from faults.replacing import Bars, Report, Scenario, Site
from lab.image import say
from lab.world import World, snapshot

REPLACED: dict[str, Scenario] = {each.name: each for each in replacing.SCENARIOS}
ILL: dict[str, Scenario] = {each.name: each for each in falling_ill.ILLS}
NAMES = (*REPLACED, *ILL, *scheduling.NAMES)


def run_all(names: Sequence[str], rounds: int) -> list[Report]:
    """Each scenario once in each round."""
    return [report for _ in range(rounds) for report in one_round(names)]


def one_round(names: Sequence[str]) -> Iterator[Report]:
    """A round begins with new machines."""
    left = [name for name in names if name not in scheduling.NAMES]
    while left:
        yield from on_one_site(left)
    for name in names:
        if name in scheduling.NAMES:
            with World(snapshot("deployed")) as world:
                yield attempt(name, lambda: scheduling.run(world, name))  # noqa: B023 - called at once


def on_one_site(left: list[str]) -> Iterator[Report]:
    """Take scenarios off the list for as long as the machine is what the next one wants to begin with."""
    with World(snapshot("deployed")) as world:
        site = Site(world)
        while left:
            name = left.pop(0)
            report = attempt(name, lambda: on_site(site, name))  # noqa: B023 - called at once
            yield report
            if report.problems:
                return


def on_site(site: Site, name: str) -> Report:
    if name in ILL:
        return falling_ill.run(site, ILL[name], Patience())
    return replacing.run(site, REPLACED[name], Bars())


def attempt(name: str, run: Callable[[], Report]) -> Report:
    """Run it and tell; an error of the campaign itself counts as a failure of its scenario."""
    began = time.monotonic()
    try:
        report = run()
    except Exception as error:  # the campaign goes on, and ends red
        traceback.print_exc()
        report = Report(name, problems=[f"{type(error).__name__}: {str(error)[:500]}"])
    say(f"{name}: {time.monotonic() - began:.0f} s{f': BROKEN: {report.problems}' if report.problems else ''}")
    return report


def tables(reports: Sequence[Report]) -> list[str]:
    """What was measured, by scenario: of deploys, and of what fell ill (or may not run twice) after one."""
    replaced = rows(reports, tuple(REPLACED), lambda group: [
        sum(report.requests for report in group),
        sum(report.failed for report in group),
        *slowest(group),
    ])  # fmt: skip
    others = rows(reports, (*ILL, *scheduling.NAMES), lambda group: [
        f"{max(report.seconds for report in group):.0f} s",
        sum(report.failed for report in group) if any(report.requests for report in group) else "-",
    ])  # fmt: skip
    head = ["open loop, 50 requests a second", "the deploy said", "runs"]
    made = [table([*head, "requests", "failed", "slowest answer", "without a deploy", "promises"], replaced)]
    made += [table([*head, "well again after, at most", "failed until then", "promises"], others)]
    return [each for each, found in zip(made, (replaced, others), strict=True) if found]


def rows(
    reports: Sequence[Report], names: Sequence[str], figures: Callable[[Sequence[Report]], Sequence[object]]
) -> list[list[str]]:
    """A row for each scenario that was run; `figures` gives what stands between its runs and the verdict."""
    found = []
    for name in names:
        group = [report for report in reports if report.name == name]
        if group:
            broken = sum(bool(report.problems) for report in group)
            verdict = f"**{broken} runs BROKEN**" if broken else "kept"
            said = ", ".join(sorted({f"{report.code} {report.outcome}" for report in group}))
            found.append([name, said, str(len(group)), *map(str, figures(group)), verdict])
    return found


def slowest(group: Sequence[Report]) -> tuple[str, str]:
    """The slowest answer with and without a deploy, of the run in which they differed most."""
    worst = max(group, key=lambda report: report.slowest - report.quiet)
    return f"{worst.slowest * 1000:.0f} ms", f"{worst.quiet * 1000:.0f} ms"

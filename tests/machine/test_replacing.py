"""What users notice while a web service is replaced: nothing (samples of `./dev bench faults`, which is stricter)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from faults import falling_ill, replacing
from faults.falling_ill import ILLS, Patience
from faults.replacing import SCENARIOS, Bars, Scenario, Site
from lab.world import World, snapshot

# The campaign, which has the computer to itself, allows 0.150 s. Tests run beside each other on two processors: this
# only tells a busy moment from a queue that waits for an old instance to end (18 s and more, before there were slots).
BARS = Bars(latency=5.0, calm=60, quiet=3, after=2)
SAMPLE = ["a good commit", "health 500", "everything 500", "a request of 20 s in flight", "a rollback"]


@pytest.fixture(scope="module")
def started() -> Iterator[World]:
    """One world for all tests of this file: each ends where the next one may begin."""
    with World(snapshot("deployed")) as world:
        yield world
        assert world.machine("frontend").failed_units() == []


@pytest.fixture(scope="module")
def site(started: World) -> Site:
    return Site(started)


def named(scenario: Scenario) -> str:
    return scenario.name


@pytest.mark.parametrize("scenario", [each for each in SCENARIOS if each.name in SAMPLE], ids=named)
def test_no_request_fails_or_waits(site: Site, scenario: Scenario) -> None:
    """Nor does one reach a release that is not well, or an old one after the deploy has reported."""
    report = replacing.run(site, scenario, BARS)
    if report.wait and report.problems == [report.wait]:  # others may have had the processors: what is slow stays so
        report = replacing.run(site, scenario, BARS)
    assert not report.problems, "\n".join(report.problems)


@pytest.mark.parametrize("ill", ILLS[:1], ids=named)
def test_what_falls_ill_is_taken_back_by_itself(site: Site, ill: Scenario) -> None:
    report = falling_ill.run(site, ill, Patience(within=60, after=2))
    assert not report.problems, "\n".join(report.problems)

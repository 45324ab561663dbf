"""A web service is replaced under an open-loop load: what the users of the site notice of one deploy.

One scenario is one deploy (or rollback) of a good or a bad commit, perhaps with a long request in flight. It is judged
by the answers that the load got, and by the same load without a deploy, right before.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

from faults import open_loop, state
from faults.open_loop import Answer
from lab.machine import Deploy
from lab.world import World
from waiting import wait_for

WARM_UP = 1.0  # seconds of load that count for no latency: the workers open what they need
LEFT = 20.0  # seconds within which the instance that was left has ended, once its last request has
DEPENDENCY = "humanize (>=4,<5)"
LOCKS = ("pyproject.toml", "poetry.lock")


@dataclasses.dataclass(frozen=True)
class Scenario:
    """What is deployed, and what is under way meanwhile."""

    name: str
    good: bool = True
    defect: str = "none"  # see application.py
    seconds: float = 0.0
    in_flight: str = ""  # a long request that begins right before the deploy
    rollback: bool = False
    dependency: bool = False

    @property
    def expected(self) -> tuple[str, int]:
        """Outcome and exit code."""
        if self.rollback:
            return "rolled_back_on_request", 0
        return ("deployed", 0) if self.good else ("rolled_back", 11)


SCENARIOS = (
    Scenario("a good commit"),
    Scenario("import error", good=False, defect="import error"),
    Scenario("health 500", good=False, defect="health 500"),
    Scenario("everything 500", good=False, defect="everything 500"),
    Scenario("a worker that dies at start", good=False, defect="worker dies at start"),
    Scenario("a slow start of 8 s", defect="slow start", seconds=8),
    Scenario("a rollback", rollback=True),
    Scenario("a dependency change", dependency=True),
    Scenario("a request of 20 s in flight", in_flight="/slow?20"),
    Scenario("a request of 58 s in flight", in_flight="/slow?58"),
    Scenario("a stream of 50 s in flight", in_flight="/stream?50"),
)


@dataclasses.dataclass(frozen=True)
class Bars:
    """What is allowed, and for how long is looked."""

    latency: float = 0.150  # seconds that the slowest answer may take more than without a deploy
    calm: float = (
        0.250  # seconds; an answer that takes longer without a deploy is the computer's doing: it shows nothing
    )
    quiet: float = 10.0  # seconds of the load without a deploy
    after: float = 3.0  # seconds of load after the deploy has reported


@dataclasses.dataclass(frozen=True)
class Times:
    """The moments of a run, on the clock of the answers."""

    quiet: float  # the load without a deploy is measured from here
    deploy: float  # the deploy began
    reported: float  # it has said how it ended


@dataclasses.dataclass
class Report:
    """What one scenario met. `problems` is empty if every promise was kept."""

    name: str
    requests: int = 0
    failed: int = 0
    slowest: float = 0.0  # seconds, since the deploy began
    quiet: float = 0.0  # seconds, of the same load before the deploy
    late: int = 0  # answers of another commit than the right one that began after the deploy had reported
    bad: int = 0  # answers of a commit that is not well
    outcome: str = ""
    code: int = 0
    seconds: float = 0.0  # of the deploy
    wait: str = ""  # that an answer took too long: the one problem that a busy computer can cause
    problems: list[str] = dataclasses.field(default_factory=list)


def application(number: int, defect: str = "none", seconds: float = 0.0) -> dict[str, str]:
    """For commit(): the scenarios' application with that defect; each number gives another one."""
    text = Path(__file__).with_name("application.py").read_text()
    for name, old, new in (("DEFECT", '"none"', f'"{defect}"'), ("SECONDS", "0.0", seconds), ("NUMBER", "0", number)):
        assert f"\n{name} = {old}" in text
        text = text.replace(f"\n{name} = {old}", f"\n{name} = {new}")
    return {"mysite/wsgi.py": text}


def cheap_requests(world: World) -> dict[str, str]:
    """For commit(): settings with which a request costs little, as it is the waiting that is measured."""
    name = '"NAME": os.environ.get'
    return world.edit("mysite/settings.py", name, f'"CONN_MAX_AGE": 600,\n        {name}')


class Site:
    """A frontend with the scenarios' application; it knows which commit it runs, and what the next one builds on."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.frontend = world.boot("frontend")
        self.locks = {name: (world.clone / name).read_text() for name in LOCKS}
        self.number = 0
        # long requests may end
        files = world.edit("gunicorn.conf.py", "timeout = 30\ngraceful", "timeout = 90\ngraceful")
        files |= cheap_requests(world)
        self.runs = self.base = world.commit({**self.code(), **files}, "the scenarios' application")
        self.frontend.deploy()

    def code(self, defect: str = "none", seconds: float = 0.0) -> dict[str, str]:
        """The application with that defect; no two are the same."""
        self.number += 1
        return application(self.number, defect, seconds)

    def commit(self, scenario: Scenario) -> str:
        """Commit what the scenario deploys, on top of the last good commit."""
        self.world.git("reset", "-q", "--hard", self.base)
        files = self.code(scenario.defect, scenario.seconds)
        if scenario.dependency:
            files |= self.other_dependencies()
        return self.world.commit(files, scenario.name)

    def other_dependencies(self) -> dict[str, str]:
        """One Python package more than the last good commit has, or one less."""
        if DEPENDENCY in (self.world.clone / "pyproject.toml").read_text():
            return self.locks
        self.world.add_python_dependency(DEPENDENCY)
        return {name: (self.world.clone / name).read_text() for name in LOCKS}

    def prepare(self, scenario: Scenario) -> str:
        """Bring the site to where the scenario begins; the commit that is to serve or to be refused."""
        health = self.frontend.health()
        assert health == {"status": 200, "commit": self.runs}, f"before {scenario.name}: {health}"
        if not scenario.rollback:
            return self.commit(scenario)
        target = self.runs
        self.runs = self.base = self.commit(scenario)
        self.frontend.deploy()
        return target

    def act(self, scenario: Scenario) -> Deploy:
        words = ["rollback"] if scenario.rollback else ["--trigger", "cd"]  # as a push asks
        return self.frontend.deploy(*words, expect=None)

    def arrived(self, scenario: Scenario, commit: str) -> None:
        """Remember what runs now. After a rollback the branch goes on from what was rolled back."""
        if scenario.good:
            self.runs = commit
            self.base = self.base if scenario.rollback else commit

    def instances(self) -> list[str]:
        """The instances of the web service that run."""
        states = "--state=active,activating,reloading,deactivating"
        return self.frontend.out(f"systemctl list-units --plain --no-legend {states} 'gunicorn@*.service'").splitlines()

    def left_alone(self) -> list[str]:
        """What is wrong with what is left once all requests have ended: one instance, well, and none beside it."""

        def only_one() -> bool:
            if len(self.instances()) > 1:
                state.watch(self.frontend)
            return len(self.instances()) <= 1

        problems = []
        try:
            wait_for(only_one, "the instance that was left ends", LEFT, pause=1)
        except AssertionError as error:
            problems.append(f"{error}: {self.instances()}")
        health = self.frontend.health()
        if health != {"status": 200, "commit": self.runs}:
            problems.append(f"afterwards the site answers {health}")
        return problems + state.problems_of(self.frontend, self.runs)


def run(site: Site, scenario: Scenario, bars: Bars) -> Report:
    """One scenario; never raises for a broken promise."""
    commit = site.prepare(scenario)
    long_one, _, seconds = scenario.in_flight.partition("?")
    with open_loop.running(site.world, site.frontend.address) as load:
        time.sleep(WARM_UP)
        quiet = time.monotonic()
        if long_one:  # the same load: this one also has a worker less
            load.start(f"{long_one}?{bars.quiet - 1:g}")
        time.sleep(bars.quiet)
        if long_one:
            load.start(scenario.in_flight)
            time.sleep(1)
        began = time.monotonic()
        done = site.act(scenario)
        times = Times(quiet, began, time.monotonic())
        time.sleep(max(bars.after, began + float(seconds or 0) - time.monotonic()))
    site.arrived(scenario, commit)
    report = judge(scenario, bars, load.answers, times, commit, site.runs)
    judge_deploy(report, scenario, done, times)
    if not scenario.good and not state.is_bad(site.frontend, commit):
        report.problems.append("the commit is not remembered as bad")
    report.problems += site.left_alone()
    return report


def judge(scenario: Scenario, bars: Bars, answers: Sequence[Answer], times: Times, commit: str, serves: str) -> Report:
    """Hold the answers against the bars. `serves` is the commit that is to answer in the end."""
    # what the deploy can have disturbed is not of the load without it
    before = [answer.latency for answer in answers if times.quiet <= answer.scheduled and answer.ended < times.deploy]
    since = [answer.latency for answer in answers if answer.ended >= times.deploy]
    failed = [answer for answer in answers if answer.failed]
    late = [answer for answer in answers if answer.began > times.reported and answer.commit not in ("", serves)]
    bad = [answer for answer in answers if not scenario.good and answer.commit == commit]
    report = Report(scenario.name, len(answers), len(failed), max(since, default=0.0), max(before, default=0.0))
    report.late, report.bad = len(late), len(bad)
    report.problems += wrong_numbers(report, bars)
    report.problems += [f"{count} requests: {what}" for what, count in kinds(failed).items()]
    if not asked_steadily(answers, times):
        report.problems.append("the load was not what it should be: nothing was shown")
    return report


def wrong_numbers(report: Report, bars: Bars) -> list[str]:
    """Which of the bars were not kept."""
    problems = []
    if report.failed:
        problems.append(f"{report.failed} of {report.requests} requests failed")
    if report.quiet > bars.calm or report.slowest > report.quiet + bars.latency:
        report.wait = f"the slowest answer took {report.slowest:.3f} s, without a deploy {report.quiet:.3f} s"
        problems.append(report.wait)
    if report.late:
        problems.append(f"{report.late} answers of an old commit began after the deploy had reported")
    if report.bad:
        problems.append(f"{report.bad} answers came from the commit that is not well")
    return problems


def kinds(failed: Sequence[Answer]) -> dict[str, int]:
    """How often what went wrong."""
    found: dict[str, int] = {}
    for answer in failed:
        what = f"{answer.path.partition('?')[0]} {answer.status} {' '.join(answer.error.split())[:60]}"
        found[what] = found.get(what, 0) + 1
    return found


def asked_steadily(answers: Sequence[Answer], times: Times) -> bool:
    """Whether requests began as the timetable had them, also during the deploy: else it shows nothing."""
    for begin, end in ((times.quiet, times.deploy), (times.deploy, times.reported)):
        began = sum(answer.steady and begin <= answer.began < end for answer in answers)
        if began < 0.8 * open_loop.RATE * (end - begin) - 2:
            return False
    return True


def judge_deploy(report: Report, scenario: Scenario, done: Deploy, times: Times) -> None:
    """Hold what the deploy said against what it should have said, and when."""
    report.outcome, report.code, report.seconds = done.outcome, done.code, times.reported - times.deploy
    if (done.outcome, done.code) != scenario.expected:
        report.problems.append(f"the deploy ended with {done.code}, {done.outcome}: {done.message}")
    long_one = float(scenario.in_flight.partition("?")[2] or 0)
    if long_one and report.seconds > long_one - 2:
        report.problems.append(f"the deploy took {report.seconds:.1f} s: it waited for the request in flight")

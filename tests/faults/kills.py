"""SIGKILL to a deploy at a chosen moment, and what must hold then and after the next run."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from faults.subject import CHANGES, PUSH, STARTUP, Subject

STAGES = ["start", "fetching", "checking out", "step python", "step node", "step build", "step migrate"]
STAGES += ["step collectstatic", "switching", "services"]
MARKS = ["environment complete", "release complete", "switched", "confirmed", "recorded", "record cleared"]

# Read by each python3 of the machine as it starts. What follows the rename of `current` takes but milliseconds, which
# are easily missed from outside on busy processors: so the deploy itself stops there, before it does anything else.
STOP_AFTER_THE_RENAME = """\
import os, signal, sys
renamed = stopped = False
def hook(event, arguments):
    global renamed, stopped
    if renamed and not stopped:
        stopped = True
        os.kill(os.getpid(), signal.SIGSTOP)
    renamed = renamed or event == "os.rename" and os.fspath(arguments[1]) == "/srv/app/current"
sys.addaudithook(hook)
"""


@dataclasses.dataclass(frozen=True)
class Case:
    """One kill. `moment` is a stage or mark, or how far into the deploy (1.0: its usual length)."""

    trigger: str  # cd, boot (without a boot), power-on (a real boot)
    change: str
    moment: str | float

    def __str__(self) -> str:
        at = self.moment if isinstance(self.moment, str) else f"at {self.moment:.0%}"
        return f"{self.trigger}, {self.change}, {at}"


@dataclasses.dataclass
class Outcome:
    """What one kill met and left."""

    case: Case
    met: str = ""  # before the lock, in the deploy, after the record
    stage: str = ""
    served: str = ""  # old or new: what answered right after the kill
    seconds: float = 0.0  # of the next run
    problems: list[str] = dataclasses.field(default_factory=list)


def sample(count: int, seed: int, power_on: int, changes: tuple[str, ...] = CHANGES) -> list[Case]:
    """A fixed choice of kills: for one half each boundary in turn, for the other random instants."""
    chosen = random.Random(seed)
    boundaries = [(change, moment) for moment in [*STAGES, *MARKS] for change in changes if happens(change, moment)]
    chosen.shuffle(boundaries)
    cases = []
    for number in range(count):
        trigger = "cd" if number % 4 < 2 else "boot"
        if number % 2 == 0:
            change, moment = boundaries[number // 2 % len(boundaries)]
            cases.append(Case(trigger, change, moment))
        else:
            cases.append(Case(trigger, changes[number // 2 % len(changes)], round(chosen.uniform(0.0, 1.05), 3)))
    return [
        dataclasses.replace(case, trigger="power-on") if case.trigger == "boot" and number // 4 < power_on else case
        for number, case in enumerate(cases)
    ]


def happens(change: str, moment: str) -> bool:
    return moment != "environment complete" or change == "dependency"


class Watch:
    """What can be seen of a running deploy from the host's side of the machine's files."""

    def __init__(self, app: Path, commit: str) -> None:
        self.app = app
        self.suffix = f"-{commit[:12]}"
        self.link = os.readlink(app / "current")
        self.last = self.stamp("state/last.json")
        self.environments = set(os.listdir(app / "envs"))
        self.has_run = False
        self.stage = ""

    def stamp(self, name: str) -> int:
        return os.stat(self.app / name).st_ino

    def look(self) -> None:
        """Remember the stage that state/running.json tells."""
        try:
            self.stage = str(json.loads((self.app / "state/running.json").read_text())["stage"])
            self.has_run = True
        except FileNotFoundError:
            self.stage = ""

    def look_at_what_is_left(self) -> None:
        """After the kill: the deploy may have taken the lock between the last look and its end."""
        self.has_run |= (self.app / "state/running.json").exists()

    def release(self) -> Path | None:
        return next((self.app / "releases" / name for name in os.listdir(self.app / "releases")
                     if name.endswith(self.suffix)), None)  # fmt: skip

    def has(self, moment: str) -> bool:
        if moment in STAGES:  # a skipped step may be over before it was seen
            return self.stage in STAGES[STAGES.index(moment) :]
        release = self.release()
        meta = release / ".release.json" if release else None
        marks: dict[str, Callable[[], bool]] = {
            "environment complete": lambda: any(
                (self.app / "envs" / name / ".complete").exists()
                for name in set(os.listdir(self.app / "envs")) - self.environments
            ),
            "release complete": lambda: bool(meta and meta.exists()),
            "switched": lambda: os.readlink(self.app / "current") != self.link,
            "confirmed": lambda: bool(meta and meta.exists() and "confirmed" in meta.read_text()),
            "recorded": lambda: self.stamp("state/last.json") != self.last,
            "record cleared": lambda: self.has_run and not self.stage,
        }
        return marks[moment]()


def processes(subject: Subject, unit: str) -> Iterator[Path]:
    """The control group of a unit of the machine, as the host sees it."""
    for group in subject.frontend.cgroups():
        with contextlib.suppress(FileNotFoundError):  # others come and go meanwhile
            yield from (path for path in group.rglob(unit) if (path / "cgroup.kill").exists())


def kill_at(subject: Subject, case: Case, process: subprocess.Popen[str] | None) -> Watch:
    """Kill a deploy at the case's moment; what was seen of it until then."""
    unit = PUSH if case.trigger == "cd" else STARTUP
    watch = Watch(subject.app, subject.commits[case.change])
    began = time.monotonic()  # some milliseconds before it starts

    def moment_has_come() -> bool:
        watch.look()
        return has_come(case, watch, time.monotonic() - began, subject.seconds[case.change])

    kill_when(subject, unit, process, moment_has_come)
    watch.look_at_what_is_left()
    return watch


def kill_when(
    subject: Subject, unit: str, process: subprocess.Popen[str] | None, condition: Callable[[], bool]
) -> None:
    """SIGKILL all processes of a unit at once, as soon as the condition holds (or it has ended by itself)."""
    group: Path | None = None
    limit = time.monotonic() + 60
    while group is None:
        group = next(processes(subject, unit), None)
        assert time.monotonic() < limit, f"{unit} did not start"
    # not until `process` ends: systemctl does when a boot's deploy is ready, long before it is confirmed
    while group.exists() and not condition():
        assert time.monotonic() < limit, f"{unit} did not come that far"
        time.sleep(0.0002)
    with contextlib.suppress(OSError):  # it may have ended by now
        (group / "cgroup.kill").write_text("1")
    if process:
        process.communicate(timeout=30)


def has_come(case: Case, watch: Watch, elapsed: float, usual: float) -> bool:
    if isinstance(case.moment, float):
        return elapsed >= case.moment * usual
    try:
        return watch.has(case.moment)
    except FileNotFoundError:  # renamed or removed in this instant
        return False


@contextlib.contextmanager
def stopping_after_the_rename(subject: Subject) -> Iterator[None]:
    """Meanwhile each deploy stops (and does not end) right after the rename of `current`."""
    place = subject.frontend.root / "usr/lib/python3/dist-packages"
    module, line = place / "stop_after_the_rename.py", place / "stop_after_the_rename.pth"
    module.write_text(STOP_AFTER_THE_RENAME)
    line.write_text("import stop_after_the_rename\n")
    try:
        yield
    finally:
        line.unlink()
        module.unlink()


def run_case(subject: Subject, case: Case) -> Outcome:
    """Kill one deploy and check all that is promised; never raises for a broken promise."""
    outcome = Outcome(case)
    if case.trigger == "power-on":
        subject.frontend.shut_down()
    subject.restore(case.change)
    entries = len(subject.deployed())
    with stopping_after_the_rename(subject) if case.moment == "switched" else contextlib.nullcontext():
        if case.trigger == "power-on":
            subject.frontend.boot(wait="")
            watch = kill_at(subject, case, None)
        else:
            watch = kill_at(subject, case, subject.start(case.trigger))
    if case.trigger == "power-on":
        subject.frontend.wait_for_unit("nginx.service")
    outcome.stage = watch.stage
    recorded = len(subject.deployed()) > entries
    outcome.met = "after the record" if recorded else "in the deploy" if watch.has_run else "before the lock"
    outcome.problems += after_the_kill(subject, outcome)
    began = time.monotonic()
    outcome.problems += next_run(subject, case)
    outcome.seconds = time.monotonic() - began
    return outcome


def after_the_kill(subject: Subject, outcome: Outcome) -> list[str]:
    problems = []
    new = subject.commits[outcome.case.change]
    health = subject.frontend.health()
    outcome.served = {subject.base: "old", new: "new"}.get(str(health.get("commit")), "nothing")
    if health["status"] != 200 or outcome.served == "nothing":
        problems.append(f"the application answered {health}")
    if subject.current() not in (subject.base, new):
        problems.append(f"current is {subject.current()}")
    else:
        problems += [f"current is not whole: {each}" for each in subject.part_of_current(outcome.case.change)]
    interrupted = subject.status()["interrupted"]
    expected = {"before the lock": [False], "in the deploy": [True], "after the record": [True, False]}[outcome.met]
    if interrupted not in expected:
        problems.append(f"status says interrupted: {interrupted}, but it was killed {outcome.met}")
    return problems


def next_run(subject: Subject, case: Case) -> list[str]:
    """Deploy again, undisturbed: all must be as if nothing had happened."""
    problems = []
    frontend, new = subject.frontend, subject.commits[case.change]
    process = subject.start("cd" if case.trigger == "cd" else "boot")
    out, _ = process.communicate(timeout=120)
    if process.returncode != 0:
        problems.append(f"the next run ended with {process.returncode}: {out[-2000:]}")
    if case.trigger != "cd" and frontend.wait_for_startup() != "exited":
        problems.append(f"the next run failed: {frontend.show(STARTUP, 'StatusText')}")
    if frontend.health() != {"status": 200, "commit": new}:
        problems.append(f"afterwards the application answers {frontend.health()}")
    status = subject.status()
    if (status["commit"], status["healthy"], status["interrupted"]) != (new, True, False):
        problems.append(f"afterwards status says {status}")
    problems += [f"afterwards {each}" for each in subject.differs_from_undisturbed(case.change)]
    left = frontend.sh("pgrep -a -u deploy", check=False).stdout
    return problems + ([f"still running: {left}"] if left else [])

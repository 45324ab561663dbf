"""What outlives a run, below state/: the lock and its holder, the intent of a switch, bad commits, the history."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from deployer import errors, files, host, log, pending, run, tools

HISTORY_BYTES = 1_000_000  # history.jsonl is cut in half beyond that
BAD_COMMITS = 50  # so many are remembered


class Baton(NamedTuple):
    """What a version that hands over passes to the next: it goes on under the same lock, with the same commit."""

    lock: int  # an open descriptor
    tip: str  # the commit that was fetched
    started: str
    clock: float  # monotonic seconds at the start
    ready_by: float  # as of Request


class Request(NamedTuple):
    """What was asked for on the command line."""

    machine: host.Machine
    command: str
    trigger: str  # cd, boot or manual
    arguments: tuple[str, ...]  # all of them as they were given, for a hand-over
    contains: str | None = None
    commit: str | None = None
    target: str | None = None  # of a rollback
    words: tuple[str, ...] = ()  # of `run`: the command
    full: bool = False
    force: bool = False
    within: float = 0.0  # of a status: seconds until it answers; 0: when it knows all
    since: str | None = None  # of a status: the time from which on the history is told
    lock_timeout: float = 1800.0  # seconds
    ready_by: float = 0.0  # monotonic seconds at which a boot lets the services start, whatever goes on
    baton: Baton | None = None  # from the version that has handed over to this one

    @property
    def is_boot(self) -> bool:
        return self.trigger == "boot"


class Outcome(NamedTuple):
    """How a run ended. `detail`: the last output of a failed command or service."""

    name: str  # a key of errors.OUTCOMES
    message: str
    detail: str = ""
    services: tuple[Mapping[str, str], ...] = ()
    healthy: bool | None = None
    warnings: tuple[str, ...] | None = None  # None: nobody has asked yet
    reason: str = ""  # why it is not good, in few words; empty: as the message says


def short(commit: str | None) -> str:
    """A commit, as people see it."""
    return commit[:8] if commit else "nothing"


class Progress:
    """How far a run has come; while it holds the lock, state/running.json tells others."""

    def __init__(self, request: Request, previous: str | None) -> None:
        self.request, self.machine, self.previous = request, request.machine, previous
        baton = request.baton
        self.started, self.clock = (baton.started, baton.clock) if baton else (files.now(), time.monotonic())
        self.stages = [("start", process_start())]
        self.wanted: str | None = None  # the commit
        self.steps: list[dict[str, Any]] = []
        self.warnings: list[str] = []
        self.installed: list[str] = []  # warnings that are over when setup_machine.py has run
        self.pending = pending.Pending()
        self.switched = False  # from then on the release matters more than what is noted of it
        self.interrupted = False  # whether the run before this one was
        self.lock = -1

    def begin(self) -> None:
        """Say that this run holds the lock now."""
        about = {"pid": os.getpid(), "trigger": self.request.trigger, "started": self.started}
        run.OWN["DEPLOY_RUN"] = run_mark(about)
        write_running(self.machine, {**about, "stage": "start", "interrupted": self.interrupted})

    def stage(self, name: str, waits_for_services: bool = False) -> None:
        """Enter a stage. A boot that waits for the lock lets the services start if this stage waits for them."""
        self.stages.append((name, time.monotonic()))
        try:
            if self.lock >= 0:
                about = {**(read_running(self.machine) or {}), "stage": name, "waits_for_services": waits_for_services}
                write_running(self.machine, about)
        except OSError:  # a full disk
            if not self.switched:
                raise
        log.progress(name)

    def timings(self) -> dict[str, float]:
        """The seconds of each stage until now, in order."""
        spent: dict[str, float] = {}
        ends = [began for _, began in self.stages[1:]] + [time.monotonic()]
        for (name, began), end in zip(self.stages, ends):
            spent[name] = round(spent.get(name, 0.0) + end - began, 3)
        return spent


def process_start() -> float:
    """The monotonic second at which this process was started: importing this file counts as work."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.monotonic() - max(0.0, age)


# --- who holds the lock: left behind, it says that a run was interrupted


def read_running(machine: host.Machine) -> dict[str, Any] | None:
    """What running.json says; of one that a power cut has damaged, that there was a run."""
    path = machine.state / "running.json"
    return files.read_json(path) or ({"stage": "unknown"} if path.exists() else None)


def write_running(machine: host.Machine, about: Mapping[str, Any]) -> None:
    # not durable: after a power cut in any stage the next run does the same
    files.write_json(machine.state / "running.json", about, durable=False)


def clear_running(machine: host.Machine) -> None:
    (machine.state / "running.json").unlink(missing_ok=True)


def run_mark(about: Mapping[str, Any]) -> str:
    """What tells the processes of one run from all others: its process id and start."""
    return f"{about.get('pid')} {about.get('started')}"


def end_interrupted(request: Request) -> bool:
    """Whether a run was interrupted; then what it left running is ended. Under the lock only."""
    left = read_running(request.machine) or {}
    if not left or request.baton:  # then it is of this very run
        return bool(left.get("interrupted"))
    log.warning(
        f"an earlier deploy ({left.get('trigger')}, {left.get('started')}) was interrupted at:"
        f" {left.get('stage', 'start')}; cleaning up"
    )
    for mark in (run_mark(left), run_mark(left) + run.BESIDE):
        run.end_leftovers(mark)
    return True


# --- the intent of a switch

GOING_BACK = "going back"


class Intent(NamedTuple):
    """state/switching.json: a switch that is begun and not confirmed. It alone says what is still owed.

    Written before the switch, removed when the release was seen to be healthy: so nothing of it rests on a clock.
    """

    to: str  # the release that the services are to run
    good: str  # the one to go back to if it is not healthy; empty: there is none
    by: str  # deploy, rollback, or going back
    why: str = ""  # going back: what is wrong with the release that is left


def read_intent(machine: host.Machine) -> Intent | None:
    found = files.read_json(machine.state / "switching.json") or {}
    fields = [found.get(name, "") for name in Intent._fields]
    return Intent(*fields) if fields[0] and all(isinstance(field, str) for field in fields) else None


def write_intent(machine: host.Machine, intent: Intent) -> None:
    # not durable: the sync of the switch makes it so
    files.write_json(machine.state / "switching.json", intent._asdict(), durable=False)


def clear_intent(machine: host.Machine) -> None:
    (machine.state / "switching.json").unlink(missing_ok=True)


# --- bad commits


def bad_commits(machine: host.Machine) -> dict[str, dict[str, str]]:
    """Commit -> kind (unhealthy, step or person), why and when; oldest first."""
    found = (files.read_json(machine.state / "state.json") or {}).get("bad")
    return {
        name: about
        for name, about in (found.items() if isinstance(found, dict) else ())
        if isinstance(about, dict) and all(isinstance(text, str) for text in about.values())
        if {"kind", "why", "when"} <= {*about}
    }


def remember_bad(machine: host.Machine, commit: str, kind: str, why: str) -> None:
    """kind: `unhealthy`, `step` (one failed) or `person` (somebody rolled back from it)."""
    others = {name: about for name, about in bad_commits(machine).items() if name != commit}
    env = ""  # with another one it may be good
    with contextlib.suppress(errors.DeployError):
        env = tools.digest(tools.read_env(machine))
    newest = {**others, commit: {"kind": kind, "why": why, "when": files.now(), "env": env}}
    try:
        write_bad(machine, dict([*newest.items()][-BAD_COMMITS:]))
    except OSError as error:  # then it is tried once more; what became of the deploy matters more
        log.warning(f"{commit[:8]} could not be remembered as bad: {error.strerror}")


def forget_bad(machine: host.Machine, commit: str) -> None:
    bad = bad_commits(machine)
    if bad.pop(commit, None):
        write_bad(machine, bad)


def write_bad(machine: host.Machine, bad: Mapping[str, Mapping[str, str]]) -> None:
    files.write_json(machine.state / "state.json", {"bad": bad})


# --- the last result and the history


def record(machine: host.Machine, result: Mapping[str, Any]) -> None:
    """Write a result to state/. A full disk must not hide the outcome."""
    try:
        files.write_json(machine.state / "last.json", result)
        append_history(machine, result)
    except OSError as error:
        log.warning(f"the result could not be recorded below {machine.state}: {error.strerror}")


def note_told(machine: host.Machine) -> None:
    """Note that this start of the unit has told how it ended, so that deploy-failed.service need not."""
    with contextlib.suppress(OSError):
        files.write(machine.state / "told", os.environ.get("INVOCATION_ID", ""))


def read_last(machine: host.Machine) -> dict[str, Any] | None:
    return files.read_json(machine.state / "last.json")


def forget_last(machine: host.Machine) -> None:
    (machine.state / "last.json").unlink(missing_ok=True)


def append_history(machine: host.Machine, result: Mapping[str, Any]) -> None:
    """Append one line durably; an earlier line that a power cut left half-written is closed first."""
    path = machine.state / "history.jsonl"
    if path.exists() and path.stat().st_size > HISTORY_BYTES:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        files.write(path, "".join(lines[len(lines) // 2 :]))
    with open(path, "a+b", buffering=0) as file:
        size = file.tell()
        if size:
            file.seek(-1, os.SEEK_END)
        line = b"\n" * (size > 0 and file.read(1) != b"\n") + json.dumps(result).encode() + b"\n"
        try:
            if file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            os.fsync(file.fileno())
        except OSError:
            file.truncate(size)
            raise


def read_history(machine: host.Machine) -> list[dict[str, Any]]:
    """All results, oldest first; damaged lines are left out."""
    results = []
    with contextlib.suppress(FileNotFoundError):
        for line in (machine.state / "history.jsonl").read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                value = json.loads(line)
                if is_result(value):
                    results.append(value)
    return results


def is_result(value: Any) -> bool:
    """Whether a value is a deploy's result, as far as it is shown."""
    if not isinstance(value, dict) or value.get("schema") != files.SCHEMA:
        return False
    types: dict[str, Any] = dict.fromkeys(("started", "trigger", "outcome", "message"), str)
    types |= {"commit": (str, type(None)), "seconds": (int, float)}
    return all(isinstance(value.get(key), kind) for key, kind in types.items()) and abs(value["seconds"]) < 1e9

"""The scheduler, which must never run twice: it is restarted, its job may end first, and a crash is taken back."""

from __future__ import annotations

import time

from faults import falling_ill, state
from faults.replacing import Report
from lab.machine import Machine
from lab.world import World
from waiting import wait_for

COMMANDS = "board/management/commands"
JOB_SECONDS, CRASH_SECONDS = 20, 10
RUNNING = "a job of 20 s that runs"
CRASH = "a scheduler that crashes after 10 s"
NAMES = (RUNNING, CRASH)


class Jobs:
    """What the scheduler's jobs left in the database since this was made."""

    def __init__(self, world: World) -> None:
        self.services = world.machine("services")
        self.first = int(self.query("select coalesce(max(id), 0) from board_jobrun"))

    def query(self, sql: str) -> str:
        return self.services.run("psql", "-qtAc", sql, "board", user="postgres").stdout.strip()

    def count(self, condition: str) -> int:
        return int(self.query(f"select count(*) from board_jobrun job where id > {self.first} and {condition}"))

    def problems(self, crashed: bool = False) -> list[str]:
        """Jobs that ran beside another one, or were cut off (which a crash may do)."""
        earlier = f"select 1 from board_jobrun other where other.id > {self.first} and other.id < job.id"
        beside = self.count(f"exists ({earlier} and other.ended > job.started)")
        cut = 0 if crashed else self.count("ended is null and id < (select max(id) from board_jobrun)")
        found = [f"{beside} jobs began while another one ran"] if beside else []
        return found + ([f"{cut} jobs were cut off"] if cut else [])


class Scheduler:
    """A scheduler that runs one commit, and commits that build on it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.machine: Machine = world.boot("scheduler")
        self.base = self.runs = world.commit({}, "where the scheduler begins")
        self.machine.deploy()

    def commit(self, files: dict[str, str], message: str) -> str:
        return self.world.commit(files, message)

    def long_jobs(self) -> dict[str, str]:
        """The commands with jobs of JOB_SECONDS; the check knows of it."""
        old, new = '"JOB_SECONDS", "0"', f'"JOB_SECONDS", "{JOB_SECONDS}"'
        files = self.world.edit(f"{COMMANDS}/run_scheduler.py", old, new)
        return {**files, **self.world.edit(f"{COMMANDS}/scheduler_heartbeat.py", old, new)}

    def crash(self) -> dict[str, str]:
        """The command that ends itself, as a bug or the kernel's lack of memory would."""
        stop = "        stop = threading.Event()\n"
        end = f"        threading.Timer({CRASH_SECONDS}, os._exit, [1]).start()\n"
        return self.world.edit(f"{COMMANDS}/run_scheduler.py", stop, stop + end)


def run(world: World, name: str, within: float = 600.0) -> Report:
    """One of NAMES, in a world of its own; never raises for a broken promise."""
    scheduler = Scheduler(world)
    report = Report(name)
    jobs = Jobs(world)
    report.problems += deploy_behind_a_job(scheduler, jobs, report) if name == RUNNING else []
    report.problems += deploy_a_crash(scheduler, jobs, report, within) if name == CRASH else []
    report.problems += state.problems_of(scheduler.machine, scheduler.runs)
    return report


def deploy_behind_a_job(scheduler: Scheduler, jobs: Jobs, report: Report) -> list[str]:
    """A job runs when its scheduler is replaced: it ends, and only then the new scheduler's first job begins."""
    old = scheduler.commit(scheduler.long_jobs(), "long jobs")
    scheduler.machine.deploy()
    running = f"commit = '{old}' and ended is null and started < now() - interval '2 s'"
    wait_for(lambda: jobs.count(running), "a long job begins")
    scheduler.runs = scheduler.commit(scheduler.world.edit("board/views.py", "[:50]", "[:40]"), "the next one")
    began = time.monotonic()
    done = scheduler.machine.deploy(expect=None)
    report.outcome, report.code, report.seconds = done.outcome, done.code, time.monotonic() - began
    problems = [] if done.code == 0 else [f"the deploy ended with {done.code}, {done.outcome}: {done.message}"]
    if not jobs.count(f"commit = '{scheduler.runs}'"):
        problems.append("no job of the new commit has begun")
    return problems + jobs.problems()


def deploy_a_crash(scheduler: Scheduler, jobs: Jobs, report: Report, within: float) -> list[str]:
    """It answers its check at first and crashes then: the commit before comes back."""
    commit = scheduler.commit(scheduler.crash(), "a crash")
    done = scheduler.machine.deploy(expect=None)

    def serves() -> bool:
        newest = f"commit = '{scheduler.runs}' and id = (select max(id) from board_jobrun)"
        return scheduler.machine.show("scheduler.service", "ActiveState") == "active" and jobs.count(newest) > 0

    seconds, problems = falling_ill.until_back(scheduler.machine, commit, within, serves)
    return [*falling_ill.said(report, done, seconds), *problems, *jobs.problems(crashed=True)]

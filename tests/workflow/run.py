"""A run of a workflow: its jobs in the order of their needs, the legs of a matrix in parallel, their steps in turn."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import os
import re
import shutil
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from workflow import expressions
from workflow.commands import Annotation, Masker, Output, read_pairs
from workflow.expressions import WorkflowError
from workflow.matrix import Combination, combinations
from workflow.processes import execute, kill_orphans

SUMMARY_LIMIT = 1024 * 1024
SHELLS = {
    "": ["bash", "-e"],
    "bash": ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail"],
    "sh": ["sh", "-e"],
}
ACTOR = "dev"

WORKFLOW_KEYS = {"name", "run-name", "on", "env", "permissions", "concurrency", "defaults", "jobs"}
JOB_KEYS = set(
    "name runs-on needs if env outputs steps strategy environment timeout-minutes continue-on-error "
    "permissions defaults".split()
)
STEP_KEYS = set("name id if run uses with env shell working-directory timeout-minutes continue-on-error".split())
CHECKOUT_KEYS = {"ref", "fetch-depth", "persist-credentials"}


class Unsupported(Exception):
    """The workflow uses something that is not executed here."""


def _supported(where: str, found: Mapping[str, Any], known: set[str]) -> None:
    if unknown := set(found) - known:
        raise Unsupported(f"{where}: {', '.join(sorted(unknown))}")


@dataclasses.dataclass(frozen=True)
class Event:
    """What starts a run."""

    name: str
    sha: str
    branch: str = "main"
    inputs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    payload: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def push(sha: str, branch: str = "main", before: str = "0" * 40) -> Event:
    """A push to (or merge into) a branch that has made `sha` its newest commit."""
    return Event("push", sha, branch, payload={"before": before, "after": sha, "ref": f"refs/heads/{branch}"})


def dispatch(sha: str, branch: str = "main", **inputs: Any) -> Event:
    """Somebody pressed "Run workflow" on a branch whose newest commit was `sha`."""
    return Event("workflow_dispatch", sha, branch, inputs)


@dataclasses.dataclass
class Step:
    """`outcome` is the truth; `conclusion` is "success" also when it failed under continue-on-error."""

    name: str
    outcome: str = "skipped"
    conclusion: str = "skipped"
    outputs: dict[str, str] = dataclasses.field(default_factory=dict)
    exit_code: int | None = None
    started: float = 0.0
    ended: float = 0.0


@dataclasses.dataclass
class Leg:
    """One run of a job: the whole job, or one combination of its matrix."""

    name: str
    job: str
    matrix: Combination
    directory: Path
    conclusion: str = ""  # success, failure, cancelled, skipped: its own, whatever continue-on-error says
    continue_on_error: bool = False
    environment: str = ""
    steps: list[Step] = dataclasses.field(default_factory=list)
    annotations: list[Annotation] = dataclasses.field(default_factory=list)
    outputs: dict[str, str] = dataclasses.field(default_factory=dict)
    dropped: list[str] = dataclasses.field(default_factory=list)  # outputs that GitHub dropped: a secret was in them
    summary: str = ""
    log: str = ""
    unmasked_log: str = ""  # what the steps wrote, before GitHub hid the secrets in it
    started: float = 0.0
    ended: float = 0.0

    @property
    def green(self) -> bool:
        return self.conclusion == "success"

    @property
    def workspace(self) -> Path:
        return self.directory / "work"

    def messages(self, level: str) -> list[str]:
        """The annotations of this level that the steps made (not the runner's own)."""
        return [one.message for one in self.annotations if one.level == level and not one.by_runner]


@dataclasses.dataclass
class Job:
    """`result` is what `needs.X.result` says of it."""

    id: str
    result: str = ""
    legs: list[Leg] = dataclasses.field(default_factory=list)
    outputs: dict[str, str] = dataclasses.field(default_factory=dict)


class Concurrency:
    """The concurrency groups of a repository: one run goes on, one waits, and a newer one takes its place."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running: dict[str, Run] = {}
        self._waiting: dict[str, Run] = {}

    def enter(self, group: str, run: Run, cancel_in_progress: bool) -> bool:
        """Wait for one's turn; False if the run was cancelled or replaced meanwhile."""
        with self._changed:
            self._waiting[group] = run
            self._changed.notify_all()
            if cancel_in_progress and group in self._running:
                self._running[group].cancel()
            while group in self._running and self._waiting.get(group) is run and not run.is_cancelled:
                self._changed.wait(0.1)
            if self._waiting.get(group) is not run:
                return False
            del self._waiting[group]
            if run.is_cancelled:
                return False
            self._running[group] = run
            return True

    def leave(self, group: str) -> None:
        with self._changed:
            del self._running[group]
            self._changed.notify_all()


class Run:
    """One run of a workflow file. `start()`, perhaps `cancel()`, `wait()`; `run_workflow` does it in one."""

    def __init__(
        self,
        file: Path,
        event: Event,
        *,
        workdir: Path,
        repository: str = "",
        secrets: Mapping[str, str] | None = None,
        variables: Mapping[str, str] | None = None,
        environment_secrets: Mapping[str, Mapping[str, str]] | None = None,
        wrap: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
        slug: str = "team/app",
        concurrency: Concurrency | None = None,
        minute: float = 60.0,
        grace: tuple[float, float] = (7.5, 2.5),
        on_line: Callable[[str, str], None] | None = None,
    ) -> None:
        """
        file: the workflow file. repository: what actions/checkout fetches from (a path or a URL).
        workdir: one new directory per run; each leg gets its own workspace, home and temp below it.
        wrap: put before each step's command; it must exec it (`ip netns exec NAME` does).
        environ: added to each step's environment (which does not inherit ours but for PATH).
        minute: seconds in a minute of timeout-minutes; grace: seconds after SIGINT and SIGTERM.
        on_line: called with the leg's name and each (masked) line of its log, from several threads.
        """
        self.file = file
        self.event = event
        self.workdir = workdir
        self.repository = f"file://{repository}" if repository and Path(repository).exists() else repository
        self.secrets = {key: value for key, value in (secrets or {}).items() if value}
        self.variables = dict(variables or {})
        self.environment_secrets = environment_secrets or {}
        self.wrap = list(wrap)
        self.environ = dict(environ or {})
        self.slug = slug
        self.minute = minute
        self.grace = grace
        self.on_line = on_line
        self.id = str(uuid.uuid4().int % 10**10)
        self.workflow = expressions.parse(file)
        self.inputs = self._inputs()
        self.jobs = {name: Job(name) for name in self.workflow["jobs"]}
        self.conclusion = ""
        self.started = self.ended = 0.0
        self.is_killed = False
        self._concurrency = concurrency or Concurrency()
        self._cancelled = threading.Event()
        self._problems: list[BaseException] = []
        self._thread = threading.Thread(target=self._guard, args=(self._go,), daemon=True)
        self._refuse_unsupported()

    # What people and tests use

    def start(self) -> Run:
        self._thread.start()
        return self

    def wait(self, seconds: float | None = None) -> Run:
        """Wait for the end; past `seconds`, and when interrupted, all of the run's processes are killed."""
        try:
            self._thread.join(seconds)
            if self._thread.is_alive():
                raise TimeoutError(f"the run did not end within {seconds} s:\n{self.log}")
        except BaseException:
            self.kill()
            raise
        if self._problems:
            raise self._problems[0]
        return self

    def cancel(self) -> None:
        """What the button "Cancel workflow" does."""
        self._cancelled.set()

    def kill(self) -> None:
        """End everything at once; no step runs any more."""
        self.is_killed = True
        self._cancelled.set()
        if self._thread.is_alive():
            self._thread.join(20)

    @property
    def is_cancelled(self) -> bool:
        return self._cancelled.is_set()

    @property
    def is_over(self) -> bool:
        return bool(self.conclusion)

    @property
    def legs(self) -> list[Leg]:
        return [leg for job in self.jobs.values() for leg in job.legs]

    def leg(self, job: str, **matrix: Any) -> Leg:
        """The leg of this job with these matrix values."""
        found = [leg for leg in self.jobs[job].legs if matrix.items() <= leg.matrix.items()]
        if len(found) != 1:
            raise LookupError(f"{len(found)} legs of {job} have {matrix}")
        return found[0]

    @property
    def summary(self) -> str:
        """The run's summary page, as markdown."""
        return "\n".join(leg.summary for leg in self.legs if leg.summary)

    @property
    def annotations(self) -> list[Annotation]:
        return [annotation for leg in self.legs for annotation in leg.annotations]

    @property
    def log(self) -> str:
        return "".join(f"===== {leg.name}: {leg.conclusion}\n{leg.log}" for leg in self.legs)

    def contexts(self) -> dict[str, Any]:
        """The contexts that are the same in every job."""
        event = self.event
        payload = {**event.payload, "repository": {"full_name": self.slug, "default_branch": "main"}}
        if event.name == "workflow_dispatch":
            payload["inputs"] = {key: _text(value) for key, value in self.inputs.items()}
        owner, _, _ = self.slug.partition("/")
        github = {
            "event_name": event.name, "event": payload, "sha": event.sha, "ref": f"refs/heads/{event.branch}",
            "ref_name": event.branch, "ref_type": "branch", "repository": self.slug, "repository_owner": owner,
            "actor": ACTOR, "triggering_actor": ACTOR, "run_id": self.id, "run_number": "1", "run_attempt": "1",
            "server_url": "https://github.com", "api_url": "https://api.github.com",
            "workflow": self.workflow.get("name", self.file.name),
        }  # fmt: skip
        return {"github": github, "inputs": self.inputs, "vars": self.variables}

    # How it goes

    def _guard(self, function: Callable[..., None], *arguments: Any) -> None:
        try:
            function(*arguments)
        except BaseException as problem:
            self._problems.append(problem)
            self._cancelled.set()

    def _go(self) -> None:
        self.started = time.time()
        try:
            group, cancel_in_progress = self._group()
            if group and not self._concurrency.enter(group, self, cancel_in_progress):
                self.conclusion = "cancelled"
                return
            try:
                self._run_jobs()
            finally:
                if group:
                    self._concurrency.leave(group)
        finally:
            self.ended = time.time()

    def _group(self) -> tuple[str, bool]:
        setting = self.workflow.get("concurrency")
        if setting is None:
            return "", False
        if not isinstance(setting, dict) or "$expression" in setting:
            setting = {"group": setting}
        value = expressions.evaluate(setting, self.contexts(), "success", "value")
        return str(value["group"]), bool(value.get("cancel-in-progress", False))

    def _run_jobs(self) -> None:
        done = {name: threading.Event() for name in self.jobs}

        def run_job(name: str) -> None:
            try:
                for needed in self.needs(name):
                    done[needed].wait()
                if not self._problems:
                    _JobRunner(self, self.jobs[name]).run()
            finally:
                done[name].set()

        _parallel([lambda name=name: self._guard(run_job, name) for name in self.jobs])  # type: ignore[misc]
        results = {job.result for job in self.jobs.values()}
        if "failure" in results:
            self.conclusion = "failure"
        elif self.is_cancelled or "cancelled" in results:
            self.conclusion = "cancelled"
        else:
            self.conclusion = "skipped" if results == {"skipped"} else "success"

    def needs(self, job: str) -> list[str]:
        needs = self.workflow["jobs"][job].get("needs") or []
        return [needs] if isinstance(needs, str) else needs

    def ancestors(self, job: str) -> set[str]:
        direct = self.needs(job)
        return set(direct).union(*(self.ancestors(one) for one in direct))

    # What is checked before

    def _inputs(self) -> dict[str, Any]:
        """The event's inputs with defaults and types, or WorkflowError as GitHub's answer to a wrong one."""
        on = self.workflow["on"]
        on = {on: None} if isinstance(on, str) else on if isinstance(on, dict) else dict.fromkeys(on)
        if self.event.name not in on:
            raise WorkflowError(f"{self.file.name} does not start on {self.event.name}")
        trigger = on[self.event.name] or {}
        if self.event.name == "push" and not any(
            fnmatch.fnmatch(self.event.branch, pattern) for pattern in trigger.get("branches", ["*"])
        ):
            raise WorkflowError(f"{self.file.name} does not start on a push to {self.event.branch}")
        declared = trigger.get("inputs") or {}
        if unknown := set(self.event.inputs) - set(declared):
            raise WorkflowError(f"Unexpected inputs provided: {sorted(unknown)}")
        return {name: _input(name, about or {}, self.event.inputs.get(name)) for name, about in declared.items()}

    def _refuse_unsupported(self) -> None:
        _supported(self.file.name, self.workflow, WORKFLOW_KEYS)
        for name, job in self.workflow["jobs"].items():
            _supported(f"job {name}", job, JOB_KEYS)
            for step in job["steps"]:
                _supported(f"a step of job {name}", step, STEP_KEYS)
                if "uses" in step:
                    if not step["uses"].startswith("actions/checkout@"):
                        raise Unsupported(f"job {name}: uses: {step['uses']}")
                    _supported("actions/checkout", step.get("with") or {}, CHECKOUT_KEYS)


def run_workflow(file: Path, event: Event, *, seconds: float | None = None, **options: Any) -> Run:
    """Run a workflow file to its end (see `Run` for the options)."""
    return Run(file, event, **options).start().wait(seconds)


def _input(name: str, about: Mapping[str, Any], given: Any) -> Any:
    kind = about.get("type", "string")
    value = given if given is not None else about.get("default")
    if value in (None, "") and about.get("required"):
        raise WorkflowError(f"Required input '{name}' not provided")
    if kind == "boolean":
        return value in (True, "true")
    value = "" if value is None else _text(value)
    if kind == "choice" and value not in about["options"]:
        raise WorkflowError(f"Provided value '{value}' for input '{name}' not in the list of allowed values")
    return value


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _parallel(functions: Sequence[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=function, daemon=True) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class _JobRunner:
    """Decides whether a job runs, runs its legs, and makes one result of theirs."""

    def __init__(self, run: Run, job: Job) -> None:
        self.run_ = run
        self.job = job
        self.spec = run.workflow["jobs"][job.id]
        needs = {
            name: {"result": run.jobs[name].result, "outputs": dict(run.jobs[name].outputs)}
            for name in run.needs(job.id)
        }
        self.contexts = {**run.contexts(), "needs": needs}
        self.fail_fast = threading.Event()
        # A job that runs although the run was cancelled before (its `if` says always()) runs to its end.
        self.outlives_cancel = run.is_cancelled

    def run(self) -> None:
        if not expressions.evaluate(self.spec["if"], self.contexts, self._status(), "condition"):
            # What had not begun when the run was cancelled is "cancelled", not "skipped".
            self.job.result = "cancelled" if self.run_.is_cancelled else "skipped"
            return
        runners = self._legs()
        self.job.legs += [runner.leg for runner in runners]
        width = threading.Semaphore(self._strategy("max-parallel") or len(runners) or 1)

        def run_leg(runner: _LegRunner) -> None:
            with width:
                runner.run()
            leg = runner.leg
            self.job.outputs.update(leg.outputs)  # as they end: of equal keys the last one stays
            if leg.conclusion == "failure" and not leg.continue_on_error and self._strategy("fail-fast") is not False:
                self.fail_fast.set()

        _parallel([lambda one=one: self.run_._guard(run_leg, one) for one in runners])  # type: ignore[misc]
        self.job.result = self._result()

    def _status(self) -> str:
        """What success(), failure() and cancelled() look at in a job's `if`: all jobs before it."""
        results = {self.run_.jobs[name].result for name in self.run_.ancestors(self.job.id)}
        if self.run_.is_cancelled:
            return "cancelled"
        if "failure" in results:
            return "failure"
        return "success" if results <= {"success"} else "neither"

    def _strategy(self, key: str) -> Any:
        value = (self.spec.get("strategy") or {}).get(key)
        return expressions.evaluate(value, self.contexts, "success", "value")

    def _legs(self) -> list[_LegRunner]:
        matrix = self._strategy("matrix")
        if matrix is None:
            return [_LegRunner(self, {}, 0, 1)]
        found = combinations(matrix)
        if not found:
            raise WorkflowError(f"job {self.job.id}: the matrix is empty")
        return [_LegRunner(self, one, index, len(found)) for index, one in enumerate(found)]

    def _result(self) -> str:
        # Under continue-on-error a failure counts as success here (actions/runner#1161); being cancelled does not.
        results = {
            "success" if leg.conclusion == "failure" and leg.continue_on_error else leg.conclusion
            for leg in self.job.legs
        }
        return next((one for one in ("failure", "cancelled") if one in results), "success")


class _LegRunner:
    """Runs the steps of one leg in turn, in directories of its own."""

    def __init__(self, job: _JobRunner, matrix: Combination, index: int, total: int) -> None:
        self.job = job
        self.run_ = job.run_
        self.spec = job.spec
        self.status = "success"
        self.timed_out = False
        strategy = {"job-index": index, "job-total": total}
        self.contexts: dict[str, Any] = {**job.contexts, "matrix": matrix, "strategy": strategy}
        self.leg = Leg(self._name(matrix), job.job.id, matrix, self.run_.workdir / f"{job.job.id}-{index}")
        self.secrets = self.run_.secrets
        self.masker = Masker()
        self.env: dict[str, str] = {}
        self.path: list[str] = []
        self.tracking_id = f"github_{uuid.uuid4()}"
        self.deadline = 0.0
        self._log_lock = threading.Lock()

    def _name(self, matrix: Combination) -> str:
        if "name" in self.spec:
            return str(self.evaluate(self.spec["name"], "text"))
        return self.job.job.id + (f" ({', '.join(map(_text, matrix.values()))})" if matrix else "")

    def evaluate(self, tree: Any, form: str = "value", **contexts: Any) -> Any:
        return expressions.evaluate(tree, {**self.contexts, **contexts}, self.status, form)

    def write(self, line: str) -> None:
        masked = self.masker.mask(line)
        with self._log_lock:
            self.leg.unmasked_log += line + "\n"
            self.leg.log += masked + "\n"
        if self.run_.on_line:
            self.run_.on_line(self.leg.name, masked)

    def run(self) -> None:
        leg = self.leg
        if self._stop_reason():
            leg.conclusion = "cancelled"
            return
        leg.started = time.time()
        try:
            self._prepare()
            for spec in self.spec["steps"]:
                self._step(spec)
            self._outputs()
        except WorkflowError as error:  # an expression that cannot be evaluated fails the job
            self.status = "failure"
            self.write(f"##[error]{error}")
            leg.annotations.append(Annotation("error", str(error), by_runner=True))
        finally:
            for name in kill_orphans(self.tracking_id):
                self.write(f"Terminate orphan process: {name}")
            leg.ended = time.time()
            leg.conclusion = self.status

    def _prepare(self) -> None:
        leg = self.leg
        for name in ("work", "temp", "home"):
            (leg.directory / name).mkdir(parents=True)
        # Whoever owns the repository that we clone: it is the caller's own.
        (leg.directory / "gitconfig").write_text("[safe]\n\tdirectory = *\n")
        self.deadline = time.monotonic() + self._seconds(self.spec, 360)
        leg.continue_on_error = bool(self.evaluate(self.spec.get("continue-on-error", False)))
        environment = self.spec.get("environment")
        if isinstance(environment, dict) and "$expression" not in environment:
            environment = environment["name"]
        leg.environment = self.evaluate(environment, "text") if environment is not None else ""
        self.secrets = {**self.run_.secrets, **self.run_.environment_secrets.get(leg.environment, {})}
        for secret in self.secrets.values():
            self.masker.add(secret)
        self.contexts |= {
            "secrets": self.secrets,
            "runner": {
                "os": "Linux",
                "arch": "X64",
                "temp": str(leg.directory / "temp"),
                "environment": "github-hosted",
            },
            "steps": {},
            "env": {},
        }
        self.contexts["github"] = {**self.contexts["github"], "workspace": str(leg.workspace), "job": leg.job}
        for level in (self.run_.workflow, self.spec):
            self.env |= self.evaluate(level.get("env") or {}, "text")
            self.contexts["env"] = self.env

    def _seconds(self, spec: Mapping[str, Any], default: float) -> float:
        return float(self.evaluate(spec.get("timeout-minutes", default))) * self.run_.minute

    def _stop_reason(self) -> str:
        """Why this leg is to end, if it is."""
        cancelled = self.run_.is_cancelled and not self.job.outlives_cancel
        if cancelled or self.run_.is_killed or self.job.fail_fast.is_set():
            return "cancelled"
        return "time" if self.deadline and time.monotonic() > self.deadline else ""

    def _notice_stop(self) -> None:
        reason = self._stop_reason()
        if reason and self.status != "cancelled":
            self.status = "cancelled"
            if reason == "time":
                minutes = self.evaluate(self.spec.get("timeout-minutes", 360))
                message = f"The job has exceeded the maximum execution time of {minutes} minutes"
                self.write(f"##[error]{message}")
                self.leg.annotations.append(Annotation("error", message, by_runner=True))

    # Steps

    def _step(self, spec: Mapping[str, Any]) -> None:
        self._notice_stop()
        step = Step("")
        self.leg.steps.append(step)
        self.contexts["job"] = {"status": self.status}
        output = Output("", self.masker, self.write)
        try:
            env = {**self.env, **self.evaluate(spec.get("env") or {}, "text")}
            step.name = output.step = self._step_name(spec, env)
            if not self.run_.is_killed and self._wanted(spec, env):
                self._run_step(spec, step, env, output)
        except WorkflowError as error:
            step.outcome = "failure"
            output.annotate("error", str(error), by_runner=True)
        self._conclude(spec, step, output)

    def _step_name(self, spec: Mapping[str, Any], env: Mapping[str, str]) -> str:
        if "name" in spec:
            return str(self.evaluate(spec["name"], "text", env=env))
        what = str(self.evaluate(spec.get("uses", spec.get("run")), "text", env=env))
        return "Run " + what.strip().partition("\n")[0]

    def _wanted(self, spec: Mapping[str, Any], env: Mapping[str, str]) -> bool:
        return bool(self.evaluate(spec["if"], "condition", env=env))

    def _run_step(self, spec: Mapping[str, Any], step: Step, env: Mapping[str, str], output: Output) -> None:
        self.write(f"##[group]{step.name}")
        step.started = time.time()
        if "uses" in spec:
            self._checkout(spec, step, output)
        else:
            self._bash(spec, step, env, output)
        step.ended = time.time()

    def _conclude(self, spec: Mapping[str, Any], step: Step, output: Output) -> None:
        step.conclusion = step.outcome
        if step.outcome == "failure" and self.evaluate(spec.get("continue-on-error", False)):
            step.conclusion = "success"
        if step.conclusion == "failure" and self.status == "success":
            self.status = "failure"
        elif step.conclusion == "cancelled":
            self.status = "cancelled"
        self.leg.annotations += output.annotations
        if "id" in spec:
            known = {"outputs": step.outputs, "outcome": step.outcome, "conclusion": step.conclusion}
            self.contexts["steps"] = {**self.contexts["steps"], spec["id"]: known}

    def _bash(self, spec: Mapping[str, Any], step: Step, env: Mapping[str, str], output: Output) -> None:
        temp = self.leg.directory / "temp"
        text = str(self.evaluate(spec["run"], "text", env=env))
        shell = str(self._default(spec, "shell"))
        if shell not in SHELLS:
            raise Unsupported(f"shell: {shell}")
        script = temp / f"{uuid.uuid4()}.sh"
        script.write_text(text)
        files = {name: temp / f"{name.lower()}_{uuid.uuid4()}" for name in ("OUTPUT", "STEP_SUMMARY", "ENV", "PATH")}
        for file in files.values():
            file.touch(mode=0o666)
        limit = time.monotonic() + self._seconds(spec, 360)
        timed_out = False

        def stop() -> bool:
            nonlocal timed_out
            if self.run_.is_killed:
                return True
            timed_out = time.monotonic() > limit
            if timed_out or not self._stop_reason():
                return timed_out
            self._notice_stop()
            return not self._wanted(spec, env)  # a step with always() goes on

        code, stopped = execute(
            [*self.run_.wrap, *SHELLS[shell], str(script)],
            self._environment(env, files),
            self.leg.workspace / str(self._default(spec, "working-directory")),
            output.line,
            stop,
            lambda: (0, 0) if self.run_.is_killed else self.run_.grace,
        )
        step.exit_code = code
        step.outcome = "success" if code == 0 and not output.failed else "failure"
        if stopped and timed_out:
            step.outcome = "failure"
            minutes = self.evaluate(spec["timeout-minutes"])
            output.annotate("error", f"The action '{step.name}' has timed out after {minutes} minutes.", by_runner=True)
        elif stopped:
            step.outcome = "cancelled"
            output.annotate("error", "The operation was canceled.", by_runner=True)
        elif code != 0:
            output.annotate("error", f"Process completed with exit code {code}.", by_runner=True)
        self._file_commands(files, step, output)

    def _default(self, spec: Mapping[str, Any], key: str) -> Any:
        for level in (spec, *((one.get("defaults") or {}).get("run") or {} for one in (self.spec, self.run_.workflow))):
            if key in level:
                return self.evaluate(level[key], "text")
        return ""

    def _environment(self, env: Mapping[str, str], files: Mapping[str, Path]) -> dict[str, str]:
        github = self.contexts["github"]
        names = (
            "sha ref ref_name ref_type repository repository_owner actor triggering_actor run_id run_number "
            "run_attempt server_url api_url workflow event_name workspace job"
        ).split()
        event_file = self.leg.directory / "event.json"
        event_file.write_text(json.dumps(github["event"]))
        return {
            "LANG": "C.UTF-8",
            **self.run_.environ,
            "PATH": ":".join([*self.path, self.run_.environ.get("PATH", os.environ["PATH"])]),
            "HOME": str(self.leg.directory / "home"),
            "CI": "true",
            **env,
            **{f"GITHUB_{name.upper()}": str(github[name]) for name in names},
            **{f"GITHUB_{name}": str(file) for name, file in files.items()},
            "GITHUB_ACTIONS": "true",
            "GITHUB_EVENT_PATH": str(event_file),
            "RUNNER_OS": "Linux",
            "RUNNER_ARCH": "X64",
            "RUNNER_ENVIRONMENT": "github-hosted",
            "RUNNER_TEMP": str(self.leg.directory / "temp"),
            "RUNNER_TRACKING_ID": self.tracking_id,
        }

    def _file_commands(self, files: Mapping[str, Path], step: Step, output: Output) -> None:
        """What the step wrote to $GITHUB_OUTPUT and its like; also that of a step that failed."""
        step.outputs = dict(output.outputs)
        try:
            step.outputs |= read_pairs(files["OUTPUT"].read_text())
            changes = read_pairs(files["ENV"].read_text())
        except ValueError as error:
            step.outcome = "failure"
            output.annotate("error", f"Unable to process file command successfully. {error}", by_runner=True)
            return
        # The runner does not let a step change its own variables.
        self.env |= {key: value for key, value in changes.items() if not re.match("GITHUB_|RUNNER_|NODE_OPTIONS$", key)}
        self.contexts["env"] = self.env
        self.path[:0] = reversed(files["PATH"].read_text().splitlines())
        summary = files["STEP_SUMMARY"].read_text()
        if len(summary.encode()) > SUMMARY_LIMIT:
            output.annotate("error", "$GITHUB_STEP_SUMMARY upload aborted, supports content up to a size of 1024k",
                            by_runner=True)  # fmt: skip
        elif summary:
            self.leg.summary += self.masker.mask(summary)

    def _checkout(self, spec: Mapping[str, Any], step: Step, output: Output) -> None:
        """actions/checkout: this commit (depth 1 unless told), on a local branch, from the caller's repository."""
        options = self.evaluate(spec.get("with") or {}, "text")
        depth = int(options.get("fetch-depth", "1"))
        event = self.run_.event
        commit, branch = options.get("ref") or event.sha, event.branch
        remote = f"refs/remotes/origin/{branch}"
        fetch = ["fetch", "-q", "--no-tags", *([f"--depth={depth}"] if depth else []), "origin"]
        self._empty_workspace()
        try:
            self._git("init", "-q", "-b", branch, ".")
            self._git("remote", "add", "origin", self.run_.repository)
            if depth == 0:
                self._git(*fetch, "+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*")
            self._git(*fetch, f"+{commit}:{remote}")
            self._git("checkout", "-q", "--force", "-B", branch, remote)
            step.outcome = "success"
        except subprocess.CalledProcessError as error:
            step.outcome = "failure"
            output.annotate("error", error.stdout.strip(), by_runner=True)

    def _empty_workspace(self) -> None:
        shutil.rmtree(self.leg.workspace)
        self.leg.workspace.mkdir()

    def _git(self, *arguments: str) -> None:
        env = {
            "PATH": os.environ["PATH"],
            "GIT_CONFIG_GLOBAL": str(self.leg.directory / "gitconfig"),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
        }
        done = subprocess.run(
            ["git", *arguments], cwd=self.leg.workspace, env=env, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120, check=True,
        )  # fmt: skip
        if done.stdout:
            self.write(done.stdout.rstrip("\n"))

    def _outputs(self) -> None:
        """The leg's outputs: an empty one is left out, and one in which a secret occurs is dropped."""
        for name, value in self.evaluate(self.spec.get("outputs") or {}, "text").items():
            if self.masker.mask(value) != value:
                self.leg.dropped.append(name)
                message = f"Skip output '{name}' since it may contain secret."
                self.leg.annotations.append(Annotation("warning", message, by_runner=True))
            elif value:
                self.leg.outputs[name] = value

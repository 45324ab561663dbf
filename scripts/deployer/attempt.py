"""One run: how it begins, what holds while it has the lock, how every ending becomes a result, and who is told."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, Callable

from deployer import (
    draining,
    drift,
    errors,
    files,
    health,
    host,
    installed,
    lock,
    log,
    memory,
    messages,
    metrics,
    migrations,
    mirror,
    releases,
    run,
    services,
    slots,
    switching,
    tools,
)

Result = Mapping[str, Any]  # one JSON object, keys as the contract has them
MESSAGE_WIDTH, MANY_WARNINGS = 1500, 5  # characters of a message or warning
REASON_WIDTH = 60  # characters
RESULT_BYTES = 16_000  # of a result as JSON
Story = Callable[[memory.Progress], memory.Outcome]


@contextlib.contextmanager
def boot_time_limit(request: memory.Request) -> Iterator[None]:
    """At a boot, services start after boot_timeout seconds at the latest, whatever the deploy is doing."""
    left = max(0.0, request.ready_by - time.monotonic())
    timer = threading.Timer(left, log.ready)
    timer.daemon = True
    if request.is_boot:
        log.notify_systemd(f"EXTEND_TIMEOUT_USEC={int((left + 60) * 1e6)}")
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
        log.ready()


def begin(request: memory.Request) -> memory.Progress:
    """Check the root, make what is missing below it, and begin. Raises UsageError."""
    machine = request.machine
    host.must_own(machine)
    for directory in (machine.releases, machine.kept, machine.shared):
        directory.mkdir(exist_ok=True)
    machine.state.mkdir(mode=0o750, exist_ok=True)  # what failed steps printed is not for everybody
    if machine.owns_services:
        log.use_journal()
    log.tag(DEPLOY_TRIGGER=request.trigger)
    run.OWN.update(tools.proxies(machine))
    current = releases.current(machine)
    return memory.Progress(request, current.commit if current else None)


def under_lock(request: memory.Request, story: Story, quiet: bool = False) -> Result:
    """Run a story under the lock, turn its failure into a result, and record that.

    quiet: an `unreachable` is not recorded again (a boot that keeps trying).
    """
    progress = begin(request)

    def while_waiting(waits_for_services: bool) -> None:
        if waits_for_services:  # a push that came first waits for systemd to start services, and systemd for us
            log.ready()

    try:
        with lock.hold(request, while_waiting) as progress.lock:
            outcome = outcome_of(progress, story)
            if quiet and outcome.name == "unreachable":
                result = result_of(progress, outcome)
            else:
                result = result_of(progress, with_warnings(progress, outcome))
                report(progress, result)
            memory.clear_running(request.machine)
            return result
    except errors.Busy as error:
        result = result_of(progress, memory.Outcome("busy", str(error)))
        if request.is_boot:  # whoever else was told, this boot has left no trace
            report(progress, result)
        else:
            log.error(f"busy: {error}")
        return result


def clean_up(progress: memory.Progress) -> None:
    """Remove what no complete run owns."""
    progress.interrupted = memory.end_interrupted(progress.request)
    switching.forget_what_was_not_switched(progress.machine)
    try:
        for service in draining.stop_others(progress.machine):
            log.warning(f"{service} was started by a deploy that was interrupted: it was stopped")
    except errors.DeployError as error:  # what comes next will say so, too, if it matters
        log.warning(str(error))
    releases.remove_incomplete(progress.machine)


def outcome_of(progress: memory.Progress, story: Story) -> memory.Outcome:
    """Clean up and run the story; an expected error becomes an outcome. Raises UsageError, and what stops this."""
    machine = progress.machine
    try:
        clean_up(progress)
        progress.begin()
        return story(progress)
    except errors.UsageError:
        if not progress.interrupted:  # else it is for the next run to put that right
            memory.clear_running(machine)
        raise
    except (errors.DeployError, OSError) as error:
        return failure(progress, error)
    except errors.Terminated as stop:
        if progress.switched:
            log.warning(f"{stop} before the new release was confirmed: the next run does that")
            raise  # and running.json stays: this run was interrupted
        report(progress, result_of(progress, failure(progress, errors.DeployError(str(stop)))))
        memory.clear_running(machine)
        raise


def failure(progress: memory.Progress, error: errors.DeployError | OSError) -> memory.Outcome:
    """The outcome of a story that ended with an expected error; `current` is what it was."""
    machine, name = progress.machine, getattr(error, "outcome", "failed")
    message, detail = str(error), getattr(error, "detail", "")
    if isinstance(error, OSError):
        message = f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
    reason = message
    reports, healthy = what_serves(progress, error)
    if files.disk_full(error):
        message += f"; {machine.root} has {files.free_space(machine.root)}"
    if name != "broken":
        current = releases.current(machine)
        message += f"; {current.short} still runs" if current else "; nothing is deployed here yet"
    return memory.Outcome(name, message, detail, tuple(reports), healthy, reason=reason)


def what_serves(progress: memory.Progress, error: Exception) -> tuple[list[dict[str, str]], bool | None]:
    """The services after a failure, and whether they are well. At boot, or if something is owed, they are settled."""
    machine = progress.machine
    with contextlib.suppress(errors.DeployError, OSError):  # what went wrong first is what counts
        units = slots.units_of(machine, releases.current(machine))
        if isinstance(error, errors.Broken):
            return health.reports_of(units), False
        if progress.request.is_boot or progress.interrupted or memory.read_intent(machine):
            if outcome := switching.settle(progress):
                return [dict(entry) for entry in outcome.services], outcome.healthy
        reports, problem = health.observe(machine, releases.current(machine), units)
        return reports, not problem
    return [], None


def with_warnings(progress: memory.Progress, outcome: memory.Outcome) -> memory.Outcome:
    """Say what setup_machine.py has to bring up to date; of an older release, if the database moved on without it."""
    machine, request = progress.machine, progress.request
    current = releases.current(machine)
    progress.installed = installed.warnings(machine, current)
    with contextlib.suppress(errors.DeployError, OSError):  # told where the services themselves are looked at
        units = slots.units_of(machine, current) if current and machine.owns_services else []
        progress.installed += drift.unread(services.states_of(units))
    for warning in progress.installed:
        log.warning(warning)
    chosen = request.commit or request.force or request.command == "rollback"  # else it is the branch's newest
    if current and outcome.warnings is None and (chosen or not errors.OUTCOMES[outcome.name].is_good):
        return outcome._replace(warnings=told(migrations.schema_ahead(machine, current)))
    return outcome


def told(warning: str) -> tuple[str, ...]:
    if warning:
        log.warning(warning)
    return (warning,) if warning else ()


def result_of(progress: memory.Progress, outcome: memory.Outcome) -> Result:
    """The result as the contract has it."""
    current = releases.current(progress.machine)
    result = {
        "schema": files.SCHEMA,
        "machine": progress.machine.name,
        "roles": list(progress.machine.roles),
        "trigger": progress.request.trigger,
        "outcome": outcome.name,
        "commit": current.commit if current else None,
        "wanted": progress.wanted,
        "previous": progress.previous,
        "release": current.name if current else None,
        "started": progress.started,
        "seconds": round(time.monotonic() - progress.clock, 2),
        "steps": progress.steps,
        "services": list(outcome.services),
        "healthy": outcome.healthy,
        "message": run.clipped(log.printable(" ".join(outcome.message.split())), MESSAGE_WIDTH),
        "reason": "" if errors.OUTCOMES[outcome.name].is_good else brief(outcome.reason or outcome.message),
        "timings": progress.timings(),
    }
    result |= {"detail": run.tail(log.printable(outcome.detail))} if outcome.detail else {}
    result |= {"installed": progress.installed} if progress.installed else {}
    warnings = dict.fromkeys([*progress.warnings, *progress.installed, *(outcome.warnings or ())])
    told_of = [run.clipped(log.printable(warning), MESSAGE_WIDTH) for warning in [*warnings][:MANY_WARNINGS]]
    return bounded({**result, "warnings": told_of} if told_of else result)


def brief(text: str) -> str:
    """What fits into a cell of a table, cut between two words."""
    text = " ".join(log.printable(text).split())
    if len(text) <= REASON_WIDTH:
        return text
    whole = text[: REASON_WIDTH - 3].rpartition(" ")[0] or text[: REASON_WIDTH - 4]
    return f"{whole[: REASON_WIDTH - 4]} ..."


def bounded(result: dict[str, Any]) -> dict[str, Any]:
    """A result that is as large as one may be (push and report pass on many of them): what is long is cut."""
    while len(json.dumps(result)) > RESULT_BYTES and result.get("detail"):
        result["detail"] = result["detail"].partition("\n")[2]
    for step in result["steps"] if len(json.dumps(result)) > RESULT_BYTES else ():
        step["why"] = run.clipped(step["why"], 60)
    return result


def report(progress: memory.Progress, result: Result) -> None:
    """Record a result in state/, and tell it in the log."""
    memory.record(progress.machine, result)
    tell = log.notice if errors.exit_code(result["outcome"]) == 0 else log.error
    is_shown = any(step["result"] == "failed" for step in result["steps"])  # its output was printed as it came
    for line in result.get("detail", "").splitlines() if not is_shown else ():
        tell(f"  | {line}")
    text = f"{result['outcome']}: {result['message']} ({result['seconds']:g} s)"
    tell(text, DEPLOY_OUTCOME=result["outcome"], DEPLOY_COMMIT=result["commit"] or "")
    log.progress(text)
    metrics.tell(progress.machine, result["healthy"], is_new=result["outcome"] == "deployed")


def tell_team(machine: host.Machine, result: Result, also_unchanged: bool = False) -> None:
    """Post what a boot did to DEPLOY_WEBHOOK_URL of shared/.env, and ping; pushes are reported by their workflow.

    The services run by now, and whatever becomes of the message, the boot's outcome stands.
    also_unchanged: something else was told before, and is over.
    """
    if result["outcome"] != "unchanged" or also_unchanged:
        messages.post(machine, boot_message(machine, result), [result])
    if result["trigger"] == "boot":
        if result["outcome"] != "busy":  # another deploy is going on: how that ends, nobody here knows
            messages.ping(machine, errors.OUTCOMES[result["outcome"]].is_good)
        memory.note_told(machine)


def tell_usage_error(request: memory.Request, error: errors.UsageError) -> None:
    """A boot that ends with a usage error (no such branch, say) is read by nobody: keep and tell it as a result."""
    progress = begin(request)
    result = result_of(progress, memory.Outcome("failed", str(error), error.detail))
    memory.record(request.machine, result)
    tell_team(request.machine, result)


def boot_message(machine: host.Machine, result: Result) -> str:
    """`frontend caught up: 3f2a1b8c to 9c8d7e6f, 12 commits behind, 8 s`, or what went wrong."""
    if result["outcome"] != "deployed":
        when = "at boot" if result["trigger"] == "boot" else "in its probation"
        if result["outcome"] == "unchanged":
            when += ", and the repository answers again"
        return f"{machine.name}: {result['outcome']} {when}: {result['message']}"
    behind = mirror.Mirror(machine.mirror, machine.repo, "").count(result["previous"], result["commit"])
    commits = f", {behind} commit{'s' if behind != 1 else ''} behind" if result["previous"] else ""
    span = f"{memory.short(result['previous'])} to {memory.short(result['commit'])}"
    return f"{machine.name} caught up: {span}{commits}, {result['seconds']:.0f} s"

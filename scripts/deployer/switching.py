"""From one release to another: switch, bring the services, confirm, go back; end a switch that was interrupted."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from deployer import (
    config,
    draining,
    drift,
    errors,
    files,
    health,
    host,
    log,
    memory,
    releases,
    replacing,
    run,
    services,
    slots,
)

Release = releases.Release
Reports = tuple[dict[str, str], ...]


def switch_and_confirm(progress: memory.Progress, release: Release, good: Release | None, by: str) -> memory.Outcome:
    """Prove the release where that is possible, switch to it, bring the services and confirm; else go back."""
    machine = progress.machine
    try:
        if machine.owns_services:
            services.test_reloads(release.settings(), host.roles_of(machine, release.settings()))
        was_proved = prove(progress, release)
        progress.stage("switching")
        switch(progress, release, memory.Intent(release.name, good.name if good else "", by))
    except errors.Unhealthy as error:
        return refuse(progress, release, error)
    except (errors.DeployError, OSError):  # nginx's files, or a full disk
        if releases.current(machine) != release:
            memory.clear_intent(machine)
            draining.stop_others(machine)
            if not release.is_good:
                releases.discard(release.path)
        raise
    log.info(f"switched to {release.name}")
    try:
        reports = activate(progress, release, was_proved)
    except (errors.Unhealthy, errors.CommandError) as error:
        log.error(f"{release.short} is not healthy: {error}")
        return go_back(progress, release, good, error)
    draining.leave_others(machine, release)
    commits = f" from {progress.previous[:8]}" if progress.previous else ""
    return memory.Outcome("deployed", f"{release.short} deployed{commits}", services=reports, healthy=True)


def prove(progress: memory.Progress, release: Release) -> bool:
    """Prove the release where that is possible; anew if meanwhile it turned out that a step was still to be run.

    Returns whether it was proved. Raises Unhealthy, and DeployError if that step fails.
    """
    try:
        slot = replacing.prove(progress, release)
    except errors.Unhealthy:
        if not progress.pending.settle():
            raise
        slot = replacing.prove(progress, release)
    else:
        if progress.pending.settle():
            if slot:
                draining.give_up(slot)
            slot = replacing.prove(progress, release)
    if not slot:
        replacing.give_slot(progress, release)
    return bool(slot)


def switch(progress: memory.Progress, release: Release, intent: memory.Intent) -> None:
    """Remember what is intended, then make the release the current one."""
    machine, left = progress.machine, releases.current(progress.machine)
    if left and left != release:
        carry_assets(left, release)
    drift.note(machine, release)
    release.note({"activated": files.now()}, durable=False)  # the sync of the switch makes it so
    memory.write_intent(machine, intent)
    progress.switched = True
    releases.make_current(machine, release)


def activate(progress: memory.Progress, release: Release, was_proved: bool = False) -> Reports:
    """Bring the services of this machine's roles to the current release; what was done with them, once it is healthy.

    was_proved: just now, in its slot. Raises Unhealthy or CommandError.
    """
    machine, settings = progress.machine, release.settings()
    progress.stage("services", waits_for_services=True)
    if not machine.owns_services and config.units_of(host.roles_of(machine, settings))[0]:
        log.info(f"no machine.ini in {machine.root}: services are left alone")
    old = services.own_states(machine, settings)
    log.ready()
    # at a boot systemd starts them by itself from here on: then they run this release already
    states = services.own_states(machine, settings) if progress.request.is_boot else old
    reports = [*replacing.bring(progress, release), *services.bring(machine, settings, states, old)]
    progress.stage("confirming", waits_for_services=True)
    as_proved = was_proved and all(report["action"] in ("none", "stopped") for report in reports)
    health.wait_until_healthy(restarted(machine, release, old)._replace(was_proved=as_proved))
    if wrong := replacing.through_nginx(machine, release):
        raise errors.Unhealthy(wrong)
    # else it would not have returned
    return tuple({**one, "state": "inactive" if one["action"] == "stopped" else "active"} for one in reports)


def refuse(progress: memory.Progress, release: Release, error: errors.DeployError) -> memory.Outcome:
    """The release did not prove well: nothing was switched, and nobody noticed."""
    machine = progress.machine
    run.end_leftovers(run.OWN["DEPLOY_RUN"])  # what a check did not end
    log.error(f"{release.short} is not healthy: {error}")
    memory.remember_bad(machine, release.commit, "unhealthy", str(error))
    if not release.is_good:
        releases.discard(release.path)
    serves = releases.current(machine)
    message = f"{release.short} was not healthy: {error}; {serves.short if serves else 'nothing'} serves on"
    reports = tuple(health.reports_of(slots.units_of(machine, serves)))
    return memory.Outcome("rolled_back", message, error.detail, reports, healthy=True, reason=str(error))


def go_back(
    progress: memory.Progress, release: Release, good: Release | None, error: errors.DeployError
) -> memory.Outcome:
    """The release is unhealthy: serve the good one again and remember the commit as bad. Raises Broken."""
    machine, bad = progress.machine, release.short
    run.end_leftovers(run.OWN["DEPLOY_RUN"])  # what a check did not end
    if not good:
        message = f"{bad} is not healthy and there is no good release to go back to: {error}"
        raise errors.Broken(message, error.detail)
    progress.stage("going back", waits_for_services=True)
    log.warning(f"going back to {good.name}")
    memory.forget_last(machine)  # on a full disk: room for the link; it is written anew
    try:
        if not replacing.prove(progress, good):
            replacing.give_slot(progress, good)
        return_to(progress, good, str(error))
        reports = activate(progress, good)
    except (errors.DeployError, OSError) as second:
        message = f"{bad} is not healthy ({error}), nor is {good.short} any more ({second})"
        raise errors.Broken(message, getattr(second, "detail", "") or error.detail) from None
    memory.remember_bad(machine, release.commit, "unhealthy", str(error))
    memory.clear_intent(machine)
    draining.stop_others(machine)
    releases.discard(release.path)
    message = f"{bad} was not healthy: {error}; {good.short} serves again"
    return memory.Outcome("rolled_back", message, error.detail, reports, healthy=True, reason=str(error))


def return_to(progress: memory.Progress, good: Release, why: str) -> None:
    """Make the good release the current one again; on a full disk without a note of it."""
    try:
        switch(progress, good, memory.Intent(good.name, "", memory.GOING_BACK, why))
    except OSError:
        releases.make_current(progress.machine, good)


def end_interrupted(progress: memory.Progress, current: Release) -> memory.Outcome | None:
    """End the switch that an earlier run has begun and not confirmed; None if there is none. Raises Broken."""
    machine, intent = progress.machine, memory.read_intent(progress.machine)
    if not intent and current.is_good:
        return None
    why = "an earlier deploy was interrupted" if progress.interrupted else "an earlier deploy ended broken"
    log.info(f"{current.short} was switched to but not confirmed: {why}")
    known = {release.name: release for release in releases.all_of(machine)}
    if intent and intent.to != current.name and intent.to in known:  # it was about to be left
        return go_back(progress, current, known[intent.to], errors.Unhealthy(intent.why))
    good = known.get(intent.good) if intent else None
    by = intent.by if intent else "deploy"
    return switch_and_confirm(progress, current, good or releases.good_before(machine, current), by)


def forget_what_was_not_switched(machine: host.Machine) -> None:
    """An intent whose release never became the current one is owed to nobody; nor is one that cannot be read."""
    intent, current = memory.read_intent(machine), releases.current(machine)
    if not intent or (intent.by != memory.GOING_BACK and (not current or intent.to != current.name)):
        memory.clear_intent(machine)


def settle(progress: memory.Progress) -> memory.Outcome | None:
    """There will be no new release: see that the current one serves; None if nothing is deployed.

    If an earlier run has begun to switch, that is ended, and its outcome returned. Raises Broken.
    """
    current = releases.current(progress.machine)
    log.ready()
    if not current:
        return None
    if outcome := end_interrupted(progress, current):
        return outcome
    progress.stage("settling", waits_for_services=True)
    try:
        reports = keep_serving(progress, current)
    except (errors.Unhealthy, errors.CommandError) as error:
        message = f"{current.short} runs but is not healthy: {error}"
        raise errors.Broken(message, error.detail) from None
    return memory.Outcome("unchanged", f"{current.short} already runs, nothing to do", services=reports, healthy=True)


def keep_serving(progress: memory.Progress, current: Release) -> Reports:
    """Start what does not run; if it answers no more, restart it once. Raises Unhealthy or CommandError."""
    machine, settings = progress.machine, current.settings()
    states = services.own_states(machine, settings)
    reports = [*replacing.bring(progress, current), *services.bring(machine, settings, states, None)]
    subject = health.serving(machine, current, slots.units_of(machine, current))
    if any(report["action"] != "none" for report in reports) or progress.request.is_boot:
        health.wait_until_healthy(subject)
    elif health.probe(subject, time.monotonic() + health.PROBE_TIMEOUT).problem:
        # it was good and answers no more: one restart, as a person would try first
        log.warning(f"{current.short} runs but is not healthy: restarting its services")
        reports = restart(progress, current, states)
    if wrong := replacing.through_nginx(machine, current):
        raise errors.Unhealthy(wrong)
    return tuple(reports)


def restart(
    progress: memory.Progress, current: Release, states: Mapping[str, services.UnitState]
) -> list[dict[str, str]]:
    """Start the services of the current release anew; what was done. Raises Unhealthy or CommandError."""
    machine, settings = progress.machine, current.settings()
    if slots.role_of(machine, current):
        replacing.renew(progress, current)
    reports = services.bring(machine, settings, states, states)
    health.wait_until_healthy(restarted(machine, current, states))
    return reports


def restarted(machine: host.Machine, release: Release, states: Mapping[str, services.UnitState]) -> health.Subject:
    """A release whose services must run in other processes now than when they had these states."""
    units = config.units_of(host.roles_of(machine, release.settings()))[0]
    old = {unit: state for unit, state in states.items() if unit in units}
    return health.serving(machine, release, slots.units_of(machine, release), old)


# --- assets


def carry_assets(left: Release, release: Release) -> None:
    """Pages of the release that is left still ask for its assets, and those of earlier ones: link them in."""
    carried: dict[str, float] = {}
    for step in release.settings().steps:
        if step.keep_days:
            carried.update(carry_step(left, release, step))
    if carried and not release.is_good:  # it is new
        release.note({"old_files": carried}, durable=False)  # the sync of the switch makes it so


def carry_step(left: Release, release: Release, step: config.Step) -> dict[str, float]:
    """Returns path -> when it was superseded, for those that are not older than the step's keep_days."""
    known: dict[str, float] = left.meta.get("old_files", {})
    oldest = time.time() - step.keep_days * 86400
    carried = {}
    for path in files_below(left.path, step.provides):
        since, new = known.get(path, time.time()), release.path / path
        if since > oldest and (path in known or not new.exists()):
            # a file may have come in the place of a folder, or a folder in that of a file: what is new counts
            with contextlib.suppress(FileExistsError, NotADirectoryError):
                new.parent.mkdir(parents=True, exist_ok=True)
                files.link_or_copy(left.path / path, new)
                carried[path] = since
    return carried


def files_below(top: Path, folders: Sequence[str]) -> list[str]:
    """All files in these folders, also behind a link that stands for one, as paths relative to `top`."""
    walks = (walk for path in folders for walk in os.walk(top / path))
    return [os.path.relpath(os.path.join(folder, name), top) for folder, _, names in walks for name in names]

"""The new release, made beside the one that runs: check out, link what is shared, run the steps."""

from __future__ import annotations

import contextlib
import os
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from deployer import (
    commands,
    complaints,
    config,
    drift,
    environments,
    errors,
    files,
    host,
    inputs,
    log,
    memory,
    migrations,
    mirror,
    observe,
    pending,
    releases,
    run,
    shapes,
    sharing,
    steps,
    tools,
)

Kept = Sequence[releases.Kept]


def build(progress: memory.Progress, source: mirror.Mirror, commit: mirror.Commit) -> releases.Release:
    """Make the complete release beside the running one. On any failure nothing of it is left."""
    machine, current = progress.machine, releases.current(progress.machine)
    kept = releases.kept_trees(machine)
    around = look_around(machine, commit)
    decisions = steps.decide(commit, machine.roles, around, kept, progress.request.full, machine.shared)
    free = check_space(machine, current, decisions, kept)
    site = commands.Site(machine, commit, releases.new(machine, commit.id))
    index = drift.index_of(machine, site.release)
    with files.removed_on_failure(site.release.path), files.removed_on_failure(index):
        if dropped := tools.dropped_variables(machine):
            log.warning(dropped)
            progress.warnings.append(dropped)
        ahead = f" ({source.count(current.commit, commit.id)} commits ahead of what runs)" if current else ""
        log.info(f"building release {site.release.name}{ahead}")
        progress.stage("checking out")
        source.check_out(commit, site.release.path, index)
        sharing.link(progress, site)
        files.write(site.release.path / "REVISION", commit.id + "\n")
        used = max(0, free - files.free_bytes(machine.root))
        making = Making(site, {}, [], [])
        take_steps(progress, making, decisions)
        about = {"commit": commit.id, "built": files.now(), "trigger": progress.request.trigger, "bytes": used}
        about |= {"branch": source.branch, "places": dict(commit.shape.places)}
        site.release.note({**about, "envs": making.kept, "made_with": tools.lasting(around)})
    return site.release


def look_around(machine: host.Machine, commit: mirror.Commit) -> dict[str, str]:
    """What the results of the commit's steps depend on beside the commit, as it is now.

    Raises DeployError: it cannot be deployed rightly.
    """
    complaints.check(commit, machine.roles)
    names = {name for step in steps.applying(commit, machine.roles) for name in tools.named_by(step)}
    return tools.look(machine, [*names, ".env", "roles"], commit.settings.python)


def check_space(
    machine: host.Machine, current: releases.Release | None, decisions: Sequence[steps.Decision], kept: Kept
) -> int:
    """The free bytes. Raises DeployError if they are fewer than the last release and kept trees took."""
    last = {tree.step: tree.bytes for tree in reversed(kept)}
    sizes = {"the checkout": int(current.meta.get("bytes", 0)) if current else 0}
    sizes |= {decision.step.name: last.get(decision.step.name, 0) for decision in decisions if decision.needed}
    free, needed = files.free_bytes(machine.root), sum(sizes.values())
    if needed > free:
        parts = ", ".join(f"{name} {files.megabytes(size)}" for name, size in sizes.items() if size)
        raise errors.DeployError(
            f"not enough space: {machine.root} has {files.megabytes(free)} free and this needs about"
            f" {files.megabytes(needed)} ({parts}); free some, or lower keep in deploy.ini"
        )
    return free


# --- one step


class Making(NamedTuple):
    """A release that is being made, and what is in it already."""

    site: commands.Site
    made: dict[str, str]  # path that a step has provided -> name of the kept tree behind it
    kept: list[str]  # names of the kept trees and notes that it uses
    unfinished: list[environments.Unfinished]


def take_steps(progress: memory.Progress, making: Making, decisions: Sequence[steps.Decision]) -> None:
    """Run or skip all steps, in their order."""
    try:
        for decision in decisions:
            take_step(progress, making, decision)
        finish(progress, making)
    except Exception:
        with contextlib.suppress(errors.DeployError, OSError):  # what has gone well is kept for the next attempt
            finish(progress, making)
        raise
    finally:  # told to end: nobody waits for them
        for environment in making.unfinished:
            environment.give_up()


def finish(progress: memory.Progress, making: Making) -> None:
    """End what has gone on beside later steps."""
    while making.unfinished:
        progress.stage("compiling")
        making.unfinished.pop().finish()


def take_step(progress: memory.Progress, making: Making, decision: steps.Decision) -> None:
    """Run or skip one step. What asks the database is skipped until the answer has come."""
    if decision.needed:
        progress.pending.settle()
    entry: dict[str, Any] = {"name": decision.step.name}
    progress.steps.append(entry)
    carry_out(progress, making, decision, entry)
    if decision.step.can_be_asked and not decision.needed:
        put_question(progress, making, decision, entry)


def put_question(progress: memory.Progress, making: Making, decision: steps.Decision, entry: dict[str, Any]) -> None:
    """Ask the application whether a step that migrates may be skipped, while something else goes on."""
    question = migrations.Question(making.site, decision.step)

    def settle() -> bool:
        why = question.why()
        if why:
            carry_out(progress, making, decision._replace(needed=True, why=why), entry)
        else:
            entry["why"] = "asked the database: nothing is unapplied"
            log.info(f"{decision.step.name}: skipped, {entry['why']}")
        return bool(why)

    progress.pending.questions.append(pending.Question(question.is_answered_with_yes, settle))


def carry_out(progress: memory.Progress, making: Making, decision: steps.Decision, entry: dict[str, Any]) -> None:
    """Run or skip one step, and enter into the result what was done."""
    step, site, began = decision.step, making.site, time.monotonic()
    entry.update(result="ran", seconds=0.0, why=decision.why)
    progress.stage(f"step {step.name}")
    try:
        for path in step.provides:
            sharing.stay_inside(site.release, site.release.path / path)
        if decision.needed:
            log.notice(f"{step.name}: {decision.why}")
            with sharing.open_to_both(site.machine):
                kept = run_step(making, decision)
            log.info(f"{step.name}: done in {time.monotonic() - began:.1f} s")
        else:
            entry["result"] = "skipped"
            asks = "the database is asked" if step.can_be_asked else "skipped"
            log.info(f"{step.name}: {asks}, {decision.why}")
            kept = take_over(site.release, decision)
        making.made.update(dict.fromkeys(step.provides, kept.name if kept else ""))
        making.kept.extend([kept.name] if kept else [])
    except errors.DeployError as error:
        entry["result"] = "failed"
        if not files.disk_full(error):  # which is not the commit's fault
            memory.remember_bad(site.machine, site.commit.id, "step", f"step {step.name} failed")
        message = f"step {step.name} failed: {error}{errors.last_words(error)}"
        raise errors.DeployError(message, error.detail) from None
    finally:
        entry["seconds"] = round(time.monotonic() - began, 2)


def take_over(release: releases.Release, decision: steps.Decision) -> Path | None:
    if decision.kept and decision.step.provides:
        releases.link_kept(release, decision.step, decision.kept)
    return decision.kept


def run_step(making: Making, decision: steps.Decision) -> Path | None:
    """Run one step in the release; return what now keeps what it provides, or notes that it was done."""
    step, site = decision.step, making.site
    if not decision.fingerprint:
        migrations.check(site, step, run_alone(site, step))
        check_provided(site, step)
        return None
    free = files.free_bytes(site.machine.root)
    with files.removed_on_failure(releases.new_kept(site.machine, step, decision.key)) as path:
        note = releases.Kept(path, step.name, decision.key, decision.fingerprint, {}, [], releases.NOTE, 0)
        if step.makes_venv:
            made = environments.make(site, decision, note, lambda: observe_step(making, step))
            making.unfinished.append(made)
        else:
            seen, left = observe_step(making, step)
            check_provided(site, step)
            use = take_away(site.release, step, path)
            took = 0 if use == releases.NOTE else max(0, free - files.free_bytes(path))
            releases.mark_complete(note._replace(seen=seen, left=left, use=use, bytes=took))
    return path


def run_alone(site: commands.Site, step: config.Step) -> list[commands.Note]:
    """Run a step's command; what it leaves running would go on changing what is kept of it, so it is ended."""
    notes = commands.run_step(site, step)
    if left := run.end_leftovers(run.OWN["DEPLOY_RUN"], run.PATIENCE):
        log.warning(f"  {step.name} left {log.shorten(', '.join(left))} running, which was ended")
    return notes


def check_provided(site: commands.Site, step: config.Step) -> None:
    for path in step.provides:
        if not (site.release.path / path).exists():
            made = f"{shlex.join(step.run)} succeeded but did not make {path}"
            raise errors.DeployError(f"{made}, which [step {step.name}] provides{instead(site, step)}")


def take_away(release: releases.Release, step: config.Step, kept: Path) -> str:
    """Move what a step provides to where it is kept; who may use it there."""
    if not step.provides or leads_outside(release, step):
        return releases.NOTE
    for path in step.provides:
        (kept / path).parent.mkdir(parents=True, exist_ok=True)
        files.move(release.path / path, kept / path)
    releases.link_kept(release, step, kept)
    belongs = [environments.belongs(release, path, kept / path) for path in step.provides]
    return releases.OWN if any(belongs) else releases.ANY


def instead(site: commands.Site, step: config.Step) -> str:
    """What a step has made in the place of what it was to make, and what to write then."""
    top, settings = site.release.path, site.commit.settings
    apart = {"REVISION", *(path.rstrip("/") for path in settings.shared)}
    apart |= {path for other in settings.steps if other.name != step.name for path in other.provides}
    walks = ((folder, [*names, *(name for name in folders if os.path.islink(os.path.join(folder, name)))])
             for folder, folders, names in os.walk(top))  # fmt: skip
    paths = (os.path.relpath(os.path.join(folder, name), top) for folder, names in walks for name in names)
    found = shapes.appeared(paths, site.commit.tree, apart)
    if not found:
        return ", and nothing else: an empty run = in deploy.ini removes that step"
    say = f"write provides = {found[0].rstrip('/')} under [step {step.name}] in deploy.ini"
    return f"; it made {log.shorten(', '.join(found))}: {say}" + ", or another of these" * (len(found) > 1)


def leads_outside(release: releases.Release, step: config.Step) -> bool:
    """npm workspaces: links in node_modules that lead to the release's own packages.

    Such a tree belongs to its release and cannot be kept for others.
    """
    for path in step.provides:
        top = release.path / path
        for entry in [*top.glob("*"), *top.glob("@*/*")] if top.is_dir() else []:
            if entry.is_symlink() and files.way_out(top, entry):
                log.info(f"  {entry.relative_to(release.path)} leads out of {path}: it stays in this release, unshared")
                return True
    return False


# --- what it depends on, and what it leaves


def observe_step(making: Making, step: config.Step) -> tuple[dict[str, str], list[str]]:
    """Run a step; what it was seen to depend on, and what it left in the release without providing it."""
    site, made = making.site, making.made
    if step.migrates:  # the database is asked
        migrations.check(site, step, run_alone(site, step))
        return {}, []
    provided = {path for other in site.commit.settings.steps for path in other.provides}
    beyond = [folder for path in made for folder in observe.folders_used(site.release.path, path)]
    shared = site.commit.settings.shared
    read = [found for path in shared if path != ".env" for found in observe.folders_below(site.release.path, path)]
    with observe.Observer(site.release.path, provided | {*shared}, beyond, read) as observer:
        notes = run_alone(site, step)
    migrations.check(site, step, notes)
    migrated = {inputs.MIGRATED: "yes"} if notes else {}
    values = inputs.View(site.commit, made, site.machine.shared).values(step, observer.seen)
    return {**values, **migrated}, left_by(site, step, observer.seen)


def left_by(site: commands.Site, step: config.Step, seen: observe.Seen | None) -> list[str]:
    """What a step left that it does not provide: releases in which it is skipped would lack it. Raises DeployError."""
    if not seen:
        log.warning(f"  {step.name} could not be observed (see fs.inotify.max_user_watches): it runs for each release")
        return ["what could not be observed"]
    left = [path for path in seen.left if not is_committed(site, path)]
    for path in left:
        if database := files.database_in(site.release.path / path):
            place = database.relative_to(site.release.path)
            raise errors.DeployError(
                f"{place} is a database inside the release and would be lost with it: keep it in {site.machine.shared}:"
                f" add its folder, or {place}, to `shared =` in deploy.ini"
            )
    if left:
        names = log.shorten(", ".join(left))
        log.warning(
            f"  {step.name} leaves {names} in the release and does not provide it, so it runs for each release;"
            f" to keep that, add it to `provides =` of [step {step.name}]"
        )
    return left[:20]


def is_committed(site: commands.Site, path: str) -> bool:
    """Whether a file is as the commit has it: touched, or written with what it held."""
    entry, place = site.commit.tree.get(path), site.release.path / path
    if not entry or place.is_symlink() or not place.is_file():
        return False
    return (mirror.blob_id(place, entry.oid), os.access(place, os.X_OK)) == (entry.oid, entry.mode == "100755")

"""The new release, made beside the one that runs: check out, link shared files, run the steps."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deployer import commands, config, environments, errors, files, host, log, memory, mirror, releases, run, steps

Kept = Sequence[releases.Kept]


def build(progress: memory.Progress, source: mirror.Mirror, commit: mirror.Commit) -> releases.Release:
    """Make the complete release beside the running one. On any failure nothing of it is left."""
    machine, current = progress.machine, releases.current(progress.machine)
    kept = releases.kept_trees(machine)
    decisions = decide(machine, commit, kept, progress.request.full)
    free = check_space(machine, current, decisions, kept)
    site = commands.Site(machine, commit, releases.new(machine, commit.id))
    with files.removed_on_failure(site.release.path):
        ahead = f" ({source.count(current.commit, commit.id)} commits ahead of what runs)" if current else ""
        log.info(f"building release {site.release.name}{ahead}")
        progress.stage("checking out")
        source.check_out(commit, site.release.path)
        link_shared(site)
        files.write(site.release.path / "REVISION", commit.id + "\n")
        used = max(0, free - files.free_bytes(machine.root))
        trees = [take_step(progress, site, decision) for decision in decisions]
        about = {"commit": commit.id, "built": files.now(), "trigger": progress.request.trigger, "bytes": used}
        site.release.note({**about, "envs": [tree.name for tree in trees if tree]})
    return site.release


def decide(machine: host.Machine, commit: mirror.Commit, kept: Kept, full: bool) -> list[steps.Decision]:
    """What is to be done with each step, now that this machine was looked at."""
    names = {name for step in steps.applying(commit, machine.roles) for name in steps.versions_for(step)}
    look = {"python version": lambda: python_version(commit.settings.python), "node version": node_version}
    return steps.decide(commit, machine.roles, {name: look[name]() for name in names}, kept, full)


def python_version(python: str) -> str:
    """Version and processor, e.g. `3.11.2 x86_64`, of the interpreter that makes environments."""
    found = run.which(python)
    if found and os.path.realpath(found) == os.path.realpath(sys.executable):
        return f"{sys.version.split()[0]} {os.uname().machine}"
    code = "import platform as p; print(p.python_version(), p.machine())"
    return run.command([python, "-c", code]).out.strip()


def node_version() -> str:
    return run.command(["node", "--version"]).out.strip()


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


def stay_inside(release: releases.Release, place: Path) -> None:
    """Raise DeployError if a link, say in the commit, leads what is written to this place out of the release."""
    if out := files.way_out(release.path, place):
        name = place.relative_to(release.path)
        raise errors.DeployError(f"{name} leads out of the release, to {out}: remove that link")


def link_shared(site: commands.Site) -> None:
    """Lead the shared paths of a release to shared/, where they survive it."""
    for path in site.commit.settings.shared:
        place, kept_at = site.release.path / path.rstrip("/"), site.machine.shared / path
        stay_inside(site.release, place.parent)
        if place.is_dir() and not place.is_symlink():
            kept_at.mkdir(parents=True, exist_ok=True)
        releases.lead(place, kept_at)


# --- one step


def take_step(progress: memory.Progress, site: commands.Site, decision: steps.Decision) -> Path | None:
    """Run or skip one step; return what the release now uses of it, or that notes that it was done."""
    step, began = decision.step, time.monotonic()
    entry: dict[str, Any] = {"name": step.name, "result": "ran", "seconds": 0.0, "why": decision.why}
    progress.steps.append(entry)
    progress.stage(f"step {step.name}")
    try:
        for path in step.provides:
            stay_inside(site.release, site.release.path / path)
        if not decision.needed:
            entry["result"] = "skipped"
            log.info(f"{step.name}: skipped, {decision.why}")
            return take_over(site.release, decision)
        log.notice(f"{step.name}: {decision.why}")
        kept = run_step(site, decision)
        log.info(f"{step.name}: done in {time.monotonic() - began:.1f} s")
        return kept
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


def run_step(site: commands.Site, decision: steps.Decision) -> Path | None:
    """Run one step in the release; return what now keeps what it provides, or notes that it was done."""
    step, release = decision.step, site.release
    if step.makes_venv and decision.fingerprint:
        return environments.make_venv(site, decision)
    free = files.free_bytes(site.machine.root)
    commands.run_step(site, step)
    for path in step.provides:
        if not (release.path / path).exists():
            made = f"{shlex.join(step.run)} succeeded but did not make {path}"
            raise errors.DeployError(f"{made}, which [step {step.name}] provides")
    if not decision.fingerprint:
        return None
    is_tree = bool(step.provides) and not leads_outside(release, step)
    with files.removed_on_failure(releases.new_kept(site.machine, step, decision.key)) as kept:
        for path in step.provides if is_tree else ():
            (kept / path).parent.mkdir(parents=True, exist_ok=True)
            os.rename(release.path / path, kept / path)
        releases.mark_complete(kept, decision.fingerprint, free, provides=is_tree)
    if is_tree:
        releases.link_kept(release, step, kept)
    return kept


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

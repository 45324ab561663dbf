"""The new release, made beside the one that runs: check out, link shared files, run the steps."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from deployer import config, errors, files, host, log, memory, mirror, releases, run, steps

Kept = Sequence[releases.Kept]
MIGRATE_LOCKED = Path(__file__).with_name("migrate_locked.py")


class Site(NamedTuple):
    """Where a release is being made."""

    machine: host.Machine
    commit: mirror.Commit
    release: releases.Release


def build(progress: memory.Progress, source: mirror.Mirror, commit: mirror.Commit) -> releases.Release:
    """Make the complete release beside the running one. On any failure nothing of it is left."""
    machine, current = progress.machine, releases.current(progress.machine)
    kept = releases.kept_trees(machine)
    decisions = decide(machine, commit, kept, progress.request.full)
    free = check_space(machine, current, decisions, kept)
    site = Site(machine, commit, releases.new(machine, commit.id))
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


def link_shared(site: Site) -> None:
    """Lead the shared paths of a release to shared/, where they survive it."""
    for path in site.commit.settings.shared:
        place, kept_at = site.release.path / path.rstrip("/"), site.machine.shared / path
        stay_inside(site.release, place.parent)
        if place.is_dir() and not place.is_symlink():
            kept_at.mkdir(parents=True, exist_ok=True)
        link(place, kept_at)


def link(place: Path, to: Path) -> None:
    """Put a relative link there, instead of whatever is there."""
    files.remove(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    os.symlink(os.path.relpath(to, place.parent), place)


# --- one step


def take_step(progress: memory.Progress, site: Site, decision: steps.Decision) -> Path | None:
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
        link_kept(release, decision.step, decision.kept)
    return decision.kept


def link_kept(release: releases.Release, step: config.Step, kept: Path) -> None:
    """Let the release's paths lead to the tree that keeps them."""
    for path in step.provides:
        link(release.path / path, kept / path)


def run_step(site: Site, decision: steps.Decision) -> Path | None:
    """Run one step in the release; return what now keeps what it provides, or notes that it was done."""
    step, release = decision.step, site.release
    if step.makes_venv and decision.fingerprint:
        return make_venv(site, decision)
    free = files.free_bytes(site.machine.root)
    run_command(site, step)
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
        link_kept(release, step, kept)
    return kept


def run_command(site: Site, step: config.Step) -> None:
    """Run a step's command in the release; whatever it leaves running after a failure is ended."""
    argv = step.run
    if step.migrates:
        limit = 0.9 * step.timeout  # so that who holds the lock is told before the step's own limit ends it
        argv = migrate_locked(step, "lock", site.machine.name, limit)
    env = variables(site.machine, site.release, site.commit.id)
    try:
        run.command(argv, cwd=site.release.path, env=env, timeout=step.timeout, live=True, shown=shlex.join(step.run))
    except BaseException:
        run.end_leftovers(run.OWN["DEPLOY_RUN"])
        raise


def variables(machine: host.Machine, release: releases.Release, commit: str) -> dict[str, str]:
    """What steps and checks see: shared/.env as the services do, and where they are."""
    env = run.variables()
    with contextlib.suppress(FileNotFoundError):
        path = machine.shared / ".env"
        env.update(files.parse_variables(path.read_text(encoding="utf-8", errors="replace")))
        if any("\0" in value for value in env.values()):
            raise errors.DeployError(f"{path} holds a NUL character: systemd would not read it, either")
    venv = release.path / ".venv"
    if venv.exists():
        env["VIRTUAL_ENV"] = env["UV_PROJECT_ENVIRONMENT"] = str(venv.resolve())
        env["PATH"] = f"{venv.resolve()}/bin:{env['PATH']}"
    env.update(DEPLOY_COMMIT=commit, DEPLOY_ROLE=" ".join(machine.roles), DEPLOY_RELEASE=release.name)
    return env


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


# --- migrations


def migrate_locked(step: config.Step, mode: str, who: str, limit: float) -> tuple[str, ...]:
    """The command that runs the step's own inside migrate_locked.py; limit: seconds to wait for the lock."""
    return (step.run[0], str(MIGRATE_LOCKED), mode, who, f"{limit:g}", *step.run[1:])


def schema_ahead(machine: host.Machine, release: releases.Release) -> str:
    """A sentence about applied migrations that are newer than the release's code; empty if there are none.

    Asks the application itself, for at most 20 seconds; a database that does not answer says nothing.
    """
    step = next((step for step in release.settings().steps if step.migrates), None)
    if not step or not (release.path / "manage.py").exists():
        return ""
    try:
        argv = migrate_locked(step, "ahead", machine.name, 0)
        env = variables(machine, release, release.commit)
        shown = "asking for migrations that are not in this code"
        done = run.command(argv, cwd=release.path, env=env, timeout=20, shown=shown)
    except errors.DeployError:
        return ""
    found = re.findall(r"^AHEAD (.+)$", done.out, re.MULTILINE)
    return f"the database is ahead of {release.short}: {log.shorten(found[-1].replace(' ', ', '))}" if found else ""


# --- virtual environments


def make_venv(site: Site, decision: steps.Decision) -> Path:
    """Make a virtual environment at its final place, from a copy of the nearest one if that helps."""
    if decision.nearest and decision.step.syncs:
        try:
            return fill_venv(site, decision, decision.nearest)
        except errors.CommandError as error:
            if files.disk_full(error):
                raise
            log.warning(f"  the copy could not be used ({error}); building it fresh")
    return fill_venv(site, decision, None)


def fill_venv(site: Site, decision: steps.Decision, nearest: Path | None) -> Path:
    """Make the virtual environment, empty or as a copy of the one in `nearest`, and run the step in it."""
    step, free = decision.step, files.free_bytes(site.machine.root)
    with files.removed_on_failure(releases.new_kept(site.machine, step, decision.key)) as kept:
        venv = kept / ".venv"
        if nearest:
            log.info(f"  starting from a copy of {nearest.name}")
            # a copy, never hard links: installers write into files in place
            run.command(["cp", "-a", "--reflink=auto", str(nearest / ".venv"), str(venv)], timeout=step.timeout)
            relocate_venv(venv, str(nearest / ".venv"), str(venv))
        else:
            pip = [] if "pip" in step.run else ["--without-pip"]
            run.command([site.commit.settings.python, "-m", "venv", *pip, str(venv)], timeout=step.timeout)
        link_kept(site.release, step, kept)
        run_command(site, step)
        compile_venv(venv, few=bool(nearest), timeout=step.timeout)
        releases.mark_complete(kept, decision.fingerprint, free)
    return kept


def compile_venv(venv: Path, few: bool, timeout: float) -> None:
    """Compile it now: services may not write there, and would else compile at every start.

    few: most of it is compiled already; the start of more workers would take longer than that.
    """
    workers = "1" if few else "0"  # 0: one for each processor
    argv = [f"{venv}/bin/python", "-m", "compileall", "-q", "-j", workers, f"{venv}/lib"]
    run.command(argv, timeout=timeout, check=False)


def relocate_venv(venv: Path, old: str, new: str) -> None:
    """Correct the absolute paths that a virtual environment holds of itself."""
    for path in [venv / "pyvenv.cfg", *(venv / "bin").iterdir(), *venv.glob("lib/python*/site-packages/*.pth")]:
        if path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            if old.encode() in data:
                path.write_bytes(data.replace(old.encode(), new.encode()))

"""Virtual environments: made at their final place, from a copy of the nearest one if that helps."""

from __future__ import annotations

from pathlib import Path

from deployer import commands, errors, files, log, releases, run, steps

Site = commands.Site


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
        releases.link_kept(site.release, step, kept)
        commands.run_step(site, step)
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

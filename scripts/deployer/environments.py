"""Virtual environments: made at their final place, from a copy of the nearest one if that helps."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Callable
from urllib.parse import quote

from deployer import commands, errors, files, log, releases, run, steps

Run = Callable[[], tuple[dict[str, str], list[str]]]  # runs the step: what it depends on, and what it left


def make(site: commands.Site, decision: steps.Decision, note: releases.Kept, run_step: Run) -> releases.Kept:
    """Make a virtual environment at its final place, from a copy of the nearest one if that helps."""
    if decision.nearest:
        try:
            return fill(site, decision, note, run_step, decision.nearest)
        except errors.CommandError as error:
            if files.disk_full(error):
                raise
            log.warning(f"  the copy could not be used ({error}); building it fresh")
    return fill(site, decision, note, run_step, None)


def fill(
    site: commands.Site, decision: steps.Decision, note: releases.Kept, run_step: Run, nearest: Path | None
) -> releases.Kept:
    """Make the virtual environment, empty or as a copy of the one in `nearest`, and run the step in it."""
    step, venv = decision.step, note.path / ".venv"
    files.remove(venv)
    if nearest:
        log.info(f"  starting from a copy of {nearest.name}")
        # a copy, never hard links: installers write into files in place
        run.command(["cp", "-a", "--reflink=auto", str(nearest / ".venv"), str(venv)], timeout=step.timeout)
        relocate(venv, str(nearest / ".venv"), str(venv))
        forget_packages_of(venv, site.machine.releases)
    else:
        pip = [] if "pip" in step.run else ["--without-pip"]
        run.command([site.commit.settings.python, "-m", "venv", *pip, str(venv)], timeout=step.timeout)
    releases.link_kept(site.release, step, note.path)
    began = time.time()
    seen, left = run_step()
    if nearest and names_release(venv, site.machine.releases, but=site.release.path):
        raise errors.CommandError("something in it still leads to another release")
    if nearest:
        forget_compiled(venv, began)
    compile_venv(venv, few=bool(nearest), timeout=step.timeout)
    is_own = names_release(venv, site.release.path)
    if is_own:
        log.info("  packages of the repository are in it: it belongs to this release")
    return note._replace(seen=seen, left=left, use=releases.OWN if is_own else releases.ANY)


def compile_venv(venv: Path, few: bool, timeout: float) -> None:
    """Compile it now: services may not write there, and would else compile at every start.

    few: most of it is compiled already; the start of more workers would take longer than that.
    """
    workers = "1" if few else "0"  # 0: one for each processor
    argv = [f"{venv}/bin/python", "-m", "compileall", "-q", "-j", workers, f"{venv}/lib"]
    run.command(argv, timeout=timeout, check=False)


def forget_compiled(venv: Path, since: float) -> None:
    """Remove what was compiled of modules that were replaced since then, as not every installer does.

    Python takes a compiled module for that of a source of the same size and second: `VERSION = "1"`, `VERSION = "2"`.
    """
    for folder, _, names in os.walk(venv / "lib"):
        for name in names:
            path = os.path.join(folder, name)
            if name.endswith(".py") and os.lstat(path).st_ctime > since - 0.1:
                for compiled in Path(folder, "__pycache__").glob(f"{name[:-3]}.*.pyc"):
                    compiled.unlink()


def relocate(venv: Path, old: str, new: str) -> None:
    """Correct the absolute paths that a virtual environment holds of itself."""
    for path in [venv / "pyvenv.cfg", *(venv / "bin").iterdir(), *venv.glob("lib/python*/site-packages/*.pth")]:
        if path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            if old.encode() in data:
                path.write_bytes(data.replace(old.encode(), new.encode()))


# --- what leads into the release that it was made in


def belongs(release: releases.Release, path: str, kept: Path) -> bool:
    """Whether what a step made at a path of a release, and is kept now, can serve no other; environments are mended."""
    if (kept / "pyvenv.cfg").exists():
        relocate(kept, str(release.path / path), str(kept))
        return names_release(kept, release.path)
    # of installed packages it is known: a path in one is where something was built, and nobody looks there again
    found = "" if kept.name == "node_modules" else files.holding(kept, release.name)
    if found:
        log.info(f"  {found} names the release that it was made in: each release has its own")
    return bool(found)


# --- packages that lie in the repository


def site_packages(venv: Path) -> Iterator[Path]:
    yield from venv.glob("lib/python*/site-packages")


def names_release(venv: Path, place: Path, but: Path | None = None) -> bool:
    """Whether packages in it were installed from a folder below `place`: it is imported, or was copied, from there.

    but: a folder below it that does not count.
    """
    for folder in site_packages(venv):
        for pattern in ("*.pth", "*.egg-link", "__editable__*.py", "*.dist-info/direct_url.json"):
            for path in folder.glob(pattern):
                text = path.read_text(encoding="utf-8", errors="replace")
                for form in forms_of(but):
                    text = text.replace(form, "")
                if any(form in text for form in forms_of(place)):
                    return True
    return False


def forms_of(place: Path | None) -> list[str]:
    """How a path is written in such files: as it is, or in a URL, and in both with its links resolved."""
    names = {str(place), os.path.realpath(place)} if place else ()
    return sorted({form for name in names for form in (name, quote(name))})


def forget_packages_of(venv: Path, place: Path) -> None:
    """Remove packages that were installed from a folder below `place`: their version says nothing of their content."""
    for folder in site_packages(venv):
        for about in folder.glob("*.dist-info"):
            url = files_url(about)
            if any(form in url for form in forms_of(place)):
                remove_package(folder, about)


def files_url(about: Path) -> str:
    try:
        return str(json.loads((about / "direct_url.json").read_text(encoding="utf-8")).get("url", ""))
    except (OSError, ValueError):
        return ""


def remove_package(folder: Path, about: Path) -> None:
    """Remove the files that a package's RECORD names (PEP 376)."""
    import csv  # noqa: PLC0415 - rarely needed

    record = about / "RECORD"
    with open(record, newline="", encoding="utf-8") as file:
        rows: Sequence[list[str]] = list(csv.reader(file))
    for row in rows:
        path = folder / row[0]
        if row and not files.way_out(folder.parents[2], path):
            path.unlink(missing_ok=True)
    files.remove(about)

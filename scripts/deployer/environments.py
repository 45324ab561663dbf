"""Virtual environments: made at their final place, beginning with what the nearest one has, if that helps.

A finished environment's files are read-only, so that the next one can begin with links to them: removing one and making
one in its place changes nothing elsewhere, and whoever writes into one in place is refused by the kernel. Such a step
is repeated from nothing, and begins with a copy from then on. So it does where the kernel refuses nothing (root), or
where the file system shares what is the same by itself.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Callable, NamedTuple

from deployer import commands, errors, files, log, releases, run, steps

MANY = 3000  # modules
BLOCK = 4096  # bytes: how much a file takes is a multiple of that
Run = Callable[[], tuple[dict[str, str], list[str]]]  # runs the step: what it depends on, and what it left


class Unfinished(NamedTuple):
    """An environment that can be used already, while its modules are compiled: so later steps need not wait for that.

    Services may not write there, and would else compile at every start.
    """

    kept: releases.Kept
    stays_apart: bool  # no other one may share its files
    compiling: run.Beside | None

    def finish(self) -> None:
        """Have it complete. Raises DeployError; then nothing of it is left."""
        with files.removed_on_failure(self.kept.path):
            if self.compiling:
                self.compiling.wait()
            modules_of(self.kept.path).unlink(missing_ok=True)
            releases.mark_complete(finished(self.kept, self.stays_apart))

    def give_up(self) -> None:
        if self.compiling:
            self.compiling.end()
        files.remove(self.kept.path)


def make(site: commands.Site, decision: steps.Decision, note: releases.Kept, run_step: Run) -> Unfinished:
    """Make a virtual environment at its final place, beginning with what the nearest one has, if that helps."""
    nearest = releases.read_kept(decision.nearest) if decision.nearest else None
    is_refused = False
    if nearest:
        links = bool(nearest.links) and may_link(nearest.path, note.path)
        try:
            return fill(site, decision, note, run_step, Start(nearest, links))._replace(
                stays_apart=nearest.links is False
            )
        except errors.CommandError as error:
            if files.disk_full(error):
                raise
            log.warning(f"  {nearest.path.name} could not be begun with ({error}); building it fresh")
            is_refused = links
    return fill(site, decision, note, run_step, None)._replace(stays_apart=is_refused)


class Start(NamedTuple):
    """What an environment begins with: all that the nearest one has, by links to its files or as a copy."""

    nearest: releases.Kept
    links: bool


def may_link(nearest: Path, place: Path) -> bool:
    """Whether the kernel guards files that are shared, and the file system does not share them by itself."""
    if os.access(nearest / ".venv/pyvenv.cfg", os.W_OK):
        return False
    probe = place / ".probe"
    copied = run.command(["cp", "--reflink=always", str(nearest / ".venv/pyvenv.cfg"), str(probe)], check=False)
    files.remove(probe)
    return copied.code != 0


def finished(kept: releases.Kept, stays_apart: bool) -> releases.Kept:
    """Take the right to write from its files, so that others may share them, unless its step writes into them."""
    took = 0
    for entry in files_of(kept.path / ".venv"):
        with contextlib.suppress(FileNotFoundError):  # Python's own, until it has its name
            about = entry.stat(follow_symlinks=False)
            took += -(-about.st_size // BLOCK) * BLOCK if about.st_nlink == 1 else 0
            if about.st_mode & 0o222 and not stays_apart:
                os.chmod(entry.path, about.st_mode & 0o7555)
    return kept._replace(links=not stays_apart, bytes=took)


def fill(
    site: commands.Site, decision: steps.Decision, note: releases.Kept, run_step: Run, start: Start | None
) -> Unfinished:
    """Make the virtual environment, empty or with what another one has, and run the step in it."""
    step, venv = decision.step, note.path / ".venv"
    files.remove(venv)
    if start:
        begin_with(start, venv, step.timeout)
        forget_packages_of(venv, site.machine.releases)
    else:
        pip = [] if "pip" in step.run else ["--without-pip"]
        run.command([site.commit.settings.python, "-m", "venv", *pip, str(venv)], timeout=step.timeout)
    releases.link_kept(site.release, step, note.path)
    before = look(venv) if start else {}
    seen, left = run_step()
    if start and names_release(venv, site.machine.releases, but=site.release.path):
        raise errors.CommandError("something in it still leads to another release")
    after = look(venv)
    if start and start.links:
        see_untouched(start.nearest, before, after)
    changed = [path for path in after if before.get(path) != after[path]]
    is_own = names_release(venv, site.release.path)
    if is_own:
        log.info("  packages of the repository are in it: it belongs to this release")
    kept = note._replace(seen=seen, left=left, use=releases.OWN if is_own else releases.ANY)
    return Unfinished(kept, False, compile_modules(venv, changed, bool(start), step.timeout))


def begin_with(start: Start, venv: Path, timeout: float) -> None:
    """Give an environment all that another one has. Raises CommandError."""
    old = start.nearest.path / ".venv"
    log.info(f"  starting from {'links to' if start.links else 'a copy of'} {start.nearest.path.name}")
    how = ["--link"] if start.links else ["--reflink=auto"]
    run.command(["cp", "-a", *how, str(old), str(venv)], timeout=timeout)
    relocate(venv, str(old), str(venv))


def files_of(top: str | Path) -> Iterator[os.DirEntry[str]]:
    """The regular files below a folder."""
    with os.scandir(top) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from files_of(entry.path)
            elif entry.is_file(follow_symlinks=False):
                yield entry


class State(NamedTuple):
    """What tells whether a file was replaced, or written into."""

    inode: int
    changed: int  # its ctime, which nobody can set


def look(venv: Path) -> dict[str, State]:
    """The state of each file."""
    found = {}
    for entry in files_of(venv):
        about = entry.stat(follow_symlinks=False)
        found[entry.path] = State(about.st_ino, about.st_ctime_ns)
    return found


def see_untouched(nearest: releases.Kept, before: Mapping[str, State], after: Mapping[str, State]) -> None:
    """See that the step changed no file that it shared: that takes a step that gives itself the right to.

    Raises CommandError; nothing else will begin with the other environment then.
    """
    for path, state in after.items():
        old = before.get(path)
        if old and old.inode == state.inode and old != state:
            releases.distrust(nearest)
            raise errors.CommandError(f"it changed {path}, which is a file of other environments, too")


def modules_of(path: Path) -> Path:
    """The list of the modules that are compiled in an environment that is kept at a path."""
    return path / ".modules"


def compile_modules(venv: Path, changed: Sequence[str], anew: bool, timeout: float) -> run.Beside | None:
    """Begin to compile what is new. Nothing is read or made in those folders that a step is watched in.

    anew: also where something compiled is there. Python takes it for that of a source of the same size and second, and
    not every installer removes it (`VERSION = "1"`, `VERSION = "2"`).
    """
    top = f"{venv}/lib/"
    modules = [path for path in changed if path.startswith(top) and path.endswith(".py") and "\n" not in path]
    if not modules:
        return None
    listed = modules_of(venv.parent)
    listed.write_text("".join(f"{path}\n" for path in modules))
    # for few, the start of more workers would take longer than they spare; 0: one for each processor
    how = [*(["-f"] if anew else []), "-j", "0" if len(modules) > MANY else "1"]
    interpreter = os.path.realpath(venv / "bin/python")
    return run.Beside([interpreter, "-I", "-m", "compileall", "-q", *how, "-i", str(listed)], timeout)


def relocate(venv: Path, old: str, new: str) -> None:
    """Correct the absolute paths that a virtual environment holds of itself."""
    for path in [venv / "pyvenv.cfg", *(venv / "bin").iterdir(), *venv.glob("lib/python*/site-packages/*.pth")]:
        if path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            if old.encode() in data:
                replace(path, data.replace(old.encode(), new.encode()))


def replace(path: Path, data: bytes) -> None:
    """Put another file in the place of one, whose other names keep what they have."""
    mode = path.stat().st_mode & 0o7777
    path.unlink()
    path.write_bytes(data)
    path.chmod(mode)


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
    from urllib.parse import quote  # noqa: PLC0415 - takes a while, and is rarely needed

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

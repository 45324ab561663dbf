"""Complete trees: releases/, what steps have made (kept below envs/), the link `current`, and what nobody needs."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from deployer import config, errors, files, host, log, shapes

MARK = ".release.json"  # of a release, written last
KEPT_MARK = ".complete"  # of a kept tree, written last
LEFT = ".left-"  # before the name of what could not be removed
NAME_TIME, NAME_PATTERN = "%Y%m%dT%H%M%SZ", r"\d{8}T\d{6}Z"


class Release(NamedTuple):
    """One directory below releases/. It is complete if its mark is there."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def meta(self) -> dict[str, Any]:
        return files.read_json(self.path / MARK) or {}

    @property
    def is_complete(self) -> bool:
        return bool(self.meta)

    @property
    def commit(self) -> str:
        return str(self.meta.get("commit", ""))

    @property
    def short(self) -> str:
        """The commit, as people see it."""
        return self.commit[:8]

    @property
    def is_good(self) -> bool:
        """Whether it once was switched to and healthy."""
        return bool(self.meta.get("confirmed"))

    def note(self, facts: Mapping[str, Any], durable: bool = True) -> None:
        """Add to what its mark says."""
        files.write_json(self.path / MARK, {**self.meta, **facts}, durable=durable)

    def mark_good(self) -> None:
        """Note that it serves and is healthy now."""
        self.note({"confirmed": files.now()})

    def settings(self) -> config.Config:
        """The configuration of its commit, with the steps where they were found then. Raises UsageError."""
        path = self.path / "deploy.ini"
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        return shapes.placed(config.parse(text, str(path)), self.meta.get("places", {}))


def current(machine: host.Machine) -> Release | None:
    """The release that `current` leads to."""
    try:
        release = Release(machine.releases / os.path.basename(os.readlink(machine.current)))
    except OSError:
        return None
    return release if release.is_complete else None


def all_of(machine: host.Machine) -> list[Release]:
    """The complete ones, oldest first."""
    found = [Release(path) for path in sorted(machine.releases.glob("[!.]*")) if is_own_name(path.name)]
    return [release for release in found if release.is_complete]


def is_own_name(name: str) -> bool:
    """Whether a release could have that name: a copy that a person made is not ours, neither to count nor to remove."""
    return bool(re.fullmatch(NAME_PATTERN + "-[0-9a-f]{12}", name))


def good_before(machine: host.Machine, release: Release | None) -> Release | None:
    """The newest good release that is older than the given one."""
    good = [other for other in all_of(machine) if other.is_good and (not release or other.name < release.name)]
    return good[-1] if good else None


def good_one(machine: host.Machine, release: Release | None) -> Release | None:
    """What to go back to from the one after this release: itself, if it is good, else the newest good one before."""
    return release if release and release.is_good else good_before(machine, release)


def new(machine: host.Machine, commit: str) -> Release:
    """An empty directory for a release of the commit; names sort in the order of making, whatever the clock does."""
    path = machine.releases / f"{next_time(path.name[:16] for path in machine.releases.iterdir())}-{commit[:12]}"
    path.mkdir(mode=0o755)
    return Release(path)


def next_time(taken: Iterable[str]) -> str:
    """The present time as names have it, or the first one behind all that are taken."""
    newest = max((name for name in taken if re.fullmatch(NAME_PATTERN, name)), default="")
    present = time.strftime(NAME_TIME, time.gmtime())
    if present > newest:
        return present
    import calendar  # noqa: PLC0415 - takes a while, and is rarely needed

    return time.strftime(NAME_TIME, time.gmtime(calendar.timegm(time.strptime(newest, NAME_TIME)) + 1))


def make_current(machine: host.Machine, release: Release) -> None:
    """Make the release the current one: everything on disk first, then one rename."""
    # without this a power cut right after the rename could leave empty files behind a valid link
    files.sync_all(machine.root)
    if release.path.stat().st_dev != machine.root.stat().st_dev:
        files.sync_all(release.path)
    files.replace_link(machine.current, f"releases/{release.name}")


# --- what steps have made


ANY, OWN, NOTE = "any", "own", "note"


class Kept(NamedTuple):
    """What a step has made, below envs/, and of what."""

    path: Path
    step: str
    key: str  # of its fingerprint
    fingerprint: Mapping[str, str]  # what it is known to depend on
    seen: Mapping[str, str]  # what it was observed to depend on beside that
    left: Sequence[str]  # paths that it left in the release without providing them
    use: str  # any release may take it over; only its own one; or it is but a note that the step was done
    bytes: int  # that it took, which tells the next deploy what it needs
    links: bool | None = None  # its files are read-only, and others may share them; None: of a version without that


def kept_trees(machine: host.Machine) -> list[Kept]:
    """All that is complete, the last made first."""
    paths = sorted(machine.kept.iterdir(), key=lambda path: path.name[-16:], reverse=True)
    return [*filter(None, map(read_kept, paths))]


def kept_of(machine: host.Machine, release: Release) -> list[Kept]:
    """What is kept of the steps of a release."""
    return [*filter(None, (read_kept(machine.kept / name) for name in release.meta.get("envs", [])))]


def read_kept(path: Path) -> Kept | None:
    """What is kept there, if it is complete."""
    mark, parts = files.read_json(path / KEPT_MARK), path.name.rsplit("-", 2)
    if not mark or len(parts) != 3:
        return None
    inputs = dict(mark.get("fingerprint") or {}), dict(mark.get("seen") or {}), list(mark.get("left") or [])
    size, links = int(mark.get("bytes", 0)), mark.get("links")
    return Kept(path, parts[0], parts[1], *inputs, str(mark.get("use", NOTE)), size, links)


def new_kept(machine: host.Machine, step: config.Step, key: str) -> Path:
    """An empty directory for what a step makes of inputs with this key."""
    taken = (path.name[-16:] for path in machine.kept.glob(f"{step.name}-*"))
    path = machine.kept / f"{step.name}-{key}-{next_time(taken)}"
    path.mkdir(mode=0o755)
    return path


def mark_complete(kept: Kept) -> None:
    """The last thing written: after a power cut a half-made tree must not look whole."""
    if kept.use != NOTE:
        files.sync_all(kept.path)
    about = {name: getattr(kept, name) for name in ("fingerprint", "seen", "left", "use", "bytes", "links")}
    files.write_json(kept.path / KEPT_MARK, {**about, "made": files.now()})


def distrust(kept: Kept) -> None:
    """Let no other release take over what is kept there, nor begin with it; what leads there already goes on."""
    mark = files.read_json(kept.path / KEPT_MARK) or {}
    files.write_json(kept.path / KEPT_MARK, {**mark, "use": OWN, "fingerprint": {}})


def link_kept(release: Release, step: config.Step, kept: Path) -> None:
    """Let the release's paths lead to the tree that keeps them."""
    for path in step.provides:
        lead(release.path / path, kept / path)


def lead(place: Path, to: Path) -> None:
    """Put a relative link there, instead of whatever is there."""
    files.remove(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    # releases/ or envs/ may themselves be links, to another file system
    os.symlink(os.path.relpath(Path(os.path.realpath(to.parent), to.name), os.path.realpath(place.parent)), place)


# --- removal


def discard(path: Path) -> None:
    """Remove a release or a kept tree, its mark first: half-removed, it must not look complete."""
    try:
        for mark in (MARK, KEPT_MARK):
            (path / mark).unlink(missing_ok=True)
    except PermissionError as error:  # it stays as it is
        log.warning(f"{path} cannot be removed: {error.strerror}; as root: rm -rf {path}")
        return
    remove_or_leave(path)


def remove_or_leave(path: Path) -> None:
    """Remove it; what cannot be removed (it holds files of root, say) is put aside and told once: it is in no way."""
    try:
        files.remove(path)
    except (OSError, errors.DeployError) as error:
        if path.name.startswith(LEFT):
            return
        aside = path.with_name(LEFT + path.name)
        with contextlib.suppress(OSError):
            os.rename(path, aside)
        log.warning(f"{path} cannot be removed ({error}); as root: rm -rf {aside if aside.exists() else path}")


def remove_incomplete(machine: host.Machine) -> None:
    """Remove what no run owns. Under the lock only: then nothing is being made now."""
    serving = os.path.basename(os.readlink(machine.current)) if machine.current.is_symlink() else ""
    for path in machine.releases.iterdir():
        is_ours = is_own_name(path.name) or path.name.startswith(".")
        if is_ours and path.name != serving and not Release(path).is_good:  # never switched to, or given up
            remove_or_leave(path)
    for path in machine.kept.iterdir():
        if not files.read_json(path / KEPT_MARK):
            remove_or_leave(path)
    for directory in (machine.root, machine.state, machine.script.parent):
        for path in directory.glob(".*.tmp-*"):
            files.remove(path)
    for path in machine.releases.glob(f"*/.{MARK}.tmp-*"):
        files.remove(path)
    files.remove(machine.root / "repo.git.new")


def prune(machine: host.Machine, keep: int) -> None:
    """Keep the newest good releases, the current one always, and the kept trees that they use."""
    serving = current(machine)
    good = [release for release in all_of(machine) if release.is_good and release != serving]
    wanted = {*good[-(keep - 1) :]} if keep > 1 else set()
    wanted |= {Release(Path(os.path.realpath(link))) for link in machine.slots.glob("*")}  # may still answer requests
    for release in all_of(machine):
        if release != serving and release not in wanted:
            discard(release.path)
    used = {name for release in all_of(machine) for name in release.meta.get("envs", [])}
    noted: set[str] = set()
    for kept in kept_trees(machine):
        is_last_note = kept.use == NOTE and kept.step not in noted
        noted.add(kept.step)
        if kept.path.name not in used and not is_last_note:
            discard(kept.path)

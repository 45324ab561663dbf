"""What somebody changed by hand in what runs: its files, its units, and settings that nothing that runs has read.

A deploy keeps git's index of the checkout. What that does not know again right before the switch, steps and links
have changed rightly: of that a hash is kept, and what differs later was done by hand.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from deployer import errors, files, host, log, mirror, observe, releases, run, tools

MANY = 1000  # paths whose content is compared; of those beyond, size and time
LARGE = 1_000_000  # bytes; the same
SHOWN = 50  # so many are told
OWN = re.compile(r"\.release\.json|\.\.release\.json\.tmp-.*|\.socket|\.\.socket\.tmp-.*|\.starting-.*")  # of a release


class Found(NamedTuple):
    """One thing that is not as a deploy left it. kind: changed, deleted, added, reload or newer."""

    kind: str
    name: str  # of a file, or a unit


def folder(machine: host.Machine) -> Path:
    return machine.state / "drift"


def index_of(machine: host.Machine, release: releases.Release) -> Path:
    """Where git's index of a release's checkout is kept."""
    folder(machine).mkdir(exist_ok=True)
    return folder(machine) / f"{release.name}.index"


def note(machine: host.Machine, release: releases.Release) -> None:
    """Before a release first serves: keep what in it differs from the commit, rightly."""
    place = folder(machine) / f"{release.name}.json"
    if place.exists() or not index_of(machine, release).exists():
        return
    try:
        files.write_json(place, {"paths": look(machine, release)}, durable=False)
    except (OSError, errors.DeployError) as error:
        log.warning(f"changes by hand in {release.name} will not be told: {error}")


def prune(machine: host.Machine) -> None:
    """Remove what is kept of releases that are gone."""
    names = {release.name for release in releases.all_of(machine)}
    for path in folder(machine).glob("*"):
        if path.stem not in names:
            path.unlink()


def look(machine: host.Machine, release: releases.Release) -> dict[str, str]:
    """What differs from the checkout now: path -> what is there, `+` before that of what is not in the commit.

    Raises GitError.
    """
    tracked, others = differing(machine.mirror, release.path, index_of(machine, release))
    paths = [(path, mark) for mark, names in (("", tracked), ("+", others)) for path in names]
    own = [(path, mark) for path, mark in paths if not OWN.fullmatch(path) and not observe.CACHES.fullmatch(path)]
    return {path: mark + what_is(release.path / path, number < MANY) for number, (path, mark) in enumerate(own)}


def differing(repository: Path, tree: Path, index: Path) -> tuple[list[str], list[str]]:
    """The paths of a checkout with that index that are not as they were then, and what is beside them."""
    common = ["--no-optional-locks", f"--git-dir={repository}", f"--work-tree={tree}"]
    # times and owners alone are no change: a backup that was restored has others
    common += mirror.options_of({"core.bare": "false", "core.trustctime": "false", "core.checkStat": "minimal"})
    diff = ["diff", "--name-only", "--no-renames", "--no-ext-diff", "--ignore-submodules=all", "-z"]

    def paths(query: Sequence[str]) -> list[str]:
        return mirror.git([*common, *query], index=index, cwd=tree, most=mirror.MOST_PATHS).out.split("\0")[:-1]

    changed = run.Background(lambda: paths(diff))  # both walk through the whole tree
    others = paths(["ls-files", "--others", "--directory", "-z"])
    return changed.result(), others


def what_is(path: Path, by_content: bool) -> str:
    """What a path holds, in few characters; nothing, if it is gone."""
    try:
        about = os.lstat(path)
        if stat.S_ISLNK(about.st_mode):
            return f"link to {os.readlink(path)}"
        if not stat.S_ISREG(about.st_mode):
            return "folder"
        mode = "program" if about.st_mode & 0o100 else "file"
        if not by_content or about.st_size > LARGE:
            return f"{mode} {about.st_size} {about.st_mtime_ns}"
        return f"{mode} {hashlib.sha256(path.read_bytes()).hexdigest()[:32]}"
    except OSError:
        return ""


def of_files(machine: host.Machine, release: releases.Release) -> list[Found] | None:
    """The files of a release that somebody has changed, deleted or added; None: nobody knows. Raises GitError."""
    kept = files.read_json(folder(machine) / f"{release.name}.json")
    before = kept.get("paths") if kept else None
    if not isinstance(before, dict):
        return None
    now, carried = look(machine, release), assets(release)
    return [
        Found(kind, path)
        for path in sorted({*before, *now})
        if before.get(path) != now.get(path)
        if (kind := kind_of(before.get(path), now.get(path), release.path / path)) != "added"
        or not path.startswith(carried)
    ]


def assets(release: releases.Release) -> tuple[str, ...]:
    """The folders into which a switch carries assets of other releases, also when one goes back."""
    steps = release.settings().steps
    return tuple(f"{path.rstrip('/')}/" for step in steps if step.keep_days for path in step.provides)


def kind_of(before: str | None, now: str | None, path: Path) -> str:
    """before, now: what differed from the checkout; None: nothing did."""
    if not os.path.lexists(path):
        return "deleted"
    return "added" if before is None and (now or "").startswith("+") else "changed"


def of_units(states: Mapping[str, Mapping[str, str]]) -> list[Found]:
    """The units of which a file was changed and systemd does not know it yet."""
    return [Found("reload", unit) for unit, state in states.items() if state.get("NeedDaemonReload") == "yes"]


def unread(states: Mapping[str, Mapping[str, str]]) -> list[str]:
    """The same for a deploy's warnings: what it starts is what systemd has read, not what the file says."""
    names = ", ".join(found.name for found in of_units(states))
    return [f"{names}: changed since systemd has read it: as root, systemctl daemon-reload"] if names else []


def of_settings(
    machine: host.Machine, release: releases.Release, states: Mapping[str, Mapping[str, str]], deployed: float
) -> list[Found]:
    """shared/.env and machine.ini, if they are newer than what runs, and no deploy has taken them up.

    states: of the services that read them. deployed: when the last deploy began, in seconds since 1970.
    """
    begins = [int(state.get("ActiveEnterTimestampMonotonic") or 0) / 1e6 for state in states.values()]
    oldest = min((time.time() - time.monotonic() + began for began in begins if began), default=0.0)
    made_with = release.meta.get("made_with", {}).get(".env")
    found = []
    if changed_at(machine.shared / ".env") > oldest and made_with not in (None, tools.digest(tools.read_env(machine))):
        found.append(Found("newer", "shared/.env"))
    if int(changed_at(machine.root / "machine.ini")) > max(oldest, deployed):  # as whole seconds, as `deployed` is
        found.append(Found("newer", "machine.ini"))
    return found


def changed_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def in_words(found: Sequence[Found]) -> str:
    """`board/views.py (changed), x.py (added)`."""
    return log.shorten(", ".join(f"{one.name} ({one.kind})" for one in found))

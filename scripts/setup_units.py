"""The units of the machine's roles: installed, enabled, and those of other roles removed."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Sequence
from pathlib import Path

import setup_ground as ground
import setup_old as old
import setup_site as site
import setup_tree as tree
import setup_wanted as wanted
from deployer import carrier
from setup_wanted import HERE, SYSTEM_UNITS, UNITS
from setup_work import Work

DOTENV = "dotenv.py"
DEPLOY_FAILED = "deploy_failed.py"


def make(work: Work) -> None:
    """Install, enable, and remove."""
    tree.library(work, HERE / carrier.PACKAGE / DOTENV)
    tree.library(work, HERE / DEPLOY_FAILED)
    changed = old.prepare_to_move(work) if work.old == "serves" else False
    for path, text in planned(work):
        if path.parent != SYSTEM_UNITS:
            work.directory(path.parent, 0o755, "root", "root")
        changed |= work.install(path, text, source=source_of(work, path))
    missing = []
    for unit in sources(work):
        if not (UNITS / unit).exists():
            name = wanted.named(unit, work.app)
            if ground.call("systemctl", "cat", "--", name, check=False).returncode != 0:
                missing.append(unit)
                work.todo.append(f"{name}: systemd/ has no file {unit} and this machine no such unit: write one")
    own = {wanted.named(unit, work.app) for unit in wanted.units_from_here() if unit not in old.UNITS}
    remove(work, sorted(own - {*names(work)}))
    remove(work, old.UNITS if work.old == "is done with" else ())
    if changed and not work.options.check:
        ground.call("systemctl", "daemon-reload")
    for unit in (name for file in sources(work) if file not in missing for name in wanted.enabled_of(file)):
        enable(work, wanted.named(unit, work.app))


def sources(work: Work) -> list[str]:
    """The unit files that this machine is to have, by their names in the repository."""
    units = wanted.units_of(work.settings, work.options.role)
    old_address = SYSTEM_UNITS / old.ADDRESS_UNIT
    if work.old in ("serves", "ends") or (old_address.exists() and site.lines_below_nginx(f"unix:{old.ADDRESS}")):
        units.append(old.ADDRESS_UNIT)
    return units


def names(work: Work) -> list[str]:
    """The same by their names on this machine."""
    return [wanted.named(unit, work.app) for unit in sources(work)]


def planned(work: Work) -> list[tuple[Path, str]]:
    """What is to be at which place: unit files and their drop-ins."""
    files = []
    for unit in sources(work):
        if (UNITS / unit).exists():
            text = (UNITS / unit).read_text(encoding="utf-8")
            place = SYSTEM_UNITS / wanted.named(unit, work.app)
            folders = wanted.shared_folders(work.settings)
            files.append((place, wanted.render_unit(text, str(work.root), work.user, work.app, folders)))
            if "\nRestartSec=" in text and knows_backoff():
                backoff = (UNITS / "backoff.conf").read_text(encoding="utf-8")
                files.append((place.with_name(f"{place.name}.d") / "backoff.conf", backoff))
    return files


def source_of(work: Work, path: Path) -> Path:
    """The file below systemd/ that a planned file is made from."""
    if path.parent != SYSTEM_UNITS:
        return UNITS / path.name
    return UNITS / next(unit for unit in sources(work) if wanted.named(unit, work.app) == path.name)


@functools.cache
def knows_backoff() -> bool:
    """Whether this systemd can let restart delays grow."""
    version = re.search(r"\d+", ground.call("systemctl", "--version").stdout)
    return version is not None and int(version[0]) >= 254


def remove(work: Work, names: Sequence[str], why: str = "nothing that this machine is for needs it") -> None:
    """Stop and remove units that setup installed; drop-ins that others wrote stay."""
    gone = [SYSTEM_UNITS / name for name in names if (SYSTEM_UNITS / name).exists() and is_ours(work, name)]
    for path in gone:
        work.differs(f"{path}: removed, {why}")
    if gone and not work.options.check:
        # all at once: a socket that is stopped later would start its service again
        instances = [unit for path in gone for unit in wanted.enabled_of(path.name)]
        ground.call("systemctl", "disable", "--now", "--", *instances)
        for path in gone:
            path.unlink()
            work.files.pop(str(path), None)
            remove_drop_ins(work, path.with_name(f"{path.name}.d"))
        ground.call("systemctl", "daemon-reload")


def is_ours(work: Work, name: str) -> bool:
    return name in old.UNITS or work.is_own(SYSTEM_UNITS / name)


def remove_drop_ins(work: Work, folder: Path) -> None:
    for path in (folder / "backoff.conf", folder / "slots.conf"):
        if path.exists() and work.is_own(path):
            path.unlink()
            work.files.pop(str(path), None)
    with contextlib.suppress(OSError):
        folder.rmdir()  # unless others have something there


def enable(work: Work, unit: str) -> None:
    """Have it at boots; timers, and sockets that wait for no deploy, now, too."""
    state = ground.call("systemctl", "is-enabled", "--", unit, check=False).stdout.strip()
    if state in ("disabled", "not-found", ""):
        if work.differs(f"{unit}: enabled"):
            ground.call("systemctl", "enable", "--", unit)
    at_once = unit.endswith((".socket", ".timer")) and "@" not in unit
    if at_once and ground.call("systemctl", "is-active", "--", unit, check=False).returncode != 0:
        if work.differs(f"{unit}: started"):
            ground.call("systemctl", "start", "--", unit)

"""The units of the machine's roles: installed, enabled, and those of other roles removed."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence

import setup_ground as ground
import setup_old as old
import setup_site as site
import setup_tree as tree
import setup_wanted as wanted
from deployer import carrier
from setup_wanted import DOTENV, HERE, SYSTEM_UNITS, UNITS
from setup_work import Work


def make(work: Work) -> None:
    """Install, enable, and remove."""
    tree.library(work, HERE / carrier.PACKAGE / DOTENV.name, DOTENV)
    units = wanted.units_of(work.settings, work.options.role)
    old_address = SYSTEM_UNITS / old.ADDRESS_UNIT
    if work.old in ("serves", "ends") or (old_address.exists() and site.lines_below_nginx(f"unix:{old.ADDRESS}")):
        units.append(old.ADDRESS_UNIT)
    changed = old.prepare_to_move(work) if work.old == "serves" else False
    missing: list[str] = []
    for unit in units:
        if (UNITS / unit).exists():
            text = wanted.render_unit((UNITS / unit).read_text(encoding="utf-8"), str(work.root), work.user)
            changed |= work.file(SYSTEM_UNITS / unit, text, 0o644, "root", "root")
            changed |= backoff(work, unit)
        elif ground.call("systemctl", "cat", "--", unit, check=False).returncode != 0:
            missing.append(unit)
            work.todo.append(f"{unit}: systemd/ has no such file and this machine no such unit: write one")
    remove_units(work, [name for name in wanted.units_from_here() if name not in units and name not in old.UNITS])
    remove_units(work, old.UNITS if work.old == "is done with" else ())
    if changed and not work.options.check:
        ground.call("systemctl", "daemon-reload")
    for unit in (name for file in units if file not in missing for name in wanted.enabled_of(file)):
        enable(work, unit)


def backoff(work: Work, unit: str) -> bool:
    """The drop-in that lets restart delays grow, where systemd knows how."""
    version = re.search(r"\d+", ground.call("systemctl", "--version").stdout)
    restarts = "\nRestartSec=" in (UNITS / unit).read_text(encoding="utf-8")
    if not restarts or not version or int(version[0]) < 254:
        return False
    folder = SYSTEM_UNITS / f"{unit}.d"
    work.directory(folder, 0o755, "root", "root")
    text = (UNITS / "backoff.conf").read_text(encoding="utf-8")
    return work.file(folder / "backoff.conf", text, 0o644, "root", "root")


def remove_units(work: Work, names: Sequence[str]) -> None:
    """Stop and remove units that came from here but belong to roles this machine does not have."""
    gone = [SYSTEM_UNITS / name for name in names if (SYSTEM_UNITS / name).exists()]
    for path in gone:
        work.differs(f"{path}: removed, nothing that this machine is for needs it")
    if gone and not work.options.check:
        # all at once: a socket that is stopped later would start its service again
        ground.call(
            "systemctl", "disable", "--now", "--", *(unit for path in gone for unit in wanted.enabled_of(path.name))
        )
        for path in gone:
            path.unlink()
            shutil.rmtree(path.with_name(f"{path.name}.d"), ignore_errors=True)
        ground.call("systemctl", "daemon-reload")


def enable(work: Work, unit: str) -> None:
    """Have it at boots; timers, and sockets that wait for no deploy, now, too."""
    state = ground.call("systemctl", "is-enabled", "--", unit, check=False).stdout.strip()
    if state in ("disabled", "") or (state == "not-found" and wanted.source_of(unit).exists()):
        if work.differs(f"{unit}: enabled"):
            ground.call("systemctl", "enable", "--", unit)
    at_once = unit.endswith((".socket", ".timer")) and "@" not in unit
    if at_once and ground.call("systemctl", "is-active", "--", unit, check=False).returncode != 0:
        if work.differs(f"{unit}: started"):
            ground.call("systemctl", "start", "--", unit)

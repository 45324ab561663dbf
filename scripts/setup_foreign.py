"""What others have put where setup would: found before anything is touched, and never overwritten unless asked for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import setup_ground as ground
import setup_old as old
import setup_record as record
import setup_sudo as sudo
import setup_units as units
import setup_wanted as wanted
from deployer import config, host, services
from setup_work import Work

OTHER_UNITS = ("/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
OWN_NAMES = "bin deployers releases slots envs shared state repo.git current machine.ini allowed_signers".split()


def check(work: Work) -> None:
    """Raises UsageError, one list, for what --replace would have to be given for. Nothing was touched."""
    refuse_second_root(work)
    lines = list(found(work))
    if work.options.replace:
        return
    if lines and work.options.check:
        for line in lines:
            work.differs(f"not setup's, and in the way (--replace keeps copies): {line}")
    elif lines:
        says = (
            "these are in the way, and not setup's; nothing was touched. --replace keeps a copy of each and says how to"
        )
        raise ground.UsageError(f"{says} go back (docs/migrating.md):", lines)


def refuse_second_root(work: Work) -> None:
    """Raises UsageError for a machine, or a root, that another application has."""
    there = work.record.get("root") or root_of(wanted.named(wanted.STARTUP_UNIT, work.app))
    if there and there != str(work.root) and work.files_are_own():
        remedy = "for a second application add --app NAME; to move this one: --remove first, with --root"
        raise ground.UsageError(f"this machine has {there} already, not {work.root}: {remedy} {there}")
    for path in sorted(wanted.LIBRARY.glob(f"**/{record.NAME}")):
        other = record.read(path)
        if path != work.record_path and other.get("root") == str(work.root):
            asked = f"--app {other['app']}" if other["app"] else "no --app"
            raise ground.UsageError(f"{work.root} is set up with {asked}: name another --root, or say that")
    if ground.exists(work.root) and not ground.is_there(work.root / "machine.ini"):
        strange = [name for name in ground.names_in(work.root) if name not in OWN_NAMES and name != "lost+found"]
        if strange:
            raise ground.UsageError(
                f"{work.root} holds {', '.join(strange[:5])}, which is no root of deploy_machine.py: name another with"
                " --root, such as /srv/site; what runs there goes on"
            )


def root_of(unit: str) -> str:
    """The root for which a unit was installed, where there is no record of it."""
    text = ground.read_text(wanted.SYSTEM_UNITS / unit) or ""
    found = re.search(r"(?m)^WorkingDirectory=(.*)$", text)
    return found[1] if found else ""


def found(work: Work) -> Iterator[str]:
    """Units and the like that are not setup's."""
    for path, text in [*units.planned(work), (sudo.path(work), None)]:
        if is_foreign(work, path, text):
            yield f"{path}{' is a link' if ground.is_link(path) else ''}"
    yield from would_be_stopped(work)
    for name in units.names(work):
        for folder in dict.fromkeys(str(Path(folder).resolve()) for folder in OTHER_UNITS):
            if (Path(folder) / name).exists():
                yield f"{folder}/{name}, of a package, which a unit of that name below {wanted.SYSTEM_UNITS} would hide"


def would_be_stopped(work: Work) -> Iterator[str]:
    """Units of a person's own that deploys here would stop, as their names are those of roles of other machines."""
    settings = host.of_app(work.settings, work.app)
    for unit in services.foreign_units(settings, config.roles_of(work.options.role, settings)):
        path = wanted.SYSTEM_UNITS / unit
        if path.exists() and not work.is_own(path) and not (unit in old.UNITS and work.old):
            states = ground.call("systemctl", "show", "--property=ActiveState,UnitFileState", "--", unit).stdout
            if "=active\n" in states or "=enabled\n" in states:
                yield f"{path}, which deploys would stop: this machine is to have no role with it (add --role)"


def is_foreign(work: Work, path: Path, text: str | None = None) -> bool:
    """Whether something is at that place that setup did not write; what is as setup would write it does not count."""
    if not ground.is_there(path) or work.is_own(path):
        return False
    if text is None:
        return not (ground.read_text(path) or "").startswith(record.WRITTEN)
    return ground.is_link(path) or ground.read_text(path) != text


def replace(work: Work) -> None:
    """With --replace: a copy of what is not setup's, before setup's comes there."""
    for path, text in [*units.planned(work), (sudo.path(work), None)]:
        if is_foreign(work, path, text) and work.differs(f"{path}: a copy is kept, as setup did not write it"):
            copy = record.keep_copy(path)
            unit = path.name if path.parent == wanted.SYSTEM_UNITS else ""
            commands = ["systemctl daemon-reload", f"systemctl restart {unit}"] if unit and "@" not in unit else []
            work.notes.append(record.way_back(path, copy, commands))

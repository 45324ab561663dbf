"""--remove: takes away what setup made, but for shared/; a second run changes nothing."""

from __future__ import annotations

import contextlib
import pwd
import shutil
from pathlib import Path

import setup_ground as ground
import setup_looks as looks
import setup_record as record
import setup_site as site
import setup_units as units
import setup_wanted as wanted
from setup_work import Work

# In the root: all but what the application has kept there.
OF_DEPLOYS = ("current", "slots", "releases", "envs", "deployers", "bin", "state", "repo.git", "machine.ini")


def make(work: Work) -> None:
    """Units first, so that nothing runs; then the rights, the files, the users."""
    names = {Path(path).name for path in work.files if Path(path).parent == wanted.SYSTEM_UNITS}
    names |= {wanted.named(unit, work.app) for unit in wanted.units_from_here()}
    units.remove(work, sorted(name for name in names if work.is_own(wanted.SYSTEM_UNITS / name)), "as --remove says")
    site.remove(work, site.installed(work))
    for path in dict.fromkeys([wanted.sudoers(work.app), *map(Path, sorted(work.files))]):
        if {wanted.SYSTEM_UNITS, looks.NGINX} & {*path.parents}:
            continue
        if ground.exists(path) and work.is_own(path) and work.differs(f"{path}: removed"):
            path.unlink()
        if not work.options.check:
            work.files.pop(str(path), None)
    for name in [*OF_DEPLOYS, "allowed_signers"]:
        path = work.root / name
        if is_set_up(work) and ground.is_there(path) and work.differs(f"{path}: removed"):
            remove_tree(path)
    users(work)
    if ground.exists(work.record_path) and work.differs(f"{work.record_path}: removed"):
        work.record_path.unlink()
    if not work.options.check and work.library.is_dir() and not any(work.library.iterdir()):
        work.library.rmdir()
    if ground.exists(work.root / "shared"):
        work.notes.append(f"{work.root}/shared stays, with what the application keeps there: rm -r {work.root}")


def is_set_up(work: Work) -> bool:
    """Whether the root is one of ours: there was a record of it, or a machine.ini is still there."""
    return work.record.get("root") == str(work.root) or work.root_was_ours


def remove_tree(path: Path) -> None:
    """Remove what lies in a directory of deploy's; a link is only removed itself."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def users(work: Work) -> None:
    """Those that setup has made, unless something runs as them, or another application has them."""
    others = [record.read(path) for path in wanted.LIBRARY.glob(f"**/{record.NAME}") if path != work.record_path]
    for name in (work.user, work.runs_as):
        if not ground.user_exists(name):
            continue
        if name not in work.made_users:
            work.notes.append(f"the user {name} stays, as setup did not make it, or does not know: userdel {name}")
        elif any(name in (other["user"], wanted.runs_as(other["app"])) for other in others):
            work.notes.append(f"the user {name} stays: another application has it")
        elif running := processes_of(name):
            work.notes.append(f"the user {name} stays while process {running[0]} of it runs: end that, run this again")
        elif work.differs(f"user {name}: removed, with its home {pwd.getpwnam(name).pw_dir}"):
            ground.call("userdel", *(["--remove"] if name == work.user else []), name, check=False)
            work.made_users.remove(name)


def processes_of(name: str) -> list[str]:
    """What runs as a user."""
    uid, found = pwd.getpwnam(name).pw_uid, []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if path.stat().st_uid == uid:
                found.append(path.name)
    return found

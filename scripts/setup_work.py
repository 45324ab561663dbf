"""The work on one machine: what the options ask for, and each difference, which is put right or, with --check, told."""

from __future__ import annotations

import argparse
import grp
import os
import pwd
import stat
from pathlib import Path

import setup_ground as ground
import setup_record as record
import setup_wanted as wanted
from deployer import config


class Work:
    """Brings this machine to what the options say; with `check` it only reports."""

    def __init__(self, options: argparse.Namespace, settings: config.Config) -> None:
        self.options = options
        self.settings = settings
        self.root = Path(options.root)
        self.user: str = options.user
        self.app: str = options.app
        self.runs_as = wanted.runs_as(options.app)  # the user of the services
        self.library = wanted.LIBRARY / options.app  # root's: what sshd and the units run for others
        self.record_path = self.library / record.NAME
        self.record = record.read(self.record_path)
        self.made_users: list[str] = list(self.record.get("users", []))
        self.root_was_ours = ground.is_there(self.root / "machine.ini")
        self.files: record.Files = dict(self.record.get("files", {}))
        self.changes = 0
        self.todo: list[str] = []
        self.commands: list[str] = []  # that get what is missing, in their order
        self.found: list[str] = []
        self.notes: list[str] = []
        self.missing: list[str] = []  # programs
        self.server_name = ""
        self.old = ""  # what becomes of a service of version 0.1: see setup_old.py

    @property
    def home(self) -> Path:
        return Path(pwd.getpwnam(self.user).pw_dir if ground.user_exists(self.user) else f"/home/{self.user}")

    def differs(self, what: str) -> bool:
        """Count and tell one difference; return whether it is to be put right now."""
        self.changes += 1
        ground.say(("differs: " if self.options.check else "+ ") + what)
        return not self.options.check

    # -- building blocks

    def file(self, path: Path, text: str, mode: int, owner: str, group: str) -> bool:
        """Give a file this content, mode and owner, at once; return whether its content changed."""
        present = ground.read_text(path)
        if present == text:
            self.ownership(path, mode, owner, group)
        elif self.differs(f"{path}: {'created' if present is None else 'changed'}"):
            ground.replace_file(path, text, mode, owner, group)
        return present != text

    def install(self, path: Path, text: str, mode: int = 0o644, source: Path | None = None) -> bool:
        """A file of root's that setup will know again as its own; return whether its content changed."""
        content, name = (source.read_bytes(), str(source.relative_to(wanted.REPOSITORY))) if source else (b"", "")
        changed = self.file(path, text, mode, "root", "root")
        if not self.options.check:
            self.files[str(path)] = record.entry(text, name, content)
        return changed

    def is_own(self, path: Path) -> bool:
        """Whether setup wrote it, in whatever version."""
        if self.record:
            return str(path) in self.files
        return (ground.read_text(wanted.sudoers(self.app)) or "").startswith(record.WRITTEN)

    def is_recorded(self, path: Path) -> bool:
        """Whether the record has it."""
        return str(path) in self.files

    def files_are_own(self) -> bool:
        """Whether setup was here before, with a record or before there were any."""
        return bool(self.record) or self.is_own(wanted.SYSTEM_UNITS / wanted.STARTUP_UNIT)

    def save_record(self) -> None:
        """Note what is installed now; also if something failed behind that."""
        if self.files and not self.options.check:
            self.directory(self.library, 0o755, "root", "root")
            text = record.shown(self.app, self.root, self.user, self.made_users, self.files)
            self.file(self.record_path, text, 0o644, "root", "root")

    def directory(self, path: Path, mode: int, owner: str, group: str, only_if_missing: bool = False) -> None:
        if ground.exists(path):
            if not only_if_missing:
                self.ownership(path, mode, owner, group)
        elif self.differs(f"{path}/: created"):
            ground.make_directory(path, mode, owner, group)

    def ownership(self, path: Path, mode: int, owner: str, group: str) -> None:
        if not ground.user_exists(owner):
            return  # --check on a machine that is not set up: the missing user is told already
        with ground.reached(path) as descriptor:
            about, place = os.fstat(descriptor), f"/proc/self/fd/{descriptor}"
            if stat.S_IMODE(about.st_mode) != mode and self.differs(f"{path}: mode {mode:o}"):
                os.chmod(place, mode)
            wanted = (pwd.getpwnam(owner).pw_uid, grp.getgrnam(group).gr_gid)
            if (about.st_uid, about.st_gid) != wanted and self.differs(f"{path}: owner {owner}:{group}"):
                os.chown(place, *wanted)

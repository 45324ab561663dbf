"""The tree below the root: its directories, machine.ini, shared/.env, and the script in bin/."""

from __future__ import annotations

import configparser
import io
import os
import re
from pathlib import Path

import setup_ground as ground
import setup_wanted as wanted
from deployer import carrier
from setup_wanted import PYTHON
from setup_work import Work


def make(work: Work) -> None:
    user = work.user
    work.directory(work.root, 0o755, user, user)
    for name in ("bin", "deployers", "releases", "slots", "envs", "shared"):
        work.directory(work.root / name, 0o755, user, user)
    work.directory(work.root / "state", 0o750, user, user)  # what failed steps printed is not for everybody
    for name in wanted.shared_folders(work.settings):
        # deploy's files come to be app's group's, too; what is in data is nobody else's business
        mode = 0o2770 if name == "data" else 0o2775
        work.directory(work.root / "shared" / name, mode, work.runs_as, work.runs_as)
    env = work.root / "shared" / ".env"
    if ground.exists(env):
        with ground.reached(env) as descriptor:
            ground.check_file(env, os.fstat(descriptor))
        work.ownership(env, 0o640, user, work.runs_as)
    else:
        work.file(env, "# Settings of the application: NAME=value, one a line.\n", 0o640, user, work.runs_as)
    if work.options.allowed_signers:
        work.file(work.root / "allowed_signers", work.options.allowed_signers, 0o644, "root", "root")
    if work.options.metrics:  # given by root now: what machine.ini names could be of deploy's choice
        work.directory(Path(work.options.metrics), 0o775, "root", user, only_if_missing=True)
    work.file(work.root / "machine.ini", machine_ini(work), 0o644, "root", "root")
    script(work)


def present(work: Work) -> configparser.ConfigParser:
    """The machine.ini that is there. Raises UsageError."""
    parser = configparser.ConfigParser(interpolation=None, delimiters=("=",), inline_comment_prefixes=(";",))
    path = work.root / "machine.ini"
    try:
        parser.read_string(ground.read_text(path) or "")
    except (configparser.Error, ValueError) as error:
        raise ground.UsageError(f"{path}: {' '.join(str(error).split())}") from None
    return parser


def said(work: Work, key: str) -> str:
    """What machine.ini says, as an earlier run, or a person, has written it. Raises UsageError.

    `deploy` could put another file in its place, and a server_name comes into what nginx reads as root.
    """
    value = present(work).get("machine", key, fallback="")
    if key == "server_name" and not re.fullmatch(wanted.SERVER_NAME, value):
        raise ground.UsageError(f"{work.root}/machine.ini: server_name = {value}: is not a host name")
    return value


def machine_ini(work: Work) -> str:
    """machine.ini with the options' values; what a person added to it stays."""
    parser, options = present(work), work.options
    values = {"name": options.name, "roles": " ".join(options.role), "repo": options.repo, "branch": options.branch}
    values["verify"] = "signatures" if options.allowed_signers else ""
    if not parser.has_section("machine"):
        parser.add_section("machine")
    values |= {"app": work.app, "server_name": work.server_name, "metrics": options.metrics}
    for key, value in values.items():
        if value:
            parser["machine"][key] = value
    text = io.StringIO()
    parser.write(text)
    return text.getvalue().strip() + "\n"


def script(work: Work) -> None:
    """bin/deploy_machine.py, unless one that works is there: deploys keep it up to date themselves."""
    path = work.root / "bin" / carrier.ENTRY
    is_there = ground.is_there(path)
    if is_there and is_whole(path, work.root / carrier.FOLDER) and knows(work, path):
        return
    if work.differs(f"{path}: {'changed' if is_there else 'created'}"):
        files = carrier.own_files(wanted.HERE)
        archive, version = carrier.pack(files), carrier.identity(files)
        words = [str(work.root), str(len(archive)), version]
        # as the user who can write there: root must not follow what deploy may have put in place
        ground.call(PYTHON, "-I", "-c", carrier.program(), *words, user=work.user, stdin=archive)
        ground.replace_link(path, f"../{carrier.FOLDER}/{version}/{carrier.ENTRY}", work.user)


def knows(work: Work, path: Path) -> bool:
    """Whether that version can read what machine.ini says: keys that it does not know would stop it."""
    keys = ["server_name"] if work.app or work.server_name else []
    keys += ["metrics"] if work.options.metrics or said(work, "metrics") else []
    if not keys:
        return True
    target = ground.link_target(path) or ""
    version = work.root / carrier.FOLDER / os.path.basename(os.path.dirname(target))
    text = ground.read_text(version / carrier.PACKAGE / "host.py") or ""
    return bool(target) and all(key in text for key in keys)


def is_whole(path: Path, versions: Path) -> bool:
    """Whether bin/deploy_machine.py leads to a version that has all its files, or is a file of version 0.1.

    Only looked at, never started: it is `deploy`'s, and would run on root's behalf.
    """
    try:
        target = ground.link_target(path)
        if target is None:
            return "\ndef main(" in (ground.read_text(path) or "")
        match = re.fullmatch(rf"\.\./{carrier.FOLDER}/([0-9a-f]{{16}})/{re.escape(carrier.ENTRY)}", target)
        return match is not None and carrier.identity(files_of(versions / match[1])) == match[1]
    except (ground.SetupError, FileNotFoundError, NotADirectoryError):
        return False  # what deploy has put into their place


def files_of(version: Path) -> dict[str, bytes]:
    """What carrier.own_files() finds there, read as root may read it."""
    names = [name for name in ground.names_in(version / carrier.PACKAGE) if name.endswith((".py", ".ini"))]
    files = [carrier.ENTRY, *(f"{carrier.PACKAGE}/{name}" for name in names)]
    return {name: (ground.read_text(version / name) or "").encode() for name in files}


def library(work: Work, source: Path) -> None:
    """A program of ours that is run there for others, who must not be able to change it."""
    if not source.exists():
        raise ground.UsageError(f"{source} is missing: copy the whole of scripts/")
    work.directory(work.library, 0o755, "root", "root")
    work.install(work.library / source.name, source.read_text(encoding="utf-8"), 0o755, source)

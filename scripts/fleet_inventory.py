"""For fleet_status.py and push_all.py: which machines there are (machines.ini), and where: from the environment."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import fleet_answers
import github
import push_deploy
from deployer import errors, files, ini
from fleet_states import ALWAYS, AT_TIMES, Machine

KEYS = {"roles", "on", "silent_days", "behind_minutes"}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Which machines, where they are, and how they are reached."""
    root = github.checked(r"/[^\0\n]*", "an absolute path")
    option = github.checked(r"[A-Za-z]+=[^\n]+", "an ssh option of the form Key=Value")
    host = github.checked(r"[A-Za-z][A-Za-z0-9_-]*=.+", "of the form NAME=HOST")
    add = parser.add_argument
    add("--machine", action="append", default=[], metavar="NAME", help="only this one; repeatable")
    add("--inventory", default="machines.ini", metavar="FILE", help="default: machines.ini")
    add("--host", action="append", default=[], type=host, metavar="NAME=HOST", help="default: $NAME_HOST; repeatable")
    add("--user", help="on all machines; default: $NAME_USER")
    add("--key", metavar="FILE", help="the private key; default: $DEPLOY_SSH_KEY, which holds the key itself")
    add("--known-hosts", metavar="FILE", help="default: $DEPLOY_KNOWN_HOSTS, which holds the host keys themselves")
    add("--root", default="/srv/app", type=root, metavar="DIR", help="on the machines; default: /srv/app")
    add("--ssh-option", action="append", type=option, metavar="K=V", help="for ssh -o; repeatable")


def read(path: Path) -> list[Machine]:
    """The machines of machines.ini. Raises UsageError, which names file and section."""
    try:
        sections = ini.parse(files.read_text(path))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise errors.UsageError(f"{path}: {reason}; name the inventory with --inventory") from None
    except errors.UsageError as error:
        raise errors.UsageError(f"{path}: {error}") from None
    return [read_machine(f"{path}: [{one_line(name)}]", name, section) for name, section in sections.items()]


def read_machine(where: str, name: str, section: Mapping[str, str]) -> Machine:
    if not re.fullmatch("[A-Za-z][A-Za-z0-9_-]{0,63}", name):
        raise errors.UsageError(f"{where}: is no name of a machine: letters, digits, - and _")
    if unknown := sorted(set(section) - KEYS):
        raise errors.UsageError(f"{where} {one_line(unknown[0])}: expected {', '.join(sorted(KEYS))}")
    on = section.get("on", ALWAYS)
    if on not in (ALWAYS, AT_TIMES):
        raise errors.UsageError(f"{where} on = {one_line(on)}: expected {ALWAYS} or {AT_TIMES}")
    usual = Machine(name)
    numbers = {key: number(where, section, key, getattr(usual, key)) for key in ("silent_days", "behind_minutes")}
    return Machine(name, tuple(section.get("roles", "").split()), on, **numbers)


def number(where: str, section: Mapping[str, str], key: str, usual: float) -> float:
    text = section.get(key, "")
    if text and not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,3})?", text, re.ASCII):
        raise errors.UsageError(f"{where} {key} = {one_line(text)}: not a number")
    return float(text) if text else usual


def one_line(text: str) -> str:
    return fleet_answers.words(text, 60)


def chosen(machines: Sequence[Machine], names: Sequence[str]) -> list[Machine]:
    """Those that --machine names, or all. Raises UsageError."""
    known = {machine.name: machine for machine in machines}
    for name in names:
        if name not in known:
            raise errors.UsageError(f"--machine {name}: the inventory has {', '.join(known) or 'no machine'}")
    return [known[name] for name in dict.fromkeys(names)] if names else list(machines)


def targets(machines: Sequence[Machine], options: argparse.Namespace) -> dict[str, push_deploy.Target]:
    """Where the machines are. Raises UsageError."""
    hosts = dict(text.split("=", 1) for text in options.host)
    found = {}
    for machine in machines:
        prefix = github.prefix(machine.name)
        host = hosts.get(machine.name) or os.environ.get(f"{prefix}_HOST", "").strip()
        user = options.user or os.environ.get(f"{prefix}_USER", "").strip()
        if not host or not user:
            missing = f"{prefix}_HOST" if not host else f"{prefix}_USER"
            option = f"--host {machine.name}=HOST" if not host else "--user USER"
            raise errors.UsageError(f"{machine.name}: set {missing} in the environment, or give {option}")
        try:
            found[machine.name] = push_deploy.read_target(machine.name, host, user)
        except push_deploy.PushError as error:
            raise errors.UsageError(f"{machine.name}: {error}") from None
    return found


def text_of(variable: str, path: str | None, option: str) -> str:
    """What a file holds, or else a variable. Raises UsageError."""
    if not path:
        text = os.environ.get(variable, "")
        if not text.strip():
            raise errors.UsageError(f"set {variable} in the environment, or name a file with {option}")
        return text
    try:
        return files.read_text(Path(path))
    except (OSError, UnicodeDecodeError) as error:
        raise errors.UsageError(f"{option} {path}: {getattr(error, 'strerror', None) or 'not UTF-8'}") from None

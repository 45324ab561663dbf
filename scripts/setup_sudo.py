"""The sudoers drop-in: exactly the calls that deploys make as root, and nothing else."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import setup_ground as ground
import setup_old as old
import setup_wanted as wanted
from deployer import services
from setup_work import Work

SUDOERS_HEAD = """\
# Written by setup_machine.py: what a deploy may do as root, and nothing else.
# Nor on root's terminal: `sudo -u {user} ...` of root gets one of its own, into which a program may type what it likes.
Defaults>{user} use_pty
# Deploys have no terminal.
Defaults:{user} !requiretty"""


def sudoers_text(user: str, calls: Sequence[str]) -> str:
    escaped = [re.sub(r"([,:=\\])", r"\\\1", call) for call in calls]
    lines = [f"{user} ALL=(root) NOPASSWD: {call}" for call in escaped]
    return "\n".join([SUDOERS_HEAD.format(user=user), *lines, ""])


def path(work: Work) -> Path:
    """Where it lies."""
    return wanted.sudoers(work.app)


def text_for(work: Work) -> str:
    """Its lines for this machine."""
    calls = wanted.sudo_calls(work.settings, work.options.role, work.app)
    if work.old == "serves":  # what a deploy of version 0.1 asks for
        verbs = ("start", "stop", "restart", "reset-failed")
        before = [" ".join(services.privileged(verb, old.UNITS[1])) for verb in verbs]
        calls = [*calls, *(line for line in before if line not in calls)]
    shared = " ".join(services.share_call(work.root, work.runs_as))
    return sudoers_text(work.user, calls) + f"{work.user} ALL=({work.runs_as}) NOPASSWD: {shared}\n"


def make(work: Work) -> None:
    """Write it, checked: a broken file there could lock everybody out of sudo."""
    text = text_for(work)
    if ground.read_text(path(work)) != text and shutil.which("visudo", path=ground.PATH):
        with tempfile.NamedTemporaryFile("w", suffix=".sudoers") as file:
            file.write(text)
            file.flush()
            ground.call("visudo", "--check", "--quiet", "--file", file.name)
    work.directory(path(work).parent, 0o750, "root", "root", only_if_missing=True)  # sudo is still to be installed
    work.install(path(work), text, 0o440)

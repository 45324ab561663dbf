"""Programs that deploys need, and how to get those that are missing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence

import setup_ground as ground
from deployer import config
from setup_wanted import REPOSITORY
from setup_work import Work

VENV = "python3-venv"
HOW_TO_GET = {
    "git": "apt install git (or: dnf install git)",
    "sudo": "apt install sudo (or: dnf install sudo)",
    "sync": "apt install coreutils",
    "poetry": "apt install pipx && sudo -u {user} pipx install poetry==2.2.1",
    "uv": "apt install pipx && sudo -u {user} pipx install uv",
    "npm": "apt install npm (or: dnf install npm)",
    "node": "apt install nodejs (or: dnf install nodejs)",
    "pnpm": "npm install --global pnpm",
    "yarn": "npm install --global yarn",
    VENV: "apt install python3-venv",
    "nginx": "apt install nginx (or: dnf install nginx)",
    "sshd": "apt install openssh-server (or: dnf install openssh-server)",
}


def needed_programs(settings: config.Config, roles: Sequence[str]) -> list[str]:
    """Programs that the application's steps call, as far as its lock files are here to tell."""
    needed = ["git", "sudo", "sshd"]
    for step in settings.steps:
        paths = [path for path in step.inputs if not set("*?[|") & set(path)]
        if (not step.roles or set(step.roles) & set(roles)) and paths:
            program = VENV if step.run[0] == "pip" else step.run[0]
            if all((REPOSITORY / path).exists() for path in paths) and program in HOW_TO_GET:
                needed.append(program)
    if any("nginx.service" in settings.roles[role].reload for role in roles):
        needed.append("nginx")
    return list(dict.fromkeys(needed))


def has_ensurepip(python: str, path: str) -> bool:
    """Whether this Python, if it is root's, can make a virtual environment with pip; Debian has that apart."""
    program = shutil.which(python, path=path)
    if not program or os.stat(program).st_uid != 0:
        return True  # told elsewhere, or not to be started by root
    return ground.call(program, "-I", "-c", "import ensurepip", check=False).returncode == 0


def name_missing(work: Work) -> None:
    """Name what is missing, each with the command that gets it."""
    path = f"{work.home}/.local/bin:{ground.PATH}"
    for program in work.options.needs:
        if not (has_ensurepip(work.settings.python, path) if program == VENV else shutil.which(program, path=path)):
            work.todo.append(f"{program} is missing: {HOW_TO_GET[program].format(user=work.user)}")

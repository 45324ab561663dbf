"""Programs that deploys need: which are missing, and the commands that get them, in order; with --install-packages run.

All is found at once, before anything needs it: what only a step needs (a virtual environment's pip), too.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Sequence
from typing import NamedTuple

import setup_ground as ground
from deployer import config
from setup_wanted import REPOSITORY
from setup_work import Work

VENV = "python3-venv"
POETRY = "poetry==2.2.1"  # for Python 3.9 and newer
# program: the package of apt's and of dnf's that has it
PACKAGES = {
    "git": ("git", "git"),
    "sudo": ("sudo", "sudo"),
    "sshd": ("openssh-server", "openssh-server"),
    "nginx": ("nginx", "nginx"),
    "node": ("nodejs", "nodejs"),
    "npm": ("npm", "npm"),
    VENV: ("python3-venv", "python3-libs"),
}
OF_NPM = {"pnpm": "pnpm", "yarn": "yarn"}
OF_PYTHON = {"poetry": POETRY, "uv": "uv"}
LOCKS_OF_NPM = ("package-lock.json", "npm-shrinkwrap.json")
PATIENCE = 1800  # seconds for one command


class Command(NamedTuple):
    """One command that gets something: root's, or a user's own."""

    argv: tuple[str, ...]
    user: str = ""

    def __str__(self) -> str:
        words = ["sudo", "-H", "-u", self.user, *self.argv] if self.user else self.argv
        return shlex.join(words)


# --- what is needed


def needed_programs(settings: config.Config, roles: Sequence[str]) -> list[str]:
    """Programs that the application's steps call, as far as its lock files are here to tell."""
    needed = ["git", "sudo", "sshd"]
    for step in settings.steps:
        if not step.roles or set(step.roles) & set(roles):
            program = VENV if step.run[0] == "pip" else step.run[0]
            if {program} & {*PACKAGES, *OF_NPM, *OF_PYTHON} and applies(step):
                needed += ["node", program] if program in ("npm", *OF_NPM) else [program]
    if any("nginx.service" in settings.roles[role].reload for role in roles):
        needed.append("nginx")
    return list(dict.fromkeys(needed))


def applies(step: config.Step) -> bool:
    """Whether the files that a step names are here; which program builds, the lock file says."""
    if step.name == "build" and "run" in step.by_default and not any(is_here(name) for name in LOCKS_OF_NPM):
        return False
    wanted = [path for path in step.inputs if not set("*?[!") & set(path)]
    return bool(wanted) and all(any(map(is_here, path.split("|"))) for path in wanted)


def is_here(path: str) -> bool:
    """Whether the repository has it, in its root or in a folder there."""
    return (REPOSITORY / path).exists() or any(REPOSITORY.glob(f"*/{path}"))


# --- what is missing


def missing(work: Work) -> list[str]:
    """The programs that this machine does not have."""
    path = f"{work.home}/.local/bin:{ground.PATH}"
    return [program for program in work.options.needs if not has(work, program, path)]


def has(work: Work, program: str, path: str) -> bool:
    if program == VENV:
        return has_ensurepip(work.settings.python, path)
    return shutil.which(program, path=path) is not None


def has_ensurepip(python: str, path: str) -> bool:
    """Whether this Python, if it is root's, can make a virtual environment with pip; Debian has that apart."""
    program = shutil.which(python, path=path)
    if not program or os.stat(program).st_uid != 0:
        return True  # told elsewhere, or not to be started by root
    return ground.call(program, "-I", "-c", "import ensurepip", check=False).returncode == 0


def commands(work: Work, programs: Sequence[str]) -> list[Command]:
    """What gets these programs, in the order in which to run it."""
    apt = bool(shutil.which("apt-get", path=ground.PATH)) or not shutil.which("dnf", path=ground.PATH)
    packages = [PACKAGES[program][0 if apt else 1] for program in programs if program in PACKAGES]
    if {*OF_NPM} & {*programs} and not shutil.which("npm", path=ground.PATH):
        packages.append(PACKAGES["npm"][0 if apt else 1])
    of_python = [OF_PYTHON[program] for program in programs if program in OF_PYTHON]
    if of_python and not shutil.which("pipx" if apt else "pip3", path=ground.PATH):
        packages.append("pipx" if apt else "python3-pip")
    found = []
    if packages and apt:
        found.append(Command(("apt-get", "update")))
        found.append(Command(("apt-get", "install", "--yes", "--no-install-recommends", *dict.fromkeys(packages))))
    elif packages:
        found.append(Command(("dnf", "install", "--assumeyes", *dict.fromkeys(packages))))
    of_npm = [OF_NPM[program] for program in programs if program in OF_NPM]
    found += [Command(("npm", "install", "--global", *of_npm))] if of_npm else []
    getter = ("pipx", "install") if apt else ("python3", "-m", "pip", "install", "--user")
    return found + [Command((*getter, name), work.user) for name in of_python]


# --- installed, or told


def install(work: Work, of_users: bool) -> None:
    """With --install-packages: get what is missing; what is installed for the user, once there is that user."""
    programs = missing(work)
    if work.options.install_packages and programs:
        for command in commands(work, programs):
            if bool(command.user) == of_users and work.differs(str(command)):
                argv = command.argv if command.user else ("env", "DEBIAN_FRONTEND=noninteractive", *command.argv)
                ground.call(*argv, user=command.user, timeout=PATIENCE)


def name_missing(work: Work) -> None:
    """Name what is missing still, with all the commands that get it."""
    programs = work.missing = missing(work)
    work.commands += [str(command) for command in commands(work, programs)]
    if "nginx" in programs:
        work.commands.append("setup_machine.py, once more with the same options: it then installs nginx's site")

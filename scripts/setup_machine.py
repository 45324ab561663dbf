#!/usr/bin/env python3
"""Prepare a machine for deploy_machine.py, once; or see what differs from that.

Run as root on the machine, or from a laptop with --ssh: then it carries itself, deploy_machine.py,
the units and your deploy.ini over one ssh connection and uses sudo there.

What it makes, in this order (each only if it is missing or differs; nothing is ever emptied):

  1. the users `deploy` (owns the code, runs the steps) and `app` (runs the services)
  2. the tree below the root, machine.ini, bin/deploy_machine.py, an empty shared/.env
  3. the units of this machine's roles, deploy-on-startup.service and deploy-watch.timer, enabled, root-owned;
     units of other roles are stopped and removed. What serves on a machine of version 0.1 goes on serving
  4. a sudoers drop-in with exactly the calls that deploys need, checked with visudo
  5. for an ssh repository a deploy key and the git host's key; CI's key in authorized_keys, for deploys only
     unless --no-restrict-ci-key says otherwise

Then it looks for what would keep a push, a deploy or a boot from working, or let `deploy` become root (sshd, sudo,
the account, nginx, owners, the git host's key), and names each with the command that mends it.

It installs no packages: what is missing it names. It ends with the lines to paste into the
repository's settings.

Exit codes: 0 done; 1 --check found differences; 2 usage error, nothing was touched; 10 a command
failed (a second run goes on from there); 69 the machine does not answer.

It needs Python 3.9 or newer and, beside it, the rest of scripts/ and ../systemd/.
Run it from a checkout of your own, not from a release on the machine: that belongs to `deploy`.
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 9):
    sys.stderr.write(
        "setup_machine.py needs Python 3.9 or newer, but %s is %d.%d: install a newer python3\n"
        % (sys.executable, sys.version_info[0], sys.version_info[1])
    )
    raise SystemExit(2)

import argparse
import configparser
import contextlib
import grp
import io
import os
import pwd
import re
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import setup_ground as ground
import setup_looks as looks
from deployer import carrier, config, errors, host, services

EXIT_DIFFERS = 1
EXIT_OFFLINE = 69

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
UNITS = REPOSITORY / "systemd"
STARTUP_UNIT = "deploy-on-startup.service"
WATCH_UNITS = ("deploy-watch.service", "deploy-watch.timer")
# How version 0.1 ran the web application, where nginx found it, and how that is called once a slot has its name.
OLD_UNITS = ("gunicorn.socket", "gunicorn.service")
OLD_ADDRESS = Path("/run/gunicorn.sock")
OLD_SOCKET = Path("/run/gunicorn-old.sock")
OLD_ADDRESS_UNIT = "gunicorn-old-address.service"
OLD_SOCKET_LINES = """\
# A deploy finds it as it finds the socket of a slot, also after a boot.
[Socket]
Symlinks={socket}
SocketGroup={user}
SocketMode=0660
"""
OLD_SERVICE_LINES = """\
# A release that version 0.1 deploys in between leads to the socket, too, as one in a slot leads to its slot's.
[Service]
ExecStartPre=-+/usr/bin/setpriv --reuid={user} --regid={user} --clear-groups ln -sT {socket} {link}
"""
SYSTEM_UNITS = Path("/etc/systemd/system")
SUDOERS = Path("/etc/sudoers.d/deploy-machine")
SUDOERS_HEAD = """\
# Written by setup_machine.py: what a deploy may do as root, and nothing else.
# Nor on root's terminal: `sudo -u {user} ...` of root gets one of its own, into which a program may type what it likes.
Defaults>{user} use_pty
# Deploys have no terminal.
Defaults:{user} !requiretty"""
APP_USER = "app"
LIBRARY = Path("/usr/local/lib/deploy-machine")  # root's: what sshd and the units run for others
RESTRICTED_PUSH = LIBRARY / "restricted_push.py"
DOTENV = LIBRARY / "dotenv.py"
PYTHON = "/usr/bin/python3"  # what the units use
TAKE_ARCHIVE = (
    """sh -c 'umask 077; at=$(mktemp -d /tmp/setup-machine.XXXXXX) && cat > $at/archive && echo $at/archive'"""
)
ARCHIVE = r"/tmp/setup-machine\.\w+/archive"

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


# --- what a machine of these roles should have ---------------------------------------------------


def read_config() -> config.Config:
    """The application's deploy.ini, if it lies in the directory above scripts/, over the defaults."""
    path = REPOSITORY / "deploy.ini"
    try:
        return config.parse(path.read_text(encoding="utf-8") if path.exists() else "", str(path))
    except errors.UsageError as error:
        raise ground.UsageError(str(error)) from None


def check_users(names: Sequence[str]) -> None:
    """Raises UsageError for a user that is there already, and not as it must be."""
    for name in names:
        if ground.user_exists(name):
            about, members = pwd.getpwnam(name), ground.members_of(name)
            if about.pw_uid == 0:
                raise ground.UsageError(f"{name} is root, by another name: deploys and services must not be")
            if members is None:
                mend = f"groupadd {name} && usermod --append --groups {name} {name}"
                raise ground.UsageError(f"the user {name} is there, but no group of that name: {mend}")
            if about.pw_gid != grp.getgrnam(name).gr_gid and name not in members:
                raise ground.UsageError(f"{name} is not in the group {name}: usermod --append --groups {name} {name}")


def check_roles(settings: config.Config, roles: Sequence[str]) -> None:
    """Raises ground.UsageError for roles that deploy.ini does not have, or that do not go together."""
    for role in roles:
        if role not in settings.roles:
            raise ground.UsageError(
                f"--role {role}: unknown; deploy.ini and the defaults have {', '.join(sorted(settings.roles))}"
            )
    try:
        slots_of(settings, roles)
    except errors.UsageError as error:
        raise ground.UsageError(str(error)) from None


def slots_of(settings: config.Config, roles: Sequence[str]) -> str:
    """The template whose instances take turns, if a role has one."""
    role = config.slots_of(config.roles_of(roles, settings))
    return role.slots if role else ""


def with_sockets(services: Sequence[str]) -> list[str]:
    """Services (or templates), each with its .socket if systemd/ has one."""
    sockets = [unit[: -len(".service")] + ".socket" for unit in services if unit.endswith(".service")]
    return list(dict.fromkeys([*services, *(unit for unit in sockets if (UNITS / unit).exists())]))


def units_of(settings: config.Config, roles: Sequence[str]) -> list[str]:
    """The unit files of the roles: services and templates with their sockets, and what every machine has."""
    services = config.units_of(config.roles_of(roles, settings))[0]
    slots = slots_of(settings, roles)
    return [*with_sockets(services), *with_sockets([slots] if slots else []), STARTUP_UNIT, *WATCH_UNITS]


def enabled_of(unit: str) -> list[str]:
    """What is enabled of a unit file: itself, both instances of a template, nothing where a timer starts it.

    Both instances, also of the sockets: at a boot each service sees for itself whether it is the one that serves.
    """
    if unit == WATCH_UNITS[0]:
        return []
    return [unit.replace("@.", f"@{slot}.") for slot in config.SLOTS] if "@." in unit else [unit]


def source_of(unit: str) -> Path:
    """The file below systemd/ that a unit comes from: of an instance its template."""
    return UNITS / re.sub(r"@.+\.", "@.", unit)


def sudo_calls(settings: config.Config, roles: Sequence[str]) -> list[str]:
    """Exactly the calls that a deploy makes as root on a machine of these roles."""
    return [" ".join(words) for words in services.privileged_calls(settings, config.roles_of(roles, settings))]


def sudoers_text(user: str, calls: Sequence[str]) -> str:
    escaped = [re.sub(r"([,:=\\])", r"\\\1", call) for call in calls]
    lines = [f"{user} ALL=(root) NOPASSWD: {call}" for call in escaped]
    return "\n".join([SUDOERS_HEAD.format(user=user), *lines, ""])


def others_and_own(lines: Sequence[str], key: str) -> tuple[list[str], list[str]]:
    """The lines of authorized_keys, apart: those of other keys (and comments), and those of this one."""
    own = [line for line in lines if key.split()[1] in line.split() and not line.startswith("#")]
    return [line for line in lines if line not in own], own


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


def render_unit(text: str, root: str, user: str) -> str:
    """A unit file for this machine: other root, other user, the user that nginx has here."""
    text = text.replace("/srv/app", root).replace("User=deploy\n", f"User={user}\n")
    text = text.replace("SocketGroup=deploy\n", f"SocketGroup={user}\n")
    if not ground.user_exists("www-data") and ground.user_exists("nginx"):
        text = text.replace("SocketUser=www-data", "SocketUser=nginx")
    return text


def has_ensurepip(python: str, path: str) -> bool:
    """Whether this Python, if it is root's, can make a virtual environment with pip; Debian has that apart."""
    program = shutil.which(python, path=path)
    if not program or os.stat(program).st_uid != 0:
        return True  # told elsewhere, or not to be started by root
    return ground.call(program, "-I", "-c", "import ensurepip", check=False).returncode == 0


def units_from_here() -> list[str]:
    return sorted(path.name for kind in ("service", "socket", "timer") for path in UNITS.glob(f"*.{kind}"))


def is_ssh(url: str) -> bool:
    """Whether git would reach the URL by ssh: ssh://..., or user@host:path."""
    return url.startswith("ssh://") or bool(re.match(r"(?!file:)[^/:]+:(?!//)", url))


def ssh_place(url: str) -> tuple[str, int]:
    """Host and port of an ssh URL."""
    match = re.match(r"ssh://(?:[^@/]*@)?(\[[^\]]+\]|[^:/]+)(?::(\d+))?", url)
    if match:
        return match[1].strip("[]"), int(match[2] or 22)
    return url.partition(":")[0].rpartition("@")[2], 22


def known_name(host: str, port: int) -> str:
    """By which name ssh looks for a host in known_hosts."""
    return host if port == 22 else f"[{host}]:{port}"


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


class Setup:
    """Brings this machine to what the options say; with `check` it only reports."""

    def __init__(self, options: argparse.Namespace, settings: config.Config) -> None:
        self.options = options
        self.settings = settings
        self.root = Path(options.root)
        self.user: str = options.user
        self.changes = 0
        self.todo: list[str] = []
        self.found: list[str] = []
        self.notes: list[str] = []
        self.old = self.old_service()

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

    def directory(self, path: Path, mode: int, owner: str, group: str) -> None:
        if ground.exists(path):
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

    # -- the parts, in order

    def users(self) -> None:
        if not ground.user_exists(APP_USER) and self.differs(f"user {APP_USER}: runs the services"):
            ground.call("useradd", "--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent",
                 "--shell", "/usr/sbin/nologin", APP_USER)  # fmt: skip
        if not ground.user_exists(self.user) and self.differs(f"user {self.user}: owns the code, runs the steps"):
            # '*': no password will ever do, but unlike a locked account sshd lets keys in
            ground.call("useradd", "--system", "--user-group", "--create-home", "--home-dir", f"/home/{self.user}",
                 "--shell", "/bin/bash", "--password", "*", self.user)  # fmt: skip
        for group in (APP_USER, "systemd-journal"):  # to write shared/media, and to show why a service failed
            try:
                members = grp.getgrnam(group).gr_mem
            except KeyError:
                continue
            if self.user not in members and self.differs(f"user {self.user}: in group {group}"):
                ground.call("usermod", "--append", "--groups", group, self.user)

    def tree(self) -> None:
        user = self.user
        self.directory(self.root, 0o755, user, user)
        for name in ("bin", "deployers", "releases", "slots", "envs", "shared"):
            self.directory(self.root / name, 0o755, user, user)
        self.directory(self.root / "state", 0o750, user, user)  # what failed steps printed is not for everybody
        for name in ("media", "data"):
            self.directory(self.root / "shared" / name, 0o2775, APP_USER, APP_USER)
        env = self.root / "shared" / ".env"
        if ground.exists(env):
            with ground.reached(env) as descriptor:
                ground.check_file(env, os.fstat(descriptor))
            self.ownership(env, 0o640, user, APP_USER)
        else:
            self.file(env, "# Settings of the application: NAME=value, one a line.\n", 0o640, user, APP_USER)
        if self.options.allowed_signers:
            self.file(self.root / "allowed_signers", self.options.allowed_signers, 0o644, "root", "root")
        self.file(self.root / "machine.ini", self.machine_ini(), 0o644, "root", "root")
        self.script()

    def machine_ini(self) -> str:
        """machine.ini with the options' values; what a person added to it stays."""
        parser = configparser.ConfigParser(interpolation=None, delimiters=("=",), inline_comment_prefixes=(";",))
        path = self.root / "machine.ini"
        try:
            parser.read_string(ground.read_text(path) or "")
        except (configparser.Error, ValueError) as error:
            raise ground.UsageError(f"{path}: {' '.join(str(error).split())}") from None
        options = self.options
        values = {"name": options.name, "roles": " ".join(options.role), "repo": options.repo, "branch": options.branch}
        values["verify"] = "signatures" if options.allowed_signers else ""
        if not parser.has_section("machine"):
            parser.add_section("machine")
        for key, value in values.items():
            if value:
                parser["machine"][key] = value
        text = io.StringIO()
        parser.write(text)
        return text.getvalue().strip() + "\n"

    def script(self) -> None:
        """bin/deploy_machine.py, unless one that works is there: deploys keep it up to date themselves."""
        path = self.root / "bin" / carrier.ENTRY
        present = ground.is_there(path)
        if present and is_whole(path, self.root / carrier.FOLDER):
            return
        if self.differs(f"{path}: {'changed' if present else 'created'}"):
            files = carrier.own_files(HERE)
            archive, version = carrier.pack(files), carrier.identity(files)
            words = [str(self.root), str(len(archive)), version]
            # as the user who can write there: root must not follow what deploy may have put in place
            ground.call(PYTHON, "-I", "-c", carrier.program(), *words, user=self.user, stdin=archive)
            ground.replace_link(path, f"../{carrier.FOLDER}/{version}/{carrier.ENTRY}", self.user)

    def library(self, source: Path, path: Path) -> None:
        """A program of ours that is run there for others, who must not be able to change it."""
        if not source.exists():
            raise ground.UsageError(f"{source} is missing: copy the whole of scripts/")
        self.directory(LIBRARY, 0o755, "root", "root")
        self.file(path, source.read_text(encoding="utf-8"), 0o755, "root", "root")

    def units(self) -> None:
        self.library(HERE / carrier.PACKAGE / DOTENV.name, DOTENV)
        wanted = units_of(self.settings, self.options.role)
        old_address = SYSTEM_UNITS / OLD_ADDRESS_UNIT
        if self.old in ("serves", "ends") or (old_address.exists() and lines_below_nginx(f"unix:{OLD_ADDRESS}")):
            wanted.append(OLD_ADDRESS_UNIT)
        changed = self.prepare_to_move() if self.old == "serves" else False
        missing: list[str] = []
        for unit in wanted:
            if (UNITS / unit).exists():
                text = render_unit((UNITS / unit).read_text(encoding="utf-8"), str(self.root), self.user)
                changed |= self.file(SYSTEM_UNITS / unit, text, 0o644, "root", "root")
                changed |= self.backoff(unit)
            elif ground.call("systemctl", "cat", "--", unit, check=False).returncode != 0:
                missing.append(unit)
                self.todo.append(f"{unit}: systemd/ has no such file and this machine no such unit: write one")
        self.remove_units([name for name in units_from_here() if name not in wanted and name not in OLD_UNITS])
        self.remove_units(OLD_UNITS if self.old == "is done with" else ())
        if changed and not self.options.check:
            ground.call("systemctl", "daemon-reload")
        for unit in (name for file in wanted if file not in missing for name in enabled_of(file)):
            self.enable(unit)

    def backoff(self, unit: str) -> bool:
        """The drop-in that lets restart delays grow, where systemd knows how."""
        version = re.search(r"\d+", ground.call("systemctl", "--version").stdout)
        restarts = "\nRestartSec=" in (UNITS / unit).read_text(encoding="utf-8")
        if not restarts or not version or int(version[0]) < 254:
            return False
        folder = SYSTEM_UNITS / f"{unit}.d"
        self.directory(folder, 0o755, "root", "root")
        text = (UNITS / "backoff.conf").read_text(encoding="utf-8")
        return self.file(folder / "backoff.conf", text, 0o644, "root", "root")

    def remove_units(self, names: Sequence[str]) -> None:
        """Stop and remove units that came from here but belong to roles this machine does not have."""
        gone = [SYSTEM_UNITS / name for name in names if (SYSTEM_UNITS / name).exists()]
        for path in gone:
            self.differs(f"{path}: removed, nothing that this machine is for needs it")
        if gone and not self.options.check:
            # all at once: a socket that is stopped later would start its service again
            ground.call(
                "systemctl", "disable", "--now", "--", *(unit for path in gone for unit in enabled_of(path.name))
            )
            for path in gone:
                path.unlink()
                shutil.rmtree(path.with_name(f"{path.name}.d"), ignore_errors=True)
            ground.call("systemctl", "daemon-reload")

    def enable(self, unit: str) -> None:
        """Have it at boots; timers, and sockets that wait for no deploy, now, too."""
        state = ground.call("systemctl", "is-enabled", "--", unit, check=False).stdout.strip()
        if state in ("disabled", "") or (state == "not-found" and source_of(unit).exists()):
            if self.differs(f"{unit}: enabled"):
                ground.call("systemctl", "enable", "--", unit)
        at_once = unit.endswith((".socket", ".timer")) and "@" not in unit
        if at_once and ground.call("systemctl", "is-active", "--", unit, check=False).returncode != 0:
            if self.differs(f"{unit}: started"):
                ground.call("systemctl", "start", "--", unit)

    # -- from version 0.1 to slots

    def old_service(self) -> str:
        """What becomes of gunicorn.service and gunicorn.socket of version 0.1, if they are here.

        It "serves" until a deploy has moved the site to a slot, then "ends" what it has begun, then "is done with".
        """
        text = ground.read_text(SYSTEM_UNITS / OLD_UNITS[1]) or ""
        roles = config.roles_of(self.options.role, self.settings)
        ours = f"{self.root}/current/.venv/bin/gunicorn" in text and ground.user_exists(self.user)
        if not ours or OLD_UNITS[1] in config.units_of(roles)[0]:
            return ""  # none, another application's, or one that deploy.ini still names
        if not slots_of(self.settings, self.options.role) or not self.is_so("-e", f"{self.root}/current"):
            return "is done with"
        if not self.is_so("-L", self.link_to_socket()) or self.leads_to_old_socket():
            return "serves"
        states = ground.call("systemctl", "show", "--property=ActiveState", "--value", *OLD_UNITS).stdout.split()
        return "is done with" if set(states) <= {"inactive", "failed"} else "ends"

    def is_so(self, what: str, path: str) -> bool:
        """A test(1) as the user whose files those are, who is led nowhere new by a link."""
        return ground.call("test", what, path, user=self.user, check=False).returncode == 0

    def link_to_socket(self) -> str:
        """The link in the release that serves, which tells where it is served."""
        return f"{self.root}/current/.socket"

    def leads_to_old_socket(self) -> bool:
        return ground.call("readlink", self.link_to_socket(), user=self.user).stdout.strip() == str(OLD_SOCKET)

    def prepare_to_move(self) -> bool:
        """Let a deploy find the old service's socket as it finds a slot's; return whether a unit changed.

        What serves goes on as it was, deploys of version 0.1 included: they restart gunicorn.service.
        """
        if ground.is_there(OLD_ADDRESS) and not ground.is_link(OLD_ADDRESS):
            with ground.reached(OLD_ADDRESS) as descriptor:
                owner = pwd.getpwuid(os.fstat(descriptor).st_uid).pw_name
            self.ownership(OLD_ADDRESS, 0o660, owner, self.user)
            if not ground.is_there(OLD_SOCKET) and self.differs(f"{OLD_SOCKET}: leads to {OLD_ADDRESS}"):
                ground.replace_link(OLD_SOCKET, str(OLD_ADDRESS), "root")
        link = self.link_to_socket()
        if not self.is_so("-L", link) and self.differs(f"{link}: leads to {OLD_SOCKET}"):
            ground.call("ln", "--symbolic", "--no-target-directory", str(OLD_SOCKET), link, user=self.user)
        service = SYSTEM_UNITS / OLD_UNITS[1]
        text = ground.read_text(service) or ""
        # else to stop the socket, that nobody may come any more, would stop the service with who is there
        text = text.replace(f"Requires={OLD_UNITS[0]}", f"Wants={OLD_UNITS[0]}").replace(
            "RuntimeDirectory=gunicorn\n", ""
        )
        # else systemd would give what root runs below the variables that `deploy` writes, such as LD_PRELOAD
        env = f"{self.root}/shared/.env"
        start = f"ExecStart={PYTHON} -IS {DOTENV} {env} "
        text = text.replace(f"EnvironmentFile=-{env}\n", "").replace(f"ExecStart={self.root}/", f"{start}{self.root}/")
        changed = self.file(service, text, 0o644, "root", "root")
        for unit, lines in ((OLD_UNITS[0], OLD_SOCKET_LINES), (OLD_UNITS[1], OLD_SERVICE_LINES)):
            folder = SYSTEM_UNITS / f"{unit}.d"
            self.directory(folder, 0o755, "root", "root")
            text = lines.format(socket=OLD_SOCKET, user=self.user, link=link)
            changed |= self.file(folder / "slots.conf", text, 0o644, "root", "root")
        return changed

    def say_what_serves(self) -> None:
        slots = slots_of(self.settings, self.options.role)
        if self.old == "serves":
            self.notes.append(
                f"{OLD_UNITS[1]} of version 0.1 serves, and goes on: the next deploy by these scripts moves the site to"
                f" {config.instance(slots, config.SLOTS[0])} without a gap, without a change to nginx"
            )
        elif self.old == "ends":
            self.notes.append(f"{OLD_UNITS[1]} of version 0.1 ends what it has begun: run this again to remove it")

    def sudoers(self) -> None:
        calls = sudo_calls(self.settings, self.options.role)
        if self.old == "serves":  # what a deploy of version 0.1 asks for
            verbs = ("start", "stop", "restart", "reset-failed")
            old = [" ".join(services.privileged(verb, OLD_UNITS[1])) for verb in verbs]
            calls = [*calls, *(line for line in old if line not in calls)]
        text = sudoers_text(self.user, calls)
        if ground.read_text(SUDOERS) != text:  # a broken file there could lock everybody out of sudo
            if not shutil.which("visudo"):
                self.todo.append(f"sudo: {HOW_TO_GET['sudo']}; then run this again")
                return
            with tempfile.NamedTemporaryFile("w", suffix=".sudoers") as file:
                file.write(text)
                file.flush()
                ground.call("visudo", "--check", "--quiet", "--file", file.name)
        self.file(SUDOERS, text, 0o440, "root", "root")

    def keys(self) -> None:
        if not ground.user_exists(self.user):
            return  # --check on a machine that is not set up
        folder = self.home / ".ssh"
        self.directory(folder, 0o700, self.user, self.user)
        if self.options.authorize:
            self.authorize(folder / "authorized_keys", self.options.authorize)
        if is_ssh(self.options.repo):
            self.deploy_key(folder / "id_ed25519")
            self.git_host(folder / "known_hosts")

    def authorize(self, path: Path, line: str) -> None:
        """Let CI's key in: for commands only, no forwarding and no terminal; if restricted, for deploys only."""
        lines = (ground.read_text(path) or "").splitlines()
        kept, own = others_and_own(lines, line)
        asked = self.options.restrict_ci_key
        wanted = f"restrict {line}"
        if asked or (asked is None and (not own or any(str(RESTRICTED_PUSH) in entry for entry in own))):
            self.library(HERE / RESTRICTED_PUSH.name, RESTRICTED_PUSH)
            wanted = f'restrict,command="{PYTHON} -I {RESTRICTED_PUSH} {self.root}" {line}'
        elif not any("command=" in entry for entry in own) and asked is None:
            self.notes.append(
                f"CI's key may run anything as {self.user}: --restrict-ci-key lets it deploy, and no more"
            )
        # one line for the key: sshd would take the first that fits. One that a person has changed stays.
        if not own or (asked is not None and own != [wanted]):
            lines = [*kept, wanted]
        self.file(path, "".join(f"{entry}\n" for entry in lines), 0o600, self.user, self.user)
        second = path.with_name("authorized_keys2")  # sshd reads it, too
        if others_and_own((ground.read_text(second) or "").splitlines(), line)[1]:
            self.todo.append(f"{second} lets CI's key in as well, without the restrictions above: remove it there")

    def deploy_key(self, path: Path) -> None:
        if not ground.exists(path) and self.differs(f"{path}: created, the key that reads the repository"):
            comment = f"{self.options.name} reads {self.options.repo}"
            ground.call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path), user=self.user)

    def git_host(self, path: Path) -> None:
        """Pin the git host's key, and show its fingerprint: a person should compare it."""
        host, port = ssh_place(self.options.repo)
        known = (ground.read_text(path) or "").encode()
        find = ["ssh-keygen", "-F", known_name(host, port), "-f", "/dev/stdin"]
        if known and ground.call(*find, stdin=known, check=False).returncode == 0:
            return
        scanned = ground.call("ssh-keyscan", "-T", "10", "-p", str(port), "--", host, check=False).stdout
        lines = "".join(f"{line}\n" for line in scanned.splitlines() if line and not line.startswith("#"))
        if not lines:
            self.todo.append(f"{host}: could not be asked for its ssh host key; run this again when it answers")
            return
        self.file(path, (ground.read_text(path) or "") + lines, 0o644, self.user, self.user)
        prints = ground.call("ssh-keygen", "-l", "-f", "-", stdin=lines.encode()).stdout.splitlines()
        self.todo.append(f"compare the host key of {host} with what it publishes: " + "; ".join(prints))

    def missing_programs(self) -> None:
        path = f"{self.home}/.local/bin:{ground.PATH}"
        for program in self.options.needs:
            if not (has_ensurepip(self.settings.python, path) if program == VENV else shutil.which(program, path=path)):
                self.todo.append(f"{program} is missing: {HOW_TO_GET[program].format(user=self.user)}")
        slots = slots_of(self.settings, self.options.role)
        if "nginx" in self.options.needs and looks.NGINX.is_dir() and slots and self.old != "serves":
            self.nginx_sites()

    def nginx_sites(self) -> None:
        """Name what keeps nginx from passing requests to the release that serves."""
        address = f"unix:{self.root}/current/.socket"
        old = lines_below_nginx(f"unix:{OLD_ADDRESS}")
        for place, line in old.items():
            self.todo.append(f"nginx: write in {place}: {line.replace(f'unix:{OLD_ADDRESS}', address)}")
        if not old and not lines_below_nginx(address):
            self.todo.append(f"nginx: no file below {looks.NGINX} passes requests to {address}: add a site that does")

    def what_deploy_could_change(self) -> None:
        """Name what root runs or reads and `deploy` or `app` could change: each would make them root."""
        owners = {pwd.getpwnam(name).pw_uid for name in (self.user, APP_USER) if ground.user_exists(name)}
        for path in sorted(path for top in (looks.NGINX, SYSTEM_UNITS) for path in top.rglob("*")):
            real = Path(os.path.realpath(path))
            if self.root.resolve() in real.parents or (real.exists() and real.stat().st_uid in owners):
                self.todo.append(f"{path} leads to {real}, where {self.user} could change what root runs: copy it")
        if self.options.allowed_signers or "verify" in (ground.read_text(self.root / "machine.ini") or ""):
            version = (
                re.findall(r"\d+", ground.call("git", "--version", check=False).stdout) if shutil.which("git") else []
            )
            if [int(part) for part in version[:2]] < [2, 34]:
                self.todo.append("git: verify = signatures needs 2.34 or newer; deploys fail until it is there")

    # -- what a person does next

    def look(self) -> None:
        """What no change of ours can put right: each with the command that does."""
        self.found += [*looks.read_by_nginx(self.root), *looks.read_by_systemd(self.root)]
        if not ground.user_exists(self.user):
            return
        ssh = self.home / ".ssh"
        self.found += [*looks.account(self.user), *looks.sshd(self.user, ssh / "authorized_keys")]
        self.found += looks.sudo(self.user, SUDOERS, sudo_calls(self.settings, self.options.role))
        self.found += [*looks.owners(self.root, self.user), *looks.file_systems(self.root)]
        self.found += looks.proxy(self.options.repo, self.root / "shared" / ".env")
        if is_ssh(self.options.repo):
            place, port = ssh_place(self.options.repo)
            self.found += looks.git_host(place, port, known_name(place, port), ssh / "known_hosts", self.user)

    # -- what a person does next

    def report(self) -> None:
        options = self.options
        word, number = ("differences" if options.check else "changes"), self.changes or "no"
        well = not self.changes and not self.found
        ground.say(f"{options.name}: {number} {word}" + (", all is as it should be" if well else ""))
        for line in self.notes:
            ground.say(f"note: {line}")
        for line in [*self.found, *self.todo]:
            ground.say(f"to do: {line}")
        if not options.check:
            self.say_secrets()

    def say_secrets(self) -> None:
        options = self.options
        key = ground.read_text(self.home / ".ssh" / "id_ed25519.pub")
        if is_ssh(options.repo) and key:
            print("\nDeploy key: add it to the repository (Settings > Deploy keys), without write access:")
            ground.say(f"  {key.strip()}")
        try:
            sshd = looks.sshd_settings(self.user)
        except ground.SetupError:
            sshd = {"hostkey": [str(path)[:-4] for path in sorted(Path("/etc/ssh").glob("ssh_host_*_key.pub"))]}
        place = options.seen_as or own_address(sshd.get("port", []))
        branch = options.branch or "main"
        prefix = re.sub("[^A-Z0-9]", "_", options.name.upper())
        print(
            f"\nSecrets: make the environment `{options.name}` in the repository (Settings > Environments), limit it to"
        )
        print(
            f"the branch `{branch}` (Deployment branches and tags > Selected branches and tags), and add them there. As"
        )
        print("secrets of the repository, whoever may push a branch of their own could read them:")
        print(f"  {prefix}_HOST = {place}")
        print(f"  {prefix}_USER = {self.user}")
        print("  DEPLOY_SSH_KEY = the private half of the key that --authorize names, the same for all machines")
        print("  DEPLOY_KNOWN_HOSTS = the following lines, below those of the other machines:")
        for line in host_keys(place, sshd.get("hostkey", [])):
            print(f"    {line}")

    def run(self) -> int:
        self.users()
        self.tree()
        self.keys()
        self.units()
        self.sudoers()
        self.missing_programs()
        self.look()
        self.what_deploy_could_change()
        self.say_what_serves()
        self.report()
        return EXIT_DIFFERS if self.options.check and (self.changes or self.found) else 0


def lines_below_nginx(text: str) -> dict[str, str]:
    """The lines of nginx's files that have this text outside a comment: FILE:LINE and the line itself."""
    lines = looks.nginx_lines(looks.NGINX).items()
    return {place: line for place, line in lines if re.search(re.escape(text) + r"(?![\w.-])", line)}


def own_address(ports: Sequence[str]) -> str:
    """The address that this machine uses towards others, as a guess for its name in CI; with sshd's port."""
    words = ground.call("hostname", "-I", check=False).stdout.split() if shutil.which("hostname") else []
    name = words[0] if words else os.uname().nodename
    if not ports or "22" in ports:
        return name
    return f"[{name}]:{ports[0]}" if ":" in name else f"{name}:{ports[0]}"


def host_keys(place: str, files: Sequence[str]) -> list[str]:
    """known_hosts lines of this machine, for `host`, `host:port` or `[v6]:port`, as ssh looks for them.

    files: sshd's private keys. It is asked for port 22 by the bare name, however that was written.
    """
    name, port = split_place(place)
    name = known_name(name, int(port or 22))
    found = [ground.read_text(Path(f"{file}.pub")) for file in files]
    return [f"{name} {' '.join(text.split()[:2])}" for text in found if text]


# --- from a laptop ----------------------------------------------------------------------------------


def split_place(place: str) -> tuple[str, str]:
    """Host and port (or nothing) of `host`, `host:port`, `[v6]` or `[v6]:port`; a bare v6 has no port."""
    match = re.fullmatch(r"\[([^\]]+)\](?::(\d+))?", place)
    if match:
        return match[1], match[2] or ""
    host, _, port = place.partition(":")
    return (place, "") if ":" in port else (host, port)


def bundle(texts: Mapping[str, str]) -> dict[str, bytes]:
    """What the machine needs of this repository, by path, and further files by name."""
    files = {f"scripts/{name}": data for name, data in carrier.own_files(HERE).items()}
    paths = [*HERE.glob("setup_*.py"), HERE / RESTRICTED_PUSH.name, *UNITS.iterdir(), REPOSITORY / "deploy.ini"]
    files.update({str(path.relative_to(REPOSITORY)): path.read_bytes() for path in paths if path.is_file()})
    return {**files, **{name: text.encode() for name, text in texts.items()}}


def remote_command(options: argparse.Namespace, archive: str, version: str, ask_password: bool) -> str:
    """The command line for the machine's shell: unpack the archive that lies there, run it as root, remove it."""
    arguments = ["--name", options.name, "--repo", options.repo, "--root", options.root, "--user", options.user]
    arguments += [word for role in options.role for word in ("--role", role)]
    arguments += ["--branch", options.branch] if options.branch else []
    arguments += ["--authorize", "authorize.pub"] if options.authorize else []
    if options.restrict_ci_key is not None:
        arguments += ["--restrict-ci-key" if options.restrict_ci_key else "--no-restrict-ci-key"]
    arguments += ["--allowed-signers", "allowed_signers"] if options.allowed_signers else []
    arguments += ["--check"] if options.check else []
    arguments += ["--seen-as", options.ssh.rpartition("@")[2], "--needs", ",".join(options.needs)]
    words = ["python3", "-I", "-c", carrier.program(), "setup", archive, version, *arguments]
    sudo = "sudo" if ask_password else "sudo -n"
    run = f'sudo="{sudo}"; [ "$(id -u)" = 0 ] && sudo=; $sudo {shlex.join(words)}'
    return f"{run}; code=$?; rm -f {archive}; rmdir {os.path.dirname(archive)}; exit $code"


def packed(options: argparse.Namespace) -> tuple[bytes, str]:
    """The archive for a machine, and its id. Raises UsageError."""
    texts = {"authorize.pub": options.authorize, "allowed_signers": options.allowed_signers}
    files = bundle({name: text + "\n" for name, text in texts.items() if text})
    try:
        return carrier.pack(files), carrier.identity(files)
    except ValueError as error:
        raise ground.UsageError(f"{REPOSITORY}: {error}: remove it") from None


def run_over_ssh(options: argparse.Namespace) -> int:
    """Run this script on the machine over one ssh connection; return its exit code.

    It has two sessions: the archive is stdin's of the first; of the second that is the terminal, as sudo may ask there.
    """
    archive, version = packed(options)
    ask_password = sys.stdin.isatty()
    with connected(options, ask_password) as ssh:
        kept = subprocess.run([*ssh, TAKE_ARCHIVE], input=archive, stdout=subprocess.PIPE, check=False)
        code = kept.returncode
        if code == 0:
            place = kept.stdout.decode("utf-8", "replace").strip().rpartition("\n")[2]  # a login shell may greet
            if not re.fullmatch(ARCHIVE, place):
                raise ground.SetupError("the shell there does not run a command as sh does, or prints more: mend that")
            command = remote_command(options, place, version, ask_password)
            code = subprocess.call([ssh[0], *["-t"] * ask_password, *ssh[1:], command])
    if code == 255:
        place = options.ssh.rpartition("@")[2]
        ground.say(f"setup_machine.py: {place} could not be reached by ssh (see above)", sys.stderr)
        return EXIT_OFFLINE
    return code


@contextlib.contextmanager
def connected(options: argparse.Namespace, ask_password: bool) -> Iterator[list[str]]:
    """The words of ssh for this machine; all that are run meanwhile share a connection, where ssh can do that."""
    user, _, place = options.ssh.rpartition("@")
    host, port = split_place(place)
    with tempfile.TemporaryDirectory(prefix="setup-") as folder:
        shared = ["-o", "ControlMaster=auto", "-o", f"ControlPath={folder}/ssh", "-o", "ControlPersist=60"]
        argv = ["ssh", "-o", "ConnectTimeout=15", "-o", "ServerAliveInterval=15", *shared]
        argv += [] if ask_password else ["-o", "BatchMode=yes"]
        argv += ["-p", port] if port else []
        argv += ["-l", user] if user else []
        try:
            yield [*argv, "--", host]
        except FileNotFoundError:
            raise ground.SetupError("ssh: not found: install openssh-client") from None
        finally:
            with contextlib.suppress(FileNotFoundError):
                subprocess.run([*argv, "-O", "exit", "--", host], capture_output=True, check=False, timeout=20)


# --- command line -----------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ground.UsageError(f"{message} (see --help)")


def checked(pattern: str, what: str) -> Any:
    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return text

    return check


def repository(url: str) -> str:
    """An address that a machine may fetch from, by the same rules as there."""
    try:
        return host.check_url(url)
    except errors.UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def public_key(path: str) -> str:
    """The one public key in a file, on one line."""
    try:
        lines = [line for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise argparse.ArgumentTypeError(f"{path}: {getattr(error, 'strerror', 'not a text file')}") from None
    if len(lines) != 1 or not re.match(r"(ssh|ecdsa|sk)-[a-z0-9@.-]+ [A-Za-z0-9+/=]+( |$)", lines[0]):
        what = "a private key: name its .pub file" if lines and "PRIVATE" in lines[0] else "not one ssh public key"
        raise argparse.ArgumentTypeError(f"{path}: {what}")
    return lines[0].strip()


def allowed_signers(path: str) -> str:
    """The text of a file as ssh-keygen(1) describes ALLOWED SIGNERS; at least one line with a key."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise argparse.ArgumentTypeError(f"{path}: {getattr(error, 'strerror', 'not a text file')}") from None
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    wrong = [line for line in lines if not re.search(r"^\S+ .*(ssh|ecdsa|sk)-[a-z0-9@.-]+ [A-Za-z0-9+/=]+", line)]
    if wrong or not lines:
        raise argparse.ArgumentTypeError(
            f"{path}: each line must be a name and a public key, as `me@example.com ssh-...`"
        )
    return text.strip() + "\n"


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="setup_machine.py",
        allow_abbrev=False,
        description="Prepare a machine for deploy_machine.py. A second run changes nothing and says so.",
    )
    name = checked(r"[A-Za-z][A-Za-z0-9-]*", "a machine name: letters, digits and -")
    role = checked(r"[A-Za-z0-9_.][A-Za-z0-9_.-]*", "a role name")
    user = checked(r"[a-z_][a-z0-9_-]*", "a user name")
    root = checked(r"/[A-Za-z0-9_./-]*[A-Za-z0-9_-]", "an absolute path of letters, digits, . _ and -")
    branch = checked(r"(?!-)[^\s~^:?*\[\\]+", "a branch name")
    place = checked(r"(?!-)([A-Za-z0-9_.-]+@)?(\[[0-9a-fA-F:.%]+\]|(?!-)[A-Za-z0-9_.-]+)(:\d+)?", "[USER@]HOST[:PORT]")
    parser.add_argument("--name", required=True, type=name, help="of this machine, e.g. frontend; names its secrets")
    parser.add_argument("--role", required=True, type=role, action="append", metavar="R", help="repeatable")
    parser.add_argument(
        "--repo", required=True, type=repository, metavar="URL", help="the application's git repository"
    )
    parser.add_argument("--branch", type=branch, metavar="B", help="default: as deploy.ini says, else main")
    parser.add_argument("--root", default="/srv/app", type=root, metavar="DIR", help="default: /srv/app")
    parser.add_argument("--user", default="deploy", type=user, help="who owns the code; default: deploy")
    parser.add_argument("--ssh", type=place, metavar="[USER@]HOST[:PORT]", help="prepare that machine, from here")
    parser.add_argument("--authorize", type=public_key, metavar="PUBKEY_FILE", help="public half of CI's ssh key")
    parser.add_argument(
        "--restrict-ci-key",
        action=argparse.BooleanOptionalAction,
        help="whether the key of --authorize may only deploy this machine; it stays as it is there, a new one may only",
    )
    parser.add_argument(
        "--allowed-signers",
        type=allowed_signers,
        metavar="FILE",
        help="deploy only commits signed by an ssh key in FILE",
    )
    parser.add_argument("--check", action="store_true", help="change nothing; list what differs, exit 1 if anything")
    parser.add_argument("--seen-as", help=argparse.SUPPRESS)
    parser.add_argument("--needs", type=lambda text: text.split(","), help=argparse.SUPPRESS)
    return parser


def main_inner(arguments: Sequence[str]) -> int:
    """Return the exit code. Raises SetupError."""
    options = make_parser().parse_args(arguments)
    options.role = list(dict.fromkeys(options.role))
    if options.restrict_ci_key is not None and not options.authorize:
        raise ground.UsageError("--restrict-ci-key, --no-restrict-ci-key: name the key's public half with --authorize")
    settings = read_config()
    check_roles(settings, options.role)
    if options.needs is None:
        options.needs = needed_programs(settings, options.role)
    if options.ssh:
        return run_over_ssh(options)
    if os.geteuid() != 0:
        raise ground.UsageError("run it as root on the machine (sudo ...), or from elsewhere with --ssh")
    if not Path("/run/systemd/system").is_dir():
        raise ground.UsageError("this machine was not booted with systemd; nothing here could run the services")
    if options.user == APP_USER:
        raise ground.UsageError(f"--user {APP_USER}: the services run as {APP_USER}, who must not own the code")
    check_users([APP_USER, options.user])
    return Setup(options, settings).run()


def main() -> NoReturn:
    os.umask(0o022)
    try:
        sys.exit(main_inner(sys.argv[1:]))
    except ground.SetupError as error:
        ground.say(f"setup_machine.py: {error}", sys.stderr)
        sys.exit(error.code)
    except KeyboardInterrupt:
        print("setup_machine.py: interrupted; a second run goes on from here", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()

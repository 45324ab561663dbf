"""What version 0.1 left on a machine, gunicorn.service: it serves until a deploy has moved the site to a slot."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import setup_ground as ground
import setup_wanted as wanted
from deployer import config
from setup_wanted import PYTHON, SYSTEM_UNITS
from setup_work import Work

# How version 0.1 ran the web application, where nginx found it, and how that is called once a slot has its name.
UNITS = ("gunicorn.socket", "gunicorn.service")
ADDRESS = Path("/run/gunicorn.sock")
SOCKET = Path("/run/gunicorn-old.sock")
ADDRESS_UNIT = "gunicorn-old-address.service"
SOCKET_LINES = """\
# A deploy finds it as it finds the socket of a slot, also after a boot.
[Socket]
Symlinks={socket}
SocketGroup={user}
SocketMode=0660
"""
SERVICE_LINES = """\
# A release that version 0.1 deploys in between leads to the socket, too, as one in a slot leads to its slot's.
[Service]
ExecStartPre=-+/usr/bin/setpriv --reuid={user} --regid={user} --clear-groups ln -sT {socket} {link}
"""


def state(work: Work) -> str:
    """What becomes of gunicorn.service and gunicorn.socket of version 0.1, if they are here.

    It "serves" until a deploy has moved the site to a slot, then "ends" what it has begun, then "is done with".
    """
    if work.app:
        return ""
    text = ground.read_text(SYSTEM_UNITS / UNITS[1]) or ""
    roles = config.roles_of(work.options.role, work.settings)
    ours = f"{work.root}/current/.venv/bin/gunicorn" in text and ground.user_exists(work.user)
    if not ours or UNITS[1] in config.units_of(roles)[0]:
        return ""  # none, another application's, or one that deploy.ini still names
    if not wanted.slots_of(work.settings, work.options.role) or not is_so(work, "-e", f"{work.root}/current"):
        return "is done with"
    if not is_so(work, "-L", link_to_socket(work)) or leads_to_old_socket(work):
        return "serves"
    states = ground.call("systemctl", "show", "--property=ActiveState", "--value", *UNITS).stdout.split()
    return "is done with" if set(states) <= {"inactive", "failed"} else "ends"


def is_so(work: Work, what: str, path: str) -> bool:
    """A test(1) as the user whose files those are, who is led nowhere new by a link."""
    return ground.call("test", what, path, user=work.user, check=False).returncode == 0


def link_to_socket(work: Work) -> str:
    """The link in the release that serves, which tells where it is served."""
    return f"{work.root}/current/.socket"


def leads_to_old_socket(work: Work) -> bool:
    return ground.call("readlink", link_to_socket(work), user=work.user).stdout.strip() == str(SOCKET)


def prepare_to_move(work: Work) -> bool:
    """Let a deploy find the old service's socket as it finds a slot's; return whether a unit changed.

    What serves goes on as it was, deploys of version 0.1 included: they restart gunicorn.service.
    """
    if ground.is_there(ADDRESS) and not ground.is_link(ADDRESS):
        with ground.reached(ADDRESS) as descriptor:
            owner = pwd.getpwuid(os.fstat(descriptor).st_uid).pw_name
        work.ownership(ADDRESS, 0o660, owner, work.user)
        if not ground.is_there(SOCKET) and work.differs(f"{SOCKET}: leads to {ADDRESS}"):
            ground.replace_link(SOCKET, str(ADDRESS), "root")
    link = link_to_socket(work)
    if not is_so(work, "-L", link) and work.differs(f"{link}: leads to {SOCKET}"):
        ground.call("ln", "--symbolic", "--no-target-directory", str(SOCKET), link, user=work.user)
    service = SYSTEM_UNITS / UNITS[1]
    text = ground.read_text(service) or ""
    # else to stop the socket, that nobody may come any more, would stop the service with who is there
    text = text.replace(f"Requires={UNITS[0]}", f"Wants={UNITS[0]}").replace("RuntimeDirectory=gunicorn\n", "")
    # else systemd would give what root runs below the variables that `deploy` writes, such as LD_PRELOAD
    env = f"{work.root}/shared/.env"
    start = f"ExecStart={PYTHON} -IS {work.library}/dotenv.py {env} "
    text = text.replace(f"EnvironmentFile=-{env}\n", "").replace(f"ExecStart={work.root}/", f"{start}{work.root}/")
    changed = work.file(service, text, 0o644, "root", "root")
    for unit, lines in ((UNITS[0], SOCKET_LINES), (UNITS[1], SERVICE_LINES)):
        folder = SYSTEM_UNITS / f"{unit}.d"
        work.directory(folder, 0o755, "root", "root")
        text = lines.format(socket=SOCKET, user=work.user, link=link)
        changed |= work.install(folder / "slots.conf", text)
    return changed


def say_what_serves(work: Work) -> None:
    slots = wanted.slots_of(work.settings, work.options.role)
    if work.old == "serves":
        work.notes.append(
            f"{UNITS[1]} of version 0.1 serves, and goes on: the next deploy by these scripts moves the site to"
            f" {config.instance(slots, config.SLOTS[0])} without a gap, without a change to nginx"
        )
    elif work.old == "ends":
        work.notes.append(f"{UNITS[1]} of version 0.1 ends what it has begun: run this again to remove it")

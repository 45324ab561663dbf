"""The users: one owns the code and runs the steps, one runs the services."""

from __future__ import annotations

import grp
import pwd
from collections.abc import Sequence

import setup_ground as ground
from setup_work import Work


def check(names: Sequence[str]) -> None:
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


def make(work: Work) -> None:
    """Make those that are missing."""
    app = work.runs_as
    if not ground.user_exists(app) and work.differs(f"user {app}: runs the services"):
        ground.call("useradd", "--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent",
             "--shell", "/usr/sbin/nologin", app)  # fmt: skip
        work.made_users.append(app)
    if not ground.user_exists(work.user) and work.differs(f"user {work.user}: owns the code, runs the steps"):
        # '*': no password will ever do, but unlike a locked account sshd lets keys in
        ground.call("useradd", "--system", "--user-group", "--create-home", "--home-dir", f"/home/{work.user}",
             "--shell", "/bin/bash", "--password", "*", work.user)  # fmt: skip
        work.made_users.append(work.user)
    for group in (app, "systemd-journal"):  # to write shared/media, and to show why a service failed
        try:
            members = grp.getgrnam(group).gr_mem
        except KeyError:
            continue
        if work.user not in members and work.differs(f"user {work.user}: in group {group}"):
            ground.call("usermod", "--append", "--groups", group, work.user)

#!/usr/bin/env python3
"""On a machine: the only thing that CI's key may do there, if it is restricted (a forced command).

`setup_machine.py --restrict-ci-key` installs this file, root-owned, and puts the key into authorized_keys as

    restrict,command="/usr/bin/python3 -I /usr/local/lib/deploy-machine/restricted_push.py /srv/app" ssh-ed25519 ...

sshd then starts this, whatever the key's holder asked for, and tells what that was in
$SSH_ORIGINAL_COMMAND. Two requests are granted, word for word and nothing beside them: push_deploy.py's for a
deploy, and the question for the status (`status --json`, with --since and --within where this machine's version
knows them). Both run this machine's own bin/deploy_machine.py; the version that a push carries along is thrown
away, because running it would be running anything. The commit's own takes over in the deploy, as it does
at a boot. So many connections have this key at the same time, and no more: SESSIONS.

It needs Python 3.9 or newer and nothing outside the standard library.
"""

from __future__ import annotations

import configparser
import contextlib
import fcntl
import os
import pwd
import re
import shlex
import signal
import subprocess
import sys
import syslog
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

EXIT_USAGE = 2
MARKER = "deploy-machine started "  # what push_deploy.py waits for; followed by this machine's time
ARCHIVE_BYTES = 10_000_000  # more than any push carries
COMMIT = r"[0-9a-fA-F]{4,64}"
VERSION = "[0-9a-f]{16}"  # the id of what a push carries
SESSIONS = 12  # a deploy, those that wait for it, and questions
STATUS_OPTIONS = {"--since": "[0-9A-Za-z][0-9A-Za-z:.+_-]{0,63}", "--within": r"[0-9]{1,4}(\.[0-9]{1,3})?"}


class Refused(Exception):
    """The request is none of those that are granted; says why, for the log of the push."""


def granted(request: str, root: str, roles: Sequence[str]) -> tuple[list[str], int]:
    """The arguments for deploy_machine.py, and how many bytes of stdin to throw away. Raises Refused."""
    try:
        words = shlex.split(request)
    except ValueError:
        raise Refused("a request that is not a list of words") from None
    if words[:2] == ["python3", "-c"] and len(words) > 6:  # words[2] is the program that takes the archive: not run
        asked_root, size, version, *arguments = words[3:]
        if asked_root == root and re.fullmatch(VERSION, version) and re.fullmatch("[0-9]{1,8}", size):
            if int(size) <= ARCHIVE_BYTES:
                return deploy_arguments(arguments, roles), int(size)
    words = words[1:] if words[:1] == ["python3"] else words
    scripts = re.escape(root) + rf"/(bin|deployers/{VERSION})/deploy_machine\.py"
    if words[1:3] == ["status", "--json"] and re.fullmatch(scripts, words[0]):
        return status_arguments(words[3:], root), 0
    raise Refused("anything but a deploy by push_deploy.py, or the status" if words else "a shell")


def status_arguments(words: Sequence[str], root: str) -> list[str]:
    """Check each word that may be asked of the status; --root is this machine's, and comes with the rest later."""
    result = ["status", "--json"]
    for option, value in zip(words[::2], words[1::2]):
        if re.fullmatch(STATUS_OPTIONS.get(option, "(?!)"), value) and option not in result:
            result += [option, value]
        elif (option, value) != ("--root", root):
            raise Refused(f"the argument {option[:40]!r} {value[:40]!r}")
    if len(words) % 2:
        raise Refused(f"the argument {words[-1][:40]!r}")
    return result


def deploy_arguments(words: Sequence[str], roles: Sequence[str]) -> list[str]:
    """Check each word that push_deploy.py may send; whatever is not named here is refused."""
    if list(words[:4]) != ["deploy", "--trigger", "cd", "--json"]:
        raise Refused(f"`{words[0]}`" if words[0] != "deploy" else "a deploy that is not a push's")
    left, asked = list(words[4:]), []
    result = list(words[:4])
    while left:
        word = left.pop(0)
        if word == "--full":
            result.append(word)
        elif word == "--role" and left:
            asked.append(left.pop(0))
        elif word in ("--contains", "--commit") and left and re.fullmatch(COMMIT, left[0]):
            result += [word, left.pop(0)]
        else:
            raise Refused(f"the argument {word[:40]!r}")
    if set(asked) != set(roles):
        ours = " ".join(roles)
        raise Refused(
            f"the role {' '.join(asked)[:40]!r}: write `roles: {ours}` for this machine in cd.yml, or run"
            " setup_machine.py with other roles"
        )
    return result + [word for role in asked for word in ("--role", role)]


def roles_of(root: str) -> list[str]:
    """This machine's roles, as machine.ini has them."""
    parser = configparser.ConfigParser(interpolation=None, delimiters=("=",), inline_comment_prefixes=(";",))
    parser.read_string((Path(root) / "machine.ini").read_text(encoding="utf-8"))
    return parser["machine"]["roles"].split()


def environment() -> dict[str, str]:
    """Built, not inherited: an sshd may accept variables from the key's holder."""
    user = pwd.getpwuid(os.geteuid())
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return {"PATH": path, "HOME": user.pw_dir, "USER": user.pw_name, "LOGNAME": user.pw_name, "LANG": "C.UTF-8"}


def known_to(script: str, arguments: Sequence[str]) -> list[str]:
    """The arguments without those options of the status that this machine's version does not know yet."""
    if not set(STATUS_OPTIONS) & set(arguments):
        return list(arguments)
    command = [sys.executable, script, "--help"]
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=10,
            env=environment(), check=False, text=True,
        )  # fmt: skip
        pairs = list(zip(arguments[2::2], arguments[3::2]))
        return [*arguments[:2], *(word for pair in pairs if f"{pair[0]} " in done.stdout for word in pair)]
    return list(arguments[:2])


def take_place(root: str) -> None:
    """Be one of SESSIONS connections; the place is this process's, whatever it becomes, until it ends. Raises Refused.

    Whoever holds the key could else begin any number of them, each of which takes memory.
    """
    try:
        descriptor = os.open(f"{root}/state/sessions", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o640)
    except OSError:
        return  # before the first deploy there is no such directory
    os.set_inheritable(descriptor, True)
    for place in range(SESSIONS):
        with contextlib.suppress(OSError):
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
            return
    raise Refused(f"more than {SESSIONS} connections at the same time")


def throw_away(size: int) -> None:
    """Read that many bytes from stdin; of a connection that stalls meanwhile nothing stays."""
    signal.alarm(120)
    while size > 0:
        data = os.read(0, min(size, 65536))
        if not data:
            sys.exit("loader: the connection ended before the script had arrived")
        size -= len(data)
    signal.alarm(0)


def main() -> NoReturn:
    root = sys.argv[1]
    script = f"{root}/bin/deploy_machine.py"
    try:
        arguments, size = granted(os.environ.get("SSH_ORIGINAL_COMMAND", ""), root, roles_of(root))
        take_place(root)
    except (Refused, OSError, KeyError, configparser.Error) as error:
        if isinstance(error, Refused):
            # not in words with "deploy": a user of that name is a secret, which GitHub would hide in them
            reason = f"this key is restricted on this machine: refused {error} (setup_machine.py --restrict-ci-key)"
        else:
            reason = f"{root}/machine.ini cannot be read: run setup_machine.py"
        syslog.openlog("deploy-machine")
        syslog.syslog(syslog.LOG_WARNING, f"CI's key: {reason}; from {os.environ.get('SSH_CLIENT', 'nowhere')}")
        print(f"loader: {reason}", file=sys.stderr)
        sys.exit(EXIT_USAGE)
    throw_away(size)
    if arguments[0] == "deploy":
        print(MARKER + time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), flush=True)
    else:
        arguments = known_to(script, arguments)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.execve(sys.executable, [sys.executable, script, *arguments, "--root", root], environment())


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""On a machine: the only thing that CI's key may do there, if it is restricted (a forced command).

`setup_machine.py --restrict-ci-key` installs this file, root-owned, and puts the key into authorized_keys as

    restrict,command="/usr/bin/python3 -I /usr/local/lib/deploy-machine/restricted_push.py /srv/app" ssh-ed25519 ...

sshd then starts this, whatever the key's holder asked for, and tells what that was in
$SSH_ORIGINAL_COMMAND. Two requests of push_deploy.py are granted, word for word and nothing beside them:
a deploy, and the question what became of one. Both run this machine's own bin/deploy_machine.py; the
version that a push carries along is read and thrown away, because running it would be running anything.
The commit's own takes over in the deploy, as it does at a boot.

It needs Python 3.9 or newer and nothing outside the standard library.
"""

from __future__ import annotations

import configparser
import os
import pwd
import re
import shlex
import signal
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
    if words[:1] == ["python3"] and words[2:] == ["status", "--json", "--root", root]:
        if re.fullmatch(re.escape(f"{root}/deployers/") + VERSION + r"/deploy_machine\.py", words[1]):
            return ["status", "--json"], 0
    raise Refused("anything but a deploy by push_deploy.py" if words else "a shell")


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
        raise Refused(f"the role {' '.join(asked)[:40]!r} (this machine's: {' '.join(roles)})")
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
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.execve(sys.executable, [sys.executable, script, *arguments, "--root", root], environment())


if __name__ == "__main__":
    main()

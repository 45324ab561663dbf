"""shared/.env: read as systemd reads an EnvironmentFile=, for steps and, as a program of its own, for services.

    python3 -I dotenv.py FILE PROGRAM ARGUMENTS...
        Become PROGRAM, with the variables of FILE over those that are there. Without FILE as if it were empty.

Units start their services by this, with the service's own user. An EnvironmentFile= is read by systemd itself, as
root, before it starts a process (exec_context_load_environment() in its src/core), and without a time limit: a FIFO
of that name, which whoever owns the file can make, would stop the machine's PID 1 for good.

This module stands alone: setup_machine.py installs it, root-owned, outside of what `deploy` can write.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import stat
import sys
from collections.abc import Sequence
from typing import NoReturn

MOST_BYTES = 1_000_000
CANNOT_READ = 78  # EX_CONFIG of sysexits.h
CANNOT_RUN = 203  # EXIT_EXEC of systemd.exec(5)


def read(path: str) -> str:
    """The text of a regular file of at most MOST_BYTES. Raises OSError, also for what is none, without a wait."""
    # a FIFO that nobody writes to would keep an open() without O_NONBLOCK waiting
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", path)
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise OSError(errno.EFBIG, f"it is larger than {MOST_BYTES // 1_000_000} MB", path)
    return data.decode("utf-8", "replace")


def parse(text: str, dropped: list[int] | None = None) -> dict[str, str]:
    """The variables in a text, as systemd finds them (its src/basic/env-file.c), damaged lines too.

    Comments begin with # or ;, values may be 'literal', "with \\" escapes" or bare (then a backslash
    escapes one character, and quotes in it are literal); a backslash at the end of a line continues it.
    dropped: takes the numbers of the lines whose names systemd does not take.
    """
    line_pattern = re.compile(r"(?s)[ \t\r\n]*(?:[#;](?:\\.|[^\\\r\n])*|(?P<key>[^\r\n][^=\r\n]*|)(?P<equals>=?))")
    quoted_pattern = re.compile(r"""(?s)[ \t]*(?:'(?P<literal>[^']*)'?|"(?P<escaped>(?:\\.|[^\\"])*)"?)""")
    bare_pattern = re.compile(r"(?s)[ \t]*(?P<text>(?:\\.?|[^\\ \t\r\n]|[ \t]+(?=[^ \t\r\n]))*)")
    result: dict[str, str] = {}
    position = 0
    while position < len(text):
        line = line_pattern.match(text, position)
        assert line
        begins, position, value = line.start("key"), line.end(), ""
        if not line["equals"]:
            continue
        while part := quoted_pattern.match(text, position):
            value += part["literal"] or re.sub(r'\\(?:\n|(["\\`$]))', r"\1", part["escaped"] or "")
            position = part.end()
        bare = bare_pattern.match(text, position)
        assert bare
        value += re.sub(r"\\(?:[\r\n]|(.?))", r"\1", bare["text"])
        position = bare.end()
        if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*[ \t]*", line["key"]):
            result[line["key"].strip()] = value
        elif dropped is not None:
            dropped.append(text.count("\n", 0, begins) + 1)
    return result


def main(arguments: Sequence[str]) -> NoReturn:
    path, *command = arguments
    found: dict[str, str] = {}
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # which Python ignores, and would hand on so
    try:
        found = parse(read(path))
    except FileNotFoundError:
        pass
    except OSError as error:
        end(CANNOT_READ, f"{path} cannot be read: {error.strerror}")
    try:
        os.execve(command[0], command, {**given(), **found})
    except (OSError, ValueError) as error:  # ValueError: a NUL in a variable
        end(CANNOT_RUN, f"{command[0]}: {getattr(error, 'strerror', error)}")


def given() -> dict[str, str]:
    """The variables that this process got. Python itself may have added LC_CTYPE (PEP 538), which is nobody's wish."""
    own = dict(os.environ)
    with open("/proc/self/environ", "rb") as file:
        if not any(line.startswith(b"LC_CTYPE=") for line in file.read().split(b"\0")):
            own.pop("LC_CTYPE", None)
    return own


def end(code: int, message: str) -> NoReturn:
    print(f"dotenv: {message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])

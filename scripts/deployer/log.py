"""What people see: stderr, native journal entries, and systemd's status line.

A line can never end a deploy: a closed pipe, a reader that stalls or a full journal only silences that way.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket

ERROR, WARNING, NOTICE, INFO = 3, 4, 5, 6  # syslog's priorities
COLOURS: Mapping[int, str] = {ERROR: "\033[31m", WARNING: "\033[33m", NOTICE: "\033[1m"}
STALL_TIMEOUT = 10.0  # seconds that a reader of the log (a stalled ssh session) may hold a deploy up, once
CONTROL = re.compile(
    r"\x1b(?!\[[0-9;]*m)|[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f-\x9f"
    r"\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]"  # what turns the order of letters, or is not seen
)


class Sinks:
    """Where lines go: to stderr and, on a machine that is set up, to the journal."""

    def __init__(self) -> None:
        self.fields: dict[str, str] = {}  # sent along with every journal entry
        self.journal: socket.socket | None = None
        self.stderr = True
        self.colour = sys.stderr.isatty() and "NO_COLOR" not in os.environ

    def write(self, message: str, level: int, more: Mapping[str, str]) -> None:
        message = printable(message)
        if self.stderr:
            colour = COLOURS.get(level, "") if self.colour else ""
            try:
                write_all(2, f"{colour}{message}{colour and chr(27) + '[0m'}\n")
            except OSError:
                self.stderr = False  # whoever listened has gone, or stalls; the deploy goes on
        if self.journal and message.strip():
            entry = {"MESSAGE": message, "PRIORITY": str(level), "SYSLOG_IDENTIFIER": "deploy-machine"}
            with contextlib.suppress(OSError):
                self.journal.send(journal_datagram({**entry, **self.fields, **more}))


SINKS = Sinks()


def info(message: str) -> None:
    SINKS.write(message, INFO, {})


def notice(message: str, **fields: str) -> None:
    SINKS.write(message, NOTICE, fields)


def warning(message: str) -> None:
    SINKS.write(message, WARNING, {})


def error(message: str, **fields: str) -> None:
    SINKS.write(message, ERROR, fields)


def tag(**fields: str) -> None:
    """Send these fields along with every later journal entry."""
    SINKS.fields.update(fields)


def use_journal() -> None:
    """Send entries to journald as well (instead, when stderr already leads there)."""
    with contextlib.suppress(OSError):
        journal = datagrams()
        journal.connect("/run/systemd/journal/socket")
        journal.setblocking(False)
        status = os.fstat(2)
        SINKS.stderr = os.environ.get("JOURNAL_STREAM") != f"{status.st_dev}:{status.st_ino}"
        SINKS.journal = journal


def datagrams() -> socket.socket:
    """A socket for what systemd and its journal are sent."""
    import socket  # noqa: PLC0415 - takes a while, and whoever asks by hand needs none

    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)


def write_all(descriptor: int, text: str) -> None:
    """Write to a pipe or terminal. Raises OSError also when it takes nothing for STALL_TIMEOUT seconds."""
    data = text.encode("utf-8", "backslashreplace")  # a step may print what is no text
    for start in range(0, len(data), select.PIPE_BUF):  # so much never blocks where select() says yes
        if not select.select([], [descriptor], [], STALL_TIMEOUT)[1]:
            raise TimeoutError(errno.ETIMEDOUT, "nobody reads the output")
        os.write(descriptor, data[start : start + select.PIPE_BUF])


def nobody_listens() -> bool:
    """Whether the other end of stdout or stderr is closed: an ssh connection that has ended."""
    poll = select.poll()
    for descriptor in (1, 2):
        poll.register(descriptor, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def printable(text: str) -> str:
    """Text from elsewhere (a file's name, a step's output) without what steers a terminal; colours stay."""
    return CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)


def shorten(text: str, limit: int = 120) -> str:
    """A list in one line, cut behind one of its commas."""
    text = printable(" ".join(text.split()))
    return text if len(text) <= limit else text[: limit - 2].rpartition(",")[0] + ", ..."


def journal_datagram(fields: Mapping[str, str]) -> bytes:
    """Serialise fields in systemd's native journal protocol (length-prefixed form)."""
    parts = []
    for name, value in fields.items():
        data = value.encode("utf-8", "backslashreplace")[:60_000]
        parts.append(name.encode() + b"\n" + len(data).to_bytes(8, "little") + data + b"\n")
    return b"".join(parts)


def notify_systemd(message: str) -> None:
    """Send one sd_notify message; does nothing when systemd did not ask."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with contextlib.suppress(OSError), datagrams() as sender:
        sender.connect("\0" + address[1:] if address.startswith("@") else address)
        sender.send(message.encode("utf-8", "backslashreplace"))


def ready() -> None:
    """At boot: let systemd start the services now, on whatever `current` is. Only the first time counts."""
    notify_systemd("READY=1")


def progress(text: str) -> None:
    """Show what is going on in `systemctl status` (only when started as a service)."""
    notify_systemd("STATUS=" + text.replace("\n", " "))

"""On the CI runner: whether anybody is there at all. It is asked beside ssh, which has longer for a slow handshake."""

from __future__ import annotations

import contextlib
import errno
import selectors
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any, Callable

PATIENCE = 1.0  # seconds that ssh has to begin: most deploys have, and nothing is asked then
WITHIN = 4.0  # seconds after which somebody who is there has taken a connection: they are begun anew each second
AT_LEAST = 1.0  # seconds, however late it begins
OWN_WAYS = {"proxycommand", "proxyjump", "hostname", "port", "bindaddress", "bindinterface"}


class Scout(threading.Thread):
    """For the time of a `with` block; calls `on_absent` if ssh has not begun by then and nobody takes a connection."""

    def __init__(self, host: str, port: str, on_absent: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self.place, self.on_absent = (host, port), on_absent
        self.is_absent = False
        self.is_over = threading.Event()

    def __enter__(self) -> Scout:
        self.deadline = time.monotonic() + WITHIN
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.is_over.set()

    def run(self) -> None:
        if self.is_over.wait(PATIENCE):
            return
        if not is_there(*self.place, self.deadline, self.is_over):
            self.is_absent = True
            self.on_absent()


def is_there(host: str, port: str, deadline: float, is_over: threading.Event | None = None) -> bool:
    """Whether anybody is there until the deadline (monotonic seconds); True if nobody can say, or it is over."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:  # ssh says so itself
        return True
    addresses = [(family, address) for family, _, _, _, address in found]
    return bool(is_over and is_over.is_set()) or is_anybody_there(addresses, deadline, is_over)


def is_direct(ssh_options: Sequence[str]) -> bool:
    """Whether ssh, with these options of its -o, connects to the place itself that it was told."""
    return not any(option.partition("=")[0].strip().lower() in OWN_WAYS for option in ssh_options)


def is_anybody_there(
    addresses: Sequence[tuple[int, Any]], deadline: float, is_over: threading.Event | None = None
) -> bool:
    """Whether one of them takes or refuses a connection until the deadline (monotonic seconds); True if it is over.

    Where this computer has so much to do that this comes late, they have AT_LEAST all the same.
    """
    deadline = max(deadline, time.monotonic() + AT_LEAST)
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        while True:
            for family, address in addresses:
                begun = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
                begun.setblocking(False)
                if begun.connect_ex(address) in (0, errno.ECONNREFUSED):
                    return True
                selector.register(begun, selectors.EVENT_WRITE)
            again = min(time.monotonic() + 1.0, deadline)
            while not is_over or not is_over.is_set():
                now = time.monotonic()  # before they are looked at: what came meanwhile counts
                for key, _ in selector.select(min(max(0.0, again - now), 0.1)):
                    selector.unregister(key.fileobj)
                    if key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) in (0, errno.ECONNREFUSED):  # type: ignore[union-attr]
                        return True
                if now >= deadline:
                    return False
                if now >= again:
                    break
            else:
                return True

"""One deploy at a time: the lock, who waits for it, and for how long."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

from deployer import errors, files, host, log, memory

WAITING = 5  # pushes that wait for the lock at the same time: whoever holds CI's key can begin any number


@contextlib.contextmanager
def hold(request: memory.Request, while_waiting: Callable[[bool], None]) -> Iterator[int]:
    """Hold the machine's lock and yield its descriptor; its file is never removed.

    The kernel frees the lock with the process, so a killed run leaves none behind.

    Waits at most --lock-timeout seconds, saying for whom; then raises Busy. `while_waiting` is told whether
    the holder waits for services.
    """
    path = request.machine.state / "lock"
    descriptor = request.baton.lock if request.baton else os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    close_others(path, descriptor)
    try:
        with place_in_line(request):
            wait_for_lock(descriptor, request, while_waiting)
        yield descriptor
    finally:
        os.close(descriptor)


def close_others(file: Path, descriptor: int) -> None:
    """Close what a version that handed over has left open of the lock: this process would wait for itself."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if int(name) != descriptor and os.path.samestat(os.stat(f"/proc/self/fd/{name}"), os.stat(file)):
                os.close(int(name))


@contextlib.contextmanager
def place_in_line(request: memory.Request) -> Iterator[None]:
    """Have one of the places in which pushes wait; the kernel frees it with the process. Raises Busy."""
    with open(request.machine.state / "waiting", "ab") as file:
        if request.trigger == "cd" and not request.baton and not any(files.try_lock(file, n) for n in range(WAITING)):
            raise errors.Busy(f"{WAITING} other pushes wait for the lock already: this one does not")
        yield


def wait_for_lock(descriptor: int, request: memory.Request, while_waiting: Callable[[bool], None]) -> None:
    timeout, told = request.lock_timeout, ""
    deadline = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            holder = memory.read_running(request.machine) or {}
            pid, trigger, since = (holder.get(key, "unknown") for key in ("pid", "trigger", "started"))
            who = f"process {pid} ({trigger}, since {since})"
            while_waiting(bool(holder.get("waits_for_services")))
        if request.trigger == "cd" and log.nobody_listens():  # what has begun goes on without a listener
            raise errors.Busy(f"the connection ended while this waited for another deploy: {who}")
        if time.monotonic() >= deadline:
            raise errors.Busy(f"another deploy holds the lock: {who}; waited {timeout:g} s for it")
        if who != told:
            log.info(f"waiting for another deploy to end: {who}; for at most {timeout:g} s")
            log.progress(f"waiting for another deploy: {who}")
            told = who
        time.sleep(0.2)


def is_held(machine: host.Machine) -> bool:
    try:
        with open(machine.state / "lock", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    return False

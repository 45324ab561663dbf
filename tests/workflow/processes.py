"""One step's process: run it, pass its lines on, and end it the way GitHub's runner does."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

KILL_WAIT = 10_000  # milliseconds; a process that takes longer to die hangs in the kernel
PIPE_WAIT = 5.0  # seconds the runner waits for output after the step's own process has ended
SIGNALS = ((signal.SIGINT, 7.5), (signal.SIGTERM, 2.5))  # how the runner asks it to end, with the seconds for each


def execute(
    command: Sequence[str],
    env: Mapping[str, str],
    cwd: Path,
    line: Callable[[str], None],
    must_end: Callable[[], bool],
    is_killed: Callable[[], bool],
    clock: Callable[[], float],
) -> tuple[int, bool]:
    """Run `command` until it ends or must end; the exit code, and whether it had to be stopped."""
    process = subprocess.Popen(
        command, env=dict(env), cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    reader = threading.Thread(target=_read, args=(process, line), daemon=True)
    reader.start()
    stopped = False
    try:
        while not stopped and not _has_ended(process):
            stopped = must_end()
        if stopped:
            _interrupt(process, is_killed, clock)
    finally:
        if process.poll() is None:
            kill_tree(process.pid)
            process.wait()
        reader.join(PIPE_WAIT)
        if not reader.is_alive():
            process.stdout.close()  # type: ignore[union-attr]
    return process.returncode, stopped


def _read(process: subprocess.Popen[bytes], line: Callable[[str], None]) -> None:
    assert process.stdout is not None
    for data in process.stdout:
        line(data.decode(errors="replace"))


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Asks for a moment, so that a loop around it looks often enough, and not too often."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(0.05)
    return process.returncode is not None


def _interrupt(process: subprocess.Popen[bytes], is_killed: Callable[[], bool], clock: Callable[[], float]) -> None:
    """SIGINT, then SIGTERM, each to the step's own process alone; who does not end by them is left to the caller."""
    for number, seconds in SIGNALS:
        end = clock() + seconds
        process.send_signal(number)
        while clock() < end and not is_killed():
            if _has_ended(process):
                return


def kill_tree(pid: int) -> None:
    """SIGKILL to a process of ours and all its children, itself first, so that it starts no more of them."""
    children = _children(pid)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    for child in children:
        kill_tree(child)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(word) for word in task.read_text().split()]
    return found


def kill_orphans(tracking_id: str) -> list[str]:
    """At a job's end the runner kills what its steps left behind, known by a variable in their environment."""
    mark = f"RUNNER_TRACKING_ID={tracking_id}".encode()
    killed = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (process / "environ").read_bytes().split(b"\0"):
                name = (process / "comm").read_text().strip()
                _kill_and_wait(int(process.name))
                killed.append(name)
    return killed


def _kill_and_wait(pid: int) -> None:
    """When this returns, what the process held is free."""
    descriptor = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        ended = select.poll()
        ended.register(descriptor, select.POLLIN)
        ended.poll(KILL_WAIT)
    finally:
        os.close(descriptor)

"""One step's process: run it, pass its lines on, and end it the way GitHub's runner does."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

PIPE_WAIT = 5.0  # how long the runner waits for output after the step's own process has ended


def execute(
    command: Sequence[str],
    env: Mapping[str, str],
    cwd: Path,
    line: Callable[[str], None],
    stop: Callable[[], bool],
    grace: Callable[[], tuple[float, float]],
) -> tuple[int, bool]:
    """Run `command` until it ends or `stop()` is true; the exit code, and whether it had to be stopped."""
    process = subprocess.Popen(
        command, env=dict(env), cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    stream = process.stdout

    def read() -> None:
        with contextlib.suppress(ValueError, OSError):  # closed below while a stray child still holds it
            for data in stream:
                line(data.decode(errors="replace"))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    stopped = False
    try:
        while process.poll() is None:
            if stop():
                stopped = True
                _end(process, grace())
            else:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.05)
    finally:
        if process.poll() is None:
            kill_tree(process.pid)
            process.wait()
        reader.join(PIPE_WAIT)
        if not reader.is_alive():
            stream.close()
    return process.returncode, stopped


def _end(process: subprocess.Popen[bytes], grace: tuple[float, float]) -> None:
    """SIGINT, then SIGTERM, each to the step's own process alone; then SIGKILL to all that came from it."""
    for number, seconds in zip((signal.SIGINT, signal.SIGTERM), grace):
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            return
    kill_tree(process.pid)
    process.wait()


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
                os.kill(int(process.name), signal.SIGKILL)
                killed.append(name)
    if killed:
        time.sleep(0.05)  # so that what they held is free when the caller looks
    return killed

"""One command: its environment, its limits, its process group, and what it leaves running."""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import select
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Callable, Generic, NamedTuple, TypeVar

from deployer import errors, log

QUERY_TIMEOUT = 60.0  # seconds; for commands that only read
TAIL_LINES = 20  # of a failed command, repeated in the message
OWN = {"DEPLOY_RUN": ""}  # in the environment of every command; by it leftovers() knows a deploy's processes
SHOWN = {"timings": False}  # --timings: how long each command took

HOW_TO_GET = {
    "poetry": "https://python-poetry.org/docs/#installation (for the deploy user: pipx install poetry)",
    "uv": "https://docs.astral.sh/uv/getting-started/installation/",
    "npm": "apt install npm, or dnf install npm",
    "git": "apt install git, or dnf install git",
    "sudo": "apt install sudo, or dnf install sudo",
}


class Completed(NamedTuple):
    """What a command left: exit status, and its output (`out` holds both streams if live)."""

    code: int
    out: str
    err: str


def variables() -> dict[str, str]:
    """The environment of every command: built, not inherited, so that each trigger has the same."""
    home = os.environ.get("HOME") or pwd.getpwuid(os.geteuid()).pw_dir
    user = pwd.getpwuid(os.geteuid()).pw_name
    path = f"{home}/.local/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return {"PATH": path, "HOME": home, "USER": user, "LOGNAME": user, "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", **OWN}


def which(program: str) -> str:
    """Where the commands find a program; empty if nowhere."""
    return shutil.which(program, path=variables()["PATH"]) or ""


def command(
    argv: Sequence[str],
    *,
    timeout: float = QUERY_TIMEOUT,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    live: bool = False,
    check: bool = True,
    shown: str = "",
) -> Completed:
    """Run one command to its end, in its own session, for at most `timeout` seconds.

    live: print `+ command` and its output line by line as it comes.
    shown: how people see the command, if not as it is.
    check: raise CommandError unless it ends with 0. It is also raised, whatever `check` says, when the
    command cannot be started; and TimeLimit when it takes too long: then its whole process group is ended.
    """
    shown = shown or shlex.join(argv)
    if live:
        log.info(f"  + {shown}")
    began = time.monotonic()
    process = start(argv, variables() if env is None else env, cwd, live)
    try:
        out, err = collect_output(process, began + timeout, shown if live else "")
        if process.poll() is None:
            raise errors.TimeLimit(f"{shown} took longer than {timeout:g} s and was ended", tail(out + err))
    except BaseException:
        end_group(process)
        raise
    if SHOWN["timings"]:
        log.info(f"  {time.monotonic() - began:7.3f} s  {shown}")
    if check and process.returncode != 0:
        place = f" (in {cwd})" if cwd else ""
        raise errors.CommandError(f"{shown} {ending(process.returncode)}{place}", tail(out + err))
    return Completed(process.returncode, out, err)


def start(argv: Sequence[str], env: Mapping[str, str], cwd: Path | None, live: bool) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if live else subprocess.PIPE,
            cwd=cwd,
            env=dict(env),
            start_new_session=True,
        )
    except (FileNotFoundError, PermissionError, NotADirectoryError) as error:
        raise cannot_start(argv[0], error) from None


def cannot_start(program: str, error: OSError) -> errors.CommandError:
    if error.errno == errno.EACCES:
        return errors.CommandError(f"{program}: may not be run: {error.strerror}")
    hint = HOW_TO_GET.get(os.path.basename(program))
    return errors.CommandError(f"{program}: not found" + (f"; to get it: {hint}" if hint else ""))


def ending(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"


def collect_output(process: subprocess.Popen[bytes], deadline: float, live: str) -> tuple[str, str]:
    """Read both streams until the command ends or the deadline passes.

    live: the command as people see it, if its output is to be printed as it comes.
    """
    assert process.stdout
    began, printed = time.monotonic(), 0
    buffers = {pipe: bytearray() for pipe in (process.stdout, process.stderr) if pipe}
    waiting = list(buffers)
    while waiting and (left := deadline - time.monotonic()) > 0:
        ready = select.select(waiting, [], [], min(left, 0.5))[0]
        if not ready and process.poll() is not None:
            break  # a background process that it left holds the pipe open
        for pipe in ready:
            data = os.read(pipe.fileno(), 65536)
            if not data:
                waiting.remove(pipe)
            buffers[pipe] += data
        if live:
            printed = print_lines(buffers[process.stdout], printed, last=not waiting)
            if time.monotonic() - began >= 1:
                log.progress(f"{live} ({time.monotonic() - began:.0f} s)")
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(max(0.0, deadline - time.monotonic()))
    for pipe in buffers:
        pipe.close()
    texts = [buffer.decode("utf-8", "replace") for buffer in buffers.values()]
    return texts[0], "".join(texts[1:])


def print_lines(buffer: bytearray, begin: int, last: bool) -> int:
    """Print the whole lines of `buffer` from `begin` on; return where the next ones begin."""
    end = len(buffer) if last else buffer.rfind(b"\n") + 1
    if end > begin:
        for line in bytes(buffer[begin:end]).decode("utf-8", "replace").splitlines():
            if line.strip():
                log.info(f"    {line.rstrip()}")
    return max(begin, end)


def tail(text: str) -> str:
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    return "\n".join(lines[-TAIL_LINES:])


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a command and everything in its process group: TERM, and KILL after five seconds.

    What runs as root through sudo cannot be signalled; systemctl ends by its own time limits.
    """
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)


def end_leftovers(mark: str) -> None:
    """Kill what a deploy left running: all processes whose environment carries its mark as DEPLOY_RUN."""
    marker = f"DEPLOY_RUN={mark}".encode()
    for path in Path("/proc").glob("[0-9]*/environ"):
        pid = int(path.parent.name)
        with contextlib.suppress(OSError):
            if mark and pid != os.getpid() and marker in path.read_bytes().split(b"\0"):
                os.kill(pid, signal.SIGKILL)


T = TypeVar("T")


class Background(threading.Thread, Generic[T]):
    """Work that goes on in a thread of its own while this one does something else."""

    def __init__(self, work: Callable[[], T]) -> None:
        super().__init__(daemon=True)
        self.work = work
        self.outcome: list[T] = []
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self.outcome.append(self.work())
        except Exception as error:
            self.error = error

    def result(self) -> T:
        """Wait until it has ended; return what it returned, or raise what it raised."""
        self.join()
        if self.error:
            raise self.error
        return self.outcome[0]

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
from typing import IO, Callable, Generic, NamedTuple, TypeVar

from deployer import errors, log, telling

QUERY_TIMEOUT = 60.0  # seconds; for commands that only read
TAIL_LINES, TAIL_WIDTH = 20, 300  # of a failed command, repeated in the result, and the characters of each
MOST = 16_000_000  # bytes of output that is kept whole, to be parsed
KEPT = 65_536  # bytes of other output that are kept: its end
SHOWN_MOST, LINE_MOST = 4_000_000, 2_000  # bytes of output that are shown of a command, and of a line of it
PATIENCE = 1.0  # seconds for what a command has left to end by itself
OWN = {"DEPLOY_RUN": ""}  # in the environment of every command; by it leftovers() knows a deploy's processes
BESIDE = " beside"  # behind that mark: what goes on while later commands run, and is not left by one of them
NO_PROGRAM = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ENOEXEC)
SHOWN = {"timings": False}  # --timings: how long each command took

HOW_TO_GET = {
    "poetry": "https://python-poetry.org/docs/#installation (for the deploy user: pipx install poetry)",
    "uv": "https://docs.astral.sh/uv/getting-started/installation/",
    "npm": "apt install npm, or dnf install npm",
    "git": "apt install git, or dnf install git",
    "sudo": "apt install sudo, or dnf install sudo",
}


class Completed(NamedTuple):
    """What a command left: exit status, and its output (`out` holds both streams if live); of `err` only the end."""

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
    most: int = MOST,
) -> Completed:
    """Run one command until it ends, in its own session, for at most `timeout` seconds.

    live: print `+ command` and its output line by line as it comes.
    shown: how people see the command, if not as it is.
    most: so many bytes of its output are kept; of a live one, or if it is 0, only the end.
    check: raise CommandError unless it ends with 0. It is also raised, whatever `check` says, when the
    command cannot be started; TooMuch when it prints more than `most`, and TimeLimit when it takes too long:
    then its whole process group is ended.
    """
    shown = shown or shlex.join(argv)
    if live:
        log.info(f"  + {shown}")
    began = time.monotonic()
    process = start(argv, variables() if env is None else env, cwd, live)
    try:
        out, err = collect_output(process, began + timeout, shown, live, 0 if live else most)
        if process.poll() is None:
            raise errors.TimeLimit(f"{shown} took longer than {timeout:g} s and was ended", tail(out + err))
    except BaseException:
        end_group(process)
        raise
    if SHOWN["timings"]:
        log.info(f"  {time.monotonic() - began:7.3f} s  {shown}")
    if check and process.returncode != 0:
        place = f" (in {cwd})" if cwd else ""
        raise errors.CommandError(
            f"{shown} {ending(process.returncode)}{place}", tail(out + err), telling.line(out + err)
        )
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
    except OSError as error:
        if error.errno not in NO_PROGRAM:
            raise
        raise cannot_start(argv[0], error) from None


class Beside:
    """A command that goes on while the deploy does something else; its output and its status do not matter."""

    def __init__(self, argv: Sequence[str], timeout: float) -> None:
        self.deadline, self.shown = time.monotonic() + timeout, f"{shlex.join(argv)} took longer than {timeout:g} s"
        env = {**variables(), "DEPLOY_RUN": OWN["DEPLOY_RUN"] + BESIDE}
        nothing = subprocess.DEVNULL
        self.process = subprocess.Popen(
            list(argv), stdin=nothing, stdout=nothing, stderr=nothing, env=env, start_new_session=True
        )

    def wait(self) -> None:
        """Wait for its end. Raises TimeLimit."""
        try:
            self.process.wait(max(0.0, self.deadline - time.monotonic()))
        except BaseException as error:
            self.end()
            if isinstance(error, subprocess.TimeoutExpired):
                raise errors.TimeLimit(f"{self.shown} and was ended") from None
            raise

    def end(self) -> None:
        if self.process.poll() is None:
            end_group(self.process)


def cannot_start(program: str, error: OSError) -> errors.CommandError:
    if error.errno in (errno.EACCES, errno.EPERM):
        return errors.CommandError(f"{program}: may not be run: {error.strerror}")
    if error.errno == errno.ENOEXEC:
        return errors.CommandError(f"{program}: no program of this machine, and no #! in its first line")
    hint = HOW_TO_GET.get(os.path.basename(program))
    return errors.CommandError(f"{program}: not found" + (f"; to get it: {hint}" if hint else ""))


def ending(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"


class Stream:
    """What is kept of one stream of a command: all of it up to a limit, or else its end."""

    def __init__(self, most: int) -> None:
        self.most = most  # 0: only the end counts
        self.data = bytearray()

    def take(self, data: bytes) -> None:
        """Raises TooMuch if it is more than is kept whole."""
        self.data += data
        if self.most and len(self.data) > self.most:
            raise errors.TooMuch(f"printed more than {self.most / 1e6:g} MB and was ended")
        if not self.most and len(self.data) > 2 * KEPT:
            del self.data[:-KEPT]

    def text(self) -> str:
        return self.data.decode("utf-8", "replace")


class Printer:
    """Prints output as it comes, line by line: neither a line nor all of them may grow without end."""

    def __init__(self) -> None:
        self.line = bytearray()  # that has not ended yet
        self.shown = 0  # bytes

    def take(self, data: bytes) -> None:
        if self.shown > SHOWN_MOST:
            return
        *whole, rest = data.split(b"\n")
        for part in whole:
            self.add(part)
            self.show()
        self.add(rest)

    def add(self, part: bytes) -> None:
        self.line += part[: max(0, LINE_MOST + 1 - len(self.line))]

    def show(self) -> None:
        """Print the line that has ended."""
        cut = " ..." if len(self.line) > LINE_MOST else ""
        text = self.line[:LINE_MOST].decode("utf-8", "replace") + cut
        if self.shown > SHOWN_MOST:
            return
        for line in text.splitlines():
            if line.strip():
                log.info(f"    {line.rstrip()}")
        self.shown += len(self.line) + 1
        self.line.clear()
        if self.shown > SHOWN_MOST:
            log.warning(f"    ... more than {SHOWN_MOST / 1e6:g} MB: the rest is not shown")


def collect_output(
    process: subprocess.Popen[bytes], deadline: float, shown: str, live: bool, most: int
) -> tuple[str, str]:
    """Read both streams until the command itself ends or the deadline passes. Raises TooMuch."""
    assert process.stdout
    began, printer = time.monotonic(), Printer() if live else None
    kept = {process.stdout: Stream(most), **({process.stderr: Stream(0)} if process.stderr else {})}
    waiting = list(kept)
    while waiting and process.poll() is None and (left := deadline - time.monotonic()) > 0:
        for pipe in select.select(waiting, [], [], min(left, 0.5))[0]:
            if not take_from(pipe, kept[pipe], printer, shown):
                waiting.remove(pipe)
        if live and time.monotonic() - began >= 1:
            log.progress(f"{shown} ({time.monotonic() - began:.0f} s)")
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(max(0.0, deadline - time.monotonic()))
    for pipe in waiting:  # what it left there; but those whom it left running may go on writing for ever
        for _ in range(16):
            if not select.select([pipe], [], [], 0)[0] or not take_from(pipe, kept[pipe], printer, shown):
                break
    if printer:
        printer.show()
    for pipe in kept:
        pipe.close()
    texts = [stream.text() for stream in kept.values()]
    return texts[0], "".join(texts[1:])


def take_from(pipe: IO[bytes], stream: Stream, printer: Printer | None, shown: str) -> bool:
    """Read what is there of a stream; whether more may come."""
    data = os.read(pipe.fileno(), 65536)
    try:
        stream.take(data)
    except errors.TooMuch as error:
        raise errors.TooMuch(f"{shown} {error}") from None
    if printer:
        printer.take(data)
    return bool(data)


def tail(text: str) -> str:
    """The last lines, none of them longer than a page."""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    return "\n".join(clipped(line, TAIL_WIDTH) for line in lines[-TAIL_LINES:])


def clipped(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 4] + " ..."


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a command and everything in its process group: TERM, and KILL after five seconds.

    What runs as root through sudo cannot be signalled; systemctl ends by its own time limits.
    """
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)


def leftovers(mark: str) -> dict[int, str]:
    """What a deploy left running, pid -> name: all processes whose environment carries its mark as DEPLOY_RUN."""
    marker, found = f"DEPLOY_RUN={mark}".encode(), {}
    for name in os.listdir("/proc") if mark else ():  # a glob would fail of a process that ends meanwhile
        with contextlib.suppress(OSError):
            if name.isdigit() and int(name) != os.getpid():
                if marker in Path("/proc", name, "environ").read_bytes().split(b"\0"):
                    found[int(name)] = Path("/proc", name, "comm").read_text().strip()
    return found


def end_leftovers(mark: str, patience: float = 0.0) -> list[str]:
    """Kill what a deploy left running and does not end by itself in so many seconds; their names."""
    deadline = time.monotonic() + patience
    while (found := leftovers(mark)) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in found:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 2
    while found and leftovers(mark) and time.monotonic() < deadline:  # one that reads from a disk dies a little later
        time.sleep(0.02)
    return sorted(found.values())


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

"""An open-loop load: requests begin on a timetable, whatever became of those before them.

A closed loop (load.py) asks again when it was answered, so it hardly asks a server that stalls, and what the users
would have met then is not counted. Here each request has a connection of its own, begins when it is due, and its
latency counts from that moment.

Run as a program (in the runner's network namespace) it asks until its input is closed; a line of input, such as
/slow?20, begins one more request at once. Then it prints every answer as a line of JSON. Only the standard library:
no lab is needed there.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import http.client
import io
import json
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from lab.world import World

RATE = 50  # requests in a second
PATHS = ("/healthz", "/")  # in turn: a release whose health is well may have a page that is not
LIMIT = 1200.0  # seconds after which it begins no more by itself
PATIENCE = 75.0  # seconds for one answer; so at most RATE * PATIENCE are open at once
LAST_LINE = "end of stream"


@dataclasses.dataclass(frozen=True)
class Answer:
    """One request. Times are seconds of the monotonic clock, which all processes of this host share."""

    path: str
    scheduled: float
    began: float
    ended: float
    status: int  # 0: no answer
    commit: str  # of the release that answered, as its header says; empty if nginx itself answered
    error: str

    @property
    def steady(self) -> bool:
        """Whether it is one of the timetable's, and not a long one."""
        return self.path in PATHS

    @property
    def failed(self) -> bool:
        return self.status != 200 or bool(self.error)

    @property
    def latency(self) -> float:
        """Seconds from when it was due until it was answered, without what a long one (/slow?20) asked for."""
        return self.ended - self.scheduled - float(self.path.partition("?")[2] or 0)


class Received:
    """All that came over a connection, as http.client wants to read it."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def makefile(self, *_: object) -> IO[bytes]:
        return io.BytesIO(self.data)


async def exchange(host: str, port: int, path: str) -> bytes:
    """Send one request, and take what comes until the connection is closed."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        # a name that the application allows, whichever machine it is
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        return await reader.read()
    finally:
        writer.close()


def read(path: str, data: bytes) -> tuple[int, str, str]:
    """Status, commit and error of an answer; one that is not complete is an error, whatever its status says."""
    response = http.client.HTTPResponse(Received(data))  # type: ignore[arg-type]
    response.begin()
    commit, body = response.headers.get("Commit", ""), response.read()
    text = body.decode("utf-8", "replace")
    if response.status != 200:
        return response.status, commit, text[:200]
    # a stream that is cut looks like one that has ended: HTTP/1.0, as nginx speaks it to gunicorn, tells no length
    if path.startswith("/stream") and text.splitlines()[-1:] != [LAST_LINE]:
        return response.status, commit, f"cut: it ends with {text[-40:]!r}"
    return response.status, commit, ""


async def ask(host: str, port: int, path: str, scheduled: float) -> Answer:
    began = time.monotonic()
    try:
        status, commit, error = read(path, await asyncio.wait_for(exchange(host, port, path), PATIENCE))
    except (OSError, http.client.HTTPException, asyncio.TimeoutError) as problem:
        status, commit, error = 0, "", f"{type(problem).__name__}: {problem}"
    return Answer(path, scheduled, began, time.monotonic(), status, commit, error)


class Timetable:
    """The requests of one run."""

    def __init__(self, host: str, port: int) -> None:
        self.ask = functools.partial(ask, host, port)
        self.asked: list[asyncio.Task[Answer]] = []
        self.stop = asyncio.Event()

    def begin(self, path: str, scheduled: float) -> None:
        self.asked.append(asyncio.create_task(self.ask(path, scheduled)))

    def order(self, line: str) -> None:
        """One line of input: a path to ask for now; none: the input was closed."""
        if line:
            self.begin(line.strip(), time.monotonic())
        else:
            self.stop.set()

    async def run(self) -> list[Answer]:
        """Ask until told to stop; then wait for what is still open."""
        first = time.monotonic()
        for number in range(int(LIMIT * RATE)):
            due = first + number / RATE
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            if self.stop.is_set():
                break
            self.begin(PATHS[number % len(PATHS)], due)
        return await asyncio.gather(*self.asked)


async def main(host: str, port: int = 80) -> None:
    # a connection each: more than the 1,024 files of the default wait when a server stalls for 20 s
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    table, loop = Timetable(host, port), asyncio.get_running_loop()

    def listen() -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody wants the orders any more
            for line in sys.stdin:
                loop.call_soon_threadsafe(table.order, line)
            loop.call_soon_threadsafe(table.order, "")

    threading.Thread(target=listen, daemon=True).start()
    for answer in await table.run():
        print(json.dumps(dataclasses.asdict(answer)))


class Load:
    """A load that runs: `start` adds a long request to it; the answers are there when it has ended."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.answers: list[Answer] = []

    def start(self, path: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{path}\n")
        self.process.stdin.flush()

    def end(self) -> None:
        out, _ = self.process.communicate("", timeout=PATIENCE + 45)
        self.answers = [Answer(**json.loads(line)) for line in out.splitlines()]


@contextlib.contextmanager
def running(world: World, address: str) -> Iterator[Load]:
    """The load from the runner while the block runs, and until its last answer is there."""
    command = ["ip", "netns", "exec", world.network.namespace("runner"), sys.executable, str(Path(__file__)), address]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    load = Load(process)
    try:
        yield load
        load.end()
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], *map(int, sys.argv[2:])))

"""Steady requests while the application is deployed: each must be answered, and by the right release.

Run as a program (in the runner's network namespace) it sends the requests until its input is closed,
and prints every answer as a line of JSON. Only the standard library: no lab is needed there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lab.world import World

PAUSE = 0.02  # seconds between two requests of one client
LIMIT = 1800.0  # seconds after which it ends by itself
SLOW_SECONDS = 3


@dataclasses.dataclass(frozen=True)
class Answer:
    """One request. Times are seconds of the monotonic clock, which all processes of this host share."""

    kind: str  # keep-alive, new connection, slow
    began: float
    ended: float
    status: int  # 0: no answer
    commit: str
    error: str


def client(kind: str, host: str, stop: threading.Event, answers: list[Answer]) -> None:
    """Send one request after the other until told to stop."""
    connection = http.client.HTTPConnection(host, timeout=60)
    while not stop.is_set():
        began = time.monotonic()
        status, commit, error = 0, "", ""
        try:
            connection.request("GET", f"/slow?{SLOW_SECONDS}" if kind == "slow" else "/healthz")
            response = connection.getresponse()
            body = response.read()
            status = response.status
            commit = json.loads(body)["commit"] if status == 200 else ""
            error = body[:200].decode("utf-8", "replace") if status != 200 else ""
        except (OSError, http.client.HTTPException, ValueError, KeyError) as problem:
            error = f"{type(problem).__name__}: {problem}"
            connection.close()
        answers.append(Answer(kind, began, time.monotonic(), status, commit, error))
        if kind != "keep-alive":
            connection.close()
        time.sleep(PAUSE)


def main() -> None:
    host, stop = sys.argv[1], threading.Event()
    answers: list[Answer] = []
    kinds = ["keep-alive", "keep-alive", "new connection", "new connection", "slow"]
    threads = [threading.Thread(target=client, args=(kind, host, stop, answers), daemon=True) for kind in kinds]
    for thread in threads:
        thread.start()
    threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
    stop.wait(LIMIT)
    stop.set()
    for thread in threads:
        thread.join(70)
    for answer in answers:
        print(json.dumps(dataclasses.asdict(answer)))


@contextlib.contextmanager
def steady(world: World, address: str) -> Iterator[list[Answer]]:
    """Requests from the runner while the block runs; all answers are in the list at its end."""
    answers: list[Answer] = []
    command = ["ip", "netns", "exec", world.network.namespace("runner"), sys.executable, str(Path(__file__)), address]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield answers
        out, _ = process.communicate("", timeout=120)
        answers += [Answer(**json.loads(line)) for line in out.splitlines()]
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    main()

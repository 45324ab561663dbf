"""The stopwatch, a program of its own: it runs in the runner's namespace and on machines. Prints one JSON line.

run URL COMMIT -- COMMAND    seconds until the command has ended AND the URL answers 200 with that commit
first URL COMMIT             seconds until the first good answer of a machine that is being booted
"""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import time
from typing import Any
from urllib.parse import urlsplit

LIMIT = 60.0
HEADERS = {"Host": "localhost"}


def ask(url: str, connect: float = 5.0) -> tuple[int, str]:
    """Status and `commit` of one answer; raises OSError or HTTPException."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=connect)
    try:
        connection.connect()
        connection.sock.settimeout(60)
        connection.request("GET", parts.path, headers=HEADERS)
        answer = connection.getresponse()
        body = answer.read()
    finally:
        connection.close()
    return answer.status, str(json.loads(body).get("commit")) if answer.status == 200 else ""


def wait_for(url: str, commit: str, connect: float = 5.0) -> bool:
    """Ask until it answers 200, with that commit if one is given; whether it did within LIMIT."""
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        try:
            status, running = ask(url, connect)
            if status == 200 and commit in ("", running):
                return True
        except (OSError, http.client.HTTPException, ValueError):
            pass
        time.sleep(0.01)
    return False


def execute(command: list[str]) -> dict[str, Any]:
    """Run the command; how it ended, and the end of what it said."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, timeout=600
    )
    return {"code": done.returncode, "output": done.stdout.decode("utf-8", "replace")[-6000:]}


def run(url: str, commit: str, command: list[str]) -> dict[str, Any]:
    begin = time.monotonic()
    told = execute(command)
    told["seconds"] = time.monotonic() - begin
    if url and told["code"] == 0:
        told["healthy"] = wait_for(url, commit)
        told["seconds"] = time.monotonic() - begin
    return told


def first(url: str, commit: str) -> dict[str, Any]:
    begin = time.monotonic()
    print("ready", flush=True)
    healthy = wait_for(url, commit, connect=0.1)
    return {"code": 0, "healthy": healthy, "seconds": time.monotonic() - begin}


def main() -> int:
    words = sys.argv[1:]
    command = words[words.index("--") + 1 :] if "--" in words else []
    told = run(words[1], words[2], command) if words[0] == "run" else first(words[1], words[2])
    print(json.dumps(told))
    return 0


if __name__ == "__main__":
    sys.exit(main())

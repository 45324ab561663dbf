"""push_deploy.py as a program, on a runner: what a machine that misbehaves costs, and what is told of it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from many import silent

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))
import scout  # noqa: E402

MARKER = "deploy-machine started 2026-01-02T03:04:05Z"
# a process counts what the one had that started it: so it is started by a small one
MEASURE = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[2:])
open(sys.argv[1], "w").write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(code)
"""
BANNER = b"SSH-2.0-OpenSSH_9.9\r\n"
RESULT = '{"schema": 1, "outcome": "deployed", "message": "fine", "trigger": "cd"}'


class Pushed(NamedTuple):
    code: int
    log: str
    result: dict[str, Any]  # as the report gets it
    output: str  # what it is in $GITHUB_OUTPUT
    memory: float  # MB that the script has taken at most


class Runner:
    """A directory with a key, and push_deploy.py in it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        key = home / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        self.env = {
            "PATH": f"{home}/bin:{os.environ['PATH']}",
            "GITHUB_ACTIONS": "true",
            "GITHUB_OUTPUT": str(home / "output"),
            "DEPLOY_SSH_KEY": key.read_text(),
            "DEPLOY_KNOWN_HOSTS": "127.0.0.1 " + (home / "key.pub").read_text(),
            "WEB_USER": "somebody",
        }

    def push(self, host: str, *options: str) -> Pushed:
        output, log = self.home / "output", self.home / "log"
        output.write_text("")
        words = [sys.executable, str(SCRIPTS / "push_deploy.py"), "--machine", "web", "--role", "web", *options]
        measured = [sys.executable, "-S", "-c", MEASURE, str(self.home / "memory")]
        with open(log, "wb") as file:
            env = {**self.env, "WEB_HOST": host}
            done = subprocess.run([*measured, *words], env=env, stdout=file, stderr=file, check=False)
        memory = int((self.home / "memory").read_text()) / 1024
        text = output.read_text().strip().removeprefix("web=")
        result = json.loads(bytes.fromhex(text)) if text else {}
        return Pushed(done.returncode, log.read_text(), result, text, memory)

    def far_side(self, program: str) -> None:
        """Let `ssh` be this Python program: a machine that says what no sshd in a test would."""
        (self.home / "bin").mkdir()
        ssh = self.home / "bin/ssh"
        ssh.write_text(f"#!{sys.executable}\nimport json, sys\nsys.stdin.buffer.read()\n{textwrap.dedent(program)}")
        ssh.chmod(0o755)


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return Runner(tmp_path)


@contextlib.contextmanager
def listening(answer: Callable[[socket.socket, int], None]) -> Iterator[tuple[str, list[socket.socket]]]:
    """A port at which something else than sshd answers; what it has accepted."""
    server = socket.create_server(("127.0.0.1", 0))
    accepted: list[socket.socket] = []

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                accepted.append(connection)
                answer(connection, len(accepted))

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.getsockname()[1]}", accepted
    finally:
        for connection in (server, *accepted):
            connection.close()


def closes(connection: socket.socket, _: int) -> None:
    connection.close()


def resets(connection: socket.socket, _: int) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def refuses_as_sshd_does(connection: socket.socket, _: int) -> None:
    connection.sendall(b"Exceeded MaxStartups\r\n")
    connection.close()


def ends_in_the_handshake(connection: socket.socket, _: int) -> None:
    connection.sendall(BANNER)
    connection.recv(100)
    connection.close()


# --- a machine that answers, and its ssh does not -------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("answer", [closes, resets, refuses_as_sshd_does, ends_in_the_handshake])
def test_one_that_drops_connections_is_tried_again_and_then_failed(runner: Runner, answer: Any) -> None:
    with listening(answer) as (host, accepted):
        pushed = runner.push(host)
    assert len(accepted) == 4
    assert (pushed.code, pushed.result["outcome"]) == (10, "failed")
    assert pushed.result["message"].startswith("the machine answers but ssh does not: ")
    assert "::error title=web%3A failed::the machine answers but ssh does not: " in pushed.log
    assert "127.0.0.1" not in pushed.log, "the address is a secret"


@pytest.mark.slow
@pytest.mark.parametrize(("says", "seconds"), [(b"", "1"), (BANNER, "2")], ids=["nothing", "its banner and no more"])
def test_one_that_falls_silent_is_told_as_that_in_bounded_time(runner: Runner, says: bytes, seconds: str) -> None:
    options = ["--connect-timeout", seconds]
    options += ["--ssh-option", "ServerAliveInterval=1", "--ssh-option", "ServerAliveCountMax=1"]
    with listening(lambda connection, _: connection.sendall(says)) as (host, _):
        begin = time.monotonic()
        pushed = runner.push(host, *options)
    assert time.monotonic() - begin < 30
    assert pushed.result["outcome"] == "failed"
    assert pushed.result["message"].startswith("the machine answers but ssh does not: Connection ")
    assert "timed out" in pushed.result["message"]


def test_one_that_goes_off_while_it_is_tried_is_offline(runner: Runner) -> None:
    def shuts_down(connection: socket.socket, number: int) -> None:
        connection.close()
        if number == 2:
            server.close()

    server = socket.create_server(("127.0.0.1", 0))
    host = f"127.0.0.1:{server.getsockname()[1]}"

    def serve() -> None:
        with contextlib.suppress(OSError):
            for number in (1, 2):
                shuts_down(server.accept()[0], number)

    threading.Thread(target=serve, daemon=True).start()
    pushed = runner.push(host)
    assert (pushed.code, pushed.result["outcome"]) == (69, "offline")
    assert "Connection refused" in pushed.result["message"]


def test_one_that_is_silent_is_told_as_offline_within_four_seconds(runner: Runner) -> None:
    with silent() as server:
        begin = time.monotonic()
        pushed = runner.push(f"127.0.0.1:{server.getsockname()[1]}")
        seconds = time.monotonic() - begin
    assert (pushed.code, pushed.result["outcome"]) == (69, "offline")
    assert pushed.result["message"] == "it does not answer: nobody took a connection within 4 s"
    assert pushed.log.count("connecting") == 1
    assert seconds < 5.5, "with some time for the programs themselves to start"


def test_one_that_is_there_is_found_however_late_it_is_looked_for() -> None:
    """As on a runner that has so much to do that the time is over before this begins."""
    over = time.monotonic() - 5
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert scout.is_there("127.0.0.1", str(server.getsockname()[1]), over)
    with silent() as server:
        begin = time.monotonic()
        assert not scout.is_there("127.0.0.1", str(server.getsockname()[1]), over)
    assert time.monotonic() - begin > 0.9, "an answer has its way to come"


def begins_late(runner: Runner) -> None:
    runner.far_side(f"""\
        import time
        time.sleep(5)
        print({MARKER!r}, flush=True)
        print({RESULT!r})
        """)


def test_one_that_takes_a_connection_late_has_its_time(runner: Runner) -> None:
    begins_late(runner)
    with silent() as server:
        threading.Timer(2.5, server.accept).start()  # the queue has room again
        pushed = runner.push(f"127.0.0.1:{server.getsockname()[1]}")
    assert (pushed.code, pushed.result["outcome"]) == (0, "deployed"), pushed.log


def test_one_that_is_reached_through_another_is_not_looked_for_directly(runner: Runner) -> None:
    begins_late(runner)
    with silent() as server:
        pushed = runner.push(f"127.0.0.1:{server.getsockname()[1]}", "--ssh-option", "ProxyJump=bastion")
    assert pushed.result["outcome"] == "deployed", pushed.log


# --- a machine that says too much -----------------------------------------------------------------------

GIGABYTE = 1_000_000_000


@pytest.mark.slow
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("line", ["x" * 999_999, "x" * 98 + "\n"], ids=["an endless line", "lines"])
def test_a_gigabyte_takes_no_memory_and_hides_no_result(runner: Runner, stream: str, line: str) -> None:
    runner.far_side(f"""\
        print({MARKER!r}, flush=True)
        block = {line!r}.encode() * ({GIGABYTE // 100} // {len(line)} + 1)
        for _ in range(100):
            sys.{stream}.buffer.write(block)
        sys.{stream}.buffer.write(b"\\n")
        sys.{stream}.flush()
        print({RESULT!r})
        """)
    pushed = runner.push("127.0.0.1")
    assert (pushed.code, pushed.result["message"]) == (0, "fine"), pushed.log[-2000:]
    assert pushed.memory < 60
    assert len(pushed.log) < 21_000_000
    assert ("left out" in pushed.log) == (stream == "stderr")


@pytest.mark.slow
@pytest.mark.parametrize("what", ['"x"', "[[],{}]"])
def test_a_result_of_a_gigabyte_is_cut_and_not_lost(runner: Runner, what: str) -> None:
    runner.far_side(f"""\
        print({MARKER!r}, flush=True)
        sys.stdout.write({RESULT!r}[:-1] + ', "steps": [')
        for _ in range(100):
            sys.stdout.write({what + ","!r} * {GIGABYTE // 100 // (len(what) + 1)})
        sys.stdout.write("0]}}\\n")
        """)
    pushed = runner.push("127.0.0.1")
    assert (pushed.code, pushed.result["message"]) == (0, "fine"), pushed.log[-2000:]
    assert pushed.memory < 60


@pytest.mark.parametrize("what", ["[]", "[[]]", "{}", '"\u00e9\u00e9"', "1.5"])
def test_the_longest_result_that_is_read_takes_no_more(runner: Runner, what: str) -> None:
    head = RESULT[:-1] + ', "detail": "a\\nthe end", "steps": ['
    runner.far_side(f"""\
        print({MARKER!r}, flush=True)
        sys.stdout.reconfigure(encoding="utf-8")
        print({head!r} + {what + ","!r} * {400_000 // (len(what) + 1)} + "0]}}")
        """)
    pushed = runner.push("127.0.0.1")
    assert (pushed.code, pushed.result["message"]) == (0, "fine"), pushed.log[-2000:]
    assert pushed.result["detail"].endswith("the end")
    assert pushed.memory < 60
    assert len(pushed.output) <= 2 * 16_384


# --- what cannot be seen in what it says ------------------------------------------------------------------


def test_what_it_says_shows_what_is_there(runner: Runner) -> None:
    hidden = "gnp.\u202egpj\u2066 \u200b\U000e0041\x1b[2J\x9b\u2028::error::x \x1b[31mred"
    result = {**json.loads(RESULT), "outcome": "failed", "message": hidden, "detail": hidden}
    runner.far_side(f"""\
        print({MARKER!r}, flush=True)
        sys.stderr.reconfigure(encoding="utf-8")
        print({hidden!r}, file=sys.stderr, flush=True)
        print({json.dumps(result)!r})
        """)
    log = runner.push("127.0.0.1").log
    assert "gnp.\\u202egpj\\u2066 \\u200b\\U000e0041\\x1b[2J\\x9b\\u2028::error::x \x1b[31mred\n" in log
    assert "::error title=web%3A failed::gnp.\\u202egpj\\u2066" in log
    assert not any(char in log for char in "\u202e\u2066\u200b\U000e0041\u2028\x9b")

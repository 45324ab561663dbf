"""Whatever hangs ends within its own limit, with its own message, and leaves nothing running."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import time

import pytest

from small_app import DEPLOY_INI, App
from waiting import wait_for


def command_lines() -> str:
    return subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("scheme", ["git", "ssh", "http", "https"])
def test_a_remote_that_accepts_and_says_nothing(app: App, scheme: str) -> None:
    app.deploy()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"{scheme}://127.0.0.1:{silent.getsockname()[1]}/app.git"
        began = time.monotonic()
        command = [word.replace(f"file://{app.origin}", url) for word in app.command("--fetch-timeout", "2")]
        environment = {**app.environment(), "GIT_ALLOW_PROTOCOL": scheme}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert time.monotonic() - began < 15
    result = json.loads(done.stdout)
    assert (done.returncode, result["outcome"]) == (75, "unreachable")
    assert f"{url}: git fetch was not done within 2.0 s" in result["message"]
    assert "if it is only slow or large, raise fetch_timeout in machine.ini" in result["message"]
    place = url.partition("//")[2]
    assert place not in command_lines() and f"-p {place.partition(':')[2][:-8]} " not in command_lines()


@pytest.mark.parametrize(
    "script",
    [
        'trap "" TERM; while :; do sleep 46.11; done & while :; do sleep 46.11; done; sleep 46.11',
        "setsid sleep 46.22 & sleep 46.22",
        "trap '' TERM; setsid sh -c '(setsid sleep 46.33 &); sleep 46.33; :' & sleep 46.33",
    ],
    ids=["ignores TERM", "a child in a session of its own", "a daemon that ignores TERM"],
)
def test_a_step_that_does_not_want_to_end(app: App, script: str) -> None:
    good = app.deploy().result["commit"]
    app.commit({"slow.sh": script, "deploy.ini": DEPLOY_INI + "\n[step slow]\ntimeout = 1\nrun = sh slow.sh\n"})
    began = time.monotonic()
    done = app.deploy(expect=10)
    assert time.monotonic() - began < 20
    assert "step slow failed: sh slow.sh took longer than 1 s and was ended" in done.result["message"]
    assert script[-11:] not in command_lines(), "each has a number of its own"
    assert app.revision() == good


def test_a_reader_of_the_log_that_stalls_does_not_hold_the_deploy_up(app: App) -> None:
    new = app.commit({"deploy.ini": DEPLOY_INI + "\n[step talk]\nrun = seq 100000\n"})
    read, write = os.pipe()  # nobody ever reads it: it takes 64 KiB
    try:
        began = time.monotonic()
        process = subprocess.Popen(app.command("deploy"), stdout=write, stderr=write, env=app.environment())
        assert process.wait(60) == 0
        assert time.monotonic() - began < 25  # 10 of them it is waited for
    finally:
        os.close(read)
        os.close(write)
    assert app.revision() == new


def test_a_check_that_does_not_end(app: App) -> None:
    good = app.deploy().result["commit"]
    text = DEPLOY_INI.replace("[deploy]", "[deploy]\nhealth_timeout = 2").replace(
        "[role web]", "[role web]\ncheck = sleep 45.11\n"
    )
    app.commit({"deploy.ini": text})
    began = time.monotonic()
    done = app.deploy(expect=11)
    assert time.monotonic() - began < 20
    assert "sleep 45.11 took longer than" in done.result["message"]
    assert "sleep 45.11" not in command_lines()
    assert app.revision() == good


def test_a_check_that_leaves_a_daemon(app: App) -> None:
    app.deploy()
    text = DEPLOY_INI.replace("[deploy]", "[deploy]\nhealth_timeout = 2").replace(
        "[role web]", "[role web]\ncheck = sh check.sh\n"
    )
    app.commit({"deploy.ini": text, "check.sh": "setsid sleep 43.11 & sleep 43.11\n"})
    app.deploy(expect=11)
    assert "sleep 43.11" not in command_lines()


@pytest.mark.parametrize("command", ["status", "deploy"])
def test_a_health_check_of_what_runs_whose_answer_drips_in(app: App, command: str) -> None:
    """No deploy waits for this one, but `status` does, and a deploy with nothing new."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        dripping = threading.Event()
        threading.Thread(target=answer, args=(server, dripping), daemon=True).start()
        health = f"[role web]\nhealth = http://127.0.0.1:{server.getsockname()[1]}/\n"
        others = "[role scheduler]\nservices =\n[role frontend]\nslots =\nreload =\n"
        text = DEPLOY_INI.replace("[role web]\n", health).replace("services = worker.service\n", others)
        (app.root / "machine.ini").write_text("[machine]\nname = one\nroles = web\n")  # else no URL is asked
        app.commit({"deploy.ini": text.replace("[deploy]", "[deploy]\nhealth_timeout = 2")})
        app.deploy()
        dripping.set()
        began = time.monotonic()
        if command == "status":
            assert app.run("status").result["problem"] == "the health check does not end"
        else:
            assert app.deploy(expect=12).result["outcome"] == "broken"
        assert time.monotonic() - began < 30


def answer(server: socket.socket, dripping: threading.Event) -> None:
    """Answer 200, or without an end."""
    kept = []
    with contextlib.suppress(OSError):
        while True:
            server.settimeout(0.2)
            with contextlib.suppress(TimeoutError):
                client, _ = server.accept()
                client.recv(1000)
                client.sendall(b"HTTP/1.1 200 OK\r\n" + b"\r\n" * (not dripping.is_set()))
                kept += [client] if dripping.is_set() else client.close() or []
            for client in kept:
                with contextlib.suppress(OSError):
                    client.sendall(b"x")


def test_a_deploy_that_is_killed_leaves_no_step_behind_after_the_next(app: App) -> None:
    app.commit({"deploy.ini": DEPLOY_INI + "\n[step slow]\nrun = sh -c 'test -e $HOME/go || setsid sleep 44.11'\n"})
    process = subprocess.Popen(
        app.command("deploy"), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=app.environment()
    )
    wait_for(lambda: "sleep 44.11" in command_lines(), "the step runs")
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    (app.root.parent / "go").touch()
    app.deploy()
    assert "\nsleep 44.11" not in command_lines()

"""Everybody is told: each ending of a boot but `unchanged` reaches history, status and the webhook, in time."""

from __future__ import annotations

import fcntl
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from small_app import DEPLOY_INI, SCRIPT, App


class Webhook:
    """A real server that keeps what it was told."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []
        self.pings: list[str] = []
        self.code = 200
        own = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                own.told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.answer()

            def do_GET(self) -> None:
                own.pings.append(self.path)
                self.answer()

            def answer(self) -> None:
                self.send_response(own.code)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def texts(self) -> list[str]:
        return [message["text"] for message in self.told]


@pytest.fixture
def webhook(app: App) -> Iterator[Webhook]:
    found = Webhook()
    app.deploy()
    address = f"http://127.0.0.1:{found.server.server_port}"
    (app.root / "shared/.env").write_text(f"DEPLOY_WEBHOOK_URL={address}/x\nDEPLOY_PING_URL={address}/secret?a=b\n")
    app.deploy()
    yield found
    found.server.shutdown()
    found.server.server_close()


BOOT = ("deploy", "--trigger", "boot")


def last(app: App) -> dict[str, Any]:
    status = app.run("status").result
    assert status["interrupted"] is False
    assert status["attempts"][-1] == status["last"]
    return dict(status["last"])


def test_a_boot_whose_branch_is_gone(app: App, webhook: Webhook) -> None:
    app.git("branch", "-m", "main", "trunk")
    done = app.run(*BOOT)
    assert (done.code, done.result) == (2, {})
    assert (last(app)["outcome"], last(app)["trigger"]) == ("failed", "boot")
    assert "has no branch 'main'" in last(app)["message"]
    assert len(webhook.told) == 1
    assert "has no branch 'main'" in webhook.texts()[0]


def test_a_boot_whose_machine_ini_is_broken(app: App, webhook: Webhook) -> None:
    (app.root / "machine.ini").write_text("[machine]\nverify = maybe\n")
    assert app.run(*BOOT).code == 2
    assert "verify = maybe" in webhook.texts()[0]
    (app.root / "machine.ini").unlink()
    assert "verify = maybe" in last(app)["message"]


def test_a_boot_that_finds_another_deploy_in_the_way(app: App, webhook: Webhook) -> None:
    with open(app.root / "state/lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert app.run(*BOOT, "--lock-timeout", "0.3").code == 75
    assert last(app)["outcome"] == "busy"
    assert "busy at boot" in webhook.texts()[0]


def test_a_boot_pings_whoever_waits_for_it(app: App, webhook: Webhook) -> None:
    assert app.run(*BOOT).result["outcome"] == "unchanged"
    app.commit({"deploy.ini": DEPLOY_INI + "[step x]\nrun = false\n"})
    assert app.run(*BOOT).code == 10
    (app.root / "machine.ini").write_text("[machine]\nverify = maybe\n")
    assert app.run(*BOOT).code == 2
    (app.root / "machine.ini").unlink()
    with open(app.root / "state/lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert app.run(*BOOT, "--lock-timeout", "0.3").code == 75
    app.run("deploy")
    assert webhook.pings == ["/secret?a=b", "/secret/fail?a=b", "/secret/fail?a=b"], "nothing of busy, nor of a push"


def test_a_ping_that_does_not_arrive_is_one_quiet_line(app: App, webhook: Webhook) -> None:
    webhook.code = 500
    done = app.run(*BOOT)
    assert (done.code, done.result["outcome"]) == (0, "unchanged")
    assert [line for line in done.log.splitlines() if " ping " in line] == ["the ping did not arrive: HTTPError"]
    assert "secret" not in done.log


def test_each_look_of_watch_is_a_ping(app: App, webhook: Webhook) -> None:
    address = f"http://127.0.0.1:{webhook.server.server_port}/healthz"
    none = "[role scheduler]\nservices =\n[role frontend]\nslots =\nreload =\n[role worker]\n"
    text = DEPLOY_INI.replace("[role web]", f"[role web]\nhealth = {address}")
    app.commit({"deploy.ini": text.replace("[role worker]\nservices = worker.service\n", none)})
    (app.root / "machine.ini").write_text("[machine]\nname = one\nroles = web\n")  # else no URL is asked
    app.deploy()

    def look() -> list[str]:
        webhook.pings.clear()
        app.run("watch", patch="watch.PAUSE = 0")
        return [path for path in webhook.pings if path != "/healthz"]

    assert look() == ["/secret?a=b"]
    webhook.code = 500
    assert look() == ["/secret/fail?a=b"]
    with open(app.root / "state/lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert look() == [], "a deploy is going on, and nothing was looked at"


UNIT = "deploy-on-startup.service"


def test_what_tells_of_a_boot_that_could_not_run_pings_too(app: App, webhook: Webhook) -> None:
    (app.root / "machine.ini").write_text("[machine]\nname = one\n")
    script = Path(__file__).resolve().parents[2] / "scripts/deploy_failed.py"
    argv = [sys.executable, "-IS", str(script), str(app.root), UNIT]
    told = {
        "UNIT": UNIT,
        "SERVICE_RESULT": "signal",
        "EXIT_CODE": "killed",
        "EXIT_STATUS": "KILL",
        "INVOCATION_ID": "a1",
    }
    env = {**os.environ, **{f"MONITOR_{name}": value for name, value in told.items()}}
    done = subprocess.run(argv, capture_output=True, text=True, check=True, env=env)
    assert webhook.pings == ["/secret/fail?a=b"]
    assert webhook.texts()[0].startswith("one: failed at boot: the deploy at boot was killed by SIGKILL; ")
    (app.root / "state/told").write_text("a1\n")
    subprocess.run(argv, capture_output=True, check=True, env=env)
    assert len(webhook.pings) == 1, "the start that failed has told it itself, whatever was started since then"
    assert (done.stderr, "secret" in done.stdout) == ("", False)


def test_a_repository_out_of_reach_is_told_once_and_when_that_is_over(app: App, webhook: Webhook) -> None:
    app.origin.rename(app.origin.with_name("away"))
    patch = f"""
        import time
        tries = []
        def sleep(seconds, real=time.sleep):
            if seconds >= 5:
                tries.append(seconds)
                if len(tries) == 3:
                    os.rename({str(app.origin.with_name("away"))!r}, {str(app.origin)!r})
                seconds = 0
            real(seconds)
        time.sleep = sleep
        deploy.TELL_UNREACHABLE = 0
    """
    done = app.run(*BOOT, "--fetch-timeout", "1", patch=patch)
    assert done.result["outcome"] == "unchanged", done.log
    first, second = webhook.texts()
    assert "unreachable at boot" in first
    assert "the repository answers again" in second


@pytest.mark.parametrize("is_there", [True, False])
def test_a_boot_without_any_network_waits_for_none(app: App, is_there: bool) -> None:
    app.deploy()
    app.origin.rename(app.origin.with_name("away"))
    patch = f"""
        import time
        def sleep(seconds, real=time.sleep):
            if seconds == 5:  # behind the services
                os.rename({str(app.origin.with_name("away"))!r}, {str(app.origin)!r})
            real(0.1)
        time.sleep = sleep
        host.has_link = lambda: {is_there}
    """
    done = app.run(*BOOT, "--fetch-timeout", "4", patch=patch)
    tries = done.log.partition("unreachable: ")[0].count("trying again in ")
    assert (tries > 0, done.result["outcome"]) == (is_there, "unchanged"), done.log


def test_whether_there_is_a_network(tmp_path: Path) -> None:
    apart = ["unshare", "--net", *(["--map-root-user"] if os.geteuid() else [])]
    asks = [sys.executable, "-c", "from deployer import host; print(host.has_link())"]
    env = {**os.environ, "PYTHONPATH": str(SCRIPT.parent)}
    assert subprocess.check_output([*apart, *asks], env=env) == b"False\n"
    (tmp_path / "route").write_text("Iface\tDestination\n")
    (tmp_path / "ipv6_route").write_text(
        f"{'0' * 32} 00 {'0' * 32} 00 {'0' * 32} ffffffff 00000001 00000000 00200200 eth0\n"
    )
    asks[-1] = f"import pathlib; from deployer import host; print(host.has_link(pathlib.Path({str(tmp_path)!r})))"
    assert subprocess.check_output(asks, env=env) == b"True\n"


@pytest.mark.parametrize(("who", "how"), [("webhook", "drips"), ("webhook", "never answers"), ("ping", "drips")])
def test_a_webhook_or_ping_that_takes_its_time_is_not_waited_for(app: App, who: str, how: str) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(20)
    is_over = threading.Event()

    def drip() -> None:
        connection, _ = listener.accept()
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        while not is_over.wait(0.2):
            if how == "drips":
                connection.sendall(b"x")
        connection.close()

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/secret"
        app.deploy()
        app.commit({"code.py": "2"})
        (app.root / "shared/.env").write_text(f"DEPLOY_{who.upper()}_URL={address}\n")
        began = time.monotonic()
        done = app.run(*BOOT, patch=f"messages.{who.upper()}_TIMEOUT = 2.0")
        assert done.result["outcome"] == "deployed"
        assert time.monotonic() - began < 9
        problem = "the webhook could not be told" if who == "webhook" else "the ping did not arrive"
        assert f"{problem}: it did not end within 2 s" in done.log
        assert "secret" not in done.log
    finally:
        is_over.set()
        thread.join()
        listener.close()


def test_what_a_message_says_calls_nobody_in_a_chat(app: App, webhook: Webhook) -> None:
    step = "[step x]\nrun = sh -c 'echo \"Error: <!channel> @here <https://evil.example|sign in> [a](b)\"; exit 1'\n"
    app.commit({"deploy.ini": DEPLOY_INI + step})
    assert app.run(*BOOT).code == 10
    text = webhook.texts()[0]
    assert "sign in" in text
    assert not [mark for mark in ("<", ">", "@", "://", "](") if mark in text]


def test_a_result_is_bounded_where_it_is_made(app: App) -> None:
    step = (
        "[step x]\nrun = sh -c 'for i in $(seq 60); do head -c 2500 /dev/zero | tr \"\\\\0\" y; echo; done; exit 1'\n"
    )
    app.commit({"deploy.ini": DEPLOY_INI + step})
    result = app.deploy(expect=10).result
    lines = result["detail"].splitlines()
    assert 1 < len(lines) <= 20
    assert max(map(len, lines)) <= 300
    assert len(json.dumps(result)) <= 16_000
    wide = "[step x]\nrun = python3 -c \"print('\\U0001f600' * 9000); print('last'); exit(1)\"\n"
    app.commit({"deploy.ini": DEPLOY_INI + wide.replace("9000)", "290 + chr(10)) * 20")})
    result = app.deploy(expect=10).result
    assert len(json.dumps(result)) <= 16_000
    assert json.loads(json.dumps(result))["message"]


def test_letters_that_turn_others_round_are_shown_as_what_they_are(app: App) -> None:
    app.commit(
        {"deploy.ini": DEPLOY_INI + "[step x]\nrun = printf 'Error: a\\342\\200\\256b\\342\\201\\246c'; exit 1\n"}
    )
    done = app.run("deploy")
    assert "a\\u202eb\\u2066c" in done.log
    assert not [char for char in done.log if char in "\u202e\u2066"]


def test_roles_that_are_not_those_of_the_machine_are_a_usage_error(app: App) -> None:
    app.deploy()
    (app.root / "machine.ini").write_text("[machine]\nname = one\nroles = worker\n")
    done = app.run("deploy")  # it asks for --role web
    assert done.code == 2
    assert "roles = worker here, --role web was asked for: run setup_machine.py" in done.log


def test_the_branches_that_there_are_and_where_to_name_one(app: App) -> None:
    app.git("branch", "-m", "main", "master")
    app.git("branch", "develop")
    done = app.run("deploy")
    assert done.code == 2
    assert "has no branch 'main'; it has develop, master: name one with --branch, or as branch =" in done.log


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")
def test_a_repository_of_another_user(app: App) -> None:
    for path in [app.origin, *app.origin.rglob("*")]:
        os.lchown(path, 65534, 65534)
    done = app.deploy("--fetch-timeout", "2", expect=75)
    assert f"git config --global --add safe.directory {app.origin}" in done.result["message"]


def test_lines_of_the_environment_file_that_systemd_leaves_out_are_told_once(app: App) -> None:
    (app.root / "state").mkdir()
    (app.root / "shared").mkdir()
    text = "\ufeffA=1\nexport SECRET=hidden\n# export B=2\nC='a\nb=c'\nD=3\n"
    (app.root / "shared/.env").write_text(text, encoding="utf-8")
    done = app.deploy()
    (warning,) = done.result["warnings"]
    assert "lines 1, 2 left out, as systemd does: write NAME=value, without export" in warning
    assert "byte order mark" in warning
    assert done.log.count(warning) == 1
    assert "hidden" not in done.log + warning


def test_what_a_failed_step_said_is_printed_once(app: App) -> None:
    app.commit({"deploy.ini": DEPLOY_INI + "[step x]\nrun = sh -c 'echo only; echo once; exit 1'\n"})
    done = app.deploy(expect=10)
    assert done.result["detail"] == "only\nonce"
    assert len([line for line in done.log.splitlines() if line.strip(" |") == "only"]) == 1


@pytest.mark.slow
def test_a_proxy_of_the_environment_file_is_used(app: App) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(20)
    asked: list[bytes] = []

    def answer() -> None:
        connection, _ = listener.accept()
        asked.append(connection.recv(1000))
        connection.close()

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        app.deploy()
        proxy = f"http://127.0.0.1:{listener.getsockname()[1]}"
        (app.root / "shared/.env").write_text(f"HTTPS_PROXY={proxy}\n")
        command = [part if not part.startswith("file:") else "https://git.invalid/app.git" for part in app.command()]
        subprocess.run([*command, "--fetch-timeout", "2"], env=app.environment(), capture_output=True, check=False)
    finally:
        thread.join()
        listener.close()
    assert asked[0].startswith(b"CONNECT git.invalid:443 ")


@pytest.mark.parametrize("what", ["a folder", "a FIFO", "a device", "a link to nowhere", "too large"])
def test_an_environment_file_that_is_none(app: App, what: str) -> None:
    app.deploy()
    app.commit({"code.py": "print(2)\n"})
    path = app.root / "shared/.env"
    if what == "a folder":
        path.mkdir()
    elif what == "a FIFO":
        os.mkfifo(path)
    elif what == "too large":
        path.write_text("A=" + "x" * 2_000_000)
    else:
        path.symlink_to("/dev/zero" if what == "a device" else "/nowhere/.env")
    done = app.run("deploy")
    if what == "a link to nowhere":
        assert done.result["outcome"] == "deployed"
        return
    assert (done.code, done.result["outcome"]) == (10, "failed")
    assert f"{path} cannot be read: " in done.result["message"]
    assert last(app)["outcome"] == "failed"


def test_a_machine_ini_that_is_a_fifo(app: App) -> None:
    app.deploy()
    os.mkfifo(app.root / "machine.ini")
    done = app.run("deploy")
    assert done.code == 2
    assert "machine.ini: not a regular file" in done.log

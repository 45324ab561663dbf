"""The report as a program: verdict, page, annotations and webhook; and how it and the push refuse wrong arguments."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))
import report_deploys  # noqa: E402
from deployer import errors  # noqa: E402


def result(outcome: str, **more: Any) -> dict[str, Any]:
    return {
        "schema": 1, "machine": "m", "roles": ["r"], "trigger": "cd", "outcome": outcome, "commit": "b" * 40,
        "wanted": "b" * 40, "previous": "a" * 40, "release": "x", "started": "2026-01-02T03:04:05Z", "seconds": 4.2,
        "steps": [{"name": "python", "result": "ran", "seconds": 1.2, "why": "poetry.lock changed"}],
        "services": [], "healthy": True, "message": "some words", **more,
    }  # fmt: skip


def encode(value: Any) -> Any:
    return json.dumps(value).encode().hex() if isinstance(value, dict) else value


def report(tmp_path: Path, results: Any, *expect: str, **env: str) -> tuple[int, str, str]:
    """Exit code, log and summary page."""
    if isinstance(results, dict):
        results = json.dumps({name: encode(value) for name, value in results.items()})
    env |= {"DEPLOY_RESULTS": results} if results is not None else {}
    page = tmp_path / "page.md"
    page.unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "report_deploys.py"), "--expect", *expect],
        env={"PATH": os.environ["PATH"], "GITHUB_STEP_SUMMARY": str(page), **env},
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.stderr == ""
    return done.returncode, done.stdout, page.read_text()


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [
        (["deployed", "deployed"], 0),
        (["deployed", "offline"], 0),
        (["offline", "offline"], 0),
        (["unchanged", "superseded"], 0),
        (["offline", "failed"], 1),
        (["failed", "offline"], 1),
        (["deployed", "rolled_back"], 1),
        (["deployed", "broken"], 1),
        (["deployed", "unreachable"], 1),
        (["deployed", "busy"], 1),
    ],
)
def test_the_verdict(tmp_path: Path, outcomes: list[str], code: int) -> None:
    results = {name: result(outcome) for name, outcome in zip(("one", "two"), outcomes, strict=True)}
    found, log, page = report(tmp_path, results, "one", "two")
    assert found == code
    bad = [outcome for outcome in outcomes if errors.exit_code(outcome) not in (0, errors.EXIT_OFFLINE)]
    assert log.count("::error ") == len(bad)
    assert log.count("::warning ") == outcomes.count("offline")
    assert page.count("\n| ") == 3


@pytest.mark.parametrize("value", [None, "", "zz", "00", b"[]".hex(), b'{"schema": 1, "outcome": "fine"}'.hex(), 5])
def test_a_missing_or_malformed_result_is_a_failure(tmp_path: Path, value: Any) -> None:
    code, log, page = report(tmp_path, {"one": result("deployed"), "two": value}, "one", "two")
    assert code == 1
    assert "❌ left no result" in page
    assert log.count("::error ") == 1


@pytest.mark.parametrize("text", ["", "not json", "[]", "null"])
def test_no_results_at_all(tmp_path: Path, text: str) -> None:
    assert report(tmp_path, text, "one")[0] == 1


def test_what_a_machine_says_cannot_break_the_page_or_the_log(tmp_path: Path) -> None:
    hostile = "x | y\n::error::gotcha\n<script>`a`</script> @team ```\n"
    steps = [{"name": hostile, "result": "failed", "seconds": "x", "why": hostile}]
    code, log, page = report(tmp_path, {"one": result("failed", message=hostile, steps=steps)}, "one")
    assert code == 1
    assert "\n::error::gotcha" not in log
    assert "<script>" not in page
    assert "@team" not in page
    row = next(line for line in page.splitlines() if line.startswith("| one"))
    assert len(row.replace("\\|", "").split("|")) == 7


def test_a_result_for_each_machine(tmp_path: Path) -> None:
    one = {"MACHINE_ONE_RESULT": encode(result("deployed"))}
    code, log, _ = report(tmp_path, None, "machine-one", "two", **one, TWO_RESULT="")
    assert (code, "two: left no result: no result arrived: its job ended" in log) == (1, True)
    code, log, _ = report(tmp_path, None, "machine-one", "two", **one)
    assert "two: left no result: cd.yml does not pass its result on: add TWO_RESULT to the env of the step" in log
    code, log, _ = report(tmp_path, None, "machine-one", "two", **one, TWO_RESULT=encode(result("offline")))
    assert (code, log.splitlines()[-1]) == (0, "updated: machine-one; offline: two")


@pytest.mark.parametrize("key", ["message", "detail", "steps", "services", "warnings", "release", "unknown", "machine"])
def test_a_result_that_is_too_large_is_cut_and_never_lost(tmp_path: Path, key: str) -> None:
    values: dict[str, Any] = {
        "steps": [{"name": f"step {number}", "result": "ran", "why": "y" * 20, "seconds": 1} for number in range(700)],
        "services": [{"unit": "x" * 500, "state": "active", "action": "none"}] * 100,
        "warnings": ["w" * 5000] * 10,
        "unknown": {str(number): [[["x" * 100]]] for number in range(400)},
        "detail": "x" * 50_000 + "\nlast words",
    }
    found = result("failed", **{key: values.get(key, "x" * 60_000)})
    assert len(encode(found)) > 4 * 16_384
    code, log, page = report(tmp_path, None, "one", ONE_RESULT=encode(found))
    assert (code, "one: failed, the old release serves: " in log) == (1, True)
    assert len(page) < 30_000
    assert ("last words" in page) == (key == "detail")


def test_the_page_stays_within_githubs_limit_whatever_the_machines_say(tmp_path: Path) -> None:
    steps = [{"name": "<&" * 9, "result": "ran", "why": "<&" * 80, "seconds": 1e6} for _ in range(60)]
    names = [f"m{number}" for number in range(40)]
    found = encode(result("failed", message="<&" * 500, steps=steps, detail=("x" * 299 + "\n") * 20))
    code, _, page = report(tmp_path, None, *names, **{f"{name.upper()}_RESULT": found for name in names})
    assert code == 1
    assert 500_000 < len(page.encode()) < 1024 * 1024
    assert page.count("\n| m") == len(names) + 1  # the head of the table
    assert len(page.partition("```mermaid")[2]) < 50_000


def test_the_page_has_no_link_that_a_machine_wrote(tmp_path: Path) -> None:
    text = "see https://evil.example/x and www.evil.example <a href=x>y</a> [z](https://evil.example)"
    steps = [{"name": "python", "result": "ran", "why": text}]
    page = report(tmp_path, {"one": result("rolled_back", message=text, steps=steps)}, "one")[2]
    assert "https://" not in page
    assert "www." not in page
    assert "](" not in page


def test_annotations_stay_within_githubs_limits(tmp_path: Path) -> None:
    names = [f"m{number}" for number in range(14)]
    results = {name: result("failed", message="x" * 2500, detail="y" * 1500) for name in names}
    _, log, _ = report(tmp_path, results, *names)
    errors = [line for line in log.splitlines() if line.startswith("::error ")]
    assert len(errors) == 10
    assert all(len(line) <= 4096 for line in errors)
    assert "m13" in errors[-1]


@pytest.mark.slow
def test_the_webhook_is_told_and_its_failure_is_only_a_warning(tmp_path: Path) -> None:
    bodies = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(500 if len(bodies) > 1 else 200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/secret"
    results = {"one": result("deployed"), "two": result("offline")}
    code, log, _ = report(tmp_path, results, "one", "two", DEPLOY_WEBHOOK_URL=url)
    assert (code, "webhook" in log) == (0, False)
    assert bodies[0]["text"].startswith("updated: one; offline: two\n")
    assert [entry["outcome"] for entry in bodies[0]["results"]] == ["deployed", "offline"]
    code, log, _ = report(tmp_path, results, "one", "two", DEPLOY_WEBHOOK_URL=url)
    server.shutdown()
    code2, log2, _ = report(tmp_path, results, "one", "two", DEPLOY_WEBHOOK_URL=url)
    for found, text in ((code, log), (code2, log2)):
        assert found == 0
        assert "::warning title=webhook::the webhook could not be told" in text
        assert "/secret" not in text


@pytest.mark.slow
def test_the_webhook_has_an_end_however_it_drips(tmp_path: Path) -> None:
    server = socket.create_server(("127.0.0.1", 0))

    def drip() -> None:
        connection, _ = server.accept()
        with contextlib.suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
            while True:
                connection.sendall(b"x")
                time.sleep(0.5)

    threading.Thread(target=drip, daemon=True).start()
    begin = time.monotonic()
    url = f"http://127.0.0.1:{server.getsockname()[1]}/"
    code, log, _ = report(tmp_path, {"one": result("deployed")}, "one", DEPLOY_WEBHOOK_URL=url)
    assert time.monotonic() - begin < 20
    assert (code, "the webhook could not be told: no answer within 10 s" in log) == (0, True)
    server.close()


@pytest.mark.parametrize(
    "hostile",
    [
        "<!channel> <!here|x> <@U012AB> <#C012> <https://evil.example|sign in>",
        "@here @channel @all @everyone @team",
        "[sign in](https://evil.example) ![x](https://evil.example/x.png) <https://evil.example>",
        "`x` ``` *bold* https://evil.example",
    ],
)
def test_no_mention_or_link_of_a_machine_works_in_a_chat(hostile: str) -> None:
    found = {"outcome": "failed", "schema": 1, "message": hostile, "steps": "x"}
    machines = report_deploys.read_machines(["one"], {"ONE_RESULT": encode(found)})
    text = report_deploys.webhook_text(machines)
    assert not any(one in text for one in ("<", ">", "@", "](", "://", "``"))
    assert text.count("`") == 2, "and all of it is in one code span"
    assert text.endswith("`")
    assert len(text) < 700


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("push_deploy.py", ["--machine", "-x"]),
        ("push_deploy.py", ["--machine", "web", "--role", "r", "--commit=--x"]),
        ("push_deploy.py", ["--machine", "web", "--role", "r", "--connect-timeout", "soon"]),
        ("push_deploy.py", ["--machine", "web", "--role", "r", "--ssh-option", "nonsense"]),
        ("push_deploy.py", ["--machine", "web"]),
        ("report_deploys.py", []),
        ("report_deploys.py", ["--expect", "a b"]),
    ],
)
def test_usage_errors_are_one_line(script: str, arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / script), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"{script}: ")
    assert done.stderr.count("\n") == 1

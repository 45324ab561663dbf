"""The runner's side by value: what ssh's words mean, and what the report makes of results."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))
import push_deploy  # noqa: E402
import report_deploys  # noqa: E402
from push_deploy import Evidence, PushError, classify, read_target  # noqa: E402

RESULT = {"schema": 1, "outcome": "deployed"}


@pytest.mark.parametrize(
    ("evidence", "kind", "says"),
    [
        (Evidence(0, started="2026", result=RESULT), "answered", ""),
        (Evidence(255, started="2026", result=RESULT), "answered", ""),
        (Evidence(255, "Connection to h closed by remote host.", started="2026"), "lost", ""),
        (Evidence(255, "ssh: connect to host h port 22: No route to host"), "offline", "No route"),
        (Evidence(255, "ssh: connect to host h port 22: Connection timed out"), "offline", "timed out"),
        (Evidence(255, "ssh: connect to host h port 22: Connection refused"), "offline", "refused"),
        (Evidence(255, "Connection timed out during banner exchange"), "offline", "banner"),
        (Evidence(255, "kex_exchange_identification: Connection closed by remote host"), "offline", "kex"),
        (Evidence(255, "ssh: connect to host h port 22: Network is unreachable"), "offline", "unreachable"),
        (
            Evidence(255, "d@h: Permission denied (publickey).\nConnection closed by h"),
            "failed",
            "does not accept the key",
        ),
        (Evidence(255, "Host key verification failed."), "failed", "DEPLOY_KNOWN_HOSTS"),
        (
            Evidence(255, "No ED25519 host key is known for h and you have requested strict checking."),
            "failed",
            "KNOWN",
        ),
        (Evidence(255, "ssh: Could not resolve hostname h: Name or service not known"), "failed", "correct X_HOST"),
        (Evidence(255, "no matching host key type found"), "failed", "no method in common"),
        (Evidence(255, ""), "failed", "without a word"),
        (Evidence(127, last_words="bash: python3: command not found"), "failed", "python3 is not installed there"),
        (Evidence(1, last_words="loader: /srv/app: no such directory there"), "failed", "/srv/app: no such directory"),
        (Evidence(2, started="2026", last_words="deploy_machine.py: unknown role 'x'"), "failed", "unknown role 'x'"),
        (Evidence(137, started="2026"), "failed", "signal 9"),
        (Evidence(1, started="2026", last_words="KeyError"), "failed", "without a result: KeyError"),
    ],
)
def test_classification(evidence: Evidence, kind: str, says: str) -> None:
    found, message = classify(evidence, "X_HOST")
    assert found == kind
    assert says in message


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("h", ("h", "22")),
        ("uat.example.com:2222", ("uat.example.com", "2222")),
        ("10.0.0.1", ("10.0.0.1", "22")),
        ("[fe80::1]:2222", ("fe80::1", "2222")),
        ("[::1]", ("::1", "22")),
        ("::1", ("::1", "22")),
    ],
)
def test_hosts(host: str, expected: tuple[str, str]) -> None:
    target = read_target("web", host, "deploy")
    assert (target.host, target.port) == expected


@pytest.mark.parametrize("host", ["-oProxyCommand=x", "a b", "h:", "h:x", "h:123456", "[h]:1", "$(x)", "h;x", "u@h"])
def test_malformed_hosts(host: str) -> None:
    with pytest.raises(PushError, match="WEB_HOST is malformed"):
        read_target("web", host, "deploy")


@pytest.mark.parametrize("user", ["-oProxyCommand=x", "a b", "root;x", "@"])
def test_malformed_users(user: str) -> None:
    with pytest.raises(PushError, match="WEB_USER is malformed"):
        read_target("web", "h", user)


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
    if not isinstance(results, str):
        results = json.dumps({name: encode(value) for name, value in results.items()})
    page = tmp_path / "page.md"
    page.unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "report_deploys.py"), "--expect", *expect],
        env={"PATH": os.environ["PATH"], "DEPLOY_RESULTS": results, "GITHUB_STEP_SUMMARY": str(page), **env},
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
    bad = [outcome for outcome in outcomes if outcome not in (*report_deploys.GOOD, "offline")]
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


def test_annotations_stay_within_githubs_limits(tmp_path: Path) -> None:
    names = [f"m{number}" for number in range(14)]
    results = {name: result("failed", message="x" * 2500, detail="y" * 1500) for name in names}
    _, log, _ = report(tmp_path, results, *names)
    errors = [line for line in log.splitlines() if line.startswith("::error ")]
    assert len(errors) == 10
    assert all(len(line) <= 4096 for line in errors)
    assert "m13" in errors[-1]


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


def test_a_result_that_was_not_this_push_is_not_taken_for_it() -> None:
    earlier = {**result("deployed"), "started": "2026-01-01T00:00:00Z"}
    boot = {**result("failed"), "trigger": "boot", "started": "2026-01-03T00:00:00Z"}
    own = {**result("deployed"), "started": "2026-01-03T00:00:01Z"}
    assert push_deploy.find_own([earlier, boot, own], "2026-01-02T00:00:00Z") == own
    assert push_deploy.find_own([earlier, boot], "2026-01-02T00:00:00Z") is None


# --- what runs on the machine, to take the script ----------------------------------------------------


def loader(root: Path, before: str = "", wait: bool = False) -> subprocess.CompletedProcess[str]:
    """Run the loader with a script of five bytes; `before` is run ahead of it, and `wait` sends nothing."""
    program = before + push_deploy.LOADER.replace("alarm(120)", "alarm(1)")
    command = [sys.executable, "-c", program, str(root), "5", "x.py"]
    read, write = os.pipe()
    try:
        given: dict[str, Any] = {"stdin": read} if wait else {"input": "pass\n"}
        return subprocess.run(command, **given, capture_output=True, text=True, timeout=20, check=False)
    finally:
        os.close(read)
        os.close(write)


def test_the_loader_becomes_the_script(tmp_path: Path) -> None:
    done = loader(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(push_deploy.MARKER)
    assert (tmp_path / "state/scripts/x.py").read_text() == "pass\n"


def test_a_connection_that_stalls_leaves_no_loader_behind(tmp_path: Path) -> None:
    assert loader(tmp_path, wait=True).returncode == -14


def test_the_loader_on_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    full = "import errno, os\ndef fails(*_): raise OSError(errno.ENOSPC, 'No space left on device')\nos.fsync = fails\n"
    done = loader(tmp_path, full)
    assert done.returncode == 1
    assert done.stderr == f"loader: {tmp_path}/state/scripts/x.py: No space left on device\n"
    assert list((tmp_path / "state/scripts").iterdir()) == []


def load(root: Path, data: bytes) -> subprocess.CompletedProcess[bytes]:
    """What a push runs on the machine, with data as the script that it carries."""
    name = f"{hashlib.sha256(data).hexdigest()[:16]}.py"
    command = [sys.executable, "-c", push_deploy.LOADER, str(root), str(len(data)), name, "plan", "--show-config"]
    return subprocess.run(command, input=data, capture_output=True, check=False)


def test_the_script_is_compiled_once_and_renewed_if_it_is_damaged(tmp_path: Path) -> None:
    data = (SCRIPTS / "deploy_machine.py").read_bytes()
    assert b"[step python]" in load(tmp_path, data).stdout
    folder = tmp_path / "state/scripts"
    (script,), (bytecode,) = folder.glob("*.py"), folder.glob("__pycache__/*")
    os.utime(script, (0, 0))
    first = bytecode.stat()
    assert b"[step python]" in load(tmp_path, data).stdout
    assert (bytecode.stat().st_ino, bytecode.stat().st_mtime_ns) == (first.st_ino, first.st_mtime_ns)
    assert script.stat().st_mtime > 0, "the next deploy would remove a script that is used"
    script.write_bytes(data[:1000])
    bytecode.write_bytes(b"")
    assert b"[step python]" in load(tmp_path, data).stdout
    assert script.read_bytes() == data
    assert sorted(path.name for path in folder.iterdir()) == sorted(["__pycache__", script.name])


def test_a_script_of_another_python_is_told(tmp_path: Path) -> None:
    done = load(tmp_path, b"this is no Python\n")
    assert done.returncode == 1
    assert b"SyntaxError" in done.stderr


def test_the_loader_tells_what_is_missing(tmp_path: Path) -> None:
    done = load(tmp_path / "none", b"")
    assert done.stderr.startswith(f"loader: {tmp_path}/none: no such directory there".encode())
    assert (done.returncode, done.stdout) == (1, b"")

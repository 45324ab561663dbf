"""The runner's side by value: what ssh's words mean, and what the report makes of results."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))
import github  # noqa: E402
import push_deploy  # noqa: E402
from deployer import errors  # noqa: E402
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


# --- what the two share ---------------------------------------------------------------------------------


def test_each_outcome_has_its_exit_code() -> None:
    codes = {
        "deployed": 0, "unchanged": 0, "superseded": 0, "rolled_back_on_request": 0, "failed": 10, "rolled_back": 11,
        "broken": 12, "offline": 69, "unreachable": 75, "busy": 75,
    }  # fmt: skip
    assert {outcome: about.code for outcome, about in errors.OUTCOMES.items()} == codes
    assert errors.exit_code("of another version") == 10


def test_nothing_that_people_read_says_the_name_of_the_usual_user() -> None:
    """GitHub hides the value of a secret, and so `deploy`, wherever it stands in a log or a page."""
    for about in errors.OUTCOMES.values():
        assert "deploy" not in about.words + about.advice


def test_an_annotation_that_is_too_long_loses_its_middle() -> None:
    line = github.annotation("error", "web: x, y", "begin\n" + "x" * 9000 + "\n50% end")
    assert line.startswith("::error title=web%3A x%2C y::begin%0Ax")
    assert line.endswith("%0A50%25 end")
    assert len(line) < 4096


def test_what_is_not_ours_is_between_marks_that_it_cannot_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    with github.Console().foreign() as on_line:
        token = capsys.readouterr().out.strip().removeprefix("::stop-commands::")
        on_line(f"::{token}::")
        on_line("::error::gotcha")
    assert len(token) == 32
    assert capsys.readouterr().out == f"::...::\n::error::gotcha\n::{token}::\n"


# --- what a push asks of a machine ----------------------------------------------------------------------


def test_the_words_of_a_push() -> None:
    words = ["--machine", "web", "--role", "a", "--role", "b", "--contains", "abcd", "--full", "--root", "/srv/x"]
    command = push_deploy.deploy_command(push_deploy.make_parser().parse_args(words), 7, "0123456789abcdef")
    assert command[:2] == ["python3", "-c"]
    assert command[2] == (SCRIPTS / "deployer/carrier.py").read_text()
    assert command[3:] == (
        "/srv/x 7 0123456789abcdef deploy --trigger cd --json --role a --role b --contains abcd --full".split()
    )
    asked = push_deploy.status_command("/srv/x", "0123456789abcdef")
    script = "/srv/x/deployers/0123456789abcdef/deploy_machine.py"
    assert asked == ["python3", script, "status", "--json", "--root", "/srv/x"]


def test_a_push_carries_at_most_60_kb() -> None:
    archive, version = push_deploy.packed_version()
    options = push_deploy.make_parser().parse_args(["--machine", "web", "--role", "web", "--contains", "a" * 40])
    command = shlex.join(push_deploy.deploy_command(options, len(archive), version))
    size = len(archive) + len(command.encode())
    assert size <= 60_000


def test_scripts_that_are_not_whole_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push_deploy, "SCRIPTS", tmp_path)
    with pytest.raises(PushError, match=f"{tmp_path} is not whole: .*deployer"):
        push_deploy.packed_version()

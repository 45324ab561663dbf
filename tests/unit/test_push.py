"""The runner's side by value: what ssh's words mean, what a push asks, and what people see of it."""

from __future__ import annotations

import io
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))
import github  # noqa: E402
import push_deploy  # noqa: E402
from deployer import carrier, errors  # noqa: E402
from push_deploy import Evidence, PushError, classify, read_target  # noqa: E402

RESULT = {"schema": 1, "outcome": "deployed"}
JUMP = "channel 0: open failed: connect failed"
CLOSED = "Connection closed by remote host"


@pytest.mark.parametrize(
    ("evidence", "kind", "says"),
    [
        (Evidence(0, started="2026", result=RESULT), "answered", ""),
        (Evidence(255, started="2026", result=RESULT), "answered", ""),
        (Evidence(255, "Connection to h closed by remote host.", started="2026"), "lost", ""),
        (Evidence(255, "ssh: connect to host h port 22: No route to host"), "offline", "No route"),
        (Evidence(255, "ssh: connect to host h port 22: Connection timed out"), "offline", "timed out"),
        (Evidence(255, "ssh: connect to host h port 22: Connection refused"), "offline", "refused"),
        (Evidence(255, "ssh: connect to host h port 22: Host is down"), "offline", "down"),
        (Evidence(255, f"{JUMP}: No route to host\nkex_exchange_identification: {CLOSED}"), "offline", "not answer"),
        (Evidence(255, "Connection timed out during banner exchange"), "dropped", "answers but ssh does not: Conn"),
        (Evidence(255, f"kex_exchange_identification: {CLOSED}"), "dropped", "answers but ssh does not: kex"),
        (Evidence(255, "kex_exchange_identification: read: Connection reset by peer"), "dropped", "reset by peer"),
        (Evidence(255, "ssh: connect to host h port 22: Connection reset by peer"), "dropped", "reset by peer"),
        (Evidence(255, "Connection to 10.0.0.5 port 22 timed out"), "dropped", "timed out"),
        (Evidence(255, "Connection closed by 10.0.0.5 port 22"), "dropped", "closed by"),
        (Evidence(255, "Read from remote host h: Connection timed out"), "dropped", "Read from"),
        (Evidence(255, "Received disconnect from h port 22:2: Connection refused"), "dropped", "Received disconnect"),
        (Evidence(255, is_stalled=True), "failed", "nothing began there within 180 s"),
        (Evidence(255, is_absent=True), "offline", "nobody took a connection within 4 s"),
        (Evidence(255, is_absent=True, result=RESULT), "answered", ""),
        (Evidence(0, started="2026", result={"schema": 1, "outcome": "offline"}), "failed", "of another kind"),
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
    ("said", "told"),
    [
        (
            "ssh: connect to host 10.0.0.5 port 22: Connection refused",
            "ssh: connect to host X_HOST: Connection refused",
        ),
        ("Connection closed by 10.0.0.5 port 22", "Connection closed by X_HOST"),
        ("Connection closed by 10.9.9.9 port 22", "Connection closed by X_HOST"),
        ("Connection closed by authenticating user deploy fe80::1%eth0 port 22", "Connection closed by X_HOST"),
        ("Received disconnect from 10.0.0.5 port 22:2: too many", "Received disconnect from X_HOST:2: too many"),
        ("deploy@10.0.0.5: Permission denied (publickey).", "X_HOST: Permission denied (publickey)."),
        ("Timeout, server 10.0.0.5 not responding.", "Timeout, server X_HOST not responding."),
        ("Connection to 10.0.0.5 closed by remote host.", "Connection to X_HOST closed by remote host."),
        ("10.0.0.55 and 110.0.0.5", "10.0.0.55 and 110.0.0.5"),
    ],
)
def test_the_address_of_a_machine_is_not_passed_on(said: str, told: str) -> None:
    assert push_deploy.discreet(said, "10.0.0.5", "X_HOST") == told


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


def test_a_result_that_was_not_this_push_is_not_taken_for_it() -> None:
    earlier = {**RESULT, "trigger": "cd", "started": "2026-01-01T00:00:00Z"}
    boot = {**RESULT, "trigger": "boot", "started": "2026-01-03T00:00:00Z"}
    own = {**RESULT, "trigger": "cd", "started": "2026-01-03T00:00:01Z"}
    assert push_deploy.find_own([earlier, boot, own], "2026-01-02T00:00:00Z") == own
    assert push_deploy.find_own([earlier, boot], "2026-01-02T00:00:00Z") is None


class Ssh:
    """Stands in for the connection: answers what it is told."""

    def __init__(self, *answers: Evidence) -> None:
        self.answers, self.asked = list(answers), 0

    def run(self, *_: Any) -> Evidence:
        self.asked += 1
        return self.answers.pop(0)


LOST = Evidence(255, "Connection to h closed by remote host.", started="2026-01-02T00:00:00Z")
IDLE = Evidence(0, result={"schema": 1, "running": None, "interrupted": False, "attempts": []})
RUNS = Evidence(0, result={"schema": 1, "running": {"pid": 1}})
INTERRUPTED = Evidence(0, result={"schema": 1, "interrupted": True})


@pytest.mark.parametrize(
    ("answers", "outcome", "says"),
    [
        # it waited for another deploy there, and ended with its connection
        ([LOST, Evidence(255), RUNS, IDLE, Evidence(0, result=RESULT)], "deployed", ""),
        ([LOST, IDLE, LOST, IDLE], "failed", "ended twice before anything had begun"),
        ([LOST, INTERRUPTED], "failed", "was it restarted"),
    ],
)
def test_a_push_that_was_lost_before_it_had_begun_is_made_once_more(
    answers: list[Evidence], outcome: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push_deploy.time, "sleep", lambda seconds: None)
    options = push_deploy.make_parser().parse_args(["--machine", "web", "--role", "web"])
    ssh = Ssh(*answers)
    result = push_deploy.Push(options, github.Console()).attempt(ssh, "WEB_HOST")  # type: ignore[arg-type]
    assert (result["outcome"], ssh.asked) == (outcome, len(answers))
    assert says in result.get("message", "")


# --- results of any size --------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["x", "\u00e9", "\u4e2d", "\U0001f600", "\ud800", "\x00", '"'])
def test_a_result_fits_whatever_is_in_it(text: str) -> None:
    much = text * 5000
    deep: Any = much
    for _ in range(200):
        deep = [deep, {much: deep}] if _ < 3 else [deep]
    result = {**RESULT, **{f"{n}{much}": [much] * 50 for n in range(60)}, "detail": f"{much}\n{much}", "message": much}
    for found in (result, {**RESULT, "message": much, "steps": deep}, {**RESULT, "detail": [much]}):
        fitted = github.fitted(found)
        assert len(github.packed(fitted)) <= github.RESULT_BYTES
        assert github.is_result(fitted)
        assert fitted["outcome"] == "deployed"
        assert github.parse_result(github.packed(fitted).decode()) == fitted
    assert github.fitted(RESULT) == RESULT


@pytest.mark.parametrize("at", range(1, 75))
def test_of_a_line_that_was_cut_the_whole_keys_are_kept(at: int) -> None:
    line = '{"schema": 1, "outcome": "failed", "seconds": 12.5, "steps": [{"name": "x"}], "message": "z"}'
    found = github.parse_result(line[:at], is_whole=False)
    assert found == {key: json.loads(line)[key] for key in list(found or {})} or found is None
    assert (found or {}).get("seconds") in (None, 12.5)


def test_long_lines_are_cut_and_the_next_one_is_whole() -> None:
    stream = io.BytesIO(b"a\n" + b"b" * 25 + b"\nc\n" + b"d" * 10 + b"\n" + b"e" * 9 + b"\n" + b"f")
    found = list(github.bounded_lines(stream, 10))
    assert [(line[0], len(line), whole) for line, whole in found] == [
        ("a", 1, True), ("b", 10, False), ("c", 1, True), ("d", 10, False), ("e", 9, True), ("f", 1, True),
    ]  # fmt: skip


def test_a_log_is_bounded_and_ends_with_its_stretch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(github, "LOG_BYTES", 50)
    with github.Console().foreign() as on_line:
        for number in range(100):
            on_line(f"line {number}")
    on_line("too late")
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 8
    assert "the rest of this log is left out" in out[-1]


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
    command = push_deploy.deploy_command(push_deploy.make_parser().parse_args(words), "0123456789abcdef")
    assert command[:2] == ["python3", "-c"]
    assert command[2] == carrier.program()
    assert command[3:] == (
        "/srv/x 0 0123456789abcdef deploy --trigger cd --json --role a --role b --contains abcd --full".split()
    )
    asked = push_deploy.status_command("/srv/x", "0123456789abcdef")
    script = "/srv/x/deployers/0123456789abcdef/deploy_machine.py"
    assert asked == ["python3", script, "status", "--json", "--root", "/srv/x"]


def test_a_push_carries_at_most_100_kb() -> None:
    archive, (_, version) = push_deploy.packed_version(), push_deploy.own_version()
    options = push_deploy.make_parser().parse_args(["--machine", "web", "--role", "web", "--contains", "a" * 40])
    command = shlex.join(push_deploy.deploy_command(options, version))
    size = len(archive) + len(command.encode())
    assert size <= 100_000


def test_the_way_to_a_machine_is_closed_also_without_an_archive() -> None:
    def fails() -> bytes:
        raise ImportError("bz2")

    stream = io.BytesIO()
    with pytest.raises(ImportError):
        push_deploy.feed(stream, fails)
    assert stream.closed, "else the machine waits two minutes for what does not come"


def test_scripts_that_are_not_whole_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push_deploy, "SCRIPTS", tmp_path)
    push_deploy.own_version.cache_clear()
    with pytest.raises(PushError, match=f"{tmp_path} is not whole: .*deployer"):
        push_deploy.own_version()

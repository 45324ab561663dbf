"""The forced command of CI's key, by value: what push_deploy.py asks is granted, and nothing else."""

from __future__ import annotations

import contextlib
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))
import github  # noqa: E402
import push_deploy  # noqa: E402
import restricted_push  # noqa: E402
from deployer import carrier  # noqa: E402
from restricted_push import MARKER, Refused, granted  # noqa: E402

ROOT = "/srv/app"
VERSION = "0123456789abcdef"


class Ssh:
    """Stands in for the connection: keeps the commands that push_deploy.py sends, answers what it is told."""

    def __init__(self, *answers: push_deploy.Evidence) -> None:
        self.answers = list(answers)
        self.sent: list[str] = []

    def run(self, command: list[str], *_: Any) -> push_deploy.Evidence:
        self.sent.append(shlex.join(command))
        return self.answers.pop(0)


def sent_by_push(*words: str) -> list[str]:
    """What push_deploy.py asks of a machine with these options, when it loses the connection and asks again."""
    options = push_deploy.make_parser().parse_args(["--machine", "web", *words])
    own = {"schema": 1, "outcome": "deployed", "trigger": "cd", "started": "2026"}
    ssh = Ssh(
        push_deploy.Evidence(255, "closed", started="2026"),
        push_deploy.Evidence(0, result={"schema": 1, "attempts": [own]}),
    )
    result = push_deploy.Push(options, github.Console()).attempt(ssh, "WEB_HOST")  # type: ignore[arg-type]
    assert result == own
    return ssh.sent


@pytest.mark.parametrize(
    ("options", "passed"),
    [
        ([], []),
        (["--contains", "a" * 40], ["--contains", "a" * 40]),
        (["--commit", "abcdef12"], ["--commit", "abcdef12"]),
        (["--full"], ["--full"]),
    ],
)
def test_what_push_deploy_asks_is_granted(
    options: list[str], passed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push_deploy.time, "sleep", lambda seconds: None)
    deploy, status = sent_by_push("--role", "web", "--role", "worker", *options)
    arguments, bytes_to_drop = granted(deploy, ROOT, ["worker", "web"])
    assert arguments == ["deploy", "--trigger", "cd", "--json", *passed, "--role", "web", "--role", "worker"]
    assert bytes_to_drop == 0, "nobody reads them"
    assert granted(status, ROOT, ["web"]) == (["status", "--json"], 0)
    assert MARKER == carrier.MARKER, "push_deploy.py waits for exactly this line"


def deploy(
    words: str = "", *, root: str = ROOT, size: str = "5", version: str = VERSION, begin: str = "python3 -c x"
) -> str:
    return f"{begin} {root} {size} {version} deploy --trigger cd --json --role web {words}"


STATUS = f"python3 /srv/app/deployers/{VERSION}/deploy_machine.py status"


def test_the_forms_that_the_refused_ones_differ_from() -> None:
    assert granted(deploy(), ROOT, ["web"])[1] == 5
    assert granted(f"{STATUS} --json --root /srv/app", ROOT, ["web"]) == (["status", "--json"], 0)


BIN = "/srv/app/bin/deploy_machine.py status --json"


@pytest.mark.parametrize(
    ("words", "passed"),
    [
        (BIN, []),
        (f"python3 {BIN} --root /srv/app", []),
        (f"{BIN} --within 5 --root /srv/app", ["--within", "5"]),
        (f"{BIN} --since 2026-01-02T03:04:05Z --within 2.5", ["--since", "2026-01-02T03:04:05Z", "--within", "2.5"]),
        (f"{STATUS} --json --root /srv/app --since 12-ab_c.9", ["--since", "12-ab_c.9"]),
    ],
)
def test_the_status_may_be_asked_in_time(words: str, passed: list[str]) -> None:
    assert granted(words, ROOT, ["web"]) == (["status", "--json", *passed], 0)


@pytest.mark.parametrize(("known", "expected"), [("--since T --within S", 4), ("--within S", 2), ("--check", 0)])
def test_a_version_is_asked_only_what_it_knows(tmp_path: Path, known: str, expected: int) -> None:
    script = tmp_path / "deploy_machine.py"
    script.write_text(f"print('  --root DIR   x\\n  {known}   what')\n")
    asked = ["status", "--json", "--since", "a", "--within", "5"]
    found = restricted_push.known_to(str(script), asked)
    assert found == (asked if expected == 4 else ["status", "--json", *["--within", "5"][:expected]])
    script.write_text("raise SystemExit(2)")
    assert restricted_push.known_to(str(script), asked) == ["status", "--json"]


def test_so_many_connections_and_no_more(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    # each becomes another program, as a deploy does, and keeps its place
    program = f"import os, restricted_push; restricted_push.take_place({str(tmp_path)!r}); os.execvp('cat', ['cat'])"
    command, pipe = [sys.executable, "-c", program], subprocess.PIPE

    def connect() -> subprocess.Popen[bytes]:
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, cwd=SCRIPTS)
        assert process.stdin and process.stdout
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(b"x")
            process.stdin.flush()
        process.stdout.read(1)
        return process

    processes = [connect() for _ in range(restricted_push.SESSIONS)]
    assert all(process.poll() is None for process in processes)
    refused = connect()
    assert b"Refused: more than 12 connections at the same time" in refused.communicate()[1]
    processes[0].communicate()
    processes[0] = connect()
    assert processes[0].poll() is None, "a place was free"
    for process in processes:
        process.communicate()
    restricted_push.take_place(str(tmp_path / "nothing"))


@pytest.mark.parametrize(
    "request_",
    [
        "",
        "id",
        "sh",
        "'",
        "python3",
        "python3 -c x",
        "python3 -c 'print(1)'",
        "python3 -i -c x /srv/app 5 0123456789abcdef deploy",
        "python3 -c x /srv/app 5 0123456789abcdef",
        "python3 -c x /srv/app 5 0123456789abcdef deploy",
        "python3 -c x setup UEs= 0123456789abcdef --name web --role web",
        "/usr/lib/openssh/sftp-server",
        "scp -t /tmp",
        "rsync --server . /tmp",
        "git-upload-pack '/srv/app/repo.git'",
        "/srv/app/bin/deploy_machine.py rollback",
        deploy(begin="python -c x"),
        deploy(begin="python3 -m x"),
        deploy(begin="env python3 -c x"),
        deploy(root="/tmp"),
        deploy(root="/srv/app/"),
        deploy(root="/srv/app/../app"),
        deploy(size="-1"),
        deploy(size="99999999"),
        deploy(size="1e3"),
        deploy(size="٣"),
        deploy(version="../../../../tmp/x"),
        deploy(version="0123456789abcde"),
        deploy(version="0123456789abcdef.py"),
        deploy(version="0123456789ABCDEF"),
        deploy(version="'0123456789abcdef\n'"),
        deploy("--repo ssh://evil/x"),
        deploy("--repo=ssh://evil/x"),
        deploy("--branch other"),
        deploy("--branch=other"),
        deploy("--force"),
        deploy("--root /tmp"),
        deploy("--root=/tmp"),
        deploy("--debug"),
        deploy("--lock-timeout 1"),
        deploy("--fetch-timeout 1"),
        deploy("--show-config"),
        deploy("--version"),
        deploy("--help"),
        deploy("--commit"),
        deploy("--commit --force"),
        deploy("--commit main"),
        deploy("--commit=abcdef12"),
        deploy("--contains $(id)"),
        deploy("--trigger boot"),
        deploy("--role"),
        deploy("--role worker"),
        deploy("--fu"),
        deploy("-- x"),
        deploy("; id"),
        deploy("&& id"),
        deploy("| sh"),
        deploy("> /tmp/x"),
        deploy("\nid"),
        deploy("`id`"),
        deploy("$(id)"),
        deploy("''"),
        deploy().replace("deploy --trigger", "rollback --trigger"),
        deploy().replace("deploy --trigger", "plan --trigger"),
        deploy().replace("--trigger cd", "--trigger manual"),
        deploy().replace("--role web", ""),
        deploy().replace("--role web", "--role worker"),
        deploy().replace("--json", "--debug"),
        f"python3 /tmp/{VERSION}/deploy_machine.py status --json --root /srv/app",
        f"python3 /srv/app/state/scripts/{VERSION}.py status --json --root /srv/app",
        f"python3 /srv/app/deployers/../{VERSION}/deploy_machine.py status --json --root /srv/app",
        "python3 /srv/app/deployers/../deploy_machine.py status --json --root /srv/app",
        f"python3 /srv/app/deployers/{VERSION}/deployer/carrier.py status --json --root /srv/app",
        f"python3 /srv/app/deployers/{VERSION}/deploy_machine_py status --json --root /srv/app",
        f"{STATUS} --json --root /tmp",
        f"{STATUS} --json --root /srv/app --debug",
        f"{STATUS.replace('status', 'rollback')} --json --root /srv/app",
        f"{STATUS} --json --root /srv/app; id",
        f"{BIN} --since",
        f"{BIN} --since --force",
        f"{BIN} --since -x",
        f"{BIN} --since 'a b'",
        f"{BIN} --since a --since b",
        f"{BIN} --since=a",
        f"{BIN} --within -1",
        f"{BIN} --within inf",
        f"{BIN} --within 5s",
        f"{BIN} --check x",
        f"{BIN} --debug",
        f"{BIN} --role web",
        f"python3 -i {BIN}",
        f"sh {BIN}",
        BIN.replace("--json", ""),
        BIN.replace("status", "history"),
        BIN.replace("/srv/app/bin", "/srv/app/bin/../bin"),
    ],
)
def test_everything_else_is_refused(request_: str) -> None:
    with pytest.raises(Refused):
        granted(request_, ROOT, ["web"])

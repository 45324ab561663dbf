"""Bad input gets one clear line and exit code 2, and nothing is touched."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

from small_app import DEPLOY_INI, SCRIPT, App


def one_line(log: str) -> str:
    lines = [line for line in log.splitlines() if line.startswith("deploy_machine.py: ")]
    assert len(lines) == 1, log
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--commit", "-x"], "expected one argument"),
        (["--commit=--upload-pack=x"], "is not a commit id"),
        (["--commit", "xyz"], "'xyz' is not a commit id"),
        (["--contains", "12"], "is not a commit id"),
        (["--branch=--force"], "is not a branch name"),
        (["--branch", "a..b"], "is not a branch name"),
        (["--lock-timeout", "soon"], "seconds = soon: not a number"),
        (["--fetch-timeout", "-1"], "not a number"),
        (["--trigger", "cron"], "invalid choice: 'cron'"),
        (["--frobnicate"], "unrecognized arguments: --frobnicate"),
        (["--commit", "abcdef", "--contains", "abcdef"], "not allowed with"),
        (["--branch", "nowhere"], "has no branch 'nowhere'"),
        (["--commit", "f" * 40], "is no commit of branch main"),
        (["--role", "nurse"], "unknown role 'nurse'"),
    ],
)
def test_arguments(app: App, arguments: list[str], says: str) -> None:
    app.deploy()
    before = app.snapshot()
    done = app.run("deploy", *arguments)
    assert done.code == 2, done.log
    assert says in one_line(done.log)
    assert done.result == {}
    assert app.snapshot() == before
    assert not (app.root / "state" / "running.json").exists()


def test_a_url_that_git_would_take_for_an_option(app: App) -> None:
    done = app.run("deploy", "--repo=--upload-pack=touch /tmp/x")
    # the fixture's own --repo comes last and would win: call it without
    command = [sys.executable, str(SCRIPT), "--root", str(app.root), "--role", "web", "--repo=--upload-pack=x"]
    done2 = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.code == 0
    assert done2.returncode == 2
    assert "not an address that git could fetch from" in one_line(done2.stderr)


def test_a_commit_of_another_branch_is_refused(app: App) -> None:
    app.git("checkout", "-q", "-b", "side")
    side = app.commit({"code.py": "side\n"})
    app.git("checkout", "-q", "main")
    done = app.run("deploy", "--commit", side)
    assert done.code == 2
    assert "is no commit of branch main" in one_line(done.log)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[deploi]\n", "unknown section [deploi]"),
        ("[deploy]\nkeeep = 3\n", "[deploy]: unknown key 'keeep'"),
        ("[deploy]\nkeep = many\n", "keep = many: not a number"),
        ("[deploy]\nkeep = 0\n", "keep = 0: not a number between 1"),
        ("[deploy]\nhealth_timeout = nan\n", "not a number"),
        ("[deploy]\nshared = ../etc\n", "../etc: must be a path inside the repository"),
        ("[deploy]\nshared = ./.\n", "./.: must be a path inside the repository"),
        ("[step x]\nrun = true\nprovides = .//\n", "must be a path inside the repository"),
        ("[deploy]\nbranch = -x\n", "is not a branch name"),
        ("[step x]\nrun = 'open\n", "[step x]: run = 'open: No closing quotation"),
        ("[step x]\nrun = true\nroles = nurse\n", "there is no [role nurse]"),
        ("[step x]\nrun = true\nafter = y\n", "after = y: no such step"),
        ("[step x]\nrun = true\nprovides = /etc\n", "must be a path inside"),
        ("[role web]\nservices = --now\n", "'--now' is not a unit name"),
        ("[role web]\nhealth = healthz\n", "use /PATH"),
        ("[role frontend]\nservices = gunicorn.service\n[role web]\n", "remove the latter, or write `slots =`"),
        ("[role web]\nslots = gunicorn.service\n", "use the name of a template such as gunicorn@.service"),
        ("[role web]\nhealth_headers = Host\n", "health_headers: 'Host' is not of the form `Name: value`"),
        ("[role web]\nhealth_headers = Host: a\x07b\n", "is not of the form `Name: value`"),
        ("[role web]\nprobation = soon\n", "probation = soon: not a number"),
        ("[role web]\nhealth = https://x/\n", "use /PATH, http://HOST/PATH or http+unix"),
        ("not ini at all\n", "File contains no section headers"),
        ("[deploy]\nkeep = 3\nkeep = 4\n", "already exists"),
        ("[step]\nrun = true\n", "unknown section [step]"),
    ],
)
def test_deploy_ini_of_the_commit(app: App, text: str, says: str) -> None:
    app.deploy()
    before = app.snapshot()
    app.commit({"deploy.ini": text})
    done = app.deploy(expect=10)
    assert says in done.result["message"]
    assert "deploy.ini of " in done.result["message"]
    assert "\n" not in done.result["message"]
    assert app.snapshot() == before


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[machine]\ncolour = red\n", "colour"),
        ("[other]\n", "other"),
        ("[machine]\nname = x\nfetch_timeout = soon\n", "fetch_timeout = soon"),
        ("nonsense\n", "no section headers"),
        ("[machine]\nname = x\nbranch = -b\n", "is not a branch name"),
    ],
)
def test_machine_ini(app: App, text: str, says: str) -> None:
    (app.root / "machine.ini").write_text(text)
    done = app.run("deploy")
    assert done.code == 2
    assert says in one_line(done.log)
    assert not (app.root / "releases").exists()


def test_settings_may_be_in_a_root_first(app: App, tmp_path: Path) -> None:
    root = tmp_path / "first"
    (root / "shared").mkdir(parents=True)
    (root / "shared/.env").write_text("A=1\n")
    (root / "manage.py").touch()
    app.root = root
    assert "neither empty nor a root" in app.run("plan").log
    (root / "manage.py").unlink()
    assert app.run("plan").code == 0


def test_roots(app: App, tmp_path: Path) -> None:
    for root, says in (
        (tmp_path / "nowhere", "no such directory"),
        (app.origin, "is neither empty nor a root of deploy_machine.py"),
    ):
        command = [sys.executable, str(SCRIPT), "--root", str(root), "--repo", "file:///x", "--role", "web"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert says in one_line(done.stderr)
    assert sorted(path.name for path in app.origin.iterdir()) == [".git", "code.py", "deploy.ini", "one.sql", "src"]


def test_no_role_and_no_repository(app: App) -> None:
    for missing, says in (("--role", "has no role"), ("--repo", "no repository")):
        given = {"--role": "web", "--repo": f"file://{app.origin}"}
        del given[missing]
        command = [
            sys.executable,
            str(SCRIPT),
            "--root",
            str(app.root),
            *(word for pair in given.items() for word in pair),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert says in one_line(done.stderr)


def test_python_3_8_gets_one_line() -> None:
    ast.parse(SCRIPT.read_text(), feature_version=(3, 8))  # else Python 3.8 would stop at the syntax
    code = f"import sys, runpy; sys.version_info = (3, 8, 18, 'final', 0); runpy.run_path({str(SCRIPT)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("deploy_machine.py needs Python 3.9 or newer")
    assert done.stderr.count("\n") == 1


def test_defaults_are_valid_and_printed(app: App) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "plan", "--show-config"], capture_output=True, text=True, check=True
    )
    app.commit({"deploy.ini": done.stdout + "\n[role web]\n"})
    assert app.deploy().result["outcome"] == "deployed"
    assert DEPLOY_INI  # the other tests' configuration is no copy of the defaults


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[deploy]\nkeep = 3" + " " * 200_000 + "x\n", "not a number"),
        ("[deploy]\nkeep" + " " * 200_000 + "x\n", "not of the form key = value"),
        ("[deploy]\n" + " ;" * 120_000 + "\nx\n", "not of the form key = value"),
        ("\n" * 300_000, "is longer than 256 KB"),
        ("#" * 5_000_000, "is larger than 4 MB"),
    ],
)
def test_a_deploy_ini_of_any_size_is_read_in_little_time(app: App, text: str, says: str) -> None:
    app.deploy()
    app.commit({"deploy.ini": text})
    began = time.monotonic()
    done = app.deploy(expect=10)
    assert says in done.result["message"]
    assert "deploy.ini of " in done.result["message"]
    assert len(done.result["message"]) < 2500
    assert time.monotonic() - began < 20, "with configparser each of the first two takes minutes"

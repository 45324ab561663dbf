"""`run -- COMMAND...`: a person's command in the release that serves."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

from small_app import DEPLOY_INI, SCRIPT, App


def inside(app: App, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "run", "--root", str(app.root), *words]
    options = {"stdin": subprocess.DEVNULL, **options} if "input" not in options else options
    env = app.environment()
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=30, **options)


def test_it_sees_what_the_services_see(app: App) -> None:
    app.commit({"backend/x": "", "deploy.ini": DEPLOY_INI + "[step migrate]\ncwd = backend\nrun = true\n"})
    app.deploy()
    (app.root / "shared/.env").write_text("GREETING='hello there'\nPATH=/nowhere:/usr/bin:/bin\n")
    (app.current / ".venv/bin").mkdir(parents=True)
    program = app.current / ".venv/bin/own"
    program.write_text('#!/bin/sh\npwd; echo "$GREETING"; trap; cat; exit 7\n')
    program.chmod(0o755)
    done = inside(app, "--", "own", input="typed\n")
    assert done.stdout.splitlines() == [str(app.current / "backend"), "hello there", "typed"]
    assert (done.returncode, done.stderr) == (7, "")


def test_the_terminal_is_the_commands_own(app: App) -> None:
    app.deploy()
    outer, inner = os.openpty()
    try:
        assert inside(app, "--", "test", "-t", "0", stdin=inner).returncode == 0
        assert inside(app, "--", "test", "-t", "0").returncode == 1
    finally:
        os.close(outer)
        os.close(inner)


def test_it_waits_for_no_lock_and_is_not_ended_by_a_deploy(app: App) -> None:
    app.deploy()
    took = "import fcntl, sys; fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    assert inside(app, "--", sys.executable, "-c", took, str(app.root / "state/lock")).returncode == 0
    assert "DEPLOY_RUN" not in inside(app, "--", "env").stdout


def test_what_is_wrong_is_one_line(app: App) -> None:
    says = {
        ("--", "true"): "nothing is deployed here yet, so there is no release to run it in",
        ("--",): "no command behind --, as in: run -- python manage.py createsuperuser",
        ("python", "manage.py"): "write -- before the command, as in: run -- python manage.py createsuperuser",
    }
    (app.root / "state").mkdir()
    for words, text in says.items():
        done = inside(app, *words)
        assert done.returncode == 2, done
        assert (done.stdout, done.stderr.count("\n")) == ("", 1)
        assert text in done.stderr
    app.deploy()
    done = inside(app, "--", "no-such-program")
    assert done.returncode == 2
    assert "no-such-program: No such file or directory (in " in done.stderr
    assert app.run("deploy", "--", "true").code == 2

"""Virtual environments: they can be used while their modules are still being compiled."""

from __future__ import annotations

import json

import pytest

from small_app import App, processes

INI = """\
[deploy]
shared =

[step python]
inputs = version
provides = .venv
run = pip-sync

[step use]
inputs = used
provides = out
run = sh -c 'mkdir out && cat used > out/used && . ./used'

[role web]
"""
MODULES = ".venv/lib/python*/site-packages"
COMPILED = f"{MODULES}/__pycache__/alpha.*.pyc"

# the compiler begins when $HOME/go is there, and has ended when $HOME/compiled is
WAITING = """
class Waiting(run.Beside):
    def __init__(self, argv, timeout):
        home = os.environ["HOME"]
        wait = f"n=0; until [ -e {home}/go ] || [ $((n += 1)) -gt 1000 ]; do sleep 0.02; done; "
        wait += f'"$@"; touch {home}/compiled'
        super().__init__(["sh", "-c", wait, "sh", *argv], timeout)
run.Beside = Waiting
"""


@pytest.fixture
def app(tmp_path_factory: pytest.TempPathFactory) -> App:
    """An application whose environment is made by a program of its own."""
    app = App(tmp_path_factory.mktemp("app"))
    program = app.root.parent / ".local/bin/pip-sync"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\nfor place in {MODULES}; do cp version $place/alpha.py; done\n")
    program.chmod(0o755)
    app.commit({"deploy.ini": INI, "version": "VALUE = 1\n", "used": "true\n"})
    return app


def test_modules_are_compiled_while_later_steps_run(app: App) -> None:
    """And such a step is not taken for one that reads what only the compiler reads."""
    app.commit({"used": "touch $HOME/go; for i in $(seq 1000); do [ -e $HOME/compiled ] && break; sleep 0.02; done\n"})
    done = app.run("deploy", patch=WAITING)
    assert done.code == 0, done.log
    (compiled,) = app.current.glob(COMPILED)
    assert not compiled.stat().st_mode & 0o222, "what was compiled meanwhile is read-only, too"
    (use,) = (app.root / "envs").glob("use-*")
    seen = json.loads((use / ".complete").read_text())["seen"]
    assert "used" in seen and not [name for name in seen if ".venv" in name]
    (made,) = (app.root / "envs").glob("python-*")
    assert sorted(path.name for path in made.iterdir()) == [".complete", ".venv"]
    took = json.loads((made / ".complete").read_text())["bytes"]
    assert took >= sum(path.lstat().st_size for path in made.rglob("*") if path.is_file() and not path.is_symlink())


def test_an_environment_is_kept_if_a_later_step_fails(app: App) -> None:
    app.commit({"used": "touch $HOME/go; false\n"})
    done = app.run("deploy", patch=WAITING)
    assert (done.code, done.ran()) == (10, ["python"])
    app.commit({"used": "true\n"})
    assert app.deploy().ran() == ["use"]
    assert list(app.current.glob(COMPILED))


def test_told_to_end_while_modules_are_compiled(app: App) -> None:
    app.commit({"used": "kill -TERM $PPID; sleep 20\n"})
    done = app.run("deploy", patch=WAITING)
    assert done.code < 0, done.log
    assert app.kept() == []
    assert f"{app.root.parent}/go" not in processes()


def test_killed_while_modules_are_compiled(app: App) -> None:
    app.commit({"used": "kill -KILL $PPID\n"})
    app.killed(WAITING)
    assert f"{app.root.parent}/go" in processes()
    app.commit({"used": "true\n"})
    assert app.deploy().ran() == ["python", "use"]
    assert f"{app.root.parent}/go" not in processes()


def test_compiling_takes_too_long(app: App) -> None:
    app.commit({"deploy.ini": INI.replace("run = pip-sync", "run = pip-sync\ntimeout = 1")})
    done = app.run("deploy", patch=WAITING)
    assert done.code == 10 and "took longer than 1 s and was ended" in done.result["message"], done.log
    assert "python" not in app.kept()
    assert f"{app.root.parent}/go" not in processes()

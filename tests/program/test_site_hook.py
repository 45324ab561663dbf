"""What every Python of a step runs first: it breaks nothing, costs nothing, and gives way to what was there before."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from django_app import DjangoApp
from small_app import SCRIPT

HOOK = SCRIPT.with_name("deployer") / "site_hook.py"
VERSIONS = ["2.7", *(f"3.{minor}" for minor in range(4, 16))]
SAYS = "import sys\nsys.stdout.write('%s %s\\n' % (__name__, 'sitecustomize' in sys.modules))\n"


def works(program: str) -> bool:
    return subprocess.run([program, "-c", ""], capture_output=True, check=False).returncode == 0


def pythons() -> list[str]:
    """All interpreters that are here."""
    found = [shutil.which(f"python{version}") for version in VERSIONS]
    return sorted({sys.executable, *(path for path in found if path and works(path))})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "hook"
    folder.mkdir()
    (folder / "sitecustomize.py").symlink_to(HOOK)
    return folder


def run(program: str, code: str, path: str, order: object = None, cwd: Path | None = None) -> list[str]:
    """The lines that a program prints, on both streams."""
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": path, "DEPLOY_MIGRATE": json.dumps(order)}
    env |= {"PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([program, *code.split("|")], env=env, cwd=cwd, capture_output=True, text=True, check=False)
    return [*done.stdout.splitlines(), *done.stderr.splitlines()]


@pytest.mark.parametrize("program", pythons())
def test_the_one_that_was_there_before_runs_as_if_it_were_alone(tmp_path: Path, folder: Path, program: str) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "sitecustomize.py").write_text(SAYS)
    code = "-c|import sys; import sitecustomize as s; print(s.__file__)"
    code += f"; print([p for p in sys.path if {str(folder)!r} in p])"
    assert run(program, code, f"{folder}:{own}") == ["sitecustomize True", str(own / "sitecustomize.py"), "[]"]


@pytest.mark.parametrize("text", ["1 / 0\n", "import no_such_module\n", "raise ImportError('sitecustomize')\n"])
def test_what_is_wrong_with_the_other_one_is_said_as_without(tmp_path: Path, folder: Path, text: str) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "sitecustomize.py").write_text(text)
    code = "-c|print('goes on')"
    assert run(sys.executable, code, f"{folder}:{own}") == run(sys.executable, code, str(own))


@pytest.mark.parametrize("program", pythons())
def test_a_program_without_django_loads_nothing_for_it(folder: Path, program: str) -> None:
    """So it costs what one small file costs."""
    code = "-c|import sys; print(' '.join(sorted(sys.modules)))"
    with_it, without = (set(run(program, code, path)[0].split()) for path in (str(folder), ""))
    assert with_it - without <= {"deploy_site_hook", "sitecustomize"}


@pytest.mark.parametrize("order", [None, {}, {"mode": "lock"}, "text", [1]])
def test_an_order_that_makes_no_sense_breaks_nothing(tmp_path: Path, folder: Path, order: object) -> None:
    app = DjangoApp(tmp_path)
    code = "-c|import os; os.environ['DB'] = ':memory:'; os.environ['DJANGO_SETTINGS_MODULE'] = 'mysite.settings'"
    code += "; from django.core import management as m; m.execute_from_command_line(['', 'migrate', '-v0'])"
    said = run(sys.executable, code + "; print('migrated')", str(folder), order, app.origin)
    assert said[0] == "migrated"
    assert [line.startswith("deploy-machine: no lock for migrations: ") for line in said[1:]] == [True]


def test_django_itself_is_as_it_would_be(folder: Path) -> None:
    code = "-c|import django.core.management.base as b; print(type(b.__loader__), b.__spec__.loader is b.__loader__)"
    order = {"mode": "lock", "machine": "m", "until": 0, "lock_timeout": 5, "release": ".", "notes": "/dev/null"}
    code += "; print(b.__file__); print(b.BaseCommand.execute.__qualname__)"
    assert run(sys.executable, code, str(folder), order) == run(sys.executable, code, "")


def test_a_step_keeps_its_own_pythonpath_and_other_commands(tmp_path: Path) -> None:
    line = f"{sys.executable} -c 'import mine, sitecustomize; print(mine.x, sitecustomize.x)'"
    app = DjangoApp(tmp_path, "", f"[step own]\nrun = {line}\n")
    lib = tmp_path / "lib"
    lib.mkdir()
    for name in ("mine", "sitecustomize"):
        (lib / f"{name}.py").write_text("x = 'own'\n")
    app.env(PYTHONPATH=str(lib))
    assert "    own own" in app.deploy().log


def test_the_folder_follows_the_version_that_runs(tmp_path: Path) -> None:
    """And nothing of another one's bytecode is left."""
    app = DjangoApp(tmp_path, "", f"[step own]\nrun = {sys.executable} -c 'print(1)'\n")
    app.env(A="b")
    app.deploy()
    link = app.root / "state/python/sitecustomize.py"
    assert os.readlink(link) == str(HOOK)
    other = tmp_path / "other.py"
    other.write_text("raise SystemExit('an old version')\n")
    link.unlink()
    link.symlink_to(other)
    (link.parent / "left").write_text("")
    app.change()
    assert "an old version" not in app.deploy().log
    assert not (link.parent / "left").exists()
    assert [path.name for path in (app.root / "state").glob(".*")] == []

"""What once stopped every later deploy of a machine: each is told, or simply goes on."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from small_app import DEPLOY_INI, App


def test_a_branch_that_is_renamed_to_what_git_holds_for_a_folder(app: App) -> None:
    app.git("branch", "-m", "main", "release")
    app.deploy("--branch", "release")
    app.git("branch", "-m", "release", "release/2026")
    new = app.commit({"code.py": "print(2)\n"})
    assert app.deploy("--branch", "release/2026").result["commit"] == new
    app.git("branch", "-m", "release/2026", "release")
    assert app.deploy("--branch", "release").result["outcome"] == "unchanged"


def test_a_repository_with_sha256_object_ids(app: App) -> None:
    app.deploy()
    app.origin.rename(app.origin.with_name("old"))
    app.git("init", "-q", "-b", "main", "--object-format=sha256", str(app.origin), cwd=app.root)
    commit = app.commit({"deploy.ini": DEPLOY_INI, "src/a": "a\n"})
    assert len(commit) == 64
    assert app.deploy().result["commit"] == commit
    new = app.commit({"src/a": "b\n"})
    assert app.deploy("--contains", new).result["outcome"] == "deployed"
    assert app.run("rollback", commit).result["commit"] == commit


def test_a_branch_that_was_rewound_is_followed_and_an_old_run_is_not(app: App) -> None:
    old = app.git("rev-parse", "HEAD")
    new = app.commit({"code.py": "print(2)\n"})
    app.deploy()
    assert app.deploy("--commit", old).result["outcome"] == "superseded", "an old run, started again"
    assert app.deploy("--contains", old).result["outcome"] == "unchanged"
    app.git("reset", "-q", "--hard", old)
    done = app.deploy("--contains", old)
    assert (done.result["outcome"], done.result["commit"]) == ("deployed", old)
    assert f"the branch was rewound: main is at {old[:8]}, without {new[:8]}" in done.log


def test_another_branch_that_a_person_deployed_stays(app: App) -> None:
    app.deploy()
    app.git("checkout", "-q", "-b", "hotfix")
    fix = app.commit({"code.py": "print(2)\n"})
    assert app.deploy("--branch", "hotfix").result["commit"] == fix
    assert app.deploy("--trigger", "boot").result["outcome"] == "superseded"


CHECKED = DEPLOY_INI.replace("[role web]\n", "[role web]\ncheck = sh -c 'test -e ../../shared/well'\n")


@pytest.mark.parametrize("how", ["--trigger=manual", "--force"])
@pytest.mark.parametrize("mended", [".env", "something else"])
def test_after_broken_the_next_deploy_does_the_whole_work(app: App, how: str, mended: str) -> None:
    app.commit({"deploy.ini": CHECKED.replace("[deploy]", "[deploy]\nhealth_timeout = 0.5")})
    assert app.deploy(expect=12).result["outcome"] == "broken"
    always = app.root.parent / "always"
    before = always.read_text()
    (app.root / "shared/well").touch()
    if mended == ".env":
        (app.root / "shared/.env").write_text("MENDED=1\n")
    elif how != "--force":
        return  # it is only confirmed then, as after an interruption
    assert app.deploy(how).result["outcome"] == "deployed"
    assert always.read_text() != before, "its steps were run"


@pytest.fixture
def stuck(app: App) -> Iterator[Path]:
    """A folder that nobody can remove, in a release that is to be pruned: something is mounted there."""
    app.commit({"deploy.ini": DEPLOY_INI.replace("[deploy]", "[deploy]\nkeep = 1")})
    app.deploy()
    folder = app.current / "__pycache__"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "none", str(folder)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("this user may not mount")
    yield folder
    for path in app.root.glob("releases/*/__pycache__"):
        subprocess.run(["umount", str(path)], check=False)


def test_what_cannot_be_removed_is_told_once_and_fails_no_deploy(app: App, stuck: Path) -> None:
    app.commit({"code.py": "print(2)\n"})
    done = app.deploy()
    aside = stuck.parent.with_name(f".left-{stuck.parent.name}")
    assert "cannot be removed ([Errno 16]" in done.log
    assert f"as root: rm -rf {aside}" in done.log
    for number in (3, 4):
        app.commit({"code.py": f"print({number})\n"})
        done = app.deploy()
        assert done.result["outcome"] == "deployed"
        assert "cannot be removed" not in done.log
    subprocess.run(["umount", str(aside / "__pycache__")], check=True)
    app.deploy()
    assert not aside.exists()


def test_a_copy_that_a_person_made_is_neither_counted_nor_removed(app: App) -> None:
    app.deploy()
    shutil.copytree(app.current, app.root / "releases/old-copy", symlinks=True)
    half = app.root / "releases/notes"
    half.mkdir()
    app.commit({"code.py": "print(2)\n"})
    app.deploy()
    assert (app.root / "releases/old-copy").exists()
    assert half.exists()
    assert len(app.run("status").result["releases"]) == 2


def test_a_file_takes_the_place_of_a_folder_and_back(app: App) -> None:
    step = "[step docs]\ninputs = docs.sh\nprovides = out\nkeep_days = 7\nrun = sh docs.sh\n"
    ini = DEPLOY_INI.replace("[step assets]", "[step assets]\nroles = worker") + step
    folder, file = "mkdir -p out/docs; echo 1 > out/docs/index.html", "mkdir out; echo 2 > out/docs"
    app.commit({"deploy.ini": ini, "docs.sh": folder})
    for script in (file, folder, file):
        app.deploy()
        app.commit({"docs.sh": script})
    assert app.deploy().result["outcome"] == "deployed"
    assert (app.current / "out/docs").read_text() == "2\n"


@pytest.mark.parametrize("folder", ["envs", "releases"])
def test_a_folder_on_another_file_system(app: App, folder: str) -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as elsewhere:
        if os.stat(elsewhere).st_dev == os.stat(app.root).st_dev:
            pytest.skip("there is one file system")
        (app.root / folder).symlink_to(elsewhere)
        (app.root / "state").mkdir()
        keep = DEPLOY_INI.replace("provides = out\n", "provides = out\nkeep_days = 7\n")
        app.commit({"deploy.ini": keep})
        for number in (1, 2):
            app.commit({"src/a": f"{number}\n"})
            assert app.deploy().result["outcome"] == "deployed"
            assert (app.current / "out/all").read_text() == f"{number}\n"


def test_what_a_step_leaves_running_is_told_and_ended(app: App) -> None:
    step = "[step x]\nrun = sh -c 'sleep 61.7 >/dev/null 2>&1 & sleep 0.3 & echo started'\n"
    app.commit({"deploy.ini": DEPLOY_INI + step})
    done = app.deploy()
    assert "x left sleep running, which was ended" in done.log
    assert subprocess.run(["pgrep", "-f", "sleep 61.7"], capture_output=True, check=False).returncode == 1

"""A disk that is full from some stage of a deploy on: what was said of the deploy is true, and nothing is left.

Real full disks are in tests/machine/test_disk_full.py; here every stage has its turn.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from small_app import DEPLOY_INI, SCRIPT, App

FULL = f"""\
import errno, os, sys
sys.path.insert(0, {str(SCRIPT.parent)!r})
import deploy_machine

def fails(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a file")

stage = deploy_machine.Attempt.stage

def full_from(attempt, name, **fields):
    if name == os.environ["FULL_FROM"]:
        deploy_machine.write_file = os.mkdir = fails
    stage(attempt, name, **fields)

deploy_machine.Attempt.stage = full_from
deploy_machine.main()
"""


@pytest.fixture
def full(tmp_path: Path) -> Path:
    path = tmp_path / "full.py"
    path.write_text(FULL)
    return path


def releases(app: App) -> list[str]:
    return [path.name for path in (app.root / "releases").iterdir()]


@pytest.mark.parametrize("trigger", ["cd", "boot"])
@pytest.mark.parametrize("stage", ["fetching", "checking out", "step assets", "step always", "switching"])
def test_a_disk_that_is_full_before_the_switch(app: App, full: Path, stage: str, trigger: str) -> None:
    old = app.deploy().result["commit"]
    before, new = releases(app), app.commit({"src/a": "b\n"})
    done = app.run("deploy", "--trigger", trigger, env={"FULL_FROM": stage}, script=full)
    assert (done.code, done.result["outcome"], app.revision()) == (10, "failed", old), done.log
    assert releases(app) == before
    assert not app.run("status").result["bad_commits"]
    assert (app.deploy().result["outcome"], app.revision()) == ("deployed", new)


@pytest.mark.parametrize("stage", ["services", "tidying up"])
def test_a_disk_that_is_full_after_the_switch(app: App, full: Path, stage: str) -> None:
    app.deploy()
    new = app.commit({"src/a": "b\n"})
    done = app.run("deploy", env={"FULL_FROM": stage}, script=full)
    assert (done.code, done.result["outcome"], app.revision()) == (0, "deployed", new), done.log
    assert app.deploy().result["commit"] == new


@pytest.mark.parametrize("stage", ["services", "going back"])
def test_a_disk_that_is_full_when_the_release_is_unhealthy(app: App, full: Path, stage: str) -> None:
    old = app.deploy().result["commit"]
    before = releases(app)
    text = DEPLOY_INI.replace("[deploy]", "[deploy]\nhealth_timeout = 1")
    bad = app.commit({"deploy.ini": text.replace("[role web]", "[role web]\ncheck = false\n")})
    done = app.run("deploy", env={"FULL_FROM": stage}, script=full)
    assert (done.code, done.result["outcome"], app.revision()) == (11, "rolled_back", old), done.log
    assert f"{bad[:8]} could not be remembered as bad: No space left on device" in done.log
    assert releases(app) == before

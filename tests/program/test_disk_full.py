"""A disk that is full from some stage of a deploy on: what was said of the deploy is true, and nothing is left.

Real full disks are in tests/machine/test_disk_full.py; here every stage has its turn.
"""

from __future__ import annotations

import pytest

from small_app import DEPLOY_INI, App

FULL = """
    stage = memory.Progress.stage
    def full_from(progress, name, *more, **fields):
        if name == os.environ["FULL_FROM"]:
            files.write = os.mkdir = no_space
        stage(progress, name, *more, **fields)
    memory.Progress.stage = full_from
"""


def releases(app: App) -> list[str]:
    return [path.name for path in (app.root / "releases").iterdir()]


@pytest.mark.parametrize("trigger", ["cd", "boot"])
@pytest.mark.parametrize("stage", ["fetching", "checking out", "step assets", "step always", "switching"])
def test_a_disk_that_is_full_before_the_switch(app: App, stage: str, trigger: str) -> None:
    old = app.deploy().result["commit"]
    before, new = releases(app), app.commit({"src/a": "b\n"})
    done = app.run("deploy", "--trigger", trigger, env={"FULL_FROM": stage}, patch=FULL)
    assert (done.code, done.result["outcome"], app.revision()) == (10, "failed", old), done.log
    assert releases(app) == before
    assert not app.run("status").result["bad_commits"]
    assert (app.deploy().result["outcome"], app.revision()) == ("deployed", new)


@pytest.mark.parametrize("stage", ["services", "tidying up"])
def test_a_disk_that_is_full_after_the_switch(app: App, stage: str) -> None:
    app.deploy()
    new = app.commit({"src/a": "b\n"})
    done = app.run("deploy", env={"FULL_FROM": stage}, patch=FULL)
    assert (done.code, done.result["outcome"], app.revision()) == (0, "deployed", new), done.log
    assert app.deploy().result["commit"] == new


@pytest.mark.parametrize("stage", ["services", "going back"])
def test_a_disk_that_is_full_when_the_release_is_unhealthy(app: App, stage: str) -> None:
    old = app.deploy().result["commit"]
    before = releases(app)
    text = DEPLOY_INI.replace("[deploy]", "[deploy]\nhealth_timeout = 1")
    bad = app.commit({"deploy.ini": text.replace("[role web]", "[role web]\ncheck = false\n")})
    done = app.run("deploy", env={"FULL_FROM": stage}, patch=FULL)
    assert (done.code, done.result["outcome"], app.revision()) == (11, "rolled_back", old), done.log
    assert f"{bad[:8]} could not be remembered as bad: No space left on device" in done.log
    assert releases(app) == before

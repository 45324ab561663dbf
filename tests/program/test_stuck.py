"""What once stopped every later deploy of a machine: each is told, or simply goes on."""

from __future__ import annotations

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

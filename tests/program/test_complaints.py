"""What cannot be deployed rightly is refused before anything runs, and what nobody sees in a release is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import preloaded
from small_app import App

WEB = "[step build]\nroles = web\n[step node]\nroles = web\n[role web]\n"


@pytest.fixture
def bare(tmp_path: Path) -> App:
    """An application that says nothing of its own, on a machine that is a frontend."""
    return App(tmp_path)


def package(**about: object) -> str:
    return json.dumps({"name": "x", **about})


def test_a_commit_to_which_no_step_applies_is_refused_and_leaves_nothing(bare: App) -> None:
    bare.commit({"deploy.ini": WEB, "index.html": "one"})
    first = bare.deploy().result
    before = bare.snapshot()
    bare.commit({"deploy.ini": WEB, "a/manage.py": "", "b/manage.py": "", "index.html": "two"})
    said = "a/manage.py and b/manage.py are in the commit, and nothing says which is meant"
    for command in ("deploy", "plan"):
        done = bare.run(command)
        assert done.code == 10, done.log
        assert said in done.result.get("message", done.log)
    assert bare.snapshot() == before
    assert bare.revision() == first["commit"]
    assert bare.run("status").result["bad_commits"] == []


def test_a_repository_without_anything_to_run_says_so(bare: App) -> None:
    bare.commit({"index.html": "one", "deploy.ini": "[role web]\n"})
    assert bare.deploy().result["steps"] == []
    bare.commit({"deploy.ini": None, "index.html": "two"})
    arguments = [word.replace("web", "frontend") for word in bare.command("deploy")[2:]]
    code, out, _ = preloaded.run(arguments, bare.environment())
    assert code == 10
    assert "no step applies to this commit" in json.loads(out)["message"]


def test_a_package_without_dependencies_needs_no_node_modules(bare: App) -> None:
    lock = json.dumps({"name": "x", "lockfileVersion": 3, "packages": {"": {"name": "x"}}})
    bare.commit({"deploy.ini": WEB, "package.json": package(), "package-lock.json": lock})
    assert bare.deploy().result["steps"] == []


def test_what_is_hidden_by_shared_is_told(bare: App) -> None:
    bare.commit({"deploy.ini": WEB, ".env": "SECRET=1\n", "media/logo.png": "", "other": ""})
    done = bare.deploy()
    shared = bare.root / "shared"
    assert done.result["warnings"] == [
        f".env of the commit is not in the release: {shared}/.env is there, as shared = says; remove one",
        f"what lies in media/ of the commit is not in the release: {shared}/media is there, as shared = says;"
        " remove one",
    ]
    assert all(warning in done.log for warning in done.result["warnings"])
    assert bare.run("status").result["last"]["warnings"] == done.result["warnings"]
    bare.commit({".env": None, "media/logo.png": None, "media/.gitkeep": ""})
    assert "warnings" not in bare.deploy().result


def test_a_shared_folder_is_there_and_a_file_is_for_a_person_to_make(bare: App) -> None:
    bare.commit(
        {"deploy.ini": "[deploy]\nshared = .env uploads data.d/ committed.d\n" + WEB, "committed.d/.gitkeep": ""}
    )
    bare.deploy()
    for name in ("uploads", "data.d", "committed.d"):
        (bare.current / name / "x").write_text("kept")
        assert (bare.root / "shared" / name / "x").read_text() == "kept"
    assert not (bare.root / "shared/.env").exists()
    (bare.root / "shared/uploads").chmod(0o2770)
    bare.commit({"other": ""})
    bare.deploy()
    assert (bare.root / "shared/uploads").stat().st_mode & 0o7777 == 0o2770

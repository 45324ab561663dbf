"""What a step depends on is observed: what is skipped is what it would be if it were made anew (CASES.md, part A)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from small_app import App

INI = """\
[deploy]
shared = .env
keep = 2

[step bundle]
inputs = package
provides = dist
run = {run}

[role web]
[role more]
"""


@pytest.fixture
def app(tmp_path: Path) -> App:
    app = App(tmp_path)
    (app.root / "shared").mkdir()
    (app.root / "state").mkdir()
    return app


def commit(app: App, run: str, more: str = "", **files: str | None) -> str:
    own = {name.replace("__", "/"): text for name, text in files.items()}
    return app.commit({"deploy.ini": INI.format(run=run) + more, "package": "", "code.py": "", **own})


def env(app: App, text: str) -> None:
    (app.root / "shared/.env").write_text(text)


# --- what it reads


READS = "sh -c 'mkdir dist; cat package options.js pages/*.html > dist/all'"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"options.js": "2\n"}, "options.js changed"),
        ({"pages/a.html": "2\n"}, "pages/a.html changed"),
        ({"pages/b.html": "2\n"}, "names in pages/ changed"),
        ({"pages/a.html": None, "pages/c.html": "1\n"}, "names in pages/ changed; pages/a.html is gone"),
        ({"code.py": "2\n"}, ""),
        ({"other/x": "2\n"}, ""),
    ],
)
def test_what_a_step_reads_counts_though_it_is_not_named(
    app: App, change: dict[str, str | bytes | None], why: str
) -> None:
    commit(app, READS)
    app.commit({"options.js": "1\n", "pages/a.html": "1\n", "code.py": "1\n", "other/y": ""})
    app.deploy()
    app.commit(change)
    done = app.deploy()
    assert done.ran() == (["bundle"] if why else [])
    assert done.why("bundle") == (why or "kept: same package, and 2 more files that it read")
    made = (app.current / "dist/all").read_text()
    assert made == "".join((app.origin / name).read_text() for name in ("options.js", *sorted_pages(app)))


def sorted_pages(app: App) -> list[str]:
    return sorted(str(path.relative_to(app.origin)) for path in app.origin.glob("pages/*.html"))


def test_what_an_earlier_step_made_counts_if_it_was_used(app: App) -> None:
    more = (
        "[step collect]\ninputs = package\nprovides = static\nrun = sh -c 'mkdir static; cat dist/all > static/all'\n"
    )
    more += "[step apart]\ninputs = package\nprovides = apart\nrun = sh -c 'mkdir apart; date > apart/x'\n"
    commit(app, READS, more)
    app.commit({"options.js": "1\n", "pages/a.html": "1\n"})
    app.deploy()
    app.commit({"options.js": "2\n"})
    done = app.deploy()
    assert done.ran() == ["bundle", "collect"]
    assert done.why("collect") == "dist is made anew"
    assert (app.current / "static/all").read_text() == "2\n1\n"


def test_a_step_with_inputs_does_not_see_what_differs_in_each_commit(app: App) -> None:
    """Else its result would depend on that, and nobody could tell."""
    text = 'mkdir dist; echo "<$DEPLOY_COMMIT$DEPLOY_RELEASE>" > dist/all'
    commit(app, f"sh -c '{text}'")
    app.deploy()
    assert (app.current / "dist/all").read_text() == "<>\n"


def test_the_commits_own_name_may_be_read(app: App) -> None:
    commit(app, "sh -c 'mkdir dist; cat REVISION > dist/all'")
    app.deploy()
    new = app.commit({"code.py": "1"})
    assert app.deploy().why("bundle") == "REVISION changed"
    assert (app.current / "dist/all").read_text() == f"{new}\n"


# --- variables, roles, interpreters


def test_other_variables_are_applied_to_the_commit_that_runs(app: App) -> None:
    env(app, "MODE=one\n")
    commit(app, "sh -c 'mkdir dist; echo $MODE > dist/all'")
    app.deploy()
    assert app.deploy().result["outcome"] == "unchanged"
    first = app.current
    env(app, "MODE=two\n")
    plan = app.run("plan").result
    assert (plan["nothing_to_do"], plan["anew"], plan["steps"][0]["why"]) == (False, ".env changed", ".env changed")
    done = app.deploy()
    assert (done.result["outcome"], done.ran()) == ("deployed", ["bundle"])
    assert "runs already, and is made ready anew: .env changed" in done.log
    assert (app.current / "dist/all").read_text() == "two\n" and app.current != first
    env(app, "MODE=one\n")
    assert app.deploy().why("bundle") == "kept: same package, .env", "it was made with these before"
    assert (app.current / "dist/all").read_text() == "one\n"


def test_the_variables_themselves_are_written_nowhere(app: App) -> None:
    env(app, "SECRET=do-not-tell\n")
    commit(app, "sh -c 'mkdir dist; echo > dist/all'")
    app.deploy()
    done = subprocess.run(
        ["grep", "-r", "do-not-tell", "envs", "state", "releases"], cwd=app.root, capture_output=True, check=False
    )
    assert done.returncode == 1, done.stdout


def test_variables_that_cannot_be_read_are_told(app: App) -> None:
    commit(app, "sh -c 'mkdir dist'")
    (app.root / "shared/.env").mkdir()
    done = app.deploy(expect=10)
    assert f"{app.root}/shared/.env cannot be read: Is a directory; mend it" in done.result["message"]
    assert app.run("status").result["interrupted"] is False
    (app.root / "shared/.env").rmdir()
    app.deploy()


def test_the_steps_of_a_role_that_is_added_run(app: App) -> None:
    more = "[step theirs]\nroles = more\ninputs = package\nprovides = theirs\nrun = sh -c 'mkdir theirs'\n"
    commit(app, "sh -c 'mkdir dist'", more)
    app.deploy()
    assert not (app.current / "theirs").exists()
    done = app.deploy("--role", "more")
    assert (done.result["outcome"], done.ran()) == ("deployed", ["bundle", "theirs"])
    assert (app.current / "theirs").is_dir()


def test_a_commit_that_was_bad_is_tried_again_with_other_variables(app: App) -> None:
    env(app, "GOOD=1\n")
    commit(app, "sh -c 'mkdir dist'")
    app.deploy()
    ini = (app.origin / "deploy.ini").read_text().replace("keep = 2", "keep = 2\nhealth_timeout = 1")
    app.commit({"deploy.ini": ini.replace("[role web]\n", "[role web]\ncheck = sh -c 'test $GOOD = 2'\n")})
    assert app.deploy(expect=11).result["outcome"] == "rolled_back"
    assert "is not tried again" in app.deploy(expect=10).result["message"]
    env(app, "GOOD=2\n")
    assert app.deploy().result["outcome"] == "deployed"


def interpreters() -> list[str]:
    """Two that differ: the one of the tests, and the system's."""
    found = {os.path.realpath(path) for path in ("/usr/bin/python3", sys.executable)}
    versions = {
        subprocess.run([path, "-V"], capture_output=True, text=True, check=True).stdout: path for path in sorted(found)
    }
    return list(versions.values())


def test_the_environment_is_made_anew_for_another_python(app: App) -> None:
    old, new = interpreters()
    program = app.root.parent / ".local/bin/python-of-the-system"
    program.parent.mkdir(parents=True)
    program.symlink_to(old)
    ini = "[deploy]\npython = python-of-the-system\n[step python-pip]\nrun = true\n[role web]\n"
    app.commit({"deploy.ini": ini, "requirements.txt": ""})
    app.deploy()
    program.unlink()
    program.symlink_to(new)
    done = app.deploy()
    assert done.result["outcome"] == "deployed" and done.ran() == ["python-pip"]
    assert " -> " in done.why("python-pip")
    assert os.path.realpath(app.current / ".venv/bin/python") == os.path.realpath(new)


# --- what it leaves


def test_what_a_step_leaves_is_there_in_each_release(app: App) -> None:
    more = "[step messages]\ninputs = locale/**\nrun = sh -c 'cp locale/de.po locale/de.mo'\n"
    commit(app, "sh -c 'mkdir dist'", more, **{"locale__de.po": "1\n"})
    done = app.deploy()
    assert "messages leaves locale/de.mo in the release and does not provide it" in done.log
    app.commit({"code.py": "1"})
    done = app.deploy()
    assert (done.ran(), (app.current / "locale/de.mo").read_text()) == (["messages"], "1\n")
    assert done.why("messages") == "leaves locale/de.mo in the release, which it does not provide"
    app.commit({"deploy.ini": (app.origin / "deploy.ini").read_text().replace("po.mo", "po").replace(
        "locale/**\n", "locale/**\nprovides = locale/de.mo\n")})  # fmt: skip
    app.deploy()
    app.commit({"code.py": "2"})
    assert app.deploy().ran() == []
    assert (app.current / "locale/de.mo").read_text() == "1\n"


def test_what_a_step_only_touches_is_not_left(app: App) -> None:
    commit(app, "sh -c 'mkdir dist; touch package; cp package x; cp x package; rm x'")
    app.deploy()
    app.commit({"code.py": "1"})
    assert app.deploy().ran() == []


def test_a_database_inside_the_release_is_refused(app: App) -> None:
    database = 'import sqlite3; c = sqlite3.connect("data/db.sqlite3"); c.execute("create table t (x)"); c.commit()'
    run = f"python3 -c '{database}'"
    more = f"[step tables]\ninputs = package\nrun = {run}\n"
    commit(app, "sh -c 'mkdir dist'", more, data__x="")
    done = app.deploy(expect=10)
    assert "data/db.sqlite3 is a database inside the release and would be lost with it" in done.result["message"]
    app.commit({"deploy.ini": (app.origin / "deploy.ini").read_text().replace("shared = .env", "shared = .env data")})
    app.deploy()
    assert (app.root / "shared/data/db.sqlite3").stat().st_size > 0


@pytest.mark.slow
def test_an_environment_made_elsewhere_outlives_the_release_that_made_it(app: App) -> None:
    more = "[step backend]\ninputs = package\nprovides = backend/.venv\ncwd = backend\nrun = python3 -m venv .venv\n"
    commit(app, "sh -c 'mkdir dist'", more, backend__x="")
    app.deploy()
    for number in range(3):  # keep = 2: the first is gone
        app.commit({"code.py": f"{number}"})
        assert app.deploy().ran() == []
    done = subprocess.run(
        [app.current / "backend/.venv/bin/pip", "--version"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "pip" in done.stdout
    assert "releases/" not in (app.current / "backend/.venv/bin/pip").read_text()


def test_plan_names_what_each_step_depends_on(app: App) -> None:
    env(app, "A=1\n")
    commit(app, READS)
    app.commit({"options.js": "1\n", "pages/a.html": "1\n"})
    app.deploy()
    app.commit({"options.js": "2\n"})
    depends = app.run("plan").result["steps"][0]["depends"]
    assert {"package", ".env", "run line", "roles"} <= {*depends}
    done = subprocess.run(
        [arg for arg in app.command("plan", "--why") if arg != "--json"],
        env=app.environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "run   bundle: options.js changed" in done.stdout
    assert "          package  " in done.stdout and "A=1" not in done.stdout

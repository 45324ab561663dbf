"""What somebody changed by hand in what runs is told; what steps and links change rightly is not."""

from __future__ import annotations

import re
import time

import pytest

from small_app import DEPLOY_INI, App

BUILDS = """
[step mixed]
inputs = code.py
run = sh -c 'echo built >> code.py; mkdir -p made/deep; echo x > made/deep/x; echo y > beside; chmod +x one.sql'
"""


def drift(app: App) -> list[tuple[str, str]]:
    return [(one["kind"], one["name"]) for one in app.run("status").result["drift"]]


@pytest.fixture
def built(app: App) -> App:
    """A release in which a step has changed what the commit holds, and left more."""
    app.commit({"deploy.ini": DEPLOY_INI + BUILDS, "folder/file": "1\n"})
    app.deploy()
    return app


def test_what_steps_and_links_change_is_no_drift_and_what_a_person_changes_is(built: App) -> None:
    assert drift(built) == []
    current = built.current
    (current / "src/__pycache__").mkdir()
    (current / "src/__pycache__/a.pyc").write_text("what a check leaves")
    (current / "folder/file").touch()
    assert drift(built) == [], "neither Python's caches nor another time are a change"
    (current / "src/a").write_text("mended by hand\n")
    (current / "code.py").write_text("what a step had changed, changed again\n")
    (current / "one.sql").chmod(0o644)
    (current / "folder/file").unlink()
    (current / "beside").unlink()
    (current / "made/deep/x").write_text("it is made, as a whole folder\n")
    (current / "src/new").write_text("mine\n")
    (current / ".env").unlink()
    assert drift(built) == [
        ("deleted", ".env"),
        ("deleted", "beside"),
        ("changed", "code.py"),
        ("deleted", "folder/file"),
        ("changed", "one.sql"),
        ("changed", "src/a"),
        ("added", "src/new"),
    ]


def test_a_deploy_names_it_before_it_replaces_it(built: App) -> None:
    (built.current / "src/a").write_text("mended by hand\n")
    left = built.revision()
    built.commit({"src/b": "b\n"})
    done = built.deploy()
    warning = f"changed by hand in {left[:8]}, and not in what replaces it: src/a (changed)"
    assert done.result["warnings"] == [warning]
    assert done.log.index(warning) < done.log.index("switched to")
    assert drift(built) == []
    assert built.run("rollback").code == 0
    assert drift(built) == [("changed", "src/a")], "and it is known again where one goes back to it"


def test_assets_that_are_carried_over_are_no_drift(app: App) -> None:
    run = "sh -c 'mkdir -p public; cp code.py public/$DEPLOY_COMMIT'"
    step = f"[step static]\nprovides = public\nkeep_days = 7\nrun = {run}"
    app.commit({"deploy.ini": f"{DEPLOY_INI}\n{step}\n", "public/committed": "1\n"})
    app.deploy()
    app.commit({"code.py": "print(2)\n"})
    app.deploy()
    assert drift(app) == []
    assert app.run("rollback").code == 0
    assert len(list((app.current / "public").iterdir())) == 3, "what the newer one had was carried back"
    assert drift(app) == []
    (app.current / "public/committed").write_text("by hand\n")
    assert drift(app) == [("changed", "public/committed")]


def test_what_is_noted_goes_with_its_release(built: App) -> None:
    for number in range(7):
        built.commit({"src/a": f"{number}\n"})
        built.deploy()
    noted = {path.stem for path in (built.root / "state/drift").iterdir()}
    assert noted == {path.name for path in (built.root / "releases").iterdir()}


def test_settings_that_nothing_that_runs_has_read(app: App) -> None:
    ini = app.root / "machine.ini"
    others = "[role scheduler]\nservices =\n[role frontend]\nslots =\nreload =\n"  # there is no systemd here
    app.commit({"deploy.ini": DEPLOY_INI.replace("services = worker.service\n", others)})
    ini.write_text("[machine]\nname = one\nroles = web\n")
    app.deploy()
    time.sleep(1)  # times of deploys are whole seconds
    ini.write_text("[machine]\nname = two\nroles = web\n")
    (app.root / "shared/.env").write_text("A=2\n")
    assert drift(app) == [("newer", "shared/.env"), ("newer", "machine.ini")]
    app.deploy()
    assert drift(app) == [], "the deploy has read them"


def test_it_costs_little(app: App) -> None:
    app.commit({f"many/{number % 40}/{number}.py": f"{number}\n" * 40 for number in range(2000)})
    app.deploy()
    app.commit({"src/a": "b\n"})
    patch = """
        import time
        looked = drift.look
        def timed(*arguments):
            for _ in range(4):  # others have the processors, too
                began = time.monotonic()
                found = looked(*arguments)
                log.info(f"drift took {time.monotonic() - began} s")
            return found
        drift.look = timed
        """
    done = app.run("deploy", patch=patch)
    spent = [float(text) for text in re.findall("drift took (.*) s", done.log)]
    assert len(spent) == 8, "what is left is looked at, and what serves from now on"
    assert min(spent) < 0.05

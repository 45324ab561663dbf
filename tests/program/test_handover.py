"""The commit's own version of the script takes over: with a baton, anew where that is not known, or not at all."""

from __future__ import annotations

import json
import subprocess

import pytest

from small_app import REPOSITORY, App, own_version

BEFORE_ROOMS = "d009b1f"  # the last commit in which the script was one file, without --continue


def version_0_1() -> bytes:
    """The script as it was when it was one file."""
    show = ["git", "-C", str(REPOSITORY), "show", f"{BEFORE_ROOMS}:scripts/deploy_machine.py"]
    return subprocess.run(show, check=True, capture_output=True).stdout


def test_the_commits_own_version_takes_over(app: App) -> None:
    new = app.commit(own_version("9.9.9"))
    done = app.deploy()
    assert "handing over to scripts/deploy_machine.py" in done.log
    assert done.log.count("fetching main") == 1, "the baton says what was fetched"
    assert done.log.count("handing over") == 1
    assert "interrupted" not in done.log
    assert done.result["commit"] == new
    kept = [path for path in (app.root / "deployers").iterdir() if not path.name.startswith(".")]
    assert [(path / "deployer/__init__.py").read_text().count("9.9.9") for path in kept] == [1]


def test_the_same_version_does_not_take_over(app: App) -> None:
    app.commit(own_version())
    assert "handing over" not in app.deploy().log


@pytest.mark.parametrize(
    "files",
    [
        {"scripts/deploy_machine.py": "import does_not_exist\n"},
        {"scripts/deploy_machine.py": "this is no Python\n"},
        {"scripts/deployer/cli.py": "raise SystemExit(1)\n"},
        {"scripts/deployer/cli.py": b"\xff\xfe"},
        {"scripts/deployer/cli.py": None},
    ],
)
def test_a_version_that_does_not_start_does_not_take_over(app: App, files: dict[str, str | bytes | None]) -> None:
    app.commit({**own_version(), **{name: data for name, data in files.items() if data is not None}})
    app.commit({name: None for name, data in files.items() if data is None})
    done = app.deploy()
    assert "does not start; going on with this one" in done.log
    assert done.result["outcome"] == "deployed"


def version_that(app: App, old: str, new: str, room: str) -> None:
    """Commit a version of this program in which one text is another."""
    name = f"scripts/deployer/{room}.py"
    files = own_version("9.9.9")
    text = bytes(files[name] or b"").decode()
    assert old in text
    app.commit({**files, name: text.replace(old, new)})


def test_a_version_that_does_not_know_the_baton_begins_anew(app: App) -> None:
    version_that(app, '"--continue"', '"--go-on"', "cli")
    done = app.deploy()
    assert done.log.count("fetching main") == 2
    assert done.log.count("handing over") == 1
    assert "interrupted" not in done.log
    assert done.result["outcome"] == "deployed"


def test_a_baton_of_another_version_is_not_taken(app: App) -> None:
    version_that(app, "BATON_VERSION = 1", "BATON_VERSION = 2", "handover")
    done = app.deploy()
    assert done.log.count("fetching main") == 2, "it begins anew, under the lock that the first one left open"
    assert done.log.count("handing over") == 1
    assert done.result["outcome"] == "deployed"


def test_a_version_that_does_not_know_an_option_does_not_take_over(app: App) -> None:
    version_that(app, '"--timings"', '"--durations"', "cli")
    done = app.deploy("--timings")
    assert "does not start; going on with this one" in done.log
    assert "--timings" in done.log
    assert done.result["outcome"] == "deployed"
    assert not app.run("status").result["interrupted"]


def test_to_version_0_1_and_back(app: App) -> None:
    """It is one file and knows no baton; and it hands over only that one file to what is a package now."""
    (app.root / "machine.ini").write_text("[machine]\nname = one\nroles = web\n")
    (app.root / "bin").mkdir()
    ini = NO_SERVICES.replace("slots =", "services =")
    app.commit({"scripts/deploy_machine.py": version_0_1(), "deploy.ini": ini})
    done = app.deploy()
    assert done.log.count("handing over") == 1
    assert done.log.count("fetching main") == 2, "it begins anew"
    assert "interrupted" not in done.log
    script = app.root / "bin/deploy_machine.py"
    assert script.read_bytes() == version_0_1()

    new = app.commit({**own_version(), "deploy.ini": NO_SERVICES})
    done = by_itself(app)
    assert json.loads(done.stdout)["commit"] == new, done.stderr
    assert done.stderr.count("handing over") == 1
    assert done.stderr.count("fetching main") == 2, "and so does this one"
    assert "interrupted" not in done.stderr
    assert script.is_symlink()
    assert script.resolve().with_name("deployer").is_dir()
    assert json.loads(by_itself(app).stdout)["outcome"] == "unchanged"


NO_SERVICES = """\
[role web]
[role scheduler]
services =
[role frontend]
slots =
reload =
"""


def by_itself(app: App) -> subprocess.CompletedProcess[str]:
    """What a boot runs, but for the trigger."""
    words = app.command("deploy")[2:]
    command = ["python3", str(app.root / "bin/deploy_machine.py"), *words]
    done = subprocess.run(command, env=app.environment(), capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done


def test_what_boots_run_is_moved_by_a_good_deploy_alone(app: App) -> None:
    (app.root / "machine.ini").write_text("[machine]\nname = one\nroles = web\n")
    (app.root / "bin").mkdir()
    app.commit({"deploy.ini": NO_SERVICES, **own_version()})
    app.deploy()
    script = app.root / "bin/deploy_machine.py"
    first = script.resolve()
    ill = "[deploy]\nhealth_timeout = 0.5\n" + NO_SERVICES.replace("[role web]", "[role web]\ncheck = false")
    app.commit({**own_version("9.9.8"), "deploy.ini": ill})
    app.deploy(expect=11)
    assert script.resolve() == first
    app.commit({"deploy.ini": NO_SERVICES})
    app.deploy()
    assert script.resolve() != first
    assert "9.9.8" in (script.resolve().parent / "deployer/__init__.py").read_text()

"""Killed at an exact point: what is left never looks whole, and the next run ends as an undisturbed one."""

from __future__ import annotations

import json
import os

import pytest

from small_app import DEPLOY_INI, App, own_version, processes

# A directory is emptied in any order: here all but its hidden files goes, and then the power.
HALF_REMOVED = """
    def half(path, *_, **__):
        for folder, _, names in os.walk(path):
            for name in names:
                if not name.startswith("."):
                    os.unlink(os.path.join(folder, name))
        die()
    files.shutil.rmtree = half
"""


def complete(app: App) -> set[str]:
    """The releases and environments that count as complete."""
    marks = [*(app.root / "releases").glob("*/.release.json"), *(app.root / "envs").glob("*/.complete")]
    return {str(path.parent.relative_to(app.root)) for path in marks}


def test_a_half_removed_release_or_environment_does_not_look_whole(app: App) -> None:
    app.commit({"deploy.ini": DEPLOY_INI.replace("shared = .env", "keep = 1")})
    app.deploy()
    app.commit({"src/a": "b\n"})
    app.killed(HALF_REMOVED)  # in the release of the first
    app.commit({"src/a": "c\n"})
    app.killed(HALF_REMOVED)  # in its environment
    for path in complete(app) - {path for path in complete(app) if path.startswith("envs/schema-")}:
        names = [name for _, _, files in os.walk(app.root / path) for name in files]
        assert "all" in names or "code.py" in names, f"{path} looks complete but has only {names}"
    app.commit({"src/a": "a\n"}, "back to the environment of the first")
    app.deploy()
    assert (app.current / "out" / "all").read_text() == "a\n"


KILLED_WHILE_TIDYING = """
    releases.prune = die
"""


def test_what_was_not_tidied_up_is_by_the_next_run(app: App) -> None:
    app.commit({"deploy.ini": DEPLOY_INI.replace("shared = .env", "keep = 1")})
    app.deploy()
    app.commit({"src/a": "b\n"})
    app.killed(KILLED_WHILE_TIDYING)
    assert len(list((app.root / "releases").iterdir())) == 2
    app.deploy()
    assert len(list((app.root / "releases").iterdir())) == 1
    assert app.kept() == ["assets", "schema"]


def test_killed_while_another_copy_takes_over_is_interrupted(app: App) -> None:
    app.deploy()
    new = app.commit(own_version("9.9.9"))
    app.killed("os.execv = die")
    assert app.run("status").result["interrupted"] is True
    done = app.deploy()
    assert "was interrupted at: planning" in done.log
    assert done.log.count("was interrupted") == 1, "the copy that takes over does not take its own deploy for one"
    assert done.result["commit"] == new


CONFIRMED = "was switched to but not confirmed"


@pytest.mark.parametrize(
    ("patch", "again"),
    [("switching.activate = die", True), ("releases.prune = die", False)],
    ids=["before its services were restarted", "after it was confirmed"],
)
def test_an_interrupted_switch_to_a_release_that_was_good(app: App, patch: str, again: bool) -> None:
    """Its mark says good since long: that its services were restarted this time, nobody has seen."""
    first = app.deploy().result["commit"]
    app.commit({"code.py": "print(2)\n"})
    app.deploy()
    app.killed(patch, "rollback")
    assert app.revision() == first
    done = app.deploy("--commit", first, "--force")
    assert (CONFIRMED in done.log) is again
    assert app.revision() == first
    assert CONFIRMED not in app.deploy("--commit", first, "--force").log, "once is enough"


def two_releases(app: App) -> tuple[str, str]:
    first = app.deploy().result["commit"]
    second = app.commit({"code.py": "print(2)\n"})
    app.deploy()
    return first, second


def test_the_clock_was_ahead_when_the_release_was_confirmed(app: App) -> None:
    first, _ = two_releases(app)
    for mark in (app.root / "releases").glob("*/.release.json"):
        mark.write_text(json.dumps({**json.loads(mark.read_text()), "confirmed": "2099-01-01T00:00:00Z"}))
    app.killed("switching.activate = die", "rollback")
    assert CONFIRMED in app.deploy("--commit", first, "--force").log


SICK = "[deploy]\nhealth_timeout = 1"


KILLED_AT_THE_GOOD_ONE = """
    real = {name}
    def only_once(*arguments):
        release = next(one for one in arguments if isinstance(one, releases.Release))
        return real(*arguments) if release.commit == "{bad}" else die()
    {name} = only_once
"""


@pytest.mark.parametrize("name", ["releases.make_current", "switching.activate"])
def test_killed_while_going_back(app: App, name: str) -> None:
    """The release that was left may still run: what serves in the end is the good one, seen to be healthy."""
    good = app.deploy().result["commit"]
    ini = DEPLOY_INI.replace("[deploy]", SICK).replace("[role web]", "[role web]\ncheck = test ! -e bad")
    bad = app.commit({"deploy.ini": ini, "bad": ""})
    app.killed(KILLED_AT_THE_GOOD_ONE.format(name=name, bad=bad))
    assert json.loads((app.root / "state/switching.json").read_text())["by"] == "going back"
    done = app.deploy(expect=11)
    assert (done.result["outcome"], app.revision()) == ("rolled_back", good)
    if name == "releases.make_current":
        assert "\nswitched to" not in done.log, "what is known to be bad is not asked again"
    assert [entry["commit"] for entry in app.run("status").result["bad_commits"]] == [bad]
    assert not (app.root / "state/switching.json").exists()


def test_nothing_is_owed_of_a_switch_that_was_not_made(app: App) -> None:
    app.deploy()
    new = app.commit({"code.py": "print(2)\n"})
    app.killed("releases.make_current = die")
    done = app.deploy()
    assert CONFIRMED not in done.log
    assert done.result["commit"] == new


@pytest.mark.parametrize("again", [(), ("deploy", "--trigger", "boot"), ("rollback", "nothing-like-it")])
def test_killed_again_before_what_the_first_kill_left_was_put_right(app: App, again: tuple[str, ...]) -> None:
    """Services may run another release than the current one until a run has got that far."""
    first, _ = two_releases(app)
    app.killed("switching.activate = die", "rollback")
    if again[:1] == ("rollback",):  # is refused, and puts nothing right either
        assert app.run(*again).code == 2
    else:
        app.killed("mirror.Mirror.fetch = die", *again)
    assert app.run("status").result["interrupted"] is True
    done = app.deploy("--commit", first, "--force")
    assert CONFIRMED in done.log
    assert app.run("status").result["interrupted"] is False
    assert CONFIRMED not in app.deploy("--commit", first, "--force").log


@pytest.mark.parametrize("named", [True, False])
def test_a_killed_rollback_is_ended_by_the_same_command(app: App, named: bool) -> None:
    two_releases(app)
    app.commit({"code.py": "print(3)\n"})
    app.deploy()
    second = app.run("status").result["releases"][1]
    command = ["rollback", *([second["release"]] if named else [])]
    app.killed("switching.activate = die", *command)
    done = app.run(*command)
    assert (done.code, done.result["outcome"]) == (0, "rolled_back_on_request"), done.log
    assert CONFIRMED in done.log, "its services were restarted"
    assert app.revision() == second["commit"], "it went back once, not twice"


@pytest.mark.parametrize("patch", ["releases.make_current = die", "switching.activate = die", "releases.prune = die"])
def test_a_boot_does_not_undo_a_killed_rollback(app: App, patch: str) -> None:
    """The power may go because the release is bad; if nothing was switched yet, there is nothing to undo."""
    first, second = two_releases(app)
    app.killed(patch, "rollback")
    switched = app.revision() == first
    assert switched is (patch != "releases.make_current = die")
    boot = app.run("deploy", "--trigger", "boot")
    assert boot.code == (10 if switched else 0), boot.log
    assert app.revision() == (first if switched else second)
    assert [bad["commit"] for bad in app.run("status").result["bad_commits"]] == [second] * switched


def test_a_rollback_from_a_release_whose_mark_is_damaged(app: App) -> None:
    first, _ = two_releases(app)
    (app.current / ".release.json").write_text("")
    assert app.run("rollback").result["outcome"] == "rolled_back_on_request"
    assert app.revision() == first


def test_nothing_stays_of_a_mark_that_was_being_written(app: App) -> None:
    app.commit({"check": "true\n"})
    app.killed("os.replace = lambda old, new: die() if 'release.json' in str(new) else os.rename(old, new)")
    app.deploy()
    app.commit({"code.py": "print(2)\n"})
    confirming = "releases.Release.mark_good = lambda self: (setattr(os, 'replace', die), confirm(self))\n"
    app.killed("confirm = releases.Release.mark_good\n" + confirming)
    app.deploy()
    assert [str(path) for path in app.root.rglob("*.tmp-*")] == []


FULL_ONCE_SWITCHED = """
    real = releases.make_current
    def switch(*arguments):
        real(*arguments)
        files.write = no_space
    releases.make_current = switch
"""


def test_a_disk_that_fills_up_after_the_switch_holds_up_nothing(app: App) -> None:
    """Half-way, services would run another release than the current one, or an unhealthy one would stay."""
    ini = DEPLOY_INI.replace("[role web]", "[role web]\ncheck = test -e well")
    ini = ini.replace("shared", "health_timeout = 1\nshared")
    first = app.commit({"deploy.ini": ini, "well": ""})
    done = app.run("deploy", patch=FULL_ONCE_SWITCHED)
    assert (done.code, done.result["outcome"]) == (0, "deployed"), done.log
    app.deploy()
    bad = app.commit({"well": None})
    done = app.run("deploy", patch=FULL_ONCE_SWITCHED)
    assert (done.code, done.result["outcome"]) == (11, "rolled_back"), done.log
    assert app.revision() == first
    assert app.deploy(expect=11).result["wanted"] == bad


# The kernel ends one process when memory is short: the script, say, and not the git that it waits for.
KILLED_ALONE = """
    real = run.command
    def command(argv, **options):
        return real(["sh", "-c", "{sleep} & kill -9 $PPID; wait"] if {word!r} in argv else argv, **options)
    run.command = command
"""


@pytest.mark.parametrize("word", ["fetch", "read-tree", "make-assets"])
def test_what_a_killed_deploy_left_running_is_ended(app: App, word: str) -> None:
    app.commit({"deploy.ini": DEPLOY_INI + "\n[step more]\nrun = true make-assets\n"})
    sleep = f"sleep 48.{len(word)}"  # tests may run at the same time
    app.killed(KILLED_ALONE.format(word=word, sleep=sleep))
    assert sleep in processes()
    app.deploy()
    assert sleep not in processes()

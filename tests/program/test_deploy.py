"""Whole deploys of a small application into an empty directory: what runs, and what does not."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from small_app import DEPLOY_INI, App
from waiting import wait_for


def test_first_deploy_runs_every_step_that_applies(app: App) -> None:
    done = app.deploy()
    assert done.result["outcome"] == "deployed"
    assert done.ran() == ["assets", "schema", "always"]
    assert done.why("assets") == "first run on this machine"
    assert done.why("always") == "has no inputs, so it always runs"
    assert app.revision() == app.git("rev-parse", "HEAD") == done.result["commit"]
    assert (app.current / "out" / "all").read_text() == "a\n"
    assert os.readlink(app.root / "current") == f"releases/{done.result['release']}"


def test_second_run_is_unchanged_and_writes_nothing(app: App) -> None:
    app.deploy()
    before = app.snapshot()
    again = app.deploy()
    assert again.result["outcome"] == "unchanged"
    assert again.result["steps"] == []
    assert app.snapshot() == before


@pytest.mark.parametrize(
    ("change", "ran", "why"),
    [
        ({"code.py": "print(2)\n"}, ["always"], {"assets": "kept: same src/"}),
        ({"src/b": "b\n"}, ["assets", "always"], {"assets": "src/ changed"}),
        (
            {"db/two.sql": "2;\n"},
            ["assets", "schema", "always"],
            {"assets": "names in ./ changed", "schema": "db/two.sql is new"},
        ),
        (
            {"one.sql": None, "two.sql": "2;\n"},
            ["assets", "schema", "always"],
            {"assets": "names in ./ changed", "schema": "two.sql is new; one.sql is gone"},
        ),
        (
            {"deploy.ini": DEPLOY_INI.replace("echo built", "echo made")},
            ["assets", "always"],
            {"assets": "run line changed"},
        ),
    ],
)
def test_only_steps_whose_inputs_changed_run(
    app: App, change: dict[str, str | bytes | None], ran: list[str], why: dict[str, str]
) -> None:
    app.deploy()
    app.commit(change)
    done = app.deploy()
    assert done.ran() == ran
    for name, reason in why.items():
        assert done.why(name) == reason


def test_unchanged_output_is_shared_between_releases_and_found_again(app: App) -> None:
    app.deploy()
    first = (app.current / "out").resolve()
    app.commit({"src/a": "changed\n"})
    app.deploy()
    assert (app.current / "out").resolve() != first
    assert first.is_dir(), "the previous release still needs it"
    app.commit({"src/a": "a\n"}, "back")
    done = app.deploy()
    assert "assets" not in done.ran()
    assert (app.current / "out").resolve() == first


def test_full_runs_every_step_and_leaves_the_running_tree_alone(app: App) -> None:
    app.deploy()
    before = (app.current / "out").resolve()
    done = app.deploy("--full")
    assert done.ran() == ["assets", "schema", "always"]
    assert (app.current / "out").resolve() != before
    assert done.result["outcome"] == "deployed"


@pytest.mark.parametrize("step", ["assets", "schema", "always"])
def test_a_failing_step_leaves_the_old_release_and_nothing_of_the_new(app: App, step: str) -> None:
    good = app.deploy().result
    before = app.snapshot()
    broken = f"[step {step}]\nrun = sh -c 'echo last words; exit 3'\n"
    separate = "\n".join(block for block in DEPLOY_INI.split("\n\n") if f"[step {step}]" not in block)
    wanted = app.commit({"deploy.ini": separate + "\n" + broken})
    done = app.deploy(expect=10)
    assert done.result["outcome"] == "failed"
    assert done.result["commit"] == good["commit"]
    assert done.result["wanted"] == wanted
    assert f"step {step} failed" in done.result["message"]
    assert "ended with 3" in done.result["message"]
    assert done.result["detail"] == "last words"
    left = {path: value for path, value in app.snapshot().items() if "/envs" not in path}
    assert left == {path: value for path, value in before.items() if "/envs" not in path}


def test_a_fixed_commit_deploys_after_a_failed_one_and_a_push_tries_again(app: App) -> None:
    app.deploy()
    app.commit({"deploy.ini": DEPLOY_INI + "\n[step late]\nrun = sh -c 'test -e $HOME/ready'\n"})
    app.deploy(expect=10)
    app.deploy("--trigger", "cd", expect=10)
    (app.root.parent / "ready").touch()
    assert app.deploy("--trigger", "cd").result["outcome"] == "deployed"


def test_without_a_machine_ini_no_service_is_asked(app: App) -> None:
    services = "services = site.service\nreload = nginx.service\n"
    app.commit({"deploy.ini": DEPLOY_INI.replace("[role web]\n", "[role web]\n" + services)})
    log = app.deploy().log
    assert "services are left alone" in log
    assert "sudo" not in log


def test_a_release_that_fails_its_check_is_rolled_back_and_not_tried_again(app: App) -> None:
    config = DEPLOY_INI.replace("shared = .env", "shared = .env\nhealth_timeout = 1").replace(
        "[role web]", "[role web]\ncheck = sh -c 'echo looking; test ! -e broken'"
    )
    good = app.commit({"deploy.ini": config})
    app.deploy()
    bad = app.commit({"broken": "yes"})
    done = app.deploy(expect=11)
    assert done.result["outcome"] == "rolled_back"
    assert app.revision() == good == done.result["commit"]
    assert done.result["healthy"] is True, "the release that serves again is the healthy one"
    assert "looking" in done.result["message"]
    again = app.deploy(expect=10)
    assert "is not tried again" in again.result["message"]
    assert again.result["steps"] == []
    assert list(app.state()["bad"]) == [bad]
    app.deploy("--force", expect=11)
    app.commit({"broken": None})
    assert app.deploy().result["outcome"] == "deployed"


def test_without_a_good_release_an_unhealthy_one_is_broken(app: App) -> None:
    app.commit(
        {
            "deploy.ini": DEPLOY_INI.replace("[role web]", "[role web]\ncheck = false").replace(
                "shared = .env", "health_timeout = 0.5"
            )
        }
    )
    done = app.deploy(expect=12)
    assert done.result["outcome"] == "broken"
    assert "no good release" in done.result["message"]


def test_rollback_goes_to_the_release_before_and_a_boot_does_not_undo_it(app: App) -> None:
    first = app.deploy().result
    second = app.commit({"code.py": "print(2)\n"})
    app.deploy()
    back = app.run("rollback")
    assert (back.code, back.result["outcome"]) == (0, "rolled_back_on_request")
    assert app.revision() == first["commit"]
    (app.root / "shared/.env").write_text("OTHER=variables\n")
    for trigger in ("boot", "manual", "cd"):
        again = app.deploy("--trigger", trigger, expect=10)
        assert "rolled back by hand" in again.result["message"]
        assert app.revision() == first["commit"]
    assert app.deploy("--force").result["commit"] == second, "a person brings it back"


def test_rollback_names(app: App) -> None:
    releases = [app.deploy().result["release"]]
    for number in (2, 3):
        app.commit({"code.py": f"print({number})\n"})
        releases.append(app.deploy().result["release"])
    assert app.run("rollback", releases[0]).result["release"] == releases[0]
    assert app.run("rollback", releases[1].rpartition("-")[2]).result["release"] == releases[1]
    wrong = app.run("rollback", "beef")
    assert wrong.code == 2
    assert "no such release is kept" in wrong.log


def test_as_many_releases_as_keep_stay(app: App) -> None:
    for number in range(7):
        app.commit({"code.py": f"print({number})\n"})
        app.deploy()
        assert len(list((app.root / "releases").iterdir())) == min(number + 1, 5)


def test_no_more_than_keep_releases_and_their_environments_stay(app: App) -> None:
    app.commit({"deploy.ini": DEPLOY_INI.replace("shared = .env", "keep = 2")})
    for number in range(4):
        app.commit({"src/a": f"{number}\n"})
        app.deploy()
    assert len(list((app.root / "releases").iterdir())) == 2
    assert app.kept() == ["assets", "assets", "schema"]


def test_an_older_commit_is_superseded_unless_forced(app: App) -> None:
    old = app.git("rev-parse", "HEAD")
    new = app.commit({"code.py": "print(2)\n"})
    app.deploy()
    done = app.deploy("--commit", old)
    assert done.result["outcome"] == "superseded"
    assert app.revision() == new
    assert app.deploy("--commit", old[:10], "--force").result["commit"] == old


def test_contains_deploys_the_newest_that_contains_the_commit(app: App) -> None:
    old = app.commit({"code.py": "print(2)\n"})
    new = app.commit({"code.py": "print(3)\n"})
    assert app.deploy("--contains", old).result["commit"] == new
    missing = app.deploy("--contains", "f" * 40, "--fetch-timeout", "1.5", expect=10)
    assert "does not contain ffffffff" in missing.result["message"]


def test_an_unreachable_repository_keeps_what_runs(app: App) -> None:
    app.deploy()
    app.origin.rename(app.origin.with_name("moved"))
    done = app.deploy("--fetch-timeout", "1", expect=75)
    assert done.result["outcome"] == "unreachable"
    assert "still runs" in done.result["message"]


def test_a_damaged_mirror_is_fetched_anew(app: App) -> None:
    app.deploy()
    for path in (app.root / "repo.git" / "objects").rglob("*"):
        if path.is_file():
            path.chmod(0o644)
            path.write_bytes(b"")
    (app.root / "repo.git" / "refs" / "heads" / "main.lock").touch()
    new = app.commit({"code.py": "print(2)\n"})
    assert app.deploy().result["commit"] == new


def test_damaged_state_files_are_ignored_and_replaced(app: App) -> None:
    app.deploy()
    for name in ("state.json", "last.json", "running.json"):
        (app.root / "state" / name).write_text('{"schema": 1, "trunc')
    with open(app.root / "state" / "history.jsonl", "a") as history:
        history.write('{"half a line')
    app.commit({"code.py": "print(2)\n"})
    assert app.deploy().result["outcome"] == "deployed"
    outcomes = [entry["outcome"] for entry in app.run("history").result["history"]]
    assert outcomes == ["deployed", "deployed"]


def test_two_deploys_at_once_one_waits_and_says_for_whom(app: App) -> None:
    app.commit({"deploy.ini": DEPLOY_INI + "\n[step slow]\nrun = sleep 2\n"})
    first = subprocess.Popen(app.command("deploy", "--trigger", "cd"), stderr=subprocess.DEVNULL, env=app.environment())
    wait_for_stage(app, "slow")
    waited = app.deploy()
    assert first.wait(30) == 0
    assert f"waiting for another deploy to end: process {first.pid} (cd, since" in waited.log
    assert waited.result["outcome"] == "unchanged"
    assert (app.root / "state" / "lock").exists()


def test_a_lock_that_is_held_too_long_is_busy(app: App) -> None:
    app.commit({"deploy.ini": DEPLOY_INI + "\n[step slow]\nrun = sleep 3\n"})
    first = subprocess.Popen(app.command("deploy"), stderr=subprocess.DEVNULL, env=app.environment())
    wait_for_stage(app, "slow")
    done = app.deploy("--lock-timeout", "0.5", expect=75)
    assert done.result["outcome"] == "busy"
    assert str(first.pid) in done.result["message"]
    assert first.wait(30) == 0


@contextlib.contextmanager
def deploy_that_is_held(app: App) -> Iterator[subprocess.Popen[bytes]]:
    """A deploy that holds the lock until the block has ended."""
    script = "while ! test -e $HOME/go; do sleep 0.05; done"
    app.commit({"wait.sh": script, "deploy.ini": DEPLOY_INI + "\n[step slow]\nrun = sh wait.sh\n"})
    first = subprocess.Popen(
        app.command("deploy"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=app.environment()
    )
    try:
        wait_for_stage(app, "slow")
        yield first
    finally:
        (app.root.parent / "go").touch()
        assert first.wait(30) == 0


def pushed(app: App) -> subprocess.Popen[str]:
    """A push, as sshd starts one: its output ends at the connection."""
    words, pipe = app.command("deploy", "--trigger", "cd"), subprocess.PIPE
    return subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, env=app.environment())


def hang_up(push: subprocess.Popen[str]) -> None:
    assert push.stdout and push.stderr
    push.stdout.close()
    push.stderr.close()


def test_a_push_that_waits_ends_with_its_connection(app: App) -> None:
    with deploy_that_is_held(app) as first:
        stays, goes = pushed(app), pushed(app)
        for push in (stays, goes):
            assert push.stderr and f"waiting for another deploy to end: process {first.pid}" in push.stderr.readline()
        hang_up(goes)
        assert goes.wait(5) == 75, "while the other one still holds the lock"
        assert stays.poll() is None
    assert stays.communicate(timeout=30)[0].count('"outcome": "unchanged"') == 1
    assert stays.returncode == 0


def test_a_push_that_has_begun_goes_on_without_its_connection(app: App) -> None:
    script = "while ! test -e $HOME/go; do sleep 0.05; done"
    newest = app.commit({"wait.sh": script, "deploy.ini": DEPLOY_INI + "\n[step slow]\nrun = sh wait.sh\n"})
    push = pushed(app)
    wait_for_stage(app, "slow")
    hang_up(push)
    (app.root.parent / "go").touch()
    assert push.wait(30) == 0
    assert app.revision() == newest


def test_of_pushes_so_many_wait_and_people_and_boots_always_may(app: App) -> None:
    with deploy_that_is_held(app):
        waiting = [pushed(app) for _ in range(5)]
        for push in waiting:
            assert push.stderr and "waiting for another deploy to end" in push.stderr.readline()
        refused = pushed(app)
        out, _ = refused.communicate(timeout=10)
        assert refused.returncode == 75
        assert "5 other pushes wait for the lock already: this one does not" in json.loads(out)["message"]
        assert "another deploy holds the lock" in app.deploy("--lock-timeout", "0.5", expect=75).result["message"]
        waiting[0].kill()
        waiting[0].communicate()
        waiting[0] = pushed(app)
        assert waiting[0].stderr and "waiting for another deploy" in waiting[0].stderr.readline(), "a place is free"
    assert [push.communicate(timeout=60)[1].count("busy") for push in waiting] == [0] * 5
    assert {push.returncode for push in waiting} == {0}


def wait_for_stage(app: App, stage: str) -> None:
    running = app.root / "state/running.json"
    wait_for(lambda: running.exists() and stage in running.read_text(), f"stage {stage}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_killed_in_a_step_the_next_run_ends_as_an_undisturbed_one(app: App, number: signal.Signals) -> None:
    good = app.deploy().result["commit"]
    new = app.commit({"deploy.ini": DEPLOY_INI + "\n[step slow]\nrun = sh -c 'test -e $HOME/go || sleep 30'\n"})
    process = subprocess.Popen(
        app.command("deploy"), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=app.environment()
    )
    wait_for_stage(app, "slow")
    process.send_signal(number)
    assert process.wait(20) == -number
    assert app.revision() == good
    if number == signal.SIGKILL:
        assert app.run("status").result["interrupted"] is True
    (app.root.parent / "go").touch()
    done = app.deploy()
    assert done.result["commit"] == new
    assert len(list((app.root / "releases").iterdir())) == 2
    assert app.run("status").result["interrupted"] is False


def test_a_lost_connection_does_not_end_a_deploy(app: App) -> None:
    new = app.commit({"deploy.ini": DEPLOY_INI + "\n[step slow]\nrun = sh -c 'sleep 1; echo spoke'\n"})
    process = subprocess.Popen(
        app.command("deploy"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=app.environment()
    )
    assert process.stdout and process.stderr
    wait_for_stage(app, "slow")
    process.stdout.close()
    process.stderr.close()
    process.send_signal(signal.SIGHUP)
    process.wait(30)
    assert app.revision() == new
    assert app.run("history").result["history"][-1]["outcome"] == "deployed"


def test_submodules_are_checked_out(app: App) -> None:
    library = app.origin.with_name("library")
    app.git("init", "-q", "-b", "main", str(library), cwd=app.origin.parent)
    (library / "lib.py").write_text("x = 1\n")
    app.git("add", "-A", cwd=library)
    app.git("commit", "-q", "-m", "library", cwd=library)
    app.git("submodule", "--quiet", "add", "../library", "vendor/library")
    app.commit({})
    home = app.root.parent
    (home / ".gitconfig").write_text('[protocol "file"]\n\tallow = always\n')
    app.deploy()
    assert (app.current / "vendor" / "library" / "lib.py").read_text() == "x = 1\n"


def test_lfs_pointers_without_git_lfs_are_an_error(app: App) -> None:
    app.deploy()
    app.commit({".gitattributes": "*.bin filter=lfs diff=lfs merge=lfs -text\n"})
    done = app.deploy(expect=10)
    assert "git-lfs is not installed" in done.result["message"]


@pytest.mark.parametrize(
    ("files", "missing"),
    [
        ({"package.json": '{"dependencies": {"x": "1"}}'}, "package-lock.json"),
        ({"pyproject.toml": "[project]\nname = 'x'\n"}, "poetry.lock"),
    ],
)
def test_a_missing_lock_file_is_an_error_and_never_created(
    app: App, files: dict[str, str | bytes | None], missing: str
) -> None:
    app.deploy()
    app.commit({**files, "deploy.ini": DEPLOY_INI + "\n[step node]\nroles =\n"})
    message = app.deploy(expect=10).result["message"]
    assert "is in the commit but no lock file" in message
    assert missing in message


def test_a_pyproject_that_only_configures_tools_needs_no_lock(app: App) -> None:
    app.commit({"pyproject.toml": "[tool.ruff]\nline-length = 100\n"})
    assert app.deploy().result["outcome"] == "deployed"


def test_steps_see_shared_env_and_the_documented_variables(app: App) -> None:
    (app.root / "state").mkdir()
    (app.root / "shared").mkdir()
    (app.root / "shared" / ".env").write_text('# note\nGREETING="hello \\"you\\""\nexport BAD\nPLAIN = a b  \n')
    app.commit({"deploy.ini": DEPLOY_INI + "\n[step show]\nrun = sh -c 'env | sort; readlink .env'\n"})
    log = app.deploy(env={"SECRET_OF_CALLER": "x"}).log
    assert 'GREETING=hello "you"' in log
    assert "PLAIN=a b\n" in log
    assert f"DEPLOY_COMMIT={app.revision()}" in log
    assert "DEPLOY_ROLE=web" in log
    assert f"DEPLOY_RELEASE={app.current.name}" in log
    assert "SECRET_OF_CALLER" not in log
    assert "../../shared/.env" in log


def test_a_step_that_takes_too_long_is_ended_with_its_children(app: App) -> None:
    app.commit({"deploy.ini": DEPLOY_INI + "\n[step slow]\ntimeout = 1\nrun = sh -c 'sleep 47.11 & sleep 47.11'\n"})
    started = time.monotonic()
    done = app.deploy(expect=10)
    assert time.monotonic() - started < 15
    assert "took longer than 1 s and was ended" in done.result["message"]
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert "sleep 47.11" not in left


def test_a_missing_program_is_named_with_how_to_get_it(app: App) -> None:
    app.commit({"deploy.ini": DEPLOY_INI + "\n[step tool]\nrun = no-such-tool --now\n"})
    assert "no-such-tool: not found" in app.deploy(expect=10).result["message"]


def test_plan_changes_nothing_but_the_mirror(app: App) -> None:
    app.deploy()
    before = app.snapshot()
    new = app.commit({"src/a": "b\n"})
    plan = app.run("plan").result
    assert (plan["wanted"], plan["commits"]) == (new, 1)
    assert [(step["name"], step["action"]) for step in plan["steps"]] == [
        ("assets", "run"), ("schema", "skip"), ("always", "run"),
    ]  # fmt: skip
    assert plan["steps"][0]["why"] == "src/ changed"
    assert app.snapshot() == before
    assert app.revision() != new


def test_status_and_history_for_people(app: App) -> None:
    app.deploy("--trigger", "cd")
    for command, expected in (("status", "deployed by cd"), ("history", "deployed"), ("plan", "already runs")):
        arguments = [argument for argument in app.command(command) if argument != "--json"]
        done = subprocess.run(arguments, capture_output=True, text=True, check=True, env=app.environment())
        assert expected in done.stdout
        assert app.revision()[:8] in done.stdout
    status = app.run("status").result
    assert set(status) >= {
        "machine", "roles", "commit", "release", "since", "services", "healthy", "bad_commits", "interrupted", "last",
    }  # fmt: skip
    assert status["healthy"] is True
    assert status["last"]["outcome"] == "deployed"


def test_the_result_has_the_keys_of_the_contract(app: App) -> None:
    result = app.deploy().result
    assert list(result) == [
        "schema", "machine", "roles", "trigger", "outcome", "commit", "wanted", "previous", "release", "started",
        "seconds", "steps", "services", "healthy", "message", "reason", "timings",
    ]  # fmt: skip
    assert [set(step) for step in result["steps"]] == [{"name", "result", "seconds", "why"}] * 3
    last = (app.root / "state" / "history.jsonl").read_text().splitlines()[-1]
    assert json.loads(last) == result


STATIC = """
[step static]
{inputs}
provides = public
keep_days = 7
run = sh -c 'mkdir public; cp code.py public/$(git hash-object code.py)'
"""


def assets(app: App) -> set[str]:
    return {path.name for path in (app.current / "public").iterdir()}


@pytest.mark.parametrize("inputs", ["", "inputs = code.py"], ids=["always made", "kept by content"])
def test_old_assets_stay_reachable_also_after_going_back(app: App, inputs: str) -> None:
    app.commit({"deploy.ini": DEPLOY_INI + STATIC.format(inputs=inputs)})
    app.deploy()
    old = assets(app)
    app.commit({"code.py": "print(2)\n"})
    app.deploy()
    both = assets(app)
    assert old < both
    assert len(both) == 2
    app.commit({"src/a": "c\n"})
    app.deploy()
    assert assets(app) == both
    app.commit({"code.py": (app.current / "code.py").read_text().replace("2", "1")}, "the first again")
    app.deploy()
    assert assets(app) == both
    app.commit({"code.py": "print(3)\n"})
    app.deploy()
    three = assets(app)
    assert both < three
    app.run("rollback")
    assert assets(app) == three


def test_assets_are_dropped_some_days_after_they_were_superseded_not_made(app: App) -> None:
    app.commit({"deploy.ini": DEPLOY_INI + STATIC.format(inputs="")})
    app.deploy()
    for path in (app.current / "public").iterdir():
        os.utime(path, (0, 0))  # made long ago, and served until now
    old = assets(app)
    app.commit({"code.py": "print(2)\n"})
    app.deploy()
    assert old < assets(app)
    marker = app.current / ".release.json"
    meta = json.loads(marker.read_text())
    assert list(meta["old_files"]) == [f"public/{name}" for name in old]
    meta["old_files"] = {name: since - 8 * 86400 for name, since in meta["old_files"].items()}
    marker.write_text(json.dumps(meta))
    app.commit({"code.py": "print(3)\n"})
    app.deploy()
    assert not old & assets(app)
    assert len(assets(app)) == 2


@pytest.mark.parametrize("deeper", ["", "/deeper"])
def test_a_file_may_take_the_place_of_a_folder_of_old_assets(app: App, deeper: str) -> None:
    step = "\n[step static]\nprovides = public\nkeep_days = 7\nrun = cp -r pages public\n"
    app.commit({"deploy.ini": DEPLOY_INI + step, f"pages/a{deeper}/b": "old\n", "pages/c": "old\n"})
    app.deploy()
    app.git("rm", "-rq", "pages")
    app.commit({"pages/a": "new\n"})
    app.deploy()
    assert (app.current / "public/a").read_text() == "new\n"
    assert assets(app) == {"a", "c"}


def test_inputs_may_take_away_what_a_pattern_named(app: App) -> None:
    text = "\n[step most]\ninputs = ** !**/*.py **/settings*.py\nrun = true\n"
    app.commit({"deploy.ini": DEPLOY_INI + text, "conf/settings_uat.py": "", "pages/a.html": "", "x.py": ""})
    app.deploy()
    for name, runs in (("x.py", False), ("conf/y.py", False), ("pages/a.html", True), ("conf/settings_uat.py", True)):
        app.commit({name: "changed\n"})
        done = app.deploy()
        assert ("most" in done.ran()) == runs, name
    assert done.why("most") == "conf/settings_uat.py changed"


def test_very_many_inputs_are_recorded_by_one_hash(app: App) -> None:
    text = "\n[step most]\ninputs = many/**\nrun = true\n"
    app.commit({"deploy.ini": DEPLOY_INI + text, **{f"many/{number}": "" for number in range(600)}})
    app.deploy()
    (mark,) = (app.root / "envs").glob("most-*/.complete")
    assert mark.stat().st_size < 5000
    app.commit({"src/a": "c\n"})
    assert "most" not in app.deploy().ran()
    app.commit({"many/7": "changed\n"})
    assert app.deploy().why("most") == "files of many/** changed"


def test_assets_of_an_unhealthy_release_stay_reachable_too(app: App) -> None:
    config = DEPLOY_INI + STATIC.format(inputs="")
    app.commit({"deploy.ini": config})
    app.deploy()
    bad = config.replace("shared = .env", "shared = .env\nhealth_timeout = 0.5")
    app.commit({"deploy.ini": bad.replace("[role web]", "[role web]\ncheck = false"), "code.py": "print(3)\n"})
    app.deploy(expect=11)
    assert app.git("hash-object", "code.py") in assets(app)


ALPHA = "$(ls -d .venv/lib/python*/site-packages)/alpha.py"


def deploy_versions(app: App, install: str) -> Iterator[tuple[str, str]]:
    """Deploy versions one, two and three of a module that somebody's own program installs; version and log of each.

    All are of the same size and second, and not every installer removes what was compiled: it is compiled again.
    """
    step = "[deploy]\nshared =\n[step python]\ninputs = version\nprovides = .venv\nrun = pip-sync\n[role web]\n"
    program = app.root.parent / ".local/bin/pip-sync"  # one that is known to remove the rest
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\n{install} && touch -d @1700000000 "{ALPHA}"\n')
    program.chmod(0o755)
    values = {"one": "1", "two": "2", "three": "3"}
    for version, value in values.items():
        app.commit({"deploy.ini": step, "version": version, "module": f"VALUE = {value}\n"})
        log = app.deploy().log
        assert alpha(app.current.resolve()) == value
        yield version, log


def alpha(release: Path) -> str:
    python = release / ".venv/bin/python"
    return subprocess.check_output([python, "-c", "import alpha; print(alpha.VALUE)"], text=True).strip()


def test_an_environment_begins_with_links_to_the_files_of_the_last_one(app: App) -> None:
    for version, log in deploy_versions(app, f'cp --remove-destination module "{ALPHA}"'):
        assert ("starting from links to python-" in log) == (version != "one")
    assert [alpha(release) for release in sorted((app.root / "releases").iterdir())] == ["1", "2", "3"]
    same = {(path / ".venv/bin/activate.csh").stat().st_ino for path in (app.root / "releases").iterdir()}
    assert len(same) == 3, "it names its environment"
    (module,) = (app.current / ".venv/lib").glob("python*/site-packages/alpha.py")
    assert not module.stat().st_mode & 0o222


def test_a_step_that_writes_into_files_gets_a_copy(app: App) -> None:
    said = dict(deploy_versions(app, f'cp module "{ALPHA}"'))
    assert "could not be begun with" in said["two"] and "building it fresh" in said["two"]
    assert "starting from a copy of python-" in said["three"]
    assert [alpha(release) for release in sorted((app.root / "releases").iterdir())] == ["1", "2", "3"]


def test_a_step_that_gives_itself_the_right_to_write_is_seen(app: App) -> None:
    said = dict(deploy_versions(app, f'chmod -f u+w "{ALPHA}"; cp module "{ALPHA}"'))
    assert "alpha.py, which is a file of other environments, too" in said["two"]
    assert "starting from a copy of python-" in said["three"]
    assert alpha(app.current.resolve()) == "3"


def test_what_is_a_folder_in_one_release_may_be_a_file_in_the_next(app: App) -> None:
    """Where files of earlier releases stay: those that have no place any more do not."""
    step = "[step out]\ninputs = src/\nprovides = out\nkeep_days = 7\nrun = cp -r src out\n[role web]\n"
    app.commit({"deploy.ini": step, "src/docs/index": "folder\n", "src/old": "old\n"})
    app.deploy()
    app.git("rm", "-rq", "src/docs", "src/old")
    app.commit({"src/docs": "file\n"})
    app.deploy()
    assert (app.current / "out/docs").read_text() == "file\n"
    assert (app.current / "out/old").read_text() == "old\n"
    app.git("rm", "-q", "src/docs")
    app.commit({"src/docs/index": "folder again\n"})
    app.deploy()
    assert (app.current / "out/docs/index").read_text() == "folder again\n"

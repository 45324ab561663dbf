"""`status` can be relied on: it answers in time, says what it does not know, and five no-ops hide nothing."""

from __future__ import annotations

import json
import os
import subprocess
import time

import pytest

from small_app import DEPLOY_INI, App

SLOW = DEPLOY_INI.replace("[role web]", "[role web]\ncheck = sh -c 'test ! -e \"$HOME/slow\" || sleep 43.7'")


def test_it_answers_in_time_and_names_what_did_not_come(app: App) -> None:
    app.commit({"deploy.ini": SLOW})
    app.deploy()
    (app.root.parent / "slow").touch()
    began = time.monotonic()
    status = app.run("status", "--within", "2").result
    assert time.monotonic() - began < 4
    assert (status["unknown"], status["healthy"], status["well"]) == (["health"], None, False)
    assert status["reason"] == "its health did not come in time"
    assert status["drift"] == [] and status["tip"]["behind"] == 0, "the rest came"
    assert b"sleep\x0043.7" not in subprocess.run(["cat", *cmdlines()], capture_output=True, check=False).stdout


def cmdlines() -> list[str]:
    return [f"/proc/{name}/cmdline" for name in os.listdir("/proc") if name.isdigit()]


def test_five_no_ops_hide_nothing(app: App) -> None:
    app.deploy()
    broken = app.commit({"deploy.ini": DEPLOY_INI + "\n[step fails]\nrun = sh -c 'echo no such luck; exit 3'\n"})
    app.deploy(expect=10)
    app.commit({"deploy.ini": DEPLOY_INI})
    app.deploy()
    for _ in range(6):
        app.deploy("--trigger", "cd")
    status = app.run("status").result
    assert [one["outcome"] for one in status["attempts"]] == ["deployed", "failed", "deployed", "unchanged"]
    assert status["attempts"][-1]["times"] == 6
    assert (status["last_failure"]["wanted"], status["failing"]) == (broken, False)
    assert (status["well"], status["reason"]) == (True, "")


def test_why_is_told_in_few_words_and_check_says_it_by_its_code(app: App) -> None:
    app.deploy()
    assert app.run("status", "--check").code == 0
    app.commit({"deploy.ini": DEPLOY_INI + f"\n[step fails]\nrun = sh -c 'exit 3 # {'x' * 90}'\n"})
    failed = app.deploy(expect=10).result
    assert failed["reason"].startswith("step fails failed: sh -c 'exit 3")
    assert len(failed["reason"]) <= 60 < len(failed["message"])
    done = app.run("status", "--check")
    assert (done.code, done.result["well"], done.result["reason"]) == (1, False, failed["reason"])
    assert done.result["tip"]["behind"] == 1, "of the branch as it was fetched last"
    app.commit({"deploy.ini": DEPLOY_INI})
    app.deploy()
    (app.current / "src/a").write_text("by hand")
    done = app.run("status", "--check")
    assert (done.code, done.result["reason"]) == (1, "src/a: changed by hand")
    empty = app.root.parent / "empty"
    empty.mkdir()
    app.root = empty
    assert app.run("status", "--check").code == 1


def test_when_it_was_activated_is_written_by_the_switch(app: App) -> None:
    first = app.deploy().result
    app.commit({"src/a": "b\n"})
    app.deploy()
    os.utime(app.root / "current", (0, 0), follow_symlinks=False)
    status = app.run("status").result
    assert (
        first["started"] <= status["activated"] == status["since"] <= time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    )
    time.sleep(1)
    app.run("rollback")
    assert app.run("status").result["activated"] > status["activated"], "also of a release that served before"


def test_how_it_stands_to_the_branch_as_it_was_fetched_last(app: App) -> None:
    app.deploy()
    tip = app.run("status").result["tip"]
    assert (tip["branch"], tip["behind"]) == ("main", 0)
    one, _ = app.commit({"src/a": "b\n"}), app.commit({"src/a": "c\n"})
    merged = int(app.git("show", "-s", "--format=%ct", one))
    app.run("plan")  # fetches
    tip = app.run("status").result["tip"]
    assert (tip["behind"], tip["held"]) == (2, False)
    assert tip["since"] == time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(merged))
    app.deploy()
    app.run("rollback")
    assert app.run("status").result["tip"]["held"] is True, "a person went back from it"


def test_the_history_from_a_time_on(app: App) -> None:
    first = app.deploy().result
    time.sleep(1)
    second = app.deploy().result
    told = app.run("status", "--since", second["started"]).result["history"]
    assert [one["started"] for one in told] == [second["started"]]
    assert len(app.run("status", "--since", first["started"][:10]).result["history"]) == 2
    assert "history" not in app.run("status").result


@pytest.mark.parametrize("words", [("status", "--since", "5"), ("deploy", "--check"), ("plan", "--within", "3")])
def test_options_that_make_no_sense_are_one_clear_line(app: App, words: tuple[str, ...]) -> None:
    done = app.run(*words)
    assert done.code == 2
    assert done.log.count("\n") == 1 and done.log.startswith("deploy_machine.py: ")


def test_people_see_it_too(app: App) -> None:
    app.deploy()
    app.commit({"src/a": "b\n"})
    app.deploy()
    app.run("rollback")
    (app.current / "src/a").write_text("by hand")
    words = [word for word in app.command("status") if word != "--json"]
    shown = subprocess.run(words, capture_output=True, text=True, check=True, env=app.environment()).stdout
    assert "  by hand   src/a: changed by hand\n" in shown
    assert "  branch    1 commit behind " in shown and "which was rolled back by hand, as fetched" in shown
    assert json.loads((app.root / "state/last.json").read_text())["outcome"] == "rolled_back_on_request"

"""The shared memory of fleet_status.py: real git, real remotes, several who write at once."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from deployments_api import TOKEN, DeploymentsApi
from git_http import GitHttp
from many import nobody
from test_fleet import COMMIT, SCRIPT, Fleet
from waiting import wait_for

REF = "deploy-status"
BOOT = {"started": "2026-01-02T03:04:00Z", "trigger": "boot", "outcome": "deployed", "commit": COMMIT}


def git(folder: Path, *words: str) -> str:
    env = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "GIT_CONFIG_GLOBAL": "/dev/null"}
    env |= {f"GIT_{who}_{what}": "dev" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    argv = ["git", "-C", str(folder), *words]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (argv, done.stderr)
    return done.stdout.strip()


class Clone(Fleet):
    """A clone of the application on somebody's laptop, with its inventory, and a way to the machines."""

    def __init__(self, home: Path, origin: Path) -> None:
        home.mkdir()
        super().__init__(home)
        self.origin = origin
        (home / "machines.ini").write_text("[frontend]\non = at-times\n")
        git(home, "init", "-q", "-b", "main")
        git(home, "remote", "add", "origin", str(origin))
        git(home, "add", "machines.ini")
        git(home, "commit", "-q", "-m", "inventory")

    def record(self, *words: str, frontend: str = "answers", code: int = 0) -> tuple[str, str]:
        """Stdout and stderr."""
        found, out, err, _ = self.run("--record", *words, frontend=frontend)
        assert found == code, out + err
        return out, err

    def state(self) -> dict[str, Any]:
        """All that is git's here."""
        return {str(path): path.read_bytes() for path in (self.home / ".git").rglob("*") if path.is_file()}


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q", "--bare", "-b", "main", "origin.git")
    return tmp_path / "origin.git"


@pytest.fixture
def clone(tmp_path: Path, origin: Path) -> Clone:
    return Clone(tmp_path / "mine", origin)


def page(origin: Path) -> str:
    return git(origin, "show", f"{REF}:README.md")


def history(origin: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in git(origin, "show", f"{REF}:machines/frontend.jsonl").splitlines()]


def subjects(origin: Path) -> list[str]:
    return git(origin, "log", "--format=%s", REF).splitlines()


def test_what_one_has_seen_everybody_sees(clone: Clone, origin: Path, tmp_path: Path) -> None:
    clone.answers(history=[BOOT], tip={"commit": COMMIT, "branch": "main", "merged": "2026-01-02T03:00:00Z"})
    before = clone.state()
    clone.record()
    assert clone.state() == before, "no object, index, branch or file of the clone was touched"
    assert (
        git(origin, "log", "--format=%an <%ae> %s", REF)
        == "deploy-machine <deploy-machine@noreply.invalid> frontend: ok"
    )
    shown = page(origin)
    assert "# All is well\n\nmain is `bbbbbbbb`, merged 2026-01-02 03:00 UTC.\n\n| machine | state |" in shown
    assert "\n| frontend | ok since 20" in shown
    assert "\n## frontend\n\n| when |" in shown and "\n| 2026-01-02 03:04 | boot | updated | `bbbbbbbb` |\n" in shown
    assert history(origin) == [{**BOOT, "reason": ""}]

    other = Clone(tmp_path / "other", origin)
    out, _ = other.record(frontend=nobody(), code=1)
    assert "\nfrontend  off    bbbbbbbb?" in out and "? as last seen " in out
    assert subjects(origin) == ["frontend: ok to off", "frontend: ok"]
    other.record()
    assert "--since 2026-01-02T03:04:00Z --within" in (other.home / "asked").read_text(), "what is known is not asked"

    third = Clone(tmp_path / "third", origin)
    git(third.home, "fetch", "-q")
    _, out, _, _ = third.run("--history", frontend=nobody())
    assert out == f"2026-01-02T03:04:00Z  frontend      boot    deployed      {COMMIT[:8]}\n", "as the clone has it"


def test_there_is_a_commit_for_each_change_of_a_state_and_no_other(clone: Clone, origin: Path) -> None:
    clone.record()
    first, seen = git(origin, "rev-parse", REF), page(origin)
    time.sleep(1)
    clone.answers(history=[BOOT])
    clone.record()
    assert git(origin, "rev-parse", REF) != first and page(origin) != seen
    assert subjects(origin) == ["frontend: ok"], "it has taken the place of the first one"
    clone.record(frontend=nobody(), code=1)
    clone.record(frontend=nobody(), code=1)
    clone.answers(failing=True)
    clone.record(code=1)
    assert subjects(origin) == ["frontend: off to FAILED", "frontend: ok to off", "frontend: ok"]
    assert history(origin) == [{**BOOT, "reason": ""}]


def test_one_that_is_not_asked_stays_as_it_is_known(clone: Clone, origin: Path) -> None:
    (clone.home / "machines.ini").write_text("[frontend]\n[night]\non = at-times\n")
    clone.record("--machine", "frontend")
    time.sleep(1)
    clone.record("--machine", "frontend")
    assert subjects(origin) == ["frontend: ok, night: unknown"]
    assert "\n| night | unknown | - | - | - | - |\n" in page(origin)
    assert clone.run("--record", "--machine", "night", night="answers")[0] == 0
    assert subjects(origin)[0] == "night: unknown to ok"
    assert "\n| frontend | ok since " in page(origin)


def test_where_nothing_may_be_replaced_it_is_added(clone: Clone, origin: Path) -> None:
    git(origin, "config", "receive.denyNonFastForwards", "true")
    clone.record()
    time.sleep(1)  # the page says when it was looked
    clone.record()
    assert subjects(origin) == ["frontend: ok", "frontend: ok"]


@pytest.mark.parametrize("appends", ["false", "true"])
def test_of_four_who_write_at_once_nothing_is_lost(origin: Path, tmp_path: Path, appends: str) -> None:
    git(origin, "config", "receive.denyNonFastForwards", appends)
    writers = [Clone(tmp_path / name, origin) for name in ("one", "two", "three", "four")]
    started = [f"2026-01-0{number}T00:00:00Z" for number in (1, 2, 3, 4)]
    gate, running = tmp_path / "gate", []
    for writer, moment in zip(writers, started):
        answer = {
            "schema": 1,
            "machine": "x",
            "commit": COMMIT,
            "healthy": True,
            "history": [{**BOOT, "started": moment}],
        }
        wait = f"import time\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.01)\n"
        writer.answers(f"{wait}print({json.dumps(answer)!r})")
        argv = [sys.executable, str(SCRIPT), "--inventory", str(writer.home / "machines.ini"), "--record"]
        env = {**writer.env, "FRONTEND_HOST": "answers"}
        running.append(subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    wait_for(lambda: all((writer.home / "asked").exists() for writer in writers), "each has read the branch, and asks")
    gate.touch()
    ended = [(process.communicate()[0], process.returncode) for process in running]
    assert [code for _, code in ended] == [0] * 4, ended
    assert [entry["started"] for entry in history(origin)] == started


def test_what_others_may_not_read_is_not_written(clone: Clone, origin: Path) -> None:
    words = {"reason": "answers: step build: SECRETS of somebody", "drift": [{"name": "hidden.py"}]}
    clone.answers(failing=True, last_failure=words, history=[{**BOOT, "reason": "SECRETS"}], **words)
    clone.record(code=1)
    clone.record(frontend="127.0.0.1:1", code=1)
    refused = git(origin, "rev-parse", REF)
    everything = git(origin, "log", "-p", "--all")
    assert not [word for word in ("SECRETS", "hidden.py", "answers:", "somebody", "127.0.0.1") if word in everything]
    clone.env["DEPLOY_STATUS_PRIVATE"] = "true"
    clone.record(code=1)
    assert git(origin, "rev-parse", REF) != refused
    assert "FAILED): \\*\\*\\*: step build: SECRETS of \\*\\*\\*;" in page(origin)
    everything = git(origin, "log", "-p", "--all")
    assert not [word for word in ("answers:", "somebody", "127.0.0.1") if word in everything]


def test_nothing_that_a_machine_says_is_markdown(clone: Clone, origin: Path) -> None:
    clone.env["DEPLOY_STATUS_PRIVATE"] = "true"
    evil = "|x|\n# <img src=x> [a](https://evil.example) @team `b`"
    entry = {"started": BOOT["started"], "trigger": "<b>|", "outcome": "*](x)", "reason": evil}
    clone.answers(failing=True, last_failure={"reason": evil}, trigger="<b>|", history=[entry], tip={"branch": evil})
    clone.record(code=1)
    shown = page(origin)
    assert not [word for word in ("<img", "<b>", "](https", "@team", "`b`", "\n# <", "*](") if word in shown], shown
    assert {line.replace("\\|", "").count("|") for line in shown.splitlines() if line.startswith("|")} == {5, 7}


# What is in the way


def something_else(clone: Clone) -> None:
    git(clone.home, "push", "-q", "origin", f"HEAD:refs/heads/{REF}")


def other_json(clone: Clone) -> None:
    (clone.home / "fleet.json").write_text('{"schema": 2, "machines": {}}')
    git(clone.home, "checkout", "-q", "-b", "x")
    git(clone.home, "add", "fleet.json")
    git(clone.home, "commit", "-q", "-m", "x")
    git(clone.home, "push", "-q", "origin", f"HEAD:refs/heads/{REF}")


def refusing(clone: Clone) -> None:
    (clone.origin / "hooks/pre-receive").write_text("#!/bin/sh\necho you may not\nexit 1\n")
    (clone.origin / "hooks/pre-receive").chmod(0o755)


def no_git(clone: Clone) -> None:
    for name in ("ssh-agent", "ssh-add", "sh", "cat"):
        (clone.home / "bin" / name).symlink_to(Path("/usr/bin") / name)
    clone.env["PATH"] = str(clone.home / "bin")


SITUATIONS = {
    "no clone": (
        lambda clone: (clone.home / ".git").rename(clone.home / "x"),
        "mine lies in no clone that can be used",
    ),
    "no remote": (lambda clone: git(clone.home, "remote", "remove", "origin"), "git remote add origin URL"),
    "remote away": (lambda clone: clone.origin.rename(clone.home / "away"), "git ls-remote: '"),
    "something else": (something_else, "deploy-status holds something else, or is of a newer version"),
    "other json": (other_json, "deploy-status holds something else, or is of a newer version"),
    "no right": (refusing, "origin takes no push to its branch deploy-status: git push: you may not"),
    "no git": (no_git, "fleet_status.py: git: not found: apt install git"),
}


@pytest.mark.parametrize("name", SITUATIONS)
def test_what_is_in_the_way_is_one_clear_line_and_the_table_is_shown(clone: Clone, origin: Path, name: str) -> None:
    hinder, says = SITUATIONS[name]
    hinder(clone)
    refs = git(origin, "for-each-ref") if origin.exists() else ""
    out, err = clone.record(code=1)
    assert "\nfrontend  ok     bbbbbbbb" in out
    assert err.startswith("fleet_status.py: ") and says in err and err.count("\n") == 1, err
    assert refs == (git(origin, "for-each-ref") if origin.exists() else "")


def test_what_else_lies_there_stays_and_what_is_damaged_is_left_out(clone: Clone, origin: Path, tmp_path: Path) -> None:
    clone.answers(history=[BOOT])
    clone.record()
    git(tmp_path, "clone", "-q", "-b", REF, str(origin), "theirs")
    theirs = tmp_path / "theirs"
    (theirs / "CNAME").write_text("x\n")
    (theirs / "machines/gone.jsonl").write_text("y\n")
    with open(theirs / "machines/frontend.jsonl", "a") as file:
        file.write("[[[\nnull\n{}\n\udcff".encode("utf-8", "surrogateescape").decode("latin-1") + "\n")
    git(theirs, "add", "-A")
    git(theirs, "commit", "-q", "-m", "x")
    git(theirs, "push", "-q")
    clone.record()
    names = git(origin, "ls-tree", "-r", "--name-only", REF).split()
    assert names == ["CNAME", "README.md", "fleet.json", "machines/frontend.jsonl", "machines/gone.jsonl"]
    assert history(origin) == [{**BOOT, "reason": ""}]


# In a workflow


def test_a_workflows_token_reaches_its_server_and_no_command_line(clone: Clone, origin: Path, tmp_path: Path) -> None:
    server = GitHttp(tmp_path)
    git(clone.home, "remote", "set-url", "origin", f"{server.url}/origin.git")
    _, err = clone.record(code=1)
    assert err.startswith("fleet_status.py: git ls-remote: could not read Username for") and err.count("\n") == 1

    (clone.home / "bin/git").write_text(f'#!/bin/sh\necho "$@" >>{clone.home}/argv\nexec {shutil.which("git")} "$@"\n')
    (clone.home / "bin/git").chmod(0o755)
    # what a checkout leaves that was not told to leave nothing: sent together, GitHub would refuse both
    git(clone.home, "config", f"http.{server.url}/.extraheader", "AUTHORIZATION: basic x")
    clone.env |= {"GITHUB_TOKEN": TOKEN, "GITHUB_SERVER_URL": server.url}
    clone.record()
    clone.env["GITHUB_SERVER_URL"] = "http://127.0.0.2"
    server.asked.clear()
    clone.record(code=1)
    server.close()
    assert {*server.asked} == {"basic x"}, "it is for that server alone"
    assert subjects(origin) == ["frontend: ok"]
    argv = (clone.home / "argv").read_text()
    header = base64.b64encode(f"x-access-token:{TOKEN}".encode()).decode()
    assert "push" in argv and TOKEN not in argv and header not in argv


def test_what_a_boot_brought_gets_its_record_on_githubs_page(clone: Clone) -> None:
    github = DeploymentsApi(COMMIT, "a" * 40)
    github.add("frontend", "a" * 40, "success")
    github.add("frontend", COMMIT, "queued")
    clone.answers(trigger="boot")
    clone.env |= github.variables
    clone.record()
    github.close()
    assert github.page("frontend")[0] == "success bbbbbbbb runs since 2026-01-02 03:04 UTC, by boot"


def test_one_job_asks_and_another_records(clone: Clone, origin: Path) -> None:
    clone.answers(history=[BOOT], reason="answers 500 to somebody")
    clone.env["GITHUB_OUTPUT"] = str(clone.home / "output")
    code, out, err, _ = clone.run("--hand-over", frontend="answers")
    assert (code, out, err) == (0, "frontend: answered\n", "")
    name, _, value = (clone.home / "output").read_text().strip().partition("=")
    assert (name, bytes.fromhex(value)[:1]) == ("frontend", b"\x78")

    asked = (clone.home / "asked").read_text()
    clone.env = {key: clone.env[key] for key in ("PATH", "XDG_STATE_HOME")}
    clone.env |= {"FRONTEND_SEEN": value, "GITHUB_STEP_SUMMARY": str(clone.home / "summary.md")}
    out, _ = clone.record()
    assert "1 machine asked, 1 answered\n" in out and "\nfrontend  ok " in out
    assert (clone.home / "asked").read_text() == asked, "it has asked nobody"
    assert history(origin) == [{**BOOT, "reason": ""}]
    assert (clone.home / "summary.md").read_text().startswith("## All is well\n\n")


@pytest.mark.parametrize("value", ["", "zz", "00", b"x".hex()])
def test_what_was_not_handed_over_is_told_and_nothing_is_written(clone: Clone, origin: Path, value: str) -> None:
    clone.env["FRONTEND_SEEN"] = value
    out, err = clone.record(code=1)
    assert err == "fleet_status.py: frontend: nobody has asked it: the log of its job says why\n"
    assert "\nfrontend  unknown  -" in out
    assert git(origin, "for-each-ref") == ""


def test_what_was_seen_earlier_does_not_take_the_place_of_what_was_seen_since(clone: Clone, origin: Path) -> None:
    clone.env["GITHUB_OUTPUT"] = str(clone.home / "output")
    clone.answers(history=[BOOT], failing=True)
    clone.run("--hand-over", frontend="answers")
    time.sleep(1.1)
    clone.answers()
    clone.record()
    clone.env["FRONTEND_SEEN"] = (clone.home / "output").read_text().strip().partition("=")[2]
    clone.record(code=1)
    kept = json.loads(git(origin, "show", f"{REF}:fleet.json"))["machines"]["frontend"]
    assert kept["since"]["state"][0] == "ok" and kept["answer"]["failing"] is False
    assert history(origin) == [{**BOOT, "reason": ""}], "what it tells of deploys is kept"

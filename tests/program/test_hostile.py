"""What a repository or a .env may hold, and what comes of it: nothing outside the release, one clear line."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from small_app import DEPLOY_INI, App


def link(app: App, name: str, target: str) -> None:
    """Put a symbolic link into the working tree; commit() is still to be called."""
    place = app.origin / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    place.symlink_to(target)


def test_names_of_files_are_only_names(app: App) -> None:
    names = ["-rf", "--help", "$(touch ran)", "`touch ran`", "a\nb", "a\x1b]0;x\x07b", "ü\u202e", "a'b\"c", " ", "*"]
    files = {f"src/{name}": "x\n" for name in names}
    app.deploy()
    app.commit({**files, **{f"db/{name}.sql": "1;\n" for name in names}})
    done = app.deploy()
    assert {path.name for path in (app.current / "src").iterdir()} == {*names, "a"}
    assert "\x1b" not in done.log
    assert "\n" not in done.result["message"]
    assert "\x1b" not in done.why("schema")
    assert "a b.sql" in done.why("schema"), "in one line"
    assert not list(app.root.rglob("ran"))


@pytest.mark.parametrize("branch", ["$(touch${IFS}ran)", "a;b", "wip/ü", "a'b", "x|y&z", "@", "HEAD2"])
def test_branch_names(app: App, branch: str) -> None:
    app.git("checkout", "-q", "-b", branch)
    commit = app.commit({"code.py": "print(7)\n"})
    app.deploy("--branch", branch)
    assert app.revision() == commit
    assert not Path("ran").exists()


@pytest.mark.parametrize("branch", ["a//b", "@{1}", "a\x9bb", ".hidden", "x/.y"])
def test_branch_names_that_git_refuses(app: App, branch: str) -> None:
    done = app.run("deploy", "--branch", branch)
    assert done.code in (2, 75), done.log
    assert "\x9b" not in done.log


def test_a_commit_message_is_never_shown(app: App) -> None:
    app.commit({}, "\x1b[2J::error::$(touch ran)\n\nDEPLOY_OUTCOME=broken")
    done = app.deploy()
    assert "::error::" not in done.log + str(done.result)


def test_what_a_step_prints_cannot_steer_a_terminal(app: App) -> None:
    script = r"printf '\033[31mred\033[0m \033]0;title\007 \033[2J \233 \r::error::x\n'; exit 3"
    app.commit({"deploy.ini": DEPLOY_INI + f'[step loud]\nrun = sh -c "{script}"\n'})
    done = app.deploy(expect=10)
    for text in (done.log, done.result["detail"], (app.root / "state" / "history.jsonl").read_text()):
        assert "\x1b]" not in text and "\x1b[2J" not in text and "\x07" not in text
    assert "\x1b[31mred\x1b[0m \\x1b]0;title\\x07" in done.log, "colours stay, and what was there can be seen"


def test_what_status_history_and_plan_print_cannot_either(app: App) -> None:
    good = app.deploy().result["commit"]
    text = DEPLOY_INI.replace("[deploy]", "[deploy]\nhealth_timeout = 1")
    check = "check = sh -c 'printf \"\\033]0;title\\007\\n\"; exit 1'\n"
    app.commit({"deploy.ini": text.replace("[role web]\n", f"[role web]\n{check}")})
    app.deploy(expect=11)
    app.commit({"deploy.ini": DEPLOY_INI + "[step x]\nrun = echo \x1b]0;title\x07\n"})
    for command in ("status", "history", "plan"):
        words = [word for word in app.command(command) if word != "--json"]
        done = subprocess.run(words, env=app.environment(), capture_output=True, text=True, check=True)
        assert "\\x1b]0;title\\x07" in done.stdout or command == "history"
        assert "\x1b]" not in done.stdout and "\x07" not in done.stdout, command
    assert app.revision() == good


# --- links -----------------------------------------------------------------------------------------


def test_links_in_the_place_of_shared_files_are_replaced(app: App, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    link(app, "media", str(tmp_path / "outside"))
    link(app, ".env", "/etc/passwd")
    app.commit({"deploy.ini": DEPLOY_INI.replace("shared = .env", "shared = .env media")})
    app.deploy()
    assert os.readlink(app.current / "media") == "../../shared/media"
    assert os.readlink(app.current / ".env") == "../../shared/.env"
    assert list((tmp_path / "outside").iterdir()) == []


@pytest.mark.parametrize("name", ["out", "deep/out"])
@pytest.mark.parametrize("inputs", ["inputs = src/\n", ""], ids=["kept", "made each time"])
def test_a_link_in_the_place_of_what_a_step_provides(app: App, tmp_path: Path, name: str, inputs: str) -> None:
    ini = (
        f"[step assets]\n{inputs}provides = {name}\nrun = sh -c 'mkdir -p {name}; echo new > {name}/all'\n[role web]\n"
    )
    good = app.commit({"deploy.ini": ini})
    app.deploy()
    outside = tmp_path / "outside"
    (outside / "out").mkdir(parents=True)
    for target in (str(outside), "../../current", "/"):
        link(app, name.partition("/")[0], target)
        app.commit({"src/a": f"{target}\n"})
        done = app.deploy(expect=10)
        assert "leads out of the release" in done.result["message"]
        assert app.revision() == good
    assert [path.name for path in outside.rglob("*")] == ["out"]
    assert (app.current / name / "all").read_text() == "new\n"


def test_a_link_that_stays_inside_is_a_link(app: App) -> None:
    link(app, "out", "built")
    ini = "[step assets]\nprovides = out\nrun = sh -c 'mkdir -p built; echo new > out/all'\n[role web]\n"
    app.commit({"deploy.ini": ini})
    app.deploy()
    assert (app.current / "built" / "all").read_text() == "new\n"


def test_a_link_above_a_shared_path(app: App, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "keys").write_text("precious\n")
    link(app, "conf", str(tmp_path / "outside"))
    app.commit({"deploy.ini": DEPLOY_INI.replace("shared = .env", "shared = conf/keys")})
    done = app.deploy(expect=10)
    assert "conf leads out of the release" in done.result["message"]
    assert (tmp_path / "outside" / "keys").read_text() == "precious\n"


def test_links_in_the_place_of_what_the_script_reads(app: App, tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    link(app, "scripts/deploy_machine.py", str(tmp_path / "evil.py"))
    app.commit({})
    app.deploy()
    assert not (tmp_path / "ran").exists()
    (tmp_path / "outside.ini").write_text("[step evil]\nrun = touch ran\n[role web]\n")
    link(app, "deploy.ini", str(tmp_path / "outside.ini"))
    app.commit({})
    done = app.deploy(expect=10)
    assert "deploy.ini of " in done.result["message"]


def test_links_in_the_place_of_what_the_script_writes(app: App, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious\n")
    link(app, "REVISION", str(tmp_path / "precious"))
    commit = app.commit({})
    app.deploy()
    assert (app.revision(), (tmp_path / "precious").read_text()) == (commit, "precious\n")
    app.commit({".release.json": '{"schema": 1, "commit": "' + "a" * 40 + '", "confirmed": "now"}'})
    assert "remove it" in app.deploy(expect=10).result["message"]


# --- git -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "module",
    [
        "url = ext::sh -c touch% {mark}",
        "url = --upload-pack=touch {mark}",
        "url = file://{origin}\n\tupdate = !touch {mark}",
        "url = ssh://-oProxyCommand=touch%20{mark}/x",
    ],
)
def test_submodules_that_would_run_something(app: App, tmp_path: Path, module: str) -> None:
    mark = tmp_path / "ran"
    text = '[submodule "sub"]\n\tpath = sub\n\t' + module.format(mark=mark, origin=app.origin) + "\n"
    (app.origin / ".gitmodules").write_text(text)
    app.git("add", ".gitmodules")
    app.git("update-index", "--add", "--cacheinfo", f"160000,{app.git('rev-parse', 'HEAD')},sub")
    app.git("commit", "-q", "-m", "a submodule")
    done = app.run("deploy")
    assert done.result["outcome"] in ("failed", "deployed"), done.log
    assert not mark.exists()


def test_filters_and_hooks_of_the_repository_are_not_run(app: App, tmp_path: Path) -> None:
    hook = f"#!/bin/sh\ntouch {tmp_path}/ran\n"
    files = {f"{folder}/{name}": hook for folder in ("hooks", ".githooks") for name in ("post-checkout", "post-merge")}
    config = f'[core]\n\thooksPath = hooks\n[filter "evil"]\n\tsmudge = touch {tmp_path}/ran\n'
    app.commit({**files, ".gitattributes": "* filter=evil\n", ".gitconfig": config, "config": config})
    app.deploy()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", [".git", "..", ".GIT", "git~1"])
def test_a_tree_that_would_be_written_elsewhere(app: App, name: str) -> None:
    app.deploy()
    before = app.revision()
    blob = app.git("rev-parse", "HEAD:code.py")

    def tree(text: str) -> str:
        done = subprocess.run(["git", "mktree"], cwd=app.origin, input=text, text=True, capture_output=True, check=True)
        return done.stdout.strip()

    top = app.git("ls-tree", "HEAD") + f"\n040000 tree {tree(f'100644 blob {blob}	planted')}\t{name}\n"
    commit = app.git("commit-tree", "-p", "HEAD", "-m", "x", tree(top))
    app.git("update-ref", "refs/heads/main", commit)
    done = app.run("deploy")
    if done.code == 0:  # names that mean something on other file systems only
        assert name in (".GIT", "git~1")
    else:
        assert (done.code, app.revision()) == (10, before), done.log
    assert not (app.root / "releases" / "planted").exists()


# --- .env, deploy.ini, the address -------------------------------------------------------------------


def test_variables_of_the_environment_file_reach_the_steps_and_nothing_else(app: App, tmp_path: Path) -> None:
    fake = tmp_path / "fake"
    fake.mkdir()
    for name in ("git", "sync", "python3"):
        (fake / name).write_text(f"#!/bin/sh\necho {name} >> {tmp_path}/taken\nexit 1\n")
        (fake / name).chmod(0o755)
    (app.root / "shared").mkdir()
    (app.root / "state").mkdir()
    (app.root / "shared" / ".env").write_text(
        f"PATH={fake}:/usr/bin:/bin\nPYTHONPATH={fake}\nGIT_SSH_COMMAND=false\nGIT_DIR=/x\nDEPLOY_COMMIT=forged\n"
    )
    app.commit({"deploy.ini": "[step show]\nrun = sh -c 'echo $PATH $DEPLOY_COMMIT; git; true'\n[role web]\n"})
    done = app.deploy()
    assert f"{fake}:/usr/bin:/bin {app.revision()}" in done.log
    assert (tmp_path / "taken").read_text() == "git\n", "the step's, not the script's own"


def test_an_environment_file_with_a_nul(app: App) -> None:
    app.deploy()
    (app.root / "shared" / ".env").write_bytes(b"A=1\0\nB=2\n")
    app.commit({"code.py": "print(5)\n"})
    done = app.deploy(expect=10)
    assert "shared/.env holds a NUL character" in done.result["message"]


@pytest.mark.parametrize("code", [0, 5])
def test_a_value_of_the_environment_file_is_in_no_record(app: App, code: int) -> None:
    (app.root / "shared").mkdir()
    (app.root / "state").mkdir()
    (app.root / "shared" / ".env").write_text("SECRET_KEY=tell-nobody-7391\n")
    text = f"[step use]\nrun = sh -c 'test ${{#SECRET_KEY}} = 16 && exit {code}; exit 9'\n"
    app.commit({"deploy.ini": DEPLOY_INI + text})
    done = app.deploy(expect=10 if code else 0)
    assert "ended with 9" not in done.log
    files = [path for path in app.root.rglob("*") if path.is_file() and path.name != ".env"]
    told = [done.log, str(done.result), *(path.read_text(errors="replace") for path in files)]
    assert len(told) > 10
    assert not [text for text in told if "tell-nobody" in text]


def test_a_deploy_ini_that_is_no_text(app: App) -> None:
    app.commit({"deploy.ini": b"; caf\xe9\n" + DEPLOY_INI.encode()})
    app.deploy()
    assert app.deploy().result["outcome"] == "unchanged", "the running release's is read again"
    app.commit({"deploy.ini": b"[step x]\nrun = a\0b\n[role web]\n"})
    assert "holds a NUL character" in app.deploy(expect=10).result["message"]


@pytest.mark.parametrize("who", ["bot:hunter2", "ghp_hunter2hunter2hunter2hunter2hunter2hunt"])
def test_an_address_with_a_password_is_refused_and_not_repeated(app: App, who: str) -> None:
    (app.root / "machine.ini").write_text(f"[machine]\nname = x\nrepo = https://{who}@git.example.com/app.git\n")
    command = [word for word in app.command("deploy") if not word.startswith(("--repo", "file://"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "holds a password" in done.stderr
    assert "hunter2" not in done.stderr

"""What a crash or a bad disk leaves in the mirror and in state/ is repaired or renewed without a person."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from small_app import App


def mirror(app: App) -> Path:
    return app.root / "repo.git"


def loose(app: App, name: str) -> Path:
    """The file of an object of the mirror; packs are unpacked first."""
    objects = mirror(app) / "objects"
    for pack in objects.glob("pack/*.pack"):
        moved = app.root.parent / pack.name
        pack.rename(moved)
        for rest in objects.glob("pack/*"):
            rest.unlink()
        with open(moved, "rb") as file:
            subprocess.run(["git", f"--git-dir={mirror(app)}", "unpack-objects", "-q"], stdin=file, check=True)
    oid = app.git("rev-parse", name)
    return objects / oid[:2] / oid[2:]


def empty(path: Path) -> None:
    path.chmod(0o644)
    path.write_bytes(b"")


def corrupt(path: Path) -> None:
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 :] = b"\0" * (len(data) - len(data) // 2)
    path.write_bytes(data)


def sound(app: App) -> bool:
    command = ["git", f"--git-dir={mirror(app)}", "fsck", "--full", "--no-dangling"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


DAMAGES = [empty, corrupt, Path.unlink]
NAMES = ["main", "main^{tree}", "main:src", "main:code.py", "main~1"]
# each damage to each kind of object, every other one with a commit to be fetched
DAMAGED = [(damage, name, bool((i + j) % 2)) for i, damage in enumerate(DAMAGES) for j, name in enumerate(NAMES)]


@pytest.mark.parametrize(("damage", "name", "new"), DAMAGED)
def test_a_damaged_object(app: App, damage: Callable[[Path], None], name: str, new: bool) -> None:
    app.deploy()
    wanted = app.commit({"code.py": "print(2)\n", "src/b": "b\n"})
    app.run("plan")  # it is in the mirror now
    damage(loose(app, name))
    if new:
        wanted = app.commit({"code.py": "print(3)\n"})
    done = app.deploy()
    assert (done.result["outcome"], done.result["commit"]) == ("deployed", wanted), done.log
    assert (app.current / "code.py").read_text() == f"print({2 + new})\n"
    app.commit({"code.py": "print(4)\n"})
    assert app.deploy().result["outcome"] == "deployed"


def test_a_damaged_pack(app: App) -> None:
    app.deploy()
    wanted = app.commit({"code.py": "print(2)\n"})
    app.run("plan")
    subprocess.run(["git", f"--git-dir={mirror(app)}", "repack", "-qad"], check=True)
    corrupt(next(mirror(app).glob("objects/pack/*.pack")))
    assert app.deploy().result["commit"] == wanted
    assert (app.current / "code.py").read_text() == "print(2)\n"


@pytest.mark.parametrize("name", ["HEAD", "config", "refs/deploy/tip", "packed-refs"])
@pytest.mark.parametrize("content", ["", "\0\0\0\0", "[core\n"])
def test_a_damaged_file_of_the_mirror(app: App, name: str, content: str) -> None:
    app.deploy()
    wanted = app.commit({"code.py": "print(2)\n"})
    (mirror(app) / name).write_text(content)
    assert app.deploy().result["commit"] == wanted
    assert sound(app)


LOCKS = ["HEAD.lock", "config.lock", "packed-refs.lock", "shallow.lock", "index.lock", "FETCH_HEAD.lock"]
LOCKS += ["refs/heads/main.lock", "refs/heads/deep/er.lock", "objects/info/commit-graph.lock", "logs/HEAD.lock"]
LOCKS += ["objects/info/commit-graphs/commit-graph-chain.lock", "objects/info/alternates.lock"]
LOCKS += ["modules/library/index.lock", "modules/library/refs/heads/main.lock", "objects/pack/tmp_pack_x"]


def test_stale_locks_anywhere_in_the_mirror(app: App) -> None:
    app.deploy()
    for name in LOCKS:
        (mirror(app) / name).parent.mkdir(parents=True, exist_ok=True)
        (mirror(app) / name).touch()
    wanted = app.commit({"code.py": "print(2)\n"})
    assert app.deploy().result["commit"] == wanted
    assert [name for name in LOCKS if (mirror(app) / name).exists()] == []


def test_a_mirror_is_not_renewed_while_the_repository_is_away(app: App) -> None:
    app.deploy()
    corrupt(loose(app, "main:code.py"))
    app.origin.rename(app.origin.with_name("moved"))
    done = app.deploy("--fetch-timeout", "1", expect=75)
    assert done.result["outcome"] == "unreachable"
    assert not sound(app), "it is still the old one"
    app.origin.with_name("moved").rename(app.origin)
    wanted = app.commit({"code.py": "print(2)\n"})
    assert app.deploy().result["commit"] == wanted


def test_a_commit_that_was_rewritten_away_and_is_in_no_mirror_any_more(app: App) -> None:
    """Fetched anew, or tidied up by git: what runs here is then unknown to the mirror, and holds up nothing."""
    app.deploy()
    app.git("commit", "-q", "--amend", "-m", "another first commit")
    wanted = app.git("rev-parse", "HEAD")
    shutil.rmtree(mirror(app))
    done = app.deploy()
    assert (done.result["outcome"], done.result["commit"]) == ("deployed", wanted), done.log


@pytest.mark.parametrize("config", ["", None])
def test_the_settings_of_a_damaged_mirror_are_set_again(app: App, config: str | None) -> None:
    """Without them what it fetches would not reach the disk: a killed `git init` leaves none, too."""
    app.deploy()
    before = (mirror(app) / "config").read_text()
    (mirror(app) / "config").unlink() if config is None else (mirror(app) / "config").write_text(config)
    app.deploy()
    assert (mirror(app) / "config").read_text() == before


def test_a_half_made_new_mirror_does_not_stay(app: App) -> None:
    app.deploy()
    shutil.copytree(mirror(app), app.root / "repo.git.new")  # killed before it took the place of the old one
    app.deploy()
    assert not (app.root / "repo.git.new").exists()


CUTS = {"empty": lambda text: "", "half": lambda text: text[: len(text) // 2], "zeros": lambda text: "\0" * len(text)}


@pytest.mark.parametrize("how", CUTS)
def test_damaged_state_files(app: App, how: str) -> None:
    app.deploy()
    for name in ("state.json", "running.json", "switching.json", "last.json", "history.jsonl"):
        path = app.root / "state" / name
        path.write_text(CUTS[how](path.read_text() if path.exists() else '{"schema": 1, "stage": "services"}'))
    assert app.run("status").code == 0
    assert app.run("history").code == 0
    wanted = app.commit({"code.py": "print(2)\n"})
    assert app.deploy().result["commit"] == wanted
    for gone in ("running.json", "switching.json"):
        assert not (app.root / "state" / gone).exists()
    assert json.loads((app.root / "state" / "last.json").read_text())["schema"] == 1
    assert app.run("status").result["interrupted"] is False
    assert app.run("history").result["history"][-1]["commit"] == wanted


def test_a_mark_of_completeness_that_is_not_whole_is_none(app: App) -> None:
    app.deploy()
    for mark in (app.root / "envs").glob("*/.complete"):
        mark.write_text("")
    (app.current / ".release.json").write_text('{"schema": 1, "comm')
    done = app.deploy()
    assert done.ran() == ["assets", "schema", "always"]
    assert app.run("status").result["healthy"] is True
    assert (app.current / "out" / "all").read_text() == "a\n"


def test_the_mirror_is_packed_behind_the_deploy(app: App) -> None:
    app.deploy()
    for key, value in (("gc.autoPackLimit", "1"), ("fetch.unpackLimit", "1")):
        subprocess.run(["git", f"--git-dir={mirror(app)}", "config", key, value], check=True)
    for number in range(3):
        app.commit({"code.py": f"print({number})\n"})
        app.run("plan")
    packs = mirror(app) / "objects/pack"
    assert len(list(packs.glob("*.pack"))) == 3, "a fetch has a time limit that packing must not use up"
    app.deploy()
    assert len(list(packs.glob("*.pack"))) == 1

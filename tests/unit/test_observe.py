"""What a command is seen to read of a folder and to leave in it, whoever does it: real commands, the real kernel."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
from deployer import observe


@pytest.fixture
def top(tmp_path: Path) -> Path:
    for name, text in {"a": "1", "src/b.py": "B = 2", "src/deep/c": "3", "out/old": "4", "tool": "#!/bin/sh\n"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "link").symlink_to("src")
    return tmp_path


def seen(top: Path, script: str, apart: tuple[str, ...] = ("out",), beyond: tuple[str, ...] = ()) -> observe.Seen:
    with observe.Observer(top, apart, beyond) as observer:
        subprocess.run(["sh", "-c", script], cwd=top, check=True, stdout=subprocess.DEVNULL)
    assert observer.seen
    return observer.seen


@pytest.mark.parametrize(
    ("script", "opened", "listed"),
    [
        ("true", set(), set()),
        ("cat a", {"a"}, set()),
        ("cat link/b.py", {"src/b.py"}, set()),
        ("ls src/deep", set(), {"src/deep"}),
        ("grep -r 3 src", {"src/b.py", "src/deep/c"}, {"src", "src/deep"}),
        ("cp src/deep/c out/", {"src/deep/c"}, set()),
        ("echo x > new; cat new", set(), set()),
        ("cat out/old", set(), set()),
        ("sh -c '(sleep 0.2; cat a) & wait'", {"a"}, set()),
        ("mv a out/", set(), set()),
    ],
)
def test_what_is_read(top: Path, script: str, opened: set[str], listed: set[str]) -> None:
    found = seen(top, script)
    assert (found.opened, found.listed) == (opened, listed)


@pytest.mark.parametrize(
    ("script", "left"),
    [
        ("cat a", ()),
        ("echo x > new", ("new",)),
        ("echo x > new; rm new", ()),
        ("mkdir -p x/out && echo > x/out/y", ("x",)),
        ("echo x >> a", ("a",)),
        ("rm src/deep/c", ("src/deep/c",)),
        ("mv a src/a", ("a", "src/a")),
        ("chmod +x tool", ("tool",)),
        ("echo x > out/new; rm -r out; mkdir out", ()),
        ("mkdir -p made/dist && echo > made/dist/x", ()),
        ("mkdir src/__pycache__ && echo > src/__pycache__/b.cpython-311.pyc", ()),
        ("ln -s a other", ("other",)),
    ],
)
def test_what_is_left(top: Path, script: str, left: tuple[str, ...]) -> None:
    assert seen(top, script, ("out", "made/dist")).left == left


def test_a_compiled_module_stands_for_its_source(top: Path) -> None:
    run = f"env -u PYTHONDONTWRITEBYTECODE {sys.executable} -c 'import sys; sys.path.insert(0, \"src\"); import b'"
    assert "src/b.py" in seen(top, run).opened
    assert (top / "src/__pycache__").is_dir()
    again = seen(top, run)
    assert "src/b.py" in again.opened, "though only the compiled one was opened"
    assert again.left == ()


def test_what_lies_behind_a_link_is_watched_if_asked_for(top: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    kept = tmp_path_factory.mktemp("kept")
    (kept / "pyvenv.cfg").write_text("")
    (top / ".venv").symlink_to(kept)
    assert seen(top, "cat .venv/pyvenv.cfg").opened == set()
    assert seen(top, "cat .venv/pyvenv.cfg", (".venv",), (".venv",)).opened == {".venv/pyvenv.cfg"}


def test_nothing_is_lost_of_many(top: Path) -> None:
    """Each of 20,000 files is opened: more than the kernel keeps for one that does not read."""
    for number in range(200):
        (top / f"many/{number}").mkdir(parents=True)
        for other in range(100):
            (top / f"many/{number}/{other}").write_text("")
    assert len([path for path in seen(top, "cat many/*/*").opened if path.startswith("many/")]) == 20_000


def test_events_that_were_lost_are_told(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then nobody knows what was read."""
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    run, is_over = observe.Observer.run, threading.Event()

    def late(self: observe.Observer) -> None:
        is_over.wait(60)
        run(self)

    monkeypatch.setattr(observe.Observer, "run", late)
    with observe.Observer(top, ()) as observer:
        for _ in range(limit):  # two files in turn: the kernel makes one event of two that are the same
            for name in ("a", "tool"):
                os.close(os.open(top / name, os.O_RDONLY))
        is_over.set()
    assert observer.seen is None

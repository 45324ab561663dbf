"""How a version travels, by value: one archive, and on a machine a directory that is whole or not there."""

from __future__ import annotations

import ast
import bz2
import errno
import json
import marshal
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))
from deployer import carrier  # noqa: E402

TEXT = (SCRIPTS / "deployer/carrier.py").read_text()
PROGRAM = b"""\
import os, signal, sys
import deployer.room
print(deployer.room.VALUE, *sys.argv[1:], os.readlink("/proc/self/fd/0"), signal.alarm(0))
"""
FILES = {
    "deploy_machine.py": PROGRAM,
    "deployer/__init__.py": b'"""Rooms."""\n',
    "deployer/defaults.ini": "[deploy]\nname = größe\n".encode(),
    "deployer/room.py": b"VALUE = 5\n",
}
ID = carrier.identity(FILES)


def kept(root: Path) -> Path:
    return root / "deployers" / ID


def content(root: Path) -> list[str]:
    """What is in deployers/, but for the lock's file."""
    return sorted(path.name for path in (root / "deployers").iterdir() if path.name != ".lock")


def is_whole(root: Path) -> bool:
    """Whether the kept version has all files and bytecode, and runs; looked at without the carrier."""
    place = kept(root)
    if any((place / name).read_bytes() != data for name, data in FILES.items()):
        return False
    tag = sys.implementation.cache_tag
    for name in (name for name in FILES if name.endswith(".py")):
        bytecode = (place / name).parent / "__pycache__" / f"{Path(name).stem}.{tag}.pyc"
        if marshal.loads(bytecode.read_bytes()[16:]).co_filename != str(place / name):
            return False
    command = [sys.executable, place / "deploy_machine.py", "a"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return done.stdout == b"5 a /dev/null 0\n"


# --- the archive --------------------------------------------------------------------------------------


def test_the_same_files_are_the_same_archive_in_any_order() -> None:
    shuffled = dict(reversed(FILES.items()))
    assert list(shuffled) != list(FILES)
    assert (carrier.identity(shuffled), carrier.pack(shuffled)) == (ID, carrier.pack(FILES))
    assert carrier.identity(FILES) == ID
    assert len(ID) == 16 and set(ID) <= set("0123456789abcdef")


def test_another_content_or_path_is_another_version() -> None:
    others = [
        {**FILES, "deployer/room.py": b"VALUE = 6\n"},
        {**{name: data for name, data in FILES.items() if "room" not in name}, "deployer/broom.py": b"VALUE = 5\n"},
        {name: data for name, data in FILES.items() if "defaults" not in name},
    ]
    assert len({ID, *map(carrier.identity, others)}) == 4


def test_the_id_does_not_depend_on_how_it_is_packed() -> None:
    text = bz2.decompress(carrier.pack(FILES))
    assert carrier.unpack(bz2.compress(text, 1), ID) == FILES


def test_what_is_packed_is_unpacked() -> None:
    assert carrier.unpack(carrier.pack(FILES), ID) == FILES


def test_an_archive_that_was_tampered_with_is_refused() -> None:
    archive = carrier.pack(FILES)
    refused = 0
    for place in range(len(archive)):
        try:  # some bits of the format say nothing of the content
            assert carrier.unpack(archive[:place] + bytes([archive[place] ^ 1]) + archive[place + 1 :], ID) == FILES
        except ValueError:
            refused += 1
    assert refused > 0.8 * len(archive)
    for damaged in (b"", archive[:-1], archive[:20]):
        with pytest.raises(ValueError, match=r"the archive is (damaged|not the one)"):
            carrier.unpack(damaged, ID)
    with pytest.raises(ValueError, match="not the one of"):
        carrier.unpack(carrier.pack({**FILES, "deployer/room.py": b"VALUE = 6\n"}), ID)


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../x", "a/../../x", "..", ".", "", "a//b", "a/", "./a", "a/./b", "a/\0"]
)
def test_a_path_that_leads_out_is_refused(path: str) -> None:
    files = {**FILES, path: b"x\n"}
    with pytest.raises(ValueError, match="plain relative"):
        carrier.unpack(carrier.pack(files), carrier.identity(files))


def test_a_file_that_is_not_text_is_named() -> None:
    with pytest.raises(ValueError, match=r"deployer/x\.py is not text"):
        carrier.pack({**FILES, "deployer/x.py": b"\xff"})


def test_a_version_is_the_entry_and_its_package(tmp_path: Path) -> None:
    scripts = tmp_path / "scripts"
    for name in [*FILES, "push_deploy.py", "deployer/notes.txt", "deployer/__pycache__/room.pyc", "deployer/x.py~"]:
        path = scripts / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(FILES.get(name, b"another\n"))
    assert carrier.own_files(scripts) == FILES
    assert list(carrier.own_files(scripts)) == sorted(FILES)
    real = carrier.own_files(SCRIPTS)
    assert real["deployer/carrier.py"] == TEXT.encode()
    assert {"deploy_machine.py", "deployer/__init__.py", "deployer/errors.py"} <= set(real)


# --- deployers/ ---------------------------------------------------------------------------------------


def test_a_version_is_kept_compiled_and_runs(tmp_path: Path) -> None:
    assert carrier.keep(str(tmp_path), ID, FILES) == str(kept(tmp_path))
    assert content(tmp_path) == [ID]
    modes = {name: (kept(tmp_path) / name).stat().st_mode & 0o777 for name in FILES}
    assert modes == {name: 0o755 if name == "deploy_machine.py" else 0o644 for name in FILES}
    before = {path: path.stat().st_ino for path in kept(tmp_path).rglob("*")}
    assert is_whole(tmp_path)
    assert {path: path.stat().st_ino for path in kept(tmp_path).rglob("*")} == before, "a run compiles nothing"


def test_one_that_is_there_only_gets_the_present_time(tmp_path: Path) -> None:
    carrier.keep(str(tmp_path), ID, FILES)
    before = {path: path.stat().st_ino for path in kept(tmp_path).rglob("*")}
    os.utime(kept(tmp_path), (0, 0))
    carrier.keep(str(tmp_path), ID, FILES)
    assert {path: path.stat().st_ino for path in kept(tmp_path).rglob("*")} == before
    assert kept(tmp_path).stat().st_mtime > 1e9, "else the next deploy might remove a version that is used"


def bytecode_of(place: Path) -> Path:
    return next(place.glob("deployer/__pycache__/room.*"))


def damage_away(place: Path) -> None:
    (place.with_name("away") / "deployer/room.py").write_bytes(b"VALUE")
    place.symlink_to("away")


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "a file is cut short": lambda place: (place / "deployer/room.py").write_bytes(b"VALUE"),
    "a file is missing": lambda place: (place / "deployer/defaults.ini").unlink(),
    "bytecode is missing": lambda place: bytecode_of(place).unlink(),
    "bytecode is empty": lambda place: bytecode_of(place).write_bytes(b""),
    "bytecode is of another source": lambda place: bytecode_of(place).write_bytes(
        next(place.glob("deployer/__pycache__/__init__.*")).read_bytes()
    ),
    "a file has its name": lambda place: (place.rename(place.with_name("away")), place.write_text("x")),
    "a link has its name": lambda place: (place.rename(place.with_name("away")), place.symlink_to("nowhere")),
    "a link to another has its name": lambda place: (place.rename(place.with_name("away")), damage_away(place)),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_one_that_is_damaged_is_renewed(tmp_path: Path, damage: Callable[[Path], Any]) -> None:
    carrier.keep(str(tmp_path), ID, FILES)
    damage(kept(tmp_path))
    carrier.keep(str(tmp_path), ID, FILES)
    assert is_whole(tmp_path)
    assert set(content(tmp_path)) <= {ID, "away"}
    away = tmp_path / "deployers/away"
    assert not away.exists() or (away / "deploy_machine.py").exists(), "where a link leads nothing is removed"


def test_what_is_half_removed_cannot_be_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    carrier.keep(str(tmp_path), ID, FILES)
    monkeypatch.setattr(shutil, "rmtree", lambda path: None)
    carrier.remove(str(kept(tmp_path)))
    assert not (kept(tmp_path) / "deploy_machine.py").exists()


def test_what_a_killed_one_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / "deployers" / f".{ID}.tmp-{os.getpid()}"
    (left / "deployer").mkdir(parents=True)
    (left / "deploy_machine.py").write_text("old\n")
    carrier.keep(str(tmp_path), ID, FILES)
    assert content(tmp_path) == [ID]
    assert is_whole(tmp_path)


def test_a_module_that_is_none_is_told_and_nothing_stays(tmp_path: Path) -> None:
    files = {**FILES, "deployer/room.py": b"match x y\n"}
    with pytest.raises(ValueError, match=r"/deployers/0{16}/deployer/room\.py: SyntaxError: "):
        carrier.keep(str(tmp_path), "0" * 16, files)
    assert content(tmp_path) == []


CHANGES = ("mkdir", "chmod", "fsync", "rename", "unlink", "rmdir")
NEED_SPACE = ("mkdir", "fsync", "rename")


def intercept(monkeypatch: pytest.MonkeyPatch, names: Sequence[str], before: Callable[[], None]) -> None:
    """Have `before` called ahead of each call of these functions of os."""
    for name in names:
        monkeypatch.setattr(os, name, preceded(getattr(os, name), before))


def preceded(real: Callable[..., Any], before: Callable[[], None]) -> Callable[..., Any]:
    def wrapped(*args: Any, **options: Any) -> Any:
        before()
        return real(*args, **options)

    return wrapped


class From:
    """Counts calls, and from the one of that number on does something at each."""

    def __init__(self, number: int, action: Callable[[], Any]) -> None:
        self.number, self.action, self.count = number, action, 0

    def __call__(self) -> None:
        self.count += 1
        if self.count >= self.number:
            self.action()


def each_step(tmp_path: Path, was: str) -> Iterator[tuple[int, Path]]:
    """1, 2, ... each with a new root, in which the version is not there, or damaged."""
    for number in range(1, 200):
        root = tmp_path / str(number)
        root.mkdir()
        if was == "damaged":
            carrier.keep(str(root), ID, FILES)
            (kept(root) / "deployer/room.py").write_bytes(b"VALUE")
        yield number, root
    raise AssertionError("no end was reached")


def is_harmless(root: Path, was: str) -> bool:
    """Whether what has the version's name is whole, is none that could be run, or is damaged as it was before."""
    room = kept(root) / "deployer/room.py"
    before = was == "damaged" and room.exists() and room.read_bytes() == b"VALUE"
    return before or not (kept(root) / "deploy_machine.py").exists() or is_whole(root)


@pytest.mark.parametrize("was", ["not there", "damaged"])
def test_killed_at_any_step_it_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, was: str) -> None:
    for number, root in each_step(tmp_path, was):
        pid = os.fork()
        if pid == 0:
            intercept(monkeypatch, CHANGES, From(number, lambda: os.kill(os.getpid(), 9)))
            carrier.keep(str(root), ID, FILES)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert is_harmless(root, was), number
        carrier.keep(str(root), ID, FILES)
        assert content(root) == [ID], "and the next one needs no help"
        assert is_whole(root)
        if code == 0:
            assert number > 20, "the calls were not seen"
            return
        assert code == -9


@pytest.mark.parametrize("was", ["not there", "damaged"])
def test_a_disk_that_fills_up_at_any_step_has_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, was: str
) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for number, root in each_step(tmp_path, was):
        with monkeypatch.context() as patch:
            intercept(patch, NEED_SPACE, From(number, full))
            try:
                carrier.keep(str(root), ID, FILES)
                assert number > 12, "the calls were not seen"
                return
            except OSError as error:
                assert error.errno == errno.ENOSPC
        assert is_harmless(root, was), number
        assert not (root / "deployers").exists() or set(content(root)) <= {ID}


def test_all_of_it_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut may take whatever was not synced; so a file that is not must not be reachable by the name."""
    (tmp_path / "deployers").mkdir()
    synced: dict[int, tuple[int, int]] = {}
    steps: list[str] = []
    fsync, rename = os.fsync, os.rename

    def note_sync(descriptor: int) -> None:
        about = os.fstat(descriptor)
        synced[about.st_ino] = (about.st_size, about.st_mtime_ns)
        steps.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def check_rename(source: str, target: str) -> None:
        for path in [Path(source), *Path(source).rglob("*")]:
            about = path.stat()
            assert synced.get(about.st_ino) == (about.st_size, about.st_mtime_ns), f"{path} was not synced"
        steps.append(f"rename to {target}")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "rename", check_rename)
    carrier.keep(str(tmp_path), ID, FILES)
    assert steps[-2:] == [f"rename to {kept(tmp_path)}", f"{tmp_path}/deployers"], "and then the new name itself"
    assert len([step for step in steps if step.startswith("rename")]) == 1


def test_of_two_at_once_one_waits_and_finds_it_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, go_on = [], threading.Event()
    sync_tree = carrier.sync_tree

    def slow(top: str) -> None:
        made.append(top)
        assert go_on.wait(20)
        sync_tree(top)

    monkeypatch.setattr(carrier, "sync_tree", slow)
    threads = [threading.Thread(target=carrier.keep, args=(str(tmp_path), ID, FILES)) for _ in range(3)]
    for thread in threads:
        thread.start()
    threads[1].join(0.3)
    assert all(thread.is_alive() for thread in threads)
    go_on.set()
    for thread in threads:
        thread.join(20)
    assert len(made) == 1
    assert content(tmp_path) == [ID]
    assert is_whole(tmp_path)


def test_many_pushes_at_once_all_run_it(tmp_path: Path) -> None:
    """Processes of their own, and a damaged version in the way."""
    kept(tmp_path).mkdir(parents=True)
    (kept(tmp_path) / "deploy_machine.py").write_text("damaged\n")
    archive = carrier.pack(FILES)
    command = [sys.executable, "-c", carrier.program(), str(tmp_path), str(len(archive)), ID, "x"]
    pushes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(6)]
    for push in pushes:
        assert push.stdin
        push.stdin.write(archive)
        push.stdin.close()
    for push in pushes:
        assert push.stdout
        assert push.stdout.read().decode().splitlines()[1:] == [f"5 x --root {tmp_path} /dev/null 0"]
        assert push.wait(20) == 0
    assert content(tmp_path) == [ID]


# --- the program on the far side ----------------------------------------------------------------------


def run(*words: str, before: str = "", patience: int = 30, **given: Any) -> subprocess.CompletedProcess[str]:
    """Run the carrier's text as ssh would; `before` is run ahead of it."""
    program = before + TEXT.replace("PATIENCE = 120", f"PATIENCE = {patience}")
    done = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, timeout=20, check=False, **given
    )
    return subprocess.CompletedProcess(words, done.returncode, done.stdout.decode(), done.stderr.decode())


def push(
    root: Path, *words: str, data: bytes = carrier.pack(FILES), **options: Any
) -> subprocess.CompletedProcess[str]:
    return run(str(root), str(len(carrier.pack(FILES))), ID, *words, input=data, **options)


def test_a_push_becomes_the_version_that_it_carries(tmp_path: Path) -> None:
    done = push(tmp_path, "deploy", "--json", data=carrier.pack(FILES) + b"what follows is not for the script")
    assert (done.returncode, done.stderr) == (0, "")
    marker, line = done.stdout.splitlines()
    assert marker.startswith(carrier.MARKER)
    assert line == f"5 deploy --json --root {tmp_path} /dev/null 0", "no stdin, and no alarm"
    assert content(tmp_path) == [ID]


def test_without_arguments_it_is_only_kept(tmp_path: Path) -> None:
    done = push(tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert is_whole(tmp_path)


def test_the_real_scripts_are_carried(tmp_path: Path) -> None:
    files = carrier.own_files(SCRIPTS)
    archive, version = carrier.pack(files), carrier.identity(files)
    done = run(str(tmp_path), str(len(archive)), version, "plan", "--show-config", input=archive)
    assert "[step python]" in done.stdout, done.stderr
    assert carrier.own_files(tmp_path / "deployers" / version) == files


def test_a_connection_that_stalls_leaves_nothing(tmp_path: Path) -> None:
    read, write = os.pipe()
    try:
        done = run(str(tmp_path), "5", ID, "x", patience=1, stdin=read)
    finally:
        os.close(read)
        os.close(write)
    assert done.returncode == -14
    assert list(tmp_path.iterdir()) == []


FULL = "import errno, os\ndef fails(*_): raise OSError(errno.ENOSPC, 'No space left on device')\nos.fsync = fails\n"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"data": carrier.pack(FILES)[:-1]}, "the connection ended before the script had arrived"),
        ({"data": b"x" * len(carrier.pack(FILES))}, "the archive is damaged: Invalid data"),
        ({"before": FULL}, "ROOT/deployers/" + ID + ": No space left on device"),
    ],
)
def test_what_goes_wrong_is_one_line_and_nothing_stays(tmp_path: Path, options: dict[str, Any], says: str) -> None:
    (tmp_path / "deployers").mkdir()
    done = push(tmp_path, "deploy", **options)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("loader: " + says.replace("ROOT", str(tmp_path)))
    assert done.stderr.count("\n") == 1
    assert content(tmp_path) == []


def test_a_machine_that_is_not_prepared_is_told(tmp_path: Path) -> None:
    done = push(tmp_path / "none", "deploy")
    assert done.stderr.startswith(f"loader: {tmp_path}/none: no such directory there: prepare the machine with ")
    assert (done.returncode, done.stdout) == (1, "")


def test_a_python_that_is_too_old_is_told(tmp_path: Path) -> None:
    ast.parse(TEXT, feature_version=(3, 6))
    assert "from __future__" not in TEXT, "3.6 knows no annotations there"
    done = push(tmp_path, "deploy", before="import sys\nsys.version_info = (3, 6, 15)\n")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "loader: Python 3.9 or newer is needed there, but python3 is 3.6\n"


def test_it_stands_alone() -> None:
    imported = [node for node in ast.walk(ast.parse(TEXT)) if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = {alias.name.split(".")[0] for node in imported if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module).split(".")[0] for node in imported if isinstance(node, ast.ImportFrom)}
    assert names <= sys.stdlib_module_names
    assert not any(node.level for node in imported if isinstance(node, ast.ImportFrom))


# --- one that is kept there already ------------------------------------------------------------------


def offered(root: Path, *words: str, data: bytes | None = None) -> subprocess.CompletedProcess[str]:
    """A push that says the size on stdin, where only one that needs the archive reads it."""
    archive = carrier.pack(FILES)
    return run(str(root), "0", ID, *words, input=b"%d\n" % len(archive) + archive if data is None else data)


def test_of_one_that_is_kept_nothing_is_read(tmp_path: Path) -> None:
    carrier.keep(str(tmp_path), ID, FILES)
    os.utime(kept(tmp_path), (0, 0))
    before = {path: path.stat().st_ino for path in kept(tmp_path).rglob("*")}
    done = offered(tmp_path, "deploy", data=b"")
    assert (done.returncode, done.stderr) == (0, "")
    marker, line = done.stdout.splitlines()
    assert marker.startswith(carrier.MARKER)
    assert line == f"5 deploy --root {tmp_path} /dev/null 0"
    assert {path: path.stat().st_ino for path in kept(tmp_path).rglob("*")} == before
    assert kept(tmp_path).stat().st_mtime > 1e9, "else the next deploy might remove a version that is used"


@pytest.mark.parametrize("damage", [None, *DAMAGE.values()], ids=["it is not there", *DAMAGE])
def test_one_that_is_not_kept_whole_is_taken(tmp_path: Path, damage: Callable[[Path], Any] | None) -> None:
    if damage:
        carrier.keep(str(tmp_path), ID, FILES)
        damage(kept(tmp_path))
    done = offered(tmp_path, "deploy")
    assert (done.returncode, done.stderr) == (0, "")
    marker, line = done.stdout.splitlines()
    assert line == f"5 deploy --root {tmp_path} /dev/null 0"
    assert marker.startswith(carrier.MARKER)
    assert is_whole(tmp_path)


@pytest.mark.parametrize("data", [b"", b"12", b"\n", b"-5\nabcde", b"x\n", b"7\nabc", b"9" * 30 + b"\nx"])
def test_an_archive_without_its_size_is_told_and_nothing_stays(tmp_path: Path, data: bytes) -> None:
    done = offered(tmp_path, "deploy", data=data)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "loader: the connection ended before the script had arrived\n"
    assert list(tmp_path.iterdir()) == []


SETUP = b"import json, os, sys\nprint(json.dumps([sys.argv[1:], os.listdir(), sys.stdin.read()]))\nsys.exit(7)\n"


def test_setup_is_unpacked_and_run_with_the_terminal_as_its_stdin(tmp_path: Path) -> None:
    files = {"scripts/setup_machine.py": SETUP, "authorize.pub": b"ssh-ed25519 AAAA\n"}
    archive = tmp_path / "archive"
    archive.write_bytes(carrier.pack(files))
    (tmp_path / "tmp").mkdir()
    env = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    done = run("setup", str(archive), carrier.identity(files), "--name", "x y", input=b"typed", env=env)
    assert (done.returncode, done.stderr) == (7, "")
    arguments, listed, typed = json.loads(done.stdout)
    assert (arguments, sorted(listed), typed) == (["--name", "x y"], ["authorize.pub", "scripts"], "typed")
    assert list((tmp_path / "tmp").iterdir()) == []
    done = run("setup", str(archive), "0" * 16, env=env)
    assert (done.returncode, done.stderr) == (1, "loader: the archive is not the one of 0000000000000000\n")

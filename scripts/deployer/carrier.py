"""How versions of deploy_machine.py travel: one archive, named by its content, kept on a machine whole or not at all.

This module stands alone: its text is also the program that takes the others on the far side of an ssh connection.

    python3 -c PROGRAM ROOT SIZE ID ARGUMENTS...
        A push: keep the archive of SIZE bytes on stdin as ROOT/deployers/ID, and become its
        `deploy_machine.py ARGUMENTS... --root ROOT`. Without ARGUMENTS: only keep it.
        SIZE 0: the first line on stdin is the size. Of a version that is kept already nothing is read.
    python3 -c PROGRAM setup FILE ID ARGUMENTS...
        Unpack the archive in FILE (stdin is the terminal, for sudo's password) and run its
        `scripts/setup_machine.py ARGUMENTS...`.
"""

import sys

if sys.version_info < (3, 9):  # everything above and below this line parses on 3.6, so that this can be said there
    sys.stderr.write("loader: Python 3.9 or newer is needed there, but python3 is %d.%d\n" % sys.version_info[:2])
    raise SystemExit(1)

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence

ENTRY = "deploy_machine.py"
PACKAGE = "deployer"
FOLDER = "deployers"  # below the root: versions, each in a directory of its id
MARKER = "deploy-machine started "  # proves that the far side ran; followed by the machine's time
ARCHIVE_BYTES = 10_000_000  # more than any version has
PATIENCE = 120  # seconds; of a connection that stalls longer nothing stays


# --- what travels --------------------


def own_files(scripts: "str | os.PathLike[str]") -> dict[str, bytes]:
    """The files of one version below a directory `scripts`, by their paths relative to it. Raises OSError."""
    package = os.path.join(scripts, PACKAGE)
    names = [f"{PACKAGE}/{name}" for name in os.listdir(package) if name.endswith((".py", ".ini"))]
    return {name: read(os.path.join(scripts, name)) for name in sorted([ENTRY, *names])}


def read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def canonical(files: Mapping[str, bytes]) -> bytes:
    """The same bytes for the same files, in whatever order they are named. Raises ValueError if one is not text."""
    texts = {name: text_of(name, data) for name, data in files.items()}
    return json.dumps(texts, sort_keys=True, ensure_ascii=False).encode()


def text_of(name: str, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ValueError(f"{name} is not text in UTF-8") from None


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def identity(files: Mapping[str, bytes]) -> str:
    """The id of a version: 16 hex digits that depend on paths and contents, not on how they are packed."""
    return digest(canonical(files))


def pack(files: Mapping[str, bytes]) -> bytes:
    """One archive of the files. Raises ValueError if one is not text."""
    import bz2  # noqa: PLC0415

    return bz2.compress(canonical(files))


def unpack(data: bytes, version: str) -> dict[str, bytes]:
    """The files in an archive. Raises ValueError if they are not those of that id, or lead out of their directory."""
    import bz2  # noqa: PLC0415 - most pushes find their version there already

    try:
        text = bz2.decompress(data)
    except (OSError, ValueError) as error:
        raise ValueError(f"the archive is damaged: {error}") from None
    if digest(text) != version:
        raise ValueError(f"the archive is not the one of {version}")
    files = json.loads(text)
    for name in files:
        if {"", ".", ".."} & set(name.split("/")) or "\0" in name:
            raise ValueError(f"the archive has the path {name!r}, which is not a plain relative one")
    return {name: content.encode() for name, content in files.items()}


def program() -> str:
    """What `python3 -c` is given on the far side: the text of this module, packed into one line."""
    import binascii  # noqa: PLC0415 - base64 takes 5 ms to import, on the far side
    import zlib  # noqa: PLC0415

    text = binascii.b2a_base64(zlib.compress(read(__file__), 9), newline=False).decode()
    return f"import binascii,zlib;exec(zlib.decompress(binascii.a2b_base64({text!r})))"


# --- on a machine: deployers/ --------------------


def keep(root: str, version: str, files: Mapping[str, bytes]) -> str:
    """Have the files in ROOT/deployers/ID, compiled and on the disk; return the path of that directory.

    One rename puts it there when it is whole: whatever ends this process or the machine, a version that has its
    name can be run. One that is there already only gets the present time.

    Raises OSError, and ValueError if a file is no program for this Python; nothing stays then.
    """
    folder = os.path.join(root, FOLDER)
    if not os.path.isdir(folder):
        os.makedirs(folder, exist_ok=True)
        sync(root)
    path = os.path.join(folder, version)
    with locked(folder):
        remove_leftovers(folder)
        if not is_kept(path, version):
            make(path, files)
        os.utime(path)
    return path


def kept(root: str, version: str) -> str:
    """The path of a version that is there and whole, which gets the present time; empty if there is none."""
    folder = os.path.join(root, FOLDER)
    path = os.path.join(folder, version)
    if not os.path.isdir(path):
        return ""
    with locked(folder):
        if not is_kept(path, version):
            return ""
        os.utime(path)
    return path


@contextlib.contextmanager
def locked(folder: str) -> Iterator[None]:
    """Be the only one who makes or removes something in deployers/. The kernel frees the lock with the process."""
    descriptor = os.open(os.path.join(folder, ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def is_kept(path: str, version: str) -> bool:
    """Whether the files there are those of that version, each as it should be, and so is their bytecode."""
    try:
        files = own_files(path)
        return identity(files) == version and all(
            is_compiled(path, name, data) for name, data in files.items() if name.endswith(".py")
        )
    except (OSError, ValueError):
        return False


def is_compiled(path: str, name: str, source: bytes) -> bool:
    """Whether its bytecode is of this source and this Python, as its first 16 bytes say."""
    header = importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little") + importlib.util.source_hash(source)
    return read(importlib.util.cache_from_source(os.path.join(path, name))).startswith(header)


def make(path: str, files: Mapping[str, bytes]) -> None:
    """Make a version beside its place and rename it there; one that is damaged makes way. Needs the lock."""
    folder, version = os.path.split(path)
    temporary = os.path.join(folder, f".{version}.tmp-{os.getpid()}")
    try:
        write(temporary, files)
        compile_all(temporary, path, files)
        sync_tree(temporary)
        remove(path)
        os.rename(temporary, path)
        sync(folder)
    finally:
        remove_leftovers(folder)


def write(folder: str, files: Mapping[str, bytes]) -> None:
    """Write files into a directory that is not there yet, or empty."""
    for name, data in files.items():
        path = os.path.join(folder, name)
        os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
        with open(path, "xb") as file:
            file.write(data)
        os.chmod(path, 0o755 if name == ENTRY else 0o644)


def compile_all(folder: str, shown: str, files: Mapping[str, bytes]) -> None:
    """Compile what is Python; a traceback shows the path below `shown`.

    Unchecked, as in a directory that is named by its content source and bytecode always fit.
    """
    import py_compile  # noqa: PLC0415 - 20 ms, which most pushes need not spend

    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    for name in files:
        if name.endswith(".py"):
            place, dfile = os.path.join(folder, name), os.path.join(shown, name)
            try:
                py_compile.compile(place, dfile=dfile, doraise=True, invalidation_mode=mode)
            except py_compile.PyCompileError as error:
                raise ValueError(f"{dfile}: {error.exc_type_name}: {error.exc_value}") from None


def sync_tree(top: str) -> None:
    """Have all files and directories below `top`, and itself, on the disk."""
    for folder, _, names in os.walk(top, topdown=False):
        for name in names:
            sync(os.path.join(folder, name))
        sync(folder)


def sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: str) -> None:
    """Remove what make() has not finished, here or in a process that was killed. Needs the lock."""
    for name in os.listdir(folder):
        if name.startswith(".") and ".tmp-" in name:
            remove(os.path.join(folder, name))


def remove(path: str) -> None:
    """Remove a version, if it is there; what makes it a program goes first, so that half of one never runs."""
    if os.path.isdir(path) and not os.path.islink(path):
        import shutil  # noqa: PLC0415

        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(path, ENTRY))
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


# --- as the program on the far side --------------------


def push(root: str, size: int, version: str, arguments: Sequence[str]) -> None:
    """Have a version and become it; without arguments only keep it. Raises ValueError."""
    signal.alarm(PATIENCE)
    try:
        if not os.path.isdir(root):
            raise ValueError(f"{root}: no such directory there: prepare the machine with setup_machine.py")
        path = "" if size else kept(root, version)
        path = path or keep(root, version, unpack(received(size), version))
    except OSError as error:
        raise ValueError(f"{error.filename or os.path.join(root, FOLDER, version)}: {error.strerror}") from None
    if arguments:
        become(os.path.join(path, ENTRY), [*arguments, "--root", root])


def received(size: int) -> bytes:
    """An archive of that size from stdin; if that is 0, a line with its size comes first. Raises ValueError."""
    if not size:
        said = sys.stdin.buffer.readline(20).strip()
        size = int(said) if said.isdigit() else 0
    data = sys.stdin.buffer.read(min(size, ARCHIVE_BYTES))
    if not size or len(data) < size:
        raise ValueError("the connection ended before the script had arrived")
    return data


def become(script: str, arguments: Sequence[str]) -> None:
    print(MARKER + time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), flush=True)
    signal.alarm(0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.execv(sys.executable, [sys.executable, script, *arguments])


def set_up(archive: str, version: str, arguments: Sequence[str]) -> int:
    """Run the setup_machine.py of the archive in a file; return its exit code. Raises OSError and ValueError."""
    import subprocess  # noqa: PLC0415
    import tempfile  # noqa: PLC0415

    with tempfile.TemporaryDirectory(prefix="setup-machine-") as folder:
        write(folder, unpack(read(archive), version))
        script = os.path.join(folder, "scripts", "setup_machine.py")
        return subprocess.call([sys.executable, script, *arguments], cwd=folder)


def main(arguments: Sequence[str]) -> None:
    first, second, version, *rest = arguments
    os.umask(0o022)
    try:
        if first == "setup":
            sys.exit(set_up(second, version, rest))
        push(first, int(second), version, rest)
    except (OSError, ValueError) as error:
        sys.exit(f"loader: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main(sys.argv[1:])

"""Files: replaced whole, also over a power cut; JSON with a schema; removal; a full disk."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import mmap
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from deployer import dotenv, log, run

SCHEMA = 1  # of the result, the history and every file below state/
MOST_TEXT = 1_000_000  # characters of a file that a person writes: .env, machine.ini
TIME = "%Y-%m-%dT%H:%M:%SZ"  # how every time is written: UTC


def now() -> str:
    """The present time in UTC, to the second, as in 2026-01-02T03:04:05Z."""
    return time.strftime(TIME, time.gmtime())


def seconds(text: str) -> float:
    """A time as now() writes it, in seconds since 1970. Raises ValueError, OverflowError."""
    import calendar  # noqa: PLC0415 - takes a while, and is rarely needed

    return float(calendar.timegm(time.strptime(text, TIME)))


def write(path: Path, text: str, mode: int = 0o644, durable: bool = True) -> None:
    """Replace a file at once: whoever reads it sees the old or the new one, whole, also after a power cut.

    durable: after a power cut it is the new one.
    """
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), mode)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # else a power cut could leave the new name without the content
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_all(path: Path) -> None:
    """Bring everything on the path's file system to the disk."""
    run.command(["sync", "--file-system", str(path)], timeout=600)


def replace_link(link: Path, target: str) -> None:
    """Point a symbolic link somewhere else in one rename, durably."""
    temporary = link.with_name(f".{link.name}.tmp-{os.getpid()}")
    temporary.unlink(missing_ok=True)
    os.symlink(target, temporary)
    os.replace(temporary, link)
    sync_directory(link.parent)


def read_text(path: Path, most: int = MOST_TEXT, errors: str = "strict") -> str:
    """The text of a file that a person wrote. Raises OSError also if it is a FIFO, say, or too large."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, encoding="utf-8", errors=errors) as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        text = file.read(most + 1)
    if len(text) > most:
        raise OSError(errno.EFBIG, f"larger than {megabytes(most)}", str(path))
    return text


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None if it is missing, damaged or of another schema."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):
        log.warning(f"{path} cannot be read and is ignored")
        return None
    return value if isinstance(value, dict) and value.get("schema") == SCHEMA else None


def write_json(path: Path, value: Mapping[str, Any], durable: bool = True) -> None:
    write(path, json.dumps({"schema": SCHEMA, **value}) + "\n", durable=durable)


def try_lock(file: IO[bytes], place: int) -> bool:
    """Lock one byte of a file for this process, if nobody has it; the kernel frees it with the process."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
    except OSError:
        return False
    return True


def remove(path: Path) -> None:
    """Remove a file, link or tree, if it is there."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        try:
            shutil.rmtree(path)
        except PermissionError:  # a step made directories read-only; files may be those of other trees, too
            os.chmod(path, 0o700)
            for folder, folders, _ in os.walk(path):
                for name in (os.path.join(folder, name) for name in folders):
                    if not os.path.islink(name):
                        os.chmod(name, 0o700)
            shutil.rmtree(path)


def move(source: Path, target: Path) -> None:
    """Move a file, link or tree; to another file system it is copied, links of files among each other included."""
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        run.command(["cp", "-a", "--", str(source), str(target)], timeout=3600)
        remove(source)


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name; on another file system, a copy. Raises FileExistsError."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.copy2(source, target, follow_symlinks=False)


@contextlib.contextmanager
def removed_on_failure(path: Path) -> Iterator[Path]:
    """Leave nothing of a directory whose making did not succeed, whatever the reason."""
    try:
        yield path
    except BaseException:
        with contextlib.suppress(Exception):
            remove(path)
        raise


def way_out(top: Path, place: Path) -> str:
    """Where a link, say in the commit, leads what is written to this place, if that is outside of `top`."""
    real, real_top = os.path.realpath(place), os.path.realpath(top)
    return "" if os.path.commonpath([real, real_top]) == real_top else real


def disk_full(error: Exception) -> str:
    """The words in which an error, or the output of a command that failed, says that there was no space."""
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    text = f"{error} {getattr(error, 'detail', '')}"
    found = re.search("no space left on device|disk quota exceeded|database or disk is full", text, re.IGNORECASE)
    return found[0] if found else ""


def database_in(place: Path) -> Path | None:
    """The SQLite file that a file is, or that a folder holds."""
    is_folder = place.is_dir() and not place.is_symlink()
    for path in place.rglob("*") if is_folder else [place]:
        with contextlib.suppress(OSError):
            if path.is_file() and not path.is_symlink():
                with open(path, "rb") as file:
                    if file.read(16) == b"SQLite format 3\0":
                        return path
    return None


def identity(path: Path) -> str:
    """What a file holds, or which names a folder, by a digest; of what is very large, size and time. Empty: nothing."""
    try:
        about = path.stat()
        if stat.S_ISDIR(about.st_mode):
            return hashlib.sha256("\0".join(sorted(os.listdir(path))).encode("utf-8", "surrogateescape")).hexdigest()
        if not stat.S_ISREG(about.st_mode):
            return ""
        if about.st_size > 100_000_000:
            return f"{about.st_size} {about.st_mtime_ns}"
        with open(path, "rb") as file:
            found = hashlib.sha256()
            while part := file.read(1_000_000):
                found.update(part)
        return found.hexdigest()
    except OSError:
        return ""


def holding(top: Path, text: str) -> str:
    """A file below `top`, or `top` itself, in which the text occurs, or a link that leads there; empty: none."""
    is_folder = top.is_dir() and not top.is_symlink()
    for path in top.rglob("*") if is_folder else [top]:
        if path.is_symlink():
            found = text in os.readlink(path)
        else:
            found = path.is_file() and path.stat().st_size > 0 and is_in(path, text.encode())
        if found:
            return path.name if path == top else f"{top.name}/{path.relative_to(top)}"
    return ""


def is_in(path: Path, data: bytes) -> bool:
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(data) >= 0


def free_bytes(path: Path) -> int:
    return shutil.disk_usage(path).free


def megabytes(number: int) -> str:
    return f"{number / 1e6:.0f} MB" if number >= 1e7 else f"{number / 1e6:.1f} MB"


def free_space(path: Path) -> str:
    """`12 MB free`, and how many files, where their number is limited."""
    about = os.statvfs(path)
    return f"{megabytes(free_bytes(path))} free" + (f", for {about.f_favail} files" if about.f_files else "")


def parse_variables(text: str, dropped: list[int] | None = None) -> dict[str, str]:
    return dotenv.parse(text, dropped)

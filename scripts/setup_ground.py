"""What setup_machine.py stands on: commands, and files in directories that `deploy` and `app` can write.

Root works there for users whom it must not trust: it follows no link of theirs, waits for nothing that they made,
and what runs as one of them has nothing of root's.
"""

from __future__ import annotations

import contextlib
import grp
import itertools
import os
import pwd
import re
import secrets
import shlex
import stat
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from deployer import log

EXIT_USAGE = 2
EXIT_FAILED = 10
MOST_BYTES = 1_000_000  # of a file that is read here
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class SetupError(Exception):
    """An expected failure: one line for people, or a list below it."""

    code = EXIT_FAILED

    def __init__(self, message: str, lines: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.lines = lines


class UsageError(SetupError):
    """Wrong arguments: nothing was touched."""

    code = EXIT_USAGE


# --- commands ---------------------------------------------------------------------------------


def call(
    *argv: str, user: str = "", stdin: bytes = b"", check: bool = True, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run one command, as another user if named. Raises SetupError with its own words if it fails."""
    command, options = list(argv), {}
    if user:
        command = ["runuser", "-u", user, "--", *argv]
        options = apart(user)
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, timeout=timeout, check=False, **options)
    except FileNotFoundError:
        raise SetupError(f"{command[0]}: not found") from None
    except subprocess.TimeoutExpired:
        raise SetupError(f"{shown(argv)} took longer than {timeout:g} s") from None
    out, err = (stream.decode("utf-8", "replace") for stream in (done.stdout, done.stderr))
    if check and done.returncode != 0:
        raise SetupError(f"{shown(argv)} ended with {done.returncode}: {' '.join((err or out).split())}")
    return subprocess.CompletedProcess(command, done.returncode, out, err)


def apart(user: str) -> dict[str, Any]:
    """For subprocess.run: what runs as another user gets no terminal of root's, into which it could type, no more."""
    env = {"PATH": PATH, "HOME": pwd.getpwnam(user).pw_dir, "USER": user, "LOGNAME": user, "LANG": "C.UTF-8"}
    return {"start_new_session": True, "env": env, "cwd": "/"}


def say(line: str, file: TextIO | None = None) -> None:
    """One line for people. Names in it that others chose cannot steer a terminal, nor begin a line of their own."""
    print(log.printable(re.sub(r"[\x1b\n\r]", lambda match: f"\\x{ord(match[0]):02x}", line)), file=file, flush=True)


def shown(argv: Sequence[str]) -> str:
    """A command in one line, for people; a program among its words is not spelt out."""
    return shlex.join([word if "\n" not in word else "..." for word in argv])


# --- files, also in directories that `deploy` and `app` can write -------------------------------------


@contextlib.contextmanager
def reached(path: Path) -> Iterator[int]:
    """A descriptor (O_PATH) of a file or directory, reached through no link but root's own.

    Root works where `deploy` and `app` can write. A link that they put there, or swap in at the right
    moment, must not lead root elsewhere (say, from shared/media to /etc). Raises SetupError for one, and
    FileNotFoundError or NotADirectoryError.
    """
    descriptor = walk(path)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def walk(path: Path, links: int = 0) -> int:
    here, descriptor = Path("/"), os.open("/", os.O_PATH)
    for part in path.parts[1:]:
        try:
            found = os.open(part, os.O_PATH | os.O_NOFOLLOW, dir_fd=descriptor)
        finally:
            os.close(descriptor)
        about = os.fstat(found)
        if stat.S_ISLNK(about.st_mode):
            target = os.readlink("", dir_fd=found)
            os.close(found)
            if about.st_uid != 0 or links > 20:
                raise SetupError(f"{here / part} is a link to {target} that root did not make: remove it")
            found = walk(Path(os.path.normpath(here / target)), links + 1)
        elif stat.S_ISREG(about.st_mode) and about.st_nlink > 1:
            raise SetupError(f"{here / part} has a second name (a hard link): remove it")
        here, descriptor = here / part, found
    return descriptor


def exists(path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), reached(path):
        return True
    return False


def is_there(path: Path) -> bool:
    """Whether there is anything of that name, a link included, wherever it leads."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), reached(path.parent) as folder:
        os.stat(path.name, dir_fd=folder, follow_symlinks=False)
        return True
    return False


def is_link(path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), reached(path.parent) as folder:
        return stat.S_ISLNK(os.stat(path.name, dir_fd=folder, follow_symlinks=False).st_mode)
    return False


def link_target(path: Path) -> str | None:
    """Where a link leads, whoever made it; None if there is no link of that name."""
    if not is_link(path):
        return None
    with reached(path.parent) as folder:
        return os.readlink(path.name, dir_fd=folder)


def names_in(path: Path, most: int = 1000) -> list[str]:
    """What is in a directory; no more than that many names, as whose directory it is could make millions."""
    with reached(path) as descriptor, os.scandir(f"/proc/self/fd/{descriptor}") as entries:
        return sorted(entry.name for entry in itertools.islice(entries, most))


def read_text(path: Path) -> str | None:
    """The content of a regular file of at most MOST_BYTES; None if there is none of that name. Raises SetupError."""
    try:
        with reached(path) as descriptor:
            check_file(path, os.fstat(descriptor))  # before it is opened: a FIFO would keep that waiting
            with open(f"/proc/self/fd/{descriptor}", "rb") as file:
                data = file.read(MOST_BYTES)
            return data.decode("utf-8", "replace")
    except (FileNotFoundError, NotADirectoryError):
        return None


def check_file(path: Path, about: os.stat_result) -> None:
    """Raises SetupError for what is no regular file, or larger than any that belongs here."""
    if not stat.S_ISREG(about.st_mode):
        raise SetupError(f"{path} is not a regular file: remove it")
    if about.st_size > MOST_BYTES:
        raise SetupError(f"{path} is larger than {MOST_BYTES // 1_000_000} MB, which nothing here needs: remove it")


def replace_file(path: Path, text: str, mode: int, owner: str, group: str) -> None:
    """Give a file this content, mode and owner, at once."""
    temporary = f".{path.name}.{secrets.token_hex(8)}.tmp"  # a new file of a name that nobody can foresee
    with reached(path.parent) as folder:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=folder)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            os.fchown(descriptor, pwd.getpwnam(owner).pw_uid, grp.getgrnam(group).gr_gid)
            os.fchmod(descriptor, mode)
        os.rename(temporary, path.name, src_dir_fd=folder, dst_dir_fd=folder)


def replace_link(path: Path, target: str, owner: str) -> None:
    """Have a link of that name, at once."""
    temporary, about = f".{path.name}.{secrets.token_hex(8)}.tmp", pwd.getpwnam(owner)
    with reached(path.parent) as folder:
        os.symlink(target, temporary, dir_fd=folder)
        os.chown(temporary, about.pw_uid, about.pw_gid, dir_fd=folder, follow_symlinks=False)
        try:
            os.rename(temporary, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        except IsADirectoryError:
            os.unlink(temporary, dir_fd=folder)
            raise SetupError(f"{path} is a directory: remove it") from None


def make_directory(path: Path, mode: int, owner: str, group: str) -> None:
    if not exists(path.parent):
        make_directory(path.parent, 0o755, "root", "root")
    with reached(path.parent) as folder:
        os.mkdir(path.name, 0o700, dir_fd=folder)
    with reached(path) as descriptor:
        place = f"/proc/self/fd/{descriptor}"
        os.chown(place, pwd.getpwnam(owner).pw_uid, grp.getgrnam(group).gr_gid)
        os.chmod(place, mode)


def user_exists(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def members_of(group: str) -> list[str] | None:
    """Who is in a group, beside those whose own it is; None if there is none of that name."""
    try:
        return grp.getgrnam(group).gr_mem
    except KeyError:
        return None

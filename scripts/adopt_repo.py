"""The two repositories that adopt.py stands between: the application's, and this project's with its history."""

from __future__ import annotations

import functools
import os
import re
import stat
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from deployer import config, errors

HERE = Path(__file__).resolve().parent
OURS = HERE.parent
WORKFLOW = ".github/workflows/cd.yml"
FLEET = ".github/workflows/fleet.yml"
IS_OURS = {
    WORKFLOW: "scripts/push_deploy.py",
    FLEET: "scripts/fleet_status.py",
}  # with these words it is this project's
EXAMPLE = OURS / "examples/django"
MOST_BYTES = 2_000_000  # of a file of the application's that is read


def git(folder: Path, *words: str, stdin: bytes = b"") -> bytes:
    """What a git command prints; nothing if it fails. Raises UsageError where there is no git."""
    argv = ["git", "-C", str(folder), "-c", "core.quotePath=off", *words]
    try:
        done = subprocess.run(argv, input=stdin, capture_output=True, timeout=120, check=False)
    except FileNotFoundError:
        raise errors.UsageError("git: not found: apt install git") from None
    return done.stdout if done.returncode == 0 else b""


class Application:
    """An application's repository: its files, as they lie in the working tree."""

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise errors.UsageError(f"{path}: there is no such directory")
        top = os.fsdecode(git(path, "rev-parse", "--show-toplevel")).rstrip("\n")
        if not top and (path / ".git").exists():
            raise errors.UsageError(f"git does not work in {path}: git -C {path} status says why")
        if not top:
            raise errors.UsageError(f"{path} is not in a git repository: git init {path}")
        if Path(top).resolve() != path.resolve():
            inside = path.resolve().relative_to(Path(top).resolve())
            raise errors.UsageError(f"{path} lies in the repository {top}: name that, with --app-dir {inside}")
        self.path = path.resolve()
        self.tracked = frozenset(self.listed("--cached"))
        self.tree = sorted(
            path
            for path in self.listed("--cached", "--others", "--exclude-standard")
            if os.path.lexists(self.path / path)
        )
        self.files = frozenset(self.tree)

    def listed(self, *which: str) -> list[str]:
        """The paths that git knows of."""
        found = git(self.path, "ls-files", "-z", *which)
        return [os.fsdecode(path) for path in dict.fromkeys(found.split(b"\0")) if path]

    def text(self, path: str) -> str:
        """What a file says, as far as that can be told; nothing of what is no regular file."""
        data = self.data(path)
        return "" if data is None else data.decode("utf-8", "replace").replace("\r\n", "\n")

    def data(self, path: str) -> bytes | None:
        """A file's content; None if there is none. Raises UsageError for what is there and no regular file."""
        place = self.path / path
        try:
            about = os.lstat(place)
        except (FileNotFoundError, NotADirectoryError):
            return None
        if not stat.S_ISREG(about.st_mode) or about.st_size > MOST_BYTES:
            return b""
        return place.read_bytes()

    def check_place(self, path: str) -> None:
        """Raises UsageError where nothing can be written: behind a link, or where a folder should be or is."""
        place = self.path
        for part in Path(path).parent.parts:
            place /= part
            if place.is_symlink() or (place.exists() and not place.is_dir()):
                shown = place.relative_to(self.path)
                raise errors.UsageError(f"{shown} must be a folder of the repository, for {path}: move it away first")
        place = self.path / path
        if place.is_symlink() or (place.exists() and not place.is_file()):
            raise errors.UsageError(f"{path} is no regular file: move it away first")

    def is_committed(self, path: str) -> bool:
        """Whether the newest commit has the file as it is."""
        return path in self.tracked and not git(self.path, "status", "--porcelain", "--", path)

    def ignored(self, paths: Sequence[str]) -> list[str]:
        """Those of the paths that `git add` would leave out."""
        asked = b"".join(os.fsencode(path) + b"\0" for path in paths if path not in self.tracked)
        found = git(self.path, "check-ignore", "-z", "--stdin", stdin=asked)
        return [os.fsdecode(path) for path in found.split(b"\0") if path]

    def workflow(self, which: str = WORKFLOW) -> str:
        """Where a workflow of this project's lies, under whatever name; empty if it is not there."""
        found = [path for path in self.tree if re.fullmatch(r"\.github/workflows/[^/]+\.ya?ml", path)]
        ours = [path for path in found if IS_OURS[which] in self.text(path)]
        return min(ours, key=lambda path: (path != which, path), default="")

    def branch(self) -> str:
        """The default branch: origin's, else main or master where there is one, else the one that is checked out."""
        head = git(self.path, "symbolic-ref", "--short", "refs/remotes/origin/HEAD").decode("utf-8", "replace").strip()
        if head.startswith("origin/"):
            return head[len("origin/") :]
        refs = git(self.path, "for-each-ref", "--format=%(refname)").decode("utf-8", "replace").split()
        current = git(self.path, "symbolic-ref", "--short", "HEAD").decode("utf-8", "replace").strip()
        for name in ("main", "master"):
            if current == name or {f"refs/heads/{name}", f"refs/remotes/origin/{name}"} & {*refs}:
                return name
        return current or "main"

    def url(self) -> str:
        """The address of origin, without a password; an example if there is none."""
        found = git(self.path, "remote", "get-url", "origin").decode("utf-8", "replace").strip()
        return re.sub(r"^(https?://)[^/@]*@", r"\1", found) or "git@github.com:you/app.git"


# --- what this project gives, in this version and all before it


def own_files() -> dict[str, str]:
    """What an application gets as it is: path -> text. adopt.py itself needs this checkout, and stays here."""
    folders = [(OURS / "scripts").rglob("*"), (OURS / "systemd").glob("*"), [OURS / WORKFLOW, OURS / FLEET]]
    paths = [path for folder in folders for path in folder if path.suffix != ".pyc" and path.is_file()]
    kept = [path for path in paths if not path.name.startswith("adopt") and "__pycache__" not in path.parts]
    return {str(path.relative_to(OURS)): path.read_text(encoding="utf-8") for path in sorted(kept)}


def mode_of(path: str) -> int:
    """Whether the file is a program, as a file mode."""
    return 0o755 if os.access(OURS / path, os.X_OK) and (OURS / path).is_file() else 0o644


@functools.cache
def history() -> Mapping[str, Sequence[str]]:
    """Every text that this project's versions had for what an application gets, by path.

    Empty without a git history (an archive that was unpacked): then nothing can be told from a person's change.
    """
    where = ["scripts", "systemd", WORKFLOW, FLEET]
    raw = git(OURS, "log", "--all", "--no-renames", "--format=", "--raw", "--no-abbrev", "-z", "--", *where)
    words = raw.split(b"\0")
    ids: dict[str, dict[bytes, None]] = {}
    for about, path in zip(words[::2], words[1::2]):
        for oid in about.split()[2:4]:
            if oid.strip(b"0"):
                ids.setdefault(os.fsdecode(path), {})[oid] = None
    wanted = [oid for found in ids.values() for oid in found]
    texts = blobs(wanted)
    return {path: [texts[oid] for oid in found if oid in texts] for path, found in ids.items() if is_given(path)}


def is_given(path: str) -> bool:
    """Whether a path of this project is one of those that an application gets."""
    return not os.path.basename(path).startswith("adopt") and "/.git" not in path


def blobs(oids: Sequence[bytes]) -> dict[bytes, str]:
    """The texts of objects, by their ids."""
    data = git(OURS, "cat-file", "--batch", stdin=b"\n".join(oids) + b"\n")
    found, at = {}, 0
    while at < len(data):
        line, _, _ = data[at : at + 200].partition(b"\n")
        oid, kind, *size = line.split()
        at += len(line) + 1
        if kind == b"blob":
            found[oid] = data[at : at + int(size[0])].decode("utf-8", "replace")
            at += int(size[0]) + 1
    return found


def read_config(application: Application) -> config.Config:
    """The deploy.ini that the application has, over the defaults. Raises UsageError."""
    return config.parse(application.text("deploy.ini"), "deploy.ini")

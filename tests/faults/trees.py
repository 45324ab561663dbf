"""What a root holds, in a form in which two of them can be compared: names without times, files by content."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

Tree = dict[str, str]  # path -> kind, mode, owner, content
PASSING = re.compile(r"\.pyc$|^\.starting-")
NOT_COMPARED = {"lock", "last.json", "history.jsonl", "left.json", "watch.json", "told"}  # below state/
SLOT = re.compile(r"gunicorn-(blue|green)\.sock")
TIMED_NAME = re.compile(rb"(releases/)\d{8}T\d{6}Z(-[0-9a-f]{12})|(envs/[\w.-]+?-[0-9a-f]{12})-\d{8}T\d{6}Z")
TIME = re.compile(r"-\d{8}T\d{6}Z")
# kept tree -> what tells it from another one of the same named inputs: what its step was seen to read
SEEN: dict[bytes, bytes] = {}
# pip's list of what it installed has the hashes of scripts that hold their own environment's path
SCRIPT_HASH = re.compile(rb"^(\.\./\.\./\.\./bin/[^,]+),.*$", re.MULTILINE)


class Reader:
    """Reads trees; remembers the hash of each file that it has read."""

    def __init__(self) -> None:
        self.hashes: dict[tuple[object, ...], str] = {}

    def tree(self, app: Path) -> Tree:
        """Everything below a root but its mirror, its history, bytecode, times, and which of two slots is which."""
        found = {}
        learn(app)
        for path in walk(app):
            name = timeless(os.path.relpath(path, app).encode()).decode()
            found[name] = self.entry(path, name)
        return {**found, "the slot that serves": slot_that_serves(app)}

    def entry(self, path: str, name: str) -> str:
        about = os.lstat(path)
        owner = f"{stat.S_IMODE(about.st_mode):o} {about.st_uid}:{about.st_gid}"
        if stat.S_ISLNK(about.st_mode):
            return "-> " + SLOT.sub("gunicorn-X.sock", timeless(os.readlink(path).encode()).decode())
        if stat.S_ISDIR(about.st_mode):
            return f"directory {owner}"
        key = (path, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)
        if key not in self.hashes:
            self.hashes[key] = hashlib.sha256(content(path, name)).hexdigest()[:16]
        return f"file {owner} {self.hashes[key]}"


def walk(app: Path) -> Iterator[str]:
    for folder, folders, files in os.walk(app):
        if Path(folder) == app:
            folders[:] = [name for name in folders if name not in ("repo.git", "lost+found", "slots")]
            yield from (os.path.join(folder, name) for name in folders)
        else:
            apart = {"__pycache__"} | ({"drift"} if Path(folder) == app / "state" else set())  # git's index has times
            folders[:] = [name for name in folders if name not in apart]
            yield from (os.path.join(folder, name) for name in folders)
        names = NOT_COMPARED if Path(folder) == app / "state" else set()
        yield from (os.path.join(folder, name) for name in files if name not in names and not PASSING.search(name))


def slot_that_serves(app: Path) -> str:
    """What the slot leads to whose socket the current release leads to: the same release."""
    try:
        slot = SLOT.search(os.readlink(app / "current/.socket"))
        return "-> " + timeless(os.readlink(app / "slots" / (slot[1] if slot else "")).encode()).decode()
    except OSError as error:
        return f"none: {error.strerror}"


def learn(app: Path) -> None:
    for mark in (app / "envs").glob("*/.complete"):
        try:
            seen = json.loads(mark.read_bytes()).get("seen") or {}
        except ValueError:  # a power cut has damaged it
            continue
        digest = hashlib.sha256(TIME.sub("", json.dumps(seen, sort_keys=True)).encode()).hexdigest()[:4]
        SEEN[b"envs/" + mark.parent.name.encode()] = b"-" + digest.encode() if seen else b""


def timeless(data: bytes) -> bytes:
    """Without the times in the names of releases and environments."""
    return TIMED_NAME.sub(lambda match: (match[1] + match[2]) if match[1] else match[3] + SEEN.get(match[0], b""), data)


def content(path: str, name: str) -> bytes:
    data = Path(path).read_bytes()
    if name == "state/state.json":
        state = json.loads(data)
        return json.dumps([state["steps"], sorted(state["bad"])], sort_keys=True).encode()
    if name.endswith("/.release.json"):
        about = json.loads(data)
        environments = [timeless(f"envs/{each}".encode()).decode() for each in about["envs"]]
        return json.dumps([about["commit"], environments, "confirmed" in about]).encode()
    if name.endswith("/.complete"):
        return json.dumps(json.loads(data)["fingerprint"], sort_keys=True).encode()
    return SCRIPT_HASH.sub(rb"\1", timeless(data)) if name.endswith("/RECORD") else timeless(data)


def release_of(tree: Mapping[str, str], commit: str) -> Tree:
    """The part of a tree that a commit's release is made of: its files, and the environments it leads to.

    Without .release.json, which is written again when the release is confirmed.
    """
    top = f"releases/-{commit[:12]}"
    own = {name: what for name, what in tree.items() if f"{name}/".startswith(f"{top}/")}
    used = {f"envs/{match[1]}" for what in own.values() if (match := re.match(r"-> .*?envs/([^/]+)", what))}
    own.update({name: what for name, what in tree.items() if "/".join(name.split("/")[:2]) in used})
    return {name: what for name, what in own.items() if not name.endswith("/.release.json")}


def differences(expected: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """In words, at most ten of them."""
    words = [f"missing: {name}" for name in sorted(set(expected) - set(found))]
    words += [f"too much: {name}" for name in sorted(set(found) - set(expected))]
    words += [
        f"differs: {name}: {expected[name]} became {found[name]}"
        for name in sorted(set(expected) & set(found))
        if expected[name] != found[name]
    ]
    return words if len(words) <= 10 else [*words[:10], f"and {len(words) - 10} more"]

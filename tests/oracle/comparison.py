"""What a release holds, followed through links, and what may differ between two releases of the same commit.

This is the one place that says what may differ; it is meant to be short:

- times and owners of files, and folders without files: git knows none of them, either
- __pycache__ and *.pyc: what Python makes of sources that are compared
- the root, the home of its user, the name of a release, of a kept tree, and of what a step is run in: as paths in files
- hashes and sizes in the RECORD of an installed package, as scripts hold such paths; the order of its lines
- uv_cache.json: the times of files that a package was built from
- .release.json: what the program itself notes about a release
- what lies in shared/: it is the application's; what the application sees of it is compared instead
- in a folder in which files of earlier releases stay (keep_days), those that an earlier release had, as they were there
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

Held = Mapping[str, str]  # path in the release -> what is there, in short

STAMP = r"\d{8}T\d{6}Z"
NAMES = (
    (re.compile(rb"releases/" + STAMP.encode() + rb"-[0-9a-f]{12}"), b"<release>"),
    (re.compile(STAMP.encode() + rb"-[0-9a-f]{12}"), b"<release name>"),
    (re.compile(rb"envs/[A-Za-z0-9_.-]+-[0-9a-f]{12}-" + STAMP.encode()), b"<kept>"),
)


def held(release: Path, root: Path) -> Held:
    """What a release below this root holds."""
    return {path: describe(release / path, path, root) for path in below(release, release, root, frozenset())}


def below(release: Path, folder: Path, root: Path, above: frozenset[str]) -> Iterator[str]:
    """Every file and link, as a path in the release; links that lead to folders below the root are followed."""
    real = os.path.realpath(folder)
    if real in above:
        return  # a link to a folder above it
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        path = Path(entry.path)
        if entry.is_dir() and (not entry.is_symlink() or stays_inside(path, root)):
            if entry.name != "__pycache__":
                yield from below(release, path, root, above | {real})
        elif not entry.name.endswith(".pyc") and path != release / ".release.json":
            yield str(path.relative_to(release))


def stays_inside(path: Path, root: Path) -> bool:
    """Whether a link leads to what deploys have made, and not to shared/ or out of the root."""
    real = Path(os.path.realpath(path))
    return real.is_relative_to(root) and not real.is_relative_to(root / "shared")


def describe(path: Path, name: str, root: Path) -> str:
    """A file's content and whether it may be run, normalised; of a link that is not followed, where it leads."""
    if path.is_symlink() and not (path.is_file() and stays_inside(path, root)):
        to = os.path.normpath(os.path.join(os.path.realpath(path.parent), os.readlink(path)))
        return f"link to {normalise(to.encode(), root).decode()}"
    kind = "program" if path.stat().st_mode & 0o111 else "file"
    data = content(path, root)
    return f"{kind} of {len(data)} bytes, {hashlib.sha256(data).hexdigest()[:12]}"


def content(path: Path, root: Path) -> bytes:
    data = path.read_bytes()
    if path.parent.name.endswith(".dist-info"):
        if path.name == "uv_cache.json":
            return b""
        if path.name == "RECORD":
            data = b"\n".join(sorted(line.rsplit(b",", 2)[0] for line in data.splitlines() if b".pyc" not in line))
    return normalise(data, root)


def normalise(data: bytes, root: Path) -> bytes:
    data = data.replace(str(root).encode(), b"<root>").replace(str(root.parent).encode(), b"<home>")
    for pattern, name in NAMES:
        data = pattern.sub(name, data)
    return data


def difference(incremental: Held, fresh: Held, carried: Collection[tuple[str, str]] = ()) -> list[str]:
    """In which paths two releases differ; carried: what may be there of earlier releases besides."""
    lines = []
    for path in sorted({*incremental, *fresh}):
        here, there = incremental.get(path), fresh.get(path)
        if here != there and (there or (path, here) not in carried):
            lines.append(f"{path}: {here or 'missing'}; a fresh deploy has {there or 'nothing there'}")
    return lines

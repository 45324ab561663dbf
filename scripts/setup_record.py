"""What setup wrote outside of the root, path by path: how it knows its own files from those of others.

installed.json, root's and for everybody to read, says of each file the hash of what was written and of the file of the
repository that it comes from. So it can also be told that a unit was changed, here or there.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import setup_ground as ground

NAME = "installed.json"
SCHEMA = 1
# Where a machine was set up before there were records.
WRITTEN = "# Written by setup_machine.py"

Files = dict[str, dict[str, str]]


def entry(text: str, source: str = "", content: bytes = b"") -> dict[str, str]:
    """What is remembered of a file: its content, and by path, content and git's id what it was made from."""
    about = {"sha256": hashlib.sha256(text.encode()).hexdigest()}
    if source:
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        about |= {"source": source, "source_sha256": hashlib.sha256(content).hexdigest(), "source_blob": blob}
    return about


def read(path: Path) -> dict[str, Any]:
    """The record; empty if there is none. Raises SetupError for one that is not as setup writes it."""
    text = ground.read_text(path)
    if text is None:
        return {}
    try:
        found = json.loads(text)
        if found["schema"] == SCHEMA and all(about["sha256"] for about in found["files"].values()):
            return dict(found)
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise ground.SetupError(f"{path} is not as setup_machine.py writes it: remove it, and run this again")


def shown(app: str, root: Path, user: str, made: Sequence[str], files: Mapping[str, Mapping[str, str]]) -> str:
    """The text of a record."""
    about = {"schema": SCHEMA, "app": app, "root": str(root), "user": user, "users": sorted(made), "files": files}
    return json.dumps(about, indent=1, sort_keys=True) + "\n"


def is_edited(path: Path, files: Files) -> bool:
    """Whether a file that setup wrote is not any more as it wrote it."""
    text = ground.read_text(path)
    return text is not None and entry(text)["sha256"] != files.get(str(path), {}).get("sha256")


def keep_copy(path: Path, folder: Path | None = None) -> Path:
    """A copy beside a file of root's (or in a folder), named by the day; nothing reads it. Returns its path."""
    day = time.strftime("%Y-%m-%d")
    names = [f"{path.name}.{day}", *(f"{path.name}.{day}-{number}" for number in range(2, 100))]
    copy = next(place for name in names if not ground.is_there(place := (folder or path.parent) / name))
    shutil.copy2(path, copy, follow_symlinks=False)
    return copy


def way_back(path: Path, copy: Path, commands: Sequence[str]) -> str:
    """For people: that there was something else, and how to have it back."""
    return f"{path} was not setup's: kept as {copy}; to go back: {' && '.join([f'cp -a {copy} {path}', *commands])}"

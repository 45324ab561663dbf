"""Whether what setup_machine.py has installed as root is still what the release that serves carries: units, programs.

setup_machine.py notes in installed.json what it has made each file from. A deploy can neither write there nor may it;
so that a unit which was changed in the repository and merged is not on this machine yet is told.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deployer import files, host, releases

LIBRARY = Path("/usr/local/lib/deploy-machine")  # root's; of one of several applications, a folder in there
RUN = "run setup_machine.py of that commit"


def warnings(machine: host.Machine, current: releases.Release | None, library: Path = LIBRARY) -> list[str]:
    """A line for what differs; none where setup has left no record."""
    installed = record(machine, library)
    if not current or not installed:
        return []
    names = sorted({Path(path).name for path in differing(current, installed)})
    return [f"{', '.join(names)} differ{'s' * (len(names) == 1)} from the commit's: {RUN}"] if names else []


def record(machine: host.Machine, library: Path) -> dict[str, Any]:
    """What setup says that it has installed, by path; nothing if it has not, or for another root."""
    if not machine.owns_services:
        return {}
    try:
        found = json.loads(files.read_text(library / machine.app / "installed.json"))
        return dict(found["files"]) if found["root"] == str(machine.root) else {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def differing(current: releases.Release, installed: dict[str, Any]) -> Iterator[str]:
    """The installed files that the release has another version of; what it has none of is no concern of it."""
    for path, about in installed.items():
        source = about.get("source") if isinstance(about, dict) else None
        try:
            if isinstance(source, str) and digest(current.path / source) != about.get("source_sha256"):
                yield path
        except OSError:
            continue


def digest(path: Path) -> str:
    return hashlib.sha256(
        files.read_text(path, errors="surrogateescape").encode("utf-8", "surrogateescape")
    ).hexdigest()

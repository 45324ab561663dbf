"""Commands on the host, and where things that outlive a test run are kept."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]


def cache() -> Path:
    """$DEPLOY_MACHINE_CACHE, else ~/.cache/deploy-machine."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("DEPLOY_MACHINE_CACHE") or f"{base}/deploy-machine")


def call(*argv: Any, check: bool = True, timeout: float = 120, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command; with check, AssertionError with its output unless it ends with 0."""
    options.setdefault("stdin", subprocess.DEVNULL) if "input" not in options else None
    command = [str(word) for word in argv]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, **options)
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(command)[:500]} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold an flock on the file while the block runs; yields whether it was got."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True

"""The other tools, pinned: from PyPI into virtual environments in the cache, Capistrano from Debian."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from lab.host import cache, call, locked
from lab.image import npm_packuments, pip_download, say

PINS = {"ansible": "ansible-core==2.19.14", "pyinfra": "pyinfra==3.10.0", "fabric": "fabric==3.2.3"}
CAPISTRANO = "3.17.2"  # Debian 12's

# One more of these becomes a new dependency in each round, so that it is new for every contender.
NEW_PYTHON = """\
    humanize==4.12.3 inflection==0.5.1 toolz==1.0.0 sortedcontainers==2.4.0 tabulate==0.9.0
    more-itertools==10.7.0 cachetools==5.5.2 colorama==0.4.6 iniconfig==2.1.0 pluggy==1.6.0""".split()
NEW_NPM = """\
    nanoid@5.1.5 ms@2.1.3 mitt@3.0.1 clsx@2.1.1 dequal@2.0.3 klona@2.0.6 dset@3.1.4 nanoevents@9.1.0 mri@1.2.0
    kleur@4.1.5""".split()
MOST_ROUNDS = len(NEW_PYTHON)


def made_once(name: str) -> tuple[Path, bool]:
    """A directory in the cache, and whether it still has to be filled."""
    directory = cache() / "bench" / name.replace("/", "-")
    if (directory / ".complete").exists():
        return directory, False
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    return directory, True


def virtual_environment(tool: str) -> Path:
    """The tool's own virtual environment for the runner."""
    with locked(cache() / "bench" / f"{tool}.lock"):
        directory, is_new = made_once(PINS[tool])
        if is_new:
            say(f"installing {PINS[tool]}")
            call(sys.executable, "-m", "venv", directory, timeout=300)
            call(directory / "bin/python", "-m", "pip", "-q", "--disable-pip-version-check", "install", PINS[tool],
                 timeout=600)  # fmt: skip
            (directory / ".complete").touch()
    return directory


def wheels(*pins: str) -> Path:
    """A directory with the wheels of these and what they need, for the machines' Python."""
    with locked(cache() / "bench" / "wheels.lock"):
        directory, is_new = made_once(f"wheels-{'-'.join(pins)}"[:80])
        if is_new:
            say(f"downloading {len(pins)} packages and what they need for the machines")
            pip_download(directory, *pins)
            (directory / ".complete").touch()
    return directory


def npm_packages() -> Path:
    """What a registry serves of the new npm packages."""
    with locked(cache() / "bench" / "npm.lock"):
        directory, is_new = made_once(f"npm-{'-'.join(NEW_NPM)}"[:80])
        if is_new:
            say("downloading the new npm packages")
            npm_packuments(directory, NEW_NPM)
            (directory / ".complete").touch()
    return directory


def capistrano() -> str:
    """The path of `cap`, installed from Debian if need be; raises AssertionError if it cannot be had."""
    if not shutil.which("cap"):
        say("installing Debian's capistrano")
        env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        call("apt-get", "-qq", "update", timeout=300)
        call("apt-get", "-qq", "-y", "install", "--no-install-recommends", "capistrano", timeout=600, env=env)
    path = shutil.which("cap")
    assert path, "Debian's package capistrano has no cap"
    version = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    assert CAPISTRANO in version, f"capistrano {CAPISTRANO} is pinned, this is {version.strip()}"
    return path

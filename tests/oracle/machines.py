"""The repository of an application, and a root with the home of its user: what a sequence happens to."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import django

import preloaded
from oracle import packages, parts
from oracle.packages import Files, Link, Program
from small_app import App

LOCKED: dict[str, str] = {}  # what lock files hold, by what they were made from: Poetry takes a second for one
LOCK_FILES = ("uv.lock", "poetry.lock")


@functools.cache
def interpreters() -> list[str]:
    """Two interpreters of this computer, of different minor versions if there are; one of them if there is one."""
    own = Path(os.path.realpath(sys.executable))
    found: dict[str, str] = {}
    for path in [own, *sorted(own.parents[2].glob("*/bin/python3")), Path("/usr/bin/python3")]:
        test = "import sys, ensurepip, sqlite3, venv; assert sys.version_info >= (3, 9); print(sys.version_info[:2])"
        done = subprocess.run([str(path), "-c", test], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            found.setdefault(done.stdout, os.path.realpath(path))
    return list(found.values())[:2]


class Conditions(NamedTuple):
    """What a release depends on besides its commit: how the machine is."""

    env: tuple[tuple[str, str], ...]  # shared/.env
    roles: tuple[str, ...] = ("frontend",)
    python: int = 0  # which of interpreters()
    stamp: int = 0  # version of the tool `stamp`
    setting: int = 0  # what a file below shared/ says

    def changed_by(self, event: str, number: int) -> Conditions:
        """How it is after this event of a sequence; the number makes it differ from before."""
        env = dict(self.env)
        if event == "flavour":
            env["FLAVOUR"] = f"flavour {number}"
        elif event == "database":
            env["DATABASE"] = f"data/db{number}.sqlite3"
        elif event == "production":
            env["NODE_ENV"] = "production" if env["NODE_ENV"] == "development" else "development"
        roles = ("frontend", "worker") if event == "role" else self.roles
        python = (self.python + 1) % len(interpreters()) if event == "python" else self.python
        stamp, setting = (number if event == name else getattr(self, name) for name in ("stamp", "setting"))
        return Conditions(tuple(env.items()), roles, python, stamp, setting)


def first_conditions(wheels: Path) -> Conditions:
    """Settings of a machine on which no installer needs the network."""
    env = {
        "FLAVOUR": "flavour 0",
        "DATABASE": "data/db.sqlite3",
        "NODE_ENV": "development",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheels),
        "UV_OFFLINE": "1",
        "UV_FIND_LINKS": str(wheels),
        "UV_PYTHON_DOWNLOADS": "never",
        "POETRY_KEYRING_ENABLED": "false",
        "DJANGO": str(Path(django.__file__).parents[1]),
        "NPM_CONFIG_OFFLINE": "true",
        "NPM_CONFIG_UPDATE_NOTIFIER": "false",
    }
    return Conditions(tuple(env.items()))


class Repository:
    """An application of some parts: its commits."""

    def __init__(self, directory: Path, application: list[parts.Part], keep: int) -> None:
        self.app = App(directory)  # for its git
        self.origin, self.application, self.keep = self.app.origin, application, keep
        self.wheels = directory / "wheels"
        packages.write_wheels(self.wheels)
        self.commits: list[str] = []
        self.failing: set[str] = set()  # commits whose last step fails
        self.commit(self.first_files())

    def first_files(self) -> Files:
        files: dict[str, packages.Content] = {"app.py": packages.tool("app.py"), "docs/README": "first\n"}
        files["looks.txt"] = "".join(f"{look}\n" for part in self.application for look in part.looks)
        for part in self.application:
            files |= {**part.files, f"deploy.d/{part.name}.ini": part.ini}
        return files

    def commit(self, files: Files) -> str:
        """Write the files, with the number of this commit in them; lock, compose deploy.ini, and commit."""
        for name, content in {"FAIL": None, **files}.items():
            write(self.origin / self.numbered(name), self.numbered(content) if isinstance(content, str) else content)
        self.compose()
        for part in self.application:
            if part.lock:
                self.lock(part)
        return self.record()

    def record(self) -> str:
        self.app.git("add", "-A")
        self.app.git("commit", "-q", "--allow-empty", "-m", f"commit {len(self.commits)}")
        self.commits.append(self.app.git("rev-parse", "HEAD"))
        if (self.origin / "FAIL").exists():
            self.failing.add(self.commits[-1])
        return self.commits[-1]

    def numbered(self, text: str) -> str:
        return text.replace("{n}", str(len(self.commits) + 1))

    def compose(self) -> None:
        """deploy.ini: what the parts say in deploy.d/, in their order."""
        shared = " ".join({".env": None} | {part.shared: None for part in self.application if part.shared})
        texts = [f"[deploy]\nshared = {shared}\nkeep = {self.keep}\n"]
        texts += [self.numbered((self.origin / f"deploy.d/{part.name}.ini").read_text()) for part in self.application]
        texts.append("[step last]\nwhen = FAIL\nrun = sh -c 'echo it fails; exit 1'\n")
        texts.append("[role frontend]\nslots =\nreload =\nhealth =\n")  # its steps only: there is no systemd here
        write(self.origin / "deploy.ini", "\n".join(text for text in texts if text))

    def lock(self, part: parts.Part) -> None:
        made_from = [path.read_text() for path in sorted(self.origin.rglob("pyproject.toml"))]
        key = json.dumps([part.lock, str(self.wheels) if part.lock[0] == "uv" else "", made_from])
        lock = self.origin / f"{part.lock[0]}.lock"
        if key not in LOCKED:
            env = {"UV_OFFLINE": "1", "UV_FIND_LINKS": str(self.wheels), "POETRY_KEYRING_ENABLED": "false"}
            env |= {"UV_PYTHON": interpreters()[0], "POETRY_VIRTUALENVS_CREATE": "false"}
            subprocess.run(part.lock, cwd=self.origin, env={**os.environ, **env}, check=True, capture_output=True)
            LOCKED[key] = lock.read_text()
        lock.write_text(LOCKED[key])

    def revert_to(self, number: int) -> str:
        """A commit that has the content of an earlier one."""
        self.app.git("rm", "-rqf", "--ignore-unmatch", ".")
        self.app.git("checkout", self.commits[number % len(self.commits)], "--", ".")
        self.app.git("rm", "-qf", "--ignore-unmatch", "FAIL")
        return self.record()


def write(path: Path, content: packages.Content) -> None:
    """Make the file, link or nothing that is to be there, whatever is there now."""
    for parent in path.parents:
        if parent.is_file() or parent.is_symlink():
            parent.unlink()
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    if content is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, Link):
        path.symlink_to(content.to)
        return
    text = content.text if isinstance(content, Program) else content
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(0o755 if isinstance(content, Program) else 0o644)


class Outcome(NamedTuple):
    """What one run of the program left: its exit code, and its result."""

    code: int
    result: Mapping[str, Any]
    log: str

    @property
    def is_good(self) -> bool:
        return self.code == 0

    @property
    def message(self) -> str:
        return str(self.result.get("message") or self.log.strip()[-300:])

    def steps(self, what: str) -> dict[str, str]:
        """The steps that were `ran` or `skipped`, and why."""
        return {step["name"]: step["why"] for step in self.result.get("steps", []) if step["result"] == what}


class Machine:
    """A root, and the home of the user whom it belongs to."""

    def __init__(self, home: Path, repository: Repository) -> None:
        self.home, self.root, self.repository = home, home / "root", repository
        (self.root / "state").mkdir(parents=True)  # so that it is taken for a root, as one with shared/ only is not
        self.written: dict[Path, packages.Content] = {}
        self.bin = home / ".local" / "bin"
        self.bin.mkdir(parents=True)
        for name in ("uv", "poetry"):
            if found := shutil.which(name):
                (self.bin / name).symlink_to(found)

    def set(self, conditions: Conditions) -> None:
        """Bring it into these conditions."""
        self.conditions = conditions
        lines = [f'{name}="{value}"\n' for name, value in conditions.env]
        stamp = packages.tool("stamp.sh").replace("{n}", str(conditions.stamp))
        files: dict[Path, packages.Content] = {
            self.bin / "python": Link(interpreters()[conditions.python]),
            self.bin / "python3": Link(interpreters()[conditions.python]),
            self.bin / "stamp": Program(stamp),
            self.root / "shared/.env": "".join(lines),
            self.root / "shared/settings/value.txt": f"setting {conditions.setting}\n",
        }
        for path, content in files.items():
            if self.written.get(path) != content:  # what nobody has changed keeps its times
                self.written[path] = content
                write(path, content)

    def lose_data(self) -> None:
        """Somebody has put an older state of the database in its place: the one before there was anything in it."""
        for path in (self.root / "shared" / "data").glob("*.sqlite3*"):
            path.unlink()

    def run(self, *arguments: str, patch: str = "") -> Outcome:
        """Run the program; patch: see preloaded.py."""
        roles = [word for role in self.conditions.roles for word in ("--role", role)]
        where = ["--root", str(self.root), "--repo", f"file://{self.repository.origin}", *roles, "--json"]
        env = {"PATH": os.environ["PATH"], "HOME": str(self.home)}
        code, out, err = preloaded.run([*arguments, *where], env, textwrap.dedent(patch))
        return Outcome(code, json.loads(out or "{}"), err)

    @property
    def release(self) -> Path:
        """Where `current` leads to."""
        return (self.root / "current").resolve()

    def revision(self) -> str:
        """The commit that runs; empty if none does."""
        path = self.root / "current" / "REVISION"
        return path.read_text().strip() if path.exists() else ""

    def start(self) -> dict[str, Any]:
        """What the application does when it is started, as its services would: see tools/app.py."""
        current = self.root / "current"
        python = current / ".venv/bin/python" if os.path.lexists(current / ".venv") else self.bin / "python3"
        path = {"PATH": f"{self.bin}:/usr/bin:/bin", "HOME": str(self.home), "PYTHON": str(python)}
        try:
            done = subprocess.run(
                [str(python), "-B", "app.py"], cwd=current, env={**path, **dict(self.conditions.env)},
                capture_output=True, text=True, check=False, timeout=60,
            )  # fmt: skip
        except OSError as error:
            return {"start": f"ERROR {error.strerror}: {error.filename}"}
        if done.returncode:
            return {"start": f"ERROR {done.stderr.strip()[-500:]}"}
        seen: dict[str, Any] = json.loads(done.stdout)
        return seen

    def remove(self) -> None:
        shutil.rmtree(self.home)

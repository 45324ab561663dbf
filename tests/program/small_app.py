"""A real git repository and an empty root: enough to deploy into, without a machine."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import preloaded

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = REPOSITORY / "scripts" / "deploy_machine.py"


@dataclasses.dataclass
class Outcome:
    """What one run of the script left: exit code, the result of --json, and the log."""

    code: int
    result: dict[str, Any]
    log: str

    def ran(self) -> list[str]:
        return [step["name"] for step in self.result["steps"] if step["result"] == "ran"]

    def why(self, name: str) -> str:
        return next(step["why"] for step in self.result["steps"] if step["name"] == name)


class App:
    """An application's repository, and a root to deploy it into."""

    def __init__(self, directory: Path) -> None:
        self.origin = directory / "origin"
        self.root = directory / "root"
        self.root.mkdir(parents=True)
        self.git("init", "-q", "-b", "main", str(self.origin), cwd=directory)

    def git(self, *arguments: str, cwd: Path | None = None) -> str:
        env = {
            **os.environ,
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_AUTHOR_NAME": "dev",
            "GIT_AUTHOR_EMAIL": "dev@example.com",
            "GIT_COMMITTER_NAME": "dev",
            "GIT_COMMITTER_EMAIL": "dev@example.com",
        }
        done = subprocess.run(
            ["git", "-c", "protocol.file.allow=always", *arguments],
            cwd=cwd or self.origin, env=env, check=True, capture_output=True, text=True,
        )  # fmt: skip
        return done.stdout.strip()

    def commit(self, files: dict[str, str | bytes | None], message: str = "change") -> str:
        """Write (or with None remove) files, commit, and return the commit's id."""
        for name, content in files.items():
            path = self.origin / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if content is None:
                path.unlink()
            elif isinstance(content, bytes):
                path.write_bytes(content)
            else:
                path.write_text(textwrap.dedent(content))
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", message)
        return self.git("rev-parse", "HEAD")

    def command(self, *arguments: str) -> list[str]:
        defaults = ["--root", str(self.root), "--repo", f"file://{self.origin}", "--role", "web", "--json"]
        return [sys.executable, str(SCRIPT), *arguments, *defaults]

    def run(self, *arguments: str, env: dict[str, str] | None = None, patch: str = "") -> Outcome:
        """Run the script; patch: see preloaded.py."""
        code, out, err = preloaded.run(self.command(*arguments)[2:], {**self.environment(), **(env or {})}, patch)
        assert "\nTraceback" not in f"\n{err}", err
        assert out.count("\n") <= 1, f"stdout carries one line: {out}"
        return Outcome(code, json.loads(out or "{}"), err)

    def environment(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "HOME": str(self.root.parent), "GIT_ALLOW_PROTOCOL": "file:git:ssh:https"}

    def deploy(self, *arguments: str, expect: int = 0, env: dict[str, str] | None = None) -> Outcome:
        outcome = self.run("deploy", *arguments, env=env)
        assert outcome.code == expect, f"{outcome.code}: {outcome.log}"
        return outcome

    def killed(self, patch: str, *arguments: str) -> None:
        """The same, where the patch makes the script die."""
        done = self.run(*arguments or ("deploy",), patch=patch)
        assert done.code == -signal.SIGKILL, done.log

    @property
    def current(self) -> Path:
        return (self.root / "current").resolve()

    def revision(self) -> str:
        return (self.current / "REVISION").read_text().strip()

    def state(self) -> dict[str, Any]:
        return json.loads((self.root / "state" / "state.json").read_text())

    def kept(self) -> list[str]:
        """The steps of which something is kept, or noted."""
        return sorted(path.name.rsplit("-", 2)[0] for path in (self.root / "envs").iterdir())

    def snapshot(self) -> dict[str, tuple[int, int]]:
        """Every path below releases/ and envs/ with its inode and time of change."""
        found = {}
        for top in ("releases", "envs"):
            for path in sorted((self.root / top).rglob("*")):
                about = path.lstat()
                found[str(path)] = (about.st_ino, about.st_mtime_ns)
        return found


def processes() -> str:
    """The command lines of all that run now."""
    return subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout


def own_version(name: str = "") -> dict[str, str | bytes | None]:
    """The files of this program as an application has them in its repository, maybe under another version's name."""
    scripts = SCRIPT.parent
    paths = [SCRIPT, *scripts.glob("deployer/*.py"), *scripts.glob("deployer/*.ini")]
    files: dict[str, str | bytes | None] = {f"scripts/{path.relative_to(scripts)}": path.read_bytes() for path in paths}
    if name:
        text = (scripts / "deployer/__init__.py").read_text()
        files["scripts/deployer/__init__.py"] = text.replace('VERSION = "0.1.0"', f'VERSION = "{name}"')
    return files


DEPLOY_INI = """\
[deploy]
shared = .env

[step assets]
inputs = src/
provides = out
run = sh -c 'mkdir -p out && cat src/* > out/all && echo built'

[step schema]
inputs = **/*.sql
run = sh -c 'cat *.sql db/*.sql >> "$HOME/schema" 2>/dev/null; true'

[step always]
run = sh -c 'echo $DEPLOY_COMMIT >> "$HOME/always"'

[role web]
[role worker]
services = worker.service
"""

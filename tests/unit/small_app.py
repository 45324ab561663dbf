"""A real git repository and an empty root: enough to deploy into, without a machine."""

from __future__ import annotations

import dataclasses
import json
import os
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

    def command(self, *arguments: str, script: Path | None = None) -> list[str]:
        defaults = ["--root", str(self.root), "--repo", f"file://{self.origin}", "--role", "web", "--json"]
        return [sys.executable, str(script or SCRIPT), *arguments, *defaults]

    def run(self, *arguments: str, env: dict[str, str] | None = None, script: Path | None = None) -> Outcome:
        command, env = self.command(*arguments, script=script), {**self.environment(), **(env or {})}
        if script:
            done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
            code, out, err = done.returncode, done.stdout, done.stderr
        else:
            code, out, err = preloaded.run(command[2:], env)
        assert "\nTraceback" not in f"\n{err}", err
        assert out.count("\n") <= 1, f"stdout carries one line: {out}"
        return Outcome(code, json.loads(out or "{}"), err)

    def environment(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "HOME": str(self.root.parent), "GIT_ALLOW_PROTOCOL": "file:git:ssh:https"}

    def deploy(self, *arguments: str, expect: int = 0, env: dict[str, str] | None = None) -> Outcome:
        outcome = self.run("deploy", *arguments, env=env)
        assert outcome.code == expect, f"{outcome.code}: {outcome.log}"
        return outcome

    @property
    def current(self) -> Path:
        return (self.root / "current").resolve()

    def revision(self) -> str:
        return (self.current / "REVISION").read_text().strip()

    def state(self) -> dict[str, Any]:
        return json.loads((self.root / "state" / "state.json").read_text())

    def snapshot(self) -> dict[str, tuple[int, int]]:
        """Every path below releases/ and envs/ with its inode and time of change."""
        found = {}
        for top in ("releases", "envs"):
            for path in sorted((self.root / top).rglob("*")):
                about = path.lstat()
                found[str(path)] = (about.st_ino, about.st_mtime_ns)
        return found


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

"""What a machine says of itself, and what its timer makes it do."""

from __future__ import annotations

import json
from typing import Any

from lab.machine import Machine

SCRIPT = "/srv/app/bin/deploy_machine.py"


def status(machine: Machine) -> dict[str, Any]:
    return dict(json.loads(machine.run(SCRIPT, "status", "--json", user="deploy").stdout))


def is_bad(machine: Machine, commit: str) -> bool:
    """Whether the machine remembers the commit as bad."""
    return commit in [bad["commit"] for bad in status(machine)["bad_commits"]]


def watch(machine: Machine) -> tuple[int, str]:
    """What deploy-watch.timer does each minute; exit code and log."""
    done = machine.run(SCRIPT, "watch", user="deploy", check=False, timeout=280)
    return done.returncode, done.stdout + done.stderr


def problems_of(machine: Machine, commit: str) -> list[str]:
    """What is wrong with a machine that should run that commit, well and undisturbed."""
    now = status(machine)
    found = {key: now.get(key) for key in ("commit", "healthy", "problem", "interrupted")}
    if (found["commit"], found["healthy"], found["interrupted"]) == (commit, True, False):
        return []
    return [f"afterwards status says {found}, not that {commit[:8]} is well"]

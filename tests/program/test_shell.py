"""The shell shim's own tests, in bats, as part of the one test command."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

SHELL = Path(__file__).resolve().parents[1] / "shell"


def test_bats() -> None:
    bats = Path(os.environ["DEPLOY_MACHINE_NODE_MODULES"], "bats", "bin", "bats")  # set by ./dev test
    done = subprocess.run([bats, str(SHELL)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok 7 " in done.stdout

"""actions/checkout: the event's commit, on a local branch, from the caller's repository."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workflow.commands import Output
from workflow.results import Step
from workflow.state import LegState


def checkout(state: LegState, spec: Mapping[str, Any], step: Step, output: Output) -> None:
    event = state.settings.event
    remote = f"refs/remotes/origin/{event.branch}"
    # Whoever owns the repository that we clone: it is the caller's own.
    _config(state).write_text("[safe]\n\tdirectory = *\n")
    whole = "fetch-depth" in spec["with"]  # it is 0 then: nothing else is supported
    fetch = ["fetch", "-q", "--no-tags", *([] if whole else ["--depth=1"]), "origin"]
    try:
        _git(state, "init", "-q", "-b", event.branch, ".")
        _git(state, "remote", "add", "origin", _url(state.settings.repository))
        if whole:
            _git(state, *fetch, "+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*")
        _git(state, *fetch, f"+{event.sha}:{remote}")
        _git(state, "checkout", "-q", "--force", "-B", event.branch, remote)
        step.outcome = "success"
    except subprocess.CalledProcessError as error:
        step.outcome = "failure"
        output.annotate("error", error.stdout.strip(), by_runner=True)


def _url(repository: str) -> str:
    """A path alone would be cloned with hard links, and without regard to --depth."""
    return f"file://{repository}" if Path(repository).exists() else repository


def _config(state: LegState) -> Path:
    return state.leg.directory / "gitconfig"


def _git(state: LegState, *arguments: str) -> None:
    env = {
        "PATH": os.environ["PATH"],
        "GIT_CONFIG_GLOBAL": str(_config(state)),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
    }
    done = subprocess.run(
        ["git", *arguments], cwd=state.leg.workspace, env=env, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120, check=True,
    )  # fmt: skip
    if done.stdout:
        state.write(done.stdout.rstrip("\n"))

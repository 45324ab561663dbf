"""The environment that a step's process gets: nothing of ours but PATH, and what GitHub's runner sets."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from workflow.state import LegState

ACTOR = "dev"
REPOSITORY = "team/app"


def environment(state: LegState, own: Mapping[str, str], files: Mapping[str, Path]) -> dict[str, str]:
    """`own`: the step's `env`; `files`: what the step may write to, by the variable's name without GITHUB_."""
    return {
        "LANG": "C.UTF-8",
        "PATH": os.environ["PATH"],
        "HOME": str(state.leg.home),
        "CI": "true",
        **own,
        **{f"GITHUB_{name}": value for name, value in _github(state).items()},
        **{f"GITHUB_{name}": str(file) for name, file in files.items()},
        "RUNNER_OS": "Linux",
        "RUNNER_ARCH": "X64",
        "RUNNER_ENVIRONMENT": "github-hosted",
        "RUNNER_TEMP": str(state.leg.temp),
        "RUNNER_TRACKING_ID": state.tracking_id,
    }


def _github(state: LegState) -> dict[str, str]:
    event = state.settings.event
    return {
        "ACTIONS": "true",
        "SERVER_URL": "https://github.com",
        "API_URL": state.settings.api,
        "REPOSITORY": REPOSITORY,
        "REPOSITORY_OWNER": REPOSITORY.partition("/")[0],
        "EVENT_NAME": event.name,
        "SHA": event.sha,
        "REF": f"refs/heads/{event.branch}",
        "REF_NAME": event.branch,
        "REF_TYPE": "branch",
        "ACTOR": ACTOR,
        "TRIGGERING_ACTOR": ACTOR,
        "WORKFLOW": state.run.name,
        "RUN_ID": state.run.id,
        "RUN_NUMBER": "1",
        "RUN_ATTEMPT": "1",
        "JOB": state.leg.job,
        "WORKSPACE": str(state.leg.workspace),
    }

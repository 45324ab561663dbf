"""The webhook of the team's chat: a message that calls nobody and links nowhere, posted within a limit.

Shared by report_deploys.py and fleet_status.py; so is how anybody outside is waited for. The address is a secret: no
message of this module holds it.
"""

from __future__ import annotations

import http.client
import json
import os
import threading
import urllib.request
from collections.abc import Mapping
from typing import Any, Callable

import github

TIMEOUT = 10.0  # seconds for all of it, however slowly it answers
# what chat programs take for a mention or a link
CHAT = {"<": "\u2039", ">": "\u203a", "@": "\uff20", "](": "] (", "://": ": //"}


def chat(text: str, limit: int = 500) -> str:
    """Text from a machine for a chat: no mention, link or markup in it works, be it Slack's, Mattermost's or another's.

    What they give a meaning to is replaced by what looks like it, and all is put into a code span.
    """
    text = " ".join(github.plain(text).split())
    text = text if len(text) <= limit else text[: limit - 3] + "..."
    for mark, harmless in {**CHAT, "`": "'"}.items():
        text = text.replace(mark, harmless)
    return f"`{text}`"


def run_link() -> str:
    """Where GitHub shows this run; nothing outside of one."""
    try:
        return "{GITHUB_SERVER_URL}/{GITHUB_REPOSITORY}/actions/runs/{GITHUB_RUN_ID}".format_map(os.environ)
    except KeyError:
        return ""


def tell(url: str, text: str, more: Mapping[str, Any]) -> str:
    """Post a text, and more for programs; return what went wrong, or nothing."""
    body = json.dumps({"text": text, **more}).encode()
    problem = within(TIMEOUT, lambda: post(url, body))
    return f"the webhook could not be told: {problem}" if problem else ""


def within(limit: float, work: Callable[[], str], late: str = "no answer") -> str:
    """What `work` says that went wrong, or nothing; after so many seconds, that it is late.

    A time-out of urllib's is for each read: an answer that drips would be waited for without end.
    """
    problem = [f"{late} within {limit:g} s"]

    def run() -> None:
        problem[0] = work()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(limit)
    return problem[0]


def post(url: str, body: bytes) -> str:
    headers = {"Content-Type": "application/json", "User-Agent": "deploy-machine"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=TIMEOUT):
            return ""
    except (OSError, ValueError, http.client.HTTPException) as error:
        return f"{type(error).__name__} {getattr(error, 'code', '')}".strip()

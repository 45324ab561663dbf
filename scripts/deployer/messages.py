"""What goes out: messages to the team's webhook, and pings to whoever watches the watchers; neither is waited for long.

Both addresses stand in shared/.env and are secrets: no log has them, nor the words of an error that may.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from deployer import VERSION, errors, files, host, log, run, tools

WEBHOOK_TIMEOUT = 15.0  # seconds for all of it, however slowly it answers
PING_TIMEOUT = 10.0  # the same
# what chat programs take for a mention or a link, which a machine's message must not make
CHAT = {"<": "\u2039", ">": "\u203a", "@": "\uff20", "](": "] (", "://": ": //"}


def post(machine: host.Machine, text: str, results: Sequence[Mapping[str, Any]]) -> None:
    """Tell the webhook, if there is one."""
    if url := address(machine, "DEPLOY_WEBHOOK_URL"):
        body = json.dumps({"text": without_markup(text), "results": results}).encode()
        if problem := ask(machine, url, body, WEBHOOK_TIMEOUT):
            log.warning(f"the webhook could not be told: {problem}")
        else:
            log.info("the webhook was told")


def ping(machine: host.Machine, is_well: bool) -> None:
    """Ask for the ping's address, if there is one; if not all is well, with /fail behind it.

    Whoever waits for pings raises the alarm when none comes, so that nobody here has to.
    """
    url = address(machine, "DEPLOY_PING_URL")
    problem = ask(machine, url if is_well else failing(url), None, PING_TIMEOUT) if url else ""
    if problem:
        log.info(f"the ping did not arrive: {problem}")


def address(machine: host.Machine, name: str) -> str:
    """What shared/.env has under this name."""
    with contextlib.suppress(errors.DeployError):  # which is told where .env itself is needed
        return files.parse_variables(tools.read_env(machine)).get(name, "")
    return ""


def failing(url: str) -> str:
    """`https://ping.example/x/fail?y` for `https://ping.example/x?y`."""
    place, mark, query = url.partition("?")
    return f"{place.rstrip('/')}/fail{mark}{query}"


def ask(machine: host.Machine, url: str, body: bytes | None, limit: float) -> str:
    """What went wrong, or nothing. A time-out of urllib's is for each read: an answer that drips has many."""
    sender = run.Background(lambda: send(machine, url, body))
    sender.join(limit)
    if sender.is_alive():
        return f"it did not end within {limit:g} s"
    return type(sender.error).__name__ if sender.error else ""


def send(machine: host.Machine, url: str, body: bytes | None) -> None:
    import urllib.request  # noqa: PLC0415

    os.environ.update(tools.proxies(machine))  # as urllib looks for them there
    headers = {"User-Agent": f"deploy-machine/{VERSION}", **({"Content-Type": "application/json"} if body else {})}
    urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=10).close()


def without_markup(text: str) -> str:
    """A message in which a chat program finds nobody to call and nothing to click on."""
    for mark, harmless in CHAT.items():
        text = text.replace(mark, harmless)
    return text

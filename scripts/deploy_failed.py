#!/usr/bin/env python3
"""Tell that the deploy at boot has ended without a word of its own: it could not start, crashed, was killed or hung.

    python3 -IS deploy_failed.py ROOT UNIT

deploy-failed.service runs it, as `deploy`, when UNIT has failed. Most failures deploy_machine.py tells itself, and
notes that for this start of the unit in ROOT/state/told; then there is nothing to do here. Otherwise history and
`status` get a result, and the webhook and the ping address of ROOT/shared/.env are told.

It needs nothing of what may have failed: setup_machine.py installs it, root-owned, beside dotenv.py, outside of what
`deploy` can write. It ends with 0 whatever becomes of it: what it could not do stands in the journal.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

HERE = os.path.dirname(os.path.realpath(__file__))
TIME_LIMIT = 25  # seconds, to see what happened
TASK_LIMIT = 10  # seconds, for each of those who are told
SHOWN = 300  # characters of the line that says why
STARTED_BY = (200, 243)  # exit codes that systemd itself gives: see systemd.exec(5)
# as `systemctl show` names it, and as systemd.exec(5) does under "Environment Variables Set ... on Monitored Units"
MONITORED = {"Result": "SERVICE_RESULT", "ExecMainCode": "EXIT_CODE", "ExecMainStatus": "EXIT_STATUS"}
MONITORED |= {"InvocationID": "INVOCATION_ID"}
# why systemd itself could not start it; that it failed is known
COULD_NOT = re.compile(r".*\bFailed (?!with result|to start)")
# as in deployer/messages.py: what chat programs take for a mention or a link
CHAT = {"<": "\u2039", ">": "\u203a", "@": "\uff20", "](": "] (", "://": ": //"}


def main(arguments: Sequence[str]) -> None:
    root, unit = arguments
    signal.signal(signal.SIGALRM, on_alarm)
    signal.alarm(TIME_LIMIT)
    ended = from_systemd(os.environ, unit) or systemctl_show(unit)
    if ended["Result"] == "success":  # it was started again meanwhile, and this start tells its own end
        return
    if ended["InvocationID"] and read(f"{root}/state/told") == ended["InvocationID"]:
        return
    problem = f"the deploy at boot {how(ended)}"
    if said := last_words(ended["InvocationID"]):
        problem += f": {said[:SHOWN]}"
    result = result_of(root, f"{problem}; what was there before serves; see: journalctl -b -u {unit}")
    print(f"{result['outcome']}: {result['message']}")
    for task in (record, ping, tell):
        signal.alarm(TASK_LIMIT)
        try:
            task(root, result)
        except Exception as error:  # the others may still do; no word of an address
            print(f"{task.__name__}: {type(error).__name__}")


def on_alarm(*_: object) -> None:
    raise TimeoutError


def output(*argv: str) -> str:
    """What a command prints; nothing if it cannot."""
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("utf-8", "replace")


def read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(10_000).strip()
    except OSError:
        return ""


def from_systemd(variables: Mapping[str, str], unit: str) -> Mapping[str, str]:
    """What the systemd that started this says of the start that failed; nothing before its version 251.

    It stays true when the unit is started again meanwhile.
    """
    if variables.get("MONITOR_UNIT") != unit or not variables.get("MONITOR_INVOCATION_ID"):
        return {}
    found = {key: variables.get(f"MONITOR_{name}", "") for key, name in MONITORED.items()}
    code, status = found["ExecMainCode"], found["ExecMainStatus"]
    if code != "exited" and status:  # the name of a signal
        found["ExecMainStatus"] = str(int(getattr(signal, f"SIG{status}", 0)))
    return {**found, "ExecMainCode": {"exited": "1", "killed": "2", "dumped": "3"}.get(code, "")}


def systemctl_show(unit: str) -> Mapping[str, str]:
    names = ("Result", "ExecMainCode", "ExecMainStatus", "InvocationID")
    shown = output("systemctl", "show", f"--property={','.join(names)}", "--", unit)
    return {**dict.fromkeys(names, ""), **dict(line.partition("=")[::2] for line in shown.splitlines())}


def how(ended: Mapping[str, str]) -> str:
    """How the unit's process ended, after `the deploy at boot `."""
    result, status = ended["Result"], int(ended["ExecMainStatus"] or 0)
    if result == "timeout":
        return "did not end in time, and was ended"
    if result == "oom-kill":
        return "was killed, as memory was short"
    if ended["ExecMainCode"] in ("2", "3"):  # CLD_KILLED, CLD_DUMPED
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(status).name}"
    if STARTED_BY[0] <= status <= STARTED_BY[1]:
        return f"could not be started ({status}, see systemd.exec(5))"
    if result == "exit-code":
        return f"ended with exit code {status}"
    return f"failed ({result or 'systemd does not answer'})"


def last_words(invocation: str) -> str:
    """The last line that this start of the unit printed; of one that did not start, what systemd says."""
    if not invocation:
        return ""
    journal = ("journalctl", "--quiet", "--output=cat", "--lines=40")
    lines = output(*journal, f"_SYSTEMD_INVOCATION_ID={invocation}").splitlines()
    if not any(line.strip() for line in lines):
        lines = [*filter(COULD_NOT.match, output(*journal, f"INVOCATION_ID={invocation}").splitlines())]
    said = [line.strip() for line in lines if line.strip()]
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069]", "?", said[-1]) if said else ""


def result_of(root: str, message: str) -> dict[str, Any]:
    """A result as those of deploy_machine.py are."""
    ini, commit = read(f"{root}/machine.ini"), read(f"{root}/current/REVISION") or None
    found = dict(re.findall(r"(?m)^(name|roles) *= *(.*?) *(?:;.*)?$", ini))
    with contextlib.suppress(OSError):
        found["release"] = os.path.basename(os.readlink(f"{root}/current"))
    return {
        "schema": 1,
        "machine": found.get("name") or socket.gethostname().partition(".")[0],
        "roles": found.get("roles", "").split(),
        "trigger": "boot",
        "outcome": "failed",
        "commit": commit,
        "wanted": None,
        "previous": commit,
        "release": found.get("release"),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": 0.0,
        "steps": [],
        "services": [],
        "healthy": None,
        "message": message,
    }


def record(root: str, result: Mapping[str, Any]) -> None:
    """For status and history; not while another deploy runs, which leaves a result of its own."""
    state = f"{root}/state"
    with open(f"{state}/lock", "a", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        line = json.dumps(result) + "\n"
        with open(f"{state}/.last.json.failed", "w", encoding="utf-8") as file:
            file.write(line)
        os.replace(file.name, f"{state}/last.json")
        with open(f"{state}/history.jsonl", "a+b") as history:
            if history.tell():
                history.seek(-1, os.SEEK_END)
                line = line if history.read(1) == b"\n" else f"\n{line}"
            history.write(line.encode())


def ping(root: str, _: Mapping[str, Any]) -> None:
    """Whoever waits for pings is told that this boot failed."""
    if url := address(root, "DEPLOY_PING_URL"):
        place, mark, query = url.partition("?")
        ask(f"{place.rstrip('/')}/fail{mark}{query}")


def tell(root: str, result: Mapping[str, Any]) -> None:
    if url := address(root, "DEPLOY_WEBHOOK_URL"):
        text = f"{result['machine']}: failed at boot: {result['message']}"
        for mark, harmless in CHAT.items():
            text = text.replace(mark, harmless)
        ask(url, json.dumps({"text": text, "results": [result]}).encode())
        print("the webhook was told")


def address(root: str, name: str) -> str:
    """What shared/.env has under this name; the proxies that it names are taken for the way there."""
    sys.path += [HERE, f"{HERE}/deployer"]  # installed, and in a checkout
    dotenv = importlib.import_module("dotenv")
    variables: Mapping[str, str] = {}
    with contextlib.suppress(FileNotFoundError):
        variables = dotenv.parse(dotenv.read(f"{root}/shared/.env"))
    proxies = ("http_proxy", "https_proxy", "no_proxy")
    os.environ.update({key: value for key, value in variables.items() if key.lower() in proxies})
    return variables.get(name, "")


def ask(url: str, body: bytes | None = None) -> None:
    headers = {"User-Agent": "deploy-machine", **({"Content-Type": "application/json"} if body else {})}
    urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=10).close()


if __name__ == "__main__":
    main(sys.argv[1:])

"""What machines answer, and what was seen of them before: taken apart, bounded, and kept below $XDG_STATE_HOME.

A machine's answer is text from outside: of it only what is of a known kind and size is used.
"""

from __future__ import annotations

import calendar
import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import github

TIME = "%Y-%m-%dT%H:%M:%SZ"
ENTRIES = 200  # of a machine's history that one answer may tell
KEPT = 1000  # of a machine's history that are kept
STATE_BYTES = 20_000_000  # of the file with what was seen; a larger one is not ours
ANSWERED, OFF, REFUSES, SLOW = "answered", "off", "refuses", "slow"


class Answer(NamedTuple):
    """What a machine says of itself, as far as it is used."""

    commit: str = ""
    since: str = ""  # a time; so are `merged` and `behind_since`
    by: str = ""
    healthy: bool | None = None
    reason: str = ""  # why all is not well
    running: bool = False  # a deploy is going on
    failing: bool = False
    failure: str = ""  # why
    drift: tuple[str, ...] | None = None  # files and units; None: nobody knows
    held: bool = False  # a person went back from the newest commit
    branch: str = ""  # which one it follows
    tip: str = ""  # the branch's newest commit, as this machine fetched it last
    merged: str = ""
    behind: int = 0  # commits
    behind_since: str = ""
    outcome: str = ""  # of the last attempt
    attempted: str = ""  # its time


class Contact(NamedTuple):
    """What came of asking a machine."""

    kind: str  # answered, off (nobody is there), refuses (somebody is, but not for us), slow
    why: str = ""  # it may name a host: only for who has asked
    answer: Answer | None = None
    history: Sequence[Mapping[str, str]] = ()  # of deploys, as the answer tells it
    unhealthy: int = 0  # so many times it said so, of two


def answered(status: Mapping[str, Any]) -> Contact:
    """A machine's status: taken apart where it arrives, and nothing else of it is kept."""
    return Contact(ANSWERED, "", read_answer(status), read_history(status))


def read_answer(status: Mapping[str, Any]) -> Answer:
    """A machine's status, whatever it is."""
    last, failure = table(status, "last"), table(status, "last_failure")
    tip, drift = table(status, "tip"), status.get("drift")
    healthy, behind = status.get("healthy"), tip.get("behind")
    names = (
        [words(one.get("name"), 200) for one in drift[:50] if isinstance(one, dict)]
        if isinstance(drift, list)
        else None
    )
    return Answer(
        commit=commit_of(status),
        since=time_of(status.get("activated") or status.get("since")),
        by=words(status.get("trigger"), 8),
        healthy=healthy if isinstance(healthy, bool) else None,
        reason=words(status.get("reason") or status.get("problem"), 60),
        running=bool(table(status, "running")),
        failing=status.get("failing") is True,
        failure=words(failure.get("reason") or failure.get("message"), 60),
        drift=None if names is None else tuple(names),
        held=tip.get("held") is True,
        branch=words(tip.get("branch"), 40),
        tip=commit_of(tip),
        merged=time_of(tip.get("merged")),
        behind=behind if isinstance(behind, int) and 0 <= behind < 1_000_000 else 0,
        behind_since=time_of(tip.get("since")),
        outcome=words(last.get("outcome"), 30),
        attempted=time_of(last.get("started")),
    )


def read_history(status: Mapping[str, Any], most: int = ENTRIES) -> list[dict[str, str]]:
    """The attempts that a status tells of."""
    found = status.get("history")
    entries = [entry for entry in found[-most:] if isinstance(entry, dict)] if isinstance(found, list) else []
    kept = [
        {
            "started": time_of(entry.get("started")),
            "trigger": words(entry.get("trigger"), 8),
            "outcome": words(entry.get("outcome"), 30),
            "commit": commit_of(entry),
            "reason": words(entry.get("reason"), 60),
        }
        for entry in entries
    ]
    return [entry for entry in kept if entry["started"]]


def table(value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = value.get(key)
    return found if isinstance(found, dict) else {}


def words(value: Any, most: int) -> str:
    """One line of text that a terminal may be given."""
    text = github.plain(value[: 10 * most]) if isinstance(value, str) else ""
    text = "".join(char if char.isprintable() else "?" for char in " ".join(text.split()))
    return text if len(text) <= most else text[: most - 3] + "..."


def commit_of(value: Mapping[str, Any]) -> str:
    found = value.get("commit")
    return found if isinstance(found, str) and re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", found) else ""


def time_of(value: Any) -> str:
    return value if isinstance(value, str) and seconds_of(value) else ""


def seconds_of(text: str) -> float:
    """A time as it is written everywhere, in seconds since 1970; 0: it is none."""
    if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}Z", text, re.ASCII):
        with contextlib.suppress(ValueError, OverflowError):
            return float(calendar.timegm(time.strptime(text, TIME)))
    return 0.0


def as_time(moment: float) -> str:
    return time.strftime(TIME, time.gmtime(moment))


# --- what was seen before


class Known(NamedTuple):
    """What is known of a machine from earlier questions."""

    answer: Answer | None = None  # its last one
    answered: str = ""  # when
    asked: str = ""  # when it was asked for the first time
    looked: str = ""  # when it was asked last
    unhealthy: bool = False  # its last answer said so
    since: Mapping[str, Sequence[str]] = {}  # question -> the state that answers it, and since when
    history: Sequence[Mapping[str, str]] = ()
    alerts: Mapping[str, Sequence[Any]] = {}  # state -> what was told of it: see fleet_alerts.py
    alerted: str = ""  # which look, by its time, was the last that may have told something


class Memory(NamedTuple):
    machines: dict[str, Known]
    tip: tuple[str, str] = ("", "")  # the branch's newest commit, and when it was merged


def place_of(inventory: Path) -> Path:
    """Where what was seen of these machines is kept: each inventory has a file of its own."""
    home = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local/state")
    name = hashlib.sha256(str(inventory.resolve()).encode()).hexdigest()[:12]
    return Path(home) / "deploy-machine" / f"fleet-{name}.json"


def load(path: Path) -> Memory:
    """What was seen before; nothing, if the file is not there or is damaged."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return read_memory(file.read(STATE_BYTES)) or Memory({})
    except OSError:
        return Memory({})


def read_memory(text: str) -> Memory | None:
    """What was kept as JSON; None if it is something else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or value.get("schema") != github.SCHEMA:
        return None
    if not isinstance(value.get("machines"), dict):
        return None
    tip = value.get("tip")
    known = {name: read_known(about) for name, about in value["machines"].items() if isinstance(about, dict)}
    if not isinstance(tip, list) or len(tip) != 2:
        return Memory(known)
    return Memory(known, (commit_of({"commit": tip[0]}), time_of(tip[1])))


def read_known(value: Mapping[str, Any]) -> Known:
    since = {
        question: [words(found[0], 10), time_of(found[1])]
        for question, found in table(value, "since").items()
        if isinstance(found, list) and len(found) == 2
    }
    return Known(
        answer=restored(table(value, "answer")) if table(value, "answer") else None,
        answered=time_of(value.get("answered")),
        asked=time_of(value.get("asked")),
        looked=time_of(value.get("looked")),
        unhealthy=value.get("unhealthy") is True,
        since=since,
        history=read_history(value, KEPT),
        alerts={state: found for state, found in table(value, "alerts").items() if isinstance(found, list)},
        alerted=time_of(value.get("alerted")),
    )


def restored(value: Mapping[str, Any]) -> Answer:
    """An answer as it was kept."""
    found: dict[str, Any] = {}
    for name, default in Answer._field_defaults.items():
        got = value.get(name)
        if name == "drift":
            found[name] = tuple(words(one, 200) for one in got[:50]) if isinstance(got, list) else None
        elif name == "healthy":
            found[name] = got if isinstance(got, bool) else None
        else:
            found[name] = got if type(got) is type(default) else default
        if isinstance(found[name], str):
            found[name] = words(found[name], 200)
    return Answer(**found)


def store(path: Path, memory: Memory) -> None:
    """Replace the file at once. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        json.dump(as_json(memory), file)
    os.replace(temporary, path)


def as_json(memory: Memory) -> dict[str, Any]:
    machines = {
        name: {**known._asdict(), "answer": known.answer._asdict() if known.answer else None}
        for name, known in memory.machines.items()
    }
    return {"schema": github.SCHEMA, "tip": list(memory.tip), "machines": machines}


def merged(old: Sequence[Mapping[str, str]], new: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """Two histories of one machine, without what both have; what only one of them tells of an attempt stays."""
    found: dict[tuple[str, str], Mapping[str, str]] = {}
    for entry in [*old, *new]:
        key = (entry["started"], entry["outcome"])
        found[key] = {**entry, "reason": entry["reason"] or found.get(key, entry)["reason"]}
    return [found[key] for key in sorted(found)][-KEPT:]


def both(one: Memory, other: Memory) -> Memory:
    """Two memories: of each machine what was seen last, and both histories. Of two that are as new, `one` counts."""
    machines = {**other.machines, **one.machines}
    for name in {*one.machines} & {*other.machines}:
        newer, older = one.machines[name], other.machines[name]
        if older.looked > newer.looked:
            newer, older = older, newer
        history = merged(older.history, newer.history)
        asked = min(filter(None, [newer.asked, older.asked]), default="")
        fresh = newer if newer.answered >= older.answered else older
        teller = newer if newer.alerted >= older.alerted else older  # who looks without --alert tells nobody
        machines[name] = newer._replace(
            history=history, asked=asked, answer=fresh.answer, answered=fresh.answered, unhealthy=fresh.unhealthy,
            alerts=teller.alerts, alerted=teller.alerted,
        )  # fmt: skip
    return Memory(machines, max(one.tip, other.tip, key=lambda tip: seconds_of(tip[1])))

"""Fifty machines that are none: an `ssh` that asks nobody, and how many connections it had at the same time."""

from __future__ import annotations

import contextlib
import itertools
import math
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# What a machine does is the name of its user; when its connections begin and end is noted.
SSH = """#!/bin/sh
say() { echo "$$ $1 $(date +%s%N)" >>"$HOME/connections"; }
all="$*"
log="${all#* -E }"
log="${log%% *}"
case "$all" in
*" -l on "*) say +on; echo "${SAID:-it works}" >&2; sleep 0.3; cat "$HOME/answer"; say -on ;;
*" -l busy "*) say +busy; sleep 0.3; say -busy; echo "deploy-machine is let in"; sleep 2.5; cat "$HOME/answer" ;;
*" -l slow "*) say +slow; exec sleep 30 ;;
*" -l refuses "*) say +refuses; echo "x@y: Permission denied (publickey)." >>"$log"; say -refuses; exit 255 ;;
*" -l closed "*) echo "connect to host x port 1: Connection refused" >>"$log"; exit 255 ;;
*) say +off; exec sleep 30 ;;
esac
"""
# Of those that would take all places there are more than places, and they come first. A busy one lets in at once, and
# needs seconds for its answer: only until it lets in its connection counts.
KINDS = ["off"] * 9 + ["slow"] * 9 + ["refuses"] * 3 + ["closed"] * 3 + ["busy"] * 20 + ["on"] * 6
NAMES = [f"{kind}-{number}" for number, kind in enumerate(KINDS)]


def kind_of(name: str) -> str:
    return name.partition("-")[0]


def install(home: Path, answer: str) -> None:
    """Put that `ssh` into HOME/bin, and what those that are on answer beside it."""
    (home / "bin/ssh").write_text(SSH)
    (home / "bin/ssh").chmod(0o755)
    (home / "answer").write_text(answer + "\n")


@contextlib.contextmanager
def silent() -> Iterator[socket.socket]:
    """A server at which nobody takes a connection, as of a machine that is off: the queue in front of it is full."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server, socket.create_connection(server.getsockname()):
        yield server


def nobody() -> str:
    """An address at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


@contextlib.contextmanager
def places(busy: str = "busy") -> Iterator[dict[str, str]]:
    """The environment that says where each of the fifty is. busy: what those do that are busy."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as there, silent() as off:
        hosts = {kind: f"127.0.0.1:{there.getsockname()[1]}" for kind in KINDS}
        hosts |= {"off": f"127.0.0.1:{off.getsockname()[1]}", "closed": nobody()}
        env = {}
        for name in NAMES:
            prefix, kind = name.upper().replace("-", "_"), kind_of(name)
            env |= {f"{prefix}_HOST": hosts[kind], f"{prefix}_USER": busy if kind == "busy" else kind}
        yield env


class Connection(NamedTuple):
    kind: str
    begin: float
    end: float  # infinite where it was ended from here


def connections(home: Path) -> list[Connection]:
    """All that were begun."""
    lines = [line.split() for line in (home / "connections").read_text().splitlines()]
    ends = {process: int(when) / 1e9 for process, what, when in lines if what[0] == "-"}
    begun = [(process, what, int(when) / 1e9) for process, what, when in lines if what[0] == "+"]
    return [Connection(what[1:], when, ends.get(process, math.inf)) for process, what, when in begun]


def most_at_once(found: list[Connection], hold: float = math.inf) -> int:
    """How many there were at most, if each counts for `hold` seconds at most."""
    steps = [(one.begin, 1) for one in found] + [(min(one.end, one.begin + hold), -1) for one in found]
    return max(itertools.accumulate(step for _, step in sorted(steps)))

#!/usr/bin/env python3
"""From a laptop, or a runner of your own: deploy to all machines of machines.ini over ssh, and report as CI does.

Each machine is pushed to as push_deploy.py does it, eight at once and each begun a little after the one before; each
line of a machine's log begins with its name. Whoever is off takes no place from the others. Then comes what
report_deploys.py does in a workflow: a line for each machine, the webhook and GitHub's pages if the environment names
them, and the verdict as exit code:

  0  every machine that answered runs the commit (or something newer); others are offline
  1  a machine that answered does not; also after Ctrl-C, which ends all connections: what has begun on a machine ends
     there by itself
  2  usage error: nothing was begun

Which machines there are, and with which roles, says machines.ini; where they are says the environment, as for
fleet_status.py: NAME_HOST and NAME_USER, e.g. FRONTEND_HOST; DEPLOY_SSH_KEY, the private key; DEPLOY_KNOWN_HOSTS, the
machines' host keys, which are always checked.

It needs Python 3.9 or newer, OpenSSH's client and the other scripts beside it.
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 9):
    sys.stderr.write(
        "push_all.py needs Python 3.9 or newer, but %s is %d.%d: install a newer python3\n"
        % (sys.executable, sys.version_info[0], sys.version_info[1])
    )
    raise SystemExit(2)

import argparse
import contextlib
import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import fleet_inventory
import github
import places
import push_deploy
import report_deploys
import scout
from deployer import errors
from fleet_states import Machine

MOST_AT_ONCE = 100
ENDING = 20.0  # seconds that the connections have to end after Ctrl-C


class Marked(github.Console):
    """A machine's part of the log: no line of it is a command of GitHub's, as each begins with the machine's name."""

    def __init__(self, name: str, width: int) -> None:
        super().__init__()
        self.is_github = False
        self.own, self.mark = f"{name}: ", name.ljust(width)

    def say(self, line: str) -> None:
        text = line.removeprefix(self.own).replace("##[", "## [")  # that works anywhere in a line
        print(f"{self.mark} | {text}\n", end="", flush=True)


class Deploy(threading.Thread):
    """One machine, from its turn to its result."""

    def __init__(self, push: push_deploy.Push, target: push_deploy.Target, room: places.Places, looks: bool) -> None:
        super().__init__(daemon=True)
        self.push, self.target, self.room = push, target, room
        self.looks = looks  # whether anybody is there: who is not takes no place from others
        self.result = push.own_result("failed", "the run was cancelled before its turn")

    def run(self) -> None:
        if self.looks and not self.is_there():
            why = f"it does not answer: nobody took a connection within {scout.WITHIN:g} s"
            self.result = self.push.own_result("offline", why)
            return
        with self.room.one():
            if not self.push.is_cancelled.is_set():
                self.result = github.fitted(self.push.run())
                self.push.console.say(": ".join(push_deploy.in_words(self.result)))

    def is_there(self) -> bool:
        until = time.monotonic() + scout.WITHIN
        return scout.is_there(self.target.host, self.target.port, until, self.push.is_cancelled)


def push_options(machine: Machine, options: argparse.Namespace) -> argparse.Namespace:
    """What push_deploy.py would be told of the machine. Raises UsageError."""
    where = f"{options.inventory}: [{machine.name}] roles"
    if not machine.roles:
        raise errors.UsageError(f"{where}: none; write those of its machine.ini there, as in `roles = frontend`")
    words = ["--machine", machine.name, "--root", options.root]
    words += [f"--role={role}" for role in machine.roles]
    words += [f"--contains={options.contains}"] if options.contains else []
    words += [f"--commit={options.commit}"] if options.commit else []
    words += ["--full"] if options.full else []
    words += [f"--ssh-option={option}" for option in options.ssh_option or []]
    try:
        return push_deploy.make_parser().parse_args(words)
    except errors.UsageError as error:
        raise errors.UsageError(f"{where}: {error}") from None


def push_all(machines: Sequence[Machine], options: argparse.Namespace) -> dict[str, Mapping[str, Any]]:
    """The result of each machine. Raises UsageError before anything was begun."""
    targets = fleet_inventory.targets(machines, options)
    key = fleet_inventory.text_of("DEPLOY_SSH_KEY", options.key, "--key")
    known_hosts = fleet_inventory.text_of("DEPLOY_KNOWN_HOSTS", options.known_hosts, "--known-hosts")
    told = {machine.name: push_options(machine, options) for machine in machines}
    room, width = places.Places(options.at_once), max(len(machine.name) for machine in machines)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="push-all-")))
        try:
            env = stack.enter_context(push_deploy.Agent(folder, key))
            push_deploy.packed_version()  # once, not by each machine's thread
        except push_deploy.PushError as error:
            raise errors.UsageError(str(error)) from None
        deploys = {}
        for name, about in told.items():
            (folder / name).mkdir()
            ssh = push_deploy.Ssh(targets[name], folder / name, known_hosts, env, about)
            push = push_deploy.Push(about, Marked(name, width), ssh)
            looks = ssh.is_direct and len(machines) > options.at_once
            deploys[name] = Deploy(push, targets[name], room, looks)
        follow(list(deploys.values()))
        return {name: deploy.result for name, deploy in deploys.items()}


def follow(deploys: Sequence[Deploy]) -> None:
    """Begin one after the other, and wait for all; if that is cancelled, end them."""
    try:
        for deploy in deploys:
            deploy.start()
            time.sleep(places.APART)
        for deploy in deploys:
            deploy.join()
    except push_deploy.Cancelled:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        print("cancelled: the connections are ended; what has begun on a machine ends there by itself", flush=True)
        deadline = time.monotonic() + ENDING
        while (alive := [deploy for deploy in deploys if deploy.is_alive()]) and time.monotonic() < deadline:
            for deploy in alive:
                deploy.push.cancel()
            alive[0].join(0.1)


def number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 4 and 1 <= int(text) <= MOST_AT_ONCE):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number between 1 and {MOST_AT_ONCE}")
    return int(text)


def make_parser() -> argparse.ArgumentParser:
    parser = github.Parser(
        prog="push_all.py",
        allow_abbrev=False,
        description="Deploy to all machines of machines.ini over ssh, a few at once; report as CI does.",
        epilog="exit codes: 0 each machine that answered runs the commit; 1 one does not; 2 usage",
    )
    fleet_inventory.add_options(parser)
    add = parser.add_argument
    sha = github.checked(r"[0-9a-fA-F]{4,64}", "a commit id")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--contains", type=sha, metavar="SHA", help="deploy the newest commit, which must contain this")
    which.add_argument("--commit", type=sha, metavar="SHA", help="deploy exactly this commit")
    add("--full", action="store_true", help="run every step, whatever its inputs say")
    add("--at-once", type=number, default=places.AT_ONCE, metavar="N", help=f"default: {places.AT_ONCE}")
    return parser


def main_inner(arguments: Sequence[str]) -> int:
    """Return the verdict. Raises errors.UsageError."""
    options = make_parser().parse_args(arguments)
    machines = fleet_inventory.chosen(fleet_inventory.read(Path(options.inventory)), options.machine)
    if not machines:
        raise errors.UsageError(f"{options.inventory}: has no machine")
    results = {name: github.packed(result).hex() for name, result in push_all(machines, options).items()}
    found = report_deploys.read_machines(list(results), {"DEPLOY_RESULTS": json.dumps(results)})
    return report_deploys.tell(found, annotates=os.environ.get("GITHUB_ACTIONS") == "true")


def main() -> NoReturn:
    signal.signal(signal.SIGTERM, push_deploy.cancel)
    signal.signal(signal.SIGINT, push_deploy.cancel)
    try:
        sys.exit(main_inner(sys.argv[1:]))
    except errors.UsageError as error:
        print(f"push_all.py: {error}", file=sys.stderr)
        sys.exit(errors.EXIT_USAGE)
    except push_deploy.Cancelled:  # before anything was begun
        sys.exit(130)


if __name__ == "__main__":
    main()

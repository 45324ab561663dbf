#!/usr/bin/env python3
"""Anywhere: what runs on which machine, since when, how far behind; also of machines that are off.

Asks all machines at the same time over ssh, of which eight at most wait to be let in; answers within ten seconds. What
it saw last is kept below $XDG_STATE_HOME, so that a machine that is off is shown as it was, with `?` and how long ago
that is. Which machines there are says machines.ini:

    [frontend]
    roles = frontend
    on = at-times          ; or always, which is what counts if nothing is said: then silence is a fault
    silent_days = 14       ; a machine that is on at times is to have answered within so many days
    behind_minutes = 30    ; so long after a merge it may run what was there before

Where they are is no part of that file. From the environment, as in push_deploy.py: NAME_HOST (`host`, `host:port` or
`[v6]:port`) and NAME_USER, e.g. FRONTEND_HOST; DEPLOY_SSH_KEY, the private key; DEPLOY_KNOWN_HOSTS, the machines' host
keys, which are always checked. CI's restricted key is enough.

With --record it is also kept for everybody, in the branch deploy-status of origin: a page to read, and the history of
each machine. In a workflow the job that may ask does not write, and the one that writes knows no machine: the first one
leaves what it has seen in $GITHUB_OUTPUT (--hand-over), the other finds it in $NAME_SEEN. DEPLOY_STATUS_PRIVATE=true
says that whoever can read the repository may read what a failure says; GITHUB_TOKEN is what a workflow may push with.

With --alert the team is told by the webhook $DEPLOY_WEBHOOK_URL what somebody must act on: a state that two of three
looks have seen, again after a day and then weekly, and when it is over. With --issue one issue of the repository says
it, too ($GITHUB_TOKEN with `issues: write`, $GITHUB_REPOSITORY, $GITHUB_API_URL).

Exit codes: 0 all is well; 1 somebody must act (a state in capitals), nobody answered, there is no machine, or what was
seen could not be recorded; 2 usage.

It needs Python 3.9 or newer, OpenSSH's client and, beside it, fleet_*.py, push_deploy.py, scout.py, places.py,
deployments.py, github*.py, webhook.py and deployer/; and git, for --record.
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 9):
    sys.stderr.write(
        "fleet_status.py needs Python 3.9 or newer, but %s is %d.%d: install a newer python3\n"
        % (sys.executable, sys.version_info[0], sys.version_info[1])
    )
    raise SystemExit(2)

import argparse
import contextlib
import json
import os
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import deployments
import fleet_answers
import fleet_handover
import fleet_inventory
import fleet_look
import fleet_page
import fleet_states
import fleet_table
import fleet_tell
import github
import places
import push_deploy
import scout
from deployer import errors
from fleet_answers import OFF, REFUSES, SLOW, Contact, Memory
from fleet_handover import Seen
from fleet_states import Machine, View

CONNECT_TIMEOUT = 3.0  # seconds
WITHIN = 5.0  # seconds that a machine has to look at itself
CUT_OFF = 7.0  # seconds after which no answer is waited for
HANDSHAKE = 1.5  # seconds after which a connection that is not let in keeps no other one from beginning
SHORTEST = 1.0  # seconds in which there can be an answer: with less left, nobody is asked
PAUSE = 1.0  # seconds before one that is unhealthy is asked again


# --- asking


class Question(threading.Thread):
    """One machine, asked until a deadline; `contact` is what came of it."""

    def __init__(
        self, name: str, ssh: push_deploy.Ssh, root: str, since: str, deadline: float, room: places.Places, looks: bool
    ) -> None:
        super().__init__(daemon=True)
        self.machine, self.ssh, self.root, self.since, self.deadline = name, ssh, root, since, deadline
        self.room = room  # for beginning a connection
        self.looks = looks and ssh.is_direct  # whether anybody is there: who is not takes no place from others
        self.contact = Contact(SLOW, f"it did not answer within {CUT_OFF:g} s")

    def run(self) -> None:
        target, until = self.ssh.target, time.monotonic() + CONNECT_TIMEOUT
        if self.looks and not scout.is_there(target.host, target.port, until):
            self.contact = Contact(OFF, f"it does not answer: nobody took a connection within {CONNECT_TIMEOUT:g} s")
            return
        contact = self.ask()
        if contact.kind == REFUSES and "--within" in contact.why:
            contact = self.ask(is_old=True)
        if is_unhealthy(contact):
            contact = contact._replace(unhealthy=1)
            self.contact = contact
            if self.left() > PAUSE + 1.5:
                time.sleep(PAUSE)
                again = self.ask()
                if again.answer:
                    contact = again._replace(unhealthy=2 if is_unhealthy(again) else 0)
        self.contact = contact

    def left(self) -> float:
        return self.deadline - time.monotonic()

    def ask(self, is_old: bool = False) -> Contact:
        """Ask for the status; is_old: in the words of a version that knows no limit of time."""
        with self.room.one(self.deadline - SHORTEST) as leave:
            if not leave:
                return Contact(SLOW, f"others were asked until {CUT_OFF:g} s were over")
            self.ssh.on_login = leave
            within = ["--since", self.since, "--within", f"{min(WITHIN, max(1.0, round(self.left() - 1, 1))):g}"]
            script = f"{self.root}/bin/deploy_machine.py"
            command = ["python3", script, "status", "--json", "--root", self.root, *([] if is_old else within)]
            return contact_of(self.ssh.run(command, None, lambda line: None, max(0.5, self.left())), self.ssh.secret)


def contact_of(evidence: push_deploy.Evidence, secret: str) -> Contact:
    """What an ssh connection means."""
    status = evidence.result
    if status is not None:
        if isinstance(status.get("machine"), str) and "commit" in status:
            return fleet_answers.answered(status)
        return Contact(REFUSES, "its answer is of another kind than this script knows")
    if evidence.is_stalled:
        return Contact(SLOW, f"it did not answer within {CUT_OFF:g} s")
    kind, message = push_deploy.classify(evidence, secret)
    return Contact(OFF if kind == "offline" else REFUSES, fleet_answers.words(message, 200))


def is_unhealthy(contact: Contact) -> bool:
    return contact.answer is not None and contact.answer.healthy is False


def ask_all(machines: Sequence[Machine], memory: Memory, options: argparse.Namespace) -> dict[str, Seen]:
    """Ask all machines at the same time. Raises UsageError."""
    began = time.time()
    targets = fleet_inventory.targets(machines, options)
    key = fleet_inventory.text_of("DEPLOY_SSH_KEY", options.key, "--key")
    known_hosts = fleet_inventory.text_of("DEPLOY_KNOWN_HOSTS", options.known_hosts, "--known-hosts")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fleet-status-")))
        try:
            env = stack.enter_context(push_deploy.Agent(folder, key))
        except push_deploy.PushError as error:
            raise errors.UsageError(str(error)) from None
        room = places.Places(hold=HANDSHAKE)
        deadline, questions = time.monotonic() + CUT_OFF, list[Question]()
        stack.callback(end, questions)
        for machine in machines:
            own = folder / machine.name
            own.mkdir()
            about = argparse.Namespace(
                machine=machine.name, connect_timeout=CONNECT_TIMEOUT, ssh_option=options.ssh_option
            )
            ssh = push_deploy.Ssh(targets[machine.name], own, known_hosts, env, about)
            since, looks = cursor(memory, machine), len(machines) > room.number
            questions.append(Question(machine.name, ssh, options.root, since, deadline, room, looks))
            questions[-1].start()
            time.sleep(places.APART)
        for question in questions:
            question.join(max(0.0, deadline + 0.5 - time.monotonic()))
        found = {question.machine: question.contact for question in questions}
    if options.record or options.hand_over or options.alert:  # others read it: no host, no user
        found = {
            name: fleet_handover.hidden(one, [targets[name].host, targets[name].user]) for name, one in found.items()
        }
    return {name: Seen(began, contact) for name, contact in found.items()}


def end(questions: Sequence[Question]) -> None:
    """End all connections; what a thread still reads is there until it has."""
    for question in questions:
        question.ssh.end()
    until = time.monotonic() + 0.5
    for question in questions:
        if question.is_alive():
            question.join(max(0.0, until - time.monotonic()))


def cursor(memory: Memory, machine: Machine) -> str:
    """From when on a machine's history is not known yet."""
    history = memory.machines[machine.name].history if machine.name in memory.machines else ()
    return max((entry["started"] for entry in history), default="2000-01-01T00:00:00Z")


# --- from one job of a workflow to another


def handed_over(machines: Sequence[Machine]) -> dict[str, Seen] | None:
    """What another job has seen, from $NAME_SEEN; None if there is no such variable, and so this one is to ask."""
    names = {machine.name: f"{github.prefix(machine.name)}_SEEN" for machine in machines}
    if not any(name in os.environ for name in names.values()):
        return None
    found = {}
    for machine, name in names.items():
        one = fleet_handover.unpack(os.environ.get(name, ""), time.time())
        if one:
            found[machine] = one
        elif name in os.environ:
            warn(f"{machine}: nobody has asked it: the log of its job says why")
        else:
            warn(f"{machine}: nobody has asked it: add it to fleet.yml, as the top of that file says")
    return found


def hand_over(seen: Mapping[str, Seen]) -> None:
    """Write NAME=HEX to $GITHUB_OUTPUT, and say what came of it. Raises UsageError."""
    path = os.environ.get("GITHUB_OUTPUT")
    if not path:
        raise errors.UsageError("--hand-over is for a job of a workflow: $GITHUB_OUTPUT is not set")
    with open(path, "a", encoding="utf-8") as file:
        for name, one in seen.items():
            file.write(f"{name}={fleet_handover.pack(one, tells())}\n")
            print(f"{name}: {one.contact.kind}{f': {one.contact.why}' if one.contact.why else ''}")


def tells() -> bool:
    """Whether the repository is known to be private: only there it is written what a failure says."""
    return os.environ.get("DEPLOY_STATUS_PRIVATE") == "true"


def warn(text: str) -> None:
    print(f"fleet_status.py: {text}", file=sys.stderr, flush=True)
    github.Console().annotate("warning", "fleet", text)


# --- all of it


def look(options: argparse.Namespace) -> int:
    """Ask, remember, show; return the exit code. Raises UsageError."""
    inventory = Path(options.inventory)
    everybody = fleet_inventory.read(inventory)
    machines = fleet_inventory.chosen(everybody, options.machine)
    channels = channels_of(options)
    with tempfile.TemporaryDirectory(prefix="fleet-status-") as scratch:
        asks = options.record or options.hand_over
        shared = fleet_look.Shared(inventory.resolve().parent, everybody, Path(scratch), asks)
        if asks and shared.problem:
            warn(shared.problem)
        own, began = fleet_answers.load(fleet_answers.place_of(inventory)), time.monotonic()
        before = fleet_answers.both(own, shared.read.memory)
        handed = handed_over(machines) if options.record else None
        seen = ask_all(machines, before, options) if machines and handed is None else handed or {}
        if options.hand_over:
            hand_over(seen)
            return 0
        told = fleet_tell.NOBODY
        if channels:
            told = tell(fleet_look.judge(everybody, seen, before, shared.folder), seen, before, channels)
        if options.record and seen:
            found = record(shared, seen, own, told)
        else:
            found = fleet_look.judge(everybody, seen, before, shared.folder, told)
    remember(fleet_answers.place_of(inventory), found.memory)
    views = found.of([machine.name for machine in machines])
    show(found, views, options, 0.0 if handed else time.monotonic() - began)
    return 0 if fleet_states.all_well(views) and not (asks and shared.problem) else 1


def channels_of(options: argparse.Namespace) -> fleet_tell.Channels | None:
    """Where alerts are told, if they are. Raises UsageError."""
    if options.issue and not options.alert:
        raise errors.UsageError("--issue: goes with --alert")
    if options.alert and options.hand_over:
        raise errors.UsageError("--alert: of the job that records (--record), not of the one that hands over")
    return fleet_tell.channels(os.environ, options.issue, tells()) if options.alert else None


def tell(
    found: fleet_look.Look, seen: Mapping[str, Seen], before: Memory, channels: fleet_tell.Channels
) -> fleet_tell.Told:
    """Tell the team what there is to say; what could not be told is a warning."""
    told = fleet_tell.tell(found.everybody, seen, before.machines, channels, time.time())
    for problem in told.problems:
        warn(problem)
    return told


def record(shared: fleet_look.Shared, seen: Mapping[str, Seen], own: Memory, told: fleet_tell.Told) -> fleet_look.Look:
    """Write what was seen to the shared memory; what cannot be written is told."""
    before = shared.problem
    found = shared.record(seen, own, tells(), told)
    if shared.problem and not before:
        warn(shared.problem)
    page = os.environ.get("GITHUB_STEP_SUMMARY")
    if page:
        with open(page, "a", encoding="utf-8") as file:
            file.write(fleet_page.summary(found.everybody, found.branch, tells()))
    problem = deployments.record(facts_of(seen), os.environ)
    if problem:
        warn(problem)
    for view in found.everybody:
        if fleet_states.is_act(view.state):
            advice = fleet_states.ADVICE[view.state]
            github.Console().annotate("warning", f"{view.machine.name}: {view.state}", advice)
    return found


def facts_of(seen: Mapping[str, Seen]) -> list[deployments.Fact]:
    """What those that answered run, for GitHub's page: a boot's deploy gets there when it is first seen."""
    answers = {name: one.contact.answer for name, one in seen.items() if one.contact.answer}
    return [
        deployments.Fact(name, answer.commit, since=answer.since, by=answer.by)
        for name, answer in answers.items()
        if answer and answer.commit and not answer.running and answer.outcome != "broken"
    ]


def remember(place: Path, memory: Memory) -> None:
    try:
        fleet_answers.store(place, memory)
    except OSError as error:
        print(f"fleet_status.py: {place} could not be written: {error.strerror}", file=sys.stderr)


def show(found: fleet_look.Look, views: Sequence[View], options: argparse.Namespace, seconds: float) -> None:
    known = found.memory.machines
    if options.json:
        is_well = fleet_states.all_well(views)
        told = fleet_table.as_json(views, found.branch, seconds, is_well, known if options.history else None)
        print(json.dumps(told), flush=True)
    elif options.history:
        print(fleet_table.show_history(known, [view.machine.name for view in views]), end="", flush=True)
    elif views:
        print(fleet_table.show(views, found.branch, seconds, time.time()), end="", flush=True)
    else:
        print(f"{options.inventory}: has no machine", flush=True)


def make_parser() -> argparse.ArgumentParser:
    parser = github.Parser(
        prog="fleet_status.py",
        allow_abbrev=False,
        description="Say what runs on which machine, since when, and how far behind; also of machines that are off.",
        epilog="exit codes: 0 all is well; 1 somebody must act, nobody answered, or there is no machine; 2 usage",
    )
    fleet_inventory.add_options(parser)
    add = parser.add_argument
    add("--json", action="store_true", help="print one JSON line on stdout")
    add("--history", action="store_true", help="what was deployed where, as far as it is known; oldest first")
    add("--record", action="store_true", help="keep what is seen in origin's branch deploy-status, for everybody")
    add("--hand-over", action="store_true", help="only ask, and leave what is seen to a job that records it")
    add("--alert", action="store_true", help="tell $DEPLOY_WEBHOOK_URL what somebody must act on, and when it is over")
    add("--issue", action="store_true", help="with --alert: by an issue, too; $GITHUB_TOKEN, $GITHUB_REPOSITORY")
    return parser


def main_inner(arguments: Sequence[str]) -> int:
    """Return the exit code. Raises errors.UsageError."""
    return look(make_parser().parse_args(arguments))


def main() -> NoReturn:
    try:
        sys.exit(main_inner(sys.argv[1:]))
    except errors.UsageError as error:
        print(f"fleet_status.py: {error}", file=sys.stderr)
        sys.exit(errors.EXIT_USAGE)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()

"""What is measured: each case once a round, every contender in turn.

The slow cases that no bar rests on (first deploy, boot three commits behind, the peers' rollback and offline times) are
measured in the first LIGHT rounds only, and all deploys under load in the first one, so that a run fits into some 40
minutes. (Ours under load has a campaign of its own: ./dev bench faults --replace.)
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench import floors, load
from bench.contenders import CONTENDERS, Contender, Naive, Ours
from bench.load import Noticed
from bench.machines import Machines, Root
from bench.report import LOADS, predicted
from lab.host import REPOSITORY
from lab.image import say
from lab.machine import Machine
from lab.world import REPO_URL

sys.path.insert(0, str(REPOSITORY / "scripts"))
import places

LIGHT = 3
Samples = dict[str, dict[str, list[float]]]


class Bench:
    """The contenders on their machines, and what was measured so far."""

    def __init__(self, machines: Machines, names: list[str], cases: list[str]) -> None:
        self.machines = machines
        self.cases = cases
        self.round = 0
        self.samples: Samples = defaultdict(lambda: defaultdict(list))
        self.timings: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.contenders: dict[str, Contender] = {}
        self.many: list[Root] = []
        self.fifty: list[Root] = []
        for name in CONTENDERS:
            # the floors are measured on the machines of these two
            if name in (*names, "ours", "naive") and ("load" in cases or not CONTENDERS[name].only_load):
                self.add(name)
        if {"twenty", "big"} & set(cases):
            say("making 20 roots")
            self.many = machines.create_many(20)
        if "fifty" in cases:
            say("making 50 roots")
            self.fifty = machines.create_many(50, "fifty")
            self.doors = machines.create_doors(self.fifty)
        if "big" in cases:
            say("making a repository of 50,000 files and 20,000 commits")
            machines.create_repository("big", files=50_000, commits=20_000)
            machines.create_root(self.big_machine, "/srv/big", "big")

    def add(self, name: str) -> None:
        say(f"preparing {name}")
        self.contenders[name] = CONTENDERS[name](self.machines)

    @property
    def ours(self) -> Ours:
        contender = self.contenders["ours"]
        assert isinstance(contender, Ours)
        return contender

    @property
    def big_machine(self) -> Machine:
        return self.many[0][0]

    @property
    def naive(self) -> Naive:
        contender = self.contenders["naive"]
        assert isinstance(contender, Naive)
        return contender

    @property
    def enter(self) -> list[str]:
        """What a command of the runner begins with."""
        return ["ip", "netns", "exec", self.machines.world.network.namespace("runner")]

    def peers(self, always: bool = True) -> list[Contender]:
        """All contenders but who is there for `load` only; unless `always`, only ours after the light rounds."""
        everybody = [contender for contender in self.contenders.values() if not contender.only_load]
        return everybody if always or self.round < LIGHT else [self.ours]

    def note(self, case: str, who: str, value: float) -> None:
        self.samples[case][who].append(value)
        say(f"round {self.round + 1}: {case}: {who}: {value:.3f}")

    def note_load(self, kind: str, who: str, noticed: Noticed) -> None:
        for figure, value in vars(noticed).items():
            self.samples[f"load_{kind}_{figure}"][who].append(value)
        say(f"round {self.round + 1}: load, {LOADS[kind]}: {who}: {noticed}")

    def note_deploy(self, case: str, contender: Contender, seconds: float) -> None:
        self.note(case, contender.name, seconds)
        if contender.timings:
            self.timings[case].append(contender.timings)

    def warm_up(self) -> None:
        """Every contender's first deploy, which fills its machine's package caches; not measured."""
        commit = self.machines.change_python()
        for contender in self.contenders.values():
            seconds = contender.deploy(commit)
            say(f"{contender.name}: its very first deploy took {seconds:.1f} s")
        if self.many:
            push_many(self, self.many)
        if self.fifty:
            push_all(self, self.fifty)
        if "big" in self.cases:
            push_big(self)

    def run(self, rounds: int) -> None:
        self.warm_up()
        for self.round in range(rounds):
            for name in self.cases:
                CASES[name](self)

    def bring_up(self, contenders: list[Contender]) -> str:
        """Let them all run the newest commit, as if for two minutes, unmeasured; which that is."""
        commit = self.machines.head
        for contender in contenders:
            if contender.machine.health().get("commit") != commit:
                contender.deploy(commit)
            contender.rest()
        return commit

    def deploy_to_all(self, case: str, commit: str) -> None:
        for contender in self.peers():
            self.note_deploy(case, contender, contender.deploy(commit))


# --- the cases


def nothing(bench: Bench) -> None:
    """The newest commit runs already."""
    bench.deploy_to_all("nothing", bench.bring_up(bench.peers()))


def one_file(bench: Bench) -> None:
    """One .py file changed."""
    bench.bring_up(bench.peers())
    bench.deploy_to_all("one_file", bench.machines.change_python())


def rollback(bench: Bench) -> None:
    """Back to the commit before, from the runner; ours also on the machine itself, as the bar has it."""
    contenders = bench.peers(always=False)
    before = bench.bring_up(contenders)
    commit = bench.machines.change_python()
    for contender in contenders:
        contender.deploy(commit)
        bench.note("rollback", contender.name, contender.rollback(before))
    # the same switch and confirmation as going back once more, to a release that is surely kept
    command = ("/srv/app/bin/deploy_machine.py", "rollback", commit)
    bench.note("rollback", "ours, on the machine", bench.machines.on(bench.ours.machine, *command, healthy=True))
    assert bench.ours.machine.health().get("commit") == commit


def under_load(bench: Bench) -> None:
    """Requests that fail while one .py file is deployed, by a good commit and by bad ones; in the first round only."""
    if bench.round:
        return
    site = load.Site(bench.machines, list(bench.contenders.values()))
    for kind in LOADS:
        for name, noticed in site.measure(kind).items():
            bench.note_load(kind, name, noticed)
    site.leave()


def python_dependency(bench: Bench) -> None:
    """One more package in poetry.lock."""
    bench.bring_up(bench.peers())
    bench.deploy_to_all("python", bench.machines.add_python_dependency(bench.round))


def npm_dependency(bench: Bench) -> None:
    """One more package in package-lock.json."""
    bench.bring_up(bench.peers())
    bench.deploy_to_all("npm", bench.machines.add_npm_dependency(bench.round))


def first(bench: Bench) -> None:
    """First deploy: nothing is there but the package caches."""
    if bench.round >= LIGHT:
        return
    for contender in bench.peers():
        contender.wipe()
        bench.note_deploy("first", contender, contender.deploy(bench.machines.head))


def boot(bench: Bench) -> None:
    """Boot with nothing new; for comparison the naive contender's machine, which does nothing at boot."""
    bench.bring_up(bench.peers())
    for contender in bench.peers():
        if contender.boots or contender.name == "naive":
            bench.note("boot", contender.name, boot_seconds(bench, contender, bench.machines.head))
        if contender.boots:
            bench.note("boot_held_back", contender.name, held_back(contender))


def boot_behind(bench: Bench) -> None:
    """Boot three commits behind."""
    if bench.round >= LIGHT:
        return
    contenders = [contender for contender in bench.peers() if contender.boots]
    bench.bring_up(contenders)
    for _ in range(3):
        commit = bench.machines.change_python()
    for contender in contenders:
        bench.note("boot_behind", contender.name, boot_seconds(bench, contender, commit))


def boot_seconds(bench: Bench, contender: Contender, commit: str) -> float:
    """Seconds from the boot's start to the first good answer, which must be of that commit."""
    machine = contender.machine
    machine.shut_down()
    bench.machines.know_address(machine)
    told: dict[str, Any] = {}

    def watch() -> None:
        told.update(bench.machines.probe("first", contender.url, ""))

    watcher = threading.Thread(target=watch)
    watcher.start()
    time.sleep(0.1)  # the interpreter's own start
    machine.boot(wait="")
    watcher.join()
    running = machine.health().get("commit")
    assert told.get("healthy") and running == commit, f"{contender.name} booted {running}, not {commit}: {told}"
    machine.wait_for_startup()
    return float(told["seconds"])


def held_back(contender: Contender) -> float:
    """Seconds for which the services waited in the last boot."""
    unit, machine = contender.boot_unit, contender.machine
    machine.wait_for_unit(unit)
    begin, end = (int(machine.show(unit, f"{key}TimestampMonotonic")) for key in ("InactiveExit", "ActiveEnter"))
    return (end - begin) / 1e6


def offline(bench: Bench) -> None:
    """What a machine costs that is off, until it is told; all contenders at once, as they only wait."""
    contenders = bench.peers(always=False)
    with ThreadPoolExecutor(len(contenders)) as pool:
        for contender, seconds in zip(contenders, pool.map(lambda one: one.offline(), contenders)):
            bench.note("offline", contender.name, seconds)
            contender.after()


def push(bench: Bench, machine: Machine, *words: str) -> subprocess.Popen[str]:
    """Start a push of the newest commit to a machine whose role has no services."""
    command = [*bench.enter, sys.executable, str(REPOSITORY / "scripts/push_deploy.py")]
    command += ["--machine", machine.name, "--role", "worker", "--host", machine.address, "--user", "deploy", *words]
    return started(command, {**bench.ours.environment(), "GITHUB_OUTPUT": ""})


def started(command: list[str], env: Mapping[str, str]) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=subprocess.STDOUT, env=env, text=True
    )


def until_all_have_it(bench: Bench, roots: list[Root], start: Callable[[str], list[subprocess.Popen[str]]]) -> float:
    """Merge a change of one file; seconds until all roots have it, and what was started has ended."""
    commit = bench.machines.change("light")
    begin = time.monotonic()
    processes = start(commit)
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    seconds = time.monotonic() - begin
    assert not any(process.returncode for process in processes), outputs
    for machine, root in roots:
        revision = machine.out(f"cat {root}/current/REVISION")
        assert revision == commit, f"{machine.name}:{root}: {outputs}"
    return seconds


def push_many(bench: Bench, roots: list[Root]) -> float:
    """Each pushed to by a process of its own, all at once."""
    return until_all_have_it(
        bench,
        roots,
        lambda commit: [push(bench, machine, "--root", root, "--contains", commit) for machine, root in roots],
    )


def push_all(bench: Bench, roots: list[Root]) -> float:
    """All pushed to by one push_all.py, so many at once as it does by itself."""
    inventory = bench.machines.world.directory / "machines.ini"
    inventory.write_text("".join(f"[{Path(root).name}]\nroles = worker\n" for _, root in roots))
    hosts = [word for root in roots for word in ("--host", f"{Path(root[1]).name}={bench.doors[root]}")]
    command = [*bench.enter, sys.executable, str(REPOSITORY / "scripts/push_all.py"), "--user", "deploy", *hosts]
    command += ["--inventory", str(inventory)]
    return until_all_have_it(
        bench, roots, lambda commit: [started([*command, "--contains", commit], bench.ours.environment())]
    )


def fetch_many(bench: Bench, roots: list[Root], at_once: int) -> float:
    """Seconds for nothing but `ssh host git fetch`, with nothing new, to all roots, so many at once."""
    url = REPO_URL.replace("app.git", "light.git")

    def fetch(place: Root) -> None:
        words = bench.machines.ssh(place[0], f"git --git-dir={place[1]}/repo.git fetch -q {url} refs/heads/main")
        subprocess.run([*bench.enter, *words], stdin=subprocess.DEVNULL, timeout=300, check=True)

    begin = time.monotonic()
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(fetch, roots))
    return time.monotonic() - begin


def twenty(bench: Bench) -> None:
    """One .py file, to one root and then to all 20 at once, from one runner: on the cores of this one computer."""
    bench.note("twenty", "one machine", push_many(bench, bench.many[:1]))
    bench.note("twenty", "20 machines at once", push_many(bench, bench.many))
    bench.note("floors", "ssh host git fetch, one machine", fetch_many(bench, bench.many[:1], 1))
    bench.note("floors", "ssh host git fetch, 20 machines at once", fetch_many(bench, bench.many, 20))


def fifty(bench: Bench) -> None:
    """One .py file to 50 roots by one push_all.py, and how long that may take, as bench.report.predicted says."""
    number, at_once, cores = len(bench.fifty), places.AT_ONCE, os.cpu_count() or 1
    bench.note("fifty", "one machine", metered(bench, push_all, bench.fifty[:1])[0])
    cost = [metered(bench, push_all, bench.fifty[:some])[1] for some in (1, 1 + at_once)]
    seconds = push_all(bench, bench.fifty)
    floor, floor_cost = metered(bench, fetch_many, bench.fifty, at_once)
    more, least = (cost[1] - cost[0]) / at_once, floor_cost / number
    bench.note("fifty", f"{number} machines", seconds)
    bench.note("fifty", f"{number} machines, as predicted", predicted(floor, number, more - least, cores))
    bench.note("floors", f"ssh host git fetch, {number} machines, {at_once} at once", floor)
    bench.note("fifty_cpu", "ssh host git fetch", least)
    bench.note("fifty_cpu", "one .py file to one machine more", more)


def metered(bench: Bench, work: Callable[..., float], *arguments: Any) -> tuple[float, float]:
    """Seconds, and seconds of processors."""
    before = bench.machines.processor_seconds()
    seconds = work(bench, *arguments)
    return seconds, bench.machines.processor_seconds() - before


def push_big(bench: Bench) -> float:
    """Merge a change of one file into the big repository; seconds until the machine has it."""
    commit = bench.machines.change("big")
    begin = time.monotonic()
    process = push(bench, bench.big_machine, "--root", "/srv/big", "--contains", commit)
    output = process.communicate(timeout=300)[0]
    seconds = time.monotonic() - begin
    assert process.returncode == 0, output
    revision = bench.big_machine.out("cat /srv/big/current/REVISION")
    assert revision == commit, f"the big repository's root has {revision}, not {commit}"
    return seconds


def big(bench: Bench) -> None:
    """50,000 files, 20,000 commits: a deploy that changes one file, and the checkout that it cannot avoid."""
    bench.note("big", "ours", push_big(bench))
    machine = bench.big_machine
    machine.sh("rm -rf /srv/big/floor* && install -d -o deploy -g deploy /srv/big/floor")
    git = "GIT_INDEX_FILE=/srv/big/repo.git/floor.index git --git-dir=/srv/big/repo.git --work-tree=/srv/big/floor"
    commit = machine.out("cat /srv/big/current/REVISION")
    script = f"rm -f /srv/big/repo.git/floor.index; {git} read-tree --reset -u {commit}"
    bench.note("big", "checkout", bench.machines.on(machine, "sh", "-c", script))
    machine.sh("rm -rf /srv/big/floor /srv/big/repo.git/floor.index")


def floor(bench: Bench) -> None:
    """The floors, and the script's own needs."""
    for name, seconds in floors.measure(bench.machines, bench.ours, bench.naive):
        bench.note("floors", name, seconds)
    bench.machines.change_python()
    bench.note("memory", "ours", floors.peak_memory(bench.ours))


CASES: dict[str, Callable[[Bench], None]] = {
    "nothing": nothing,
    "one_file": one_file,
    "python": python_dependency,
    "npm": npm_dependency,
    "load": under_load,
    "rollback": rollback,
    "first": first,
    "boot": boot,
    "boot_behind": boot_behind,
    "offline": offline,
    "twenty": twenty,
    "fifty": fifty,
    "big": big,
    "floors": floor,
}

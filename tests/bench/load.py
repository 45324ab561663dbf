"""The case `load`: what the users of a site notice of a good and of a bad deploy, under an open-loop load.

The load (faults/open_loop.py) and the application (faults/application.py) are those with which ours is proven in
./dev bench faults. A site that is not well afterwards is watched, while the next contender is measured, until it is by
itself; then the case deploys a good commit to it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from bench.contenders import Contender
from bench.machines import Machines
from bench.report import LOADS, WATCHED
from faults import open_loop, replacing
from faults.open_loop import Answer, Load
from lab.machine import Machine
from waiting import wait_for

DEFECTS = dict(zip(LOADS, ("none", "everything 500", "import error")))
WARM_UP = 1.0  # seconds of load that do not count
AFTER = 3.0  # seconds of load after the deploy has ended
FILES = ("mysite/wsgi.py", "mysite/settings.py")


@dataclasses.dataclass(frozen=True)
class Noticed:
    """What came of one deploy."""

    requests: float  # from its begin until AFTER its end
    failed: float
    slowest: float  # seconds
    # seconds from the deploy's end until the site was well by itself; 0: within AFTER; WATCHED: not at all
    ill: float
    red: float  # 1 if the run failed


def judge(answers: Sequence[Answer], began: float, ill: float, well: bool) -> Noticed:
    """Count the answers that the deploy can have disturbed."""
    since = [answer for answer in answers if answer.ended >= began]
    slowest = max((answer.latency for answer in since), default=0.0)
    return Noticed(len(since), sum(answer.failed for answer in since), slowest, ill, float(not well))


def ill_for(machine: Machine, ended: float) -> float:
    """Watch a machine until its site is well; see Noticed.ill."""
    if machine.health()["status"] == 200:
        return 0.0
    with contextlib.suppress(AssertionError):
        left = ended + WATCHED - time.monotonic()
        wait_for(lambda: machine.health()["status"] == 200, "well by itself", left, pause=1)
        return time.monotonic() - ended
    return WATCHED


def deploy(contender: Contender, pool: ThreadPoolExecutor) -> Future[Noticed]:
    """One deploy under load; what came of it is known later, when all requests have their answers."""
    with contextlib.ExitStack() as stack:
        world, address = contender.machines.world, contender.machine.address
        load = stack.enter_context(open_loop.running(world, address))
        time.sleep(WARM_UP)
        began = time.monotonic()
        well = contender.attempt()
        ended = time.monotonic()
        time.sleep(AFTER)
        ill = pool.submit(ill_for, contender.machine, ended)
        return pool.submit(end, stack.pop_all(), load, began, ill, well)


def end(stack: contextlib.ExitStack, load: Load, began: float, ill: Future[float], well: bool) -> Noticed:
    """Requests that nobody takes are nginx's to refuse, after a minute."""
    stack.close()
    return judge(load.answers, began, ill.result(), well)


class Site:
    """The contenders, and the commits that they deploy, while the application is the one of ./dev bench faults."""

    def __init__(self, machines: Machines, contenders: Sequence[Contender]) -> None:
        self.world = machines.world
        self.contenders = contenders
        self.number = 0
        self.plain = {name: (self.world.clone / name).read_text() for name in FILES}
        self.settings = replacing.cheap_requests(self.world)

    def commit(self, defect: str = "none") -> str:
        """Change one .py file."""
        self.number += 1
        return self.world.commit({**self.settings, **replacing.application(self.number, defect)}, "for the load")

    def bring_up(self, commit: str) -> None:
        """All of them at once deploy a good commit: it is not measured, and also mends what a bad one left."""
        with ThreadPoolExecutor(len(self.contenders)) as pool:
            list(pool.map(lambda contender: contender.deploy(commit), self.contenders))

    def measure(self, kind: str) -> dict[str, Noticed]:
        """Let one after the other deploy the next commit."""
        self.bring_up(self.commit())
        commit = self.commit(DEFECTS[kind])
        with ThreadPoolExecutor(2 * len(self.contenders)) as pool:
            found = {contender.name: deploy(contender, pool) for contender in self.contenders}
        for contender in self.contenders if kind == "good" else ():
            contender.wait_for(commit)
        return {name: each.result() for name, each in found.items()}

    def leave(self) -> None:
        """The application is the example again."""
        self.bring_up(self.world.commit(self.plain, "without the load"))

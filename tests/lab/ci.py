"""The repository's own cd.yml, run for real in the runner's namespace against the lab's machines."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

from lab.world import NUMBERS, World
from workflow import Concurrency, Event, Run, dispatch, push


class Ci:
    """GitHub, as far as these machines can tell: secrets, and runs of cd.yml."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.concurrency = Concurrency()
        self.runs = 0
        self.secrets = {
            "DEPLOY_SSH_KEY": (world.home / "ci").read_text(),
            "DEPLOY_KNOWN_HOSTS": self.known_hosts(),
        }
        for name in ("scheduler", "frontend"):
            self.secrets[f"{name.upper()}_HOST"] = f"10.0.0.{NUMBERS[name]}"
            self.secrets[f"{name.upper()}_USER"] = "deploy"

    def known_hosts(self) -> str:
        for name in ("scheduler", "frontend"):
            self.world.machine(name)
        return self.world.known_hosts()

    def start(
        self,
        event: Event,
        on_line: Callable[[str, str], None] | None = None,
        name: str = "cd.yml",
        looks: bool = False,
        **secrets: str,
    ) -> Run:
        """Start a run; secrets given here replace those of the repository (an empty one is not there).

        on_line: called with the leg's name and each line of its log. looks: at all machines, too, after a deploy.
        """
        self.runs += 1
        workdir = self.world.directory / f"run{self.runs}"
        namespace = self.world.network.namespace("runner")
        run = Run(
            self.world.clone / ".github/workflows" / name, event, workdir=workdir, without=() if looks else ("fleet",),
            repository=str(self.world.clone), secrets={**self.secrets, **secrets},
            wrap=["ip", "netns", "exec", namespace], on_line=on_line, concurrency=self.concurrency,
        )  # fmt: skip
        return run.start()

    def merge(self, **secrets: str) -> Run:
        """What a merge of the clone's HEAD to main starts; wait for its end."""
        return self.start(push(self.world.git("rev-parse", "HEAD")), **secrets).wait(240)

    def dispatch(self, **inputs: Any) -> Run:
        """What the button "Run workflow" starts; wait for its end."""
        return self.start(dispatch(self.world.git("rev-parse", "HEAD"), **inputs)).wait(240)


@contextlib.contextmanager
def watched_processes() -> Iterator[list[str]]:
    """Collect every command line on this host while the block runs: no secret may be in one."""
    seen: list[str] = []
    watcher = subprocess.Popen(
        ["sh", "-c", "while :; do cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '; echo; sleep 0.05; done"],
        stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert watcher.stdout
    seen.append(watcher.stdout.readline())  # so it has begun
    try:
        yield seen
    finally:
        watcher.terminate()
        seen.append(watcher.communicate()[0])


def outcome_of(run: Run, name: str) -> str:
    """The outcome in a machine's output, or `missing`."""
    value = run.jobs["deploy"].outputs.get(name, "")
    return str(json.loads(bytes.fromhex(value).decode())["outcome"]) if value else "missing"

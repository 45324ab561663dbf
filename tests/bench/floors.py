"""What no tool can avoid, and what deploy_machine.py itself needs: measured in the same rounds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

from bench.contenders import Naive, Ours
from bench.machines import Machines

POETRY = "poetry sync --only main --no-root --no-interaction"
# Peak memory of the script alone: its children count for themselves.
MEMORY = """\
import atexit, json, resource, runpy, sys
sys.argv = ["/srv/app/bin/deploy_machine.py", "deploy"]
atexit.register(lambda: print(json.dumps({"kB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss})))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def in_tree(command: str) -> tuple[str, str, str]:
    """A command in the naive contender's tree, with the settings that its script has."""
    return ("sh", "-c", f"set -a; . /srv/app/shared/.env; set +a; cd /srv/site; {command}")


def floors(machines: Machines, ours: Ours, naive: Naive) -> dict[str, Callable[[], float]]:
    """Name of each floor, and what measures it: seconds."""
    app, tree = ours.machine, naive.machine
    fetch = ("git", "-C", "/srv/site", "fetch", "-q")

    def ssh() -> float:
        return float(machines.probe("run", "", "", "--", *machines.ssh(app, "true"))["seconds"])

    def copy() -> float:
        machines.on(tree, "rm", "-rf", "/srv/site/.venv-copy")
        return machines.on(tree, "cp", "-a", "/srv/site/.venv", "/srv/site/.venv-copy")

    def checkout() -> float:
        machines.on(tree, *in_tree("rm -rf .git/checkout; mkdir .git/checkout"))
        return machines.on(tree, *in_tree("git --work-tree=.git/checkout checkout -q -f HEAD -- ."))

    def restart() -> float:
        command = ("sudo", "-n", "/usr/bin/systemctl", "restart", "gunicorn.service")
        return machines.on(tree, *command, healthy=True)

    return {
        "ssh host true": ssh,
        "git fetch, nothing new": lambda: machines.on(tree, *fetch),
        "python3 -c pass": lambda: machines.on(app, "python3", "-c", "pass"),
        "restart until healthy": restart,
        "poetry sync, nothing to do": lambda: machines.on(tree, *in_tree(POETRY)),
        "cp -a of the environment": copy,
        "npm ci": lambda: machines.on(tree, *in_tree("npm ci --no-audit --no-fund")),
        "npm run build": lambda: machines.on(tree, *in_tree("npm run build")),
        "checkout of the tree": checkout,
        "deploy_machine.py --version": lambda: machines.on(app, "/srv/app/bin/deploy_machine.py", "--version"),
    }


def peak_memory(ours: Ours) -> float:
    """Megabytes that deploy_machine.py itself needs at most in one deploy."""
    done = ours.machine.run("python3", "-c", MEMORY, user="deploy")
    return float(json.loads(done.stdout.splitlines()[-1])["kB"]) / 1024


def measure(machines: Machines, ours: Ours, naive: Naive) -> Iterator[tuple[str, float]]:
    for name, floor in floors(machines, ours, naive).items():
        yield name, floor()

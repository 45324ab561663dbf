"""./dev demo: the main job on real machines, for a newcomer; where those cannot be made, without them."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from lab import embedded
from lab.ci import Ci
from lab.host import call
from lab.image import say
from lab.page import Page
from lab.world import ROLES, World, runs, snapshot
from workflow import Run, push

LAB = "dmlab"
CHANGE = "board/templates/board/index.html"


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="./dev demo", allow_abbrev=False, description="Show the main job.")
    parser.add_argument(
        "--page", nargs="?", const="demo.html", metavar="FILE",
        help="write what there is to see as one HTML page, too (default: demo.html here)",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    path = Path(options.page).absolute() if options.page else None
    if path and (path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK)):
        say(f"--page {path}: it cannot be written there; name a file in a folder that exists and is yours")
        return 2
    page = Page()
    try:
        return show(page)
    finally:
        if path and page.parts:
            page.write(path)
            say(f"the page:     {path.as_uri()}")


def show(page: Page) -> int:
    """Merge with both machines on, merge with the frontend off, switch it on; leave the lab running."""
    if sys.platform != "linux":
        say("deploys run on Linux only, so there is nothing to show here")
        return 2
    if why := why_no_machines():
        say(f"{why}: showing the main job without machines (with them: sudo ./dev demo)")
        return embedded.main(page)
    if (runs() / LAB).exists():
        say("a lab is up already; end it first: ./dev lab down")
        return 2
    began = time.monotonic()
    layers = snapshot("deployed")
    with World(layers, lab_id=LAB) as world:
        for name in ("services", *ROLES):
            say(f"booting {name}")
            world.boot(name)
        ci = Ci(world)
        frontend = world.machine("frontend")

        page.title("1. Both machines are on, and a change is merged to main")
        page.run(merge(ci, world, "Notice board", "Our notice board"))
        page.say(f"the frontend answers: {frontend.health()}")

        page.title("2. The frontend is switched off, and another change is merged")
        frontend.shut_down()
        page.run(merge(ci, world, "Our notice board", "The notice board"))

        page.title("3. The frontend is switched on again")
        say("booting frontend: it catches up before it serves")
        world.boot("frontend")
        page.log("the frontend's log", frontend.out("journalctl -b -t deploy-machine -o cat | grep -v '^ '"))
        page.say(f"the frontend answers: {frontend.health()}")
        page.log("its status", frontend.out("/srv/app/bin/deploy_machine.py status", user="deploy"))
        world.leave_running()
        world.closed = True  # it stays, to be explored
    say(f"done in {time.monotonic() - began:.0f} s")
    say("look around:  ./dev lab sh frontend     (also: scheduler; ./dev lab list)")
    say("clean up:     ./dev lab down")
    return 0


def why_no_machines() -> str:
    """What is missing here to boot machines; empty: nothing."""
    if os.geteuid() != 0:
        return "machines need root"
    for program in ("systemd-nspawn", "mmdebstrap", "ip"):
        if not shutil.which(program):
            return f"machines need {program}"
    for kind in ("--net", "--mount"):
        if call("unshare", kind, "true", check=False).returncode != 0:
            return "no namespaces may be made here, which machines need"
    return ""


def merge(ci: Ci, world: World, old: str, new: str) -> Run:
    """Merge a change of the page's heading and run cd.yml for it, showing its log as it comes."""
    head = world.commit(world.edit(CHANGE, f"<h1>{old}</h1>", f"<h1>{new}</h1>"), f"heading: {new}")
    say(f"merged {head[:8]}; running .github/workflows/cd.yml")
    run = ci.start(push(head), looks=True, on_line=lambda leg, line: print(f"  {leg:22} | {line}", flush=True))
    return run.wait(240)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

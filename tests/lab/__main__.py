"""./dev lab: machines to explore by hand."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys

from lab.image import say
from lab.world import NUMBERS, ROLES, World, reap, runs, snapshot

LAB = "dmlab"


def up() -> int:
    """Boot the services machine and both set-up machines, and leave them running."""
    if (runs() / LAB).exists():
        say("it is up already: ./dev lab list")
        return 0
    world = World(snapshot("deployed"), lab_id=LAB)
    for name in ("services", *ROLES):
        say(f"booting {name}")
        world.boot(name)
    world.leave_running()
    show(world)
    say("look around: ./dev lab sh frontend      end it: ./dev lab down")
    return 0


def show(world: World) -> None:
    for name, machine in world.machines.items():
        print(f"{name:10} 10.0.0.{NUMBERS[name]}  {'on' if machine.is_on else 'off'}")


def down() -> int:
    """End and remove everything."""
    with contextlib.suppress(OSError, ValueError):
        os.kill(int((runs() / LAB / "keeper").read_text()), signal.SIGTERM)
    reap()
    return 0


def on(arguments: argparse.Namespace) -> int:
    """list, sh, cut, boot: on the running lab."""
    if not (runs() / LAB).exists():
        say("there is no lab: ./dev lab up")
        return 2
    world = World.attach(LAB)
    if arguments.command == "list":
        show(world)
        return 0
    if arguments.name not in world.machines:
        say(f"{arguments.name}: no such machine; there are {', '.join(world.machines)}")
        return 2
    machine = world.machines[arguments.name]
    if arguments.command == "boot":
        if machine.is_on:
            say(f"{machine.name} is on already")
            return 2
        machine.boot(wait="multi-user.target")
        return 0
    if not machine.is_on:
        say(f"{machine.name} is off: ./dev lab boot {machine.name}")
        return 2
    if arguments.command == "cut":
        machine.cut()
        return 0
    command = ["sh", "-c", " ".join(arguments.words)] if arguments.words else ["bash", "-l"]
    argv = machine.argv()
    return subprocess.call([*argv, f"TERM={os.environ.get('TERM', 'dumb')}", *command])


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev lab")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up", help="boot two set-up machines and what they need")
    commands.add_parser("list", help="the machines and whether they run")
    commands.add_parser("down", help="end them all")
    for name, about in (("cut", "cut its power"), ("boot", "boot it"), ("sh", "a shell, or one command")):
        command = commands.add_parser(name, help=about)
        command.add_argument("name")
        if name == "sh":
            command.add_argument("words", nargs=argparse.REMAINDER, metavar="COMMAND")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        say("the machines need root: sudo ./dev lab ...")
        return 2
    return {"up": up, "down": down}[arguments.command]() if arguments.command in ("up", "down") else on(arguments)


if __name__ == "__main__":
    sys.exit(main())

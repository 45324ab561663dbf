"""./dev bench: measure all contenders on real machines, and print tables."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from bench import report
from bench.cases import CASES, Bench
from bench.contenders import CONTENDERS
from bench.machines import Machines
from bench.tools import CAPISTRANO, MOST_ROUNDS, PINS
from lab.host import REPOSITORY
from lab.image import say
from lab.world import World, snapshot

COMMAND = "./dev bench"


def make_parser() -> argparse.ArgumentParser:
    others = "./dev bench faults: the long campaigns; ./dev bench scale: how it grows"
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__, epilog=others)
    parser.add_argument("--rounds", type=int, default=7, choices=range(1, MOST_ROUNDS + 1), metavar="N",
                        help=f"default: 7; at most {MOST_ROUNDS}")  # fmt: skip
    parser.add_argument("--case", action="append", choices=list(CASES), metavar="NAME",
                        help=f"only this one; repeatable: {' '.join(CASES)}")  # fmt: skip
    parser.add_argument("--contender", action="append", choices=list(CONTENDERS), metavar="NAME",
                        help=f"only this one (and ours and naive); repeatable: {' '.join(CONTENDERS)}")  # fmt: skip
    parser.add_argument("--output", type=Path, metavar="FILE", help="write all samples there, as JSON")
    parser.add_argument("--docs", action="store_true", help="put the tables into docs/, the figures into README.md")
    return parser


def describe(rounds: int, seconds: float) -> str:
    """One line on how the figures were made."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    pins = ", ".join([*(pin.replace("==", " ") for pin in PINS.values()), f"Capistrano {CAPISTRANO}"])
    return (
        f"{rounds} rounds in {seconds / 60:.0f} min on {os.cpu_count()} cores, {memory:.0f} GB, machines in memory; "
        f"{pins}. `x`: times ours."
    )


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run all rounds; what was measured."""
    begin = time.monotonic()
    names = options.contender or list(CONTENDERS)
    cases = [case for case in CASES if case in (options.case or CASES)]
    layers = snapshot("deployed")
    with World(layers) as world:
        machines = Machines(world, layers)
        if {"python", "npm"} & set(cases):
            machines.prepare_dependencies()
        bench = Bench(machines, names, cases)
        bench.run(options.rounds)
    return {
        "about": describe(options.rounds, time.monotonic() - begin),
        "samples": {case: dict(found) for case, found in bench.samples.items()},
        "timings": dict(bench.timings),
    }


def main() -> int:
    options = make_parser().parse_args()
    if os.geteuid() != 0:
        say("the machines need root: sudo ./dev bench")
        return 2
    measured = measure(options)
    measured["bars"] = [vars(bar) | {"verdict": bar.verdict} for bar in report.bars(measured["samples"])]
    text = report.render(measured["samples"], measured["timings"], measured["about"])
    print(text)
    if options.output:
        options.output.write_text(json.dumps(measured, indent=1) + "\n")
    if options.docs:
        report.put_generated(REPOSITORY / "docs/benchmarks.md", COMMAND, text)
        report.put_generated(REPOSITORY / "README.md", COMMAND, report.figures(measured["samples"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())

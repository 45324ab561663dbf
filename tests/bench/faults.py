"""./dev bench faults: kills, power cuts, migrations and deploys under load, in numbers too long for the tests.

Prints tables in Markdown; the exit code is 1 if any promise was broken. It has three parts, each with its own place in
docs/reliability.md: what disturbs deploys, what the users of a site notice of deploys (--replace, replacing.py), and
whether incremental deploys end where fresh ones do (--oracle, oracle.py; needs neither root nor machines).
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import dataclasses
import itertools
import multiprocessing
import os
import random
import sys
import time
import traceback
from collections.abc import Sequence

from bench import oracle, replacing, report
from faults import cuts, kills
from faults.subject import Subject
from faults.under_load import Report, under_load
from lab.database import migrate_together
from lab.host import REPOSITORY
from lab.image import say
from lab.world import World, snapshot
from oracle import judge, sequences

COMMAND = "./dev bench faults"
REPLACE = f"{COMMAND} --replace"
SEQUENCES = 300  # that the oracle is asked about


@dataclasses.dataclass
class Cut:
    """One power cut and what was wrong after it."""

    trigger: str
    change: str
    moment: str | float
    problems: list[str]


def last_line(error: Exception) -> str:
    """An error of the campaign itself counts as a failure of its case."""
    traceback.print_exc()
    return f"{type(error).__name__}: {str(error)[:500]}"


def kill_all(cases: Sequence[kills.Case]) -> list[kills.Outcome]:
    """Run the cases one after the other; after one that could not be completed, go on in a new world."""
    outcomes: list[kills.Outcome] = []
    while len(outcomes) < len(cases):
        with World(snapshot("deployed")) as world:
            subject = Subject(world)
            for case in cases[len(outcomes) :]:
                began = time.monotonic()
                try:
                    outcomes.append(kills.run_case(subject, case))
                except Exception as error:  # the campaign goes on, and ends red
                    outcomes.append(kills.Outcome(case, problems=[last_line(error)]))
                    break
                finally:
                    tell(f"{case}: {outcomes[-1].met if outcomes else ''}", began, outcomes[-1].problems)
    return outcomes


def cut_all(rounds: Sequence[cuts.Round]) -> list[Cut]:
    """One deploy for each round, cut at several moments; every copy of the disk is booted."""
    done: list[Cut] = []
    with World(snapshot("deployed")) as world:
        disk = cuts.put_on_disk(world.machine("frontend"), commit_interval=1)
        try:
            world.boot("frontend")
            world.machine("frontend").wait_for_startup()
            subject = Subject(world)
            for number, (trigger, change, moments) in enumerate(rounds):
                copies = cuts.take_cuts(subject, disk, trigger, change, moments)
                for moment, copy in zip(moments, copies, strict=True):
                    began = time.monotonic()
                    done.append(Cut(trigger, change, moment, cuts.boot_copy(subject, disk, copy, change)))
                    tell(f"power cut, {trigger}, {change}, {moment}", began, done[-1].problems)
                # names and sizes reach the disk at once, or not before a sync
                disk.commit_interval = 60 if number % 2 == 0 else 1
                cuts.back_to_the_original(subject, disk)
        finally:
            world.machine("frontend").cut()
            disk.remove()
    return done


def load_all(code: int, dependencies: int, rollbacks: int, seed: int) -> Report:
    """Deploys and rollbacks in a mixed order; never two rollbacks, nor two dependencies, in a row."""
    kinds = ["code"] * code + ["dependency"] * dependencies + ["rollback"] * rollbacks
    chosen = random.Random(seed)
    for _ in range(10_000):
        chosen.shuffle(kinds)
        if kinds[0] == "code" and not any(one == next_one != "code" for one, next_one in itertools.pairwise(kinds)):
            break
    else:
        raise SystemExit("--load: too few code deploys between the others")
    with World(snapshot("deployed")) as world:
        return under_load(world, kinds)


def tell(what: str, began: float, problems: Sequence[str]) -> None:
    say(f"{what}: {time.monotonic() - began:.1f} s{'' if not problems else f': BROKEN: {problems}'}")


def kills_table(outcomes: Sequence[kills.Outcome]) -> list[str]:
    lines = [
        "| killed | before the lock | in the deploy | after the record | old / new answered | broken promises |",
        "|---|---|---|---|---|---|",
    ]
    groups = collections.defaultdict(list)
    for outcome in outcomes:
        groups[outcome.case.trigger, outcome.case.change].append(outcome)
    for (trigger, change), group in [*sorted(groups.items()), (("all", ""), list(outcomes))]:
        met = collections.Counter(outcome.met for outcome in group)
        served = collections.Counter(outcome.served for outcome in group)
        broken = sum(bool(outcome.problems) for outcome in group)
        lines.append(
            f"| {len(group)} {trigger} {change} | {met['before the lock']} | {met['in the deploy']} |"
            f" {met['after the record']} | {served['old']} / {served['new']} | {broken} |"
        )
    stages = collections.Counter(outcome.stage or "none" for outcome in outcomes)
    told = ", ".join(f"{stage} {count}" for stage, count in stages.most_common())
    return [*lines, "", f"Killed at stage: {told}."]


def cuts_table(done: Sequence[Cut]) -> list[str]:
    lines = ["| power cuts | broken promises |", "|---|---|"]
    groups = collections.defaultdict(list)
    for cut in done:
        groups[cut.trigger, cut.change, isinstance(cut.moment, float)].append(cut)
    for (trigger, change, is_random), group in sorted(groups.items()):
        where = "at random instants of the build" if is_random else "around the switch"
        lines.append(f"| {len(group)} {trigger} {change}, {where} | {sum(bool(cut.problems) for cut in group)} |")
    return [*lines, f"| {len(done)} in all | {sum(bool(cut.problems) for cut in done)} |"]


def load_table(report: Report) -> list[str]:
    deploys = ", ".join(f"{count} {kind}" for kind, count in report.deploys.items())
    lines = [f"Under load: {deploys}; {report.assets} assets of the pages before were asked for again.", ""]
    lines += ["| requests | answered | slowest |", "|---|---|---|"]
    lines += [f"| {kind} | {count} | {report.slowest[kind]:.1f} s |" for kind, count in report.requests.items()]
    return [*lines, f"| broken promises | {len(report.problems)} | |"]


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--kills", type=int, default=200, metavar="N", help="default 200")
    parser.add_argument("--cuts", type=int, default=32, metavar="N", help="power cuts; default 32")
    parser.add_argument("--load", type=int, nargs=3, default=[20, 5, 5], metavar=("CODE", "DEPENDENCY", "ROLLBACK"),
                        help="deploys under load; default 20 5 5")  # fmt: skip
    parser.add_argument("--migrations", type=int, default=20, metavar="N", help="two machines at once; default 20")
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="chooses the moments; default 1")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="machines at the same time; default 2")
    parser.add_argument("--replace", action="store_true",
                        help="only deploys under an open-loop load, none of the above")  # fmt: skip
    parser.add_argument("--scenario", action="append", choices=replacing.NAMES, metavar="NAME",
                        help=f"with --replace, only this one; repeatable: {'; '.join(replacing.NAMES)}")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="of each scenario; default 3; 0: none")
    parser.add_argument("--oracle", type=int, nargs="?", const=SEQUENCES, metavar="N",
                        help=f"only so many sequences, incrementally and afresh; default {SEQUENCES}")  # fmt: skip
    parser.add_argument(
        "--sequence", metavar="TEXT", help="with --oracle, only this one: see tests/oracle/sequences.py"
    )
    parser.add_argument(
        "--mutate", action="store_true", help="with --oracle, look for each mend that is taken out at random, too"
    )
    parser.add_argument("--docs", action="store_true", help="put the tables into docs/reliability.md")
    return parser


def main() -> int:
    parser = make_parser()
    options = parser.parse_args()
    if options.scenario and (options.docs or not options.replace):
        parser.error("--scenario needs --replace, and does not go with --docs: the tables there have all of them")
    if (options.sequence or options.mutate) and not options.oracle:
        parser.error("--sequence and --mutate need --oracle")
    if options.oracle:
        return 1 if consult(options) else 0
    if os.geteuid() != 0:
        say("the machines need root: sudo ./dev bench faults")
        return 2
    snapshot("deployed")
    problems = [] if options.replace else disturb(options)
    problems += replace(options) if options.rounds else []
    options.oracle = 0 if options.replace else SEQUENCES
    return 1 if problems + (consult(options) if options.oracle else []) else 0


def replace(options: argparse.Namespace) -> list[str]:
    """Deploy under an open-loop load, alone, as it tells times; write the tables, and return the broken promises."""
    began = time.monotonic()
    reports = replacing.run_all(options.scenario or replacing.NAMES, options.rounds)
    problems = [f"{each.name}: {problem}" for each in reports for problem in each.problems]
    publish(REPLACE, about(f"{options.rounds} rounds", began), replacing.tables(reports), problems, options.docs)
    return problems


def consult(options: argparse.Namespace) -> list[str]:
    """Deploy sequences of commits incrementally and afresh; write the tables, return the differences."""
    began = time.monotonic()
    if options.sequence:
        found = judge.judge(sequences.parse(options.sequence))
        print(f"{found.seconds:.1f} s, {' '.join(found.outcomes)}: {found.difference or 'no difference'}")
        return [str(found.difference)] * bool(found.difference)
    reports = oracle.run_all(options.oracle, options.seed, options.jobs)
    missed = oracle.missed(options.jobs)
    searches = oracle.mutate(options.seed, options.jobs) if options.mutate else []
    problems = oracle.problems_of(reports) + missed + [found.problem for found in searches if found.problem]
    parts = [oracle.sequences_table(reports), oracle.outcomes_line(reports), oracle.mends_line(missed)]
    parts += [oracle.mends_table(searches)] if searches else []
    publish(oracle.COMMAND, about(f"Seed {options.seed}", began), parts, problems, options.docs)
    return problems


def disturb(options: argparse.Namespace) -> list[str]:
    """Kill, cut, migrate together, and deploy under a closed loop; write the tables, return the broken promises."""
    began = time.monotonic()
    cases = kills.sample(options.kills, options.seed, power_on=options.kills // 20)
    rounds = cuts.plan_cuts(options.cuts, options.seed)
    # processes, not threads: who watches for an instant must not wait for who compares trees
    workers = concurrent.futures.ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn"))
    with workers as pool:
        cutting = pool.submit(cut_all, rounds)
        slices = [pool.submit(kill_all, cases[first :: options.jobs]) for first in range(options.jobs)]
        outcomes = [outcome for each in slices for outcome in each.result()]
        done = cutting.result()
    with World(snapshot("deployed")) as world:
        migrated = migrate_together(world, options.migrations) if options.migrations else []
    load = load_all(*options.load, options.seed) if options.load[0] else Report({})  # alone: it tells times
    problems = [f"{outcome.case}: {each}" for outcome in outcomes for each in outcome.problems]
    problems += [f"cut, {cut.trigger}, {cut.change}, {cut.moment}: {each}" for cut in done for each in cut.problems]
    problems += [f"migrations: {each}" for each in migrated]
    problems += [f"load: {each}" for each in load.problems]
    parts = [kills_table(outcomes)] if outcomes else []
    parts += [cuts_table(done)] if done else []
    parts += [migrations_table(options.migrations, migrated)] if options.migrations else []
    parts += [load_table(load)] if load.requests else []
    texts = ["\n".join(part) for part in parts]
    publish(COMMAND, about(f"Seed {options.seed}", began), texts, problems, options.docs)
    return problems


def about(what: str, began: float) -> str:
    return f"{what}, {(time.monotonic() - began) / 60:.0f} min on {os.cpu_count()} cores."


def publish(command: str, head: str, parts: Sequence[str], problems: Sequence[str], docs: bool) -> None:
    """Print the tables and the broken promises, and put them into the document."""
    verdict = "\n".join(f"- {problem}" for problem in problems) or "Every promise was kept."
    text = "\n\n".join([head, *parts, verdict]) + "\n"
    print(text)
    if docs:
        report.put_generated(REPOSITORY / "docs/reliability.md", command, text)


def migrations_table(rounds: int, problems: Sequence[str]) -> list[str]:
    head = "| migrations that two machines begin at once | broken promises |"
    return [head, "|---|---|", f"| {rounds} | {len(problems)} |"]


if __name__ == "__main__":
    sys.exit(main())

"""./dev bench scale: how each phase of a deploy grows with what an application and a root have.

Of each thing there is more, while the rest stays small; a deploy that changes one .py file, one that finds nothing new,
`plan` and `status` are measured.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from bench import report
from bench.machines import history
from lab.host import REPOSITORY
from lab.image import say
from small_app import App

COMMAND = "./dev bench scale"
ROUNDS = 3
# what there is more and more of; the first size is what the others have of it
SIZES = {
    "files of the repository": (2_000, 20_000, 200_000),
    "commits": (1_000, 10_000, 100_000),
    "files of the environment": (300, 3_000, 30_000),
    "MB of static files": (2, 20, 200),
    "lines of the history": (100, 1_000, 10_000),
}
LARGEST = 10.0  # ten times as much of one thing may take so many times as long,
JITTER = 1.0  # and so many seconds more: the trees lie on a disk, which others use, too
STATIC_FILE = 100_000  # bytes
DEPLOY_INI = """\
[deploy]
shared = .env
[step python]
inputs = requirements
provides = .venv
run = pip-sync
[step static]
inputs = assets
provides = static
keep_days = 7
run = sh -c 'mkdir static && cd static && split -b {size} -a 4 {source} file && echo a > $(cat ../assets)'
[role web]
"""
# fills the environment when it is new, and puts one more module there
INSTALL = """\
import pathlib, sys
(place,) = pathlib.Path(".venv/lib").glob("python*/site-packages")
for number in range({files} // 2):
    path = place / f"package{{number // 100:03}}" / f"module{{number:05}}.py"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"VALUE = {{number}}\\n")
(place / (pathlib.Path("requirements").read_text().strip() + ".py")).write_text("VALUE = 1\\n")
"""


class Measured(NamedTuple):
    """One size of one thing: seconds by what was done, and by phase of the deploys."""

    thing: str
    size: int
    seconds: Mapping[str, float]
    phases: Mapping[str, float]  # of the deploy of one file
    dependency: Mapping[str, float]  # of the deploy of a new dependency and a new static file


def make(folder: Path, sizes: Mapping[str, int]) -> App:
    """An application of these sizes, deployed once."""
    app = App(folder)
    files, commits = sizes["files of the repository"], sizes["commits"]
    source = folder / "static-source"
    with open(source, "wb") as file:
        for number in range(sizes["MB of static files"]):
            file.write(number.to_bytes(4, "big") * 250_000)
    program = folder / ".local/bin/pip-sync"  # a name of which it is known that what is not wanted is removed
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\nexec {sys.executable} {folder}/install.py\n")
    program.chmod(0o755)
    (folder / "install.py").write_text(INSTALL.format(files=sizes["files of the environment"]))
    about = {"deploy.ini": DEPLOY_INI.format(size=STATIC_FILE, source=source), "requirements": "one", "assets": "one"}
    parts = history(files, commits, about)
    subprocess.run(
        ["git", "-C", app.origin, "fast-import", "--quiet"], input="".join(parts).encode(), check=True, timeout=600
    )
    app.git("reset", "-q", "--hard")
    app.deploy()
    told = app.root / "state/history.jsonl"
    (line,) = told.read_text().splitlines()
    told.write_text((line + "\n") * sizes["lines of the history"])
    return app


def measure(thing: str, size: int) -> Measured:
    sizes = {name: found[0] for name, found in SIZES.items()} | {thing: size}
    folder = Path(tempfile.mkdtemp(prefix="scale-"))
    try:
        app = make(folder, sizes)
        done: dict[str, list[float]] = {}
        phases: dict[str, list[float]] = {}
        dependency: dict[str, list[float]] = {}

        def run(name: str, into: dict[str, list[float]] | None, *words: str) -> None:
            began = time.monotonic()
            outcome = app.run(*words)
            done.setdefault(name, []).append(time.monotonic() - began)
            assert outcome.code == 0, outcome.log
            for phase, spent in outcome.result.get("timings", {}).items() if into is not None else ():
                into.setdefault(phase, []).append(spent)

        for number in range(ROUNDS):
            run("status", None, "status")
            run("nothing new", None, "deploy")
            (app.origin / "part00/dir00/module00007.py").write_text(f"changed = {number}\n")
            app.git("commit", "-qam", "one file")
            run("plan", None, "plan")
            run("one file", phases, "deploy")
            for name in ("requirements", "assets"):
                (app.origin / name).write_text(f"number{number}")
            app.git("commit", "-qam", "a dependency and a static file")
            run("a dependency", dependency, "deploy")
        medians = [
            {name: statistics.median(values) for name, values in found.items()} for found in (done, phases, dependency)
        ]
        return Measured(thing, size, *medians)
    finally:
        shutil.rmtree(folder)


def beyond(found: list[Measured]) -> list[str]:
    """Where ten times as much took more than ten times as long."""
    told = []
    for one, ten in zip(found, found[1:]):
        if one.thing != ten.thing:
            continue
        for kind, before, after in (
            ("", one.seconds, ten.seconds),
            ("one file: ", one.phases, ten.phases),
            ("a dependency: ", one.dependency, ten.dependency),
        ):
            for name in after:
                most = LARGEST * before.get(name, 0.0) + JITTER
                if after[name] > most:
                    told.append(
                        f"{kind}{name} with {ten.size:,} {ten.thing}: {after[name]:.2f} s, after {before[name]:.2f} s"
                    )
    return told


def render(found: list[Measured], minutes: float) -> str:
    kinds = ["status", "nothing new", "plan", "one file", "a dependency"]
    lines = [f"Median of {ROUNDS}, in {minutes:.0f} min; the rest of each is as small as in the first row of it.", ""]
    lines += [f"| seconds | {' | '.join(kinds)} | phases of the last two that take more than 0.1 s |"]
    lines += ["| --- |" + " --- |" * (len(kinds) + 1)]
    for one in found:
        cells = [f"{one.seconds[kind]:.2f}" for kind in kinds]
        long = [
            ", ".join(f"{name} {spent:.2f}" for name, spent in phases.items() if spent > 0.1)
            for phases in (one.phases, one.dependency)
        ]
        lines.append(f"| {one.size:,} {one.thing} | {' | '.join(cells)} | {'; '.join(filter(None, long)) or '-'} |")
    worse = beyond(found)
    lines += ["", "Grows more than linearly: " + ("; ".join(worse) if worse else "nothing") + "."]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--thing", action="append", choices=list(SIZES), help="only this one; repeatable")
    parser.add_argument("--docs", action="store_true", help="put the table into docs/benchmarks.md")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write all that was measured there, as JSON")
    options = parser.parse_args()
    began, found = time.monotonic(), []
    for thing in options.thing or SIZES:
        for size in SIZES[thing]:
            say(f"{size:,} {thing}")
            found.append(measure(thing, size))
    text = render(found, (time.monotonic() - began) / 60)
    print(text)
    if options.output:
        options.output.write_text(json.dumps([one._asdict() for one in found], indent=1) + "\n")
    if options.docs:
        report.put_generated(REPOSITORY / "docs/benchmarks.md", COMMAND, text)
    return 1 if beyond(found) else 0


if __name__ == "__main__":
    sys.exit(main())

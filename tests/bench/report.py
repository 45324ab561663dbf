"""From samples to medians, ratios, bars and tables; no machine is needed to test that."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Samples = Mapping[str, Mapping[str, Sequence[float]]]

TITLES = {
    "nothing": "nothing new",
    "one_file": "one .py file",
    "python": "new Python dependency",
    "npm": "new npm dependency",
    "first": "first deploy, warm caches",
    "rollback": "rollback until healthy",
    "boot": "boot, nothing new",
    "boot_behind": "boot, three commits behind",
    "offline": "a machine that is off, until told",
}
LOADS = {
    "good": "a good deploy",
    "pages": "a bad one: every page answers 500",
    "start": "a bad one: its workers do not start",
}
LOAD_FIGURES = ("requests", "failed", "slowest", "ill", "red")  # see load.Noticed
WATCHED = 60.0  # seconds after a deploy for which the case `load` watches a site that is not well
# What the README shows, in plain words: the --case that measures it, and where in the samples it is.
FIGURES = (
    ("one_file", "one_file", "a merge that changes one `.py` file, from the push until the site answers with it"),
    ("nothing", "nothing", "a push with nothing new: the machine is asked, and nothing is restarted"),
    ("python", "python", "a merge with a new Python package: the next environment is made beside the last one"),
    ("rollback", "rollback", "a rollback, until the release before answers"),
    ("boot", "boot_held_back", "a boot with nothing new: how long the application is kept waiting"),
    ("load", "load", "requests that failed while releases were replaced, and the slowest answer meanwhile"),
)
NOT_PEERS = ("ours", "ours, on the machine")


@dataclass(frozen=True)
class Bar:
    """One bar of the issue: what was measured must not be above the limit. None: a part was not measured."""

    text: str
    limit: float
    measured: float | None
    unit: str = ""

    @property
    def verdict(self) -> str:
        if self.measured is None:
            return "not measured"
        return "met" if self.measured <= self.limit else "**NOT met**"


class Medians:
    """Medians by case and contender, None where nothing was measured."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def of(self, case: str, who: str = "ours") -> float | None:
        values = self.samples.get(case, {}).get(who)
        return statistics.median(values) if values else None

    def floor(self, *names: str) -> float | None:
        return total([self.of("floors", name) for name in names])

    def fastest_peer(self, case: str) -> float | None:
        values = [self.of(case, who) for who in self.samples.get(case, {}) if who not in NOT_PEERS]
        return min((value for value in values if value is not None), default=None)

    def worst(self, case: str, who: str = "ours") -> float | None:
        values = self.samples.get(case, {}).get(who)
        return max(values) if values else None


def total(values: Sequence[float | None]) -> float | None:
    """The sum, None if a part is missing."""
    return None if any(value is None for value in values) else sum(value for value in values if value is not None)


def ratio(one: float | None, other: float | None) -> float | None:
    return None if one is None or not other else one / other


def above(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def predicted(floor: float, number: int, more: float, cores: int) -> float:
    """Seconds that so many machines may take, of which one computer is runner, machines and git server.

    floor: for nothing but `ssh host git fetch` to all, as many at once. more: the seconds of processors that one deploy
    needs beside that; all cores share them. What is above it is waiting that a better order would save.
    """
    return floor + number * more / cores


def bars(samples: Samples) -> list[Bar]:
    """The bars, from the medians of the same run (requests that failed: the worst round)."""
    m = Medians(samples)
    ssh, fetch, restart = "ssh host true", "git fetch, nothing new", "restart until healthy"
    reach = m.floor(ssh, fetch)
    npm = m.floor(ssh, fetch, "npm ci", "npm run build", restart)
    failed = total([m.worst(f"load_{kind}_failed") for kind in LOADS])
    start = above(m.floor("deploy_machine.py --version"), m.floor("python3 -c pass"))
    return [
        Bar("nothing new / (ssh + fetch)", 1.5, ratio(m.of("nothing"), reach)),
        Bar("nothing new - (ssh + fetch)", 0.25, above(m.of("nothing"), reach), "s"),
        Bar("nothing new / fastest contender", 0.5, ratio(m.of("nothing"), m.fastest_peer("nothing"))),
        Bar("one file - (ssh + fetch + restart)", 1.0, above(m.of("one_file"), m.floor(ssh, fetch, restart)), "s"),
        Bar("one file / naive", 1 / 3, ratio(m.of("one_file"), m.of("one_file", "naive"))),
        Bar("one file / fastest contender", 0.6, ratio(m.of("one_file"), m.fastest_peer("one_file"))),
        Bar("Python dependency / naive", 0.7, ratio(m.of("python"), m.of("python", "naive"))),
        Bar("Python dependency / fastest contender", 1.0, ratio(m.of("python"), m.fastest_peer("python"))),
        Bar("npm dependency - (ssh + fetch + npm ci + build + restart)", 1.5, above(m.of("npm"), npm), "s"),
        Bar("npm dependency / fastest contender", 0.9, ratio(m.of("npm"), m.fastest_peer("npm"))),
        Bar("first deploy / fastest contender", 1.05, ratio(m.of("first"), m.fastest_peer("first"))),
        Bar("failed requests under load", 0, failed),
        Bar("rollback - restart", 0.5, above(m.of("rollback", "ours, on the machine"), m.floor(restart)), "s"),
        Bar("boot, nothing new: services held back", 1.0, m.of("boot_held_back"), "s"),
        Bar("boot, nothing new - doing nothing", 0.2, above(m.of("boot"), m.of("boot", "naive")), "s"),
        Bar("a machine that is off / fastest contender", 1.3, ratio(m.of("offline"), m.fastest_peer("offline"))),
        Bar("20 machines / one", 3.0, ratio(m.of("twenty", "20 machines at once"), m.of("twenty", "one machine"))),
        Bar(
            "50 machines / as predicted",
            1.2,
            ratio(m.of("fifty", "50 machines"), m.of("fifty", "50 machines, as predicted")),
        ),
        Bar("50,000 files: one file / checkout", 2.0, ratio(m.of("big"), m.of("big", "checkout"))),
        Bar("peak memory", 40, m.of("memory"), "MB"),
        Bar("start (--version - an empty python3)", 0.03, start, "s"),
    ]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(values: Sequence[float] | None, base: float | None = None) -> str:
    """Median (range), and the ratio to `base`."""
    if not values:
        return "-"
    median = statistics.median(values)
    text = f"{median:.2f} ({min(values):.2f}-{max(values):.2f})"
    return text if base in (None, 0, median) else f"{text} {median / base:.1f}x"


def main_table(samples: Samples) -> str:
    """Cases by contenders, in seconds; behind each its multiple of ours."""
    names = list(samples.get("nothing", {}) or samples.get("one_file", {}))
    names = names or sorted({who for case in TITLES for who in samples.get(case, {})})
    rows = []
    for case, title in TITLES.items():
        measured = samples.get(case)
        if measured:
            base = Medians(samples).of(case)
            rows.append([title, *(cell(measured.get(who), base) for who in names)])
    return table(["seconds: median (range)", *names], rows)


def load_table(samples: Samples) -> str:
    """What the users of each contender's site notice of a good and of bad deploys; empty if that was not measured."""
    names = samples.get("load_good_failed", {})
    rows = [[who, *(load_cell(samples, kind, who) for kind in LOADS)] for who in names]
    return table(["open loop, 50 requests a second: failed", *LOADS.values()], rows) if rows else ""


def load_cell(samples: Samples, kind: str, who: str = "ours") -> str:
    """How many requests failed, the slowest answer; of a bad deploy also how the run ended, and the site."""
    figures = {each: samples.get(f"load_{kind}_{each}", {}).get(who, []) for each in LOAD_FIGURES}
    if not figures["failed"]:
        return "-"
    text = f"{sum(figures['failed']):.0f} of {sum(figures['requests']):.0f}; slowest {max(figures['slowest']):.2f} s"
    if kind == "good":
        return text
    return f"{text}; {'red' if min(figures['red']) else 'green'}{ended(max(figures['ill']))}"


def ended(ill: float) -> str:
    """How long the site was ill."""
    if ill >= WATCHED:
        return f"; still down after {WATCHED:.0f} s"
    return f"; up again after {ill:.0f} s" if ill else ""


def other_table(samples: Samples) -> str:
    """Floors, and what is measured for ours only."""
    rows = [[name, cell(values)] for name, values in samples.get("floors", {}).items()]
    for case, title in (
        ("rollback", "rollback: {}"),
        ("boot_held_back", "boot, services held back: {}"),
        ("twenty", "one .py file to {}"),
        ("fifty", "one .py file by push_all.py to {}"),
        ("fifty_cpu", "seconds of processors: {}"),
        ("big", "50,000 files, 20,000 commits: {}"),
        ("memory", "peak memory, MB: {}"),
    ):
        measured = samples.get(case, {})
        shown = [who for who in measured if case != "rollback" or who == "ours, on the machine"]
        rows += [[title.format(who), cell(measured[who])] for who in shown]
    return table(["beside it", "median (range)"], rows)


def bar_table(found: Sequence[Bar]) -> str:
    rows = [[bar.text, with_unit(bar.limit, bar.unit), with_unit(bar.measured, bar.unit), bar.verdict] for bar in found]
    return table(["bar", "at most", "measured", ""], rows)


def with_unit(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:.2f} {unit}".rstrip()


def timings_table(timings: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Where the time goes: medians of each phase, by case."""
    rows = []
    for case, runs in timings.items():
        phases = list(dict.fromkeys(phase for run in runs for phase in run))
        parts = [f"{phase} {statistics.median(run.get(phase, 0) for run in runs):.2f}" for phase in phases]
        rows.append([TITLES.get(case, case), ", ".join(parts)])
    return table(["where ours spends its time", "seconds by phase, in order"], rows)


def render(samples: Samples, timings: Mapping[str, Sequence[Mapping[str, Any]]], about: str) -> str:
    """All tables, as they stand in docs/benchmarks.md."""
    parts = [about, main_table(samples), load_table(samples), other_table(samples), bar_table(bars(samples))]
    parts += [timings_table(timings)] if timings else []
    return "\n\n".join(part for part in parts if part) + "\n"


def figures(samples: Samples) -> str:
    """The few figures that the README shows, each with the command that measures it."""
    rows = []
    for case, key, words in FIGURES:
        measured = load_cell(samples, "good") if key == "load" else with_unit(Medians(samples).of(key), "s")
        rows.append([words, measured, f"`sudo ./dev bench --case {case}`"])
    return table(["what", "measured", "with"], rows) + "\n"


def put_generated(path: Path, command: str, content: str) -> None:
    """Replace in a document what the command wrote there the last time."""
    path.write_text(replace_generated(path.read_text(), command, content))


def replace_generated(text: str, command: str, content: str) -> str:
    """The text with what is between the command's marks replaced; ValueError if they are not there."""
    begin, end = f"<!-- generated: {command} -->\n", "<!-- end -->"
    before, mark, rest = text.partition(begin)
    if not mark or end not in rest:
        raise ValueError(f"no marks for {command}")
    return before + begin + content + rest[rest.index(end) :]

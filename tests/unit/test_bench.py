"""What ./dev bench makes of its samples: medians, bars, tables."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import load, report

REPOSITORY = Path(__file__).resolve().parents[2]

SAMPLES = {
    "nothing": {"ours": [0.6, 0.4, 0.5], "naive": [3.0, 3.2, 3.1], "fabric": [1.0, 0.8, 0.9]},
    "one_file": {"ours": [2.0], "naive": [8.0], "fabric": [3.0]},
    "python": {"ours": [4.0], "naive": [5.0], "fabric": [4.0]},
    "rollback": {"ours": [9.0], "ours, on the machine": [1.0, 1.2]},
    "load_good_requests": {"ours": [300], "naive": [290]},
    "load_good_failed": {"ours": [0], "naive": [5]},
    "load_good_slowest": {"ours": [0.07], "naive": [1.0]},
    "load_pages_requests": {"ours": [400], "naive": [400]},
    "load_pages_failed": {"ours": [1], "naive": [150]},
    "load_pages_slowest": {"ours": [0.08], "naive": [1.2]},
    "load_pages_ill": {"ours": [0], "naive": [60.0]},
    "load_pages_red": {"ours": [1], "naive": [0]},
    "load_start_requests": {"ours": [500], "naive": [300]},
    "load_start_failed": {"ours": [0], "naive": [150]},
    "load_start_slowest": {"ours": [0.1], "naive": [60.1]},
    "load_start_ill": {"ours": [0], "naive": [22.4]},
    "load_start_red": {"ours": [1], "naive": [0]},
    "first": {"ours": [8.0], "naive": [7.8], "fabric": [9.0]},
    "boot": {"ours": [1.05], "naive": [0.8]},
    "offline": {"ours": [3.1], "naive": [3.0]},
    "boot_held_back": {"ours": [0.5, 1.5]},
    "twenty": {"one machine": [1.0], "20 machines at once": [3.5]},
    "fifty": {"50 machines": [12.0, 13.0], "50 machines, as predicted": [10.0]},
    "big": {"ours": [2.0], "checkout": [1.0]},
    "memory": {"ours": [26.0]},
    "floors": {
        "ssh host true": [0.2],
        "git fetch, nothing new": [0.2],
        "restart until healthy": [0.6, 0.8, 0.7],
        "python3 -c pass": [0.02],
        "deploy_machine.py --version": [0.10],
    },
}


def found(text: str, samples: report.Samples = SAMPLES) -> report.Bar:
    (bar,) = (bar for bar in report.bars(samples) if bar.text == text)
    return bar


def test_every_bar_of_the_issue_is_there_once() -> None:
    texts = [bar.text for bar in report.bars({})]
    assert len(texts) == len(set(texts)) == 21
    assert {bar.verdict for bar in report.bars({})} == {"not measured"}


@pytest.mark.parametrize(
    ("text", "measured", "verdict"),
    [
        ("nothing new / (ssh + fetch)", 0.5 / 0.4, "met"),
        ("nothing new - (ssh + fetch)", 0.1, "met"),
        ("nothing new / fastest contender", 0.5 / 0.9, "**NOT met**"),
        ("one file - (ssh + fetch + restart)", 2.0 - 1.1, "met"),
        ("one file / naive", 0.25, "met"),
        ("one file / fastest contender", 2 / 3, "**NOT met**"),
        ("Python dependency / naive", 0.8, "**NOT met**"),
        ("Python dependency / fastest contender", 1.0, "met"),
        ("npm dependency / fastest contender", None, "not measured"),
        ("first deploy / fastest contender", 8.0 / 7.8, "met"),
        ("boot, nothing new - doing nothing", 0.25, "**NOT met**"),
        ("a machine that is off / fastest contender", 3.1 / 3.0, "met"),
        ("npm dependency - (ssh + fetch + npm ci + build + restart)", None, "not measured"),
        ("failed requests under load", 1, "**NOT met**"),
        ("rollback - restart", 1.1 - 0.7, "met"),
        ("boot, nothing new: services held back", 1.0, "met"),
        ("20 machines / one", 3.5, "**NOT met**"),
        ("50 machines / as predicted", 1.25, "**NOT met**"),
        ("50,000 files: one file / checkout", 2.0, "met"),
        ("peak memory", 26.0, "met"),
        ("start (--version - an empty python3)", 0.08, "**NOT met**"),
    ],
)
def test_bars_are_computed_from_medians_of_the_same_run(text: str, measured: float | None, verdict: str) -> None:
    bar = found(text)
    assert bar.measured == (None if measured is None else pytest.approx(measured))
    assert bar.verdict == verdict


def test_fifty_machines_may_take_what_the_floor_takes_and_the_processors_need_beside_it() -> None:
    assert report.predicted(floor=7.0, number=50, more=0.2, cores=2) == pytest.approx(12.0)
    assert report.predicted(floor=7.0, number=50, more=0.0, cores=2) == 7.0, "a deploy that is no more than the floor"


def test_our_own_second_way_is_not_a_peer() -> None:
    assert report.Medians(SAMPLES).fastest_peer("rollback") is None
    assert report.Medians(SAMPLES).fastest_peer("nothing") == 0.9


def test_a_cell_has_median_range_and_the_multiple_of_ours() -> None:
    assert report.cell([3.0, 1.0, 2.5], 0.5) == "2.50 (1.00-3.00) 5.0x"
    assert report.cell([0.5]) == "0.50 (0.50-0.50)"
    assert report.cell([]) == report.cell(None) == "-"


def test_the_tables() -> None:
    lines = report.main_table(SAMPLES).splitlines()
    assert lines[0] == "| seconds: median (range) | ours | naive | fabric |"
    assert lines[2] == "| nothing new | 0.50 (0.40-0.60) | 3.10 (3.00-3.20) 6.2x | 0.90 (0.80-1.00) 1.8x |"
    assert "| rollback: ours, on the machine | 1.10 (1.00-1.20) |" in report.other_table(SAMPLES)
    assert "| 20 machines / one | 3.00 | 3.50 | **NOT met** |" in report.bar_table(report.bars(SAMPLES))
    assert "| one .py file | fetch 0.20, build 1.50 |" in report.timings_table(
        {"one_file": [{"fetch": 0.1, "build": 1.0}, {"fetch": 0.3, "build": 2.0}]}
    )


def test_the_table_of_the_load_has_how_each_kind_of_deploy_ended() -> None:
    _, _, ours, naive = report.load_table(SAMPLES).splitlines()
    assert ours.endswith("| 0 of 300; slowest 0.07 s | 1 of 400; slowest 0.08 s; red | 0 of 500; slowest 0.10 s; red |")
    good, pages, start = naive.split(" | ")[1:]
    assert good == "5 of 290; slowest 1.00 s"
    assert pages == "150 of 400; slowest 1.20 s; green; still down after 60 s"
    assert start == "150 of 300; slowest 60.10 s; green; up again after 22 s |"


def test_a_run_without_load_has_no_table_of_it() -> None:
    without = {case: found for case, found in SAMPLES.items() if not case.startswith("load")}
    assert report.load_table(without) == "" and "open loop" in report.render(SAMPLES, {}, "")
    text = report.render(without, {}, "about")
    assert "open loop" not in text and "\n\n\n" not in text
    assert found("failed requests under load", without).verdict == "not measured"


def test_what_a_deploy_can_have_disturbed_is_counted_from_its_begin() -> None:
    before, during, late = (load.Answer("/", at, at, at + took, status, "", "")
                            for at, took, status in ((1.0, 8.0, 500), (9.5, 1.0, 200), (11.0, 0.1, 500)))  # fmt: skip
    assert load.judge([before, during, late], began=10.0, ill=3.0, well=False) == load.Noticed(2, 1, 1.0, 3.0, 1)


class Site:
    """A machine, as the watch sees it: not well for so many looks."""

    def __init__(self, looks: int) -> None:
        self.looks = looks

    def health(self) -> dict[str, int]:
        self.looks -= 1
        return {"status": 200 if self.looks < 0 else 500}


@pytest.mark.parametrize(("looks", "ill"), [(0, 0.0), (1, 2.0), (10**9, 60.0)])
def test_a_site_is_watched_until_it_is_well_by_itself(looks: int, ill: float) -> None:
    ended = time.monotonic() - (2 if looks < 2 else 59.9)
    assert load.ill_for(Site(looks), ended) == pytest.approx(ill, abs=0.5)  # type: ignore[arg-type]


def test_generated_text_is_replaced_between_its_marks_only() -> None:
    text = "a\n<!-- generated: x -->\nold\n<!-- end -->\nb\n<!-- generated: y -->\nkept\n<!-- end -->\n"
    assert report.replace_generated(text, "x", "new\n") == text.replace("old", "new")
    with pytest.raises(ValueError, match="no marks for z"):
        report.replace_generated(text, "z", "new\n")


@pytest.mark.parametrize(
    ("document", "command"),
    [
        ("README.md", "./dev bench"),
        ("docs/benchmarks.md", "./dev bench"),
        ("docs/reliability.md", "./dev bench faults"),
        ("docs/reliability.md", "./dev bench faults --oracle"),
    ],
)
def test_the_documents_have_the_marks(document: str, command: str) -> None:
    text = (REPOSITORY / document).read_text()
    assert "no such text" in report.replace_generated(text, command, "no such text")


def test_figures_are_told_in_plain_words_with_their_command() -> None:
    lines = report.figures(SAMPLES).splitlines()
    assert len(lines) == 2 + 6
    assert any("one `.py` file" in line and "| 2.00 s | `sudo ./dev bench --case one_file` |" in line for line in lines)
    assert any("| 1.00 s | `sudo ./dev bench --case boot` |" in line for line in lines)
    assert any("| 0 of 300; slowest 0.07 s | `sudo ./dev bench --case load` |" in line for line in lines)
    assert all("| - |" in line for line in report.figures({}).splitlines()[2:])


def test_the_stopwatch_tells_how_the_command_ended() -> None:
    script = "sleep 0.2; echo no; exit 3"
    command = [sys.executable, str(REPOSITORY / "tests/bench/probe.py"), "run", "", "", "--", "sh", "-c", script]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert (told["code"], told["output"]) == (3, "no\n")
    assert 0.2 <= told["seconds"] < 2

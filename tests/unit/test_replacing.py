"""How answers under load are judged: each bar of the campaign can be broken, and then it is told."""

from __future__ import annotations

import dataclasses

import pytest

from bench import replacing as bench
from faults import open_loop, replacing
from faults.open_loop import Answer
from faults.replacing import SCENARIOS, Bars, Report, Scenario, Times

OLD, NEW = "a" * 40, "b" * 40
TIMES = Times(quiet=1, deploy=3, reported=5)
GOOD = SCENARIOS[0]
BAD = Scenario("health 500", good=False, defect="health 500")


def answers(seconds: float = 0.01, after: str = NEW) -> list[Answer]:
    """Eight seconds of load: the old commit answers until second 4, then `after`."""
    due = [number / open_loop.RATE for number in range(8 * open_loop.RATE)]
    return [Answer("/", at, at, at + seconds, 200, OLD if at < 4 else after, "") for at in due]


def change(found: list[Answer], at: float, **changes: object) -> list[Answer]:
    """The answers, one of them another one: that of the request at this second."""
    number = round(at * open_loop.RATE)
    return [*found[:number], dataclasses.replace(found[number], **changes), *found[number + 1 :]]  # type: ignore[arg-type]


def judged(scenario: Scenario, found: list[Answer], commit: str = NEW, serves: str = NEW) -> Report:
    return replacing.judge(scenario, Bars(), found, TIMES, commit, serves)


def test_what_nobody_notices_keeps_every_bar() -> None:
    report = judged(GOOD, answers())
    assert (report.problems, report.requests, report.failed) == ([], 400, 0)
    assert judged(BAD, answers(after=OLD), NEW, OLD).problems == []


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        (change(answers(), 4, status=502), "1 of 400 requests failed"),
        (change(answers(), 2, status=0), "1 of 400 requests failed"),
        (change(answers(), 4, error="cut"), "1 of 400 requests failed"),
        (change(answers(), 4, ended=4.2), "the slowest answer took 0.200 s, without a deploy 0.010 s"),
        (change(answers(), 2.9, ended=3.2), "the slowest answer took 0.300 s, without a deploy 0.010 s"),
        (change(answers(), 6, commit=OLD), "1 answers of an old commit began after the deploy had reported"),
        (answers()[:160], "the load was not what it should be: nothing was shown"),
    ],
)
def test_a_broken_bar_is_told(found: list[Answer], problem: str) -> None:
    assert problem in judged(GOOD, found).problems


def test_what_is_slow_without_a_deploy_too_is_no_fault_of_the_deploy() -> None:
    assert judged(GOOD, change(change(answers(), 2, ended=2.2), 4, ended=4.3)).problems == []


def test_a_computer_that_is_too_busy_to_tell_shows_nothing() -> None:
    report = judged(GOOD, change(answers(), 2, ended=2.3))
    assert report.problems == [report.wait] == ["the slowest answer took 0.010 s, without a deploy 0.300 s"]


def test_a_bad_commit_may_answer_nobody() -> None:
    report = judged(BAD, change(answers(after=OLD), 4, commit=NEW), NEW, OLD)
    assert report.problems == ["1 answers came from the commit that is not well"]


def test_a_long_request_counts_with_what_it_waited_only() -> None:
    assert Answer("/slow?20", 1, 1, 21.5, 200, OLD, "").latency == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("path", "data", "error"),
    [
        ("/", b"HTTP/1.1 200 OK\r\nCommit: abc\r\nContent-Length: 2\r\n\r\nok", ""),
        ("/stream?5", b"HTTP/1.1 200 OK\r\nCommit: abc\r\n\r\nmore\nend of stream\n", ""),
        ("/stream?5", b"HTTP/1.1 200 OK\r\nCommit: abc\r\n\r\nmore\nmore\n", "cut: it ends with 'more\\nmore\\n'"),
    ],
)
def test_an_answer_that_is_not_complete_is_an_error(path: str, data: bytes, error: str) -> None:
    assert open_loop.read(path, data) == (200, "abc", error)


def test_the_tables_tell_the_worst_of_all_runs() -> None:
    runs = [Report(GOOD.name, 400, 0, 0.2, 0.1, code=0, outcome="deployed"),
            Report(GOOD.name, 400, 2, 0.5, 0.1, code=0, outcome="deployed", problems=["2 failed"])]  # fmt: skip
    (table,) = bench.tables(runs)
    assert table.endswith("| a good commit | 0 deployed | 2 | 800 | 2 | 500 ms | 100 ms | **1 runs BROKEN** |")
    assert all(scenario.name in bench.NAMES for scenario in SCENARIOS)

"""Machine tests: marked by where they lie, refused without root, and with the machines' journals in a failure.
Tests of pages: marked by what they ask for, left out where there is no browser.

Tests that take long whatever they find are marked as slow: by where they lie, or where they stand.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import browser

MACHINE_TESTS = Path(__file__).parent / "machine"
SLOW = [Path(__file__).parent / name for name in ("oracle", "shapes")]
SLOW_FILES = ("hangs", "postgres", "other_databases", "fuzz", "browser")
# each of these is quick, and all of them together are not: `./dev test quick` is for a minute's look
SLOW_FILES += ("adopt", "told", "migrations", "repair", "alerts", "handover", "workflow", "interrupted", "record")
SLOW_FILES += ("hostile", "signatures", "stuck", "disk_full", "demo")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What cannot run here, as there is no root or no browser, is left out, or fails if this is CI."""
    machine = [item for item in items if MACHINE_TESTS in item.path.parents]
    for item in machine:
        item.add_marker(pytest.mark.machine)
    for item in items:
        if {*SLOW} & {*item.path.parents} or any(name in item.path.name for name in SLOW_FILES):
            item.add_marker(pytest.mark.slow)
    if machine and os.geteuid() != 0:
        if os.environ.get("CI") == "true":
            raise pytest.UsageError(f"{len(machine)} machine tests need root, and with CI=true none may be left out")
        if len(machine) == len(items) and not hasattr(config, "workerinput"):  # there ./dev has said it
            raise pytest.UsageError(f"all {len(machine)} tests asked for need root: sudo ./dev test ...")
        items[:] = [item for item in items if item not in machine]
        config.stash[LEFT_OUT] = len(machine)
    leave_out_pages(config, items)

    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # of a job in the background; programs under test inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    workers = getattr(config, "workerinput", {}).get("workercount", 1)
    items[:] = dealt(items, workers)


def leave_out_pages(config: pytest.Config, items: list[pytest.Item]) -> None:
    pages = [item for item in items if item.get_closest_marker("browser")]
    if pages and not browser.program():
        if os.environ.get("CI") == "true":
            raise pytest.UsageError(f"{len(pages)} tests need a browser, and with CI=true none may be left out")
        items[:] = [item for item in items if item not in pages]
        config.stash[NO_BROWSER] = len(pages)


def dealt(items: list[pytest.Item], workers: int) -> list[pytest.Item]:
    """The tests in an order in which each worker, that gets a part of the list, begins with some that mostly wait."""
    slow = [item for item in items if "hangs" in item.path.name]
    quick = [item for item in items if item not in slow]
    ends = [len(quick) * part // workers for part in range(workers + 1)]
    parts = [slow[part::workers] + quick[ends[part] : ends[part + 1]] for part in range(workers)]
    return [item for part in parts for item in part]


LEFT_OUT = pytest.StashKey[int]()
NO_BROWSER = pytest.StashKey[int]()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if left_out := config.stash.get(LEFT_OUT, 0):
        terminalreporter.write_line(f"{left_out} machine tests did NOT run: they need root (sudo ./dev test)")
    if left_out := config.stash.get(NO_BROWSER, 0):
        terminalreporter.write_line(f"{left_out} tests did NOT run: they need a browser: {browser.HOW_TO_GET_IT}")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Put the journals of a failing test's machines into its report."""
    outcome: Any = yield
    report = outcome.get_result()
    if report.when != "call" or not report.failed:
        return
    for world in getattr(item, "funcargs", {}).values():
        for machine in getattr(world, "machines", {}).values():
            if machine.is_on and machine.name != "services":
                report.sections.append((f"journalctl -n 120 on {machine.name}", machine.journal("-n", "120")))

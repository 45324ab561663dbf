"""Killed, without power, under load: never worse than before (samples of `./dev bench faults`)."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from faults import cuts, kills
from faults.subject import PUSH, STARTUP, Subject
from faults.under_load import under_load
from lab.host import call
from lab.world import World, snapshot

pytestmark = pytest.mark.timeout(600)  # each is many deploys, and others share the processors


@pytest.mark.parametrize(
    ("count", "power_on", "changes"),
    [(5, 1, ("code", "migration")), (2, 0, ("dependency",))],
    ids=["code and migrations", "dependencies"],
)
def test_killed_anywhere(world: World, count: int, power_on: int, changes: tuple[str, ...]) -> None:
    """The application answers, `current` is whole, and the next run ends as an undisturbed one."""
    subject = Subject(world, changes)
    for case in kills.sample(count, 5, power_on, changes):
        outcome = kills.run_case(subject, case)
        assert outcome.problems == [], f"{case}: killed {outcome.met} ({outcome.stage})"
    world.machine("frontend").sh(f"systemctl reset-failed {STARTUP} {PUSH}", check=False)


def test_killed_at_a_boot_right_after_its_rename(world: World) -> None:
    """No slot served that could have proved the release first: the site answers all the same."""
    subject = Subject(world, ("code",))
    outcome = kills.run_case(subject, kills.Case("power-on", "code", "switched"))
    assert outcome.problems == []
    assert outcome.met == "in the deploy"
    world.machine("frontend").sh(f"systemctl reset-failed {STARTUP} {PUSH}", check=False)


def test_a_rollback_killed_right_after_its_rename(world: World) -> None:
    subject = Subject(world, ("code",))
    frontend = subject.frontend
    old = os.readlink(subject.app / "current")
    with kills.stopping_after_the_rename(subject):
        process = subject.start("cd", "rollback")
        kills.kill_when(subject, PUSH, process, lambda: os.readlink(subject.app / "current") != old)
    back = subject.current()
    assert frontend.health() == {"status": 200, "commit": back}, "the rename has switched all"
    assert frontend.deploy("--commit", back, "--force").result["healthy"]
    assert frontend.health() == {"status": 200, "commit": back}


@pytest.fixture
def powered() -> Iterator[tuple[World, cuts.Disk]]:
    """A world whose frontend has /srv/app on a disk of its own; it is switched off."""
    with World(snapshot("deployed")) as world:
        world.boot("services")
        disk = cuts.put_on_disk(world.machine("frontend"), commit_interval=1)
        try:
            yield world, disk
        finally:
            world.machine("frontend").cut()
            disk.remove()


def test_the_cut_is_a_real_one(powered: tuple[World, cuts.Disk]) -> None:
    """What was not synced is lost, what was is there: else the tests of power cuts would prove nothing."""
    world, disk = powered
    for name in ("synced", "not-synced"):
        (disk.place / name).write_text("hello")
    with open(disk.place / "synced") as file:
        os.fsync(file.fileno())
    (disk.place / "renamed").write_text("old")
    call("sync", "--file-system", disk.place)
    (disk.place / "new").write_text("new")
    (disk.place / "new").rename(disk.place / "renamed")
    (disk.place / "late").write_text("late")
    time.sleep(2.5)  # the names are written after a second; the contents would be after thirty
    place = world.directory / "copy"
    place.mkdir()
    call("mount", "-o", "loop", disk.cut(), place)
    try:
        assert (place / "synced").read_text() == "hello"
        assert (place / "late").read_bytes() == b"", "its name was written, and its content was not"
        assert (place / "renamed").read_bytes() == b"", "a rename without a sync loses both"
    finally:
        call("umount", place)


@pytest.mark.parametrize(
    ("change", "trigger", "moments"),
    [
        ("code", "cd", ["release complete", "switched"]),
        ("dependency", "boot", [0.4, "environment complete"]),
    ],
)
def test_power_cuts(powered: tuple[World, cuts.Disk], change: str, trigger: str, moments: list[str | float]) -> None:
    """Nothing that counts as complete is damaged, and the next boot ends as an undisturbed deploy."""
    world, disk = powered
    world.boot("frontend")
    world.machine("frontend").wait_for_startup()
    subject = Subject(world, (change,))
    for moment, copy in zip(moments, cuts.take_cuts(subject, disk, trigger, change, moments), strict=True):
        assert cuts.boot_copy(subject, disk, copy, change) == [], f"cut at {moment}"


def test_no_request_is_lost_or_answered_by_an_old_release(world: World) -> None:
    """Keep-alive, new and slow requests during deploys and a rollback; assets of the page before stay."""
    report = under_load(world, ["code", "code", "dependency", "code", "rollback", "code"])
    assert report.problems == []
    assert min(report.requests.values()) >= 6, report.requests

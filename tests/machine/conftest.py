"""Worlds for tests, each an overlay of a prepared one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.world import World, snapshot


@pytest.fixture
def bare() -> Iterator[World]:
    """The services are there and the application is in git, but no machine is set up."""
    with World(snapshot("services")) as world:
        world.boot("services")
        yield world
        no_failed_units(world)


@pytest.fixture
def world() -> Iterator[World]:
    """Scheduler and frontend are set up and run the application's first commit; both are switched off."""
    with World(snapshot("deployed")) as world:
        world.boot("services")
        yield world
        no_failed_units(world)


def no_failed_units(world: World) -> None:
    """Whatever a test did, no unit may be left failed at its end."""
    for machine in world.machines.values():
        if machine.is_on:
            assert machine.failed_units() == [], f"see: journalctl -b on {machine.name}"

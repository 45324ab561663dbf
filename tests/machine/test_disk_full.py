"""A disk that fills up at any point of a deploy: the old release serves, and nothing of the new one is left."""

from __future__ import annotations

import json
import random
import re

import pytest

from lab.machine import Machine
from lab.world import World

FILLER = "/srv/app/shared/filler"


@pytest.fixture
def small(world: World) -> Machine:
    """A frontend whose /srv/app is a file system of 300 MB."""
    machine = world.boot("frontend")
    machine.sh(
        "cp -a /srv/app /srv/copy && mount -t tmpfs -o size=300M,mode=755 tmpfs /srv/app"
        " && chown deploy:deploy /srv/app && cp -a /srv/copy/. /srv/app && systemctl restart gunicorn@blue"
    )
    return machine


def leave_free(machine: Machine, kilobytes: int) -> None:
    """Fill the file system up to so many free kilobytes."""
    machine.sh(
        f"rm -f {FILLER}; free=$(df --output=avail -k /srv/app | tail -1);"
        f" head -c $(( (free - {kilobytes}) * 1024 )) /dev/zero > {FILLER} 2>/dev/null; true"
    )


def lines(machine: Machine) -> list[str]:
    """Of the history; the file system is only seen from inside the machine."""
    return machine.out("cat /srv/app/state/history.jsonl").splitlines()


def big_file(kilobytes: int) -> str:
    return random.Random(7).randbytes(kilobytes * 512).hex()


def assert_nothing_happened(machine: Machine, health: dict[str, object], contents: str) -> None:
    assert machine.health() == health
    assert machine.out("ls -A /srv/app/releases /srv/app/envs") == contents
    for line in lines(machine):
        json.loads(line)


def contents_of(machine: Machine) -> str:
    return machine.out("ls -A /srv/app/releases /srv/app/envs")


@pytest.mark.parametrize(
    ("kilobytes", "says"),
    [
        (600, "could not be fetched: No space left on device"),
        (4000, "checking out: No space left on device"),
        (0, "No space left"),
    ],
    ids=["the fetch", "the checkout", "the state"],
)
def test_a_disk_that_fills_up_in(world: World, small: Machine, kilobytes: int, says: str) -> None:
    old, contents = small.health(), contents_of(small)
    new = world.commit({"static/big.txt": big_file(4000)})
    leave_free(small, kilobytes)
    done = small.deploy(expect=10)
    assert done.outcome == "failed"
    assert re.search(says, done.message), done.message
    assert re.search(r"/srv/app has [0-9.]+ MB free", done.message), done.message
    assert_nothing_happened(small, old, contents)
    assert small.out("find /srv/app/repo.git -name 'tmp_*'") == ""
    small.sh(f"rm {FILLER}")
    done = small.deploy()
    assert (done.outcome, small.health()["commit"]) == ("deployed", new)
    assert [json.loads(line)["outcome"] for line in lines(small)][-1] == "deployed"


@pytest.mark.parametrize(
    ("files", "says"), [(6, "could not be fetched"), (40, "checking out")], ids=["the fetch", "the checkout"]
)
def test_a_file_system_that_takes_no_more_files(world: World, small: Machine, files: int, says: str) -> None:
    old, contents = small.health(), contents_of(small)
    new = world.commit({f"static/{number}.txt": "x\n" for number in range(60)})
    used = int(small.out("df --output=iused /srv/app | tail -1"))
    small.sh(f"mount -o remount,nr_inodes={used + files} /srv/app")
    done = small.deploy(expect=10)
    assert f"{says}: No space left on device" in done.message
    assert re.search(r"/srv/app has \d+ MB free, for \d+ files", done.message), done.message
    assert_nothing_happened(small, old, contents)
    small.sh("mount -o remount,nr_inodes=0 /srv/app")
    assert small.deploy().result["commit"] == new


def add_dependency(world: World) -> str:
    world.add_python_dependency("humanize (>=4,<5)")
    return world.commit(world.edit("board/views.py", "import markdown\n", "import humanize  # noqa\nimport markdown\n"))


def test_what_is_known_not_to_fit_is_not_begun(world: World, small: Machine) -> None:
    old, contents = small.health(), contents_of(small)
    new = add_dependency(world)
    leave_free(small, 20_000)
    done = small.deploy(expect=10)
    assert re.search(r"not enough space: /srv/app has [0-9.]+ MB free and this needs about \d+ MB", done.message)
    assert re.search(r"\(.*python \d+ MB", done.message)
    assert done.ran == []
    assert_nothing_happened(small, old, contents)
    small.sh(f"rm {FILLER}")
    assert small.deploy().result["commit"] == new


def test_a_disk_that_fills_up_in_a_dependency_build(world: World, small: Machine) -> None:
    old, contents = small.health(), contents_of(small)
    new = add_dependency(world)
    small.sh('sed -i \'s/"bytes": [0-9]*/"bytes": 0/\' /srv/app/envs/*/.complete')  # nobody knows what it takes
    leave_free(small, 1_500)
    done = small.deploy(expect=10)
    assert "step python failed" in done.message
    assert "No space left on device" in done.message + done.result["detail"]
    assert re.search(r"/srv/app has [0-9.]+ MB free", done.message), done.message
    assert_nothing_happened(small, old, contents)
    small.sh(f"rm {FILLER}")
    assert small.deploy().result["commit"] == new  # the commit was not to blame, so it is tried again

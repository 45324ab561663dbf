"""A disk of its own for /srv/app, copied at an instant: what was not written by then is gone.

SIGKILL to a machine leaves what the kernel holds in memory, so it is not a power cut for its files.
Here /srv/app is an ext4 file system in an image behind a loop device. What a program writes stays in
memory until it is synced or the kernel writes it back; a copy of the image has only what had reached
the device. For the copy to be of one instant, the image lies on a file system that can be frozen: that
stops the loop device's writes, and it does not sync the file system inside (freezing that one would).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from faults.kills import STARTUP, Case, Watch, has_come
from faults.subject import CHANGES, Subject
from faults.trees import differences
from lab.host import call
from lab.machine import Machine

Round = tuple[str, str, list[str | float]]  # trigger, change, and the moments of one deploy
AROUND_THE_SWITCH: list[str | float] = ["step collectstatic", "release complete", "switching", "switched"]
AROUND_THE_SWITCH += ["services", "confirmed", "recorded"]
FREEZE, THAW = 0xC0045877, 0xC0045878  # FIFREEZE, FITHAW of linux/fs.h


class Disk:
    """An ext4 file system at `place`, and the means to pull its plug."""

    def __init__(self, directory: Path, place: Path, commit_interval: int) -> None:
        """commit_interval: seconds after which ext4 writes names and sizes by itself."""
        self.place = place
        self.commit_interval = commit_interval
        self.directory = directory
        self.outer = directory / "outer"
        self.image = self.outer / "app.img"
        self.cuts = 0
        self.outer.mkdir(parents=True)
        make_file_system(directory / "outer.img", 4000, "-O", "^has_journal")
        call("mount", "-o", "loop", directory / "outer.img", self.outer)
        make_file_system(self.image, 1500)

    def plug_in(self, image: Path | None = None) -> None:
        # noauto_da_alloc: ext4 would else repair programs that rename without having synced
        options = f"loop,commit={self.commit_interval},noauto_da_alloc"
        call("mount", "-o", options, image or self.image, self.place)

    def unplug(self) -> None:
        call("umount", self.place)

    def cut(self) -> Path:
        """A copy of what is on the disk in this instant. Each is a new file: a loop device may outlive its use."""
        self.cuts += 1
        copy = self.directory / f"cut{self.cuts}.img"
        with self.frozen():
            call("cp", "--sparse=always", self.image, copy)
        return copy

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        descriptor = os.open(self.outer, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, FREEZE, 0)
            try:
                yield
            finally:
                fcntl.ioctl(descriptor, THAW, 0)
        finally:
            os.close(descriptor)

    def remove(self) -> None:
        """Unmount it; the loop devices go with their mounts."""
        for place in (self.place, self.outer):
            call("umount", "-l", place, check=False)


def make_file_system(image: Path, megabytes: int, *options: str) -> None:
    call("truncate", "-s", f"{megabytes}M", image)
    call("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", *options, image)


def put_on_disk(machine: Machine, commit_interval: int) -> Disk:
    """Move /srv/app of a machine that is off to a disk of its own."""
    app = machine.root / "srv/app"
    disk = Disk(machine.directory / "disk", app, commit_interval)
    contents = machine.directory / "contents"
    call("cp", "-a", app, contents)
    disk.plug_in()
    call("chown", "--reference", contents, app)
    call("cp", "-a", f"{contents}/.", app)
    (app / "lost+found").rmdir()
    return disk


def take_cuts(subject: Subject, disk: Disk, trigger: str, change: str, moments: Sequence[str | float]) -> list[Path]:
    """One undisturbed deploy, and a copy of the disk at each moment of it; they must be in order."""
    subject.restore(change)
    call("sync", "--file-system", subject.app)
    watch = Watch(subject.app, subject.commits[change])
    process, copies = subject.start(trigger), []
    began = time.monotonic()
    for moment in moments:
        case = Case(trigger, change, moment)
        while process.poll() is None:
            watch.look()
            if has_come(case, watch, time.monotonic() - began, subject.seconds[change]):
                break
            time.sleep(0.0002)
        stalled = time.monotonic()
        copies.append(disk.cut())
        began += time.monotonic() - stalled  # the deploy stood still meanwhile
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, out
    return copies


def boot_copy(subject: Subject, disk: Disk, copy: Path, change: str) -> list[str]:
    """Boot the machine with a copy of its disk; which promises turned out to be broken."""
    frontend = subject.frontend
    frontend.cut()
    disk.unplug()
    disk.plug_in(copy)
    copy.unlink()
    problems = on_the_disk(subject)
    frontend.boot(wait="multi-user.target")
    if frontend.wait_for_startup() != "exited":
        problems.append(f"the next boot failed: {frontend.show(STARTUP, 'StatusText')}")
    new = subject.commits[change]
    if frontend.health() != {"status": 200, "commit": new}:
        problems.append(f"afterwards the application answers {frontend.health()}")
    return problems + [f"afterwards {each}" for each in subject.differs_from_undisturbed(change)]


def plan_cuts(count: int, seed: int) -> list[Round]:
    """At least `count` cuts: around the switch, and at random instants of environment builds."""
    chosen = random.Random(seed)
    rounds: list[Round] = []
    while sum(len(moments) for _, _, moments in rounds) < count:
        number = len(rounds)
        trigger = "cd" if number % 4 < 2 else "boot"
        if number % 2:
            rounds.append((trigger, "dependency", sorted(round(chosen.uniform(0.1, 0.8), 3) for _ in range(4))))
        else:
            change = CHANGES[number // 2 % len(CHANGES)]
            marks = sorted(chosen.sample(AROUND_THE_SWITCH, 4), key=AROUND_THE_SWITCH.index)
            rounds.append((trigger, change, marks))
    return rounds


def back_to_the_original(subject: Subject, disk: Disk) -> None:
    subject.frontend.cut()
    disk.unplug()
    disk.plug_in()
    subject.frontend.boot(wait="multi-user.target")
    subject.frontend.wait_for_startup()


def on_the_disk(subject: Subject) -> list[str]:
    """What a cut left, before anything has run: nothing that counts as complete may be damaged."""
    app, tree = subject.app, subject.tree()
    known = (subject.base_tree, *subject.references.values())
    commit = subject.current()
    if commit not in (subject.base, *subject.commits.values()):
        return [f"current is {commit or 'empty'}"]
    change = next((name for name, each in subject.commits.items() if each == commit), "")
    problems = [f"current is not whole: {each}" for each in subject.part_of_current(change)]
    for marker in (name for name in tree if name.startswith("envs/") and name.endswith("/.complete")):
        top = marker.removesuffix(".complete")
        found, *expected = (
            {name: what for name, what in each.items() if name.startswith(top)} for each in (tree, *known)
        )
        # of the same step and named inputs there may be two: what it read besides was different
        told = [differences(each, found) for each in expected if each]
        problems += [f"a complete environment is damaged: {each}" for each in (min(told, key=len) if told else [])]
    for path in (app / "state").glob("*.json"):
        try:
            json.loads(path.read_text())
        except ValueError:
            problems.append(f"{path.name} is not whole: {path.read_text()!r}")
    sound = call("git", f"--git-dir={app}/repo.git", "-c", "safe.directory=*", "fsck", "--full", "--no-dangling",
                 check=False)  # fmt: skip
    return problems + ([f"mirror: {sound.stdout}{sound.stderr}"] if sound.returncode else [])

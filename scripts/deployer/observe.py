"""What a command really reads of a folder, and what it leaves there: the kernel tells (inotify(7)), whoever does it."""

from __future__ import annotations

import itertools
import os
import re
import select
import struct
import threading
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

OPEN, FOLDER = 0x20, 0x40000000  # the latter: it is one
MAKES = 0x80 | 0x100  # moved to here, or made
CHANGES = 0x2 | 0x4 | 0x8 | 0x40 | 0x200 | MAKES  # written, its mode set, moved away or removed
OVERFLOW = 0x4000
MANY_FOLDERS = 500  # below shared/
EVENT = struct.Struct("iIII")
CACHES = re.compile(r"(.*/)?__pycache__(/.*)?|.*\.pyc")  # Python's own, which it checks against the source itself


class Seen(NamedTuple):
    """Paths relative to the folder that was watched."""

    opened: frozenset[str]  # files that were there before, and were opened
    listed: frozenset[str]  # folders whose names were read
    left: tuple[str, ...]  # what was made, changed or removed, and not put back


class Observer(threading.Thread):
    """Watches a folder while it is entered; `seen` is None if not everything could be.

    A file that is only asked about (stat), or looked for in vain, is no event.
    """

    def __init__(self, top: Path, apart: Collection[str], beyond: Sequence[str] = (), read: Sequence[str] = ()) -> None:
        """top: what is watched, links in it are not followed. apart: paths below it that do not count.

        beyond: folders behind links in it whose own files are watched, too. read: files and folders behind links of
        which it is only watched whether they are read.
        """
        super().__init__(daemon=True)
        self.top, self.apart, self.beyond, self.only_read = top, {path.rstrip("/") for path in apart}, beyond, read
        self.folders: dict[int, str] = {}  # by watch
        self.known: set[str] = set()  # of which there was an event
        self.made: set[str] = set()  # which was their making
        self.opened: set[str] = set()
        self.listed: set[str] = set()
        self.changed: set[str] = set()
        self.is_complete = True
        self.seen: Seen | None = None

    def __enter__(self) -> Observer:
        import ctypes  # noqa: PLC0415 - takes a while, and only a step that runs needs it

        self.calls: Any = ctypes.CDLL(None)
        self.events = self.calls.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        self.is_complete = self.events >= 0
        self.stopped, self.stop = os.pipe()
        for folder in (*folders_of(self.top, self.apart), *self.beyond):
            if self.is_complete and (self.top / folder).is_dir():
                self.watch(folder, OPEN | CHANGES)
        for path in self.only_read:
            if self.is_complete and (self.top / path).exists():
                self.watch(path, OPEN)
        if self.is_complete:
            self.start()
        return self

    def watch(self, folder: str, mask: int) -> None:
        place = os.fsencode(os.path.realpath(self.top / folder))
        number = self.calls.inotify_add_watch(self.events, place, mask)
        self.is_complete = number >= 0  # else there are more folders than this user may watch
        self.folders[number] = folder

    def __exit__(self, *_: object) -> None:
        os.close(self.stop)
        if self.is_alive():
            self.join()
        for descriptor in (self.stopped, *([self.events] if self.events >= 0 else [])):
            os.close(descriptor)
        if self.is_complete:
            self.seen = Seen(frozenset(self.opened), frozenset(self.listed), self.left())

    def run(self) -> None:
        is_over = False
        while not is_over:
            is_over = self.stopped in select.select([self.events, self.stopped], [], [])[0]
            for folder, mask, name in self.read():
                self.note(os.path.join(folder, name), mask)

    def read(self) -> Iterator[tuple[str, int, str]]:
        """The events that have come: folder, what happened, name in it (empty: the folder itself)."""
        while True:
            try:
                data = os.read(self.events, 65536)
            except BlockingIOError:
                return
            position = 0
            while position < len(data):
                number, mask, _, length = EVENT.unpack_from(data, position)
                position += EVENT.size + length
                self.is_complete &= not mask & OVERFLOW
                if number in self.folders:
                    yield self.folders[number], mask, os.fsdecode(data[position - length : position].rstrip(b"\0"))

    def note(self, path: str, mask: int) -> None:
        path = path.rstrip("/")
        if mask & MAKES and path not in self.known:
            self.made.add(path)
        self.known.add(path)
        if mask & OPEN and path not in self.made:
            source = re.sub(r"(?:(.*/))?__pycache__/([^/.]+)\.[^/]*pyc$", source_of, path)
            (self.listed if mask & FOLDER else self.opened).add(source)
        elif mask & CHANGES and not CACHES.fullmatch(path):
            self.changed.add(path)

    def left(self) -> tuple[str, ...]:
        """Of what was changed, what is not as it was."""
        return tuple(sorted(path for path in self.changed if self.holds(path) or self.is_missing(path)))

    def is_missing(self, path: str) -> bool:
        return path not in self.made and path not in self.apart and not os.path.lexists(self.top / path)

    def holds(self, path: str, is_new: bool = False) -> bool:
        """Whether there is anything that counts: a folder may hold nothing but what is provided."""
        place = self.top / path
        if path in self.apart or CACHES.fullmatch(path) or not os.path.lexists(place):
            return False
        if place.is_symlink() or not place.is_dir():
            return True
        if not is_new and path not in self.made:
            return False
        return any(self.holds(os.path.join(path, name), True) for name in os.listdir(place))


def source_of(match: re.Match[str]) -> str:
    """The module that a compiled one stands for."""
    return f"{match[1] or ''}{match[2]}.py"


def folders_of(top: Path, apart: set[str]) -> Iterator[str]:
    """Every folder below `top`, relative to it."""
    for place, folders, _ in os.walk(top):
        folder = os.path.relpath(place, top)
        folder = "" if folder == "." else folder
        yield folder
        folders[:] = [name for name in folders if os.path.join(folder, name) not in apart]


def folders_used(top: Path, path: str) -> Iterator[str]:
    """The folders of what an earlier step provides in which whoever uses it opens a file, relative to `top`.

    A program of an environment reads its pyvenv.cfg; Node.js, the package.json of each package, maybe @OF/PACKAGE.
    """
    if (top / path / "pyvenv.cfg").exists():
        yield from (path, f"{path}/bin")
        return
    for place, folders, _ in os.walk(top / path):
        folder = os.path.relpath(place, top)
        yield folder
        if os.path.basename(path) == "node_modules" and folder.count("/") - path.count("/") >= 2:
            folders.clear()


def folders_below(top: Path, path: str) -> list[str]:
    """What a link leads to, and the folders below it, relative to `top`; of very many (uploads, say) not all."""
    walk = (os.path.relpath(place, top) for place, _, _ in os.walk(top / path))
    return [*itertools.islice(walk, MANY_FOLDERS)] or [path]

"""What setup_machine.py has installed, held against what the release that serves carries."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
from deployer import host, installed, releases

UNIT = "[Unit]\nDescription=x\n"


class Place:
    """A root with one release, and what setup has noted of scheduler.service."""

    def __init__(self, folder: Path) -> None:
        self.library, self.release = folder / "library", releases.Release(folder / "root/releases/one")
        self.machine = host.bare(folder / "root")._replace(roles=())
        (self.release.path / "systemd").mkdir(parents=True)
        self.unit = self.release.path / "systemd/scheduler.service"
        self.unit.write_text(UNIT)
        (self.library / "blog").mkdir(parents=True)
        self.note({"source": "systemd/scheduler.service", "source_sha256": hashlib.sha256(UNIT.encode()).hexdigest()})

    def note(self, about: Any, root: str = "", folder: str = ".") -> None:
        files = {"/etc/systemd/system/scheduler.service": about, "/etc/sudoers.d/x": {"sha256": "0"}}
        text = json.dumps({"schema": 1, "root": root or str(self.machine.root), "files": files})
        (self.library / folder / "installed.json").write_text(text)

    def told(self) -> list[str]:
        return installed.warnings(self.machine, self.release, self.library)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_an_untouched_machine_is_told_nothing(place: Place) -> None:
    assert place.told() == []
    place.unit.unlink()
    assert place.told() == [], "the application has no such file"
    place.unit.parent.rmdir()
    assert place.told() == []


def test_a_unit_that_was_changed_and_merged_is_told(place: Place) -> None:
    place.unit.write_text(UNIT + "After=y\n")
    (told,) = place.told()
    assert told.startswith("scheduler.service differs from the commit's: run setup_machine.py")
    place.machine = place.machine._replace(app="blog")
    assert place.told() == [], "this one's record is another"
    place.note({"source": "systemd/scheduler.service", "source_sha256": "0"}, folder="blog")
    assert len(place.told()) == 1


def test_records_of_others_and_damaged_ones_say_nothing(place: Place) -> None:
    place.note({"source": "systemd/scheduler.service", "source_sha256": "0"}, root="/srv/other")
    assert place.told() == []
    for damaged in ("x", 5, {"source": 5}, {"source": "systemd"}):
        place.note(damaged)
        assert isinstance(place.told(), list)
    (place.library / "installed.json").write_text("[" * 100_000)
    assert place.told() == []
    (place.library / "installed.json").unlink()
    assert place.told() == []
    place.note({"source": "systemd/scheduler.service", "source_sha256": "0"})
    place.unit.unlink()
    os.mkfifo(place.unit)
    assert place.told() == []

"""Where there is no lock for migrations: with a SQLite file nothing is said, with another database it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from small_app import SCRIPT

FAKE_DJANGO = {
    "django/core/management/base.py": (
        "class BaseCommand:\n    def execute(self, *args, **options):\n        print('migrated')\n"
    ),
    "django/db/__init__.py": (
        "import types\nDatabaseError = Exception\n"
        "connections = {{'default': types.SimpleNamespace(vendor={vendor!r})}}\n"
    ),
    "django/db/backends/signals.py": (
        "class connection_created:\n    def connect(*_, **__): pass\nconnection_created = connection_created()\n"
    ),
    "manage.py": "from django.core.management.base import BaseCommand\nBaseCommand().execute()\n",
}


@pytest.mark.parametrize(
    ("vendor", "says"),
    [("sqlite", ""), ("mysql", "no lock against other machines: only known for PostgreSQL, not for mysql\n")],
)
def test_it_migrates_and_says_that_there_is_no_lock(tmp_path: Path, vendor: str, says: str) -> None:
    for name, text in FAKE_DJANGO.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text.format(vendor=vendor) if "{vendor" in text else text)
    program = str(SCRIPT.with_name("deployer") / "migrate_locked.py")
    command = [sys.executable, program, "lock", "frontend", "10", "manage.py", "migrate"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{says}migrated\n"), done.stderr

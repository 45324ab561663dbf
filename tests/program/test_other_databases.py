"""Where there is no lock for migrations: with a SQLite file nothing is said, with another database it is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from small_app import App

FAKE_DJANGO = {
    "django/__init__.py": "",
    "django/core/__init__.py": "",
    "django/core/management/__init__.py": "",
    "django/core/management/base.py": (
        "class BaseCommand:\n    def execute(self, *args, **options):\n        print('migrated')\n"
    ),
    "django/core/management/commands/__init__.py": "",
    "django/core/management/commands/migrate.py": (
        "from django.core.management.base import BaseCommand\nclass Command(BaseCommand): pass\n"
    ),
    "django/db/__init__.py": (
        "import types\nDatabaseError = Exception\n"
        "default = types.SimpleNamespace(vendor={vendor!r}, settings_dict={{'NAME': ':memory:'}})\n"
        "connections = {{'default': default}}\n"
    ),
    "manage.py": "from django.core.management.commands.migrate import Command\nCommand().execute()\n",
}


@pytest.mark.parametrize(
    ("vendor", "says"),
    [("sqlite", ""), ("mysql", "    no lock against other machines: only known for PostgreSQL, not for mysql\n")],
)
def test_it_migrates_and_says_that_there_is_no_lock(tmp_path: Path, vendor: str, says: str) -> None:
    app = App(tmp_path)
    text = f"[deploy]\nshared =\n[step migrate]\nrun = {sys.executable} manage.py migrate\n[role web]\n"
    files = {name: text.format(vendor=vendor) if "{vendor" in text else text for name, text in FAKE_DJANGO.items()}
    app.commit({"deploy.ini": text, "board/migrations/0001_x.py": "", **files})
    assert f"manage.py migrate\n{says}    migrated\n" in app.deploy().log

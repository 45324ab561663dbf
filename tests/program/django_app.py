"""A small Django application, to be deployed with small_app.App: its database is what shared/.env names."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

from small_app import App

MANAGE = """\
import os, sys
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
from django.core.management import execute_from_command_line
execute_from_command_line(sys.argv)
"""
SETTINGS = """\
import os
SECRET_KEY = "for tests only"
INSTALLED_APPS = ["board"]
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
BASE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if os.environ.get("PGDATABASE"):
    DATABASES = {"default": {"ENGINE": "django.db.backends.postgresql", "NAME": os.environ["PGDATABASE"],
        "USER": os.environ.get("PGUSER", "postgres"), "HOST": os.environ["PGHOST"]}}
else:
    DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": os.path.join(BASE, os.environ["DB"])}}
"""
MIGRATION = """\
from django.db import migrations, models

{head}
class Migration(migrations.Migration):
    atomic = {atomic}
    dependencies = {dependencies}
    operations = [{operations}]
"""
CALLS_MIGRATE = """\
from django.core.management import BaseCommand, call_command

class Command(BaseCommand):
    def handle(self, **options):
        call_command("migrate", interactive=False)
"""
INI = """\
[deploy]
shared = .env data

[step migrate]
run = {run}
timeout = 20

[role web]
"""
PLAIN = f"{sys.executable} manage.py migrate --noinput"
LOCKED = "select count(*) from pg_locks where locktype = 'advisory' and classid = 1684369516 and granted"


def migration(after: str, operations: str, head: str = "", atomic: bool = True) -> str:
    dependencies = [("board", after)] if after else []
    return MIGRATION.format(head=head, dependencies=dependencies, operations=operations, atomic=atomic)


def table(name: str) -> str:
    return f'migrations.RunSQL("create table {name} (id integer)", "drop table {name}")'


class DjangoApp(App):
    """Its migrations make the tables one, two, ..."""

    def __init__(self, directory: Path, run: str = PLAIN, more: str = "") -> None:
        super().__init__(directory)
        (self.root / "shared/data").mkdir(parents=True)
        (self.root / "state").mkdir()
        self.last = ""
        self.commit(
            {
                "deploy.ini": INI.format(run=run) + textwrap.dedent(more),
                "manage.py": MANAGE,
                "mysite/__init__.py": "",
                "mysite/settings.py": SETTINGS,
                "board/__init__.py": "",
                "board/migrations/__init__.py": "",
                "board/views.py": "",
            }
        )
        self.add("one")

    def add(self, name: str, operations: str = "", head: str = "", atomic: bool = True) -> str:
        """Commit one more migration, by default of a table of that name; return the commit."""
        text = migration(self.last, operations or table(name), textwrap.dedent(head), atomic)
        self.last = f"m_{name}"
        return self.commit({f"board/migrations/m_{name}.py": text}, f"migration {name}")

    def add_command(self, name: str, text: str) -> str:
        """Commit a management command."""
        files = {"board/management/__init__.py": "", "board/management/commands/__init__.py": ""}
        return self.commit({**files, f"board/management/commands/{name}.py": text}, f"command {name}")

    def change(self) -> str:
        """Commit another line in a file that no step names."""
        return self.commit({"board/views.py": f"# behind {self.git('rev-parse', 'HEAD')}\n"})

    def env(self, **variables: str) -> None:
        (self.root / "shared/.env").write_text("".join(f"{name}={value}\n" for name, value in variables.items()))

    def edit_ini(self, old: str, new: str) -> str:
        text = (self.origin / "deploy.ini").read_text()
        assert old in text
        return self.commit({"deploy.ini": text.replace(old, new)})

    def use_sqlite(self, path: str = "data/db.sqlite3") -> Path:
        self.env(DB=path)
        return self.root / "shared" / path

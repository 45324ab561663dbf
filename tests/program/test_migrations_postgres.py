"""The lock of migrations and the limits to their waiting, with a real PostgreSQL."""

from __future__ import annotations

import contextlib
import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import postgres
from django_app import CALLS_MIGRATE, LOCKED, MANAGE, DjangoApp

TELL = f"""
def tell(apps, editor):
    with editor.connection.cursor() as cursor:
        cursor.execute({LOCKED!r})
        print("holders of the lock:", cursor.fetchone()[0])
"""
HELD = (
    r"table one is held by process \d+ of PostgreSQL \(report, user postgres, in a transaction since [\d:]{8} UTC\):"
    r" select \* from one where '...' = '...'"
)


@pytest.fixture(scope="session")
def server() -> Iterator[postgres.Server]:
    with postgres.running() as server:
        yield server


def use(app: DjangoApp, server: postgres.Server, more: str = "") -> str:
    """Have the application use a new database; return its name."""
    name = server.new_database()
    (app.root / "shared/.env").write_text(f"PGHOST={server.folder}\nPGDATABASE={name}\n{more}")
    return name


@pytest.fixture
def app(tmp_path: Path) -> DjangoApp:
    return DjangoApp(tmp_path)


# --- the lock


FORMS = {
    "plain": "{python} manage.py migrate --noinput",
    "its own": "./manage.py migrate --noinput",
    "flags": "{python} -B -W error::UserWarning manage.py migrate",
    "variables": "env A=b DJANGO_SETTINGS_MODULE=mysite.settings {python} manage.py migrate",
    "poetry": "poetry run python manage.py migrate",
    "uv": "uv run --no-sync --no-project python manage.py migrate",
    "django-admin": "{bin}/django-admin migrate --settings mysite.settings --pythonpath .",
    "module": "{python} -m django migrate --settings=mysite.settings",
    "folder": "{python} inner/manage.py migrate",
    "shell": "sh -c 'cd inner && cd .. && {python} inner/manage.py migrate && echo done'",
    "make": "make schema",
    "script": "./schema.sh",
    "command": "{python} manage.py prepare",
    "options": "{python} manage.py migrate board m_told -v 2 --traceback",
}


@pytest.mark.parametrize("form", FORMS)
def test_the_lock_is_held_whatever_the_command_looks_like(tmp_path: Path, server: postgres.Server, form: str) -> None:
    python = Path(sys.executable)
    app = DjangoApp(tmp_path, FORMS[form].format(python=python, bin=python.parent))
    for name in ("poetry", "uv"):
        (tmp_path / ".local/bin").mkdir(parents=True, exist_ok=True)
        (tmp_path / ".local/bin" / name).symlink_to(python.parent / name)
    use(app, server, f"VIRTUAL_ENV={python.parent.parent}\nPATH={python.parent}:{tmp_path}/.local/bin:/usr/bin:/bin\n")
    (tmp_path / "pyproject.toml").write_text("[tool.poetry]\npackage-mode = false\n")  # found from below it
    manage = f"#!{python}\n" + MANAGE.replace("import os, sys\n", "import os, sys\nsys.path.insert(0, os.getcwd())\n")
    for name, text in (("manage.py", manage), ("schema.sh", f"#!/bin/sh\n{python} manage.py migrate\n")):
        (app.origin / name).write_text(text)
        (app.origin / name).chmod(0o755)
    app.commit({"inner/manage.py": manage, "Makefile": f"schema:\n\t{python} manage.py migrate\n"})
    app.add_command("prepare", CALLS_MIGRATE)
    app.add("told", "migrations.RunPython(tell)", TELL)
    done = app.deploy()
    assert "holders of the lock: 1" in done.log
    assert "no lock" not in done.log


def test_a_lock_that_others_hold_is_waited_for_and_told(app: DjangoApp, server: postgres.Server) -> None:
    database = use(app, server)
    with server.connect(database, "somebody") as somebody:
        somebody.execute("select pg_advisory_lock(1684369516, 1)")
        app.edit_ini("timeout = 20", "timeout = 10")
        done = app.deploy(expect=10)
        assert "waiting for somebody (connected since " in done.log
        assert f"), which migrates database {database}; for at most " in done.log
        assert f"migrations of database {database} are locked by somebody (connected since " in done.result["message"]
        app.edit_ini("timeout = 10", "timeout = 20")
        threading.Timer(3, lambda: somebody.execute("select pg_advisory_unlock_all()")).start()
        done = app.deploy()
    assert "waiting for somebody" in done.log
    assert server.ask(database, "select count(*) from one") == 0
    assert server.ask(database, LOCKED) == 0


def test_what_migrate_starts_does_not_wait_for_it(app: DjangoApp, server: postgres.Server) -> None:
    """A migration, or a signal, may call the command again, also in another process."""
    database = use(app, server)
    head = f"""
        def again(apps, editor):
            import subprocess
            from django.core.management import call_command
            call_command("migrate", "board", "m_one")
            subprocess.run([{sys.executable!r}, "manage.py", "migrate", "board", "m_one"], check=True)
        """
    app.add("again", "migrations.RunPython(again)", head)
    assert app.deploy().ran() == ["migrate"]
    assert server.ask(database, "select count(*) from django_migrations where name = 'm_again'") == 1


# --- the question


def test_a_restored_and_another_database(app: DjangoApp, server: postgres.Server) -> None:
    database = use(app, server)
    app.deploy()
    app.add("two")
    app.deploy()
    with server.connect(database) as connection:
        connection.execute("drop table two")
        connection.execute("delete from django_migrations where name = 'm_two'")
    app.change()
    done = app.deploy()
    assert (done.ran(), done.why("migrate")) == (["migrate"], "1 migration is not applied: board.m_two")
    other = use(app, server)
    app.change()
    assert app.deploy().ran() == ["migrate"]
    assert server.ask(other, "select count(*) from two") == 0
    app.change()
    assert app.deploy().why("migrate") == "asked the database: nothing is unapplied"


def test_a_database_that_does_not_answer(app: DjangoApp, server: postgres.Server) -> None:
    database = use(app, server)
    app.deploy()
    with server.connect() as connection:
        connection.execute(f"alter database {database} allow_connections false")
    app.change()
    done = app.deploy(expect=10)
    assert done.why("migrate").startswith("the database could not be asked what is applied: OperationalError: ")
    assert "is not currently accepting connections" in done.result["message"]


# --- a table that others use


class Traffic(threading.Thread):
    """Reads a table again and again, each time in a connection of its own; `slowest` is the longest wait."""

    def __init__(self, server: postgres.Server, database: str) -> None:
        super().__init__(daemon=True)
        self.server, self.database = server, database
        self.slowest, self.reads, self.over = 0.0, 0, threading.Event()

    def __enter__(self) -> Traffic:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.join()

    def run(self) -> None:
        while not self.over.wait(0.05):
            began = time.monotonic()
            self.server.ask(self.database, "select count(*) from one")
            self.slowest, self.reads = max(self.slowest, time.monotonic() - began), self.reads + 1


@contextlib.contextmanager
def held(app: DjangoApp, server: postgres.Server, more: str = "") -> Iterator[tuple[str, Any]]:
    """A database, and a session whose transaction holds its table `one`, which the next commit is to change."""
    database = use(app, server, more)
    app.edit_ini("timeout = 20", "timeout = 20\nlock_timeout = 1")
    app.deploy()
    app.add("change", 'migrations.RunSQL("alter table one add more text")')
    with server.connect(database, "report") as session:
        session.execute("begin")
        session.execute("select * from one where 'of people' = 'of people'")
        yield database, session


def test_others_do_not_wait_long_behind_a_migration_that_waits(app: DjangoApp, server: postgres.Server) -> None:
    with held(app, server) as (database, session), Traffic(server, database) as traffic:
        threading.Timer(6, lambda: session.execute("rollback")).start()
        done = app.deploy()
    assert server.ask(database, "select count(more) from one") == 0
    assert re.findall(HELD + "; not waited for longer than 1 s, as others wait behind it; trying again", done.log)
    assert "of people" not in done.log
    assert traffic.reads > 20
    assert traffic.slowest < 2, "one lock_timeout, and what such a machine takes"
    assert done.log.count("Applying board.m_change... OK") == 1


def test_a_table_that_stays_held_ends_the_step_and_says_by_whom(app: DjangoApp, server: postgres.Server) -> None:
    with held(app, server) as (database, _):
        app.edit_ini("timeout = 20", "timeout = 12")
        done = app.deploy(expect=10)
        assert re.search(rf"migrations of database {database} were tried for \d+ s: {HELD}", done.result["message"])
        assert "took longer than" not in done.result["message"]
        assert server.ask(database, LOCKED) == 0


def test_who_may_not_be_seen_is_not_named(app: DjangoApp, server: postgres.Server) -> None:
    with server.connect("template1") as connection:
        connection.execute("create role plain login")
        connection.execute("grant create on schema public to plain")
        connection.execute("revoke select on pg_stat_activity from public")
    with held(app, server, "PGUSER=plain\n") as (_, _):
        app.edit_ini("timeout = 20", "timeout = 12")
        done = app.deploy(expect=10)
        assert "s: a lock is held by another session" in done.result["message"]
    with server.connect("template1") as connection:
        connection.execute("grant select on pg_stat_activity to public")


def test_a_migration_that_is_no_transaction_is_not_cut_short(app: DjangoApp, server: postgres.Server) -> None:
    """CREATE INDEX CONCURRENTLY waits for all transactions, and would leave a broken index."""
    database = use(app, server)
    app.edit_ini("timeout = 20", "timeout = 20\nlock_timeout = 0.5")
    app.deploy()
    app.add("index", 'migrations.RunSQL("create index concurrently fast on one (id)")', atomic=False)
    with server.connect(database, "report") as session:
        session.execute("begin")
        session.execute("insert into one values (1)")
        threading.Timer(3, lambda: session.execute("commit")).start()
        done = app.deploy()
        time.sleep(0.1)
    assert "trying again" not in done.log
    assert server.ask(database, "select indisvalid from pg_index where indexrelid = 'fast'::regclass")


def test_what_the_application_sets_itself_counts(app: DjangoApp, server: postgres.Server) -> None:
    database = use(app, server)
    app.deploy()
    with server.connect() as connection:
        connection.execute(f"alter database {database} set lock_timeout = 300")
    head = """
        def tell(apps, editor):
            with editor.connection.cursor() as cursor:
                cursor.execute("set transaction isolation level serializable")  # it must come before any query
                cursor.execute("show lock_timeout")
                print("lock_timeout is", cursor.fetchone()[0])
        """
    app.add("asks", "migrations.RunPython(tell)", head)
    assert "lock_timeout is 300ms" in app.deploy().log

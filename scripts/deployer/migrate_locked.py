"""Runs `manage.py migrate ...` inside the application's own Django. Not imported: the application's Python runs it.

    python migrate_locked.py MODE MACHINE SECONDS manage.py migrate ...

MODE `lock`: under a lock of the database itself, so that two machines take turns and the second sees what the first
has applied; it waits at most so many seconds. MODE `ahead`: applies nothing, but names the applied migrations that
are newer than this code, in one line that begins with AHEAD.
"""

from __future__ import annotations

import os
import runpy
import sys
import time
from typing import Any

TRY = "SELECT pg_try_advisory_xact_lock(1684369516, 1)"  # any two numbers that everybody uses
HOLDER = (
    "SELECT application_name, coalesce(to_char(backend_start AT TIME ZONE 'UTC', 'HH24:MI:SS') || ' UTC', 'some time')"
    " FROM pg_stat_activity"
    " JOIN pg_locks USING (pid) WHERE locktype = 'advisory' AND classid = 1684369516 AND objid = 1 AND granted"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)


def notice_dead_clients(connection: Any, **_: Any) -> None:
    """Else a machine that loses its power in here would hold its locks for two hours."""
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            for name, value in (("idle", 10), ("interval", 5), ("count", 3)):
                cursor.execute(f"SET tcp_keepalives_{name} = {value}")


def take_lock(own: Any, machine: str, limit: float) -> None:
    """Take the lock on a connection of our own; exit with a line if others hold it for longer than `limit` seconds.

    For a transaction: a pooler (PgBouncer) may give the session, and its locks, to others between transactions.
    Asked for again and again: a session that waits inside PostgreSQL holds up CREATE INDEX CONCURRENTLY.
    """
    end, told, database = time.monotonic() + limit, "", own.settings_dict["NAME"]
    own.set_autocommit(False)
    while True:
        with own.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")  # else it would do so, too
            cursor.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
            cursor.execute("SELECT set_config('application_name', %s, true)", ["deploy on " + machine])
            cursor.execute(TRY)
            if cursor.fetchone()[0]:
                return
            holder = holder_of_lock(cursor)
        own.rollback()
        if time.monotonic() > end:
            sys.exit(f"migrations of database {database} are locked by {holder}; waited {limit:g} s for it")
        if holder != told:
            told = holder
            print(f"waiting for {holder}, which migrates database {database}; for at most {limit:g} s", flush=True)
        time.sleep(0.2)


def holder_of_lock(cursor: Any) -> str:
    from django.db import DatabaseError  # noqa: PLC0415 - only the application has it

    try:
        cursor.execute(HOLDER)
        found = cursor.fetchone()
    except DatabaseError:
        found = None  # not everybody may see that
    name, since = found or ("another session", "some time")
    return f"{name} (connected since {since})"


def locked(execute: Any, machine: str, limit: float) -> Any:
    """Replaces BaseCommand.execute for the one command that runs: takes the lock around it."""
    from django.core.management.base import BaseCommand  # noqa: PLC0415
    from django.db import connections  # noqa: PLC0415

    def run(self: Any, *args: Any, **options: Any) -> Any:
        BaseCommand.execute = execute  # what the command calls needs no lock
        connection = connections[options.get("database") or "default"]
        if connection.vendor != "postgresql":
            if connection.vendor != "sqlite":
                print(f"no lock against other machines: only known for PostgreSQL, not for {connection.vendor}")
            return execute(self, *args, **options)
        own = connection.copy()  # migrations may close theirs
        try:
            take_lock(own, machine, limit)
            return execute(self, *args, **options)
        finally:
            own.close()

    return run


def ahead(self: Any, *args: Any, **options: Any) -> None:
    """Replaces BaseCommand.execute: prints which applied migrations this code does not know."""
    from django.db import connections  # noqa: PLC0415
    from django.db.migrations.loader import MigrationLoader  # noqa: PLC0415
    from django.db.migrations.recorder import MigrationRecorder  # noqa: PLC0415

    recorder = MigrationRecorder(connections[options.get("database") or "default"])
    known = set(MigrationLoader(None, ignore_no_migrations=True).disk_migrations)
    newest: dict[str, list[str]] = {}
    if recorder.has_table():
        for row in recorder.migration_qs.order_by("id"):
            # older than a known one: squashed, and its file removed
            newest[row.app] = [] if (row.app, row.name) in known else [*newest.get(row.app, []), row.name]
    own = {app for app, _ in known}
    print("AHEAD", *(f"{app}.{name}" for app in newest if app in own for name in newest[app]))


def main() -> None:
    mode, machine, limit = sys.argv[1], sys.argv[2], float(sys.argv[3])
    sys.argv, sys.path[0] = sys.argv[4:], os.getcwd()  # as Python would have them for manage.py itself
    try:
        from django.core.management.base import BaseCommand  # noqa: PLC0415
        from django.db.backends.signals import connection_created  # noqa: PLC0415
    except ImportError:
        pass  # manage.py itself will say what is missing
    else:
        BaseCommand.execute = locked(BaseCommand.execute, machine, limit) if mode == "lock" else ahead
        connection_created.connect(notice_dead_clients, weak=False)
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()

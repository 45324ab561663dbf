"""Around `migrate` in the application's own Django: a lock for it, limits to its waiting, and what is unapplied.

Not imported: site_hook.py loads it in the application's process and calls take_over(). What is to be done is said by
$DEPLOY_MIGRATE, a JSON object:

    mode          lock: run the command under a lock of the database itself, so that two machines take turns and the
                  second sees what the first has applied. ask: apply nothing, only note what the database says.
    machine       its name, for people
    until         the monotonic second until which locks are waited for
    lock_timeout  the seconds that a migration may wait for a table; then the command is tried again. 0: for ever
    release       the folder of the code
    notes         the file in which each command notes, as a line of JSON, that it ran and what was found
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any, Callable, NamedTuple, NoReturn

TRY = "SELECT pg_try_advisory_xact_lock(1684369516, 1)"  # any two numbers that everybody uses
HOLDER = (
    "SELECT application_name, coalesce(to_char(backend_start AT TIME ZONE 'UTC', 'HH24:MI:SS') || ' UTC', 'some time')"
    " FROM pg_stat_activity"
    " JOIN pg_locks USING (pid) WHERE locktype = 'advisory' AND classid = 1684369516 AND objid = 1 AND granted"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)
# who keeps the session with a given name waiting, and for what
BLOCKERS = (
    "SELECT coalesce('table ' || waits.relation::regclass, 'a row'), coalesce(waits.relation::bigint, 0), blocker,"
    " coalesce(holds.application_name, ''), coalesce(holds.usename, ''),"
    " coalesce(to_char(holds.xact_start AT TIME ZONE 'UTC', 'HH24:MI:SS') || ' UTC', 'some time'),"
    " coalesce(holds.query, '')"
    " FROM pg_stat_activity own JOIN pg_locks waits ON waits.pid = own.pid AND NOT waits.granted"
    " CROSS JOIN unnest(pg_blocking_pids(own.pid)) AS blocker LEFT JOIN pg_stat_activity holds ON holds.pid = blocker"
    " WHERE own.application_name = '{name}' AND own.datname = current_database() ORDER BY holds.xact_start"
)
STILL_HELD = "SELECT 1 FROM pg_locks WHERE pid = {pid} AND relation = {relation} AND granted LIMIT 1"
VALUE = re.compile(r"'(?:[^']|'')*('|$)")  # in a query: what it says of people stays in the database
LOCK_TIMEOUT = "55P03"  # PostgreSQL's code for it
PAUSE = 10.0  # seconds, at most, in which others have the table before it is tried again

Execute = Callable[[], Any]


class Order(NamedTuple):
    """What $DEPLOY_MIGRATE says."""

    mode: str
    machine: str
    until: float
    lock_timeout: float
    release: str
    notes: str

    def note(self, **facts: Any) -> None:
        with open(self.notes, "a", encoding="utf-8") as file:
            file.write(json.dumps(facts) + "\n")

    @property
    def session(self) -> str:
        """By this name others see the session in which migrations run; no more than PostgreSQL keeps of it."""
        return "migration on " + re.sub(r"[^A-Za-z0-9_.-]", "-", self.machine)[:50]


def take_over(base: Any, text: str) -> None:
    """Have `migrate` run as ordered in this process; base: the module of Django that has BaseCommand."""
    order, execute = Order(**json.loads(text)), base.BaseCommand.execute
    busy: list[Any] = []

    @functools.wraps(execute)
    def run(self: Any, *args: Any, **options: Any) -> Any:
        if busy or not is_migrate(self):
            return execute(self, *args, **options)
        busy.append(self)  # what the command calls needs no lock
        os.environ.pop("DEPLOY_MIGRATE", None)  # nor do processes that it starts
        try:
            if order.mode == "ask":
                return order.note(**asked(self, options, order))
            return run_locked(lambda: execute(self, *args, **options), options, order)
        finally:
            busy.clear()
            os.environ["DEPLOY_MIGRATE"] = text

    base.BaseCommand.execute = run


def is_migrate(command: Any) -> bool:
    """Whether it is Django's command, is derived from it, or is what another application has under that name."""
    names = {cls.__module__ for cls in type(command).__mro__}
    if any(name.endswith(".management.commands.migrate") for name in names):
        return True
    modules = [module for name, module in [*sys.modules.items()] if name.endswith(".management.commands.migrate")]
    return any(getattr(module, "Command", None) is type(command) for module in modules)


# --- mode lock: one machine at a time


def run_locked(execute: Execute, options: Any, order: Order) -> Any:
    from django.db import connections  # noqa: PLC0415 - only the application has it

    connection = connections[options.get("database") or "default"]
    order.note(migrates=connection.vendor, file=database_file(connection))
    if connection.vendor != "postgresql":
        if connection.vendor != "sqlite":
            print(f"no lock against other machines: only known for PostgreSQL, not for {connection.vendor}")
        return execute()
    limit = max(0, round(order.until - time.monotonic()))
    own = connection.copy()  # migrations may close theirs
    with dead_clients_noticed(connection):
        try:
            take_lock(own, order, limit)
            return run_patiently(execute, connection, order, limit)
        finally:
            own.close()


def database_file(connection: Any) -> str:
    """The path of a SQLite database; empty if it is none, or lies in memory."""
    name = str(connection.settings_dict["NAME"])
    in_memory = connection.vendor != "sqlite" or name == ":memory:" or name.startswith("file:")
    return "" if in_memory else os.path.realpath(name)


@contextlib.contextmanager
def dead_clients_noticed(connection: Any) -> Iterator[None]:
    """Else a machine that loses its power in here would hold its locks for two hours."""
    from django.db.backends.signals import connection_created  # noqa: PLC0415

    if connection.connection is not None:
        notice_dead_clients(connection)
    connection_created.connect(notice_dead_clients)
    try:
        yield
    finally:
        connection_created.disconnect(notice_dead_clients)


def notice_dead_clients(connection: Any, **_: Any) -> None:
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            for name, value in (("idle", 10), ("interval", 5), ("count", 3)):
                cursor.execute(f"SET tcp_keepalives_{name} = {value}")


def take_lock(own: Any, order: Order, limit: float) -> None:
    """Take the lock on a connection of our own; exit with a line if others hold it until the order's end.

    For a transaction: a pooler (PgBouncer) may give the session, and its locks, to others between transactions.
    Asked for again and again: a session that waits inside PostgreSQL holds up CREATE INDEX CONCURRENTLY.
    """
    told, database = "", own.settings_dict["NAME"]
    own.set_autocommit(False)
    while True:
        with own.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")  # else it would do so, too
            cursor.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
            cursor.execute("SELECT set_config('application_name', %s, true)", ["deploy on " + order.machine])
            cursor.execute(TRY)
            if cursor.fetchone()[0]:
                return
            holder = holder_of_lock(cursor)
        own.rollback()
        if time.monotonic() > order.until:
            give_up(f"migrations of database {database} are locked by {holder}; waited {limit:g} s for it")
        if holder != told:
            told = holder
            print(f"waiting for {holder}, which migrates database {database}; for at most {limit:g} s", flush=True)
        time.sleep(0.2)


def holder_of_lock(cursor: Any) -> str:
    from django.db import DatabaseError  # noqa: PLC0415

    try:
        cursor.execute(HOLDER)
        found = cursor.fetchone()
    except DatabaseError:
        found = None  # not everybody may see that
    name, since = found or ("another session", "some time")
    return f"{name} (connected since {since})"


def give_up(line: str) -> NoReturn:
    sys.stdout.flush()  # so that the line is the last one
    sys.exit(line)


# --- mode lock: nobody waits long behind a migration that waits


class Holder(NamedTuple):
    """Who keeps a migration waiting: a row of BLOCKERS."""

    what: str
    relation: int
    pid: int
    program: str
    user: str
    since: str
    query: str

    def __str__(self) -> str:
        names = f"{self.program or 'no name'}, user {self.user or 'unknown'}, in a transaction since {self.since}"
        who = f"process {self.pid} of PostgreSQL ({names})" if self.pid else "a prepared transaction"
        text = " ".join(VALUE.sub("'...'", self.query).split())
        return f"{self.what} is held by {who}" + (f": {text[:100]}{'...' * (len(text) > 100)}" if text else "")


class Watcher(threading.Thread):
    """Looks, from a connection of its own, at who keeps the session that migrates waiting."""

    def __init__(self, connection: Any, session: str, pause: float) -> None:
        super().__init__(daemon=True)
        self.connection, self.query, self.pause = connection, BLOCKERS.format(name=session), pause
        self.seen: Holder | None = None
        self.over = threading.Event()

    def __enter__(self) -> Watcher:
        if self.pause:
            self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        if self.pause:
            self.join()

    def run(self) -> None:
        own = None
        with contextlib.suppress(Exception):  # not everybody may see that, or there is no connection left
            while not self.over.wait(self.pause):
                own = own or self.connection.copy()
                if rows := rows_of(own, self.query):
                    self.seen = Holder(*rows[0])
        if own:
            own.close()


def rows_of(connection: Any, query: str) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(query)
        return list(cursor.fetchall())


def run_patiently(execute: Execute, connection: Any, order: Order, limit: float) -> Any:
    """Run the command; again if a lock was not to be had in time, until the order's end. Then exit with a line."""
    with time_limit(order), Watcher(connection, order.session, order.lock_timeout / 4) as watcher:
        while True:
            try:
                return execute()
            except Exception as error:
                if not order.lock_timeout or not is_lock_timeout(error):
                    raise
            holder, watcher.seen = watcher.seen, None
            held = str(holder or "a lock is held by another session")
            if time.monotonic() < order.until:
                waited = f"not waited for longer than {order.lock_timeout:g} s, as others wait behind it"
                print(f"\n{held}; {waited}; trying again", flush=True)
                let_others_go_on(connection, holder, order)
            if time.monotonic() >= order.until:
                database = connection.settings_dict["NAME"]
                give_up(f"migrations of database {database} were tried for {limit:g} s: {held}")


def is_lock_timeout(error: BaseException | None) -> bool:
    while error:
        if LOCK_TIMEOUT in (getattr(error, "sqlstate", None), getattr(error, "pgcode", None)):
            return True
        error = error.__cause__ or error.__context__
    return False


def let_others_go_on(connection: Any, holder: Holder | None, order: Order) -> None:
    """Wait a moment; for longer while the table is held as before: whoever else uses it would have to wait again."""
    began = time.monotonic()
    end, own = min(began + PAUSE, order.until), connection.copy()
    time.sleep(min(1.0, order.lock_timeout))
    with contextlib.suppress(Exception), contextlib.closing(own):
        query = STILL_HELD.format(pid=holder.pid, relation=holder.relation) if holder else ""
        while holder and time.monotonic() < end and rows_of(own, query):
            time.sleep(0.2)


@contextlib.contextmanager
def time_limit(order: Order) -> Iterator[None]:
    """Have each migration that is a transaction wait for locks no longer than the order says.

    What is no transaction waits as long as it takes: a CREATE INDEX CONCURRENTLY that is ended leaves a broken index.
    """
    from django.db.backends.base.schema import BaseDatabaseSchemaEditor  # noqa: PLC0415

    own = BaseDatabaseSchemaEditor.__enter__

    def enter(self: Any) -> Any:
        result = own(self)
        if self.atomic_migration and not self.collect_sql and self.connection.vendor == "postgresql":
            limit_waiting(self.connection, order)
        return result

    if order.lock_timeout:
        BaseDatabaseSchemaEditor.__enter__ = enter
    try:
        yield
    finally:
        BaseDatabaseSchemaEditor.__enter__ = own


def limit_waiting(connection: Any, order: Order) -> None:
    """Set the limit for this transaction, unless the application has one. No SELECT: it would fix the isolation."""
    with connection.cursor() as cursor:
        cursor.execute(f"SET LOCAL application_name = '{order.session}'")
        cursor.execute("SHOW lock_timeout")
        if cursor.fetchone()[0] == "0":
            limit = min(order.lock_timeout, max(0.1, order.until - time.monotonic()))
            cursor.execute(f"SET LOCAL lock_timeout = {round(1000 * limit)}")


# --- mode ask


def asked(command: Any, options: Any, order: Order) -> dict[str, Any]:
    """What the database says: `unapplied` and `ahead`, names of migrations, and `handlers`; or `problem`."""
    from django.db import connections  # noqa: PLC0415

    if type(command).__module__ != "django.core.management.commands.migrate":
        return {"problem": f"`migrate` is that of {type(command).__module__}"}
    connection = connections[options.get("database") or "default"]
    found: dict[str, Any] = {}
    for name, question in (("ahead", ahead), ("unapplied", unapplied)):
        try:
            found[name] = question(connection)
        except Exception as error:
            found["problem"] = f"{type(error).__name__}: {error}"
    return {**found, "handlers": handlers(order.release)}


def unapplied(connection: Any) -> list[str]:
    """The migrations that the command would apply."""
    from django.db.migrations.executor import MigrationExecutor  # noqa: PLC0415

    executor = MigrationExecutor(connection)
    plan = executor.migration_plan(executor.loader.graph.leaf_nodes())
    return [f"{migration.app_label}.{migration.name}" for migration, _ in plan]


def ahead(connection: Any) -> list[str]:
    """The applied migrations that this code does not know."""
    from django.db.migrations.loader import MigrationLoader  # noqa: PLC0415
    from django.db.migrations.recorder import MigrationRecorder  # noqa: PLC0415

    recorder = MigrationRecorder(connection)
    known = set(MigrationLoader(None, ignore_no_migrations=True).disk_migrations)
    newest: dict[str, list[str]] = {}
    if recorder.has_table():
        for row in recorder.migration_qs.order_by("id"):
            # older than a known one: squashed, and its file removed
            newest[row.app] = [] if (row.app, row.name) in known else [*newest.get(row.app, []), row.name]
    own = {app for app, _ in known}
    return [f"{app}.{name}" for app in newest if app in own for name in newest[app]]


def handlers(release: str) -> list[str]:
    """The application's own functions that run behind each `migrate`: what they do now, nobody can tell."""
    from django.db.models import signals  # noqa: PLC0415

    found, top = set(), os.path.realpath(release) + os.sep
    for entry in [*signals.pre_migrate.receivers, *signals.post_migrate.receivers]:
        receiver = entry[1]() if isinstance(entry[1], weakref.ReferenceType) else entry[1]
        module = sys.modules.get(getattr(receiver, "__module__", None) or "")
        if os.path.realpath(getattr(module, "__file__", None) or os.devnull).startswith(top):
            found.add(f"{receiver.__module__}.{getattr(receiver, '__name__', type(receiver).__name__)}")
    return sorted(found)

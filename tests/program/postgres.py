"""A real PostgreSQL for tests, if its programs are here."""

from __future__ import annotations

import contextlib
import glob
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


class Server:
    """Reached through a socket in a folder of its own, by everybody, as `postgres`."""

    def __init__(self, programs: Path) -> None:
        self.programs = programs
        self.folder = Path(tempfile.mkdtemp(prefix="pg"))
        self.user: list[str] = []
        self.databases = 0
        if os.geteuid() == 0:  # which it refuses to run as
            name = next(entry.pw_name for entry in pwd.getpwall() if entry.pw_name in ("postgres", "nobody"))
            shutil.chown(self.folder, name)
            self.user = ["setpriv", f"--reuid={name}", f"--regid={pwd.getpwnam(name).pw_gid}", "--clear-groups"]
        self.folder.chmod(0o755)
        data = str(self.folder / "data")
        self.call("initdb", "--pgdata", data, "--auth=trust", "--username=postgres", "--no-sync", "--encoding=UTF8")
        options = f"-c listen_addresses= -c unix_socket_directories={self.folder} -c fsync=off -c max_connections=40"
        self.call("pg_ctl", "--pgdata", data, "--wait", "--log", f"{data}/log", "-o", options, "start")

    def call(self, program: str, *arguments: str) -> None:
        argv = [*self.user, str(self.programs / program), *arguments]
        done = subprocess.run(argv, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
        assert done.returncode == 0, done.stderr.decode()

    def close(self) -> None:
        self.call("pg_ctl", "--pgdata", str(self.folder / "data"), "--mode=immediate", "stop")
        shutil.rmtree(self.folder)

    def connect(self, database: str = "postgres", program: str = "a test") -> Any:
        """A connection of one's own, without transactions."""
        import psycopg  # noqa: PLC0415

        where = {"host": str(self.folder), "user": "postgres", "dbname": database}
        return psycopg.connect(**where, application_name=program, autocommit=True)

    def ask(self, database: str, query: str) -> Any:
        """The first value that a query returns."""
        with self.connect(database) as connection:
            row = connection.execute(query).fetchone()
            return row[0] if row else None

    def new_database(self) -> str:
        self.databases += 1
        with self.connect() as connection:
            connection.execute(f"create database test{self.databases}")
        return f"test{self.databases}"


@contextlib.contextmanager
def running() -> Iterator[Server]:
    """Skips the test if there is no PostgreSQL here; where CI=true that is an error."""
    found = shutil.which("initdb")
    programs = [Path(found).resolve().parent] if found else [*map(Path, sorted(glob.glob("/usr/lib/postgresql/*/bin")))]
    if not programs:
        message = "PostgreSQL is not installed: apt install postgresql"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    server = Server(programs[-1])
    try:
        yield server
    finally:
        server.close()

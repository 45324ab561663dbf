"""What the application does when it is started: it looks at all that it needs, as looks.txt says, and tells it as JSON.

What it cannot find is an ERROR: of a deploy that succeeded nothing may be missing.
"""

import contextlib
import importlib
import importlib.metadata
import json
import os
import platform
import sqlite3
import subprocess
from pathlib import Path


def look_import(name: str) -> object:
    module, _, attribute = name.partition(".")
    return getattr(importlib.import_module(module), attribute or "VALUE")


def look_packages() -> object:
    return sorted(f"{each.metadata['Name']} {each.version}" for each in importlib.metadata.distributions())


def look_python() -> object:
    return platform.python_version()


def look_run(program: str) -> object:
    return subprocess.run([program], check=True, capture_output=True, text=True).stdout


def look_read(path: str) -> object:
    return Path(path).read_text()


def look_maybe(path: str) -> object:
    return Path(path).read_text() if Path(path).exists() else None


def look_assets(manifest: str) -> object:
    """The files that pages would name: their names come from a manifest, as those with a hash in it do."""
    folder = Path(manifest).parent
    return {name: (folder / name).read_text() for name in Path(manifest).read_text().split()}


def look_variable(name: str) -> object:
    return os.environ.get(name)


def look_write(path: str) -> object:
    Path(path).write_text("written")
    return Path(path).read_text()


def look_tables(database: str, folder: str) -> object:
    """Whether the database has what the code needs; what it has besides is left from other commits."""
    path = Path(os.environ.get(database, database))
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        there = {name for (name,) in connection.execute("select name from sqlite_master")}
    needed = {each.stem for each in Path(folder).glob("*.sql")}
    if needed - there:
        raise LookupError(f"no such table: {' '.join(sorted(needed - there))}")
    return sorted(needed)


def look_migrations(manage: str) -> object:
    """What Django says of the migrations of this commit."""
    command = [os.environ["PYTHON"], "-B", manage, "migrate", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LookupError(f"unapplied migrations: {done.stdout.split()} {done.stderr[-300:]}")
    return "all are applied"


def main() -> None:
    seen = {}
    for line in Path("looks.txt").read_text().splitlines():
        what, *words = line.split()
        try:
            seen[line] = globals()[f"look_{what}"](*words)
        except (Exception, SystemExit) as error:
            seen[line] = f"ERROR {type(error).__name__}: {error}"
    print(json.dumps(seen))


if __name__ == "__main__":
    main()

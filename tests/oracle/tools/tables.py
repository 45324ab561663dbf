"""Stands for a migration: makes a table for each .sql file of a folder, in a SQLite file."""

import contextlib
import sqlite3
import sys
from pathlib import Path

database, folder = sys.argv[1:]
with contextlib.closing(sqlite3.connect(database)) as connection:
    for path in sorted(Path(folder).glob("*.sql")):
        connection.execute(f"create table if not exists {path.stem} (id integer)")

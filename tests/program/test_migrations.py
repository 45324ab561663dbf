"""Whether migrations are applied is asked of the database: here a SQLite file in shared/."""

from __future__ import annotations

import contextlib
import sqlite3
import sys
from pathlib import Path

import pytest

from django_app import CALLS_MIGRATE, PLAIN, DjangoApp, migration, table

ASKED = "asked the database: nothing is unapplied"


@pytest.fixture
def app(tmp_path: Path) -> DjangoApp:
    app = DjangoApp(tmp_path)
    app.use_sqlite()
    return app


def tables(path: Path) -> list[str]:
    query = (
        "select name from sqlite_master where type = 'table' and name not like 'django%' and name not like 'sqlite%'"
    )
    with contextlib.closing(sqlite3.connect(path)) as database:
        return sorted(name for (name,) in database.execute(query))


def test_a_deploy_that_changes_no_migration_asks_and_skips(app: DjangoApp) -> None:
    database = app.use_sqlite()
    first = app.deploy()
    assert (first.ran(), tables(database)) == (["migrate"], ["one"])
    before = database.read_bytes()
    app.change()
    again = app.deploy()
    assert (again.ran(), again.why("migrate")) == ([], ASKED)
    assert f"migrate: skipped, {ASKED}" in again.log
    assert database.read_bytes() == before
    app.add("two")
    third = app.deploy()
    assert (third.ran(), third.why("migrate")) == (["migrate"], "board/migrations/m_two.py is new")
    assert tables(database) == ["one", "two"]


def test_a_database_that_was_restored_from_an_old_backup(app: DjangoApp) -> None:
    database = app.use_sqlite()
    app.deploy()
    backup = database.read_bytes()
    for name in ("two", "three"):
        app.add(name)
    app.deploy()
    database.write_bytes(backup)
    app.change()
    done = app.deploy()
    assert (done.ran(), done.why("migrate")) == (
        ["migrate"],
        "2 migrations are not applied: board.m_two, board.m_three",
    )
    assert tables(database) == ["one", "three", "two"]
    app.change()
    assert app.deploy().why("migrate") == ASKED


def test_a_database_that_is_gone(app: DjangoApp) -> None:
    database = app.use_sqlite()
    app.deploy()
    database.unlink()
    app.change()
    assert app.deploy().why("migrate") == "1 migration is not applied: board.m_one"
    assert tables(database) == ["one"]


def test_other_variables_are_another_database(app: DjangoApp) -> None:
    app.deploy()
    other = app.use_sqlite("data/other.sqlite3")
    done = app.deploy()
    assert done.result["outcome"] == "deployed"
    assert (done.ran(), tables(other)) == (["migrate"], ["one"])


def test_a_migration_that_lies_where_no_input_looks(app: DjangoApp) -> None:
    """The new release's code is asked."""
    database = app.use_sqlite()
    moved = {"mysite/settings.py": None, "mysite/more.py": ""}
    settings = (app.origin / "mysite/settings.py").read_text() + 'MIGRATION_MODULES = {"board": "board.schema"}\n'
    first = (app.origin / "board/migrations/m_one.py").read_text()
    app.commit({**moved, "board/schema/__init__.py": "", "board/schema/m_one.py": first})
    app.commit({"mysite/settings.py": settings})
    app.deploy()
    app.commit({"board/schema/m_two.py": migration("m_one", table("two"))})
    done = app.deploy()
    assert (done.ran(), done.why("migrate")) == (["migrate"], "1 migration is not applied: board.m_two")
    assert tables(database) == ["one", "two"]


def test_a_migration_that_cannot_be_applied_after_all_leaves_the_old_release(app: DjangoApp) -> None:
    database = app.use_sqlite()
    app.deploy()
    app.add("two")
    app.deploy()
    old = {path.name for path in (app.root / "releases").iterdir()}, app.revision()
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("delete from django_migrations where name = 'm_two'")  # and its table is still there
    app.change()
    done = app.deploy(expect=10)
    assert "step migrate failed" in done.result["message"]
    assert "table two already exists" in done.result["message"]
    assert [step["result"] for step in done.result["steps"]] == ["failed"]
    assert ({path.name for path in (app.root / "releases").iterdir()}, app.revision()) == old


def test_a_step_that_runs_behind_it_waits_for_the_answer(tmp_path: Path) -> None:
    """It may need what is migrated."""
    app = DjangoApp(tmp_path, more=f"[step load]\nrun = {sys.executable} load.py\n")
    app.commit({"load.py": "import sqlite3\nsqlite3.connect('data/db.sqlite3').execute('select * from one')\n"})
    database = app.use_sqlite()
    app.deploy()
    database.unlink()
    app.change()
    done = app.deploy()
    assert done.ran() == ["migrate", "load"]
    assert done.log.index("Applying board.m_one") < done.log.index("load.py")
    app.change()
    assert app.deploy().ran() == ["load"]


@pytest.mark.parametrize("line", ["sh -c '{}'", "sh -c 'cd board && cd .. && {}'", "{} --run-syncdb", "{} board"])
def test_what_cannot_be_asked_is_run(tmp_path: Path, line: str) -> None:
    app = DjangoApp(tmp_path, line.format(PLAIN))
    database = app.use_sqlite()
    app.deploy()
    database.unlink()
    app.change()
    done = app.deploy()
    why = "it migrates, and in this form it cannot be asked what is unapplied, so it always runs"
    assert (done.ran(), done.why("migrate")) == (["migrate"], why)
    assert tables(database) == ["one"]


def test_a_script_that_was_seen_to_migrate_is_run(tmp_path: Path) -> None:
    more = "[step prepare]\ninputs = prepare.sh\nrun = sh prepare.sh\n[step other]\ninputs = prepare.sh\nrun = true\n"
    app = DjangoApp(tmp_path, "", more)
    app.commit({"prepare.sh": f"{sys.executable} manage.py prepare\n"})
    app.add_command("prepare", CALLS_MIGRATE)
    database = app.use_sqlite()
    assert app.deploy().ran() == ["prepare", "other"]
    database.unlink()
    app.change()
    done = app.deploy()
    assert (done.ran(), tables(database)) == (["prepare"], ["one"])
    assert done.why("prepare").startswith("it migrates")


def test_a_function_of_the_application_that_runs_with_it(app: DjangoApp) -> None:
    """What it does may have changed with any file."""
    app.use_sqlite()
    app.commit(
        {
            "board/models.py": "",
            "board/apps.py": """\
                from django.apps import AppConfig
                from django.db.models.signals import post_migrate

                def make_groups(**_):
                    print("groups made")

                class Board(AppConfig):
                    name = "board"
                    def ready(self):
                        post_migrate.connect(make_groups, sender=self)
                """,
        }
    )
    app.deploy()
    app.change()
    done = app.deploy()
    assert done.why("migrate") == "nothing is unapplied, but board.apps.make_groups runs with it"
    assert "groups made" in done.log


def test_another_migrate_than_djangos_is_run(app: DjangoApp) -> None:
    """As django-tenants has one: what it would do, nobody here can tell."""
    app.use_sqlite()
    app.add_command(
        "migrate",
        """\
                from django.core.management.commands import migrate

                class Command(migrate.Command):
                    def handle(self, *args, **options):
                        print("for each tenant")
                        super().handle(*args, **options)
                """,
    )
    app.deploy()
    app.change()
    done = app.deploy()
    reason = "`migrate` is that of board.management.commands.migrate"
    assert done.why("migrate") == f"the database could not be asked what is applied: {reason}"
    assert "for each tenant" in done.log


def test_code_that_cannot_be_asked_is_run_and_says_what_is_wrong(app: DjangoApp) -> None:
    app.use_sqlite()
    app.deploy()
    app.commit({"mysite/settings.py": (app.origin / "mysite/settings.py").read_text() + "import no_such_thing\n"})
    done = app.deploy(expect=10)
    assert done.why("migrate") == (
        "the database could not be asked what is applied: ModuleNotFoundError: No module named 'no_such_thing'"
    )
    assert "step migrate failed" in done.result["message"]


def test_a_database_inside_the_release_is_an_error(app: DjangoApp) -> None:
    app.use_sqlite("db.sqlite3")
    done = app.deploy(expect=10)
    assert (
        "step migrate failed: db.sqlite3 is a database inside the release and would be lost with it: keep it in"
        f" {app.root}/shared: add its folder, or db.sqlite3, to `shared =` in deploy.ini" in done.result["message"]
    )


def test_a_python_that_is_out_of_reach_is_told(tmp_path: Path) -> None:
    app = DjangoApp(tmp_path, PLAIN.replace("manage.py", "-E manage.py"))
    database = app.use_sqlite()
    for _ in range(2):
        app.change()
        done = app.deploy()
        assert (done.ran(), tables(database)) == (["migrate"], ["one"])
        assert "migrate: no lock against other machines: its `migrate` was out of reach (python -E or -I?)" in done.log


def test_a_question_applies_nothing_even_where_the_hook_does_not_reach(app: DjangoApp) -> None:
    """An application's own sitecustomize, say, may take it away."""
    database = app.use_sqlite()
    app.deploy()
    backup = database.read_bytes()
    app.add("two")
    patch = "commands.Hook.added_to = lambda self, env: env"
    app.run("deploy", patch=patch)
    database.write_bytes(backup)
    app.change()
    patch += "\nrun_command = run.command\n"
    patch += "run.command = lambda argv, **o: die() if argv[-1:] == ('--noinput',) else run_command(argv, **o)"
    app.killed(patch)
    assert database.read_bytes() == backup

"""Two machines, one PostgreSQL: migrations take turns, and code that is older than the schema says so."""

from __future__ import annotations

import subprocess
import time

import pytest

from lab.database import Migrations, deploy_together, migrate_together
from lab.machine import Machine
from lab.world import World


def ask(world: World, query: str) -> str:
    return world.machine("services").out(f'psql -qtAc "{query}" board', user="postgres")


@pytest.fixture
def both(world: World) -> tuple[Machine, Machine]:
    return world.boot("scheduler"), world.boot("frontend")


def someone_holds_the_lock(world: World, seconds: int) -> subprocess.Popen[str]:
    """A session that holds the migration lock; returns once it does."""
    script = f"select pg_advisory_lock(1684369516, 1); select 'held'; select pg_sleep({seconds})"
    command = [*world.machine("services").argv("postgres"), "env", "PGAPPNAME=somebody", "psql", "-qtA", "board"]
    process = subprocess.Popen([*command, "-c", script], stdout=subprocess.PIPE, text=True)
    time.sleep(1)
    return process


def test_a_migration_that_two_machines_begin_at_once_runs_once(world: World) -> None:
    """A sample of `./dev bench faults`."""
    assert migrate_together(world, 5) == []


def test_a_migration_that_waits_for_every_transaction(world: World, both: tuple[Machine, Machine]) -> None:
    """The machine that waits for the lock must not be what the other's `create index concurrently` waits for."""
    name = Migrations(world).add("concurrent", seconds=1)
    done = deploy_together(*both)
    assert [deploy.outcome for deploy in done] == ["deployed", "deployed"], done[0].log + done[1].log
    assert "".join(deploy.log for deploy in done).count(f"Applying board.{name}... OK") == 1


def test_a_failing_migration_leaves_the_old_release_and_a_free_lock(
    world: World, both: tuple[Machine, Machine]
) -> None:
    old = both[1].health()
    migrations = Migrations(world)
    name = migrations.add("failing")
    done = deploy_together(*both)
    assert [deploy.outcome for deploy in done] == ["failed", "failed"]
    assert all('column "no_such_column" does not exist' in deploy.message for deploy in done)
    assert both[1].health() == old
    world.commit({f"board/migrations/{name}.py": None}, "without it")
    began = time.monotonic()
    assert [deploy.outcome for deploy in deploy_together(*both)] == ["deployed", "deployed"]
    assert time.monotonic() - began < 30


def test_a_lock_that_stays_held_ends_the_step_and_says_who_holds_it(world: World) -> None:
    frontend = world.boot("frontend")
    old = frontend.health()
    holder = someone_holds_the_lock(world, 90)
    try:
        world.commit({"deploy.ini": (world.clone / "deploy.ini").read_text() + "[step migrate]\ntimeout = 15\n"})
        Migrations(world).add("slow")
        done = frontend.deploy(expect=10)
        ask(world, "revoke select on pg_stat_activity from public")
        nobody_says = frontend.deploy(expect=10)
    finally:
        holder.kill()
    assert "step migrate failed" in done.message
    assert "migrations of database board are locked by somebody (connected since some time)" in done.message
    assert "migrations of database board are locked by another session" in nobody_says.message
    assert frontend.health() == old


def test_the_lock_belongs_to_a_transaction(world: World) -> None:
    """PgBouncer (pool_mode = transaction) lends a session, and a lock of the session, to others in between."""
    frontend = world.boot("frontend")
    Migrations(world).add("slow", seconds=4)
    command = [*frontend.argv("deploy"), "/srv/app/bin/deploy_machine.py"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    holders = "select state from pg_stat_activity join pg_locks using (pid) where locktype = 'advisory' and granted"
    seen: set[str] = set()
    while process.poll() is None:
        seen.update(ask(world, holders).split("\n"))
    assert process.communicate()[1].count("deployed from") == 1
    assert seen == {"", "idle in transaction"}


def test_a_machine_that_loses_its_power_in_a_migration_frees_the_lock(
    world: World, both: tuple[Machine, Machine]
) -> None:
    scheduler, frontend = both
    name = Migrations(world).add("slow", seconds=60)
    command = [*scheduler.argv("deploy"), "/srv/app/bin/deploy_machine.py"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    running = scheduler.root / "srv/app/state/running.json"
    scheduler.wait_until(lambda: running.exists() and '"step migrate"' in running.read_text(), "no migration began")
    time.sleep(2)
    scheduler.cut()
    process.kill()
    process.communicate()
    world.commit({f"board/migrations/{name}.py": Migrations(world).text(name, "slow", 0)}, "quicker")
    began = time.monotonic()
    assert frontend.deploy().outcome == "deployed"
    assert time.monotonic() - began < 60, "PostgreSQL gave the lock up before its two hours of TCP keepalive"


def test_a_boot_with_code_older_than_the_schema_says_so(world: World, both: tuple[Machine, Machine]) -> None:
    scheduler, frontend = both
    frontend.shut_down()
    name = Migrations(world).add("slow", seconds=0)
    assert scheduler.deploy().outcome == "deployed"
    ini = frontend.root / "srv/app/machine.ini"
    ini.write_text(ini.read_text() + "fetch_timeout = 2\n")
    git = world.machine("services").root / "home/git/.ssh/authorized_keys"
    keys = git.read_text()
    git.write_text("")  # the repository is out of reach
    frontend.boot(wait=frontend.serving())
    try:
        frontend.wait_until(lambda: "ahead of" in frontend.journal("-b", "-t", "deploy-machine"), "no warning")
        assert frontend.health()["status"] == 200
        status = frontend.out("/srv/app/bin/deploy_machine.py status", user="deploy")
    finally:
        git.write_text(keys)
    assert f"warning   the database is ahead of {frontend.health()['commit'][:8]}: board.{name}" in status
    frontend.wait_for_startup()
    assert "the database is ahead" not in frontend.out("/srv/app/bin/deploy_machine.py status", user="deploy")


def test_a_rollback_or_an_older_commit_behind_a_migration_says_so(world: World) -> None:
    frontend = world.boot("frontend")
    name = Migrations(world).add("slow", seconds=0)
    assert "warnings" not in frontend.deploy().result
    back = frontend.deploy("rollback")
    warnings = [f"the database is ahead of {back.result['commit'][:8]}: board.{name}"]
    assert back.result["warnings"] == warnings
    assert "warnings" not in frontend.deploy("--force").result
    for outcome in ("deployed", "unchanged"):
        chosen = frontend.deploy("--commit", back.result["commit"], "--force")
        assert (chosen.outcome, chosen.result.get("warnings")) == (outcome, warnings)


def slots_running(machine: Machine) -> list[str]:
    return [slot for slot in ("blue", "green") if machine.show(f"gunicorn@{slot}.service", "ActiveState") == "active"]


def test_an_emptied_database_is_migrated_before_the_new_release_is_judged(world: World) -> None:
    """Its health check needs the tables."""
    frontend = world.boot("frontend")
    ask(world, "drop schema public cascade")
    ask(world, "create schema public authorization board")
    commit = world.commit(world.edit("board/views.py", "[:50]", "[:40]"))
    done = frontend.deploy()
    assert (done.outcome, done.ran) == ("deployed", ["migrate"])
    assert "migrate: 3 migrations are not applied: board.0001_initial, " in done.log
    assert frontend.health() == {"status": 200, "commit": commit}


def test_a_step_that_fails_after_the_release_was_proven_leaves_the_old_one(world: World) -> None:
    frontend = world.boot("frontend")
    frontend.deploy()
    old, current, slots = frontend.health(), frontend.out("readlink /srv/app/current"), slots_running(frontend)
    ask(world, "delete from django_migrations where app = 'board'")  # and its tables are there
    world.commit(world.edit("board/views.py", "[:50]", "[:40]"))
    done = frontend.deploy(expect=10)
    assert "step migrate failed" in done.message and "already exists" in done.message
    assert (frontend.health(), frontend.out("readlink /srv/app/current")) == (old, current)
    frontend.wait_until(lambda: slots_running(frontend) == slots, "the other slot runs on")
    assert frontend.out("ls /srv/app/releases").split() == [current.rpartition("/")[2]]

"""Migrations of the example, for machines that share one database."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from lab.machine import Deploy, Machine
from lab.world import World

OPERATIONS = {
    # counts itself: a migration that ran twice leaves two rows
    "slow": """
        migrations.RunPython(lambda apps, _: time.sleep({seconds})),
        migrations.RunSQL("insert into board_notice (text, written) values ('{name}', now())"),""",
    # waits for every transaction in the database to end: it must not wait for a machine that waits for it
    "concurrent": """
        migrations.RunSQL("select pg_sleep({seconds})"),
        migrations.RunSQL("create index concurrently {name} on board_notice (text)"),""",
    "failing": """
        migrations.RunSQL("select no_such_column from board_notice"),""",
}


class Migrations:
    """Adds migrations to the application's repository, one after the other."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.last = "0001_initial"
        self.number = 1

    def add(self, kind: str, seconds: float = 1) -> str:
        """Commit another migration of that kind and return its name."""
        self.number += 1
        name = f"m{self.number:04}_{kind}"
        self.world.commit({f"board/migrations/{name}.py": self.text(name, kind, seconds)}, f"migration {name}")
        self.last = name
        return name

    def text(self, name: str, kind: str, seconds: float) -> str:
        operations = OPERATIONS[kind].format(name=name, seconds=seconds)
        return (
            "import time\nfrom django.db import migrations\n\n\nclass Migration(migrations.Migration):\n"
            f"    atomic = {kind != 'concurrent'}\n    dependencies = [('board', '{self.last}')]\n"
            f"    operations = [{operations}\n    ]\n"
        )

    def times_applied(self, name: str) -> int:
        """How often a migration of kind `slow` really ran."""
        query = f"psql -qtAc \"select count(*) from board_notice where text = '{name}'\" board"
        return int(self.world.machine("services").out(query, user="postgres"))


def migrate_together(world: World, rounds: int) -> list[str]:
    """Both machines deploy the same commit with a slow migration at the same moment, so many times.

    Returns which promises were broken: both succeed, and the migration runs once.
    """
    machines = world.boot("scheduler"), world.boot("frontend")
    migrations, problems, waited = Migrations(world), [], 0
    for number in range(1, rounds + 1):
        name = migrations.add("slow", seconds=1)
        done = deploy_together(*machines)
        logs = "".join(deploy.log for deploy in done)
        waited += "waiting for deploy on " in logs and "which migrates database board; for at most" in logs
        problems += [f"{number}: {deploy.message}" for deploy in done if deploy.outcome != "deployed"]
        if (migrations.times_applied(name), logs.count(f"Applying board.{name}... OK")) != (1, 1):
            problems.append(f"{number}: the migration ran {migrations.times_applied(name)} times\n{logs}")
    return problems if waited else [*problems, "no machine ever waited for the other: nothing was shown"]


def deploy_together(*machines: Machine) -> list[Deploy]:
    """Deploy to all of them at the same moment."""
    with ThreadPoolExecutor(len(machines)) as pool:
        return list(pool.map(lambda machine: machine.deploy(expect=None), machines))

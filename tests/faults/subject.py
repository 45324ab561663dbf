"""A frontend whose deploys are disturbed, again and again from the same state."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from typing import Any

from faults.trees import Reader, Tree, differences, release_of
from lab.host import call
from lab.machine import Machine
from lab.world import World

STARTUP = "deploy-on-startup.service"
PUSH = "fault-push.service"
CHANGES = ("code", "dependency", "migration")

MIGRATION = """\
    import time

    from django.db import migrations, models


    class Migration(migrations.Migration):
        dependencies = [("board", "0001_initial")]
        operations = [
            migrations.AddField("notice", "pinned", models.BooleanField(db_default=False)),
            migrations.RunPython(lambda *_: time.sleep(0.3)),
        ]
    """
UNDO_MIGRATION = (
    "alter table board_notice drop column if exists pinned;"
    "delete from django_migrations where app = 'board' and name = '0002_pinned';"
)


class Subject:
    """One machine that runs a base commit with an older release beside it, and three commits to deploy to it.

    Two releases are kept, so each deploy also removes a release and its environments. What an
    undisturbed deploy of each change leaves is taken first (`references`), then `restore` brings
    the base back before each fault.
    """

    def __init__(self, world: World, changes: tuple[str, ...] = CHANGES) -> None:
        self.world = world
        self.reader = Reader()
        self.frontend: Machine = world.boot("frontend")
        self.frontend.run("systemctl", "disable", "--now", "deploy-watch.timer")  # nothing comes between
        self.app = self.frontend.root / "srv/app"
        self.saved = self.frontend.directory / "base"
        self.base = self.make_base("dependency" in changes)
        self.commits = {change: self.make_commit(change) for change in changes}
        self.release = os.readlink(self.app / "current")
        call("cp", "-a", self.app, self.saved)
        self.base_tree = self.tree()
        self.references: dict[str, Tree] = {}
        self.seconds: dict[str, float] = {}
        for change in changes:
            self.take_reference(change)

    def make_base(self, new_environment: bool) -> str:
        """Bring the machine to a second release, if so asked with another environment than the first one's."""
        ini = (self.world.clone / "deploy.ini").read_text()
        if new_environment:
            self.world.add_python_dependency("humanize (>=4,<5)")
        base = self.world.commit({"deploy.ini": f"[deploy]\nkeep = 2\n{ini}"}, "the base")
        assert ("python" in self.frontend.deploy().ran) is new_environment
        return base

    def make_commit(self, change: str) -> str:
        """A commit on top of the base that makes a deploy do what its name says."""
        world = self.world
        files: dict[str, str | None] = dict(world.edit("board/views.py", "[:50]", "[:40]"))
        if change == "migration":
            files["board/migrations/0002_pinned.py"] = MIGRATION
        if change == "dependency":
            files.update(world.edit("pyproject.toml", '    "bleach (>=6.2,<7)",\n', ""))
            (world.clone / "pyproject.toml").write_text(str(files["pyproject.toml"]))
            world.as_developer("poetry lock")
        commit = world.commit(files, change)
        world.git("push", "-q", world.origin, f"HEAD:refs/heads/{change}")
        world.git("reset", "-q", "--hard", self.base)
        return commit

    def take_reference(self, change: str) -> None:
        self.restore(change)
        began = time.monotonic()
        process = self.start("cd")
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 0, out
        self.seconds[change] = time.monotonic() - began
        self.references[change] = self.tree()

    def tree(self) -> Tree:
        return self.reader.tree(self.app)

    def restore(self, change: str) -> None:
        """Bring the base back, with `change` as the newest commit of the branch."""
        if self.frontend.is_on:
            self.frontend.sh("systemctl stop 'gunicorn@*.socket' 'gunicorn@*.service'")
        for name in ("releases", "envs"):
            for path in (self.app / name).iterdir():
                if not (self.saved / name / path.name).exists():
                    shutil.rmtree(path)
            for path in (self.saved / name).iterdir():
                if not (self.app / name / path.name).exists():
                    call("cp", "-a", path, self.app / name)
        for name in ("state", "bin", "repo.git", "slots", "current"):
            path = self.app / name
            path.unlink() if path.is_symlink() else shutil.rmtree(path, ignore_errors=True)
            call("cp", "-a", self.saved / name, path)
        self.world.machine("services").run("psql", "-qc", UNDO_MIGRATION, "board", user="postgres")
        call("git", f"--git-dir={self.world.origin}", "-c", "safe.directory=*",
             "update-ref", "refs/heads/main", self.commits[change])  # fmt: skip
        if self.frontend.is_on:
            self.frontend.sh(f"systemctl reset-failed {STARTUP} 2>/dev/null; systemctl start {self.frontend.serving()}")
        found = differences(self.base_tree, self.tree())
        assert not found, f"a deploy changed what it may not change: {found}"

    def start(self, trigger: str, command: str = "deploy") -> subprocess.Popen[str]:
        """Start a deploy: a push (in a unit of its own, whose processes can be told), or a boot's without a boot."""
        words = ["systemctl", "restart", STARTUP]
        if trigger == "cd":
            words = ["systemd-run", "--quiet", "--collect", "--pipe", "--wait", "--uid=deploy", f"--unit={PUSH}",
                     "/srv/app/bin/deploy_machine.py", command, "--trigger", "cd", "--json"]  # fmt: skip
        argv = [*self.frontend.argv(), *words]
        return subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def status(self) -> dict[str, Any]:
        done = self.frontend.run("/srv/app/bin/deploy_machine.py", "status", "--json", user="deploy", check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        status: dict[str, Any] = json.loads(done.stdout)
        return status

    def current(self) -> str:
        """The commit that `current` leads to."""
        return (self.app / "current/REVISION").read_text().strip()

    def part_of_current(self, change: str) -> list[str]:
        """How the release that `current` leads to differs from an undisturbed one of its commit."""
        commit = self.current()
        expected = self.base_tree if commit == self.base else self.references[change]
        return differences(release_of(expected, commit), release_of(self.tree(), commit))

    def differs_from_undisturbed(self, change: str) -> list[str]:
        """How all that the machine holds differs from what an undisturbed deploy leaves."""
        found = differences(self.references[change], self.tree())
        sound = call("git", f"--git-dir={self.app}/repo.git", "-c", "safe.directory=*", "fsck", "--full",
                     "--no-dangling", check=False)  # fmt: skip
        return found + ([f"mirror: {sound.stdout}{sound.stderr}"] if sound.returncode else [])

    def deployed(self) -> list[str]:
        """The entries of the history that deploys made which went well; deploy-failed.service tells of a killed one."""
        entries = (self.app / "state/history.jsonl").read_text().splitlines()
        return [entry for entry in entries if json.loads(entry)["outcome"] != "failed"]

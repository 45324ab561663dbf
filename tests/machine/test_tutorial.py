"""docs/tutorial.md, typed as it stands there: on a computer and two machines, all as empty as a Debian can be.

Nothing is run here that the page does not say, but for what GitHub does: the empty repository, the deploy keys, the
secrets, the run of cd.yml. Names are put in the place of those that a reader replaces, too.
"""

from __future__ import annotations

import os
import re
import shutil
import textwrap
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from lab.ci import outcome_of
from lab.empty_debian import EmptyDebian
from lab.host import REPOSITORY, call
from lab.machine import Machine
from lab.world import World
from workflow import Run, push

PAGE = REPOSITORY / "docs/tutorial.md"
NAMES = {
    "git@github.com:you/mysite.git": "git@git.lab:/srv/git/mysite.git",
    "git@github.com:you/deploy-machine.git": "git@git.lab:/srv/git/deploy-machine.git",
}


class Part(NamedTuple):
    """A block of code with what stands before it, or what the test is to do in GitHub's place."""

    before: str
    text: str
    github: str = ""


def parts(page: str) -> Iterator[Part]:
    """What a reader does, in order."""
    before = ""
    for paragraph in re.split(r"\n\n(?! {4})", page):
        words, _, block = paragraph.partition("\n\n") if not paragraph.startswith("    ") else ("", "", paragraph)
        before = words or before
        if found := re.search("<!-- test: (.*) -->", words):
            yield Part(words, "", found[1])
        if block:
            yield Part(words, textwrap.dedent(block).strip("\n") + "\n")


class Reader:
    """Somebody who does what the page says, on a computer of their own."""

    def __init__(self, world: World, suite: str) -> None:
        self.world = world
        self.debian = EmptyDebian(suite).ensure()
        self.said = ""  # of the last block
        self.all_said = ""
        self.services = world.machines["services"]
        call("cp", "-a", f"{self.debian.wheels}/.", self.services.root / "opt/lab/wheels")
        self.computer, self.scheduler, self.frontend = (
            self.machine(name, number) for name, number in (("computer", 8), ("scheduler", 5), ("frontend", 6))
        )
        ssh = self.computer.root / "home/admin/.ssh"
        shutil.copy(world.home / "admin", ssh / "id_ed25519")
        (ssh / "known_hosts").write_text(world.known_hosts().replace(self.services.address, "git.lab"))
        self.computer.sh("chown -R admin: /home/admin/.ssh && chmod 600 /home/admin/.ssh/id_ed25519")
        world.allow_to_read((world.home / "admin.pub").read_text().strip())
        self.make_repositories()

    def machine(self, name: str, number: int) -> Machine:
        directory = self.world.directory / "machines" / name
        machine = Machine(name, number, self.debian.lower, directory, self.world.network).create()
        self.world.machines[name] = machine
        self.world.boot(name)
        machine.sh("install -d -m 700 -o admin -g admin /home/admin/.ssh")
        machine.run("tee", "/home/admin/.ssh/authorized_keys", input=(self.world.home / "admin.pub").read_text())
        return machine

    def make_repositories(self) -> None:
        """On the git server: the application's, empty, and this one as it is here."""
        checkout = self.services.root / "root/deploy-machine"
        listed = call("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=REPOSITORY)
        for path in listed.stdout.splitlines():
            if (REPOSITORY / path).is_file():
                (checkout / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(REPOSITORY / path, checkout / path)
        identity = "-c user.name=x -c user.email=x@example.com"
        self.services.sh(
            "cd /srv/git && git init -q --bare -b main mysite.git && cd /root/deploy-machine && git init -q -b main"
            f" && git add -A && git {identity} commit -qm x && git clone -q --bare . /srv/git/deploy-machine.git"
            " && chown -R git: /srv/git"
        )

    def run(self, commands: str) -> None:
        """In the terminal of this computer: one login, of which the folder stays from block to block."""
        script = f'cd "$(cat ~/.at 2>/dev/null || echo ~)" && set -ex\n{commands}\npwd > ~/.at\n'
        done = self.computer.run("bash", "-lc", script, user="admin", check=False, timeout=300, stdin=None, input="")
        self.said = done.stdout + done.stderr
        self.all_said += self.said
        assert done.returncode == 0, f"{commands}\nended with {done.returncode}:\n{self.said}"

    def write(self, path: str, text: str, append: bool) -> None:
        place = self.computer.root / "home/admin/mysite" / path
        before = place.read_text() + "\n" if append else ""
        place.write_text(before + text)

    # --- GitHub

    def the_deploy_keys_are_added(self) -> None:
        keys = re.findall(r"^Deploy key: .*\n +(ssh-\S+ \S+)", self.all_said, re.MULTILINE)
        assert len(keys) == 2, self.all_said
        for key in keys:
            self.world.allow_to_read(key)

    def the_secrets_are_added(self) -> None:
        self.secrets = dict(re.findall(r"^  (\w+_(?:HOST|USER)) = (\S+)$", self.all_said, re.MULTILINE))
        host_keys = re.findall(r"^ {4}(10\S+ \S+ \S+)$", self.all_said, re.MULTILINE)
        self.secrets["DEPLOY_KNOWN_HOSTS"] = "\n".join(host_keys)
        self.secrets["DEPLOY_SSH_KEY"] = (self.computer.root / "home/admin/ci_key").read_text()

    def github_runs_cd_yml_and_it_is_green(self) -> None:
        repository = self.services.root / "srv/git/mysite.git"
        commit = self.services.out("git -C /srv/git/mysite.git rev-parse main")
        run = Run(
            self.computer.root / "home/admin/mysite/.github/workflows/cd.yml", push(commit),
            workdir=self.world.directory / "run", repository=str(repository), secrets=self.secrets,
            wrap=["ip", "netns", "exec", self.world.network.namespace("runner")],
        ).start().wait(240)  # fmt: skip
        assert run.conclusion == "success", run.log
        assert [outcome_of(run, name) for name in ("scheduler", "frontend")] == ["deployed", "deployed"], run.log


@pytest.mark.timeout(900)  # the first time, all that an empty machine installs is fetched
def test_the_tutorial_on_empty_machines(bare: World) -> None:
    reader = Reader(bare, os.environ.get("DEPLOY_MACHINE_TUTORIAL_ON", "trixie"))  # or bookworm
    page = PAGE.read_text()
    for old, new in NAMES.items():
        page = page.replace(old, new)
    for part in parts(page):
        if part.github:
            getattr(reader, re.sub(r"\W+", "_", part.github.lower()))()
        elif part.before.startswith("You see"):
            for line in part.text.splitlines():
                assert line in reader.said, f"{line} is not in:\n{reader.said}"
        elif place := re.search(r"(Into|At the end of) `([^`]+)`", part.before):
            if "What only you can do" in reader.said:  # then it is what adopt.py said to paste
                assert [line for line in part.text.splitlines() if line.strip() not in reader.said] == []
            reader.write(place[2], part.text, append=place[1] != "Into")
        else:
            reader.run(part.text)

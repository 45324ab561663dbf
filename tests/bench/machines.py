"""The machines of a bench: one frontend for each contender, all alike, on one services machine; new commits.

All frontends begin as the `deployed` snapshot's: nginx, gunicorn, the example's first commit. A contender that is not
ours finds what it can restart: gunicorn.service behind gunicorn.socket (units/), with /srv/app/current pointing to its
own tree (/srv/site), a database of its own, and may use sudo.
"""

from __future__ import annotations

import functools
import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import tools
from lab.host import call
from lab.image import EXAMPLE, Image
from lab.machine import Machine
from lab.world import DOT_ENV, REPO_URL, World

RECIPES = Path(__file__).with_name("recipes")
UNITS = Path(__file__).with_name("units")
PROBE = Path(__file__).with_name("probe.py")
LIGHT_MACHINES = 4
Root = tuple[Machine, str]
PEER = """\
    rm -rf /srv/app/releases /srv/app/envs /srv/app/repo.git /srv/app/state /srv/app/bin /srv/app/current /srv/app/slots
    install -d -o deploy -g deploy /srv/site
    ln -sfn {tree} /srv/app/current
    echo 'deploy ALL=(root) NOPASSWD: ALL' >/etc/sudoers.d/bench
    """


class Machines:
    """All machines of one bench, in a World; numbers (the last part of an address) are given in order."""

    def __init__(self, world: World, layers: Path) -> None:
        self.world = world
        self.layers = layers
        self.next_number = 20
        self.commits = 0
        self.services = world.boot("services")
        self.raise_limits()
        self.known_hosts = world.home / "bench_known_hosts"

    def raise_limits(self) -> None:
        """The one git server of many machines must take as many connections at once."""
        self.services.sh(
            "echo 'MaxStartups 200' >/etc/ssh/sshd_config.d/bench.conf; systemctl reload ssh;"
            "echo 'max_connections = 200' >>/etc/postgresql/15/main/conf.d/lab.conf;"
            "systemctl restart postgresql@15-main"
        )

    # --- machines

    def create(self, name: str) -> Machine:
        """One more frontend, switched off."""
        image = Image("bookworm").ensure()
        directory = self.world.directory / "machines" / name
        lower = [self.layers / "frontend", image.root]
        machine = Machine(name, self.next_number, lower, directory, self.world.network).create()
        self.next_number += 1
        shutil.copy(PROBE, machine.root / "srv/probe.py")
        with open(machine.root / "etc/hosts", "a") as hosts:
            hosts.write(f"127.0.1.1 {name}\n")
        self.world.machines[name] = machine
        self.known_hosts.write_text(self.world.known_hosts())
        return machine

    def create_peer(self, name: str, tree: str = "/srv/site") -> Machine:
        """One for another tool: without what is deploy-machine's own, with a database of its own; booted."""
        machine = self.create(name)
        self.without_what_is_ours(machine)
        self.with_a_service_to_restart(machine)
        self.services.sh(f"createdb -O board -T board bench_{name}", user="postgres")
        machine.boot(wait="ssh.service")
        machine.sh(PEER.format(tree=tree))
        dot_env = DOT_ENV.replace("DB_NAME=board", f"DB_NAME=bench_{name}") + "POETRY_VIRTUALENVS_IN_PROJECT=true\n"
        machine.run("tee", "/srv/app/shared/.env", input=dot_env)
        machine.run("tee", "/srv/app/shared/steps.sh", input=(RECIPES / "steps.sh").read_text())
        return machine

    @staticmethod
    def without_what_is_ours(machine: Machine) -> None:
        """Nothing of deploy-machine's starts at its boots."""
        for link in (machine.root / "etc/systemd/system").glob("*.wants/*"):
            if link.name.startswith(("deploy-", "gunicorn@")):
                link.unlink()

    @staticmethod
    def with_a_service_to_restart(machine: Machine) -> None:
        """gunicorn.service behind gunicorn.socket, and nginx in front of them, on a machine that is off."""
        units = machine.root / "etc/systemd/system"
        for unit, target in (("gunicorn.service", "multi-user"), ("gunicorn.socket", "sockets")):
            wants = f"{target}.target.wants"
            shutil.copy(UNITS / unit, units)
            (units / wants).mkdir(exist_ok=True)
            (units / wants / unit).symlink_to(f"../{unit}")
        site = machine.root / "etc/nginx/sites-enabled/board.conf"
        site.write_text(site.read_text().replace("unix:/srv/app/current/.socket", "unix:/run/gunicorn.sock"))

    @functools.cached_property
    def light(self) -> list[Machine]:
        """Those that have many roots. There are few: the kernel's default number of inotify instances does not allow as
        many systemds as roots."""
        self.create_repository("light", files=100, commits=100)
        machines = [self.create(f"light{number}") for number in range(LIGHT_MACHINES)]
        for machine in machines:
            self.without_what_is_ours(machine)
            (machine.root / "etc/systemd/system/multi-user.target.wants/nginx.service").unlink(missing_ok=True)
            machine.boot(wait="ssh.service")
            machine.run("tee", "/etc/ssh/sshd_config.d/bench.conf", input="MaxStartups 200\n")
            machine.run("systemctl", "reload", "ssh.service")
        return machines

    def create_many(self, number: int, name: str = "root") -> list[Root]:
        """So many roots that a push can go to, on the light machines: the role of each has no services."""
        roots = [(self.light[one % LIGHT_MACHINES], f"/srv/{name}{one}") for one in range(number)]
        for machine, root in roots:
            self.create_root(machine, root, "light")
        return roots

    def create_doors(self, roots: list[Root]) -> dict[Root, str]:
        """Where each root is reached as if it were a machine of its own: by an sshd to which it is /srv/app."""
        places, known = {}, [self.known_hosts.read_text()]
        for number, (machine, root) in enumerate(roots, 2200):
            machine.run("systemd-run", "-q", "-p", f"BindPaths={root}:/srv/app", "/usr/sbin/sshd", "-D", "-p", number)
            places[machine, root] = f"{machine.address}:{number}"
            key = (machine.root / "etc/ssh/ssh_host_ed25519_key.pub").read_text()
            known.append(f"[{machine.address}]:{number} {key}")
        self.known_hosts.write_text("".join(known))
        return places

    def processor_seconds(self) -> float:
        """What the light machines, the git server and the runner have used of the processors so far."""
        own = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = own.ru_utime + own.ru_stime
        for machine in (*self.light, self.services):
            stat = next(group / "cpu.stat" for group in machine.cgroups() if (group / "cpu.stat").exists())
            seconds += int(stat.read_text().split()[1]) / 1e6  # usage_usec
        return seconds

    # --- the runner

    def runner(self, *argv: Any, **options: Any) -> subprocess.CompletedProcess[str]:
        return self.world.runner(*argv, timeout=900, **options)

    def probe(self, *words: str, env: dict[str, str] | None = None, cwd: Path | None = None) -> dict[str, Any]:
        """Run the probe in the runner's namespace; what it told."""
        done = self.runner(sys.executable, PROBE, *words, env=env, cwd=cwd)
        return dict(json.loads(done.stdout.splitlines()[-1]))

    def on(self, machine: Machine, *command: str, healthy: bool = False) -> float:
        """Seconds that a command takes on the machine itself, as deploy (with healthy: until /healthz is good)."""
        url = "http://127.0.0.1/healthz" if healthy else ""
        done = machine.run("python3", "/srv/probe.py", "run", url, "", "--", *command, user="deploy", timeout=600)
        told = json.loads(done.stdout)
        assert told["code"] == 0 and told.get("healthy", True), f"{command} on {machine.name}: {told}"
        return float(told["seconds"])

    def ssh(self, machine: Machine, *command: str) -> list[str]:
        """An ssh command line to the machine, as deploy."""
        options = f"-F /dev/null -o BatchMode=yes -o IdentitiesOnly=yes -o UserKnownHostsFile={self.known_hosts}"
        return ["ssh", *options.split(), "-i", f"{self.world.home}/ci", f"deploy@{machine.address}", *command]

    def know_address(self, machine: Machine) -> None:
        """No waiting for ARP: a machine that comes up is reached at once."""
        namespace = self.world.network.namespace("runner")
        mac = f"02:00:0a:00:00:{machine.number:02x}"
        call("ip", "-n", namespace, "neigh", "replace", machine.address, "lladdr", mac, "dev", "eth0")

    # --- commits

    @property
    def head(self) -> str:
        return self.world.git("rev-parse", "HEAD")

    def change_python(self) -> str:
        """Merge a change of one .py file."""
        self.commits += 1
        text = (EXAMPLE / "board/views.py").read_text()
        return self.world.commit({"board/views.py": f"{text}\n\nCHANGE = {self.commits}\n"}, f"change {self.commits}")

    def prepare_dependencies(self) -> None:
        """Let the lab's registries know what the coming commits add."""
        lab = self.services.root / "opt/lab"
        call("cp", "-a", f"{tools.wheels(*tools.NEW_PYTHON)}/.", lab / "wheels/")
        call("cp", "-a", f"{tools.npm_packages()}/.", lab / "npm/")

    def add_python_dependency(self, number: int) -> str:
        """Merge one more Python dependency, the lock file with it."""
        name, _, version = tools.NEW_PYTHON[number].partition("==")
        self.world.add_python_dependency(f"{name} (=={version})")
        return self.world.commit({}, f"add {name}")

    def add_npm_dependency(self, number: int) -> str:
        """Merge one more npm dependency, the lock file with it."""
        name, _, version = tools.NEW_NPM[number].partition("@")
        path = self.world.clone / "package.json"
        package = json.loads(path.read_text())
        package["dependencies"][name] = version
        path.write_text(json.dumps(package, indent=2) + "\n")
        self.world.as_developer("npm install --package-lock-only --no-audit --no-fund")
        return self.world.commit({}, f"add {name}")

    # --- repositories of plain files, without steps: a big one, and a light one for many machines

    def git(self, name: str, *arguments: str, data: str | None = None) -> str:
        options: dict[str, Any] = {"input": data} if data is not None else {}
        directory = self.services.root / f"srv/git/{name}.git"
        return call("git", "-C", directory, *arguments, timeout=300, **options).stdout.strip()

    def create_repository(self, name: str, files: int, commits: int) -> None:
        call("git", "init", "-q", "--bare", "-b", "main", self.services.root / f"srv/git/{name}.git")
        self.git(name, "fast-import", "--quiet", data="".join(history(files, commits)))

    def change(self, name: str) -> str:
        """Merge a change of one file."""
        self.commits += 1
        parts = [*commit_head("one more", self.commits), "from refs/heads/main^0\n"]
        self.git(name, "fast-import", "--quiet", data="".join([*parts, *plain_file(7, f"changed {self.commits}\n")]))
        return self.git(name, "rev-parse", "main")

    def create_root(self, machine: Machine, root: str, repository: str) -> None:
        """A root that a push can go to; its role has no services."""
        machine.sh(f"install -d -o deploy -g deploy {root}")
        url = REPO_URL.replace("app.git", f"{repository}.git")
        text = f"[machine]\nname = {Path(root).name}\nroles = worker\nrepo = {url}\n"
        machine.run("tee", f"{root}/machine.ini", input=text)


WORKER = {"deploy.ini": "[role worker]\n"}


def history(files: int, commits: int, first: Mapping[str, str] = WORKER) -> list[str]:
    """A fast-import stream: one commit with all files, the first ones besides, then one for each change of one file."""
    parts = commit_head("all", 0)
    parts += [f"M 100644 inline {path}\ndata {len(text)}\n{text}\n" for path, text in first.items()]
    for number in range(files):
        parts += plain_file(number, f"# module {number}\n" + f"value = {number}\n" * 20)
    for change in range(1, commits):
        parts += commit_head(f"change {change}", change)
        parts += plain_file(change * 7 % files, f"# changed by {change}\n" * 20)
    return parts


def commit_head(message: str, number: int) -> list[str]:
    who = f"dev <dev@lab> {1_700_000_000 + number} +0000"
    return [f"commit refs/heads/main\ncommitter {who}\ndata {len(message)}\n{message}\n"]


def plain_file(number: int, content: str) -> list[str]:
    path = f"part{number // 1000:02}/dir{number // 50 % 20:02}/module{number:05}.py"
    return [f"M 100644 inline {path}\ndata {len(content)}\n{content}\n"]

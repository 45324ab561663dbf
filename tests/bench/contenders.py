"""How each tool deploys the same application to a machine of its own.

All start from the runner with the same key and the same checked host keys; each has what a competent user would
write (recipes/). In place (/srv/site) are naive, Ansible, ansible-pull, pyinfra and Fabric; Capistrano and ours
make releases. A peer skips a step whose inputs did not change, where its users do so; naive skips nothing.
None of the peers but Kamal's model asks whether the application is healthy; the stopwatch does, for all alike.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from bench import tools
from bench.machines import RECIPES, UNITS, Machines
from lab.host import REPOSITORY, call
from lab.image import say
from lab.machine import Machine
from lab.world import REPO_URL

OFF = "10.0.0.99"  # nobody has this address


class Contender:
    """One tool. Its command lines run in the runner's namespace."""

    name = ""
    tree = "/srv/site"
    boots = False  # it can deploy when the machine boots
    only_load = False  # it has a part in the case of that name alone
    boot_unit = ""

    def __init__(self, machines: Machines) -> None:
        self.machines = machines
        self.machine = self.prepare()
        self.url = f"http://{self.machine.address}/healthz"
        self.timings: dict[str, Any] | None = None

    def prepare(self) -> Machine:
        """A machine, switched on, to which nothing has been deployed by this tool yet."""
        return self.machines.create_peer(self.name, self.tree)

    def command(self, address: str, commit: str = "") -> list[str]:
        """The command line of a deploy: of the newest main, or back to that commit."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """HOME has only what the tool needs to find: no configuration of the runner's own."""
        return {**os.environ, "HOME": str(self.home)}

    @property
    def home(self) -> Path:
        """The runner's home for this tool: known_hosts, and the tool's own files."""
        home = self.machines.world.home / f"bench_{self.name}"
        (home / ".ssh").mkdir(parents=True, exist_ok=True)
        shutil.copy(self.machines.known_hosts, home / ".ssh/known_hosts")
        return home

    def measure(self, *words: str, command: list[str]) -> dict[str, Any]:
        told = self.machines.probe(*words, "--", *command, env=self.environment(), cwd=self.home)
        assert told["code"] == 0, f"{self.name}: {' '.join(command)} ended with {told['code']}:\n{told['output']}"
        return told

    def deploy(self, commit: str, back: bool = False) -> float:
        """Seconds until the deploy has ended and the application answers with that commit."""
        told = self.measure("run", self.url, commit, command=self.command(self.machine.address, commit if back else ""))
        assert told["healthy"], f"{self.name} does not run {commit}: {self.machine.health()}\n{told['output']}"
        self.after()
        return float(told["seconds"])

    def rollback(self, commit: str) -> float:
        """Seconds until the application answers with the commit before."""
        return self.deploy(commit, back=True)

    def attempt(self) -> bool:
        """Deploy the newest main, whatever becomes of it; whether the run says that all went well."""
        command = self.command(self.machine.address)
        told = self.machines.probe("run", "", "", "--", *command, env=self.environment(), cwd=self.home)
        self.after()
        if told["code"]:
            say(f"{self.name} ended with {told['code']}: {told['output'][-300:].strip()}")
        return bool(told["code"] == 0)

    def wait_for(self, commit: str) -> None:
        """Until the application answers with that commit."""
        machine = self.machine
        machine.wait_until(lambda: machine.health().get("commit") == commit, f"{self.name} did not run {commit}")

    def offline(self) -> float:
        """Seconds until it tells that a machine does not answer."""
        command = self.command(OFF)
        told = self.machines.probe("run", "", "", "--", *command, env=self.environment(), cwd=self.home)
        assert told["code"] != 0, f"{self.name} does not tell that a machine is off: {told['output']}"
        return float(told["seconds"])

    def after(self) -> None:
        """What is to be done between two deploys, without being measured."""

    def rest(self) -> None:
        """What happens by itself on the machine in the two minutes after a deploy."""

    def wipe(self) -> None:
        """As before the first deploy; the package caches stay."""
        self.machine.sh("systemctl stop gunicorn.service; find /srv/site -mindepth 1 -delete")


class Ours(Contender):
    """push_deploy.py from the runner, with the secrets that cd.yml gives it."""

    name = "ours"
    boots = True
    boot_unit = "deploy-on-startup.service"

    def prepare(self) -> Machine:
        return self.machines.create(self.name).boot(wait="multi-user.target")

    def command(self, address: str, commit: str = "") -> list[str]:
        script = REPOSITORY / "scripts/push_deploy.py"
        words = f"--machine frontend --role frontend --host {address} --user deploy".split()
        return ["python3", str(script), *words, "--contains", self.machines.head]

    def environment(self) -> dict[str, str]:
        return {**super().environment(), **self.secrets(), "GITHUB_OUTPUT": str(self.output)}

    def secrets(self) -> dict[str, str]:
        key = (self.machines.world.home / "ci").read_text()
        return {"DEPLOY_SSH_KEY": key, "DEPLOY_KNOWN_HOSTS": self.machines.known_hosts.read_text()}

    @property
    def output(self) -> Path:
        return self.machines.world.home / "bench_output"

    def after(self) -> None:
        """Take over what the deploy told of where its time went."""
        self.timings = None
        if self.output.exists():
            last = self.output.read_text().splitlines()[-1]
            self.timings = json.loads(bytes.fromhex(last.partition("=")[2])).get("timings")
            self.output.unlink()

    def rest(self) -> None:
        """Its timer's two looks, with which the slot that was left ends: nobody is served there any more."""
        for _ in range(2):
            self.machine.run("systemctl", "start", "deploy-watch.service")

    def rollback(self, commit: str) -> float:
        command = self.machines.ssh(self.machine, "/srv/app/bin/deploy_machine.py rollback")
        told = self.measure("run", self.url, commit, command=command)
        assert told["healthy"], f"ours does not run {commit}: {told['output']}"
        return float(told["seconds"])

    def wipe(self) -> None:
        self.machine.sh("systemctl stop 'gunicorn@*.socket' 'gunicorn@*.service'")
        self.machine.sh("cd /srv/app && rm -rf releases envs current repo.git state slots/*")


class Naive(Contender):
    """The shell script of the old single-machine pipeline, over plain ssh."""

    name = "naive"
    script = "naive.sh"

    def command(self, address: str, commit: str = "") -> list[str]:
        ssh = self.machines.ssh(self.machine, "sh", "-s", "--", REPO_URL, commit)
        line = " ".join(ssh).replace(self.machine.address, address)
        return ["sh", "-c", f"exec {line} <{RECIPES / self.script}"]


class KamalModel(Naive):
    """How Kamal replaces a version, written as a script: Kamal itself needs Docker and a registry.

    So the seconds of its deploys would not be Kamal's, which are those of an image that is made, pushed and pulled.
    """

    name = "kamal-model"
    script = "kamal_model.sh"
    tree = "/srv/site/current"
    only_load = True

    def prepare(self) -> Machine:
        """nginx is its proxy, and passes requests to the one version that serves."""
        machine = super().prepare()
        machine.run("systemctl", "disable", "--now", "gunicorn.socket", "gunicorn.service")
        machine.run("tee", "/etc/systemd/system/web@.service", input=(UNITS / "web@.service").read_text())
        machine.run("tee", "/etc/nginx/conf.d/web.conf", input="upstream web { server unix:/run/nothing-yet; }\n")
        machine.sh(
            "sed -i --follow-symlinks s,http://unix:/run/gunicorn.sock,http://web, /etc/nginx/sites-enabled/board.conf;"
            "systemctl daemon-reload; systemctl reload-or-restart nginx.service"
        )
        return machine


class Ansible(Contender):
    """ansible-playbook with pipelining and ControlPersist."""

    name = "ansible"

    def command(self, address: str, commit: str = "") -> list[str]:
        binary = tools.virtual_environment("ansible") / "bin/ansible-playbook"
        extra = ["-e", f"repo={REPO_URL}", *(["-e", f"version={commit}"] if commit else [])]
        return [str(binary), "-i", f"{address},", "-u", "deploy", *extra, str(RECIPES / "playbook.yml")]

    def environment(self) -> dict[str, str]:
        home = self.home
        options = "-F /dev/null -o ControlMaster=auto -o ControlPersist=60s -o IdentitiesOnly=yes"
        return {
            **os.environ,
            "HOME": str(home),
            "ANSIBLE_PIPELINING": "True",
            "ANSIBLE_INTERPRETER_PYTHON": "/usr/bin/python3",
            "ANSIBLE_PRIVATE_KEY_FILE": str(self.machines.world.home / "ci"),
            "ANSIBLE_SSH_ARGS": f"{options} -o UserKnownHostsFile={home}/.ssh/known_hosts",
            "ANSIBLE_SSH_CONTROL_PATH": str(self.control),
            "ANSIBLE_TIMEOUT": "5",
            "LC_ALL": "C.UTF-8",
        }

    @property
    def control(self) -> Path:
        return self.machines.world.home / "ansible.socket"

    def after(self) -> None:
        """Each run of CI begins without a connection, so ours does not find the last one's."""
        if self.control.exists():
            call("ssh", "-F", "/dev/null", "-o", f"ControlPath={self.control}", "-O", "exit", "x", check=False)


class AnsiblePull(Contender):
    """ansible-pull on the machine: started over ssh, or by a unit before the application when it boots."""

    name = "pull"
    boots = True
    boot_unit = "bench-pull.service"
    program = "/opt/ansible/bin/ansible-pull -U {repo} -C {version} -d /srv/site -i localhost, -o -e pulled=1 {more}"
    unit = """\
        [Unit]
        Before=gunicorn.service nginx.service
        After=network-online.target
        Wants=network-online.target
        [Service]
        Type=oneshot
        RemainAfterExit=yes
        User=deploy
        Environment=LC_ALL=C.UTF-8
        ExecStart={command}
        [Install]
        WantedBy=multi-user.target
        """

    def prepare(self) -> Machine:
        machine = super().prepare()
        wheels = machine.root / "opt/wheels"
        call("cp", "-a", tools.wheels(tools.PINS["ansible"]), wheels)
        machine.sh(
            f"python3 -m venv /opt/ansible && /opt/ansible/bin/pip -q install --no-index -f /opt/wheels"
            f" {tools.PINS['ansible']} && rm -rf /opt/wheels", timeout=300,
        )  # fmt: skip
        machine.run("tee", "/srv/app/pull.yml", input=(RECIPES / "playbook.yml").read_text())
        unit = self.unit.format(command=self.pull("main", "-e boot=1"))
        machine.run("tee", f"/etc/systemd/system/{self.boot_unit}", input=unit)
        machine.run("systemctl", "enable", self.boot_unit)
        return machine

    def pull(self, version: str, more: str = "") -> str:
        return self.program.format(repo=REPO_URL, version=version, more=more) + " /srv/app/pull.yml"

    def command(self, address: str, commit: str = "") -> list[str]:
        ssh = self.machines.ssh(self.machine, "LC_ALL=C.UTF-8 " + self.pull(commit or "main"))
        return [word.replace(self.machine.address, address) for word in ssh]


class Pyinfra(Contender):
    """pyinfra with facts that tell whether there is anything to do."""

    name = "pyinfra"

    def command(self, address: str, commit: str = "") -> list[str]:
        binary = tools.virtual_environment("pyinfra") / "bin/pyinfra"
        words = [str(binary), "-y", address, str(RECIPES / "pyinfra_deploy.py"), "--ssh-user", "deploy"]
        words += ["--ssh-key", str(self.machines.world.home / "ci"), "--data", f"repo={REPO_URL}"]
        words += ["--data", "ssh_connect_timeout=5"]
        return words + (["--data", f"version={commit}"] if commit else [])


class Fabric(Contender):
    """A fabfile that skips what did not change."""

    name = "fabric"

    def command(self, address: str, commit: str = "") -> list[str]:
        binary = tools.virtual_environment("fabric") / "bin/fab"
        words = [str(binary), "--search-root", str(RECIPES), "-t", "5", "-H", f"deploy@{address}"]
        words += ["-i", str(self.machines.world.home / "ci"), "deploy", "--repo", REPO_URL]
        return words + (["--version", commit] if commit else [])


class Capistrano(Contender):
    """Capistrano with releases and linked directories."""

    name = "capistrano"
    tree = "/srv/site/current"

    def __init__(self, machines: Machines) -> None:
        self.cap = tools.capistrano()
        self.address = ""
        super().__init__(machines)

    @property
    def home(self) -> Path:
        home = super().home
        shutil.copytree(RECIPES / "capistrano", home, dirs_exist_ok=True)
        return home

    def command(self, address: str, commit: str = "") -> list[str]:
        self.address = address
        return [self.cap, "production", "deploy:rollback" if commit else "deploy"]

    def environment(self) -> dict[str, str]:
        return {
            **super().environment(),
            "BENCH_REPO": REPO_URL,
            "BENCH_HOST": self.address,
            "BENCH_KEY": str(self.machines.world.home / "ci"),
            "BENCH_KNOWN_HOSTS": str(self.machines.known_hosts),
            "LC_ALL": "C.UTF-8",
        }

    def wipe(self) -> None:
        super().wipe()
        self.machine.sh("rm -rf /tmp/git-ssh-*")


CONTENDERS: dict[str, type[Contender]] = {
    kind.name: kind for kind in (Ours, KamalModel, Naive, Ansible, AnsiblePull, Pyinfra, Fabric, Capistrano)
}

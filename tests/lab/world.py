"""A whole environment: the services machine, the machines to deploy to, a runner, and an application.

    10.0.0.2  runner      a namespace only: where CI's jobs and a laptop's commands run
    10.0.0.3  services    git over ssh, PostgreSQL, a Python index and an npm registry
    10.0.0.5  scheduler
    10.0.0.6  frontend

Preparing one takes a minute, so a prepared one is kept (`snapshot`) by the hash of what made it, and
each test boots overlays of that.
"""

from __future__ import annotations

import atexit
import concurrent.futures
import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from lab.host import REPOSITORY, cache, call, locked
from lab.image import EXAMPLE, Image, say
from lab.machine import Machine
from lab.network import Network
from waiting import wait_for

NUMBERS = {"services": 3, "scheduler": 5, "frontend": 6, "third": 7}
ROLES = {"scheduler": ["scheduler"], "frontend": ["frontend"]}
REPO_URL = "git@git.lab:/srv/git/app.git"
MACHINES_INI = "[scheduler]\nroles = scheduler\non = always\n[frontend]\nroles = frontend\non = at-times\n"

DOT_ENV = """\
SECRET_KEY="for tests only"
ALLOWED_HOSTS="127.0.0.1 localhost frontend 10.0.0.6"
DB_HOST=db.lab
DB_NAME=board
DB_USER=board
DB_PASSWORD=board
SCHEDULER_INTERVAL=1
# the lab's registries
POETRY_PYPI_MIRROR_URL=http://pypi.lab/simple/
NPM_CONFIG_REGISTRY=http://npm.lab/
NPM_CONFIG_UPDATE_NOTIFIER=false
"""

REGISTRY_UNIT = """\
[Unit]
Description=Python index and npm registry for the machines
[Service]
ExecStart=/usr/bin/python3 /opt/lab/registry.py
[Install]
WantedBy=multi-user.target
"""


def runs() -> Path:
    return cache() / "run"


def reap() -> None:
    """Remove what a killed lab left: its owner file is not locked any more."""
    for directory in sorted(runs().glob("dm*")):
        with locked(directory / "owner", wait=False) as dead:
            if dead:
                network = Network(directory.name)
                for path in directory.glob("machines/*"):
                    end_leftover(path, directory.name)
                    Machine(path.name, 0, [], path, network).remove_cgroups()
                network.down()
                unmount(directory)
                shutil.rmtree(directory, ignore_errors=True)


def end_leftover(directory: Path, lab_id: str) -> None:
    """Kill a machine whose lab has died, if its processes are still those."""
    for name in ("pid", "leader"):
        with contextlib.suppress(OSError, ValueError):
            pid = int((directory / name).read_text())
            if f"/{lab_id}-{directory.name}" in Path(f"/proc/{pid}/cgroup").read_text():
                os.kill(pid, signal.SIGKILL)
                with contextlib.suppress(AssertionError):  # its mounts are taken away in any case
                    wait_for(lambda: not Path(f"/proc/{pid}").exists(), f"process {pid} ends", 10)  # noqa: B023


def unmount(directory: Path) -> None:
    """Unmount everything below a directory, deepest first."""
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for mount in sorted((m for m in mounts if m.startswith(f"{directory}/") or m == str(directory)), reverse=True):
        call("umount", "-l", mount, check=False)


def raise_limits() -> None:
    """Every systemd takes some ten inotify instances of one user's; Linux grants 128, too few for many machines."""
    path = Path("/proc/sys/fs/inotify/max_user_instances")
    if int(path.read_text()) < 1024:
        path.write_text("1024")


class World:
    """One lab. Use it as a context manager: leaving it ends and removes everything."""

    def __init__(self, layers: Path | None = None, lab_id: str = "") -> None:
        """layers: a directory with one file system layer per machine, as save() leaves it."""
        runs().mkdir(parents=True, exist_ok=True)
        raise_limits()
        with locked(cache() / "run.lock"):  # else another's reap() could take a directory for a dead lab's
            reap()
            if lab_id:
                self.directory = runs() / lab_id
                self.directory.mkdir()
            else:
                self.directory = Path(tempfile.mkdtemp(prefix="dm", dir=runs()))
            self.owner: IO[str] = open(self.directory / "owner", "w")  # noqa: SIM115 - held as long as the lab lives
            fcntl.flock(self.owner, fcntl.LOCK_EX)
        # in memory: what machines sync to disk costs nothing, and nothing of it is wanted later
        (self.directory / "machines").mkdir()
        call("mount", "-t", "tmpfs", "-o", "size=8G,mode=755", "tmpfs", self.directory / "machines")
        self.network = Network(self.directory.name)
        self.layers = layers
        self.machines: dict[str, Machine] = {}
        self.home = self.directory / "home"  # the laptop's and the runner's: keys, and a clone
        self.closed = False
        atexit.register(self.close)
        self.network.up()
        self.network.join("runner", 2)
        if layers:
            call("cp", "-a", layers / "home", self.home)
        else:
            self.home.mkdir()
            for key in ("admin", "ci"):
                call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", key, "-f", self.home / key)

    @classmethod
    def attach(cls, lab_id: str) -> World:
        """The lab that another run of this program has left running."""
        world = cls.__new__(cls)
        world.directory = runs() / lab_id
        world.network = Network(lab_id)
        world.layers = None
        world.home = world.directory / "home"
        world.closed = False
        numbers = {path.name: NUMBERS[path.name] for path in sorted((world.directory / "machines").iterdir())}
        world.machines = {
            name: Machine(name, number, [], world.directory / "machines" / name, world.network).attach()
            for name, number in numbers.items()
        }
        return world

    def leave_running(self) -> None:
        """Let the lab outlive this process: a keeper holds its lock until `reap` is to remove it."""
        keeper = subprocess.Popen(
            ["sleep", "infinity"], pass_fds=[self.owner.fileno()], start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        (self.directory / "keeper").write_text(str(keeper.pid))
        atexit.unregister(self.close)

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cut all power, remove all namespaces, mounts and files."""
        if self.closed:
            return
        self.closed = True
        atexit.unregister(self.close)
        with concurrent.futures.ThreadPoolExecutor() as pool:  # the kernel takes a second or two for each
            list(pool.map(lambda machine: machine.remove(), self.machines.values()))
        self.network.down()
        unmount(self.directory)
        shutil.rmtree(self.directory, ignore_errors=True)
        self.owner.close()

    # --- machines

    def machine(self, name: str, suite: str = "bookworm", number: int = 0) -> Machine:
        """The machine of that name; made (switched off) when first asked for."""
        if name not in self.machines:
            image = Image(suite).ensure()
            lower = [image.root] if name != "services" else [image.extra, image.root]
            if self.layers and (self.layers / name).is_dir():
                lower = [self.layers / name, *lower]
            directory = self.directory / "machines" / name
            machine = Machine(name, number or NUMBERS[name], lower, directory, self.network).create()
            ssh = machine.root / "root/.ssh"
            ssh.mkdir(mode=0o700, exist_ok=True)
            (ssh / "authorized_keys").write_text((self.home / "admin.pub").read_text())
            self.machines[name] = machine
        return self.machines[name]

    def boot(self, name: str, wait: str = "multi-user.target") -> Machine:
        """The machine, switched on; the services machine is switched on before any other."""
        if name != "services":
            self.boot("services")
        machine = self.machine(name)
        if not machine.is_on:
            if name == "services" and not (machine.root / "etc/systemd/system/lab-registry.service").exists():
                self.configure_services(machine)
            machine.boot(wait="postgresql@15-main.service" if name == "services" else wait, seconds=90)
            if name == "services":
                machine.wait_for_unit("ssh.service")
                machine.wait_until(
                    lambda: machine.sh("curl -sf -m 5 http://pypi.lab/simple/django/", check=False).returncode == 0,
                    "the registry did not answer",
                )
            elif wait:
                machine.wait_for_startup()
        return machine

    def configure_services(self, machine: Machine) -> None:
        """Make the bare image the services machine: git, PostgreSQL, the registries."""
        root = machine.root
        units = root / "etc/systemd/system"
        (units / "lab-registry.service").write_text(REGISTRY_UNIT)
        (units / "multi-user.target.wants/lab-registry.service").symlink_to("../lab-registry.service")
        (units / "multi-user.target.wants/postgresql.service").symlink_to("/lib/systemd/system/postgresql.service")
        postgres = root / "etc/postgresql/15/main"
        (postgres / "conf.d/lab.conf").write_text("listen_addresses = '*'\nfsync = off\nmax_connections = 50\n")
        with open(postgres / "pg_hba.conf", "a") as file:
            file.write("host all all 10.0.0.0/24 scram-sha-256\n")
        (root / "etc/gitconfig").write_text("[safe]\n\tdirectory = *\n[init]\n\tdefaultBranch = main\n")
        call("chroot", root, "useradd", "--create-home", "--password", "*", "--shell", "/usr/bin/git-shell", "git")
        call("git", "init", "-q", "--bare", "-b", "main", root / "srv/git/app.git")
        machine.boot(wait="postgresql@15-main.service", seconds=90)
        machine.wait_until(
            lambda: machine.sh("psql -qc 'select 1'", user="postgres", check=False).returncode == 0,
            "PostgreSQL did not answer",
        )
        machine.sh(
            "psql -qc \"create role board login createdb password 'board'\" && createdb -O board board",
            user="postgres",
        )
        machine.shut_down()

    def allow_to_read(self, public_key: str) -> None:
        """Add a deploy key to the git server."""
        services = self.machine("services")
        services.sh(
            f"install -d -o git -g git -m 700 ~git/.ssh && echo '{public_key}' >> ~git/.ssh/authorized_keys"
            " && chown git:git ~git/.ssh/authorized_keys && chmod 600 ~git/.ssh/authorized_keys"
        )

    # --- the runner, or a laptop

    def runner(self, *argv: Any, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command in the runner's namespace."""
        return call("ip", "netns", "exec", self.network.namespace("runner"), *argv, **options)

    def ssh_environment(self) -> dict[str, str]:
        """An environment in which ssh of the runner's user finds its key and known hosts (below HOME)."""
        ssh = self.home / ".ssh"
        ssh.mkdir(mode=0o700, exist_ok=True)
        (ssh / "known_hosts").write_text(self.known_hosts())
        # OpenSSH takes the home directory from the password file: point it here by a wrapper on PATH
        bin_directory = self.home / "bin"
        bin_directory.mkdir(exist_ok=True)
        wrapper = bin_directory / "ssh"
        options = f"-F /dev/null -i {self.home}/admin -o IdentitiesOnly=yes -o UserKnownHostsFile={ssh}/known_hosts"
        wrapper.write_text(f'#!/bin/sh\nexec /usr/bin/ssh {options} "$@"\n')
        wrapper.chmod(0o755)
        return {**os.environ, "HOME": str(self.home), "PATH": f"{bin_directory}:{os.environ['PATH']}"}

    def known_hosts(self) -> str:
        """Every machine's host key, as DEPLOY_KNOWN_HOSTS has them."""
        lines = []
        for machine in self.machines.values():
            key = (machine.root / "etc/ssh/ssh_host_ed25519_key.pub").read_text().split()[:2]
            lines.append(f"{machine.address} {' '.join(key)}")
        return "\n".join(lines) + "\n"

    def set_up(self, name: str, *extra: str, roles: list[str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run setup_machine.py of the application's clone for a machine, over ssh from the runner."""
        machine = self.machines[name]
        arguments = ["--ssh", f"root@{machine.address}", "--name", name, "--repo", REPO_URL]
        arguments += [word for role in roles or ROLES[name] for word in ("--role", role)]
        arguments += ["--authorize", str(self.home / "ci.pub"), *extra]
        script = self.clone / "scripts/setup_machine.py"
        return self.runner("python3", script, *arguments, env=self.ssh_environment(), check=False)

    # --- the application's repository

    @property
    def origin(self) -> Path:
        return self.machine("services").root / "srv/git/app.git"

    @property
    def clone(self) -> Path:
        """The developer's clone of the application: the example, with this repository's scripts and units."""
        clone = self.home / "app"
        if not clone.exists():
            ignore = shutil.ignore_patterns("node_modules", "__pycache__", ".venv", "staticfiles", "dist")
            shutil.copytree(EXAMPLE, clone, ignore=ignore)
            for name in ("scripts", "systemd"):
                shutil.copytree(REPOSITORY / name, clone / name, ignore=ignore)
            (clone / ".github/workflows").mkdir(parents=True)
            for name in ("cd.yml", "fleet.yml"):
                shutil.copy(REPOSITORY / ".github/workflows" / name, clone / ".github/workflows")
            (clone / "machines.ini").write_text(MACHINES_INI)
            self.git("init", "-q", "-b", "main")
            self.commit({}, "the application")
        return clone

    def git(self, *arguments: Any) -> str:
        env = {
            **os.environ,
            "GIT_CONFIG_GLOBAL": "/dev/null",
            **{f"GIT_{who}_{what}": "dev" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "safe.directory",
            "GIT_CONFIG_VALUE_0": "*",
        }
        return call("git", *arguments, cwd=self.home / "app", env=env).stdout.strip()

    def commit(self, files: Mapping[str, str | None], message: str = "change") -> str:
        """Write (or with None remove) files, commit, push to the git server's main; return the commit's id."""
        clone = self.home / "app" if (self.home / "app").exists() else self.clone
        for name, content in files.items():
            path = clone / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if content is None:
                path.unlink()
            else:
                path.write_text(textwrap.dedent(content))
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", message)
        self.git("push", "-q", "--force", self.origin, "HEAD:refs/heads/main")
        return self.git("rev-parse", "HEAD")

    def replace_application(self, files: Mapping[str, str | None]) -> str:
        """Commit another application in the place of the example; scripts/ stays."""
        for path in self.clone.iterdir():
            if path.name not in (".git", "scripts"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        return self.commit(files, "another application")

    def as_developer(self, script: str) -> None:
        """Run a command that changes lock files in a copy of the clone, where Poetry and npm are; take them over."""
        services = self.machine("services")
        target = services.root / "root/app"
        shutil.rmtree(target, ignore_errors=True)
        call("cp", "-a", self.clone, target)
        registries = "POETRY_PYPI_MIRROR_URL=http://pypi.lab/simple/ NPM_CONFIG_REGISTRY=http://npm.lab/"
        services.sh(f"cd /root/app && export {registries} && {script}", timeout=120)
        for name in ("poetry.lock", "pyproject.toml", "package.json", "package-lock.json"):
            (self.clone / name).write_text((target / name).read_text())

    def add_python_dependency(self, requirement: str) -> None:
        """What `poetry add` does to the clone's files; commit() is still to be called."""
        pyproject = self.clone / "pyproject.toml"
        pyproject.write_text(pyproject.read_text().replace('    "croniter', f'    "{requirement}",\n    "croniter'))
        self.as_developer("poetry lock")

    def edit(self, name: str, old: str, new: str) -> dict[str, str]:
        """For commit(): the file with one piece of text replaced."""
        text = (self.clone / name).read_text()
        assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in {name}"
        return {name: text.replace(old, new)}

    # --- snapshots

    def save(self, directory: Path) -> None:
        """Switch everything off in order and keep what the machines wrote, as layers for other worlds."""
        temporary = directory.with_name(f".{directory.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for machine in self.machines.values():
            machine.shut_down()
            shutil.rmtree(machine.root / "var/log/journal", ignore_errors=True)
            (machine.root / "var/log/journal").mkdir()
            # merged with the layer it stands on itself: overlays of overlays stay two deep
            layers = [path for path in reversed(machine.lower) if self.layers and self.layers in path.parents]
            for layer in [*layers, machine.directory / "upper"]:
                call("cp", "-a", f"{layer}/.", temporary / machine.name)
        call("cp", "-a", self.home, temporary / "home")
        shutil.rmtree(directory, ignore_errors=True)
        temporary.rename(directory)


def fingerprint() -> str:
    """The hash of all that a prepared world is made of."""
    digest = hashlib.sha256(Image("bookworm").key.encode())
    for top in (REPOSITORY / "scripts", REPOSITORY / "systemd", REPOSITORY / ".github", EXAMPLE, Path(__file__).parent):
        for path in sorted(top.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts and "node_modules" not in path.parts:
                digest.update(str(path.relative_to(top)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def snapshot(kind: str) -> Path:
    """The layers of a prepared world, made now if nobody has: `services`, or `deployed`.

    services: the git server has the application, the database is empty; no machine is set up.
    deployed: scheduler and frontend are set up and run the application's first commit.
    """
    directory = cache() / "snapshots" / f"{kind}-{fingerprint()}"
    with locked(cache() / "snapshots" / f"{kind}.lock"):
        if not directory.exists():
            for old in (cache() / "snapshots").glob(f"{kind}-*"):
                if old.stat().st_mtime < time.time() - 86400:  # labs of other checkouts may stand on it
                    shutil.rmtree(old)
            say(f"preparing the `{kind}` snapshot (once for this state of the repository)")
            layers = snapshot("services") if kind == "deployed" else None
            with World(layers) as world:
                world.boot("services")
                world.clone  # noqa: B018 - made by being asked for
                if kind == "deployed":
                    for name in ROLES:
                        first_deploy(world, name)
                world.save(directory)
        os.utime(directory)
    return directory


def first_deploy(world: World, name: str) -> dict[str, Any]:
    """What a person does with a new machine: set it up, allow its key, write its settings, deploy."""
    machine = world.boot(name)
    done = world.set_up(name, "--no-restrict-ci-key")  # the bench's other tools run what they like by it
    assert done.returncode == 0, done.stdout + done.stderr
    allow_and_configure(world, machine)
    return machine.deploy().result


def allow_and_configure(world: World, machine: Machine) -> None:
    """The steps between setup_machine.py and the first deploy that a person does."""
    world.allow_to_read((machine.root / "home/deploy/.ssh/id_ed25519.pub").read_text().strip())
    machine.run("tee", "/srv/app/shared/.env", input=DOT_ENV)
    if "frontend" in ROLES.get(machine.name, []):
        site = machine.root / "etc/nginx/sites-enabled"
        if not (site / "board.conf").is_symlink():  # version 0.1 installed none
            (site / "default").unlink(missing_ok=True)
            (site / "board.conf").write_text((world.clone / "deploy/nginx/board.conf").read_text())
            machine.run("systemctl", "enable", "nginx.service")

"""./dev demo where no machines can be made: the main job with two roots in a folder, without root.

Real: git, cd.yml as GitHub's runner runs it, ssh to an sshd of each machine's own on loopback, the deploys and what
they install, the health checks. Not real: the services are children of this program, which follow `current`, where on a
machine systemd runs them; the database is a SQLite file. Where there is no sshd, deploys are called directly. Python
packages come from here: what pip finds, as it is configured for this user, is kept.
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import tomllib

from lab.host import REPOSITORY, cache, call
from lab.image import EXAMPLE, say
from lab.page import Page
from lab.world import MACHINES_INI
from waiting import wait_for
from workflow import Concurrency, Run, push

CHANGE = "board/templates/board/index.html"
PYTHON = sys.executable

DEPLOY_INI = """\
; As the example's, with services that this demo runs.
[deploy]
python = {python}
health_timeout = 30

[role scheduler]
services =
check = python manage.py scheduler_heartbeat

[role frontend]
slots =
reload =
health = {address}
check = python -c "{check}"
"""
# the service that answers is the new one
CHECK = "import os, urllib.request as u; assert os.environ['DEPLOY_COMMIT'] in u.urlopen('{address}').read().decode()"

SSHD_CONFIG = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
SetEnv HOME={home}
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def requirements() -> list[str]:
    """The example's packages, but for PostgreSQL's."""
    packages = tomllib.loads((EXAMPLE / "poetry.lock").read_text())["package"]
    return [f"{found['name']}=={found['version']}" for found in packages if not found["name"].startswith("psycopg")]


def wheels() -> Path:
    """Where these are, downloaded when they are first needed."""
    key = hashlib.sha256(f"{sys.version}{requirements()}".encode()).hexdigest()[:12]
    folder = cache() / "demo" / f"wheels-{key}"
    if not (folder / "complete").exists():
        say("downloading the example's Python packages (once)")
        pip = [PYTHON, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"]
        call(*pip, "--no-deps", "--dest", folder, *requirements(), timeout=300)
        (folder / "complete").touch()
    return folder


class Host:
    """One machine: a root, its sshd, and its service, which follows `current` while the machine is on."""

    def __init__(self, demo: Demo, name: str) -> None:
        self.demo, self.name, self.port = demo, name, free_port()
        self.folder, self.root = demo.folder / name, demo.folder / name / "root"
        for folder in ("shared", "bin", "deployers"):
            (self.root / folder).mkdir(parents=True)
        ini = f"[machine]\nname = {name}\nroles = {name}\nrepo = file://{demo.origin}\nfetch_timeout = 20\n"
        (self.root / "machine.ini").write_text(ini)
        (self.root / "shared/.env").write_text(demo.variables())
        self.is_on, self.sshd, self.service, self.runs = False, None, None, ""  # type: ignore[var-annotated]
        if demo.sshd:
            call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / "host_key")
            shutil.copy(demo.folder / "ci.pub", self.folder / "authorized_keys")
            text = SSHD_CONFIG.format(port=self.port, folder=self.folder, home=demo.home)
            (self.folder / "sshd_config").write_text(text)

    def boot(self) -> None:
        """Catch up, with the services behind it, as at a boot of a machine; then let pushes in."""
        self.is_on = True
        threading.Thread(target=self.follow, daemon=True).start()
        self.deploy("--trigger", "boot")
        if self.demo.sshd:
            argv = [self.demo.sshd, "-D", "-e", "-f", str(self.folder / "sshd_config")]
            with open(self.folder / "sshd.log", "ab") as log:
                self.sshd = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            wait_for(self.answers, f"the sshd of {self.name} answers: {self.folder}/sshd.log", 10)

    def answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False

    def deploy(self, *arguments: str) -> int:
        script = self.demo.clone / "scripts/deploy_machine.py"
        argv = [PYTHON, str(script), "deploy", "--root", str(self.root), *arguments]
        env = {"HOME": str(self.demo.home), "PATH": os.environ["PATH"]}
        process = subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        assert process.stderr
        said = ""
        for line in process.stderr:
            print(f"  {self.name:10} | {line}", end="", flush=True)
            said += line
        code = process.wait()
        self.demo.page.log(f"{self.name}: deploy {' '.join(arguments)}: exit code {code}", said, is_shown=True)
        return code

    def follow(self) -> None:
        """Run the service in the release that `current` leads to, as a restart would."""
        while self.is_on:
            release = os.path.realpath(self.root / "current")
            if os.path.exists(f"{release}/REVISION") and release != self.runs:
                self.stop_service()
                self.runs = release
                words = [f"{release}/.venv/bin/gunicorn", "--config", "gunicorn.conf.py", "--bind", self.demo.place]
                if self.name == "scheduler":
                    words = [f"{release}/.venv/bin/python", "manage.py", "run_scheduler"]
                dotenv = REPOSITORY / "scripts/deployer/dotenv.py"
                argv = [PYTHON, "-IS", str(dotenv), str(self.root / "shared/.env"), *words]
                with open(self.folder / "service.log", "ab") as log:
                    self.service = subprocess.Popen(
                        argv, cwd=release, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
                    )
            time.sleep(0.05)
        self.stop_service()

    def stop_service(self) -> None:
        if self.service:
            self.service.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.service.wait(10)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.service.pid, signal.SIGKILL)
        self.service, self.runs = None, ""

    def switch_off(self) -> None:
        self.is_on = False
        if self.sshd:
            self.sshd.terminate()
            self.sshd.wait(10)
        wait_for(lambda: self.service is None, f"the service of {self.name} ends", 15)


class Demo:
    """The folder, the application's repository, and the two machines."""

    def __init__(self, folder: Path, page: Page) -> None:
        self.page = page
        self.folder, self.home, self.clone = folder, folder / "home", folder / "app"
        self.origin, self.sshd = folder / "origin.git", self.find_sshd()
        self.place = f"127.0.0.1:{free_port()}"
        self.address = f"http://{self.place}/healthz"
        self.concurrency, self.number = Concurrency(), 0
        (self.home / ".local/bin").mkdir(parents=True)
        for program in ("node", "npm"):  # wherever this user has them
            if found := shutil.which(program):
                (self.home / ".local/bin" / program).symlink_to(found)
        self.make_repository()
        call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "ci") if self.sshd else None
        self.hosts = {name: Host(self, name) for name in ("scheduler", "frontend")}

    @staticmethod
    def find_sshd() -> str:
        """sshd, as a user may start one; empty if there is none, or this user's shell lets nobody in."""
        return shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin") or ""

    def variables(self) -> str:
        registry = call("npm", "config", "get", "registry").stdout.strip()
        return (
            f"SECRET_KEY=demo\nDB_FILE={self.folder}/board.sqlite3\nSCHEDULER_INTERVAL=1\nWEB_CONCURRENCY=1\n"
            f"PIP_NO_INDEX=1\nPIP_FIND_LINKS={wheels()}\nNPM_CONFIG_REGISTRY={registry}\n"
            f"NPM_CONFIG_CACHE={cache()}/demo/npm\nNPM_CONFIG_UPDATE_NOTIFIER=false\n"
        )

    def make_repository(self) -> None:
        ignore = shutil.ignore_patterns("node_modules", "__pycache__", ".venv", "staticfiles", "dist")
        shutil.copytree(EXAMPLE, self.clone, ignore=ignore)
        shutil.copytree(REPOSITORY / "scripts", self.clone / "scripts", ignore=ignore)
        (self.clone / ".github/workflows").mkdir(parents=True)
        cd, machine = (REPOSITORY / ".github/workflows/cd.yml").read_text(), 'arguments=(--machine "$MACHINE"'
        assert f"{machine})" in cd
        cd = cd.replace(f"{machine})", f'{machine} --root "{self.folder}/$MACHINE/root")')  # not /srv/app
        (self.clone / ".github/workflows/cd.yml").write_text(cd)
        fleet = (REPOSITORY / ".github/workflows/fleet.yml").read_text()
        assert fleet.count(" --hand-over\n") == 1
        fleet = fleet.replace(" --hand-over\n", f' --hand-over --root "{self.folder}/$MACHINE/root"\n')
        (self.clone / ".github/workflows/fleet.yml").write_text(fleet)
        (self.clone / "machines.ini").write_text(MACHINES_INI)
        check = CHECK.format(address=self.address)
        (self.clone / "deploy.ini").write_text(DEPLOY_INI.format(python=PYTHON, address=self.address, check=check))
        for name in ("pyproject.toml", "poetry.lock"):
            (self.clone / name).unlink()
        (self.clone / "requirements.txt").write_text("\n".join(requirements()) + "\n")
        call("git", "init", "-q", "--bare", "-b", "main", self.origin)
        self.git("init", "-q", "-b", "main")
        self.commit("the application")

    def git(self, *words: str) -> str:
        who = {f"GIT_{who}_{what}": "demo" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        env = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", **who}
        return call("git", *words, cwd=self.clone, env=env).stdout.strip()

    def commit(self, message: str) -> str:
        self.git("add", "-A")
        self.git("commit", "-q", "-m", message)
        self.git("push", "-q", str(self.origin), "HEAD:refs/heads/main")
        return self.git("rev-parse", "HEAD")

    def merge(self, old: str, new: str) -> None:
        """Merge a change of the page's heading, and deploy it to whatever is on."""
        path = self.clone / CHANGE
        text = path.read_text()
        assert f"<h1>{old}</h1>" in text
        path.write_text(text.replace(f"<h1>{old}</h1>", f"<h1>{new}</h1>"))
        head = self.commit(f"heading: {new}")
        if not self.sshd:
            say(f"merged {head[:8]}; there is no sshd here, so each deploy is called directly")
            for host in self.hosts.values():
                code = host.deploy("--trigger", "cd", "--contains", head) if host.is_on else None
                self.page.say(f"{host.name}: {'offline' if code is None else f'exit code {code}'}")
            return
        say(f"merged {head[:8]}; running .github/workflows/cd.yml")
        self.number += 1
        run = Run(
            self.clone / ".github/workflows/cd.yml", push(head), workdir=self.folder / f"run{self.number}",
            repository=str(self.clone), secrets=self.secrets(), concurrency=self.concurrency,
            on_line=lambda leg, line: print(f"  {leg:22} | {line}", flush=True),
        ).start().wait(240)  # fmt: skip
        self.page.run(run)

    def secrets(self) -> dict[str, str]:
        known = [
            f"[127.0.0.1]:{host.port} {' '.join((host.folder / 'host_key.pub').read_text().split()[:2])}"
            for host in self.hosts.values()
        ]
        found = {"DEPLOY_SSH_KEY": (self.folder / "ci").read_text(), "DEPLOY_KNOWN_HOSTS": "\n".join(known) + "\n"}
        for name, host in self.hosts.items():
            found[f"{name.upper()}_HOST"], found[f"{name.upper()}_USER"] = f"127.0.0.1:{host.port}", getpass.getuser()
        return found

    def health(self) -> str:
        with urllib.request.urlopen(self.address, timeout=10) as answer:
            return str(answer.read().decode())


@contextlib.contextmanager
def a_demo(page: Page) -> Iterator[Demo]:
    """A demo in a folder of its own; in the end nothing of it is left, neither processes nor files."""
    place = None
    with contextlib.suppress(OSError):  # in memory, where programs may be run: what deploys sync to disk costs nothing
        memory = os.statvfs("/dev/shm")
        place = "/dev/shm" if os.access("/dev/shm", os.W_OK) and not memory.f_flag & os.ST_NOEXEC else None
    with tempfile.TemporaryDirectory(prefix="demo-", dir=place, ignore_cleanup_errors=True) as folder:
        demo = Demo(Path(folder).resolve(), page)
        try:
            yield demo
        finally:
            for host in demo.hosts.values():
                if host.is_on:
                    host.switch_off()


def main(page: Page) -> int:
    """Merge with both machines on, merge with the frontend off, switch it on."""
    began = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is ended, too
    with a_demo(page) as demo:
        frontend = demo.hosts["frontend"]
        page.title("0. Two machines are set up, and the application is deployed")
        with futures.ThreadPoolExecutor() as pool:
            list(pool.map(Host.boot, demo.hosts.values()))
        page.title("1. Both machines are on, and a change is merged to main")
        demo.merge("Notice board", "Our notice board")
        page.say(f"the frontend answers: {demo.health()}")
        page.title("2. The frontend is switched off, and another change is merged")
        frontend.switch_off()
        demo.merge("Our notice board", "The notice board")
        page.title("3. The frontend is switched on again: it catches up")
        frontend.boot()
        page.say(f"the frontend answers: {demo.health()}")
        if demo.git("rev-parse", "HEAD") not in demo.health():
            page.say("that is not the newest commit")
            return 1
    say(f"done in {time.monotonic() - began:.0f} s, and nothing of it is left")
    return 0

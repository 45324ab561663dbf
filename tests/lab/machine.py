"""One machine: a systemd of its own on an overlay of the image, in a network namespace of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lab.host import call
from lab.network import Network
from waiting import wait_for

ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
ASK = 0.2  # seconds between two questions to a machine's systemd: each costs the processors some 30 ms


class Attached:
    """A process that another run of this program started: as much of Popen as a Machine needs."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def poll(self) -> int | None:
        return None if Path(f"/proc/{self.pid}").exists() else 0

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, seconds: float | None = None) -> int:
        wait_for(lambda: self.poll() is not None, f"process {self.pid} ends", seconds or 60)
        return 0


class Machine:
    """A machine of a lab. It is off until boot(); what it writes stays until remove()."""

    def __init__(self, name: str, number: int, lower: Sequence[Path], directory: Path, network: Network) -> None:
        self.name = name
        self.number = number
        self.lower = list(lower)
        self.directory = directory
        self.network = network
        self.root = directory / "root"
        self.address = f"10.0.0.{number}"
        self.process: subprocess.Popen[bytes] | Attached | None = None
        self.leader = 0

    def create(self) -> Machine:
        """Mount the overlay; give it a name and host keys of its own."""
        for name in ("root", "upper", "work"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        lower = ":".join(str(path) for path in self.lower)
        options = f"lowerdir={lower},upperdir={self.directory}/upper,workdir={self.directory}/work"
        call("mount", "-t", "overlay", "overlay", "-o", options, self.root)
        (self.root / "etc/hostname").write_text(self.name + "\n")
        key = self.root / "etc/ssh/ssh_host_ed25519_key"
        if not key.exists():
            call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", self.name, "-f", key)
        return self

    def attach(self) -> Machine:
        """Find the processes of a machine that another run of this program has booted."""
        with contextlib.suppress(OSError, ValueError):
            process = Attached(int((self.directory / "pid").read_text()))
            if "systemd-nspawn" in Path(f"/proc/{process.pid}/cmdline").read_text():
                self.process, self.leader = process, int((self.directory / "leader").read_text())
        return self

    @property
    def is_on(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def boot(self, wait: str = "ssh.service", seconds: float = 60) -> Machine:
        """Switch it on and wait until that unit is active (nothing: until systemd itself answers)."""
        assert not self.is_on, f"{self.name} is on already"
        self.network.leave(self.name)
        self.network.join(self.name, self.number)
        namespace = f"/run/netns/{self.network.namespace(self.name)}"
        argv = ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "-b", "-D", str(self.root)]
        # nspawn keeps things by that name in the host's /run: two labs must not share them
        argv += ["--machine", f"{self.network.id}-{self.name}".replace("_", "-"), f"--hostname={self.name}"]
        argv += ["--console=pipe"]
        argv += ["--resolv-conf=off", "--timezone=off", "--link-journal=no", f"--network-namespace-path={namespace}"]
        enter = 'for group in $0; do echo $$ > "$group/cgroup.procs" || exit 1; done; exec "$@"'
        groups = " ".join(str(group) for group in self.make_cgroups())
        with open(self.directory / "console.log", "ab") as console:
            self.process = subprocess.Popen(
                ["sh", "-c", enter, groups, *argv],
                stdin=subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True,
                env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
            )  # fmt: skip
        (self.directory / "pid").write_text(str(self.process.pid))
        self.wait_until(self.find_leader, f"{self.name} has no PID 1", seconds)
        self.wait_until(lambda: self.sh("systemctl show-environment", check=False).returncode == 0,
                        f"systemd of {self.name} did not answer", seconds, ASK)  # fmt: skip
        if wait:
            self.wait_for_unit(wait, seconds)
        return self

    def cgroups(self) -> list[Path]:
        """A control group of its own, in each hierarchy that systemd uses.

        In a shared one, a systemd that stops a unit would kill another machine's unit of that name.
        """
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
        tops = [mount[1] for mount in mounts if mount[2] == "cgroup2" or "name=systemd" in mount[3].split(",")]
        return [Path(top) / f"{self.network.id}-{self.name}" for top in dict.fromkeys(tops)]

    def make_cgroups(self) -> list[Path]:
        for group in self.cgroups():
            group.mkdir(exist_ok=True)
        return self.cgroups()

    def remove_cgroups(self) -> None:
        for group in self.cgroups():
            for path in sorted([group, *group.rglob("*/")], reverse=True):
                with contextlib.suppress(OSError):
                    path.rmdir()

    def find_leader(self) -> bool:
        """Find the machine's PID 1 among nspawn's children."""
        assert self.process
        if self.process.poll() is not None:
            raise AssertionError(f"systemd-nspawn ended: {self.console()}")
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        for pid in children:
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/status").read_text().partition("NSpid:")[2].split("\n")[0].split()[-1:] == ["1"]:
                    self.leader = int(pid)
                    (self.directory / "leader").write_text(pid)
                    return True
        return False

    def console(self) -> str:
        return (self.directory / "console.log").read_text(errors="replace")[-3000:]

    @staticmethod
    def wait_until(condition: Any, otherwise: str, seconds: float = 30, pause: float = 0.05) -> None:
        """waiting.wait_for(), with what is said if it does not come about."""
        wait_for(condition, otherwise, seconds, pause)

    def wait_for_unit(self, unit: str, seconds: float = 30, state: str = "active") -> None:
        self.wait_until(lambda: self.show(unit, "ActiveState") == state,
                        f"{unit} on {self.name} was not {state}", seconds, ASK)  # fmt: skip

    def wait_for_startup(self, seconds: float = 90) -> str:
        """Wait until the start-up deploy has ended, if there is one; how it ended (exited, failed, dead)."""
        unit = "deploy-on-startup.service"
        self.wait_until(lambda: self.show(unit, "SubState") in ("exited", "failed", "dead"),
                        f"{unit} of {self.name} did not end", seconds, ASK)  # fmt: skip
        return self.show(unit, "SubState")

    def argv(self, user: str = "root") -> list[str]:
        """The command prefix that runs something on the machine."""
        enter = ["nsenter", "-t", str(self.leader), "-m", "-u", "-i", "-n", "-p", "-C", "--"]
        home = "/root" if user == "root" else f"/home/{user}"
        env = ["env", "-i", "-C", "/", *(f"{key}={value}" for key, value in ENVIRONMENT.items()), f"HOME={home}"]
        return [*enter, *env, *([] if user == "root" else ["runuser", "-u", user, "--"])]

    def run(self, *argv: str, user: str = "root", **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command on the machine."""
        return call(*self.argv(user), *argv, **options)

    def sh(self, script: str, user: str = "root", **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a line of shell on the machine."""
        return self.run("sh", "-c", script, user=user, **options)

    def out(self, script: str, user: str = "root") -> str:
        return self.sh(script, user).stdout.strip()

    def show(self, unit: str, key: str) -> str:
        return self.run("systemctl", "show", f"--property={key}", "--value", "--", unit, check=False).stdout.strip()

    def deploy(self, *arguments: str, expect: int | None = 0, user: str = "deploy", timeout: float = 280) -> Deploy:
        """Run bin/deploy_machine.py there by hand; the result it printed, and its log."""
        words = arguments if arguments and not arguments[0].startswith("-") else ("deploy", *arguments)
        done = self.run("/srv/app/bin/deploy_machine.py", *words, "--json", user=user, check=False, timeout=timeout)
        assert "\nTraceback" not in f"\n{done.stderr}", done.stderr
        assert expect is None or done.returncode == expect, f"{done.returncode}: {done.stdout}{done.stderr}"
        return Deploy(done.returncode, json.loads(done.stdout or "{}"), done.stderr)

    def health(self) -> dict[str, Any]:
        """What /healthz answers through nginx, with its status under `status`."""
        done = self.sh("curl -s -m 10 -w '\\n%{http_code}' http://127.0.0.1/healthz", check=False)
        body, _, status = done.stdout.rpartition("\n")
        with contextlib.suppress(ValueError):
            return {"status": int(status), **json.loads(body)}
        return {"status": int(status or 0), "body": body}

    def serving(self) -> str:
        """The web service's instance that users' requests reach (or will, after a boot): gunicorn@blue.service, say."""
        link = "srv/app/current/.socket"
        socket = self.out(f"readlink /{link}") if self.is_on else os.readlink(self.root / link)
        return socket.replace("/run/gunicorn-", "gunicorn@").replace(".sock", ".service")

    def pids(self, *units: str) -> dict[str, str]:
        return {unit: self.show(unit, "MainPID") for unit in units}

    def failed_units(self) -> list[str]:
        done = self.out("systemctl list-units --failed --no-legend --plain | cut -d' ' -f1")
        return done.split()

    def journal(self, *arguments: str) -> str:
        return self.run("journalctl", "--no-pager", "-o", "short-monotonic", *arguments, check=False).stdout

    def shut_down(self, seconds: float = 60) -> None:
        """Switch it off in order, as `poweroff` does."""
        if self.process and self.is_on:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                self.cut()
                raise AssertionError(f"{self.name} did not shut down within {seconds:g} s") from None
            self.network.leave(self.name)  # nothing answers for a machine that is off
        self.process, self.leader = None, 0

    def cut(self) -> None:
        """Cut its power: it sends nothing more, and nothing on it ends in order."""
        self.network.unplug(self.name)
        # PID 1 outlives nspawn if only that is killed
        for pid in (self.process.pid if self.process else 0, self.leader):
            with contextlib.suppress(ProcessLookupError):
                if pid:
                    os.kill(pid, signal.SIGKILL)
        if self.process:
            self.process.wait(20)
        if self.leader:
            self.wait_until(lambda: not Path(f"/proc/{self.leader}").exists(), f"{self.name} did not end")
        self.process, self.leader = None, 0
        self.network.leave(self.name)

    def remove(self) -> None:
        """Cut its power and remove all it wrote."""
        self.cut()
        self.remove_cgroups()
        call("umount", "-l", self.root, check=False)
        shutil.rmtree(self.directory, ignore_errors=True)


class Deploy:
    """What one deploy by hand left: exit code, result, log."""

    def __init__(self, code: int, result: dict[str, Any], log: str) -> None:
        self.code = code
        self.result = result
        self.log = log

    @property
    def outcome(self) -> str:
        return str(self.result.get("outcome"))

    @property
    def message(self) -> str:
        return str(self.result.get("message"))

    @property
    def ran(self) -> list[str]:
        return [step["name"] for step in self.result["steps"] if step["result"] == "ran"]

    @property
    def actions(self) -> dict[str, str]:
        return {service["unit"]: service["action"] for service in self.result["services"]}

"""fleet_status.py as a program: all machines at once, within ten seconds, whatever one of them does."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import many

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
import fleet_status

SCRIPT = Path(fleet_status.__file__)
INVENTORY = "[scheduler]\non = always\n[frontend]\non = at-times\n[night]\non = at-times\n"
COMMIT = "b" * 40


class Fleet:
    """A laptop: an inventory, a key, and an `ssh` that reaches a machine called `answers` in a way of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(home / "key")], check=True)
        (home / "machines.ini").write_text(INVENTORY)
        self.env = {
            "PATH": f"{home}/bin:{os.environ['PATH']}",
            "XDG_STATE_HOME": str(home / "state"),
            "DEPLOY_SSH_KEY": (home / "key").read_text(),
            "DEPLOY_KNOWN_HOSTS": "127.0.0.1 " + (home / "key.pub").read_text(),
            **{f"{name}_USER": "somebody" for name in ("SCHEDULER", "FRONTEND", "NIGHT")},
        }
        (home / "bin").mkdir()
        (home / "bin/ssh").write_text(f"""#!{sys.executable}
import os, sys
if "answers" not in sys.argv:
    os.execv({shutil.which("ssh")!r}, sys.argv)
open({str(home / "asked")!r}, "a").write(sys.argv[-1] + "\\n")
exec(open({str(home / "far_side.py")!r}).read())
""")
        (home / "bin/ssh").chmod(0o755)
        self.answers()

    def answers(self, program: str = "", **more: Any) -> None:
        status = {"schema": 1, "machine": "x", "commit": COMMIT, "healthy": True, "drift": [], "trigger": "cd"}
        status |= {"activated": "2026-01-02T03:04:05Z", **more}
        (self.home / "far_side.py").write_text(program or f"print({json.dumps(status)!r})")

    def run(self, *words: str, **hosts: str) -> tuple[int, str, str, float]:
        """Exit code, stdout, stderr and seconds."""
        env = {**self.env, **{f"{name.upper()}_HOST": host for name, host in hosts.items()}}
        argv = [sys.executable, str(SCRIPT), "--inventory", str(self.home / "machines.ini"), *words]
        began = time.monotonic()
        done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout, done.stderr, time.monotonic() - began


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path)


def states(out: str) -> dict[str, str]:
    return {machine["name"]: machine["state"] for machine in json.loads(out)["machines"]}


@pytest.mark.slow
def test_one_that_never_speaks_and_one_that_is_refused_hold_nobody_up(fleet: Fleet) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.create_server(("127.0.0.1", 0)) as closed:
        port, other = silent.getsockname()[1], closed.getsockname()[1]
        closed.close()
        hosts = {"scheduler": "answers", "frontend": f"127.0.0.1:{other}", "night": f"127.0.0.1:{port}"}
        code, out, err, seconds = fleet.run("--json", **hosts)
    assert seconds < 10
    assert (code, err) == (1, "")
    assert states(out) == {"scheduler": "ok", "frontend": "unknown", "night": "REFUSES"}
    assert "127.0.0.1" not in out, "where a machine is, is a secret"
    (asked,) = (fleet.home / "asked").read_text().splitlines()
    assert asked.startswith("python3 /srv/app/bin/deploy_machine.py status --json --root /srv/app --since 2000")
    assert asked.endswith("--within 5")


def test_one_that_is_off_is_shown_as_it_was(fleet: Fleet) -> None:
    attempt = {"started": "2026-01-02T03:04:00Z", "trigger": "boot", "outcome": "deployed", "commit": COMMIT}
    fleet.answers(history=[attempt])
    assert fleet.run("--machine", "frontend", frontend="answers")[0] == 0
    code, out, _, _ = fleet.run("--machine", "frontend", frontend=many.nobody())
    assert code == 1, "nobody answered"
    assert "1 machine asked, none answered" in out
    assert "\nfrontend  off    bbbbbbbb?" in out
    assert "          ? as last seen " in out and "it catches up when it boots" in out
    _, out, _, _ = fleet.run("--machine", "frontend", "--history", frontend=many.nobody())
    assert out == f"2026-01-02T03:04:00Z  frontend      boot    deployed      {COMMIT[:8]}\n"
    fleet.run("--machine", "frontend", frontend="answers")
    assert "--since 2026-01-02T03:04:00Z --within" in (fleet.home / "asked").read_text(), "only what is not known yet"


def test_one_that_is_unhealthy_is_asked_twice(fleet: Fleet) -> None:
    fleet.answers(healthy=False, reason="http://127.0.0.1/healthz answers 500")
    code, out, _, seconds = fleet.run("--machine", "night", night="answers")
    assert (code, "UNHEALTHY" in out, seconds < 10) == (1, True, True)
    assert "http://127.0.0.1/healthz answers 500; see `deploy_machine.py status` there" in " ".join(out.split())
    assert len((fleet.home / "asked").read_text().splitlines()) == 2


def test_an_older_version_is_asked_in_its_own_words(fleet: Fleet) -> None:
    usage = "deploy_machine.py: unrecognized arguments: --since 2000 --within 5 (see --help)"
    fleet.answers(f"""
if "--within" in sys.argv[-1]:
    sys.exit(print({usage!r}, file=sys.stderr) or 2)
print('{{"schema": 1, "machine": "x", "commit": "{COMMIT}", "healthy": true, "since": "2026-01-02T03:04:05Z"}}')
""")
    assert states(fleet.run("--json", "--machine", "night", night="answers")[1]) == {"night": "ok"}


@pytest.mark.slow
def test_one_that_takes_too_long_or_says_too_much_is_cut_off(fleet: Fleet) -> None:
    fleet.answers("import time; time.sleep(60)")
    code, out, _, seconds = fleet.run("--json", "--machine", "night", night="answers")
    assert (code, states(out), seconds < 10) == (1, {"night": "unknown"}, True)
    fleet.answers("while True: print('x' * 1_000_000)")
    assert fleet.run("--machine", "night", night="answers")[3] < 10


def test_what_a_machine_says_reaches_no_terminal(fleet: Fleet) -> None:
    fleet.answers(failing=True, last_failure={"reason": "\x1b[2J\u202e gone\r\n::error::x"}, trigger="\x1b]0;x\x07")
    _, out, _, _ = fleet.run("--machine", "night", night="answers")
    assert all(char.isprintable() or char == "\n" for char in out), out
    assert "\n::" not in out


@pytest.mark.parametrize(
    ("words", "hosts", "missing", "says"),
    [
        ((), {}, "", "scheduler: set SCHEDULER_HOST in the environment, or give --host scheduler=HOST"),
        (("--machine", "x"), {}, "", "--machine x: the inventory has scheduler, frontend, night"),
        (("--machine", "night"), {"night": "-oProxy"}, "", "night: NIGHT_HOST is malformed"),
        (("--machine", "night"), {"night": "h"}, "DEPLOY_SSH_KEY", "set DEPLOY_SSH_KEY in the environment, or name a"),
        (("--inventory", "/none"), {}, "", "/none: No such file or directory; name the inventory with --inventory"),
    ],
)
def test_what_is_missing_is_one_clear_line(
    fleet: Fleet, words: tuple[str, ...], hosts: dict[str, str], missing: str, says: str
) -> None:
    fleet.env.pop(missing, None)
    code, out, err, _ = fleet.run(*words, **hosts)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("fleet_status.py: ") and says in err


def test_no_machine_is_not_all_well(fleet: Fleet) -> None:
    (fleet.home / "machines.ini").write_text("")
    code, out, _, _ = fleet.run()
    assert (code, out) == (1, f"{fleet.home}/machines.ini: has no machine\n")


@pytest.mark.slow
def test_fifty_machines_are_each_told_rightly_and_eight_connections_begin_at_once(fleet: Fleet) -> None:
    (fleet.home / "machines.ini").write_text("".join(f"[{name}]\n" for name in many.NAMES))
    status = {"schema": 1, "machine": "x", "commit": COMMIT, "healthy": True, "activated": "2026-01-02T03:04:05Z"}
    many.install(fleet.home, json.dumps(status))
    with many.places() as where:
        fleet.env |= {"HOME": str(fleet.home), **where}
        code, out, err, seconds = fleet.run("--json")
    assert (code, err, seconds < 10) == (1, "", True)
    rightly = {"off": "SILENT", "slow": "unknown", "refuses": "REFUSES", "closed": "SILENT", "busy": "ok", "on": "ok"}
    assert states(out) == {name: rightly[many.kind_of(name)] for name in many.NAMES}
    begun = many.connections(fleet.home)
    assert {one.kind for one in begun} == {"on", "busy", "slow", "refuses"}, "whoever is off takes no place from others"
    assert many.most_at_once(begun, hold=fleet_status.HANDSHAKE - 0.3) <= 8

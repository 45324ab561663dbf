"""push_all.py as a program, on a laptop: fifty machines from one place, a few at once, and one verdict."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import many
from waiting import wait_for

SCRIPT = Path(__file__).resolve().parents[2] / "scripts/push_all.py"
RESULT = {"schema": 1, "outcome": "deployed", "message": "fine", "trigger": "cd", "commit": "b" * 40}
ANSWER = f"deploy-machine started 2026-01-02T03:04:05Z\n{json.dumps(RESULT)}"


class Laptop:
    """A directory with a key, machines.ini, and an `ssh` that asks nobody."""

    def __init__(self, home: Path) -> None:
        self.home = home
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(home / "key")], check=True)
        (home / "bin").mkdir()
        many.install(home, ANSWER)
        self.env = {
            "PATH": f"{home}/bin:{os.environ['PATH']}",
            "HOME": str(home),
            "TMPDIR": str(home),
            "DEPLOY_SSH_KEY": (home / "key").read_text(),
            "DEPLOY_KNOWN_HOSTS": "127.0.0.1 " + (home / "key.pub").read_text(),
        }

    def inventory(self, *kinds: str) -> list[str]:
        """Write machines.ini with all machines of these kinds; their names."""
        names = [name for name in many.NAMES if many.kind_of(name) in kinds]
        (self.home / "machines.ini").write_text("".join(f"[{name}]\nroles = web worker\n" for name in names))
        return names

    def start(self, *words: str) -> subprocess.Popen[str]:
        with many.places(busy="on") as where:
            return self.process({**self.env, **where}, *words)

    def process(self, env: dict[str, str], *words: str) -> subprocess.Popen[str]:
        argv = [sys.executable, str(SCRIPT), *words]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            argv, env=env, cwd=self.home, stdout=pipe, stderr=pipe, text=True, start_new_session=True
        )

    def run(self, *words: str, **more: str) -> tuple[int, str, str]:
        """Exit code, log and stderr."""
        with many.places(busy="on") as where:
            process = self.process({**self.env, **where, **more}, *words)
            out, err = process.communicate(timeout=60)
        assert "Traceback" not in err
        return process.returncode, out, err


@pytest.fixture
def laptop(tmp_path: Path) -> Laptop:
    return Laptop(tmp_path)


@pytest.mark.slow
def test_all_machines_eight_at_once_and_each_is_told_rightly(laptop: Laptop) -> None:
    names = laptop.inventory("off", "refuses", "closed", "busy", "on")
    page = laptop.home / "page.md"
    code, out, err = laptop.run("--contains", "b" * 40, GITHUB_STEP_SUMMARY=str(page))
    assert (code, err) == (1, ""), "some refuse the key"
    updated, offline = ["✅", "updated"], ["💤", "offline"]
    words = {"off": offline, "closed": offline, "on": updated, "busy": updated}
    report = [line for line in out.splitlines() if " | " not in line]
    found = {line.split()[1].rstrip(":"): [line.split()[0], line.split(": ")[1]] for line in report[:-1]}
    failed = ["❌", "failed, the old release serves"]
    assert found == {name: words.get(many.kind_of(name), failed) for name in names}
    assert report[-1].startswith("FAILED: refuses-18, ")
    own = [line.partition(" | ")[2] for line in out.splitlines() if line.startswith("on-44 ")]
    assert own == ["connecting", "it works", "updated: fine"]
    begun = many.connections(laptop.home)
    assert {one.kind for one in begun} == {"on", "refuses"}, "whoever is off takes no place from others"
    assert many.most_at_once(begun) <= 8
    assert page.read_text().startswith("## FAILED: refuses-18, ") and page.read_text().count("💤 offline") == 12


def test_who_is_off_does_not_fail_it(laptop: Laptop) -> None:
    names = laptop.inventory("on", "closed")
    code, out, _ = laptop.run("--machine", names[-1], "--machine", names[0])
    assert (code, out.splitlines()[-1]) == (0, f"updated: {names[-1]}; offline: {names[0]}")
    assert "::" not in out, "what is for GitHub's page is said there only"


def test_no_line_of_a_machine_is_a_command_of_githubs(laptop: Laptop) -> None:
    (name, refuses) = laptop.inventory("on")[0], "refuses-18"
    (laptop.home / "machines.ini").write_text(f"[{name}]\nroles = web\n[{refuses}]\nroles = web\n")
    code, out, _ = laptop.run(GITHUB_ACTIONS="true", SAID="::error::x\n##[error]x\n a ##[group]x")
    said = [line.partition(" | ")[2] for line in out.splitlines() if line.startswith(f"{name} ")]
    assert (code, said) == (1, ["connecting", "::error::x", "## [error]x", " a ## [group]x", "updated: fine"])
    commands = [line for line in out.splitlines() if line.strip().startswith("::") or "##[" in line]
    assert len(commands) == 1 and commands[0].startswith(f"::error title={refuses}%3A failed")


def test_ctrl_c_ends_all_in_order(laptop: Laptop) -> None:
    names = laptop.inventory("slow")[:4]
    words = [word for name in names for word in ("--machine", name)]
    process = laptop.start("--at-once", "2", *words)
    asked = laptop.home / "connections"
    wait_for(lambda: asked.exists() and asked.read_text().count("+slow") == 2, "two are pushed to")
    begun = [int(line.split()[0]) for line in asked.read_text().splitlines()]
    assert process.pid not in map(os.getpgid, begun), "a terminal would end them, too, and not in order"
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    out, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (1, "")
    ended = out[out.index("cancelled: the connections are ended") :]
    ends = "the run was cancelled; a deploy that had begun there ends by itself"
    found = [line.split(": ", 2)[-1] for line in ended.splitlines() if line.startswith("❌")]
    assert sorted(found) == sorted([ends] * 2 + ["the run was cancelled before its turn"] * 2)
    assert not [pid for pid in begun if Path(f"/proc/{pid}").exists()], "no connection is left"
    assert not list(laptop.home.glob("push-all-*")), "nor is the key"


@pytest.mark.parametrize(
    ("text", "words", "env", "says"),
    [
        ("[on-44]\n", (), {}, "machines.ini: [on-44] roles: none; write those of its machine.ini there"),
        ("[on-44]\nroles = -x\n", (), {}, "machines.ini: [on-44] roles: argument --role: '-x' is not a role name"),
        ("", (), {}, "machines.ini: has no machine"),
        ("[new]\nroles = web\n", (), {}, "new: set NEW_HOST in the environment, or give --host new=HOST"),
        ("[on-44]\nroles = web\n", ("--machine", "x"), {}, "--machine x: the inventory has on-44"),
        ("[on-44]\nroles = web\n", ("--at-once", "0"), {}, "'0' is not a number between 1 and 100"),
        ("[on-44]\nroles = web\n", ("--commit", "main"), {}, "'main' is not a commit id"),
        ("[on-44]\nroles = web\n", (), {"DEPLOY_SSH_KEY": "x"}, "DEPLOY_SSH_KEY is not a private key"),
        ("[on-44]\nroles = web\n", (), {"DEPLOY_KNOWN_HOSTS": ""}, "set DEPLOY_KNOWN_HOSTS in the environment, or"),
    ],
)
def test_what_is_wrong_is_one_line_before_anything_is_begun(
    laptop: Laptop, text: str, words: tuple[str, ...], env: dict[str, str], says: str
) -> None:
    (laptop.home / "machines.ini").write_text(text)
    code, out, err = laptop.run(*words, **env)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("push_all.py: ") and says in err
    assert not (laptop.home / "connections").exists()

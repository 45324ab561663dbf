"""What setup_machine.py carries to a machine, by value."""

from __future__ import annotations

import base64
import random
import shlex
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))
import setup_machine  # noqa: E402
from deployer import carrier  # noqa: E402


def command(**more: str) -> str:
    """The command line for the machine's shell."""
    words = ["--ssh", "admin@10.0.0.6:22", "--name", "web", "--role", "frontend", "--repo", "git@h:a.git"]
    options = setup_machine.make_parser().parse_args(words)
    options.needs = ["git"]
    for name, value in more.items():
        setattr(options, name, value)
    return setup_machine.remote_command(options, ask_password=False)


def test_what_is_carried_over_ssh() -> None:
    line = command(authorize="ssh-ed25519 AAAA ci", allowed_signers="me@example.com ssh-ed25519 AAAA\n")
    words = shlex.split(line.partition("exec $sudo ")[2])
    program, mode, packed, version, *arguments = words[words.index("-c") + 1 :]
    assert (program, mode) == (carrier.program(), "setup")
    files = carrier.unpack(base64.b85decode(packed), version)
    own = {f"scripts/{name}": data for name, data in carrier.own_files(SCRIPTS).items()}
    assert {name: data for name, data in files.items() if name in own} == own
    units = {f"systemd/{path.name}" for path in (SCRIPTS.parent / "systemd").iterdir()}
    others = {"scripts/setup_machine.py", "scripts/restricted_push.py", "authorize.pub", "allowed_signers"}
    assert set(files) == {*own, *units, *others}
    assert files["authorize.pub"] == b"ssh-ed25519 AAAA ci\n"
    assert arguments[arguments.index("--authorize") + 1] == "authorize.pub"


def test_what_does_not_fit_into_a_command_line_is_told() -> None:
    assert len(command()) < 120_000, "room for a deploy.ini and keys"
    noise = random.Random(1).randbytes(40_000).hex()
    with pytest.raises(setup_machine.UsageError, match="too long for one command line: run it on the machine"):
        command(allowed_signers=noise)


def test_a_file_that_cannot_be_carried_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "systemd").mkdir()
    (tmp_path / "systemd" / ".x.service.swp").write_bytes(b"\xff")
    monkeypatch.setattr(setup_machine, "UNITS", tmp_path / "systemd")
    monkeypatch.setattr(setup_machine, "REPOSITORY", tmp_path)
    monkeypatch.setattr(setup_machine, "HERE", tmp_path / "scripts")
    (tmp_path / "scripts").symlink_to(SCRIPTS)
    with pytest.raises(setup_machine.UsageError, match=r"systemd/\.x\.service\.swp is not text in UTF-8: remove it"):
        command()


def test_a_program_is_not_spelt_out_in_a_message() -> None:
    assert setup_machine.shown(["python3", "-c", "import os\nos.x()\n", "/srv/a b"]) == "python3 -c ... '/srv/a b'"

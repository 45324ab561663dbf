"""shared/.env: what is read of it and what is refused, and how a service comes to its variables."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))
from deployer import dotenv  # noqa: E402


def started(path: Path, *command: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """What the units do to start a program."""
    words = ["/usr/bin/python3", "-IS", str(SCRIPTS / "deployer/dotenv.py"), str(path), *command]
    return subprocess.run(words, env=env or {}, capture_output=True, text=True, check=False, timeout=20)


def test_a_program_gets_the_variables_over_its_own_and_no_others(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text("A=1\nB='two words'\nLANG=de_DE.UTF-8\n")
    given = {"A": "0", "LISTEN_FDS": "1", "LANG": "C"}
    done = started(path, "/usr/bin/env", "-0", env=given)
    variables = dict(line.split("=", 1) for line in done.stdout.split("\0") if line)
    assert variables == {**given, "A": "1", "B": "two words", "LANG": "de_DE.UTF-8"}
    assert started(path, "/usr/bin/env", env={"LC_CTYPE": "C.UTF-8"}).stdout.startswith("LC_CTYPE=C.UTF-8\n")


def test_it_is_the_same_process_with_the_same_signals(tmp_path: Path) -> None:
    """systemd knows a service by its pid, and gunicorn its socket by LISTEN_PID."""
    path = tmp_path / ".env"
    path.write_text("A=1\n")
    words = ["/usr/bin/python3", "-IS", str(SCRIPTS / "deployer/dotenv.py"), str(path)]
    show = "echo $$; grep SigIgn /proc/$$/status"
    with subprocess.Popen([*words, "/bin/sh", "-c", show], env={}, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        pid, ignored = process.stdout.read().split("\n", 1)
    assert int(pid) == process.pid
    assert not int(ignored.split()[1], 16) & 1 << (signal.SIGXFSZ - 1)


def test_without_a_file_the_program_starts(tmp_path: Path) -> None:
    done = started(tmp_path / ".env", "/bin/echo", "well")
    assert (done.returncode, done.stdout, done.stderr) == (0, "well\n", "")


def test_what_is_no_file_is_refused_without_a_wait(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    os.mkfifo(path)
    refused = started(path, "/bin/echo", "well")
    assert (refused.returncode, refused.stdout) == (78, "")
    assert refused.stderr == f"dotenv: {path} cannot be read: it is not a regular file\n"
    for other in ("/dev/zero", "/dev/tty"):
        path.unlink()
        path.symlink_to(other)
        assert started(path, "/bin/echo").returncode == 78, other
    with pytest.raises(OSError, match="Is a directory"):
        dotenv.read(str(tmp_path))


def test_a_giant_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_bytes(b"A=1\n" + b"#" * (dotenv.MOST_BYTES - 4))
    assert dotenv.parse(dotenv.read(str(path))) == {"A": "1"}
    os.truncate(path, 50_000_000_000)
    with pytest.raises(OSError, match="it is larger than 1 MB"):
        dotenv.read(str(path))


def test_a_program_that_cannot_be_started_is_told(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    missing = started(path, "/nowhere/gunicorn")
    assert (missing.returncode, missing.stderr) == (203, "dotenv: /nowhere/gunicorn: No such file or directory\n")
    path.write_bytes(b"A=a\0b\n")
    assert started(path, "/bin/echo").returncode == 203

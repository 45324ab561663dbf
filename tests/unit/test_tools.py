"""The versions of programs: told by their packages, or asked for."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
from deployer import tools

STARTED = "echo 'yarn 9.8.7'\n"


def script(path: Path, first: str, text: str = STARTED) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{first}\n{text}")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("package", "expected"),
    [
        ({"name": "yarn", "version": "1.22.22"}, "1.22.22"),
        ({"name": "corepack", "version": "0.29.3"}, "9.8.7"),  # which is not what it starts
        ({"name": "yarn"}, "9.8.7"),
        ([], "9.8.7"),
        (None, "9.8.7"),
    ],
)
def test_a_program_in_node(tmp_path: Path, package: object, expected: str) -> None:
    place = script(tmp_path / "lib/yarn/bin/yarn.js", "/bin/sh")
    link = tmp_path / "bin/yarn"
    link.parent.mkdir()
    link.symlink_to(place)
    if package is not None:
        (tmp_path / "lib/yarn/package.json").write_text(json.dumps(package))
    assert tools.ask(str(link), "Yarn") == expected


def test_npx_is_as_old_as_npm(tmp_path: Path) -> None:
    npx = script(tmp_path / "npm/bin/npx-cli.js", "/bin/sh")
    (tmp_path / "npm/package.json").write_text('{"name": "npm", "version": "10.9.2"}')
    assert tools.ask(npx, "npm") == "10.9.2"


def test_a_program_in_python(tmp_path: Path) -> None:
    never = "raise SystemExit('started')"
    assert tools.ask(script(tmp_path / "pytest", sys.executable, never), "pytest") == version("pytest")
    other = script(tmp_path / "pdm", sys.executable, "print('PDM, version 7.1.0')")  # which is not installed there
    assert tools.ask(other, "pdm") == "7.1.0"


@pytest.mark.parametrize("first", ["/bin/sh", "/usr/bin/env sh", "/no/such/python3"])
def test_any_other_program_is_asked(tmp_path: Path, first: str) -> None:
    expected = "of unknown version" if "no" in first else "9.8.7"
    assert tools.ask(script(tmp_path / "yarn", first), "Yarn") == expected


def test_a_program_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "uv"
    path.write_bytes(b"\x7fELF\xff\xfe")
    path.chmod(0o755)
    assert tools.ask(str(path), "uv") == "of unknown version"

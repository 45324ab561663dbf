"""Packages that need no network: wheels in a folder, packages of an application's own repository, npm tarballs."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Union

TOOLS = Path(__file__).with_name("tools")
NEWEST = 40  # version of each package in the folder of wheels


class Link(NamedTuple):
    """A symlink in the repository."""

    to: str


class Program(NamedTuple):
    """A file that may be run."""

    text: str


# What a commit writes, or with None removes; "{n}" in a text is the commit's number.
Content = Union[str, bytes, Link, Program, None]
Files = Mapping[str, Content]


def tool(name: str) -> str:
    return (TOOLS / name).read_text()


def write_wheels(folder: Path) -> None:
    """`alpha` and `beta` in many versions; alpha also has a program, whose first line names its environment."""
    folder.mkdir()
    for name in ("alpha", "beta"):
        for version in range(1, NEWEST + 1):
            write_wheel(folder, name, str(version))


def write_wheel(folder: Path, name: str, version: str) -> None:
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f'VALUE = "{name} {version}"\n\n\ndef main():\n    print(VALUE)\n',
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: oracle\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[console_scripts]\n{name} = {name}:main\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)


def project(name: str, *depends: str, more: str = "") -> str:
    """A pyproject.toml as uv and pip read it."""
    needs = ", ".join(f'"{each}"' for each in depends)
    about = f'[project]\nname = "{name}"\nversion = "1"\nrequires-python = ">=3.9"\ndependencies = [{needs}]\n'
    return about + more


BACKEND = '\n[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'


def package(folder: str, name: str, *depends: str) -> Files:
    """A package of the repository: one module, with its own build backend beside it."""
    return {
        f"{folder}/pyproject.toml": project(name, *depends, more=BACKEND),
        f"{folder}/backend.py": tool("backend.py"),
        f"{folder}/{name}.py": 'VALUE = "{n}"\n',
    }


def tarball(text: str) -> bytes:
    """The npm package `tool`, whose value is the text."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, content in (
            ("package.json", '{"name": "tool", "version": "1.0.0", "main": "index.js"}\n'),
            ("index.js", f"module.exports = {text!r};\n"),
        ):
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content.encode()))
    data = out.getvalue()
    return data[:4] + bytes(4) + data[8:]  # without the time in gzip's header

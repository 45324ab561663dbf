"""The real tools, where a deploy finds them, and small packages that they can install without a network."""

from __future__ import annotations

import base64
import hashlib
import importlib
import io
import json
import os
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from pathlib import Path

NODE = Path(os.environ.get("DEPLOY_MACHINE_NODE_MODULES", ""))
OFFLINE = {
    "PIP_NO_INDEX": "1",
    "UV_OFFLINE": "1",
    "YARN_ENABLE_TELEMETRY": "0",
    "YARN_ENABLE_NETWORK": "0",
    "npm_config_offline": "true",
    "npm_config_update_notifier": "false",
}

# A build backend that lies in the package itself and needs nothing.
BACKEND = (Path(__file__).parents[1] / "oracle" / "tools" / "backend.py").read_text()


def library(name: str, says: str, depends: str = "", folder: str = "libs") -> dict[str, str | bytes | None]:
    """The files of a Python package in the repository, whose module says something."""
    project = f"""\
        [project]
        name = "{name}"
        version = "1.0"
        requires-python = ">=3.9"
        dependencies = [{depends}]

        [build-system]
        requires = []
        build-backend = "backend"
        backend-path = ["."]
        """
    top = f"{folder}/{name}" if folder else name
    return {f"{top}/pyproject.toml": project, f"{top}/backend.py": BACKEND, **module(name, says, folder)}


def module(name: str, says: str, folder: str = "libs") -> dict[str, str | bytes | None]:
    """The one file of library() that says something."""
    return {f"{folder}/{name}/{name}/__init__.py": f"SAYS = {says!r}\n"}


def wheel(folder: Path, name: str, version: str) -> None:
    """A Python package, as an index would serve it, whose module says its version."""
    about = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f"SAYS = {version!r}\n",
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: tiny\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},sha256={digest(text)},{len(text.encode())}\n" for path, text in files.items())
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in {**files, f"{about}/RECORD": f"{record}{about}/RECORD,,\n"}.items():
            archive.writestr(path, text)


def digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


def tarball(name: str, version: str) -> bytes:
    """A package as an npm registry would serve it, which exports its version."""
    package = json.dumps({"name": name, "version": version, "main": "index.js"})
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for path, text in (("package.json", package), ("index.js", f"module.exports = {version!r}\n")):
            entry = tarfile.TarInfo(f"package/{path}")
            entry.size, entry.mode = len(text), 0o644
            archive.addfile(entry, io.BytesIO(text.encode()))
    return out.getvalue()


def tools(home: Path, **instead: str) -> dict[str, str]:
    """Put the tools into ~/.local/bin, where steps find them; return the variables with which one calls them oneself.

    instead: another program under a tool's name.
    """
    places = {
        "python3": sys.executable,
        "uv": Path(sys.executable).with_name("uv"),
        "poetry": Path(sys.executable).with_name("poetry"),
        "pipenv": Path(sys.executable).with_name("pipenv"),
        "pnpm": NODE / "pnpm/bin/pnpm.cjs",
        "yarn": NODE / "yarn/bin/yarn.js",
        "bun": NODE / "@oven/bun-linux-x64/bin/bun",
        "tailwindcss": NODE / "@tailwindcss/cli/dist/index.mjs",
        **{name: NODE / path for name, path in instead.items()},
    }
    folder = home / ".local/bin"
    folder.mkdir(parents=True)
    for name, place in places.items():
        program = folder / name
        program.write_text(f'#!/bin/sh\nexec "{place}" "$@"\n')
        if str(place).endswith("js"):
            program.write_text(f'#!/bin/sh\nexec node "{place}" "$@"\n')
        program.chmod(0o755)
    path = f"{folder}:/usr/local/bin:/usr/bin:/bin"
    return {"PATH": path, "HOME": str(home), "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", **OFFLINE}


def django(folder: Path) -> None:
    """A package `django` that leads to the one of the development tools: it need not be copied."""
    (place,) = {str(Path(path).parent) for path in importlib.import_module("django").__path__}
    about = "django-5.2.dist-info"
    with zipfile.ZipFile(folder / "django-5.2-py3-none-any.whl", "w") as archive:
        archive.writestr("_django.pth", place + "\n")
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: django\nVersion: 5.2\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")


def call(*argv: str, cwd: Path, env: dict[str, str]) -> str:
    done = subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


def clean(text: str) -> str:
    return textwrap.dedent(text)

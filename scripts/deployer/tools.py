"""What a step's result depends on beside the commit: variables, roles, and the versions of the programs it names."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from deployer import config, dotenv, errors, files, host, run

NAMES = {"poetry": "Poetry", "npx": "npm", "yarnpkg": "Yarn", "yarn": "Yarn", "bun": "Bun", "bunx": "Bun"}
NAMES |= {name: name for name in ("uv", "npm", "pnpm", "pdm", "pipenv", "deno", "hatch")}
WITH_NODE = {"npm", "pnpm", "Yarn"}
SHELLS = ("sh", "bash", "dash", "env")
INTERPRETER = re.compile(r"python[\d.]*|node|nodejs")
PROGRAM = "program "  # before the name of one whose version nobody knows how to ask
LASTING = (".env", "roles", "Python", "Node.js")  # what a release depends on for as long as it runs


def named_by(step: config.Step) -> list[str]:
    """What the step depends on, by the names that look() takes."""
    words = {os.path.basename(word) for text in step.run for word in re.split(r"[\s;&|()]+", text)}
    tools = {NAMES[word] for word in words & {*NAMES}}
    python = step.makes_venv or any(re.fullmatch(r"python[\d.]*|.*\.py", word) for word in words)
    node = bool(tools & WITH_NODE or words & {"node", "nodejs"})
    others = [f"{PROGRAM}{name}" for name in programs_of(step.run) if not INTERPRETER.fullmatch(name)]
    return [".env", "roles", *["Python"] * python, *["Node.js"] * node, *sorted(tools), *others]


def programs_of(run_line: Sequence[str]) -> list[str]:
    """The programs of the machine that a run line starts, by its first word and those of a shell's commands."""
    texts = [run_line[0], *(text for text in run_line[1:] if " " in text and run_line[0] in SHELLS)]
    firsts = [
        re.split(r"\s", part.strip(), maxsplit=1)[0]
        for text in texts
        for part in re.split(r"[;&|()\n]|\b(?:then|do|else)\b", text)
    ]
    return sorted({word for word in firsts if re.fullmatch(r"[\w.+-]+", word)} - {*NAMES, "pip"})


def look(machine: host.Machine, names: Sequence[str], python: str) -> dict[str, str]:
    """The present values of what named_by() returned. python: makes the environments.

    Raises DeployError if .env cannot be read.
    """
    known = files.read_json(machine.state / "tools.json") or {}
    found, asked = {}, dict(known)
    for name in sorted({*names}):
        if name == ".env":
            found[name] = digest(read_env(machine))
        elif name == "roles":
            found[name] = " ".join(machine.roles)
        elif name.startswith(PROGRAM):
            found[name] = file_of(run.which(name[len(PROGRAM) :]))
        else:
            found[name] = version(name, python, asked)
    if asked != known:
        files.write_json(machine.state / "tools.json", asked, durable=False)
    return found


def lasting(around: Mapping[str, str]) -> dict[str, str]:
    """That part of it on which a release depends for as long as it runs."""
    return {name: around[name] for name in LASTING if name in around}


def read_env(machine: host.Machine) -> str:
    """The text of shared/.env; empty if there is none. Raises DeployError."""
    path = machine.shared / ".env"
    try:
        return dotenv.read(str(path))
    except FileNotFoundError:
        return ""
    except OSError as error:
        owner = f"chown {host.owner_of(machine.root)} {path}" if isinstance(error, PermissionError) else "mend it"
        raise errors.DeployError(f"{path} cannot be read: {error.strerror}; {owner}") from None


def dropped_variables(machine: host.Machine) -> str:
    """A sentence on the lines of shared/.env that systemd leaves out without a word, and so do steps; or nothing."""
    lines, text = list[int](), read_env(machine)
    files.parse_variables(text, lines)
    if not lines:
        return ""
    mark = "; the file begins with a byte order mark, save it without" if text.startswith("\ufeff") else ""
    which = f"line{'s' * (len(lines) > 1)} {', '.join(map(str, lines[:10]))}"
    return f"{machine.shared / '.env'}: {which} left out, as systemd does: write NAME=value, without export{mark}"


def proxies(machine: host.Machine) -> dict[str, str]:
    """The variables of shared/.env that say how the network is reached: git and the webhook need them, too."""
    names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
    with contextlib.suppress(errors.DeployError):  # which is told where .env itself is needed
        return {
            name: value for name, value in files.parse_variables(read_env(machine)).items() if name.upper() in names
        }
    return {}


def digest(text: str) -> str:
    """By this it is known again; what it says cannot be seen from it."""
    return hashlib.sha256(text.encode()).hexdigest()[:16] if text else ""


def version(name: str, python: str, known: dict[str, str]) -> str:
    """A program's version, which it was asked for when its file was new; empty if it is not here."""
    programs = [key for key, value in NAMES.items() if value == name] or [python if name == "Python" else "node"]
    path = next(filter(None, map(run.which, programs)), "")
    if not path:
        return ""
    if name == "Python" and os.path.realpath(path) == os.path.realpath(sys.executable):
        return f"{sys.version.split()[0]} {os.uname().machine}"
    key = f"{name} {file_of(path)}"
    if not known.get(key):
        for other in [other for other in known if other.partition(" ")[0] == name]:
            del known[other]
        known[key] = ask(path, name)
    return known[key]


def file_of(path: str) -> str:
    """What tells that a program's file is another one; empty if there is none."""
    if not path:
        return ""
    about = os.stat(path)
    return f"{os.path.realpath(path)} {about.st_size} {about.st_mtime_ns}"


def version_of_package(path: str, name: str) -> str:
    """What the package of a program in Node.js or Python says, as its own start takes half a second; or nothing."""
    real = os.path.realpath(path)
    with contextlib.suppress(OSError, ValueError, AttributeError):  # no such file, or of another form
        about = json.loads(Path(os.path.dirname(real), "../package.json").read_text(encoding="utf-8"))
        if about.get("name") == name:
            return str(about.get("version", ""))
    with contextlib.suppress(OSError, ValueError, errors.CommandError):
        with open(real, encoding="utf-8") as file:
            first = re.fullmatch(r"#!(/\S*/python[\d.]*)", file.readline(200).strip())
        code = f"from importlib.metadata import version; print(version({name!r}))"
        return run.command([first[1], "-I", "-c", code], timeout=15, cwd=Path("/")).out.strip() if first else ""
    return ""


def ask(path: str, name: str) -> str:
    code = "import platform as p; print(p.python_version(), p.machine())"
    argv = [path, "-c", code] if name == "Python" else [path, "--version"]
    try:
        said = "" if name == "Python" else version_of_package(path, name.lower())
        said = said or run.command(argv, timeout=15, cwd=Path("/")).out
    except errors.CommandError:
        return "of unknown version"  # what it is asked to do will say what is wrong
    return said.strip() if name == "Python" else "".join(re.findall(r"v?\d+\.[\w.+-]+", said)[:1]) or said.strip()[:40]

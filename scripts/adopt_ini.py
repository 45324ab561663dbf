"""The two INI files of an application: machines.ini, the inventory, and deploy.ini, with only what differs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import adopt_looks as looks
import adopt_repo as repo
from adopt_values import UNKNOWN, Asked, Place, plain
from deployer import complaints, config, errors, ini, mirror, steps

DEFAULT_MACHINES = ("scheduler=scheduler", "frontend=frontend")
# words that a workflow has for something else, or that YAML does not read as words
NO_NAMES = re.compile(r"all|true|false|null|yes|no|on|off|github.*|deploy", re.IGNORECASE)
MATRIX = re.compile(r"(?m)^ +- \{ machine: ([\w-]+)(?:, roles: ([\w. -]+))? \}$")  # of cd.yml; fleet.yml has no roles
Sections = dict[str, dict[str, str]]
MACHINES_HEAD = """\
; The machines that this application is deployed to, and how often each is on. No addresses: they are secrets.
; on = always: one that does not answer is missed. on = at-times: it may be off, and catches up when it boots.
"""


class Machine(NamedTuple):
    name: str
    roles: tuple[str, ...]

    @property
    def is_always_on(self) -> bool:
        return "scheduler" in self.roles


class Settled(NamedTuple):
    """What is given before anything is written."""

    machines: tuple[Machine, ...]
    branch: str
    text: str  # of deploy.ini, as it is
    settings: config.Config

    @property
    def roles(self) -> list[str]:
        return list(dict.fromkeys(role for machine in self.machines for role in machine.roles))

    @property
    def web(self) -> config.Role | None:
        """The role that serves the web application."""
        return next((self.settings.roles[role] for role in self.roles if self.settings.roles[role].slots), None)


# --- machines.ini


def machines_of(application: repo.Application, asked: Sequence[str], settings: config.Config) -> tuple[Machine, ...]:
    """The machines of machines.ini, or those that are asked for. Raises UsageError."""
    text = application.text("machines.ini")
    with config.mistakes_in("machines.ini"):
        there = tuple(
            Machine(name, tuple(section.get("roles", "").split())) for name, section in ini.parse(text).items()
        )
    copied = [] if asked else machines_in(application.text(application.workflow() or "machines.ini"))
    machines = there or tuple(copied) or tuple(machine(words) for words in asked or DEFAULT_MACHINES)
    if there and asked and {*map(machine, asked)} != {*there}:
        names = ", ".join(one.name for one in there)
        raise errors.UsageError(f"--machine: machines.ini is the inventory, and has {names}: change it there")
    check_machines(machines, settings)
    return machines


def machines_in(workflow: str) -> list[Machine]:
    """The machines that a workflow of ours names."""
    return [Machine(name, tuple(roles.split())) for name, roles in MATRIX.findall(workflow)]


def machine(text: str) -> Machine:
    """`NAME=ROLE[,ROLE]`. Raises UsageError."""
    name, equals, roles = text.partition("=")
    if not equals or not roles.strip(","):
        raise errors.UsageError(f"--machine {text}: write NAME=ROLE or NAME=ROLE,ROLE, as in --machine web=frontend")
    return Machine(name, tuple(dict.fromkeys(role for role in roles.split(",") if role)))


def check_machines(machines: Sequence[Machine], settings: config.Config) -> None:
    prefixes = [machine.name.upper().replace("-", "_") for machine in machines]
    for machine in machines:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]*", machine.name) or NO_NAMES.fullmatch(machine.name):
            raise errors.UsageError(
                f"{machine.name!r} is no name for a machine: use letters, digits and -, as in web-1"
            )
        if prefixes.count(machine.name.upper().replace("-", "_")) > 1:
            raise errors.UsageError(f"two machines are called {machine.name}: their secrets would have the same names")
        config.roles_of(machine.roles, settings)
        config.slots_of(settings.roles[role] for role in machine.roles)


def machines_text(machines: Sequence[Machine]) -> str:
    sections = {
        machine.name: {"roles": " ".join(machine.roles), "on": "always" if machine.is_always_on else "at-times"}
        for machine in machines
    }
    return f"{MACHINES_HEAD}\n{text_of(sections)}"


# --- deploy.ini


def lacking(application: repo.Application, found: looks.Found, settled: Settled) -> Sections:
    """What deploy.ini has to say beside what it says already."""
    commit = looks.commit_of(application, settled.text)
    own = ini.parse(settled.text)
    wanted: Sections = {}

    def want(section: str, key: str, value: str) -> None:
        if key not in own.get(section, {}):
            wanted.setdefault(section, {})[key] = value

    if settled.branch != settled.settings.branch:
        want("deploy", "branch", settled.branch)
    if commit.shape.places.get("manage", "") != found.folder:
        want("step migrate", "cwd", found.folder or ".")
    for section, values in (*packages(commit, settled), *static(application, commit, found, settled)):
        for key, value in values.items():
            want(section, key, value)
    services = [program.unit for program in found.programs]
    if "scheduler" in settled.roles and services and services != ["scheduler.service"]:
        want("role scheduler", "services", " ".join(services))
    if settled.web:
        for key, value in health(found, settled.web).items():
            want(f"role {settled.web.name}", key, value)
    return wanted


def effective(application: repo.Application, found: looks.Found, settled: Settled) -> str:
    """The deploy.ini that is there, or that will be."""
    wanted = {} if "deploy.ini" in application.files else lacking(application, found, settled)
    return whole(wanted) if wanted else settled.text


def packages(commit: mirror.Commit, settled: Settled) -> list[tuple[str, dict[str, str]]]:
    """Which file of requirements is meant, where there is no requirements.txt."""
    subject = complaints.Subject(commit, settled.roles, steps.applying(commit, settled.roles))
    if not complaints.no_python(subject):
        return []
    for folder in dict.fromkeys(("", *commit.shape.candidates.get("manage", ())[:1])):
        files = complaints.python_files(subject, folder)
        if (
            files
            and complaints.REQUIREMENTS.fullmatch(files[0][len(folder) :].lstrip("/"))
            and files[0].endswith(".txt")
        ):
            run = f"pip install --disable-pip-version-check --requirement {files[0]}"
            return [("step python-pip", {"inputs": files[0], "run": run})]
    return []


def static(
    application: repo.Application, commit: mirror.Commit, found: looks.Found, settled: Settled
) -> list[tuple[str, dict[str, str]]]:
    """Where the build and collectstatic leave what they make."""
    lines = []
    steps_there = {step.name: step for step in commit.settings.steps if {*step.roles} & {*settled.roles}}
    output, _ = looks.build_output(application, commit, found)
    if output and "build" in steps_there and output.rstrip("/") not in steps_there["build"].provides:
        lines.append(("step build", {"provides": output.rstrip("/")}))
    collect = steps_there.get("collectstatic")
    root, apps = plain(found.static_root), found.setting("INSTALLED_APPS")
    if collect and isinstance(apps, list) and UNKNOWN not in apps and "django.contrib.staticfiles" not in apps:
        lines.append(("step collectstatic", {"run": ""}))
    elif collect and isinstance(root, Place) and root.is_inside and (root.path,) != collect.provides:
        lines.append(("step collectstatic", {"provides": root.path}))
    return lines


def health(found: looks.Found, role: config.Role) -> dict[str, str]:
    """Where the health view is, and how it has to be asked."""
    lines = {}
    if role.health == ("/healthz",) and found.health and "/healthz" not in found.health:
        lines["health"] = found.health_path
    headers = []
    host = asked_host(found)
    if host:
        headers.append(f"Host: {host}")
    header = proxy_header(found)
    if redirects(found) and header:
        headers.append(f"{header}: https")
    if headers and not role.health_headers:
        lines["health_headers"] = ", ".join(headers)
    return lines


def asked_host(found: looks.Found) -> str:
    """A host that the settings name, where they do not take 127.0.0.1, and nothing but the code can change that."""
    hosts = found.setting("ALLOWED_HOSTS")
    if isinstance(hosts, list) and all(isinstance(host, str) for host in hosts):
        if hosts and not {"*", "127.0.0.1"} & {*hosts}:
            host = str(hosts[0])
            return f"www{host}" if host.startswith(".") else host
    return ""


def redirects(found: looks.Found) -> bool:
    """Whether the health view would answer with a redirect to https."""
    path = (found.health_path or "/healthz").lstrip("/")
    exempt = found.setting("SECURE_REDIRECT_EXEMPT", [])
    patterns = [one for one in exempt if isinstance(one, str)] if isinstance(exempt, list) else []
    for pattern in patterns:
        try:
            if re.search(pattern, path):
                return False
        except re.error:
            continue
    value = found.setting("SECURE_SSL_REDIRECT", False)
    is_open = isinstance(value, Asked) and value.default is UNKNOWN
    return is_open or plain(value) in (True, "True", "true", "1")


def proxy_header(found: looks.Found) -> str:
    """The HTTP header by which the application knows that a user came by https: `X-Forwarded-Proto`."""
    value = found.setting("SECURE_PROXY_SSL_HEADER", None)
    if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str):
        return "-".join(word.capitalize() for word in value[0].split("_")[1:])
    return ""


def text_of(sections: Mapping[str, Mapping[str, str]]) -> str:
    """The sections as lines of an INI file."""
    parts = [
        f"[{name}]\n" + "".join(f"{key} = {value}".rstrip() + "\n" for key, value in keys.items())
        for name, keys in sections.items()
    ]
    return "\n".join(parts)


def whole(sections: Mapping[str, Mapping[str, str]]) -> str:
    """A deploy.ini of these sections."""
    return (
        "; Only what differs from the defaults (scripts/deploy_machine.py plan --show-config prints them).\n\n"
        + text_of(sections)
    )

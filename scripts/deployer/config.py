"""What an application configures: the deploy.ini of one commit, over defaults.ini."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from deployer import errors, ini

IS_DJANGO = re.compile(r"(.*/)?(manage\.py|django-admin(\.py)?)|django")
# the words, each with its end, of a command that is Django's `migrate` of all applications and nothing else
PLAIN_MIGRATE = re.compile(
    r"""
    (env\n(\w+=.*\n)* | (poetry|pipenv|pdm)\nrun\n | uv\nrun\n(--[\w-]+(=.*)?\n)*)*
    ((.*/)?python[\d.]*\n (-[uBOqbd]+\n | -[WX]\n?.+\n)* ((.*/)?manage\.py\n | -m\ndjango\n)
     | (.*/)?(manage\.py|django-admin(\.py)?)\n)
    migrate\n
    (--(no-?input|traceback|no-color|force-color|skip-checks|fake-initial)\n
     | --(database|settings|pythonpath|verbosity)[=\n].+\n | -v\n?\d\n)*
    """,
    re.VERBOSE,
)


class Step(NamedTuple):
    """One [step NAME] section: a command that is a function of its inputs."""

    name: str
    run: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    provides: tuple[str, ...] = ()
    when: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    after: str = ""
    timeout: float = 0.0
    keep_days: int = 0
    cwd: str = ""  # the folder of the repository that it runs in; empty: nothing is said of it
    env: tuple[tuple[str, str], ...] = ()  # variables of its own, over those of shared/.env
    lock_timeout: float = 5.0  # seconds that a migration waits for a table before it is tried again; 0: for ever
    by_default: frozenset[str] = frozenset()  # those of its keys that defaults.ini has set, and nobody else

    @property
    def makes_venv(self) -> bool:
        return ".venv" in self.provides

    @property
    def migrates(self) -> bool:
        """Whether its command names Django's `migrate`; what else may run it is seen when it does."""
        found = [word for text in self.run for word in re.split(r"[\s;&|()]+", text)]
        return "migrate" in found and any(IS_DJANGO.fullmatch(word) for word in found)

    @property
    def can_be_asked(self) -> bool:
        """Whether its command, with --plan behind it, does nothing but say what Django's `migrate` would do."""
        return bool(re.fullmatch(PLAIN_MIGRATE, "".join(word + "\n" for word in self.run)))

    @property
    def syncs(self) -> bool:
        """Whether its command brings an existing environment to the lock file, and removes the rest: not all do."""
        return self.run[:2] in (("poetry", "sync"), ("uv", "sync")) or self.run[:1] == ("pip-sync",)


class Role(NamedTuple):
    """One [role NAME] section: what runs on a machine of that role and how to tell it is well."""

    name: str
    services: tuple[str, ...] = ()  # stopped, then started
    slots: str = ""  # a template: one instance of it is replaced by the other, without a gap
    reload: tuple[str, ...] = ()
    health: tuple[str, ...] = ()  # /PATH, http://HOST/PATH or http+unix:///SOCKET:/PATH
    health_headers: tuple[tuple[str, str], ...] = ()
    check: tuple[str, ...] = ()
    drain_timeout: float = 300.0  # seconds that requests of a release that was left may still take
    probation: float = 600.0  # seconds in which a release that falls ill is taken back by itself


class Config(NamedTuple):
    """The built-in defaults, overridden by the deploy.ini of one commit."""

    branch: str
    keep: int
    shared: tuple[str, ...]
    python: str
    health_timeout: float
    service_timeout: float
    steps: tuple[Step, ...]
    roles: Mapping[str, Role]
    sets_branch: bool


KEYS = {
    "deploy": {"branch", "keep", "shared", "python", "health_timeout", "step_timeout", "service_timeout"},
    "step": {*Step._fields} - {"name", "by_default"},
    "role": {*Role._fields} - {"name"},
}


def defaults() -> str:
    """The configuration of an application that says nothing."""
    return Path(__file__).with_name("defaults.ini").read_text(encoding="utf-8")


def parse(text: str, source: str) -> Config:
    """Read a deploy.ini on top of the defaults. Raises UsageError: one line, naming `source`."""
    with mistakes_in(source):
        own, built_in, parser = ini.parse(text), ini.parse(defaults()), ini.parse(defaults(), text)
        check_sections(own)
        deploy = parser["deploy"]
        roles = [parse_role(name, section) for name, section in sections_of(parser, "role")]
        steps = [
            parse_step(name, section, deploy)._replace(by_default=by_default(f"step {name}", built_in, own))
            for name, section in sections_of(parser, "step")
        ]
        config = Config(
            branch=check_ref(deploy["branch"]),
            keep=int(number(deploy, "keep", least=1)),
            shared=paths(deploy, "shared"),
            python=deploy["python"],
            health_timeout=number(deploy, "health_timeout"),
            service_timeout=number(deploy, "service_timeout"),
            steps=in_order([step for step in steps if step.run]),
            roles={role.name: role for role in roles},
            sets_branch="branch" in own.get("deploy", {}),
        )
        check_step_roles(config)
        return config


def by_default(section: str, built_in: ini.Sections, own: ini.Sections) -> frozenset[str]:
    """The keys of a section that only the defaults set."""
    return frozenset(built_in.get(section, {})) - frozenset(own.get(section, {}))


def check_step_roles(config: Config) -> None:
    for step in config.steps:
        for name in step.roles:
            if name not in config.roles:
                raise errors.UsageError(f"[step {step.name}]: roles = {name}: there is no [role {name}]")


@contextlib.contextmanager
def mistakes_in(place: object) -> Iterator[None]:
    """Turn what is wrong with a file, a section or a value into a UsageError: one line, which says where."""
    try:
        yield
    except (errors.UsageError, ValueError) as error:
        raise errors.UsageError(f"{place}: {' '.join(str(error).split())}") from None


def check_sections(own: ini.Sections) -> None:
    for section in own:
        if not re.fullmatch(r"deploy|(step|role) [A-Za-z0-9_.-]+", section):
            raise errors.UsageError(f"unknown section [{section}]: use [deploy], [step NAME] or [role NAME]")
        known = KEYS[section.partition(" ")[0]]
        for key in own[section]:
            if key not in known:
                raise errors.UsageError(f"[{section}]: unknown key {key!r}: use {', '.join(sorted(known))}")


def sections_of(parser: ini.Sections, kind: str) -> list[tuple[str, Mapping[str, str]]]:
    """Name and content of each [kind NAME]."""
    return [(name[len(kind) + 1 :], parser[name]) for name in parser if name.startswith(kind + " ")]


def number(section: Mapping[str, str], key: str, least: float = 0.1) -> float:
    try:
        value = float(section[key])
    except ValueError:
        value = float("nan")
    if not least <= value <= 1e6:
        raise errors.UsageError(f"{key} = {section[key]}: not a number between {least:g} and 1000000")
    return value


def words(section: Mapping[str, str], key: str) -> tuple[str, ...]:
    """The value as a shell would split it."""
    with mistakes_in(f"{key} = {section.get(key)}"):
        return tuple(shlex.split(section.get(key, "")))


def assignments(section: Mapping[str, str], key: str) -> tuple[tuple[str, str], ...]:
    """The value as `NAME=value` words."""
    found = []
    for word in words(section, key):
        name, equals, value = word.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise errors.UsageError(f"{key}: {word!r} is not of the form NAME=value")
        found.append((name, value))
    return tuple(found)


def paths(section: Mapping[str, str], key: str) -> tuple[str, ...]:
    """The value as paths, checked to stay inside the release."""
    found = tuple(section.get(key, "").split())
    for path in found:
        if path.startswith(("/", "-")) or ".." in path.split("/") or os.path.normpath(path) == ".":
            raise errors.UsageError(f"{path}: must be a path inside the repository")
    return found


def folder(section: Mapping[str, str], key: str) -> str:
    """The value as one folder of the repository: `.` for its root; empty if nothing is said."""
    value = section.get(key, "").strip()
    if len(value.split()) > 1:
        raise errors.UsageError(f"{key} = {value}: is one folder of the repository")
    return value if value in ("", ".") else os.path.normpath(paths(section, key)[0])


def check_ref(name: str) -> str:
    """A branch name as git itself would accept it, and nothing that could be taken for an option."""
    if not re.fullmatch(r"(?!-)(?!.*\.\.)[^\s~^:?*\[\\\x00-\x20\x7f]+(?<!\.lock)(?<![/.])", name):
        raise errors.UsageError(f"{name!r} is not a branch name")
    return name


def parse_step(name: str, section: Mapping[str, str], deploy: Mapping[str, str]) -> Step:
    with mistakes_in(f"[step {name}]"):
        return Step(
            name=name,
            run=words(section, "run"),
            inputs=paths(section, "inputs"),
            provides=tuple(path.rstrip("/") for path in paths(section, "provides")),
            when=paths(section, "when"),
            roles=tuple(section.get("roles", "").split()),
            after=section.get("after", ""),
            timeout=number(section, "timeout") if "timeout" in section else number(deploy, "step_timeout"),
            keep_days=int(number(section, "keep_days", least=0)) if "keep_days" in section else 0,
            cwd=folder(section, "cwd"),
            env=assignments(section, "env"),
            lock_timeout=number(section, "lock_timeout", least=0) if "lock_timeout" in section else 5.0,
        )


def parse_role(name: str, section: Mapping[str, str]) -> Role:
    with mistakes_in(f"[role {name}]"):
        role = Role(
            name=name,
            services=tuple(section.get("services", "").split()),
            reload=tuple(section.get("reload", "").split()),
            slots=section.get("slots", "").strip(),
            health=tuple(section.get("health", "").split()),
            health_headers=headers(section.get("health_headers", "")),
            check=words(section, "check"),
            drain_timeout=number(section, "drain_timeout") if "drain_timeout" in section else 300.0,
            probation=number(section, "probation", least=0) if "probation" in section else 600.0,
        )
        check_role(role)
        return role


def check_role(role: Role) -> None:
    for unit in role.services + role.reload:
        if not re.fullmatch(r"[A-Za-z0-9_@][A-Za-z0-9_.@:-]*\.(service|socket|timer|target)", unit):
            raise errors.UsageError(f"{unit!r} is not a unit name such as scheduler.service")
    if role.slots and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*@\.service", role.slots):
        raise errors.UsageError(f"slots = {role.slots}: use the name of a template such as gunicorn@.service")
    if role.slots.replace("@.", ".") in role.services:
        both = f"slots = {role.slots} and services = {' '.join(role.services)}"
        raise errors.UsageError(f"{both}: remove the latter, or write `slots =` where it is to be restarted")
    for url in role.health:
        if not re.match(r"/|http://[^/]+(/|$)|http\+unix://(/[^:]+):/", url):
            forms = "/PATH, http://HOST/PATH or http+unix:///SOCKET:/PATH"
            raise errors.UsageError(f"health = {url}: use {forms}")


def headers(text: str) -> tuple[tuple[str, str], ...]:
    """`Host: app.example.com, X-Forwarded-Proto: https`: names and values of HTTP headers."""
    found = []
    for line in re.split(r"[,\n]", text):
        name, colon, value = (part.strip() for part in line.partition(":"))
        if not line.strip():
            continue
        if not colon or not re.fullmatch(r"[A-Za-z0-9-]+", name) or not re.fullmatch(r"[\x21-\x7e][\x20-\x7e]*", value):
            raise errors.UsageError(f"health_headers: {line.strip()!r} is not of the form `Name: value`")
        found.append((name, value))
    return tuple(found)


def in_order(steps: list[Step]) -> tuple[Step, ...]:
    """The steps in the order of their sections, those with `after` right behind the one they name."""
    ordered: list[Step] = []
    ahead = [step for step in reversed(steps) if not step.after]
    while ahead:
        ordered.append(ahead.pop())
        ahead += [step for step in reversed(steps) if step.after == ordered[-1].name]
    for step in steps:
        if step not in ordered:
            raise errors.UsageError(f"[step {step.name}]: after = {step.after}: no such step before it")
    return tuple(ordered)


def roles_of(names: Sequence[str], config: Config) -> list[Role]:
    """A machine's roles, by their names. Raises UsageError for one that deploy.ini does not know."""
    for name in names:
        if name not in config.roles:
            known = ", ".join(sorted(config.roles))
            raise errors.UsageError(f"unknown role {name!r}: deploy.ini and the defaults have {known}")
    if not names:
        raise errors.UsageError("this machine has no role: name one with --role, or in machine.ini")
    return [config.roles[name] for name in names]


SLOTS = ("blue", "green")


def instance(template: str, slot: str, kind: str = "service") -> str:
    """`gunicorn@blue.service`, or its socket, of `gunicorn@.service`."""
    return template.replace("@.service", f"@{slot}.{kind}")


def slots_of(roles: Iterable[Role]) -> Role | None:
    """The role with slots, if one of them has any. Raises UsageError for two different templates: a release has one."""
    found = {role.slots: role for role in roles if role.slots}
    if len(found) > 1:
        raise errors.UsageError(f"slots = {' and '.join(sorted(found))}: a machine can have one of them")
    return next(iter(found.values()), None)


def units_of(roles: Iterable[Role]) -> tuple[list[str], list[str]]:
    """The units of roles, each once: those that are restarted, those that are reloaded."""
    services = dict.fromkeys(unit for role in roles for unit in role.services)
    reloads = dict.fromkeys(unit for role in roles for unit in role.reload)
    return [*services], [*reloads]

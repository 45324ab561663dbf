"""What a machine of these roles should have, as deploy.ini, systemd/ and the options say: nothing here looks at it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import setup_ground as ground
from deployer import config, errors, host, services, shapes

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
UNITS = REPOSITORY / "systemd"
SYSTEM_UNITS = Path("/etc/systemd/system")
STARTUP_UNIT = "deploy-on-startup.service"
FAILED_UNIT = "deploy-failed.service"
WATCH_UNITS = ("deploy-watch.service", "deploy-watch.timer")
LIBRARY = Path("/usr/local/lib/deploy-machine")  # root's: what sshd and the units run for others
SERVER_NAME = r"([A-Za-z0-9*][A-Za-z0-9.*-]*( [A-Za-z0-9*][A-Za-z0-9.*-]*)*)?"
PYTHON = "/usr/bin/python3"  # what the units use


def read_config() -> config.Config:
    """The application's deploy.ini, if it lies in the directory above scripts/, over the defaults."""
    path = REPOSITORY / "deploy.ini"
    try:
        return config.parse(path.read_text(encoding="utf-8") if path.exists() else "", str(path))
    except errors.UsageError as error:
        raise ground.UsageError(str(error)) from None


def check_roles(settings: config.Config, roles: Sequence[str]) -> None:
    """Raises ground.UsageError for roles that deploy.ini does not have, or that do not go together."""
    for role in roles:
        if role not in settings.roles:
            raise ground.UsageError(
                f"--role {role}: unknown; deploy.ini and the defaults have {', '.join(sorted(settings.roles))}"
            )
    try:
        slots_of(settings, roles)
    except errors.UsageError as error:
        raise ground.UsageError(str(error)) from None


def slots_of(settings: config.Config, roles: Sequence[str]) -> str:
    """The template whose instances take turns, if a role has one."""
    role = config.slots_of(config.roles_of(roles, settings))
    return role.slots if role else ""


def with_sockets(units: Sequence[str]) -> list[str]:
    """Services (or templates), each with its .socket if systemd/ has one."""
    sockets = [unit[: -len(".service")] + ".socket" for unit in units if unit.endswith(".service")]
    return list(dict.fromkeys([*units, *(unit for unit in sockets if (UNITS / unit).exists())]))


def units_of(settings: config.Config, roles: Sequence[str]) -> list[str]:
    """The unit files of the roles: services and templates with their sockets, and what every machine has."""
    services = config.units_of(config.roles_of(roles, settings))[0]
    slots = slots_of(settings, roles)
    return [*with_sockets(services), *with_sockets([slots] if slots else []), STARTUP_UNIT, FAILED_UNIT, *WATCH_UNITS]


def enabled_of(unit: str) -> list[str]:
    """What is enabled of a unit file: itself, both instances of a template, nothing where something else starts it.

    Both instances, also of the sockets: at a boot each service sees for itself whether it is the one that serves.
    """
    if unit.startswith(("deploy-watch", "deploy-failed")) and unit.endswith(".service"):
        return []
    return [unit.replace("@.", f"@{slot}.") for slot in config.SLOTS] if "@." in unit else [unit]


def named(unit: str, app: str) -> str:
    """By which name a unit of the repository is installed."""
    return host.named(unit, app)


def runs_as(app: str) -> str:
    """The user who runs the services of an application."""
    return host.named_user("app", app)


def sudoers(app: str) -> Path:
    return Path("/etc/sudoers.d") / host.named_user("deploy-machine", app)


def units_from_here() -> list[str]:
    return sorted(path.name for kind in ("service", "socket", "timer") for path in UNITS.glob(f"*.{kind}"))


def shared_folders(settings: config.Config) -> list[str]:
    """The folders of shared/ in which services may write: those that `shared =` names, and one for databases."""
    named = [path.rstrip("/") for path in settings.shared if shapes.is_folder(path, ())]
    return [*dict.fromkeys(["media", "data", *named])]


def render_unit(text: str, root: str, user: str, app: str = "", writable: Sequence[str] = ()) -> str:
    """A unit file for this machine: its root, its users, the user that nginx has here, names of the application."""
    folders = "".join(f" -/srv/app/shared/{name}" for name in writable if name not in ("media", "data"))
    text = re.sub(r"(?m)^(ReadWritePaths=.*)$", rf"\1{folders}", text)
    text = text.replace("/srv/app", root).replace("User=deploy\n", f"User={user}\n")
    text = text.replace("SocketGroup=deploy\n", f"SocketGroup={user}\n")
    if not ground.user_exists("www-data") and ground.user_exists("nginx"):
        text = text.replace("SocketUser=www-data", "SocketUser=nginx")
    return with_names_of(app, text) if app else text


def with_names_of(app: str, text: str) -> str:
    """Units, sockets, users and programs by the names that they have for a second application on a machine."""
    stems = "|".join(sorted({re.escape(re.split("[@.]", unit)[0]) for unit in units_from_here()}, key=len)[::-1])
    text = re.sub(rf"(?<![\w/.-])({stems})(?=(@[\w%]*)?\.(service|socket|timer)\b)", rf"\1-{app}", text)
    text = re.sub(rf"/run/({stems})-", rf"/run/\1-{app}-", text)
    text = re.sub(rf"SyslogIdentifier=({stems})\n", rf"SyslogIdentifier=\1-{app}\n", text)
    text = re.sub(r"(User|Group)=app\n", rf"\1={runs_as(app)}\n", text)
    return text.replace("/etc/deploy-on-startup.", f"/etc/deploy-on-startup-{app}.").replace(
        f"{LIBRARY}/", f"{LIBRARY / app}/"
    )


def sudo_calls(settings: config.Config, roles: Sequence[str], app: str = "") -> list[str]:
    """Exactly the calls that a deploy makes as root on a machine of these roles."""
    settings = host.of_app(settings, app)
    return [" ".join(words) for words in services.privileged_calls(settings, config.roles_of(roles, settings))]


def is_ssh(url: str) -> bool:
    """Whether git would reach the URL by ssh: ssh://..., or user@host:path."""
    return url.startswith("ssh://") or bool(re.match(r"(?!file:)[^/:]+:(?!//)", url))


def ssh_place(url: str) -> tuple[str, int]:
    """Host and port of an ssh URL."""
    match = re.match(r"ssh://(?:[^@/]*@)?(\[[^\]]+\]|[^:/]+)(?::(\d+))?", url)
    if match:
        return match[1].strip("[]"), int(match[2] or 22)
    return url.partition(":")[0].rpartition("@")[2], 22


def known_name(host: str, port: int) -> str:
    """By which name ssh looks for a host in known_hosts."""
    return host if port == 22 else f"[{host}]:{port}"

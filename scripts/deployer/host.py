"""This machine: machine.ini, the root and every path below it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from deployer import config, errors, files, ini

FETCH_TIMEOUT = 60.0  # seconds
BOOT_TIMEOUT = 600.0  # longest that a boot holds the services back

# The keys of [machine] in machine.ini, and what they are if it says nothing.
MACHINE_INI = dict.fromkeys(("name", "roles", "repo", "branch", "verify", "app", "server_name", "metrics"), "")
MACHINE_INI |= {"fetch_timeout": str(FETCH_TIMEOUT), "boot_timeout": str(BOOT_TIMEOUT)}


class Machine(NamedTuple):
    """This machine: machine.ini, overridden by the command line."""

    root: Path
    name: str
    roles: tuple[str, ...]
    repo: str
    branch: str  # empty: as deploy.ini says
    fetch_timeout: float
    boot_timeout: float
    verify: bool  # deploy only commits that a key in allowed_signers has signed
    owns_services: bool  # without machine.ini no service is touched
    app: str = ""  # one of several applications on a machine: its units have this in their names
    server_name: str = ""  # by which nginx knows it
    metrics: str = ""  # the directory of node_exporter's textfile collector, if it is to have some

    @property
    def mirror(self) -> Path:
        return self.root / "repo.git"

    @property
    def releases(self) -> Path:
        return self.root / "releases"

    @property
    def current(self) -> Path:
        return self.root / "current"

    @property
    def kept(self) -> Path:
        return self.root / "envs"

    @property
    def state(self) -> Path:
        return self.root / "state"

    @property
    def shared(self) -> Path:
        return self.root / "shared"

    @property
    def slots(self) -> Path:
        return self.root / "slots"

    @property
    def deployers(self) -> Path:
        return self.root / "deployers"

    @property
    def script(self) -> Path:
        return self.root / "bin" / "deploy_machine.py"


def load(
    root: Path,
    roles: Sequence[str] = (),
    repo: str | None = None,
    branch: str | None = None,
    fetch_timeout: float | None = None,
) -> Machine:
    """Read machine.ini; what is given here overrides it. Raises UsageError."""
    path = root / "machine.ini"
    with config.mistakes_in(path if path.exists() else root):
        own = read_machine_ini(path) if path.exists() else {}
        section = {**MACHINE_INI, **own}
        branch = branch or section["branch"]
        if roles and own.get("roles") and {*roles} != {*own["roles"].split()}:  # its units are not those of other roles
            differ = f"roles = {own['roles']} here, --role {' --role '.join(roles)} was asked for"
            raise errors.UsageError(f"{differ}: run setup_machine.py for another role, or ask (in cd.yml) for these")
        if section["verify"] not in ("", "signatures"):  # anything else must not be taken for "no"
            raise errors.UsageError(f"verify = {section['verify']}: the only way to verify is `signatures`")
        if section["metrics"] and not section["metrics"].startswith("/"):
            raise errors.UsageError(f"metrics = {section['metrics']}: name a directory by its absolute path")
        return Machine(
            root=root,
            name=section["name"] or os.uname().nodename.partition(".")[0],
            roles=tuple(dict.fromkeys(roles or section["roles"].split())),
            repo=check_url(repo or section["repo"]),
            branch=config.check_ref(branch) if branch else "",
            fetch_timeout=fetch_timeout or config.number(section, "fetch_timeout"),
            boot_timeout=config.number(section, "boot_timeout"),
            verify=bool(section["verify"]),
            owns_services=bool(own),
            app=section["app"],
            server_name=section["server_name"],
            metrics=section["metrics"],
        )


def bare(root: Path) -> Machine:
    """A machine of which no more is known than where it is, as its machine.ini cannot be read."""
    name = os.uname().nodename.partition(".")[0]
    return Machine(root, name, (), "", "", FETCH_TIMEOUT, BOOT_TIMEOUT, verify=True, owns_services=True)


def read_machine_ini(path: Path) -> dict[str, str]:
    try:
        sections = ini.parse(files.read_text(path))
    except OSError as error:
        raise errors.UsageError(str(error.strerror)) from None
    section = dict(sections.get("machine", {}))
    wrong = [name for name in sections if name != "machine"] + sorted(set(section) - set(MACHINE_INI))
    if wrong or not section:
        wrong += ["no [machine] section"]
        raise errors.UsageError(f"{wrong[0]}: expected [machine] with {', '.join(sorted(MACHINE_INI))}")
    return section


def check_url(url: str) -> str:
    """The address of a repository, if git may fetch from it. Raises UsageError."""
    if url.startswith("-") or any(ord(char) < 33 for char in url):
        raise errors.UsageError(f"repository {url!r}: not an address that git could fetch from")
    if re.match(r"https?://([^/@]*:[^/@]*|[^/@]{20,})@", url):  # so long a name is a token
        raise errors.UsageError(
            "the repository's address holds a password, which logs and `ps` would show: use a deploy key"
        )
    scheme, found, place = url.partition("://")
    own = re.match(r"(localhost|127\.[0-9.]+|\[::1\])(:\d+)?(/|$)", place)
    if found and scheme.lower() not in ("https", "ssh", "git+ssh", "ssh+git", "file") and not own:
        raise errors.UsageError(
            f"repository {url}: who is on the way could choose the code that {scheme}:// brings:"
            f" use https://{place} or ssh://git@{place}"
        )
    return url


def named(unit: str, app: str) -> str:
    """A unit of one of several applications on a machine: `gunicorn-blog@.service`, `scheduler-blog.service`."""
    stem, mark, rest = unit.partition("@") if "@" in unit else unit.rpartition(".")
    return f"{stem}-{app}{mark}{rest}" if app else unit


def named_user(name: str, app: str) -> str:
    """The same for a user, or a file."""
    return f"{name}-{app}" if app else name


def of_app(settings: config.Config, app: str) -> config.Config:
    """The configuration with the units of an application by the names that they have on its machine (--app).

    What is reloaded is the machine's, not the application's.
    """
    if not app:
        return settings
    roles = {
        role.name: role._replace(
            services=tuple(named(unit, app) for unit in role.services),
            slots=named(role.slots, app) if role.slots else "",
        )
        for role in settings.roles.values()
    }
    return settings._replace(roles=roles)


def roles_of(machine: Machine, settings: config.Config) -> list[config.Role]:
    """This machine's roles, with the units by the names that they have here. Raises UsageError: see config."""
    return config.roles_of(machine.roles, of_app(settings, machine.app))


def find_root(given: str | None) -> Path:
    """The root, as --root, $DEPLOY_ROOT or this script's place says; it must be ours. Raises UsageError."""
    root = Path(given or os.environ.get("DEPLOY_ROOT") or installed_root() or "/srv/app").absolute()
    another = "name another with --root"
    with config.mistakes_in(root):
        if not root.is_dir():
            raise errors.UsageError(f"no such directory; {another}, or prepare the machine with setup_machine.py")
        sudo = f"sudo -u {owner_of(root)} ..."
        if os.geteuid() == 0 and root.stat().st_uid != 0:
            # its owner can change whatever would run here, this file first of all
            raise errors.UsageError(f"root must not run what another user can write; use: {sudo}")
        try:
            entries = {path.name for path in root.iterdir()}
        except PermissionError:
            raise errors.UsageError(f"may not be read by this user; run as its owner: {sudo}") from None
        if entries - {"shared"} and not entries & {"machine.ini", "state"}:  # settings may be there first
            raise errors.UsageError(f"is neither empty nor a root of deploy_machine.py (no machine.ini); {another}")
    return root


def installed_root() -> Path | None:
    """The root whose deployers/<id>/deployer/ holds this file, if it is installed there."""
    root = Path(__file__).resolve().parents[3]
    return root if Path(__file__).resolve().parents[2].name == "deployers" and (root / "machine.ini").exists() else None


def must_own(machine: Machine) -> None:
    if machine.root.stat().st_uid != os.geteuid():
        owner = owner_of(machine.root)
        raise errors.UsageError(f"{machine.root}: belongs to {owner}; run this as that user: sudo -u {owner} ...")


def owner_of(path: Path) -> str:
    try:
        return path.owner()
    except KeyError:
        return f"#{path.stat().st_uid}"


def has_link(proc: Path = Path("/proc/net")) -> bool:
    """Whether this machine has a network at all: a route over anything but itself. True if that cannot be told."""
    try:
        four = [line.split()[0] for line in (proc / "route").read_text().splitlines()[1:]]
        six = [line.split()[-1] for line in (proc / "ipv6_route").read_text().splitlines()]
    except (OSError, IndexError):
        return True
    return any(device != "lo" for device in [*four, *six])

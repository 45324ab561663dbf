"""nginx's site, the application's own or a built-in one: installed if nginx takes it, and nobody else's is lost."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import setup_ground as ground
import setup_looks as looks
import setup_old as old
import setup_record as record
import setup_wanted as wanted
from deployer import config
from setup_work import Work

BUILT_IN = wanted.UNITS / "nginx-site.conf"
OWN_SITES = wanted.REPOSITORY / "deploy" / "nginx"
AVAILABLE = looks.NGINX / "sites-available"
ENABLED = looks.NGINX / "sites-enabled"
FOLDERS = (ENABLED, looks.NGINX / "conf.d")
NGINX = "nginx.service"
# Whether the release that `current` leads to answers; asked as the user who may connect to its socket.
ASK = """\
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.settimeout(10)
s.connect(sys.argv[1])
s.sendall(f"GET {sys.argv[2]} HTTP/1.0\\r\\nHost: {sys.argv[3]}\\r\\n\\r\\n".encode())
status = s.recv(20).split()[1:2]
sys.exit(not status or status[0] >= b"500")
"""


class Site(NamedTuple):
    """What is to be installed, and where."""

    text: str
    path: Path
    link: Path | None  # by which nginx finds it, on Debian
    source: Path


# --- which one


def source(name: str = "") -> Path:
    """The file that the site is made from: the application's only one, the one that is named, or the built-in one."""
    if name:
        path = Path(name)
        if not path.is_file():
            raise ground.UsageError(f"--site {name}: no such file")
        return path
    found = sorted(OWN_SITES.glob("*.conf"))
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ground.UsageError(f"deploy/nginx/ has {names}: say which is this machine's, with --site FILE")
    return found[0] if found else BUILT_IN


def is_wanted(work: Work) -> bool:
    """Whether this machine serves the web."""
    return serves_web(work.settings, work.options.role)


def serves_web(settings: config.Config, roles: Sequence[str]) -> bool:
    """Whether one of the roles has slots, and nginx before them."""
    return any(NGINX in settings.roles[name].reload for name in roles) and bool(wanted.slots_of(settings, roles))


def rendered(work: Work, path: Path) -> Site:
    """The site for this machine: its root, its name, and where nginx looks for sites here."""
    text = path.read_text(encoding="utf-8").replace("/srv/app/", f"{work.root}/")
    address = f"unix:{work.root}/current/.socket"
    text = text.replace(f"unix:{old.ADDRESS};", f"{address};")  # as a site for version 0.1 has it
    if address not in text:
        raise ground.UsageError(
            f"{path}: no line passes requests to the release that serves: proxy_pass http://{address};"
        )
    if name := work.server_name:
        if not re.search(r"(?m)^\s*server_name _;", text):
            raise ground.UsageError(f"--server-name {name}: {path.name} names its hosts itself, so leave that out")
        text = re.sub(r"(?m)^(\s*server_name) _;", rf"\1 {name};", text)
        text = re.sub(r"(?m)^(\s*listen .*?) default_server;", r"\1;", text)
    elif work.app and re.search(r"(?m)^\s*server_name _;", text):
        raise ground.UsageError(f"--app {work.app}: say for which host nginx is to pass requests, with --server-name")
    if not Path("/proc/net/if_inet6").exists():
        text = re.sub(r"(?m)^\s*listen \[::\].*\n", "", text)
    file = f"{work.app}.conf" if work.app else "app.conf" if path == BUILT_IN else path.name
    if ENABLED.is_dir():
        return Site(text, AVAILABLE / file, ENABLED / file, path)
    return Site(text, FOLDERS[1] / file, None, path)


def check(work: Work) -> None:
    """Raises UsageError if it cannot be said which site this machine is to have."""
    if is_wanted(work):
        rendered(work, source(work.options.site))


# --- what is there


def sites() -> Iterator[Path]:
    """The files that nginx reads as sites."""
    for folder, pattern in zip(FOLDERS, ("*", "*.conf")):
        yield from sorted(folder.glob(pattern) if folder.is_dir() else ())


def others(work: Work, site: Site) -> list[Path]:
    """Enabled sites that setup did not write and that answer where this one would."""
    wants, own_places = answers_for(site.text), (site.path, site.link)
    return [path for path in strangers(work, site) if path in own_places or wants & answers_for(text_of(path))]


def strangers(work: Work, site: Site) -> list[Path]:
    """Sites that are not setup's, nor Debian's as it came, nor what setup would write anyway."""
    own_places = (site.path, site.link)
    own = own_places if work.is_recorded(site.path) else ()
    there = [path for path in dict.fromkeys([*sites(), site.path]) if ground.is_there(path) and path not in own]
    return [
        path
        for path in there
        if not is_untouched_default(path) and not (path in own_places and text_of(path) == site.text)
    ]


def text_of(path: Path) -> str:
    """What nginx reads there."""
    return looks.text_of(Path(os.path.realpath(path))) or ""


def answers_for(text: str) -> set[str]:
    """The names of a site's servers, and the addresses for which one of them is the default."""
    text = re.sub(r"#.*", "", text)
    names = {name for line in re.findall(r"\bserver_name\s+([^;]*);", text) for name in line.split()} - {"_"}
    return names | {
        re.sub(r"^.*:", "", listen) for listen in re.findall(r"\blisten\s+(\S+)\s[^;]*\bdefault_server", text)
    }


def is_untouched_default(path: Path) -> bool:
    """Whether it is the site that Debian's package comes with, as it came."""
    real = Path(os.path.realpath(path))
    if real != AVAILABLE / "default" or not shutil.which("dpkg-query"):
        return False
    listed = ground.call(
        "dpkg-query", "--show", "--showformat=${Conffiles}\n", "nginx-common", "nginx", check=False
    ).stdout
    return f"{real} {hashlib.md5(real.read_bytes()).hexdigest()}" in listed


def passes(path: Path, address: str) -> bool:
    """Whether a site passes requests to an address."""
    return bool(re.search(re.escape(address) + r"(?![\w.-])", re.sub(r"#.*", "", text_of(path))))


def serves(work: Work) -> bool:
    """Whether a release answers here, so that requests may be led to it."""
    role = work.settings.roles[next(name for name in work.options.role if work.settings.roles[name].slots)]
    health = next((url for url in role.health if url.startswith("/")), "/")
    host = dict(role.health_headers).get("Host", work.server_name.split()[0] if work.server_name else "127.0.0.1")
    words = [wanted.PYTHON, "-I", "-c", ASK, f"{work.root}/current/.socket", health, host]
    return ground.user_exists(work.user) and ground.call(*words, user=work.user, check=False).returncode == 0


# --- installed


def make(work: Work) -> None:
    """Install it, unless another one's place would be taken before that is safe, or without being asked for."""
    remove_others_of_ours(work)
    if not is_wanted(work) or not looks.NGINX.is_dir() or "nginx" in work.missing or work.old == "serves":
        return
    name_old_addresses(work)
    site = rendered(work, source(work.options.site))
    address = f"unix:{work.root}/current/.socket"
    theirs = others(work, site)
    replacing = work.options.replace and serves(work)
    addresses = (address, f"unix:{old.ADDRESS}") if has_moved(work) else (address,)
    enabled = [path for path in strangers(work, site) if path in sites()]
    if through := [path for path in enabled if any(passes(path, place) for place in addresses)]:
        if not replacing:
            work.notes.append(f"nginx: {through[0]} passes requests to {work.root}/current, and stays as it is")
            return
        theirs = list(dict.fromkeys([*theirs, *through]))
    elif theirs and not replacing:
        work.todo.append(stays(work, theirs))
        return
    if is_edited(work, site) and not work.options.replace:
        work.notes.append(
            f"nginx: {site.path} was changed since setup wrote it, and stays (--replace takes setup's, keeps a copy)"
        )
        return
    install(work, site, theirs)


def stays(work: Work, theirs: Sequence[Path]) -> str:
    """What to do about sites of others that answer now."""
    names = " and ".join(map(str, theirs))
    if work.options.replace:
        return f"nginx: {names} goes on, as no release answers here yet: deploy, then run this again with --replace"
    return f"nginx: {names} answers where setup's site would, and goes on: deploy, then run this again with --replace"


def is_edited(work: Work, site: Site) -> bool:
    """Whether somebody (certbot, say) has changed what setup wrote."""
    return work.is_recorded(site.path) and record.is_edited(site.path, work.files)


def install(work: Work, site: Site, theirs: Sequence[Path]) -> None:
    """Put it in place and reload nginx; if nginx does not take it, put back what was there. Raises SetupError."""
    gone = [*theirs, *(path for path in sites() if is_untouched_default(path))]
    before = {path: state_of(path) for path in dict.fromkeys([*gone, site.path, *([site.link] if site.link else [])])}
    edited = is_edited(work, site)
    changed = False
    for path in gone:
        if work.differs(f"{path}: removed, setup's site takes its place"):
            put_aside(work, path, site.link or site.path)
            changed = True
    if edited and work.differs(f"{site.path}: a copy is kept"):
        work.notes.append(record.way_back(site.path, record.keep_copy(site.path), ["systemctl reload nginx"]))
    files = dict(work.files)
    if ground.is_there(site.path) and not work.is_recorded(site.path) and text_of(site.path) != site.text:
        work.notes.append(record.way_back(site.path, record.keep_copy(site.path), ["systemctl reload nginx"]))
    changed |= work.install(site.path, site.text, source=site.source) and not work.options.check
    if site.link and link_of(site.link) != f"../sites-available/{site.path.name}":
        if work.differs(f"{site.link}: leads to {site.path}"):
            ground.replace_link(site.link, f"../sites-available/{site.path.name}", "root")
            changed = True
    if changed:
        tested = ground.call("nginx", "-t", "-q", check=False)
        if tested.returncode != 0:
            work.files = files
            for path, was in before.items():
                put_back(path, was)
            told = re.findall(r"\[emerg\](?: \d+#\d+:)? (.+)", tested.stderr) or [tested.stderr.strip()]
            raise ground.SetupError(
                f"nginx does not take {site.source.name}; what was there is back: nginx -t: {told[0]}"
            )
        if ground.call("systemctl", "is-active", NGINX, check=False).returncode == 0:
            ground.call("systemctl", "reload", NGINX)
    if ground.call("systemctl", "is-enabled", NGINX, check=False).stdout.strip() == "disabled":
        if work.differs(f"{NGINX}: enabled"):
            ground.call("systemctl", "enable", NGINX)


def put_aside(work: Work, path: Path, ours: Path) -> None:
    """Take a site away from where nginx reads it; a link only leads there, of a file a copy is kept."""
    if ground.is_link(path):
        back = f"ln -sf {os.readlink(path)} {path}"
    else:
        back = f"cp -a {record.keep_copy(path, AVAILABLE if path.parent == ENABLED else None)} {path}"
    path.unlink()
    if path.name != "default":
        back = f"rm {ours} && {back} && systemctl reload nginx" if path != ours else f"{back} && systemctl reload nginx"
        work.notes.append(f"{path} was not setup's; to go back: {back}")


def state_of(path: Path) -> tuple[str, str]:
    """What is at a place: a link and where it leads, a file and its text, or nothing."""
    if ground.is_link(path):
        return "link", os.readlink(path)
    text = ground.read_text(path)
    return ("nothing", "") if text is None else ("file", text)


def put_back(path: Path, was: tuple[str, str]) -> None:
    kind, content = was
    if state_of(path) == was:
        return
    if kind == "link":
        ground.replace_link(path, content, "root")
        return
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    if kind == "file":
        ground.replace_file(path, content, 0o644, "root", "root")


def carried(options: argparse.Namespace, settings: config.Config) -> dict[str, bytes]:
    """The file that the site is made from, for a machine that is prepared over ssh. Raises UsageError."""
    if not serves_web(settings, options.role) or (path := source(options.site)) == BUILT_IN:
        return {}
    return {f"deploy/nginx/{path.name}": path.read_bytes()}


def link_of(path: Path) -> str | None:
    return os.readlink(path) if ground.is_link(path) else None


def remove_others_of_ours(work: Work) -> None:
    """Take away a site that setup installed and that this machine is not to have any more."""
    site = None if not is_wanted(work) else rendered(work, source(work.options.site))
    remove(work, [path for path in installed(work) if not site or path != site.path])


def installed(work: Work) -> list[Path]:
    """The sites that setup has installed here."""
    return [path for path in map(Path, work.files) if looks.NGINX in path.parents]


def remove(work: Work, gone: Sequence[Path]) -> None:
    """Take sites away, and let nginx know."""
    for path in gone:
        if work.differs(f"{path}: removed"):
            if ground.is_link(ENABLED / path.name):
                (ENABLED / path.name).unlink()
            path.unlink(missing_ok=True)
            work.files.pop(str(path))
    if gone and not work.options.check and ground.call("systemctl", "is-active", NGINX, check=False).returncode == 0:
        ground.call("systemctl", "reload", NGINX)


def has_moved(work: Work) -> bool:
    """Whether the site was served by version 0.1."""
    return not work.app and (bool(work.old) or (wanted.SYSTEM_UNITS / old.ADDRESS_UNIT).exists())


def name_old_addresses(work: Work) -> None:
    """Name lines of nginx's that still lead to where version 0.1 served."""
    if not has_moved(work):
        return
    for place, line in lines_below_nginx(f"unix:{old.ADDRESS}").items():
        new = line.replace(f"unix:{old.ADDRESS}", f"unix:{work.root}/current/.socket")
        work.todo.append(f"nginx: write in {place}: {new}")


def lines_below_nginx(text: str) -> dict[str, str]:
    """The lines of nginx's files that have this text outside a comment: FILE:LINE and the line itself."""
    lines = looks.nginx_lines(looks.NGINX).items()
    return {place: line for place, line in lines if re.search(re.escape(text) + r"(?![\w.-])", line)}

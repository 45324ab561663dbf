"""What setup_machine.py looks at beside what it makes: what would keep a push, a deploy or a boot from working.

Each look returns one line for each thing that it finds: what is wrong, and the command that mends it. None changes
anything, and none starts or follows what is not root's.
"""

from __future__ import annotations

import contextlib
import fnmatch
import grp
import os
import pwd
import re
import shlex
import shutil
import stat
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import setup_ground as ground

SSHD = "/usr/sbin/sshd"
NGINX = Path("/etc/nginx")
ENVIRONMENT = Path("/etc/environment")
# Beside these, nginx opens files as the user it serves with.
OPENED_BY_ROOT = r"include|load_module|\w+_log|pid|lock_file|ssl_\w+|\w+_temp_path|\w+_cache_path|(?:perl|lua|js)_\w+"
NO_SHELLS = {"nologin", "false", "true", "sync", "git-shell"}


# --- who deploys: account, ssh, sudo ----------------------------------------------------------------


def account(user: str) -> Iterator[str]:
    """What lets sshd turn CI away, or leaves a command without a place, in the user's account."""
    about = pwd.getpwnam(user)
    if os.path.basename(about.pw_shell) in NO_SHELLS or not os.access(about.pw_shell, os.X_OK):
        yield f"{user} has the login shell {about.pw_shell}, and no push can run: usermod --shell /bin/bash {user}"
    try:
        home = os.stat(about.pw_dir)
    except OSError:
        place = shlex.quote(about.pw_dir)
        yield f"{about.pw_dir}, the home of {user}, is not there: install -d -o {user} -m 755 {place}"
    else:
        if home.st_uid not in (0, about.pw_uid):
            yield f"{about.pw_dir} is not {user}'s, and sshd takes no key from there: chown {user} {about.pw_dir}"
        if home.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            yield f"others may write in {about.pw_dir}, and sshd takes no key from there: chmod go-w {about.pw_dir}"
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = (line.split(":") for line in Path("/etc/shadow").read_text(encoding="utf-8").splitlines())
        fields = next(fields for fields in lines if fields[0] == user)
        if fields[7] and int(fields[7]) * 86400 < time.time():
            yield f"the account {user} has expired, and sshd turns it away: chage --expiredate -1 {user}"


def sshd_settings(user: str) -> dict[str, list[str]]:
    """What sshd would do with a connection of this user, by the names of sshd_config(5). Raises SetupError."""
    # a Match block may ask for each of these
    about = f"user={user},host=localhost,addr=127.0.0.1,laddr=127.0.0.1,lport=22"
    found: dict[str, list[str]] = {}
    for line in ground.call(SSHD, "-T", "-C", about).stdout.splitlines():
        name, _, value = line.partition(" ")
        found.setdefault(name, []).append(value)
    return found


def sshd(user: str, keys: Path) -> Iterator[str]:
    """What keeps sshd from letting CI's key in. keys: the file that holds it."""
    if not os.path.exists(SSHD):
        return  # it is told as missing
    try:
        settings = sshd_settings(user)
    except ground.SetupError as error:
        if "/run/sshd" not in str(error):  # where sshd starts with the first connection, that is made then
            yield f"{error}: mend /etc/ssh/sshd_config"
        return
    groups = {group.gr_name for group in grp.getgrall() if user in group.gr_mem}
    groups.add(grp.getgrgid(pwd.getpwnam(user).pw_gid).gr_name)
    mend = "in /etc/ssh/sshd_config, then: systemctl reload ssh (or sshd)"
    for word, names in (("Users", {user}), ("Groups", groups)):
        allowed, denied = settings.get(f"allow{word.lower()}", []), settings.get(f"deny{word.lower()}", [])
        if allowed and not is_named(names, allowed):
            yield f"sshd lets in only {' '.join(allowed)} (Allow{word}): add {user} {mend}"
        if is_named(names, denied):
            yield f"sshd turns {user} away (Deny{word} {' '.join(denied)}): change that {mend}"
    if settings.get("pubkeyauthentication") == ["no"]:
        yield f"sshd takes no keys (PubkeyAuthentication no): change that {mend}"
    methods = [method for value in settings.get("authenticationmethods", ["any"]) for method in value.split()]
    if not {"any", "publickey"} & {*methods}:
        asked = " ".join(methods)
        yield f"sshd asks for more than a key (AuthenticationMethods {asked}): change that for {user} {mend}"
    forced = settings.get("forcecommand", ["none"])[0]
    if forced != "none":
        yield f"sshd runs {forced} in place of what CI asks for (ForceCommand): change that for {user} {mend}"
    places = [place for value in settings.get("authorizedkeysfile", []) for place in value.split()]
    if places and str(keys) not in {key_file(place, user) for place in places}:
        yield f"sshd reads keys from {' '.join(places)} (AuthorizedKeysFile), not from {keys}: change that {mend}"


def is_named(names: set[str], patterns: Sequence[str]) -> bool:
    """Whether sshd's patterns, of which some may hold for some addresses only, name one of these."""
    plain = [pattern.partition("@")[0] for pattern in patterns]
    no = [pattern[1:] for pattern in plain if pattern.startswith("!")]
    yes = [pattern for pattern in plain if not pattern.startswith("!")]
    return any(
        any(fnmatch.fnmatchcase(name, pattern) for pattern in yes)
        and not any(fnmatch.fnmatchcase(name, pattern) for pattern in no)
        for name in names
    )


def key_file(place: str, user: str) -> str:
    """A word of AuthorizedKeysFile as a path."""
    home = pwd.getpwnam(user).pw_dir
    values = {"%%": "%", "%h": home, "%u": user, "%U": str(pwd.getpwnam(user).pw_uid)}
    return os.path.join(home, re.sub("%[%huU]", lambda match: values[str(match[0])], place))


def sudo(user: str, drop_in: Path, calls: Sequence[str]) -> Iterator[str]:
    """Whether sudo grants, without a terminal, what the drop-in says: another file may take it back."""
    if not calls or not ground.exists(drop_in) or not os.path.exists("/usr/bin/sudo"):
        return
    asked = ground.call("/usr/bin/sudo", "-n", "-l", "--", *calls[0].split(), user=user, check=False)
    if asked.returncode != 0:
        said = (asked.stderr.strip().splitlines() or ["not granted"])[0]
        yield (
            f"sudo does not grant {user} what {drop_in} says ({said}): /etc/sudoers must end with"
            f" `@includedir {drop_in.parent}`, and no file there after this one may take it back"
        )


# --- what deploys work with -------------------------------------------------------------------------


def git_host(host: str, port: int, name: str, known: Path, user: str) -> Iterator[str]:
    """Whether the git host still has the key that is pinned; if it does not answer, nothing is known."""
    text = ground.read_text(known) or ""
    found = ground.call("ssh-keygen", "-F", name, "-f", "/dev/stdin", stdin=text.encode(), check=False).stdout
    pinned = [line.split() for line in found.splitlines() if line and not line.startswith("#")]
    if not pinned or any(words[0].startswith("@") for words in pinned):
        return
    scanned = ground.call("ssh-keyscan", "-T", "5", "-p", str(port), "--", host, check=False).stdout
    shown = [line for line in scanned.splitlines() if line and not line.startswith("#")]
    if shown and not {(*words[1:3],) for words in pinned} & {(*line.split()[1:3],) for line in shown}:
        prints = ground.call("ssh-keygen", "-l", "-f", "-", stdin="\n".join(shown).encode()).stdout.splitlines()
        yield (
            f"{host} shows another ssh host key than the one that is pinned: compare {'; '.join(prints)} with what it"
            f" publishes; if it is that: sudo -u {user} ssh-keygen -R {shlex.quote(name)}, and run this again"
        )


def owners(root: Path, user: str) -> Iterator[str]:
    """What is not the user's in directories that only deploys write: each stops one some day."""
    folders = [str(root / name) for name in ("repo.git", "releases", "envs", "deployers", "slots", "bin", "state")]
    there = [folder for folder in folders if ground.exists(Path(folder))]
    if there:  # asked as that user: what it may not even look into is not its own
        argv = ["find", *there, "!", "-user", user, "-print", "-quit"]
        found = ground.call(*argv, user=user, check=False).stdout.splitlines()
        if found:
            places = " ".join(shlex.quote(folder) for folder in there)
            yield (
                f"{found[0]} does not belong to {user}, who must remove or replace it some day:"
                f" find {places} ! -user {user} -exec chown -h {user}: {{}} +"
            )


def file_systems(root: Path) -> Iterator[str]:
    """What deploys rename from one to another must lie in one mount: the kernel renames nothing across."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()]

    def mount(path: Path) -> str:
        real = os.path.realpath(path)
        return max((place for place in mounts if (real + "/").startswith(place.rstrip("/") + "/")), key=len)

    places = {name: mount(root / name) for name in ("releases", "envs") if ground.exists(root / name)}
    if len(set(places.values())) > 1:
        shown = ", ".join(f"{name}/ on {place}" for name, place in places.items())
        yield f"{root}: {shown}: deploys rename between them, which only works on one: move both to one file system"


def metrics(folder: Path, user: str) -> Iterator[str]:
    """Whether deploys may write metrics there."""
    if ground.exists(folder) and ground.call("test", "-w", str(folder), user=user, check=False).returncode:
        mend = f"chgrp {user} {folder} && chmod g+w {folder}"
        yield f"{folder}: {user} may not write there, so there are no metrics; or name another with --metrics: {mend}"


def proxy(repo: str, env_file: Path) -> Iterator[str]:
    """A proxy that this machine's people use, and deploys do not know of."""
    texts = [ground.read_text(ENVIRONMENT) or "", *(f"{key}={value}" for key, value in os.environ.items())]
    found = re.search(r"(?im)^\s*(?:export\s+)?https?_proxy=[\"']?([^\s\"']+)", "\n".join(texts))
    known = re.search(r"(?im)^\s*https?_proxy=", ground.read_text(env_file) or "")
    if repo.startswith("https://") and found and not known:
        url = re.sub(r"//[^/@]*@", "//USER:PASSWORD@", found[1])
        yield f"this machine has the proxy {url}, of which deploys do not know: write HTTPS_PROXY={url} into {env_file}"


# --- what root reads and others could change ----------------------------------------------------------


def read_by_systemd(root: Path) -> Iterator[str]:
    """Units whose variables systemd itself reads, as root, from where `deploy` can write."""
    shown = ground.call("systemctl", "show", "--property=Id,EnvironmentFiles", "--", "*.service", check=False).stdout
    for block in shown.split("\n\n"):
        unit = (re.findall(r"(?m)^Id=(.*)$", block) or [""])[0]
        for path in re.findall(r"(?m)^EnvironmentFiles=(\S+)", block):
            if lies_below(path, root):
                yield (
                    f"{unit}: systemd reads EnvironmentFile={path} itself, and a FIFO there would stop it for good:"
                    f" take that line away and start the program by dotenv.py, as systemd/scheduler.service does"
                )


def read_by_nginx(root: Path) -> Iterator[str]:
    """Files that nginx opens as root from where `deploy` can write: by one it could write anywhere as root."""
    for place, line in nginx_lines(NGINX).items():
        for path in opened_by_root(line):
            if lies_below(os.path.join(NGINX, path), root):
                yield (
                    f"nginx: {place} names {path}, which nginx opens as root and `deploy` could change:"
                    f" copy it to a place of root's, such as {NGINX}"
                )


def folders_closed_to_nginx(root: Path) -> Iterator[str]:
    """Folders above the releases that nginx, and the services, may not enter: static files would be 403."""
    for folder in [root, *root.parents]:
        with contextlib.suppress(OSError):
            if not os.stat(folder).st_mode & stat.S_IXOTH:
                yield f"nginx and the services may not enter {folder}: chmod o+x {folder}, or another --root"


def opened_by_root(line: str) -> Iterator[str]:
    """The words of a line of nginx's that may be such a file."""
    for statement in re.split("[;{}]", line):
        match = re.match(rf"({OPENED_BY_ROOT})\s+(.*)", statement.strip())
        yield from (word.strip("\"'") for word in (match[2].split() if match else []) if "://" not in word)


def links_that_lead(tops: Sequence[Path], root: Path, users: Sequence[str]) -> Iterator[str]:
    """What root runs or reads and `deploy` or `app` could change: each would make them root."""
    owners = {pwd.getpwnam(name).pw_uid for name in users if ground.user_exists(name)}
    for path in sorted(path for top in tops for path in top.rglob("*")):
        real = Path(os.path.realpath(path))
        if root.resolve() in real.parents or (real.exists() and real.stat().st_uid in owners):
            yield f"{path} leads to {real}, where {users[0]} could change what root runs: copy it"


def git_that_verifies() -> Iterator[str]:
    """Whether git is new enough for `verify = signatures`."""
    said = ground.call("git", "--version", check=False).stdout if shutil.which("git") else ""
    if [int(part) for part in re.findall(r"\d+", said)[:2]] < [2, 34]:
        yield "git: verify = signatures needs 2.34 or newer; deploys fail until it is there"


def lies_below(path: str, root: Path) -> bool:
    """Whether a path, or pattern, is below the root, or leads there."""
    fixed = re.split(r"[*?\[]", path)[0]
    tops = {str(root), str(root.resolve())}
    return any(f"{place}/".startswith(f"{top}/") for top in tops for place in (path, os.path.realpath(fixed)))


def nginx_lines(top: Path) -> dict[str, str]:
    """The lines of root's own files below nginx's directory, without comments: FILE:LINE and the line itself."""
    found: dict[str, str] = {}
    for path in dict.fromkeys(Path(os.path.realpath(path)) for path in sorted(top.rglob("*"))):
        with contextlib.suppress(ground.SetupError):  # what others made, or no file: told, but not read
            for number, line in enumerate((text_of(path) or "").splitlines(), 1):
                found[f"{path}:{number}"] = line.partition("#")[0].strip()
    return found


def text_of(path: Path) -> str | None:
    """The text of a regular file of root's."""
    with contextlib.suppress(OSError), ground.reached(path) as descriptor:
        about = os.fstat(descriptor)
        if about.st_uid == 0 and stat.S_ISREG(about.st_mode):
            return ground.read_text(path)
    return None

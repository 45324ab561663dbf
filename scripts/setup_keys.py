"""Keys: who may come in (CI), how this machine gets at the repository, and whom it takes for the git host."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import setup_ground as ground
import setup_tree as tree
import setup_wanted as wanted
from setup_wanted import HERE, PYTHON
from setup_work import Work

RESTRICTED_PUSH = "restricted_push.py"


def make(work: Work) -> None:
    if not ground.user_exists(work.user):
        return  # --check on a machine that is not set up
    folder = work.home / ".ssh"
    work.directory(folder, 0o700, work.user, work.user)
    if work.options.revoke:
        revoke(work, folder, work.options.revoke)
    if work.options.authorize:
        authorize(work, folder / "authorized_keys", work.options.authorize)
    if wanted.is_ssh(work.options.repo):
        deploy_key(work, folder / "id_ed25519")
        git_host(work, folder / "known_hosts")


def authorize(work: Work, path: Path, line: str) -> None:
    """Let CI's key in: for commands only, no forwarding and no terminal; if restricted, for deploys only."""
    lines = (ground.read_text(path) or "").splitlines()
    kept, own = others_and_own(lines, line)
    asked = work.options.restrict_ci_key
    wanted = f"restrict {line}"
    if asked or (asked is None and (not own or any(RESTRICTED_PUSH in entry for entry in own))):
        tree.library(work, HERE / RESTRICTED_PUSH)
        wanted = f'restrict,command="{PYTHON} -I {work.library / RESTRICTED_PUSH} {work.root}" {line}'
    elif not any("command=" in entry for entry in own) and asked is None:
        work.notes.append(f"CI's key may run anything as {work.user}: --restrict-ci-key lets it deploy, and no more")
    # one line for the key: sshd would take the first that fits. One that a person has changed stays.
    if not own or (asked is not None and own != [wanted]):
        lines = [*kept, wanted]
    work.file(path, "".join(f"{entry}\n" for entry in lines), 0o600, work.user, work.user)
    second = path.with_name("authorized_keys2")  # sshd reads it, too
    if others_and_own((ground.read_text(second) or "").splitlines(), line)[1]:
        work.todo.append(f"{second} lets CI's key in as well, without the restrictions above: remove it there")


def revoke(work: Work, folder: Path, line: str) -> None:
    """Let a key in no more. Give the new one first, if CI's is to be replaced."""
    was_there = False
    for path in (folder / "authorized_keys", folder / "authorized_keys2"):
        kept, own = others_and_own((ground.read_text(path) or "").splitlines(), line)
        if own:
            was_there = True
            work.file(path, "".join(f"{entry}\n" for entry in kept), 0o600, work.user, work.user)
    if was_there:
        work.notes.append("the key of --revoke is let in no more; what came in by it and still runs ends by itself")
    else:
        work.notes.append(f"the key of --revoke was not among those of {work.user}: nothing to take out")


def others_and_own(lines: Sequence[str], key: str) -> tuple[list[str], list[str]]:
    """The lines of authorized_keys, apart: those of other keys (and comments), and those of this one."""
    own = [line for line in lines if key.split()[1] in line.split() and not line.startswith("#")]
    return [line for line in lines if line not in own], own


def deploy_key(work: Work, path: Path) -> None:
    if not ground.exists(path) and work.differs(f"{path}: created, the key that reads the repository"):
        comment = f"{work.options.name} reads {work.options.repo}"
        ground.call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path), user=work.user)


def git_host(work: Work, path: Path) -> None:
    """Pin the git host's key, and show its fingerprint: a person should compare it."""
    host, port = wanted.ssh_place(work.options.repo)
    known = (ground.read_text(path) or "").encode()
    find = ["ssh-keygen", "-F", wanted.known_name(host, port), "-f", "/dev/stdin"]
    if known and ground.call(*find, stdin=known, check=False).returncode == 0:
        return
    scanned = ground.call("ssh-keyscan", "-T", "10", "-p", str(port), "--", host, check=False).stdout
    lines = "".join(f"{line}\n" for line in scanned.splitlines() if line and not line.startswith("#"))
    if not lines:
        work.todo.append(f"{host}: could not be asked for its ssh host key; run this again when it answers")
        return
    work.file(path, (ground.read_text(path) or "") + lines, 0o644, work.user, work.user)
    prints = ground.call("ssh-keygen", "-l", "-f", "-", stdin=lines.encode()).stdout.splitlines()
    work.todo.append(f"compare the host key of {host} with what it publishes: " + "; ".join(prints))

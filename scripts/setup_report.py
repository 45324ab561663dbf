"""What a person reads at the end: what is left to do, and the lines to paste into the repository's settings."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import setup_ground as ground
import setup_looks as looks
import setup_tree as tree
import setup_wanted as wanted
from setup_work import Work


def tell(work: Work) -> None:
    options = work.options
    word, number = ("differences" if options.check else "changes"), work.changes or "no"
    well = not work.changes and not work.found and not work.commands
    ground.say(f"{options.name}: {number} {word}" + (", all is as it should be" if well else ""))
    for line in work.notes:
        ground.say(f"note: {line}")
    if work.commands:
        ground.say("to do, in this order (or once more with --install-packages):")
        for line in work.commands:
            ground.say(f"  {line}")
    for line in [*work.found, *work.todo]:
        ground.say(f"to do: {line}")
    if not options.check and not options.remove:
        say_secrets(work)


def say_secrets(work: Work) -> None:
    options = work.options
    key = ground.read_text(work.home / ".ssh" / "id_ed25519.pub")
    if wanted.is_ssh(options.repo) and key:
        print("\nDeploy key: add it to the repository (Settings > Deploy keys), without write access:")
        ground.say(f"  {key.strip()}")
    try:
        sshd = looks.sshd_settings(work.user)
    except ground.SetupError:
        sshd = {"hostkey": [str(path)[:-4] for path in sorted(Path("/etc/ssh").glob("ssh_host_*_key.pub"))]}
    place = options.seen_as or own_address(sshd.get("port", []))
    branch = options.branch or tree.said(work, "branch") or "main"
    prefix = re.sub("[^A-Z0-9]", "_", options.name.upper())
    print(f"\nSecrets: make the environment `{options.name}` in the repository (Settings > Environments), limit it to")
    print(f"the branch `{branch}` (Deployment branches and tags > Selected branches and tags), and add them there. As")
    print("secrets of the repository, whoever may push a branch of their own could read them:")
    print(f"  {prefix}_HOST = {place}")
    print(f"  {prefix}_USER = {work.user}")
    print("  DEPLOY_SSH_KEY = the private half of the key that --authorize names, the same for all machines")
    print("  DEPLOY_KNOWN_HOSTS = the following lines, below those of the other machines:")
    for line in host_keys(place, sshd.get("hostkey", [])):
        print(f"    {line}")


def own_address(ports: Sequence[str]) -> str:
    """The address that this machine uses towards others, as a guess for its name in CI; with sshd's port."""
    words = ground.call("hostname", "-I", check=False).stdout.split() if shutil.which("hostname") else []
    name = words[0] if words else os.uname().nodename
    if not ports or "22" in ports:
        return name
    return f"[{name}]:{ports[0]}" if ":" in name else f"{name}:{ports[0]}"


def host_keys(place: str, files: Sequence[str]) -> list[str]:
    """known_hosts lines of this machine, for `host`, `host:port` or `[v6]:port`, as ssh looks for them.

    files: sshd's private keys. It is asked for port 22 by the bare name, however that was written.
    """
    name, port = split_place(place)
    name = wanted.known_name(name, int(port or 22))
    found = [ground.read_text(Path(f"{file}.pub")) for file in files]
    return [f"{name} {' '.join(text.split()[:2])}" for text in found if text]


def split_place(place: str) -> tuple[str, str]:
    """Host and port (or nothing) of `host`, `host:port`, `[v6]` or `[v6]:port`; a bare v6 has no port."""
    match = re.fullmatch(r"\[([^\]]+)\](?::(\d+))?", place)
    if match:
        return match[1], match[2] or ""
    host, _, port = place.partition(":")
    return (place, "") if ":" in port else (host, port)

"""Versions of this package: the commit's own takes over, with a baton; the one of a good deploy is what boots run."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import NoReturn

from deployer import carrier, errors, files, host, log, memory, mirror, releases, run

BATON_VERSION = 1
SCRIPTS = Path(__file__).resolve().parents[1]
KEEP_SECONDS = 86400  # a version that came later may be about to be used: by a push that waits, say


def write_baton(baton: memory.Baton) -> str:
    return json.dumps({"version": BATON_VERSION, **baton._asdict()})


def read_baton(text: str) -> memory.Baton | None:
    """The baton in --continue; None if there is none, or one of a version that is not known: then all begins anew."""
    try:
        value = json.loads(text or "{}")
        baton = memory.Baton(**{name: value[name] for name in memory.Baton._fields})
        os.set_inheritable(baton.lock, False)
    except (ValueError, TypeError, KeyError, OSError, RecursionError):
        return None
    return baton if value.get("version") == BATON_VERSION else None


# --- to the version that the commit carries


def hand_over(progress: memory.Progress, source: mirror.Mirror, tree: mirror.Tree, tip: str) -> None:
    """Let the version that the commit carries do the rest, if it is another one and starts. Returns if not.

    So a boot does exactly what a push of that commit does. Who was handed over to does not do so again.
    """
    carried = {path.partition("/")[2]: entry.oid for path, entry in tree.items() if is_ours(path, entry)}
    if carrier.ENTRY not in carried or progress.request.baton or carried == own_ids(len(carried[carrier.ENTRY])):
        return
    what = f"{mirror.SCRIPT} of {str(progress.wanted)[:8]}"
    try:
        content = {name: source.read(oid).encode() for name, oid in carried.items()}
        script = Path(carrier.keep(str(progress.machine.root), carrier.identity(content), content), carrier.ENTRY)
        baton = memory.Baton(progress.lock, tip, progress.started, progress.clock, progress.request.ready_by)
        words = accepted_arguments(progress, script, baton)
    except (errors.CommandError, ValueError) as error:
        log.warning(f"{what} does not start; going on with this one: {error}")
        return
    log.info(f"handing over to {what}")
    become(progress, script, words)


def is_ours(path: str, entry: mirror.Entry) -> bool:
    """Whether a path of a commit belongs to a version of this program."""
    in_package = path.startswith(mirror.PACKAGE) and path.endswith((".py", ".ini")) and path.count("/") == 2
    return entry.kind == "blob" and entry.mode != "120000" and (path == mirror.SCRIPT or in_package)


def own_ids(length: int) -> dict[str, str]:
    """git's content ids of this version's files. length: of the repository's ids (SHA-1 or SHA-256)."""
    algorithm = "sha1" if length == 40 else "sha256"
    blobs = {name: b"blob %d\0" % len(data) + data for name, data in carrier.own_files(SCRIPTS).items()}
    return {name: hashlib.new(algorithm, blob).hexdigest() for name, blob in blobs.items()}


def accepted_arguments(progress: memory.Progress, script: Path, baton: memory.Baton) -> list[str]:
    """The arguments for the other version: with the baton, if it knows that. Raises CommandError: not even the others.

    It is asked by a call that reads all its arguments and then does nothing else than to show its defaults.
    """
    plain = [*progress.request.arguments, "--root", str(progress.machine.root)]
    with_baton = [*plain, "--continue", write_baton(baton)]
    if run.command([sys.executable, str(script), *with_baton, "--show-config"], timeout=20, check=False).code == 0:
        return with_baton
    run.command([sys.executable, str(script), *plain, "--show-config"], timeout=20)
    return plain


def become(progress: memory.Progress, script: Path, words: list[str]) -> NoReturn:
    if "--continue" in words:
        os.set_inheritable(progress.lock, True)
    else:  # it begins anew, under a lock of its own: this one ends with this program
        memory.clear_running(progress.machine)
    os.execv(sys.executable, [sys.executable, str(script), *words])


# --- the version that boots run


def install(machine: host.Machine, release: releases.Release) -> None:
    """Let bin/deploy_machine.py lead to this version, unless the release carries another one."""
    if not machine.owns_services:
        return
    if SCRIPTS.parent == machine.deployers.resolve():
        version, own = SCRIPTS.name, None
    else:
        own = carrier.own_files(SCRIPTS)
        version = carrier.identity(own)
    target = f"../{carrier.FOLDER}/{version}/{carrier.ENTRY}"
    if machine.script.is_symlink() and os.readlink(machine.script) == target:
        return
    own = own or carrier.own_files(SCRIPTS)
    if not (release.path / mirror.SCRIPT).exists() or carried_by(release) == own:
        carrier.keep(str(machine.root), version, own)
        files.replace_link(machine.script, target)
        log.info(f"{machine.script} is now the version that {release.short} was deployed with")


def carried_by(release: releases.Release) -> dict[str, bytes]:
    """The version in a release; empty if it is not one like this."""
    try:
        return carrier.own_files((release.path / mirror.SCRIPT).parent)
    except OSError:
        return {}


def prune(machine: host.Machine) -> None:
    """Remove versions that nothing runs any more."""
    if not machine.deployers.is_dir():
        return
    used = {SCRIPTS.name, os.path.basename(os.path.dirname(os.path.realpath(machine.script)))}
    with carrier.locked(str(machine.deployers)):
        for path in machine.deployers.glob("[!.]*"):
            if path.name not in used and path.stat().st_mtime < time.time() - KEEP_SECONDS:
                carrier.remove(str(path))

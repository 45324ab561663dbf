"""shared/, which outlives releases: they lead there, and what deploys and services write is open to both."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from deployer import commands, errors, files, host, log, memory, releases, services, shapes

MOST = 10_000  # names that are looked at; uploads come last


def link(progress: memory.Progress, site: commands.Site) -> None:
    """Lead the shared paths of a release to shared/, where they survive it."""
    committed = {path for path, entry in site.commit.tree.items() if entry.kind != "tree"}
    for written in site.commit.settings.shared:
        path = written.rstrip("/")
        place, kept_at = site.release.path / path, site.machine.shared / path
        stay_inside(site.release, place.parent)
        if hidden := shapes.hidden(path, committed):
            warning = f"{hidden} of the commit is not in the release: {kept_at} is there, as shared = says; remove one"
            log.warning(warning)
            progress.warnings.append(warning)
        if shapes.is_folder(written, committed) and not os.path.lexists(kept_at):
            make_folder(site.machine, kept_at)
        releases.lead(place, kept_at)


def stay_inside(release: releases.Release, place: Path) -> None:
    """Raise DeployError if a link, say in the commit, leads what is written to this place out of the release."""
    if out := files.way_out(release.path, place):
        name = place.relative_to(release.path)
        raise errors.DeployError(f"{name} leads out of the release, to {out}: remove that link")


def make_folder(machine: host.Machine, folder: Path) -> None:
    """Make a folder below shared/, for the services as media is."""
    folder.mkdir(parents=True)
    media = machine.shared / "media"
    if folder != media and media.is_dir():
        about = media.stat()
        with contextlib.suppress(OSError):  # of another group than this user may give it to
            os.chown(folder, -1, about.st_gid)
            folder.chmod(stat.S_IMODE(about.st_mode))
    if machine.owns_services:
        log.notice(f"made {folder}; that the services may write there, too, run setup_machine.py once more")


@contextlib.contextmanager
def open_to_both(machine: host.Machine) -> Iterator[None]:
    """Around a step: it may write what the services have written, and they what it writes.

    The mode of a new SQLite file is 0644, whatever umask and default ACLs say, so it is the group's only afterwards.
    """
    if machine.owns_services and any(is_closed(about) for _, _, about in entries(machine)):
        services.open_shared(machine)
    try:
        yield
    finally:
        for folder, name, about in entries(machine) if machine.owns_services else ():
            if about.st_uid == os.geteuid() and not about.st_mode & stat.S_IWGRP:
                open_to_group(folder, name)


def is_closed(about: os.stat_result) -> bool:
    """Whether it is another user's, and the group may not write it."""
    return about.st_uid != os.geteuid() and not about.st_mode & stat.S_IWGRP


def open_to_group(folder: int, name: str) -> None:
    """Let the group write a file of ours. The services could put a link in its place meanwhile: none is followed."""
    with contextlib.suppress(OSError):
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        try:
            about = os.fstat(descriptor)
            if about.st_uid == os.geteuid() and (about.st_nlink == 1 or stat.S_ISDIR(about.st_mode)):
                os.fchmod(descriptor, stat.S_IMODE(about.st_mode) | stat.S_IWGRP)
        finally:
            os.close(descriptor)


def entries(machine: host.Machine) -> Iterator[tuple[int, str, os.stat_result]]:
    """Files and folders in the folders of shared/: the folder each is in, its name, and what it is."""
    tops = [path for path in sorted(machine.shared.glob("*")) if path.is_dir()]
    left = MOST
    for top in sorted(tops, key=lambda path: path.name == "media"):
        for _, folders, names, descriptor in os.fwalk(os.path.realpath(top)):
            for name in [*folders, *names]:
                if (left := left - 1) < 0:
                    return
                with contextlib.suppress(OSError):
                    about = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                    if stat.S_ISREG(about.st_mode) or stat.S_ISDIR(about.st_mode):
                        yield descriptor, name, about

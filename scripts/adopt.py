#!/usr/bin/env python3
"""Put deploy-machine into a Django application's repository, or bring an earlier adoption to this version.

    adopt.py PATH             say what is there, what would be written, and what only a person can do
    adopt.py PATH --diff      the same, with the differences
    adopt.py PATH --write     write it (nothing is committed)
    adopt.py PATH --check     for CI: exit 1 while anything is missing or differs, or is left for a person to do

It reads the application's files and runs none of them. What it writes:

  scripts/ systemd/ .github/workflows/{cd,fleet}.yml
                                                this project's: units and workflows made to fit, and kept at its version
  machines.ini deploy.ini gunicorn.conf.py .env.example deploy/nginx/NAME.conf
                                                a first version of what is the application's own; never written again

A file of the first kind that a person has changed stays as it is: --diff shows the difference, --write --replace takes
this project's, if git has the other one. With the words `adopt.py: keep` in a comment it is left alone for good.

Exit codes: 0 done, or nothing to do; 1 --check found something; 2 usage error, nothing was touched.

Where to read what: adopt_repo.py (both repositories), adopt_values.py (settings, read with ast), adopt_looks.py (what
an application looks like), adopt_ini.py and adopt_env.py (machines.ini, deploy.ini, .env.example), adopt_todo.py (what
only a person can do), adopt_files.py (what is to be there). Run it from a checkout of this project: it needs the
examples and the history, Python 3.9 and git.
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 9):
    sys.stderr.write(
        "adopt.py needs Python 3.9 or newer, but %s is %d.%d: install a newer python3\n"
        % (sys.executable, sys.version_info[0], sys.version_info[1])
    )
    raise SystemExit(2)

import argparse
import contextlib
import difflib
import os
import shlex
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

import adopt_env as env
import adopt_files as files
import adopt_ini as ini
import adopt_looks as looks
import adopt_repo as repo
import adopt_todo as todo
from adopt_values import UNKNOWN, plain
from deployer import config, errors, log

EXIT_DIFFERS = 1
KEEP = "adopt.py: keep"


class Change(NamedTuple):
    """What is to be done with one file."""

    path: str
    verb: str  # create, update, replace, remove: or kept, where a person has the last word
    new: str = ""
    old: str = ""
    mode: int = 0o644
    is_copy: bool = False

    @property
    def is_left(self) -> bool:
        return self.verb == "kept"


# --- what differs


def compare(application: repo.Application, wanted: Sequence[files.Wanted], replace: bool) -> list[Change]:
    """What is to be done for the application to have these files. Raises UsageError where that cannot be done."""
    changes = []
    for one in wanted:
        application.check_place(one.path)
        data = application.data(one.path)
        old = application.text(one.path)
        change = Change(one.path, "create", one.text, old, one.mode, one.is_copy)
        if data is None:
            changes.append(change)
        elif one.is_own or KEEP in old:
            continue
        elif old == one.text:
            if one.mode == 0o755 and not os.access(application.path / one.path, os.X_OK):
                changes.append(change._replace(verb="update"))
        elif old in one.known:
            changes.append(change._replace(verb="update"))
        else:
            changes.append(change._replace(verb="replace" if replace else "kept"))
    for one in files.gone(application, wanted):
        old = application.text(one.path)
        if old in one.known:  # else it is the application's own, or has become so
            changes.append(Change(one.path, "remove", "", old))
    return changes


def check_committed(application: repo.Application, changes: Sequence[Change]) -> None:
    """Raises UsageError where a person's change would be lost: git does not have it."""
    for change in changes:
        if change.verb == "replace" and not application.is_committed(change.path):
            raise errors.UsageError(
                f"{change.path} has changes that are not committed: commit them first, git then has them"
            )


def write(application: repo.Application, change: Change) -> None:
    """Do it, at once or not at all."""
    place = application.path / change.path
    if change.verb == "remove":
        place.unlink()
        with contextlib.suppress(OSError):  # it is not empty
            place.parent.rmdir()
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=place.parent, delete=False, encoding="utf-8", newline="\n") as file:
        file.write(change.new)
    os.chmod(file.name, change.mode)
    os.replace(file.name, place)


# --- what people see


def say(line: str = "") -> None:
    print(log.printable(line), flush=True)


def show_found(application: repo.Application, found: looks.Found, settled: ini.Settled) -> None:
    database = found.setting("DATABASES", {})
    default = database.get("default") if isinstance(database, dict) else UNKNOWN
    engine = plain(default.get("ENGINE", UNKNOWN)) if isinstance(default, dict) else looks.asked_for(default) or UNKNOWN
    by = (
        f" (manage.py: {found.default_settings[0]})"
        if env.needs_settings_module(found) and found.default_settings
        else ""
    )
    facts = {
        "repository": f"{application.path}, branch {settled.branch}",
        "machines": ", ".join(f"{machine.name} ({' '.join(machine.roles)})" for machine in settled.machines),
        "manage.py": found.folder or "in the root",
        "settings": f"{found.settings or 'not found'}{by}",
        "serves": found.application or "no wsgi.py, no asgi.py",
        "health view": found.health_path or "none",
        "scheduler": ", ".join(f"{one.words} ({one.seen})" for one in found.programs) or "none",
        "packages": ", ".join(found.locks) or "no lock file",
        "database": engine if isinstance(engine, str) else "not known",
        "STATIC_ROOT": shown(plain(found.static_root)),
        "MEDIA_ROOT": shown(plain(found.setting("MEDIA_ROOT", None))),
        "variables": ", ".join(sorted(found.variables)) or "none",
        "Procfile": ", ".join(line.partition(":")[0] for line in found.procfile.splitlines() if ":" in line) or "none",
        "workflows": ", ".join(os.path.basename(path) for path in found.workflows) or "none",
    }
    output, is_sure = looks.build_output(application, looks.commit_of(application, settled.text), found)
    if output:
        guess = (
            "" if is_sure else " (a guess: if it is another folder, deploy.ini says it: [step build] provides = ...)"
        )
        facts["build"] = f"fills {output}{guess}"
    say("Found")
    for name, value in facts.items():
        say(
            textwrap.fill(
                value, 116, initial_indent=f"  {name:<12} ", subsequent_indent=" " * 15, break_on_hyphens=False
            )
        )


def shown(value: object) -> str:
    return (
        "none"
        if value is None
        else "not known: see to it yourself"
        if value is UNKNOWN
        else str(getattr(value, "path", value))
    )


def show_changes(changes: Sequence[Change], options: argparse.Namespace) -> None:
    done = options.write
    marks = {"create": "+", "update": "~", "replace": "~", "remove": "-", "kept": "!"}
    words = {
        "update": "is of an earlier version",
        "replace": "is replaced: git has what it was",
        "remove": "is not part of this version any more",
        "kept": "differs by hand, and stays: --diff shows it, --write --replace takes this project's",
    }
    say()
    if not changes:
        say("Nothing to write: all files are there, and as in this version")
        return
    say("Written" if done else "To be written (by --write; --diff shows it)")
    copies = [change for change in changes if change.is_copy and change.verb == "create"]
    for folder in ("scripts/", "systemd/"):
        if number := len([change for change in copies if change.path.startswith(folder)]):
            say(f"  + {folder} ({number} files, as they are here)")
    for change in changes:
        if change not in copies:
            word = words.get(change.verb, "")
            say(f"  {marks[change.verb]} {change.path}{f'  {word}' if word else ''}")
    if options.diff:
        for change in changes:
            show_diff(change)


def show_diff(change: Change) -> None:
    if change.verb == "create" and change.is_copy:
        return
    sides = change.old.splitlines(keepends=True), change.new.splitlines(keepends=True)
    names = ("/dev/null" if change.verb == "create" else f"a/{change.path}", f"b/{change.path}")
    if change.verb == "remove":
        names = (names[0], "/dev/null")
    say()
    for line in difflib.unified_diff(*sides, *names):
        say(line.rstrip("\n"))


def show_tasks(tasks: Sequence[todo.Task]) -> None:
    say()
    say("What only you can do" if tasks else "Nothing in the code is left for you to do")
    for number, task in enumerate(tasks, 1):
        say(
            textwrap.fill(
                task.title, 116, initial_indent=f"{number:>3}. ", subsequent_indent="     ", break_on_hyphens=False
            )
        )
        if task.where:
            say(f"     {task.where}:")
            say()
        for line in task.lines.splitlines():
            say(f"         {line}".rstrip())
        if task.lines:
            say()


def show_update(changes: Sequence[Change]) -> None:
    """The commands from an earlier adoption to this version."""
    paths = [change.path for change in changes if not change.is_left]
    if paths:
        say("And then")
        say()
        say(f"    git add --all -- {shlex.join(tops_of(paths))} && git commit -m 'Update deploy-machine' && git push")
        say()
    if any(path.startswith("systemd/") for path in paths):
        say("  Units have changed: run setup_machine.py again for each machine, as before (--check says what differs)")


def tops_of(paths: Sequence[str]) -> list[str]:
    """The files and folders of the root that paths lie in."""
    return sorted({path.partition("/")[0] for path in paths})


def show_next(application: repo.Application, settled: ini.Settled, paths: Sequence[str]) -> None:
    """The commands from here to the first deploy."""
    url = application.url()
    say("And then")
    say()
    ignored = application.ignored(paths)
    force = ["git", "add", "--force", "--", *ignored]
    say(f"    git add -- {shlex.join(tops_of(paths))}")
    if ignored:
        say(f"    {shlex.join(force)}    # .gitignore names them")
    say("    git commit -m 'Deploy with deploy-machine' && git push")
    say('    ssh-keygen -t ed25519 -N "" -f ~/ci_key')
    say()
    say("  each machine, from a laptop with ssh and sudo there. The user is deploybot: GitHub hides the user's name")
    say("  wherever it stands in a log, and if that were deploy, of `deployed` it would leave `***ed`:")
    say()
    for machine in settled.machines:
        roles = " ".join(f"--role {role}" for role in machine.roles)
        say(f"    scripts/setup_machine.py --ssh ADMIN@HOST --name {machine.name} {roles} \\")
        say(f"        --repo {shlex.quote(url)} --user deploybot --authorize ~/ci_key.pub")
    say()
    names = ", ".join(machine.name for machine in settled.machines)
    say(f"  On GitHub: an environment for each machine ({names}), limited to the branch {settled.branch}, with the")
    say("  secrets that setup_machine.py prints. On each machine: fill in /srv/app/shared/.env, by .env.example, and")
    say("  deploy once:")
    say()
    say("    sudo -u deploybot /srv/app/bin/deploy_machine.py")


def verdict(changes: Sequence[Change], tasks: Sequence[todo.Task]) -> Iterator[str]:
    """What --check ends with."""
    if changes:
        by_hand = [change.path for change in changes if change.is_left]
        missing = [change.path for change in changes if not change.is_left]
        if missing:
            yield f"to be written: {len(missing)} files, {', '.join(missing[:4])}{' ...' if len(missing) > 4 else ''}"
        if by_hand:
            yield f"changed by hand: {', '.join(by_hand)} (`{KEEP}` in a comment says that this is meant)"
    if tasks:
        yield f"left for a person to do: {len(tasks)}"


# --- command line


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise errors.UsageError(f"{message} (see --help)")


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="adopt.py",
        allow_abbrev=False,
        description="Put deploy-machine into a Django application's repository, or bring it there to this version."
        " By itself it writes nothing.",
    )
    parser.add_argument("path", metavar="PATH", help="the application's repository")
    parser.add_argument("--diff", action="store_true", help="show the differences")
    parser.add_argument("--write", action="store_true", help="write what is missing, and what an earlier version wrote")
    parser.add_argument(
        "--replace", action="store_true", help="with --write: also what was changed by hand and committed"
    )
    parser.add_argument(
        "--check", action="store_true", help="exit 1 while anything is missing, differs or is left to do"
    )
    parser.add_argument("--machine", action="append", metavar="NAME=ROLE[,ROLE]", default=[],
                        help="repeatable; default: those of machines.ini, else scheduler and frontend")  # fmt: skip
    parser.add_argument("--app-dir", default="", metavar="DIR", help="the folder of manage.py, where there are several")
    parser.add_argument(
        "--branch", default="", metavar="B", help="default: deploy.ini's, else the repository's default"
    )
    return parser


def check_options(options: argparse.Namespace) -> None:
    if options.replace and not (options.write or options.diff):
        raise errors.UsageError(
            "--replace is for --write: it takes this project's in the place of a file changed by hand"
        )
    if options.check and options.write:
        raise errors.UsageError("--check only looks, --write writes: use one of them")
    if os.path.isabs(options.app_dir) or ".." in options.app_dir.split("/"):
        raise errors.UsageError(
            f"--app-dir {options.app_dir}: name a folder of the repository, as in --app-dir backend"
        )
    if not repo.EXAMPLE.is_dir() or not (repo.OURS / repo.WORKFLOW).is_file():
        raise errors.UsageError(f"{repo.OURS} is no checkout of deploy-machine: run adopt.py from one")


def settle(application: repo.Application, options: argparse.Namespace) -> ini.Settled:
    settings = repo.read_config(application)
    branch = options.branch or (settings.branch if settings.sets_branch else application.branch())
    machines = ini.machines_of(application, options.machine, settings)
    return ini.Settled(machines, config.check_ref(branch), application.text("deploy.ini"), settings)


def main_inner(arguments: Sequence[str]) -> int:
    """Return the exit code. Raises UsageError."""
    options = make_parser().parse_args(arguments)
    check_options(options)
    if Path(options.path).resolve() == repo.OURS:
        raise errors.UsageError(f"{options.path} is deploy-machine itself: name your application's repository")
    application = repo.Application(Path(options.path))
    settled = settle(application, options)
    found = looks.look(application, options.app_dir, settled.settings)
    tasks = todo.tasks(application, found, settled)
    wanted = files.wanted(application, found, settled, todo.asked_by(tasks))
    changes = compare(application, wanted, options.replace)
    if options.write:
        check_committed(application, changes)
        for change in changes:
            if not change.is_left:
                write(application, change)
    show_found(application, found, settled)
    show_changes(changes, options)
    show_tasks(tasks)
    if options.check:
        for line in (found_wrong := [*verdict(changes, tasks)]):
            say(f"check: {line}")
        return EXIT_DIFFERS if found_wrong else 0
    if "scripts/deploy_machine.py" in application.tracked:
        show_update(changes)
    else:
        show_next(application, settled, [one.path for one in wanted])
    return 0


def main() -> NoReturn:
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # names of files may be any bytes
    sys.stderr.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        sys.exit(main_inner(sys.argv[1:]))
    except errors.UsageError as error:
        print(f"adopt.py: {log.printable(str(error))}", file=sys.stderr)
        sys.exit(errors.EXIT_USAGE)


if __name__ == "__main__":
    main()

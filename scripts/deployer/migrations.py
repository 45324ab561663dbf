"""What the database says of migrations: the application itself is asked."""

from __future__ import annotations

import os
from typing import NamedTuple

from deployer import commands, config, errors, host, log, releases, run

PATIENCE = 30.0  # seconds; of a database that does not answer nothing is known


class Answer(NamedTuple):
    """What the application says of its migrations and the database."""

    unapplied: tuple[str, ...] = ()
    ahead: tuple[str, ...] = ()  # applied, and not in this code
    handlers: tuple[str, ...] = ()  # functions of the application that run behind each `migrate`
    problem: str = ""  # why it could not be asked

    @property
    def why(self) -> str:
        """Why `migrate` is to be run; empty if there is nothing to do for it."""
        if self.problem:
            return f"the database could not be asked what is applied: {self.problem}"
        if self.unapplied:
            names = log.shorten(", ".join(self.unapplied))
            return f"{len(self.unapplied)} migration{'s are' if self.unapplied[1:] else ' is'} not applied: {names}"
        handlers = log.shorten(", ".join(self.handlers))
        return f"nothing is unapplied, but {handlers} {'run' if self.handlers[1:] else 'runs'} with it" * bool(handlers)


def ask(machine: host.Machine, release: releases.Release, commit: str, step: config.Step) -> Answer:
    """Ask a step's command, which can_be_asked, in the release: it applies nothing."""
    try:
        return ask_hooked(machine, release, commit, step)
    except OSError as error:  # a full disk
        return Answer(problem=str(error.strerror))


def ask_hooked(machine: host.Machine, release: releases.Release, commit: str, step: config.Step) -> Answer:
    with commands.hooked(machine, release, step, "ask", PATIENCE) as hook:
        env = commands.variables_of_step(machine, release, commit, step)
        env["PYTHONDONTWRITEBYTECODE"] = "1"  # the release may be given up meanwhile
        try:
            argv, cwd = [*step.run, "--plan"], release.path / step.cwd  # without the hook nothing must be applied
            done = run.command(argv, cwd=cwd, env=hook.added_to(env), timeout=PATIENCE, check=False)
        except errors.CommandError as error:
            return Answer(problem=str(error))
        notes = hook.notes()
    if len(notes) != 1:
        last = (run.tail(done.err) or "it does not say").splitlines()[-1]
        return Answer(problem=log.printable(last[:200]))
    known = {name: tuple(notes[0].get(name, ())) for name in ("unapplied", "ahead", "handlers")}
    return Answer(**known, problem=log.printable(" ".join(notes[0].get("problem", "").split())[:200]))


class Question:
    """What the database says of a release that is being made, asked while something else goes on."""

    def __init__(self, site: commands.Site, step: config.Step) -> None:
        commands.hook_folder(site.machine)  # not by two at once
        self.asking = run.Background(lambda: ask(site.machine, site.release, site.commit.id, step))

    def why(self) -> str:
        """Wait for the answer: why `migrate` is to be run; empty if there is nothing to do for it."""
        return self.asking.result().why

    def is_answered_with_yes(self) -> bool:
        """Whether it is known by now that `migrate` is to be run."""
        return not self.asking.is_alive() and bool(self.why())


def check(site: commands.Site, step: config.Step, notes: list[commands.Note]) -> None:
    """Look at what `migrate` has noted when the step ran. Raises DeployError: the database is lost with the release."""
    if step.migrates and not notes:
        log.warning(f"  {step.name}: no lock against other machines: its `migrate` was out of reach (python -E or -I?)")
    for path in [note["file"] for note in notes if note.get("file")]:
        top = os.path.realpath(site.release.path) + os.sep
        if path.startswith(top):
            name = path[len(top) :]
            raise errors.DeployError(
                f"{name} is a database inside the release and would be lost with it: keep it in {site.machine.shared}:"
                f" add its folder, or {name}, to `shared =` in deploy.ini"
            )


def schema_ahead(machine: host.Machine, release: releases.Release) -> str:
    """A sentence about applied migrations that are newer than the release's code; empty if there are none.

    Asks the application itself; a database that does not answer says nothing.
    """
    step = next((step for step in release.settings().steps if step.can_be_asked), None)
    if not step or not all((release.path / path).exists() for path in step.when):
        return ""
    try:
        found = ask(machine, release, release.commit, step).ahead
    except errors.DeployError:
        return ""
    return f"the database is ahead of {release.short}: {log.shorten(', '.join(found))}" if found else ""

"""A person's command in the release that serves, with what the services have around them."""

from __future__ import annotations

import os
import signal
from typing import NoReturn

from deployer import commands, errors, host, memory, releases, shapes


def run(request: memory.Request) -> NoReturn:
    """Become the command: terminal, input and exit code are its own. Takes no lock. Raises UsageError."""
    machine, words = request.machine, request.words
    host.must_own(machine)
    current = releases.current(machine)
    if not words:
        raise errors.UsageError("run: no command behind --, as in: run -- python manage.py createsuperuser")
    if not current:
        raise errors.UsageError(f"{machine.root}: nothing is deployed here yet, so there is no release to run it in")
    env = {**commands.variables(machine, current, current.commit), "PYTHONDONTWRITEBYTECODE": "1"}  # as in the units
    del env["DEPLOY_RUN"]  # else it would be taken for what a deploy has left running
    env.update({name: os.environ[name] for name in ("TERM", "COLUMNS", "LINES") if name in os.environ})
    place = current.path / home_of_manage(current)
    for signum in (signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ):  # which this program, or Python, ignores
        signal.signal(signum, signal.SIG_DFL)
    try:
        os.chdir(place)
        os.execvpe(words[0], words, env)
    except OSError as error:
        raise errors.UsageError(f"{words[0]}: {error.strerror} (in {place}, PATH={env['PATH']})") from None


def home_of_manage(release: releases.Release) -> str:
    """The folder of the release in which manage.py lies, as far as the steps know."""
    homes = [step.cwd for step in release.settings().steps if shapes.KIND.get(step.name) == "manage"]
    return homes[0] if homes else ""

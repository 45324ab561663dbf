"""A command of the application, run in a release: with which variables, and what it leaves running."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from deployer import config, errors, files, host, mirror, releases, run, tools

EACH_COMMIT = ("DEPLOY_COMMIT", "DEPLOY_RELEASE")  # variables that differ in each commit
SITE_HOOK = Path(__file__).with_name("site_hook.py")
Note = Mapping[str, Any]  # of a `migrate` that ran: see migrate_locked.py
Variables = dict[str, str]


class Site(NamedTuple):
    """Where a release is being made."""

    machine: host.Machine
    commit: mirror.Commit
    release: releases.Release


def variables(machine: host.Machine, release: releases.Release, commit: str) -> dict[str, str]:
    """What steps and checks see: shared/.env as the services do, and where they are."""
    env = run.variables()
    env.update(files.parse_variables(tools.read_env(machine)))
    if any("\0" in value for value in env.values()):
        raise errors.DeployError(f"{machine.shared / '.env'} holds a NUL character: systemd would not read it, either")
    venv = release.path / ".venv"
    if venv.exists():
        env["VIRTUAL_ENV"] = env["UV_PROJECT_ENVIRONMENT"] = str(venv.resolve())
        env["PATH"] = f"{venv.resolve()}/bin:{env['PATH']}"
    env.update(DEPLOY_COMMIT=commit, DEPLOY_ROLE=" ".join(machine.roles), DEPLOY_RELEASE=release.name)
    return env


def variables_of_step(machine: host.Machine, release: releases.Release, commit: str, step: config.Step) -> Variables:
    """What one step sees."""
    env = {**variables(machine, release, commit), **dict(step.env)}
    for name in EACH_COMMIT if step.inputs else ():  # else its result would depend on them, and nobody could tell
        del env[name]
    return env


def run_step(site: Site, step: config.Step) -> list[Note]:
    """Run a step's command in the release; whatever it leaves running after a failure is ended.

    Returns what Django's `migrate` has noted, if it ran in there.
    """
    machine, release = site.machine, site.release
    env = variables_of_step(machine, release, site.commit.id, step)
    limit = 0.9 * step.timeout  # so that who holds a lock is told before the step's own limit ends it
    with hooked(machine, release, step, "lock", limit) as hook:
        try:
            cwd = release.path / step.cwd
            run.command(step.run, cwd=cwd, env=hook.added_to(env), timeout=step.timeout, live=True)
        except BaseException:
            run.end_leftovers(run.OWN["DEPLOY_RUN"])
            raise
        return hook.notes()


# --- Django's `migrate`, wherever in a command it runs


class Hook(NamedTuple):
    """Has every Python that a command starts run site_hook.py."""

    folder: Path  # for PYTHONPATH
    order: Mapping[str, Any]  # as migrate_locked.py has it

    def added_to(self, env: Variables) -> Variables:
        path = ":".join(filter(None, [str(self.folder), env.get("PYTHONPATH")]))
        return {**env, "PYTHONPATH": path, "DEPLOY_MIGRATE": json.dumps(self.order)}

    def notes(self) -> list[Note]:
        """One for each `migrate` that has run."""
        return [json.loads(line) for line in Path(self.order["notes"]).read_text(encoding="utf-8").splitlines()]


@contextlib.contextmanager
def hooked(
    machine: host.Machine, release: releases.Release, step: config.Step, mode: str, limit: float
) -> Iterator[Hook]:
    """A hook for one command. mode: as migrate_locked.py has it; limit: seconds that locks are waited for."""
    import tempfile  # noqa: PLC0415 - takes a while, and only a step that runs needs it

    descriptor, notes = tempfile.mkstemp(prefix=".migrate.tmp-", dir=machine.state)
    os.close(descriptor)
    order = {"mode": mode, "machine": machine.name, "until": time.monotonic() + limit}
    order |= {"lock_timeout": step.lock_timeout, "release": str(release.path), "notes": notes}
    try:
        yield Hook(hook_folder(machine), order)
    finally:
        os.unlink(notes)


def hook_folder(machine: host.Machine) -> Path:
    """A folder in which Python finds site_hook.py under the name that it looks for, and nothing else."""
    folder = machine.state / "python"
    link = folder / "sitecustomize.py"
    if not link.is_symlink() or os.readlink(link) != str(SITE_HOOK):  # another version's, and its bytecode
        files.remove(folder)
        folder.mkdir()
        link.symlink_to(SITE_HOOK)
    return folder

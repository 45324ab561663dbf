"""A command of the application, run in a release: with which variables, and what it leaves running."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import NamedTuple

from deployer import config, errors, files, host, mirror, releases, run, tools

EACH_COMMIT = ("DEPLOY_COMMIT", "DEPLOY_RELEASE")  # variables that differ in each commit
MIGRATE_LOCKED = Path(__file__).with_name("migrate_locked.py")


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


def run_step(site: Site, step: config.Step) -> None:
    """Run a step's command in the release; whatever it leaves running after a failure is ended."""
    argv = step.run
    if step.migrates:
        limit = 0.9 * step.timeout  # so that who holds the lock is told before the step's own limit ends it
        argv = migrate_locked(step, "lock", site.machine.name, limit)
    env = {**variables(site.machine, site.release, site.commit.id), **dict(step.env)}
    for name in EACH_COMMIT if step.inputs else ():  # else its result would depend on them, and nobody could tell
        del env[name]
    cwd = site.release.path / step.cwd
    try:
        run.command(argv, cwd=cwd, env=env, timeout=step.timeout, live=True, shown=shlex.join(step.run))
    except BaseException:
        run.end_leftovers(run.OWN["DEPLOY_RUN"])
        raise


def migrate_locked(step: config.Step, mode: str, who: str, limit: float) -> tuple[str, ...]:
    """The command that runs the step's own inside migrate_locked.py; limit: seconds to wait for the lock."""
    return (step.run[0], str(MIGRATE_LOCKED), mode, who, f"{limit:g}", *step.run[1:])

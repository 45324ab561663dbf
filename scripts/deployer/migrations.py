"""What the database says of migrations: the application itself is asked."""

from __future__ import annotations

import re

from deployer import commands, errors, host, log, releases, run


def schema_ahead(machine: host.Machine, release: releases.Release) -> str:
    """A sentence about applied migrations that are newer than the release's code; empty if there are none.

    Asks the application itself, for at most 20 seconds; a database that does not answer says nothing.
    """
    step = next((step for step in release.settings().steps if step.migrates), None)
    if not step or not (release.path / "manage.py").exists():
        return ""
    try:
        argv = commands.migrate_locked(step, "ahead", machine.name, 0)
        env = commands.variables(machine, release, release.commit)
        shown = "asking for migrations that are not in this code"
        done = run.command(argv, cwd=release.path, env=env, timeout=20, shown=shown)
    except errors.DeployError:
        return ""
    found = re.findall(r"^AHEAD (.+)$", done.out, re.MULTILINE)
    return f"the database is ahead of {release.short}: {log.shorten(found[-1].replace(' ', ', '))}" if found else ""

#!/usr/bin/env python3
"""Bring this machine to the newest commit of its branch, or leave it as it was.

    deploy_machine.py [deploy|plan|status|history|rollback] [options]      (see --help)

A deploy, in order, and where to read each part (deployer/deploy.py reads the same way):

  1. take the lock and clean up what an interrupted deploy left    attempt.py lock.py memory.py
  2. fetch; find the commit to deploy; look who has signed it      deploy.py mirror.py signatures.py
     let that commit's own version of this program take over       handover.py carrier.py
  3. build the release beside the running one: check out, link     build.py sharing.py commands.py environments.py
     shared files, run the steps
     which steps apply where, and what cannot be deployed rightly  shapes.py complaints.py
     what may be skipped, since all it depends on is the same      steps.py inputs.py observe.py tools.py
     whether the database has all migrations, and their lock       migrations.py pending.py site_hook.py
  4. make it durable on disk, then swap the link `current`         switching.py releases.py
     a web service proves itself beside the old one before that    replacing.py slots.py draining.py
  5. bring the other services of this machine's roles to it        services.py
     say which units there are not the commit's                    installed.py
  6. confirm that they run and answer; otherwise swap back         health.py switching.py
  7. record the result, remove what nothing needs any more         attempt.py memory.py releases.py
     tell the team, and whoever watches the watchers               messages.py
  8. look after it once a minute, and take back what falls ill     watch.py
     say how all stands, and what somebody changed by hand         standing.py drift.py metrics.py

Beside these: config.py and ini.py (deploy.ini over defaults.ini), host.py (machine.ini and the paths below the
root), dotenv.py (shared/.env), errors.py (outcomes and exit codes), telling.py (the line of a failure that says
most), views.py (plan, history, what people see), inside.py (a person's command), cli.py
(arguments), and what all rest on: log.py, run.py, files.py. It needs Python 3.9 or newer and nothing outside the
standard library.
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 9):
    sys.stderr.write(
        "deploy_machine.py needs Python 3.9 or newer, but %s is %d.%d: install a newer python3\n"
        % (sys.executable, sys.version_info[0], sys.version_info[1])
    )
    raise SystemExit(2)

import os


def main() -> None:
    sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # also if Python runs isolated (-I)
    try:
        from deployer import cli
    except ModuleNotFoundError:
        become_whole()
        raise
    cli.main()


def become_whole() -> None:
    """Version 0.1 hands over to this file alone: have the whole of the commit's version kept, and become that."""
    import re
    import subprocess
    import types

    if sys.argv[1:] == ["--version"]:  # so it asks whether this starts
        raise SystemExit(print("deploy_machine.py, without its directory deployer/"))
    if "DEPLOY_TAKEN_OVER_AT" not in os.environ:
        raise SystemExit(sys.stderr.write(f"{__file__}: the directory deployer/ is missing beside it\n") and 2)
    root, asked = sys.argv[-1], re.search(r"--commit[ =](\w+)", " ".join(sys.argv))
    commit = asked[1] if asked else os.environ["DEPLOY_TAKEN_OVER_AT"]

    def git(*words: str) -> bytes:
        return subprocess.run(["git", f"--git-dir={root}/repo.git", *words], check=True, stdout=subprocess.PIPE).stdout

    paths = git("ls-tree", "-r", "-z", "--name-only", commit, "scripts/deploy_machine.py", "scripts/deployer/").decode()
    names = [path.partition("/")[2] for path in paths.split("\0") if path.endswith((".py", ".ini"))]
    files = {name: git("cat-file", "blob", f"{commit}:scripts/{name}") for name in names}
    running = f"{root}/state/running.json"
    if os.path.exists(running):  # else what hands over would be taken for an interrupted deploy
        os.unlink(running)
    carrier = types.ModuleType("carrier")
    exec(files["deployer/carrier.py"], carrier.__dict__)
    path = carrier.keep(root, carrier.identity(files), files)
    os.execv(sys.executable, [sys.executable, f"{path}/deploy_machine.py", *sys.argv[1:]])


if __name__ == "__main__":
    main()

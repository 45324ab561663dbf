#!/usr/bin/env python3
"""Prepare a machine for deploy_machine.py, once; or see what differs from that.

Run as root on the machine, or from a laptop with --ssh: then it carries itself, deploy_machine.py,
the units and your deploy.ini over one ssh connection and uses sudo there.

What it makes, in this order (each only if it is missing or differs; nothing is ever emptied):

  1. the users `deploy` (owns the code, runs the steps) and `app` (runs the services)
  2. the tree below the root, machine.ini, bin/deploy_machine.py, an empty shared/.env
  3. the units of this machine's roles, deploy-on-startup.service and deploy-watch.timer, enabled, root-owned;
     units of other roles are stopped and removed. What serves on a machine of version 0.1 goes on serving
  4. a sudoers drop-in with exactly the calls that deploys need, checked with visudo
  5. for an ssh repository a deploy key and the git host's key; CI's key in authorized_keys, for deploys only
     unless --no-restrict-ci-key says otherwise
  6. before a web service nginx's site: the one in deploy/nginx/, else a built-in one, tested with `nginx -t`

What others wrote (units of these names, sites that answer where this one would) is found first, and goes on;
--replace keeps copies. Once told, --branch and --server-name stay. --app NAME prepares a second application beside the
first; --remove takes away what was made, but for shared/.

Then it looks for what would keep a push, a deploy or a boot from working, or let `deploy` become root (sshd, sudo,
the account, nginx, owners, the git host's key), and names each with the command that mends it.

What is missing (git, nginx, Poetry, ...) it names all at once, with the commands that get it in their order;
--install-packages runs them, with apt or dnf. It ends with the lines to paste into the repository's settings.

Exit codes: 0 done; 1 --check found differences; 2 usage error, nothing was touched; 10 a command
failed (a second run goes on from there); 69 the machine does not answer.

It needs Python 3.9 or newer and, beside it, the rest of scripts/ and ../systemd/.
Run it from a checkout of your own, not from a release on the machine: that belongs to `deploy`.
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 9):
    sys.stderr.write(
        "setup_machine.py needs Python 3.9 or newer, but %s is %d.%d: install a newer python3\n"
        % (sys.executable, sys.version_info[0], sys.version_info[1])
    )
    raise SystemExit(2)

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import setup_foreign as foreign
import setup_ground as ground
import setup_keys as keys
import setup_looks as looks
import setup_old as old
import setup_options
import setup_packages as packages
import setup_remove as remove
import setup_report as report
import setup_site as site
import setup_ssh as ssh
import setup_sudo as sudo
import setup_tree as tree
import setup_units as units
import setup_users as users
import setup_wanted as wanted
from deployer import host
from setup_work import Work

EXIT_DIFFERS = 1


def look(work: Work) -> None:
    """What no change of ours can put right: each with the command that does."""
    options, root = work.options, work.root
    work.found += [*looks.read_by_nginx(root), *looks.read_by_systemd(root)]
    work.found += looks.folders_closed_to_nginx(root)
    work.todo += looks.links_that_lead((looks.NGINX, wanted.SYSTEM_UNITS), root, (work.user, work.runs_as))
    if options.allowed_signers or "verify" in (ground.read_text(root / "machine.ini") or ""):
        work.todo += looks.git_that_verifies()
    if not ground.user_exists(work.user):
        return
    folder = work.home / ".ssh"
    work.found += [*looks.account(work.user), *looks.sshd(work.user, folder / "authorized_keys")]
    work.found += looks.sudo(work.user, sudo.path(work), wanted.sudo_calls(work.settings, options.role, work.app))
    work.found += [*looks.owners(root, work.user), *looks.file_systems(root)]
    work.found += looks.metrics(Path(options.metrics), work.user) if options.metrics else []
    work.found += looks.proxy(options.repo, root / "shared" / ".env")
    if wanted.is_ssh(options.repo):
        place, port = wanted.ssh_place(options.repo)
        work.found += looks.git_host(place, port, wanted.known_name(place, port), folder / "known_hosts", work.user)


def run(work: Work) -> int:
    """Bring this machine to what the options say; with --check only tell. Returns the exit code."""
    if work.options.remove:
        return remove_all(work)
    work.old = old.state(work)
    remember(work)
    site.check(work)
    foreign.check(work)
    try:
        make(work)
    finally:
        work.save_record()
    look(work)
    old.say_what_serves(work)
    report.tell(work)
    return EXIT_DIFFERS if work.options.check and (work.changes or work.found or work.commands) else 0


def remove_all(work: Work) -> int:
    """Take away what setup made; with --check only tell. Returns the exit code."""
    remove.make(work)
    work.save_record()
    report.tell(work)
    return EXIT_DIFFERS if work.options.check and work.changes else 0


def remember(work: Work) -> None:
    """What an earlier run was told, and this one was not, stays; that is said."""
    work.server_name = work.options.server_name or tree.said(work, "server_name")
    for key in ("branch", "server_name", "metrics"):
        option, said = f"--{key.replace('_', '-')}", tree.said(work, key)
        if said and not getattr(work.options, key):
            work.notes.append(f"{key} = {said} stays, as {option} said once; {option} with another value changes it")


def make(work: Work) -> None:
    """The parts, in order."""
    if work.options.replace:
        foreign.replace(work)
    packages.install(work, of_users=False)
    users.make(work)
    packages.install(work, of_users=True)
    tree.make(work)
    keys.make(work)
    units.make(work)
    sudo.make(work)
    packages.name_missing(work)
    site.make(work)


def main_inner(arguments: Sequence[str]) -> int:
    """Return the exit code. Raises SetupError."""
    options = setup_options.make_parser().parse_args(arguments)
    options.role = list(dict.fromkeys(options.role))
    options.root = options.root or f"/srv/{options.app or 'app'}"
    options.user = options.user or host.named_user("deploy", options.app)
    if options.restrict_ci_key is not None and not options.authorize:
        raise ground.UsageError("--restrict-ci-key, --no-restrict-ci-key: name the key's public half with --authorize")
    settings = wanted.read_config()
    wanted.check_roles(settings, options.role)
    if options.needs is None:
        options.needs = packages.needed_programs(settings, options.role)
    if options.ssh:
        return ssh.run(options, settings)
    if os.geteuid() != 0:
        raise ground.UsageError("run it as root on the machine (sudo ...), or from elsewhere with --ssh")
    if not Path("/run/systemd/system").is_dir():
        raise ground.UsageError("this machine was not booted with systemd; nothing here could run the services")
    work = Work(options, settings)
    if options.user == work.runs_as:
        raise ground.UsageError(f"--user {options.user}: the services run as {work.runs_as}, who must not own the code")
    users.check([work.runs_as, options.user])
    return run(work)


def main() -> NoReturn:
    os.umask(0o022)
    try:
        sys.exit(main_inner(sys.argv[1:]))
    except ground.SetupError as error:
        ground.say(f"setup_machine.py: {error}", sys.stderr)
        for line in error.lines:
            ground.say(f"  {line}", sys.stderr)
        sys.exit(error.code)
    except KeyboardInterrupt:
        print("setup_machine.py: interrupted; a second run goes on from here", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()

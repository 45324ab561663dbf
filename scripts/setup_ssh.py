"""From a laptop: this program and what it installs travel over one ssh connection, and run on the machine as root."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping

import setup_ground as ground
import setup_keys as keys
import setup_site as site
import setup_units as units
import setup_wanted as wanted
from deployer import carrier, config
from setup_report import split_place

EXIT_OFFLINE = 69
TAKE_ARCHIVE = (
    """sh -c 'umask 077; at=$(mktemp -d /tmp/setup-machine.XXXXXX) && cat > $at/archive && echo $at/archive'"""
)
ARCHIVE = r"/tmp/setup-machine\.\w+/archive"


def run(options: argparse.Namespace, settings: config.Config) -> int:
    """Run this script on the machine over one ssh connection; return its exit code.

    It has two sessions: the archive is stdin's of the first; of the second that is the terminal, as sudo may ask there.
    """
    archive, version = packed(options, settings)
    ask_password = sys.stdin.isatty()
    with connected(options, ask_password) as ssh:
        kept = subprocess.run([*ssh, TAKE_ARCHIVE], input=archive, stdout=subprocess.PIPE, check=False)
        code = kept.returncode
        if code == 0:
            place = kept.stdout.decode("utf-8", "replace").strip().rpartition("\n")[2]  # a login shell may greet
            if not re.fullmatch(ARCHIVE, place):
                raise ground.SetupError("the shell there does not run a command as sh does, or prints more: mend that")
            command = remote_command(options, place, version, ask_password)
            code = subprocess.call([ssh[0], *["-t"] * ask_password, *ssh[1:], command])
    if code == 255:
        place = options.ssh.rpartition("@")[2]
        ground.say(f"setup_machine.py: {place} could not be reached by ssh (see above)", sys.stderr)
        return EXIT_OFFLINE
    return code


@contextlib.contextmanager
def connected(options: argparse.Namespace, ask_password: bool) -> Iterator[list[str]]:
    """The words of ssh for this machine; all that are run meanwhile share a connection, where ssh can do that."""
    user, _, place = options.ssh.rpartition("@")
    host, port = split_place(place)
    with tempfile.TemporaryDirectory(prefix="setup-") as folder:
        shared = ["-o", "ControlMaster=auto", "-o", f"ControlPath={folder}/ssh", "-o", "ControlPersist=60"]
        argv = ["ssh", "-o", "ConnectTimeout=15", "-o", "ServerAliveInterval=15", *shared]
        argv += [] if ask_password else ["-o", "BatchMode=yes"]
        argv += ["-p", port] if port else []
        argv += ["-l", user] if user else []
        try:
            yield [*argv, "--", host]
        except FileNotFoundError:
            raise ground.SetupError("ssh: not found: install openssh-client") from None
        finally:
            with contextlib.suppress(FileNotFoundError):
                subprocess.run([*argv, "-O", "exit", "--", host], capture_output=True, check=False, timeout=20)


def packed(options: argparse.Namespace, settings: config.Config) -> tuple[bytes, str]:
    """The archive for a machine, and its id. Raises UsageError."""
    texts = {
        "authorize.pub": options.authorize,
        "revoke.pub": options.revoke,
        "allowed_signers": options.allowed_signers,
    }
    files = bundle({name: text + "\n" for name, text in texts.items() if text})
    files |= site.carried(options, settings)
    try:
        return carrier.pack(files), carrier.identity(files)
    except ValueError as error:
        raise ground.UsageError(f"{wanted.REPOSITORY}: {error}: remove it") from None


def bundle(texts: Mapping[str, str]) -> dict[str, bytes]:
    """What the machine needs of this repository, by path, and further files by name."""
    files = {f"scripts/{name}": data for name, data in carrier.own_files(wanted.HERE).items()}
    paths = [
        *wanted.HERE.glob("setup_*.py"),
        wanted.HERE / keys.RESTRICTED_PUSH,
        wanted.HERE / units.DEPLOY_FAILED,
        *wanted.UNITS.iterdir(),
        wanted.REPOSITORY / "deploy.ini",
    ]
    files.update({str(path.relative_to(wanted.REPOSITORY)): path.read_bytes() for path in paths if path.is_file()})
    return {**files, **{name: text.encode() for name, text in texts.items()}}


def remote_command(options: argparse.Namespace, archive: str, version: str, ask_password: bool) -> str:
    """The command line for the machine's shell: unpack the archive that lies there, run it as root, remove it."""
    arguments = ["--name", options.name, "--repo", options.repo, "--root", options.root, "--user", options.user]
    arguments += [word for role in options.role for word in ("--role", role)]
    arguments += ["--branch", options.branch] if options.branch else []
    arguments += ["--authorize", "authorize.pub"] if options.authorize else []
    arguments += ["--revoke", "revoke.pub"] if options.revoke else []
    if options.restrict_ci_key is not None:
        arguments += ["--restrict-ci-key" if options.restrict_ci_key else "--no-restrict-ci-key"]
    arguments += ["--allowed-signers", "allowed_signers"] if options.allowed_signers else []
    arguments += ["--app", options.app] if options.app else []
    arguments += ["--server-name", options.server_name] if options.server_name else []
    arguments += ["--metrics", options.metrics] if options.metrics else []
    for flag in ("check", "replace", "remove", "install-packages"):
        arguments += [f"--{flag}"] if getattr(options, flag.replace("-", "_")) else []
    arguments += ["--seen-as", options.ssh.rpartition("@")[2], "--needs", ",".join(options.needs)]
    words = ["python3", "-I", "-c", carrier.program(), "setup", archive, version, *arguments]
    sudo = "sudo" if ask_password else "sudo -n"
    run = f'sudo="{sudo}"; [ "$(id -u)" = 0 ] && sudo=; $sudo {shlex.join(words)}'
    return f"{run}; code=$?; rm -f {archive}; rmdir {os.path.dirname(archive)}; exit $code"

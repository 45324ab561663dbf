"""The command line of setup_machine.py."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any, NoReturn

import setup_ground as ground
import setup_wanted as wanted
from deployer import errors, host


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="setup_machine.py",
        allow_abbrev=False,
        description="Prepare a machine for deploy_machine.py. A second run changes nothing and says so.",
    )
    name = checked(r"[A-Za-z][A-Za-z0-9-]*", "a machine name: letters, digits and -")
    role = checked(r"[A-Za-z0-9_.][A-Za-z0-9_.-]*", "a role name")
    user = checked(r"[a-z_][a-z0-9_-]*", "a user name")
    root = checked(r"/[A-Za-z0-9_./-]*[A-Za-z0-9_-]", "an absolute path of letters, digits, . _ and -")
    branch = checked(r"(?!-)[^\s~^:?*\[\\]+", "a branch name")
    place = checked(r"(?!-)([A-Za-z0-9_.-]+@)?(\[[0-9a-fA-F:.%]+\]|(?!-)[A-Za-z0-9_.-]+)(:\d+)?", "[USER@]HOST[:PORT]")
    parser.add_argument("--name", required=True, type=name, help="of this machine, e.g. frontend; names its secrets")
    parser.add_argument("--role", required=True, type=role, action="append", metavar="R", help="repeatable")
    parser.add_argument(
        "--repo", required=True, type=repository, metavar="URL", help="the application's git repository"
    )
    parser.add_argument("--branch", type=branch, metavar="B", help="default: as deploy.ini says, else main")
    parser.add_argument("--root", type=root, metavar="DIR", help="default: /srv/app; with --app /srv/NAME")
    parser.add_argument("--user", type=user, help="who owns the code; default: deploy; with --app deploy-NAME")
    parser.add_argument(
        "--app",
        default="",
        type=checked(r"([a-z][a-z0-9-]{0,19})?", "a name of at most 20 small letters, digits and -"),
        metavar="NAME",
        help="a second application on a machine that has one: its units, users, site and root have this name",
    )
    parser.add_argument("--ssh", type=place, metavar="[USER@]HOST[:PORT]", help="prepare that machine, from here")
    parser.add_argument("--authorize", type=public_key, metavar="PUBKEY_FILE", help="public half of CI's ssh key")
    parser.add_argument("--revoke", type=public_key, metavar="PUBKEY_FILE", help="a key to let in no more")
    parser.add_argument(
        "--restrict-ci-key",
        action=argparse.BooleanOptionalAction,
        help="whether the key of --authorize may only deploy this machine; it stays as it is there, a new one may only",
    )
    parser.add_argument(
        "--allowed-signers",
        type=allowed_signers,
        metavar="FILE",
        help="deploy only commits signed by an ssh key in FILE",
    )
    parser.add_argument(
        "--server-name",
        default="",
        type=checked(wanted.SERVER_NAME, "a host name"),
        metavar="HOST",
        help="for which host nginx is to pass requests; default: for every one",
    )
    parser.add_argument("--metrics", type=root, metavar="DIR", help="where node_exporter's textfile collector looks")
    parser.add_argument(
        "--site", default="", metavar="FILE", help="nginx's site; default: deploy/nginx/*.conf, or a built-in one"
    )
    parser.add_argument("--install-packages", action="store_true", help="get what is missing, with apt or dnf")
    parser.add_argument("--replace", action="store_true", help="replace units and a site of others; keep copies")
    parser.add_argument("--remove", action="store_true", help="take away what setup made, but for shared/")
    parser.add_argument("--check", action="store_true", help="change nothing; list what differs, exit 1 if anything")
    parser.add_argument("--seen-as", help=argparse.SUPPRESS)
    parser.add_argument("--needs", type=lambda text: text.split(","), help=argparse.SUPPRESS)
    return parser


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ground.UsageError(f"{message} (see --help)")


def checked(pattern: str, what: str) -> Any:
    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return text

    return check


def repository(url: str) -> str:
    """An address that a machine may fetch from, by the same rules as there."""
    try:
        return host.check_url(url)
    except errors.UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def public_key(path: str) -> str:
    """The one public key in a file, on one line."""
    try:
        lines = [line for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise argparse.ArgumentTypeError(f"{path}: {getattr(error, 'strerror', 'not a text file')}") from None
    if len(lines) != 1 or not re.match(r"(ssh|ecdsa|sk)-[a-z0-9@.-]+ [A-Za-z0-9+/=]+( |$)", lines[0]):
        what = "a private key: name its .pub file" if lines and "PRIVATE" in lines[0] else "not one ssh public key"
        raise argparse.ArgumentTypeError(f"{path}: {what}")
    return lines[0].strip()


def allowed_signers(path: str) -> str:
    """The text of a file as ssh-keygen(1) describes ALLOWED SIGNERS; at least one line with a key."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise argparse.ArgumentTypeError(f"{path}: {getattr(error, 'strerror', 'not a text file')}") from None
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    wrong = [line for line in lines if not re.search(r"^\S+ .*(ssh|ecdsa|sk)-[a-z0-9@.-]+ [A-Za-z0-9+/=]+", line)]
    if wrong or not lines:
        raise argparse.ArgumentTypeError(
            f"{path}: each line must be a name and a public key, as `me@example.com ssh-...`"
        )
    return text.strip() + "\n"

"""The command line: arguments, exit codes, signals."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any, Callable, NoReturn

from deployer import VERSION, errors, log

COMMANDS = {  # -> the room that has a function of this name, and what it is for
    "deploy": ("deploy", "fetch, build, switch, confirm; does nothing if there is nothing to do (default)"),
    "plan": ("views", "say what deploy would do, step by step, and why"),
    "status": ("standing", "what runs since when, services, health, last attempts"),
    "history": ("views", "every attempt, oldest first"),
    "watch": ("watch", "take a release back that falls ill in its probation; what deploy-watch.timer runs"),
    "run": ("inside", "-- COMMAND...: run a command in the release that serves, with its variables"),
    "rollback": ("deploy", "go back to the good release before this one, or to the one named"),
}


# the options that a request has under the same name
QUESTION = ("command", "trigger", "contains", "commit", "target", "full", "force", "within", "since")


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise errors.UsageError(f"{message} (see --help)")


def commit_id(text: str) -> str:
    if not re.fullmatch(r"[0-9a-fA-F]{4,64}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a commit id (4 to 40 hex digits)")
    return text.lower()


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0.1 <= value <= 1e6:
        raise argparse.ArgumentTypeError(f"seconds = {text}: not a number between 0.1 and 1000000")
    return value


def time_text(text: str) -> str:
    if not re.fullmatch(r"\d{4}-\d\d-\d\d(T\d\d:\d\d(:\d\d)?Z?)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time in UTC such as 2026-01-02 or 2026-01-02T03:04:05Z")
    return text


def epilog() -> str:
    lines = ["commands:", *(f"  {name:10} {about}" for name, (_, about) in COMMANDS.items()), "", "exit codes:"]
    lines += ["  0   the machine runs what was asked for, or something newer"]
    lines += [f"  {errors.EXIT_USAGE}   usage or configuration error, one clear line; nothing was touched"]
    rest = [(row.code, name, row.meaning) for name, row in errors.OUTCOMES.items() if row.code and name != "offline"]
    return "\n".join([*lines, *(f"  {code:<3} {name}: {meaning}" for code, name, meaning in rest)])


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="deploy_machine.py",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Bring this machine to the newest commit of its branch, or leave it as it was.",
        epilog=epilog(),
    )
    add, which = parser.add_argument, parser.add_mutually_exclusive_group().add_argument
    add("command", nargs="?", default="deploy", choices=list(COMMANDS), metavar="COMMAND")
    add("target", nargs="?", metavar="RELEASE|COMMIT", help="rollback: where to go back to")
    text = "a role of this machine; repeatable (default: machine.ini)"
    add("--role", action="append", default=[], metavar="NAME", help=text)
    text = "default: $DEPLOY_ROOT, else where this script is installed, else /srv/app"
    add("--root", metavar="DIR", help=text)
    text = "the newest commit must contain this one: fetch until it does"
    which("--contains", type=commit_id, metavar="SHA", help=text)
    which("--commit", type=commit_id, metavar="SHA", help="deploy exactly this commit of the branch")
    add("--branch", metavar="NAME", help="default: machine.ini, else deploy.ini, else main")
    add("--repo", metavar="URL", help="default: machine.ini")
    text = "who asks; boot also tells systemd when services may start"
    add("--trigger", choices=["cd", "boot", "manual"], default="manual", help=text)
    add("--full", action="store_true", help="run every step, whatever its inputs say")
    add("--force", action="store_true", help="deploy also an older commit, or one that is remembered as bad")
    text = "seconds to wait for another deploy (default 1800)"
    add("--lock-timeout", type=seconds, default=1800.0, metavar="S", help=text)
    text = "seconds to wait for the repository (default: machine.ini, else 60)"
    add("--fetch-timeout", type=seconds, metavar="S", help=text)
    add("--json", action="store_true", help="print the result as one JSON line on stdout")
    add("--timings", action="store_true", help="print how long each command and each stage took")
    add("--show-config", action="store_true", help="plan: print the built-in deploy.ini and end")
    add("--why", action="store_true", help="plan: name everything that each step depends on")
    text = "status: answer in so many seconds, and say what did not come"
    add("--within", type=seconds, default=0.0, metavar="S", help=text)
    add("--since", type=time_text, metavar="T", help="status: tell the history from this time on (UTC)")
    add("--check", action="store_true", help="status: exit 1 unless all is well")
    add("--debug", action="store_true", help="show a traceback also for expected errors")
    add("--version", action="version", version=f"deploy_machine.py {VERSION}")
    # what the version that hands over to this one passes on (handover.py)
    add("--continue", dest="baton", default="", help=argparse.SUPPRESS)
    return parser


def run_command(arguments: Sequence[str]) -> int:
    """Run one command and print its result; return the exit code. Raises UsageError."""
    arguments, words = split_command(arguments)
    if words is None and "run" in arguments[:1] and not {"-h", "--help"} & {*arguments}:
        raise errors.UsageError("run: write -- before the command, as in: run -- python manage.py createsuperuser")
    options = make_parser().parse_args(arguments)
    if words is not None and options.command != "run":
        raise errors.UsageError(f"--: only `run` takes a command, not `{options.command}` (see --help)")
    if options.show_config:
        print(room("config").defaults(), end="")
        return 0
    if options.target is not None and options.command != "rollback":
        raise errors.UsageError(f"unexpected argument {options.target!r} (see --help)")
    if options.command != "status" and (options.within or options.since or options.check):
        raise errors.UsageError(f"--within, --since, --check: of status, not of {options.command} (see --help)")
    room("run").SHOWN["timings"] = options.timings
    story: Callable[[Any], Any] = getattr(room(COMMANDS[options.command][0]), options.command)
    result = story(request_of(options, arguments)._replace(words=tuple(words or ())))
    if options.timings:
        for stage, spent in result.get("timings", {}).items():
            log.info(f"{spent:9.3f} s  {stage}")
    show(options, result)
    if options.check:
        return 0 if result["well"] else 1
    return errors.exit_code(result["outcome"]) if "outcome" in result else 0


def split_command(arguments: Sequence[str]) -> tuple[Sequence[str], Sequence[str] | None]:
    """What stands before the first `--`, and the command behind it; None: there is no `--`."""
    if "--" not in arguments:
        return arguments, None
    at = list(arguments).index("--")
    return arguments[:at], arguments[at + 1 :]


def room(name: str) -> Any:
    """A module, imported when it is needed: --help and --version need none of them."""
    return importlib.import_module(f"deployer.{name}")


def request_of(options: argparse.Namespace, arguments: Sequence[str]) -> Any:
    """What was asked for. Raises UsageError."""
    host, given = room("host"), options
    root = host.find_root(given.root)
    try:
        machine = host.load(root, given.role, given.repo, given.branch, given.fetch_timeout)
    except errors.UsageError as error:
        if given.trigger == "boot":  # nobody reads what a boot says: keep and tell it as far as that is possible
            bare = host.bare(root)
            room("attempt").tell_usage_error(room("memory").Request(bare, "deploy", "boot", ()), error)
        raise
    baton = room("handover").read_baton(given.baton) if given.baton else None
    return room("memory").Request(
        machine=machine,
        arguments=tuple(arguments),
        **{key: getattr(given, key) for key in QUESTION},
        lock_timeout=given.lock_timeout,
        ready_by=baton.ready_by if baton else time.monotonic() + machine.boot_timeout,
        baton=baton,
    )


def show(options: argparse.Namespace, result: Any) -> None:
    """Print the result, for people or as JSON; that nobody reads it any more ends nothing."""
    try:
        if options.json:
            import json  # noqa: PLC0415 - takes a while

            log.write_all(1, json.dumps(result) + "\n")
        elif options.command in ("plan", "status", "history"):
            words = {"why": True} if options.command == "plan" and options.why else {}
            log.write_all(1, log.printable(getattr(room("views"), f"show_{options.command}")(result, **words)))
    except OSError:
        pass


def stop_on_signal(signum: int, _: Any) -> NoReturn:
    signal.signal(signum, signal.SIG_IGN)  # raise once: cleaning up must not be interrupted
    raise errors.Terminated(signum)


def main() -> NoReturn:
    """Run what the arguments ask for, and exit."""
    os.umask(0o022)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a lost ssh connection does not end a deploy
    signal.signal(signal.SIGTERM, stop_on_signal)
    signal.signal(signal.SIGINT, stop_on_signal)
    try:
        sys.exit(run_command(sys.argv[1:]))
    except (errors.DeployError, OSError) as error:  # where there is no result to put it into
        if "--debug" in sys.argv:
            raise
        detail = getattr(error, "detail", "")
        log.error(f"deploy_machine.py: {error}" + (f"\n{detail}" if detail else ""))
        log.progress(str(error))
        sys.exit(errors.EXIT_USAGE if isinstance(error, errors.UsageError) else errors.exit_code_of(error))
    except errors.Terminated as stop:
        # die by the signal itself, so that systemd and shells see what happened
        signal.signal(stop.signum, signal.SIG_DFL)
        os.kill(os.getpid(), stop.signum)
        raise AssertionError("not reached") from None

#!/usr/bin/env python3
"""On the CI runner: deploy to one machine over ssh, and say what became of it.

One ssh connection carries this version of deploy_machine.py to the machine, unless it is kept there already, and
runs it; its log streams into this one's. What happened is told in four ways: a line and an annotation for people, the
exit code, and for the report a line `NAME=<the result as JSON, in hex>` in $GITHUB_OUTPUT.

  offline   the machine does not answer (no route, timed out, refused): exit 69. Not a failure.
  failed    it cannot be used as configured (key, host key, name, secrets), it answers but its ssh does
            not, or it was lost in mid-deploy and did not come back: exit 10
  else      what the machine itself says, with its own exit code

From the environment: NAME_HOST (`host`, `host:port` or `[v6]:port`) and NAME_USER, e.g.
FRONTEND_HOST; DEPLOY_SSH_KEY, the private key; DEPLOY_KNOWN_HOSTS, the machines' host keys. Host
keys are always checked. Nothing of the runner's own ssh configuration is read, and the key is
only ever in an ssh-agent that ends with this process.

It needs Python 3.9 or newer, OpenSSH's client and, beside it, github.py, scout.py, deploy_machine.py and deployer/.
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 9):
    sys.stderr.write(
        "push_deploy.py needs Python 3.9 or newer, but %s is %d.%d: install a newer python3\n"
        % (sys.executable, sys.version_info[0], sys.version_info[1])
    )
    raise SystemExit(2)

import argparse
import contextlib
import functools
import os
import re
import shlex
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Callable, NamedTuple, NoReturn, Optional

import github
import scout
from deployer import carrier, errors

SCRIPTS = Path(__file__).resolve().parent
SSH_FAILED = 255  # ssh's own failure; no program on the machine ends with it

CONNECT_TIMEOUT = 10.0  # seconds for ssh's handshake; whether anybody is there at all is known earlier (scout.py)
PAUSES = (1.0, 2.0, 5.0)  # seconds before it is tried once more; one that refuses gets the first one only
DROPPED_TIMEOUT = 30.0  # seconds after which one that drops its connections is tried no more
BEGIN_TIMEOUT = 180.0  # seconds until the script must have begun there: the loader ends itself after 120
STATUS_TIMEOUT = 60.0  # seconds for the answer to a question
RECONNECT_TIMEOUT = 600.0  # seconds that a machine which was lost in mid-deploy is waited for
LOGIN = "deploy-machine is let in"
SSH_LOG = 16_000  # bytes of what ssh itself says that are looked at

# What ssh says of a machine that is not there; looked at only after what it says of one that is.
OFFLINE = (
    "no route to host|(?:connection|operation) timed out(?! during)|connection refused|network is unreachable"
    "|host is down"
)
# What it says of one that is there, and takes a connection only to drop it: too many at once (MaxStartups), just
# starting or stopping, or its sshd hangs.
DROPPED = (
    "kex_exchange_identification|ssh_dispatch_run_fatal|timed out during banner exchange|connection reset|broken pipe"
    "|connection closed by|connection to .* (?:closed|timed out)|timeout, server .* not responding|disconnect"
    "|read from remote host|packet corrupt|bad packet length"
)
# What it says of one that is there, and what to do about it.
FAILURES = (
    (
        "remote host identification has changed|host key verification failed|host key is known",
        "its host key is not the one in DEPLOY_KNOWN_HOSTS: if the machine was made anew, paste the lines"
        " that setup_machine.py prints; otherwise somebody may be in between",
    ),
    (
        "permission denied|too many authentication failures",
        "it does not accept the key: run setup_machine.py there with --authorize and the public half of DEPLOY_SSH_KEY",
    ),
    (
        "could not resolve hostname|name or service not known",
        "its name does not resolve: correct {host_secret}",
    ),
    ("no matching|no mutual signature", "its sshd and this ssh have no method in common"),
)


Archive = Optional[Callable[[], bytes]]  # makes what a command is given on its stdin; None: nothing


class PushError(Exception):
    """The machine cannot be used as configured: outcome `failed`, one line for people."""


class Cancelled(BaseException):
    """The run was cancelled: SIGTERM or SIGINT."""


# --- what is known about an attempt, and what it means ---------------------------------------------


class Evidence(NamedTuple):
    """What one ssh connection left."""

    code: int  # of ssh: the remote command's, or 255
    ssh_log: str = ""  # what ssh itself said
    is_stalled: bool = False  # nothing had begun within its time, and so the connection was ended
    is_absent: bool = False  # nobody took a connection, and so ssh was ended
    started: str = ""  # the machine's time when the script began there; empty if it did not
    result: Mapping[str, Any] | None = None  # what the script printed as its result
    last_words: str = ""  # the last line of its log


def classify(evidence: Evidence, host_secret: str = "HOST") -> tuple[str, str]:
    """Tell `answered`, `lost`, `offline`, `dropped` and `failed` apart; with a message for the last three.

    Failures are looked for first: whatever else ssh says, a machine that refuses a key is not off.
    """
    if evidence.result is not None:
        # that a machine is offline is not for itself to say
        known = github.is_result(evidence.result) and evidence.result["outcome"] != "offline"
        return ("answered", "") if known else ("failed", "its answer is of another kind than this script knows")
    if evidence.started:
        return ("lost", "") if evidence.code == SSH_FAILED else ("failed", ended_without_result(evidence))
    if evidence.is_absent:
        return "offline", f"it does not answer: nobody took a connection within {scout.WITHIN:g} s"
    if evidence.is_stalled:
        return "failed", f"it answers, but nothing began there within {BEGIN_TIMEOUT:g} s: look at its load and disks"
    if evidence.code != SSH_FAILED:
        return "failed", did_not_start(evidence)
    said = evidence.ssh_log.lower()
    for pattern, advice in FAILURES:
        if re.search(pattern, said):
            return "failed", f"{advice.format(host_secret=host_secret)} (ssh: {last_line(evidence.ssh_log)})"
    lines = [line for line in said.splitlines() if "disconnect from" not in line]  # a machine's own words
    if any(re.search(OFFLINE, line) and not re.search(DROPPED, line) for line in lines):
        return "offline", f"it does not answer (ssh: {last_line(evidence.ssh_log)})"
    if re.search(DROPPED, said):
        return "dropped", f"the machine answers but ssh does not: {last_line(evidence.ssh_log)}"
    return "failed", f"ssh failed: {last_line(evidence.ssh_log) or 'without a word'}"


def ended_without_result(evidence: Evidence) -> str:
    if evidence.code == errors.EXIT_USAGE:
        return re.sub(r"^deploy_machine\.py: ", "", evidence.last_words)
    if evidence.code > 128:
        return f"deploy_machine.py was ended there by signal {evidence.code - 128}"
    return f"deploy_machine.py ended there with {evidence.code} and without a result: {evidence.last_words}"


def did_not_start(evidence: Evidence) -> str:
    if evidence.last_words.startswith("loader: "):
        return evidence.last_words[len("loader: ") :]
    if evidence.code == 127:
        return "python3 is not installed there: apt install python3, or dnf install python3"
    return f"deploy_machine.py did not start there ({evidence.code}): {evidence.last_words}"


def discreet(ssh_log: str, host: str, secret: str) -> str:
    """What ssh said, with the secret's name for the machine's address: the report does not know what to hide."""
    text = re.sub(rf"(?:[\w.-]+@)?(?<![\w.:-]){re.escape(host)}(?![\w-]|\.\w)", secret, ssh_log)
    return re.sub(r"\b(by|from|to|host) (?:(?:authenticating|invalid) user \S+ )?\S+ port \d+", rf"\1 {secret}", text)


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


# --- the machine, as the secrets say -----------------------------------------------------------------


class Target(NamedTuple):
    host: str
    port: str
    user: str


def read_target(name: str, host: str, user: str) -> Target:
    """Check host and user. Raises PushError, naming the secret but never its value."""
    prefix = github.prefix(name)
    if not host:
        raise PushError(f"no host: add the secret {prefix}_HOST to the repository's settings")
    if not user:
        raise PushError(f"no user: add the secret {prefix}_USER to the repository's settings")
    match = re.fullmatch(r"\[([0-9A-Fa-f:.%]+)\](?::(\d{1,5}))?|([0-9A-Fa-f]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*)", host)
    if match:
        place, port = match[1] or match[3], match[2]
    else:
        plain = re.fullmatch(r"([A-Za-z0-9_][A-Za-z0-9_.-]*)(?::(\d{1,5}))?", host)
        if not plain:
            raise PushError(f"{prefix}_HOST is malformed: use host, host:port or [v6]:port")
        place, port = plain[1], plain[2]
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", user):
        raise PushError(f"{prefix}_USER is malformed: use the name of a user on the machine, such as deploy")
    return Target(place, port or "22", user)


# --- ssh ---------------------------------------------------------------------------------------------


class Ssh:
    """Connections to one machine with one key and pinned host keys."""

    def __init__(
        self, target: Target, directory: Path, known_hosts: str, env: Mapping[str, str], options: argparse.Namespace
    ) -> None:
        self.target = target
        self.secret = f"{github.prefix(options.machine)}_HOST"
        self.env = env
        self.is_direct = scout.is_direct(options.ssh_option or [])
        self.on_login: Callable[[], None] | None = None  # called when it is let in there
        self.log = directory / "ssh.log"
        self.process: subprocess.Popen[bytes] | None = None
        pinned = directory / "known_hosts"
        pinned.write_text(known_hosts.strip() + "\n", encoding="utf-8")
        # ssh takes the first value of an option: what must not be overridden comes first
        fixed = {
            "BatchMode": "yes",
            "StrictHostKeyChecking": "yes",
            "UserKnownHostsFile": str(pinned),
            "GlobalKnownHostsFile": "/dev/null",
            "UpdateHostKeys": "no",
            "IdentityFile": "none",
            "PreferredAuthentications": "publickey",
            "ClearAllForwardings": "yes",
            "ForwardAgent": "no",
            "ControlPath": "none",
            "LogLevel": "INFO",  # at ERROR it says nothing of a connection that ends or stalls in the handshake
        }
        usual = {
            "ConnectTimeout": f"{options.connect_timeout:.0f}",
            "ServerAliveInterval": "10",
            "ServerAliveCountMax": "3",
        }
        words = [f"{key}={value}" for key, value in fixed.items()] + list(options.ssh_option or [])
        words += [f"{key}={value}" for key, value in usual.items()]
        self.argv = ["ssh", "-F", "/dev/null", "-T", "-E", str(self.log)]
        self.argv += [part for word in words for part in ("-o", word)]
        self.argv += ["-p", target.port, "-l", target.user, "--", target.host]

    def run(
        self, command: Sequence[str], archive: Archive, on_line: Callable[[str], None], patience: float = BEGIN_TIMEOUT
    ) -> Evidence:
        """Run one command there. Its stderr goes line by line to `on_line`; its stdout is taken apart.

        archive: makes what it gets on its stdin, while ssh connects; None: nothing.
        If in `patience` seconds it has neither ended nor said that it begins, the connection is ended; much earlier if
        nobody is there.
        """
        looks = scout.Scout(self.target.host, self.target.port, self.end)
        with looks if self.is_direct else contextlib.nullcontext():
            return self.follow(command, archive, on_line, patience, looks)

    def follow(
        self,
        command: Sequence[str],
        archive: Archive,
        on_line: Callable[[str], None],
        patience: float,
        looks: scout.Scout,
    ) -> Evidence:
        self.log.write_text("", encoding="utf-8")
        # said by ssh itself, on this side, to where also the command's output goes
        local = ["-o", "PermitLocalCommand=yes", "-o", f"LocalCommand=echo {LOGIN}"] if self.on_login else []
        self.process = process = subprocess.Popen(
            [self.argv[0], *local, *self.argv[1:], shlex.join(command)],
            stdin=subprocess.PIPE if archive else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.env,
            start_new_session=True,  # a Ctrl-C is for this process, which ends the connection in order
        )
        assert process.stdout and process.stderr
        last, stalled = [""], threading.Event()
        log = threading.Thread(target=pass_on, args=(process.stderr, on_line, last), daemon=True)

        def give_up() -> None:
            stalled.set()
            process.terminate()

        watchdog = threading.Timer(patience, give_up)
        watchdog.daemon = True
        if archive and process.stdin:
            threading.Thread(target=feed, args=(process.stdin, archive), daemon=True).start()
        log.start()
        watchdog.start()
        started, result = "", None
        try:
            for line, is_whole in github.bounded_lines(process.stdout, github.LINE_BYTES):
                if line.startswith(carrier.MARKER) and not started:
                    watchdog.cancel()
                    looks.is_over.set()
                    started = line[len(carrier.MARKER) :][:40].strip()
                elif line == LOGIN and self.on_login:
                    self.on_login()
                else:
                    result = github.parse_result(line, is_whole) or result
            code = process.wait()
            code = SSH_FAILED if code < 0 else code  # ended from here
        finally:
            watchdog.cancel()
        log.join(5)
        with open(self.log, encoding="utf-8", errors="replace") as file:
            ssh_log = discreet(file.read(SSH_LOG), self.target.host, self.secret)
        is_stalled, is_absent = (found and not started for found in (stalled.is_set(), looks.is_absent))
        return Evidence(code, ssh_log, is_stalled, is_absent, started, result, last[0])

    def end(self) -> None:
        """End the connection; what runs on the machine goes on."""
        if self.process and self.process.poll() is None:
            self.process.terminate()


def feed(stream: IO[bytes], archive: Callable[[], bytes]) -> None:
    """Write the archive's size, all of it, and close; a connection that ends meanwhile is told by ssh itself."""
    with contextlib.suppress(OSError), stream:
        data = archive()
        stream.write(b"%d\n" % len(data) + data)


def pass_on(stream: IO[bytes], on_line: Callable[[str], None], last: list[str]) -> None:
    """Pass the lines of a log on, and keep the last one that is not blank."""
    for line, _ in github.bounded_lines(stream, 4 * github.LOG_LINE):
        last[0] = line[: github.LOG_LINE] if line.strip() else last[0]
        on_line(line)


class Agent:
    """An ssh-agent with one key. It ends with the block, and also when this process is killed."""

    def __init__(self, directory: Path, key: str) -> None:
        self.key = key
        self.env = {
            **os.environ,
            "SSH_AUTH_SOCK": str(directory / "agent"),
            "SSH_ASKPASS_REQUIRE": "never",
            "SHELL": "/bin/sh",  # with which ssh runs its LocalCommand
            "LC_ALL": "C",
        }

    def __enter__(self) -> Mapping[str, str]:
        """Start it and load the key; the environment in which ssh uses it. Raises PushError."""
        if not self.key.strip():
            raise PushError("no key: add the secret DEPLOY_SSH_KEY to the repository's settings")
        # an agent that starts a command ends with it, and this command ends with the pipe from here
        command = ["ssh-agent", "-a", self.env["SSH_AUTH_SOCK"], "sh", "-c", "echo $SSH_AGENT_PID; exec cat"]
        try:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self.env)
        except FileNotFoundError:
            raise PushError("ssh-agent is not installed on the runner: apt install openssh-client") from None
        assert self.process.stdout
        self.pid = int(self.process.stdout.readline() or 0)
        text = self.key.replace("\r\n", "\n").strip() + "\n"  # pasting loses the newline that ssh-add insists on
        command = ["ssh-add", "-q", "-"]
        done = subprocess.run(command, input=text, capture_output=True, text=True, env=self.env, check=False)
        if done.returncode != 0:
            self.end()
            raise PushError(
                "DEPLOY_SSH_KEY is not a private key without a passphrase:"
                " paste the whole file, first and last line too"
            )
        return self.env

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """End it now; by itself it would do so only some seconds later."""
        if self.pid:
            with contextlib.suppress(OSError):
                os.kill(self.pid, signal.SIGTERM)
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


# --- what is asked of the machine ------------------------------------------------------------------------


@functools.cache  # once for all machines
def own_version() -> tuple[dict[str, bytes], str]:
    """The scripts beside this one, and their id. Raises PushError."""
    try:
        files = carrier.own_files(SCRIPTS)
        return files, carrier.identity(files)
    except (OSError, ValueError) as error:
        raise PushError(f"{SCRIPTS} is not whole: {error}") from None


@functools.cache
def packed_version() -> bytes:
    """The archive of them. Raises PushError."""
    return carrier.pack(own_version()[0])


def deploy_command(options: argparse.Namespace, version: str) -> list[str]:
    """The words that have this version there, taking its archive from stdin if need be, and deploy with it."""
    return ["python3", "-c", carrier.program(), options.root, "0", version, *deploy_arguments(options)]


def deploy_arguments(options: argparse.Namespace) -> list[str]:
    words = ["deploy", "--trigger", "cd", "--json"]
    words += [word for role in options.role for word in ("--role", role)]
    words += ["--contains", options.contains] if options.contains else []
    words += ["--commit", options.commit] if options.commit else []
    return words + (["--full"] if options.full else [])


def status_command(root: str, version: str) -> list[str]:
    """The words that ask what became of the deploy by that version, which is kept there since it began."""
    script = f"{root}/{carrier.FOLDER}/{version}/{carrier.ENTRY}"
    return ["python3", script, "status", "--json", "--root", root]


# --- one push ------------------------------------------------------------------------------------------


class Push:
    """One machine, from the first try to the result."""

    def __init__(self, options: argparse.Namespace, console: github.Console, ssh: Ssh | None = None) -> None:
        self.options = options
        self.console = console
        self.clock = time.monotonic()
        self.started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self.ssh = ssh  # without one it is made of what the environment says
        self.is_cancelled = threading.Event()

    def run(self) -> dict[str, Any]:
        """The result: the machine's own, or one that says why there is none."""
        try:
            return self.deploy()
        except PushError as error:
            return self.own_result("failed", str(error))
        except Cancelled:
            if self.ssh:
                self.ssh.end()
            return self.own_result("failed", "the run was cancelled; a deploy that had begun there ends by itself")

    def cancel(self) -> None:
        """Of another thread: end what run() does. A connection that just begins needs it once more."""
        self.is_cancelled.set()
        if self.ssh:
            self.ssh.end()

    def pause(self, seconds: float) -> None:
        """Wait. Raises Cancelled."""
        if self.is_cancelled.wait(seconds):
            raise Cancelled

    def deploy(self) -> dict[str, Any]:
        if self.ssh:
            return self.attempt(self.ssh, self.ssh.secret)
        name = self.options.machine
        prefix = github.prefix(name)
        host = self.options.host or os.environ.get(f"{prefix}_HOST", "").strip()
        user = self.options.user or os.environ.get(f"{prefix}_USER", "").strip()
        target = read_target(name, host, user)
        known_hosts = os.environ.get("DEPLOY_KNOWN_HOSTS", "")
        if not known_hosts.strip():
            raise PushError("no host keys: add the secret DEPLOY_KNOWN_HOSTS to the repository's settings")
        key = os.environ.get("DEPLOY_SSH_KEY", "")
        with tempfile.TemporaryDirectory(prefix="push-deploy-") as folder, Agent(Path(folder), key) as env:
            self.ssh = Ssh(target, Path(folder), known_hosts, env, self.options)
            return self.attempt(self.ssh, self.ssh.secret)

    def attempt(self, ssh: Ssh, host_secret: str) -> dict[str, Any]:
        """Push, and follow the deploy to its end; if it was lost before it had begun, once more."""
        _, version = own_version()
        command = deploy_command(self.options, version)
        for _ in range(2):
            evidence, kind, message = self.connect(ssh, command, host_secret)
            if kind == "answered":
                assert evidence.result is not None
                return dict(evidence.result)
            if kind != "lost":
                return self.own_result("offline" if kind == "offline" else "failed", message)
            found = self.find_out(ssh, evidence, version)
            if found:
                return found
            self.console.say(f"{self.options.machine}: it was reached again; nothing had begun there: once more")
        return self.own_result("failed", "lost: the connection ended twice before anything had begun there")

    def connect(self, ssh: Ssh, command: Sequence[str], host_secret: str) -> tuple[Evidence, str, str]:
        """Push; once more if it refuses, a few times if it drops the connection."""
        began = time.monotonic()
        seen: list[str] = []
        for pause in (*PAUSES, None):
            self.console.say(f"{self.options.machine}: connecting" + (" once more" if seen else ""))
            with self.console.foreign() as on_line:
                evidence = ssh.run(command, packed_version, on_line)
            self.pause(0)
            kind, message = classify(evidence, host_secret)
            seen.append(kind)
            most = scout.WITHIN / 2 if kind == "offline" else DROPPED_TIMEOUT  # a silence has been waited for by then
            is_over = seen.count("offline") == 2 or time.monotonic() - began > most
            if kind not in ("offline", "dropped") or pause is None or is_over:
                break
            if kind == "dropped":
                self.console.say(f"{self.options.machine}: {github.plain(message)}")
            self.pause(pause)
        return evidence, kind, message

    def find_out(self, ssh: Ssh, evidence: Evidence, version: str) -> dict[str, Any] | None:
        """The connection was lost, but the machine goes on: ask what became of that. None: it had not begun there.

        A push that waits there for another one ends with its connection; one that has begun goes on.
        """
        machine = self.options.machine
        self.console.say(
            f"{machine}: the connection was lost ({github.plain(last_line(evidence.ssh_log))}); asking again"
        )
        command = status_command(self.options.root, version)
        deadline = time.monotonic() + self.options.reconnect_timeout
        seen = False
        while time.monotonic() < deadline:
            self.pause(2)
            answer = ssh.run(command, None, lambda line: None, STATUS_TIMEOUT)
            status = answer.result
            if answer.code != 0 or status is None:
                continue
            seen = True
            if status.get("running"):
                continue
            own = find_own(status.get("attempts"), evidence.started)
            if own:
                self.console.say(f"{machine}: it was reached again, and the deploy had ended there by itself")
                return own
            if not status.get("interrupted"):
                return None
            return self.own_result(
                "failed",
                "lost: it was reached again, but its work was interrupted there (was it restarted?)",
            )
        why = "its work there did not end" if seen else "it did not answer again"
        return self.own_result("failed", f"lost: {why} within {self.options.reconnect_timeout:g} s")

    def own_result(self, outcome: str, message: str) -> dict[str, Any]:
        """A result of the runner's own, with all keys of the contract."""
        return {
            "schema": github.SCHEMA,
            "machine": self.options.machine,
            "roles": self.options.role,
            "trigger": "cd",
            "outcome": outcome,
            "commit": None,
            "wanted": self.options.commit or self.options.contains,
            "previous": None,
            "release": None,
            "started": self.started,
            "seconds": round(time.monotonic() - self.clock, 2),
            "steps": [],
            "services": [],
            "healthy": None,
            "message": message,
        }


def find_own(attempts: Any, since: str) -> dict[str, Any] | None:
    """The push's own result among a machine's last attempts: the first by cd since it began there."""
    for attempt in attempts if isinstance(attempts, list) else []:
        if github.is_result(attempt) and attempt.get("trigger") == "cd" and str(attempt.get("started", "")) >= since:
            return dict(attempt)
    return None


# --- what people and GitHub see --------------------------------------------------------------------------


def in_words(result: Mapping[str, Any]) -> tuple[str, str]:
    """The outcome and the message, for people."""
    outcome, message = github.plain(result["outcome"]), github.plain(str(result.get("message", "")))
    # a user named `deploy` is a secret whose value GitHub would hide in the word "deployed"
    return "updated" if outcome == "deployed" else outcome, message


def report(console: github.Console, name: str, result: Mapping[str, Any]) -> None:
    """The line and the annotation for people, and the output for the report."""
    outcome = github.plain(result["outcome"])
    word, message = in_words(result)
    console.say(f"{name}: {word}: {message}")
    if errors.exit_code(outcome) in (0, errors.EXIT_OFFLINE):
        # the report warns of a machine that is offline, once
        console.annotate("notice", f"{name}: {word}", message)
    else:
        detail = [github.plain(line) for line in str(result.get("detail", "")).splitlines()]
        console.annotate("error", f"{name}: {word}", "\n".join([message, *detail]).strip())
    output = os.environ.get("GITHUB_OUTPUT")
    if output:
        with open(output, "a", encoding="utf-8") as file:
            file.write(f"{name}={github.packed(result).hex()}\n")


# --- command line ------------------------------------------------------------------------------------------


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1 <= value <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds between 1 and 86400")
    return value


def make_parser() -> argparse.ArgumentParser:
    parser = github.Parser(
        prog="push_deploy.py", allow_abbrev=False, description="Deploy to one machine over ssh; say what became of it."
    )
    sha = github.checked(r"[0-9a-fA-F]{4,64}", "a commit id")
    role = github.checked(r"[A-Za-z0-9_.][A-Za-z0-9_.-]*", "a role name")
    option = github.checked(r"[A-Za-z]+=[^\n]+", "an ssh option of the form Key=Value")
    root = github.checked(r"/[^\0\n]*", "an absolute path")
    parser.add_argument(
        "--machine", required=True, type=github.machine_name, metavar="NAME", help="e.g. frontend: uses FRONTEND_HOST"
    )
    parser.add_argument("--role", required=True, action="append", type=role, metavar="R", help="repeatable")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--contains", type=sha, metavar="SHA", help="deploy the newest commit, which must contain this")
    which.add_argument("--commit", type=sha, metavar="SHA", help="deploy exactly this commit")
    parser.add_argument("--full", action="store_true", help="run every step, whatever its inputs say")
    parser.add_argument(
        "--root", default="/srv/app", type=root, metavar="DIR", help="on the machine; default: /srv/app"
    )
    parser.add_argument("--host", help="default: $NAME_HOST")
    parser.add_argument("--user", help="default: $NAME_USER")
    parser.add_argument("--connect-timeout", type=seconds, default=CONNECT_TIMEOUT, metavar="S", help="default: 10")
    parser.add_argument(
        "--reconnect-timeout", type=seconds, default=RECONNECT_TIMEOUT, metavar="S", help="after a loss; default: 600"
    )
    parser.add_argument("--ssh-option", action="append", type=option, metavar="K=V", help="for ssh -o; repeatable")
    return parser


def cancel(signum: int, _: Any) -> NoReturn:
    signal.signal(signum, signal.SIG_IGN)
    raise Cancelled(signum)


def main_inner(arguments: Sequence[str]) -> int:
    """Return the exit code. Raises errors.UsageError."""
    options = make_parser().parse_args(arguments)
    console = github.Console()
    push = Push(options, console)
    result = github.fitted(push.run())
    report(console, options.machine, result)
    return errors.exit_code(result["outcome"])


def main() -> NoReturn:
    signal.signal(signal.SIGTERM, cancel)
    signal.signal(signal.SIGINT, cancel)
    try:
        sys.exit(main_inner(sys.argv[1:]))
    except errors.UsageError as error:
        print(f"push_deploy.py: {error}", file=sys.stderr)
        sys.exit(errors.EXIT_USAGE)


if __name__ == "__main__":
    main()

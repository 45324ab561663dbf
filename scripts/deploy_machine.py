#!/usr/bin/env python3
"""Bring this machine to the newest commit of its branch, or leave it as it was.

    deploy_machine.py [deploy|plan|status|history|rollback] [options]      (see --help)

A deploy, in order; `deploy()` and `bring_to_target()` below read the same way:

  1. take the lock and clean up what an interrupted deploy left
  2. fetch; find the commit to deploy; let that commit's own copy of this script take over
  3. build the release beside the running one: check out, link shared files, run the steps
  4. make it durable on disk, then swap the link `current` in one rename
  5. bring the services of this machine's roles to it
  6. confirm that they run and answer; otherwise swap back and remember the commit as bad
  7. record the result, remove releases and environments that nothing needs any more

Exit codes: 0 the machine runs what was asked for, or something newer; 2 usage or
configuration error, nothing was touched; 10 failed before the switch, the old release
serves; 11 the new release was unhealthy, the previous one serves again; 12 unhealthy and
nothing good to go back to; 75 try again later (repository out of reach, or lock held).
1 is a crash: a bug in this file.

What it owns below its root (/srv/app): repo.git releases/ current envs/ state/ and
bin/deploy_machine.py. It reads machine.ini and shared/.env and never writes to shared/.

It needs Python 3.9 or newer and nothing outside the standard library.
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 9):
    sys.stderr.write(
        "deploy_machine.py needs Python 3.9 or newer, but %s is %d.%d: install a newer python3\n"
        % (sys.executable, sys.version_info[0], sys.version_info[1])
    )
    raise SystemExit(2)

import argparse
import configparser
import contextlib
import errno
import fcntl
import filecmp
import hashlib
import importlib
import io
import json
import os
import pwd
import re
import select
import shlex
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Callable, Generic, NamedTuple, NoReturn, TypeVar

VERSION = "0.1.0"
SCHEMA = 1  # of the result, the history and every file below state/

EXIT_USAGE = 2
EXIT_CODES = dict.fromkeys(("deployed", "unchanged", "superseded", "rolled_back_on_request"), 0)
EXIT_CODES |= {"failed": 10, "rolled_back": 11, "broken": 12, "unreachable": 75, "busy": 75}

USER_AGENT = f"deploy-machine/{VERSION}"
SCRIPT_IN_REPOSITORY = "scripts/deploy_machine.py"
SYSTEMCTL = "/usr/bin/systemctl"  # absolute: sudo grants exactly these calls and no others
NGINX = "/usr/sbin/nginx"

TIME = "%Y-%m-%dT%H:%M:%SZ"  # how every time is written: UTC
QUERY_TIMEOUT = 60.0  # seconds; for commands that only read
LOCK_TIMEOUT = 1800.0
FETCH_TIMEOUT = 60.0
BOOT_TIMEOUT = 600.0  # longest that a boot holds the services back
STAYS_HEALTHY = 0.1  # seconds that a release with a health check must stay healthy: seen twice, that is
STAYS_ACTIVE = 3.0  # the same where "its process lives" is all that can be seen
STALL_TIMEOUT = 10.0  # seconds that a reader of the log (a stalled ssh session) may hold a deploy up, once
MANY_INPUTS = 500  # beyond so many files a step's inputs are recorded by one hash
GOING_BACK = "going back"  # who switches, if not `deploy` or `rollback`
TAIL_LINES = 20  # of a failed command, repeated in the message
HISTORY_BYTES = 1_000_000  # history.jsonl is cut in half beyond that

# The configuration of an application that says nothing. Its deploy.ini overrides key by key.
DEFAULTS = """\
[deploy]
branch = main
keep = 5                         ; releases kept, the running one among them
shared = .env media              ; linked from shared/ into each release
python = python3                 ; makes the virtual environments
health_timeout = 60              ; seconds until a new release must be healthy
step_timeout = 1800              ; seconds; [step NAME] timeout = ... overrides it
service_timeout = 300            ; seconds for one start or stop: a running job may end first

; Steps run in the order of their sections; a new one comes last, or right behind the
; one that it names with after =. "a|b" stands for whichever of the files is there.
; Of steps that provide the same path, the first that applies is taken. ** is every file, and
; ! takes away again what a pattern before it has named.

[step python]
inputs = pyproject.toml poetry.lock
provides = .venv
run = poetry sync --only main --no-root --no-interaction

[step python-uv]
inputs = pyproject.toml uv.lock
provides = .venv
run = uv sync --locked --no-dev --no-install-project

[step python-pip]
inputs = requirements.txt
provides = .venv
run = python -m pip install --disable-pip-version-check --requirement requirements.txt

[step node]
roles = frontend
inputs = package.json package-lock.json
provides = node_modules
run = npm ci --no-audit --no-fund

[step node-pnpm]
roles = frontend
inputs = package.json pnpm-lock.yaml
provides = node_modules
run = pnpm install --frozen-lockfile

[step node-yarn]
roles = frontend
inputs = package.json yarn.lock
provides = node_modules
run = yarn install --frozen-lockfile

[step build]
roles = frontend
inputs = package.json package-lock.json|pnpm-lock.yaml|yarn.lock frontend/
provides = static/dist
run = npm run build

[step migrate]
inputs = **/migrations/*.py poetry.lock|uv.lock|requirements.txt
when = manage.py                 ; applies only if these paths exist in the commit
run = python manage.py migrate --noinput

[step collectstatic]
roles = frontend
when = manage.py
inputs = ** !**/*.py **/settings*.py **/settings/**
provides = staticfiles
keep_days = 7                    ; files of earlier releases stay in it that long
run = python manage.py collectstatic --noinput

[role scheduler]
services = scheduler.service

[role frontend]
services = gunicorn.service
reload = nginx.service
health = http://127.0.0.1/healthz
"""

# Runs `manage.py migrate ...` inside the application's own Django. `lock`: under a lock of the database
# itself, so that two machines take turns and the second sees what the first has applied. `ahead`:
# applies nothing, but names the applied migrations that are newer than this code.
MIGRATE = """\
import os, runpy, sys, time
mode, machine, limit = sys.argv[1], sys.argv[2], float(sys.argv[3])
sys.argv, sys.path[0] = sys.argv[4:], os.getcwd()
TRY = "SELECT pg_try_advisory_xact_lock(1684369516, 1)"  # any two numbers that everybody uses
HOLDER = (
    "SELECT application_name, coalesce(to_char(backend_start AT TIME ZONE 'UTC', 'HH24:MI:SS') || ' UTC', 'some time')"
    " FROM pg_stat_activity"
    " JOIN pg_locks USING (pid) WHERE locktype = 'advisory' AND classid = 1684369516 AND objid = 1 AND granted"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)

def notice_dead_clients(connection, **_):
    # else a machine that loses its power in here would hold its locks for two hours
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            for name, value in ("idle", 10), ("interval", 5), ("count", 3):
                cursor.execute("SET tcp_keepalives_%s = %d" % (name, value))

def take_lock(own):
    # For a transaction: a pooler (PgBouncer) may give the session, and its locks, to others between transactions.
    # Asked for again and again: a session that waits inside PostgreSQL holds up CREATE INDEX CONCURRENTLY.
    end, told, database = time.monotonic() + limit, None, own.settings_dict["NAME"]
    own.set_autocommit(False)
    while True:
        with own.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")  # else it would do so, too
            cursor.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
            cursor.execute("SELECT set_config('application_name', %s, true)", ["deploy on " + machine])
            cursor.execute(TRY)
            if cursor.fetchone()[0]:
                return
            try:
                cursor.execute(HOLDER)
                found = cursor.fetchone()
            except DatabaseError:
                found = None  # not everybody may see that
        own.rollback()
        holder = "%s (connected since %s)" % (found or ("another session", "some time"))
        if time.monotonic() > end:
            sys.exit("migrations of database %s are locked by %s; waited %g s for it" % (database, holder, limit))
        if holder != told:
            told = holder
            print("waiting for %s, which migrates database %s; for at most %g s" % (told, database, limit), flush=True)
        time.sleep(0.2)

def locked(self, *args, **options):
    BaseCommand.execute = execute
    connection = connections[options.get("database") or "default"]
    if connection.vendor != "postgresql":
        if connection.vendor != "sqlite":
            print("no lock against other machines: only known for PostgreSQL, not for " + connection.vendor)
        return execute(self, *args, **options)
    own = connection.copy()  # migrations may close theirs
    try:
        take_lock(own)
        return execute(self, *args, **options)
    finally:
        own.close()

def ahead(self, *args, **options):
    from django.db.migrations.loader import MigrationLoader
    from django.db.migrations.recorder import MigrationRecorder
    recorder = MigrationRecorder(connections[options.get("database") or "default"])
    known = set(MigrationLoader(None, ignore_no_migrations=True).disk_migrations)
    newest = {}
    if recorder.has_table():
        for row in recorder.migration_qs.order_by("id"):
            # older than a known one: squashed, and its file removed
            newest[row.app] = [] if (row.app, row.name) in known else newest.get(row.app, []) + [row.name]
    print("AHEAD", *(app + "." + name for app in newest if any(a == app for a, _ in known) for name in newest[app]))

try:
    from django.core.management.base import BaseCommand
    from django.db import DatabaseError, connections
    from django.db.backends.signals import connection_created
except ImportError:
    pass  # manage.py itself will say what is missing
else:
    execute = BaseCommand.execute
    BaseCommand.execute = {"lock": locked, "ahead": ahead}[mode]
    connection_created.connect(notice_dead_clients, weak=False)
runpy.run_path(sys.argv[0], run_name="__main__")
"""

# The keys of [machine] in machine.ini, and what they are if it says nothing.
MACHINE_INI = dict.fromkeys(("name", "roles", "repo", "branch", "verify"), "")
MACHINE_INI |= {"fetch_timeout": str(FETCH_TIMEOUT), "boot_timeout": str(BOOT_TIMEOUT)}
LOCK_FILES = {"poetry.lock", "uv.lock", "package-lock.json", "pnpm-lock.yaml", "yarn.lock"}
HOW_TO_GET = {
    "poetry": "https://python-poetry.org/docs/#installation (for the deploy user: pipx install poetry)",
    "uv": "https://docs.astral.sh/uv/getting-started/installation/",
    "npm": "apt install npm, or dnf install npm",
    "git": "apt install git, or dnf install git",
    "sudo": "apt install sudo, or dnf install sudo",
}


# --- errors: one class per reason, each with its outcome ------------------------------------


class DeployError(Exception):
    """An expected failure: one line for people, and an optional `detail` of more lines."""

    outcome = "failed"

    def __init__(self, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail


def last_words(error: DeployError) -> str:
    """`: ` and the line of a failed command's output that says most: its last error, else its last line."""
    lines = [line.strip() for line in error.detail.splitlines()]
    telling = [line for line in lines if re.match(r"[\w.]*(Error|Exception): ", line)]
    return ": " + (telling or lines)[-1][:200] if lines else ""


class UsageError(DeployError):
    """Wrong arguments or configuration: exit code 2, no result, nothing was touched."""


class CommandError(DeployError):
    """A command could not be started, failed, or took too long."""


class Unreachable(DeployError):
    outcome = "unreachable"


class Busy(DeployError):
    outcome = "busy"


class Unhealthy(DeployError):
    outcome = "rolled_back"


class Broken(DeployError):
    outcome = "broken"


class Terminated(BaseException):
    """SIGTERM or SIGINT arrived. Not an Exception: nothing but main() may swallow it."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


# --- log: stderr for people, native journal entries, systemd's status line --------------------


class Log:
    """Writes each line to stderr and, on a machine that is set up, to the journal.

    A log line can never end a deploy: a closed pipe or a full journal only silences that way.
    """

    ERROR, WARNING, NOTICE, INFO = 3, 4, 5, 6
    COLOURS: Mapping[int, str] = {ERROR: "\033[31m", WARNING: "\033[33m", NOTICE: "\033[1m"}

    def __init__(self) -> None:
        self.fields: dict[str, str] = {}  # sent along with every journal entry
        self.journal: socket.socket | None = None
        self.stderr = True
        self.timings = False  # --timings: how long each command took
        self.colour = sys.stderr.isatty() and "NO_COLOR" not in os.environ

    def use_journal(self) -> None:
        """Send entries to journald as well (instead, when stderr already leads there)."""
        with contextlib.suppress(OSError):
            self.journal = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self.journal.connect("/run/systemd/journal/socket")
            self.journal.setblocking(False)
            status = os.fstat(2)
            self.stderr = os.environ.get("JOURNAL_STREAM") != f"{status.st_dev}:{status.st_ino}"
            return
        self.journal = None

    def __call__(self, message: str, level: int = INFO, **fields: str) -> None:
        message = printable(message)
        if self.stderr:
            colour = self.COLOURS.get(level, "") if self.colour else ""
            try:
                write_all(2, f"{colour}{message}{colour and chr(27) + '[0m'}\n")
            except OSError:
                self.stderr = False  # whoever listened has gone, or stalls; the deploy goes on
        if self.journal and message.strip():
            entry = {"MESSAGE": message, "PRIORITY": str(level), "SYSLOG_IDENTIFIER": "deploy-machine"}
            with contextlib.suppress(OSError):
                self.journal.send(journal_datagram({**entry, **self.fields, **fields}))

    def warning(self, message: str) -> None:
        self(message, Log.WARNING)


def write_all(descriptor: int, text: str) -> None:
    """Write to a pipe or terminal. Raises OSError also when it takes nothing for STALL_TIMEOUT seconds."""
    data = text.encode("utf-8", "backslashreplace")  # a step may print what is no text
    for start in range(0, len(data), select.PIPE_BUF):  # so much never blocks where select() says yes
        if not select.select([], [descriptor], [], STALL_TIMEOUT)[1]:
            raise TimeoutError(errno.ETIMEDOUT, "nobody reads the output")
        os.write(descriptor, data[start : start + select.PIPE_BUF])


CONTROL = re.compile(r"\x1b(?!\[[0-9;]*m)|[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """Text from elsewhere (a file's name, a step's output) without what steers a terminal; colours stay."""
    return CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def journal_datagram(fields: Mapping[str, str]) -> bytes:
    """Serialise fields in systemd's native journal protocol (length-prefixed form)."""
    parts = []
    for name, value in fields.items():
        data = value.encode("utf-8", "backslashreplace")[:60_000]
        parts.append(name.encode() + b"\n" + len(data).to_bytes(8, "little") + data + b"\n")
    return b"".join(parts)


log = Log()


def notify_systemd(message: str) -> None:
    """Send one sd_notify message, e.g. `READY=1`; does nothing when systemd did not ask."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.connect("\0" + address[1:] if address.startswith("@") else address)
        sender.send(message.encode("utf-8", "backslashreplace"))


def show_progress(text: str) -> None:
    """Show what is going on in `systemctl status` (only when started as a service)."""
    notify_systemd("STATUS=" + text.replace("\n", " "))


# --- commands ---------------------------------------------------------------------------------


class Completed(NamedTuple):
    """What a command left: exit status, and its output (`out` holds both streams if live)."""

    code: int
    out: str
    err: str


def base_environment() -> dict[str, str]:
    """The environment of every command: built, not inherited, so that each trigger has the same."""
    home = os.environ.get("HOME") or pwd.getpwuid(os.geteuid()).pw_dir
    user = pwd.getpwuid(os.geteuid()).pw_name
    path = f"{home}/.local/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    env = {"PATH": path, "HOME": home, "USER": user, "LOGNAME": user, "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"}
    return {**env, "DEPLOY_RUN": os.environ.get("DEPLOY_RUN", "")}  # by which end_leftovers() knows them


def run(
    argv: Sequence[str],
    *,
    timeout: float = QUERY_TIMEOUT,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    live: bool = False,
    check: bool = True,
    shown: str = "",
) -> Completed:
    """Run one command to its end, in its own session, for at most `timeout` seconds.

    live: print `+ command` and its output line by line as it comes.
    shown: how people see the command, if not as it is.
    check: raise CommandError unless it ends with 0. It is also raised, whatever `check` says,
    when the command cannot be started or takes too long; then its whole process group is ended.
    """
    shown = shown or shlex.join(argv)
    env = base_environment() if env is None else env
    if live:
        log(f"  + {shown}")
    began = time.monotonic()
    try:
        process = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if live else subprocess.PIPE,
            cwd=cwd,
            env=dict(env),
            start_new_session=True,
        )
    except (FileNotFoundError, PermissionError, NotADirectoryError) as error:
        raise cannot_start(argv[0], error) from None
    try:
        out, err = collect_output(process, time.monotonic() + timeout, shown if live else "")
        if process.poll() is None:
            raise CommandError(f"{shown} took longer than {timeout:g} s and was ended", tail(out + err))
    except BaseException:
        end_group(process)
        raise
    if log.timings:
        log(f"  {time.monotonic() - began:7.3f} s  {shown}")
    if check and process.returncode != 0:
        reason = f"ended with {process.returncode}"
        if process.returncode < 0:
            reason = f"was killed by {signal.Signals(-process.returncode).name}"
        raise CommandError(f"{shown} {reason}" + (f" (in {cwd})" if cwd else ""), tail(out + err))
    return Completed(process.returncode, out, err)


def cannot_start(program: str, error: OSError) -> CommandError:
    if error.errno == errno.EACCES:
        return CommandError(f"{program}: may not be run: {error.strerror}")
    hint = HOW_TO_GET.get(os.path.basename(program))
    return CommandError(f"{program}: not found" + (f"; to get it: {hint}" if hint else ""))


def collect_output(process: subprocess.Popen[bytes], deadline: float, live: str) -> tuple[str, str]:
    """Read both streams until the command ends or the deadline passes.

    live: the command as people see it, if its output is to be printed as it comes.
    """
    assert process.stdout
    began, printed = time.monotonic(), 0
    buffers = {pipe: bytearray() for pipe in (process.stdout, process.stderr) if pipe}
    waiting = list(buffers)
    while waiting and (left := deadline - time.monotonic()) > 0:
        ready = select.select(waiting, [], [], min(left, 0.5))[0]
        if not ready and process.poll() is not None:
            break  # a background process that it left holds the pipe open
        for pipe in ready:
            data = os.read(pipe.fileno(), 65536)
            if not data:
                waiting.remove(pipe)
            buffers[pipe] += data
        if live:
            printed = print_lines(buffers[process.stdout], printed, last=not waiting)
            if time.monotonic() - began >= 1:
                show_progress(f"{live} ({time.monotonic() - began:.0f} s)")
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(max(0.0, deadline - time.monotonic()))
    for pipe in buffers:
        pipe.close()
    texts = [buffer.decode("utf-8", "replace") for buffer in buffers.values()]
    return texts[0], "".join(texts[1:])


def print_lines(buffer: bytearray, start: int, last: bool) -> int:
    """Print the whole lines of `buffer` from `start` on; return where the next ones begin."""
    end = len(buffer) if last else buffer.rfind(b"\n") + 1
    if end > start:
        for line in bytes(buffer[start:end]).decode("utf-8", "replace").splitlines():
            if line.strip():
                log(f"    {line.rstrip()}")
    return max(start, end)


def tail(text: str) -> str:
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    return "\n".join(lines[-TAIL_LINES:])


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a command and everything in its process group: TERM, and KILL after five seconds.

    What runs as root through sudo cannot be signalled; systemctl ends by its own time limits.
    """
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)


T = TypeVar("T")


class Background(threading.Thread, Generic[T]):
    """Work that goes on in a thread of its own while this one does something else."""

    def __init__(self, work: Callable[[], T]) -> None:
        super().__init__(daemon=True)
        self.work = work
        self.outcome: list[T] = []
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self.outcome.append(self.work())
        except Exception as error:
            self.error = error

    def result(self) -> T:
        """Wait until it has ended; return what it returned, or raise what it raised."""
        self.join()
        if self.error:
            raise self.error
        return self.outcome[0]


# --- files ------------------------------------------------------------------------------------


def now() -> str:
    """The present time in UTC, to the second, as in 2026-01-02T03:04:05Z."""
    return time.strftime(TIME, time.gmtime())


def write_file(path: Path, text: str, mode: int = 0o644, durable: bool = True) -> None:
    """Replace a file at once: whoever reads it sees the old or the new one, whole, also after a power cut.

    durable: after a power cut it is the new one.
    """
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), mode)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # else a power cut could leave the new name without the content
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_link(link: Path, target: str) -> None:
    """Point a symbolic link somewhere else in one rename."""
    temporary = link.with_name(f".{link.name}.tmp-{os.getpid()}")
    temporary.unlink(missing_ok=True)
    os.symlink(target, temporary)
    os.replace(temporary, link)


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None if it is missing, damaged or of another schema."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):
        log.warning(f"{path} cannot be read and is ignored")
        return None
    return value if isinstance(value, dict) and value.get("schema") == SCHEMA else None


def write_json(path: Path, value: Mapping[str, Any], durable: bool = True) -> None:
    write_file(path, json.dumps({"schema": SCHEMA, **value}) + "\n", durable=durable)


def remove(path: Path) -> None:
    """Remove a file, link or tree, if it is there."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        try:
            shutil.rmtree(path)
        except PermissionError:  # a step made directories read-only
            run(["chmod", "-R", "u+rwX", str(path)])
            shutil.rmtree(path)


def is_disk_full(error: Exception) -> str:
    """The words in which an error, or the output of a command that failed, says that there was no space."""
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    text = f"{error} {getattr(error, 'detail', '')}"
    found = re.search("no space left on device|disk quota exceeded|database or disk is full", text, re.IGNORECASE)
    return found[0] if found else ""


def free_bytes(path: Path) -> int:
    return shutil.disk_usage(path).free


def megabytes(number: int) -> str:
    return f"{number / 1e6:.0f} MB" if number >= 1e7 else f"{number / 1e6:.1f} MB"


def free_space(path: Path) -> str:
    """`12 MB free`, and how many files, where their number is limited."""
    about = os.statvfs(path)
    return f"{megabytes(free_bytes(path))} free" + (f", for {about.f_favail} files" if about.f_files else "")


@contextlib.contextmanager
def removed_on_failure(path: Path) -> Iterator[Path]:
    """Leave nothing of a directory whose making did not succeed, whatever the reason."""
    try:
        yield path
    except BaseException:
        with contextlib.suppress(OSError, DeployError):
            remove(path)
        raise


def parse_env_file(text: str) -> dict[str, str]:
    """Parse a file as systemd does for EnvironmentFile= (its src/basic/env-file.c), damaged lines too.

    Comments begin with # or ;, values may be 'literal', "with \\" escapes" or bare (then a backslash
    escapes one character, and quotes in it are literal); a backslash at the end of a line continues it.
    """
    line_pattern = re.compile(r"(?s)[ \t\r\n]*(?:[#;](?:\\.|[^\\\r\n])*|(?P<key>[^\r\n][^=\r\n]*|)(?P<equals>=?))")
    quoted_pattern = re.compile(r"""(?s)[ \t]*(?:'(?P<literal>[^']*)'?|"(?P<escaped>(?:\\.|[^\\"])*)"?)""")
    bare_pattern = re.compile(r"(?s)[ \t]*(?P<text>(?:\\.?|[^\\ \t\r\n]|[ \t]+(?=[^ \t\r\n]))*)")
    result: dict[str, str] = {}
    position = 0
    while position < len(text):
        line = line_pattern.match(text, position)
        assert line
        position, value = line.end(), ""
        if not line["equals"]:
            continue
        while part := quoted_pattern.match(text, position):
            value += part["literal"] or re.sub(r'\\(?:\n|(["\\`$]))', r"\1", part["escaped"] or "")
            position = part.end()
        bare = bare_pattern.match(text, position)
        assert bare
        value += re.sub(r"\\(?:[\r\n]|(.?))", r"\1", bare["text"])
        position = bare.end()
        if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*[ \t]*", line["key"]):
            result[line["key"].strip()] = value
    return result


# --- configuration ----------------------------------------------------------------------------


class Step(NamedTuple):
    """One [step NAME] section: a command that is a function of its inputs."""

    name: str
    run: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    provides: tuple[str, ...] = ()
    when: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    after: str = ""
    timeout: float = 0.0
    keep_days: int = 0

    @property
    def makes_venv(self) -> bool:
        return ".venv" in self.provides

    @property
    def migrates(self) -> bool:
        """Whether its command is `python manage.py migrate ...`: that runs under the database's lock."""
        return self.run[1:3] == ("manage.py", "migrate")

    @property
    def syncs(self) -> bool:
        """Whether its command brings an existing environment to the lock file (and removes the rest)."""
        return "sync" in self.run[:2] or "pip-sync" in self.run[:1]


class Role(NamedTuple):
    """One [role NAME] section: what runs on a machine of that role and how to tell it is well."""

    name: str
    services: tuple[str, ...] = ()
    reload: tuple[str, ...] = ()
    health: str = ""
    check: tuple[str, ...] = ()


class Config(NamedTuple):
    """The built-in defaults, overridden by the deploy.ini of one commit."""

    branch: str
    keep: int
    shared: tuple[str, ...]
    python: str
    health_timeout: float
    service_timeout: float
    steps: tuple[Step, ...]
    roles: Mapping[str, Role]
    sets_branch: bool


KEYS = {
    "deploy": {"branch", "keep", "shared", "python", "health_timeout", "step_timeout", "service_timeout"},
    "step": {*Step._fields} - {"name"},
    "role": {*Role._fields} - {"name"},
}


def parse_config(text: str, source: str) -> Config:
    """Read a deploy.ini on top of the defaults. Raises UsageError: one line, naming `source`."""
    with mistakes_in(source):
        own, parser = read_ini(text), read_ini(DEFAULTS, text)
        check_sections(own)
        deploy = parser["deploy"]
        roles = [parse_role(name, section) for name, section in sections_of(parser, "role")]
        steps = [parse_step(name, section, deploy) for name, section in sections_of(parser, "step")]
        config = Config(
            branch=check_ref(deploy["branch"]),
            keep=int(number(deploy, "keep", least=1)),
            shared=paths(deploy, "shared"),
            python=deploy["python"],
            health_timeout=number(deploy, "health_timeout"),
            service_timeout=number(deploy, "service_timeout"),
            steps=in_order([step for step in steps if step.run]),
            roles={role.name: role for role in roles},
            sets_branch=own.has_option("deploy", "branch"),
        )
        for step in config.steps:
            for name in step.roles:
                if name not in config.roles:
                    raise UsageError(f"[step {step.name}]: roles = {name}: there is no [role {name}]")
        return config


@contextlib.contextmanager
def mistakes_in(place: object) -> Iterator[None]:
    """Turn what is wrong with a file, a section or a value into a UsageError: one line, which says where."""
    try:
        yield
    except (UsageError, configparser.Error, ValueError) as error:
        raise UsageError(f"{place}: {' '.join(str(error).split())}") from None


def read_ini(*texts: str) -> configparser.ConfigParser:
    """Parse ini files, later ones over earlier ones. Raises UsageError or configparser.Error."""
    parser = configparser.ConfigParser(
        interpolation=None, delimiters="=", inline_comment_prefixes=";", default_section="\0"
    )
    for text in texts:
        if "\0" in text:
            raise UsageError("holds a NUL character")
        parser.read_string(text)
    return parser


def check_sections(own: configparser.ConfigParser) -> None:
    for section in own.sections():
        if not re.fullmatch(r"deploy|(step|role) [A-Za-z0-9_.-]+", section):
            raise UsageError(f"unknown section [{section}]: use [deploy], [step NAME] or [role NAME]")
        known = KEYS[section.partition(" ")[0]]
        for key in own[section]:
            if key not in known:
                raise UsageError(f"[{section}]: unknown key {key!r}: use {', '.join(sorted(known))}")


def sections_of(parser: configparser.ConfigParser, kind: str) -> list[tuple[str, Mapping[str, str]]]:
    """Name and content of each [kind NAME]."""
    return [(name[len(kind) + 1 :], parser[name]) for name in parser.sections() if name.startswith(kind + " ")]


def number(section: Mapping[str, str], key: str, least: float = 0.1) -> float:
    try:
        value = float(section[key])
    except ValueError:
        value = float("nan")
    if not least <= value <= 1e6:
        raise UsageError(f"{key} = {section[key]}: not a number between {least:g} and 1000000")
    return value


def words(section: Mapping[str, str], key: str) -> tuple[str, ...]:
    """The value as a shell would split it."""
    with mistakes_in(f"{key} = {section.get(key)}"):
        return tuple(shlex.split(section.get(key, "")))


def paths(section: Mapping[str, str], key: str) -> tuple[str, ...]:
    """The value as paths, checked to stay inside the release."""
    found = tuple(section.get(key, "").split())
    for path in found:
        if path.startswith(("/", "-")) or ".." in path.split("/") or os.path.normpath(path) == ".":
            raise UsageError(f"{path}: must be a path inside the repository")
    return found


def check_ref(name: str) -> str:
    """A branch name as git itself would accept it, and nothing that could be taken for an option."""
    if not re.fullmatch(r"(?!-)(?!.*\.\.)[^\s~^:?*\[\\\x00-\x20\x7f]+(?<!\.lock)(?<![/.])", name):
        raise UsageError(f"{name!r} is not a branch name")
    return name


def parse_step(name: str, section: Mapping[str, str], deploy: Mapping[str, str]) -> Step:
    with mistakes_in(f"[step {name}]"):
        return Step(
            name=name,
            run=words(section, "run"),
            inputs=paths(section, "inputs"),
            provides=tuple(path.rstrip("/") for path in paths(section, "provides")),
            when=paths(section, "when"),
            roles=tuple(section.get("roles", "").split()),
            after=section.get("after", ""),
            timeout=number(section, "timeout") if "timeout" in section else number(deploy, "step_timeout"),
            keep_days=int(number(section, "keep_days", least=0)) if "keep_days" in section else 0,
        )


def parse_role(name: str, section: Mapping[str, str]) -> Role:
    with mistakes_in(f"[role {name}]"):
        role = Role(
            name=name,
            services=tuple(section.get("services", "").split()),
            reload=tuple(section.get("reload", "").split()),
            health=section.get("health", "").strip(),
            check=words(section, "check"),
        )
        for unit in role.services + role.reload:
            if not re.fullmatch(r"[A-Za-z0-9_@][A-Za-z0-9_.@:-]*\.(service|socket|timer|target)", unit):
                raise UsageError(f"{unit!r} is not a unit name such as gunicorn.service")
        if role.health and not re.match(r"http://[^/]+(/|$)|http\+unix://(/[^:]+):/", role.health):
            raise UsageError(f"health = {role.health}: use http://HOST/PATH or http+unix:///SOCKET:/PATH")
        return role


def in_order(steps: list[Step]) -> tuple[Step, ...]:
    """The steps in the order of their sections, those with `after` right behind the one they name."""
    ordered: list[Step] = []
    ahead = [step for step in reversed(steps) if not step.after]
    while ahead:
        ordered.append(ahead.pop())
        ahead += [step for step in reversed(steps) if step.after == ordered[-1].name]
    for step in steps:
        if step not in ordered:
            raise UsageError(f"[step {step.name}]: after = {step.after}: no such step before it")
    return tuple(ordered)


class Machine(NamedTuple):
    """This machine: machine.ini, overridden by the command line."""

    root: Path
    name: str
    roles: tuple[str, ...]
    repo: str
    branch: str  # empty: as deploy.ini says
    fetch_timeout: float
    boot_timeout: float
    verify: bool  # deploy only commits that a key in allowed_signers has signed
    is_set_up: bool  # without machine.ini no service is touched

    @property
    def mirror(self) -> Path:
        return self.root / "repo.git"

    @property
    def releases(self) -> Path:
        return self.root / "releases"

    @property
    def current(self) -> Path:
        return self.root / "current"

    @property
    def envs(self) -> Path:
        return self.root / "envs"

    @property
    def state(self) -> Path:
        return self.root / "state"


def load_machine(options: argparse.Namespace) -> Machine:
    """Read machine.ini and check the root. Raises UsageError."""
    root = find_root(options.root)
    path = root / "machine.ini"
    with mistakes_in(path if path.exists() else root):
        own = read_machine_ini(path) if path.exists() else {}
        section = {**MACHINE_INI, **own}
        branch = options.branch or section["branch"]
        if section["verify"] not in ("", "signatures"):  # anything else must not be taken for "no"
            raise UsageError(f"verify = {section['verify']}: the only way to verify is `signatures`")
        return Machine(
            root=root,
            name=section["name"] or socket.gethostname().partition(".")[0],
            roles=tuple(dict.fromkeys(options.role or section["roles"].split())),
            repo=check_url(options.repo or section["repo"]),
            branch=check_ref(branch) if branch else "",
            fetch_timeout=options.fetch_timeout or number(section, "fetch_timeout"),
            boot_timeout=number(section, "boot_timeout"),
            verify=bool(section["verify"]),
            is_set_up=bool(own),
        )


def read_machine_ini(path: Path) -> dict[str, str]:
    try:
        parser = read_ini(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(str(error.strerror)) from None
    section = dict(parser["machine"]) if parser.has_section("machine") else {}
    wrong = [name for name in parser.sections() if name != "machine"] + sorted(set(section) - set(MACHINE_INI))
    if wrong or not section:
        wrong += ["no [machine] section"]
        raise UsageError(f"{wrong[0]}: expected [machine] with {', '.join(sorted(MACHINE_INI))}")
    return section


def check_url(url: str) -> str:
    if url.startswith("-") or any(ord(char) < 33 for char in url):
        raise UsageError(f"repository {url!r}: not an address that git could fetch from")
    if re.match(r"https?://([^/@]*:[^/@]*|[^/@]{20,})@", url):  # so long a name is a token
        raise UsageError("the repository's address holds a password, which logs and `ps` would show: use a deploy key")
    return url


def find_root(given: str | None) -> Path:
    """The root, as --root, $DEPLOY_ROOT or this script's place says; it must be ours."""
    script = Path(__file__).resolve()
    is_installed = script.parent.name == "bin" and (script.parents[1] / "machine.ini").exists()
    default = script.parents[1] if is_installed else "/srv/app"
    root = Path(given or os.environ.get("DEPLOY_ROOT") or default).absolute()
    another = "name another with --root"
    with mistakes_in(root):
        if not root.is_dir():
            raise UsageError(f"no such directory; {another}, or prepare the machine with setup_machine.py")
        sudo = f"sudo -u {owner_of(root)} ..."
        if os.geteuid() == 0 and root.stat().st_uid != 0:
            # its owner can change whatever would run here, this file first of all
            raise UsageError(f"root must not run what another user can write; use: {sudo}")
        try:
            entries = {path.name for path in root.iterdir()}
        except PermissionError:
            raise UsageError(f"may not be read by this user; run as its owner: {sudo}") from None
        if entries and not entries & {"machine.ini", "state"}:
            raise UsageError(f"is neither empty nor a root of deploy_machine.py (no machine.ini); {another}")
    return root


def must_own(machine: Machine) -> None:
    if machine.root.stat().st_uid != os.geteuid():
        owner = owner_of(machine.root)
        raise UsageError(f"{machine.root}: belongs to {owner}; run this as that user: sudo -u {owner} ...")


def owner_of(path: Path) -> str:
    try:
        return path.owner()
    except KeyError:
        return f"#{path.stat().st_uid}"


# --- state and history --------------------------------------------------------------------------


class State:
    """What must outlive a deploy: inputs of the last success of each step, and bad commits."""

    def __init__(self, machine: Machine) -> None:
        self.path = machine.state / "state.json"
        data = read_json(self.path) or {}
        self.steps = texts_of(data.get("steps"))
        self.bad = texts_of(data.get("bad"), "kind", "why", "when")

    def save(self) -> None:
        write_json(self.path, {"steps": self.steps, "bad": self.bad})

    def remember_bad(self, commit: str, kind: str, why: str) -> None:
        """kind: `unhealthy`, `step` (one failed) or `person` (somebody rolled back from it)."""
        self.bad.pop(commit, None)
        self.bad[commit] = {"kind": kind, "why": why, "when": now()}
        self.bad = dict(list(self.bad.items())[-50:])
        try:
            self.save()
        except OSError as error:  # then it is tried once more; what became of the deploy matters more
            log.warning(f"{short(commit)} could not be remembered as bad: {error.strerror}")

    def forget_bad(self, commit: str) -> None:
        if self.bad.pop(commit, None):
            self.save()


def texts_of(value: Any, *needed: str) -> dict[str, dict[str, str]]:
    """Of an object of objects, the entries that hold nothing but texts, and those under the names needed."""
    return {
        name: about
        for name, about in (value.items() if isinstance(value, dict) else ())
        if isinstance(about, dict) and all(isinstance(text, str) for text in about.values()) and {*needed} <= {*about}
    }


def append_history(machine: Machine, result: Mapping[str, Any]) -> None:
    """Append one line durably; an earlier line that a power cut left half-written is closed first."""
    path = machine.state / "history.jsonl"
    if path.exists() and path.stat().st_size > HISTORY_BYTES:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        write_file(path, "".join(lines[len(lines) // 2 :]))
    with open(path, "a+b", buffering=0) as file:
        size = file.tell()
        if size:
            file.seek(-1, os.SEEK_END)
        line = b"\n" * (size > 0 and file.read(1) != b"\n") + json.dumps(result).encode() + b"\n"
        try:
            if file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            os.fsync(file.fileno())
        except OSError:
            file.truncate(size)
            raise


def read_history(machine: Machine) -> list[dict[str, Any]]:
    """All results, oldest first; damaged lines are left out."""
    results = []
    with contextlib.suppress(FileNotFoundError):
        for line in (machine.state / "history.jsonl").read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                value = json.loads(line)
                if is_result(value):
                    results.append(value)
    return results


def is_result(value: Any) -> bool:
    """Whether a value is a result as make_result() writes it, as far as it is shown."""
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        return False
    types: dict[str, Any] = dict.fromkeys(("started", "trigger", "outcome", "message"), str)
    types |= {"commit": (str, type(None)), "seconds": (int, float)}
    return all(isinstance(value.get(key), kind) for key, kind in types.items()) and abs(value["seconds"]) < 1e9


# --- lock ---------------------------------------------------------------------------------------


class Running:
    """state/running.json: who holds the lock and what it is doing. Left behind = interrupted."""

    def __init__(self, machine: Machine) -> None:
        self.path = machine.state / "running.json"

    def read(self) -> dict[str, Any] | None:
        """What it says; of one that a power cut has damaged, that there was a deploy."""
        return read_json(self.path) or ({"stage": "unknown"} if self.path.exists() else None)

    def write(self, **fields: Any) -> None:
        # not durable: after a power cut in any stage the next run does the same
        write_json(self.path, {**(self.read() or {}), **fields}, durable=False)

    def clear(self) -> None:
        self.path.unlink(missing_ok=True)


class Intent(NamedTuple):
    """state/switching.json: a switch that is begun and not confirmed. It alone says what is still owed.

    Written before the switch, removed when the release was seen to be healthy: so nothing of it rests on a clock.
    """

    to: str  # the release that the services are to run
    good: str  # the one to go back to if it is not healthy; empty: there is none
    by: str  # deploy, rollback, or going back
    why: str = ""  # going back: what is wrong with the release that is left


def read_intent(machine: Machine) -> Intent | None:
    found = read_json(machine.state / "switching.json") or {}
    fields = [found.get(name, "") for name in Intent._fields]
    return Intent(*fields) if fields[0] and all(isinstance(field, str) for field in fields) else None


def write_intent(machine: Machine, intent: Intent) -> None:
    # not durable: the sync of the switch makes it so
    write_json(machine.state / "switching.json", intent._asdict(), durable=False)


def clear_intent(machine: Machine) -> None:
    (machine.state / "switching.json").unlink(missing_ok=True)


@contextlib.contextmanager
def hold_lock(machine: Machine, options: argparse.Namespace, while_waiting: Callable[[str], None]) -> Iterator[int]:
    """Hold the machine's lock and yield its descriptor; its file is never removed.

    The kernel frees the lock with the process, so a killed deploy leaves none behind.

    Waits at most --lock-timeout seconds, saying for whom; then raises Busy. `while_waiting` is
    called with the stage that the holder has reached.
    """
    descriptor = os.open(machine.state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    inherited = int(os.environ.pop("DEPLOY_LOCK_FD", "-1"))
    if inherited >= 0 and os.path.sameopenfile(inherited, descriptor):  # hand_over() led here
        os.close(descriptor)
        descriptor = inherited
        os.set_inheritable(descriptor, False)
    try:
        wait_for_lock(descriptor, machine, options.lock_timeout, while_waiting)
        yield descriptor
    finally:
        os.close(descriptor)


def wait_for_lock(descriptor: int, machine: Machine, timeout: float, while_waiting: Callable[[str], None]) -> None:
    deadline = time.monotonic() + timeout
    told = ""
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            holder = Running(machine).read() or {}
            pid, trigger, since = (holder.get(key, "unknown") for key in ("pid", "trigger", "started"))
            who = f"process {pid} ({trigger}, since {since})"
            while_waiting(str(holder.get("stage", "")))
        if time.monotonic() >= deadline:
            raise Busy(f"another deploy holds the lock: {who}; waited {timeout:g} s for it")
        if who != told:
            log(f"waiting for another deploy to end: {who}; for at most {timeout:g} s")
            show_progress(f"waiting for another deploy: {who}")
            told = who
        time.sleep(0.2)


# --- git ----------------------------------------------------------------------------------------


class Entry(NamedTuple):
    """One path of a commit: mode as in `100644`, kind (blob, tree, commit) and object id."""

    mode: str
    kind: str
    oid: str


Tree = Mapping[str, Entry]


class Commit(NamedTuple):
    """The commit to deploy: its id, every path in it, and its configuration."""

    id: str
    tree: Tree
    config: Config
    declares_python_project: bool  # a pyproject.toml that only configures tools does not


class Mirror:
    """The bare mirror of the application's repository; only this branch, fetched on demand."""

    def __init__(self, path: Path, url: str) -> None:
        self.path, self.url = path, url

    def environment(self) -> dict[str, str]:
        ssh = "ssh -o BatchMode=yes -o ConnectTimeout=10 -o ServerAliveInterval=10 -o ServerAliveCountMax=3"
        env = {**base_environment(), "GIT_TERMINAL_PROMPT": "0", "GIT_SSH_COMMAND": ssh}
        if "SSH_AUTH_SOCK" in os.environ:  # a person with an agent
            env["SSH_AUTH_SOCK"] = os.environ["SSH_AUTH_SOCK"]
        return env

    def git(self, *arguments: str, timeout: float = QUERY_TIMEOUT, check: bool = True) -> Completed:
        return run(["git", f"--git-dir={self.path}", *arguments], env=self.environment(), timeout=timeout, check=check)

    def prepare(self) -> None:
        """Make the mirror if there is none, and remove locks that a killed git left.

        Only our lock's holder writes to the mirror, so a git lock found now belongs to nobody.
        """
        config = self.path / "config"
        if not (self.path / "HEAD").exists():
            remove(self.path)
        if not config.exists() or b"autoDetach" not in config.read_bytes():  # the last that is set below
            run(["git", "init", "--quiet", "--bare", str(self.path)], env=self.environment())
            # loose objects and refs reach the disk with the call that wrote them
            setting = ("core.fsync", "all") if git_version() >= [2, 36] else ("core.fsyncObjectFiles", "true")
            self.git("config", *setting)
            self.git("config", "gc.autoDetach", "false")
        self.remove_leftovers()

    def remove_leftovers(self, also_objects: bool = False) -> None:
        """Remove git's locks and temporary files; those of single objects only if asked, as it takes longer."""
        for folder, folders, names in os.walk(self.path):
            if os.path.basename(folder) == "objects" and not also_objects:
                folders[:] = [name for name in folders if len(name) > 2]  # not the hundreds that only hold objects
            for name in names:
                if name.endswith(".lock") or name.startswith("tmp_"):
                    os.unlink(os.path.join(folder, name))

    def fetch(self, branch: str, timeout: float) -> str:
        """Fetch the branch and return its newest commit. Raises Unreachable or UsageError."""
        refspec = f"+refs/heads/{branch}:refs/heads/{branch}"
        try:
            options = ("--quiet", "--no-tags", "--no-auto-maintenance")  # that is tidy()'s, and may take minutes
            done = self.git("fetch", *options, "--", self.url, refspec, timeout=timeout, check=False)
            if done.code != 0:  # git leaves what it has got so far, and with it a full disk
                self.remove_leftovers(also_objects=True)
        except CommandError as error:
            self.remove_leftovers(also_objects=True)
            if "took longer" not in str(error):
                raise
            raise Unreachable(f"{self.url}: git fetch was not done within {timeout:.1f} s", error.detail) from None
        if done.code != 0 and "couldn't find remote ref" in done.err:
            raise UsageError(f"{self.url}: has no branch {branch!r}")
        if done.code != 0:
            failed = Unreachable(f"{self.url}: could not be fetched: {reason_of(done.err)}", tail(done.err))
            if is_disk_full(failed):
                raise DeployError(f"{self.url}: could not be fetched: {is_disk_full(failed)}", failed.detail)
            raise failed
        tip = self.resolve(f"refs/heads/{branch}")
        if not tip:
            raise CommandError(f"git fetch succeeded but {branch} leads to no commit")
        return tip

    def is_reachable(self, branch: str, timeout: float) -> bool:
        """Whether the repository itself answers, whatever state the mirror is in."""
        command = ["git", "ls-remote", "--quiet", "--", self.url, f"refs/heads/{branch}"]
        try:
            return run(command, env=self.environment(), cwd=Path("/"), timeout=timeout, check=False).code == 0
        except CommandError:
            return False

    def is_sound(self) -> bool:
        """Whether every object is there and whole."""
        try:
            return self.git("fsck", "--full", "--no-dangling", "--no-progress", timeout=600, check=False).code == 0
        except CommandError:
            return True  # took too long: nobody knows

    def tidy(self) -> None:
        """Pack what many fetches have left, if git finds it worth while."""
        self.git("gc", "--auto", "--quiet", timeout=600)

    def resolve(self, name: str) -> str:
        """The full id of a commit; empty if there is none of that name."""
        return self.git("rev-parse", "--quiet", "--verify", f"{name}^{{commit}}", check=False).out.strip()

    def contains(self, newer: str, older: str) -> bool:
        """Whether `older` is `newer` or one of its ancestors. Raises CommandError if git cannot tell."""
        if newer == older:
            return True
        done = self.git("merge-base", "--is-ancestor", older, newer, check=False)
        # a commit that was rewritten away may be gone from a mirror that is whole: it contains nothing
        if done.code > 1 and self.resolve(older) and (self.resolve(newer) or not self.is_sound()):
            raise CommandError(f"git merge-base {older} {newer} ended with {done.code}", tail(done.err))
        return done.code == 0

    def count(self, older: str, newer: str) -> int:
        done = self.git("rev-list", "--count", f"{older}..{newer}", check=False)
        return int(done.out) if done.code == 0 else 0

    def tree(self, commit: str) -> dict[str, Entry]:
        """Every path of a commit, directories included (git has a content id for each)."""
        tree = {}
        for record in self.git("ls-tree", "-r", "-t", "-z", commit).out.split("\0"):
            if record:
                about, _, path = record.partition("\t")
                tree[path] = Entry._make(about.split(" "))
        return tree

    def size(self, commit: str) -> int:
        """The bytes of a commit's files."""
        entries = self.git("ls-tree", "-r", "-l", "-z", commit).out
        return sum(map(int, re.findall(r"(?:^|\0)\d+ blob \w+ +(\d+)\t", entries)))

    def read(self, oid: str) -> str:
        return self.git("cat-file", "blob", oid).out

    def check_out(self, commit: Commit, destination: Path) -> None:
        """Write the complete tree of a commit below `destination`, submodules and LFS files too."""
        lfs = self.lfs_options(commit.tree)
        index = destination.parent / f".{destination.name}.index"
        env = {**self.environment(), "GIT_INDEX_FILE": str(index)}
        common = ["git", f"--git-dir={self.path}", f"--work-tree={destination}", "-c", "core.bare=false", *lfs]
        try:
            # checkout.workers=0: as many as there are processors, where git is new enough (2.32)
            run([*common, "-c", "checkout.workers=0", "read-tree", "--reset", "-u", commit.id], env=env, timeout=600)
            if any(entry.kind == "commit" for entry in commit.tree.values()):
                self.git("config", "remote.origin.url", self.url)  # relative submodule addresses start here
                update = [*common, "submodule", "--quiet", "update", "--init", "--force", "--recursive"]
                run(update, env=env, cwd=destination, timeout=600, live=True)
        except CommandError as error:
            # git says neither why it could not write a file, nor does it leave what it wrote of it
            unwritten = "unable to write file" in error.detail and free_bytes(destination) < self.size(commit.id)
            if is_disk_full(error) or unwritten or free_bytes(destination) < 1_000_000:
                words = is_disk_full(error) or os.strerror(errno.ENOSPC)
                raise CommandError(f"checking out: {words}", error.detail) from None
            raise
        finally:
            index.unlink(missing_ok=True)

    def lfs_options(self, tree: Tree) -> list[str]:
        """git options that fetch Git LFS files, if the commit has any; an error without git-lfs."""
        attributes = [path for path in tree if path.rpartition("/")[2] == ".gitattributes"]
        if not any("filter=lfs" in self.read(tree[path].oid) for path in attributes):
            return []
        if not is_installed("git-lfs"):
            missing = "git-lfs is not installed here: apt install git-lfs"
            raise DeployError(f"the repository keeps files in Git LFS but {missing}")
        self.git("config", "remote.origin.url", self.url)
        lfs = {"process": "git-lfs filter-process", "required": "true", "smudge": "git-lfs smudge -- %f"}
        return git_options({f"filter.lfs.{key}": value for key, value in lfs.items()})


def git_options(settings: Mapping[str, str]) -> list[str]:
    """The options of one git command that has these settings."""
    return [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]


def is_installed(program: str) -> bool:
    return bool(shutil.which(program, path=base_environment()["PATH"]))


def git_version() -> list[int]:
    """Its first two numbers."""
    return [int(part) for part in re.findall(r"\d+", run(["git", "--version"]).out)[:2]]


def verify_signature(machine: Machine, mirror: Mirror, commit: str) -> None:
    """Raise DeployError unless a key in allowed_signers has signed the commit (verify = signatures).

    Only machine.ini can ask for it: a commit's own deploy.ini could switch off its own verification.
    """
    signers = machine.root / "allowed_signers"
    if not machine.verify:
        return
    if not signers.is_file() or not signers.stat().st_size:
        raise DeployError(f"verify = signatures, but {signers} is missing or empty: setup_machine.py --allowed-signers")
    if git_version() < [2, 34] or not is_installed("ssh-keygen"):
        raise DeployError("verify = signatures needs git 2.34 or newer, and ssh-keygen")
    settings = {
        "gpg.format": "ssh",
        "gpg.ssh.allowedSignersFile": str(signers),
        "gpg.ssh.program": "ssh-keygen",
        "gpg.program": "false",  # the keyring of this user is not asked
        "gpg.x509.program": "false",
    }
    query = ["log", "-1", "--no-show-signature", "--format=%G?%n%GS%n%GK", commit]
    told = mirror.git(*git_options(settings), *query).out.split("\n")
    status, signer, key = (line.strip() for line in [*told, "", "", ""][:3])
    if status != "G":  # good, and by a key that is in the file
        other_key = f"is signed by {key}, which is not valid in {signers}"
        wrong = {"N": "is not signed", "U": other_key}.get(status, "has a signature that is not good")
        raise DeployError(f"{short(commit)} {wrong}; nothing of it was run")
    log(f"{short(commit)} is signed by {signer} ({key})")


def reason_of(stderr: str) -> str:
    """The line of git's or ssh's complaint that says most."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    general = ("fatal: Could not read from remote", "Please make sure", "and the repository exists")
    telling = [line for line in lines if not line.startswith(general)]
    return (telling or lines or ["git said nothing"])[-1]


# --- releases and kept environments ---------------------------------------------------------------


class Release(NamedTuple):
    """One directory below releases/. It is complete if .release.json, written last, is there."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def meta(self) -> dict[str, Any]:
        return read_json(self.path / ".release.json") or {}

    @property
    def is_complete(self) -> bool:
        return bool(self.meta)

    @property
    def commit(self) -> str:
        return str(self.meta.get("commit", ""))

    @property
    def is_good(self) -> bool:
        """Whether it was once confirmed: switched to, and healthy."""
        return bool(self.meta.get("confirmed"))

    def confirm(self) -> None:
        """Note that it serves and is healthy now."""
        write_json(self.path / ".release.json", {**self.meta, "confirmed": now()})


def current_release(machine: Machine) -> Release | None:
    try:
        release = Release(machine.releases / os.path.basename(os.readlink(machine.current)))
    except OSError:
        return None
    return release if release.is_complete else None


def all_releases(machine: Machine) -> list[Release]:
    """The complete ones, oldest first."""
    found = [Release(path) for path in sorted(machine.releases.glob("[!.]*"))]
    return [release for release in found if release.is_complete]


def good_release_before(machine: Machine, release: Release | None) -> Release | None:
    """The newest confirmed release that is older than the given one."""
    good = [other for other in all_releases(machine) if other.is_good and (not release or other.name < release.name)]
    return good[-1] if good else None


def new_directory(parent: Path, before: str, behind: str, later_than: str = "") -> Path:
    """Make an empty directory that has its time in its name: the present one, or the next that is free."""
    seconds = time.time()
    while True:
        path = parent / (before + time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(seconds)) + behind)
        if path.name > later_than and not path.exists():
            path.mkdir(mode=0o755)
            return path
        seconds += 1


def new_release(machine: Machine, commit: str) -> Release:
    """An empty directory for a release of the commit; names sort by time, whatever the clock does."""
    newest = max((path.name for path in machine.releases.iterdir()), default="")
    return Release(new_directory(machine.releases, "", f"-{commit[:12]}", later_than=newest))


def switch(machine: Machine, release: Release) -> None:
    """Make the release the current one: everything on disk first, then one rename."""
    # without this a power cut right after the rename could leave empty files behind a valid link
    run(["sync", "--file-system", str(machine.root)], timeout=600)
    replace_link(machine.current, f"releases/{release.name}")
    sync_directory(machine.root)


def new_environment(machine: Machine, step: Step, key: str) -> Path:
    return new_directory(machine.envs, f"{step.name}-{key}-", "")


def environments(machine: Machine, step: Step, key: str = "?" * 12) -> dict[Path, dict[str, Any]]:
    """The complete environments of the step (of inputs with this key) with their marks, the last one made first."""
    found = sorted(machine.envs.glob(f"{step.name}-{key}-*"), key=lambda path: path.name[-16:], reverse=True)
    return {path: mark for path in found if (mark := read_json(path / ".complete"))}


def mark_complete(environment: Path, fingerprint: Mapping[str, str], free_before: int) -> None:
    """The last thing written: after a power cut a half-made environment must not look whole.

    free_before: the free bytes before it was made; what it took tells the next deploy what it needs.
    """
    size = max(0, free_before - free_bytes(environment))
    run(["sync", "--file-system", str(environment)], timeout=600)
    write_json(environment / ".complete", {"fingerprint": dict(fingerprint), "made": now(), "bytes": size})


def discard(path: Path) -> None:
    """Remove a release or environment, its mark first: half-removed, it must not look complete."""
    for mark in (".release.json", ".complete"):
        (path / mark).unlink(missing_ok=True)
    remove(path)


def clean_up(machine: Machine) -> bool:
    """Remove what no complete deploy owns; return whether the deploy before this one was interrupted.

    Runs under the lock, so nothing is being made now.
    """
    left = Running(machine).read() or {}
    is_own = "DEPLOY_TAKEN_OVER" in os.environ and left.get("pid") == os.getpid()  # hand_over() led here
    if left and not is_own:
        who, stage = f"{left.get('trigger')}, {left.get('started')}", left.get("stage", "start")
        log.warning(f"an earlier deploy ({who}) was interrupted at: {stage}; cleaning up")
        end_leftovers(run_id(left))
    current = os.path.basename(os.readlink(machine.current)) if machine.current.is_symlink() else ""
    intent = read_intent(machine)
    if intent and intent.to != current and intent.by != GOING_BACK:
        clear_intent(machine)  # nothing was switched
    for path in machine.releases.iterdir():
        if path.name != current and not Release(path).is_good:  # never switched to, or given up
            remove(path)
    for path in machine.envs.iterdir():
        if not read_json(path / ".complete"):
            remove(path)
    for directory in (machine.root, machine.state, machine.state / "scripts", machine.root / "bin"):
        for path in directory.glob(".*.tmp-*"):
            remove(path)
    for path in machine.releases.glob("*/..release.json.tmp-*"):
        remove(path)
    remove(machine.root / "repo.git.new")
    return bool(left) and not (is_own and not left.get("interrupted"))


def run_id(about: Mapping[str, Any]) -> str:
    """What tells the processes of one deploy from all others: its process id and start."""
    return f"{about.get('pid')} {about.get('started')}"


def end_leftovers(run: str) -> None:
    """Kill what a killed deploy left running: its commands carry its DEPLOY_RUN."""
    marker = f"DEPLOY_RUN={run}".encode()
    for path in Path("/proc").glob("[0-9]*/environ"):
        pid = int(path.parent.name)
        with contextlib.suppress(OSError):
            if run and pid != os.getpid() and marker in path.read_bytes().split(b"\0"):
                os.kill(pid, signal.SIGKILL)


def prune(machine: Machine, keep: int) -> None:
    """Keep the newest good releases, the current one always, and the environments they use."""
    current = current_release(machine)
    good = [release for release in all_releases(machine) if release.is_good and release != current]
    kept_releases = good[-(keep - 1) :] if keep > 1 else []
    for release in all_releases(machine):
        if release != current and release not in kept_releases:
            discard(release.path)
    used = {name for release in all_releases(machine) for name in release.meta.get("envs", [])}
    for path in machine.envs.iterdir():
        if path.name not in used:
            discard(path)


# --- steps ----------------------------------------------------------------------------------------


class Decision(NamedTuple):
    """What is to be done with one step in one commit, and why."""

    step: Step
    needed: bool
    why: str
    key: str
    fingerprint: Mapping[str, str]
    environment: Path | None = None


def decide(machine: Machine, commit: Commit, state: State, full: bool) -> list[Decision]:
    """Decide on each step that applies to this machine and commit, in order.

    Raises DeployError if a lock file is missing where one is expected.
    """
    decisions = []
    provided: set[str] = set()
    for step in commit.config.steps:
        if step.roles and not set(step.roles) & set(machine.roles):
            continue
        if provided & set(step.provides) or not applies(step, commit):
            continue
        provided |= set(step.provides)
        decisions.append(decide_step(machine, step, fingerprint_of(step, commit), state, full))
    return decisions


def is_pattern(path: str) -> bool:
    return path.startswith("!") or any(char in path for char in "*?[")


def applies(step: Step, commit: Commit) -> bool:
    """Whether the paths that the step names are in the commit. Raises DeployError: no lock file."""
    named = [path for path in step.inputs + step.when if not is_pattern(path)]
    missing = [path for path in named if not present(path, commit.tree)]
    if missing and set(missing) < set(named) and set(missing) <= LOCK_FILES and expects_lock(step, commit):
        rest = " ".join(path for path in named if path not in missing)
        raise DeployError(f"step {step.name}: {rest} is in the commit but {missing[0]} is not: commit the lock file")
    return not missing


def present(path: str, tree: Tree) -> list[str]:
    """Which of the alternatives `a|b` the commit has."""
    return [name for name in path.split("|") if name.rstrip("/") in tree]


def expects_lock(step: Step, commit: Commit) -> bool:
    """Whether no other step makes the same from another lock file that is there."""
    if step.makes_venv and not commit.declares_python_project:
        return False
    rivals = [other for other in commit.config.steps if set(other.provides) & set(step.provides)]
    return not any(all(present(path, commit.tree) for path in other.inputs if not is_pattern(path)) for other in rivals)


def pattern_to_regex(pattern: str) -> re.Pattern[str]:
    """`*` and `?` stay within one directory, `**/` stands for any number of them, `[ab]` as in sh."""
    regex = ""
    for token in re.findall(r"\*\*/|\*\*|\*|\?|\[[^\]]+\]|.", pattern):
        if token in ("**/", "**", "*", "?"):
            regex += {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}[token]
        elif len(token) > 1:
            regex += "[" + re.sub(r"^!", "^", token[1:-1]).replace("\\", r"\\") + "]"
        else:
            regex += re.escape(token)
    return re.compile(regex)


def fingerprint_of(step: Step, commit: Commit) -> dict[str, str]:
    """Everything that the step's result depends on: name -> content id or version.

    Empty if the step names no inputs: nobody can tell what it depends on, so it always runs.
    """
    if not step.inputs:
        return {}
    found = matching(step.inputs, commit.tree)
    if len(found) > MANY_INPUTS:
        digest = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
        found = {f"a file of {' '.join(step.inputs)}": digest}
    found["run line"] = shlex.join(step.run)
    if step.makes_venv:
        found["python version"] = python_version(commit.config.python)
    if "node_modules" in step.provides:
        found["node version"] = run(["node", "--version"]).out.strip()
    return found


def matching(inputs: Sequence[str], tree: Tree) -> dict[str, str]:
    """The paths of a commit that inputs name, with their content ids; `!` takes away what came before."""
    found: dict[str, str] = {}
    for item in inputs:
        if not is_pattern(item):
            found.update({name: tree[name.rstrip("/")].oid for name in present(item, tree)})
            continue
        regex = pattern_to_regex(item.lstrip("!"))
        if item.startswith("!"):
            found = {path: oid for path, oid in found.items() if not regex.fullmatch(path)}
        else:
            files = ((path, entry.oid) for path, entry in tree.items() if entry.kind != "tree")
            found.update((path, oid) for path, oid in files if regex.fullmatch(path))
    return found


def python_version(python: str) -> str:
    """Version and processor, e.g. `3.11.2 x86_64`, of the interpreter that makes environments."""
    found = shutil.which(python, path=base_environment()["PATH"])
    if found and os.path.realpath(found) == os.path.realpath(sys.executable):
        return f"{sys.version.split()[0]} {os.uname().machine}"
    code = "import platform as p; print(p.python_version(), p.machine())"
    return run([python, "-c", code]).out.strip()


def decide_step(machine: Machine, step: Step, fingerprint: dict[str, str], state: State, full: bool) -> Decision:
    """Run it unless its inputs are what they were, or unless what it makes of these inputs is kept here."""
    key = hashlib.sha256(json.dumps([step.provides, fingerprint], sort_keys=True).encode()).hexdigest()[:12]
    before = state.steps.get(step.name)
    if not fingerprint:
        why = "has no inputs, so it always runs"
    elif full:
        why = "--full"
    elif step.provides and (kept := environments(machine, step, key)):
        inputs = ", ".join(name for name in fingerprint if " " not in name)
        return Decision(step, False, f"kept from before: same {shorten(inputs)}", key, fingerprint, next(iter(kept)))
    elif before is None:
        why = "first run on this machine"
    else:
        why = changes(before, fingerprint)
        if not why and step.provides:
            why = f"{' '.join(step.provides)} is not kept here any more"
    return Decision(step, bool(why), why or "inputs did not change", key, fingerprint)


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """`poetry.lock changed`: the difference of two fingerprints in words."""
    groups = {
        "changed": [name for name in after if before.get(name, after[name]) != after[name]],
        "is new": [name for name in after if name not in before],
        "is gone": [name for name in before if name not in after],
    }
    return "; ".join(f"{shorten(', '.join(names))} {verb}" for verb, names in groups.items() if names)


def shorten(text: str, limit: int = 120) -> str:
    text = printable(" ".join(text.split()))
    return text if len(text) <= limit else text[: limit - 2].rpartition(",")[0] + ", ..."


def step_environment(machine: Machine, release: Release, commit: str) -> dict[str, str]:
    """What steps and checks see: shared/.env as the services do, and where they are."""
    env = base_environment()
    with contextlib.suppress(FileNotFoundError):
        path = machine.root / "shared" / ".env"
        env.update(parse_env_file(path.read_text(encoding="utf-8", errors="replace")))
        if any("\0" in value for value in env.values()):
            raise DeployError(f"{path} holds a NUL character: systemd would not read it, either")
    venv = release.path / ".venv"
    if venv.exists():
        env["VIRTUAL_ENV"] = env["UV_PROJECT_ENVIRONMENT"] = str(venv.resolve())
        env["PATH"] = f"{venv.resolve()}/bin:{env['PATH']}"
    env.update(DEPLOY_COMMIT=commit, DEPLOY_ROLE=" ".join(machine.roles), DEPLOY_RELEASE=release.name)
    return env


def run_step(machine: Machine, release: Release, commit: Commit, decision: Decision) -> Path | None:
    """Run one step in the release; return the environment that now keeps what it provides."""
    step = decision.step
    if step.makes_venv and decision.fingerprint:
        return make_venv(machine, release, commit, decision)
    free = free_bytes(machine.root)
    run_command(machine, release, commit, step)
    for path in step.provides:
        if not (release.path / path).exists():
            raise DeployError(
                f"{shlex.join(step.run)} succeeded but did not make {path}, which [step {step.name}] provides"
            )
    if not step.provides or not decision.fingerprint or leads_outside(release, step):
        return None
    with removed_on_failure(new_environment(machine, step, decision.key)) as environment:
        for path in step.provides:
            (environment / path).parent.mkdir(parents=True, exist_ok=True)
            os.rename(release.path / path, environment / path)
        mark_complete(environment, decision.fingerprint, free)
    link_environment(release, step, environment)
    return environment


def run_command(machine: Machine, release: Release, commit: Commit, step: Step) -> None:
    """Run a step's command in the release; whatever it leaves running after a failure is ended."""
    argv = step.run
    if step.migrates:
        limit = 0.9 * step.timeout  # so that who holds the lock is told before the step's own limit ends it
        argv = (step.run[0], "-c", MIGRATE, "lock", machine.name, f"{limit:g}", *step.run[1:])
    env = step_environment(machine, release, commit.id)
    try:
        run(argv, cwd=release.path, env=env, timeout=step.timeout, live=True, shown=shlex.join(step.run))
    except BaseException:
        end_leftovers(os.environ["DEPLOY_RUN"])
        raise


def schema_ahead(machine: Machine, release: Release) -> str:
    """A sentence about applied migrations that are newer than the release's code; empty if there are none.

    Asks the application itself, for at most 20 seconds; a database that does not answer says nothing.
    """
    step = next((step for step in config_of_release(release).steps if step.migrates), None)
    if not step or not (release.path / "manage.py").exists():
        return ""
    try:
        argv = (step.run[0], "-c", MIGRATE, "ahead", machine.name, "0", *step.run[1:])
        env = step_environment(machine, release, release.commit)
        done = run(argv, cwd=release.path, env=env, timeout=20, shown="asking for migrations that are not in this code")
    except DeployError:
        return ""
    found = re.findall(r"^AHEAD (.+)$", done.out, re.MULTILINE)
    return f"the database is ahead of {short(release.commit)}: {shorten(found[-1].replace(' ', ', '))}" if found else ""


def leads_outside(release: Release, step: Step) -> bool:
    """npm workspaces: links in node_modules that lead to the release's own packages.

    Such a tree belongs to its release and cannot be kept for others.
    """
    for path in step.provides:
        top = release.path / path
        for link in [*top.glob("*"), *top.glob("@*/*")] if top.is_dir() else []:
            if link.is_symlink() and not str(link.resolve()).startswith(f"{top.resolve()}/"):
                log(f"  {link.relative_to(release.path)} leads out of {path}: it stays in this release, unshared")
                return True
    return False


def link_environment(release: Release, step: Step, environment: Path) -> None:
    """Let the release's paths lead to the environment that keeps them."""
    for path in step.provides:
        place = release.path / path
        remove(place)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.symlink(os.path.relpath(environment / path, place.parent), place)


def make_venv(machine: Machine, release: Release, commit: Commit, decision: Decision) -> Path:
    """Make a virtual environment at its final place, from a copy of the nearest one if that helps."""
    nearest = nearest_venv(machine, decision) if decision.step.syncs else None
    if nearest:
        try:
            return fill_venv(machine, release, commit, decision, nearest)
        except CommandError as error:
            if is_disk_full(error):
                raise
            log.warning(f"  the copy could not be used ({error}); building it fresh")
    return fill_venv(machine, release, commit, decision, None)


def fill_venv(machine: Machine, release: Release, commit: Commit, decision: Decision, nearest: Path | None) -> Path:
    """Make the virtual environment, empty or as a copy of `nearest`, and run the step in it."""
    step, free = decision.step, free_bytes(machine.root)
    with removed_on_failure(new_environment(machine, step, decision.key)) as environment:
        venv = environment / ".venv"
        if nearest:
            log(f"  starting from a copy of {nearest.parent.name}")
            # a copy, never hard links: installers write into files in place
            run(["cp", "-a", "--reflink=auto", str(nearest), str(venv)], timeout=step.timeout)
            relocate_venv(venv, str(nearest), str(venv))
        else:
            pip = [] if "pip" in step.run else ["--without-pip"]
            run([commit.config.python, "-m", "venv", *pip, str(venv)], timeout=step.timeout)
        link_environment(release, step, environment)
        run_command(machine, release, commit, step)
        # services may not write here: without this they would compile at every start
        workers = (
            "1" if nearest else "0"
        )  # 0: one for each processor, whose start takes longer than to compile a little
        compile_all = [f"{venv}/bin/python", "-m", "compileall", "-q", "-j", workers, f"{venv}/lib"]
        run(compile_all, timeout=step.timeout, check=False)
        mark_complete(environment, decision.fingerprint, free)
    return environment


def nearest_venv(machine: Machine, decision: Decision) -> Path | None:
    """The newest kept environment of this step for the same interpreter."""
    for path, mark in environments(machine, decision.step).items():
        if mark["fingerprint"].get("python version") == decision.fingerprint["python version"]:
            return path / ".venv"
    return None


def relocate_venv(venv: Path, old: str, new: str) -> None:
    """Correct the absolute paths that a virtual environment holds of itself."""
    for path in [venv / "pyvenv.cfg", *(venv / "bin").iterdir(), *venv.glob("lib/python*/site-packages/*.pth")]:
        if path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            if old.encode() in data:
                path.write_bytes(data.replace(old.encode(), new.encode()))


def keep_old_files(release: Release, previous: Release, step: Step) -> dict[str, float]:
    """Pages loaded before a switch still ask for the assets of earlier releases: link them in.

    Returns path -> when it was superseded, for those that are not older than the step's keep_days.
    """
    known: dict[str, float] = previous.meta.get("old_files", {})
    oldest = time.time() - step.keep_days * 86400
    kept_files = {}
    for provided in step.provides:
        for folder, _, names in os.walk(previous.path / provided):
            for old in (os.path.join(folder, name) for name in names):
                path = os.path.relpath(old, previous.path)
                since, new = known.get(path, time.time()), release.path / path
                if since > oldest and (path in known or not new.exists()):
                    kept_files[path] = since
                    new.parent.mkdir(parents=True, exist_ok=True)
                    with contextlib.suppress(FileExistsError):
                        os.link(old, new, follow_symlinks=False)
    return kept_files


def keep_files_of(left: Release, config: Config, release: Release) -> None:
    """Going back: pages of the release that is left still ask for its assets, too."""
    for step in config.steps:
        if step.keep_days:
            with contextlib.suppress(OSError):  # going back matters more
                keep_old_files(release, left, step)


# --- services ---------------------------------------------------------------------------------------


def machine_roles(machine: Machine, config: Config) -> list[Role]:
    """This machine's roles. Raises UsageError for one that deploy.ini does not know."""
    for name in machine.roles:
        if name not in config.roles:
            known = ", ".join(sorted(config.roles))
            raise UsageError(f"unknown role {name!r}: deploy.ini and the defaults have {known}")
    if not machine.roles:
        raise UsageError("this machine has no role: name one with --role, or in machine.ini")
    return [config.roles[name] for name in machine.roles]


def units_of(roles: Iterable[Role]) -> tuple[list[str], list[str]]:
    """The units of roles, each once: those that are restarted, those that are reloaded."""
    services = dict.fromkeys(unit for role in roles for unit in role.services)
    reloads = dict.fromkeys(unit for role in roles for unit in role.reload)
    return [*services], [*reloads]


UnitState = Mapping[str, str]


def unit_states(units: Sequence[str]) -> dict[str, UnitState]:
    """What systemd says of each unit, in one call (no privilege needed)."""
    if not units:
        return {}
    names = "LoadState,ActiveState,SubState,NRestarts,UnitFileState,ActiveEnterTimestampMonotonic,Result"
    done = run([SYSTEMCTL, "show", "--no-pager", f"--property={names}", "--", *units])
    blocks = [dict(line.partition("=")[::2] for line in block.splitlines()) for block in done.out.strip().split("\n\n")]
    return dict(zip(units, blocks))


def systemctl(verb: Sequence[str], unit: str, timeout: float) -> None:
    run(["sudo", "-n", SYSTEMCTL, *verb, unit], timeout=timeout, live=True)


def bring_services(machine: Machine, config: Config, since: float, restart: bool) -> list[dict[str, str]]:
    """Bring all units to where they belong; return what was done with each, and its state.

    Stops units of other machines' roles, starts what does not run, and with `restart` restarts
    what became active before `since` (monotonic seconds) and reloads the rest. Without machine.ini
    it touches nothing.
    """
    roles, timeout = machine_roles(machine, config), config.service_timeout
    if not machine.is_set_up:
        return []
    services, reloads = units_of(roles)
    # units that only roles of other machines have, and the sockets that would start them
    foreign = [unit for unit in units_of(config.roles.values())[0] if unit not in services + reloads]
    foreign += [unit[:-8] + ".socket" for unit in foreign if unit.endswith(".service")]
    states = unit_states(services + reloads + foreign)
    for unit in services + reloads:
        if states[unit]["LoadState"] != "loaded":
            raise Unhealthy(f"{unit} is not installed ({states[unit]['LoadState']}): run setup_machine.py")
    actions = {unit: stop_foreign(unit, states[unit], timeout) for unit in foreign}
    reloading = Background(lambda: {unit: reload_unit(unit, states[unit], restart, timeout) for unit in reloads})
    try:
        actions.update({unit: bring_service(unit, states[unit], since, restart, timeout) for unit in services})
    finally:
        reloading.join()
    actions.update(reloading.result())
    if set(actions.values()) > {"none"}:
        states = unit_states(list(states))
    told = [unit for unit, action in actions.items() if action != "none" or unit not in foreign]
    return [{"unit": unit, "state": states[unit]["ActiveState"], "action": actions[unit]} for unit in told]


def stop_foreign(unit: str, state: UnitState, timeout: float) -> str:
    """Stop and disable a unit that has no place on this machine, if it is here; return what was done."""
    if state["ActiveState"] not in ("active", "activating", "reloading") and state["UnitFileState"] != "enabled":
        return "none"
    log(f"{unit} belongs to a role that this machine does not have: stopping it")
    systemctl(["disable", "--now"], unit, timeout)
    return "stopped"


def bring_service(unit: str, state: UnitState, since: float, restart: bool, timeout: float) -> str:
    """Start a unit, or restart it so that it runs the present release; return what was done."""
    running = state["ActiveState"] in ("active", "reloading", "deactivating")
    # a plain start would sit out the delay of a unit that systemd is about to start again,
    crashed = state["SubState"] == "auto-restart"
    # and one that hangs in its start would not take notice of the release that it is to run now
    stuck = restart and state["ActiveState"] == "activating"
    old = restart and running and started(state) < since
    verb = "restart" if crashed or stuck or old else "start"
    return "none" if verb == "start" and running else start(verb, unit, state, timeout)


def reload_unit(unit: str, state: UnitState, wanted: bool, timeout: float) -> str:
    """Reload a unit that runs, start one that does not; return what was done."""
    running = state["ActiveState"] in ("active", "reloading")
    if running and not wanted:
        return "none"
    if unit == "nginx.service":
        run(["sudo", "-n", NGINX, "-t", "-q"], live=True)  # a reload with a broken file goes unnoticed
    if running:
        systemctl(["reload"], unit, timeout)
        return "reloaded"
    return start("start", unit, state, timeout)


def start(verb: str, unit: str, state: UnitState, timeout: float) -> str:
    if state["ActiveState"] == "failed" or state["NRestarts"] not in ("", "0"):
        systemctl(["reset-failed"], unit, timeout)  # else a crash loop's start limit refuses the start
    systemctl([verb], unit, timeout)
    return verb + "ed"


def started(state: UnitState) -> float:
    """When the unit became active, in monotonic seconds since the machine's boot."""
    return int(state.get("ActiveEnterTimestampMonotonic") or 0) / 1e6


# --- health -----------------------------------------------------------------------------------------


def http_status(url: str, timeout: float) -> tuple[int, str]:
    """GET a URL (http:// or http+unix://); return the status and the beginning of the body. Raises OSError."""
    import http.client  # noqa: PLC0415 - takes as long as all other imports together, and is not always needed

    if url.startswith("http+unix://"):
        place, _, path = url[len("http+unix://") :].partition(":")
        connection = http.client.HTTPConnection("localhost", timeout=timeout)
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.sock.settimeout(timeout)
        connection.sock.connect(place)
    else:
        host, slash, path = url[len("http://") :].partition("/")
        connection, path = http.client.HTTPConnection(host, timeout=timeout), slash + path
    with contextlib.closing(connection):
        headers = {"User-Agent": USER_AGENT, "Connection": "close"}
        connection.request("GET", path or "/", headers=headers)
        try:
            response = connection.getresponse()
            return response.status, response.read(500).decode("utf-8", "replace")
        except http.client.HTTPException as error:
            raise OSError(f"no HTTP: {str(error) or type(error).__name__}") from None


def probe(machine: Machine, roles: Sequence[Role], release: Release, timeout: float) -> str:
    """Ask every health URL and run every check once; return what is wrong, or nothing."""
    deadline = time.monotonic() + timeout
    for role in roles:
        if role.health and machine.is_set_up:
            try:
                status, body = http_status(role.health, min(timeout, 10.0))
            except OSError as error:
                return f"{role.health} does not answer: {str(error) or type(error).__name__}"
            if status != 200:
                return f"{role.health} answers {status}" + (f": {' '.join(body.split())[:200]}" if body.strip() else "")
        if role.check:
            env = step_environment(machine, release, release.commit)
            try:
                run(role.check, cwd=release.path, env=env, timeout=min(max(1.0, deadline - time.monotonic()), 60.0))
            except CommandError as error:
                return f"check of role {role.name} failed: {error}{last_words(error)}"
    return ""


def unit_problem(unit: str, state: UnitState, since: float, restarts: str | None) -> tuple[str, bool]:
    """What is wrong with a unit, or nothing; and whether waiting longer cannot help."""
    if state["ActiveState"] == "failed":
        return f"{unit} failed ({state['Result']})", True
    if state["SubState"] == "auto-restart" or (restarts is not None and state["NRestarts"] != restarts):
        return f"{unit} ended by itself soon after its start ({state['Result']})", True
    if state["ActiveState"] != "active":
        return f"{unit} is {state['ActiveState']} ({state['SubState']})", False
    if started(state) < since:
        return f"{unit} was not restarted: it still runs the previous release", True
    return "", False


def confirm(machine: Machine, config: Config, release: Release, since: float) -> None:
    """Wait until the release is healthy and stays so. Raises Unhealthy, saying what was seen last.

    since: services must have become active after this monotonic second.
    """
    roles = machine_roles(machine, config)
    services, reloads = units_of(roles if machine.is_set_up else [])
    stay = STAYS_ACTIVE if any(role.services and not (role.health or role.check) for role in roles) else STAYS_HEALTHY
    stay = stay if services else 0.0
    deadline = time.monotonic() + config.health_timeout
    healthy_since: float | None = None
    restarts: dict[str, str] = {}
    told = False

    def look_at_units() -> str:
        """What is wrong with a unit and may pass; raises Unhealthy for what waiting cannot help."""
        problem = ""
        for unit, state in unit_states(services + reloads).items():
            wrong, final = unit_problem(unit, state, since if unit in services else 0.0, restarts.get(unit))
            restarts.setdefault(unit, state["NRestarts"])
            if final:
                raise Unhealthy(wrong, journal_of(unit))
            problem = problem or wrong
        return problem

    while True:
        problem = look_at_units() or probe_watching(machine, roles, release, deadline, look_at_units)
        if problem:
            healthy_since = None
            show_progress(f"waiting for the services: {problem}")
        elif healthy_since is None:
            healthy_since = time.monotonic()
        if healthy_since is not None and time.monotonic() - healthy_since >= stay:
            return
        if time.monotonic() >= deadline:
            detail = "\n".join(map(journal_of, services))
            raise Unhealthy(f"not healthy within {config.health_timeout:g} s: {problem}", detail)
        if problem and not told:
            log(f"waiting up to {config.health_timeout:g} s: {problem}")
            told = True
        time.sleep(0.1)


def probe_watching(
    machine: Machine, roles: Sequence[Role], release: Release, deadline: float, watch: Callable[[], str] = str
) -> str:
    """probe(), at most until the deadline; meanwhile `watch` is called: behind a socket, a service that died
    answers as late as a slow one."""
    asking = Background(lambda: probe(machine, roles, release, max(1.0, deadline - time.monotonic())))
    asking.join(0.5)
    while asking.is_alive() and time.monotonic() < deadline + 1:  # an answer may also drip in for ever
        watch()
        asking.join(0.5)
    return "the health check does not end" if asking.is_alive() else asking.result()


def journal_of(unit: str) -> str:
    """The last lines that a unit logged, if this user may read them."""
    try:
        done = run(["journalctl", "--no-pager", "--quiet", "--output=cat", "--lines=15", f"--unit={unit}"], check=False)
    except DeployError:
        return ""
    return tail(done.out)


# --- stories: deploy, plan, rollback, status, history ------------------------------------------------


Result = Mapping[str, Any]  # one JSON object, keys as the contract has them


def process_start() -> float:
    """When this process was started, in monotonic seconds (to 10 ms): imports count as work."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.monotonic() - max(0.0, age)


class Attempt:
    """One run of one command on this machine, and what its result will say."""

    def __init__(self, machine: Machine, options: argparse.Namespace) -> None:
        current = current_release(machine)
        self.machine, self.options, self.state = machine, options, State(machine)
        self.trigger: str = options.trigger
        self.started, self.clock = now(), time.monotonic()
        self.stages = [("start", process_start())]
        self.previous = current.commit if current else None
        self.wanted: str | None = None
        self.interrupted = False  # whether an earlier deploy was
        self.old_files: dict[str, float] = {}  # assets of earlier releases, since when
        self.steps: list[dict[str, Any]] = []
        self.services: list[dict[str, str]] = []
        self.healthy: bool | None = None
        self.is_ready = self.is_switched = False
        self.lock = -1
        self.schema: dict[str, Background[str]] = {}  # release -> schema_ahead()

    def ready(self) -> None:
        """At boot: let systemd start the services now, on whatever `current` is. Works once."""
        if self.trigger == "boot" and not self.is_ready:
            self.is_ready = True
            notify_systemd("READY=1")

    def stage(self, name: str, **fields: Any) -> None:
        """Record how far this deploy has come, for `status`, waiting deploys and the next one."""
        self.stages.append((name, time.monotonic()))
        try:
            if self.options.command in ("deploy", "rollback"):
                Running(self.machine).write(stage=name, **fields)
        except OSError:  # a full disk
            if not self.is_switched:
                raise  # from there on the release matters more than what is noted of it
        show_progress(name)

    def timings(self) -> dict[str, float]:
        """The seconds of each stage until now, in order."""
        spent: dict[str, float] = {}
        ends = [began for _, began in self.stages[1:]] + [time.monotonic()]
        for (name, began), end in zip(self.stages, ends):
            spent[name] = round(spent.get(name, 0.0) + end - began, 3)
        return spent


def new_attempt(machine: Machine, options: argparse.Namespace) -> Attempt:
    must_own(machine)
    for directory in (machine.releases, machine.envs, machine.root / "shared"):
        directory.mkdir(exist_ok=True)
    machine.state.mkdir(mode=0o750, exist_ok=True)  # what failed steps printed is not for everybody
    if machine.is_set_up:
        log.use_journal()
    log.fields["DEPLOY_TRIGGER"] = options.trigger
    return Attempt(machine, options)


def deploy(machine: Machine, options: argparse.Namespace) -> Result:
    """Bring the machine to the commit that is wanted; return the result (contract: README).

    At boot, while only the repository is out of reach, it goes on trying in the background.
    """
    pause, again = 5.0, False
    attempt = new_attempt(machine, options)
    with boot_time_limit(attempt):
        while True:
            result = locked(attempt, bring_to_target, quiet=again)
            attempt.ready()
            if attempt.trigger != "boot":
                return result
            if result["outcome"] != "unreachable":
                tell_team(machine, result)
                return result
            log(f"trying again in {pause:g} s; a push or `systemctl restart deploy-on-startup` does it at once")
            show_progress(f"{result['message']}; trying again in {pause:g} s")
            time.sleep(pause)
            pause, again = min(pause * 1.5, 30.0), True
            attempt = new_attempt(machine, options)
            attempt.is_ready = True


def tell_team(machine: Machine, result: Result) -> None:
    """Post what a boot did to DEPLOY_WEBHOOK_URL of shared/.env; pushes are reported by their workflow.

    The services run by now, and whatever becomes of the message, the boot's outcome stands.
    """
    if result["outcome"] in ("unchanged", "superseded"):
        return
    import http.client  # noqa: PLC0415
    import urllib.request  # noqa: PLC0415

    try:
        text = (machine.root / "shared" / ".env").read_text(encoding="utf-8", errors="replace")
        url = parse_env_file(text).get("DEPLOY_WEBHOOK_URL", "")
        if not url:
            return
        body = json.dumps({"text": boot_message(machine, result), "results": [result]}).encode()
        headers = {"Content-Type": "application/json", "User-Agent": USER_AGENT}
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=10):
            log("the webhook was told")
    except (OSError, ValueError, http.client.HTTPException) as error:
        # the address is a secret: it must not get into the log with the error
        log.warning(f"the webhook could not be told: {type(error).__name__}")


def boot_message(machine: Machine, result: Result) -> str:
    """`frontend caught up: 3f2a1b8c to 9c8d7e6f, 12 commits behind, 8 s`, or what went wrong."""
    if result["outcome"] != "deployed":
        return f"{machine.name}: {result['outcome']} at boot: {result['message']}"
    behind = Mirror(machine.mirror, machine.repo).count(result["previous"], result["commit"])
    commits = f", {behind} commit{'s' if behind != 1 else ''} behind" if result["previous"] else ""
    span = f"{short(result['previous'])} to {short(result['commit'])}"
    return f"{machine.name} caught up: {span}{commits}, {result['seconds']:.0f} s"


@contextlib.contextmanager
def boot_time_limit(attempt: Attempt) -> Iterator[None]:
    """Services start after boot_timeout seconds at the latest, whatever the deploy is doing."""
    limit = attempt.machine.boot_timeout
    # the clock goes on when the commit's own script takes over
    left = float(os.environ.setdefault("DEPLOY_READY_BY", str(time.monotonic() + limit))) - time.monotonic()
    timer = threading.Timer(max(0.0, left), attempt.ready)
    timer.daemon = True
    if attempt.trigger == "boot":
        notify_systemd(f"EXTEND_TIMEOUT_USEC={int((left + 60) * 1e6)}")
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
        attempt.ready()


def locked(attempt: Attempt, story: Callable[[Attempt], Result], quiet: bool = False) -> Result:
    """Run a story under the lock, turn its failure into a result, and record that.

    quiet: an `unreachable` is not recorded again (a boot that keeps trying).
    """
    machine, running = attempt.machine, Running(attempt.machine)

    def while_waiting(stage: str) -> None:
        # A push that came first waits for systemd to start services, and systemd waits for us.
        if stage in ("services", "confirming", "going back", "settling"):
            attempt.ready()

    try:
        with hold_lock(machine, attempt.options, while_waiting) as attempt.lock:
            try:
                attempt.interrupted = clean_up(machine)
                about = {"pid": os.getpid(), "trigger": attempt.trigger, "started": attempt.started}
                os.environ["DEPLOY_RUN"] = run_id(about)
                running.write(**about, stage="start", interrupted=attempt.interrupted)
                result = story(attempt)
            except Terminated as stop:
                if attempt.is_switched:
                    log.warning(f"{stop} before the new release was confirmed: the next run does that")
                    raise  # and running.json stays: this deploy was interrupted
                record(attempt, failure(attempt, DeployError(str(stop))))
                running.clear()
                raise
            except UsageError:
                if not attempt.interrupted:  # else it is for the next run to put that right
                    running.clear()
                raise
            except (DeployError, OSError) as error:
                result = failure(attempt, error)
            if not (quiet and result["outcome"] == "unreachable"):
                result = with_warnings(attempt, result)
                record(attempt, result)
            running.clear()
            return result
    except Busy as error:
        log(f"busy: {error}", Log.ERROR)
        return make_result(attempt, "busy", str(error))


def failure(attempt: Attempt, error: DeployError | OSError) -> Result:
    """The result of a story that ended with an expected error; `current` is what it was."""
    message, detail, outcome = str(error), getattr(error, "detail", ""), getattr(error, "outcome", "failed")
    if isinstance(error, OSError):
        message = f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
    if attempt.healthy is None:
        with contextlib.suppress(DeployError, OSError):  # what went wrong first is what counts
            if attempt.trigger == "boot" or attempt.interrupted or read_intent(attempt.machine):
                settle_current(attempt)
            else:
                attempt.services, problem = observe(attempt.machine, current_release(attempt.machine))
                attempt.healthy = not problem
    if is_disk_full(error):
        message += f"; {attempt.machine.root} has {free_space(attempt.machine.root)}"
    if outcome != "broken":
        current = current_release(attempt.machine)
        message += f"; {short(current.commit)} still runs" if current else "; nothing is deployed here yet"
    return make_result(attempt, outcome, message, detail)


def with_warnings(attempt: Attempt, result: Result) -> Result:
    """Where an older release stays or comes back, say so if the database has moved on without it."""
    current, options = current_release(attempt.machine), attempt.options
    chosen = options.commit or options.force or options.command == "rollback"  # else it is the branch's newest
    if not current or (result["outcome"] in ("deployed", "unchanged", "superseded") and not chosen):
        return result
    warning = (attempt.schema.get(current.name) or Background(lambda: schema_ahead(attempt.machine, current))).result()
    if warning:
        log.warning(warning)
    return {**result, "warnings": [warning]} if warning else result


def short(commit: str | None) -> str:
    return commit[:8] if commit else "nothing"


def make_result(attempt: Attempt, outcome: str, message: str, detail: str = "") -> Result:
    """The result as the contract has it. `detail` is a failed command's or service's last output."""
    current = current_release(attempt.machine)
    result = {
        "schema": SCHEMA,
        "machine": attempt.machine.name,
        "roles": list(attempt.machine.roles),
        "trigger": attempt.trigger,
        "outcome": outcome,
        "commit": current.commit if current else None,
        "wanted": attempt.wanted,
        "previous": attempt.previous,
        "release": current.name if current else None,
        "started": attempt.started,
        "seconds": round(time.monotonic() - attempt.clock, 2),
        "steps": attempt.steps,
        "services": attempt.services,
        "healthy": attempt.healthy,
        "message": printable(" ".join(message.split())),
        "timings": attempt.timings(),
    }
    return {**result, "detail": printable(detail)} if detail else result


def record(attempt: Attempt, result: Result) -> None:
    """Write the result to state/, history and journal. A full disk must not hide the outcome."""
    try:
        write_json(attempt.machine.state / "last.json", result)
        append_history(attempt.machine, result)
    except OSError as error:
        log.warning(f"the result could not be recorded below {attempt.machine.state}: {error.strerror}")
    level = Log.NOTICE if EXIT_CODES[result["outcome"]] == 0 else Log.ERROR
    if result.get("detail"):
        for line in result["detail"].splitlines():
            log(f"  | {line}", level)
    text = f"{result['outcome']}: {result['message']} ({result['seconds']:g} s)"
    log(text, level, DEPLOY_OUTCOME=result["outcome"], DEPLOY_COMMIT=result["commit"] or "")
    show_progress(text)


def bring_to_target(attempt: Attempt) -> Result:
    """Steps 2 to 7 of a deploy, under the lock; once more with a new mirror if this one is damaged."""
    mirror = Mirror(attempt.machine.mirror, attempt.machine.repo)
    try:
        return bring_from(attempt, mirror)
    except CommandError as error:
        if attempt.is_switched or not str(error).startswith("git ") or mirror.is_sound():
            raise
        log.warning(f"{error}; {mirror.path} is damaged: fetching it anew")
    remove(mirror.path)
    attempt.steps.clear()
    return bring_from(attempt, mirror)


def bring_from(attempt: Attempt, mirror: Mirror) -> Result:
    machine = attempt.machine
    wanted, tip = find_target(attempt, mirror)
    done = nothing_to_do(attempt, mirror, wanted)
    if done:
        return done
    attempt.stage("planning")
    verify_signature(machine, mirror, wanted)  # before anything of the commit runs
    tree = mirror.tree(wanted)
    hand_over(attempt, mirror, tree, tip)
    commit = load_commit(mirror, wanted, tree)
    machine_roles(machine, commit.config)
    current = current_release(machine)
    good = current if current and current.is_good else good_release_before(machine, current)
    release = build(attempt, mirror, commit, current)
    return switch_and_confirm(attempt, commit.config, release, good, "deploy")


def find_target(attempt: Attempt, mirror: Mirror) -> tuple[str, str]:
    """Fetch; return the ids of the commit to deploy and of the branch's newest one."""
    wanted = attempt.options.commit
    tip, branch = fetch_until(attempt, mirror)
    commit = mirror.resolve(wanted) if wanted else tip
    if not commit or not mirror.contains(tip, commit):
        raise UsageError(f"--commit {wanted}: is no commit of branch {branch} of {mirror.url}")
    attempt.wanted = commit
    log.fields["DEPLOY_COMMIT"] = commit
    return commit, tip


def load_commit(mirror: Mirror, commit: str, tree: Tree) -> Commit:
    """Read a commit's configuration. Raises DeployError: the commit is at fault, not the call."""
    pyproject = mirror.read(tree["pyproject.toml"].oid) if "pyproject.toml" in tree else ""
    text = mirror.read(tree["deploy.ini"].oid) if "deploy.ini" in tree else ""
    if ".release.json" in tree:  # a release that a power cut left half made would look whole
        own = "which is this script's own: remove it"
        raise DeployError(f"{short(commit)} has a file .release.json in its root, {own}")
    try:
        config = parse_config(text, f"deploy.ini of {short(commit)}")
    except UsageError as error:
        raise DeployError(str(error)) from None
    return Commit(commit, tree, config, bool(re.search(r"^\s*\[(project|tool\.poetry)\b", pyproject, re.MULTILINE)))


def config_of_release(release: Release | None) -> Config:
    path = release.path / "deploy.ini" if release else Path("defaults")
    text = path.read_text(encoding="utf-8", errors="replace") if release and path.exists() else ""
    return parse_config(text, str(path))


def fetch_until(attempt: Attempt, mirror: Mirror) -> tuple[str, str]:
    """Fetch, with retries, until the branch's tip contains --contains; return tip and branch."""
    machine, options = attempt.machine, attempt.options
    if not machine.repo:
        raise UsageError("no repository: name one with --repo, or in machine.ini")
    branch = machine.branch or config_of_release(current_release(machine)).branch
    taken_over = os.environ.pop("DEPLOY_TAKEN_OVER_AT", "")
    if taken_over and mirror.resolve(taken_over) == mirror.resolve(f"refs/heads/{branch}") == taken_over:
        return taken_over, branch
    deadline = time.monotonic() + machine.fetch_timeout
    attempt.stage("fetching")
    log(f"fetching {branch} from {mirror.url}")
    if machine.is_set_up:  # the health check needs it, and the network is waited for anyway
        Background(lambda: importlib.import_module("http.client"))
    tries, pause = 0, 1.0
    while True:
        tries += 1
        left = max(1.0, deadline - time.monotonic())
        try:
            tip = fetch_repaired(mirror, branch, left)
            wrong_branch = "" if machine.branch else branch_of_config(mirror, tip, branch)
            if wrong_branch:
                verify_signature(machine, mirror, tip)
                branch = wrong_branch
                continue
            if not options.contains or mirror.contains(tip, options.contains):
                return tip, branch
            problem = f"{branch} of {mirror.url} is at {short(tip)} and does not contain {short(options.contains)}"
            if time.monotonic() + pause >= deadline:
                raise DeployError(f"{problem} after {machine.fetch_timeout:g} s")
        except Unreachable as error:
            problem = str(error)
            # a person or a runner waits, and can try again; a boot has nobody who would
            if time.monotonic() + pause >= deadline or (attempt.trigger != "boot" and tries >= 3):
                raise
        log(f"  {problem}; trying again in {pause:g} s")
        show_progress(f"{problem}; trying again")
        time.sleep(pause)
        pause = min(pause * 2, 10.0)


def fetch_repaired(mirror: Mirror, branch: str, timeout: float) -> str:
    """Fetch; if that fails and the mirror turns out to be damaged, put a new one in its place."""
    deadline = time.monotonic() + timeout
    mirror.prepare()
    try:
        return mirror.fetch(branch, timeout)
    except (Unreachable, CommandError):
        left = min(10.0, max(1.0, deadline - time.monotonic()))
        if not mirror.is_reachable(branch, left) or mirror.is_sound():
            raise
    log.warning(f"{mirror.path} is damaged; fetching it anew")
    fresh = Mirror(mirror.path.with_name("repo.git.new"), mirror.url)
    remove(fresh.path)
    fresh.prepare()
    tip = fresh.fetch(branch, timeout)
    remove(mirror.path)
    os.rename(fresh.path, mirror.path)
    return tip


def branch_of_config(mirror: Mirror, tip: str, branch: str) -> str:
    """The other branch that the deploy.ini at `tip` names, if it names one."""
    done = mirror.git("cat-file", "blob", f"{tip}:deploy.ini", check=False)
    if done.code != 0:
        return ""
    try:
        config = parse_config(done.out, "deploy.ini")
    except UsageError:
        return ""  # reported where the commit's configuration is read
    return config.branch if config.sets_branch and config.branch != branch else ""


def hand_over(attempt: Attempt, mirror: Mirror, tree: Tree, tip: str) -> None:
    """Let the copy of this script that the commit carries do the rest, if it is another one.

    So a boot does exactly what a push of that commit does. Once only, and only if it starts.
    """
    entry = tree.get(SCRIPT_IN_REPOSITORY)
    own = Path(__file__).read_bytes()
    if not entry or entry.kind != "blob" or os.environ.get("DEPLOY_TAKEN_OVER"):
        return
    algorithm = "sha1" if len(entry.oid) == 40 else "sha256"
    if hashlib.new(algorithm, b"blob %d\0" % len(own) + own).hexdigest() == entry.oid:
        return
    scripts = attempt.machine.state / "scripts"
    scripts.mkdir(exist_ok=True)
    script = scripts / f"{entry.oid}.py"
    write_file(script, mirror.read(entry.oid), mode=0o755)
    try:
        run([sys.executable, str(script), "--version"], timeout=20)
    except CommandError as error:
        log.warning(
            f"{SCRIPT_IN_REPOSITORY} of {short(attempt.wanted)} does not start; going on with this one: {error}"
        )
        return
    log(f"handing over to {SCRIPT_IN_REPOSITORY} of {short(attempt.wanted)}")
    os.set_inheritable(attempt.lock, True)
    env = {**os.environ, "DEPLOY_TAKEN_OVER": "1", "DEPLOY_TAKEN_OVER_AT": tip, "DEPLOY_LOCK_FD": str(attempt.lock)}
    os.execve(sys.executable, [sys.executable, str(script), *sys.argv[1:], "--root", str(attempt.machine.root)], env)


def nothing_to_do(attempt: Attempt, mirror: Mirror, commit: str) -> Result | None:
    """The result if no release is to be built: the commit runs, is older, or is known to be bad."""
    options, current = attempt.options, current_release(attempt.machine)
    bad = attempt.state.bad.get(commit)
    if current and current.commit == commit and not options.full:
        settled = settle_current(attempt)
        if not settled:
            attempt.state.forget_bad(commit)  # a rollback from it was killed before it switched
        if attempt.interrupted and not settled:
            finish(attempt, config_of_release(current), current)
        refresh_script(attempt.machine, current)
        return settled or make_result(attempt, "unchanged", f"{short(commit)} already runs, nothing to do")
    if current and current.commit != commit and not options.force and mirror.contains(current.commit, commit):
        message = f"{short(current.commit)} runs, which is newer than {short(commit)}; --force goes back"
        return settle_current(attempt) or make_result(attempt, "superseded", message)
    if bad and not options.force and (bad["kind"] == "unhealthy" or attempt.trigger == "boot"):
        message = f"{short(commit)} is not tried again: {bad['why']} ({bad['when']}); push a fix, or use --force"
        raise DeployError(message)
    attempt.state.forget_bad(commit)
    return None


def settle_current(attempt: Attempt) -> Result | None:
    """There will be no new release: see that the services of the current one run.

    A release that was switched to but not confirmed since (a deploy was interrupted) is confirmed
    now, or given up if it is unhealthy; then the result of that is returned. Raises Broken.
    """
    machine, current = attempt.machine, current_release(attempt.machine)
    attempt.ready()
    if not current:
        return None
    config = config_of_release(current)
    roles = machine_roles(machine, config)
    intent = read_intent(machine)
    if intent or not current.is_good:
        why = "an earlier deploy was interrupted" if attempt.interrupted else "an earlier deploy ended broken"
        log(f"{short(current.commit)} was switched to but not confirmed: {why}")
        return resume(attempt, config, current, intent)
    attempt.stage("settling")
    try:
        attempt.services = bring_services(machine, config, 0.0, restart=False)
        if any(service["action"] != "none" for service in attempt.services) or attempt.trigger == "boot":
            confirm(machine, config, current, 0.0)
        elif probe_watching(machine, roles, current, time.monotonic() + 10.0):
            # it was good and answers no more: one restart, as a person would try first
            log.warning(f"{short(current.commit)} runs but is not healthy: restarting its services")
            since = time.monotonic()
            attempt.services = bring_services(machine, config, since, restart=True)
            confirm(machine, config, current, since)
        attempt.healthy = True
    except (Unhealthy, CommandError) as error:
        attempt.healthy = False
        raise Broken(f"{short(current.commit)} runs but is not healthy: {error}", error.detail) from None
    return None


def resume(attempt: Attempt, config: Config, current: Release, intent: Intent | None) -> Result:
    """End the switch that an earlier deploy, rollback or going back has begun."""
    releases = {release.name: release for release in all_releases(attempt.machine)}
    if intent and intent.to != current.name and intent.to in releases:  # it was about to be left
        return go_back(attempt, current, releases[intent.to], Unhealthy(intent.why))
    good = releases.get(intent.good) if intent else None
    by = intent.by if intent else "deploy"
    return switch_and_confirm(attempt, config, current, good or good_release_before(attempt.machine, current), by)


def build(attempt: Attempt, mirror: Mirror, commit: Commit, current: Release | None) -> Release:
    """Make the complete release beside the running one. On any failure nothing of it is left."""
    machine = attempt.machine
    decisions = decide(machine, commit, attempt.state, attempt.options.full)
    free = check_space(machine, current, decisions)
    release = new_release(machine, commit.id)
    with removed_on_failure(release.path):
        ahead = f" ({mirror.count(current.commit, commit.id)} commits ahead of what runs)" if current else ""
        log(f"building release {release.name}{ahead}")
        attempt.stage("checking out")
        mirror.check_out(commit, release.path)
        link_shared(machine, commit.config, release)
        write_file(release.path / "REVISION", commit.id + "\n")
        used = max(0, free - free_bytes(machine.root))
        environments = [take_step(attempt, commit, release, decision, current) for decision in decisions]
        about = {"commit": commit.id, "built": now(), "trigger": attempt.trigger, "bytes": used}
        envs = [path.name for path in environments if path]
        write_json(release.path / ".release.json", {**about, "envs": envs, "old_files": attempt.old_files})
    return release


def check_space(machine: Machine, current: Release | None, decisions: Sequence[Decision]) -> int:
    """The free bytes. Raises DeployError if they are fewer than the last release and environments took."""
    sizes = {"the checkout": int(current.meta.get("bytes", 0)) if current else 0}
    for decision in decisions:
        if decision.needed and decision.step.provides:
            mark: dict[str, Any] = next(iter(environments(machine, decision.step).values()), {})
            sizes[decision.step.name] = int(mark.get("bytes", 0))
    free, needed = free_bytes(machine.root), sum(sizes.values())
    if needed > free:
        parts = ", ".join(f"{name} {megabytes(size)}" for name, size in sizes.items() if size)
        raise DeployError(
            f"not enough space: {machine.root} has {megabytes(free)} free and this needs about {megabytes(needed)}"
            f" ({parts}); free some, or lower keep in deploy.ini"
        )
    return free


def stay_inside(release: Release, place: Path) -> None:
    """Raise DeployError if a link, say in the commit, leads what is written to this place out of the release."""
    real, top = os.path.realpath(place), os.path.realpath(release.path)
    if os.path.commonpath([real, top]) != top:
        raise DeployError(f"{place.relative_to(release.path)} leads out of the release, to {real}: remove that link")


def link_shared(machine: Machine, config: Config, release: Release) -> None:
    """Lead the shared paths of a release to shared/, where they survive it."""
    for path in config.shared:
        place = release.path / path.rstrip("/")
        stay_inside(release, place.parent)
        if place.is_dir() and not place.is_symlink():
            (machine.root / "shared" / path).mkdir(parents=True, exist_ok=True)
        remove(place)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.symlink(os.path.relpath(machine.root / "shared" / path, place.parent), place)


def take_step(
    attempt: Attempt, commit: Commit, release: Release, decision: Decision, current: Release | None
) -> Path | None:
    """Run or skip one step; return the environment that the release now uses for it."""
    step, began = decision.step, time.monotonic()
    entry: dict[str, Any] = {
        "name": step.name,
        "result": "ran" if decision.needed else "skipped",
        "seconds": 0.0,
        "why": decision.why,
    }
    attempt.steps.append(entry)
    attempt.stage(f"step {step.name}")
    try:
        for path in step.provides:
            stay_inside(release, release.path / path)
        if decision.environment:
            log(f"{step.name}: skipped, {decision.why}")
            link_environment(release, step, decision.environment)
            environment: Path | None = decision.environment
        elif not decision.needed:
            log(f"{step.name}: skipped, {decision.why}")
            environment = None
        else:
            log(f"{step.name}: {decision.why}", Log.NOTICE)
            environment = run_step(attempt.machine, release, commit, decision)
        if step.keep_days and current:
            attempt.old_files.update(keep_old_files(release, current, step))
    except DeployError as error:
        entry["result"] = "failed"
        if not is_disk_full(error):  # which is not the commit's fault
            attempt.state.remember_bad(commit.id, "step", f"step {step.name} failed")
        raise DeployError(f"step {step.name} failed: {error}{last_words(error)}", error.detail) from None
    finally:
        entry["seconds"] = round(time.monotonic() - began, 2)
    if decision.fingerprint and attempt.state.steps.get(step.name) != decision.fingerprint:
        attempt.state.steps[step.name] = dict(decision.fingerprint)
        attempt.state.save()
    if decision.needed:
        log(f"{step.name}: done in {entry['seconds']:.1f} s")
    return environment


def switch_and_confirm(attempt: Attempt, config: Config, release: Release, good: Release | None, by: str) -> Result:
    """Steps 4 to 7: switch, bring the services, confirm; else go back to the good release."""
    machine = attempt.machine
    try:
        attempt.stage("switching")
        write_intent(machine, Intent(release.name, good.name if good else "", by))
        attempt.is_switched = True
        switch(machine, release)
    except (DeployError, OSError):  # a full disk
        if current_release(machine) != release:
            clear_intent(machine)
            if not release.is_good:
                discard(release.path)
        raise
    since = time.monotonic()
    log(f"switched to {release.name}")
    attempt.stage("services")
    attempt.ready()
    try:
        activate(attempt, config, release, since)
    except (Unhealthy, CommandError) as error:
        log(f"{short(release.commit)} is not healthy: {error}", Log.ERROR)
        return go_back(attempt, release, good, error)
    finish(attempt, config, release)
    commits = f" from {short(attempt.previous)}" if attempt.previous else ""
    return make_result(attempt, "deployed", f"{short(release.commit)} deployed{commits}")


def activate(attempt: Attempt, config: Config, release: Release, since: float) -> None:
    """Bring the services of this machine's roles to the release and confirm it."""
    machine = attempt.machine
    if not machine.is_set_up and units_of(machine_roles(machine, config))[0]:
        log(f"no machine.ini in {machine.root}: services are left alone")
    attempt.services = bring_services(machine, config, since, restart=True)
    attempt.stage("confirming")
    confirm(machine, config, release, since)
    for service in attempt.services:  # else confirm() would not have returned
        service["state"] = "inactive" if service["action"] == "stopped" else "active"
    attempt.healthy = True


def go_back(attempt: Attempt, release: Release, good: Release | None, error: DeployError) -> Result:
    """The release is unhealthy: serve the good one again and remember the commit as bad."""
    machine = attempt.machine
    attempt.healthy = False
    end_leftovers(os.environ["DEPLOY_RUN"])  # what a check did not end
    bad = short(release.commit)
    if not good:
        message = f"{bad} is not healthy and there is no good release to go back to: {error}"
        raise Broken(message, error.detail)
    attempt.stage("going back")
    log(f"going back to {good.name}", Log.WARNING)
    config = config_of_release(good)
    keep_files_of(release, config, good)
    (machine.state / "last.json").unlink(missing_ok=True)  # on a full disk: room for the link; it is written anew
    try:
        with contextlib.suppress(OSError):  # else the next run asks the release that is left once more
            write_intent(machine, Intent(good.name, "", GOING_BACK, str(error)))
        switch(machine, good)
        activate(attempt, config, good, time.monotonic())
    except (DeployError, OSError) as second:
        message = f"{bad} is not healthy ({error}), nor is {short(good.commit)} any more ({second})"
        raise Broken(message, getattr(second, "detail", "") or error.detail) from None
    with contextlib.suppress(OSError):  # a full disk: the next run finds out again
        attempt.state.remember_bad(release.commit, "unhealthy", str(error))
    message = f"{bad} was not healthy: {error}; {short(good.commit)} serves again"
    clear_intent(machine)
    discard(release.path)
    return make_result(attempt, "rolled_back", message, error.detail)


def finish(attempt: Attempt, config: Config, release: Release) -> None:
    """Note that the release is good, remove what nothing needs any more, and keep boot's script up to date."""
    machine = attempt.machine
    attempt.stage("tidying up")
    for task in (
        release.confirm,
        lambda: clear_intent(machine),
        lambda: attempt.state.forget_bad(release.commit),
        lambda: prune(machine, config.keep),
        lambda: remove_old_scripts(machine),
        lambda: refresh_script(machine, release),
        Mirror(machine.mirror, machine.repo).tidy,
    ):
        try:
            task()
        except (OSError, DeployError) as error:  # the deploy itself is done; the next one does this again
            log.warning(f"tidying up: {error}")


def remove_old_scripts(machine: Machine) -> None:
    for script in (machine.state / "scripts").glob("*.*"):  # half-written ones, too
        if script.stat().st_mtime < time.time() - 86400:  # a push may just have put one there
            for path in (script, *script.parent.glob(f"__pycache__/{script.stem}.*")):
                path.unlink()


def refresh_script(machine: Machine, release: Release) -> None:
    """Install this script as the one that boots run, unless the release carries another one."""
    own, installed, carried = (
        Path(__file__),
        machine.root / "bin" / "deploy_machine.py",
        release.path / SCRIPT_IN_REPOSITORY,
    )
    if not machine.is_set_up or (installed.exists() and filecmp.cmp(own, installed, shallow=False)):
        return
    if not carried.exists() or filecmp.cmp(own, carried, shallow=False):
        write_file(installed, own.read_text(encoding="utf-8"), mode=0o755)
        log(f"{installed} is now the version that {short(release.commit)} was deployed with")


def plan(machine: Machine, options: argparse.Namespace) -> Result:
    """Say what deploy would do and why; changes nothing but the mirror."""
    attempt = new_attempt(machine, options)
    mirror = Mirror(machine.mirror, machine.repo)
    with hold_lock(machine, options, lambda stage: None):
        wanted, _ = find_target(attempt, mirror)
        verify_signature(machine, mirror, wanted)
        commit = load_commit(mirror, wanted, mirror.tree(wanted))
        services, reloads = units_of(machine_roles(machine, commit.config))
        current = current_release(machine)
        decisions = decide(machine, commit, attempt.state, options.full)
        ahead = mirror.count(current.commit, commit.id) if current else 0
    bad = attempt.state.bad.get(commit.id)
    steps = [
        {"name": d.step.name, "action": "run" if d.needed else "skip", "why": d.why, "run": shlex.join(d.step.run)}
        for d in decisions
    ]
    same = bool(current and current.commit == commit.id and not options.full)
    return {
        "schema": SCHEMA,
        "machine": machine.name,
        "roles": list(machine.roles),
        "current": current.commit if current else None,
        "wanted": commit.id,
        "commits": ahead,
        "nothing_to_do": same,
        "bad": bad["why"] if bad else None,
        "steps": [] if same else steps,
        "restart": services,
        "reload": reloads,
    }


def print_plan(result: Result) -> None:
    if result["nothing_to_do"]:
        print(f"{result['machine']}: {short(result['wanted'])} already runs; deploy would do nothing")
        return
    span = f"from {short(result['current'])} to {short(result['wanted'])}"
    print(f"{result['machine']}: {span} ({result['commits']} commits)")
    if result["bad"]:
        print(f"  this commit is remembered as bad ({result['bad']})")
    for step in result["steps"]:
        print(f"  {step['action']:4}  {step['name']}: {step['why']}")
        if step["action"] == "run":
            print(f"          {step['run']}")
    print(f"  restart {', '.join(result['restart']) or 'nothing'}; reload {', '.join(result['reload']) or 'nothing'}")


def rollback(machine: Machine, options: argparse.Namespace) -> Result:
    """Go back to the newest good release before the current one, or to the one named."""
    attempt = new_attempt(machine, options)
    return locked(attempt, lambda attempt: roll_back_to(attempt, options.target))


def roll_back_to(attempt: Attempt, wanted: str | None) -> Result:
    machine, current = attempt.machine, current_release(attempt.machine)
    intent = read_intent(machine)
    halfway = current and intent and (intent.by, intent.to) == ("rollback", current.name)
    release = current if current and halfway and not wanted else choose_release(machine, current, wanted)
    if release == current:  # an earlier rollback, say, was killed before it restarted the services
        settled = settle_current(attempt)
        if settled and settled["outcome"] == "deployed":
            message = f"back on {short(release.commit)}, as a rollback that was interrupted had begun"
            settled = {**settled, "outcome": "rolled_back_on_request", "message": message}
        return settled or make_result(attempt, "unchanged", f"{release.name} already runs, nothing to do")
    config = config_of_release(release)
    machine_roles(machine, config)
    attempt.wanted = release.commit
    log(f"rolling back from {current.name if current else 'nothing'} to {release.name}")
    left = ""
    if current:
        keep_files_of(current, config, release)
        left = current.commit if current.name > release.name and current.commit != release.commit else ""
    if left:  # the next boot must not bring back what a person has just left, nor after a power cut in here
        attempt.state.remember_bad(left, "person", "it was rolled back by hand")
    attempt.schema[release.name] = Background(lambda: schema_ahead(machine, release))  # takes as long as a restart
    result = switch_and_confirm(attempt, config, release, current if current and current.is_good else None, "rollback")
    if result["outcome"] != "deployed":
        attempt.state.forget_bad(release.commit)
        attempt.state.forget_bad(left)
        return result
    message = f"rolled back from {short(attempt.previous)} to {short(release.commit)}"
    return {**result, "outcome": "rolled_back_on_request", "message": message}


def choose_release(machine: Machine, current: Release | None, wanted: str | None) -> Release:
    """The good release to go back to. Raises UsageError if there is none, or none like `wanted`."""
    good = [release for release in all_releases(machine) if release.is_good]
    if wanted is None:
        found = good_release_before(machine, current)
        if not found:
            raise UsageError("there is no good release before the current one")
        return found
    start = wanted if re.fullmatch("[0-9a-f]{4,40}", wanted) else "no commit"
    matches = [release for release in good if release.name == wanted or release.commit.startswith(start)]
    if not matches or len({release.commit for release in matches}) > 1:
        names = ", ".join(release.name for release in good) or "none"
        raise UsageError(f"{wanted}: {'ambiguous' if matches else 'no such release is kept'}; good releases: {names}")
    return matches[-1]


def observe(machine: Machine, current: Release | None) -> tuple[list[dict[str, str]], str]:
    """The present state of the current release's services, and what is wrong, if anything is."""
    if not current:
        return [], "nothing is deployed"
    config = config_of_release(current)
    roles = machine_roles(machine, config)
    units, reloads = units_of(roles if machine.is_set_up else [])
    states = unit_states(units + reloads)
    services = [{"unit": unit, "state": state["ActiveState"], "action": "none"} for unit, state in states.items()]
    down = [f"{service['unit']} is {service['state']}" for service in services if service["state"] != "active"]
    return services, down[0] if down else probe_watching(machine, roles, current, time.monotonic() + 10.0)


def status(machine: Machine, options: argparse.Namespace) -> Result:
    """What runs now, and the last results. Reads only."""
    must_own(machine)  # it runs the check command, and what failed steps printed is not for everybody
    current = current_release(machine)
    running, is_held = Running(machine).read(), lock_is_held(machine)
    try:
        services, problem = observe(machine, current)
    except (DeployError, OSError) as error:
        services, problem = [], str(error)
    healthy = not problem if current else None
    since = time.strftime(TIME, time.gmtime(os.lstat(machine.current).st_mtime)) if current else None
    return {
        "schema": SCHEMA,
        "machine": machine.name,
        "roles": list(machine.roles),
        "commit": current.commit if current else None,
        "release": current.name if current else None,
        "since": since,
        "services": services,
        "healthy": healthy,
        "problem": problem,
        "bad_commits": [{"commit": commit, **about} for commit, about in State(machine).bad.items()],
        "running": running if is_held else None,
        "interrupted": bool(running) and not is_held,
        "last": read_json(machine.state / "last.json"),
        "trigger": current.meta.get("trigger") if current else None,
        "attempts": read_history(machine)[-5:],
        "releases": [{"release": r.name, "commit": r.commit, "good": r.is_good} for r in all_releases(machine)],
    }


def lock_is_held(machine: Machine) -> bool:
    try:
        with open(machine.state / "lock", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    return False


def ago(timestamp: str) -> str:
    """`3 h ago` for a time as now() writes it."""
    import calendar  # noqa: PLC0415 - takes a while, and only `status` needs it

    seconds = max(0.0, time.time() - calendar.timegm(time.strptime(timestamp, TIME)))
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def print_status(result: Result) -> None:
    name = f"{result['machine']} ({', '.join(result['roles']) or 'no role'})"
    if not result["commit"]:
        print(f"{name}: nothing is deployed yet")
    else:
        since = f"since {result['since']} ({ago(result['since'])})"
        print(f"{name} runs {short(result['commit'])} {since}, deployed by {result['trigger']}")
        print(f"  release   {result['release']}")
        for service in result["services"]:
            print(f"  service   {service['unit']}: {service['state']}")
        print(f"  health    {'ok' if result['healthy'] else result['problem'] or 'unknown'}")
    if result["running"]:
        stage, trigger, began = (result["running"].get(key, "unknown") for key in ("stage", "trigger", "started"))
        print(f"  now       a deploy is going on: {stage} ({trigger}, since {began})")
    if result["interrupted"]:
        print("  note      the last deploy was interrupted; the next one cleans up after it")
    last = result["last"] or {}
    warnings = last.get("warnings") if last.get("release") == result["release"] else None
    for warning in warnings if isinstance(warnings, list) else []:
        print(f"  warning   {warning}")
    for bad in result["bad_commits"]:
        print(f"  bad       {short(bad['commit'])}: {bad['why']} ({bad['when']})")
    if result["attempts"]:
        print("last attempts")
        print_history({"history": result["attempts"]})


def history(machine: Machine, options: argparse.Namespace) -> Result:
    """All recorded results, oldest first."""
    must_own(machine)
    return {"schema": SCHEMA, "machine": machine.name, "history": read_history(machine)}


def print_history(result: Result) -> None:
    for entry in result["history"]:
        begin = f"{entry['started']}  {entry['trigger']:6}  {entry['outcome']:22}"
        print(f"  {begin}  {short(entry['commit']):8}  {entry['seconds']:6.1f} s  {entry['message']}")


# --- command line -----------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see --help)")


def commit_id(text: str) -> str:
    if not re.fullmatch(r"[0-9a-fA-F]{4,64}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a commit id (4 to 40 hex digits)")
    return text.lower()


def positive(text: str) -> float:
    try:
        return number({"seconds": text}, "seconds")
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="deploy_machine.py",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Bring this machine to the newest commit of its branch, or leave it as it was.",
        epilog="""commands:
  deploy     fetch, build, switch, confirm; does nothing if there is nothing to do (default)
  plan       say what deploy would do, step by step, and why
  status     what runs since when, services, health, last attempts
  history    every attempt, oldest first
  rollback   go back to the good release before this one, or to the one named

exit codes:
  0 runs what was asked for   2 usage or configuration   10 failed, old release serves
  11 was unhealthy, rolled back   12 broken, look at it   75 try again later""",
    )
    add, which = parser.add_argument, parser.add_mutually_exclusive_group().add_argument
    add("command", nargs="?", default="deploy", choices=list(COMMANDS), metavar="COMMAND")
    add("target", nargs="?", metavar="RELEASE|COMMIT", help="rollback: where to go back to")
    text = "a role of this machine; repeatable (default: machine.ini)"
    add("--role", action="append", metavar="NAME", help=text)
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
    text = f"seconds to wait for another deploy (default {LOCK_TIMEOUT:g})"
    add("--lock-timeout", type=positive, default=LOCK_TIMEOUT, metavar="S", help=text)
    text = f"seconds to wait for the repository (default: machine.ini, else {FETCH_TIMEOUT:g})"
    add("--fetch-timeout", type=positive, metavar="S", help=text)
    add("--json", action="store_true", help="print the result as one JSON line on stdout")
    add("--timings", action="store_true", help="print how long each command and each stage took")
    add("--show-config", action="store_true", help="plan: print the built-in deploy.ini and end")
    add("--debug", action="store_true", help="show a traceback also for expected errors")
    add("--version", action="version", version=f"deploy_machine.py {VERSION}")
    return parser


COMMANDS = {"deploy": deploy, "plan": plan, "status": status, "history": history, "rollback": rollback}
PRINTERS = {"plan": print_plan, "status": print_status, "history": print_history}


def main_inner(arguments: Sequence[str]) -> int:
    """Run one command and print its result; return the exit code. Raises UsageError."""
    options = make_parser().parse_args(arguments)
    if options.show_config:
        print(DEFAULTS, end="")
        return 0
    if options.target is not None and options.command != "rollback":
        raise UsageError(f"unexpected argument {options.target!r} (see --help)")
    log.timings = options.timings
    result = COMMANDS[options.command](load_machine(options), options)
    if options.timings:
        for stage, seconds in result.get("timings", {}).items():
            log(f"{seconds:9.3f} s  {stage}")
    with contextlib.suppress(OSError):
        if options.json:
            write_all(1, json.dumps(result) + "\n")
        elif options.command in PRINTERS:
            text = io.StringIO()
            with contextlib.redirect_stdout(text):
                PRINTERS[options.command](result)
            write_all(1, printable(text.getvalue()))
    return EXIT_CODES[result["outcome"]] if "outcome" in result else 0


def stop_on_signal(signum: int, _: Any) -> NoReturn:
    signal.signal(signum, signal.SIG_IGN)  # raise once: cleaning up must not be interrupted
    raise Terminated(signum)


def main() -> NoReturn:
    os.umask(0o022)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a lost ssh connection does not end a deploy
    signal.signal(signal.SIGTERM, stop_on_signal)
    signal.signal(signal.SIGINT, stop_on_signal)
    try:
        sys.exit(main_inner(sys.argv[1:]))
    except (DeployError, OSError) as error:  # where there is no result to put it into
        if "--debug" in sys.argv:
            raise
        detail = getattr(error, "detail", "")
        log(f"deploy_machine.py: {error}" + (f"\n{detail}" if detail else ""), Log.ERROR)
        show_progress(str(error))
        sys.exit(EXIT_USAGE if isinstance(error, UsageError) else EXIT_CODES[getattr(error, "outcome", "failed")])
    except Terminated as stop:
        # die by the signal itself, so that systemd and shells see what happened
        signal.signal(stop.signum, signal.SIG_DFL)
        os.kill(os.getpid(), stop.signum)
        raise AssertionError("not reached") from None


if __name__ == "__main__":
    main()

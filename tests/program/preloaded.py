"""Runs deploy_machine.py again and again without starting Python each time: half of what these tests would cost.

As a program: imports what the script imports, then forks for each request (a JSON line on stdin) and lets the child
run it as `python3 scripts/deploy_machine.py` would; answers with the exit code, negative for a signal.

This is also the one place where a test changes the program: a patch is Python that runs before it, in which every
room of deployer/ has its name, `die` kills the process and `no_space` fails as a full disk does.
"""

from __future__ import annotations

import atexit
import errno
import functools
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "deploy_machine.py"
APART = ("migrate_locked", "site_hook")  # run by the application's Python
ROOMS = sorted(path.stem for path in SCRIPT.with_name("deployer").glob("[!_]*.py") if path.stem not in APART)


def run(arguments: Sequence[str], env: Mapping[str, str], patch: str = "") -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one run of the script."""
    with tempfile.NamedTemporaryFile() as out, tempfile.NamedTemporaryFile() as err:
        server = running_server()
        server.stdin.write(json.dumps([[*arguments], {**env}, out.name, err.name, textwrap.dedent(patch)]) + "\n")
        server.stdin.flush()
        answer = server.stdout.readline()
        assert answer, "the server of preloaded scripts has died"
        return int(answer), out.read().decode(), err.read().decode()


@functools.cache
def running_server() -> Any:
    """One for each process that runs tests; it ends with its stdin.

    deploy is not root: what is read-only must be so for the script and its steps, also where tests are run by root.
    """
    guarded = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    argv = [*guarded, sys.executable, __file__]
    server = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(server.communicate)
    return server


def serve() -> None:
    sys.path.insert(0, str(SCRIPT.parent))
    rooms = {name: importlib.import_module(f"deployer.{name}") for name in ROOMS}
    gc.freeze()  # a child that collects garbage copies all that it looks at
    for line in sys.stdin:
        arguments, env, out, err, patch = json.loads(line)
        child = os.fork()
        if not child:
            become(arguments, env, out, err)
            execute(rooms, patch)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def become(arguments: Sequence[str], env: Mapping[str, str], out: str, err: str) -> None:
    """Take the arguments, environment and streams of a new process."""
    for descriptor, path, flags in ((0, os.devnull, os.O_RDONLY), (1, out, os.O_WRONLY), (2, err, os.O_WRONLY)):
        os.dup2(os.open(path, flags | os.O_APPEND), descriptor)
    os.closerange(3, 64)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = [str(SCRIPT), *arguments]


def execute(rooms: Mapping[str, Any], patch: str) -> NoReturn:
    """Run the script and end as the interpreter would."""
    status: Any = 1
    try:
        exec(patch, {**rooms, "os": os, "die": die, "no_space": no_space})
        rooms["cli"].main()
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else 1)


def die(*_: Any, **__: Any) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("not reached")


def no_space(*_: Any, **__: Any) -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a file")


if __name__ == "__main__":
    serve()

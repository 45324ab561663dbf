"""Runs deploy_machine.py again and again without starting Python each time: half of what these tests would cost.

As a program: imports what the script imports, then forks for each request (a JSON line on stdin) and lets the child
run the script as `python3 scripts/deploy_machine.py` would; answers with the exit code, negative for a signal.
"""

from __future__ import annotations

import atexit
import functools
import gc
import json
import os
import subprocess
import sys
import tempfile
import traceback
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "deploy_machine.py"


def run(arguments: Sequence[str], env: Mapping[str, str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one run of the script."""
    with tempfile.NamedTemporaryFile() as out, tempfile.NamedTemporaryFile() as err:
        server = running_server()
        server.stdin.write(json.dumps([[*arguments], {**env}, out.name, err.name]) + "\n")
        server.stdin.flush()
        answer = server.stdout.readline()
        assert answer, "the server of preloaded scripts has died"
        return int(answer), out.read().decode(), err.read().decode()


@functools.cache
def running_server() -> Any:
    """One for each process that runs tests; it ends with its stdin."""
    server = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(server.communicate)
    return server


def serve() -> None:
    sys.path.insert(0, str(SCRIPT.parent))
    import deploy_machine  # noqa: F401, PLC0415 - for all that it imports

    code = compile(SCRIPT.read_text(), str(SCRIPT), "exec")
    gc.freeze()  # a child that collects garbage copies all that it looks at
    for line in sys.stdin:
        arguments, env, out, err = json.loads(line)
        child = os.fork()
        if not child:
            become(arguments, env, out, err)
            execute(code)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def become(arguments: Sequence[str], env: Mapping[str, str], out: str, err: str) -> None:
    """Take the arguments, environment and streams of a new process."""
    for descriptor, path, flags in ((0, os.devnull, os.O_RDONLY), (1, out, os.O_WRONLY), (2, err, os.O_WRONLY)):
        os.dup2(os.open(path, flags | os.O_APPEND), descriptor)
    os.closerange(3, 64)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = [str(SCRIPT), *arguments]


def execute(code: types.CodeType) -> None:
    """Run the script as __main__ and end as the interpreter would."""
    status: Any = 1
    try:
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        main.__file__ = str(SCRIPT)
        exec(code, main.__dict__)
        status = 0
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else 1)


if __name__ == "__main__":
    serve()

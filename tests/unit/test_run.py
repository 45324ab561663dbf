"""deployer/run.py: what is kept of a command's output, what is shown, and when a command has ended."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
from deployer import errors, run

SCRIPTS = Path(run.__file__).parents[1]
ENDLESS = {
    "in lines": "line = b'x' * 99 + b'\\n'\nfor _ in range(1000): os.write(1, line * 10_000)",
    "without a newline": "for _ in range(1000): os.write(1, b'x' * 1_000_000)",
    "of newlines": "for _ in range(100): os.write(1, b'\\n' * 1_000_000)",
}


def child(code: str) -> list[str]:
    return [sys.executable, "-c", f"import os, sys, time\n{code}"]


def measured(call: str) -> subprocess.CompletedProcess[str]:
    """Run a call in a process of its own; it prints the most memory in KB that this took."""
    code = f"import re, sys\nsys.path.insert(0, {str(SCRIPTS)!r})\nfrom deployer import errors, run\n{call}\n"
    # ru_maxrss would also count what its parent had when it was started
    code += "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


@pytest.mark.slow
@pytest.mark.parametrize("how", [*ENDLESS])
def test_output_without_an_end_is_not_kept(how: str) -> None:
    done = measured(f"run.command({child(ENDLESS[how])!r}, live=True, timeout=300)")
    assert int(done.stdout) < 60_000
    assert len(done.stderr) < 10_000_000, "nor is all of it shown"


@pytest.mark.slow
def test_output_without_an_end_where_it_is_parsed() -> None:
    call = f"try: run.command({child(ENDLESS['without a newline'])!r}, timeout=300)\n"
    done = measured(call + "except errors.TooMuch as error: print(error, file=sys.stderr)")
    assert int(done.stdout) < 60_000
    assert done.stderr.endswith("printed more than 16 MB and was ended\n")


def test_long_lines_are_cut_in_what_is_told() -> None:
    with pytest.raises(errors.CommandError) as caught:
        run.command(child("print('y' * 5000)\nprint('last')\nsys.exit(1)"), live=True)
    assert [len(line) for line in caught.value.detail.splitlines()] == [300, 4]


def test_output_is_whole_up_to_the_limit() -> None:
    assert len(run.command(child("os.write(1, b'x' * 3_000_000)")).out) == 3_000_000


@pytest.mark.parametrize("what", ["time.sleep(20)", "while True: print('more', flush=True); time.sleep(.01)"])
def test_a_command_has_ended_when_its_own_process_has(what: str) -> None:
    inner = f"import time\n{what}"
    code = f"import subprocess; subprocess.Popen([sys.executable, '-c', {inner!r}]); print('done')"
    began = time.monotonic()
    done = run.command(child(code), live=True, timeout=60, env={"DEPLOY_RUN": f"test {began}"})
    assert time.monotonic() - began < 10, "the child is not waited for"
    assert "done\n" in done.out
    run.end_leftovers(f"test {began}")
    assert run.leftovers(f"test {began}") == {}

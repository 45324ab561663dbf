"""Steps see the same variables as services: files.parse_variables() against systemd itself, on damaged files too."""

from __future__ import annotations

import random
import sys
from pathlib import Path

from lab.world import World

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
from deployer import files as deployer_files

FILES = 200
BEGINNINGS = [
    "A=",
    "B=",
    "C =",
    " A= ",
    "B=",
    "export D=",
    "1X=",
    "E.F=",
    "=",
    "# it's A=",
    "; ",
    "A",
    "\t",
    "",
    "A==",
    "A\r\nB=",
]
PIECES = [
    "'",
    '"',
    "\\",
    "\\\n",
    "\n",
    " ",
    "  ",
    "\t",
    "\r\n",
    "#",
    ";",
    "it's",
    "$HOME",
    "`",
    '\\"',
    "\\'",
    "\\\\",
    "\\n",
]
PIECES += ["x", "two words", "ü", "x#y", "x ;y", "'a b'", '"c d"', "=", "B="]
NAMES = ["A", "B", "C", "D", "X", "E", "F"]


def a_file(chosen: random.Random) -> str:
    return "".join(
        chosen.choice(BEGINNINGS) + "".join(chosen.choices(PIECES, k=chosen.randint(0, 6))) + "\n"
        for _ in range(chosen.randint(1, 4))
    )[: chosen.choice([None, None, -1])]


SHOW = r"""
import os, subprocess, sys
for number in range(int(sys.argv[1])):
    done = subprocess.run(["systemd-run", "--quiet", "--pipe", "--wait", "--collect",
                           "-p", f"EnvironmentFile=/root/env/{number}", "env", "-0"], capture_output=True)
    variables = [word for word in done.stdout.split(b"\0") if word.partition(b"=")[0].decode() in sys.argv[2:]]
    print(repr(sorted(variables)) if done.returncode == 0 else done.stderr)
"""


def test_parse_env_file_reads_what_systemd_reads(bare: World) -> None:
    machine = bare.machine("services")
    chosen = random.Random(7)
    texts = [a_file(chosen) for _ in range(FILES)]
    texts += ["A=1\nB2='two\nlines'\n_c=\"a\\\nb\"\n# A=2\n", "A=1 # no comment\n", "A='x' y\n", 'A="$HOME `x` \\$"\n']
    folder = machine.root / "root/env"
    folder.mkdir()
    for number, text in enumerate(texts):
        (folder / str(number)).write_bytes(text.encode())
    lines = machine.run("python3", "-c", SHOW, str(len(texts)), *NAMES, timeout=200).stdout.splitlines()
    assert len(lines) == len(texts)
    different = []
    for text, line in zip(texts, lines, strict=True):
        found = deployer_files.parse_variables(text)
        ours = repr(sorted(f"{name}={value}".encode() for name, value in found.items() if name in NAMES))
        if ours != line:
            different.append((text, "systemd:", line, "ours:", ours))
    assert different == []
    assert len({line for line in lines if line != "[]"}) > FILES / 2, "most say something"

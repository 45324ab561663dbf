"""deployer/ini.py reads what configparser reads, and refuses what that refuses."""

from __future__ import annotations

import configparser
import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
from deployer import errors, ini

PARTS = [
    "[a]",
    "[b c]",
    "[",
    "]",
    "x",
    "Y",
    "=",
    " = ",
    ";",
    " ; ",
    "#",
    "\n",
    "\n",
    "\n",
    "\n\n",
    "  ",
    "\t",
    "v=",
    "1",
]


def by_configparser(text: str) -> dict[str, dict[str, str]] | None:
    parser = configparser.ConfigParser(
        interpolation=None, delimiters="=", inline_comment_prefixes=";", default_section="\0"
    )
    try:
        parser.read_string(text)
    except configparser.Error:
        return None
    return {name: dict(parser[name]) for name in parser.sections()}


def by_ini(text: str) -> dict[str, dict[str, str]] | None:
    try:
        return {name: dict(section) for name, section in ini.parse(text).items()}
    except errors.UsageError:
        return None


@pytest.mark.parametrize(
    "text",
    [
        "[a]\nx = 1 ; why\ny = a;b\nz = ;c\n",
        "[a]\nx = 1\n  2\n\n  3\n# no\n  4 ; five\ny =\n",
        "[a]\n  x = 1\n  y = 2\n    more = 3\n",
        "[a]\nKey = V\n[b]\nkey = v = w\n",
        "x = 1\n",
        "[a]\n= 1\n",
        "[a]\nx\n",
        "[a]\nx = 1\nX = 2\n",
        "[a]\n[a]\n",
        (Path(ini.__file__).with_name("defaults.ini")).read_text(),
    ],
)
def test_as_configparser(text: str) -> None:
    assert by_ini(text) == by_configparser(text)


@pytest.mark.slow
def test_as_configparser_at_random() -> None:
    dice, taken = random.Random(1), 0
    for _ in range(20_000):
        text = "[s]\n" * dice.randint(0, 1) + "".join(dice.choices(PARTS, k=dice.randint(1, 12)))
        assert by_ini(text) == by_configparser(text), repr(text)
        taken += by_ini(text) is not None
    assert taken > 2000


def test_later_files_count_more() -> None:
    assert ini.parse("[a]\nx = 1\ny = 1\n", "[a]\nx = 2\n[b]\n") == {"a": {"x": "2", "y": "1"}, "b": {}}

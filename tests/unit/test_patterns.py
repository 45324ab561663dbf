"""Patterns of `inputs`: what they match, and that no pattern takes for ever."""

from __future__ import annotations

import random
import re
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
from deployer import inputs


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("**/*.py", "a.py a/b/c.py", "a.pyc a/b"),
        ("*.py", "a.py", "a/b.py"),
        ("a/**", "a/b a/b/c", "a b/a"),
        ("**/migrations/**/*.py", "migrations/x.py a/b/migrations/c/d.py", "migrations.py a/migrations"),
        ("a?[bc]/*/*/*.x", "a1b/2/3/4.x", "a/b/2/3/4.x a1d/2/3/4.x"),
        ("[!a]*", "b", "a"),
    ],
)
def test_what_they_match(pattern: str, yes: str, no: str) -> None:
    found = inputs.Pattern(pattern)
    assert [path for path in yes.split() if not found.matches(path)] == []
    assert [path for path in no.split() if found.matches(path)] == []


def test_both_ways_of_matching_agree() -> None:
    dice = random.Random(1)
    for _ in range(5000):
        pattern = "".join(dice.choices(["**/", "**", "*", "?", "[ab]", "a", "b", "/"], k=dice.randint(1, 7)))
        path = "".join(dice.choices("ab/", k=dice.randint(0, 7)))
        found = inputs.Pattern(pattern)
        expected = bool(re.fullmatch("".join(map(inputs.regex_of, found.tokens)), path))
        found.regex = None
        assert found.matches(path) == expected, (pattern, path)


@pytest.mark.parametrize("pattern", ["**/" * 24 + "x", "**/a/" * 24 + "x", "*a" * 24 + "*b", "**a" * 24 + "b"])
def test_no_pattern_takes_for_ever(pattern: str) -> None:
    began = time.monotonic()
    for path in ("a/" * 40 + "y", "a" * 200, "a/a" * 60):
        assert not inputs.Pattern(pattern).matches(path)
    assert time.monotonic() - began < 5, "a regular expression would need years"

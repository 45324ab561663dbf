"""From where a machine fetches: not by a way on which anybody could choose the code."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
from deployer import errors, host


@pytest.mark.parametrize(
    "url",
    [
        "http://git.example.com/a.git",
        "HTTP://git.example.com/a.git",
        "git://git.example.com/a.git",
        "ftp://git.example.com/a.git",
        "http://localhost.example.com/a",
        "http://127.0.0.1@git.example.com/a",
    ],
)
def test_an_address_on_whose_way_anybody_may_choose_the_code_is_refused(url: str) -> None:
    with pytest.raises(errors.UsageError, match=r"could choose the code .*: use https://.* or ssh://"):
        host.check_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "https://git.example.com/a.git",
        "ssh://git@git.example.com:2222/a",
        "git@git.example.com:you/a.git",
        "/srv/git/a.git",
        "file:///srv/git/a.git",
        "http://localhost:3000/a.git",
        "http://[::1]/a.git",
        "git://127.0.0.1/a",
    ],
)
def test_other_addresses_are_taken(url: str) -> None:
    assert host.check_url(url) == url

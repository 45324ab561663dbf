"""What goes out to people and watchers, by value: no mention or link, from whichever program; the address of a ping."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
import deploy_failed
import webhook
from deployer import messages

HOSTILE = "<!channel> <https://evil.example|sign in> @here ![a](https://evil.example/a.png) www.x"


def test_each_program_makes_the_same_marks_harmless() -> None:
    """They run on different machines, and must not import one another."""
    assert webhook.CHAT == messages.CHAT == deploy_failed.CHAT
    assert webhook.chat(HOSTILE) == f"`{messages.without_markup(HOSTILE)}`"
    assert not [mark for mark in messages.CHAT if mark in messages.without_markup(HOSTILE)]


@pytest.mark.parametrize(
    ("url", "failing"),
    [
        ("https://ping.example/some-uuid", "https://ping.example/some-uuid/fail"),
        ("https://ping.example/some-uuid/", "https://ping.example/some-uuid/fail"),
        ("https://ping.example/key/app?create=1", "https://ping.example/key/app/fail?create=1"),
    ],
)
def test_where_a_failure_is_pinged(url: str, failing: str) -> None:
    assert messages.failing(url) == failing

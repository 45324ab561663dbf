"""Slots by value: what the kernel's table says of a socket, and which calls root is asked for."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
from deployer import config, draining, services, slots

BLUE = slots.Slot(
    "blue", "gunicorn@blue.service", "gunicorn@blue.socket", "/run/gunicorn-blue.sock", "/run/gunicorn-blue.sock"
)
# as Linux writes it: the listening socket, one that waits or is answered, one of the other slot, one without a name
TABLE = """\
Num       RefCount Protocol Flags    Type St Inode Path
000000007d715c2c: 00000002 00000000 00010000 0001 01 4623988 /run/gunicorn-blue.sock
00000000520f340e: 00000003 00000000 00000000 0001 03 4633079 /run/gunicorn-blue.sock
00000000520f340f: 00000003 00000000 00000000 0001 03 4633080 /run/gunicorn-green.sock
00000000520f3410: 00000003 00000000 00000000 0001 03 4633081
"""


def test_requests_under_way_are_counted_and_the_listening_socket_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draining, "SOCKETS", tmp_path / "unix")
    (tmp_path / "unix").write_text(TABLE)
    assert draining.connections(BLUE) == 1
    (tmp_path / "unix").write_text(TABLE.replace("4633079 /run/gunicorn-blue.sock", "4633079"))
    assert draining.connections(BLUE) == 0


def test_a_release_serves_from_the_slot_that_its_link_names(tmp_path: Path) -> None:
    green = BLUE._replace(name="green", socket="/run/gunicorn-green.sock")
    release = slots.Release(tmp_path)
    assert slots.serving(release, [BLUE, green]) is None
    (tmp_path / ".socket").symlink_to(green.socket)
    assert slots.serving(release, [BLUE, green]) == green
    assert slots.idle([BLUE, green], green) == BLUE


def calls(role: str) -> list[str]:
    settings = config.parse("", "defaults")
    return [" ".join(words) for words in services.privileged_calls(settings, config.roles_of([role], settings))]


def test_root_is_asked_for_exactly_these_calls() -> None:
    systemctl = "/usr/bin/systemctl"
    of_a_slot = [
        f"{systemctl} {verb} gunicorn@{slot}.{kind}"
        for slot in ("blue", "green")
        for kind, verbs in (
            ("service", ("start", "stop --no-block", "kill --signal=KILL", "reset-failed")),
            ("socket", ("start", "stop")),
        )
        for verb in verbs
    ]
    before = [
        f"{systemctl} {verb} gunicorn.{kind}"
        for kind in ("socket", "service")
        for verb in ("stop --no-block", "disable")
    ]
    nginx = [f"{systemctl} {verb} nginx.service" for verb in ("reload", "start", "reset-failed")]
    foreign = [f"{systemctl} disable --now scheduler.{kind}" for kind in ("service", "socket")]
    assert sorted(calls("frontend")) == sorted([*of_a_slot, *before, *nginx, *foreign, "/usr/sbin/nginx -t -q"])
    own = [f"{systemctl} {verb} scheduler.service" for verb in ("start", "stop", "restart", "reset-failed")]
    instances = [f"gunicorn@{slot}.{kind}" for slot in ("blue", "green") for kind in ("service", "socket")]
    assert sorted(calls("scheduler")) == sorted([*own, *(f"{systemctl} disable --now {unit}" for unit in instances)])

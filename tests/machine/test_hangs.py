"""Services and health checks that hang: the deploy ends within its limits, and the old release serves again."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from lab.machine import Deploy, Machine
from lab.world import World

DRIP = """
import socket, time
server = socket.create_server(("127.0.0.1", 9999))
while True:
    client, _ = server.accept()
    client.sendall(b"HTTP/1.1 200 OK\\r\\n")
    for _ in range(60):
        client.sendall(b"X-Drip: yes\\r\\n")
        time.sleep(1)
"""


def deploy_quickly(machine: Machine, seconds: float) -> Deploy:
    began = time.monotonic()
    done = machine.deploy(expect=11)
    assert time.monotonic() - began < seconds
    return done


@contextmanager
def dripping_server(machine: Machine) -> Iterator[None]:
    """Accepts, and sends a header every second for a minute."""
    process = subprocess.Popen([*machine.argv(), "python3", "-c", DRIP])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def limited(world: World, limits: str, more: str = "") -> dict[str, str]:
    text = (world.clone / "deploy.ini").read_text()
    return {"deploy.ini": f"[deploy]\n{limits}\n{text}{more}"}


def test_a_service_that_never_becomes_active(world: World) -> None:
    frontend = world.boot("frontend")
    good = frontend.health()
    drop_in = frontend.root / "etc/systemd/system/gunicorn@.service.d/hang.conf"
    drop_in.parent.mkdir(exist_ok=True)
    drop_in.write_text("[Service]\nExecStartPre=/bin/sh -c 'test ! -e /srv/app/slots/%i/hang || sleep 1000'\n")
    frontend.sh("systemctl daemon-reload")
    world.commit({**limited(world, "service_timeout = 4"), "hang": ""})
    done = deploy_quickly(frontend, 40)
    assert "systemctl start gunicorn@green.service took longer than 4 s and was ended" in done.message
    assert frontend.health() == good
    assert "sleep 1000" not in frontend.out("ps -eo args")


def test_an_application_that_hangs_when_it_is_loaded(world: World) -> None:
    frontend = world.boot("frontend")
    good = frontend.health()
    hang = world.edit("mysite/wsgi.py", "import os\n", "import os\nimport time\n\ntime.sleep(1000)\n")
    world.commit({**limited(world, "health_timeout = 4"), **hang})
    done = deploy_quickly(frontend, 45)
    assert "not healthy within 4 s" in done.message or "does not answer" in done.message
    assert frontend.health() == good


def test_a_push_whose_client_is_suspended(world: World) -> None:
    """Nobody takes what the deploy says: it goes on without, to its end, and its journal has it all."""
    frontend = world.boot("frontend")
    talk = "\n[step talk]\nrun = sh -c 'head -c 3000000 /dev/zero | tr \\\\0 x | fold -w 1900; echo; echo said all'\n"
    new = world.commit(limited(world, "health_timeout = 30", talk))
    (world.home / "pinned").write_text(world.known_hosts())
    options = f"-F /dev/null -i {world.home}/ci -o IdentitiesOnly=yes -o UserKnownHostsFile={world.home}/pinned"
    command = "/srv/app/bin/deploy_machine.py deploy --trigger cd --json"
    enter = ["ip", "netns", "exec", world.network.namespace("runner")]
    client = subprocess.Popen(
        [*enter, "ssh", *options.split(), f"deploy@{frontend.address}", command],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert client.stderr and "fetching" in client.stderr.readline()
        client.send_signal(signal.SIGSTOP)
        gone = "! pgrep -f [d]eploy_machine.py"
        frontend.wait_until(lambda: frontend.sh(gone, check=False).returncode == 0, "the deploy goes on", 90)
        assert frontend.health()["commit"] == new
        journal = frontend.journal("-t", "deploy-machine", "-o", "cat")
        assert "x" * 1900 in journal and "said all" in journal and f"deployed: {new[:8]} deployed" in journal
    finally:
        client.kill()
        client.wait()


def test_a_health_check_whose_answer_drips_in(world: World) -> None:
    frontend = world.boot("frontend")
    good = frontend.health()
    world.commit(limited(world, "health_timeout = 4", "\n[role frontend]\nhealth = http://127.0.0.1:9999/\n"))
    with dripping_server(frontend):
        done = deploy_quickly(frontend, 45)
    assert "the health check does not end" in done.message
    assert frontend.health() == good

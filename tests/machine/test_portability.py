"""The same script on older and newer systems, with an application that is not Django."""

from __future__ import annotations

import pytest

from lab.host import REPOSITORY
from lab.machine import Machine
from lab.world import World

SUITES = ["bullseye", "bookworm", "trixie"]

SERVER = """\
import http.server, pathlib

GREETING = pathlib.Path("build/greeting").read_text()
COMMIT = pathlib.Path("REVISION").read_text()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write((GREETING + COMMIT).encode())


http.server.HTTPServer(("127.0.0.1", 8000), Handler).serve_forever()
"""

DEPLOY_INI = """\
[step greeting]
inputs = greeting.in
provides = build
run = sh -c 'mkdir build && tr a-z A-Z < greeting.in > build/greeting'

[role web]
services = hello.service
health = http://127.0.0.1:8000/
"""

HELLO = """\
[Unit]
Description=Says hello
After=deploy-on-startup.service
ConditionPathExists=/srv/app/current/server.py

[Service]
User=app
WorkingDirectory=/srv/app/current
ExecStart=/usr/bin/python3 server.py
Restart=always

[Install]
WantedBy=multi-user.target
"""


@pytest.mark.parametrize("suite", SUITES)
def test_another_application_on(suite: str, bare: World) -> None:
    startup = (REPOSITORY / "systemd/deploy-on-startup.service").read_text()
    startup = startup.replace("Before=scheduler.service", "Before=hello.service scheduler.service")
    files = {"server.py": SERVER, "deploy.ini": DEPLOY_INI, "greeting.in": "hello\n"}
    units = {
        "systemd/hello.service": HELLO,
        "systemd/deploy-on-startup.service": startup,
    }
    for name in ("backoff.conf", "deploy-failed.service", "deploy-watch.service", "deploy-watch.timer"):
        units[f"systemd/{name}"] = (REPOSITORY / "systemd" / name).read_text()
    first = bare.replace_application({**files, **units})
    machine = bare.machine("third", suite)
    bare.boot("third")
    done = bare.set_up("third", roles=["web"])
    assert done.returncode == 0, done.stdout + done.stderr
    bare.allow_to_read((machine.root / "home/deploy/.ssh/id_ed25519.pub").read_text().strip())

    deployed = machine.deploy()
    assert (deployed.outcome, deployed.ran) == ("deployed", ["greeting"])
    answer = "curl -s http://127.0.0.1:8000/"
    assert machine.out(answer).split() == ["HELLO", first]
    again = bare.set_up("third", roles=["web"])
    assert "no changes, all is as it should be" in again.stdout

    before = machine.pids("hello.service")
    assert machine.deploy().outcome == "unchanged"
    assert machine.pids("hello.service") == before

    second = bare.commit({"server.py": SERVER + "# changed\n"})
    changed = machine.deploy()
    assert (changed.ran, changed.actions) == ([], {"hello.service": "restarted"})
    assert machine.out(answer).split() == ["HELLO", second]

    bare.commit({"server.py": "raise SystemExit(1)\n"})
    assert machine.deploy(expect=11).result["commit"] == second
    assert machine.out(answer).split() == ["HELLO", second]

    # and it catches up at boot
    machine.shut_down()
    third = bare.commit({"server.py": SERVER, "greeting.in": "bye\n"})
    machine.boot()
    assert machine.wait_for_startup() == "exited"
    assert machine.out(answer).split() == ["BYE", third]
    version = machine.out("systemctl --version | head -1")
    assert machine.out("systemd-analyze verify /etc/systemd/system/hello.service 2>&1") == "", version
    the_units_are_clean_and_tight_on(machine)


# what `systemd-analyze security` says of each; the deploy itself may do what its steps may need
EXPOSURE = {
    "scheduler.service": 1.1,
    "gunicorn@blue.service": 1.1,
    "deploy-failed.service": 1.1,
    "deploy-on-startup.service": 9.2,
    "deploy-watch.service": 9.2,
    "gunicorn-old-address.service": 9.2,
}


def the_units_are_clean_and_tight_on(machine: Machine) -> None:
    """systemd-analyze finds nothing in them, and an exposure no larger than it was (its own scale, 0 to 10)."""
    names = [path.name for path in (REPOSITORY / "systemd").iterdir()]
    units = sorted(name for name in names if name.endswith((".service", ".socket", ".timer")))
    programs = [f"slots/{slot}/.venv/bin/gunicorn" for slot in ("blue", "green", "i", "test-instance", "test_instance")]
    programs = ["current/.venv/bin/python", "bin/deploy_machine.py", *programs]
    install = " && ".join(f"install -D /bin/true /srv/app/{program}" for program in programs)
    machine.sh(f"{install} && (id www-data || useradd -r www-data)")
    for unit in units:
        (machine.root / "etc/systemd/system" / unit).write_text((REPOSITORY / "systemd" / unit).read_text())
    machine.run("systemctl", "daemon-reload")
    found = machine.out(
        "systemd-analyze verify --man=no " + " ".join(f"/etc/systemd/system/{u}" for u in units) + " 2>&1"
    )
    assert found == ""
    for unit, exposure in EXPOSURE.items():
        line = machine.out(f"systemd-analyze security --no-pager {unit} | tail -1")
        assert float(line.split(":")[1].split()[0]) <= exposure, line

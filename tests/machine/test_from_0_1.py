"""A machine that version 0.1 has set up and deployed to (gunicorn.service) comes to have slots: nobody notices."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from faults.load import Answer, steady
from lab.host import REPOSITORY, call
from lab.machine import Machine
from lab.world import World, allow_and_configure

VERSION_0_1 = "d009b1f"
OURS = {"scripts": "scripts", "systemd": "systemd", "deploy/nginx": "examples/django/deploy/nginx"}
ADDRESSES = ("/run/gunicorn.sock", "/srv/app/current/.socket")


def as_of_0_1(world: World) -> None:
    """Put into the clone what version 0.1 had."""
    for there, here in OURS.items():
        shutil.rmtree(world.clone / there)
        (world.clone / there).mkdir()
        archive = world.home / "archive.tar"
        call("git", "-C", REPOSITORY, "archive", f"--output={archive}", f"{VERSION_0_1}:{here}")
        call("tar", "-x", "-C", world.clone / there, "-f", archive)


def as_of_now(world: World) -> None:
    """Copy what is here over it, as a person does: units that are gone here stay there."""
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("scripts", "systemd"):
        shutil.copytree(REPOSITORY / name, world.clone / name, ignore=ignore, dirs_exist_ok=True)


@pytest.fixture
def old(bare: World) -> Iterator[Machine]:
    """A frontend that version 0.1 has set up and deployed to."""
    as_of_0_1(bare)
    bare.commit({}, "version 0.1")
    frontend = bare.boot("frontend")
    done = bare.set_up("frontend")
    assert done.returncode == 0, done.stdout + done.stderr
    allow_and_configure(bare, frontend)
    assert frontend.deploy().outcome == "deployed"
    as_of_now(bare)
    yield frontend


def failed(answers: list[Answer]) -> list[Answer]:
    """The requests that were not answered well; there were many. (nginx closes kept connections when it reloads.)"""
    own = [answer for answer in answers if answer.kind == "new connection"]
    assert len(own) > 40
    return [answer for answer in own if answer.status != 200]


def answers_at(frontend: Machine, address: str) -> str:
    """How the application answers at a socket, asked as deploy does."""
    request = f"curl -s -m 10 -o /dev/null -w '%{{http_code}}' --unix-socket {address} http://127.0.0.1/healthz"
    return frontend.sh(request, user="deploy", check=False).stdout


def test_setup_changes_nothing_and_the_next_deploy_moves_the_site(bare: World, old: Machine) -> None:
    pid = old.pids("gunicorn.service")
    check = bare.set_up("frontend", "--check")
    assert (check.returncode, "differs: /etc/systemd/system/gunicorn@.service: created" in check.stdout) == (1, True)
    with steady(bare, old.address) as answers:
        done = bare.set_up("frontend")
        again = bare.set_up("frontend")
    assert done.returncode == 0, done.stdout + done.stderr
    assert failed(answers) == []
    note = "note: gunicorn.service of version 0.1 serves, and goes on: the next deploy by these scripts moves the site"
    assert (done.stdout.count(note), again.stdout.count(note)) == (1, 1)
    assert "no changes, all is as it should be" in again.stdout, again.stdout
    assert old.pids("gunicorn.service") == pid
    assert [answers_at(old, address) for address in ADDRESSES] == ["200", "200"]

    old.sh("kill -9 $(systemctl show -p MainPID --value gunicorn.service)")  # it comes back at the same socket
    old.wait_until(lambda: answers_at(old, ADDRESSES[0]) == "200", "gunicorn.service is not back")

    old.shut_down()
    bare.boot("frontend")
    assert old.health()["status"] == 200
    assert [answers_at(old, address) for address in ADDRESSES] == ["200", "200"]
    assert "no changes, all is as it should be" in bare.set_up("frontend").stdout

    a_deploy_of_version_0_1_in_between(bare, old)
    the_next_deploy_moves_the_site(bare, old)


def a_deploy_of_version_0_1_in_between(bare: World, old: Machine) -> None:
    """Somebody's merge, or a boot, before the new scripts are on main."""
    bare.git("stash", "--include-untracked")
    with steady(bare, old.address) as answers:
        commit = bare.commit({"frontend/board.css": "b { color: red }\n"})
        done = old.deploy()
        assert (done.outcome, done.actions["gunicorn.service"]) == ("deployed", "restarted")
    assert failed(answers) == []
    assert old.health()["commit"] == commit
    bare.git("stash", "pop")


def the_next_deploy_moves_the_site(bare: World, old: Machine) -> None:
    with steady(bare, old.address) as answers:
        commit = bare.commit({}, "with the scripts of now")
        done = old.deploy()
        assert (done.outcome, done.result["commit"]) == ("deployed", commit)
        assert old.health()["commit"] == commit
        for _ in range(2):  # what deploy-watch.timer does: the first look lets it stay, in case it is to serve again
            old.run("/srv/app/bin/deploy_machine.py", "watch", user="deploy")
    assert failed(answers) == []
    for unit in ("gunicorn.service", "gunicorn.socket"):
        assert (old.show(unit, "ActiveState"), old.show(unit, "UnitFileState")) == ("inactive", "disabled")
    assert old.out("readlink /srv/app/current/.socket") == "/run/gunicorn-blue.sock"
    assert old.out("readlink /run/gunicorn.sock") == "/srv/app/current/.socket"
    again = bare.set_up("frontend")
    assert "/etc/systemd/system/gunicorn.service: removed" in again.stdout
    for _ in range(2):
        old.shut_down()
        bare.boot("frontend")
        assert (old.health()["status"], old.health()["commit"]) == (200, commit)


def test_the_old_address_leads_to_the_instance_that_serves(bare: World, old: Machine) -> None:
    """What a deploy starts with an instance, here by hand: under load, and at boots after it."""
    assert bare.set_up("frontend").returncode == 0
    assert old.show("gunicorn-old-address.service", "UnitFileState") == "enabled"
    old.sh("systemctl start gunicorn-old-address.service && test ! -L /run/gunicorn.sock")
    with steady(bare, old.address) as answers:
        old.sh("ln -s $(readlink -f /srv/app/current) /srv/app/slots/blue", user="deploy")
        for _ in range(2):
            old.sh("systemctl start gunicorn-old-address.service")
            assert old.out("readlink /run/gunicorn.sock /run/gunicorn-old.sock || true") == "/srv/app/current/.socket"
            assert answers_at(old, "/run/gunicorn-old.sock") == "200"
        assert "no changes" in bare.set_up("frontend").stdout
    assert failed(answers) == []
    old.shut_down()
    bare.boot("frontend")
    assert old.out("readlink /run/gunicorn.sock /run/gunicorn-old.sock || true") == "/srv/app/current/.socket"
    assert old.health()["status"] == 200
    assert answers_at(old, "/run/gunicorn-old.sock") == "200"


def test_who_is_there_may_finish_when_the_old_socket_stops(bare: World, old: Machine) -> None:
    """The end of the old service: nobody new comes, and to stop its socket does not stop it."""
    assert bare.set_up("frontend").returncode == 0
    pid = old.pids("gunicorn.service")
    old.sh("systemctl stop gunicorn.socket")
    assert old.pids("gunicorn.service") == pid
    old.sh("systemctl stop gunicorn.service && systemctl disable gunicorn.socket gunicorn.service")
    old.sh("ln -sfT /run/gunicorn-blue.sock /srv/app/current/.socket", user="deploy")
    done = bare.set_up("frontend")
    for unit in ("gunicorn.service", "gunicorn.socket"):
        assert f"+ /etc/systemd/system/{unit}: removed" in done.stdout
        assert old.show(unit, "LoadState") == "not-found"
    assert "note: gunicorn" not in done.stdout
    place = "/etc/nginx/sites-enabled/board.conf"
    assert f"to do: nginx: write in {place}:" in done.stdout
    assert "proxy_pass http://unix:/srv/app/current/.socket;" in done.stdout
    assert old.out("cat /etc/sudoers.d/deploy-machine").count("restart gunicorn.service") == 0
    assert old.show("gunicorn-old-address.service", "UnitFileState") == "enabled", "nginx still needs it"
    assert "no changes" in bare.set_up("frontend").stdout
    old.sh(f"sed -i s,unix:/run/gunicorn.sock,unix:/srv/app/current/.socket, {place}")
    done = bare.set_up("frontend")
    assert "/etc/systemd/system/gunicorn-old-address.service: removed" in done.stdout
    assert "to do: nginx" not in done.stdout
    assert "no changes" in bare.set_up("frontend").stdout

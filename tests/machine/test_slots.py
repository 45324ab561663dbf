"""A web service is replaced, not restarted: what becomes of the two instances, in order and by accident."""

from __future__ import annotations

import json
import re

import pytest

from lab.machine import ASK, Machine
from lab.world import World
from waiting import wait_for


def serving(machine: Machine) -> str:
    """The slot that users' requests reach: blue or green."""
    return machine.out("readlink /srv/app/current/.socket").removeprefix("/run/gunicorn-").removesuffix(".sock")


def running(machine: Machine) -> list[str]:
    return [slot for slot in ("blue", "green") if machine.show(f"gunicorn@{slot}.service", "ActiveState") == "active"]


def watch(machine: Machine, expect: int = 0) -> dict[str, object]:
    """What deploy-watch.timer runs."""
    done = machine.run("/srv/app/bin/deploy_machine.py", "watch", "--json", user="deploy", check=False)
    assert done.returncode == expect, done.stdout + done.stderr
    result: dict[str, object] = json.loads(done.stdout)
    return result


@pytest.fixture
def frontend(world: World) -> Machine:
    machine = world.boot("frontend")
    machine.run("systemctl", "stop", "deploy-watch.timer")  # each look is a test's own
    return machine


def test_a_deploy_starts_the_other_slot_and_leaves_the_first(world: World, frontend: Machine) -> None:
    first = serving(frontend)
    new = world.commit(world.edit("board/views.py", "[:50]", "[:40]"))
    done = frontend.deploy()
    assert (done.outcome, frontend.health()["commit"]) == ("deployed", new), done.log
    second = serving(frontend)
    assert {first, second} == {"blue", "green"}
    assert running(frontend) == ["blue", "green"], "it may still answer what it has begun"
    watch(frontend)
    watch(frontend)
    assert running(frontend) == [second]
    assert frontend.show(f"gunicorn@{first}.socket", "ActiveState") == "inactive"


def test_a_release_that_does_not_prove_well_is_never_switched_to(world: World, frontend: Machine) -> None:
    old, slot = frontend.health()["commit"], serving(frontend)
    current = frontend.out("readlink /srv/app/current")
    bad = world.commit(
        world.edit("board/views.py", "    try:\n", "    return JsonResponse({}, status=500)\n    try:\n")
    )
    done = frontend.deploy(expect=11)
    assert (done.outcome, frontend.health()["commit"]) == ("rolled_back", old)
    assert done.result["seconds"] < 30, "a steady 5xx ends the wait early"
    assert (frontend.out("readlink /srv/app/current"), serving(frontend)) == (current, slot)
    wait_for(lambda: running(frontend) == [slot], "the other one is stopped", pause=ASK)
    assert frontend.deploy(expect=10).message.startswith(f"{bad[:8]} is not tried again")


def test_going_back_to_what_was_just_left_is_one_rename(world: World, frontend: Machine) -> None:
    first, slot = frontend.health()["commit"], serving(frontend)
    world.commit(world.edit("board/views.py", "[:50]", "[:40]"))
    frontend.deploy()
    before = frontend.show(f"gunicorn@{slot}.service", "InvocationID")
    done = frontend.deploy("rollback")
    assert (done.outcome, frontend.health()["commit"], serving(frontend)) == ("rolled_back_on_request", first, slot)
    assert frontend.show(f"gunicorn@{slot}.service", "InvocationID") == before, "it was not started anew"


def test_at_a_boot_exactly_the_slot_that_serves_starts(world: World, frontend: Machine) -> None:
    world.commit(world.edit("board/views.py", "[:50]", "[:40]"))
    frontend.deploy()
    slot = serving(frontend)
    frontend.run("systemctl", "disable", "deploy-on-startup.service")
    frontend.shut_down()
    frontend.boot()
    wait_for(lambda: running(frontend) == [slot], "it starts", pause=ASK)
    assert frontend.health()["status"] == 200
    assert frontend.out("systemctl --failed --no-legend --plain") == ""


def app_that(world: World, line: str, file: str = "mysite/wsgi.py") -> str:
    """Commit an application in which this happens when it is loaded."""
    text = (world.clone / file).read_text()
    return world.commit({file: text + line})


def test_workers_that_die_at_their_start_are_not_waited_for(world: World, frontend: Machine) -> None:
    """gunicorn starts new ones for ever, so that its unit stays active."""
    old, current = frontend.health()["commit"], frontend.out("readlink /srv/app/current")
    app_that(world, "\n\nimport os\n\nos._exit(1)\n")
    done = frontend.deploy(expect=11)
    assert "workers of gunicorn@" in done.message and "ended soon after their start" in done.message
    assert (done.outcome, frontend.health()["commit"]) == ("rolled_back", old)
    assert frontend.out("readlink /srv/app/current") == current
    assert done.result["seconds"] < 30, "health_timeout is 60"


DIES = """

import os, threading

threading.Timer({seconds}, os._exit, [1]).start()
"""


@pytest.mark.parametrize("seconds", [3, 12])
def test_workers_that_die_are_taken_back_in_the_probation(world: World, frontend: Machine, seconds: int) -> None:
    old = frontend.health()["commit"]
    bad = app_that(world, DIES.format(seconds=seconds))
    assert frontend.deploy().result["commit"] == bad

    def is_taken_back() -> bool:
        done = frontend.run("/srv/app/bin/deploy_machine.py", "watch", "--json", user="deploy", check=False)
        return done.returncode == 11 and json.loads(done.stdout)["outcome"] == "rolled_back"

    wait_for(is_taken_back, "it is taken back", 90, 5)
    assert frontend.health()["commit"] == old
    status = frontend.deploy("status").result
    assert [entry["commit"] for entry in status["bad_commits"]] == [bad]
    assert re.search("workers ended by themselves|502", status["bad_commits"][0]["why"])
    assert status["attempts"][-1]["trigger"] == "watch"


ILL = """

def ill(get_response):
    import os
    from django.http import HttpResponse
    place = "/srv/app/shared/data/ill"
    return lambda request: HttpResponse(status=503) if os.path.exists(place) else get_response(request)
"""


def test_what_falls_ill_after_its_probation_is_told_once_and_stays(world: World, frontend: Machine) -> None:
    settings = (world.clone / "mysite/settings.py").read_text()
    ini = (world.clone / "deploy.ini").read_text()
    wait = "\n[role frontend]\nprobation = 0\n" if "[role frontend]" not in ini else ""
    files = {"mysite/ill.py": ILL, "mysite/settings.py": settings + '\nMIDDLEWARE = ["mysite.ill.ill", *MIDDLEWARE]\n'}
    new = world.commit({**files, "deploy.ini": ini + wait})
    frontend.deploy()
    frontend.sh("touch /srv/app/shared/data/ill")
    for _ in range(2):
        assert watch(frontend)["healthy"] is False
    assert frontend.health()["status"] == 503, "it was well for its whole probation: a person has to look"
    assert frontend.journal("-t", "deploy-machine").count(f"{new[:8]} is not well") == 1
    done = frontend.deploy(expect=12)
    assert "already runs, nothing to do" not in done.message
    frontend.sh("rm /srv/app/shared/data/ill")
    assert watch(frontend)["healthy"] is True
    assert frontend.journal("-t", "deploy-machine").count(f"{new[:8]} is well again") == 1


def test_a_broken_file_of_nginx_is_told_before_anything_is_touched(world: World, frontend: Machine) -> None:
    old, slot = frontend.health()["commit"], serving(frontend)
    frontend.sh("echo 'listen nonsense' > /etc/nginx/conf.d/broken.conf")
    new = world.commit(world.edit("board/views.py", "[:50]", "[:40]"))
    done = frontend.deploy(expect=10)
    assert "nginx -t: unexpected end of file" in done.message and "/etc/nginx/conf.d/broken.conf" in done.message
    assert (frontend.health()["commit"], running(frontend)) == (old, [slot])
    frontend.sh("rm /etc/nginx/conf.d/broken.conf")
    assert frontend.deploy().result["commit"] == new, "the commit was not blamed for it"


def test_a_deploy_killed_while_it_proves_leaves_one_slot_after_the_next(world: World, frontend: Machine) -> None:
    slot = serving(frontend)
    new = app_that(world, "\nimport time\n\ntime.sleep(6)\n")
    frontend.run("systemd-run", "--unit=push", "--uid=deploy", "/srv/app/bin/deploy_machine.py")
    wait_for(lambda: len(running(frontend)) == 2, "the other slot runs", pause=ASK)
    frontend.run("systemctl", "kill", "--signal=KILL", "push.service")
    frontend.run("systemctl", "reset-failed", "push.service")
    assert running(frontend) == ["blue", "green"]
    watch(frontend)
    wait_for(lambda: running(frontend) == [slot], "the other one is stopped", pause=ASK)
    assert frontend.deploy().result["commit"] == new


SLOW = """

def slow(application):
    import time
    from urllib.parse import parse_qs
    def answer(environ, start_response):
        time.sleep(float(parse_qs(environ["QUERY_STRING"]).get("sleep", ["0"])[0]))
        return application(environ, start_response)
    return answer


application = slow(application)
"""


def test_a_second_deploy_waits_for_what_the_slot_still_answers(world: World, frontend: Machine) -> None:
    app_that(world, SLOW)
    frontend.deploy()
    request = "curl -s -m 60 -o /root/answer -w '%{http_code}' 'http://127.0.0.1/?sleep=25' > /root/code"
    frontend.run("systemd-run", "--unit=slow", "sh", "-c", request)
    left = serving(frontend)
    there = f"grep -c gunicorn-{left}.sock /proc/net/unix"
    wait_for(lambda: int(frontend.out(there)) > 1, "the request is there", pause=ASK)
    world.commit(world.edit("board/views.py", "[:50]", "[:40]"))
    first = frontend.deploy()
    assert first.result["seconds"] < 20, "the verdict does not wait for it"
    new = world.commit(world.edit("board/views.py", "[:40]", "[:30]"))
    second = frontend.deploy()
    assert f"gunicorn@{left}.service still answers" in second.log
    assert frontend.health()["commit"] == new
    wait_for(lambda: frontend.out("cat /root/code"), "it is answered", pause=ASK)
    assert frontend.out("cat /root/code") == "200", "it ended in its own time"


def test_without_memory_for_two_it_is_stopped_then_started(world: World, frontend: Machine) -> None:
    slot = serving(frontend)
    frontend.sh("sed 's/^MemAvailable:.*/MemAvailable: 1000 kB/' /proc/meminfo > /run/meminfo")
    frontend.sh("mount --bind /run/meminfo /proc/meminfo")
    new = world.commit(world.edit("board/views.py", "[:50]", "[:40]"))
    done = frontend.deploy()
    assert f"no memory for a second gunicorn@{slot}.service" in done.log
    assert (done.outcome, frontend.health()["commit"], len(running(frontend))) == ("deployed", new, 1)


def test_other_variables_reach_what_serves(world: World, frontend: Machine) -> None:
    """The commit runs already: it is made ready anew, and nobody has to restart anything."""
    frontend.run("sh", "-c", "echo FLAVOUR=vanilla >> /srv/app/shared/.env")
    before, slot = frontend.out("readlink /srv/app/current"), serving(frontend)
    done = frontend.deploy()
    assert (done.outcome, done.result["commit"]) == ("deployed", done.result["previous"])
    assert frontend.out("readlink /srv/app/current") != before and serving(frontend) != slot
    pid = frontend.show(f"gunicorn@{serving(frontend)}.service", "MainPID")
    frontend.run("grep", "-z", "FLAVOUR=vanilla", f"/proc/{pid}/environ")
    assert frontend.deploy().outcome == "unchanged"


def test_an_application_that_redirects_and_checks_its_hosts(world: World, frontend: Machine) -> None:
    """It is asked as nginx would ask it: health_headers."""
    settings = (world.clone / "mysite/settings.py").read_text()
    strict = "\nALLOWED_HOSTS = ['app.example.com']\nSECURE_SSL_REDIRECT = True\n"
    strict += "SECURE_PROXY_SSL_HEADER = ('HTTP_X_FORWARDED_PROTO', 'https')\n"
    strict += "MIDDLEWARE = ['django.middleware.security.SecurityMiddleware', *MIDDLEWARE]\n"
    ini = (world.clone / "deploy.ini").read_text()
    old = frontend.health()["commit"]
    world.commit({"mysite/settings.py": settings + strict})
    assert "answers 301" in frontend.deploy(expect=11).message or "answers 400" in frontend.deploy(expect=10).message
    assert frontend.health()["commit"] == old
    headers = (
        "\n[role frontend]\nhealth = /healthz /\nhealth_headers = Host: app.example.com, X-Forwarded-Proto: https\n"
    )
    new = world.commit({"deploy.ini": ini + headers})
    assert frontend.deploy().result["commit"] == new

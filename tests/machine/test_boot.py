"""A machine that boots catches up before it serves; whatever goes wrong, the application comes up."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from pathlib import Path

import pytest

from lab.machine import Machine
from lab.world import World

UNIT = "deploy-on-startup.service"


def off(world: World, name: str = "frontend") -> Machine:
    """A machine that was set up and has run, and is switched off now."""
    machine = world.boot(name)
    machine.shut_down()
    return machine


def configure(machine: Machine, **values: float) -> None:
    """Set keys of machine.ini."""
    path = machine.root / "srv/app/machine.ini"
    path.write_text(path.read_text() + "".join(f"{key} = {value}\n" for key, value in values.items()))


def started(machine: Machine, unit: str) -> float:
    """When a unit became active, in seconds after the machine's systemd began."""
    began = machine.out("systemctl show --property=UserspaceTimestampMonotonic --value")
    return (int(machine.show(unit, "ActiveEnterTimestampMonotonic")) - int(began)) / 1e6


def first_answers(machine: Machine) -> list[str]:
    """The commits in the first answers that the frontend gives from now on, one per request."""
    answers: list[str] = []
    end = time.monotonic() + 60
    while len(answers) < 3 and time.monotonic() < end:
        health = machine.health()
        if "commit" in health:
            answers.append(health["commit"])
    return answers


def last(machine: Machine) -> dict[str, object]:
    result: dict[str, object] = json.loads((machine.root / "srv/app/state/last.json").read_text())
    return result


def test_the_first_answer_after_a_boot_is_of_the_newest_commit(world: World) -> None:
    frontend = off(world)
    world.add_python_dependency("humanize (>=4,<5)")
    world.commit(world.edit("board/views.py", "import markdown\n", "import humanize  # noqa\nimport markdown\n"))
    world.commit(
        {
            "board/migrations/0002_pinned.py": """\
                from django.db import migrations, models


                class Migration(migrations.Migration):
                    dependencies = [("board", "0001_initial")]
                    operations = [migrations.AddField("notice", "pinned", models.BooleanField(db_default=False))]
                """
        },
        "a migration",
    )
    newest = world.commit({"static/new.txt": "new\n"}, "a static file")
    frontend.boot(wait="")
    assert first_answers(frontend) == [newest] * 3
    assert frontend.wait_for_startup() == "exited"
    assert last(frontend)["trigger"] == "boot"
    assert frontend.out("curl -s http://127.0.0.1/static/new.txt") == "new"
    report = frontend.out("journalctl -b -t deploy-machine -o cat")
    assert "3 commits ahead of what runs" in report
    assert "Installing humanize" in report
    assert "Applying board.0002_pinned... OK" in report
    assert started(frontend, frontend.serving()) >= started(frontend, UNIT)


def test_the_scheduler_catches_up_before_it_starts(world: World) -> None:
    scheduler = off(world, "scheduler")
    newest = world.commit(world.edit("board/views.py", "[:50]", "[:40]"))
    scheduler.boot(wait="scheduler.service")
    assert scheduler.out("cat /proc/$(systemctl show -p MainPID --value scheduler.service)/cwd/REVISION") == newest
    assert scheduler.wait_for_startup() == "exited"
    starts = scheduler.out("journalctl -b -u scheduler.service -o cat | grep -c 'scheduler started'")
    assert starts == "1"


def held_back(machine: Machine) -> float:
    """Boot it, and cut it off after a boot that went well; seconds for which the services waited."""
    if machine.is_on:
        machine.cut()
    machine.boot()
    assert machine.wait_for_startup() == "exited"
    begin, ready = (
        int(machine.show(UNIT, key)) for key in ("ExecMainStartTimestampMonotonic", "ActiveEnterTimestampMonotonic")
    )
    return (ready - begin) / 1e6


def test_nothing_new_costs_at_most_a_second(world: World) -> None:
    frontend = off(world)
    assert any(held_back(frontend) < 1.0 for _ in range(3)), "three times, as others have the processors, too"
    assert last(frontend)["outcome"] == "unchanged"
    assert frontend.health()["status"] == 200


def test_without_a_network_the_old_release_serves_and_it_catches_up_later(world: World) -> None:
    frontend = off(world)
    old = (frontend.root / "srv/app/current/REVISION").read_text().strip()
    newest = world.commit(world.edit("board/views.py", "[:50]", "[:40]"))
    configure(frontend, fetch_timeout=6)
    world.network.unplug("services")  # the repository and the database are away
    frontend.boot(wait="nginx.service")
    assert started(frontend, "nginx.service") < 15
    frontend.wait_for_unit(frontend.serving())
    assert (frontend.root / "srv/app/current/REVISION").read_text().strip() == old
    frontend.wait_until(lambda: "trying again" in frontend.show(UNIT, "StatusText"), "no status", 90)  # a minute in all
    assert frontend.show(UNIT, "ActiveState") == "active", "it goes on trying"
    world.network.plug("services")
    back = time.monotonic()
    frontend.wait_until(lambda: frontend.health() == {"status": 200, "commit": newest}, "did not catch up", 60)
    assert time.monotonic() - back < 60
    assert frontend.wait_for_startup() == "exited"


@pytest.mark.parametrize(
    ("file", "old", "new", "outcome"),
    [
        ("frontend/board.css", "body {", "@import 'missing.css';\nbody {", "failed"),
        ("mysite/wsgi.py", "import os\n", "import os\nimport does_not_exist\n", "rolled_back"),
        ("board/views.py", "    try:\n", "    return JsonResponse({}, status=500)\n    try:\n", "rolled_back"),
    ],
    ids=["step fails", "crashes", "answers 500"],
)
def test_a_bad_commit_is_tried_once_and_the_old_release_serves(
    world: World, file: str, old: str, new: str, outcome: str
) -> None:
    text = (world.clone / "deploy.ini").read_text()
    good = world.commit({"deploy.ini": f"[deploy]\nhealth_timeout = 8\n{text}"})
    frontend = off(world)
    bad = world.commit(world.edit(file, old, new))
    frontend.boot()
    assert frontend.wait_for_startup() == "failed"
    assert last(frontend)["outcome"] == outcome
    assert frontend.health() == {"status": 200, "commit": good}
    assert frontend.failed_units() == [UNIT]
    assert outcome in frontend.show(UNIT, "StatusText")
    frontend.shut_down()
    frontend.boot()
    assert frontend.wait_for_startup() == "failed"
    assert f"{bad[:8]} is not tried again" in frontend.show(UNIT, "StatusText")
    assert frontend.health() == {"status": 200, "commit": good}
    frontend.run("systemctl", "reset-failed", UNIT)


STAGES = ["fetching", "checking out", "step migrate", "step collectstatic", "switching", "services"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_power_cut_during_the_boot_deploy(world: World, stage: str) -> None:
    frontend = off(world)
    newest = world.commit(
        {**world.edit("frontend/board.css", "body {", "body{"), "board/migrations/0002_wait.py": MIGRATION_THAT_WAITS}
    )
    running = frontend.root / "srv/app/state/running.json"
    frontend.boot(wait="")
    frontend.wait_until(lambda: is_at(running, stage), f"stage {stage} was not seen", 30, pause=0.0001)
    frontend.cut()
    current = (frontend.root / "srv/app/current/REVISION").read_text().strip()
    assert len(current) == 40, "at every instant, current is a complete release"
    frontend.boot()
    assert frontend.wait_for_startup() == "exited"
    assert frontend.health() == {"status": 200, "commit": newest}
    assert "was interrupted" in frontend.journal("-b", "-t", "deploy-machine") or stage == "fetching"
    status = json.loads(frontend.out("/srv/app/bin/deploy_machine.py status --json", user="deploy"))
    assert (status["commit"], status["healthy"], status["interrupted"]) == (newest, True, False)


def is_at(running: Path, stage: str) -> bool:
    try:
        return f'"stage": "{stage}"' in running.read_text()
    except FileNotFoundError:
        return False


MIGRATION_THAT_WAITS = """\
    import time

    from django.db import migrations


    class Migration(migrations.Migration):
        dependencies = [("board", "0001_initial")]
        operations = [migrations.RunPython(lambda *_: time.sleep(1))]
    """


def test_a_shutdown_during_the_boot_deploy_is_quick_and_the_next_boot_whole(world: World) -> None:
    frontend = off(world)
    newest = world.commit({"board/migrations/0002_wait.py": MIGRATION_THAT_WAITS.replace("sleep(1)", "sleep(20)")})
    frontend.boot(wait="")
    running = frontend.root / "srv/app/state/running.json"
    frontend.wait_until(lambda: running.exists() and "step migrate" in running.read_text(), "no migrate", 30, 0.01)
    began = time.monotonic()
    frontend.shut_down(seconds=40)
    assert time.monotonic() - began < 30
    world.commit({"board/migrations/0002_wait.py": MIGRATION_THAT_WAITS})
    newest = world.git("rev-parse", "HEAD")
    frontend.boot()
    assert frontend.wait_for_startup() == "exited"
    assert frontend.health() == {"status": 200, "commit": newest}


def test_a_push_during_the_boot_waits_and_finds_nothing_to_do(world: World) -> None:
    frontend = off(world)
    newest = world.commit({"board/migrations/0002_wait.py": MIGRATION_THAT_WAITS.replace("sleep(1)", "sleep(3)")})
    frontend.boot(wait="")
    running = frontend.root / "srv/app/state/running.json"
    frontend.wait_until(lambda: running.exists() and "step migrate" in running.read_text(), "no migrate", 30, 0.01)
    pushed = frontend.deploy("--trigger", "cd", "--contains", newest)
    assert re.search(r"waiting for another deploy to end: process \d+ \(boot, since", pushed.log)
    assert pushed.outcome == "unchanged"
    assert frontend.wait_for_startup() == "exited"
    assert frontend.health() == {"status": 200, "commit": newest}


def test_a_push_that_came_first_and_finds_nothing_to_do_can_start_the_services(world: World) -> None:
    """It waits for systemd to start them, systemd for the boot's deploy, and that for the push."""
    frontend = world.boot("frontend")
    units = [frontend.serving(), "nginx.service", UNIT]
    frontend.run("systemctl", "stop", *units)
    slow = "s/^    deadline = time.monotonic() + machine.fetch_timeout/&; time.sleep(4)/"
    frontend.out("cp -r $(dirname $(readlink -f /srv/app/bin/deploy_machine.py)) /var/tmp/slow")
    frontend.out(
        f"cd /var/tmp/slow/deployer && sed -i '{slow}' deploy.py && rm -r __pycache__ && grep sleep.4 deploy.py"
    )
    command = ("python3", "/var/tmp/slow/deploy_machine.py", "--root=/srv/app")
    frontend.run("systemd-run", "--unit=push", "--uid=deploy", *command)
    running = frontend.root / "srv/app/state/running.json"
    frontend.wait_until(running.exists, "the push has not begun", 20, 0.05)
    frontend.run("systemctl", "start", "--no-block", *units)
    assert frontend.wait_for_startup() == "exited"
    assert frontend.health()["status"] == 200
    assert [last(frontend)[key] for key in ("trigger", "outcome")] == ["boot", "unchanged"]


def test_progress_is_shown_while_it_boots(world: World) -> None:
    frontend = off(world)
    world.commit({"board/migrations/0002_wait.py": MIGRATION_THAT_WAITS.replace("sleep(1)", "sleep(5)")})
    frontend.boot(wait="")
    frontend.wait_until(
        lambda: re.search(r"manage.py migrate --noinput \(\d+ s\)", frontend.show(UNIT, "StatusText")),
        "no progress was shown",
        30,
    )
    for slot in ("blue", "green"):
        assert frontend.show(f"gunicorn@{slot}.service", "ActiveState") == "inactive", "no start on the old release"
    assert frontend.wait_for_startup() == "exited"


def test_an_old_installed_script_hands_over_to_the_commits_own(world: World) -> None:
    frontend = off(world)
    newest = world.commit(world.edit("scripts/deployer/__init__.py", 'VERSION = "0.1.0"', 'VERSION = "0.2.0"'))
    frontend.boot()
    assert frontend.wait_for_startup() == "exited"
    assert frontend.health()["commit"] == newest
    assert frontend.out("/srv/app/bin/deploy_machine.py --version").endswith("0.2.0"), "and it is installed"
    frontend.shut_down()

    broken = world.commit({"scripts/deploy_machine.py": "raise SystemExit('does not start')\n"})
    frontend.boot()
    assert frontend.wait_for_startup() == "exited"
    assert frontend.health()["commit"] == broken
    assert frontend.out("/srv/app/bin/deploy_machine.py --version").endswith("0.2.0")
    frontend.shut_down()

    without = world.commit({"scripts/deploy_machine.py": None})
    frontend.boot()
    assert frontend.wait_for_startup() == "exited"
    assert frontend.health()["commit"] == without
    assert frontend.out("/srv/app/bin/deploy_machine.py --version").endswith("0.2.0")


def test_the_team_is_told_and_a_webhook_that_hangs_delays_nothing(world: World) -> None:
    frontend = off(world)
    services = world.machine("services")
    (services.root / "root/hook.py").write_text(WEBHOOK)
    services.sh("systemd-run --quiet --unit=hook python3 /root/hook.py")
    env = frontend.root / "srv/app/shared/.env"
    plain = env.read_text()
    env.write_text(plain + "DEPLOY_WEBHOOK_URL=http://services:8099/secret\nDEPLOY_PING_URL=http://services:8099/p\n")
    world.commit(world.edit("board/views.py", "[:50]", "[:40]"))
    newest = world.commit(world.edit("board/views.py", "[:40]", "[:30]"))
    frontend.boot()
    assert frontend.wait_for_startup() == "exited"
    body = json.loads((services.root / "root/body.json").read_text())
    assert re.fullmatch(rf"frontend caught up: [0-9a-f]{{8}} to {newest[:8]}, 2 commits behind, \d+ s", body["text"])
    assert body["results"][0]["commit"] == newest
    frontend.run("systemctl", "start", "deploy-watch.service")  # it may have looked by itself, too
    assert {*pings(world)} == {"/p"}
    frontend.shut_down()

    env.write_text(plain + "DEPLOY_WEBHOOK_URL=http://services:8098/secret\n")  # accepts, and never answers
    newest = world.commit(world.edit("board/views.py", "[:30]", "[:20]"))
    frontend.boot(wait="")
    assert first_answers(frontend)[0] == newest
    assert frontend.wait_for_startup() == "exited"
    journal = frontend.journal("-b", "-t", "deploy-machine")
    assert "the webhook could not be told" in journal
    assert "/secret" not in journal


WEBHOOK = """\
import http.server, socket, threading
silent = socket.create_server(("", 8098))
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        open("/root/body.json", "wb").write(body)
        open("/root/bodies", "ab").write(body + b"\\n")
        self.send_response(200)
        self.end_headers()
    def do_GET(self):
        open("/root/pings", "a").write(self.path + "\\n")
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("", 8099), Handler).serve_forever()
"""


def pings(world: World) -> list[str]:
    """What was asked for since this was asked last."""
    path = world.machine("services").root / "root/pings"
    found = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return found


def told(world: World) -> list[str]:
    """What the webhook was told since this was asked last."""
    path = world.machine("services").root / "root/bodies"
    texts = [json.loads(line)["text"] for line in path.read_text().splitlines()] if path.exists() else []
    path.unlink(missing_ok=True)
    return texts


def test_a_script_that_cannot_run_is_told_and_the_site_comes_up(world: World) -> None:
    frontend = off(world)
    services = world.machine("services")
    (services.root / "root/hook.py").write_text(WEBHOOK)
    services.sh("systemd-run --quiet --unit=hook python3 /root/hook.py")
    env = frontend.root / "srv/app/shared/.env"
    env.write_text(
        env.read_text() + "".join(f"DEPLOY_{name}_URL=http://services:8099/x\n" for name in ("WEBHOOK", "PING"))
    )
    link = frontend.root / "srv/app/bin/deploy_machine.py"
    leads_to = os.readlink(link)
    package = (link.parent / leads_to).parent / "deployer"
    whole = (package / "cli.py").read_text()

    shutil.rmtree(package / "__pycache__")
    (package / "cli.py").write_text("def broken(:\n")
    frontend.boot()
    assert frontend.wait_for_startup() == "failed"
    # also while it is only about to start
    wait = "systemctl list-jobs | grep -q deploy-failed || systemctl is-active deploy-failed.service || true"
    frontend.wait_until(lambda: frontend.out(wait) == "inactive", "deploy-failed.service did not end")
    (text,) = told(world)
    assert "frontend: failed at boot: the deploy at boot ended with exit code 1: SyntaxError: " in text
    assert "journalctl -b -u deploy-on-startup.service" in text
    assert last(frontend)["message"] in text
    assert pings(world) == ["/x/fail"]
    assert frontend.health()["status"] == 200
    (package / "cli.py").write_text(whole)

    def rehearsed() -> list[str]:
        frontend.run("systemctl", "reset-failed", UNIT, check=False)  # else so many starts would be too many
        frontend.run("systemctl", "restart", UNIT, check=False)
        frontend.wait_until(lambda: frontend.out(wait) == "inactive", "deploy-failed.service did not end")
        return told(world)

    link.unlink()
    link.symlink_to("../deployers/gone/deploy_machine.py")
    assert "ended with exit code 2: /usr/bin/python3: can't open file" in rehearsed()[0]
    link.unlink()
    link.write_text("import os\nos.kill(os.getpid(), 9)\n")
    assert "the deploy at boot was killed by SIGKILL; what was there before" in rehearsed()[0]
    link.unlink()
    link.symlink_to(leads_to)
    frontend.run("mv", "/usr/bin/python3", "/usr/bin/python3.off")
    assert "could not be started (203, see systemd.exec(5))" in rehearsed()[0]
    frontend.run("mv", "/usr/bin/python3.off", "/usr/bin/python3")
    messages = [entry["message"] for entry in frontend.deploy("history").result["history"][-4:]]
    assert all("the deploy at boot" in message for message in messages), messages

    frontend.out("cp -p /srv/app/machine.ini /root && echo verify = maybe >> /srv/app/machine.ini")
    (text,) = rehearsed()  # which the script has told itself
    assert "verify = maybe" in text
    assert "the deploy at boot" not in text
    frontend.out("cp -p /root/machine.ini /srv/app/machine.ini")
    assert rehearsed() == []
    assert frontend.wait_for_startup() == "exited"


def test_turned_off_for_one_boot(world: World) -> None:
    frontend = off(world)
    old = (frontend.root / "srv/app/current/REVISION").read_text().strip()
    world.commit(world.edit("board/views.py", "[:50]", "[:40]"))
    (frontend.root / "etc/deploy-on-startup.disabled").touch()
    frontend.boot(wait="nginx.service")
    assert first_answers(frontend)[0] == old
    assert frontend.show(UNIT, "ConditionResult") == "no"


def test_a_boot_can_be_rehearsed(world: World) -> None:
    frontend = world.boot("frontend")
    newest = world.commit(world.edit("board/views.py", "[:50]", "[:40]"))
    frontend.run("systemctl", "restart", UNIT, timeout=60)
    assert frontend.wait_for_startup() == "exited"
    assert frontend.health() == {"status": 200, "commit": newest}


def test_a_single_machine_with_both_roles_catches_up(world: World) -> None:
    scheduler = world.boot("scheduler")
    assert world.set_up("scheduler", roles=["scheduler", "frontend"]).returncode == 0
    world.commit(world.edit("board/views.py", "[:50]", "[:40]"))
    assert scheduler.deploy().outcome == "deployed"
    scheduler.shut_down()
    newest = world.commit(world.edit("board/views.py", "[:40]", "[:30]"))
    scheduler.boot(wait="")
    assert first_answers(scheduler) == [newest] * 3
    assert scheduler.wait_for_startup() == "exited"
    assert scheduler.out("cat /proc/$(systemctl show -p MainPID --value scheduler.service)/cwd/REVISION") == newest


def test_names_that_do_not_resolve_yet(world: World) -> None:
    frontend = off(world)
    newest = world.commit(world.edit("board/views.py", "[:50]", "[:40]"))
    hosts = frontend.root / "etc/hosts"
    complete = hosts.read_text()
    hosts.write_text(complete.replace("git.lab", "later.lab"))
    frontend.boot(wait="")
    frontend.wait_until(lambda: "git.lab" in frontend.show(UNIT, "StatusText"), "no status", 30)
    time.sleep(20)
    hosts.write_text(complete)
    assert first_answers(frontend)[0] == newest
    assert frontend.wait_for_startup() == "exited"


def test_a_boot_that_takes_too_long_lets_the_services_start(world: World) -> None:
    frontend = off(world)
    old = (frontend.root / "srv/app/current/REVISION").read_text().strip()
    configure(frontend, boot_timeout=4)
    newest = world.commit({"board/migrations/0002_wait.py": MIGRATION_THAT_WAITS.replace("sleep(1)", "sleep(15)")})
    frontend.boot(wait="nginx.service")
    assert started(frontend, "nginx.service") < 8
    assert first_answers(frontend)[0] == old
    assert frontend.wait_for_startup() == "exited"
    assert frontend.health() == {"status": 200, "commit": newest}


def test_a_crash_loop_backs_off(world: World) -> None:
    scheduler = world.boot("scheduler")
    command = scheduler.root / scheduler.out("readlink -f /srv/app/current").lstrip("/")
    path = command / "board/management/commands/run_scheduler.py"
    path.write_text("raise SystemExit(1)\n")
    scheduler.run("systemctl", "restart", "scheduler.service", check=False)
    time.sleep(12)
    restarts = int(scheduler.show("scheduler.service", "NRestarts"))
    assert 1 <= restarts <= 3, "at most one every five seconds"
    assert scheduler.show("scheduler.service", "ActiveState") in ("activating", "active"), "and it never gives up"
    scheduler.run("systemctl", "stop", "scheduler.service")


def test_the_scheduler_comes_back_and_ends_cleanly(world: World) -> None:
    scheduler = world.boot("scheduler")
    pid = scheduler.show("scheduler.service", "MainPID")
    scheduler.run("kill", "-KILL", pid)
    scheduler.wait_until(
        lambda: scheduler.show("scheduler.service", "MainPID") not in ("0", pid), "it did not come back", 10
    )
    # a running job is allowed to end
    env = scheduler.root / "srv/app/shared/.env"
    env.write_text(env.read_text() + "JOB_SECONDS=4\n")
    scheduler.run("systemctl", "restart", "scheduler.service")
    time.sleep(2)
    scheduler.run("systemctl", "stop", "scheduler.service")
    assert scheduler.out("journalctl -b -u scheduler -o cat | grep -v systemd | tail -5").count("ended cleanly") == 1
    query = "psql -qtAc 'select count(*) from board_jobrun where ended is null' board"
    unfinished = int(world.machine("services").out(query, user="postgres"))
    assert unfinished <= 1, "only the job that SIGKILL hit"


def test_never_two_schedulers_during_a_deploy(world: World) -> None:
    scheduler = world.boot("scheduler")
    env = scheduler.root / "srv/app/shared/.env"
    env.write_text(env.read_text() + "JOB_SECONDS=2\n")
    world.commit(world.edit("board/views.py", "[:50]", "[:40]"))
    scheduler.run("systemctl", "restart", "scheduler.service")
    count = "i=0; while [ $i -lt 150 ]; do pgrep -fc '[m]anage.py run_scheduler'; sleep 0.05; i=$((i+1)); done; true"
    watch = scheduler.sh(f"({count}) > /tmp/counts & /usr/sbin/runuser -u deploy /srv/app/bin/deploy_machine.py; wait")
    assert watch.returncode == 0
    assert set(scheduler.out("cat /tmp/counts").split()) <= {"0", "1"}

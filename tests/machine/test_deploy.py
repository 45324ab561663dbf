"""One machine is brought to main: first deploys, changes, failures, unhealthy releases, rollback."""

from __future__ import annotations

import json
import re
import subprocess

import pytest

from lab.machine import Machine
from lab.world import World, allow_and_configure, first_deploy


def written(machine: Machine) -> str:
    """Every path below releases/ and envs/, with its time of change."""
    return machine.out(
        "find /srv/app/releases /srv/app/envs /srv/app/current -mindepth 1 -printf '%p %i %C@\\n' | sort"
    )


def content(machine: Machine, *folders: str) -> list[str]:
    """What is below these folders: modes, times and content. A file that gets a second name is the same."""
    where = " ".join(folders)
    about = machine.out(f"find {where} -mindepth 1 -printf '%p %m %T@\\n'").splitlines()
    return sorted([*about, *machine.out(f"find {where} -type f -exec sha256sum {{}} +").splitlines()])


def trees(machine: Machine) -> dict[str, str]:
    """Where the release's dependency trees really are."""
    names = (".venv", "node_modules", "static/dist")
    return {name: machine.out(f"readlink -f /srv/app/current/{name}") for name in names}


def test_first_deploy_on_an_empty_machine_and_a_second_that_changes_nothing(bare: World) -> None:
    frontend = bare.boot("frontend")
    result = first_deploy(bare, "frontend")
    assert [step["name"] for step in result["steps"]] == ["python", "node", "build", "migrate", "collectstatic"]
    assert {service["unit"]: service["action"] for service in result["services"]} == {
        "gunicorn@blue.service": "started",
        "nginx.service": "started",
    }
    assert frontend.health() == {"status": 200, "commit": result["commit"]}
    page = frontend.out("curl -s http://127.0.0.1/")
    assets = re.findall(r"/static/dist/board\.[0-9a-f]{12}\.(?:js|css)", page)
    assert len(assets) == 2, page
    for asset in assets:
        assert frontend.out(f"curl -s -o /dev/null -w '%{{http_code}}' http://127.0.0.1{asset}") == "200"

    before, pids = written(frontend), frontend.pids(frontend.serving(), "nginx.service")
    again = frontend.deploy()
    assert (again.outcome, again.ran, set(again.actions.values())) == ("unchanged", [], {"none"})
    assert written(frontend) == before
    assert frontend.pids(frontend.serving(), "nginx.service") == pids


def test_a_scheduler_runs_its_jobs_and_answers_its_check(world: World) -> None:
    scheduler = world.boot("scheduler")
    commit = world.commit(world.edit("board/views.py", "[:50]", "[:40]"))
    done = scheduler.deploy()
    assert (done.outcome, done.ran) == ("deployed", [])
    assert done.actions == {"scheduler.service": "restarted"}
    job = "psql -qtAc \"select machine from board_jobrun where commit = '%s' limit 1\" board"
    assert world.machine("services").out(job % commit, user="postgres") == "scheduler"
    assert scheduler.show("gunicorn@blue.service", "LoadState") == "not-found"


def test_a_changed_file_runs_only_what_depends_on_it(world: World) -> None:
    frontend = world.boot("frontend")
    before, pids, old = trees(frontend), frontend.pids("nginx.service"), frontend.serving()
    commit = world.commit(world.edit("board/views.py", "[:50]", "[:40]"))
    done = frontend.deploy()
    assert done.ran == []
    assert trees(frontend) == before
    assert frontend.health() == {"status": 200, "commit": commit}
    assert {old, frontend.serving()} == {"gunicorn@blue.service", "gunicorn@green.service"}
    assert frontend.pids("nginx.service") == pids, "nginx goes on"


def test_a_new_python_dependency_is_added_to_what_is_there(world: World) -> None:
    frontend = world.boot("frontend")
    before = trees(frontend)
    old = content(frontend, before[".venv"])
    world.add_python_dependency("humanize (>=4,<5)")
    world.commit(world.edit("board/views.py", "import markdown\n", "import humanize  # noqa\nimport markdown\n"))
    done = frontend.deploy()
    assert done.ran == ["python", "migrate", "collectstatic"]
    assert "starting from links to python-" in done.log
    assert re.search(r"Installing humanize", done.log)
    assert "1 install, 0 updates, 0 removals" in done.log
    after = trees(frontend)
    assert after[".venv"] != before[".venv"]
    assert after["node_modules"] == before["node_modules"]
    assert content(frontend, before[".venv"]) == old, "what serves is as it was"
    assert frontend.out("head -1 /srv/app/current/.venv/bin/gunicorn") == f"#!{after['.venv']}/bin/python"
    assert frontend.health()["status"] == 200


def test_a_new_npm_dependency(world: World) -> None:
    frontend = world.boot("frontend")
    before = trees(frontend)
    package = json.loads((world.clone / "package.json").read_text())
    package["dependencies"]["nanoid"] = "5.1.5"
    (world.clone / "package.json").write_text(json.dumps(package, indent=2) + "\n")
    world.as_developer("npm install --package-lock-only --no-audit --no-fund")
    world.commit({})
    done = frontend.deploy()
    assert done.ran == ["node", "build", "collectstatic"]
    after = trees(frontend)
    assert after[".venv"] == before[".venv"]
    assert after["node_modules"] != before["node_modules"]
    assert frontend.out("test -d /srv/app/current/node_modules/nanoid && echo there") == "there"


def test_a_new_migration_and_a_new_static_file(world: World) -> None:
    frontend = world.boot("frontend")
    before = trees(frontend)
    world.commit(
        {
            "board/migrations/0002_notice_pinned.py": """\
                from django.db import migrations, models


                class Migration(migrations.Migration):
                    dependencies = [("board", "0001_initial")]
                    operations = [
                        migrations.AddField("notice", "pinned", models.BooleanField(default=False, db_default=False))
                    ]
                """,
        }
    )
    done = frontend.deploy()
    assert done.ran == ["migrate"]
    assert "Applying board.0002_notice_pinned... OK" in done.log
    world.commit({"static/new.txt": "new\n"})
    done = frontend.deploy()
    assert done.ran == ["collectstatic"]
    assert trees(frontend) == before
    assert "new" in frontend.out("curl -s http://127.0.0.1/static/new.txt")


def test_a_changed_deploy_ini(world: World) -> None:
    frontend = world.boot("frontend")
    before = trees(frontend)
    text = (world.clone / "deploy.ini").read_text()
    world.commit({"deploy.ini": text + "\n[step migrate]\nrun = python manage.py migrate --noinput --verbosity 2\n"})
    done = frontend.deploy()
    assert done.ran == ["migrate"]
    assert trees(frontend) == before
    world.commit({"deploy.ini": text + "\n[step warm]\nrun = python manage.py check\n"})
    assert frontend.deploy().ran == ["migrate", "warm"]


def test_roles_decide_which_services_run(world: World) -> None:
    scheduler = world.boot("scheduler")
    scheduler.wait_for_unit("scheduler.service")
    both = world.set_up("scheduler", roles=["scheduler", "frontend"])
    assert both.returncode == 0, both.stderr
    allow_and_configure(world, scheduler)
    world.commit(world.edit("board/views.py", "[:50]", "[:40]"))
    done = scheduler.deploy()
    assert done.actions == {
        "scheduler.service": "restarted",
        "gunicorn@blue.service": "started",
        "nginx.service": "started",
    }
    assert scheduler.health()["status"] == 200

    # the person forgets to run setup_machine.py and only changes machine.ini: a deploy sees to it all the same
    ini = scheduler.root / "srv/app/machine.ini"
    ini.write_text(ini.read_text().replace("scheduler frontend", "frontend"))
    sudoers = scheduler.root / "etc/sudoers.d/deploy-machine"
    sudoers.chmod(0o600)
    sudoers.write_text(
        sudoers.read_text() + "deploy ALL=(root) NOPASSWD: /usr/bin/systemctl disable --now scheduler.service\n"
    )
    sudoers.chmod(0o440)
    world.commit(world.edit("board/views.py", "[:40]", "[:30]"))
    done = scheduler.deploy()
    assert done.actions["scheduler.service"] == "stopped"
    assert scheduler.show("scheduler.service", "ActiveState") == "inactive"
    assert scheduler.show("scheduler.service", "UnitFileState") == "disabled"
    assert scheduler.health()["status"] == 200


@pytest.mark.parametrize(
    ("step", "change", "says"),
    [
        ("python", {"poetry.lock": "not a lock file\n"}, "poetry sync"),
        ("node", {"package-lock.json": "{}\n"}, "npm ci"),
        ("build", {"frontend/board.js": "this is no javascript\n"}, "npm run build"),
        ("migrate", {"board/migrations/0002_x.py": "raise SystemExit('broken migration')\n"}, "broken migration"),
        ("collectstatic", {"static/x.css": "a { background: url(missing.png) }\n"}, "missing.png"),
    ],
)
def test_a_failing_step_leaves_the_old_release_serving(
    world: World, step: str, change: dict[str, str | None], says: str
) -> None:
    frontend = world.boot("frontend")
    old, pids = frontend.health(), frontend.pids(frontend.serving(), "nginx.service")
    before = content(frontend, "/srv/app/releases", "/srv/app/envs")
    world.commit(change)
    done = frontend.deploy(expect=10)
    assert done.outcome == "failed"
    assert f"step {step} failed" in done.message
    assert says in done.message + done.result["detail"]
    assert done.result["detail"].splitlines()[-1].strip() in done.log
    assert frontend.health() == old
    releases = frontend.out("ls /srv/app/releases").split()
    assert releases == [done.result["release"]], "nothing of the failed release is left"
    assert set(before) <= set(content(frontend, "/srv/app/releases", "/srv/app/envs"))
    assert frontend.pids(frontend.serving(), "nginx.service") == pids


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        (
            "board/views.py",
            "    try:\n",
            "    return JsonResponse({'error': 'on purpose'}, status=500)\n    try:\n",
            "answers 500",
        ),
        ("mysite/wsgi.py", "import os\n", "import os\nimport does_not_exist\n", "gunicorn@"),
    ],
    ids=["answers 500", "dies"],
)
def test_an_unhealthy_release_is_taken_back(world: World, file: str, old: str, new: str, says: str) -> None:
    frontend = world.boot("frontend")
    good = frontend.health()
    text = (world.clone / "deploy.ini").read_text()
    good["commit"] = world.commit({"deploy.ini": f"[deploy]\nhealth_timeout = 6\n{text}"})
    assert frontend.deploy().outcome == "deployed"
    bad = world.commit(world.edit(file, old, new))
    done = frontend.deploy(expect=11)
    assert done.outcome == "rolled_back"
    assert says in done.message
    assert frontend.health() == good
    assert done.result["commit"] == good["commit"]
    again = frontend.deploy(expect=10)
    assert "is not tried again" in again.message
    assert again.ran == []
    assert frontend.deploy("--force", expect=11).outcome == "rolled_back"
    status = json.loads(frontend.out("/srv/app/bin/deploy_machine.py status --json", user="deploy"))
    assert [entry["commit"] for entry in status["bad_commits"]] == [bad]
    assert status["healthy"] is True
    world.commit(world.edit(file, new, old))
    assert frontend.deploy().outcome == "deployed"


def test_a_scheduler_that_dies_after_a_second_is_taken_back(world: World) -> None:
    scheduler = world.boot("scheduler")
    config = "[deploy]\nhealth_timeout = 6\n"  # and no check: that its process lives is all there is to see
    world.commit({"deploy.ini": config})
    assert scheduler.deploy().outcome == "deployed"
    old = scheduler.deploy().result["commit"]
    world.commit(
        world.edit(
            "board/management/commands/run_scheduler.py",
            "        while not stop.is_set():\n",
            "        time.sleep(1)\n        raise SystemExit(3)\n        while not stop.is_set():\n",
        )
    )
    done = scheduler.deploy(expect=11)
    assert done.result["commit"] == old
    assert "scheduler.service" in done.message
    assert scheduler.show("scheduler.service", "ActiveState") == "active"


def test_rollback_deploy_after_rollback_and_no_more_than_keep(world: World) -> None:
    frontend = world.boot("frontend")
    text = (world.clone / "deploy.ini").read_text()
    commits = [world.commit({"deploy.ini": "[deploy]\nkeep = 3\n" + text})]
    frontend.deploy()
    for number in (40, 30, 20):
        commits.append(world.commit({"board/templates/board/note.html": f"{number}\n"}))
        frontend.deploy()
    assert len(frontend.out("ls /srv/app/releases").split()) == 3
    back = frontend.deploy("rollback")
    assert back.outcome == "rolled_back_on_request"
    assert frontend.health() == {"status": 200, "commit": commits[-2]}
    assert frontend.deploy(expect=10).outcome == "failed", "what a person has left, only a person brings back"
    forward = frontend.deploy("--force")
    assert (forward.outcome, frontend.health()["commit"]) == ("deployed", commits[-1])
    assert len(frontend.out("ls /srv/app/releases").split()) == 3
    envs = frontend.out("ls /srv/app/envs").split()
    assert len([name for name in envs if name.startswith("python-")]) == 1


def test_two_deploys_at_once_one_waits_for_the_other(world: World) -> None:
    frontend = world.boot("frontend")
    commit = world.commit(world.edit("board/views.py", "[:50]", "[:40]"))
    command = [*frontend.argv("deploy"), "/srv/app/bin/deploy_machine.py", "--trigger", "cd", "--json"]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    results = []
    logs = ""
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        results.append(json.loads(out))
        logs += err
    assert sorted(result["outcome"] for result in results) == ["deployed", "unchanged"]
    assert re.search(r"waiting for another deploy to end: process \d+ \(cd, since 20", logs)
    assert frontend.health()["commit"] == commit


def test_the_journal_has_every_deploy_with_its_fields(world: World) -> None:
    frontend = world.boot("frontend")
    objects_of_root_are_told(world, frontend)
    units_that_are_not_the_commits_are_told(world, frontend)
    commit = world.commit(world.edit("board/views.py", "[:50]", "[:40]"))
    frontend.deploy("--trigger", "cd")
    found = frontend.out(
        f"journalctl -t deploy-machine DEPLOY_COMMIT={commit} DEPLOY_OUTCOME=deployed DEPLOY_TRIGGER=cd -o cat"
    )
    assert re.fullmatch(r"deployed: [0-9a-f]{8} deployed from [0-9a-f]{8} \([0-9.]+ s\)", found)
    run = "/srv/app/bin/deploy_machine.py run --"
    assert frontend.out(f"{run} python manage.py showmigrations board", user="deploy").splitlines() == [
        "board", " [X] 0001_initial",
    ]  # fmt: skip
    assert "root must not run what another user can write" in frontend.sh(f"{run} id", check=False).stderr


def objects_of_root_are_told(world: World, frontend: Machine) -> None:
    """Somebody ran git there as root: what to do is named, and doing that is enough."""
    world.commit(world.edit("board/views.py", "[:50]", "[:45]"))
    frontend.out("chown -R root: /srv/app/repo.git && chmod -R go-w /srv/app/repo.git")
    done = frontend.deploy("--fetch-timeout", "5", expect=None)
    assert done.code in (10, 75), done.log
    command = re.search(r"as root: (chown -R deploy: /srv/app/repo\.git)", done.message)
    assert command, done.message
    frontend.out(command[1])
    assert frontend.deploy().outcome == "deployed"
    world.commit(world.edit("board/views.py", "[:45]", "[:50]"))


def units_that_are_not_the_commits_are_told(world: World, frontend: Machine) -> None:
    """By the deploy and by status, until setup_machine.py has run; and one that systemd has not read."""
    status = "/srv/app/bin/deploy_machine.py status"
    assert " warning " not in frontend.out(status, user="deploy")
    world.commit(world.edit("systemd/gunicorn@.service", "RestartSec=5s", "RestartSec=6s"))
    (warning,) = frontend.deploy().result["warnings"]
    assert warning.startswith("gunicorn@.service differs from the commit's: run setup_machine.py")
    assert f"  warning   {warning}" in frontend.out(status, user="deploy")
    assert world.set_up("frontend").returncode == 0
    assert " warning " not in frontend.out(status, user="deploy")
    frontend.out("sleep 1; echo >> /etc/systemd/system/gunicorn@.service")
    shown = frontend.out(status, user="deploy")
    assert shown.count(f"{frontend.serving()}: changed, systemctl daemon-reload is due") == 1, shown
    assert "as root, systemctl daemon-reload" not in shown, "the same is not told twice"
    (warning,) = frontend.deploy().result["warnings"]
    assert warning.endswith(": changed since systemd has read it: as root, systemctl daemon-reload")
    assert world.set_up("frontend").returncode == 0


def test_requests_during_a_deploy_are_all_answered(world: World) -> None:
    frontend = world.boot("frontend")
    world.commit(world.edit("board/views.py", "[:50]", "[:40]"))
    request = "curl -s -m 20 -o /dev/null -w '%{http_code}\\n' http://127.0.0.1/healthz"
    loop = f"i=0; while [ $i -lt 400 ]; do {request}; i=$((i+1)); sleep 0.01; done"
    load = subprocess.Popen([*frontend.argv(), "sh", "-c", loop], stdout=subprocess.PIPE, text=True)
    assert frontend.deploy().outcome == "deployed"
    out, _ = load.communicate(timeout=120)
    assert set(out.split()) == {"200"}
    assert len(out.split()) == 400


def test_the_services_run_as_app_and_cannot_change_the_code(world: World) -> None:
    frontend = world.boot("frontend")
    owner = frontend.out("ps -o user= -p $(systemctl show -p MainPID --value gunicorn@blue.service)")
    assert owner == "app"
    for path in ("/srv/app/current/manage.py", "/srv/app/bin/deploy_machine.py", "/srv/app/machine.ini"):
        assert frontend.run("test", "-w", path, user="app", check=False).returncode == 1
    assert frontend.run("cat", "/srv/app/shared/.env", user="app").stdout.startswith("SECRET_KEY")
    assert frontend.run("cat", "/srv/app/shared/.env", user="nobody", check=False).returncode != 0
    assert frontend.run("sudo", "-n", "true", user="app", check=False).returncode != 0


def test_deploy_may_make_exactly_its_calls_as_root(world: World) -> None:
    frontend = world.boot("frontend")
    allowed = ["systemctl start gunicorn@blue.service", "systemctl reload nginx.service"]
    refused = [
        "systemctl status gunicorn@blue.service",
        "systemctl edit gunicorn@blue.service",
        "systemctl restart ssh.service",
        "systemctl start gunicorn@blue.service --now",
        "systemctl start gunicorn@red.service",
        "systemctl restart scheduler.service",
        "sh",
    ]
    for command in allowed:
        assert frontend.sh(f"sudo -n {command}", user="deploy", check=False).returncode == 0, command
    for command in refused:
        done = frontend.sh(f"sudo -n {command}", user="deploy", check=False)
        assert done.returncode != 0, command
        assert "a password is required" in done.stderr, done.stderr


def test_an_instance_goes_on_when_its_socket_stops(world: World) -> None:
    """It is drained: nobody new comes, and what is under way ends in its own time."""
    frontend = world.boot("frontend")
    unit = frontend.serving()
    frontend.sh(f"systemctl stop {unit.replace('.service', '.socket')}")
    assert frontend.show(unit, "ActiveState") == "active"
    frontend.shut_down()
    world.boot("frontend")
    assert frontend.health()["status"] == 200

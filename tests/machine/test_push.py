"""A merge deploys both machines through cd.yml; an offline one is tolerated and told."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
from deployer import carrier

from lab.ci import Ci, outcome_of, watched_processes
from lab.world import World, allow_and_configure
from waiting import wait_for
from workflow import Run, dispatch, push

CHANGE = ("board/views.py", "[:50]", "[:40]")


@pytest.fixture
def ci(world: World) -> Iterator[Ci]:
    """Both machines are off; boot those that a test wants on."""
    ci = Ci(world)
    yield ci
    for machine in world.machines.values():  # a run that was cut off may still be going on there
        if machine.is_on and machine.name != "services":
            machine.wait_until(
                lambda: machine.sh("pgrep -f [d]eploy_machine", check=False).returncode != 0,  # noqa: B023
                "a deploy goes on",
                60,
            )


def warnings(run: Run) -> list[str]:
    return [message for leg in run.legs for message in leg.messages("warning")]


def errors(run: Run) -> list[str]:
    return [message for leg in run.legs for message in leg.messages("error")]


def commit_on(world: World, name: str) -> str:
    return (world.machine(name).root / "srv/app/current/REVISION").read_text().strip()


def test_both_on(ci: Ci) -> None:
    world = ci.world
    for name in ("scheduler", "frontend"):
        world.boot(name)
    scripts = carrier.own_files(world.clone / "scripts")
    kept = world.machine("scheduler").root / "srv/app/deployers" / carrier.identity(scripts)
    (kept / "deployer/errors.py").write_text("damaged by hand\n")  # so that it is carried there anew
    newest = world.commit(world.edit("frontend/board.css", "body {", "body{"))
    run = ci.merge()
    assert run.conclusion == "success", run.log
    assert [outcome_of(run, name) for name in ("scheduler", "frontend")] == ["deployed", "deployed"]
    assert world.machine("frontend").health() == {"status": 200, "commit": newest}
    assert commit_on(world, "scheduler") == newest
    assert carrier.own_files(kept) == scripts
    one, two = (run.leg("deploy", machine=name) for name in ("scheduler", "frontend"))
    assert max(one.started, two.started) < min(one.ended, two.ended), "at the same time"
    assert (warnings(run), errors(run)) == ([], [])
    assert "/compare/" in run.summary and "(1 commit)" in run.summary
    assert "✅ updated" in run.summary and "```mermaid" in run.summary
    again = ci.merge()
    assert [outcome_of(again, name) for name in ("scheduler", "frontend")] == ["unchanged", "unchanged"]


@pytest.mark.parametrize("how", ["powered off", "packets vanish", "port closed"])
def test_the_frontend_is_off(ci: Ci, how: str) -> None:
    world = ci.world
    world.boot("scheduler")
    if how != "powered off":
        frontend = world.boot("frontend")
        if how == "packets vanish":
            world.network.unplug("frontend")
        else:
            frontend.run("systemctl", "stop", "ssh.service")
    newest = world.commit(world.edit(*CHANGE))
    run = ci.merge()
    assert run.conclusion == "success", run.log
    assert [outcome_of(run, name) for name in ("scheduler", "frontend")] == ["deployed", "offline"]
    assert commit_on(world, "scheduler") == newest
    assert len(warnings(run)) == 1
    assert "frontend" in warnings(run)[0]
    assert errors(run) == []
    leg = run.leg("deploy", machine="frontend")
    assert not leg.green, "its own leg is red"
    assert leg.ended - leg.started < 17
    assert run.leg("deploy", machine="scheduler").green
    assert "💤 offline" in run.summary
    assert "updated: scheduler; offline: frontend" in run.summary


def test_the_scheduler_is_off(ci: Ci) -> None:
    world = ci.world
    world.boot("frontend")
    newest = world.commit(world.edit(*CHANGE))
    run = ci.merge()
    assert run.conclusion == "success", run.log
    assert [outcome_of(run, name) for name in ("scheduler", "frontend")] == ["offline", "deployed"]
    assert world.machine("frontend").health()["commit"] == newest
    assert [message.split(":")[0] for message in warnings(run)] == ["scheduler"]


def test_both_off(ci: Ci) -> None:
    ci.world.commit(ci.world.edit(*CHANGE))
    run = ci.merge()
    assert run.conclusion == "success", run.log
    assert len(warnings(run)) == 2
    assert "nothing was updated; offline: scheduler, frontend" in run.summary


@pytest.mark.parametrize(
    ("file", "old", "new", "outcome", "says"),
    [
        ("frontend/board.css", "body {", "@import 'missing.css';\nbody {", "failed", "step build failed"),
        ("board/views.py", "    try:\n", "    return JsonResponse({}, status=500)\n    try:\n", "rolled_back", "500"),
    ],
    ids=["a step fails", "answers 500"],
)  # fmt: skip
def test_a_machine_that_is_on_and_fails_makes_the_run_red(
    ci: Ci, file: str, old: str, new: str, outcome: str, says: str
) -> None:
    world = ci.world
    for name in ("scheduler", "frontend"):
        world.boot(name)
    text = (world.clone / "deploy.ini").read_text()
    newest = world.commit({**world.edit(file, old, new), "deploy.ini": f"[deploy]\nhealth_timeout = 15\n{text}"})
    run = ci.merge()
    assert run.conclusion == "failure", run.log
    assert [outcome_of(run, name) for name in ("scheduler", "frontend")] == ["deployed", outcome]
    assert commit_on(world, "scheduler") == newest
    assert commit_on(world, "frontend") != newest
    assert any("frontend" in message and says in message for message in errors(run)), errors(run)
    assert warnings(run) == []


@pytest.mark.parametrize("seconds", [3, 60], ids=["for a moment", "all the time"])
def test_sshd_that_drops_connections_is_not_offline(ci: Ci, seconds: int) -> None:
    world = ci.world
    scheduler = world.boot("scheduler")
    world.commit(world.edit(*CHANGE))
    scheduler.sh("mkdir -p /run/sshd; echo 'MaxStartups 1:100:1' > /etc/ssh/sshd_config.d/a.conf; systemctl reload ssh")
    program = "import socket, sys, time; s = socket.create_connection(('10.0.0.5', 22)); print(s.recv(9), flush=True)"
    command = ["ip", "netns", "exec", world.network.namespace("runner"), "python3", "-c"]
    holder = subprocess.Popen([*command, f"{program}; time.sleep({seconds})"], stdout=subprocess.PIPE)
    try:
        assert holder.stdout and b"SSH" in holder.stdout.readline()
        run = ci.merge()
    finally:
        holder.kill()
        holder.communicate()
    if seconds == 3:
        assert outcome_of(run, "scheduler") == "deployed", run.log
        assert "the machine answers but ssh does not: " in run.log
    else:
        assert (run.conclusion, outcome_of(run, "scheduler")) == ("failure", "failed"), run.log
        assert any("the machine answers but ssh does not: Connection" in message for message in errors(run))


def test_failures_are_never_called_offline_and_no_secret_is_told(ci: Ci) -> None:
    world = ci.world
    for name in ("scheduler", "frontend"):
        world.boot(name)
    other_key = (world.home / "admin").read_text()
    wrong_host = ci.secrets["DEPLOY_KNOWN_HOSTS"].replace("10.0.0.5 ", "10.0.0.55 ").replace("10.0.0.6 ", "10.0.0.5 ")
    wrong_host = wrong_host.replace("10.0.0.55 ", "10.0.0.6 ")
    for secrets, says in (
        ({"DEPLOY_SSH_KEY": other_key}, "does not accept the key"),
        ({"DEPLOY_KNOWN_HOSTS": wrong_host}, "host key is not the one in DEPLOY_KNOWN_HOSTS"),
        ({"DEPLOY_KNOWN_HOSTS": ""}, "no host keys: add the secret DEPLOY_KNOWN_HOSTS"),
        ({"DEPLOY_SSH_KEY": ""}, "no key: add the secret DEPLOY_SSH_KEY"),
        ({"DEPLOY_SSH_KEY": "no key at all"}, "DEPLOY_SSH_KEY is not a private key"),
        ({"SCHEDULER_HOST": "", "FRONTEND_HOST": ""}, "no host: add the secret"),
        ({"SCHEDULER_USER": "-oProxyCommand=x", "FRONTEND_USER": "-oProxyCommand=x"}, "_USER is malformed"),
        ({"SCHEDULER_HOST": "no-such.invalid", "FRONTEND_HOST": "no-such.invalid"}, "name does not resolve"),
    ):
        with watched_processes() as seen:
            run = ci.merge(**secrets)
        assert run.conclusion == "failure", f"{says}: {run.log}"
        assert [outcome_of(run, name) for name in ("scheduler", "frontend")] == ["failed", "failed"], says
        assert any(says in message for message in errors(run)), (says, errors(run))
        told = "".join(leg.unmasked_log for leg in run.legs) + run.summary + json.dumps(run.jobs["deploy"].outputs)
        for key in ("DEPLOY_SSH_KEY",):
            body = ci.secrets[key].splitlines()[2]
            assert body not in told + "".join(seen)


def test_a_secret_that_is_a_common_word(ci: Ci) -> None:
    ci.world.boot("scheduler")
    ci.world.commit(ci.world.edit(*CHANGE))
    run = ci.merge(DEPLOY_WEBHOOK_URL="scheduler")
    assert outcome_of(run, "scheduler") == "deployed", "the results still arrive"
    assert run.conclusion == "success", run.log
    assert any("the webhook could not be told" in message for message in warnings(run))


WAITS = """\
    import time

    from django.db import migrations


    class Migration(migrations.Migration):
        dependencies = [("board", "0001_initial")]
        operations = [migrations.RunPython(lambda *_: time.sleep(8))]
    """


@pytest.mark.parametrize("back", [True, False], ids=["and comes back", "for good"])
def test_the_connection_is_cut_in_mid_deploy(ci: Ci, back: bool) -> None:
    world = ci.world
    scheduler = world.boot("scheduler")
    newest = world.commit({"board/migrations/0002_wait.py": WAITS})
    cd = (world.clone / ".github/workflows/cd.yml").read_text()
    options = "--ssh-option ServerAliveInterval=1 --ssh-option ServerAliveCountMax=2"
    options += "" if back else " --reconnect-timeout 15"
    newest = world.commit(
        {".github/workflows/cd.yml": cd.replace('"${arguments[@]}"', f'"${{arguments[@]}}" {options}')}
    )
    run = ci.start(push(newest))
    running = scheduler.root / "srv/app/state/running.json"
    scheduler.wait_until(lambda: running.exists() and "step migrate" in running.read_text(), "no migrate", 40)
    # only the runner is cut off: the machine still reaches the repository and the database
    world.network.unplug("runner")
    if back:
        wait_for(lambda: "the connection was lost" in run.log, "the push notices")
        world.network.plug("runner")
    run.wait(120)
    world.network.plug("runner")
    if back:
        assert outcome_of(run, "scheduler") == "deployed", run.log
    else:
        assert outcome_of(run, "scheduler") == "failed"
        assert run.conclusion == "failure"
        assert any("lost: it did not answer again" in message for message in errors(run))
    scheduler.wait_until(lambda: commit_on(world, "scheduler") == newest, "the host did not finish by itself", 40)


def test_an_old_run_that_is_started_again_does_not_go_back(ci: Ci) -> None:
    world = ci.world
    world.boot("scheduler")
    old = world.commit(world.edit(*CHANGE))
    ci.merge()
    newest = world.commit(world.edit("board/views.py", "[:40]", "[:30]"))
    runs = [ci.start(push(newest)), ci.start(push(old))]
    for run in runs:
        run.wait(120)
        assert run.conclusion in ("success", "cancelled"), run.log
    assert commit_on(world, "scheduler") == newest
    rerun = ci.start(push(old)).wait(120)
    assert (outcome_of(rerun, "scheduler"), commit_on(world, "scheduler")) == ("unchanged", newest)


def test_a_cancelled_run_leaves_the_machine_whole(ci: Ci) -> None:
    world = ci.world
    scheduler = world.boot("scheduler")
    newest = world.commit({"board/migrations/0002_wait.py": WAITS})
    run = ci.start(push(newest))
    running = scheduler.root / "srv/app/state/running.json"
    scheduler.wait_until(lambda: running.exists() and "step migrate" in running.read_text(), "no migrate", 40)
    run.cancel()
    run.wait(60)
    scheduler.wait_until(lambda: commit_on(world, "scheduler") == newest, "the host did not finish by itself", 40)
    scheduler.wait_until(lambda: not running.exists(), "the deploy did not end", 40)
    status = json.loads(scheduler.out("/srv/app/bin/deploy_machine.py status --json", user="deploy"))
    assert (status["commit"], status["healthy"], status["interrupted"]) == (newest, True, False)


def test_a_third_machine_added_as_the_workflow_says(ci: Ci) -> None:
    world = ci.world
    third = world.machine("third")
    for name in ("scheduler", "third"):
        world.boot(name)
    done = world.set_up("third", roles=["scheduler"])
    assert done.returncode == 0, done.stdout + done.stderr
    allow_and_configure(world, third)
    cd = (world.clone / ".github/workflows/cd.yml").read_text()
    for line, addition in (
        ("          - frontend\n", "          - third\n"),
        ("          - { machine: frontend, roles: frontend }\n", "          - { machine: third, roles: scheduler }\n"),
        ("      frontend: ${{ steps.push.outputs.frontend }}\n", "      third: ${{ steps.push.outputs.third }}\n"),
        (
            "          FRONTEND_USER: ${{ secrets.FRONTEND_USER }}\n",
            "          THIRD_HOST: ${{ secrets.THIRD_HOST }}\n          THIRD_USER: ${{ secrets.THIRD_USER }}\n",
        ),
        (
            "          FRONTEND_RESULT: ${{ needs.deploy.outputs.frontend }}\n",
            "          THIRD_RESULT: ${{ needs.deploy.outputs.third }}\n",
        ),
    ):
        assert cd.count(line) == 1, line
        cd = cd.replace(line, line + addition)
    newest = world.commit(
        {".github/workflows/cd.yml": cd.replace("'scheduler frontend'", "'scheduler frontend third'")}
    )
    hosts = {"THIRD_HOST": third.address, "THIRD_USER": "deploy", "DEPLOY_KNOWN_HOSTS": world.known_hosts()}
    run = ci.merge(**hosts)
    assert run.conclusion == "success", run.log
    outcomes = [outcome_of(run, name) for name in ("scheduler", "frontend", "third")]
    assert outcomes == ["deployed", "offline", "deployed"]
    assert commit_on(world, "third") == newest
    assert "updated: scheduler, third; offline: frontend" in run.summary


def test_what_an_application_prints_does_nothing_on_the_runner(ci: Ci) -> None:
    world = ci.world
    world.boot("scheduler")
    text = (world.clone / "deploy.ini").read_text()
    hostile = "printf '%s\\n' '::error::gotcha' '::set-output name=x::y' '::add-mask::deployed' '##[error]x'"
    world.commit({"deploy.ini": text + f'\n[step hostile]\nrun = sh -c "{hostile}; sleep 0.2"\n'})
    run = ci.merge()
    assert outcome_of(run, "scheduler") == "deployed", run.log
    assert errors(run) == []
    assert not any("gotcha" in annotation.message for annotation in run.annotations)


def test_by_hand_for_one_machine_with_a_commit_and_with_full(ci: Ci) -> None:
    world = ci.world
    for name in ("scheduler", "frontend"):
        world.boot(name)
    first = world.commit(world.edit(*CHANGE))
    world.commit(world.edit("board/views.py", "[:40]", "[:30]"))
    run = ci.dispatch(machine="scheduler", commit=first)
    assert run.conclusion == "success", run.log
    assert commit_on(world, "scheduler") == first
    assert commit_on(world, "frontend") not in (first, world.git("rev-parse", "HEAD"))
    assert "frontend" not in run.summary
    full = ci.start(dispatch(world.git("rev-parse", "HEAD"), machine="all", full=True)).wait(240)
    assert full.conclusion == "success", full.log
    result = json.loads(bytes.fromhex(full.jobs["deploy"].outputs["scheduler"]).decode())
    assert [step["result"] for step in result["steps"]] == ["ran", "ran"]

"""Metrics on a real machine: deploy writes them where setup said, another user reads them, looks and boots go on."""

from __future__ import annotations

import re

from lab.machine import Machine
from lab.world import World

FOLDER = "/var/lib/node_exporter/textfile_collector"


def metrics(machine: Machine) -> dict[str, str]:
    """What node_exporter, which is another user, reads: metric with its labels -> value."""
    text = machine.out(f"cat {FOLDER}/deploy_machine.prom", user="nobody")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {
        re.sub(r'machine="\w+",?|[{}]', "", name): value for name, _, value in (one.rpartition(" ") for one in lines)
    }


def test_deploys_looks_and_boots_write_metrics(world: World) -> None:
    scheduler = world.boot("scheduler")
    other = world.set_up("scheduler", "--metrics", "/var/log")
    assert "/var/log: deploy may not write there, so there are no metrics" in other.stdout
    assert "metrics = /var/log: Permission denied" in scheduler.deploy().log
    done = world.set_up("scheduler", "--metrics", FOLDER)
    assert (done.returncode, f"+ {FOLDER}/: created" in done.stdout) == (0, True), done.stdout + done.stderr
    assert scheduler.out(f"stat -c '%a %U %G' {FOLDER}") == "775 root deploy"
    again = world.set_up("scheduler")
    assert f"note: metrics = {FOLDER} stays, as --metrics said once" in again.stdout
    assert "no changes" in again.stdout

    newest = world.commit(world.edit("board/views.py", "[:50]", "[:40]"))
    scheduler.deploy("--trigger", "cd")
    found = metrics(scheduler)
    assert [name for name in found if f'commit="{newest}"' in name and name.startswith("deploy_machine_info")]
    assert found['deploy_machine_last_attempt_infooutcome="deployed",trigger="cd"'] == "1"
    assert (found['deploy_machine_statestate="ok"'], found["deploy_machine_service_restarts"]) == ("1", "0")

    pid = scheduler.show("scheduler.service", "MainPID")
    scheduler.run("kill", "-KILL", pid)
    scheduler.wait_until(lambda: scheduler.show("scheduler.service", "NRestarts") == "1", "it did not come back", 20)
    scheduler.wait_for_unit("scheduler.service")
    scheduler.run("systemctl", "start", "deploy-watch.service")
    assert metrics(scheduler)["deploy_machine_service_restarts"] == "1"

    scheduler.cut()
    scheduler = world.boot("scheduler")
    scheduler.wait_for_startup()
    assert metrics(scheduler)['deploy_machine_last_attempt_infooutcome="unchanged",trigger="boot"'] == "1"

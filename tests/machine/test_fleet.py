"""Real machines, with the restricted key, looked at by fleet_status.py and by fleet.yml, deployed to by push_all.py."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from lab.ci import Ci
from lab.world import World
from workflow import Run, push, schedule

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


# fleet_status.py, which says when a connection is let in, and when it is over
TELLING = """
import sys
sys.path.insert(0, {scripts!r})
import fleet_status, push_deploy
real = push_deploy.Ssh.run
def run(ssh, *words):
    leave = ssh.on_login
    ssh.on_login = lambda: (sys.stderr.write("in\\n"), leave())
    found = real(ssh, *words)
    sys.stderr.write("over\\n")
    return found
push_deploy.Ssh.run = run
fleet_status.main()
"""


def start(ci: Ci, program: list[str], *words: str) -> subprocess.CompletedProcess[str]:
    """Run a program of Python on the runner."""
    world = ci.world
    inventory = world.clone / "machines.ini"
    env = {"PATH": "/usr/bin:/bin", "XDG_STATE_HOME": str(world.directory / "state"), **ci.secrets}
    namespace = ["ip", "netns", "exec", world.network.namespace("runner")]
    argv = [*namespace, sys.executable, *program, "--inventory", str(inventory), *words]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    return done


def ask(ci: Ci, *words: str, script: str = "fleet_status.py") -> tuple[int, str, float]:
    """Exit code, stdout and seconds, on the runner."""
    began = time.monotonic()
    done = start(ci, [str(SCRIPTS / script)], *words)
    return done.returncode, done.stdout, time.monotonic() - began


def machines(ci: Ci) -> tuple[int, dict[str, Any]]:
    """Exit code, and each machine; asked again while one does not know how it is: others have the processors, too."""
    for _ in range(6):
        code, out, _ = ask(ci, "--json")
        found = {machine["name"]: machine for machine in json.loads(out)["machines"]}
        if all(machine["state"] not in ("unknown", "UNHEALTHY") for machine in found.values()):
            break
    return code, found


def let_in(ci: Ci) -> list[str]:
    """What was said of both machines; again while one was not reached: others have the processors, too."""
    for _ in range(6):
        said = start(ci, ["-c", TELLING.format(scripts=str(SCRIPTS))]).stderr.split()
        if said.count("in") == 2:
            break
    assert said[0] == "in", said
    return sorted(said)


def look(ci: Ci) -> tuple[Run, str]:
    """A run of fleet.yml that it was time for, and the branch's page; again while a machine does not know itself."""
    for _ in range(6):
        run = ci.start(schedule(ci.world.git("rev-parse", "HEAD")), name="fleet.yml").wait(120)
        page = ci.world.git("show", "deploy-status:README.md")
        if " unknown since " not in page and "UNHEALTHY" not in page:
            break
    assert not [leg.dropped for leg in run.legs if leg.dropped], run.log
    return run, page


def test_a_machine_that_was_cut_off_and_boots_again(world: World) -> None:
    ci = Ci(world)
    scheduler, frontend = world.boot("scheduler"), world.boot("frontend")
    code, seen = machines(ci)
    assert (code, [seen[name]["state"] for name in seen]) == (0, ["ok", "ok"]), seen
    assert seen["frontend"]["drift"] == seen["scheduler"]["drift"] == []
    assert let_in(ci) == ["in", "in", "over", "over"], "ssh itself says it: then the next connection may begin"
    left = seen["frontend"]["commit"]
    assert look(ci)[0].conclusion == "success"

    frontend.cut()
    newest = world.commit(world.edit("board/views.py", "[:50]", "[:40]"))
    code, out, _ = ask(ci, "--contains", newest, script="push_all.py")
    assert (code, out.splitlines()[-1]) == (0, "updated: scheduler; offline: frontend"), out
    machines(ci)
    code, out, seconds = ask(ci)
    assert (code, seconds < 10) == (0, True), out
    assert f"\nscheduler  ok     {newest[:8]}" in out
    assert f"\nfrontend   off    {left[:8]}?  1, " in out
    assert "           ? as last seen " in out and "it catches up when it boots" in out
    run, page = look(ci)
    assert (run.conclusion, "# All is well\n" in page) == ("success", True), page
    assert "\n| frontend | off since " in page and f"[`{left[:8]}`]" in page and " ? | 1 commit, since " in page

    world.boot("frontend")
    for path in ("etc/systemd/system/scheduler.service", "srv/app/current/board/views.py"):
        with open(scheduler.root / path, "a") as file:
            file.write("# mended by hand\n")
    (scheduler.root / "srv/app/machine.ini").touch()
    code, seen = machines(ci)
    assert (seen["frontend"]["state"], seen["frontend"]["commit"], seen["frontend"]["by"]) == ("ok", newest, "boot")
    assert (code, seen["scheduler"]["state"]) == (1, "DRIFTED"), seen
    assert seen["scheduler"]["drift"] == ["board/views.py", "scheduler.service", "machine.ini"]

    run, page = look(ci)
    assert (run.conclusion, "# Act: scheduler is DRIFTED\n" in page) == ("failure", True), page
    assert "10.0.0." not in page and "views.py" not in page
    brought = json.loads(world.git("show", "deploy-status:machines/frontend.jsonl").splitlines()[-1])
    assert (brought["trigger"], brought["commit"]) == ("boot", newest), "nobody has watched that boot"
    subjects = world.git("log", "--format=%s", "deploy-status").splitlines()
    assert subjects[0] == "scheduler: ok to DRIFTED, frontend: off to ok", subjects

    deploy = ci.start(push(world.commit({}, "again")), looks=True).wait(240)
    shown = "## Act: scheduler is DRIFTED\n\nmain is [`"  # its unit is still another one, which no deploy changes
    assert (deploy.conclusion, shown in deploy.summary) == ("success", True), deploy.log

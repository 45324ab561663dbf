"""A second application on a machine (--app): its own units, users, site and root; neither notices the other."""

from __future__ import annotations

import json

from faults.load import steady
from lab.machine import Machine
from lab.world import DOT_ENV, World

APP = ["--app", "blog", "--server-name", "blog.lab"]


def blog(frontend: Machine) -> dict[str, str]:
    """What the second application's health check answers through nginx."""
    answer: dict[str, str] = json.loads(frontend.out("curl -sf -H 'Host: blog.lab' http://127.0.0.1/healthz"))
    return answer


def test_one_is_deployed_while_the_other_serves(world: World) -> None:
    frontend = world.boot("frontend")
    first = frontend.health()["commit"]
    before = frontend.out("find /etc/systemd/system /etc/sudoers.d/deploy-machine /etc/nginx /srv/app/machine.ini -ls")
    refused = world.set_up("frontend", "--root", "/srv/blog")
    assert (refused.returncode, "for a second application add --app NAME" in refused.stderr) == (2, True)
    refused = world.set_up("frontend", "--app", "blog")
    assert (refused.returncode, "with --server-name" in refused.stderr) == (2, True)
    refused = world.set_up("frontend", *APP, "--root", "/srv/app")
    assert (refused.returncode, "/srv/app is set up with no --app" in refused.stderr) == (2, True)

    with steady(world, frontend.address) as answers:
        done = world.set_up("frontend", *APP)
        assert (done.returncode, "FRONTEND_USER = deploy-blog" in done.stdout) == (0, True), done.stderr
        own = "gunicorn-blog deploy-on-startup-blog deploy-watch-blog deploy-machine-blog blog"
        added = frontend.out("find /etc/systemd/system /etc/sudoers.d /etc/nginx -newer /srv/blog -type f").split()
        assert added and all(any(name in path for name in own.split()) for path in added), added
        assert all(line in before for line in frontend.out("find /etc/sudoers.d/deploy-machine -ls").splitlines())

        world.allow_to_read(frontend.out("cat /home/deploy-blog/.ssh/id_ed25519.pub"))
        frontend.run("tee", "/srv/blog/shared/.env", input=DOT_ENV.replace("localhost", "localhost blog.lab"))
        commit = world.commit(world.edit("board/views.py", "[:50]", "[:40]"))
        command = "/srv/blog/bin/deploy_machine.py deploy --json"
        result = json.loads(frontend.sh(command, user="deploy-blog", timeout=280).stdout)
        assert (result["outcome"], result["commit"]) == ("deployed", commit), result
        assert {service["unit"] for service in result["services"]} == {"gunicorn-blog@blue.service", "nginx.service"}
        again = json.loads(frontend.sh(f"{command} --full", user="deploy-blog", timeout=280).stdout)
        assert again["services"][0]["unit"] == "gunicorn-blog@green.service"
    own_connections = [answer for answer in answers if answer.kind == "new connection"]
    bad = [answer for answer in own_connections if (answer.status, answer.commit) != (200, first)]
    assert (len(answers) > 100, bad) == (True, [])
    assert (blog(frontend)["commit"], frontend.health()["commit"]) == (commit, first)
    assert frontend.out("stat -c %U /proc/$(systemctl show -p MainPID --value gunicorn-blog@green)") == "app-blog"
    for user, unit in (("deploy", "gunicorn-blog@green.service"), ("deploy-blog", "gunicorn@blue.service")):
        assert frontend.sh(f"sudo -n /usr/bin/systemctl start {unit}", user=user, check=False).returncode != 0
    assert frontend.sh("cat /srv/app/shared/.env", user="app-blog", check=False).returncode != 0

    assert "gunicorn@green.service" in frontend.deploy().actions
    assert frontend.health()["commit"] == commit
    for extra in ([], APP):
        assert "no changes" in world.set_up("frontend", *extra).stdout

    frontend.shut_down()
    world.boot("frontend")
    frontend.wait_until(lambda: blog(frontend)["commit"] == commit, "the second application is not back")
    done = world.set_up("frontend", *APP, "--remove")
    assert done.returncode == 0, done.stderr
    assert frontend.out("find / -xdev -name '*blog*' -not -path '/proc/*' | grep -v journal") == "/srv/blog"
    assert frontend.health()["commit"] == commit

"""setup_machine.py: what it makes, that it may be repeated, and how it finds differences."""

from __future__ import annotations

import hashlib
import json
import stat
import sys
from pathlib import Path

import pytest

from lab.host import call
from lab.world import REPO_URL, World

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
from deployer import carrier

# no look may fall into the time in which a script is broken: one that goes on is waited for, and none comes after it
LOOKS_NOT = "systemctl stop deploy-watch.timer; systemctl start deploy-watch.service"


def test_check_before_and_after_and_repeat(bare: World) -> None:
    frontend = bare.boot("frontend")
    before = frontend.out("find /etc /srv /home -newer /etc/hostname | sort")
    check = bare.set_up("frontend", "--check")
    assert check.returncode == 1, check.stderr
    assert "differs: user deploy: owns the code, runs the steps" in check.stdout
    assert "differs: /etc/systemd/system/gunicorn@.service: created" in check.stdout
    assert frontend.out("find /etc /srv /home -newer /etc/hostname | sort") == before, "--check changes nothing"

    done = bare.set_up("frontend")
    assert done.returncode == 0, done.stderr
    assert "FRONTEND_HOST = 10.0.0.6" in done.stdout
    assert "FRONTEND_USER = deploy" in done.stdout
    assert bare.known_hosts().splitlines()[-1].split()[2] in done.stdout
    assert "without write access" in done.stdout

    check = bare.set_up("frontend", "--check")
    assert (check.returncode, check.stdout.splitlines()[0]) == (0, "frontend: no differences, all is as it should be")
    state = frontend.out("find /etc /srv /home -printf '%p %m %u %C@\\n' | sort")
    again = bare.set_up("frontend")
    assert "no changes, all is as it should be" in again.stdout
    assert frontend.out("find /etc /srv /home -printf '%p %m %u %C@\\n' | sort") == state

    for path, mode, owner in (
        ("/srv/app", "755", "deploy"),
        ("/srv/app/deployers", "755", "deploy"),
        ("/srv/app/slots", "755", "deploy"),
        ("/srv/app/bin/deploy_machine.py", "777", "deploy"),
        ("/srv/app/bin/../deployers/*/deploy_machine.py", "755", "deploy"),
        ("/srv/app/machine.ini", "644", "root"),
        ("/srv/app/shared/.env", "640", "deploy"),
        ("/srv/app/shared/media", "2775", "app"),
        ("/etc/sudoers.d/deploy-machine", "440", "root"),
        ("/home/deploy/.ssh/authorized_keys", "600", "deploy"),
        ("/home/deploy/.ssh/id_ed25519", "600", "deploy"),
    ):
        assert frontend.out(f"stat -c '%a %U' {path}") == f"{mode} {owner}", path
    restricted = 'restrict,command="/usr/bin/python3 -I /usr/local/lib/deploy-machine/restricted_push.py /srv/app" ssh-'
    assert frontend.out("cat /home/deploy/.ssh/authorized_keys").startswith(restricted)
    assert "Secrets: make the environment `frontend` in the repository" in done.stdout
    assert "the branch `main` (Deployment branches and tags" in done.stdout
    version = carrier.identity(carrier.own_files(bare.clone / "scripts"))
    assert frontend.out("readlink /srv/app/bin/deploy_machine.py") == f"../deployers/{version}/deploy_machine.py"
    assert frontend.out("find /srv/app/deployers ! -user deploy") == ""
    units = [f"gunicorn@{slot}.{kind}" for slot in ("blue", "green") for kind in ("service", "socket")]
    enabled = frontend.out(f"systemctl is-enabled {' '.join(units)} deploy-on-startup.service deploy-watch.timer")
    assert set(enabled.split()) == {"enabled"}
    assert frontend.show("deploy-watch.timer", "ActiveState") == "active"
    # a deploy starts what it needs
    assert frontend.out(f"systemctl is-active {' '.join(units)} || true").split() == ["inactive"] * 4
    frontend.sh("touch /etc/deploy-on-startup.disabled")
    frontend.shut_down()
    bare.boot("frontend")
    assert frontend.out(f"systemctl is-active {' '.join(units)} || true").split() == ["inactive", "active"] * 2
    assert frontend.out("stat -c '%a %U:%G' /run/gunicorn-blue.sock") == "660 www-data:deploy"
    assert "no changes, all is as it should be" in bare.set_up("frontend").stdout


def test_the_users_name_stands_in_the_units(bare: World) -> None:
    frontend = bare.boot("frontend")
    assert bare.set_up("frontend", "--user", "shipper", "--root", "/srv/site").returncode == 0
    units = "gunicorn@blue.service gunicorn@blue.socket deploy-watch.service deploy-on-startup.service"
    text = frontend.out(f"systemctl cat {units}")
    assert "/srv/site/slots/%i/REVISION" in text
    assert {line for line in text.splitlines() if "Group=" in line or "User=" in line} == {
        "User=app", "Group=app", "User=shipper", "SocketUser=www-data", "SocketGroup=shipper",
    }  # fmt: skip
    assert "/srv/app" not in text


DIFFERENCES = {  # what somebody does, and what is told of it
    "echo '# by hand' >> /etc/systemd/system/gunicorn@.service": "/etc/systemd/system/gunicorn@.service: changed",
    "systemctl disable gunicorn@green.service": "gunicorn@green.service: enabled",
    "systemctl disable gunicorn@green.socket": "gunicorn@green.socket: enabled",
    "systemctl stop deploy-watch.timer": "deploy-watch.timer: started",
    "rm /etc/sudoers.d/deploy-machine": "/etc/sudoers.d/deploy-machine: created",
    "chmod 644 /srv/app/shared/.env": "/srv/app/shared/.env: mode 640",
    "chown root /srv/app/state": "/srv/app/state: owner deploy:deploy",
    "sed -i 's/frontend/scheduler/' /srv/app/machine.ini": "/srv/app/machine.ini: changed",
    "echo broken > /srv/app/bin/deploy_machine.py": "/srv/app/bin/deploy_machine.py: changed",
    "sed -i d /home/deploy/.ssh/authorized_keys": "/home/deploy/.ssh/authorized_keys: changed",
}


def test_each_difference_is_found_and_put_right(world: World) -> None:
    frontend = world.boot("frontend")
    frontend.sh("; ".join([LOOKS_NOT, *DIFFERENCES]))
    check = world.set_up("frontend", "--check")
    found = [line.partition(": ")[2] for line in check.stdout.splitlines() if line.strip().startswith("differs: ")]
    assert check.returncode == 1
    assert [says for says in DIFFERENCES.values() if not any(line.startswith(says) for line in found)] == []
    done = world.set_up("frontend")
    assert [says for says in DIFFERENCES.values() if f"+ {says}" not in done.stdout] == [], done.stdout + done.stderr
    assert world.set_up("frontend", "--check").returncode == 0
    assert frontend.deploy().outcome in ("unchanged", "deployed")


def test_a_script_that_works_stays_and_one_that_does_not_becomes_a_link(world: World) -> None:
    frontend = world.boot("frontend")
    place = "/srv/app/bin/deploy_machine.py"
    link = f"../deployers/{carrier.identity(carrier.own_files(world.clone / 'scripts'))}/deploy_machine.py"
    frontend.sh(f"rm {place}; printf '\\ndef main():\\n    pass\\n' > {place}; chown deploy: {place}")
    assert "no changes" in world.set_up("frontend").stdout, "such as a plain file of version 0.1: deploys replace it"
    shadow = frontend.out("stat -c '%i %Z' /etc/shadow")
    for damage in (
        f"rm {place}",
        f"ln -sf /etc/shadow {place}; chown -h deploy: {place}",
        f"ln -sf nowhere {place}",
        f"rm -rf /srv/app/bin/{link}",
        "for file in $(find /srv/app/deployers -name '*.py*'); do echo broken > $file; done",
    ):
        frontend.sh(f"{LOOKS_NOT}; {damage}")
        assert f"differs: {place}: " in world.set_up("frontend", "--check").stdout, damage
        done = world.set_up("frontend")
        assert f"+ {place}: " in done.stdout, f"{damage}: {done.stdout}{done.stderr}"
        assert frontend.out(f"readlink {place}") == link
        assert frontend.out(f"{place} --version", user="deploy")
    assert frontend.out("stat -c '%i %Z' /etc/shadow") == shadow
    frontend.sh(f"rm {place}; mkdir {place}")
    refused = world.set_up("frontend")
    assert (refused.returncode, refused.stderr) == (10, f"setup_machine.py: {place} is a directory: remove it\n")


SPY = """\
#!/usr/bin/python3
import os, sys
def main():
    try:
        os.open("/dev/tty", os.O_RDWR)
        found = "terminal"
    except OSError:
        found = ""
    open("/tmp/seen", "w").write(found + os.environ.get("SECRET", "") + str(os.getuid()))
main()
"""


def test_nothing_of_deploys_is_started_and_what_runs_for_it_has_nothing_of_roots(bare: World) -> None:
    """A script that deploy left in bin/ and root's terminal: it could type there what root's shell would run."""
    frontend = bare.boot("frontend")
    call("cp", "-a", bare.clone, frontend.root / "opt/app")
    command = f"/opt/app/scripts/setup_machine.py --name frontend --role frontend --repo {REPO_URL}"
    frontend.sh(command)
    place = "/srv/app/bin/deploy_machine.py"
    frontend.sh(f"rm {place}", user="deploy")
    frontend.run("tee", place, input=SPY, user="deploy")
    frontend.sh(f"chmod 755 {place}", user="deploy")
    in_terminal = "SECRET=told script -qec '%s' /dev/null < /dev/null"
    for arguments in (" --check", ""):
        frontend.sh(in_terminal % (command + arguments), check=False)
        assert frontend.out("ls /tmp/seen || true") == ""
    frontend.sh(in_terminal % f"runuser -u deploy {place}")
    assert frontend.out("cat /tmp/seen") == f"terminaltold{frontend.out('id -u deploy')}", "so it would have been"
    ours = f'import setup_ground; setup_ground.call(\\"{place}\\", user=\\"deploy\\")'
    frontend.sh(in_terminal % f'cd /opt/app/scripts && python3 -c "{ours}"')
    assert frontend.out("cat /tmp/seen") == frontend.out("id -u deploy")


def test_another_role_removes_the_units_of_the_old_one(world: World) -> None:
    scheduler = world.boot("scheduler")
    assert scheduler.show("scheduler.service", "ActiveState") == "active"
    done = world.set_up("scheduler", roles=["frontend"])
    assert "/etc/systemd/system/scheduler.service: removed" in done.stdout, done.stderr
    assert scheduler.show("scheduler.service", "ActiveState") == "inactive"
    assert scheduler.show("scheduler.service", "LoadState") == "not-found"
    assert scheduler.show("gunicorn@blue.service", "UnitFileState") == "enabled"
    done = world.set_up("scheduler")
    assert "/etc/systemd/system/gunicorn@.service: removed" in done.stdout, done.stderr
    assert "/etc/systemd/system/gunicorn@.socket: removed" in done.stdout, done.stderr
    assert scheduler.show("gunicorn@blue.service", "LoadState") == "not-found"
    assert scheduler.out("find /etc/systemd/system -name 'gunicorn*'") == ""
    assert "no changes" in world.set_up("scheduler").stdout


SCHEDULER = "[Service]\nExecStart=/bin/sleep infinity\n[Install]\nWantedBy=multi-user.target\n"


def test_what_others_wrote_is_found_first_and_kept(bare: World) -> None:
    scheduler = bare.boot("scheduler")
    unit = "/etc/systemd/system/scheduler.service"
    scheduler.run("tee", unit, input=SCHEDULER)
    scheduler.sh(f"mkdir {unit}.d; printf '[Service]\\nNice=5\\n' > {unit}.d/own.conf; systemctl start scheduler")
    pid = scheduler.pids("scheduler.service")
    before = scheduler.out("find /etc /srv /home /usr/local -newer /etc/hostname | sort")
    other = bare.set_up("scheduler", roles=["frontend"])
    assert other.returncode == 2
    assert f"  {unit}, which deploys would stop: this machine is to have no role with it" in other.stderr
    check = bare.set_up("scheduler", "--check")
    says = f"differs: not setup's, and in the way (--replace keeps copies): {unit}\n"
    assert (check.returncode, says in check.stdout) == (1, True)
    refused = bare.set_up("scheduler")
    first, *others = refused.stderr.splitlines()
    assert (refused.returncode, others) == (2, [f"  {unit}"]), refused
    assert first.startswith("setup_machine.py: these are in the way, and not setup's; nothing was touched.")
    assert scheduler.out("find /etc /srv /home /usr/local -newer /etc/hostname | sort") == before

    done = bare.set_up("scheduler", "--replace")
    assert done.returncode == 0, done.stderr
    back = done.stdout.partition("to go back: ")[2].splitlines()[0]
    copy = back.split()[2]
    assert (copy.startswith(f"{unit}.20"), scheduler.out(f"cat {copy}")) == (True, SCHEDULER.strip())
    assert scheduler.pids("scheduler.service") == pid, "what runs goes on until the first deploy"
    assert "no changes" in bare.set_up("scheduler").stdout
    assert scheduler.show("scheduler.service", "Nice") == "5", "a drop-in of one's own stays"

    record = json.loads(scheduler.out("cat /usr/local/lib/deploy-machine/installed.json"))
    text = (bare.clone / "systemd/scheduler.service").read_bytes()
    about = record["files"][unit]
    assert (record["root"], about["source"]) == ("/srv/app", "systemd/scheduler.service")
    assert about["sha256"] == scheduler.out(f"sha256sum {unit}").split()[0]
    assert about["source_sha256"] == hashlib.sha256(text).hexdigest()
    assert about["source_blob"] == bare.git("rev-parse", "HEAD:systemd/scheduler.service")
    assert scheduler.out("stat -c '%a %U' /usr/local/lib/deploy-machine/installed.json") == "644 root"

    refused = bare.set_up("scheduler", "--root", "/srv/blog")
    assert (refused.returncode, "this machine has /srv/app already" in refused.stderr) == (2, True)
    assert "for a second application add --app NAME" in refused.stderr
    scheduler.sh(back)
    assert "/bin/sleep" in scheduler.show("scheduler.service", "ExecStart")


def test_a_machine_set_up_before_there_were_records(world: World) -> None:
    scheduler = world.boot("scheduler")
    scheduler.sh("rm /usr/local/lib/deploy-machine/*.json; echo '#' >> /etc/systemd/system/scheduler.service")
    done = world.set_up("scheduler")
    assert "+ /etc/systemd/system/scheduler.service: changed" in done.stdout, done.stderr
    assert "no changes" in world.set_up("scheduler").stdout


def test_as_root_on_the_machine_itself(bare: World) -> None:
    frontend = bare.boot("frontend")
    call("cp", "-a", bare.clone, frontend.root / "opt/app")
    command = f"/opt/app/scripts/setup_machine.py --name frontend --role frontend --repo {REPO_URL} --branch main"
    done = frontend.sh(command)
    assert "frontend: " in done.stdout
    assert "FRONTEND_HOST = 10.0.0.6" in done.stdout
    assert "branch = main" in frontend.out("cat /srv/app/machine.ini")
    again = frontend.sh(command.replace(" --branch main", "")).stdout
    assert "note: branch = main stays, as --branch said once" in again
    assert "no changes" in again
    refused = frontend.sh(command, user="deploy", check=False)
    assert refused.returncode == 2
    assert "run it as root on the machine" in refused.stderr


def test_what_is_missing_is_named_with_the_command_that_gets_it(bare: World) -> None:
    frontend = bare.boot("frontend")
    frontend.sh("cd /usr && rm local/bin/poetry local/bin/npm bin/git bin/sudo sbin/visudo sbin/nginx")
    frontend.sh("rm -r /usr/lib/python3*/ensurepip /etc/sudoers.d /etc/nginx")
    (bare.clone / "requirements.txt").write_text("")
    done = bare.set_up("frontend")
    assert done.returncode == 0, done.stderr
    listed = done.stdout.partition("to do, in this order (or once more with --install-packages):\n")[2].splitlines()
    assert [line for line in listed if line.startswith("  ")][:4] == [
        "  apt-get update",
        "  apt-get install --yes --no-install-recommends git sudo python3-venv npm nginx pipx",
        "  sudo -H -u deploy pipx install poetry==2.2.1",
        "  setup_machine.py, once more with the same options: it then installs nginx's site",
    ]
    assert frontend.out("ls /etc/sudoers.d") == "deploy-machine", "sudo will find it"
    assert bare.set_up("frontend", "--check").returncode == 1


PACKAGE = """\
mkdir -p /opt/repo/{name}/DEBIAN /opt/repo/{name}/usr/bin
printf 'Package: {name}\\nVersion: 1\\nArchitecture: all\\nMaintainer: me <me@example.com>\\nDescription: x\\n' \
    > /opt/repo/{name}/DEBIAN/control
printf '#!/bin/sh\\n{script}\\n' > /opt/repo/{name}/usr/bin/{name} && chmod 755 /opt/repo/{name}/usr/bin/{name}
dpkg-deb --build /opt/repo/{name} && rm -r /opt/repo/{name}
"""


PACKAGES = """\
cd /opt/repo && for d in *.deb; do
    dpkg-deb -f $d
    printf 'Filename: ./%s\\nSize: %s\\nSHA256: %s\\n\\n' $d $(stat -c %s $d) $(sha256sum $d | cut -d' ' -f1)
done > Packages
"""


def test_what_is_missing_is_installed_if_asked_for(bare: World) -> None:
    """With apt, from a repository of packages that were made here."""
    frontend = bare.boot("frontend")
    frontend.sh(
        "rm /usr/local/bin/poetry /usr/local/bin/npm; echo deb [trusted=yes] file:/opt/repo ./ > /etc/apt/sources.list"
    )
    pipx = "mkdir -p ~/.local/bin && ln -s /opt/poetry/bin/poetry ~/.local/bin && echo $* > ~/asked"
    for name, script in (("npm", "exit 0"), ("pipx", pipx)):
        frontend.sh(PACKAGE.format(name=name, script=script))
    frontend.sh(PACKAGES)
    check = bare.set_up("frontend", "--install-packages", "--check")
    install = "apt-get install --yes --no-install-recommends npm pipx"
    assert (check.returncode, f"differs: {install}" in check.stdout) == (1, True), check.stdout + check.stderr
    done = bare.set_up("frontend", "--install-packages")
    assert (done.returncode, f"+ {install}" in done.stdout) == (0, True), done.stdout + done.stderr
    assert "+ sudo -H -u deploy pipx install poetry==2.2.1" in done.stdout
    assert frontend.out("cat ~/asked; test -e ~/.local/bin/poetry", user="deploy") == "install poetry==2.2.1"
    assert "to do, in this order" not in done.stdout
    assert "no changes" in bare.set_up("frontend", "--install-packages").stdout


def test_what_would_keep_a_push_or_a_deploy_from_working(world: World) -> None:
    """Each is found, also where nothing else differs, with what mends it; mended, it is not found any more."""
    frontend = world.boot("frontend")
    mend = "add deploy in /etc/ssh/sshd_config, then: systemctl reload ssh"
    sshd = "/etc/ssh/sshd_config.d/00-hard.conf"
    zone = "mount --bind /mnt /srv/app/envs"
    for damage, says, repair in (
        (f"echo AllowUsers root admin > {sshd}", f"sshd lets in only root admin (AllowUsers): {mend}", f"rm {sshd}"),
        (f"echo DenyGroups dep* > {sshd}", "sshd turns deploy away (DenyGroups dep*)", f"rm {sshd}"),
        (
            f"echo AuthorizedKeysFile /etc/ssh/keys/%u > {sshd}",
            "sshd reads keys from /etc/ssh/keys/%u (AuthorizedKeysFile), not from /home/deploy/.ssh/authorized_keys",
            f"rm {sshd}",
        ),
        (f"echo PubkeyAuthentication no > {sshd}", "sshd takes no keys", f"rm {sshd}"),
        (f"echo ForceCommand /bin/date > {sshd}", "sshd runs /bin/date in place of what CI asks for", f"rm {sshd}"),
        (f"echo Nonsense yes > {sshd}", "Bad configuration option: Nonsense", f"rm {sshd}"),
        ("chmod 777 /home/deploy", "chmod go-w /home/deploy", "chmod go-w /home/deploy"),
        ("chown app /home/deploy", "chown deploy /home/deploy", "chown deploy /home/deploy"),
        ("mv /home/deploy /home/d", "install -d -o deploy -m 755 /home/deploy", "rmdir /home/deploy/.ssh /home/deploy; "
         "mv /home/d /home/deploy"),
        (
            "usermod --shell /usr/sbin/nologin deploy",
            "deploy has the login shell /usr/sbin/nologin, and no push can run",
            "usermod --shell /bin/bash deploy",
        ),
        ("chage --expiredate 1 deploy", "chage --expiredate -1 deploy", "chage --expiredate -1 deploy"),
        (
            "sed -i s/^@includedir/#/ /etc/sudoers",
            "sudo does not grant deploy what /etc/sudoers.d/deploy-machine says (sudo: a password is required)",
            "sed -i s/^#[[:space:]]/@includedir\\ / /etc/sudoers",
        ),
        (
            "touch /srv/app/repo.git/refs/made-by-root",
            "/srv/app/repo.git/refs/made-by-root does not belong to deploy",
            "find /srv/app/repo.git ! -user deploy -exec chown -h deploy: {} +",
        ),
        (zone, "/srv/app: releases/ on /, envs/ on /srv/app/envs: deploys rename between them", "umount /srv/app/envs"),
    ):  # fmt: skip
        frontend.sh("cp /etc/sudoers /root/sudoers")
        frontend.sh(damage)
        check = world.set_up("frontend", "--check")
        told = [line for line in check.stdout.splitlines() if line.startswith("to do: ") and says in line]
        assert (check.returncode, len(told)) == (1, 1), f"{damage}: {check.stdout}{check.stderr}"
        assert "all is as it should be" not in check.stdout, damage
        frontend.sh("cp /root/sudoers /etc/sudoers" if "sudoers" in damage else repair)
        after = world.set_up("frontend", "--check")
        assert (after.returncode, "all is as it should be" in after.stdout) == (0, True), f"{damage}: {after.stdout}"


def test_sudo_that_asks_for_a_terminal(world: World) -> None:
    frontend = world.boot("frontend")
    frontend.sh("sed -i '1i Defaults requiretty' /etc/sudoers")
    call_of_a_deploy = "sudo -n systemctl start gunicorn@blue.socket"
    assert frontend.sh(f"setsid {call_of_a_deploy}", user="deploy", check=False, stdin=-3).returncode == 0
    frontend.sh("sed -i /^Defaults/d /etc/sudoers.d/deploy-machine")
    refused = frontend.sh(f"setsid {call_of_a_deploy}", user="deploy", check=False, stdin=-3)
    assert "you must have a tty" in refused.stderr


def test_the_git_host_has_another_key(world: World) -> None:
    frontend, services = world.boot("frontend"), world.machine("services")
    services.sh("cd /etc/ssh && rm ssh_host_ed25519_key* && ssh-keygen -q -t ed25519 -N '' -f ssh_host_ed25519_key")
    services.sh("systemctl restart ssh")
    check = world.set_up("frontend", "--check")
    print_of_it = services.out("ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub").split()[1]
    told = "to do: git.lab shows another ssh host key than the one that is pinned: compare 256 " + print_of_it
    assert (check.returncode, told in check.stdout) == (1, True), check.stdout
    mend = check.stdout.partition("if it is that: ")[2].partition(", and run this again")[0]
    frontend.sh(mend)
    assert "compare the host key of git.lab" in world.set_up("frontend").stdout
    assert world.set_up("frontend", "--check").returncode == 0
    assert frontend.deploy().outcome == "unchanged"


def test_a_user_of_that_name_who_is_not_as_it_must_be(bare: World) -> None:
    frontend = bare.boot("frontend")
    frontend.sh("groupadd staff2; useradd --gid staff2 --home-dir /var/lib/d --create-home --shell /bin/bash deploy")
    done = bare.set_up("frontend")
    mend = "groupadd deploy && usermod --append --groups deploy deploy"
    says = f"setup_machine.py: the user deploy is there, but no group of that name: {mend}\n"
    assert (done.returncode, done.stderr) == (2, says)
    frontend.sh(mend)
    done = bare.set_up("frontend")
    assert (done.returncode, done.stderr) == (0, "")
    assert frontend.out("cat /var/lib/d/.ssh/id_ed25519.pub") in done.stdout, "another home will do"
    assert bare.set_up("frontend", "--check").returncode == 0
    root = bare.set_up("frontend", "--user", "root")
    assert (root.returncode, "root is root, by another name" in root.stderr) == (2, True)


def test_known_hosts_lines_are_those_that_ssh_looks_for(bare: World) -> None:
    frontend = bare.boot("frontend")
    frontend.sh("ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/own; printf 'Port 2222\\nPort 22\\nHostKey /etc/ssh/own\\n'"
                " > /etc/ssh/sshd_config.d/port.conf; systemctl restart ssh")  # fmt: skip
    script = bare.clone / "scripts/setup_machine.py"
    words = ["--name", "frontend", "--role", "frontend", "--repo", REPO_URL]
    env = {**bare.ssh_environment(), "HOME": str(bare.home)}
    known = bare.home / "known"
    (bare.home / "bin/ssh").write_text(
        f"#!/bin/sh\nexec /usr/bin/ssh -F /dev/null -i {bare.home}/admin -o StrictHostKeyChecking=no"
        f' -o UserKnownHostsFile=/dev/null "$@"\n'
    )
    strict = ["-F", "/dev/null", "-i", bare.home / "admin", "-o", f"UserKnownHostsFile={known}", "-o", "BatchMode=yes"]
    for place, port in (("10.0.0.6:22", "22"), ("10.0.0.6", "22"), ("10.0.0.6:2222", "2222")):
        done = bare.runner("python3", script, "--ssh", f"root@{place}", *words, env=env, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        lines = done.stdout.partition("DEPLOY_KNOWN_HOSTS")[2].splitlines()[1:]
        known.write_text("".join(f"{line.strip()}\n" for line in lines))
        asked = bare.runner("ssh", *strict, "-p", port, "root@10.0.0.6", "true", check=False)
        assert asked.returncode == 0, (place, lines, asked.stderr)


def test_what_setup_made_is_taken_away_but_for_shared(world: World) -> None:
    frontend = world.boot("frontend")
    frontend.sh("echo precious > /srv/app/shared/media/photo; mkdir -p /etc/systemd/system/gunicorn@.service.d")
    drop_in = "/etc/systemd/system/gunicorn@.service.d/own.conf"
    frontend.sh(f"echo '[Service]' > {drop_in}")
    keys = "/home/deploy/.ssh/authorized_keys"
    was = frontend.out(f"cat {keys}")
    replace = ["--authorize", str(world.home / "admin.pub"), "--revoke", str(world.home / "ci.pub")]
    world.set_up("frontend", *replace[:2])
    assert len(frontend.out(f"cat {keys}").splitlines()) == 2, "the new key, beside the old one"
    done = world.set_up("frontend", *replace)
    assert "note: the key of --revoke is let in no more" in done.stdout
    assert frontend.out(f"cat {keys}").count("ssh-ed25519") == 1 and was not in frontend.out(f"cat {keys}")
    again = world.set_up("frontend", *replace)
    assert "note: the key of --revoke was not among those of deploy" in again.stdout
    assert "no changes" in again.stdout

    check = world.set_up("frontend", "--remove", "--check")
    assert (check.returncode, "differs: user deploy: removed" in check.stdout) == (1, True), check.stdout + check.stderr
    assert frontend.health()["status"] == 200
    done = world.set_up("frontend", "--remove")
    assert done.returncode == 0, done.stderr
    assert "note: /srv/app/shared stays" in done.stdout
    assert "Secrets" not in done.stdout
    assert frontend.out("cat /srv/app/shared/media/photo; ls -A /srv/app") == "precious\nshared"
    left = "find /etc /usr/local/lib/deploy-machine /home -path '*gunicorn*' -o -path '*deploy*' -o -name board.conf"
    assert frontend.out(f"{left} 2>/dev/null | grep -v passwd || true").split() == [drop_in.rpartition("/")[0], drop_in]
    units = "systemctl list-units --all --plain --no-legend 'gunicorn*' 'deploy-*'"
    assert frontend.out(f"{units} | grep -v not-found || true") == ""
    assert frontend.out("id deploy app || true") == ""
    assert "no changes" in world.set_up("frontend", "--remove").stdout


STEP = """
[step count]
run = python3 -c "import sqlite3; [sqlite3.connect('/srv/app/shared/data/' + n, isolation_level=None).execute(
    'create table if not exists t (x)').execute('insert into t values (1)') for n in ('app.db', 'step.db')]"
"""
COUNT = """python3 -c "import sqlite3; c = sqlite3.connect('/srv/app/shared/data/%s', isolation_level=None)
c.execute('create table if not exists t (x)'); c.execute('insert into t values (1)')
print(c.execute('select count(*) from t').fetchone()[0])" """


def test_what_app_deploy_and_nginx_write_is_open_to_each_other(world: World) -> None:
    frontend = world.boot("frontend")
    ini = "[deploy]\nshared = .env media uploads\n\n" + (world.clone / "deploy.ini").read_text()
    world.commit({"deploy.ini": ini + STEP})
    done = world.set_up("frontend")
    assert "+ /srv/app/shared/uploads/: created" in done.stdout, done.stdout + done.stderr
    assert "/srv/app/shared/uploads" in frontend.show("gunicorn@blue.service", "ReadWritePaths")
    assert frontend.out("stat -c '%a %U:%G' /srv/app/shared/data") == "2770 app:app"

    umask = frontend.show("gunicorn@blue.service", "UMask")
    assert umask == "0002"
    frontend.sh(f"umask {umask}; cd /srv/app/shared/media && mkdir -p a/b && echo upload > a/b/file", user="app")
    assert frontend.out("curl -sf http://127.0.0.1/media/a/b/file") == "upload"
    frontend.sh("echo more >> /srv/app/shared/media/a/b/file; touch /srv/app/shared/media/a/b/own", user="deploy")
    assert frontend.out(f"umask {umask}; {COUNT % 'app.db'}", user="app") == "1"
    assert frontend.out("stat -c %a /srv/app/shared/data/app.db") == "644", "whatever the umask: SQLite has it so"

    deployed = frontend.deploy()
    assert (deployed.outcome, "count" in deployed.ran) == ("deployed", True), deployed.log
    assert frontend.out(f"umask {umask}; {COUNT % 'app.db'}", user="app") == "3"
    assert frontend.out(f"umask {umask}; {COUNT % 'step.db'}", user="app") == "2", "made by a step of deploy's"
    assert frontend.deploy("--full").outcome == "deployed"
    assert "no changes" in world.set_up("frontend").stdout


def test_nginx_gets_the_applications_site(bare: World) -> None:
    frontend = bare.boot("frontend")
    site, link = "/etc/nginx/sites-available/board.conf", "/etc/nginx/sites-enabled/board.conf"
    source = bare.clone / "deploy/nginx/board.conf"
    text = source.read_text()
    check = bare.set_up("frontend", "--check")
    assert f"differs: {site}: created" in check.stdout
    done = bare.set_up("frontend")
    assert (done.returncode, frontend.out(f"cat {link}")) == (0, text.strip()), done.stderr
    assert frontend.out("ls /etc/nginx/sites-enabled; ls /etc/nginx/sites-available/default").split() == [
        "board.conf", "/etc/nginx/sites-available/default",
    ]  # fmt: skip
    assert frontend.show("nginx.service", "UnitFileState") == "enabled"
    frontend.sh("systemctl start nginx")

    source.write_text(text.replace("listen 80", "lissen 80"))
    record = frontend.out("cat /usr/local/lib/deploy-machine/installed.json")
    done = bare.set_up("frontend")
    says = 'nginx does not take board.conf; what was there is back: nginx -t: unknown directive "lissen"'
    assert (done.returncode, says in done.stderr) == (10, True), done.stderr
    assert frontend.out(f"cat {site}") == text.strip()
    assert frontend.out("cat /usr/local/lib/deploy-machine/installed.json") == record
    assert frontend.sh("nginx -t -q && curl -s -o /dev/null http://127.0.0.1/").returncode == 0

    source.write_text(text.replace("20m", "30m"))
    assert f"differs: {site}: changed" in bare.set_up("frontend", "--check").stdout
    bare.set_up("frontend")
    frontend.sh(f"echo '# certbot' >> {site}")
    done = bare.set_up("frontend")
    assert f"{site} was changed since setup wrote it, and stays" in done.stdout
    assert "no changes" in done.stdout
    done = bare.set_up("frontend", "--replace")
    assert (f"kept as {site}.20" in done.stdout, "certbot" in frontend.out(f"cat {site}")) == (True, False)

    other = source.with_name("other.conf")
    other.write_text(text)
    done = bare.set_up("frontend")
    assert (done.returncode, "has board.conf, other.conf: say which" in done.stderr) == (2, True)
    done = bare.set_up("frontend", "--site", str(other), roles=["scheduler"])
    assert f"+ {site}: removed" in done.stdout
    assert frontend.out("ls /etc/nginx/sites-enabled") == ""


def test_nginx_gets_a_built_in_site_where_the_application_has_none(bare: World) -> None:
    frontend = bare.boot("frontend")
    (bare.clone / "deploy/nginx/board.conf").unlink()
    frontend.sh("cd /etc/nginx && rm -r sites-enabled sites-available && sed -i /sites-enabled/d nginx.conf")  # as RHEL
    done = bare.set_up("frontend", "--server-name", "app.example.com")
    assert done.returncode == 0, done.stderr
    text = frontend.out("cat /etc/nginx/conf.d/app.conf")
    assert ("server_name app.example.com;" in text, "default_server" in text) == (True, False)
    assert "alias /srv/app/current/staticfiles/;" in text
    assert "server_name = app.example.com" in frontend.out("cat /srv/app/machine.ini")
    again = bare.set_up("frontend")
    assert "note: server_name = app.example.com stays, as --server-name said once" in again.stdout
    assert "no changes" in again.stdout


def test_a_site_of_others_goes_on(bare: World) -> None:
    frontend = bare.boot("frontend")
    place = "/etc/nginx/sites-enabled/mine"
    frontend.run("tee", place, input="server { listen 80 default_server; return 204; }\n")
    frontend.sh("rm /etc/nginx/sites-enabled/default; systemctl start nginx")
    for extra, says in (
        ([], f"to do: nginx: {place} answers where setup's site would, and goes on: deploy, then"),
        (["--replace"], f"to do: nginx: {place} goes on, as no release answers here yet: deploy, then"),
    ):
        done = bare.set_up("frontend", *extra)
        assert (done.returncode, says in done.stdout) == (0, True), done.stdout
        assert frontend.out("ls /etc/nginx/sites-enabled") == "mine"
    frontend.sh(f"sed -i 's,return 204;,location / {{ proxy_pass http://unix:/srv/app/current/.socket; }},' {place}")
    done = bare.set_up("frontend")
    assert f"note: nginx: {place} passes requests to /srv/app/current, and stays as it is" in done.stdout
    assert "to do: nginx" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--name", "front end"], "is not a machine name"),
        (["--role", "nurse"], "--role nurse: unknown"),
        (["--repo=--upload-pack=x"], "not an address that git could fetch from"),
        (
            ["--repo=http://git.example.com/a.git"],
            "use https://git.example.com/a.git or ssh://git@git.example.com/a.git",
        ),
        (["--repo=git://git.example.com/a.git"], "who is on the way could choose the code that git:// brings"),
        (["--repo=https://me:secret@git.example.com/a"], "address holds a password"),
        (["--no-restrict-ci-key"], "name the key's public half with --authorize"),
        (["--ssh=-oProxyCommand=x"], "is not [USER@]HOST[:PORT]"),
        (["--root", "relative"], "is not an absolute path"),
        (["--user", "app; rm"], "is not a user name"),
        (["--branch=-x"], "is not a branch name"),
        (["--authorize", "/nowhere"], "/nowhere: No such file"),
        (["--authorize", "KEY"], "a private key: name its .pub file"),
    ],
)
def test_bad_input_is_one_line_and_touches_nothing(bare: World, arguments: list[str], says: str) -> None:
    words = [str(bare.home / "ci") if word == "KEY" else word for word in arguments]
    defaults = {"--name": "x", "--role": "frontend", "--repo": REPO_URL, "--ssh": "root@10.0.0.99"}
    given = {word.partition("=")[0] for word in words}
    rest = [word for key, value in defaults.items() if key not in given for word in (key, value)]
    done = bare.runner("python3", bare.clone / "scripts/setup_machine.py", *rest, *words, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("setup_machine.py: ")
    assert done.stderr.count("\n") == 1
    assert says in done.stderr


def test_a_machine_that_does_not_answer(bare: World) -> None:
    bare.machine("frontend")  # switched off
    done = bare.set_up("frontend")
    assert done.returncode == 69
    assert "10.0.0.6 could not be reached by ssh" in done.stderr


def test_no_secret_is_readable_by_others(world: World) -> None:
    frontend = world.boot("frontend")
    for path in ("srv/app/shared/.env", "home/deploy/.ssh/id_ed25519"):
        mode = (frontend.root / path).stat().st_mode
        assert not mode & stat.S_IROTH, path

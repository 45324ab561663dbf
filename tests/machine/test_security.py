"""What the users deploy and app can do on a machine that setup_machine.py has prepared: not become root."""

from __future__ import annotations

import json
import re
import subprocess
import threading

import pytest

from lab.host import REPOSITORY
from lab.machine import Machine
from lab.world import World

UNIT = "gunicorn@blue.service"
SUDO = [
    "-s",
    "-i",
    "-n -u root id",
    "-n -l -U root",
    "-n su",
    "-n /usr/bin/python3 /srv/app/bin/deploy_machine.py status",
    "-n /srv/app/bin/deploy_machine.py",
    "-n systemctl",
    "-n systemctl restart",
    "-n systemctl restart ssh.service",
    f"-n systemctl start {UNIT} ssh.service",
    "-n systemctl restart *",
    f"-n systemctl start ./{UNIT}",
    "-n systemctl start gunicorn@blue.servic?",
    f"-n systemctl start {UNIT} --no-pager",
    f"-n systemctl --now start {UNIT}",
    f"-n systemctl start -- {UNIT}",
    f"-n systemctl -- start {UNIT}",
    "-n systemctl start gunicorn@blue",
    f"-n systemctl start ''  {UNIT}",
    f"-n /tmp/evil/../../usr/bin/systemctl daemon-reload {UNIT}",
    f"-n systemctl -H root@10.0.0.3 start {UNIT}",
    f"-n systemctl --host=root@10.0.0.3 start {UNIT}",
    f"-n systemctl -M services start {UNIT}",
    f"-n systemctl --root=/tmp start {UNIT}",
    f"-n systemctl --force start {UNIT}",
    f"-n systemctl status {UNIT}",
    f"-n systemctl show {UNIT}",
    f"-n systemctl cat {UNIT}",
    f"-n systemctl edit {UNIT}",
    f"-n systemctl edit --full {UNIT}",
    f"-n systemctl revert {UNIT}",
    f"-n systemctl set-property {UNIT} CPUWeight=1",
    f"-n systemctl mask {UNIT}",
    f"-n systemctl enable {UNIT}",
    f"-n systemctl disable {UNIT}",
    f"-n systemctl kill {UNIT}",
    f"-n systemctl restart {UNIT}",
    "-n systemctl start gunicorn@red.service",
    "-n systemctl start gunicorn@.service",
    "-n systemctl link /tmp/evil.service",
    "-n systemctl enable /tmp/evil.service",
    "-n systemctl start /tmp/evil.service",
    "-n systemctl set-environment LD_PRELOAD=/tmp/evil.so",
    "-n systemctl import-environment LD_PRELOAD",
    "-n systemctl daemon-reload",
    "-n systemctl daemon-reexec",
    "-n systemctl isolate rescue.target",
    "-n systemctl reboot",
    "-n systemctl stop nginx.service",
    "-n systemctl restart nginx.service",
    "-n systemctl restart deploy-on-startup.service",
    "-n systemd-run id",
    "-n nginx",
    "-n nginx -t",
    "-n nginx -t -q -c /tmp/evil.conf",
    "-n nginx -t -q -g 'error_log /tmp/x;'",
    "-n nginx -T",
    "-n nginx -t -q -p /tmp",
    "-n nginx -s stop",
    f"-n -E systemctl start {UNIT}",
    f"-n --preserve-env=PATH systemctl start {UNIT}",
    f"-n LD_PRELOAD=/tmp/evil.so systemctl start {UNIT}",
    f"-n SYSTEMD_PAGER=/tmp/evil/sh systemctl start {UNIT}",
    f"-n -R /tmp systemctl start {UNIT}",
    f"-n -D /tmp systemctl start {UNIT}",
    f"-n -g root systemctl start {UNIT}",
    f"-n -u#-1 systemctl start {UNIT}",
    f"-n -u app systemctl start {UNIT}",
    "-n -e /etc/sudoers.d/deploy-machine",
    "-n sudoedit /etc/nginx/nginx.conf",
    "-n visudo",
    "-n journalctl",
]


def test_sudo_grants_nothing_but_the_listed_calls(world: World) -> None:
    frontend = world.boot("frontend")
    before = frontend.pids(UNIT, "nginx.service", "ssh.service")
    for command in SUDO:
        done = frontend.sh(f"sudo {command}", user="deploy", check=False, timeout=20)
        assert done.returncode != 0, (command, done)
        assert re.search(
            "password is required|not allowed|a terminal is required|not permitted|unknown user #-1", done.stderr
        ), done
    assert frontend.pids(UNIT, "nginx.service", "ssh.service") == before


def test_what_sudo_grants_runs_nothing_of_the_callers(world: World) -> None:
    """The granted calls under an environment that names a pager, a library, another systemctl."""
    frontend = world.boot("frontend")
    frontend.sh(
        "mkdir -m 755 /tmp/evil && cd /tmp/evil && printf '#!/bin/sh\\ntouch /tmp/evil-ran\\n' > systemctl &&"
        " chmod 755 systemctl && for n in nginx sh less more pager editor systemd-tty-ask-password-agent;"
        " do ln systemctl $n; done"
    )
    names = "PAGER SYSTEMD_PAGER EDITOR SYSTEMD_EDITOR VISUAL SUDO_EDITOR SUDO_ASKPASS LESSOPEN BASH_ENV ENV"
    variables = [f"{name}=/tmp/evil/sh" for name in names.split()]
    variables += ["PATH=/tmp/evil:/usr/bin", "LD_PRELOAD=/tmp/evil/sh", "LD_LIBRARY_PATH=/tmp/evil", "PYTHONPATH=/tmp"]
    variables += ["SYSTEMD_PAGERSECURE=0", "SYSTEMD_UNIT_PATH=/tmp/evil", "SYSTEMCTL_FORCE_BUS=1", "TERM=xterm"]
    text = frontend.out("cat /etc/sudoers.d/deploy-machine")
    calls = re.findall(r"^deploy ALL=\(root\) NOPASSWD: (.*)$", text, re.MULTILINE)
    (as_app,) = [line for line in text.splitlines() if line.startswith("deploy ALL=(app) NOPASSWD: /usr/bin/find ")]
    lines = [line for line in text.splitlines() if not line.startswith(("#", "Defaults")) and line != as_app]
    assert len(calls) == len(lines) > 6
    for call in (line.replace("\\", "") for line in calls):
        unit, option = r"[a-z]+(@[a-z]+)?\.(service|socket)", "( --now| --no-block| --signal=KILL)?"
        assert re.fullmatch(rf"/usr/(bin/systemctl [a-z-]+{option} {unit}|sbin/nginx -t -q)", call)
        done = frontend.run("env", *variables, "/usr/bin/sudo", "-n", *call.split(), user="deploy", check=False)
        assert "password" not in done.stderr, done
    for unit in (UNIT, "nginx.service", "gunicorn@blue.socket"):
        frontend.sh(f"systemctl start {unit}")
    assert frontend.out("ls /tmp | grep evil-ran || true") == ""


def test_nothing_that_root_runs_or_reads_can_be_written(world: World) -> None:
    frontend = world.boot("frontend")
    world.set_up("frontend", "--restrict-ci-key")
    places = "/etc /usr /opt /root /boot /var/spool /var/lib /run/systemd /run/sudo"
    for user in ("deploy", "app"):
        found = frontend.out(f"find {places} '(' -type f -o -type d ')' -writable 2>/dev/null || true", user=user)
        assert found == "", (user, found)
    for unit in (UNIT, "gunicorn@blue.socket", "deploy-on-startup.service", "nginx.service"):
        shown = frontend.out(f"systemctl show -p FragmentPath -p DropInPaths --value {unit}").split()
        assert shown
        for path in shown:
            assert frontend.out(f"stat -Lc '%U' {path} $(dirname {path})") == "root\nroot", path
    users = {unit: frontend.show(unit, "User") for unit in (UNIT, "deploy-on-startup.service")}
    assert users == {UNIT: "app", "deploy-on-startup.service": "deploy"}
    links = frontend.out("find /etc -type l -printf '%p %l\n' | grep -E '/srv/app|/home/deploy' || true")
    assert links == "", "root is led to nothing that deploy can change"


def test_root_is_refused(world: World) -> None:
    frontend = world.boot("frontend")
    for command in ("", "status", "plan", "history", "rollback"):
        done = frontend.sh(f"/srv/app/bin/deploy_machine.py {command}", check=False)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done
        assert "use: sudo -u deploy" in done.stderr
    assert frontend.sh("sudo -u deploy /srv/app/bin/deploy_machine.py status").returncode == 0
    other = frontend.sh("/srv/app/bin/deploy_machine.py status", user="nobody", check=False)
    assert (other.returncode, "belongs to deploy" in other.stderr) == (2, True)


# --- what systemd reads and where it works --------------------------------------------------------------


def test_no_env_file_stops_systemd(world: World) -> None:
    """A FIFO, and an endless file: the service says so and comes back by itself, and PID 1 answers all the time."""
    frontend = world.boot("frontend")
    unit = frontend.serving()
    script = "cd /srv/app/shared && mv .env was && "
    for trap in ("mkfifo .env", "ln -s /dev/zero .env", "truncate -s 90G .env"):
        frontend.sh(script + trap, user="deploy")
        frontend.sh(f"sudo -n systemctl stop --no-block {unit}", user="deploy")
        frontend.wait_for_unit(unit, state="inactive")
        frontend.sh(f"sudo -n systemctl start {unit}", user="deploy", check=False, timeout=30)
        assert frontend.run("systemctl", "daemon-reload", timeout=10).returncode == 0, trap
        told = frontend.journal("-b", "-u", unit, "-n", "20")
        assert "dotenv: /srv/app/shared/.env cannot be read: it is " in told, told
        done = world.set_up("frontend", "--check")
        assert (done.returncode, "/srv/app/shared/.env is " in done.stderr) == (10, True), done.stderr
        frontend.sh("cd /srv/app/shared && rm .env && mv was .env", user="deploy")
        frontend.wait_until(lambda: frontend.health()["status"] == 200, "it did not come back by itself")


def test_services_see_what_systemd_would_give_them(world: World) -> None:
    frontend, scheduler = world.boot("frontend"), world.boot("scheduler")
    text = 'A=1 # no comment\nB=\'two\nlines\'\nexport C=3\nD="x\\"y"\nHOME=/tmp\nPYTHONUNBUFFERED=2\n'
    for machine, unit in ((frontend, frontend.serving()), (scheduler, "scheduler.service")):
        env = machine.root / "srv/app/shared/.env"
        env.write_text(env.read_text() + text)
        machine.sh(f"systemctl restart {unit}")

        def environment() -> list[str]:
            """The process's own; empty while it is between two programs."""
            return machine.sh(f"tr '\\0' '\\1' < /proc/{machine.show(unit, 'MainPID')}/environ").stdout.split("\1")  # noqa: B023

        machine.wait_until(lambda: "DB_NAME=board" in environment(), f"{unit} does not run")
        own = environment()
        words = "-p User=app -p EnvironmentFile=/srv/app/shared/.env -p Environment=PYTHONDONTWRITEBYTECODE=1"
        theirs = machine.sh(f"systemd-run -q --pipe --wait {words} env -0 | tr '\\0' '\\1'").stdout.split("\1")
        each = {"INVOCATION_ID", "JOURNAL_STREAM", "SYSTEMD_EXEC_PID", "NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS"}
        each |= {"LISTEN_FDNAMES"}
        left, right = ([line for line in lines if line.split("=")[0] not in each] for lines in (own, theirs))
        assert sorted(left) == sorted(right)
        assert {"A=1 # no comment", "HOME=/tmp", "PYTHONUNBUFFERED=2"} <= set(left)


def test_a_service_can_write_nowhere_on_the_file_system_of_run(world: World) -> None:
    """systemd itself needs space there: filled up, it takes no daemon-reload, and nginx cannot start."""
    frontend, scheduler = world.boot("frontend"), world.boot("scheduler")
    look = "import os\nfor top in ['/run', *(os.path.join(d, n) for d, names, _ in os.walk('/run') for n in names)]:\n"
    look += "    if os.access(top, os.W_OK) and os.stat(top).st_dev == os.stat('/run').st_dev: print(top)\n"
    for machine, unit in ((frontend, frontend.serving()), (scheduler, "scheduler.service")):
        pid = machine.show(unit, "MainPID")
        inside = f"nsenter -t {pid} -m setpriv --reuid=app --regid=app --init-groups python3 -c"
        assert machine.out(f'{inside} "{look}"') == "", unit
        assert machine.out(f'setpriv --reuid=app --regid=app --init-groups python3 -c "{look}"') == "", unit


# --- setup_machine.py, run again after deploy or app have prepared something for it ------------------


def test_setup_runs_nothing_of_deploys_as_root(world: World) -> None:
    frontend = world.boot("frontend")
    trap = "import os; open(f'/tmp/ran-as-{os.geteuid()}', 'w')\n"
    frontend.run("tee", "/srv/app/bin/deploy_machine.py", user="deploy", input=trap)
    for name in ("argparse", "importlib", "re"):
        frontend.run("tee", f"/srv/app/bin/{name}.py", user="deploy", input=trap)
    for extra in (["--check"], []):
        world.set_up("frontend", *extra)
    assert frontend.out("ls /tmp | grep ran-as || true") == "", "nor as deploy"


SECRET = "root-only-4711"
TRAPS = {
    "media": "rm -rf /srv/app/shared/media; ln -s /etc /srv/app/shared/media",
    "shared": "mv /srv/app/shared /srv/app/was; ln -s /etc /srv/app/shared",
    "state": "mv /srv/app/state /srv/app/was; ln -s /root /srv/app/state",
    "bin": "mv /srv/app/bin /srv/app/was; ln -s /root /srv/app/bin",
    ".env": "rm -f /srv/app/shared/.env; ln -s /root/secret /srv/app/shared/.env",
    "machine.ini": "rm -f /srv/app/machine.ini; ln -s /root/secret /srv/app/machine.ini",
    "temporary": "echo x > /srv/app/bin/deploy_machine.py; ln -s /root/secret /srv/app/bin/.deploy_machine.py.tmp",
    "temporary key": "ln -s /root/secret ~/.ssh/.authorized_keys.tmp; echo > ~/.ssh/authorized_keys",
    "ssh": "mv ~/.ssh ~/was; ln -s /root/.ssh ~/.ssh",
    "authorized_keys": "rm ~/.ssh/authorized_keys; ln -s /root/secret ~/.ssh/authorized_keys",
    "known_hosts": "rm ~/.ssh/known_hosts; ln -s /root/secret ~/.ssh/known_hosts",
    "chain": "rm -rf /srv/app/releases; ln -s /tmp/one /srv/app/releases; ln -s /etc /tmp/one",
    "fifo": "rm ~/.ssh/authorized_keys; mkfifo ~/.ssh/authorized_keys",
}


def roots_own(machine: Machine) -> str:
    """Owner, mode and content of what the traps lead to."""
    return machine.out(
        "stat -c '%n %a %U:%G' /etc /root /root/.ssh /root/secret /root/.ssh/authorized_keys /etc/shadow"
        " && sha256sum /root/secret /root/.ssh/authorized_keys /etc/shadow && ls -A /etc /root /root/.ssh"
    )


@pytest.fixture
def trapped(world: World) -> World:
    frontend = world.boot("frontend")
    frontend.sh(f"echo '[machine]\nsecret = {SECRET}' > /root/secret && chmod 600 /root/secret")
    return world


def test_setup_follows_no_link_of_deploys(trapped: World) -> None:
    frontend = trapped.machine("frontend")
    frontend.sh(
        "mkdir /root/keep && cp -a /srv/app/bin /srv/app/shared /srv/app/state /srv/app/machine.ini /root/keep/"
    )
    frontend.sh("cp -a /home/deploy/.ssh /root/keep/ssh; mv /root/keep /var/keep; sleep 0.1")
    before = roots_own(frontend)
    for name, trap in TRAPS.items():
        frontend.sh(f"cd ~ && {trap}", user="deploy" if name != "media" else "root")
        if name == "media":  # a directory of app's own: app would have to have made the link
            frontend.sh("chown -h app:app /srv/app/shared/media")
        for extra in (["--check"], []) if name in ("media", ".env", "fifo") else ([],):
            done = trapped.set_up("frontend", *extra)
            assert done.returncode in (0, 1, 10), (name, done.stdout, done.stderr)
            if not name.startswith("temporary"):
                assert done.returncode == 10, (name, done.stdout)
                assert re.search(r"that root did not make: remove it|not a regular file", done.stderr), (
                    name,
                    done.stderr,
                )
            assert "Traceback" not in done.stderr, done.stderr
            assert SECRET not in done.stdout + done.stderr, name
        assert roots_own(frontend) == before, name
        leaked = frontend.sh(f"grep -rl {SECRET} /srv/app /home/deploy /tmp 2>/dev/null", user="deploy", check=False)
        assert leaked.stdout == "", name
        frontend.sh(
            "rm -rf /srv/app/was /srv/app/bin /srv/app/shared /srv/app/state /srv/app/machine.ini /home/deploy/.ssh"
            " /home/deploy/was /tmp/one; cp -a /var/keep/bin /var/keep/shared /var/keep/state /var/keep/machine.ini"
            " /srv/app/; cp -a /var/keep/ssh /home/deploy/.ssh; test -L /srv/app/releases && rm /srv/app/releases"
            " && install -d -o deploy -g deploy /srv/app/releases || true"
        )
    assert trapped.set_up("frontend", "--check").returncode == 0, "all is as it was"


def test_setup_follows_a_link_that_root_made(world: World) -> None:
    """Uploads on another disk."""
    frontend = world.boot("frontend")
    frontend.sh("mkdir /data && mv /srv/app/shared/media /data/ && ln -s /data/media /srv/app/shared/media")
    assert world.set_up("frontend", "--check").returncode == 0
    frontend.sh("chmod 755 /data/media")
    assert "media: mode 2775" in world.set_up("frontend").stdout
    assert frontend.out("stat -c '%a %U' /data/media") == "2775 app"


TYPIST = """\
#!/usr/bin/python3
import fcntl, termios
for descriptor in (0, 1, 2, open("/dev/tty")):
    for byte in b"typed\\n":
        try:
            fcntl.ioctl(descriptor, termios.TIOCSTI, bytes([byte]))
        except OSError:
            pass
"""
SHELL_OF_ROOT = "sleep 6 | script -qec '%s; timeout --foreground 2 head -n 1 > /root/typed; true' /dev/null"


@pytest.mark.parametrize("suite", ["bullseye", "bookworm", "trixie"])
def test_a_program_of_deploys_cannot_type_into_roots_terminal(bare: World, suite: str) -> None:
    """By the documented call from root's shell. Without what setup writes, Debian 11's sudo would let it."""
    machine = bare.machine("third", suite)
    bare.boot("third")
    assert bare.set_up("third", roles=["scheduler"]).returncode == 0
    place = "/srv/app/bin/deploy_machine.py"
    machine.sh(f"rm {place}", user="deploy")
    machine.run("tee", place, input=TYPIST, user="deploy")
    machine.sh(f"chmod 755 {place}", user="deploy")
    machine.sh(SHELL_OF_ROOT % f"runuser -u deploy {place}")
    assert machine.out("cat /root/typed").startswith("typed"), "it would type, if it could"
    machine.sh(SHELL_OF_ROOT % f"sudo -u deploy {place} status")
    assert machine.out("cat /root/typed") == ""


def test_names_that_deploy_chose_steer_no_terminal(world: World) -> None:
    frontend = world.boot("frontend")
    frontend.sh(r"printf 'ssh-ed25519 AAAA \033]0;owned\007\nto do: run this' > ~/.ssh/id_ed25519.pub", user="deploy")
    done = world.set_up("frontend")
    assert r"  ssh-ed25519 AAAA \x1b]0;owned\x07\x0ato do: run this" in done.stdout.splitlines()
    target = r"$(printf '/tmp/\033[31m\nsetup: done')"
    frontend.sh(f'rm ~/.ssh/known_hosts; ln -s "{target}" ~/.ssh/known_hosts', user="deploy")
    done = world.set_up("frontend")
    assert (done.returncode, done.stderr.count("\n"), "\x1b" in done.stdout + done.stderr) == (10, 1, False)


def test_setup_names_what_nginx_opens_as_root(world: World) -> None:
    frontend = world.boot("frontend")
    site, mime = "/etc/nginx/conf.d/more.conf", "    access_log /srv/app/shared/data/access.log;"
    lines = ["include /srv/app/current/deploy/nginx/*.inc; # and so", mime, "error_log /var/log/nginx/more.log;"]
    lines += ["server { listen 81; root /srv/app/current; ssl_certificate own/key.pem; }", "# include /srv/app/x;"]
    frontend.run("tee", site, input="\n".join(lines))
    frontend.sh("ln -s /srv/app/shared /etc/nginx/own")
    done = world.set_up("frontend", "--check")
    told = [line.partition(", which nginx opens as root")[0] for line in done.stdout.splitlines() if site in line]
    assert told == [
        f"to do: nginx: {site}:1 names /srv/app/current/deploy/nginx/*.inc",
        f"to do: nginx: {site}:2 names /srv/app/shared/data/access.log",
        f"to do: nginx: {site}:4 names own/key.pem",
    ], done.stdout
    assert done.returncode == 1


def test_setup_names_units_whose_variables_systemd_reads(world: World) -> None:
    frontend = world.boot("frontend")
    drop_in = "/etc/systemd/system/nginx.service.d"
    frontend.sh(f"mkdir {drop_in}; printf '[Service]\\nEnvironmentFile=-/srv/app/shared/.env\\n' > {drop_in}/x.conf")
    frontend.sh("systemctl daemon-reload")
    told = "to do: nginx.service: systemd reads EnvironmentFile=/srv/app/shared/.env itself"
    assert told in world.set_up("frontend", "--check").stdout


def test_setup_names_what_deploy_could_change_and_root_reads(world: World) -> None:
    frontend = world.boot("frontend")
    site = "/etc/nginx/conf.d/mine.conf"
    frontend.sh(f"ln -sf /srv/app/current/deploy/nginx/board.conf {site}")
    done = world.set_up("frontend")
    assert f"to do: {site} leads to /srv/app/releases/" in done.stdout
    assert "where deploy could change what root runs: copy it" in done.stdout


# --- secrets -----------------------------------------------------------------------------------------


def test_modes_of_what_may_hold_a_secret(world: World) -> None:
    frontend = world.boot("frontend")
    world.commit({"deploy.ini": (world.clone / "deploy.ini").read_text() + "\n[step x]\nrun = sh -c 'exit 3'\n"})
    frontend.deploy(expect=10)
    for path, mode in (
        ("/srv/app/shared/.env", "640 deploy:app"),
        ("/srv/app/state", "750 deploy:deploy"),
        ("/home/deploy/.ssh", "700 deploy:deploy"),
        ("/home/deploy/.ssh/id_ed25519", "600 deploy:deploy"),
        ("/home/deploy/.ssh/authorized_keys", "600 deploy:deploy"),
    ):
        assert frontend.out(f"stat -c '%a %U:%G' {path}") == mode, path
    for path in ("shared/.env", "state/last.json", "state/history.jsonl", "state/state.json"):
        done = frontend.run("cat", f"/srv/app/{path}", user="nobody", check=False)
        assert (done.returncode, "Permission denied" in done.stderr) == (1, True), path
    assert frontend.run("cat", "/srv/app/state/last.json", user="app", check=False).returncode == 1
    assert "No journal files were opened" in frontend.run("journalctl", "-q", user="app", check=False).stderr or (
        frontend.run("journalctl", "-q", "-t", "deploy-machine", user="app", check=False).stdout == ""
    )


def test_a_secret_is_seen_by_its_users_only(world: World) -> None:
    """A value of .env, during and after a deploy that uses it and fails, and one that succeeds."""
    frontend = world.boot("frontend")
    frontend.sh("echo BILLING_TOKEN=tell-nobody-7391 >> /srv/app/shared/.env")
    ini = (world.clone / "deploy.ini").read_text()
    step = "\n[step bill]\nrun = sh -c 'test ${#BILLING_TOKEN} = 16 || exit 9; sleep 1; exit %d'\n"
    seen: list[str] = []
    script = (
        "while test -e /tmp/watch; do cat /proc/[0-9]*/cmdline; for p in /proc/[0-9]*; do"
        " case $(stat -c %U $p) in deploy|app) ;; *) cat $p/environ;; esac; done; sleep 0.2; done 2>/dev/null"
    )
    frontend.sh("touch /tmp/watch")
    watcher = threading.Thread(target=lambda: seen.append(frontend.sh(script, check=False).stdout))
    watcher.start()
    for code in (3, 0):
        world.commit({"deploy.ini": ini + step % code})
        done = frontend.deploy(expect=10 if code else 0)
        seen += [done.log, json.dumps(done.result)]
        assert "ended with 9" not in done.log
    frontend.sh("rm /tmp/watch")
    watcher.join(20)
    assert len(seen) == 5 and "systemd" in seen[-1]
    seen.append(frontend.journal())
    seen.append(frontend.out("cat /srv/app/state/*.json*; systemctl show '*'"))
    seen.append(frontend.out("cat /srv/app/current/.release.json /srv/app/envs/*/.complete; ls -R /tmp /run"))
    assert [text for text in seen if "tell-nobody" in text] == []


def test_the_documented_look_at_the_journal_believes_no_other_user(world: World) -> None:
    frontend = world.boot("frontend")
    assert frontend.deploy().outcome == "unchanged"
    forged = (
        r"printf 'MESSAGE=forged\nSYSLOG_IDENTIFIER=deploy-machine\nDEPLOY_OUTCOME=unchanged\n' | logger --journald"
    )
    frontend.sh(forged, user="app")
    frontend.sh("journalctl --sync")
    assert "forged" in frontend.out("journalctl -t deploy-machine DEPLOY_OUTCOME=unchanged")
    found = re.search(
        r"`(journalctl -t deploy-machine _UID=.*) DEPLOY_OUTCOME=rolled_back`", (REPOSITORY / "README.md").read_text()
    )
    assert found
    entries = frontend.out(f"{found[1]} DEPLOY_OUTCOME=unchanged -o cat")
    assert entries and "forged" not in entries


def test_app_cannot_reach_code_or_keys(world: World) -> None:
    frontend = world.boot("frontend")
    found = frontend.out("find /srv/app -not -type l -writable 2>/dev/null || true", user="app").split()
    assert {"/".join(path.split("/")[:5]) for path in found} == {"/srv/app/shared/media", "/srv/app/shared/data"}
    for command in ("sudo -n true", "cat ~deploy/.ssh/id_ed25519", "ls ~deploy/.ssh", "cat /etc/shadow", "su -c id"):
        done = frontend.sh(command, user="app", check=False, stdin=subprocess.DEVNULL)
        assert done.returncode != 0, command

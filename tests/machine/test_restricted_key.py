"""CI's key with --restrict-ci-key: cd.yml deploys as ever, and the key's holder can do nothing else."""

from __future__ import annotations

import json
import shlex
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from lab.ci import Ci, outcome_of
from lab.machine import Machine
from lab.world import World
from waiting import wait_for
from workflow import push

CHANGE = ("board/views.py", "[:50]", "[:40]")
KEYS = "/home/deploy/.ssh/authorized_keys"


@pytest.fixture
def scheduler(world: World) -> Machine:
    scheduler = world.boot("scheduler")
    done = world.set_up("scheduler", "--restrict-ci-key")
    assert done.returncode == 0, done.stderr
    assert f"+ {KEYS}: changed" in done.stdout
    return scheduler


@pytest.fixture
def ci(world: World, scheduler: Machine) -> Iterator[Ci]:
    yield Ci(world)
    wait_for_deploys(scheduler)


def wait_for_deploys(machine: Machine) -> None:
    machine.wait_until(
        lambda: machine.sh("pgrep -f [d]eploy_machine.py", check=False).returncode != 0, "a deploy goes on", 60
    )


def commit_on(machine: Machine) -> str:
    return (machine.root / "srv/app/current/REVISION").read_text().strip()


def test_a_merge_is_deployed_and_offline_is_still_offline(ci: Ci, scheduler: Machine) -> None:
    newest = ci.world.commit(ci.world.edit(*CHANGE))
    run = ci.merge()
    assert run.conclusion == "success", run.log
    assert [outcome_of(run, name) for name in ("scheduler", "frontend")] == ["deployed", "offline"]
    assert commit_on(scheduler) == newest
    first = ci.world.commit(ci.world.edit("board/views.py", "[:40]", "[:30]"))
    ci.world.commit(ci.world.edit("board/views.py", "[:30]", "[:20]"))
    run = ci.dispatch(machine="scheduler", commit=first, full=True)
    assert (run.conclusion, commit_on(scheduler)) == ("success", first), run.log
    result = json.loads(bytes.fromhex(run.jobs["deploy"].outputs["scheduler"]).decode())
    assert {step["result"] for step in result["steps"]} == {"ran"}
    assert outcome_of(ci.merge(SCHEDULER_USER="root"), "scheduler") == "failed", "and as nobody else"

    cd = (ci.world.clone / ".github/workflows/cd.yml").read_text()
    roles = "{ machine: scheduler, roles: scheduler }"
    ci.world.commit({".github/workflows/cd.yml": cd.replace(roles, "{ machine: scheduler, roles: frontend }")})
    run = ci.merge()
    assert (run.conclusion, outcome_of(run, "scheduler")) == ("failure", "failed")
    assert "this key is restricted on this machine: refused the role 'frontend'" in run.log
    assert commit_on(scheduler) == first


WAITS = """\
    import time

    from django.db import migrations


    class Migration(migrations.Migration):
        dependencies = [("board", "0001_initial")]
        operations = [migrations.RunPython(lambda *_: time.sleep(8))]
    """


def test_a_lost_connection_is_found_again(ci: Ci, scheduler: Machine) -> None:
    world = ci.world
    cd = (world.clone / ".github/workflows/cd.yml").read_text()
    options = "--ssh-option ServerAliveInterval=1 --ssh-option ServerAliveCountMax=2"
    cd = cd.replace('"${arguments[@]}"', f'"${{arguments[@]}}" {options}')
    newest = world.commit({".github/workflows/cd.yml": cd, "board/migrations/0002_wait.py": WAITS})
    run = ci.start(push(newest))
    running = scheduler.root / "srv/app/state/running.json"
    scheduler.wait_until(lambda: running.exists() and "step migrate" in running.read_text(), "no migrate", 40)
    world.network.unplug("runner")
    wait_for(lambda: "the connection was lost" in run.log, "the push notices")
    world.network.plug("runner")
    run.wait(120)
    assert outcome_of(run, "scheduler") == "deployed", run.log
    assert "it was reached again" in run.log
    assert commit_on(scheduler) == newest


def test_who_waits_ends_with_its_connection_and_so_many_may_connect(ci: Ci, scheduler: Machine) -> None:
    """Forty pushes while a deploy goes on: with real sshd, a push that waits sees that its client has gone."""
    world = ci.world
    world.commit({"board/migrations/0002_wait.py": WAITS.replace("sleep(8)", "sleep(25)")})
    run = ci.start(push(world.git("rev-parse", "HEAD")))
    running = scheduler.root / "srv/app/state/running.json"
    scheduler.wait_until(lambda: running.exists() and "step migrate" in running.read_text(), "no migrate", 40)
    (world.home / "pinned").write_text(world.known_hosts())
    words = ["ip", "netns", "exec", world.network.namespace("runner"), "ssh", "-F", "/dev/null"]
    words += [
        "-i",
        world.home / "ci",
        "-o",
        "IdentitiesOnly=yes",
        "-o",
        "BatchMode=yes",
        "-o",
        f"UserKnownHostsFile={world.home}/pinned",
    ]
    # sshd drops what is too much at once by itself, so one after the other
    clients = []
    for _ in range(16):
        client = subprocess.Popen([*words, PLACE, FORM], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        assert client.stdin
        client.stdin.write(b"x" * 5)
        client.stdin.flush()
        clients.append(client)
        time.sleep(0.3)

    def deploys() -> int:
        return len(scheduler.sh("pgrep -f '[d]eploy_machine.py deploy --trigger cd'", check=False).stdout.split())

    scheduler.wait_until(lambda: deploys() == 6, "the one that has begun, and five that wait", 20)
    told = [client.communicate(timeout=30)[1] for client in clients if client.poll() is not None]
    assert any(b"5 other pushes wait for the lock already" in text for text in told), told
    for client in clients:
        client.kill()
        client.communicate()
    scheduler.wait_until(lambda: deploys() == 1, "those that waited are still there", 10)
    run.wait(120)
    assert outcome_of(run, "scheduler") == "deployed", run.log


# --- what its holder may try -----------------------------------------------------------------------


def ssh(world: World, *words: str, program: str = "ssh", **options: Any) -> subprocess.CompletedProcess[str]:
    """Connect to the scheduler with CI's key."""
    (world.home / "pinned").write_text(world.known_hosts())
    common = ["-F", "/dev/null", "-i", world.home / "ci", "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes"]
    common += ["-o", f"UserKnownHostsFile={world.home}/pinned", "-o", "LogLevel=ERROR"]
    return world.runner(program, *common, *words, check=False, timeout=30, **options)


PLACE = "deploy@10.0.0.5"
FORM = "python3 -c x /srv/app 5 0123456789abcdef deploy --trigger cd --json --role scheduler"
REQUESTS = [
    "touch /tmp/ran",
    "sh -c 'touch /tmp/ran'",
    "python3 -c \"open('/tmp/ran', 'w')\"",
    f"{FORM}; touch /tmp/ran",
    f"{FORM} && touch /tmp/ran",
    f"{FORM} $(touch /tmp/ran)",
    f"{FORM} `touch /tmp/ran`",
    f"{FORM}\ntouch /tmp/ran",
    f"{FORM} > /tmp/ran",
    f"{FORM} --repo 'ext::touch /tmp/ran'",
    f"{FORM} --branch other",
    f"{FORM} --force",
    f"{FORM} --root /tmp",
    f"{FORM} --role frontend",
    FORM.replace("/srv/app", "/tmp"),
    FORM.replace("0123456789abcdef", "../../../../tmp/x"),
    FORM.replace("deploy --trigger", "rollback --trigger"),
    FORM.replace("--trigger cd", "--trigger boot"),
    "/srv/app/bin/deploy_machine.py rollback",
    "/srv/app/bin/deploy_machine.py",
    "python3 /tmp/evil/deploy_machine.py status --json --root /srv/app",
    "python3 /srv/app/deployers/../../../tmp/evil/deploy_machine.py status --json --root /srv/app",
    "/usr/lib/openssh/sftp-server",
    "scp -t /tmp",
    "git-receive-pack /srv/app/repo.git",
    "sudo -n systemctl stop scheduler.service",
]


def everything(machine: Machine) -> str:
    """What an attempt could have changed."""
    ours = "/srv/app/bin /srv/app/deployers /srv/app/releases /srv/app/current /srv/app/state /srv/app/shared"
    # sshd's and sudo's own traces are not among them
    return machine.out(f"find {ours} /home /etc /root /tmp -path '*/.cache' -prune -o -printf '%p %i %C@\\n' | sort")


def status_may_be_asked(world: World, scheduler: Machine) -> None:
    asked = "/srv/app/bin/deploy_machine.py status --json --since 2026-01-02T03:04:05Z --within 5 --root /srv/app"
    done = ssh(world, PLACE, asked)
    assert done.returncode == 0, done
    assert json.loads(done.stdout)["machine"] == "scheduler"


def nothing_else_is_granted(world: World, scheduler: Machine) -> None:
    scheduler.sh("mkdir /tmp/evil && echo \"open('/tmp/ran', 'w')\" > /tmp/evil/deploy_machine.py")
    before, unit = everything(scheduler), scheduler.pids("scheduler.service")
    for request in REQUESTS:
        done = ssh(world, PLACE, request, input="touch /tmp/ran\n")
        assert done.returncode == 2, (request, done)
        assert done.stderr.startswith("loader: this key is restricted on this machine: refused "), (
            request,
            done.stderr,
        )
        assert done.stderr.count("\n") == 1, request
    shell = ssh(world, PLACE, input="touch /tmp/ran\n")
    assert (shell.returncode, "refused a shell" in shell.stderr) == (2, True)
    terminal = ssh(world, "-tt", PLACE, input="touch /tmp/ran\n")
    assert terminal.returncode != 0
    (world.home / "file").write_text("x")
    for words in (["-O"], ["-s"]):
        done = ssh(world, *words, str(world.home / "file"), f"{PLACE}:/tmp/ran", program="scp")
        assert done.returncode != 0, done
        done = ssh(world, *words, f"{PLACE}:/srv/app/shared/.env", str(world.home / "stolen"), program="scp")
        assert done.returncode != 0, done
    assert not (world.home / "stolen").exists()
    assert ssh(world, "-b", "-", PLACE, program="sftp", input="put /etc/passwd /tmp/ran\n").returncode != 0
    assert everything(scheduler) == before
    assert scheduler.pids("scheduler.service") == unit
    told = scheduler.journal("-t", "deploy-machine", "-o", "cat")
    assert told.count("CI's key: this key is restricted") >= len(REQUESTS), "and the machine's journal tells"


def nothing_is_forwarded(world: World, scheduler: Machine) -> None:
    for place in ("10.0.0.3:5432", "127.0.0.1:22"):
        assert ssh(world, "-W", place, PLACE, input="").returncode != 0, place
    assert scheduler.journal("-t", "sshd").count("refused local port forward") == 2
    for words in (["-R", "/tmp/ran.sock:10.0.0.5:22"], ["-o", "Tunnel=yes", "-w", "0:0"]):
        assert ssh(world, "-N", "-o", "ExitOnForwardFailure=yes", *words, PLACE).returncode != 0, words
    scheduler.sh("echo 'touch /tmp/ran-rc' > ~deploy/.ssh/rc; chown deploy ~deploy/.ssh/rc")
    scheduler.sh("echo BASH_ENV=/home/deploy/.ssh/rc > ~deploy/.ssh/environment")
    assert ssh(world, "-A", "-X", PLACE, "env").returncode == 2
    assert scheduler.out("ls /tmp | grep ran || true") == ""
    remote = ssh(world, "-N", "-o", "ExitOnForwardFailure=yes", "-R", "10022:10.0.0.5:22", PLACE)
    assert (remote.returncode, "remote port forwarding failed" in remote.stderr) == (255, True), remote


def what_is_sent_along_is_not_run(world: World, scheduler: Machine) -> None:
    """A request of the right form with another program, another script, another environment."""
    program = "open('/tmp/ran-program', 'w')"
    script = "open('/tmp/ran-script', 'w')\n"
    scheduler.sh(
        "mkdir -p -m 755 /tmp/evil && for m in argparse configparser shlex sitecustomize; do"
        " echo \"open('/tmp/ran-module', 'a')\" > /tmp/evil/$m.py; done; mkdir -p /run/sshd;"
        " echo 'AcceptEnv PYTHON* DEPLOY_* GIT_* BASH_ENV' > /etc/ssh/sshd_config.d/a.conf; systemctl reload ssh"
    )
    words = shlex.split(FORM)
    words[2], words[4] = program, str(len(script))
    environment = {
        "PYTHONPATH": "/tmp/evil",
        "DEPLOY_ROOT": "/tmp",
        "DEPLOY_TAKEN_OVER": "1",
        "GIT_CONFIG_COUNT": "x",
        "GIT_SSH_COMMAND": "touch /tmp/ran-git;",
    }
    sent = " ".join(f"{key}='{value}'" for key, value in environment.items())
    newest = world.commit(world.edit(*CHANGE))
    done = ssh(world, "-o", f"SetEnv={sent}", PLACE, shlex.join(words), input=script)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["outcome"] == "deployed"
    assert commit_on(scheduler) == newest
    assert scheduler.out("ls /tmp | grep ran || true") == ""
    assert not list((scheduler.root / "srv/app/deployers").glob("*0123456789abcdef*"))


def test_its_holder_can_do_nothing_else(world: World, scheduler: Machine) -> None:
    status_may_be_asked(world, scheduler)
    nothing_else_is_granted(world, scheduler)
    nothing_is_forwarded(world, scheduler)
    what_is_sent_along_is_not_run(world, scheduler)


# --- setup_machine.py --------------------------------------------------------------------------------


def test_the_restriction_is_kept_and_other_lines_too(world: World, scheduler: Machine) -> None:
    line = scheduler.out(f"cat {KEYS}")
    assert line.startswith('restrict,command="/usr/bin/python3 -I /usr/local/lib/deploy-machine/restricted_push.py ')
    assert world.set_up("scheduler", "--restrict-ci-key", "--check").returncode == 0
    again = world.set_up("scheduler")
    assert "no changes" in again.stdout, "without the option it stays"
    assert scheduler.out(f"cat {KEYS}") == line

    key = " ".join(line.split()[-3:])
    scheduler.sh(f"printf '%s\\n' '# people' 'ssh-ed25519 AAAAother me' '{key}' 'restrict {key}' > {KEYS}")
    check = world.set_up("scheduler", "--restrict-ci-key", "--check")
    assert (check.returncode, f"differs: {KEYS}: changed" in check.stdout) == (1, True)
    world.set_up("scheduler", "--restrict-ci-key")
    assert scheduler.out(f"cat {KEYS}").splitlines() == ["# people", "ssh-ed25519 AAAAother me", line]

    installed = "/usr/local/lib/deploy-machine/restricted_push.py"
    scheduler.sh(f"echo '# older' >> {installed}")
    assert f"+ {installed}: changed" in world.set_up("scheduler").stdout, "kept up to date, too"
    assert scheduler.out(f"stat -c '%a %U' {installed} {installed.rpartition('/')[0]}") == "755 root\n755 root"
    for arguments in (["--no-restrict-ci-key"], []):
        done = world.set_up("scheduler", *arguments)
        assert scheduler.out(f"cat {KEYS}").splitlines()[-1] == f"restrict {key}", "lifted, it stays so"
    assert "note: CI's key may run anything as deploy: --restrict-ci-key lets it deploy, and no more" in done.stdout
    world.set_up("scheduler", "--restrict-ci-key")
    scheduler.sh(f"cp {KEYS} {KEYS}2")
    assert "authorized_keys2 lets CI's key in as well" in world.set_up("scheduler", "--check").stdout


def test_with_verification_its_holder_deploys_nothing_unsigned(ci: Ci, scheduler: Machine) -> None:
    world = ci.world
    signers = world.home / "allowed_signers"
    signers.write_text(f"# developers\ndev@example.com {(world.home / 'admin.pub').read_text()}")
    done = world.set_up("scheduler", "--allowed-signers", str(signers))
    assert "+ /srv/app/allowed_signers: created" in done.stdout, done.stderr
    assert "+ /srv/app/machine.ini: changed" in done.stdout
    assert scheduler.out("stat -c '%a %U' /srv/app/allowed_signers") == "644 root"
    assert "no changes" in world.set_up("scheduler").stdout, "without the option it stays"

    before = commit_on(scheduler)
    unsigned = world.commit(world.edit(*CHANGE))
    run = ci.merge()
    assert (run.conclusion, outcome_of(run, "scheduler")) == ("failure", "failed")
    assert f"{unsigned[:8]} is not signed; nothing of it was run; {before[:8]} still runs" in run.log
    sign = ["-c", "gpg.format=ssh", "-c", f"user.signingkey={world.home}/admin"]
    world.git(*sign, "commit", "-q", "--amend", "--no-edit", "-S")
    world.git("push", "-q", "--force", world.origin, "HEAD:refs/heads/main")
    run = ci.merge()
    assert (run.conclusion, outcome_of(run, "scheduler")) == ("success", "deployed"), run.log
    assert "is signed by dev@example.com (SHA256:" in run.log
    assert commit_on(scheduler) == world.git("rev-parse", "HEAD")


def test_restricting_needs_the_key(bare: World) -> None:
    bare.machine("scheduler")
    script = bare.clone / "scripts/setup_machine.py"
    words = ["--name", "x", "--role", "scheduler", "--repo", "r", "--restrict-ci-key", "--ssh", "root@10.0.0.5"]
    done = bare.runner("python3", script, *words, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "name the key's public half with --authorize" in done.stderr

"""What setup_machine.py carries to a machine, by value."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))
import setup_ground  # noqa: E402
import setup_looks  # noqa: E402
import setup_options  # noqa: E402
import setup_packages  # noqa: E402
import setup_report  # noqa: E402
import setup_site  # noqa: E402
import setup_ssh  # noqa: E402
import setup_tree  # noqa: E402
import setup_wanted  # noqa: E402
from deployer import carrier, config  # noqa: E402
from setup_work import Work  # noqa: E402

SETTINGS = config.parse("", "defaults")


def options_with(**more: str) -> argparse.Namespace:
    words = ["--ssh", "admin@10.0.0.6:22", "--name", "web", "--role", "frontend", "--repo", "git@h:a.git"]
    options = setup_options.make_parser().parse_args(words)
    options.root, options.user = "/srv/app", "deploy"
    options.needs = ["git"]
    for name, value in more.items():
        setattr(options, name, value)
    return options


def test_what_is_carried_over_ssh() -> None:
    options = options_with(authorize="ssh-ed25519 AAAA ci", allowed_signers="me@example.com ssh-ed25519 AAAA\n")
    archive, version = setup_ssh.packed(options, SETTINGS)
    files = carrier.unpack(archive, version)
    own = {f"scripts/{name}": data for name, data in carrier.own_files(SCRIPTS).items()}
    assert {name: data for name, data in files.items() if name in own} == own
    units = {f"systemd/{path.name}" for path in (SCRIPTS.parent / "systemd").iterdir()}
    others = {f"scripts/{path.name}" for path in SCRIPTS.glob("setup_*.py")}
    others |= {"scripts/deploy_failed.py", "scripts/restricted_push.py", "authorize.pub", "allowed_signers"}
    assert set(files) == {*own, *units, *others}
    assert files["authorize.pub"] == b"ssh-ed25519 AAAA ci\n"

    line = setup_ssh.remote_command(options, "/tmp/setup-machine.x/archive", version, ask_password=False)
    assert len(line) < 8_000, "sshd passes it on as one argument, of 128 KB at most"
    words = shlex.split(line.partition("; $sudo ")[2].partition("; code=")[0])
    program, mode, place, asked, *arguments = words[words.index("-c") + 1 :]
    assert (program, mode, place, asked) == (carrier.program(), "setup", "/tmp/setup-machine.x/archive", version)
    assert arguments[arguments.index("--authorize") + 1] == "authorize.pub"


def test_where_metrics_go_is_written_to_machine_ini_and_stays(tmp_path: Path) -> None:
    options = options_with(metrics="/var/lib/node_exporter/textfile_collector")
    assert "--metrics /var/lib/node_exporter/textfile_collector " in setup_ssh.remote_command(options, "/x", "", False)
    work = Work(options_with(root=str(tmp_path), check=True, metrics="/var/lib/metrics"), SETTINGS)
    (tmp_path / "machine.ini").write_text(setup_tree.machine_ini(work))
    assert "metrics = /var/lib/metrics\n" in (tmp_path / "machine.ini").read_text()
    work.options.metrics = None
    assert setup_tree.machine_ini(work) == (tmp_path / "machine.ini").read_text()
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin/deploy_machine.py"
    script.symlink_to("../deployers/0123456789abcdef/deploy_machine.py")
    for text, knows in (('"name", "server_name"', False), ('"name", "metrics"', True)):
        host = tmp_path / "deployers/0123456789abcdef/deployer/host.py"
        host.parent.mkdir(parents=True, exist_ok=True)
        host.write_text(text)
        assert setup_tree.knows(work, script) == knows, "a version that does not know the key would stop at it"


def test_a_file_that_cannot_be_carried_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "systemd").mkdir()
    (tmp_path / "systemd" / ".x.service.swp").write_bytes(b"\xff")
    monkeypatch.setattr(setup_wanted, "UNITS", tmp_path / "systemd")
    monkeypatch.setattr(setup_wanted, "REPOSITORY", tmp_path)
    monkeypatch.setattr(setup_wanted, "HERE", tmp_path / "scripts")
    (tmp_path / "scripts").symlink_to(SCRIPTS)
    with pytest.raises(setup_ground.UsageError, match=r"systemd/\.x\.service\.swp is not text in UTF-8: remove it"):
        setup_ssh.packed(options_with(), SETTINGS)


@pytest.mark.parametrize(
    ("manager", "commands"),
    [
        ("apt-get", ["apt-get update", "apt-get install --yes --no-install-recommends nginx nodejs npm pipx",
                     "npm install --global pnpm", "sudo -H -u deploy pipx install uv"]),
        ("dnf", ["dnf install --assumeyes nginx nodejs npm python3-pip", "npm install --global pnpm",
                 "sudo -H -u deploy python3 -m pip install --user uv"]),
    ],
)  # fmt: skip
def test_what_gets_the_programs_that_are_missing(
    manager: str, commands: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / manager).touch(0o755)
    monkeypatch.setattr(setup_ground, "PATH", str(tmp_path))
    work = Work(options_with(), SETTINGS)
    found = setup_packages.commands(work, ["nginx", "node", "pnpm", "uv"])
    assert [str(command) for command in found] == commands


FIRST = r"(?<![\w-])(gunicorn|scheduler|deploy-on-startup|deploy-watch)(@|\.\w+$)|/srv/app|=(app|deploy|gunicorn)$"


def of_blog(unit: str) -> str:
    text = (setup_wanted.UNITS / unit).read_text()
    return setup_wanted.render_unit(text, "/srv/blog", "deploy-blog", "blog", ["uploads"])


def test_units_of_a_second_application_name_nothing_of_the_first() -> None:
    for unit in {*setup_wanted.units_from_here()} - {"gunicorn-old-address.service"}:
        lines = [line for line in of_blog(unit).splitlines() if not line.startswith("#")]
        assert [line for line in lines if re.search(FIRST, line)] == [], unit
    service = of_blog("gunicorn@.service")
    assert 'readlink /srv/blog/current/.socket)" = /run/gunicorn-blog-%i.sock' in service
    assert "-/srv/blog/shared/media -/srv/blog/shared/data -/srv/blog/shared/uploads\n" in service
    assert "/usr/local/lib/deploy-machine/blog/dotenv.py" in service
    assert "Before=scheduler-blog.service gunicorn-blog@blue.service" in of_blog("deploy-on-startup.service")


def test_what_deploy_writes_into_machine_ini_does_not_come_into_nginxs_files(tmp_path: Path) -> None:
    options = options_with()
    options.root = str(tmp_path)
    work = Work(options, SETTINGS)
    (tmp_path / "machine.ini").write_text("[machine]\nserver_name = x; include /srv/app/evil.conf\n")
    with pytest.raises(setup_ground.UsageError, match="is not a host name"):
        setup_tree.said(work, "server_name")


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        ("server { listen 80 default_server; server_name _; }", {"80"}),
        ("server { listen [::]:80 default_server ipv6only=on; }", {"80"}),
        ("server { listen 80; server_name a.example.com b.example.com; }", {"a.example.com", "b.example.com"}),
        ("# server_name a;\nserver { listen 443 ssl; }", set()),
    ],
)
def test_for_whom_a_site_answers(text: str, answers: set[str]) -> None:
    assert setup_site.answers_for(text) == answers


def test_a_program_is_not_spelt_out_in_a_message() -> None:
    assert setup_ground.shown(["python3", "-c", "import os\nos.x()\n", "/srv/a b"]) == "python3 -c ... '/srv/a b'"


@pytest.mark.parametrize(
    ("line", "opened"),
    [
        ("include /srv/app/*.conf;", ["/srv/app/*.conf"]),
        ("server { listen 80; access_log '/srv/app/a.log' main; }", ["/srv/app/a.log", "main"]),
        ("root /srv/app/current; alias /srv/app/x;", []),
        ("proxy_pass http://unix:/srv/app/current/.socket;", []),
        ("proxy_cache_path /srv/app/cache levels=1:2;", ["/srv/app/cache", "levels=1:2"]),
    ],
)
def test_what_nginx_opens_as_root(line: str, opened: list[str]) -> None:
    assert list(setup_looks.opened_by_root(line)) == opened


def test_a_proxy_of_which_deploys_do_not_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(setup_looks, "ENVIRONMENT", tmp_path / "environment")
    env = tmp_path / ".env"
    assert list(setup_looks.proxy("https://h/a.git", env)) == []
    monkeypatch.setenv("https_proxy", "http://me:secret@proxy:3128")
    (line,) = setup_looks.proxy("https://h/a.git", env)
    assert line.endswith(f"write HTTPS_PROXY=http://USER:PASSWORD@proxy:3128 into {env}")
    assert list(setup_looks.proxy("git@h:a.git", env)) == []
    env.write_text("HTTPS_PROXY=http://proxy:3128\n")
    assert list(setup_looks.proxy("https://h/a.git", env)) == []


def test_patterns_of_sshd() -> None:
    assert setup_looks.is_named({"deploy"}, ["admin", "dep*@10.0.0.0/8"])
    assert not setup_looks.is_named({"deploy"}, ["admin", "*", "!deploy"])
    assert not setup_looks.is_named({"deploy"}, ["deployer"])


@pytest.mark.parametrize(
    ("place", "name"),
    [("h", "h"), ("h:22", "h"), ("h:022", "h"), ("h:2222", "[h]:2222"), ("[::1]:22", "::1"), ("[::1]:23", "[::1]:23")],
)
def test_host_keys_are_named_as_ssh_looks_for_them(place: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "key.pub").write_text("ssh-ed25519 AAAA root@machine\n")
    assert setup_report.host_keys(place, [str(tmp_path / "key")]) == [f"{name} ssh-ed25519 AAAA"]


def test_whether_what_is_in_bin_is_whole_is_seen_without_a_start(tmp_path: Path) -> None:
    files = carrier.own_files(SCRIPTS)
    version = carrier.identity(files)
    folder = tmp_path / "deployers" / version
    carrier.write(str(folder), files)
    (tmp_path / "bin").mkdir()
    entry = tmp_path / "bin/deploy_machine.py"
    entry.symlink_to(f"../deployers/{version}/deploy_machine.py")

    def whole() -> bool:
        return setup_tree.is_whole(entry, tmp_path / "deployers")

    assert whole()
    (folder / "deployer/extra.py").symlink_to("/etc/passwd")
    assert not whole()
    (folder / "deployer/extra.py").unlink()
    os.mkfifo(folder / "deployer/extra.py")
    assert not whole()
    (folder / "deployer/extra.py").unlink()
    (folder / "deployer/cli.py").write_text("import os\n")
    assert not whole()
    entry.unlink()
    os.mkfifo(entry)
    assert not whole()
    entry.unlink()
    entry.write_text("#!/usr/bin/python3\n\ndef main():\n    pass\n")
    assert whole(), "as version 0.1 has it"
    entry.write_text("broken\n")
    assert not whole()

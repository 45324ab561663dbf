"""./dev demo without machines: what it deploys touches no unit of this computer, and needs no PostgreSQL."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
from deployer import config

from lab import demo, embedded

REPOSITORY = Path(__file__).resolve().parents[2]


def test_its_roles_have_no_units_and_are_asked_for_their_health() -> None:
    address = "http://127.0.0.1:1/healthz"
    text = embedded.DEPLOY_INI.format(python="python3", address=address, check=embedded.CHECK.format(address=address))
    settings = config.parse(text, "deploy.ini")
    roles = config.roles_of(["scheduler", "frontend"], settings)
    assert config.units_of(settings.roles.values()) == ([], [])
    assert config.slots_of(settings.roles.values()) is None
    assert [role.health for role in roles] == [(), (address,)]
    assert roles[0].check == ("python", "manage.py", "scheduler_heartbeat")
    assert roles[1].check[:2] == ("python", "-c")
    compile(roles[1].check[2], "check", "exec")


def test_its_packages_are_the_examples_without_postgresql() -> None:
    names = [line.partition("==")[0] for line in embedded.requirements()]
    assert {"django", "gunicorn", "whitenoise", "markdown"} <= {*names}
    assert not [name for name in names if "psycopg" in name]


def test_a_page_that_cannot_be_written_is_told_before_anything_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "missing" / "demo.html"
    assert demo.main(["--page", str(file)]) == 2
    assert capsys.readouterr().err.startswith(f"lab: --page {file}: it cannot be written there; name a file")


def test_without_a_browser_the_tests_of_pages_are_left_out_and_with_ci_they_fail() -> None:
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/program/test_page_in_browser.py"]
    for ci, said in (("", "1 tests did NOT run: they need a browser"), ("true", "1 tests need a browser")):
        done = subprocess.run(
            argv, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=60,
            env={**os.environ, "CI": ci, "PATH": "/nowhere"},
        )  # fmt: skip
        assert done.returncode == (4 if ci else 5), done.stdout + done.stderr
        assert said in done.stdout + done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="as an ordinary user it is seen at once")
def test_machine_tests_without_root_do_not_end_without_a_word(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, "-q", "-p", "no:cacheprovider", "tests/machine/test_boot.py"],
        cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=60,
        env={**os.environ, "CI": "", "PYTEST_DEBUG_TEMPROOT": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 4, done.stdout + done.stderr
    assert "tests asked for need root: sudo ./dev test" in done.stderr


# root's files stay readable: only what the tests ask is answered as for an ordinary user
AS_NOBODY = "import os, sys, pytest; os.geteuid = lambda: 1000; sys.exit(pytest.main(sys.argv[1:]))"

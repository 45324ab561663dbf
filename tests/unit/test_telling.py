"""Real outputs of real tools that failed (outputs/), and the line of each that a person would pick."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
from deployer import telling

OUTPUTS = Path(__file__).with_name("outputs")
PICKED = {
    "django-app": "ModuleNotFoundError: No module named 'missing_app'",
    "django-database": "django.db.utils.OperationalError: unable to open database file",
    "django-driver": "django.core.exceptions.ImproperlyConfigured: Error loading psycopg2 or psycopg module",
    "django-settings": "ModuleNotFoundError: No module named 'nope'",
    "django-static": "django.core.exceptions.ImproperlyConfigured: You're using the staticfiles app without having set",
    "git-disconnect": "fetch-pack: unexpected disconnect while reading sideband packet",
    "git-early-eof": "error: RPC failed; curl 18 transfer closed with outstanding read data remaining",
    "git-none": "fatal: repository '/nonexistent/x.git' does not exist",
    "git-rpc": "error: RPC failed; curl 18 transfer closed with outstanding read data remaining",
    "github-closed": "kex_exchange_identification: Connection closed by remote host",
    "github-none": "ERROR: Repository not found.",
    "gunicorn-import": "ValueError: broken at import",
    "gunicorn-none": "ModuleNotFoundError: No module named 'nope'",
    "node-syntax": "SyntaxError: Unexpected token ';'",
    "node-throw": "TypeError: no good",
    "npm-build": "Error: Cannot find module 'missing-module'",
    "npm-ci": "`npm ci` can only install packages when your package.json and package-lock.json",
    "npm-none": "No matching version found for left-pad@99.0.0.",
    "pip-build": "RuntimeError: boom in setup",
    "pip-none": "ERROR: No matching distribution found for django==99.9",
    "pnpm-build": "Error: Cannot find module 'missing-module'",
    "pnpm-frozen": 'Cannot install with "frozen-lockfile" because pnpm-lock.yaml is absent',
    "pnpm-none": "No matching version found for left-pad@99.0.0",
    "poetry-badlock": "Expected '=' after a key in a key/value pair (at end of document)",
    "poetry-stale": "pyproject.toml changed significantly since poetry.lock was last generated.",
    "py-missing": "ModuleNotFoundError: No module named 'nope'",
    "sh-missing": "sh: 1: nocommand: not found",
    "ssh-changed-host": "Host key for services has changed and you have requested strict checking.",
    "ssh-dropped": "kex_exchange_identification: read: Connection reset by peer",
    "ssh-name": "ssh: Could not resolve hostname no.such.host.invalid: Name or service not known",
    "ssh-none": "ssh: connect to host 127.0.0.1 port 1: Connection refused",
    "ssh-publickey": "git@services: Permission denied (publickey).",
    "ssh-unknown-host": "No ED25519 host key is known for services and you have requested strict checking.",
    "sudo-password": "sudo: a password is required",
    "systemctl-bad": "Failed to start bad.service: Unit bad.service has a bad unit file setting.",
    "systemctl-crash": "Job for crash.service failed because the control process exited with error code.",
    "systemctl-denied": "Failed to start crash.service: Access denied",
    "systemctl-none": "Failed to start nope.service: Unit nope.service not found.",
    "systemctl-often": "crash.service: Start request repeated too quickly.",
    "systemctl-protocol": "Job for crash.service failed because the service did not take the steps required",
    "systemctl-slow": "Job for slow.service failed because a timeout was exceeded.",
    "uv-frozen": "error: Unable to find lockfile at `uv.lock`, but `--frozen` was provided.",
    "uv-sync": "Because there is no version of django==99.9 and your project depends on django==99.9",
    "yarn-build": "Error: Cannot find module 'missing-module'",
    "yarn-frozen": "TypeError: Cannot use 'in' operator to search for 'left-pad' in x",
    "yarn-none": 'Couldn\'t find any versions for "left-pad" that matches "99.0.0"',
}


@pytest.mark.parametrize("name", [path.stem for path in sorted(OUTPUTS.glob("*.txt"))])
def test_the_line_that_says_most(name: str) -> None:
    picked = telling.line((OUTPUTS / f"{name}.txt").read_text())
    assert PICKED[name] in picked
    assert len(picked) <= 200


@pytest.mark.parametrize(
    ("text", "picked"),
    [
        ("", ""),
        ("working\nall is lost\n", "all is lost"),
        ("\x1b[31mError: red\x1b[0m\n    at x (y.js:1:1)\n", "Error: red"),
        ("Running migrations:\n", "Running migrations:"),
        ("what went wrong\nhint: look there\ninfo Visit https://example.com\n", "what went wrong"),
        (
            "git@host: Permission denied (publickey).\nfatal: Could not read from remote repository.\n",
            "Permission denied",
        ),
        ("Host key verification failed.\nfatal: Could not read from remote repository.\n", "Host key verification"),
    ],
)
def test_short_ones(text: str, picked: str) -> None:
    assert picked in telling.line(text)
    assert bool(telling.line(text)) == bool(picked)


def test_it_takes_little_time_whatever_was_said() -> None:
    for text in ("x" * 65_000, "Error" * 13_000, "a." * 32_000, "╰─▶" * 20_000, " " * 65_000 + "x", "\n" * 65_000):
        telling.line(text)

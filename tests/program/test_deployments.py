"""GitHub's page of deployments, as the report brings it up to date: real processes, an API as GitHub documents it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deployments_api import DeploymentsApi, Refusal

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))
import deployments  # noqa: E402

A, B, C, D = ("a" * 40, "b" * 40, "c" * 40, "d" * 40)
SECRET = "10.0.0.5 said: password deploy@db"


@pytest.fixture
def api() -> Iterator[DeploymentsApi]:
    api = DeploymentsApi(A, B, C, D)
    yield api
    api.close()


def start(api: DeploymentsApi, results: dict[str, Any], merged: str = B, **env: str) -> subprocess.Popen[str]:
    encoded = {f"{name.upper()}_RESULT": json.dumps(value).encode().hex() for name, value in results.items()}
    own = {
        "PATH": os.environ["PATH"],
        "GITHUB_SHA": merged,
        "GITHUB_RUN_ID": "7",
        "GITHUB_SERVER_URL": "https://github.com",
    }
    return subprocess.Popen(
        [sys.executable, str(SCRIPTS / "report_deploys.py"), "--expect", *results],
        env={**own, **api.variables, **encoded, **env}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def report(api: DeploymentsApi, results: dict[str, Any], merged: str = B, **env: str) -> tuple[int, list[str]]:
    """The verdict, and the warnings about GitHub's page."""
    process = start(api, results, merged, **env)
    log = process.communicate(timeout=90)[0]
    assert "Traceback" not in log
    return process.returncode, [line for line in log.splitlines() if line.startswith("::warning title=deployments")]


def result(outcome: str, commit: str | None = B, wanted: str = B) -> dict[str, Any]:
    return {"schema": 1, "outcome": outcome, "commit": commit, "wanted": wanted, "message": SECRET, "reason": SECRET}


def test_what_a_machine_runs_is_the_active_record_and_a_second_run_adds_nothing(api: DeploymentsApi) -> None:
    api.add("scheduler", A, "success")
    results = {"scheduler": result("deployed"), "frontend": result("unchanged")}
    assert report(api, results) == (0, [])
    assert api.page("scheduler") == ["success bbbbbbbb runs, by cd", "inactive aaaaaaaa"]
    assert api.page("frontend") == ["success bbbbbbbb runs"]
    assert api.deployments[-1]["statuses"][-1]["log_url"] == "https://github.com/team/app/actions/runs/7"
    api.requests.clear()
    assert report(api, results) == (0, [])
    assert {request.split()[0] for request in api.requests} == {"GET"}
    assert len(api.requests) == 4, "two questions for each machine"


def test_a_failure_is_recorded_and_what_runs_stays_active(api: DeploymentsApi) -> None:
    api.add("frontend", A, "success")
    for _ in range(2):
        assert report(api, {"frontend": result("rolled_back", A)}) == (1, [])
        assert api.page("frontend") == ["failure bbbbbbbb unhealthy, rolled back", "success aaaaaaaa"]
    assert report(api, {"frontend": result("unreachable", A, "")}, C, GITHUB_EVENT_NAME="push") == (1, [])
    assert api.page("frontend")[0] == "failure cccccccc could not fetch the repository"
    assert report(api, {"frontend": result("broken", A)}) == (1, [])
    assert api.page("frontend")[1:] == [
        "failure bbbbbbbb unhealthy, rolled back", "failure aaaaaaaa broken, nothing healthy runs",
    ]  # fmt: skip
    assert report(api, {"frontend": result("deployed")}) == (0, [])
    assert api.page("frontend")[0] == "success bbbbbbbb runs, by cd"


def test_a_machine_that_is_off_has_the_commit_queued_until_it_is_seen_to_run_it(api: DeploymentsApi) -> None:
    api.add("frontend", A, "success")
    for merged in (B, B, C):
        assert report(api, {"frontend": result("offline", None, merged)}, merged) == (0, [])
    waits = "the machine is off; it catches up when it boots"
    assert api.page("frontend") == [
        f"queued cccccccc {waits}", "inactive bbbbbbbb another commit took its place", "success aaaaaaaa",
    ]  # fmt: skip
    # an old run again, and what a person chose for a machine that was off: no boot will bring these
    assert report(api, {"frontend": result("offline", None, B)}, B) == (0, [])
    assert report(api, {"frontend": result("offline", None, A)}, D) == (0, [])
    assert deployments.record([["frontend", A]], api.variables) == ""  # it is on, and still runs that
    assert api.page("frontend")[0] == f"queued cccccccc {waits}"
    seen = ["frontend", C, deployments.RUNS, "2026-01-02T03:04:05Z", "boot"]
    assert deployments.record([seen], api.variables) == ""
    assert api.page("frontend") == [
        "success cccccccc runs since 2026-01-02 03:04 UTC, by boot",
        "inactive bbbbbbbb another commit took its place", "inactive aaaaaaaa",
    ]  # fmt: skip


def test_a_boot_that_nobody_told_of_is_added_when_it_is_first_seen(api: DeploymentsApi) -> None:
    api.add("frontend", A, "success")
    api.add("frontend", B, "queued")
    seen = ["frontend", C, deployments.RUNS, "2026-01-02T03:04:05Z", "boot"]
    for _ in range(2):
        assert deployments.record([seen], api.variables) == ""
        assert api.page("frontend") == [
            "success cccccccc runs since 2026-01-02 03:04 UTC, by boot",
            "inactive bbbbbbbb another commit took its place", "inactive aaaaaaaa",
        ]  # fmt: skip
    back = ["frontend", A, deployments.RUNS, "2026-01-03T03:04:05Z", "manual"]
    assert deployments.record([back], api.variables) == ""
    assert api.page("frontend")[:2] == [
        "success aaaaaaaa runs since 2026-01-03 03:04 UTC, by manual",
        "inactive cccccccc",
    ]


def test_two_runs_at_once_leave_one_record(api: DeploymentsApi) -> None:
    api.before_create = threading.Barrier(2, timeout=60).wait  # both have looked before one of them writes
    processes = [start(api, {"frontend": result("deployed")}) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert api.requests.count("POST deployments") == 2
    assert api.page("frontend") == ["success bbbbbbbb runs, by cd"]


def test_a_record_that_a_killed_run_left_is_finished(api: DeploymentsApi) -> None:
    api.add("frontend", B)
    assert api.page("frontend") == ["none bbbbbbbb"]
    assert report(api, {"frontend": result("deployed")}) == (0, [])
    assert api.page("frontend") == ["success bbbbbbbb runs, by cd"]


@pytest.mark.parametrize(
    ("refusal", "says"),
    [
        (
            Refusal(403, "Resource not accessible by integration"),
            "GitHub answered 403: the job needs `deployments: write` among",
        ),
        (Refusal(404, "Not Found"), "GitHub answered 404: the job needs `deployments: write` among its permissions"),
        (
            Refusal(403, "API rate limit exceeded", {"x-ratelimit-remaining": "0"}),
            "GitHub's limit of requests is reached",
        ),
        (Refusal(429, "secondary rate limit", {"retry-after": "60"}), "GitHub's limit of requests is reached"),
        (Refusal(302, "Found", {"Location": "http://127.0.0.1:1/"}), "GitHub answered 302"),
        (Refusal(500, "x"), "GitHub answered 500"),
    ],
)
def test_what_github_refuses_is_one_warning_and_never_the_verdict(
    api: DeploymentsApi, refusal: Refusal, says: str
) -> None:
    api.refusal = refusal
    code, warnings = report(api, {"scheduler": result("deployed"), "frontend": result("deployed")})
    assert (code, len(warnings)) == (0, 1)
    assert says in warnings[0]


def test_a_commit_that_github_does_not_have_keeps_no_other_machine_from_its_record(api: DeploymentsApi) -> None:
    results = {"scheduler": result("deployed", "f" * 40), "frontend": result("deployed")}
    code, warnings = report(api, results)
    assert (code, len(warnings)) == (0, 1)
    assert "scheduler, ffffffff: GitHub answered 422" in warnings[0]
    assert api.page("frontend") == ["success bbbbbbbb runs, by cd"]


def test_an_answer_that_is_none_or_drips_has_an_end(api: DeploymentsApi, monkeypatch: pytest.MonkeyPatch) -> None:
    code, warnings = report(api, {"frontend": result("deployed")}, GITHUB_API_URL="http://127.0.0.1:1")
    assert (code, len(warnings)) == (0, 1)
    assert "no answer (URLError)" in warnings[0]
    monkeypatch.setattr(deployments, "TIME_LIMIT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = threading.Event()

        def drip() -> None:
            connection, _ = server.accept()
            while not closed.wait(0.05):
                connection.sendall(b"H")

        threading.Thread(target=drip, daemon=True).start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        began = time.monotonic()
        said = deployments.record([["frontend", B]], {**api.variables, "GITHUB_API_URL": url})
        closed.set()
    assert "GitHub did not answer within 0.5 s" in said
    assert time.monotonic() - began < 5


def test_nothing_that_a_machine_says_gets_into_a_record(api: DeploymentsApi) -> None:
    for outcome in ("failed", "rolled_back", "broken", "unreachable", "busy", "offline"):
        report(api, {"frontend": result(outcome, A)})
    hostile = [
        ["frontend", D, "success", SECRET, SECRET],
        [SECRET, A],
        ["frontend", "HEAD"],
        ["frontend", A, "destroyed"],
    ]
    assert deployments.record(hostile, api.variables) == ""
    assert api.page("frontend")[0] == "success dddddddd runs"
    assert {one["environment"] for one in api.deployments} == {"frontend"}
    assert "password" not in json.dumps(api.deployments)
    assert max(len(status["description"]) for one in api.deployments for status in one["statuses"]) <= 140


def test_without_a_token_nothing_is_asked(api: DeploymentsApi) -> None:
    assert report(api, {"frontend": result("deployed")}, GITHUB_TOKEN="") == (0, [])
    assert report(api, {"frontend": result("deployed")}, GITHUB_TOKEN="another")[1][0].count("GitHub answered 401") == 1
    assert api.requests == ["GET deployments"]

"""fleet_status.py --alert as a program: a real webhook, and a server that answers as GitHub's API does about issues."""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from test_fleet import SCRIPT, Fleet
from test_fleet_record import Clone, git
from test_told import Webhook

sys.path.insert(0, str(SCRIPT.parent))
import fleet_issue
import fleet_tell

TOKEN = "a-token-that-nobody-may-see"
REASON = "step build failed: npm run build ended with 1"
MARK = "<!-- deploy-machine: the machines -->"


class GitHub:
    """The part of GitHub's REST API that is about issues, as its documentation has it."""

    def __init__(self) -> None:
        self.issues: list[dict[str, Any]] = []
        self.comments: list[tuple[int, str]] = []
        self.code = 0  # with which all questions fail
        own = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer("GET")

            def do_POST(self) -> None:
                self.answer("POST")

            def do_PATCH(self) -> None:
                self.answer("PATCH")

            def answer(self, method: str) -> None:
                sent = self.rfile.read(int(self.headers["Content-Length"] or 0))
                known = self.headers["Authorization"] == f"Bearer {TOKEN}"
                code, value = own.answer(method, self.path, json.loads(sent or b"{}")) if known else (401, {})
                self.send_response(own.code or code)
                self.send_header("Location", "/elsewhere")
                self.end_headers()
                self.wfile.write(json.dumps({} if own.code else value).encode())

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, method: str, path: str, value: dict[str, Any]) -> tuple[int, Any]:
        where = urlsplit(path)
        found = re.fullmatch(r"/api/v3/repos/you/app/issues(?:/(\d+)(/comments)?)?", where.path)
        if not found:
            return 404, {}
        if method == "GET":
            asked = {name: values[0] for name, values in parse_qs(where.query).items()}
            size, page = int(asked["per_page"]), int(asked["page"])
            chosen = [issue for issue in self.issues if issue["state"] == asked["state"]]
            return 200, chosen[size * (page - 1) : size * page]
        if method == "POST" and found[2]:
            self.comments.append((int(found[1]), value["body"]))
            return 201, {}
        if method == "POST":
            return 201, self.open(**value)
        self.issues[int(found[1]) - 1].update(value)
        return 200, {}

    def open(self, title: str, body: str, login: str = "github-actions[bot]", **more: Any) -> dict[str, Any]:
        user = {"login": login, "type": "Bot" if login.endswith("[bot]") else "User"}
        about = {"number": len(self.issues) + 1, "title": title, "body": body, "state": "open", "user": user}
        self.issues.append({**about, "author_association": "NONE", **more})
        return self.issues[-1]

    def of(self, state: str) -> list[int]:
        return [issue["number"] for issue in self.issues if issue["state"] == state]


@pytest.fixture
def api() -> Iterator[GitHub]:
    found = GitHub()
    yield found
    found.server.shutdown()
    found.server.server_close()


@pytest.fixture
def chat() -> Iterator[Webhook]:
    found = Webhook()
    yield found
    found.server.shutdown()
    found.server.server_close()


class Watched(Fleet):
    """Two machines that are asked once in a while, and somebody who is told."""

    def look(self, *words: str, code: int = 1) -> str:
        """Stderr of a look that counts as one."""
        time.sleep(1 - time.time() % 1)  # a look is known by its second
        found, out, err, _ = self.run(
            "--machine", "scheduler", "--machine", "night", "--alert", *words, scheduler="answers", night="answers"
        )
        assert found == code, out + err
        assert "secret" not in out + err and TOKEN not in out + err
        return err

    def fails(self) -> None:
        self.answers(failing=True, last_failure={"reason": REASON})


@pytest.fixture
def fleet(tmp_path: Path, chat: Webhook, api: GitHub) -> Watched:
    found = Watched(tmp_path)
    found.env["DEPLOY_WEBHOOK_URL"] = f"http://127.0.0.1:{chat.server.server_port}/secret"
    found.env |= {"GITHUB_API_URL": f"http://127.0.0.1:{api.server.server_port}/api/v3", "GITHUB_TOKEN": TOKEN}
    found.env |= {"GITHUB_REPOSITORY": "you/app"}
    return found


def test_two_looks_are_one_message_and_its_end_another(fleet: Watched, chat: Webhook) -> None:
    fleet.fails()
    assert [fleet.look() for _ in range(3)] == [""] * 3
    (message,) = chat.told
    line = f"FAILED: `{REASON}`; see its log; fix and merge"
    assert message["text"].splitlines() == [
        "Machines: scheduler is FAILED, night is FAILED",
        f"❌ scheduler: {line}",
        f"❌ night: {line}",
    ]
    about = {"machine": "scheduler", "state": "FAILED", "kind": "new", "reason": REASON}
    assert {**about, "since": message["alerts"][0]["since"]} == message["alerts"][0]
    (kept,) = (fleet.home / "state").rglob("fleet-*.json")
    assert "npm run build" not in json.dumps(
        [one["alerts"] for one in json.loads(kept.read_text())["machines"].values()]
    )
    fleet.answers()
    fleet.look(code=0)
    assert chat.texts()[1].splitlines()[0] == "Machines: scheduler is not FAILED any more, night is not FAILED any more"


def test_a_webhook_that_fails_is_a_warning_and_is_told_again(fleet: Watched, chat: Webhook) -> None:
    fleet.fails()
    chat.code = 500
    assert [fleet.look() for _ in range(2)] == ["", "fleet_status.py: the webhook could not be told: HTTPError 500\n"]
    chat.code = 200
    assert fleet.look() == ""
    assert len(chat.told) == 2


def test_one_issue_that_is_opened_kept_true_and_closed(fleet: Watched, api: GitHub) -> None:
    fleet.env["DEPLOY_WEBHOOK_URL"] = ""
    for number in range(150):  # on two pages, with much that looks like ours
        api.open("x", MARK, login="mallory", **({"pull_request": {}} if number % 2 else {}))
    fleet.fails()
    fleet.look("--issue")
    assert len(api.issues) == 150
    fleet.look("--issue")
    ours = api.issues[150]
    assert (ours["title"], ours["user"]["type"]) == ("Machines: somebody must act", "Bot")
    lines = ours["body"].splitlines()
    assert lines[0] == MARK
    assert lines[4].startswith("| scheduler | FAILED | 20") and lines[4].endswith(
        " UTC | - | see its log; fix and merge |"
    )
    assert "npm run build" not in ours["body"], "the repository may be public"
    fleet.look("--issue")
    assert (len(api.issues), api.comments) == (151, []), "nothing new, and nothing is said"

    fleet.env["DEPLOY_STATUS_PRIVATE"] = "true"
    fleet.answers(drift=[{"kind": "changed", "name": "board/@team.py"}])
    fleet.look("--issue")
    assert (ours["state"], "the next look says whether it holds" in ours["body"]) == ("open", True)
    fleet.look("--issue")
    assert [number for number, _ in api.comments] == [151, 151]
    assert api.comments[0][1].splitlines()[0] == "- scheduler: no longer FAILED, it is DRIFTED now"
    assert "by hand: board/" in ours["body"] and "@team" not in ours["body"] + api.comments[1][1]
    fleet.answers()
    fleet.look("--issue", code=0)
    assert (ours["state"], ours["state_reason"], len(api.comments)) == ("closed", "completed", 3)
    assert api.of("open") == [*range(1, 151)], "nobody else's was touched"


def test_an_issue_that_a_person_has_closed_stays_closed(fleet: Watched, api: GitHub) -> None:
    fleet.fails()
    fleet.look("--issue")
    fleet.look("--issue")
    api.issues[0]["state"] = "closed"
    fleet.look("--issue")
    assert api.of("closed") == [1] and api.of("open") == []
    fleet.answers(failing=True, healthy=False)
    fleet.look("--issue")
    fleet.look("--issue")
    assert api.of("open") == [2], "and something new opens another"


def test_an_api_that_fails_is_a_warning_and_what_it_missed_is_made_up_for(
    fleet: Watched, api: GitHub, chat: Webhook
) -> None:
    fleet.fails()
    fleet.look("--issue")
    for code, says in ((403, "403, does the token have `issues: write`?"), (302, "302"), (200, "of another kind")):
        api.code = code
        err = fleet.look("--issue")
        assert err.startswith("fleet_status.py: the issue could not be told: GET /issues") and says in err
    api.code = 0
    fleet.look("--issue")
    assert (api.of("open"), len(chat.told)) == ([1], 1), "the issue is made up for, and the chat is told nothing twice"


def test_an_api_whose_answer_drips_has_an_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=drip, args=(server,), daemon=True).start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        began = time.monotonic()
        problem = fleet_tell.within(0.5, fleet_issue.Api(url, "you/app", TOKEN), [], {}, [], False, 0.0)
        assert problem == "the issue could not be told: no answer within 0.5 s"
        assert time.monotonic() - began < 3


def drip(server: socket.socket) -> None:
    client, _ = server.accept()
    with contextlib.suppress(OSError), client:
        client.sendall(b"HTTP/1.1 200 OK\r\nX: ")
        for _ in range(20):
            client.sendall(b"x")
            time.sleep(0.1)


def test_what_was_told_is_known_to_whoever_reads_the_shared_memory(
    tmp_path: Path, fleet: Watched, chat: Webhook
) -> None:
    origin = tmp_path / "origin.git"
    git(tmp_path, "init", "-q", "--bare", "-b", "main", str(origin))

    def look(number: int, *words: str, code: int, **more: Any) -> None:
        """From a new clone, as each run of a workflow has one."""
        time.sleep(1 - time.time() % 1)
        clone = Clone(tmp_path / f"clone-{number}", origin)
        clone.env["DEPLOY_WEBHOOK_URL"] = fleet.env["DEPLOY_WEBHOOK_URL"]
        clone.answers(**more)
        clone.record(*words, code=code)

    failed = {"failing": True, "last_failure": {"reason": REASON}}
    for number in range(3):
        look(number, "--alert", code=1, **failed)
    assert len(chat.told) == 1
    assert "npm run" not in git(origin, "show", "deploy-status:fleet.json")
    look(3, code=0)
    assert len(chat.told) == 1, "it tells nobody, and keeps what was told"
    look(4, "--alert", code=0)
    assert chat.texts()[1].endswith("frontend: no longer FAILED, it is ok now")


@pytest.mark.parametrize(
    ("words", "env", "says"),
    [
        (
            ("--alert",),
            {"DEPLOY_WEBHOOK_URL": ""},
            "--alert: set DEPLOY_WEBHOOK_URL in the environment, or give --issue",
        ),
        (("--issue",), {}, "--issue: goes with --alert"),
        (("--alert", "--hand-over"), {}, "--alert: of the job that records (--record), not of the one that hands over"),
        (("--alert", "--issue"), {"GITHUB_TOKEN": ""}, "--issue: set GITHUB_TOKEN in the environment, a token with"),
        (("--alert", "--issue"), {"GITHUB_REPOSITORY": "x"}, "--issue: set GITHUB_REPOSITORY in the environment, as"),
        (("--alert", "--issue"), {"GITHUB_API_URL": "x"}, "--issue: GITHUB_API_URL is no address of the form https://"),
    ],
)
def test_what_is_missing_is_one_clear_line(
    fleet: Watched, words: tuple[str, ...], env: dict[str, str], says: str
) -> None:
    fleet.env |= env
    code, out, err, _ = fleet.run(*words, scheduler="answers", frontend="answers", night="answers")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"fleet_status.py: {says}")
    assert not (fleet.home / "asked").exists()

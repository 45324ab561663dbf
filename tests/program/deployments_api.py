"""GitHub's REST API for deployments, as https://docs.github.com/rest/deployments describes it, on this host."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

TOKEN = "ghs_token"
STATES = {"error", "failure", "inactive", "in_progress", "queued", "pending", "success"}


class Refusal(Exception):
    def __init__(self, code: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.code, self.headers = code, headers or {}


class DeploymentsApi:
    """Deployments of the repository team/app; `commits` are those that it has."""

    def __init__(self, *commits: str) -> None:
        self.commits = set(commits)
        self.deployments: list[dict[str, Any]] = []
        self.requests: list[str] = []
        self.refusal: Refusal | None = None  # of whatever is written; to another place also of what is read
        self.before_create: Callable[[], object] = lambda: None
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self.handler())
        self.server.daemon_threads = True
        threading.Thread(target=lambda: self.server.serve_forever(0.05), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    @property
    def variables(self) -> dict[str, str]:
        return {"GITHUB_API_URL": self.url, "GITHUB_REPOSITORY": "team/app", "GITHUB_TOKEN": TOKEN}

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def page(self, machine: str) -> list[str]:
        """What GitHub's page shows for an environment, newest first: `success bbbbbbbb runs`."""
        found = [one for one in reversed(self.deployments) if one["environment"] == machine]
        said = [one["statuses"][-1]["description"] if one["statuses"] else "" for one in found]
        return [f"{self.state(one)} {one['sha'][:8]} {text}".strip() for one, text in zip(found, said, strict=True)]

    @staticmethod
    def state(deployment: Mapping[str, Any]) -> str:
        return str(deployment["statuses"][-1]["state"]) if deployment["statuses"] else "none"

    def add(self, machine: str, commit: str, *states: str) -> None:
        """What is there already."""
        deployment = self.create({"ref": commit, "environment": machine, "auto_merge": False, "required_contexts": []})
        for state in states:
            self.create_status(deployment, {"state": state})

    # --- what it answers

    def answer(self, method: str, target: str, body: Mapping[str, Any], token: str | None) -> tuple[int, Any]:
        url = urlsplit(target)
        parts, query = url.path.strip("/").split("/"), {key: values[-1] for key, values in parse_qs(url.query).items()}
        if token != f"Bearer {TOKEN}":
            raise Refusal(401, "Bad credentials")
        if parts[:4] != ["repos", "team", "app", "deployments"]:
            raise Refusal(404, "Not Found")
        if self.refusal and (method != "GET" or self.refusal.code < 400):
            raise self.refusal
        if len(parts) == 4 and method == "GET":
            return 200, self.listed(query)
        if len(parts) == 4 and method == "POST":
            self.before_create()
            return 201, self.create(body)
        deployment = next((one for one in self.deployments if str(one["id"]) == parts[4]), None)
        if deployment is None:
            raise Refusal(404, "Not Found")
        if parts[5:] == ["statuses"] and method == "GET":
            newest_first = deployment["statuses"][::-1]
            return 200, newest_first[: int(query.get("per_page", 30))]
        if parts[5:] == ["statuses"] and method == "POST":
            return 201, self.create_status(deployment, body)
        if len(parts) == 5 and method == "DELETE":
            if len(self.deployments) > 1 and self.state(deployment) in ("success", "none"):
                raise Refusal(422, "We cannot delete an active deployment unless it is the only deployment")
            self.deployments.remove(deployment)
            return 204, None
        raise Refusal(404, "Not Found")

    def listed(self, query: Mapping[str, str]) -> list[dict[str, Any]]:
        wanted = {key: value for key, value in query.items() if key in ("environment", "sha", "ref", "task")}
        found = [one for one in reversed(self.deployments) if all(one[key] == wanted[key] for key in wanted)]
        return [
            {key: value for key, value in one.items() if key != "statuses"}
            for one in found[: int(query.get("per_page", 30))]
        ]

    def create(self, body: Mapping[str, Any]) -> dict[str, Any]:
        if body.get("ref") not in self.commits:
            raise Refusal(422, f"No ref found for: {body.get('ref')}")
        if body.get("auto_merge", True):
            raise Refusal(409, "Conflict merging main into topic-branch.")
        if body.get("required_contexts") != []:
            raise Refusal(409, "Conflict: Commit status checks failed for topic-branch.")
        self.check(body)
        with self.lock:
            environment = body.get("environment", "production")
            deployment = {
                "id": 1 + max((one["id"] for one in self.deployments), default=40), "ref": body["ref"],
                "sha": body["ref"], "task": body.get("task", "deploy"), "environment": environment,
                "production_environment": body.get("production_environment", environment == "production"),
                "description": body.get("description", ""), "statuses": [],
            }  # fmt: skip
            self.deployments.append(deployment)
        return deployment

    def create_status(self, deployment: dict[str, Any], body: Mapping[str, Any]) -> dict[str, Any]:
        if body.get("state") not in STATES:
            raise Refusal(422, "Validation Failed: state is not included in the list")
        self.check(body)
        with self.lock:
            if body["state"] == "success" and body.get("auto_inactive", True):
                for one in self.deployments:
                    is_prior = one["id"] != deployment["id"] and one["environment"] == deployment["environment"]
                    if is_prior and not one["production_environment"] and self.state(one) == "success":
                        one["statuses"].append(self.status({"state": "inactive"}))
            deployment["statuses"].append(self.status(body))
        return dict(deployment["statuses"][-1])

    def status(self, body: Mapping[str, Any]) -> dict[str, Any]:
        number = sum(len(one["statuses"]) for one in self.deployments)
        return {"id": 100 + number, "description": "", "log_url": "", **body}

    @staticmethod
    def check(body: Mapping[str, Any]) -> None:
        if len(body.get("description", "")) > 140:
            raise Refusal(422, "Validation Failed: description is too long (maximum is 140 characters)")

    def handler(self) -> type[BaseHTTPRequestHandler]:
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length) or b"{}")
                api.requests.append(f"{self.command} {urlsplit(self.path).path.removeprefix('/repos/team/app/')}")
                headers: Mapping[str, str] = {}
                try:
                    code, value = api.answer(self.command, self.path, body, self.headers.get("Authorization"))
                except Refusal as refusal:
                    code, value, headers = refusal.code, {"message": str(refusal)}, refusal.headers
                self.send_response(code)
                for name, text in headers.items():
                    self.send_header(name, text)
                self.end_headers()
                if value is not None:
                    self.wfile.write(json.dumps(value).encode())

            do_POST = do_DELETE = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        return Handler

#!/usr/bin/env python3
"""A Python index (PEP 503) and an npm registry for the test machines, in one small server on port 80."""

import hashlib
import http.server
import re
from pathlib import Path
from urllib.parse import unquote

LAB = Path("/opt/lab")


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def index(project: str) -> str:
    """The PEP 503 page of one project, or nothing."""
    links = []
    for wheel in sorted((LAB / "wheels").iterdir()):
        if normalized(wheel.name.split("-")[0]) == project:
            digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
            links.append(f'<a href="/wheels/{wheel.name}#sha256={digest}">{wheel.name}</a><br>')
    return f"<!doctype html><html><body>{''.join(links)}</body></html>" if links else ""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        simple = re.fullmatch(r"/simple/([A-Za-z0-9._-]+)/", path)
        if simple:
            self.answer(index(normalized(simple[1])).encode(), "text/html")
        elif path.startswith("/wheels/"):
            self.answer_file(LAB / "wheels" / Path(path).name)
        elif path.startswith("/-/"):
            self.answer_file(LAB / "npm" / Path(path).name)
        else:
            self.answer_file(LAB / "npm/packuments" / (path[1:].replace("/", "%2f") + ".json"), "application/json")

    def answer_file(self, path: Path, kind: str = "application/octet-stream") -> None:
        self.answer(path.read_bytes() if path.is_file() else b"", kind)

    def answer(self, body: bytes, kind: str) -> None:
        self.send_response(200 if body else 404)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    http.server.ThreadingHTTPServer(("", 80), Handler).serve_forever()

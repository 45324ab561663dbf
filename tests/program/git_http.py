"""A git server as GitHub's: over HTTP, for whoever has the token; git's own http-backend does the work."""

from __future__ import annotations

import base64
import os
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

TOKEN = "ghs_token"


class GitHttp:
    """Repositories below a folder; `asked` has the Authorization of each request."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked = folder, list[str]()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self.handler())
        threading.Thread(target=lambda: self.server.serve_forever(0.05), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> bytes:
        """What http-backend prints, as a CGI program does."""
        path, _, query = request.path.partition("?")
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        env = {"PATH": os.environ["PATH"], "GIT_PROJECT_ROOT": str(self.folder), "GIT_HTTP_EXPORT_ALL": "1"}
        env |= {"REQUEST_METHOD": request.command, "PATH_INFO": path, "QUERY_STRING": query, "REMOTE_USER": "ci"}
        env |= {"CONTENT_TYPE": request.headers.get("Content-Type", ""), "CONTENT_LENGTH": str(len(body))}
        env |= {"HTTP_CONTENT_ENCODING": request.headers.get("Content-Encoding", "")}
        env |= {"GIT_PROTOCOL": request.headers.get("Git-Protocol", ""), "GIT_CONFIG_GLOBAL": "/dev/null"}
        return subprocess.run(["git", "http-backend"], input=body, env=env, capture_output=True, check=True).stdout

    def handler(self) -> type[BaseHTTPRequestHandler]:
        server = self
        expected = "basic " + base64.b64encode(f"x-access-token:{TOKEN}".encode()).decode()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                given = self.headers.get_all("Authorization", [])
                server.asked.append(", ".join(given))
                if given != [expected]:
                    self.send_response(401)
                    self.send_header("WWW-Authenticate", 'Basic realm="git"')
                    self.end_headers()
                    return
                head, _, body = server.answer(self).partition(b"\r\n\r\n")
                fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
                self.send_response(int(fields.pop("Status", "200").split()[0]))
                for name, value in fields.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def log_message(self, *_: object) -> None:
                pass

        return Handler

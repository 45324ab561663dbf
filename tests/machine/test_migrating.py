"""docs/migrating.md, word by word, on a machine that runs the application in place; a client asks all the time."""

from __future__ import annotations

import re

from faults.load import steady
from lab.host import REPOSITORY
from lab.machine import Machine
from lab.world import DOT_ENV, REPO_URL, World

SERVER = """\
import http.server, json
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"commit": "in place"}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer(("127.0.0.1", 8000), Handler).serve_forever()
"""
UNIT = "[Service]\nExecStart=/usr/bin/python3 /srv/board/server.py\n[Install]\nWantedBy=multi-user.target\n"
SITE = "server { listen 80 default_server; location / { proxy_pass http://127.0.0.1:8000; } }\n"
SETUP = r"    scripts/setup_machine.py((?:.*\\\n)*.*)"


def runs_in_place(frontend: Machine) -> None:
    frontend.sh("mkdir -p /srv/board/media; echo upload > /srv/board/media/photo; rm /etc/nginx/sites-enabled/default")
    for path, text in (
        ("/srv/board/server.py", SERVER),
        ("/srv/board/.env", DOT_ENV),
        ("/etc/systemd/system/gunicorn.service", UNIT),
        ("/etc/nginx/sites-enabled/board", SITE),
    ):
        frontend.run("tee", path, input=text)
    frontend.sh("systemctl enable --now gunicorn.service nginx.service")
    frontend.wait_until(lambda: frontend.health()["status"] == 200, "it does not run in place")


def test_what_the_page_says_is_no_outage(bare: World) -> None:
    page = (REPOSITORY / "docs/migrating.md").read_text().partition("## The scheduler's machine")[0]
    commands = re.findall(rf"(?m)^   {SETUP}|^ +(sudo .*)$", page)
    assert len(commands) == 10, "three times setup, and what root does"
    frontend = bare.boot("frontend")
    runs_in_place(frontend)
    said = []
    with steady(bare, frontend.address) as answers:
        for options, line in commands:
            if options:
                words = options.replace("\\\n", " ").split()
                words[words.index("admin@10.0.0.6")] = "root@10.0.0.6"
                words[words.index("git@github.com:you/app.git")] = REPO_URL
                words[words.index("~/ci_key.pub")] = str(bare.home / "ci.pub")
                script = bare.clone / "scripts/setup_machine.py"
                done = bare.runner("python3", script, *words, env=bare.ssh_environment(), check=False)
                assert done.returncode == (1 if "--check" in words else 0), done.stdout + done.stderr
                said.append(done.stdout)
                if len(said) == 2:
                    bare.allow_to_read(frontend.out("cat /home/deploy/.ssh/id_ed25519.pub"))
            else:
                frontend.sh(line, timeout=280)
    own = [answer for answer in answers if answer.kind == "new connection"]
    assert len(own) > 100
    assert [answer for answer in own if answer.status != 200] == []
    assert (own[0].commit, own[-1].commit) == ("in place", bare.git("rev-parse", "HEAD"))
    assert "to do: nginx: /etc/nginx/sites-enabled/board answers where setup's site would, and goes on" in said[1]
    assert frontend.out("curl -sf http://127.0.0.1/media/photo") == "upload"
    assert frontend.show("gunicorn.service", "ActiveState") == "inactive"
    assert frontend.deploy().outcome == "unchanged"

    back = re.search(r"/etc/nginx/sites-enabled/board was not setup's; to go back: (.*)", said[2])
    assert back
    frontend.sh(f"systemctl start gunicorn.service; {back[1]}")
    frontend.wait_until(lambda: frontend.health()["commit"] == "in place", f"it did not go back: {back[1]}")

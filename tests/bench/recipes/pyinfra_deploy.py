"""pyinfra's deploy: nothing to do if the newest commit runs, else in place, step by step."""

from pyinfra import host
from pyinfra.facts.server import Command
from pyinfra.operations import server

SITE = "/srv/site"
REPO = host.data.repo
VERSION = host.data.get("version", "origin/main")

FETCH = f"test -d {SITE}/.git || git clone -q {REPO} {SITE}; cd {SITE} && git fetch -q && git rev-parse {VERSION}"
wanted = host.get_fact(Command, FETCH)
running = host.get_fact(Command, f"cat {SITE}/REVISION 2>/dev/null || true")

if wanted != running:
    server.shell(name="Code", commands=[f"cd {SITE} && git reset -q --hard {wanted} && git rev-parse HEAD >REVISION"])
    for step in ("python", "node", "build", "migrate", "static"):
        server.shell(name=step, commands=[f"cd {SITE} && . /srv/app/shared/steps.sh && {step}_step"])
    server.shell(name="Restart", commands=["systemctl restart gunicorn.service"], _sudo=True)

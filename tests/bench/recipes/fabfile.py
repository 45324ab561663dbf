"""Fabric's deploy: nothing to do if the newest commit runs, else in place, skipping what did not change."""

from fabric import Connection, task

SITE = "/srv/site"


@task
def deploy(c: Connection, repo: str, version: str = "origin/main") -> None:
    """Bring the machine to that commit."""
    with c.cd(SITE):
        c.run(f"test -d .git || git clone -q {repo} . ; git fetch -q")
        seen = c.run(f"git rev-parse {version}; cat REVISION 2>/dev/null || true", hide=True).stdout.split()
        if seen[1:] == seen[:1]:
            return
        c.run(f"git reset -q --hard {seen[0]} && git rev-parse HEAD >REVISION")
        for step in ("python", "node", "build", "migrate", "static"):
            c.run(f". /srv/app/shared/steps.sh; {step}_step")
        c.run("sudo systemctl restart gunicorn.service")

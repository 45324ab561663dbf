"""The files that an application is to have: those of this project, made to fit, and a first version of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import adopt_env as env
import adopt_ini as ini
import adopt_looks as looks
import adopt_repo as repo
from adopt_values import Place, plain
from deployer import errors

# where a workflow of the application's own has the name
OTHER = {repo.WORKFLOW: ".github/workflows/deploy-machines.yml", repo.FLEET: ".github/workflows/deploy-fleet.yml"}
SCHEDULER_UNIT = "systemd/scheduler.service"
BRANCH = re.compile(r"(?m)^    branches: \[\"?([^\]\"]+)\"?\]$|^    if: .* github\.ref != 'refs/heads/(.+?)'")
# places of cd.yml and fleet.yml that name the branch: {0} as it is, {1} as a word of YAML, {2} within '...'
OF_BRANCH = (
    ("Deploys every merge to {0} to all", "main"),
    ("each limited to the branch {0} (", "main"),
    ("branches: [{1}]", "main"),
    ("Exactly this commit of {0} (", "main"),
    ("github.ref != 'refs/heads/{2}'", "main"),
    ("github.ref == 'refs/heads/{2}'", "main"),
    ('why="choose {0} under', "main"),
)


class Wanted(NamedTuple):
    """A file that the application is to have."""

    path: str
    text: str
    mode: int = 0o644
    is_own: bool = False  # the application's own, once it is there
    is_copy: bool = False  # it is as it is in this project
    known: tuple[str, ...] = ()  # what earlier versions of this project have written there


def wanted(
    application: repo.Application, found: looks.Found, settled: ini.Settled, more: Mapping[str, str]
) -> list[Wanted]:
    """All of them. more: variables that .env.example has to have beside those that the settings ask for."""
    return [*given(application, found, settled), *own(application, found, settled, more)]


# --- what stays this project's


def given(application: repo.Application, found: looks.Found, settled: ini.Settled) -> list[Wanted]:
    """Scripts, units and the workflow, as they are in this version."""
    history, files = repo.history(), repo.own_files()
    result = []
    for path, text in files.items():
        before = history.get(path, ())
        if path in OTHER:
            result.append(workflow(application, settled, path, text, before))
        else:
            known = [*before, *(fitted(path, one, found) for one in before)]
            new = fitted(path, text, found)
            result.append(Wanted(path, new, repo.mode_of(path), is_copy=new == text, known=tuple(known)))
    for program in found.programs:
        path = f"systemd/{program.unit}"
        if path not in files and "scheduler" in settled.roles:
            known = [unit_for(program, one, found.folder) for one in history.get(SCHEDULER_UNIT, ())]
            result.append(Wanted(path, unit_for(program, files[SCHEDULER_UNIT], found.folder), known=tuple(known)))
    return result


def gone(application: repo.Application, present: Sequence[Wanted]) -> list[Wanted]:
    """Files of earlier versions that are in the application, and that this one does not have any more."""
    paths = {one.path for one in present} | {*OTHER}
    there = [(path, texts) for path, texts in repo.history().items() if path not in paths and path in application.files]
    return [Wanted(path, "", known=tuple(texts)) for path, texts in there]


def fitted(path: str, text: str, found: looks.Found) -> str:
    """A unit, made to fit the application."""
    if path != SCHEDULER_UNIT:
        return text
    program = next(iter(found.programs), looks.Program("scheduler.service", "python manage.py run_scheduler", ""))
    return unit_for(program, text, found.folder)


def unit_for(program: looks.Program, text: str, folder: str) -> str:
    """scheduler.service, for what a program is started with and where it works."""
    if not re.fullmatch(r"[\w./@+-]*", folder):
        raise errors.UsageError(f"{folder}: units and deploy.ini take no such name for a folder: rename it")
    name = program.unit.partition(".")[0]
    said = re.sub(r"^python ", "", program.words)
    said = " ".join(said.split()[:1] + said.split()[3:4]) if said.startswith("celery ") else said
    text = text.replace("manage.py run_scheduler`", f"{said}`").replace("(manage.py run_scheduler)", f"({said})")
    text = text.replace(".venv/bin/python manage.py run_scheduler", f".venv/bin/{program.words}")
    if name != "scheduler":
        text = text.replace("# The scheduler of the application:", f"# {name} of the application:", 1)
    text = text.replace("Description=Application scheduler", f"Description=Application {name.replace('-', ' ')}")
    text = text.replace("SyslogIdentifier=scheduler\n", f"SyslogIdentifier={name}\n")
    return text.replace(
        "WorkingDirectory=/srv/app/current\n", f"WorkingDirectory=/srv/app/current/{folder}".rstrip("/") + "\n"
    )


def place_of(application: repo.Application, which: str) -> str:
    """Where a workflow of ours is, or is to be: under another name where the application has its own of that name."""
    return application.workflow(which) or (OTHER[which] if which in application.files else which)


def workflow(
    application: repo.Application, settled: ini.Settled, which: str, text: str, history: Sequence[str]
) -> Wanted:
    """cd.yml or fleet.yml for these machines."""
    path, fleet = place_of(application, which), place_of(application, repo.FLEET)
    present = application.text(path)
    before = ini.machines_in(present)
    old = branch_of(present)
    known = [*history, *(cd(one, before, old, fleet) for one in [*history, text] if before)]
    return Wanted(path, cd(text, settled.machines, settled.branch, fleet), known=tuple(known))


def branch_of(workflow: str) -> str:
    """The branch that a workflow of ours was made for."""
    found = BRANCH.search(workflow)
    return (found[1] or found[2]) if found else "main"


def cd(text: str, machines: Sequence[ini.Machine], branch: str, fleet: str = repo.FLEET) -> str:
    """A workflow for these machines and this branch, in the place of its two machines and main.

    fleet: where fleet.yml lies.
    """
    if not re.fullmatch(r"[\w./+-]+", branch, re.ASCII):
        raise errors.UsageError(f"{branch}: letters, digits and . _ / + - are what a branch may be called in cd.yml")
    lines: list[str] = []
    block: list[str] = []
    for line in text.split("\n"):
        if names_machine(line):
            block.append(line)
        else:
            lines += [*for_machines(block, machines), line]
            block = []
    names = [machine.name for machine in machines]
    result = "\n".join(lines).replace("'scheduler frontend'", f"'{' '.join(names)}'")
    result = result.replace("`scheduler` and `frontend`", " and ".join(f"`{name}`" for name in names))
    result = result.replace("scheduler frontend worker\n", f"{' '.join(names)} worker\n", 1)
    word = (
        branch if re.fullmatch(r"[a-z][a-z0-9_/-]*", branch) and not ini.NO_NAMES.fullmatch(branch) else f'"{branch}"'
    )
    result = result.replace(f"./{repo.FLEET}", f"./{fleet}")
    for form, main in OF_BRANCH:
        result = result.replace(form.format(main, main, main), form.format(branch, word, branch))
    return result


def names_machine(line: str) -> bool:
    """Whether a line of cd.yml is there once for each machine."""
    return bool(re.match(r" .*(scheduler|frontend|SCHEDULER_|FRONTEND_)", line)) and "'scheduler frontend'" not in line


def for_machines(block: Sequence[str], machines: Sequence[ini.Machine]) -> list[str]:
    """The lines that are there for each machine, from those of `scheduler`."""
    pattern = [line.replace(" # (machine)", "") for line in block if "scheduler" in line.lower()]
    mark = " # (machine)" if any("# (machine)" in line for line in block) else ""
    result = [for_machine(line, machine) for machine in machines for line in pattern]
    return [result[0] + mark, *result[1:]] if result else []


def for_machine(line: str, machine: ini.Machine) -> str:
    entry = "{ machine: scheduler, roles: scheduler }"
    if entry in line:
        return line.replace(entry, f"{{ machine: {machine.name}, roles: {' '.join(machine.roles)} }}")
    line = re.sub(r"\bscheduler\b", machine.name, line)
    return line.replace("SCHEDULER_", machine.name.upper().replace("-", "_") + "_")


# --- what becomes the application's own


def own(
    application: repo.Application, found: looks.Found, settled: ini.Settled, more: Mapping[str, str]
) -> list[Wanted]:
    """A first version of the files that are the team's from then on."""
    files = {"machines.ini": ini.machines_text(settled.machines), ".env.example": env.text_of(found, more)}
    lacking = ini.lacking(application, found, settled)
    if lacking and "deploy.ini" not in application.files:
        files["deploy.ini"] = ini.whole(lacking)
    if settled.web and settled.web.slots == "gunicorn@.service" and found.application:
        files["gunicorn.conf.py"] = gunicorn(found)
    has_site = any(re.fullmatch(r"deploy/nginx/[^/]+\.conf", path) for path in application.tree)
    if settled.web and "nginx.service" in settled.web.reload and not has_site:
        name = re.sub(r"[^a-z0-9]+", "-", application.path.name.lower()).strip("-") or "site"
        files[f"deploy/nginx/{name}.conf"] = nginx(application, found, settled)
    return [Wanted(path, text, is_own=True) for path, text in files.items()]


def gunicorn(found: looks.Found) -> str:
    text = (repo.EXAMPLE / "gunicorn.conf.py").read_text(encoding="utf-8")
    more = "" if not found.is_asgi else 'worker_class = "uvicorn_worker.UvicornWorker"\n'
    more += f'chdir = "{found.folder}"\n' if found.folder else ""
    return text.replace('wsgi_app = "mysite.wsgi:application"\n', f'wsgi_app = "{found.application}"\n{more}')


def nginx(application: repo.Application, found: looks.Found, settled: ini.Settled) -> str:
    """The site of the example, with the paths of this application."""
    text = (repo.EXAMPLE / "deploy/nginx/board.conf").read_text(encoding="utf-8")
    static_url, media_url = url(found, "STATIC_URL", "/static/"), url(found, "MEDIA_URL", "")
    static, media = (found_block(text, name) for name in ("static", "media"))
    new = static.replace("/static/", static_url).replace(
        "/staticfiles/", f"/{static_folder(application, found, settled)}/"
    )
    if "Manifest" not in str(found.setting("STORAGES", "")) + str(found.setting("STATICFILES_STORAGE", "")):
        new = re.sub(r"(?m)^        (#|expires|add_header).*\n", "", new)
    text = text.replace(static, new if static_url and found.static_root != "" else "")
    is_local = found.setting("MEDIA_ROOT", "") != "" and media_url not in ("", "/")
    return text.replace(media, media.replace("location /media/", f"location {media_url}") if is_local else "")


def found_block(text: str, name: str) -> str:
    match = re.search(rf"(?m)^    location /{name}/ \{{\n(?:.*\n)*?    \}}\n\n", text)
    assert match, f"the example's site has no location /{name}/"
    return match[0]


def url(found: looks.Found, name: str, default: str) -> str:
    """The path below which static files are asked for; empty if another server has them."""
    value = plain(found.setting(name, default))
    if not isinstance(value, str):
        return "/" + name.partition("_")[0].lower() + "/"
    if "://" in value or not re.fullmatch(r"[\w./-]*", value):
        return ""
    return f"/{value.strip('/')}/" if value.strip("/") else ""


def static_folder(application: repo.Application, found: looks.Found, settled: ini.Settled) -> str:
    """What collectstatic provides, as nginx finds it below /srv/app/current."""
    root = plain(found.static_root)
    if isinstance(root, Place) and root.is_inside:
        return root.path
    return f"{found.folder}/staticfiles".lstrip("/")

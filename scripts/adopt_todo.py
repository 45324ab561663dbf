"""What only a person can do, each with the lines to paste or the commands to run."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import adopt_env as env
import adopt_ini as ini
import adopt_looks as looks
import adopt_repo as repo
from adopt_values import UNKNOWN, Asked, Place, plain
from deployer import config, shapes, steps

HEALTHZ = """\
from django.db import connection
from django.http import HttpResponse
from django.urls import path

def healthz(request):
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    return HttpResponse("ok", content_type="text/plain")

urlpatterns = [path("healthz", healthz), *urlpatterns]
"""
WITH_LOGIN = "from django.contrib.auth.decorators import login_not_required\n"
SCHEDULER = """\
import signal
import threading

from django.core.management.base import BaseCommand

class Command(BaseCommand):
    help = "Run the periodic jobs, until SIGTERM; a job that runs is done first."

    def handle(self, *args, **options):
        stop = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: stop.set())
        while not stop.is_set():
            # the jobs come here
            stop.wait(60)
"""


class Task(NamedTuple):
    """One thing to do: what and why, where the lines go, the lines, and the variables that they ask for."""

    title: str
    where: str = ""
    lines: str = ""
    env: Mapping[str, str] = {}


def tasks(application: repo.Application, found: looks.Found, settled: ini.Settled) -> list[Task]:
    """All that is to be done before the first deploy can succeed, in the order in which it is best done."""
    parts: list[Iterable[Task]] = [
        settings_there(found),
        gunicorn(application, found, settled),
        packages(application, found, settled),
    ]
    if found.settings_path and not found.broken:
        parts += [view(found, settled), in_settings(found, settled)]
    parts += [scheduler(found, settled), committed(application), own_files(application, found, settled)]
    todo = [task for part in parts for task in part]
    return [*todo, *environment(application, found, asked_by(todo))]


def asked_by(todo: Sequence[Task]) -> dict[str, str]:
    """The variables that the lines of tasks will read."""
    return {name: value for task in todo for name, value in task.env.items()}


def settings_there(found: looks.Found) -> Iterator[Task]:
    for complaint in found.broken:
        yield Task(f"{complaint}: mend that, and run this again: what the settings say is not known now")
    if not found.settings_path and not found.broken:
        named = f"{found.settings} is no module of this repository" if found.settings else "manage.py names no settings"
        yield Task(f"{named}: write DJANGO_SETTINGS_MODULE with the right one into shared/.env")


# --- packages


def gunicorn(application: repo.Application, found: looks.Found, settled: ini.Settled) -> Iterator[Task]:
    """What serves, and the file that says what it serves."""
    if not settled.web or settled.web.slots != "gunicorn@.service":
        return
    if not found.application:
        yield Task('there is no wsgi.py and no asgi.py: gunicorn.conf.py needs wsgi_app = "MODULE:NAME" of one')
    packages = ["gunicorn", *(["uvicorn-worker"] if found.is_asgi else [])]
    files = requirements(application, ini.effective(application, found, settled)) or found.locks
    for package in packages:
        if files and not looks.has_package(application, found, package, files):
            yield Task(
                f"{package} is not among the packages of {files[0]}", "run", add_command(application, files[0], package)
            )
    text = application.text("gunicorn.conf.py")
    if text and found.application and not re.search(r"(?m)^wsgi_app\s*=", text):
        yield Task(
            "gunicorn.conf.py does not say what is served",
            "at the end of gunicorn.conf.py",
            f'wsgi_app = "{found.application}"\n',
        )
    if text and found.folder and not re.search(r"(?m)^(chdir|pythonpath)\s*=", text):
        yield Task(
            "gunicorn.conf.py does not say where that lies",
            "at the end of gunicorn.conf.py",
            f'chdir = "{found.folder}"\n',
        )


def requirements(application: repo.Application, text: str) -> tuple[str, ...]:
    """The file that a step of pip names in this deploy.ini."""
    for step in config.parse(text, "deploy.ini").steps:
        if step.name == "python-pip" and "inputs" not in step.by_default:
            return tuple(path for path in step.inputs if path in application.files)
    return ()


def add_command(application: repo.Application, lock: str, package: str) -> str:
    """What adds a package to a lock file."""
    folder, name = os.path.split(lock)
    cd = f"cd {folder} && " if folder else ""
    commands = {
        "poetry.lock": f"{cd}poetry add {package}",
        "uv.lock": f"{cd}uv add {package}",
        "pdm.lock": f"{cd}pdm add {package}",
        "Pipfile.lock": f"{cd}pipenv install {package}",
    }
    if name in commands:
        return commands[name] + "\n"
    source = re.sub(r"\.txt$", ".in", lock)
    if source in application.files:
        return f"echo {package} >> {source}\npip-compile {source}\n"
    return f"echo {package} >> {lock}\n"


def packages(application: repo.Application, found: looks.Found, settled: ini.Settled) -> list[Task]:
    """Lock files, and all else for which a machine would refuse the commit."""
    text = ini.effective(application, found, settled)
    lines = dict.fromkeys(looks.complaint(application, text, machine.roles) for machine in settled.machines)
    found_ones = [Task(line, *lock_command(application, found, line)) for line in lines if line]
    applying = steps.applying(looks.commit_of(application, text), settled.roles)
    if not any(".venv" in step.provides for step in applying) and not any("lock" in task.title for task in found_ones):
        if any(step.name in shapes.STEPS["python"] for step in settled.settings.steps):
            run = "python -m pip freeze > requirements.txt\n"
            found_ones.append(Task("no file says which packages to install", "run, where you work on it", run))
    return found_ones


def lock_command(application: repo.Application, found: looks.Found, line: str) -> tuple[str, str]:
    """Which command makes the lock file that a complaint is about."""
    folder = found.folder
    for path in dict.fromkeys(("pyproject.toml", shapes.join(folder, "pyproject.toml"))):
        if line.startswith(f"{path} is in the commit but"):
            cd = f"cd {os.path.dirname(path)} && " if os.path.dirname(path) else ""
            return "run", f"{cd}poetry lock\n" if "[tool.poetry" in application.text(path) else f"{cd}uv lock\n"
    if "package.json is in the commit but" in line:
        where = os.path.dirname(line.split(" ", 1)[0])
        return "run", f"{f'cd {where} && ' if where else ''}npm install --package-lock-only\n"
    if match := re.match(r"(\S*requirements\S*)\.in is in the commit but", line):
        return "run", f"pip-compile {match[1]}.in\n"
    return "", ""


# --- the health view


def view(found: looks.Found, settled: ini.Settled) -> Iterator[Task]:
    role = settled.web
    if not role or "/healthz" not in role.health or found.health:
        return
    lines = HEALTHZ
    middleware = found.setting("MIDDLEWARE", [])
    if isinstance(middleware, list) and looks.LOGIN in middleware:
        lines = WITH_LOGIN + lines.replace("def healthz", "@login_not_required\ndef healthz")
    where = (
        f"at the end of {found.urls_path}" if found.urls_path else "at the end of the module that ROOT_URLCONF names"
    )
    why = "no view answers whether the application works: a deploy asks for /healthz before any user comes"
    yield Task(why, where, lines)


# --- settings


def in_settings(found: looks.Found, settled: ini.Settled) -> Iterator[Task]:
    where = f"at the end of {found.settings_path}"
    if isinstance(found.setting("SECRET_KEY", None), str):
        lines = 'import os\n\nSECRET_KEY = os.environ.get("SECRET_KEY", SECRET_KEY)\n'
        yield Task(
            "SECRET_KEY is in the repository: whoever can read that can sign in",
            where,
            lines,
            {"SECRET_KEY": "change-me"},
        )
    if found.setting("DEBUG", False) is True:
        lines = 'import os\n\nDEBUG = os.environ.get("DEBUG", "1") == "1"\n'
        yield Task("DEBUG is on, on machines too", where, lines, {"DEBUG": "0"})
    if settled.web:
        yield from hosts(found, where)
        yield from redirect(found, settled.web, where)
        yield from static_root(found, where)
        yield from media_root(found, settled, where)
    yield from sqlite(found, where)


def hosts(found: looks.Found, where: str) -> Iterator[Task]:
    value = found.setting("ALLOWED_HOSTS", [])
    if isinstance(value, list) and not value:
        lines = 'import os\n\nALLOWED_HOSTS = os.environ.get("ALLOWED_HOSTS", "localhost 127.0.0.1").split()\n'
        example = " ".join(env.EXAMPLE_HOSTS)
        yield Task(
            "ALLOWED_HOSTS is empty: every request would be answered with 400", where, lines, {"ALLOWED_HOSTS": example}
        )


def redirect(found: looks.Found, role: config.Role, where: str) -> Iterator[Task]:
    is_asked_so = any(name.lower().startswith("x-forwarded") for name, _ in role.health_headers)
    if ini.redirects(found) and not ini.proxy_header(found) and not is_asked_so:
        path = re.escape((found.health_path or "/healthz").lstrip("/")).replace("\\-", "-")
        lines = f'SECURE_REDIRECT_EXEMPT = [r"^{path}$"]\n'
        yield Task("SECURE_SSL_REDIRECT would answer a deploy's question for its health with a redirect", where, lines)


def base(found: looks.Found) -> tuple[str, str]:
    """How the settings name the folder of manage.py: the import that it takes, and the words."""
    place = found.setting("BASE_DIR")
    if place == Place(found.folder or "."):
        return "from pathlib import Path\n\n", "Path(BASE_DIR)"
    levels = len(posixpath.relpath(found.settings_path, found.folder or ".").split("/")) - 1
    return "from pathlib import Path\n\n", f"Path(__file__).resolve().parents[{levels}]"


def static_root(found: looks.Found, where: str) -> Iterator[Task]:
    apps, value = found.setting("INSTALLED_APPS"), plain(found.static_root)
    if isinstance(apps, list) and UNKNOWN not in apps and "django.contrib.staticfiles" not in apps:
        return
    if value is None or value == "" or (isinstance(value, Place) and not value.is_inside):
        first, folder = base(found)
        yield Task(
            "STATIC_ROOT says no folder of the release, for collectstatic and nginx",
            where,
            f'{first}STATIC_ROOT = {folder} / "staticfiles"\n',
        )


def media_root(found: looks.Found, settled: ini.Settled, where: str) -> Iterator[Task]:
    """Uploads have to lie in shared/: all else goes with its release, and services may not write there."""
    value = found.setting("MEDIA_ROOT", None)
    if isinstance(value, Place) and value.is_inside and not is_shared(value, settled):
        lines = 'import os\n\nMEDIA_ROOT = os.environ.get("MEDIA_ROOT", MEDIA_ROOT)\n'
        why = f"uploads would go to {value.path} in the release, which is replaced by the next one"
        yield Task(why, where, lines, {"MEDIA_ROOT": "/srv/app/shared/media"})


def is_shared(place: Place, settled: ini.Settled) -> bool:
    return any(f"{place.path}/".startswith(path.rstrip("/") + "/") for path in settled.settings.shared)


def sqlite(found: looks.Found, where: str) -> Iterator[Task]:
    databases = found.setting("DATABASES", {})
    default = databases.get("default") if isinstance(databases, dict) else None
    engine = plain(default.get("ENGINE", "")) if isinstance(default, dict) else ""
    name: Any = env.database_name(found)
    if engine == "django.db.backends.sqlite3" and not isinstance(name, Asked) and isinstance(name, (Place, str)):
        if isinstance(name, Place) and not name.is_inside:
            return
        shown = name.path if isinstance(name, Place) else name
        lines = (
            'import os\n\nDATABASES["default"]["NAME"] = os.environ.get("SQLITE_PATH", DATABASES["default"]["NAME"])\n'
        )
        why = f"the database {shown} lies in the release and would be lost with it: it goes to shared/data"
        yield Task(why, where, lines, {"SQLITE_PATH": "/srv/app/shared/data/db.sqlite3"})


# --- the scheduler


def scheduler(found: looks.Found, settled: ini.Settled) -> Iterator[Task]:
    role = settled.settings.roles.get("scheduler")
    if not role or "scheduler" not in settled.roles or found.programs or role.services != ("scheduler.service",):
        return
    apps = [path for path in found.apps if path]
    place = shapes.join(found.folder, f"{(apps or ['APP'])[0]}/management/commands/run_scheduler.py")
    first = "" if apps else ", APP being an application (`manage.py startapp APP`) that INSTALLED_APPS names"
    machines = " and ".join(machine.name for machine in settled.machines if "scheduler" in machine.roles)
    yield Task(
        f"the role scheduler of {machines} runs `manage.py run_scheduler`, and there is no such command: write it, or"
        " if nothing is to run there take the role out of machines.ini (then: adopt.py PATH --write)",
        f"into {place} (with an empty __init__.py in management/ and in management/commands/){first}", SCHEDULER,
    )  # fmt: skip


# --- files


def committed(application: repo.Application) -> Iterator[Task]:
    for path in application.tree:
        if os.path.basename(path) == ".env" and path in application.tracked:
            yield Task(
                f"{path} is in the repository, where no secret should be",
                "run",
                f"git rm --cached {path}\necho {path} >> .gitignore\n",
            )


def own_files(application: repo.Application, found: looks.Found, settled: ini.Settled) -> Iterator[Task]:
    """What stands in files that are the application's own, and so are not written again."""
    if "deploy.ini" in application.files:
        for section, keys in ini.lacking(application, found, settled).items():
            there = f"[{section}]\n" in settled.text
            lines = ini.text_of({section: keys}).partition("\n")[2] if there else ini.text_of({section: keys})
            where = f"under [{section}] in deploy.ini" if there else "at the end of deploy.ini"
            yield Task(f"deploy.ini does not say it: {', '.join(keys)} of [{section}]", where, lines)
    for path in application.tree:
        if settled.web and re.fullmatch(r"deploy/nginx/[^/]+\.conf", path):
            if ".socket" not in application.text(path):
                lines = "proxy_pass http://unix:/srv/app/current/.socket;\n"
                yield Task(f"{path} does not pass requests to the instance that serves", f"into {path}", lines)


def environment(application: repo.Application, found: looks.Found, more: Mapping[str, str]) -> Iterator[Task]:
    """Variables that an .env.example of the application's own does not name."""
    text = application.text(".env.example")
    wanted = {name: value for name, value in env.needed(found, more).items() if name not in env.named_in(text)}
    if ".env.example" in application.files and wanted:
        lines = "".join(f"{name}={env.quoted(value)}\n" for name, value in wanted.items())
        yield Task(".env.example does not name all that a machine needs", "at the end of .env.example", lines)

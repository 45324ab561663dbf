"""adopt.py: applications of many shapes, what it finds in them, writes into them and leaves to a person."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from shapes import toolbox
from small_app import REPOSITORY, App
from workflow import parse

ADOPT = REPOSITORY / "scripts/adopt.py"
CD = ".github/workflows/cd.yml"
FLEET = ".github/workflows/fleet.yml"
MANAGE = """\
import os, sys
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
from django.core.management import execute_from_command_line
execute_from_command_line(sys.argv)
"""
WSGI = """\
import os
from django.core.wsgi import get_wsgi_application
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
application = get_wsgi_application()
"""
SETTINGS = """\
import os
from pathlib import Path

BASE_DIR = Path(__file__).resolve().parent.parent
SECRET_KEY = os.environ["SECRET_KEY"]
ALLOWED_HOSTS = os.environ.get("ALLOWED_HOSTS", "localhost 127.0.0.1").split()
INSTALLED_APPS = ["django.contrib.staticfiles", "board"]
ROOT_URLCONF = "mysite.urls"
WSGI_APPLICATION = "mysite.wsgi.application"
DATABASES = {"default": {"ENGINE": "django.db.backends.postgresql", "HOST": os.environ.get("DB_HOST", "127.0.0.1")}}
STATIC_URL = "static/"
STATIC_ROOT = BASE_DIR / "staticfiles"
"""
PRODUCTION = """\
from .base import *
import os
SENTRY = os.environ["SENTRY_DSN"]
SECURE_SSL_REDIRECT = True
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
"""
URLS = """\
from django.urls import path
from board import views
urlpatterns = [path("", views.index), path("healthz", views.healthz)]
"""
READY = {  # an application that lacks nothing
    "manage.py": MANAGE,
    "mysite/__init__.py": "",
    "mysite/settings.py": SETTINGS,
    "mysite/urls.py": URLS,
    "mysite/wsgi.py": WSGI,
    "board/__init__.py": "",
    "board/management/commands/run_scheduler.py": "",
    "requirements.txt": "Django==5.2\ngunicorn==23.0\n",
}


class Said(NamedTuple):
    """How a run of adopt.py ended."""

    code: int
    out: str

    def task(self, words: str) -> str:
        """The one thing to do that has these words, with its lines."""
        tasks = re.split(
            r"^ *\d+\. ", self.out.partition("What only you can do\n")[2].partition("And then\n")[0], flags=re.M
        )
        (found,) = [task for task in tasks if words in " ".join(task.split())]
        return found


class Adopted(App):
    """An application's repository, and adopt.py run for it."""

    def put(self, files: dict[str, Any]) -> Adopted:
        self.commit(files)
        return self

    def adopt(self, *arguments: str, code: int = 0) -> Said:
        """Run in this process, for speed, as the program runs."""
        adopt = importlib.import_module("adopt")
        errors = importlib.import_module("deployer.errors")
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            try:
                found = adopt.main_inner([str(self.origin), *arguments])
            except errors.UsageError as error:
                print(error)
                found = 2
        assert found == code, out.getvalue()
        return Said(found, out.getvalue())

    def text(self, path: str) -> str:
        return (self.origin / path).read_text()

    def state(self) -> dict[str, tuple[int, bytes]]:
        """Every file beside git's own, with its mode and content."""
        paths = [path for path in self.origin.rglob("*") if path.is_file() and ".git" not in path.parts[:-1]]
        return {str(path): (path.stat().st_mode, path.read_bytes()) for path in paths}


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Adopted:
    monkeypatch.syspath_prepend(str(REPOSITORY / "scripts"))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    return Adopted(tmp_path)


@pytest.fixture
def ready(app: Adopted) -> Adopted:
    return app.put(READY)


# What is written


def test_an_application_that_lacks_nothing_gets_the_files_and_nothing_else(ready: Adopted) -> None:
    before = ready.state()
    said = ready.adopt("--diff")
    assert ready.state() == before, "without --write nothing is written"
    assert "+wsgi_app = " in said.out
    ready.adopt("--check", code=1)
    ready.adopt("--write")
    for path in ("scripts/deploy_machine.py", "scripts/deployer/defaults.ini", "scripts/fleet_record.py", CD, FLEET):
        assert ready.text(path) == (REPOSITORY / path).read_text()
    for path in (REPOSITORY / "systemd").iterdir():
        assert ready.text(f"systemd/{path.name}") == path.read_text()
    assert os.access(ready.origin / "scripts/setup_machine.py", os.X_OK)
    names = {path.name for path in ready.origin.glob("*")} - {path.partition("/")[0] for path in READY}
    assert names == {
        ".git",
        ".github",
        ".env.example",
        "deploy",
        "gunicorn.conf.py",
        "machines.ini",
        "scripts",
        "systemd",
    }
    assert not [*ready.origin.glob("scripts/adopt*")]
    assert ready.adopt("--check").out.endswith("Nothing in the code is left for you to do\n")


def test_the_example_lacks_nothing(app: Adopted) -> None:
    shutil.copytree(REPOSITORY / "examples/django", app.origin, dirs_exist_ok=True)
    before = app.state()
    app.put({}).adopt("--write")
    after = app.state()
    assert {path: after[path] for path in before} == before
    assert not (app.origin / "systemd/celery-worker.service").exists()
    app.adopt("--check")


def test_a_second_write_changes_nothing(ready: Adopted) -> None:
    ready.adopt("--write")
    written = ready.state()
    assert "Nothing to write" in ready.adopt("--write", "--replace").out
    assert ready.state() == written


def test_what_became_the_teams_own_is_not_written_again(ready: Adopted) -> None:
    ready.adopt("--write")
    own = ("gunicorn.conf.py", ".env.example", "deploy/nginx/origin.conf")
    for path in own:
        (ready.origin / path).write_text(ready.text(path) + "# ours\n")
    ready.adopt("--write", "--replace")
    assert all("# ours" in ready.text(path) for path in own)
    ready.adopt("--check")


# What cannot be begun


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--machine", "web"], "write NAME=ROLE"),
        (["--machine", "all=frontend"], "no name for a machine"),
        (["--machine", "a-b=frontend", "--machine", "A-B=scheduler"], "the same names"),
        (["--machine", "web=nothing"], "unknown role 'nothing'"),
        (["--app-dir", "../x"], "name a folder of the repository"),
        (["--app-dir", "board"], "board: there is no manage.py"),
        (["--branch", "a b"], "is not a branch name"),
        (["--check", "--write"], "use one of them"),
        (["--replace"], "--replace is for --write"),
        (["--wrong"], "unrecognized arguments"),
    ],
)
def test_wrong_arguments_end_in_one_line(ready: Adopted, arguments: list[str], says: str) -> None:
    before = ready.state()
    said = ready.adopt(*arguments, code=2)
    assert says in said.out and said.out.count("\n") == 1
    assert ready.state() == before


def test_what_is_no_django_application_is_told(app: Adopted, tmp_path: Path) -> None:
    assert "has no manage.py" in app.put({"README": ""}).adopt(code=2).out
    app.put({"shop/manage.py": MANAGE, "blog/manage.py": MANAGE})
    assert "blog/manage.py and shop/manage.py: name one with --app-dir" in app.adopt(code=2).out
    app.adopt("--app-dir", "shop", "--write")
    assert "[step migrate]\ncwd = shop\n" in app.text("deploy.ini")
    app.adopt("--app-dir", "shop")
    assert "shop" in app.adopt().out, "deploy.ini says it from now on"
    (tmp_path / "broken/.git").mkdir(parents=True)
    wrong = {"none": "no such directory", "broken": "status says why", ".": "not in a git repository"}
    for place, says in ((tmp_path / name, says) for name, says in wrong.items()):
        app.origin = place
        assert says in app.adopt(code=2).out
    app.origin = tmp_path / "origin/shop"
    assert "name that, with --app-dir shop" in app.adopt(code=2).out
    app.origin = REPOSITORY
    assert "is deploy-machine itself" in app.adopt(code=2).out


def test_it_runs_as_a_program(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(ADOPT), str(tmp_path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"adopt.py: {tmp_path} is not in a git repository: git init {tmp_path}\n"


def test_nothing_is_written_through_a_link(ready: Adopted, tmp_path: Path) -> None:
    (ready.origin / "systemd").symlink_to(tmp_path)
    assert "systemd must be a folder" in ready.adopt("--write", code=2).out
    assert not (ready.origin / "scripts").exists()
    (ready.origin / "systemd").unlink()
    (ready.origin / "gunicorn.conf.py").symlink_to(tmp_path / "elsewhere")
    assert "gunicorn.conf.py is no regular file" in ready.adopt("--write", code=2).out
    assert not (tmp_path / "elsewhere").exists()


# Shapes


@pytest.mark.parametrize(
    ("files", "command"),
    [
        ({"poetry.lock": '[[package]]\nname = "django"\n'}, "poetry add gunicorn"),
        ({"uv.lock": '[[package]]\nname = "django"\n'}, "uv add gunicorn"),
        ({"requirements.txt": "django\ngunicorn-exporter\n"}, "echo gunicorn >> requirements.txt"),
        ({"requirements.txt": "django\n", "requirements.in": "django\n"}, "pip-compile requirements.in"),
        (
            {"requirements/base.txt": "django\n", "requirements/prod.txt": "-r base.txt\n"},
            "echo gunicorn >> requirements/prod.txt",
        ),
    ],
)
def test_gunicorn_is_missed_in_every_kind_of_lock_file(app: Adopted, files: dict[str, str], command: str) -> None:
    app.put({**without("requirements.txt"), **files})
    assert command in app.adopt().task("gunicorn is not among the packages")


@pytest.mark.parametrize(
    "files",
    [
        {"poetry.lock": '[[package]]\nname = "gunicorn"\n'},
        {"uv.lock": '[[package]]\nname = "gunicorn"\n'},
        {"requirements.txt": "-r requirements/base.txt\n", "requirements/base.txt": "Gunicorn[gevent]>=20 # serves\n"},
    ],
)
def test_gunicorn_is_found_in_every_kind_of_lock_file(app: Adopted, files: dict[str, str]) -> None:
    app.put({**without("requirements.txt"), **files})
    assert "gunicorn is not" not in app.adopt().out


def without(*names: str) -> dict[str, str]:
    return {path: text for path, text in READY.items() if path not in names}


@pytest.mark.parametrize(
    ("files", "command"),
    [
        ({"pyproject.toml": "[tool.poetry]\nname = 'x'\n"}, "poetry lock"),
        ({"pyproject.toml": "[project]\nname = 'x'\n"}, "uv lock"),
        ({"requirements.in": "django\n"}, "pip-compile requirements.in"),
        (
            {"requirements.txt": "django\ngunicorn", "package.json": '{"dependencies": {"a": "1"}}'},
            "npm install --package-lock-only",
        ),
        ({}, "pip freeze > requirements.txt"),
    ],
)
def test_where_no_lock_file_is_the_command_that_makes_one(app: Adopted, files: dict[str, str], command: str) -> None:
    said = app.put({**without("requirements.txt"), **files}).adopt()
    assert command in said.out.partition("What only you can do")[2]


def test_backend_and_frontend_in_folders(app: Adopted) -> None:
    files = {f"backend/{path}": text for path, text in READY.items()}
    settings = files["backend/mysite/settings.py"] + 'STATICFILES_DIRS = [BASE_DIR.parent / "frontend" / "dist"]\n'
    package = {"frontend/package.json": '{"scripts": {"build": "vite build"}}', "frontend/vite.config.js": ""}
    app.put({**files, **package, "backend/mysite/settings.py": settings}).adopt("--write")
    assert app.text("deploy.ini").endswith("\n[step build]\nprovides = frontend/dist\n"), "all else works by itself"
    assert 'wsgi_app = "mysite.wsgi:application"\nchdir = "backend"\n' in app.text("gunicorn.conf.py")
    assert "\nWorkingDirectory=/srv/app/current/backend\n" in app.text("systemd/scheduler.service")
    assert "alias /srv/app/current/backend/staticfiles/;" in app.text("deploy/nginx/origin.conf")
    app.adopt("--check")


@pytest.mark.parametrize(
    ("files", "line"),
    [
        ({"package.json": "vite build", "vite.config.ts": 'export default {build: {outDir: "web/out"}}'}, "web/out"),
        ({"package.json": "vite build", "vite.config.js": ""}, "dist"),
        ({"package.json": "tailwindcss -i a.css -o static/css/app.css", "static/css/b.css": ""}, "static/css/app.css"),
        ({"package.json": "esbuild a.js --outdir=out"}, "out"),
        ({"package.json": "make something"}, ""),
    ],
)
def test_where_a_build_leaves_what_it_makes(app: Adopted, files: dict[str, str], line: str) -> None:
    package = f'{{"scripts": {{"build": "{files["package.json"]}"}}}}'
    said = app.put({**READY, **files, "package.json": package}).adopt("--write")
    assert (f"fills {line or 'static/dist (a guess'}") in said.out
    assert "deploy.ini" in said.out and (app.origin / "deploy.ini").exists() == bool(line)
    assert not line or f"[step build]\nprovides = {line}\n" in app.text("deploy.ini")
    app.adopt("--check")


def test_settings_for_machines_among_others(app: Adopted) -> None:
    base = SETTINGS.replace("parent.parent", "parents[2]").replace('["SECRET_KEY"]', '.get("SECRET_KEY", "insecure")')
    files = {
        "mysite/settings/__init__.py": "",
        "mysite/settings/base.py": base,
        "mysite/settings/dev.py": "from .base import *\nDEBUG = True\n",
        "mysite/settings/prod.py": PRODUCTION,
    }
    manage = MANAGE.replace("mysite.settings", "mysite.settings.dev")
    wsgi = WSGI.replace("mysite.settings", "mysite.settings.dev") + '# os.environ["DJANGO_SETTINGS_MODULE"] = "old"\n'
    app.put({**without("mysite/settings.py"), **files, "manage.py": manage, "mysite/wsgi.py": wsgi}).adopt("--write")
    variables = dotenv(app.text(".env.example"))
    assert variables == {
        "DJANGO_SETTINGS_MODULE": "mysite.settings.prod", "SECRET_KEY": "change-me", "SENTRY_DSN": "change-me",
        "ALLOWED_HOSTS": "127.0.0.1 localhost uat.example.com",
    }  # fmt: skip
    assert "[role frontend]\nhealth_headers = X-Forwarded-Proto: https\n" in app.text("deploy.ini")
    app.adopt("--check")


def dotenv(text: str) -> dict[str, str]:
    dropped: list[int] = []
    found = importlib.import_module("deployer.dotenv").parse(text, dropped)
    assert not dropped
    return dict(found)


def test_a_redirect_to_https_without_a_proxy_header_is_to_be_exempted(app: Adopted) -> None:
    app.put({**READY, "mysite/settings.py": SETTINGS + "SECURE_SSL_REDIRECT = True\n"})
    assert 'SECURE_REDIRECT_EXEMPT = [r"^healthz$"]' in app.adopt().task("with a redirect")
    exempt = SETTINGS + 'SECURE_SSL_REDIRECT = True\nSECURE_REDIRECT_EXEMPT = ["^healthz$"]\n'
    exempt += 'SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")\n'
    app.put({"mysite/settings.py": exempt}).adopt("--write")
    app.adopt("--check")
    assert not (app.origin / "deploy.ini").exists()


def test_what_is_for_development_or_on_a_condition_does_not_count(app: Adopted) -> None:
    settings = SETTINGS + textwrap.dedent("""
        if DEBUG:
            MEDIA_ROOT = BASE_DIR / "uploads"
        if os.path.exists("local"):
            SECRET_KEY = "for a laptop"
        """)
    app.put({**READY, "mysite/settings.py": settings}).adopt("--write")
    app.adopt("--check")


def test_hosts_that_only_the_code_can_change_are_asked_as_nginx_would(app: Adopted) -> None:
    settings = re.sub("(?m)^ALLOWED_HOSTS.*$", 'ALLOWED_HOSTS = ["board.example.com"]', SETTINGS)
    app.put({**READY, "mysite/settings.py": settings}).adopt("--write")
    assert "health_headers = Host: board.example.com\n" in app.text("deploy.ini")


def test_asgi_alone(app: Adopted) -> None:
    settings = SETTINGS.replace("WSGI_APPLICATION", "ASGI_APPLICATION").replace("wsgi", "asgi")
    app.put({**without("mysite/wsgi.py"), "mysite/settings.py": settings, "mysite/asgi.py": WSGI})
    said = app.adopt("--write")
    assert "echo uvicorn-worker >> requirements.txt" in said.task("uvicorn-worker is not among the packages")
    assert 'wsgi_app = "mysite.asgi:application"\nworker_class = "uvicorn_worker.UvicornWorker"\n' in app.text(
        "gunicorn.conf.py"
    )


def test_celery_and_a_procfile(app: Adopted) -> None:
    files = {
        "mysite/celery.py": 'from celery import Celery\napp = Celery("mysite")\napp.conf.beat_schedule = {}\n',
        "Procfile": "web: gunicorn mysite.wsgi:application --bind :$PORT\nworker: celery -A mysite worker\n",
    }
    app.put({**without("board/management/commands/run_scheduler.py"), **files}).adopt("--write")
    beat, worker = (app.text(f"systemd/{name}.service") for name in ("scheduler", "celery-worker"))
    start = "/srv/app/shared/.env \\\n    /srv/app/current/.venv/bin/celery --app mysite"
    assert f"{start} beat --loglevel info --pidfile= --schedule /srv/app/shared/data/celerybeat-schedule\n" in beat
    assert f"{start} worker --loglevel info\n" in worker
    assert "[role scheduler]\nservices = scheduler.service celery-worker.service\n" in app.text("deploy.ini")
    for unit in (beat, worker):
        verify_unit(app.origin.parent, unit)
    app.adopt("--check")


def verify_unit(folder: Path, text: str) -> None:
    path = folder / "x.service"
    path.write_text(re.sub(r"/srv/app/current/.venv/bin/\w+", "/bin/true", text))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"board/management/commands/start_scheduler.py": ""}, "python manage.py start_scheduler"),
        ({"board/management/commands/check_scheduler.py": ""}, ""),
        ({"Procfile": "clock: python manage.py tick --fast\n"}, "python manage.py tick --fast"),
        ({"Procfile": "clock: python manage.py tick $FAST | tee log\n"}, "python manage.py tick"),
        ({"mysite/settings.py": SETTINGS + 'INSTALLED_APPS += ["django_q"]\n'}, "python manage.py qcluster"),
    ],
)
def test_what_looks_like_a_scheduler(app: Adopted, files: dict[str, str], words: str) -> None:
    said = app.put({**without("board/management/commands/run_scheduler.py"), **files}).adopt("--write")
    ours = (REPOSITORY / "systemd/scheduler.service").read_text()
    wanted = ours.replace("python manage.py run_scheduler", words) if words else ours
    assert app.text("systemd/scheduler.service") == wanted.replace(
        "manage.py run_scheduler", words.partition(" ")[2] or "manage.py run_scheduler"
    )
    if not words:
        assert "into board/management/commands/run_scheduler.py" in said.task("there is no such command")


def test_where_a_scheduler_goes_if_there_is_no_application_yet(app: Adopted) -> None:
    fresh = SETTINGS.replace(', "board"]', "]")
    said = app.put({**without("board/management/commands/run_scheduler.py"), "mysite/settings.py": fresh}).adopt()
    assert "into APP/management/commands/run_scheduler.py" in said.task("there is no such command")
    assert "(`manage.py startapp APP`) that INSTALLED_APPS names" in said.task("there is no such command")


def test_no_scheduler_is_missed_where_no_machine_has_that_role(app: Adopted) -> None:
    app.put(without("board/management/commands/run_scheduler.py")).adopt("--write", "--machine", "web=frontend")
    app.adopt("--check")


@pytest.mark.parametrize(
    ("urls", "path"),
    [
        ('urlpatterns = [path("healthz/", x)]', "/healthz/"),
        ('urlpatterns = [re_path(r"^health/?$", x)]', "/health"),
        ('urlpatterns = [path("ht/", include("health_check.urls"))]', "/ht/"),
        ('urlpatterns = [path("api/", include("board.urls")), path("<x>/health", x)]', "/api/ping"),
    ],
)
def test_a_health_view_elsewhere_is_found(app: Adopted, urls: str, path: str) -> None:
    app.put({**READY, "mysite/urls.py": urls + "\n", "board/urls.py": 'urlpatterns = [path("ping", x)]\n'}).adopt(
        "--write"
    )
    assert f"[role frontend]\nhealth = {path}\n" in app.text("deploy.ini")
    app.adopt("--check")


@pytest.mark.parametrize(
    ("storage", "is_hashed"), [("ManifestStaticFilesStorage", True), ("StaticFilesStorage", False)]
)
def test_only_names_with_a_hash_are_kept_for_a_year(app: Adopted, storage: str, is_hashed: bool) -> None:
    backend = f'STORAGES = {{"staticfiles": {{"BACKEND": "django.contrib.staticfiles.storage.{storage}"}}}}\n'
    app.put({**READY, "mysite/settings.py": SETTINGS + backend}).adopt("--write")
    assert ("immutable" in app.text("deploy/nginx/origin.conf")) == is_hashed


def test_a_login_that_every_view_asks_for_is_not_asked_of_the_health_view(app: Adopted) -> None:
    settings = SETTINGS + 'MIDDLEWARE = ["django.contrib.auth.middleware.LoginRequiredMiddleware"]\n'
    app.put({**READY, "mysite/settings.py": settings, "mysite/urls.py": "urlpatterns = []\n"})
    assert "@login_not_required\n         def healthz(request):" in app.adopt().task("no view answers")


def test_files_and_uploads_elsewhere(app: Adopted) -> None:
    settings = SETTINGS.replace('"staticfiles"', '"public" / "assets"').replace('"static/"', '"/assets/"')
    settings += 'NAME = "uploads"\nMEDIA_URL = f"{NAME}/"\nMEDIA_ROOT = os.path.join(BASE_DIR, "uploads")\n'
    app.put({**READY, "mysite/settings.py": settings})
    said = app.adopt("--write")
    assert "[step collectstatic]\nprovides = public/assets\n" in app.text("deploy.ini")
    site = app.text("deploy/nginx/origin.conf")
    assert "location /assets/ {\n        alias /srv/app/current/public/assets/;\n    }" in site
    assert "location /uploads/ {\n        alias /srv/app/shared/media/;\n" in site
    assert 'os.environ.get("MEDIA_ROOT", MEDIA_ROOT)' in said.task("uploads would go to uploads in the release")
    assert dotenv(app.text(".env.example"))["MEDIA_ROOT"] == "/srv/app/shared/media"


def test_a_database_file_that_would_go_with_its_release(app: Adopted) -> None:
    databases = 'DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": BASE_DIR / "db.sqlite3"}}\n'
    app.put({**READY, "mysite/settings.py": SETTINGS + databases})
    task = app.adopt("--write").task("the database db.sqlite3 lies in the release")
    app.put({"mysite/settings.py": SETTINGS + databases + lines_of(task)})
    app.adopt("--check")
    assert dotenv(app.text(".env.example"))["SQLITE_PATH"] == "/srv/app/shared/data/db.sqlite3"


def lines_of(task: str) -> str:
    """The lines to paste of a thing to do."""
    return textwrap.dedent(
        "".join(line for line in task.splitlines(keepends=True) if line.startswith(" " * 9) or line == "\n")
    )


def test_variables_of_every_reader(app: Adopted) -> None:
    settings = SETTINGS + textwrap.dedent("""
        import dj_database_url, environ
        from decouple import config, Csv
        env = environ.Env(CACHE=(str, "x"))
        A, B, C = env("A_NEEDED"), env.int("B_OPTIONAL", default=3), env("CACHE")
        D, E = config("D_NEEDED"), config("E_OPTIONAL", default='a "b" $c', cast=Csv())
        F = os.getenv("F_OPTIONAL")
        DATABASES["default"] = dj_database_url.config()
        def read(name, default=""):
            return os.environ.get(name, default)
        G = read("G_OPTIONAL")
        if "H_OPTIONAL" in os.environ:
            H = os.environ["H_OPTIONAL"]
        DEBUG = os.environ.get("DEBUG", "True") == "True"
        if not DEBUG:
            I = os.environ["I_NEEDED"]
        if F == "smtp":
            J = os.environ["J_OPTIONAL"]
        def later():
            return os.environ["K_OPTIONAL"]
        """)
    app.put({**READY, "mysite/settings.py": settings}).adopt("--write")
    text = app.text(".env.example")
    found = dotenv(text)
    assert {name for name in found if "NEEDED" in name} == {"A_NEEDED", "D_NEEDED", "I_NEEDED"}
    assert found["DATABASE_URL"].startswith("postgres://") and found["DEBUG"] == "False"
    optional = dotenv(re.sub(r"(?m)^# (?=[A-Z_]+=)", "", text))
    assert {name: optional[name] for name in optional if name not in found} == {
        "B_OPTIONAL": "3", "E_OPTIONAL": 'a "b" $c', "F_OPTIONAL": "", "G_OPTIONAL": "", "H_OPTIONAL": "", "CACHE": "",
        "J_OPTIONAL": "", "K_OPTIONAL": "",
        "DB_HOST": "127.0.0.1",
    }  # fmt: skip
    assert "`export`" in text and "127.0.0.1" in found["ALLOWED_HOSTS"]


def test_an_env_example_of_their_own_is_completed_by_hand(app: Adopted) -> None:
    app.put({**READY, ".env.example": "export SECRET_KEY=x # secret\n", ".env": "SECRET_KEY=real\n"})
    said = app.adopt("--write")
    assert said.task(".env.example does not name").count("=") == 1 and "ALLOWED_HOSTS=" in said.out
    assert app.text(".env.example") == "export SECRET_KEY=x # secret\n"
    assert "git rm --cached .env\n" in said.task(".env is in the repository")


def test_a_deploy_ini_of_their_own_is_completed_by_hand(app: Adopted) -> None:
    app.put(
        {
            **READY,
            "deploy.ini": "[role frontend]\ndrain_timeout = 5\n",
            "mysite/urls.py": 'urlpatterns = [path("ping", x)]\n',
        }
    )
    said = app.adopt("--write")
    assert "under [role frontend] in deploy.ini:\n\n         health = /ping\n" in said.task(
        "deploy.ini does not say it"
    )
    app.put({"deploy.ini": "[role frontend]\ndrain_timeout = 5\nhealth = /ping\n"}).adopt("--check")
    assert "deploy.ini: line 1" in app.put({"deploy.ini": "nonsense\n"}).adopt(code=2).out


def test_files_that_git_would_leave_out_are_named(app: Adopted) -> None:
    said = app.put({**READY, ".gitignore": "*.ini\n.env*\n"}).adopt("--write")
    assert "git add --force -- machines.ini .env.example" in said.out.replace("scripts/deployer/defaults.ini ", "")


# Names and files that nobody expects


def test_odd_names_and_damaged_files(app: Adopted) -> None:
    name = os.fsdecode(b"caf\xe9 \x1b[31m\n.py")
    (app.origin / name).write_bytes(b"\xff\xfe")
    odd = {"mysite/latin.py": b"# -*- coding: latin-1 -*-\nX = '\xe9'\n", "Procfile": b"web: \xff\n", "a b/c.py": ""}
    settings = (
        SETTINGS + "from .latin import *\nfrom . import nothing\nfrom .. import above\nLOOP = LOOP\nX = {[]: 1, **Y}\n"
    )
    app.put({**READY, **odd, "mysite/settings.py": settings}).adopt("--write")
    app.adopt("--check")


def test_settings_that_do_not_parse_are_told_and_nothing_is_guessed(app: Adopted) -> None:
    said = app.put({**READY, "mysite/settings.py": "SECRET_KEY = 'x'\nDEBUG = (\n"}).adopt("--write")
    assert "mysite/settings.py, line 2: '(' was never closed" in said.task("mend that, and run this again")
    assert "STATIC_ROOT says" not in said.out and "SECRET_KEY is" not in said.out
    assert "left for a person to do: 1" in app.adopt("--check", code=1).out
    assert "null bytes" in app.put({"mysite/settings.py": b"X = 1\0\n"}).adopt().out


def test_a_folder_that_no_unit_can_name(app: Adopted) -> None:
    app.put({f"my app/{path}": text for path, text in READY.items()})
    assert "my app: units and deploy.ini take no such name for a folder" in app.adopt("--write", code=2).out
    assert not (app.origin / "scripts").exists()


# cd.yml


def test_the_default_branch_is_named_where_it_matters(app: Adopted) -> None:
    app.put(READY).git("branch", "-m", "main", "master")
    app.adopt("--write")
    workflow = parse(app.origin / CD)
    assert workflow["on"]["push"] == {"branches": ["master"]}
    assert "github.ref == 'refs/heads/master' &&" in str(workflow["jobs"]["deploy"]["if"])
    assert not re.search(r"\bmain\b", app.text(CD) + app.text(FLEET))
    assert "github.ref == 'refs/heads/master' &&" in str(parse(app.origin / FLEET)["jobs"]["ask"]["if"])
    assert app.text("deploy.ini").endswith("\n\n[deploy]\nbranch = master\n")
    app.git("checkout", "-q", "-b", "feature")
    app.adopt("--check")


def test_what_origin_says_is_taken_and_its_password_is_not_shown(ready: Adopted) -> None:
    ready.git("remote", "add", "origin", "https://me:hidden@git.example.com/board.git")
    ready.git("update-ref", "refs/remotes/origin/trunk", "HEAD")
    ready.git("symbolic-ref", "refs/remotes/origin/HEAD", "refs/remotes/origin/trunk")
    said = ready.adopt()
    assert "branch trunk" in said.out and "--repo https://git.example.com/board.git --user deploybot" in said.out
    assert "hidden" not in said.out


def test_cd_yml_for_other_machines(ready: Adopted) -> None:
    machines = ["--machine", "web-1=frontend,scheduler", "--machine", "night=scheduler", "--machine", "Web2=frontend"]
    ready.adopt("--write", *machines, "--branch", "release/2026")
    workflow = parse(ready.origin / CD)
    assert workflow["on"]["push"] == {"branches": ["release/2026"]}
    assert workflow["on"]["workflow_dispatch"]["inputs"]["machine"]["options"] == ["all", "web-1", "night", "Web2"]
    deploy, report = workflow["jobs"]["deploy"], workflow["jobs"]["report"]["steps"][1]["env"]
    assert deploy["strategy"]["matrix"]["include"] == [
        {"machine": "web-1", "roles": "frontend scheduler"},
        {"machine": "night", "roles": "scheduler"},
        {"machine": "Web2", "roles": "frontend"},
    ]
    assert deploy["outputs"] == {name: said(f"steps.push.outputs.{name}") for name in ("web-1", "night", "Web2")}
    secrets = {name: value for name, value in deploy["steps"][1]["env"].items() if name.endswith(("_HOST", "_USER"))}
    names = ("WEB_1_HOST", "WEB_1_USER", "NIGHT_HOST", "NIGHT_USER", "WEB2_HOST", "WEB2_USER")
    assert secrets == {name: said(f"secrets.{name}") for name in names}
    assert {name for name in report if name.endswith("_RESULT")} == {"WEB_1_RESULT", "NIGHT_RESULT", "WEB2_RESULT"}
    assert "'web-1 night Web2'" in str(report["EXPECT"])
    fleet = parse(ready.origin / FLEET)["jobs"]
    assert fleet["ask"]["strategy"]["matrix"]["include"] == [{"machine": name} for name in ("web-1", "night", "Web2")]
    assert fleet["ask"]["outputs"] == {name: said(f"steps.ask.outputs.{name}") for name in ("web-1", "night", "Web2")}
    assert {*names} < {*fleet["ask"]["steps"][1]["env"]} and "SCHEDULER_HOST" not in ready.text(FLEET)
    seen = {name: value for name, value in fleet["record"]["steps"][1]["env"].items() if name.endswith("_SEEN")}
    outputs = {"WEB_1_SEEN": "web-1", "NIGHT_SEEN": "night", "WEB2_SEEN": "Web2"}
    assert seen == {name: said(f"needs.ask.outputs.{machine}") for name, machine in outputs.items()}
    assert "scheduler`" not in ready.text(CD) and "frontend`" not in ready.text(CD)
    zizmor(ready.origin / ".github/workflows")
    ready.adopt("--check")
    assert "has web-1, night, Web2: change it there" in ready.adopt("--machine", "x=frontend", code=2).out


def said(expression: str) -> dict[str, str]:
    return {"$expression": expression}


def zizmor(folder: Path) -> None:
    argv = ["zizmor", "--offline", "--no-progress", "--quiet", "--persona", "pedantic", str(folder)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_a_machine_more_in_machines_ini_comes_into_cd_yml(ready: Adopted) -> None:
    ready.adopt("--write")
    ready.put({"machines.ini": ready.text("machines.ini") + "\n[night]\nroles = scheduler\non = always\n"})
    written = ready.adopt("--write").out
    assert "cd.yml  is of an earlier version" in written and "fleet.yml  is of an earlier version" in written
    assert "NIGHT_HOST" in ready.text(CD) and "NIGHT_HOST" in ready.text(FLEET)


def test_a_copy_by_hand_keeps_its_machines(ready: Adopted) -> None:
    ready.adopt("--write", "--machine", "web=frontend,scheduler")
    ready.put({"machines.ini": None})
    ready.adopt("--write")
    assert "[web]\nroles = frontend scheduler\non = always\n" in ready.text("machines.ini")
    ready.adopt("--check")


def test_a_cd_yml_of_their_own_stays(app: Adopted) -> None:
    own = "name: CD\non: push\n"
    app.put({**READY, CD: own, FLEET: own}).adopt("--write", "--replace")
    assert app.text(CD) == app.text(FLEET) == own
    jobs = parse(app.origin / ".github/workflows/deploy-machines.yml")["jobs"]
    assert jobs["fleet"]["uses"] == "./.github/workflows/deploy-fleet.yml"
    assert parse(app.origin / jobs["fleet"]["uses"])["jobs"]["ask"]
    app.adopt("--check")


# From an earlier adoption


class Checkout:
    """A checkout of this project that had another version before."""

    def __init__(self, folder: Path, app: Adopted) -> None:
        self.path, self.app = folder, app
        for name in ("scripts", "systemd", "examples", ".github"):
            shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))

    def commit(self, files: dict[str, str | None]) -> None:
        for name, text in files.items():
            if text is None:
                (self.path / name).unlink()
            else:
                (self.path / name).write_text(text)
        if not (self.path / ".git").exists():
            self.app.git("init", "-q", cwd=self.path)
        self.app.git("add", "-A", cwd=self.path)
        self.app.git("commit", "-q", "-m", "version", cwd=self.path)

    def adopt(self, *arguments: str, code: int = 0) -> str:
        argv = [sys.executable, "-B", str(self.path / "scripts/adopt.py"), str(self.app.origin), *arguments]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture
def older(ready: Adopted, tmp_path: Path) -> Checkout:
    """The application has adopted an earlier version; the checkout is at this one."""
    checkout = Checkout(tmp_path / "checkout", ready)
    now = {name: (REPOSITORY / name).read_text() for name in ("scripts/github.py", "systemd/scheduler.service", CD)}
    old: dict[str, str | None] = {name: f"# an older version\n{text}" for name, text in now.items()}
    checkout.commit({**old, "scripts/gone.py": "# ours\n", "scripts/changed.py": "# ours\n"})
    checkout.adopt("--write", "--machine", "one=scheduler", "--machine", "two=frontend")
    ready.git("add", "-A")
    ready.git("commit", "-q", "-m", "adopted")
    checkout.commit({**now, "scripts/gone.py": None, "scripts/changed.py": None})
    return checkout


def test_an_earlier_adoption_is_brought_to_this_version(older: Checkout, ready: Adopted) -> None:
    older.adopt("--check", code=1)
    said = older.adopt("--write", "--diff")
    assert "git add --all -- .github scripts systemd && git commit" in said and "Units have changed" in said
    assert "~ scripts/github.py  is of an earlier version" in said and "-# an older version" in said
    assert "- scripts/gone.py  is not part of this version any more" in said
    assert ready.text("scripts/github.py") == (REPOSITORY / "scripts/github.py").read_text()
    assert not (ready.origin / "scripts/gone.py").exists()
    assert "ONE_HOST" in ready.text(CD) and "an older version" not in ready.text(CD) + ready.text(
        "systemd/scheduler.service"
    )
    older.adopt("--check")


def test_what_a_person_changed_is_shown_and_stays_until_it_is_asked_for(older: Checkout, ready: Adopted) -> None:
    ready.put({"scripts/github.py": "# mine\n", "scripts/changed.py": "# mine\n"})
    said = older.adopt("--write", "--diff")
    assert "! scripts/github.py  differs by hand" in said and "\n-# mine\n" in said
    assert ready.text("scripts/github.py") == "# mine\n"
    assert "changed by hand: scripts/github.py (" in older.adopt("--check", code=1)
    older.adopt("--write", "--replace")
    assert ready.text("scripts/github.py") == (REPOSITORY / "scripts/github.py").read_text()
    assert ready.text("scripts/changed.py") == "# mine\n", "nobody can say that it is not the application's own"
    older.adopt("--check")


def test_what_git_does_not_have_is_not_replaced(older: Checkout, ready: Adopted) -> None:
    (ready.origin / "scripts/github.py").write_text("# not committed\n")
    before = ready.state()
    assert "scripts/github.py has changes that are not committed" in older.adopt("--write", "--replace", code=2)
    assert ready.state() == before, "nothing at all was written"


def test_a_file_that_says_so_is_left_alone(older: Checkout, ready: Adopted) -> None:
    ready.put({"systemd/scheduler.service": "# adopt.py: keep\n[Service]\n"})
    older.adopt("--write", "--replace")
    assert ready.text("systemd/scheduler.service") == "# adopt.py: keep\n[Service]\n"
    older.adopt("--check")


def test_without_a_history_every_difference_may_be_a_persons(older: Checkout, ready: Adopted) -> None:
    shutil.rmtree(older.path / ".git")
    assert "! scripts/github.py  differs by hand" in older.adopt("--write")
    assert "# an older version" in ready.text("scripts/github.py")


def test_it_runs_from_a_checkout_only(ready: Adopted, tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / "scripts", tmp_path / "copy/scripts")
    argv = [sys.executable, "-B", str(tmp_path / "copy/scripts/adopt.py"), str(ready.origin)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode, "is no checkout of deploy-machine" in done.stderr) == (2, True)


# From startproject to a deploy


def follow(app: Adopted, said: Said) -> None:
    """Do what a person is told to do: paste the lines where they belong, run the commands."""
    for task in re.split(r"(?m)^ *\d+\. ", said.out.partition("What only you can do\n")[2].partition("And then\n")[0])[
        1:
    ]:
        where = re.search(r"(?m)^     (run|(?:at the end of|into) (\S+)).*:$", task)
        assert where, task
        lines = lines_of(task)
        if where[2]:
            path = app.origin / where[2]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text((path.read_text() if path.exists() else "") + lines)
        else:
            subprocess.run(["sh", "-ec", lines], cwd=app.origin, check=True)


def test_a_fresh_project_is_adopted_and_deployed(app: Adopted, tmp_path: Path) -> None:
    django_admin = Path(sys.executable).with_name("django-admin")
    for line in (f"{django_admin} startproject mysite .", f"{django_admin} startapp board"):
        subprocess.run(line.split(), cwd=app.origin, check=True)
    settings = app.text("mysite/settings.py") + '\nINSTALLED_APPS += ["board"]\n'
    app.put({"mysite/settings.py": settings, "requirements.txt": "django\n"})

    said = app.adopt("--write")
    follow(app, said)
    app.put({"board/management/__init__.py": "", "board/management/commands/__init__.py": ""})
    app.adopt("--check")

    wheels, env = tmp_path / "wheels", toolbox.tools(tmp_path)
    wheels.mkdir()
    toolbox.django(wheels)
    toolbox.wheel(wheels, "gunicorn", "23.0")
    example = app.text(".env.example").replace("/srv/app", str(app.root))
    (app.root / "state").mkdir()
    (app.root / "shared/data").mkdir(parents=True)
    (app.root / "shared/.env").write_text(f"{example}PIP_NO_INDEX=1\nPIP_FIND_LINKS={wheels}\n")
    script = [sys.executable, str(app.origin / "scripts/deploy_machine.py"), "deploy", "--root", str(app.root)]
    roles = ["--repo", f"file://{app.origin}", "--role", "frontend", "--role", "scheduler"]
    env["GIT_ALLOW_PROTOCOL"] = "file"
    log = toolbox.call(*script, *roles, cwd=tmp_path, env=env)
    assert (app.current / "staticfiles/admin/css/base.css").exists(), log
    assert (app.root / "shared/data/db.sqlite3").stat().st_size > 0

    code = """
        from django.conf import settings
        from django.core.management import get_commands
        from django.test import Client
        answer = Client(headers={"host": "127.0.0.1"}).get("/healthz")
        print(answer.status_code, settings.DEBUG, settings.SECRET_KEY, get_commands()["run_scheduler"])
        """
    with_env = ["python3", "-IS", str(app.origin / "scripts/deployer/dotenv.py"), str(app.root / "shared/.env")]
    shell = [str(app.current / ".venv/bin/python"), "manage.py", "shell", "--no-imports", "-c", textwrap.dedent(code)]
    assert toolbox.call(*with_env, *shell, cwd=app.current, env=env) == "200 False change-me board"

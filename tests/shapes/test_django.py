"""Recipes for Django: manage.py in a folder, translations; deployed, changed in one place, deployed again."""

from __future__ import annotations

import sqlite3

from shapes import toolbox
from shapes.conftest import Files, Shaped, recipe

SETTINGS = """\
from pathlib import Path
import os

BASE_DIR = Path(__file__).resolve().parent.parent
SECRET_KEY = "x"
INSTALLED_APPS = ["django.contrib.staticfiles", "board"]
STATIC_URL, STATIC_ROOT = "/static/", BASE_DIR / "staticfiles"
STATICFILES_DIRS = [path for path in [BASE_DIR.parent / "frontend/dist"] if path.exists()]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": os.environ["DATABASE"]}}
LOCALE_PATHS = [BASE_DIR / "locale"]
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
"""
MANAGE = """\
import os, sys
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "site_settings.settings")
from django.core.management import execute_from_command_line
execute_from_command_line(sys.argv)
"""
MIGRATION = """\
from django.db import migrations, models

class Migration(migrations.Migration):
    dependencies = [{after}]
    operations = [migrations.CreateModel("{name}", [("id", models.AutoField(primary_key=True))])]
"""


def project(app: Shaped, folder: str) -> Files:
    """A Django project in a folder, on a database outside the release."""
    toolbox.django(app.wheels)
    app.set_env(DATABASE=str(app.root / "db.sqlite3"))
    files = {"manage.py": MANAGE, "site_settings/__init__.py": "", "site_settings/settings.py": SETTINGS}
    files |= {"board/__init__.py": "", "board/migrations/__init__.py": "", "board/static/board.js": "one\n"}
    files |= {"board/migrations/0001_first.py": MIGRATION.format(after="", name="First")}
    return {f"{folder}{path}": text for path, text in files.items()}


def tables(app: Shaped) -> set[str]:
    with sqlite3.connect(app.root / "db.sqlite3") as connection:
        return {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE name LIKE 'board_%'")}


def test_manage_py_and_package_json_in_folders(app: Shaped) -> None:
    build = '{"scripts": {"build": "mkdir -p dist && cp src/app.css dist/"}}'
    files: Files = {"requirements.txt": "django\n", "frontend/package.json": build, "frontend/src/app.css": "one\n"}
    ini = recipe("manage.py and package.json in folders")
    first = app.change({"deploy.ini": ini, "docs/index.md": "", **files, **project(app, "backend/")})
    assert first.ran() == ["python-pip", "build", "migrate", "collectstatic"]
    assert (app.text("backend/staticfiles/board.js"), app.text("backend/staticfiles/app.css")) == ("one\n", "one\n")
    assert tables(app) == {"board_first"}
    assert not {"python-pip", "build", "collectstatic"} & {*app.change({"docs/index.md": "more\n"}).ran()}
    assert {"build", "collectstatic"} <= {*app.change({"frontend/src/app.css": "two\n"}).ran()}
    assert app.text("backend/staticfiles/app.css") == "two\n"
    second = MIGRATION.format(after="('board', '0001_first')", name="Second")
    app.change({"backend/board/migrations/0002_second.py": second, "backend/board/static/board.js": "two\n"})
    assert tables(app) == {"board_first", "board_second"}
    assert app.text("backend/staticfiles/board.js") == "two\n"


def test_old_assets_of_a_folder_stay_reachable(app: Shaped) -> None:
    """They are carried over from a release whose deploy.ini says nothing of the folder."""
    files = project(app, "backend/")
    app.change({"backend/requirements.txt": "django\n", **files})
    app.change({"backend/board/static/board.js": None, "backend/board/static/new.js": "new\n"})
    assert (app.text("backend/staticfiles/board.js"), app.text("backend/staticfiles/new.js")) == ("one\n", "new\n")


PO = """\
msgid ""
msgstr "Content-Type: text/plain; charset=UTF-8\\n"

msgid "Board"
msgstr "{says}"
"""


def test_translations(app: Shaped) -> None:
    path = "locale/de/LC_MESSAGES/django.po"
    files = {"requirements.txt": "django\n", "deploy.ini": recipe("Translations"), path: PO.format(says="Brett")}
    app.change({**files, **project(app, "")})
    says = "import gettext; print(gettext.translation('django', 'locale', ['de']).gettext('Board'))"
    assert toolbox.call("python3", "-c", says, cwd=app.current, env=app.env) == "Brett"
    app.change({path: PO.format(says="Tafel")})
    assert toolbox.call("python3", "-c", says, cwd=app.current, env=app.env) == "Tafel"
    app.change({"board/static/board.js": "two\n"})
    assert toolbox.call("python3", "-c", says, cwd=app.current, env=app.env) == "Tafel"

"""What applications are made of. Each part brings its files, its step of deploy.ini, what the application looks at when
it is started, and its changes; parts do not touch each other, so that they can be put together at random.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from oracle.packages import BACKEND, Files, Link, Program, package, project, tarball, tool


class Part(NamedTuple):
    """One part of an application."""

    name: str
    about: str
    files: Files = MappingProxyType({})  # in the first commit
    ini: str = ""  # its sections of deploy.ini; empty: the defaults do it
    looks: tuple[str, ...] = ()  # what the application does when it is started: see tools/app.py
    changes: Mapping[str, Files] = MappingProxyType({})  # what a commit may do to it; "{n}" is the commit's number
    lock: tuple[str, ...] = ()  # writes its lock file before each commit
    skips: str = ""  # the step that a commit which concerns nobody must not run again
    refusable: str = ""  # the change after which a deploy may be refused; "*": from the first commit on
    shared: str = ""  # linked from shared/ into its releases
    carries: str = ""  # the folder in which files of earlier releases stay
    settings: tuple[str, ...] = ()  # of shared/.env that matter to it: see machines.SETTINGS
    weight: int = 4  # how often it is drawn, beside the others of its kind; 0: what it shows is not mended yet


# --- the environment: pip, uv, Poetry, or a step of one's own -----------------------------------------------

UV = ("uv", "lock", "--quiet")
POETRY = ("poetry", "lock", "--quiet")
MEMBER = {"member": {"libs/greet/greet.py": 'VALUE = "{n}"\n'}}


def uv_project(*depends: str, more: str = "") -> Files:
    return {"pyproject.toml": project("site", *depends, more=more)}


GREET_BESIDE = '\n[tool.uv.sources]\ngreet = { path = "libs/greet" }\n'
GREET_MEMBER = '\n[tool.uv.workspace]\nmembers = ["libs/*"]\n\n[tool.uv.sources]\ngreet = { workspace = true }\n'

UV_PARTS = [
    Part(
        "uv",
        "a uv project that needs packages of an index",
        files=uv_project("alpha=={n}"),
        looks=("import alpha", "packages", "python"),
        changes={
            "upgrade": uv_project("alpha=={n}"),
            "add": uv_project("alpha=={n}", "beta==1"),
            "pin": {".python-version": "3.99\n"},
        },
        lock=UV,
        skips="python-uv",
        refusable="pin",
        weight=10,
    ),
    Part(
        "uv-workspace",
        "a uv workspace: its member is installed editable, so that it is imported from the release itself",
        files={**uv_project("greet", "alpha==1", more=GREET_MEMBER), **package("libs/greet", "greet")},
        looks=("import greet", "import alpha", "packages"),
        changes={
            **MEMBER,
            "needs": package("libs/greet", "greet", "beta=={n}"),
            "upgrade": uv_project("greet", "alpha=={n}", more=GREET_MEMBER),
        },
        lock=UV,
        weight=8,
    ),
    Part(
        "uv-path",
        "a uv project with a package of the repository, which is copied into the environment",
        files={**uv_project("greet", "alpha==1", more=GREET_BESIDE), **package("libs/greet", "greet")},
        looks=("import greet", "import alpha", "packages"),
        changes={**MEMBER, "upgrade": uv_project("greet", "alpha=={n}", more=GREET_BESIDE)},
        lock=UV,
        weight=8,
    ),
]


def pip_parts(pip: str, ini: str, weight: int) -> list[Part]:
    """requirements.txt in several forms, for one installer."""
    return [
        Part(
            pip,
            "requirements.txt with packages of an index",
            files={"requirements.txt": "alpha=={n}\n"},
            ini=ini,
            looks=("import alpha", "packages", "python"),
            changes={
                "upgrade": {"requirements.txt": "alpha=={n}\n"},
                "add": {"requirements.txt": "alpha\nbeta=={n}\n"},
            },
            skips="python-pip",
            weight=weight,
        ),
        Part(
            f"{pip}-includes",
            "requirements.txt includes another file, which is bound by a third",
            files={
                "requirements.txt": "-r requirements/base.txt\n",
                "requirements/base.txt": "-c versions.txt\nalpha\n",
                "requirements/versions.txt": "alpha=={n}\nbeta==1\n",
            },
            ini=ini,
            looks=("import alpha", "packages"),
            changes={
                "base": {"requirements/base.txt": "-c versions.txt\nalpha\nbeta\n"},
                "versions": {"requirements/versions.txt": "alpha=={n}\nbeta=={n}\n"},
            },
            skips="python-pip",
            weight=weight,
        ),
        Part(
            f"{pip}-editable",
            "requirements.txt with -e ./libs/greet",
            files={"requirements.txt": "-e ./libs/greet\nalpha==1\n", **package("libs/greet", "greet")},
            ini=ini,
            looks=("import greet", "packages"),
            changes={**MEMBER, "upgrade": {"requirements.txt": "-e ./libs/greet\nalpha=={n}\n"}},
            weight=weight,
        ),
        Part(
            f"{pip}-path",
            "requirements.txt with ./libs/greet: a copy of it is installed",
            files={"requirements.txt": "./libs/greet\nalpha==1\n", **package("libs/greet", "greet")},
            ini=ini,
            looks=("import greet", "packages"),
            changes={**MEMBER, "upgrade": {"requirements.txt": "./libs/greet\nalpha=={n}\n"}},
            weight=weight,
        ),
        Part(
            f"{pip}-here",
            "requirements.txt with -e . : the repository itself is the package",
            files={
                "requirements.txt": "-e .\nalpha==1\n",
                "pyproject.toml": project("greet", more=BACKEND),
                "backend.py": tool("backend.py"),
                "src/greet.py": 'VALUE = "{n}"\n',
            },
            ini=ini,
            looks=("import greet", "packages"),
            changes={
                "module": {"src/greet.py": 'VALUE = "{n}"\n'},
                "upgrade": {"requirements.txt": "-e .\nalpha=={n}\n"},
            },
            weight=weight,
        ),
    ]


UV_PIP = "[step python-pip]\nrun = sh -c 'uv pip install --quiet --requirement requirements.txt'\n"  # as pip, but fast


def poetry_project(develop: bool) -> Files:
    """Poetry's pyproject.toml with a path dependency."""
    about = '[tool.poetry]\nname = "site"\nversion = "1"\npackage-mode = false\n\n[tool.poetry.dependencies]\n'
    needs = f'python = ">=3.9"\ngreet = {{ path = "libs/greet", develop = {str(develop).lower()} }}\n'
    return {"pyproject.toml": about + needs, **package("libs/greet", "greet")}


POETRY_PARTS = [
    Part(
        f"poetry-{'develop' if develop else 'copy'}",
        f"Poetry with a path dependency, develop = {str(develop).lower()}",
        files=poetry_project(develop),
        looks=("import greet", "packages"),
        changes=MEMBER,
        lock=POETRY,
        weight=1,
    )
    for develop in (True, False)
]


def own_venv(name: str, about: str, run: str) -> Part:
    return Part(
        name,
        about,
        files={"backend/packages.txt": "alpha=={n}\n"},
        ini=f"[step backend]\ninputs = backend/packages.txt\nprovides = backend/.venv\n{run}\n",
        looks=("run backend/.venv/bin/alpha",),
        changes={"upgrade": {"backend/packages.txt": "alpha=={n}\n"}},
        skips="backend",
    )


MAKE_VENV = "python3 -m venv --without-pip .venv && uv pip install --quiet --python .venv/bin/python -r packages.txt"
OWN_PARTS = [
    own_venv(
        "own-venv",
        "an environment in a subfolder, made by a step of its own",
        f"run = sh -c 'cd backend && {MAKE_VENV}'",
    ),
    own_venv("own-venv-cwd", "the same with cwd = backend", f"cwd = backend\nrun = sh -c '{MAKE_VENV}'"),
]

SETTINGS = """\
import os

SECRET_KEY = "of a test"
INSTALLED_APPS = ["django.contrib.staticfiles", "board"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": os.environ["DATABASE"] + ".of-django"}}
STATIC_URL, STATIC_ROOT = "static/", "staticfiles"
STORAGES = {"staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.ManifestStaticFilesStorage"}}
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
"""


def migration(name: str, after: str = "") -> Files:
    """A migration of the application `board` that makes a table."""
    model = f'migrations.CreateModel("{name}", fields=[("id", models.AutoField(primary_key=True))])'
    depends = f'[("board", "{after}")]' if after else "[]"
    text = "from django.db import migrations, models\n\n\nclass Migration(migrations.Migration):\n"
    return {f"board/migrations/{name}.py": f"{text}    dependencies = {depends}\n    operations = [{model}]\n"}


DJANGO = Part(
    "django",
    "a real Django with SQLite below shared/: migrate and collectstatic are its own, by the defaults",
    files={
        "requirements.txt": "django\n",
        "manage.py": "import os\nimport sys\n\nfrom django.core.management import execute_from_command_line\n\n"
        'os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")\nexecute_from_command_line(sys.argv)\n',
        "settings.py": SETTINGS,
        "board/__init__.py": "",
        "board/migrations/__init__.py": "",
        "board/static/logo.svg": "logo {n}\n",
        "data/README": "files of the application\n",
        **migration("first"),
    },
    # not installed again for each release, as that takes seconds: the one of the tests is used
    ini='[step python-pip]\nrun = sh -c \'echo "$DJANGO" > "$(ls -d .venv/lib/python*/site-packages)"/django.pth\'\n',
    looks=("import django.VERSION", "migrations manage.py", "read staticfiles/staticfiles.json"),
    changes={
        "second": migration("second", "first"),
        "third": {**migration("second", "first"), **migration("third", "second")},
        "undone": {"board/migrations/third.py": None},
        "static": {"board/static/logo.svg": "logo {n}\n"},
    },
    skips="python-pip",
    shared="data",
    settings=("database", "restored"),
    carries="staticfiles",
    weight=2,
)

PYTHON = [DJANGO, *UV_PARTS, *pip_parts("uvpip", UV_PIP, 3), *pip_parts("pip", "", 1), *POETRY_PARTS, *OWN_PARTS]

# --- npm -----------------------------------------------------------------------------------------------------

TARBALL = "vendor/tool-1.0.0.tgz"


def npm_package(more: Mapping[str, object], packages: Mapping[str, object], **scripts: str) -> Files:
    """package.json and its lock file; packages: what the lock file says of node_modules."""
    about = {"name": "site", "version": "1.0.0", "private": True, **more, "scripts": scripts}
    root = {key: value for key, value in about.items() if key not in ("private", "scripts", "sources")}
    if "postinstall" in scripts:
        root["hasInstallScript"] = True
    head = {"name": "site", "version": "1.0.0", "lockfileVersion": 3, "requires": True}
    lock = {**head, "packages": {"": root, **packages}}
    return {"package.json": json.dumps(about, indent=2), "package-lock.json": json.dumps(lock, indent=2)}


def with_tool(sources: str, **scripts: str) -> Files:
    """An application of npm whose build needs the package `tool`, among the devDependencies as it is usual."""
    tool_of = {"devDependencies": {"tool": f"file:{TARBALL}"}}
    entry = {"node_modules/tool": {"version": "1.0.0", "resolved": f"file:{TARBALL}", "dev": True}}
    files = npm_package({"sources": sources, **tool_of}, entry, build="node build.js", **scripts)
    style = {f"{sources}/app.css": "body {} /* {n} */\n"}
    return {**files, **style, "build.js": tool("build.js"), TARBALL: tarball("the tool\n")}


def in_folder(folder: str, files: Files) -> Files:
    return {f"{folder}/{path}": content for path, content in files.items()}


NPM_CHANGES: Mapping[str, Files] = {
    "config": {"site.config.json": "configuration {n}\n"},
    "tool": {TARBALL: tarball("the tool, packed again\n")},
    "script": {"build.js": tool("build.js") + "// {n}\nfs.appendFileSync('static/dist/app.css', 'by script {n}');\n"},
    "omit": {".npmrc": "omit=dev\n"},
}
NPM = [
    Part(
        "npm-build",
        "npm with a build script, its sources in frontend/, its configuration in the root; .env says what it installs",
        files=with_tool("frontend"),
        ini="[step node]\nrun = npm ci --no-audit --no-fund\n",
        looks=("read static/dist/app.css",),
        changes={**NPM_CHANGES, "style": {"frontend/app.css": "body {} /* {n} */\n"}},
        skips="node",
        refusable="omit",
        settings=("production",),
        weight=4,
    ),
    Part(
        "npm-build-anywhere",
        "the same with its sources in client/, and nothing in deploy.ini",
        files=with_tool("client"),
        looks=("read static/dist/app.css",),
        changes={**NPM_CHANGES, "style": {"client/app.css": "body {} /* {n} */\n"}},
        refusable="*",
        weight=1,
    ),
    Part(
        "npm-patched",
        "packages that are changed after their installation, as patch-package does it",
        files={
            **with_tool("frontend", postinstall="node patch.js"),
            "patch.js": tool("patch.js"),
            "patches/tool.js": "module.exports += 'patched {n}';\n",
        },
        looks=("read node_modules/tool/index.js",),
        changes={
            "patch": {"patches/tool.js": "module.exports += 'patched {n}';\n"},
            "unpatched": {".npmrc": "ignore-scripts=true\n"},
            "script": {"patch.js": tool("patch.js") + "fs.appendFileSync('node_modules/tool/index.js', '// {n}');\n"},
        },
        weight=2,
    ),
    Part(
        "npm-workspace",
        "an npm workspace: node_modules leads to a package of the repository",
        files={
            **npm_package(
                {"sources": "frontend", "workspaces": ["ui"], "devDependencies": {"ui": "1.0.0"}},
                {"node_modules/ui": {"resolved": "ui", "link": True}, "ui": {"version": "1.0.0"}},
                build="node build.js",
            ),
            "ui/package.json": '{ "name": "ui", "version": "1.0.0", "main": "index.js" }\n',
            "ui/index.js": "module.exports = 'ui {n}';\n",
            "frontend/app.css": "body {} /* {n} */\n",
            "build.js": tool("build.js"),
        },
        looks=("read static/dist/app.css", "read node_modules/ui/index.js"),
        changes={
            "ui": {"ui/index.js": "module.exports = 'ui {n}';\n"},
            "style": {"frontend/app.css": "body {} /* {n} */\n"},
        },
        weight=2,
    ),
    Part(
        "npm-folder",
        "npm in a subfolder, where cwd = says it is",
        files=in_folder("web", with_tool("src")),
        ini="[step node]\ncwd = web\n[step build]\ncwd = web\n",
        looks=("read web/static/dist/app.css",),
        changes={
            **{name: in_folder("web", files) for name, files in NPM_CHANGES.items()},
            "style": {"web/src/app.css": "body {} /* {n} */\n"},
        },
        skips="node",
        refusable="omit",
        settings=("production",),
        weight=2,
    ),
    Part(
        "npm-folder-found",
        "npm in a subfolder, and nothing in deploy.ini",
        files=in_folder("web", with_tool("src")),
        looks=("read web/static/dist/app.css",),
        changes={"style": {"web/src/app.css": "body {} /* {n} */\n"}},
        refusable="*",
        weight=1,
    ),
    Part(
        "npm-bare",
        "a build script and no dependencies: npm ci makes no node_modules",
        files={
            **npm_package({"sources": "frontend"}, {}, build="node build.js"),
            "frontend/app.css": "body {} /* {n} */\n",
            "build.js": tool("build.js"),
        },
        looks=("read static/dist/app.css",),
        changes={"style": {"frontend/app.css": "body {} /* {n} */\n"}},
        weight=1,
    ),
    Part(
        "npm-unused",
        "a package.json for a linter only: [step node] is removed by an empty run",
        files={"package.json": '{ "name": "site", "private": true, "devDependencies": { "linter": "1.0.0" } }\n'},
        ini="[step node]\nrun =\n",
        weight=1,
    ),
]

# --- manage.py -----------------------------------------------------------------------------------------------

STORAGE = "class Storage:\n    def name(self, path):\n        return 'v{n}-' + path.name\n"


def manage(folder: str) -> Files:
    return {
        f"{folder}manage.py": tool("manage.py"),
        f"{folder}storage.py": STORAGE,
        f"{folder}assets/logo.svg": "logo {n}\n",
        f"{folder}assets/page.js": "page {n}\n",
    }


def manage_changes(folder: str) -> Mapping[str, Files]:
    return {
        "storage": {f"{folder}storage.py": STORAGE},
        "asset": {f"{folder}assets/logo.svg": "logo {n}\n"},
        "rename": {f"{folder}assets/page.js": None, f"{folder}assets/page{{n}}.js": "renamed {n}\n"},
    }


MANAGE = [
    Part(
        "collect",
        "manage.py collectstatic, by the defaults; a class in a .py file names the files",
        files=manage(""),
        ini="[step migrate]\nrun =\n",
        looks=("assets staticfiles/manifest.txt",),
        changes=manage_changes(""),
        carries="staticfiles",
        weight=4,
    ),
    Part(
        "collect-backend",
        "the same with manage.py in backend/",
        files=manage("backend/"),
        ini="[step migrate]\nrun =\n",
        looks=("assets backend/staticfiles/manifest.txt",),
        changes=manage_changes("backend/"),
        carries="backend/staticfiles",
        refusable="*",
        weight=1,
    ),
]

# --- steps of one's own, which any application may have ---------------------------------------------------------

PAGE = '<p class="of-{n}">\n'


def scanner(kind: str, pages: str, run: str) -> Part:
    return Part(
        f"scan-{kind}",
        f"a build that scans pages for the classes that they use, in {kind}; its inputs name only its base",
        files={
            f"scan-{kind}/base.css": "base {n}\n",
            f"{pages}/one.html": PAGE,
            f"{pages}/two.html": '<p class="two">\n',
            f"scan-{kind}/scan.{kind}": tool(f"scan.{kind}"),
        },
        ini=f"[step scan-{kind}]\ninputs = scan-{kind}/base.css\nprovides = static/scanned-{kind}\nrun = {run}\n",
        looks=(f"read static/scanned-{kind}/all.css",),
        changes={
            "page": {f"{pages}/one.html": PAGE},
            "new": {f"{pages}/new{{n}}.html": PAGE},
            "deeper": {f"{pages}/deep{{n}}/page.html": PAGE},
            "gone": {f"{pages}/one.html": None},
            "folder": {f"{pages}/one.html": None, f"{pages}/one.html/index.html": PAGE},
            "base": {f"scan-{kind}/base.css": "base {n}\n"},
        },
        skips=f"scan-{kind}",
        weight=3,
    )


OTHERS = [
    scanner("sh", "scan-sh/pages", "sh scan-sh/scan.sh"),
    scanner("py", "shop/templates/shop", "python3 scan-py/scan.py")._replace(skips="", weight=4),  # it uses .venv
    scanner("js", "scan-js/pages", "node scan-js/scan.js"),
    Part(
        "messages",
        "compilemessages: inputs, no provides, and it writes beside its sources",
        files={"locale/de/app.po": "german {n}\n", "messages.py": tool("messages.py")},
        ini="[step messages]\ninputs = locale/**/*.po\nrun = python3 messages.py\n",
        looks=("read locale/de/app.mo", "maybe locale/fr/app.mo"),
        changes={
            "text": {"locale/de/app.po": "german {n}\n"},
            "language": {"locale/fr/app.po": "french {n}\n"},
            "lost": {"locale/fr/app.po": None},
        },
    ),
    Part(
        "schema",
        "a step makes tables in the SQLite file that .env names, below shared/",
        files={"schema/first.sql": "", "data/README": "files of the application\n", "tables.py": tool("tables.py")},
        ini="[step schema]\ninputs = schema/*.sql\nrun = sh -c 'python3 tables.py \"$DATABASE\" schema'\n",
        looks=("tables DATABASE schema",),
        changes={"table": {"schema/t{n}.sql": ""}},
        shared="data",
        settings=("database",),
    ),
    Part(
        "sqlite-inside",
        "the same with the SQLite file in the release itself: every deploy would begin with an empty one",
        files={"inside/first.sql": "", "inside/tables.py": tool("tables.py")},
        ini="[step inside]\ninputs = inside/*.sql\nrun = python3 inside/tables.py inside/db.sqlite3 inside\n",
        looks=("tables inside/db.sqlite3 inside",),
        changes={"table": {"inside/t{n}.sql": ""}},
        refusable="*",
        weight=1,
    ),
    Part(
        "bake",
        "what a step makes holds a value of .env",
        files={"bake/in.txt": "in {n}\n"},
        ini="[step bake]\ninputs = bake/in.txt\nprovides = bake/out.txt\n"
        "run = sh -c '{ cat bake/in.txt; echo \"$FLAVOUR\"; } > bake/out.txt'\n",
        looks=("read bake/out.txt", "variable FLAVOUR"),
        changes={"in": {"bake/in.txt": "in {n}\n"}},
        skips="bake",
        settings=("flavour",),
    ),
    Part(
        "stamp",
        "a program of the machine makes it, and that may be upgraded",
        files={"stamp/in.txt": "in {n}\n"},
        ini="[step stamp]\ninputs = stamp/in.txt\nprovides = stamp/out.txt\nrun = stamp stamp/in.txt stamp/out.txt\n",
        looks=("read stamp/out.txt",),
        changes={"in": {"stamp/in.txt": "in {n}\n"}},
        skips="stamp",
        settings=("stamp",),
        weight=2,
    ),
    Part(
        "worker",
        "a step for the role `worker`, which the machine may be given later",
        files={"worker/in.txt": "in {n}\n"},
        ini="[role worker]\n[step worker]\nroles = worker\ninputs = worker/in.txt\nprovides = worker/out.txt\n"
        "run = cp worker/in.txt worker/out.txt\n",
        looks=("maybe worker/out.txt",),
        changes={"in": {"worker/in.txt": "in {n}\n"}},
        settings=("role",),
        weight=2,
    ),
    Part(
        "keys",
        "a step with cwd and env",
        files={"keys/page.txt": "page {n}\n"},
        ini="[step keys]\ncwd = keys\nenv = MODE={n}\ninputs = keys/page.txt\nprovides = keys/out\n"
        "run = sh -c 'mkdir -p out && { cat page.txt; echo \"$MODE\"; } > out/page.txt'\n",
        looks=("read keys/out/page.txt",),
        changes={
            "page": {"keys/page.txt": "page {n}\n"},
            "mode": {
                "deploy.d/keys.ini": "[step keys]\ncwd = keys\nenv = MODE={n}\ninputs = keys/page.txt\n"
                "provides = keys/out\nrun = sh -c 'mkdir -p out && { cat page.txt; echo \"$MODE\"; } > out/page.txt'\n"
            },
        },
        skips="keys",
        weight=2,
    ),
    Part(
        "link",
        "the inputs are behind a symlink of the repository",
        files={
            "theme/current": Link("../themes/a"),
            "themes/a/style.css": "a {n}\n",
            "themes/b/style.css": "b {n}\n",
        },
        ini="[step theme]\ninputs = theme/\nprovides = static/theme\n"
        "run = sh -c 'mkdir -p static/theme && cat theme/current/* > static/theme/all.css'\n",
        looks=("read static/theme/all.css",),
        changes={
            "behind": {"themes/a/style.css": "a {n}\n"},
            "beside": {"themes/a/new{n}.css": "new {n}\n"},
            "other": {"theme/current": Link("../themes/b")},
            "folder": {"theme/current": None, "theme/current/style.css": "own {n}\n"},
        },
        skips="theme",
        weight=2,
    ),
    Part(
        "chain",
        "a step reads what another has made",
        files={"chain/a.txt": "a {n}\n", "chain/b.txt": "b {n}\n"},
        ini="[step chain-a]\ninputs = chain/a.txt\nprovides = chain/made\n"
        "run = sh -c 'mkdir -p chain/made && cp chain/a.txt chain/made/a'\n"
        "[step chain-b]\ninputs = chain/b.txt\nprovides = chain/out\n"
        "run = sh -c 'mkdir -p chain/out && cat chain/b.txt chain/made/* > chain/out/all'\n",
        looks=("read chain/out/all",),
        changes={"a": {"chain/a.txt": "a {n}\n"}, "b": {"chain/b.txt": "b {n}\n"}},
        skips="chain-b",
        weight=3,
    ),
    Part(
        "left",
        "a step reads what another has left behind without providing it",
        files={"left/a.txt": "a {n}\n", "left/b.txt": "b {n}\n"},
        ini="[step left-a]\ninputs = left/a.txt\nrun = cp left/a.txt left/made.txt\n"
        "[step left-b]\ninputs = left/b.txt\nprovides = left/out.txt\n"
        "run = sh -c 'cat left/b.txt left/made.txt > left/out.txt'\n",
        looks=("read left/out.txt", "read left/made.txt"),
        changes={"a": {"left/a.txt": "a {n}\n"}, "b": {"left/b.txt": "b {n}\n"}},
        weight=3,
    ),
    Part(
        "pack",
        "files appear, vanish and become folders; old ones stay for a day",
        files={"pack/index": "index {n}\n", "pack/page": "page {n}\n"},
        ini="[step pack]\ninputs = pack/\nprovides = packed\nkeep_days = 1\nrun = cp -r pack packed\n",
        looks=("read packed/index",),
        changes={
            "index": {"pack/index": "index {n}\n"},
            "new": {"pack/new{n}": "new {n}\n"},
            "gone": {"pack/page": None},
            "folder": {"pack/page": None, "pack/page/index": "page {n}\n"},
            "file": {"pack/page/index": None, "pack/page": "page {n}\n"},
        },
        skips="pack",
        carries="packed",
    ),
    Part(
        "rewrites",
        "a step changes a file of the commit where it is",
        files={"rewrites/page.txt": "page {n}, version @\n", "rewrites/in.txt": "in {n}\n"},
        ini="[step rewrites]\ninputs = rewrites/in.txt\n"
        "run = sh -c 'sed -i \"s/@/$(cat rewrites/in.txt)/\" rewrites/page.txt'\n",
        looks=("read rewrites/page.txt",),
        changes={"in": {"rewrites/in.txt": "in {n}\n"}, "page": {"rewrites/page.txt": "page {n}, version @\n"}},
        weight=2,
    ),
    Part(
        "moves",
        "a step takes a file of the commit away",
        files={"moves/in.txt": "in {n}\n"},
        ini="[step moves]\ninputs = moves/in.txt\nprovides = moves/out\n"
        "run = sh -c 'mkdir -p moves/out && mv moves/in.txt moves/out/'\n",
        looks=("read moves/out/in.txt", "maybe moves/in.txt"),
        changes={"in": {"moves/in.txt": "in {n}\n"}},
        weight=2,
    ),
    Part(
        "beside",
        "a step leaves a file beside what it provides",
        files={"beside/in.txt": "in {n}\n"},
        ini="[step beside]\ninputs = beside/in.txt\nprovides = beside/out\n"
        "run = sh -c 'mkdir -p beside/out && cp beside/in.txt beside/out/ && wc -c beside/in.txt > beside/size.txt'\n",
        looks=("read beside/out/in.txt", "read beside/size.txt"),
        changes={"in": {"beside/in.txt": "in {n}, longer\n"}},
        weight=2,
    ),
    Part(
        "mode",
        "whether a file may be run changes, and nothing else",
        files={"mode/in.txt": "echo in\n"},
        ini="[step mode]\ninputs = mode/in.txt\nprovides = mode/out.txt\nrun = cp mode/in.txt mode/out.txt\n",
        looks=("read mode/out.txt",),
        changes={"program": {"mode/in.txt": Program("echo in\n")}, "text": {"mode/in.txt": "echo in\n"}},
        skips="mode",
        weight=2,
    ),
    Part(
        "when",
        "a step that applies only while a file is there",
        files={"when/in.txt": "in {n}\n"},
        ini="[step when]\nwhen = when/flag\ninputs = when/in.txt\nprovides = when/out.txt\n"
        "run = cp when/in.txt when/out.txt\n",
        looks=("maybe when/out.txt",),
        changes={"on": {"when/flag": "{n}\n"}, "off": {"when/flag": None}, "in": {"when/in.txt": "in {n}\n"}},
        weight=2,
    ),
    Part(
        "of-packages",
        "a step reads files of the packages that are installed, as collectstatic does",
        files={"of-packages/base.txt": "base {n}\n"},
        ini="[step of-packages]\ninputs = of-packages/base.txt\nprovides = of-packages/out.txt\n"
        "run = sh -c 'cat of-packages/base.txt $(ls .venv/lib/python*/site-packages/*.py) > of-packages/out.txt'\n",
        looks=("read of-packages/out.txt",),
        changes={"base": {"of-packages/base.txt": "base {n}\n"}},
        weight=3,
    ),
    Part(
        "revision",
        "a step with inputs reads which commit it is",
        files={"revision/in.txt": "in {n}\n"},
        ini="[step revision]\ninputs = revision/in.txt\nprovides = revision/out.txt\n"
        "run = sh -c 'cat revision/in.txt REVISION > revision/out.txt'\n",
        looks=("read revision/out.txt",),
        changes={"in": {"revision/in.txt": "in {n}\n"}},
        weight=1,
    ),
    Part(
        "version",
        "a step with inputs is told which commit it is, by a variable",
        files={"version/in.txt": "in {n}\n"},
        ini="[step version]\ninputs = version/in.txt\nprovides = version/out.txt\n"
        "run = sh -c '{ cat version/in.txt; echo \"$DEPLOY_COMMIT\"; } > version/out.txt'\n",
        looks=("read version/out.txt",),
        changes={"in": {"version/in.txt": "in {n}\n"}},
        weight=1,
    ),
    Part(
        "absolute",
        "what a step makes names the release that it was made in",
        files={"absolute/data.txt": "data {n}\n", "absolute/in.txt": "in {n}\n"},
        ini="[step absolute]\ninputs = absolute/in.txt\nprovides = absolute/bin\n"
        'run = sh -c \'mkdir absolute/bin && echo "cat $PWD/absolute/data.txt" > absolute/bin/show &&'
        " sed -i 1i#!/bin/sh absolute/bin/show && chmod +x absolute/bin/show'\n",
        looks=("run absolute/bin/show",),
        changes={"data": {"absolute/data.txt": "data {n}\n"}, "in": {"absolute/in.txt": "in {n}\n"}},
        weight=0,
    ),
    Part(
        "setting",
        "a step reads a file below shared/",
        files={"setting/in.txt": "in {n}\n", "settings/README": "kept on the machine\n"},
        ini="[step setting]\ninputs = setting/in.txt\nprovides = setting/out.txt\n"
        "run = sh -c 'cat setting/in.txt settings/value.txt > setting/out.txt'\n",
        looks=("read setting/out.txt",),
        changes={"in": {"setting/in.txt": "in {n}\n"}},
        skips="setting",
        shared="settings",
        settings=("setting",),
        weight=0,
    ),
    Part(
        "vain",
        "a step looks for a file in a folder in which it reads nothing",
        files={"vain/base.txt": "base {n}\n", "elsewhere/README": "maybe more\n"},
        ini="[step vain]\ninputs = vain/base.txt\nprovides = vain/out.txt\n"
        "run = sh -c 'cat vain/base.txt $(test -e elsewhere/x && echo elsewhere/x) > vain/out.txt'\n",
        looks=("read vain/out.txt",),
        changes={"file": {"elsewhere/x": "extra {n}\n"}, "base": {"vain/base.txt": "base {n}\n"}},
        weight=0,
    ),
    Part(
        "optional",
        "a step looks for a file and a folder that are not there yet",
        files={"optional/base.txt": "base {n}\n"},
        ini="[step optional]\ninputs = optional/base.txt\nprovides = optional/out.txt\n"
        "run = sh -c 'cd optional && cat base.txt $(ls extra.txt pages/* 2>/dev/null) > out.txt'\n",
        looks=("read optional/out.txt",),
        changes={
            "file": {"optional/extra.txt": "extra {n}\n"},
            "folder": {"optional/pages/one": "page {n}\n"},
            "base": {"optional/base.txt": "base {n}\n"},
        },
        weight=0,
    ),
    Part(
        "uploads",
        "a folder below shared/ that nobody has made yet, into which the application writes",
        looks=("write uploads/probe",),
        shared="uploads",
        weight=1,
    ),
    Part(
        "id",
        "a step without inputs: it runs always",
        ini="[step id]\nrun = sh -c 'echo $DEPLOY_COMMIT > id.txt'\n",
        looks=("read id.txt",),
        weight=1,
    ),
]

ALL = {part.name: part for part in [*PYTHON, *NPM, *MANAGE, *OTHERS]}
KINDS = {"python": PYTHON, "npm": NPM, "manage": [*MANAGE, DJANGO]}  # an application has at most one of each

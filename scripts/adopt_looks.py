"""What an application looks like, as far as adopting it needs to know: each look returns a fact, none runs its code."""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import adopt_repo as repo
import adopt_values as values
from adopt_values import UNKNOWN, Asked, Place, plain
from deployer import complaints, config, errors, mirror, shapes

FOR_MACHINES = re.compile(r"(.*\.)?(prod(uction)?|deploy(ment)?|live|uat|staging|server)")
NOT_FOR_MACHINES = re.compile(r"(.*[._])?(dev(elop(ment)?)?|local|tests?|testing|ci|base|common)")
HEALTH = re.compile(
    r"/(.*/)?(healthz|health|health[-_]?check|healthz?/(live|ready|check)|_health|livez|readyz|ping|ht|__?heartbeat__?|heartbeat|alive|up)/?"
)
SCHEDULER = re.compile(r"(run|start)?_?(ap|the_?)?scheduler|run_?.*schedul.*|.*_?scheduler")
NO_SCHEDULER = re.compile(r"heartbeat|check|status|health|stop|list|clear|purge|test")
COMMANDS_OF_APPS = {
    "django_q": "qcluster", "huey.contrib.djhuey": "run_huey", "background_task": "process_tasks",
    "django_tasks.backends.database": "db_worker", "django_rq": "rqworker default", "django_dramatiq": "rundramatiq",
}  # fmt: skip
BUNDLER = re.compile(r"(vite|webpack|rollup|rspack)\.([\w-]+\.)*config\.([\w-]+\.)*[cm]?[jt]s|(vite|webpack)\.[cm]?js")
OUTPUT = re.compile(r"""(?:outDir|\bpath|\bdir)\s*:[^,\n]*["'](?:\./)?([\w./-]+)["']""")
LOGIN = "django.contrib.auth.middleware.LoginRequiredMiddleware"


class Program(NamedTuple):
    """What a service of the role scheduler runs: its unit, its words behind .venv/bin/, and where that was found."""

    unit: str
    words: str
    seen: str


class Found(NamedTuple):
    """What an application looks like. Paths are relative to the repository."""

    folder: str  # that has manage.py; empty: the root
    settings: str  # the module that a machine is to use
    settings_path: str
    default_settings: tuple[str, ...]  # what manage.py, wsgi.py and asgi.py say by themselves
    names: values.Names  # of the settings
    variables: dict[str, values.Variable]
    broken: tuple[str, ...]  # modules that Python cannot read
    application: str  # mysite.wsgi:application
    urls_path: str
    health: tuple[str, ...]  # of the paths that look like a health view, the best first
    programs: tuple[Program, ...]  # of the role scheduler
    locks: tuple[str, ...]
    procfile: str
    workflows: tuple[str, ...]
    apps: tuple[str, ...]  # folders of the application's own Django apps, relative to that of manage.py

    def setting(self, name: str, default: Any = UNKNOWN) -> Any:
        return self.names.get(name, default)

    @property
    def is_asgi(self) -> bool:
        return ".asgi:" in self.application

    @property
    def static_root(self) -> Any:
        return self.setting("STATIC_ROOT", None)

    @property
    def health_path(self) -> str:
        return self.health[0] if self.health else ""


def look(application: repo.Application, app_dir: str, settings: config.Config) -> Found:
    """Look at all of it. Raises UsageError where nobody can say what is meant."""
    folder = folder_of_manage(application, app_dir, settings)
    reader = values.Reader(application, folder)
    defaults = default_settings(application, reader)
    procfile = application.text("Procfile")
    module, path = settings_of(application, reader, folder, defaults)
    names = reader.names(path) if path else {}
    entry = entry_of(application, reader, names, procfile)
    workflows = [name for name in application.tree if re.fullmatch(r"\.github/workflows/[^/]+\.ya?ml", name)]
    urls = reader.path_of(str(plain(names.get("ROOT_URLCONF", ""))) or "-")
    variables = reader.variables()
    return Found(
        folder, module, path, defaults, names, variables, tuple(reader.broken.values()), entry, urls,
        tuple(health_paths(application, reader, urls)), tuple(programs_of(application, reader, names, procfile)),
        lock_files(application, folder), procfile, tuple(workflows), own_apps(application, reader, names),
    )  # fmt: skip


def folder_of_manage(application: repo.Application, app_dir: str, settings: config.Config) -> str:
    said = next((step.cwd for step in settings.steps if step.name in shapes.STEPS["manage"] and step.cwd), "")
    folders = shapes.outermost(shapes.files_named(application.tree, ["manage.py"])["manage.py"])
    if app_dir or said:
        folder = os.path.normpath(app_dir or said)
        if shapes.join(folder, "manage.py") not in application.files:
            raise errors.UsageError(f"{folder}: there is no manage.py")
        return "" if folder == "." else folder
    if not folders:
        raise errors.UsageError(
            f"{application.path} has no manage.py that git knows of: this is for Django applications"
        )
    if len(folders) > 1:
        found = complaints.listed([shapes.join(folder, "manage.py") for folder in folders])
        raise errors.UsageError(f"there are {found}: name one with --app-dir, as in --app-dir {folders[0] or '.'}")
    return folders[0]


def modules_below(application: repo.Application, folder: str) -> Iterator[str]:
    """Python files of the application itself, relative to the folder of manage.py, the outermost first."""
    start = folder + "/" if folder else ""
    paths = [path[len(start) :] for path in application.tree if path.startswith(start) and path.endswith(".py")]
    for path in sorted(paths, key=lambda path: (path.count("/"), path)):
        if not any(shapes.APART.fullmatch(part) for part in path.split("/")[:-1]):
            yield path


def dotted(path: str) -> str:
    return re.sub(r"(/__init__)?\.py$", "", path).replace("/", ".")


# --- settings, and what serves


def default_settings(application: repo.Application, reader: values.Reader) -> tuple[str, ...]:
    """The settings modules that manage.py, wsgi.py and asgi.py name, manage.py's first."""
    names = ("wsgi.py", "asgi.py")
    paths = [path for path in modules_below(application, reader.folder) if os.path.basename(path) in names]
    found: list[str] = []
    for path in ["manage.py", *paths]:
        found += sets_settings(reader.parse(shapes.join(reader.folder, path)))
    return tuple(dict.fromkeys(found))


def sets_settings(module: ast.Module) -> Iterator[str]:
    """The values that a module gives to DJANGO_SETTINGS_MODULE."""
    for node in ast.walk(module):
        words: list[ast.expr] = []
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("setdefault"):
            words = node.args[:2]
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript):
            words = [node.targets[0].slice, node.value]
        texts = [word.value for word in words if isinstance(word, ast.Constant) and isinstance(word.value, str)]
        if len(texts) == 2 and texts[0] == "DJANGO_SETTINGS_MODULE":
            yield texts[1]


def settings_of(
    application: repo.Application, reader: values.Reader, folder: str, defaults: Sequence[str]
) -> tuple[str, str]:
    """The settings module for a machine, and its path: the one for production, else what manage.py says."""
    packages = {name.rpartition(".")[0] for name in defaults if "." in name}
    packages |= {name for name in defaults if reader.path_of(name).endswith("/__init__.py")}
    found = [dotted(path) for path in modules_below(application, folder) if FOR_MACHINES.fullmatch(dotted(path))]
    siblings = [name for name in found if name.rpartition(".")[0] in packages and name not in packages]
    if not defaults:
        anywhere = [dotted(path) for path in modules_below(application, folder) if path.endswith("settings.py")]
        siblings = siblings or anywhere[:1]
    well = [name for name in defaults if FOR_MACHINES.fullmatch(name)]
    module = [
        *well,
        *siblings,
        *[name for name in defaults[::-1] if not NOT_FOR_MACHINES.fullmatch(name)],
        *defaults,
        "",
    ][0]
    return module, reader.path_of(module) if module else ""


def entry_of(application: repo.Application, reader: values.Reader, names: values.Names, procfile: str) -> str:
    """What gunicorn runs: MODULE:NAME of WSGI, or of ASGI where there is no other."""
    named = re.search(r"^web:.*?\s([\w.]+(?:wsgi|asgi)[\w.]*):(\w+)", procfile, re.MULTILINE)
    if named and reader.path_of(named[1]):
        return f"{named[1]}:{named[2]}"
    for kind in ("WSGI", "ASGI"):
        value = plain(names.get(f"{kind}_APPLICATION"))
        module, _, name = value.rpartition(".") if isinstance(value, str) else ("", "", "")
        if module and reader.path_of(module):
            return f"{module}:{name}"
        for path in modules_below(application, reader.folder):
            if re.fullmatch(rf"(.*/)?{kind.lower()}(/__init__)?\.py", path):
                return f"{dotted(path)}:application"
    return ""


def own_apps(application: repo.Application, reader: values.Reader, names: values.Names) -> tuple[str, ...]:
    installed = names.get("INSTALLED_APPS")
    words = [app for app in installed if isinstance(app, str)] if isinstance(installed, list) else []
    return tuple(app.replace(".", "/") for app in words if reader.path_of(app).endswith("/__init__.py"))


# --- urls


def health_paths(application: repo.Application, reader: values.Reader, urls: str) -> Iterator[str]:
    """Paths that look like a health view, the most likely first."""
    found = [path for path in url_paths(reader, urls, "/", 0) if HEALTH.fullmatch(path)]
    if not found:  # of a middleware, say
        for path in modules_below(application, reader.folder):
            text = application.text(shapes.join(reader.folder, path))
            found += re.findall(r"""["'](/(?:healthz|health|livez|readyz)/?)["']""", text)
    yield from dict.fromkeys(sorted(found, key=lambda path: ("health" not in path, path.count("/"), len(path), path)))


def url_paths(reader: values.Reader, urls: str, start: str, depth: int) -> Iterator[str]:
    """The paths without parameters that a module of URLs names."""
    if not urls or depth > 4:
        return
    for node in ast.walk(reader.parse(urls)):
        name = ast.unparse(node.func).rpartition(".")[2] if isinstance(node, ast.Call) else ""
        if name not in ("path", "re_path", "url") or not isinstance(node, ast.Call) or not node.args:
            continue
        first = node.args[0]
        if not isinstance(first, ast.Constant) or not isinstance(first.value, str):
            continue
        text = first.value if name == "path" else without_regex(first.value)
        if text is None or "<" in text:
            continue
        view = node.args[1] if len(node.args) > 1 else None
        module = included(view)
        inner = reader.path_of(module) if module else ""
        if inner:
            yield from url_paths(reader, inner, start + text, depth + 1)
        else:
            yield start + text


def without_regex(pattern: str) -> str | None:
    """The path that a regular expression stands for; None if for many."""
    text = re.sub(r"^\^", "", pattern)
    text = re.sub(r"(\$|\\Z)$", "", text).replace("/?", "").replace("\\.", ".").replace("\\/", "/").replace("\\-", "-")
    return text if re.fullmatch(r"[\w./-]*", text) else None


def included(view: ast.expr | None) -> str:
    """The module that `include("shop.urls")` names."""
    if isinstance(view, ast.Call) and ast.unparse(view.func).endswith("include") and view.args:
        first = view.args[0]
        if isinstance(first, (ast.Tuple, ast.List)) and first.elts:
            first = first.elts[0]
        return str(first.value) if isinstance(first, ast.Constant) else ""
    return ""


# --- what the scheduler is


def programs_of(
    application: repo.Application, reader: values.Reader, names: values.Names, procfile: str
) -> Iterator[Program]:
    """The services of the role scheduler: one command of the application's, and Celery's beat and worker."""
    found: list[tuple[str, str, str]] = []
    apps = [app for app in names.get("INSTALLED_APPS", []) if isinstance(app, str)] if isinstance(
        names.get("INSTALLED_APPS"), list) else []  # fmt: skip
    commands = sorted(command_names(application), key=lambda name: (name != "run_scheduler", len(name), name))
    ours = [name for name in commands if SCHEDULER.fullmatch(name) and not NO_SCHEDULER.search(name)]
    # with its arguments, if they are plain words
    listed = re.findall(r"(?m)^(?:scheduler|clock|cron)\w*:.*manage\.py\s+([\w-]+(?:(?: [\w./:=,+-]+)*$)?)", procfile)
    third = [
        command
        for app, command in COMMANDS_OF_APPS.items()
        if any(one == app or one.startswith(f"{app}.") for one in apps)
    ]
    if first := [*listed[:1], *ours[:1], *third[:1]]:
        seen = "Procfile" if listed else "management/commands" if ours else "INSTALLED_APPS"
        found.append(("scheduler", f"python manage.py {first[0]}", seen))
    celery = celery_of(application, reader, procfile)
    if celery:
        database = any(app.startswith("django_celery_beat") for app in apps)
        is_beaten = database or re.search(r"celery.*\bbeat\b", procfile) or uses_beat(application, names)
        where = " --scheduler django_celery_beat.schedulers:DatabaseScheduler" if database else ""
        where = where or " --schedule /srv/app/shared/data/celerybeat-schedule"
        if is_beaten:
            found.append(("celery-beat", f"celery --app {celery} beat --loglevel info --pidfile={where}", "Celery"))
        found.append(("celery-worker", f"celery --app {celery} worker --loglevel info", "Celery"))
    for number, (unit, words, seen) in enumerate(found):
        yield Program(f"{unit if number else 'scheduler'}.service", words, seen)


def command_names(application: repo.Application) -> Iterator[str]:
    for path in application.tree:
        match = re.fullmatch(r"(.*/)?management/commands/([A-Za-z]\w*)\.py", path)
        if match and not any(shapes.APART.fullmatch(part) for part in path.split("/")[:-1]):
            yield match[2]


def celery_of(application: repo.Application, reader: values.Reader, procfile: str) -> str:
    """What `celery --app` is to be told: as the Procfile does, else the module that makes the application."""
    named = re.search(r"\bcelery\s.*?(?:-A|--app)[= ]([\w.:]+)", procfile)
    if named:
        return named[1]
    for path in modules_below(application, reader.folder):
        if "celery" in os.path.basename(path):
            made = re.search(
                r"^(\w+)\s*(?::\s*\w+\s*)?=\s*Celery\(",
                application.text(shapes.join(reader.folder, path)),
                re.MULTILINE,
            )
            if made:
                return dotted(path) + ("" if made[1] in ("app", "celery") else f":{made[1]}")
    return ""


def uses_beat(application: repo.Application, names: values.Names) -> bool:
    if any("BEAT_SCHEDULE" in name.upper() for name in names):
        return True
    texts = (application.text(path) for path in application.tree if re.search(r"celery\w*\.py$", path))
    return any("beat_schedule" in text or "add_periodic_task" in text for text in texts)


# --- packages


def lock_files(application: repo.Application, folder: str) -> tuple[str, ...]:
    """The files that say which packages are installed."""
    names = [*shapes.KEYS["python"], "pdm.lock", "Pipfile.lock"]
    found = [path for start in dict.fromkeys(("", folder)) for path in (shapes.join(start, name) for name in names)]
    return tuple(path for path in found if path in application.files)


def has_package(application: repo.Application, found: Found, name: str, files: Sequence[str] = ()) -> bool:
    """Whether a lock file, or what a requirements file includes, has the package."""
    pattern = rf"""(?im)^\s*(name = "{name}"$|"{name}": \{{|{name}\s*(\[[^\]]*\]\s*)?([=<>~!;@#].*)?$)"""
    seen, ahead = set[str](), [*(files or found.locks)]
    while ahead:
        path = ahead.pop()
        if path not in seen:
            seen.add(path)
            text = application.text(path)
            if re.search(pattern.replace("-", "[-_.]"), text):
                return True
            included = re.findall(r"(?m)^\s*(?:-r|--requirement)[\s=]*(\S+)", text) if path.endswith(".txt") else []
            ahead += [os.path.normpath(os.path.join(os.path.dirname(path), name)) for name in included]
    return False


# --- the commit that this would be


def commit_of(application: repo.Application, text: str) -> mirror.Commit:
    """The working tree as a commit with this deploy.ini, as a machine would see it. Raises UsageError."""
    settings = config.parse(text, "deploy.ini")
    tree: dict[str, mirror.Entry] = {}
    for path in application.tree:
        parts = path.split("/")
        tree.update(("/".join(parts[:number]), mirror.Entry("040000", "tree", "")) for number in range(1, len(parts)))
        tree[path] = mirror.Entry("100644", "blob", "")
    texts = {path: application.text(path) for path in shapes.to_read(tree)}
    shape = shapes.look(settings, tree, texts)
    return mirror.Commit("0" * 40, tree, shapes.fit(settings, shape, tree), shape)


def complaint(application: repo.Application, text: str, roles: Sequence[str]) -> str:
    """Why a machine of these roles would refuse it; empty if it would not."""
    try:
        complaints.check(commit_of(application, text), roles)
    except errors.DeployError as error:
        return str(error)
    return ""


def build_output(application: repo.Application, commit: mirror.Commit, found: Found) -> tuple[str, bool]:
    """The folder that `npm run build` is likely to leave, and whether that is more than a guess. Empty: no build."""
    steps = [step for step in commit.settings.steps if step.name == "build"]
    folder = commit.shape.places.get("build", "")
    if not steps or not commit.shape.has_script(folder, "build") or "provides" not in steps[0].by_default:
        return "", True
    dirs = found.setting("STATICFILES_DIRS", [])
    places = [
        one[1] if isinstance(one, list) and len(one) == 2 else one for one in (dirs if isinstance(dirs, list) else [])
    ]
    for place in (plain(one) for one in places):
        if isinstance(place, Place) and place.is_inside and place.path not in commit.tree:
            return place.path, True
    package: Any = commit.shape.packages.get(folder) or {}
    text = json.dumps(package.get("scripts", {}))
    written = re.search(r"(?:--outdir|--out-dir|--output-path|--dist-dir|-o|--outDir)[= ]([\w./-]+)", text)
    if written:
        path = shapes.join(folder, written[1])
        above = os.path.dirname(path)
        return (above if "." in os.path.basename(path) and above not in commit.tree else path), True
    for path in application.tree:
        if os.path.dirname(path) == folder and BUNDLER.fullmatch(os.path.basename(path)):
            written = OUTPUT.search(application.text(path))
            return shapes.join(folder, written[1] if written else "dist"), bool(written)
    return shapes.join(folder, "static/dist"), False


def asked_for(value: Any) -> str:
    """The variable that a setting takes its value from; empty if from none."""
    return value.name if isinstance(value, Asked) else ""

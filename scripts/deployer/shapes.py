"""What a commit looks like: where lock files, package.json and manage.py lie, and so where the built-in steps work."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from deployer import config

# What the built-in steps go by, and the one that it means. Each kind lies in one folder: the home of its steps.
KEYS = {
    "python": {"poetry.lock": "python", "uv.lock": "python-uv", "requirements.txt": "python-pip"},
    "node": {
        "package-lock.json": "node",
        "npm-shrinkwrap.json": "node",
        "pnpm-lock.yaml": "node-pnpm",
        "yarn.lock": "node-yarn",
    },
    "build": {"package.json": "build"},
    "manage": {"manage.py": "migrate"},
}
STEPS = {kind: (*dict.fromkeys(keys.values()),) for kind, keys in KEYS.items()}
STEPS["manage"] += ("collectstatic",)
KIND = {name: kind for kind, names in STEPS.items() for name in names}  # of a built-in step
KIND_OF_FILE = {name: kind for kind, names in KEYS.items() for name in names}
# Folders in which nothing is looked for: they hold what is not the application itself.
APART = re.compile(
    r"\..*|node_modules|venv|env|site-packages|vendor|third_party|docs?|examples?|samples?|tests?|e2e|fixtures"
)
RUNNERS = {"pnpm-lock.yaml": "pnpm", "yarn.lock": "yarn"}  # of scripts in package.json; else npm
NEEDS = ("dependencies", "devDependencies", "optionalDependencies", "peerDependencies", "workspaces")
MANY = {"package.json": 12, "pyproject.toml": 4, "setup.cfg": 4, ".yarnrc.yml": 4}  # so many of them are read
DOES = {  # in the run line of a step that does in its own way what a built-in one would do
    "node": re.compile(r"\b(npm|pnpm|yarn|yarnpkg|bun)\s([^;&|]*\s)?(ci|install)(?![\w:.-])"),
    "build": re.compile(r"\b(npm|npx|pnpm|yarn|yarnpkg|bun|bunx)\s([^;&|]*\s)?build(?![\w:.-])"),
}
CACHES = re.compile(r"node_modules|__pycache__|\..*")  # what a build also leaves, and nobody asks for


class Shape(NamedTuple):
    """What was found in a commit."""

    places: Mapping[str, str] = {}  # kind -> its folder; the root where nothing or too much was found
    candidates: Mapping[str, tuple[str, ...]] = {}  # kind -> all folders that it could be
    packages: Mapping[str, Mapping[str, Any] | None] = {}  # folder -> what its package.json says; None: nobody knows
    texts: Mapping[str, str] = {}  # path -> what it says
    idle: frozenset[str] = frozenset()  # built-in steps that have nothing to do here

    def declares_project(self, folder: str) -> bool:
        """Whether a pyproject.toml there is that of a project; one that only configures tools is not."""
        text = self.texts.get(join(folder, "pyproject.toml"), "")
        return bool(re.search(r"^[ \t]*\[(project|tool\.poetry|tool\.pdm|tool\.uv\.workspace)\b", text, re.MULTILINE))

    def has_script(self, folder: str, name: str) -> bool:
        """Whether package.json there has the script, as far as it can be read."""
        scripts = (self.packages.get(folder) or {}).get("scripts")
        return bool(isinstance(scripts, dict) and scripts.get(name))

    def needs_packages(self, folder: str) -> bool:
        """Whether package.json there asks for any packages, or cannot be read."""
        package = self.packages.get(folder, {})
        return package is None or any(map(package.get, NEEDS))


def join(folder: str, path: str) -> str:
    """A path in a folder of the repository, as git has it."""
    return os.path.normpath(os.path.join(folder, path)) + ("/" if path.endswith("/") else "")


# --- to look at a commit


def to_read(tree: Collection[str]) -> list[str]:
    """The files whose text tells what a commit looks like: of each kind the nearest to the root."""
    found = files_named(tree, MANY)
    return [path for name, most in MANY.items() for path in found[name][:most]]


def look(settings: config.Config, tree: Collection[str], texts: Mapping[str, str]) -> Shape:
    """What a commit looks like; texts: path -> text of what to_read() named."""
    found = files_named(tree, KIND_OF_FILE)
    candidates = {kind: outermost(path for name in names for path in found[name]) for kind, names in KEYS.items()}
    packages = {os.path.dirname(path): read_package(texts[path]) for path in texts if path.endswith("package.json")}
    shape = Shape(candidates=candidates, packages=packages, texts=texts)
    scripts = outermost(join(folder, "package.json") for folder in packages if shape.has_script(folder, "build"))
    candidates["build"] = scripts or candidates["build"]
    places = {kind: folders[0] for kind, folders in candidates.items() if len(folders) == 1}
    places.update((KIND[step.name], home_of(step, {})) for step in settings.steps if step.cwd and step.name in KIND)
    for kind, nearby in (("python", "manage"), ("build", "node")):  # of several, the one beside what it goes with
        if kind not in places and places.get(nearby) in candidates[kind]:
            places[kind] = places[nearby]
    shape = shape._replace(places=places)
    own = [step for step in settings.steps if step.name not in KIND]
    idle = (step.name for step in settings.steps if is_idle(step, shape, tree) or is_done_by(own, step, places))
    return shape._replace(idle=frozenset(idle))


def files_named(tree: Iterable[str], names: Collection[str]) -> dict[str, list[str]]:
    """The files of these names, outside folders that are apart, the nearest to the root first."""
    found: dict[str, list[str]] = {name: [] for name in names}
    for path in tree:
        folder, _, name = path.rpartition("/")
        if name in found and not any(APART.fullmatch(part) for part in folder.split("/") if part):
            found[name].append(path)
    return {name: sorted(paths, key=lambda path: (path.count("/"), path)) for name, paths in found.items()}


def outermost(paths: Iterable[str]) -> tuple[str, ...]:
    """The folders of files, without those that lie in another of them."""
    folders = {os.path.dirname(path) for path in paths}
    return tuple(sorted(folder for folder in folders if not any(is_below(folder, other) for other in folders)))


def is_below(folder: str, other: str) -> bool:
    return folder != other and (not other or folder.startswith(other + "/"))


def read_package(text: str) -> dict[str, Any] | None:
    try:
        package = json.loads(text.lstrip("\ufeff"))
    except (ValueError, RecursionError):
        return None  # npm will say what is wrong with it
    return package if isinstance(package, dict) else None


def is_idle(step: config.Step, shape: Shape, tree: Collection[str]) -> bool:
    """Whether a built-in step would find nothing to do: no packages to install, or no such script."""
    if step.name not in (*STEPS["node"], *STEPS["build"]) or step.cwd or "run" not in step.by_default:
        return False
    folder = home_of(step, shape.places)
    if shape.packages.get(folder) is None:
        return False
    if step.name == "build":
        return not shape.has_script(folder, "build") and len(shape.candidates["build"]) == 1
    return not shape.needs_packages(folder) and join(folder, "pnpm-workspace.yaml") not in tree


def is_done_by(own: Iterable[config.Step], step: config.Step, places: Mapping[str, str]) -> bool:
    """Whether a step that the application has written does what a built-in one would do in a folder that was found."""
    home = home_of(step, places)
    if not home or step.cwd or "run" not in step.by_default:
        return False
    return any(does(other, place(step, places), home) for other in own)


def does(own: config.Step, step: config.Step, home: str) -> bool:
    """Whether it makes the same as the built-in step, or does the same in this folder, for all of its roles."""
    if own.roles and not (step.roles and {*step.roles} <= {*own.roles}):
        return False
    text, kind = " ".join(own.run), KIND[step.name]
    is_there = own.cwd == home or re.search(rf"(?<![\w.-]){re.escape(home)}(?![\w.-])", text)
    is_same = is_there and kind in DOES and DOES[kind].search(text)
    return bool(is_same) or overlap(step.provides, own.provides)


def overlap(paths: Iterable[str], others: Collection[str]) -> bool:
    """Whether any of them is one of the others, or lies in one, or has one in it."""
    return any(path == other or is_below(path, other) or is_below(other, path) for path in paths for other in others)


# --- to let steps work there


def fit(settings: config.Config, shape: Shape, tree: Collection[str]) -> config.Config:
    """The configuration for a commit of this shape."""
    there = [step for step in placed(settings, shape.places).steps if step.name not in shape.idle]
    return settings._replace(steps=tuple(with_runner(step, there, shape, tree) for step in there))


def placed(settings: config.Config, places: Mapping[str, str]) -> config.Config:
    """The configuration, with built-in steps where what they go by was found.

    What of their paths the application has not written itself starts from there.
    """
    return settings._replace(steps=tuple(place(step, places) for step in settings.steps))


def place(step: config.Step, places: Mapping[str, str]) -> config.Step:
    if step.name not in KIND:
        return step
    home, provides = home_of(step, places), step.provides
    if "provides" in step.by_default:  # an environment stays in the root: that is where services look for it
        provides = tuple(path if path == ".venv" else join(home, path) for path in provides)
    inputs, when = (
        tuple(move(path, KIND[step.name], home, places) for path in paths) if name in step.by_default else paths
        for name, paths in (("inputs", step.inputs), ("when", step.when))
    )
    return step._replace(cwd=home, inputs=inputs, when=when, provides=provides)


def home_of(step: config.Step, places: Mapping[str, str]) -> str:
    """The folder that a built-in step's own paths start from: as `cwd` says, or where its key file was found."""
    if step.cwd:
        return "" if step.cwd == "." else step.cwd
    return places.get(KIND[step.name], "") if goes_by_key(step) else ""


def goes_by_key(step: config.Step) -> bool:
    """Whether a built-in step is for where its key file lies; else the application says itself where its files are."""
    named = [path for name in step.by_default & {"inputs", "when"} for path in getattr(step, name)]
    return any(name in KEYS[KIND[step.name]] for path in named for name in path.split("|"))


def move(path: str, kind: str, home: str, places: Mapping[str, str]) -> str:
    """Where a path of a built-in step is; patterns are for the whole repository."""
    if path.startswith("!") or any(char in path for char in "*?["):
        return path
    locks = {name: other for other in ("python", "node") if other != kind for name in KEYS[other]}
    names = path.split("|")
    return "|".join(join(places.get(locks[name], "") if name in locks else home, name) for name in names)


def with_runner(step: config.Step, others: Iterable[config.Step], shape: Shape, tree: Collection[str]) -> config.Step:
    """A script of package.json is run by the manager whose lock file is there, as that is run."""
    if step.name != "build" or "run" not in step.by_default:
        return step
    lock = next((name for name in KEYS["node"] if join(shape.places.get("node", ""), name) in tree), "")
    installs = [other for other in others if other.name == KEYS["node"].get(lock) and "env" in other.by_default]
    env = tuple(pair for other in installs for pair in other.env)
    return step._replace(run=(RUNNERS.get(lock, step.run[0]), *step.run[1:]), env=env + step.env)


# --- what lies in a release beside the commit


def hidden(path: str, files: Iterable[str]) -> str:
    """What a commit has where its release has a link to shared/; a folder that only is to be there does not count.

    files: the paths of the commit that are no folders.
    """
    found = [other for other in files if other == path or other.startswith(path + "/")]
    found = [other for other in found if os.path.basename(other) not in (".gitkeep", ".keep", ".gitignore")]
    return path if path in found else f"what lies in {path}/" if found else ""


def is_folder(written: str, files: Collection[str]) -> bool:
    """Whether a shared path is a folder: so it is in the commit, is written with a slash, or has no dot in its name."""
    path = written.rstrip("/")
    if path in files:
        return False
    is_committed = any(other.startswith(path + "/") for other in files)
    return is_committed or written.endswith("/") or "." not in os.path.basename(path)


def appeared(paths: Iterable[str], tree: Collection[str], apart: Collection[str]) -> list[str]:
    """What lies in a release beside the commit: the topmost new folders and files. apart: what others provide."""
    found: dict[str, None] = {}
    for path in paths:
        parts = path.split("/")
        tops = ["/".join(parts[: number + 1]) for number in range(len(parts))]
        top = next((top for top in tops if top not in tree), "")
        if top and not {*tops} & {*apart} and not any(CACHES.fullmatch(part) for part in parts):
            found[top + "/" * (top != path)] = None
    return sorted(found)

"""What of a commit cannot be deployed rightly: told before anything runs, each in one line that says what to write."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from typing import NamedTuple

from deployer import config, errors, mirror, shapes, steps

RECIPES = "docs/recipes.md"
EMPTY = "an empty run ="
# Files that say which packages a project needs, and are no lock file that a built-in step knows.
PYTHON_FILES = ("pdm.lock", "Pipfile.lock", "pixi.lock", "conda-lock.yml", "environment.yml", "environment.yaml",
                "Pipfile", "setup.py")  # fmt: skip
NODE_FILES = ("bun.lock", "bun.lockb")
REQUIREMENTS = re.compile(r"requirements/[^/]+\.(txt|in)|[^/]*requirements[^/]*\.(txt|in)")
NOT_TO_RUN = re.compile(r"dev|test|doc|lint|local|ci\b")  # in the name of a file of requirements
NODE_TOOLS = re.compile(r"\b(npm|npx|pnpm|yarn|yarnpkg|bun|bunx|node|deno|corepack)\b")


class Subject(NamedTuple):
    """A commit, as it would be deployed to a machine of these roles."""

    commit: mirror.Commit
    roles: Sequence[str]
    applying: Sequence[config.Step]

    @property
    def shape(self) -> shapes.Shape:
        return self.commit.shape

    def built_in(self, kind: str) -> list[config.Step]:
        """The built-in steps of a kind that these machines have; one without a `run` is gone."""
        steps_of_kind = [step for step in self.commit.settings.steps if step.name in shapes.STEPS[kind]]
        return [step for step in steps_of_kind if not step.roles or {*step.roles} & {*self.roles}]

    def is_removed(self, kind: str) -> bool:
        """Whether the application has removed a step of that kind, and so knows what it wants."""
        there = {step.name for step in self.commit.settings.steps} | self.shape.idle
        return not there >= {*shapes.STEPS[kind]}

    def provided(self) -> set[str]:
        """The paths that the steps provide."""
        return {path for step in self.applying for path in step.provides}

    def has_venv(self) -> bool:
        return any(os.path.basename(path) in (".venv", "venv", "env") for path in self.provided())

    def own(self) -> list[config.Step]:
        """The steps that the application has written, or given a command of its own."""
        return [step for step in self.applying if "run" not in step.by_default]

    def files(self, folder: str) -> list[str]:
        """The paths of the files below a folder that may be an application's, relative to it."""
        start = folder + "/" if folder else ""
        return [path[len(start) :] for path in self.commit.tree if path.startswith(start)]


def check(commit: mirror.Commit, roles: Sequence[str]) -> None:
    """Raise DeployError with the first thing that is wrong with the commit for machines of these roles."""
    subject = Subject(commit, roles, steps.applying(commit, roles))
    for complaint in (no_folder, several, too_late, no_python, no_node, plug_and_play, no_build, nothing):
        if line := complaint(subject):
            raise errors.DeployError(line)


def no_folder(subject: Subject) -> str:
    """A step is to run where there is no folder."""
    built_in = [step for kind in shapes.STEPS for step in subject.built_in(kind)]
    for step in [*subject.applying, *built_in]:
        if step.cwd not in ("", ".", *subject.provided()) and step.cwd not in subject.commit.tree:
            return f"[step {step.name}]: cwd = {step.cwd}: the commit has no such folder"
    return ""


def several(subject: Subject) -> str:
    """Nobody can say which of several folders a built-in step is for."""
    for kind, folders in subject.shape.candidates.items():
        asked = [step.name for step in subject.built_in(kind) if shapes.goes_by_key(step)]
        if len(folders) > 1 and kind not in subject.shape.places and asked and not is_settled(subject, kind, folders):
            found = [path for folder in folders for path in keys_in(subject, kind, folder)]
            name = shapes.KEYS[kind][os.path.basename(found[0])]
            name = name if name in asked else asked[0]
            say = f"write cwd = {folders[0]} or another under [step {name}], or remove that step with {EMPTY}"
            return f"{listed(found)} are in the commit, and nothing says which is meant: {say}"
    return ""


def keys_in(subject: Subject, kind: str, folder: str) -> list[str]:
    """The path of the first key file in a folder."""
    paths = [shapes.join(folder, name) for name in shapes.KEYS[kind]]
    return [path for path in paths if path in subject.commit.tree][:1]


def is_settled(subject: Subject, kind: str, folders: Collection[str]) -> bool:
    """Whether it does not matter which one is meant, or the application takes care of it in its own way."""
    shape = subject.shape
    if kind == "python":
        return subject.is_removed(kind) or subject.has_venv() or is_handled(subject, kind, folders)
    if kind == "node":
        needed = any(map(shape.needs_packages, folders))
        return subject.is_removed(kind) or not needed or is_handled(subject, kind, folders)
    if kind == "build" and not any(shape.has_script(folder, "build") for folder in folders):
        return True
    return is_handled(subject, kind, folders)


def is_handled(subject: Subject, kind: str, folders: Collection[str]) -> bool:
    """Whether a step that the application has written takes care of that kind."""
    texts = [" ".join((*step.run, *step.inputs, *step.when, *step.provides)) for step in subject.own()]
    if kind in ("node", "build"):
        return any(NODE_TOOLS.search(text) for text in texts)
    keys = {shapes.join(folder, name) for folder in folders for name in shapes.KEYS[kind]}
    return any(key in text for text in texts for key in keys)


def too_late(subject: Subject) -> str:
    """A step of the application's own makes what a built-in one before it needs: without `after` it comes last."""
    needs = {"python": ".venv", **dict.fromkeys(("npm", "pnpm", "yarn"), "node_modules")}
    for number, step in enumerate(subject.applying):
        wanted = needs.get(step.run[0], "") if step.name not in (*shapes.STEPS["python"], *shapes.STEPS["node"]) else ""
        for other in subject.applying[number + 1 :]:
            if wanted and shapes.join(step.cwd * (wanted != ".venv"), wanted) in other.provides:
                before = shapes.STEPS["python" if wanted == ".venv" else "node"][-1]
                say = f"write after = {before} under it"
                return f"[step {other.name}] makes {wanted} but comes behind [step {step.name}], which needs it: {say}"
    return ""


# --- Python


def no_python(subject: Subject) -> str:
    """A project in Python, and no step that installs what it needs."""
    if subject.has_venv() or not subject.built_in("python") or subject.is_removed("python"):
        return ""
    for folder in dict.fromkeys(("", *subject.shape.candidates.get("manage", ())[:1])):
        files = python_files(subject, folder)
        own = " ".join(word for step in subject.own() for word in (*step.run, *step.inputs, *step.when))
        if files and not any(path in own for path in files):
            return no_lock(subject, folder, files)
    return ""


def python_files(subject: Subject, folder: str) -> list[str]:
    """The files of a folder that say which Python packages are needed, the most telling first."""
    files = subject.files(folder)
    found = [shapes.join(folder, name) for name in PYTHON_FILES if name in files]
    wanted = [path for path in files if REQUIREMENTS.fullmatch(path) and not NOT_TO_RUN.search(path)]
    found += [shapes.join(folder, path) for path in sorted(wanted, key=rank)]
    if subject.shape.declares_project(folder):
        found.append(shapes.join(folder, "pyproject.toml"))
    setup = shapes.join(folder, "setup.cfg")
    return found + [setup] * ("[metadata]" in subject.shape.texts.get(setup, ""))


def rank(path: str) -> tuple[bool, bool, str]:
    """Which file of requirements a machine most likely wants."""
    return not re.search("prod|deploy|live", path), not re.search("base|common", path), path


def no_lock(subject: Subject, folder: str, files: Sequence[str]) -> str:
    known = "poetry.lock, uv.lock and requirements.txt"
    first, where = files[0], f" of {folder}/" if folder else ""
    if os.path.basename(first) in PYTHON_FILES[:6]:
        own = f"write a step of your own that fills .venv ({RECIPES}, Another package manager)"
        return f"{first} is no lock file that a built-in step knows ({known} are): {own}, or commit one of those"
    if REQUIREMENTS.fullmatch(first[len(folder) :].lstrip("/")) and first.endswith(".txt"):
        several_of_them = listed([path for path in files if path.endswith(".txt")])
        run = f"pip install --disable-pip-version-check --requirement {first}"
        lines = f"[step python-pip] inputs = {first} and run = {run}"
        return f"there is no requirements.txt but {several_of_them}: say in deploy.ini which is meant, with {lines}"
    text = subject.shape.texts.get(shapes.join(folder, "pyproject.toml"), "")
    lock = "poetry.lock" if "[tool.poetry" in text else "uv.lock" if "[tool.uv" in text else ""
    if lock:
        return f"{first} is in the commit but {shapes.join(folder, lock)} is not: commit the lock file"
    say = f"commit the lock file, or say [step python] with {EMPTY} in deploy.ini if no packages are needed"
    return f"{first} is in the commit but no lock file{where} that is known ({known} are): {say}"


# --- Node.js


def no_node(subject: Subject) -> str:
    """package.json asks for packages, and no step installs them."""
    shape, tree = subject.shape, subject.commit.tree
    if not subject.built_in("node") or subject.is_removed("node") or is_handled(subject, "node", ()):
        return ""
    for folder in dict.fromkeys(("", shape.places.get("build", ""))):
        above = parents(folder)
        done = any(step.name in shapes.STEPS["node"] and step.cwd in above for step in subject.applying)
        done = done or bool(subject.provided() & {shapes.join(other, "node_modules") for other in above})
        if done or not shape.needs_packages(folder):
            continue
        package, known = shapes.join(folder, "package.json"), "package-lock.json, pnpm-lock.yaml and yarn.lock"
        other = next((name for name in NODE_FILES if shapes.join(folder, name) in tree), "")
        if other:
            own = f"write a step of your own that fills node_modules ({RECIPES}, Bun)"
            return f"{shapes.join(folder, other)} is no lock file that a built-in step knows ({known} are): {own}"
        say = f"commit the lock file, or say [step node] with {EMPTY} if no packages are needed"
        return f"{package} is in the commit but no lock file beside it that is known ({known} are): {say}"
    return ""


def parents(folder: str) -> list[str]:
    """A folder and all above it."""
    parts = folder.split("/") if folder else []
    return ["/".join(parts[:number]) for number in range(len(parts), -1, -1)]


def plug_and_play(subject: Subject) -> str:
    """Yarn leaves no node_modules unless it is asked to."""
    for step in subject.applying:
        if step.name != "node-yarn" or "provides" not in step.by_default:
            continue
        settings = shapes.join(step.cwd, ".yarnrc.yml")
        manager = (subject.shape.packages.get(step.cwd) or {}).get("packageManager")
        is_modern = settings in subject.commit.tree or re.match(r"yarn@[2-9]", str(manager))
        if is_modern and not re.search(r"^nodeLinker:", subject.shape.texts.get(settings, ""), re.MULTILINE):
            return f"Yarn would leave no node_modules: write nodeLinker: node-modules into {settings}"
    return ""


def no_build(subject: Subject) -> str:
    """package.json has a script `build`, and no step runs it."""
    for step in subject.built_in("build"):
        folders = [folder for folder in subject.shape.packages if subject.shape.has_script(folder, "build")]
        if not folders or step in subject.applying or is_handled(subject, "build", ()):
            continue
        package = shapes.join(min(folders, key=len), "package.json")
        lacking = listed(steps.missing(step, subject.commit))
        rival = [other.name for other in subject.applying if {*other.provides} & {*step.provides}]
        why = f"[step {rival[0]}] provides the same" if rival else f"[step build] names {lacking}, which is not there"
        return f"{package} has a script build but no step runs it: {why}; correct that, or remove it with {EMPTY}"
    return ""


# --- nothing at all


def nothing(subject: Subject) -> str:
    """No step applies, on no machine; an application that has a deploy.ini has said so."""
    commit = subject.commit
    if "deploy.ini" in commit.tree or steps.applying(commit, [*commit.settings.roles]):
        return ""
    keys = [name for names in shapes.KEYS.values() for name in names]
    apart = sorted(path for path in commit.tree if os.path.basename(path) in keys)
    seen = f" (but {listed(apart)}, where nothing is looked for)" if apart else ""
    wanted = ", ".join(keys)
    say = "write its steps, or the cwd = of built-in ones, into a deploy.ini; an empty one says that there are none"
    return f"no step applies to this commit: it has none of {wanted}{seen}; {say}"


def listed(paths: Sequence[str]) -> str:
    """`a, b and c`, or `a, b, c and 7 more`."""
    shown = [*paths[:4], *([f"{len(paths) - 4} more"] if len(paths) > 4 else [])]
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)

"""What commits look like and what is wrong with them, by value: paths, a few texts and a deploy.ini go in."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
from deployer import complaints, config, errors, mirror, shapes, steps

DEPENDS = json.dumps({"dependencies": {"x": "1"}})
BUILDS = json.dumps({"dependencies": {"x": "1"}, "scripts": {"build": "make"}})
EMPTY = "{}"
PROJECT = "[project]\nname = 'x'\n"


def commit(files: dict[str, str], ini: str | None = None) -> mirror.Commit:
    """A commit of these files, read as Mirror.load() does."""
    texts = {**files, **({"deploy.ini": ini} if ini is not None else {})}
    folders = {str(folder) for path in texts for folder in Path(path).parents if str(folder) != "."}
    tree = {path: mirror.Entry("100644", "blob", path) for path in texts}
    tree |= {path: mirror.Entry("040000", "tree", path) for path in folders}
    settings = config.parse(ini or "", "deploy.ini")
    shape = shapes.look(settings, tree, {path: files[path] for path in shapes.to_read(tree)})
    return mirror.Commit("c" * 40, tree, shapes.fit(settings, shape, tree), shape)


def names(*paths: str) -> dict[str, str]:
    """Files of which it only matters that they are there."""
    return dict.fromkeys(paths, BUILDS if "package.json" in paths else "")


def applying(files: dict[str, str], ini: str | None = None, roles: str = "frontend") -> dict[str, config.Step]:
    found = commit(files, ini)
    complaints.check(found, roles.split())
    return {step.name: step for step in steps.applying(found, roles.split())}


def complaint(files: dict[str, str], ini: str | None = None, roles: str = "frontend") -> str:
    with pytest.raises(errors.DeployError) as error:
        complaints.check(commit(files, ini), roles.split())
    assert "\n" not in str(error.value)
    return str(error.value)


# --- where steps work


def where(step: config.Step) -> tuple[str, str, str]:
    return step.cwd, " ".join(step.inputs + step.when), " ".join(step.provides)


def test_in_the_root_all_is_as_the_defaults_say() -> None:
    files = {"package.json": BUILDS, **names("poetry.lock", "pyproject.toml", "manage.py", "package-lock.json")}
    written = {step.name: step for step in config.parse("", "defaults").steps}
    for name, step in applying(files).items():
        assert step._replace(by_default=frozenset()) == written[name]._replace(by_default=frozenset())


def test_each_step_works_where_what_it_goes_by_was_found() -> None:
    files = {"web/package.json": BUILDS, "web/yarn.lock": "", **names("poetry.lock", "pyproject.toml", "api/manage.py")}
    found = applying(files)
    assert {name: where(step) for name, step in found.items()} == {
        "python": ("", "pyproject.toml poetry.lock", ".venv"),
        "node-yarn": ("web", "web/package.json web/yarn.lock", "web/node_modules"),
        "build": ("web", "web/package.json", "web/static/dist"),
        "migrate": ("api", "**/migrations/*.py **/poetry.lock **/uv.lock **/requirements*.txt api/manage.py", ""),
        "collectstatic": ("api", "api/manage.py", "api/staticfiles"),
    }
    assert found["build"].run == ("yarn", "run", "build")


def test_the_lock_file_may_lie_in_a_folder_and_manage_py_in_the_root() -> None:
    found = applying(names("deploy/requirements.txt", "manage.py"))
    assert where(found["python-pip"]) == ("deploy", "deploy/requirements.txt", ".venv")
    assert found["migrate"].cwd == ""
    assert shapes.move("a.txt|poetry.lock", "manage", "x", {"python": "y"}) == "x/a.txt|y/poetry.lock"


@pytest.mark.parametrize(
    ("paths", "place"),
    [
        ("poetry.lock tools/poetry.lock", ""),
        ("a/uv.lock a/libs/x/uv.lock", "a"),
        ("a/uv.lock docs/uv.lock tests/site/requirements.txt .github/requirements.txt node_modules/x/uv.lock", "a"),
        ("a/poetry.lock a/requirements.txt", "a"),
        ("a/poetry.lock b/uv.lock", None),
        ("a/poetry.lock b/requirements.txt b/manage.py", "b"),
    ],
)
def test_which_folder_is_meant(paths: str, place: str | None) -> None:
    assert commit(names(*paths.split())).shape.places.get("python") == place


def test_the_build_is_where_the_script_is() -> None:
    root_only_checks = {"package.json": json.dumps({"devDependencies": {"x": "1"}, "scripts": {"lint": "x"}})}
    files = {**root_only_checks, "package-lock.json": "", "web/package.json": BUILDS, "e2e/package.json": BUILDS}
    found = applying(files)
    assert (found["node"].cwd, found["build"].cwd) == ("", "web")
    two = {"a/package.json": BUILDS, "b/package.json": BUILDS, "b/package-lock.json": ""}
    assert applying(two)["build"].cwd == "b", "the one whose packages are installed"


def test_what_the_application_writes_is_taken_as_it_is_written() -> None:
    files = names("api/manage.py", "api/requirements.txt", "api/more.txt")
    ini = "[step python-pip]\ninputs = api/more.txt\n[step migrate]\nrun = python manage.py migrate --check\n"
    found = applying(files, ini)
    assert (found["python-pip"].cwd, found["python-pip"].inputs) == ("", ("api/more.txt",))
    assert (found["migrate"].cwd, found["migrate"].when) == ("api", ("api/manage.py",))
    ini = "[step collectstatic]\ninputs = api/manage.py\nprovides = static\n"
    collect = applying(files, ini)["collectstatic"]
    assert (collect.cwd, collect.inputs, collect.provides) == ("", ("api/manage.py",), ("static",))


def test_cwd_says_which_folder_and_the_other_steps_of_its_kind_follow() -> None:
    files = {
        **names("a/manage.py", "b/manage.py", "requirements.txt"),
        "a/package.json": BUILDS,
        "b/package.json": BUILDS,
    }
    files |= names("a/yarn.lock", "b/yarn.lock")
    found = applying(files, "[step migrate]\ncwd = b/\n[step node-yarn]\ncwd = a\n")
    homes = {name: step.cwd for name, step in found.items()}
    assert homes == {"python-pip": "", "node-yarn": "a", "build": "a", "migrate": "b", "collectstatic": "b"}
    assert found["node-yarn"].provides == ("a/node_modules",)
    assert found["collectstatic"].provides == ("b/staticfiles",)


def test_a_release_without_its_tree_knows_where_its_steps_were() -> None:
    built = commit(names("api/manage.py", "requirements.txt"))
    again = shapes.placed(config.parse("", "deploy.ini"), dict(built.shape.places))
    assert next(step for step in again.steps if step.name == "collectstatic").provides == ("api/staticfiles",)
    assert shapes.placed(config.parse("", "deploy.ini"), {}).steps == config.parse("", "deploy.ini").steps


def test_the_manager_whose_lock_file_is_there_runs_the_build() -> None:
    for lock, runner in (("package-lock.json", "npm"), ("pnpm-lock.yaml", "pnpm"), ("yarn.lock", "yarn")):
        found = applying({"package.json": BUILDS, lock: ""})
        assert found["build"].run == (runner, "run", "build")
        assert bool(found["build"].env) == (runner == "yarn"), "its note of what is installed lies in node_modules"
    own = applying({"package.json": BUILDS, "yarn.lock": ""}, "[step build]\nrun = npm run build\n")
    assert own["build"].run == ("npm", "run", "build")


def test_a_package_without_dependencies_is_not_installed_but_built() -> None:
    script = json.dumps({"scripts": {"build": "node build.mjs"}})
    assert [*applying({"package.json": script})] == ["build"]
    assert [*applying({"package.json": script, "package-lock.json": ""})] == ["build"]
    assert [*applying({"package.json": DEPENDS, "package-lock.json": ""})] == ["node"]
    workspace = {"package.json": EMPTY, "pnpm-lock.yaml": "", "pnpm-workspace.yaml": ""}
    assert [*applying(workspace)] == ["node-pnpm"], "its packages may have some"


@pytest.mark.parametrize(
    "text", ["{", "[]", '"x"', "[" * 100_000, "\ufeff" + BUILDS, '{"scripts": ["build"]}', '{"scripts": null}']
)
def test_a_package_json_of_any_form_is_looked_at(text: str) -> None:
    commit({"package.json": text, "package-lock.json": ""})


# --- what is refused


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        ("setup.py", "setup.py is in the commit but no lock file that is known (poetry.lock, uv.lock and requirements"),
        ("Pipfile", "Pipfile is in the commit but no lock file"),
        ("Pipfile Pipfile.lock", "Pipfile.lock is no lock file that a built-in step knows"),
        (
            "pdm.lock",
            "pdm.lock is no lock file that a built-in step knows (poetry.lock, uv.lock and requirements.txt are)",
        ),
        ("environment.yml", "environment.yml is no lock file"),
        ("a/manage.py a/pdm.lock", "a/pdm.lock is no lock file"),
        (
            "requirements/base.txt requirements/dev.txt requirements/prod.txt",
            "there is no requirements.txt but requirements/prod.txt and requirements/base.txt: say in deploy.ini"
            " which is meant, with [step python-pip] inputs = requirements/prod.txt and run = pip install"
            " --disable-pip-version-check --requirement requirements/prod.txt",
        ),
        ("requirements.in", "requirements.in is in the commit but no lock file"),
    ],
)
def test_a_python_project_without_a_known_lock_file_is_told(paths: str, said: str) -> None:
    assert said in complaint(names(*paths.split()))
    assert [*applying({**names(*paths.split()), "requirements.txt": ""})][:1] == ["python-pip"]


@pytest.mark.parametrize(
    ("text", "lock"),
    [
        ("[tool.poetry]\n", "poetry.lock is not"),
        ("[project]\n[tool.uv]\n", "uv.lock is not"),
        (PROJECT, "no lock file"),
    ],
)
def test_pyproject_toml_says_which_lock_file_is_missing(text: str, lock: str) -> None:
    assert f"pyproject.toml is in the commit but {lock}" in complaint({"pyproject.toml": text})
    assert "pyproject.toml" in complaint({"pyproject.toml": text}, "[role frontend]\n")
    for own in ("[step python]\nrun =\n", "[step mine]\nprovides = api/.venv\nrun = make\n"):
        complaints.check(commit({"pyproject.toml": text}, own), ["frontend"])


def test_what_is_for_developers_only_asks_for_no_lock_file() -> None:
    files = {
        "pyproject.toml": "[tool.ruff]\n",
        "setup.cfg": "[flake8]\n",
        **names("requirements-dev.txt", "manage.pyc"),
    }
    complaints.check(commit(files, "[role frontend]\n"), ["frontend"])


def test_a_step_that_names_the_file_takes_care_of_it() -> None:
    ini = "[step mine]\ninputs = requirements/prod.txt\nprovides = lib\nrun = pip install --target lib\n"
    assert [*applying(names("requirements/prod.txt", "requirements/base.txt"), ini)] == ["mine"]
    ini = "[step pdm]\nafter = python-pip\ninputs = pdm.lock\nprovides = .venv\nrun = pdm sync\n"
    assert [*applying(names("pdm.lock", "manage.py"), ini, "scheduler")] == ["pdm", "migrate"]


def test_a_step_that_comes_too_late_is_told() -> None:
    ini = "[step pdm]\ninputs = pdm.lock\nprovides = .venv\nrun = pdm sync\n"
    said = "[step pdm] makes .venv but comes behind [step migrate], which needs it: write after = python-pip under it"
    assert complaint(names("pdm.lock", "manage.py"), ini) == said
    ini = "[step bun]\nprovides = web/node_modules\nrun = bun install\n"
    assert "comes behind [step build], which needs it: write after = node-yarn" in complaint(
        {"web/package.json": BUILDS}, ini
    )


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        ("a/manage.py b/manage.py", "a/manage.py and b/manage.py are in the commit, and nothing says which is meant:"
         " write cwd = a or another under [step migrate], or remove that step with an empty run ="),
        ("a/poetry.lock b/requirements.txt", "cwd = a or another under [step python]"),
        ("a/requirements.txt b/poetry.lock", "cwd = a or another under [step python-pip]"),
    ],
)  # fmt: skip
def test_where_two_could_be_meant_it_is_asked(paths: str, said: str) -> None:
    assert said in complaint(names(*paths.split()))


def test_packages_that_nobody_installs_are_told() -> None:
    assert "package.json is in the commit but no lock file beside it" in complaint({"package.json": DEPENDS})
    assert "web/package.json is in the commit but" in complaint({"web/package.json": BUILDS})
    bun = complaint({"package.json": DEPENDS, "bun.lock": ""})
    assert bun.startswith("bun.lock is no lock file that a built-in step knows (package-lock.json, pnpm-lock.yaml and")
    assert "Bun)" in bun
    two = {"a/package.json": DEPENDS, "b/package.json": DEPENDS, **names("a/yarn.lock", "b/package-lock.json")}
    assert "cwd = a or another under [step node-yarn]" in complaint(two)
    for ini in ("[step node]\nrun =\n", "[step bun]\nrun = bun install\n"):
        complaints.check(commit({"package.json": DEPENDS, "bun.lock": ""}, ini), ["frontend"])
    complaints.check(commit({"package.json": DEPENDS, "setup.cfg": ""}, "[role x]\n"), ["scheduler"])


def test_a_step_that_was_removed_is_missed_by_none_of_its_kind() -> None:
    files = {"package.json": DEPENDS, "package-lock.json": "", "requirements.txt": ""}
    assert [*applying(files, "[step node]\nrun =\n")] == ["python-pip"]


@pytest.mark.parametrize("folder", ["", "web/"])
def test_a_build_that_nobody_runs_is_told(folder: str) -> None:
    files = {f"{folder}package.json": BUILDS, f"{folder}package-lock.json": ""}
    assert [*applying(files)] == ["node", "build"]
    old = "[step build]\ninputs = package.json frontend/\n"
    said = complaint(files, old)
    assert f"{folder}package.json has a script build but no step runs it: [step build] names " in said
    assert "frontend/, which is not there" in said
    assert [*applying(files, "[step build]\nrun =\n")] == ["node"]
    own = "[step css]\nroles = frontend\nrun = npm run build:css\n"
    assert [*applying(files, old + own)] == ["node", "css"]
    complaints.check(commit(files, old), ["scheduler"])


@pytest.mark.parametrize(
    ("own", "names"),
    [
        ("[step web]\nafter = node\nprovides = web/node_modules\nrun = make\n", "web build"),
        ("[step css]\ncwd = web\nprovides = web/static\nrun = make\n", "node css"),
        ("[step css]\ncwd = web\nprovides = web/dist\nrun = npm run build\n", "node css"),
        ("[step web]\nprovides = web/dist\nrun = sh -c 'cd web && npm ci && npm run build'\n", "web"),
        ("[step web]\nprovides = web/dist\nrun = npm --prefix web run build -- --mode live\n", "node web"),
        ("[step css]\ncwd = web\nrun = npm run build:css\n", "node build css"),
        ("[step e2e]\ncwd = web\nrun = sh -c 'npm test && npx playwright install'\n", "node build e2e"),
        ("[step app]\nprovides = app/dist\nrun = npm --prefix app run build\n", "node build app"),
        (
            "[step web]\nafter = node\nroles = frontend other\ncwd = web\nrun = npm ci\n[role other]\n",
            "web build",
        ),
        ("[step web]\nroles = other\nprovides = web/node_modules\nrun = make\n[role other]\n", "node build"),
        ("[step build]\ncwd = web\n[step css]\ncwd = web\nrun = npm run build\n", "node build css"),
    ],
)
def test_in_a_folder_that_was_found_what_the_application_has_written_comes_first(own: str, names: str) -> None:
    files = {"web/package.json": BUILDS, "web/package-lock.json": ""}
    assert " ".join(applying(files, own)) == names
    assert "build" in applying({"package.json": BUILDS, "package-lock.json": ""}, own.replace("cwd = web", "cwd = ."))


def test_of_two_builds_it_is_asked_which() -> None:
    files = {"package.json": json.dumps({"workspaces": ["packages/*"]}), "package-lock.json": ""}
    files |= {"packages/a/package.json": BUILDS, "packages/b/package.json": BUILDS}
    assert "packages/a/package.json and packages/b/package.json are in the commit" in complaint(files)
    ini = "[step build]\nrun = npm run build --workspaces\nprovides = packages/a/dist packages/b/dist\n"
    assert applying(files, ini + "cwd = .\n")["build"].cwd == ""


def test_yarn_without_node_modules_is_told() -> None:
    files = {"package.json": DEPENDS, "yarn.lock": ""}
    berry = json.dumps({"dependencies": {"x": "1"}, "packageManager": "yarn@4.18.1"})
    for more in ({".yarnrc.yml": "enableTelemetry: false\n"}, {"package.json": berry}):
        assert "write nodeLinker: node-modules into .yarnrc.yml" in complaint({**files, **more})
    for more in ({}, {".yarnrc.yml": "nodeLinker: node-modules\n"}):
        assert [*applying({**files, **more})] == ["node-yarn"]
    assert [*applying({**files, ".yarnrc.yml": ""}, "[step node-yarn]\nprovides = .pnp.cjs\n")] == ["node-yarn"]


def test_a_commit_to_which_no_step_applies_is_told() -> None:
    said = complaint(names("index.html", "tests/manage.py"))
    assert said.startswith("no step applies to this commit: it has none of poetry.lock, uv.lock, requirements.txt,")
    assert "tests/manage.py" in said
    for ini in ("", "[role frontend]\n", "[step mine]\nroles = scheduler\nrun = true\n"):
        assert applying(names("index.html"), ini) == {}
    assert applying({"package.json": BUILDS, "package-lock.json": ""}, roles="scheduler") == {}, (
        "it is the others' work"
    )


def test_a_step_in_a_folder_that_is_not_there_is_told() -> None:
    own = "[step mine]\ncwd = web\nrun = make\n"
    assert complaint(names("index.html"), own) == "[step mine]: cwd = web: the commit has no such folder"
    assert "cwd = wbe" in complaint({"web/package.json": BUILDS, "web/yarn.lock": ""}, "[step node]\ncwd = wbe\n")
    for ini in (own.replace("web", "."), own + "inputs = none\n"):
        complaints.check(commit(names("index.html"), ini), ["frontend"])


@pytest.mark.parametrize("value", ["a b", "/a", "../a", "-a"])
def test_cwd_is_one_folder_of_the_repository(value: str) -> None:
    with pytest.raises(errors.UsageError, match=r"^deploy.ini: \[step x\]: "):
        config.parse(f"[step x]\nrun = true\ncwd = {value}\n", "deploy.ini")


# --- what lies in a release beside the commit


@pytest.mark.parametrize(
    ("written", "files", "is_folder", "hidden"),
    [
        (".env", "a.py", False, ""),
        (".env", ".env", False, ".env"),
        ("uploads", "", True, ""),
        ("up.loads/", "", True, ""),
        ("uploads", "uploads", False, "uploads"),
        ("up.loads", "up.loads/.gitkeep", True, ""),
        ("media", "media/a.png media/.gitkeep", True, "what lies in media/"),
        ("media", "media-old/a.png", True, ""),
    ],
)
def test_what_is_shared(written: str, files: str, is_folder: bool, hidden: str) -> None:
    assert shapes.is_folder(written, files.split()) == is_folder
    assert shapes.hidden(written.rstrip("/"), files.split()) == hidden


def test_what_appeared_is_named_by_its_topmost_folder() -> None:
    tree = {"static", "static/css", "static/css/a.css", "web", "web/src", "node_modules"}
    paths = (
        "static/css/b.css web/dist/x/y.js web/dist/z.js web/.cache/q web/node_modules/m/i.js static/css/a.css made/q"
    )
    assert shapes.appeared(paths.split(), tree, {"made"}) == ["static/css/b.css", "web/dist/"]


def test_every_recipe_that_is_named_is_there() -> None:
    text = Path(complaints.__file__).read_text()
    page = (Path(__file__).resolve().parents[2] / complaints.RECIPES).read_text()
    for name in re.findall(r"\{RECIPES\}, ([^)]+)\)", text):
        assert f"## {name}\n" in page

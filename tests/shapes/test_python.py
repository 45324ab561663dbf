"""Recipes for Python: deployed, changed in one place, deployed again: the release has the new, and skips the rest."""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path

import pytest

from shapes import toolbox
from shapes.conftest import Files, Shaped, recipe

UNRELATED: Files = {"docs/index.md": "more\n"}


def wheels(folder: Path) -> None:
    for name in ("alpha", "beta", "gamma"):
        for version in ("1.0", "2.0"):
            toolbox.wheel(folder, name, version)


def said(app: Shaped, *names: str) -> list[str]:
    return [app.says(name) for name in names]


def is_there(app: Shaped, name: str) -> bool:
    return any(app.current.glob(f".venv/lib/python3*/site-packages/{name}.py"))


def test_several_requirements_files(app: Shaped) -> None:
    wheels(app.wheels)
    app.change({
        "deploy.ini": recipe("Several requirements files"),
        "docs/index.md": "",
        "requirements/base.txt": "alpha\n",
        "requirements/prod.txt": "-r base.txt\n-c constraints.txt\nbeta\n",
        "requirements/constraints.txt": "alpha==1.0\nbeta==1.0\n",
    })  # fmt: skip
    assert said(app, "alpha", "beta") == ["1.0", "1.0"]
    assert app.change(UNRELATED).ran() == []
    assert app.change({"requirements/constraints.txt": "alpha==2.0\nbeta==1.0\n"}).ran() == ["python-pip"]
    assert said(app, "alpha", "beta") == ["2.0", "1.0"]
    assert app.change({"requirements/base.txt": "alpha\ngamma\n"}).ran() == ["python-pip"]
    assert said(app, "alpha", "gamma") == ["2.0", "2.0"]


@pytest.mark.parametrize("line", ["-e ./libs/x", "./libs/x"])
def test_packages_in_the_repository_with_pip(app: Shaped, line: str) -> None:
    app.change({"requirements.txt": f"{line}\n", **toolbox.library("x", "first")})
    assert app.says("x") == "first"
    before = app.current
    app.change(toolbox.module("x", "second"))
    assert app.says("x") == "second"
    assert toolbox.call(".venv/bin/python", "-c", "import x; print(x.SAYS)", cwd=before, env=app.env) == "first"


def poetry_project(dependencies: str, more: str = "") -> str:
    return f"""\
[tool.poetry]
package-mode = false
[tool.poetry.dependencies]
python = ">=3.9"
{dependencies}
{more}"""


@pytest.mark.parametrize("develop", ["true", "false"])
def test_packages_in_the_repository_with_poetry(app: Shaped, develop: str) -> None:
    project = poetry_project(f'x = {{path = "libs/x", develop = {develop}}}')
    # whatever a project says of environments, the step's own is filled
    files = {"backend/pyproject.toml": project, "backend/poetry.toml": "[virtualenvs]\nin-project = true\n"}
    app.change({**files, **toolbox.library("x", "first", folder="backend/libs")}, "poetry -C backend lock")
    assert app.says("x") == "first"
    assert not (app.current / "backend/.venv").exists()
    app.change(toolbox.module("x", "second", folder="backend/libs"))
    assert app.says("x") == "second"


def poetry_groups(beta: str) -> str:
    """A project with a dependency of an extra, one of a group, and one for developers."""
    return poetry_project(
        'alpha = {path = "wheels/alpha-1.0-py3-none-any.whl", optional = true}',
        f"""\
[tool.poetry.extras]
web = ["alpha"]
[tool.poetry.group.jobs.dependencies]
beta = {{path = "wheels/beta-{beta}-py3-none-any.whl"}}
[tool.poetry.group.dev.dependencies]
gamma = {{path = "wheels/gamma-1.0-py3-none-any.whl"}}
""",
    )


def test_poetry_groups_and_extras(app: Shaped) -> None:
    wheels(app.origin / "wheels")
    ini = recipe("Poetry: groups and extras")
    app.change({"deploy.ini": ini, "pyproject.toml": poetry_groups("1.0")}, "poetry lock")
    assert said(app, "alpha", "beta") == ["1.0", "1.0"]
    assert not is_there(app, "gamma")
    assert app.change({"pyproject.toml": poetry_groups("2.0")}, "poetry lock").ran() == ["python"]
    assert said(app, "alpha", "beta") == ["1.0", "2.0"]


def project(dependencies: str = "", more: str = "", is_package: bool = False) -> str:
    """The pyproject.toml of an application that is named shop."""
    builds = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    return f"""\
[project]
name = "shop"
version = "1.0"
requires-python = ">=3.9"
dependencies = [{dependencies}]
{more}
{builds if is_package else ""}"""


def uv_groups(beta: str) -> str:
    """A project with a dependency of an extra, one of a group, and one for developers."""
    return project(
        '"alpha==1.0"',
        f"""\
[project.optional-dependencies]
web = ["beta=={beta}"]
[dependency-groups]
jobs = ["gamma==1.0"]
dev = ["x"]
[tool.uv.sources]
x = {{path = "libs/x"}}
""",
    )


def test_uv_groups_and_extras(app: Shaped) -> None:
    wheels(app.wheels)
    files = {"deploy.ini": recipe("uv: groups and extras"), "docs/index.md": "", **toolbox.library("x", "first")}
    app.change({**files, "pyproject.toml": uv_groups("1.0")}, "uv lock -q")
    assert said(app, "alpha", "beta", "gamma") == ["1.0", "1.0", "1.0"]
    assert not is_there(app, "x")
    assert app.change(UNRELATED).ran() == []
    assert app.change({"pyproject.toml": uv_groups("2.0")}, "uv lock -q").ran() == ["python-uv"]
    assert said(app, "alpha", "beta") == ["1.0", "2.0"]


WORKSPACE = '[tool.uv.workspace]\nmembers = ["libs/*"]\n'
SOURCES = "[tool.uv.sources]\nx = {workspace = true}\n"


@pytest.mark.parametrize("folder", ["", "backend/"])
def test_packages_in_the_repository_with_uv(app: Shaped, folder: str) -> None:
    files = {f"{folder}pyproject.toml": project('"x"', WORKSPACE + SOURCES)}
    files |= toolbox.library("x", "first", folder=f"{folder}libs")
    app.change({**files}, f"uv lock -q --directory ./{folder}")
    assert app.says("x") == "first"
    assert not (app.current / "backend/.venv").exists()
    app.change(toolbox.module("x", "second", folder=f"{folder}libs"))
    assert app.says("x") == "second"


def test_uv_one_member_of_a_workspace(app: Shaped) -> None:
    files = {**toolbox.library("x", "first"), **toolbox.library("shop", "one", '"x"'), **toolbox.library("other", "no")}
    files["libs/shop/pyproject.toml"] = toolbox.clean(str(files["libs/shop/pyproject.toml"])) + SOURCES
    ini = recipe("uv: one member of a workspace")
    app.change({**files, "pyproject.toml": WORKSPACE, "deploy.ini": ini}, "uv lock -q")
    assert said(app, "x", "shop") == ["first", "one"]
    assert not any(app.current.glob(".venv/lib/python3*/site-packages/*other*"))
    app.change(toolbox.module("x", "second"))
    assert app.says("x") == "second"


A_WHEEL = '[tool.poetry.dependencies]\nalpha = {path = "wheels/alpha-1.0-py3-none-any.whl"}\n'


@pytest.mark.parametrize("tool", ["uv", "poetry"])
def test_the_project_itself_as_a_package(app: Shaped, tool: str) -> None:
    wheels(app.wheels if tool == "uv" else app.origin / "wheels")
    about = project('"alpha"', A_WHEEL * (tool == "poetry"), is_package=True)
    files = {"pyproject.toml": about, "backend.py": toolbox.BACKEND}
    files |= {"src/shop/__init__.py": "SAYS = 'first'\n", "deploy.ini": recipe("The project itself as a package")}
    app.change({**files}, f"{tool} lock -q")
    assert app.says("shop") == "first"
    app.change({"src/shop/__init__.py": "SAYS = 'second'\n"})
    assert app.says("shop") == "second"


def pipfile(*packages: str) -> str:
    return "\n".join(["[[source]]", 'url = "https://localhost/simple"', 'name = "none"', "[packages]", *packages, ""])


def test_another_package_manager(app: Shaped) -> None:
    wheels(app.wheels)
    local, alpha, beta = 'x = {path = "./libs/x"}', 'alpha = "==1.0"', 'beta = "*"'
    files = {**toolbox.library("x", "first"), "deploy.ini": recipe("Another package manager"), "docs/index.md": ""}
    app.change({**files, "Pipfile": pipfile(alpha, beta)}, "pipenv lock")
    assert said(app, "alpha", "beta") == ["1.0", "2.0"]
    assert app.change(UNRELATED).ran() == []
    app.change({"Pipfile": pipfile(local), **toolbox.module("x", "second")}, "pipenv lock")
    assert app.says("x") == "second"
    assert not is_there(app, "beta"), "pipenv removes nothing, so it must not begin with what was there"


# --- environments share files, and none changes in another


UPDATES = int(os.environ.get("DEPLOY_MACHINE_UPDATES", "4"))  # of each tool


def draw(tool: str, chance: random.Random) -> tuple[Files, list[str]]:
    """What a commit changes, by chance, and what its developer runs: packages come, go and get other versions."""
    versions = {name: chance.choice(["1.0", "2.0", ""]) for name in ("alpha", "beta", "gamma")}
    wanted = {name: version for name, version in versions.items() if version}
    if tool == "pip":  # it removes nothing, so it updates only what belongs to one release and is the same in the next
        return {"requirements.txt": "alpha\n-e ./libs/x\n", **toolbox.library("x", "first")}, []
    if tool == "uv":
        return {"pyproject.toml": project(", ".join(f'"{name}=={wanted[name]}"' for name in wanted))}, ["uv lock -q"]
    paths = [f'{name} = {{path = "wheels/{name}-{wanted[name]}-py3-none-any.whl"}}' for name in wanted]
    return {"pyproject.toml": poetry_project("\n".join(paths))}, ["poetry lock"]


def content(top: Path) -> str:
    """All that is in a folder, times and modes included, as a digest."""
    found = hashlib.sha256()
    for path in sorted(top.rglob("*")):
        about = path.lstat()
        found.update(f"{path} {about.st_mode:o} {about.st_size} {about.st_mtime_ns}\n".encode())
        if path.is_file():
            found.update(path.read_bytes())
    return found.hexdigest()


@pytest.mark.parametrize("tool", ["pip", "poetry", "uv"])
def test_a_finished_environment_stays_as_it_is(app: Shaped, tool: str) -> None:
    wheels(app.wheels)
    wheels(app.origin / "wheels")
    chance, known, links = random.Random(tool), dict[Path, str](), 0
    for number in range(UPDATES):
        files, lines = draw(tool, chance)
        done = app.change({**files, "deploy.ini": "[deploy]\nkeep = 3\nshared =\n", "number": f"{number}\n"}, *lines)
        links += done.log.count("starting from links to python")
        assert "building it fresh" not in done.log
        for venv, digest in known.items():
            assert not venv.exists() or content(venv) == digest, f"update {number} changed {venv}"
        known = {venv: content(venv) for venv in app.root.glob("envs/python*/.venv")}
    assert links > UPDATES // 2, "else this has shown nothing"

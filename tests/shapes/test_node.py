"""Recipes for Node.js: deployed, changed in one place, deployed again: the release has the new, and skips the rest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shapes import toolbox
from shapes.conftest import Files, Shaped, recipe

UNRELATED: Files = {"docs/index.md": "more\n"}
# What a build tool does: it reads sources wherever they lie, and packages, and writes a folder.
BUILD = """\
const fs = require("fs");
const [out, ...sources] = process.argv.slice(2);
fs.mkdirSync(out, { recursive: true });
fs.writeFileSync(`${out}/app.css`, sources.map((path) => fs.readFileSync(path, "utf8")).join("") + require("alpha"));
"""


def package(**about: object) -> str:
    return json.dumps({"name": "shop", "version": "1.0.0", "private": True, **about}, indent=2)


def tarballs(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for version in ("1.0.0", "2.0.0"):
        (folder / f"alpha-{version}.tgz").write_bytes(toolbox.tarball("alpha", version))


def shop(
    version: str, build: str = "node build.js static/dist assets/app.css", folder: str = "", **more: object
) -> Files:
    """package.json of an application with one package and a build."""
    depends = {"alpha": f"file:vendor/alpha-{version}.tgz"}
    return {f"{folder}package.json": package(**{"scripts": {"build": build}, "devDependencies": depends, **more})}


def sources(says: str, folder: str = "") -> Files:
    return {f"{folder}assets/app.css": says + "\n", f"{folder}build.js": BUILD, "docs/index.md": ""}


MANAGERS = {
    "npm": ("node", "npm install --package-lock-only"),
    "pnpm": ("node-pnpm", "pnpm install --lockfile-only"),
    "yarn": ("node-yarn", "yarn install --ignore-scripts"),
    "berry": ("node-yarn", "yarn install --mode=update-lockfile"),
    "bun": ("bun", "bun install --lockfile-only"),
}
IGNORED = "node_modules\n.yarn\n"


@pytest.mark.parametrize("manager", [*MANAGERS])
def test_each_manager_installs_and_builds(tmp_path: Path, manager: str) -> None:
    app = Shaped(tmp_path, **({"yarn": "@yarnpkg/cli-dist/bin/yarn.js"} if manager == "berry" else {}))
    step, lock = MANAGERS[manager]
    app.set_env(NODE_ENV="production")  # the build needs what is for developers only
    ini = recipe("Bun") if manager == "bun" else "[deploy]\n"
    more: Files = {".yarnrc.yml": "nodeLinker: node-modules\n"} if manager == "berry" else {}
    tarballs(app.origin / "vendor")
    first = app.change({"deploy.ini": ini, ".gitignore": IGNORED, **shop("1.0.0"), **sources("first"), **more}, lock)
    assert first.ran() == [step, "build"]
    assert app.text("static/dist/app.css") == "first\n1.0.0"
    assert app.change(UNRELATED).ran() == []
    assert app.change({"assets/app.css": "second\n"}).ran() == ["build"]
    assert app.text("static/dist/app.css") == "second\n1.0.0"
    assert app.change(shop("2.0.0"), lock).ran() == [step, "build"]
    assert app.text("static/dist/app.css") == "second\n2.0.0"


def member(name: str, **about: object) -> Files:
    return {f"packages/{name}/package.json": json.dumps({"name": name, "version": "1.0.0", "private": True, **about})}


SITE = "const fs = require('fs'); fs.mkdirSync('dist', {recursive: true}); fs.writeFileSync('dist/app', require('lib'))"


WORKSPACES = {"npm": recipe("npm workspaces"), "pnpm": recipe("pnpm workspaces")}


@pytest.mark.parametrize("manager", [*WORKSPACES])
def test_workspaces(app: Shaped, manager: str) -> None:
    version = "*" if manager == "npm" else "workspace:*"
    files = {"package.json": package(workspaces=["packages/*"]), "pnpm-workspace.yaml": "packages: ['packages/*']\n"}
    files |= member("site", scripts={"build": "node build.js"}, dependencies={"lib": version}) | member("lib")
    files |= {
        "packages/site/build.js": SITE,
        "packages/lib/index.js": "module.exports = 'first'\n",
        "docs/index.md": "",
    }
    files |= {"deploy.ini": WORKSPACES[manager], ".gitignore": IGNORED}
    app.change({**files}, MANAGERS[manager][1])
    assert app.text("packages/site/dist/app") == "first"
    app.change({"packages/lib/index.js": "module.exports = 'second'\n"})
    assert app.text("packages/site/dist/app") == "second"
    app.change(UNRELATED)
    assert app.text("packages/site/dist/app") == "second"


def test_a_package_without_dependencies(app: Shaped) -> None:
    script = "mkdir -p static/dist && cat assets/*.css > static/dist/app.css"
    files = {"package.json": package(scripts={"build": script}), "assets/a.css": "a\n", "docs/index.md": ""}
    app.change({**files}, "npm install --package-lock-only")
    assert app.text("static/dist/app.css") == "a\n"
    assert app.change(UNRELATED).ran() == []
    assert app.change({"assets/b.css": "b\n"}).ran() == ["build"]
    assert app.text("static/dist/app.css") == "a\nb\n"


def test_build_tools(app: Shaped) -> None:
    script = "mkdir -p dist && cat client/* config.js > dist/app.js"
    files = {"package.json": package(scripts={"build": script}), "client/a.js": "1\n", "config.js": "one\n"}
    app.commit(files)
    said = app.deploy(expect=10).result["message"]
    assert "it made dist/: write provides = dist under [step build]" in said
    app.change({"deploy.ini": recipe("Build tools")})
    assert app.change({"config.js": "two\n"}).ran() == ["build"]
    assert app.text("dist/app.js") == "1\ntwo\n"


def test_tailwind(app: Shaped) -> None:
    app.set_env(NODE_PATH=str(toolbox.NODE))
    script = "tailwindcss --input src/app.css --output static/css/app.css"
    files = {"package.json": package(scripts={"build": script}), "src/app.css": '@import "tailwindcss";\n'}
    files |= {"board/templates/a.html": '<p class="text-red-500">', "static/css/old.css": "", "docs/index.md": ""}
    app.change({**files, "deploy.ini": recipe("Tailwind")})
    assert "text-red-500" in app.text("static/css/app.css")
    assert app.change({"board/templates/a.html": '<p class="text-blue-500">'}).ran() == ["build"]
    assert "text-blue-500" in app.text("static/css/app.css")
    assert app.change({"board/templates/b.html": '<p class="underline">'}).ran() == ["build"]
    assert "underline" in app.text("static/css/app.css")


def test_no_steps_at_all(app: Shaped) -> None:
    assert app.change({"index.html": "one", "deploy.ini": recipe("No steps at all")}).result["steps"] == []
    app.change({"index.html": "two"})
    assert app.text("index.html") == "two"


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("mkdir -p dist/assets .cache && touch dist/index.html .cache/x", "it made dist/: write provides = dist under"),
        ("mkdir -p public && touch public/app.css", "it made public/app.css: write provides = public/app.css under"),
        ("true", "and nothing else: an empty run = in deploy.ini removes that step"),
    ],
)
def test_what_a_build_made_instead_is_named(app: Shaped, script: str, said: str) -> None:
    app.commit({"package.json": package(scripts={"build": script}), "public/robots.txt": ""})
    message = app.deploy(expect=10).result["message"]
    assert "step build failed: npm run build succeeded but did not make static/dist" in message
    assert said in message


def test_packages_are_installed_and_built_in_their_folder(app: Shaped) -> None:
    tarballs(app.origin / "web/vendor")
    app.change(
        {**shop("1.0.0", folder="web/"), **sources("first", "web/")}, "npm install --prefix web --package-lock-only"
    )
    assert app.text("web/static/dist/app.css") == "first\n1.0.0"
    assert app.change({"web/assets/app.css": "second\n"}).ran() == ["build"]
    assert app.text("web/static/dist/app.css") == "second\n1.0.0"

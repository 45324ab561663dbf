"""Files that change what an installer does, and that no step names: each counts, since the tool reads it or would."""

from __future__ import annotations

from pathlib import Path

import pytest

from shapes.conftest import Files, Shaped
from shapes.test_node import IGNORED, MANAGERS, UNRELATED, shop, tarballs
from shapes.test_python import project, wheels

NODE = {
    "npm": {".npmrc": "fund=false\n"},
    "pnpm": {"pnpm-workspace.yaml": "shamefullyHoist: true\n"},
    "yarn": {".yarnrc": "--install.silent true\n"},
    "berry": {".yarnrc.yml": "nodeLinker: node-modules\nnmMode: classic\n"},
}


@pytest.mark.parametrize("manager", [*NODE])
def test_settings_of_managers_of_node_js(tmp_path: Path, manager: str) -> None:
    app = Shaped(tmp_path, **({"yarn": "@yarnpkg/cli-dist/bin/yarn.js"} if manager == "berry" else {}))
    step, lock = MANAGERS[manager]
    more: Files = {".yarnrc.yml": "nodeLinker: node-modules\n"} if manager == "berry" else {}
    tarballs(app.origin / "vendor")
    app.change({".gitignore": IGNORED, "docs/index.md": "", **shop("1.0.0", build=""), **more}, lock)
    assert app.change(UNRELATED).ran() == []
    assert app.change(NODE[manager]).ran() == [step]


def test_patches_that_a_script_applies(app: Shaped) -> None:
    patch = "require('fs').appendFileSync('node_modules/alpha/index.js', require('fs').readFileSync('patches/a.txt'))"
    files = shop("1.0.0", build="", scripts={"postinstall": "node patch.js"})
    files |= {"patch.js": patch, "patches/a.txt": "module.exports += ' first'\n", "docs/index.md": ""}
    tarballs(app.origin / "vendor")
    app.change({**files}, "npm install --package-lock-only --ignore-scripts")
    assert app.node_says("require('alpha')") == "1.0.0 first"
    assert app.change(UNRELATED).ran() == []
    assert app.change({"patches/a.txt": "module.exports += ' second'\n"}).ran() == ["node"]
    assert app.node_says("require('alpha')") == "1.0.0 second"


@pytest.mark.parametrize(
    ("tool", "change"),
    [("poetry", {"poetry.toml": "[installer]\nparallel = false\n"}), ("uv", {"uv.toml": 'link-mode = "copy"\n'})],
)
def test_settings_of_installers_of_python(app: Shaped, tool: str, change: Files) -> None:
    wheels(app.wheels)
    step = {"poetry": "python", "uv": "python-uv"}[tool]
    app.change({"pyproject.toml": project(), "deploy.ini": NO_GROUP[tool], "docs/index.md": ""}, f"{tool} lock -q")
    assert app.change(UNRELATED).ran() == []
    assert app.change(change).ran() == [step]


NO_GROUP = {"poetry": "[step python]\nrun = poetry sync --no-root --no-interaction\n", "uv": ""}

"""An application of some shape, on a machine that is a frontend, with the real tools and without a network."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Union

import pytest

from shapes import toolbox
from small_app import REPOSITORY, App, Outcome

Files = dict[str, Union[str, bytes, None]]
RECIPES = REPOSITORY / "docs/recipes.md"


class Shaped(App):
    """Changes are committed and deployed in one go; tools run in the repository, as its developers run them."""

    def __init__(self, directory: Path, **instead: str) -> None:
        """instead: another program under a tool's name."""
        super().__init__(directory)
        self.wheels = directory / "wheels"
        self.wheels.mkdir()
        self.env = toolbox.tools(directory, **instead)
        (self.root / "state").mkdir()
        (self.root / "shared").mkdir()
        self.set_env()

    def set_env(self, **more: str) -> None:
        """Write shared/.env: without a network, and with more."""
        found = {**toolbox.OFFLINE, "PIP_FIND_LINKS": str(self.wheels), "UV_FIND_LINKS": str(self.wheels), **more}
        self.env.update(found)
        (self.root / "shared/.env").write_text("".join(f"{name}={value}\n" for name, value in found.items()))

    def command(self, *arguments: str) -> list[str]:
        return [word.replace("web", "frontend") if word == "web" else word for word in super().command(*arguments)]

    def tool(self, line: str, folder: str = ".") -> str:
        return toolbox.call(*shlex.split(line), cwd=self.origin / folder, env=self.env)

    def change(self, files: Files, *lines: str) -> Outcome:
        """Commit files, after what tools make of them, and deploy."""
        for name, content in files.items():
            path = self.origin / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                path.write_bytes(content)
            elif content is not None:
                path.write_text(toolbox.clean(content))
        for line in lines:
            self.tool(line)
        self.commit({name: content for name, content in files.items() if content is None})
        return self.deploy()

    def says(self, name: str) -> str:
        """What a module of the release says."""
        code = f"import {name}; print({name}.SAYS)"
        return toolbox.call(".venv/bin/python", "-c", code, cwd=self.current, env=self.env)

    def node_says(self, code: str, folder: str = ".") -> str:
        return toolbox.call("node", "-p", code, cwd=self.current / folder, env=self.env)

    def text(self, path: str) -> str:
        return (self.current / path).read_text()


def recipe(title: str) -> str:
    """The deploy.ini of a recipe, as the document has it."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", RECIPES.read_text(), re.MULTILINE | re.DOTALL)
    assert found, f"{RECIPES} has no recipe {title}"
    blocks: list[str] = re.findall(r"^```ini\n(.*?)^```$", found[1], re.MULTILINE | re.DOTALL)
    return "\n".join(blocks)


@pytest.fixture
def app(tmp_path: Path) -> Shaped:
    return Shaped(tmp_path)

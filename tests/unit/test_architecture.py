"""The plan of the house, held against the code: which room may use which, and how large one may become."""

from __future__ import annotations

import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
PACKAGE = SCRIPTS / "deployer"
ROOMS = (
    "errors log telling run dotenv files observe ini config shapes host tools messages pending memory lock mirror"
    " signatures inputs releases drift steps complaints commands migrations environments services sharing build health"
    " slots draining installed replacing switching carrier handover metrics attempt watch deploy standing views inside"
    " cli"
).split()
APART = {"__init__", "migrate_locked", "site_hook"}  # the latter two are run by the application's Python, not imported


def tree(room: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{room}.py").read_text())


def imports(module: ast.AST) -> Iterator[str]:
    """What a module imports of the package: names of rooms, or `room.name` for a name of one."""
    for node in ast.walk(module):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "deployer":
            room = (node.module or "").partition(".")[2]
            yield from (f"{room}.{alias.name}" if room else alias.name for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "deployer")


def test_every_file_is_a_room_of_the_plan() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} == {*ROOMS, *APART}
    plan = (SCRIPTS.parent / "docs/contributing.md").read_text()
    assert [room for room in ROOMS if f"| `{room}` |" not in plan] == [], "docs/contributing.md does not name it"


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_rooms_above_it_and_no_names(room: str) -> None:
    above = {*ROOMS[: ROOMS.index(room)], "VERSION"}
    assert set(imports(tree(room))) <= above


@pytest.mark.parametrize("room", sorted(APART | {"carrier", "dotenv"}))
def test_what_runs_alone_imports_nothing_of_the_package(room: str) -> None:
    assert list(imports(tree(room))) == []


def first_words(room: str) -> set[str]:
    """The first words of all lists and tuples, such as arguments of a command begin with."""
    lists = [node for node in ast.walk(tree(room)) if isinstance(node, (ast.List, ast.Tuple)) and node.elts]
    firsts = [node.elts[0] for node in lists]
    return {first.value for first in firsts if isinstance(first, ast.Constant) and isinstance(first.value, str)}


def test_only_one_room_runs_git_and_only_one_calls_sudo() -> None:
    assert [room for room in ROOMS if "git" in first_words(room)] == ["mirror"]
    assert [room for room in ROOMS if "sudo" in first_words(room)] == ["services"]


def functions(module: ast.AST) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(module) if isinstance(node, ast.FunctionDef)]


def length(node: ast.FunctionDef) -> int:
    return (node.end_lineno or 0) - node.lineno + 1


def test_rooms_and_functions_stay_small() -> None:
    lines = {room: len((PACKAGE / f"{room}.py").read_text().splitlines()) for room in ROOMS}
    assert {room: number for room, number in lines.items() if number > 350} == {}
    lengths = {f"{room}.{node.name}": length(node) for room in ROOMS for node in functions(tree(room))}
    assert {name: number for name, number in lengths.items() if number > 50} == {}
    assert statistics.median(lengths.values()) <= 8
    stories = {node.name: length(node) for node in functions(tree("deploy"))}
    assert {name: number for name, number in stories.items() if number > 45} == {}
    assert max(stories[name] for name in ("deploy", "bring_to_target", "bring_from", "rollback", "settled")) <= 25


def locals_of(node: ast.FunctionDef) -> set[str]:
    names = {child.id for child in ast.walk(node) if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store)}
    return names | {argument.arg for argument in [*node.args.args, *node.args.kwonlyargs]}


@pytest.mark.parametrize("room", ROOMS)
def test_no_local_hides_a_function_or_a_room(room: str) -> None:
    module = tree(room)
    hidden = {node.name for node in module.body if isinstance(node, ast.FunctionDef)} | set(imports(module))
    assert {node.name: names for node in functions(module) if (names := locals_of(node) & hidden)} == {}


def test_each_room_says_in_one_line_what_it_is_for() -> None:
    for room in [*ROOMS, "migrate_locked", "site_hook"]:
        first = (ast.get_docstring(tree(room)) or "").splitlines()[0]
        assert first.endswith((".", ":")) and len(first) > 20, room

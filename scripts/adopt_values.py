"""What Django settings say, without running them: modules read with ast, followed along their imports.

Not everything can be known so. What cannot is UNKNOWN, and whoever asks for a value must be able to do without.
"""

from __future__ import annotations

import ast
import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import adopt_repo as repo

MOST_MODULES = 60
ENVIRON = re.compile(r"(os\.)?environ")
READERS = re.compile(r"(os\.)?getenv|(os\.)?environ(\.get)?|env|env\.[a-z_]+|config")
NO_SETTING = {"DJANGO_SETTINGS_MODULE", "PATH", "HOME", "PWD", "USER", "PYTHONPATH", "VIRTUAL_ENV", "DYNO"}
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Unknown:
    def __repr__(self) -> str:
        return "UNKNOWN"


UNKNOWN = Unknown()


class Place(NamedTuple):
    """A path, relative to the repository."""

    path: str

    def join(self, *parts: object) -> Place:
        return Place(os.path.normpath(os.path.join(self.path, *map(str, parts))))

    def up(self, times: int = 1) -> Place:
        return self.join(*[".."] * times)

    @property
    def is_inside(self) -> bool:
        """Whether it is a folder or file of the repository that deploy.ini can name."""
        return bool(re.fullmatch(r"(?!\.\.(/|$))(?!\.$)[\w./@+-]+", self.path))


class Asked(NamedTuple):
    """A value from the environment, and what it is if nothing is said there."""

    name: str
    default: Any = UNKNOWN
    kind: str = ""  # how it is read: bool, list, words, url ...


Names = dict[str, Any]


def plain(value: Any) -> Any:
    """A value as it is if the environment says nothing."""
    return plain(value.default) if isinstance(value, Asked) else value


class Variable(NamedTuple):
    """A variable of the environment that the settings read."""

    name: str
    default: Any = UNKNOWN
    is_needed: bool = False  # there is no default
    kind: str = ""


class Reader:
    """Reads modules of an application, which lie below the folder that has manage.py."""

    def __init__(self, application: repo.Application, folder: str) -> None:
        self.application, self.folder = application, folder
        self.modules: dict[str, Names] = {}  # path -> names
        self.trees: dict[str, ast.Module] = {}
        self.broken: dict[str, str] = {}  # path -> what Python would say

    def path_of(self, module: str) -> str:
        """Where a module lies in the repository; empty if it is not the application's own."""
        start = os.path.normpath(os.path.join(self.folder, *module.split(".")))
        found = [path for path in (f"{start}.py", f"{start}/__init__.py") if path in self.application.files]
        return found[0] if found else ""

    def parse(self, path: str) -> ast.Module:
        """The module's tree, which is empty if Python could not read it."""
        if path not in self.trees:
            try:
                self.trees[path] = ast.parse(self.application.data(path) or b"")
            except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
                line = getattr(error, "lineno", None)
                self.broken[path] = f"{path}{f', line {line}' if line else ''}: {getattr(error, 'msg', error)}"
                self.trees[path] = ast.Module([], [])
        return self.trees[path]

    def names(self, path: str) -> Names:
        """What the module at a path defines, as far as it can be known."""
        if path not in self.modules and len(self.modules) < MOST_MODULES:
            names = self.modules[path] = {"__file__": Place(path)}
            with contextlib.suppress(RecursionError):
                Evaluation(self, path, names).run(self.parse(path).body)
        return self.modules.get(path, {})

    def variables(self) -> dict[str, Variable]:
        """The variables that the modules read so far ask for, by name."""
        found: dict[str, Variable] = {}
        for path in self.modules:
            for variable in asked_in(self.parse(path), self.modules[path]):
                before = found.get(variable.name)
                if NAME.fullmatch(variable.name) and variable.name not in NO_SETTING:
                    found[variable.name] = before if before and not before.is_needed else variable
        return found


class Evaluation:
    """The statements of one module, in order."""

    def __init__(self, reader: Reader, path: str, names: Names) -> None:
        self.reader, self.path, self.names = reader, path, names

    def run(self, body: list[ast.stmt], may_be: bool = False) -> None:
        """may_be: nobody knows whether these statements are reached, so they only add what is not known yet."""
        for node in body:
            if isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
                self.assign(node, may_be)
            elif isinstance(node, ast.ImportFrom):
                self.imported(node)
            elif isinstance(node, ast.If):
                known = self.truth(node.test)
                self.run(node.body if known is not False else [], may_be or known is None)
                self.run(node.orelse if known is not True else [], may_be or known is None)
            elif isinstance(node, ast.FunctionDef) and is_wrapper(node):
                self.names[node.name] = Wrapper(node.name)
            elif isinstance(node, (ast.Try, ast.With)):
                self.run(node.body, may_be)
                for handler in getattr(node, "handlers", []):
                    self.run(handler.body, may_be=True)

    def truth(self, test: ast.expr) -> bool | None:
        """A deployed application does not run with DEBUG; nothing else is taken for known."""
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            inner = self.truth(test.operand)
            return None if inner is None else not inner
        return False if ast.unparse(test) in ("DEBUG", "settings.DEBUG") else None

    def assign(self, node: ast.Assign | ast.AnnAssign | ast.AugAssign, may_be: bool) -> None:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        value = self.value(node.value) if node.value is not None else UNKNOWN
        for target in targets:
            if isinstance(target, ast.Name):
                if isinstance(node, ast.AugAssign):
                    value = added(self.names.get(target.id, UNKNOWN), value)
                if not may_be or target.id not in self.names or isinstance(value, Asked):
                    self.names[target.id] = value
            elif isinstance(target, ast.Subscript) and isinstance(box := self.value(target.value), dict):
                box[self.key(target.slice)] = value
            elif isinstance(target, ast.Tuple) and isinstance(value, list) and len(value) == len(target.elts):
                self.names.update((ast.unparse(one), each) for one, each in zip(target.elts, value))

    def imported(self, node: ast.ImportFrom) -> None:
        package = PurePosixPath(self.path).parent
        if node.level:
            folder = Place(str(package)).up(node.level - 1).path
            module = "/".join([folder, *(node.module or "").split(".")]).rstrip("/")
            found = [path for path in (f"{module}.py", f"{module}/__init__.py") if self.has(path)]
            path = os.path.normpath(found[0]) if found else ""
        else:
            path = self.reader.path_of(node.module or "")
        if not path:
            return
        theirs = self.reader.names(path)
        for alias in node.names:
            if alias.name == "*":
                self.names.update((name, value) for name, value in theirs.items() if not name.startswith("_"))
            elif alias.name in theirs:
                self.names[alias.asname or alias.name] = theirs[alias.name]

    def has(self, path: str) -> bool:
        return os.path.normpath(path) in self.reader.application.files

    def value(self, node: ast.expr) -> Any:
        """What an expression is."""
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Name):
            return self.names.get(node.id, UNKNOWN)
        if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
            return [part for one in node.elts for part in self.element(one)]
        if isinstance(node, ast.Dict):
            return {self.key(key): self.value(one) for key, one in zip(node.keys, node.values)}
        if isinstance(node, ast.JoinedStr):
            inner = [one.value if isinstance(one, ast.FormattedValue) else one for one in node.values]
            parts = [plain(self.value(one)) for one in inner]
            return "".join(parts) if all(isinstance(part, str) for part in parts) else UNKNOWN
        if isinstance(node, ast.BinOp):
            return self.operation(self.value(node.left), node.op, self.value(node.right))
        if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.Or):
            return next((one for one in map(self.value, node.values) if isinstance(one, Asked) or one), UNKNOWN)
        if isinstance(node, ast.IfExp) and (known := self.truth(node.test)) is not None:
            return self.value(node.body if known else node.orelse)
        if isinstance(node, ast.Subscript):
            return self.item(node)
        if isinstance(node, ast.Attribute):
            return self.attribute(self.value(node.value), node.attr)
        if isinstance(node, ast.Call):
            return self.call(node)
        return UNKNOWN

    def key(self, node: ast.expr | None) -> Any:
        """The key of a dictionary, as far as it is a plain one."""
        value = self.value(node) if node else UNKNOWN
        return value if isinstance(value, (str, int)) else UNKNOWN

    def element(self, node: ast.expr) -> list[Any]:
        if not isinstance(node, ast.Starred):
            return [self.value(node)]
        inner = self.value(node.value)
        return inner if isinstance(inner, list) else [UNKNOWN]

    def operation(self, left: Any, operator: ast.operator, right: Any) -> Any:
        if isinstance(left, Place) and isinstance(operator, ast.Div) and isinstance(plain(right), str):
            return left.join(plain(right))
        if isinstance(left, Place) and isinstance(operator, ast.Sub) and isinstance(right, int):
            return left.up(right)
        if isinstance(left, Place) and isinstance(operator, ast.Add) and isinstance(right, str):
            return left.join(right.lstrip("/"))
        return added(left, right) if isinstance(operator, ast.Add) else UNKNOWN

    def item(self, node: ast.Subscript) -> Any:
        if ENVIRON.fullmatch(ast.unparse(node.value)):
            name = self.value(node.slice)
            return Asked(name) if isinstance(name, str) else UNKNOWN
        box, key = self.value(node.value), self.value(node.slice)
        if isinstance(node.value, ast.Attribute) and node.value.attr == "parents" and isinstance(key, int):
            inner = self.value(node.value.value)
            return inner.up(key + 1) if isinstance(inner, Place) else UNKNOWN
        try:
            return box[key] if isinstance(box, (dict, list)) else UNKNOWN
        except (KeyError, IndexError, TypeError):
            return UNKNOWN

    def attribute(self, value: Any, name: str) -> Any:
        if isinstance(value, Place):
            return value.up() if name == "parent" else value if name in ("root", "path") else UNKNOWN
        return UNKNOWN

    def call(self, node: ast.Call) -> Any:
        name = ast.unparse(node.func)
        if asked := ask(node, self.names):
            fallback = default_of(node)
            return Asked(asked, self.value(fallback) if fallback is not None else UNKNOWN, kind_of(node))
        arguments = [self.value(argument) for argument in node.args]
        first = arguments[0] if arguments else UNKNOWN
        short = name.rpartition(".")[2]
        if isinstance(node.func, ast.Name) and isinstance(place := self.names.get(name), Place):
            return self.of_place(place, "__call__", arguments)
        if isinstance(node.func, ast.Attribute):
            on = self.value(node.func.value)
            if isinstance(on, Place):
                return self.of_place(on, node.func.attr, arguments)
            if isinstance(on, Asked) and node.func.attr == "split":
                return split(on, first if node.args else "")
            if isinstance(on, Asked):
                return on._replace(default=UNKNOWN)
        if short in ("Path", "abspath", "realpath", "str", "fspath", "normpath", "root"):
            return first
        if short == "dirname" and isinstance(first, Place):
            return first.up()
        if name.endswith("path.join") and isinstance(first, Place):
            rest = [plain(argument) for argument in arguments[1:]]
            return first.join(*rest) if all(isinstance(part, (str, Place)) for part in rest) else UNKNOWN
        if short in ("bool", "int", "list", "tuple", "set") and len(node.args) == 1:
            return first
        found = [argument for argument in arguments if isinstance(argument, Asked)]
        return found[0]._replace(default=UNKNOWN) if len(found) == 1 else UNKNOWN

    def of_place(self, place: Place, method: str, arguments: list[Any]) -> Any:
        if method in ("joinpath", "path", "child", "__call__") and all(isinstance(one, str) for one in arguments):
            return place.join(*arguments)
        return place if method in ("resolve", "absolute", "as_posix", "expanduser") else UNKNOWN


def split(asked: Asked, by: Any) -> Asked:
    default = plain(asked)
    words = default.split(by or None) if isinstance(default, str) and isinstance(by, str) else UNKNOWN
    return Asked(asked.name, words, "list" if by == "," else "words")


def added(left: Any, right: Any) -> Any:
    """left + right, where one of lists may be known in part."""
    if isinstance(left, list) or isinstance(right, list):
        return [part for one in (left, right) for part in (one if isinstance(one, list) else [UNKNOWN])]
    return left + right if isinstance(left, str) and isinstance(right, str) else UNKNOWN


# --- what is asked of the environment


def ask(node: ast.Call, names: Mapping[str, Any]) -> str:
    """The variable that a call reads; empty if it reads none."""
    name = ast.unparse(node.func)
    first = node.args[0] if node.args else None
    if name.endswith("dj_database_url.config") or (name in ("env.db", "env.db_url") and first is None):
        word = next((key.value for key in node.keywords if key.arg == "env"), None)
        return str(word.value) if isinstance(word, ast.Constant) else "DATABASE_URL"
    is_reader = READERS.fullmatch(name) or isinstance(names.get(name), Wrapper)
    if is_reader and isinstance(first, ast.Constant) and isinstance(first.value, str):
        return first.value if NAME.fullmatch(first.value) else ""
    return ""


class Wrapper(NamedTuple):
    """A function of the application's own that reads the variable which its first argument names."""

    name: str


def is_wrapper(node: ast.FunctionDef) -> bool:
    if not node.args.args:
        return False
    parameter = node.args.args[0].arg
    reads = rf"(environ(\.get\(|\[)|getenv\(){parameter}\b|\b{parameter} in (os\.)?environ"
    return bool(re.search(reads, ast.unparse(node)))


def default_of(node: ast.Call) -> ast.expr | None:
    """What a call that reads a variable gives if there is none."""
    named = {key.arg: key.value for key in node.keywords}
    if "default" in named:
        return named["default"]
    return node.args[1] if len(node.args) > 1 else None


def kind_of(node: ast.Call) -> str:
    """How the variable is read, as far as its call says so."""
    cast = next((ast.unparse(key.value) for key in node.keywords if key.arg in ("cast", "parser")), "")
    if "Csv" in cast:
        return "list"
    method = ast.unparse(node.func).rpartition(".")[2]
    return cast if cast in ("bool", "int", "list") else method if method in ("bool", "int", "list", "url", "db") else ""


def asked_in(tree: ast.Module, names: Mapping[str, Any]) -> Iterator[Variable]:
    """All variables that a module reads. What it reads in a function, or on a condition, may not be needed."""
    scheme = {
        key.arg
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Env")
        for key in node.keywords  # environ.Env(DEBUG=(bool, False)): defaults for all calls
    }
    ahead: list[tuple[ast.AST, bool]] = [(node, True) for node in tree.body]
    while ahead:
        node, is_sure = ahead.pop(0)
        for variable in asked_by(node, names):
            yield variable._replace(is_needed=variable.is_needed and is_sure and variable.name not in scheme)
        inner = is_sure and not isinstance(node, (ast.If, ast.IfExp, ast.FunctionDef, ast.Lambda, ast.Try))
        if isinstance(node, ast.If) and ast.unparse(node.test) == "not DEBUG":
            inner = is_sure
        ahead += [(child, inner) for child in ast.iter_child_nodes(node)]


def asked_by(node: ast.AST, names: Mapping[str, Any]) -> Iterator[Variable]:
    """What one expression itself reads."""
    if isinstance(node, ast.Call) and (name := ask(node, names)):
        default, reads = default_of(node), ast.unparse(node.func)
        gives = default is not None or reads.endswith((".get", "getenv")) or isinstance(names.get(reads), Wrapper)
        yield Variable(name, default.value if isinstance(default, ast.Constant) else UNKNOWN, not gives, kind_of(node))
    elif isinstance(node, ast.Subscript) and ENVIRON.fullmatch(ast.unparse(node.value)):
        if isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str):
            yield Variable(node.slice.value, UNKNOWN, isinstance(node.ctx, ast.Load))
    elif isinstance(node, ast.Compare) and isinstance(node.left, ast.Constant):
        if any(ENVIRON.fullmatch(ast.unparse(one)) for one in node.comparators):
            yield Variable(str(node.left.value))

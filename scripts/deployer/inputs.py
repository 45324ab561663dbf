"""What a step's result depends on: what it names, what is around, what it was seen to read; each with a value."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from deployer import config, files, log, mirror, observe, tools

MANY_INPUTS = 500  # beyond so many files a step's inputs are recorded by one hash
MANY_SEEN = 5000  # beyond so many that a step has read, every file of the commit counts
# names of what is no file
MADE, SHARED, NAMES, LOOKED_FOR, LINKS, ALL_FILES = (
    "made: ",
    "shared: ",  # what a path of `shared =` leads to, or a folder there if it ends with a slash
    "names in ",
    "settings in ",
    "symbolic links",
    "any file of the commit",
)
# what an installer of packages may look for and not find; any other program may look for whatever it likes
MAY_BE_LOOKED_FOR = re.compile(
    r"(.*/)?(\..+|patches|Makefile|.*\.(toml|cfg|ini|conf|lock|json|json5|ya?ml|xml|py|[cm]?[jt]sx?|vue|css|scss|sass|less))"
)
MIGRATED = "Django's migrate"  # was seen to run in a step
AROUND = (".env", "roles", "Python", "Node.js", *sorted({*tools.NAMES.values()}))  # what tools.look() tells


def is_pattern(path: str) -> bool:
    return path.startswith("!") or any(char in path for char in "*?[")


def present(path: str, tree: mirror.Tree) -> list[str]:
    """Which of the alternatives `a|b` the commit has."""
    return [name for name in path.split("|") if name.rstrip("/") in tree]


class Pattern:
    """`*` and `?` stay within one directory, `**/` stands for any number of them, `[ab]` as in sh.

    A regular expression would try every way in which many stars could share a path: here the time grows with
    the lengths of both, whatever is in them.
    """

    ANY = ("**/", "**", "*")

    def __init__(self, pattern: str) -> None:
        self.tokens = re.findall(r"\*\*/|\*\*|\*|\?|\[[^\]]+\]|.", re.sub(r"(\*\*/)+", "**/", pattern), re.DOTALL)
        stars = sum(token in self.ANY for token in self.tokens)
        self.regex = re.compile("".join(map(regex_of, self.tokens)), re.DOTALL) if stars <= 2 else None
        self.ones = [re.compile(regex_of(token), re.DOTALL) for token in self.tokens]

    def matches(self, path: str) -> bool:
        if self.regex:
            return bool(self.regex.fullmatch(path))
        places = self.reached({0})
        for char in path:
            if not places:
                return False
            places = self.reached({place for one in places for place in self.after(one, char)})
        return len(self.tokens) in places

    def reached(self, places: set[int]) -> set[int]:
        """These places in the pattern, and those that are reached without a character. Negative: inside a `**/`."""
        found = set(places)
        for start in sorted(places):
            place = start
            while 0 <= place < len(self.tokens) and self.tokens[place] in self.ANY and place + 1 not in found:
                place += 1
                found.add(place)
        return found

    def after(self, place: int, char: str) -> Iterator[int]:
        """The places that a character leads to."""
        inside = place < 0
        token_at = ~place if inside else place
        token = self.tokens[token_at] if token_at < len(self.tokens) else ""
        if token == "**/":
            yield ~token_at
            if char == "/":
                yield token_at + 1
        elif token == "**" or (token == "*" and char != "/"):
            yield place
        elif token and token != "*" and self.ones[place].fullmatch(char):
            yield place + 1


def regex_of(token: str) -> str:
    if token in ("**/", "**", "*", "?"):
        return {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}[token]
    if len(token) > 1:
        return "[" + re.sub(r"^!", "^", token[1:-1]).replace("\\", r"\\") + "]"
    return re.escape(token)


def matching(inputs: Sequence[str], tree: mirror.Tree) -> dict[str, str]:
    """The paths of a commit that inputs name, with their content ids; `!` takes away what came before."""
    found: dict[str, str] = {}
    for item in inputs:
        if not is_pattern(item):
            found.update({name: identity(tree[name.rstrip("/")]) for name in present(item, tree)})
            continue
        pattern = Pattern(item.lstrip("!"))
        if item.startswith("!"):
            found = {path: oid for path, oid in found.items() if not pattern.matches(path)}
        else:
            entries = ((path, entry) for path, entry in tree.items() if entry.kind != "tree")
            found.update((path, identity(entry)) for path, entry in entries if pattern.matches(path))
    return found


def fingerprint_of(step: config.Step, commit: mirror.Commit, around: Mapping[str, str]) -> dict[str, str]:
    """What the step's result depends on, as far as it can be said beforehand: name -> content id or value.

    around: as tools.look() returns it.
    Empty if the step names no inputs: nobody can tell what it depends on, so it always runs.
    """
    if not step.inputs:
        return {}
    found = matching(step.inputs, commit.tree)
    if len(found) > MANY_INPUTS:
        found = {f"files of {' '.join(step.inputs)}": digest_of(found)}
    line = {"run line": shlex.join(step.run), "cwd": step.cwd, "env": shlex.join("=".join(pair) for pair in step.env)}
    return {**found, **line, **{name: around.get(name, "") for name in tools.named_by(step)}}


def identity(entry: mirror.Entry) -> str:
    """The content of a path, and whether it may be executed."""
    return entry.oid + "x" * (entry.mode == "100755")


def digest_of(found: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def key_of(step: config.Step, fingerprint: Mapping[str, str]) -> str:
    return digest_of({"provides": " ".join(step.provides), **fingerprint})[:12]


# --- what was observed of it


class View:
    """A commit as a step that runs in it sees it: what its result may depend on beside what it names."""

    def __init__(self, commit: mirror.Commit, made: Mapping[str, str], shared: Path = Path("shared")) -> None:
        """made: path that an earlier step provides -> name of the kept tree behind it; empty: it is made anew."""
        self.commit, self.made, self.shared = commit, made, shared

    @functools.cached_property
    def folders(self) -> dict[str, list[tuple[str, str]]]:
        """The paths in each folder, each with its kind."""
        found: dict[str, list[tuple[str, str]]] = {}
        for path, entry in self.commit.tree.items():
            found.setdefault(os.path.dirname(path), []).append((path, entry.kind))
        return found

    @functools.cached_property
    def links(self) -> str:
        links = {path: entry.oid for path, entry in self.commit.tree.items() if entry.mode == "120000"}
        return digest_of(links) if links else ""

    @functools.cached_property
    def all_files(self) -> str:
        return digest_of({path: identity(entry) for path, entry in self.commit.tree.items()})

    def value(self, name: str, apart: Sequence[Pattern]) -> str:
        """The present value of something that was observed; empty if it is not there any more."""
        if name == MIGRATED:
            return "yes"
        if name.startswith(MADE):
            return self.made.get(name[len(MADE) :], "")
        if name.startswith(SHARED):
            return shared_value(self.shared, name)
        if name in (LINKS, ALL_FILES, "REVISION"):
            return {LINKS: self.links, ALL_FILES: self.all_files}.get(name, self.commit.id)
        if name.startswith((NAMES, LOOKED_FOR)):
            folder = name.partition(" in ")[2][:-1]
            paths = self.folders.get("" if folder == "." else folder, [])
            every = name.startswith(NAMES)
            paths = [(path, kind) for path, kind in paths if every or MAY_BE_LOOKED_FOR.fullmatch(path)]
            return digest_of({path: kind for path, kind in paths if not any(one.matches(path) for one in apart)})
        entry = self.commit.tree.get(name)
        return identity(entry) if entry else ""

    def moved(self, step: config.Step, seen: Mapping[str, str]) -> str:
        """What of that which was observed of a step is not as it was, in words; empty if all is."""
        apart = taken_away(step)
        return changes(seen, {name: self.value(name, apart) for name in seen})

    def values(self, step: config.Step, seen: observe.Seen | None) -> dict[str, str]:
        """What is to be recorded of a run, by name: what it was seen to read, but for what `!` takes away."""
        if seen is None or len(seen.opened) + len(seen.listed) > MANY_SEEN:
            names = {ALL_FILES, *(MADE + path for path in self.made)}
        else:
            names = {self.name_of(path) for path in seen.opened}
            names |= {self.name_of(path, NAMES) for path in seen.listed}
            kind = LOOKED_FOR if installs(step) else NAMES
            names |= {self.name_of(path, kind) for path in where_it_looked(step, seen) - seen.listed}
        apart = taken_away(step)
        names = {name for name in names if not any(pattern.matches(name) for pattern in apart)}
        links = [LINKS] if names and self.links else []
        return {name: self.value(name, apart) or "not of the commit" for name in [*sorted(names), *links]}

    def name_of(self, path: str, folder: str = "") -> str:
        """The name by which a path is recorded: its own, or of the submodule or the kept tree that it lies in."""
        above = [path, *(path[: match.start()] for match in re.finditer("/", path))]
        if provided := [name for name in above if name in self.made]:
            return MADE + provided[0]
        if {place.rstrip("/") for place in self.commit.settings.shared} & {*above}:
            return f"{SHARED}{path}/" if folder else SHARED + path
        if submodules := [
            name for name in above if name in self.commit.tree and self.commit.tree[name].kind == "commit"
        ]:
            return submodules[0]
        return f"{folder}{path or '.'}/" if folder else path


def shared_value(shared: Path, name: str) -> str:
    """The present value of something below shared/ that was observed."""
    return files.identity(shared / name[len(SHARED) :])


def taken_away(step: config.Step) -> list[Pattern]:
    """What `!` takes away from the inputs does not count when it is read, either."""
    return [Pattern(item[1:]) for item in step.inputs if item.startswith("!")]


def installs(step: config.Step) -> bool:
    """Whether it installs packages: then it is known what it looks for."""
    return step.makes_venv or any(os.path.basename(path.rstrip("/")) == "node_modules" for path in step.provides)


def where_it_looked(step: config.Step, seen: observe.Seen) -> set[str]:
    """Folders in which a step may have looked for what was not there: no kernel tells that."""
    places = {*map(os.path.dirname, seen.opened)}
    if not installs(step):
        above = {path[: match.start()] for path in places for match in re.finditer("/", path)}
        places |= above | {"", step.cwd} if seen.opened else {step.cwd}
    return places


# --- in words


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """`poetry.lock changed`: the difference of two fingerprints in words."""
    groups = {
        "changed": [name for name in after if before.get(name, after[name]) != after[name] and after[name]],
        "is new": [name for name in after if name not in before and after[name]],
        "is made anew": [name for name in before if name.startswith(MADE) and not after.get(name)],
        "is gone": [name for name in before if not name.startswith(MADE) and not after.get(name) and before[name]],
    }
    return "; ".join(
        f"{log.shorten(', '.join(in_words(name, before, after) for name in names))} {verb}"
        for verb, names in groups.items()
        if names
    )


def in_words(name: str, before: Mapping[str, str] | None = None, after: Mapping[str, str] | None = None) -> str:
    """What was recorded under that name, as people see it."""
    if before and after and name in AROUND[2:] and before.get(name) and after.get(name):
        return f"{name} {before[name]} -> {after[name]}"
    if name.startswith(SHARED):
        return f"{'names in ' * name.endswith('/')}shared/{name[len(SHARED) :]}"
    return name[len(MADE) :] if name.startswith(MADE) else name


def is_file(name: str) -> bool:
    """Whether a name of what was observed is that of a file."""
    is_other = name.startswith((MADE, NAMES, LOOKED_FOR)) or name in (LINKS, ALL_FILES, MIGRATED)
    return not is_other and not (name.startswith(SHARED) and name.endswith("/"))


def is_named(path: str, inputs: Mapping[str, str]) -> bool:
    """Whether inputs name a file, or a folder above it."""
    return any(path == name or path.startswith(name.rstrip("/") + "/") for name in inputs)

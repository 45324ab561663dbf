"""What is to be run and why: a pure function of commit, machine and what is kept here from before."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from deployer import config, errors, log, mirror, observe, releases, tools

Kept = Sequence[releases.Kept]
MANY_INPUTS = 500  # beyond so many files a step's inputs are recorded by one hash
MANY_SEEN = 5000  # beyond so many that a step has read, every file of the commit counts
MADE, NAMES, LINKS, ALL_FILES = "made: ", "names in ", "symbolic links", "any file of the commit"  # what is no file
AROUND = (".env", "roles", "Python", "Node.js", *sorted({*tools.NAMES.values()}))  # what tools.look() tells
LOCK_FILES = {"poetry.lock", "uv.lock", "package-lock.json", "pnpm-lock.yaml", "yarn.lock"}


class Decision(NamedTuple):
    """What is to be done with one step in one commit, and why."""

    step: config.Step
    needed: bool
    why: str
    key: str  # of the fingerprint
    fingerprint: Mapping[str, str]  # what it is known to depend on; empty: nobody can tell
    seen: Mapping[str, str] = {}  # what the run that is taken over was observed to depend on
    kept: Path | None = None  # what is taken over
    nearest: Path | None = None  # what a new virtual environment may start from


def decide(
    commit: mirror.Commit, roles: Sequence[str], around: Mapping[str, str], kept: Kept, full: bool = False
) -> list[Decision]:
    """Decide on each step that applies to the roles and the commit, in order.

    around: what results depend on beside the commit, as tools.look() returns it.
    kept: what is here from before, the last made first.
    Raises DeployError if a lock file is missing where one is expected.
    """
    decisions, made = [], dict[str, str]()
    view = View(commit, made)
    for step in applying(commit, roles):
        fingerprint = fingerprint_of(step, commit, around)
        decision = decide_step(step, fingerprint, [tree for tree in kept if tree.step == step.name], view, full)
        made.update((path, decision.kept.name if decision.kept else "") for path in step.provides)
        decisions.append(decision)
    return decisions


def applying(commit: mirror.Commit, roles: Sequence[str]) -> list[config.Step]:
    """The steps for these roles that the commit has the paths for; of those that provide the same, the first."""
    found: list[config.Step] = []
    provided: set[str] = set()
    for step in commit.settings.steps:
        if step.roles and not set(step.roles) & set(roles):
            continue
        if not provided & set(step.provides) and applies(step, commit):
            provided |= set(step.provides)
            found.append(step)
    return found


def is_pattern(path: str) -> bool:
    return path.startswith("!") or any(char in path for char in "*?[")


def applies(step: config.Step, commit: mirror.Commit) -> bool:
    """Whether the paths that the step names are in the commit. Raises DeployError: no lock file."""
    named = [path for path in step.inputs + step.when if not is_pattern(path)]
    missing = [path for path in named if not present(path, commit.tree)]
    if missing and set(missing) < set(named) and set(missing) <= LOCK_FILES and expects_lock(step, commit):
        rest = " ".join(path for path in named if path not in missing)
        message = f"step {step.name}: {rest} is in the commit but {missing[0]} is not: commit the lock file"
        raise errors.DeployError(message)
    return not missing


def present(path: str, tree: mirror.Tree) -> list[str]:
    """Which of the alternatives `a|b` the commit has."""
    return [name for name in path.split("|") if name.rstrip("/") in tree]


def expects_lock(step: config.Step, commit: mirror.Commit) -> bool:
    """Whether no other step makes the same from another lock file that is there."""
    if step.makes_venv and not commit.declares_python_project:
        return False
    rivals = [other for other in commit.settings.steps if set(other.provides) & set(step.provides)]
    return not any(all(present(path, commit.tree) for path in other.inputs if not is_pattern(path)) for other in rivals)


def pattern_to_regex(pattern: str) -> re.Pattern[str]:
    """`*` and `?` stay within one directory, `**/` stands for any number of them, `[ab]` as in sh."""
    regex = ""
    for token in re.findall(r"\*\*/|\*\*|\*|\?|\[[^\]]+\]|.", pattern):
        if token in ("**/", "**", "*", "?"):
            regex += {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}[token]
        elif len(token) > 1:
            regex += "[" + re.sub(r"^!", "^", token[1:-1]).replace("\\", r"\\") + "]"
        else:
            regex += re.escape(token)
    return re.compile(regex)


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
    return {**found, **line, **{name: around[name] for name in tools.named_by(step)}}


def matching(inputs: Sequence[str], tree: mirror.Tree) -> dict[str, str]:
    """The paths of a commit that inputs name, with their content ids; `!` takes away what came before."""
    found: dict[str, str] = {}
    for item in inputs:
        if not is_pattern(item):
            found.update({name: identity(tree[name.rstrip("/")]) for name in present(item, tree)})
            continue
        regex = pattern_to_regex(item.lstrip("!"))
        if item.startswith("!"):
            found = {path: oid for path, oid in found.items() if not regex.fullmatch(path)}
        else:
            files = ((path, entry) for path, entry in tree.items() if entry.kind != "tree")
            found.update((path, identity(entry)) for path, entry in files if regex.fullmatch(path))
    return found


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

    def __init__(self, commit: mirror.Commit, made: Mapping[str, str]) -> None:
        """made: path that an earlier step provides -> name of the kept tree behind it; empty: it is made anew."""
        self.commit, self.made = commit, made

    @functools.cached_property
    def folders(self) -> dict[str, list[str]]:
        """The names in each folder, each with its kind."""
        found: dict[str, list[str]] = {}
        for path, entry in self.commit.tree.items():
            found.setdefault(os.path.dirname(path), []).append(f"{entry.kind} {path}")
        return found

    @functools.cached_property
    def links(self) -> str:
        links = {path: entry.oid for path, entry in self.commit.tree.items() if entry.mode == "120000"}
        return digest_of(links) if links else ""

    @functools.cached_property
    def all_files(self) -> str:
        return digest_of({path: identity(entry) for path, entry in self.commit.tree.items()})

    def value(self, name: str) -> str:
        """The present value of something that was observed; empty if it is not there any more."""
        if name.startswith(MADE):
            return self.made.get(name[len(MADE) :], "")
        if name in (LINKS, ALL_FILES, "REVISION"):
            return {LINKS: self.links, ALL_FILES: self.all_files}.get(name, self.commit.id)
        if name.startswith(NAMES):
            folder = name[len(NAMES) : -1]
            return digest_of({"names": " ".join(sorted(self.folders.get("" if folder == "." else folder, [])))})
        entry = self.commit.tree.get(name)
        return identity(entry) if entry else ""

    def values(self, step: config.Step, seen: observe.Seen | None) -> dict[str, str]:
        """What is to be recorded of a run, by name: what it was seen to read, but for what `!` takes away."""
        if seen is None or len(seen.opened) + len(seen.listed) > MANY_SEEN:
            names = {ALL_FILES, *(MADE + path for path in self.made)}
        else:
            names = {name for path in seen.opened if (name := self.name_of(path, False))}
            names |= {name for path in seen.listed if (name := self.name_of(path, True))}
        apart = [pattern_to_regex(item[1:]) for item in step.inputs if item.startswith("!")]
        names = {name for name in names if not any(regex.fullmatch(name) for regex in apart)}
        links = [LINKS] if names and self.links else []
        return {name: self.value(name) or "not of the commit" for name in [*sorted(names), *links]}

    def name_of(self, path: str, is_folder: bool) -> str:
        """The name by which a path is recorded: its own, or of the submodule or the kept tree that it lies in."""
        above = [path, *(path[: match.start()] for match in re.finditer("/", path))]
        if provided := [name for name in above if name in self.made]:
            return MADE + provided[0]
        if submodules := [
            name for name in above if name in self.commit.tree and self.commit.tree[name].kind == "commit"
        ]:
            return submodules[0]
        return f"{NAMES}{path or '.'}/" if is_folder else path


# --- the decision


def decide_step(
    step: config.Step, fingerprint: Mapping[str, str], kept: Kept, view: View, full: bool = False
) -> Decision:
    """Run it unless what it makes of these inputs is kept, or unless these were its inputs when it last succeeded.

    kept: what is kept of this step, the last made first.
    """
    decision = Decision(step, True, "", key_of(step, fingerprint), fingerprint)
    if not fingerprint:
        return decision._replace(why="has no inputs, so it always runs")
    if full:
        return decision._replace(why="--full")
    whys = []
    # what is done elsewhere (in a database, say) is as the last run left it; a tree is as it was made
    for tree in [tree for tree in (kept if step.provides else kept[:1]) if tree.key == decision.key]:
        why = why_not(step, tree, view)
        if not why:
            return decision._replace(needed=False, why=proof(fingerprint, tree), kept=tree.path, seen=tree.seen)
        whys.append(why)
    decision = decision._replace(nearest=nearest_venv(step, fingerprint, kept, view))
    return decision._replace(why=whys[0] if whys else why_needed(step, fingerprint, kept))


def why_not(step: config.Step, tree: releases.Kept, view: View) -> str:
    """Why what was made of the same fingerprint cannot be taken over; empty if it can."""
    moved = changes(tree.seen, {name: view.value(name) for name in tree.seen})
    if moved:
        return moved
    if tree.left:
        return f"leaves {log.shorten(', '.join(tree.left))} in the release, which it does not provide"
    if tree.use == releases.OWN:
        return "what it makes leads into the release that it is made for"
    if step.provides and tree.use != releases.ANY:
        return f"{' '.join(step.provides)} is not kept here any more"
    return ""


def proof(fingerprint: Mapping[str, str], tree: releases.Kept) -> str:
    """`kept: same poetry.lock, .env, Python 3.11.2`: what was looked at, and is the same."""
    inputs = [name for name in fingerprint if name not in ("run line", "cwd", "env", *AROUND) and fingerprint[name]]
    inputs += [".env"] * bool(fingerprint.get(".env"))
    inputs += [f"{name} {value}" for name, value in fingerprint.items() if name in AROUND[2:] and value]
    read = sum(is_file(name) and not is_named(name, fingerprint) for name in tree.seen)
    text = f"{'kept' if tree.use == releases.ANY else 'not run again'}: same {log.shorten(', '.join(inputs))}"
    return text + (f", and {read} more file{'s' * (read > 1)} that it read" if read else "")


def is_file(name: str) -> bool:
    """Whether a name of what was observed is that of a file of the commit."""
    return not name.startswith((MADE, NAMES)) and name not in (LINKS, ALL_FILES)


def is_named(path: str, inputs: Mapping[str, str]) -> bool:
    """Whether inputs name a file, or a folder above it."""
    return any(path == name or path.startswith(name.rstrip("/") + "/") for name in inputs)


def why_needed(step: config.Step, fingerprint: Mapping[str, str], kept: Kept) -> str:
    if not kept:
        return "first run on this machine"
    return changes(kept[0].fingerprint, fingerprint) or f"{' '.join(step.provides)} is not kept here any more"


def nearest_venv(step: config.Step, fingerprint: Mapping[str, str], kept: Kept, view: View) -> Path | None:
    """The newest kept environment of this step for the same interpreter, if the step can begin with a copy of it.

    That is if its command removes what is not wanted any more, or if nothing but packages of the repository differs.
    """
    for tree in kept:
        if tree.use != releases.NOTE and tree.fingerprint.get("Python") == fingerprint.get("Python"):
            is_same = tree.fingerprint == fingerprint and not changes(tree.seen, {n: view.value(n) for n in tree.seen})
            return tree.path if step.makes_venv and (step.syncs or is_same) else None
    return None


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """`poetry.lock changed`: the difference of two fingerprints in words."""
    groups = {
        "changed": [name for name in after if before.get(name, after[name]) != after[name] and after[name]],
        "is new": [name for name in after if name not in before and after[name]],
        "is gone": [name for name in before if not after.get(name) and before[name]],
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
    return name[len(MADE) :] if name.startswith(MADE) else name

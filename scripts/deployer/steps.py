"""What is to be run and why: a pure function of commit, machine and what is kept here from before."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from deployer import config, errors, log, mirror, releases

Kept = Sequence[releases.Kept]
MANY_INPUTS = 500  # beyond so many files a step's inputs are recorded by one hash
LOCK_FILES = {"poetry.lock", "uv.lock", "package-lock.json", "pnpm-lock.yaml", "yarn.lock"}


class Decision(NamedTuple):
    """What is to be done with one step in one commit, and why."""

    step: config.Step
    needed: bool
    why: str
    key: str  # of the fingerprint
    fingerprint: Mapping[str, str]  # everything that the result depends on; empty: nobody can tell
    kept: Path | None = None  # what is taken over
    nearest: Path | None = None  # what a new virtual environment may start from


def decide(
    commit: mirror.Commit, roles: Sequence[str], versions: Mapping[str, str], kept: Kept, full: bool = False
) -> list[Decision]:
    """Decide on each step that applies to the roles and the commit, in order.

    versions: of the programs that results depend on, by the names that versions_for() gives.
    kept: what is here from before, the last made first.
    Raises DeployError if a lock file is missing where one is expected.
    """
    decisions = []
    for step in applying(commit, roles):
        fingerprint = fingerprint_of(step, commit, versions)
        decisions.append(decide_step(step, fingerprint, [tree for tree in kept if tree.step == step.name], full))
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


def versions_for(step: config.Step) -> list[str]:
    """Which versions the step's result depends on."""
    return ["python version"] * step.makes_venv + ["node version"] * ("node_modules" in step.provides)


def fingerprint_of(step: config.Step, commit: mirror.Commit, versions: Mapping[str, str]) -> dict[str, str]:
    """Everything that the step's result depends on: name -> content id or version.

    Empty if the step names no inputs: nobody can tell what it depends on, so it always runs.
    """
    if not step.inputs:
        return {}
    found = matching(step.inputs, commit.tree)
    if len(found) > MANY_INPUTS:
        digest = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
        found = {f"a file of {' '.join(step.inputs)}": digest}
    return {**found, "run line": shlex.join(step.run), **{name: versions[name] for name in versions_for(step)}}


def matching(inputs: Sequence[str], tree: mirror.Tree) -> dict[str, str]:
    """The paths of a commit that inputs name, with their content ids; `!` takes away what came before."""
    found: dict[str, str] = {}
    for item in inputs:
        if not is_pattern(item):
            found.update({name: tree[name.rstrip("/")].oid for name in present(item, tree)})
            continue
        regex = pattern_to_regex(item.lstrip("!"))
        if item.startswith("!"):
            found = {path: oid for path, oid in found.items() if not regex.fullmatch(path)}
        else:
            files = ((path, entry.oid) for path, entry in tree.items() if entry.kind != "tree")
            found.update((path, oid) for path, oid in files if regex.fullmatch(path))
    return found


def key_of(step: config.Step, fingerprint: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps([step.provides, fingerprint], sort_keys=True).encode()).hexdigest()[:12]


def decide_step(step: config.Step, fingerprint: Mapping[str, str], kept: Kept, full: bool) -> Decision:
    """Run it unless what it makes of these inputs is kept, or unless these were its inputs when it last succeeded.

    kept: what is kept of this step, the last made first.
    """
    decision = Decision(step, True, "", key_of(step, fingerprint), fingerprint, nearest=nearest_venv(fingerprint, kept))
    if not fingerprint:
        return decision._replace(why="has no inputs, so it always runs")
    if full:
        return decision._replace(why="--full")
    # what is done elsewhere (in a database, say) is as the last run left it; a tree is as it was made
    usable = [tree for tree in (kept if step.provides else kept[:1]) if tree.key == decision.key]
    if usable and step.provides and usable[0].provides:
        inputs = ", ".join(name for name in fingerprint if " " not in name)
        why = f"kept from before: same {log.shorten(inputs)}"
        return decision._replace(needed=False, why=why, kept=usable[0].path)
    if usable and not step.provides:
        return decision._replace(needed=False, why="inputs did not change", kept=usable[0].path)
    return decision._replace(why=why_needed(step, fingerprint, kept))


def why_needed(step: config.Step, fingerprint: Mapping[str, str], kept: Kept) -> str:
    if not kept:
        return "first run on this machine"
    return changes(kept[0].fingerprint, fingerprint) or f"{' '.join(step.provides)} is not kept here any more"


def nearest_venv(fingerprint: Mapping[str, str], kept: Kept) -> Path | None:
    """The newest kept environment of this step for the same interpreter."""
    python = fingerprint.get("python version")
    same = [tree.path for tree in kept if tree.provides and tree.fingerprint.get("python version") == python]
    return same[0] if python and same else None


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """`poetry.lock changed`: the difference of two fingerprints in words."""
    groups = {
        "changed": [name for name in after if before.get(name, after[name]) != after[name]],
        "is new": [name for name in after if name not in before],
        "is gone": [name for name in before if name not in after],
    }
    return "; ".join(f"{log.shorten(', '.join(names))} {verb}" for verb, names in groups.items() if names)

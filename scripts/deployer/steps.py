"""What is to be run and why: a pure function of commit, machine and what is kept here from before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from deployer import config, inputs, log, mirror, releases, tools

Kept = Sequence[releases.Kept]
CANNOT_BE_ASKED = "it migrates, and in this form it cannot be asked what is unapplied, so it always runs"


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
    commit: mirror.Commit,
    roles: Sequence[str],
    around: Mapping[str, str],
    kept: Kept,
    full: bool = False,
    shared: Path = Path("shared"),
) -> list[Decision]:
    """Decide on each step that applies to the roles and the commit, in order.

    around: what results depend on beside the commit, as tools.look() returns it.
    kept: what is here from before, the last made first. shared: where what survives releases lies.
    """
    decisions, made = [], dict[str, str]()
    view = inputs.View(commit, made, shared)
    for step in applying(commit, roles):
        fingerprint = inputs.fingerprint_of(step, commit, around)
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


def applies(step: config.Step, commit: mirror.Commit) -> bool:
    """Whether the paths that the step names are in the commit."""
    return not missing(step, commit)


def missing(step: config.Step, commit: mirror.Commit) -> list[str]:
    """The paths that the step names and the commit does not have."""
    named = [path for path in step.inputs + step.when if not inputs.is_pattern(path)]
    return [path for path in named if not inputs.present(path, commit.tree)]


def decide_step(
    step: config.Step, fingerprint: Mapping[str, str], kept: Kept, view: inputs.View, full: bool = False
) -> Decision:
    """Run it unless what it makes of these inputs is kept, or unless these were its inputs when it last succeeded.

    kept: what is kept of this step, the last made first.
    """
    decision = Decision(step, True, "", inputs.key_of(step, fingerprint), fingerprint)
    if not fingerprint:
        return decision._replace(why="has no inputs, so it always runs")
    if full:
        return decision._replace(why="--full")
    if step.migrates and not step.can_be_asked:
        return decision._replace(why=CANNOT_BE_ASKED)
    whys = []
    # what is done elsewhere (in a database, say) is as the last run left it; a tree is as it was made
    for tree in [tree for tree in (kept if step.provides else kept[:1]) if tree.key == decision.key]:
        why = why_not(step, tree, view)
        if not why:
            return decision._replace(needed=False, why=proof(fingerprint, tree), kept=tree.path, seen=tree.seen)
        whys.append(why)
    decision = decision._replace(nearest=nearest_venv(step, fingerprint, kept, view))
    return decision._replace(why=whys[0] if whys else why_needed(step, fingerprint, kept))


def why_not(step: config.Step, tree: releases.Kept, view: inputs.View) -> str:
    """Why what was made of the same fingerprint cannot be taken over; empty if it can."""
    if inputs.MIGRATED in tree.seen:
        return CANNOT_BE_ASKED
    if moved := view.moved(step, tree.seen):
        return moved
    if tree.left:
        return f"leaves {log.shorten(', '.join(tree.left))} in the release, which it does not provide"
    if tree.use == releases.OWN:
        return "it leads into the release that it was made in, so each release has its own"
    if step.provides and tree.use != releases.ANY:
        return f"{' '.join(step.provides)} is not kept here any more"
    return ""


def proof(fingerprint: Mapping[str, str], tree: releases.Kept) -> str:
    """`kept: same poetry.lock, .env, Python 3.11.2`: what was looked at, and is the same."""
    named = [
        name
        for name in fingerprint
        if name not in ("run line", "cwd", "env", *inputs.AROUND) and not name.startswith(tools.PROGRAM)
    ]
    named += [".env"] * bool(fingerprint.get(".env"))
    named += [f"{name} {value}" for name, value in fingerprint.items() if name in inputs.AROUND[2:] and value]
    read = sum(inputs.is_file(name) and not inputs.is_named(name, fingerprint) for name in tree.seen)
    text = f"{'kept' if tree.use == releases.ANY else 'not run again'}: same {log.shorten(', '.join(named))}"
    return text + (f", and {read} more file{'s' * (read > 1)} that it read" if read else "")


def why_needed(step: config.Step, fingerprint: Mapping[str, str], kept: Kept) -> str:
    if not kept:
        return "first run on this machine"
    return inputs.changes(kept[0].fingerprint, fingerprint) or f"{' '.join(step.provides)} is not kept here any more"


def nearest_venv(step: config.Step, fingerprint: Mapping[str, str], kept: Kept, view: inputs.View) -> Path | None:
    """The newest kept environment of this step for the same interpreter, if the step can begin with a copy of it.

    That is if its command removes what is not wanted any more, or if nothing but packages of the repository differs.
    """
    for tree in kept:
        if tree.use != releases.NOTE and tree.fingerprint.get("Python") == fingerprint.get("Python"):
            is_same = tree.fingerprint == fingerprint and not view.moved(step, tree.seen)
            return tree.path if step.makes_venv and (step.syncs or is_same) else None
    return None

"""What is to be run and why, by value: a commit, versions and what is kept go in, decisions come out."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
from deployer import config, errors, mirror, releases, steps

INI = """\
[step python]
run =
[step python-uv]
run =
[step python-pip]
run =
[step node]
run =
[step node-pnpm]
run =
[step node-yarn]
run =
[step build]
run =
[step migrate]
run =
[step collectstatic]
run =
[step tree]
inputs = src/ lock
provides = out
run = make
[step note]
inputs = **/*.sql !old/**
run = apply
[step always]
run = tell
[step theirs]
roles = other
run = true
[role web]
[role other]
"""
PATHS = {"src": "t1", "lock": "b1", "a.sql": "b2", "old/b.sql": "b3"}
VERSIONS = {"python version": "3.11.2 x86_64", "node version": "v20"}


def commit(ini: str = INI, is_project: bool = True, **changes: str) -> mirror.Commit:
    paths = {**PATHS, **{name.replace("__", "/"): oid for name, oid in changes.items()}}
    kinds = {path: "tree" if path == "src" else "blob" for path in paths}
    tree = {path: mirror.Entry("100644", kinds[path], oid) for path, oid in paths.items() if oid}
    return mirror.Commit("c" * 40, tree, config.parse(ini, "deploy.ini"), is_project)


def decide(kept: list[releases.Kept], full: bool = False, **changes: str) -> dict[str, steps.Decision]:
    found = steps.decide(commit(**changes), ["web"], VERSIONS, kept, full)
    return {decision.step.name: decision for decision in found}


def kept_of(decision: steps.Decision, number: int = 1, provides: bool | None = None) -> releases.Kept:
    """What is kept once the decision was carried out."""
    is_tree = bool(decision.step.provides) if provides is None else provides
    path = Path(f"{decision.step.name}-{decision.key}-{number}")
    return releases.Kept(path, decision.step.name, decision.key, decision.fingerprint, 10, is_tree)


def all_kept(decisions: dict[str, steps.Decision], number: int = 1) -> list[releases.Kept]:
    return [kept_of(decision, number) for decision in decisions.values() if decision.fingerprint]


def test_a_first_deploy_runs_all_that_applies_in_order() -> None:
    first = decide([])
    assert list(first) == ["tree", "note", "always"]
    assert [decision.why for decision in first.values()] == [
        "first run on this machine",
        "first run on this machine",
        "has no inputs, so it always runs",
    ]
    assert all(decision.needed for decision in first.values())


def test_what_is_kept_is_taken_over_and_what_was_done_is_not_done_again() -> None:
    kept = all_kept(decide([]))
    again = decide(kept)
    assert [name for name, decision in again.items() if decision.needed] == ["always"]
    assert again["tree"].kept == kept[0].path
    assert again["tree"].why == "kept from before: same src/, lock"
    assert again["note"].why == "inputs did not change"


def test_what_changed_is_run_and_named() -> None:
    kept = all_kept(decide([]))
    assert decide(kept, lock="b9")["tree"].why == "lock changed"
    assert decide(kept, c__x_sql="b9")["note"].needed is False, "that is no .sql"
    assert decide(kept, **{"c__x.sql": "b9"})["note"].why == "c/x.sql is new"
    assert decide(kept, **{"a.sql": ""})["note"].why == "a.sql is gone"
    assert decide(kept, **{"old__b.sql": "b9"})["note"].needed is False, "! takes it away"
    assert {decision.why for name, decision in decide(kept, full=True).items() if name != "always"} == {"--full"}


def test_a_tree_may_be_older_but_what_is_done_elsewhere_is_as_the_last_run_left_it() -> None:
    first, other = decide([]), decide([], lock="b9", **{"a.sql": "b9"})
    kept = [*all_kept(other, 2), *all_kept(first, 1)]  # the last made first
    back = decide(kept)
    assert (back["tree"].needed, back["tree"].kept) == (False, kept_of(first["tree"], 1).path)
    assert (back["note"].needed, back["note"].why) == (True, "a.sql changed")


def test_a_tree_that_belongs_to_its_release_is_made_again() -> None:
    first = decide([])["tree"]
    again = decide([kept_of(first, provides=False)])["tree"]
    assert (again.needed, again.why) == (True, "out is not kept here any more")


@pytest.mark.parametrize(("python", "nearest"), [("3.11.2 x86_64", True), ("3.12.0 x86_64", False)])
def test_a_new_environment_starts_from_the_nearest_of_the_same_python(python: str, nearest: bool) -> None:
    ini = "[role web]\n"
    paths = {"pyproject.toml": "b1", "poetry.lock": "b2"}
    before = steps.decide(commit(ini, **paths), ["web"], {"python version": python, "node version": ""}, [])[0]
    after = steps.decide(commit(ini, **{**paths, "poetry.lock": "b3"}), ["web"], VERSIONS, [kept_of(before)])[0]
    assert after.nearest == (kept_of(before).path if nearest else None)
    assert after.why == ("poetry.lock changed" if nearest else "poetry.lock, python version changed")


def test_a_missing_lock_file_is_told() -> None:
    with pytest.raises(
        errors.DeployError, match=r"step python: pyproject.toml is in the commit but poetry.lock is not"
    ):
        steps.applying(commit("[role web]\n", **{"pyproject.toml": "b1"}), ["web"])
    assert steps.applying(commit("[role web]\n", is_project=False, **{"pyproject.toml": "b1"}), ["web"]) == []


def test_of_steps_that_provide_the_same_the_first_is_taken() -> None:
    paths = {"pyproject.toml": "b1", "poetry.lock": "b2", "uv.lock": "b3", "requirements.txt": "b4"}
    assert [step.name for step in steps.applying(commit("[role web]\n", **paths), ["web"])] == ["python"]

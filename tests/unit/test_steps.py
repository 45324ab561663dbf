"""What is to be run and why, by value: a commit, versions and what is kept go in, decisions come out."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
from deployer import config, inputs, mirror, observe, releases, steps, tools

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
AROUND = {
    ".env": "e1",
    "roles": "web",
    "Python": "3.11.2 x86_64",
    "Node.js": "v20.1.0",
    "Poetry": "2.2.1",
    "npm": "10.1",
}


def commit(ini: str = INI, **changes: str) -> mirror.Commit:
    paths = {**PATHS, **{name.replace("__", "/"): oid for name, oid in changes.items()}}
    kinds = {path: "tree" if path == "src" else "blob" for path in paths}
    tree = {path: mirror.Entry("100644", kinds[path], oid) for path, oid in paths.items() if oid}
    return mirror.Commit("c" * 40, tree, config.parse(ini, "deploy.ini"))


def decide(
    kept: list[releases.Kept], full: bool = False, around: dict[str, str] = AROUND, **changes: str
) -> dict[str, steps.Decision]:
    found = steps.decide(commit(**changes), ["web"], around, kept, full)
    return {decision.step.name: decision for decision in found}


def kept_of(decision: steps.Decision, number: int = 1, **facts: object) -> releases.Kept:
    """What is kept once the decision was carried out."""
    path = Path(f"{decision.step.name}-{decision.key}-{number}")
    use = releases.ANY if decision.step.provides else releases.NOTE
    kept = releases.Kept(path, decision.step.name, decision.key, decision.fingerprint, {}, [], use, 10)
    return kept._replace(**facts)  # type: ignore[arg-type]


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
    assert again["tree"].why == "kept: same src/, lock, .env"
    assert again["note"].why == "not run again: same a.sql, .env"


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


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({"use": releases.NOTE}, "out is not kept here any more"),
        ({"use": releases.OWN}, "it leads into the release that it was made in, so each release has its own"),
        ({"left": ["x.mo"]}, "leaves x.mo in the release, which it does not provide"),
    ],
)
def test_what_belongs_to_its_release_is_made_again(facts: dict[str, object], why: str) -> None:
    first = decide([])["tree"]
    again = decide([kept_of(first, **facts)])["tree"]
    assert (again.needed, again.why) == (True, why)


@pytest.mark.parametrize("name", ["tree", "note"])
@pytest.mark.parametrize(
    ("fact", "value", "why"),
    [(".env", "e2", ".env changed"), (".env", "", ".env is gone"), ("roles", "a", "roles changed")],
)
def test_variables_and_roles_count(name: str, fact: str, value: str, why: str) -> None:
    again = decide(all_kept(decide([])), around={**AROUND, fact: value})[name]
    assert (again.needed, again.why) == (True, why)


def test_the_run_line_its_folder_and_its_variables_count() -> None:
    kept = all_kept(decide([]))
    for line, why in (("cwd = src", "cwd changed"), ("env = A=1", "env changed"), ("provides = out other", "")):
        ini = INI.replace("run = make\n", f"run = make\n{line}\n").replace(
            "provides = out\nrun = make\nprov", "run = make\nprov"
        )
        again = steps.decide(commit(ini), ["web"], AROUND, kept)[0]
        assert again.needed, line
        assert again.why == (why or "out other is not kept here any more")


# --- what was observed


def seen(opened: str = "", listed: str = "") -> observe.Seen:
    return observe.Seen(
        frozenset(opened.split()), frozenset("" if item == "." else item for item in listed.split()), ()
    )


def watched(observed: observe.Seen | None, made: dict[str, str] | None = None, **changes: str) -> dict[str, str]:
    """What is recorded of a run of [step tree] that was seen to do this."""
    view = inputs.View(commit(**changes), made or {})
    return view.values(next(step for step in commit().settings.steps if step.name == "tree"), observed)


def test_what_a_step_read_counts_though_nobody_named_it() -> None:
    read = watched(seen("a.sql", "old"))
    kept = [kept_of(decide([])["tree"], seen=read)]
    assert decide(kept)["tree"].why == "kept: same src/, lock, .env, and 1 more file that it read"
    assert decide(kept, **{"a.sql": "b9"})["tree"].why == "a.sql changed"
    assert decide(kept, **{"a.sql": ""})["tree"].why == "names in ./ changed; a.sql is gone"
    assert decide(kept, **{"old__c.sql": "b9"})["tree"].why == "names in old/ changed"
    assert decide(kept, **{"old__b.sql": "b9"})["tree"].needed is False, "it did not read it"
    assert decide(kept, **{"old__d__x": "b9"})["tree"].needed is False, "nor look there"
    assert decide(kept, **{"optional.txt": "b9"})["tree"].why == "names in ./ changed", (
        "it may have looked for that in vain"
    )


def test_an_installer_looks_for_its_settings_in_vain_and_for_nothing_else() -> None:
    ini = INI.replace("provides = out", "provides = .venv").replace("[step python]\nrun =\n", "")
    step = next(step for step in commit(ini).settings.steps if step.name == "tree")
    read = inputs.View(commit(), {}).values(step, seen("a.sql"))

    def moved(**changes: str) -> str:
        return inputs.View(commit(**changes), {}).moved(step, read)

    assert moved(**{"new.txt": "b9"}) == ""
    assert moved(**{".toolrc": "b9"}) == "settings in ./ changed"


def test_where_a_program_may_have_looked() -> None:
    step = config.Step("s", cwd="c/d")
    assert inputs.where_it_looked(step, seen("a/b/x")) == {"", "a", "a/b", "c/d"}
    assert inputs.where_it_looked(step, seen()) == {"c/d"}
    assert inputs.where_it_looked(step._replace(provides=("c/node_modules",)), seen("a/b/x")) == {"a/b"}


def test_what_a_step_reads_below_shared_counts(tmp_path: Path) -> None:
    ini = INI.replace("[step tree]", "[deploy]\nshared = .env settings\n[step tree]")
    (tmp_path / "settings").mkdir()
    (tmp_path / "settings" / "value").write_text("1")
    view = inputs.View(commit(ini), {}, tmp_path)
    read = view.values(config.Step("s"), seen("settings/value", "settings"))
    assert view.moved(config.Step("s"), read) == ""
    (tmp_path / "settings" / "value").write_text("2")
    assert view.moved(config.Step("s"), read) == "shared/settings/value changed"
    (tmp_path / "settings" / "value").write_text("1")
    (tmp_path / "settings" / "other").write_text("")
    assert view.moved(config.Step("s"), read) == "names in shared/settings/ changed"
    (tmp_path / "settings" / "value").unlink()
    assert "shared/settings/value is gone" in view.moved(config.Step("s"), read)


def test_of_two_that_were_made_of_the_same_inputs_the_one_that_read_the_same_is_taken() -> None:
    first = decide([])["tree"]
    kept = [
        kept_of(first, number, seen=watched(seen("a.sql"), **{"a.sql": oid})) for number, oid in ((2, "b9"), (1, "b2"))
    ]
    assert decide(kept)["tree"].kept == kept[1].path
    assert decide(kept, **{"a.sql": "b9"})["tree"].kept == kept[0].path


def test_what_could_not_be_observed_depends_on_every_file() -> None:
    kept = [kept_of(decide([])["tree"], seen=watched(None))]
    assert decide(kept)["tree"].needed is False
    assert decide(kept, **{"old__b.sql": "b9"})["tree"].why == "any file of the commit changed"


def test_an_earlier_steps_tree_counts_if_it_was_used() -> None:
    ini = INI.replace("[step note]\n", "[step second]\ninputs = lock\nprovides = made\nrun = make\n[step note]\n")
    first = {each.step.name: each for each in steps.decide(commit(ini), ["web"], AROUND, [])}
    tree = kept_of(first["tree"])
    read = watched(seen("out/x", "out"), {"out": tree.path.name})
    assert read.pop("made: out") == tree.path.name
    assert {*read} == {"names in ./"}
    read["made: out"] = tree.path.name
    second = kept_of(first["second"], seen=read)

    def again(kept: list[releases.Kept], ini: str = ini) -> steps.Decision:
        return next(each for each in steps.decide(commit(ini), ["web"], AROUND, kept) if each.step.name == "second")

    assert again([tree, second]).needed is False
    assert again([tree._replace(path=Path(f"{tree.path}0")), second]).why == "out changed"
    assert again([second]).why == "out is made anew"


def test_files_of_a_submodule_count_as_the_submodule() -> None:
    paths = {path: mirror.Entry("100644", "blob", "b") for path in ("lock", "a.sql")}
    tree = {**paths, "libs": mirror.Entry("040000", "tree", "t"), "libs/x": mirror.Entry("160000", "commit", "c1")}
    view = inputs.View(mirror.Commit("c" * 40, tree, config.parse(INI, "deploy.ini")), {})
    read = view.values(config.Step("s"), seen("libs/x/y/z.py", "libs/x/y"))
    assert read.pop("libs/x") == "c1"
    assert {*read} == {"names in ./", "names in libs/"}


def test_what_is_taken_away_from_the_inputs_does_not_count_when_it_is_read() -> None:
    step = config.Step("s", inputs=("**", "!old/**"))
    assert set(inputs.View(commit(), {}).values(step, seen("old/b.sql a.sql"))) == {
        "a.sql",
        "names in ./",
        "names in old/",
    }


def test_a_link_that_leads_elsewhere_counts() -> None:
    def view(target: str) -> inputs.View:
        tree = {**commit().tree, "now": mirror.Entry("120000", "blob", target)}
        return inputs.View(mirror.Commit("c" * 40, tree, config.parse(INI, "deploy.ini")), {})

    read = view("b1").values(config.Step("s"), seen("a.sql"))
    assert {name: view("b2").value(name, []) for name in read} != read


@pytest.mark.parametrize(
    ("python", "why"),
    [
        ("3.11.2 x86_64", "poetry.lock changed"),
        ("3.12.0 x86_64", "poetry.lock, Python 3.12.0 x86_64 -> 3.11.2 x86_64 changed"),
    ],
)
def test_a_new_environment_starts_from_the_nearest_of_the_same_python(python: str, why: str) -> None:
    ini = "[role web]\n"
    paths = {"pyproject.toml": "b1", "poetry.lock": "b2"}
    before = steps.decide(commit(ini, **paths), ["web"], {**AROUND, "Python": python}, [])[0]
    after = steps.decide(commit(ini, **{**paths, "poetry.lock": "b3"}), ["web"], AROUND, [kept_of(before)])[0]
    assert after.nearest == (kept_of(before).path if python == AROUND["Python"] else None)
    assert after.why == why


def test_pip_starts_from_a_copy_only_where_nothing_is_to_be_removed() -> None:
    ini, paths = "[role web]\n", {"requirements.txt": "b1"}

    def pip(kept: list[releases.Kept], **changes: str) -> steps.Decision:
        return steps.decide(commit(ini, **{**paths, **changes}), ["web"], AROUND, kept)[0]

    own = kept_of(pip([]), use=releases.OWN, seen={"a.sql": "b2"})
    assert pip([own]).nearest == own.path, "only the packages of the repository may differ"
    assert pip([own], **{"requirements.txt": "b2"}).nearest is None
    assert pip([own], **{"a.sql": "b9"}).nearest is None


def test_of_steps_that_provide_the_same_the_first_is_taken() -> None:
    paths = {"pyproject.toml": "b1", "poetry.lock": "b2", "uv.lock": "b3", "requirements.txt": "b4"}
    assert [step.name for step in steps.applying(commit("[role web]\n", **paths), ["web"])] == ["python"]


def test_another_file_of_a_program_is_another_program(tmp_path: Path) -> None:
    program = tmp_path / "stamp"
    program.write_text("one")
    first = tools.file_of(str(program))
    program.write_text("other")
    assert first and tools.file_of(str(program)) != first
    kept = all_kept(decide([], around={**AROUND, "program make": first}))
    assert decide(kept, around={**AROUND, "program make": first})["tree"].needed is False
    assert decide(kept, around={**AROUND, "program make": "another"})["tree"].why == "program make changed"


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("poetry sync --only main", ["Python", "Poetry"]),
        ("npm ci", ["Node.js", "npm"]),
        ("sh -c 'cd client && yarn build; cp a b'", ["Node.js", "Yarn", "program cd", "program cp", "program sh"]),
        ("env A=1 python3.12 backend/manage.py migrate", ["Python", "program env"]),
        ("uv run manage.py x", ["Python", "uv"]),
        ("make static", ["program make"]),
    ],
)
def test_the_programs_that_a_run_line_names(line: str, names: list[str]) -> None:
    provides = "\nprovides = .venv" if "poetry" in line else ""
    (step,) = (s for s in config.parse(f"[step x]\nrun = {line}{provides}\n", "").steps if s.name == "x")
    assert tools.named_by(step) == [".env", "roles", *names]


@pytest.mark.parametrize(
    ("line", "syncs"),
    [("poetry sync --only main", True), ("uv sync --locked", True), ("pip-sync", True), ("pip install -r r.txt", False),
     ("pipenv sync", False), ("pdm sync --prod", False), ("poetry install", False)],
)  # fmt: skip
def test_only_what_removes_the_rest_begins_with_a_copy(line: str, syncs: bool) -> None:
    assert config.Step("x", run=tuple(line.split())).syncs == syncs

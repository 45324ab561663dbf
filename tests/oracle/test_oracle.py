"""Incremental deploys end where fresh ones do: sequences at random, and each case that once failed.

`./dev bench faults --oracle` runs more of the former; what fails here says how it is run again.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from oracle import comparison, judge, machines, mends, parts, sequences

SIZE = 12
SAMPLE = sequences.sample(SIZE, of_seed=1, slow=False)
AGAIN = "./dev bench faults --oracle --sequence"


@pytest.fixture(autouse=True)
def tools() -> None:
    """The real tools; without one of them the sequences that need it would prove nothing."""
    missing = [name for name in ("git", "node", "npm", "uv", "poetry") if not shutil.which(name)]
    assert not missing, f"{' '.join(missing)}: not found; ./dev test has them"


@pytest.mark.parametrize("sequence", SAMPLE, ids=str)
def test_an_incremental_deploy_ends_where_a_fresh_one_does(sequence: sequences.Sequence) -> None:
    report = judge.judge(sequence)
    assert not report.difference, f"{report.difference}\nagain: {AGAIN} '{judge.cut_off(report).sequence}'"


@pytest.mark.parametrize("mend", mends.SAMPLE, ids=lambda mend: mend.case)
def test_a_mend_that_is_taken_out_is_missed(mend: mends.Mend) -> None:
    """Each mechanism once; `./dev bench faults --oracle` takes out all of them."""
    assert not mends.missed(mend)


@pytest.mark.parametrize("limit", mends.LIMITS, ids=lambda limit: limit.case)
def test_what_is_known_not_to_be_seen(limit: mends.Mend) -> None:
    assert judge.judge(sequences.parse(limit.witness)).difference, "it is seen now: it belongs to MENDS, with a patch"


# --- the oracle itself


def test_the_sample_is_the_same_each_time_and_of_many_kinds() -> None:
    assert sequences.sample(SIZE, of_seed=1, slow=False) == SAMPLE
    assert sequences.sample(SIZE, of_seed=2, slow=False) != SAMPLE
    assert len({part for sequence in SAMPLE for part in sequence.names}) > 20
    events = {event.partition(":")[0] for sequence in SAMPLE for event in sequence.events}
    assert events >= {"docs", "fail", "revert", "back", "rollback", "python"}


@pytest.mark.parametrize("sequence", SAMPLE, ids=str)
def test_a_sequence_is_read_from_its_text(sequence: sequences.Sequence) -> None:
    assert sequences.parse(str(sequence)) == sequence


def test_what_is_no_sequence_is_told() -> None:
    for text in ("", ":", "uv", "uv keep=1", "uv: docs", "uvv keep=1: docs"):
        with pytest.raises(ValueError, match=r"is not `PART... keep=N: EVENT...`; parts are "):
            sequences.parse(text)


def test_parts_do_not_touch_each_other() -> None:
    """Those that may be in one application write different files, provide different paths."""
    apart = [*parts.OTHERS, parts.UV_PARTS[0], parts.NPM[0], parts.MANAGE[0]]
    paths = [path for part in apart for path in {*part.files, *(p for files in part.changes.values() for p in files)}]
    assert sorted(paths) == sorted(set(paths))


def test_a_difference_is_made_short() -> None:
    """The needle in a long sequence of an application of many parts is what remains."""
    breaks = "inputs.key_of = lambda step, fingerprint: step.name.ljust(12, '0')[:12]  # whatever the inputs are\n"
    breaks += mends.NOTHING_IS_OBSERVED
    report = judge.judge(sequences.parse("keys pack bake keep=2: docs again keys.page+pack.new docs bake.in"), breaks)
    assert report.difference
    assert (report.difference.number, report.difference.kind) == (3, "does")
    assert str(judge.shorten(report, breaks).sequence) == "keys keep=2: keys.page"


# --- the comparison


def release(root: Path, name: str = "20260102T030405Z-0123456789ab") -> Path:
    """A release with an environment in a kept tree."""
    made, kept = root / "releases" / name, root / "envs" / f"python-{name[-12:]}-20260102T030405Z"
    (kept / "bin").mkdir(parents=True)
    (kept / "bin" / "tool").write_text(f"#!{kept}/bin/python\n")
    (kept / "bin" / "tool").chmod(0o755)
    (root / "shared" / "data").mkdir(parents=True)
    made.mkdir(parents=True)
    (made / "a.py").write_text("1\n")
    (made / ".venv").symlink_to(f"../../envs/{kept.name}")
    (made / "data").symlink_to("../../shared/data")
    return made


def test_two_releases_are_the_same_but_for_names_and_times(tmp_path: Path) -> None:
    one, other = tmp_path / "home-1" / "root", tmp_path / "home-2" / "root"
    first, second = release(one), release(other, "20271112T131415Z-ba9876543210")
    (second / "__pycache__").mkdir()
    (second / "__pycache__" / "a.pyc").write_text("compiled")
    (second / ".release.json").write_text("{}")
    (other / "shared" / "data" / "upload").write_text("of a user")
    assert comparison.held(first, one) == comparison.held(second, other) != {}
    assert set(comparison.held(first, one)) == {"a.py", ".venv/bin/tool", "data"}


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (lambda made: (made / "a.py").write_text("2\n"), "a.py"),
        (lambda made: (made / "a.py").unlink(), "a.py"),
        (lambda made: (made / "a.py").chmod(0o755), "a.py"),
        (lambda made: (made / "b").symlink_to("a.py"), "b"),
        (lambda made: (made / ".venv/bin/tool").write_text("#!/usr/bin/python\n"), ".venv/bin/tool"),
        (lambda made: (made / ".venv/bin/tool").unlink(), ".venv/bin/tool"),
        (lambda made: (made / "data").unlink(), "data"),
    ],
)
def test_anything_else_is_a_difference(tmp_path: Path, change: object, path: str) -> None:
    one, other = tmp_path / "home-1" / "root", tmp_path / "home-2" / "root"
    first, second = release(one), release(other)
    assert callable(change)
    change(second)
    lines = comparison.difference(comparison.held(second, other), comparison.held(first, one))
    assert [line.partition(":")[0] for line in lines] == [path]


def test_old_files_may_stay_where_they_are_kept_and_only_as_they_were() -> None:
    assert comparison.difference({"out/old": "1"}, {}, {("out/old", "1")}) == []
    assert comparison.difference({"out/old": "2"}, {}, {("out/old", "1")}) != []
    assert comparison.difference({}, {"out/new": "1"}, {("out/new", "1")}) != []


def test_there_are_two_interpreters_or_one() -> None:
    assert machines.interpreters()

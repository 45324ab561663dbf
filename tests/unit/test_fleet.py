"""fleet_status.py by value: every state is reached, the table fits into 80 columns, what was seen is kept."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
import fleet_answers
import fleet_handover
import fleet_inventory
import fleet_states
import fleet_status
import fleet_table
import push_deploy
from deployer import errors
from fleet_answers import ANSWERED, OFF, REFUSES, SLOW, Answer, Contact, Known, as_time
from fleet_states import AT_TIMES, Branch, Machine, View

NOW = 1_800_000_000.0
MINUTE, DAY = 60.0, 86400.0
OLD, TIP = "a" * 40, "b" * 40
BRANCH = Branch(TIP, as_time(NOW - 14 * MINUTE))
NEVER = Known()
SCHEDULER, FRONTEND = Machine("scheduler"), Machine("frontend", (), AT_TIMES)


def status(**more: Any) -> dict[str, Any]:
    """What a machine answers that runs the newest commit and is well."""
    tip = {"commit": TIP, "merged": BRANCH.merged, "behind": 0, "since": None, "held": False}
    own = {"schema": 1, "machine": "x", "commit": TIP, "activated": as_time(NOW - 12 * MINUTE), "trigger": "cd"}
    last = {"outcome": "deployed", "started": as_time(NOW - 12 * MINUTE)}
    return {**own, "healthy": True, "drift": [], "tip": tip, "last": last, "failing": False, "running": None, **more}


def behind(minutes: float, **more: Any) -> dict[str, Any]:
    since = as_time(NOW - minutes * MINUTE)
    return {"commit": OLD, "tip": {"commit": TIP, "merged": BRANCH.merged, "behind": 3, "since": since, **more}}


def seen(machine: Machine, contact: Contact, known: Known = NEVER, branch: Branch = BRANCH) -> View:
    return fleet_states.view(machine, contact, known, branch, NOW)[0]


def answers(**more: Any) -> Contact:
    return fleet_answers.answered(status(**more))


def last_seen(days: float, **more: Any) -> Known:
    return Known(fleet_answers.read_answer(status(**more)), as_time(NOW - days * DAY))


GONE = Contact(OFF, "it does not answer")
FAILURE = {"reason": "step build failed: npm run build ended with 1"}
CASES = {
    "ok": (SCHEDULER, answers(), Known()),
    "REFUSES": (FRONTEND, Contact(REFUSES, "its host key is not the one in DEPLOY_KNOWN_HOSTS"), last_seen(1)),
    "BROKEN": (FRONTEND, answers(healthy=False, last={"outcome": "broken"}), Known()),
    "UNHEALTHY": (FRONTEND, answers(healthy=False)._replace(unhealthy=2), Known()),
    "UNHEALTHY also the last time": (FRONTEND, answers(healthy=False), Known(unhealthy=True)),
    "unknown: unhealthy once may be a moment": (FRONTEND, answers(healthy=False), Known()),
    "FAILED": (FRONTEND, answers(failing=True, last_failure=FAILURE, **behind(50)), Known()),
    "FAILED and off since": (FRONTEND, GONE, last_seen(1, failing=True, last_failure=FAILURE)),
    "SILENT": (SCHEDULER, GONE, last_seen(0.1)),
    "SILENT for too long": (FRONTEND, GONE, last_seen(15)),
    "SILENT and never seen": (FRONTEND, GONE, Known(asked=as_time(NOW - 15 * DAY))),
    "DRIFTED": (SCHEDULER, answers(drift=[{"kind": "changed", "name": "board/views.py"}]), Known()),
    "BEHIND": (SCHEDULER, answers(**behind(31)), Known()),
    "BEHIND the commit that another has seen": (SCHEDULER, answers(commit=OLD, tip={"commit": OLD}), Known()),
    "held": (SCHEDULER, answers(**behind(900, held=True)), Known()),
    "deploying": (SCHEDULER, answers(running={"stage": "fetching"}, **behind(900)), Known()),
    "LOST": (FRONTEND, GONE, last_seen(0.1, running={"stage": "switching"})),
    "off": (FRONTEND, GONE, last_seen(2, **behind(900))),
    "unknown": (FRONTEND, GONE, Known()),
    "unknown: too slow": (SCHEDULER, Contact(SLOW, "it did not answer within 7 s"), last_seen(1)),
    "unknown: its health did not come": (SCHEDULER, answers(healthy=None), Known()),
    "ok for it is not late yet": (SCHEDULER, answers(**behind(29)), Known()),
}


@pytest.mark.parametrize("name", CASES)
def test_each_state_is_reached(name: str) -> None:
    machine, contact, known = CASES[name]
    old = "another" in name
    branch = Branch(TIP, as_time(NOW - 31 * MINUTE)) if old else BRANCH
    assert seen(machine, contact, known, branch).state == name.replace(":", " ").split()[0]


def test_there_is_a_case_for_each_state_and_advice_for_each_that_wants_somebody_to_act() -> None:
    assert {name.replace(":", " ").split()[0] for name in CASES} == {*fleet_states.STATES}
    assert [state for state in fleet_states.STATES if state.isupper() and state not in fleet_states.ADVICE] == []


@pytest.mark.parametrize(("first", "second"), list(zip(fleet_states.STATES, fleet_states.STATES[1:])))
def test_the_first_that_fits_counts(first: str, second: str) -> None:
    assert fleet_states.first_of([second, first]) == fleet_states.first_of([first, second]) == first


def test_two_questions_each_with_its_own_time() -> None:
    view, known = fleet_states.view(FRONTEND, answers(**behind(31)), Known(), BRANCH, NOW)
    assert {name: word for name, (word, _) in view.since.items()} == {"state": "BEHIND", "runs": "BEHIND", "well": "ok"}
    late = NOW + 2 * DAY
    view, known = fleet_states.view(FRONTEND, GONE, known, BRANCH, late)
    assert view.since["well"] == ("off", as_time(late))
    view, _ = fleet_states.view(FRONTEND, GONE, known, BRANCH, late + DAY)
    assert view.since["well"] == view.since["state"] == ("off", as_time(late)), "it is off since then"
    assert (view.answered, view.seen) == (False, as_time(NOW))


def test_all_is_well_only_if_somebody_says_so() -> None:
    well, off, drifted = (seen(*CASES[name]) for name in ("ok", "off", "DRIFTED"))
    assert fleet_states.all_well([well, off])
    assert not fleet_states.all_well([off])
    assert not fleet_states.all_well([well, drifted])
    assert not fleet_states.all_well([])


def test_the_table() -> None:
    known = Known(fleet_answers.read_answer(status(commit=OLD, trigger="boot")), as_time(NOW - 2 * DAY))
    branch = BRANCH._replace(behind={OLD: (12, as_time(NOW - 2 * DAY))}, name="main")
    views = [seen(SCHEDULER, answers(), branch=branch), seen(FRONTEND, GONE, known, branch)]
    assert fleet_table.show(views, branch, 3.06, NOW).splitlines() == [
        "main is bbbbbbbb, merged 14 min ago; 2 machines asked, 1 answered, 3.1 s",
        "",
        "machine    state  runs       behind   since, by     last attempt",
        "scheduler  ok     bbbbbbbb   -        12 min, cd    updated 12 min ago",
        "frontend   off    aaaaaaaa?  12, 2 d  12 min, boot  updated 12 min ago",
        "           ? as last seen 2 d ago (2027-01-13 08:00 UTC)",
        "           it catches up when it boots",
    ]


@pytest.mark.parametrize("name", CASES)
def test_no_line_is_wider_than_a_terminal(name: str) -> None:
    machine, contact, known = CASES[name]
    long = machine._replace(name="a-machine-with-a-very-long-name-indeed")
    view = seen(long, contact._replace(why="why " * 60), known)
    view = view._replace(answer=view.answer._replace(outcome="rolled_back_on_request"), behind=(99999, as_time(0)))
    shown = fleet_table.show([view, seen(SCHEDULER, answers())], BRANCH, 10.0, NOW)
    assert max(map(len, shown.splitlines())) <= 80


def test_what_was_seen_is_kept(tmp_path: Path) -> None:
    entry = {"started": as_time(NOW), "trigger": "cd", "outcome": "deployed", "commit": TIP, "reason": ""}
    contact = answers(history=[entry], drift=[{"kind": "changed", "name": "x"}])
    _, known = fleet_states.view(FRONTEND, contact, Known(), BRANCH, NOW)
    place = tmp_path / "deep/fleet.json"
    fleet_answers.store(place, fleet_answers.Memory({"frontend": known}, (TIP, BRANCH.merged)))
    kept = fleet_answers.load(place)
    assert kept.tip == (TIP, BRANCH.merged)
    assert kept.machines["frontend"].answer == known.answer
    assert kept.machines["frontend"].history == [entry] == fleet_answers.merged([entry], [entry])
    assert (place.stat().st_mode & 0o777, [path.name for path in place.parent.iterdir()]) == (0o600, ["fleet.json"])
    for damaged in ("", "[]", '{"schema": 1, "machines": 5, "tip": [1, 2]}', "[" * 100_000):
        place.write_text(damaged)
        assert fleet_answers.load(place) == fleet_answers.Memory({})


def attempt(day: int, reason: str = "") -> dict[str, str]:
    return {"started": as_time(NOW - day * DAY), "trigger": "cd", "outcome": "failed", "commit": TIP, "reason": reason}


def test_two_memories_become_one() -> None:
    """What was seen last counts; what only one of them knows is kept."""
    seen = Known(
        Answer(commit=OLD), as_time(NOW - 2 * DAY), as_time(0), as_time(NOW - 2 * DAY), history=[attempt(2, "x")]
    )
    silent = Known(
        None, "", as_time(DAY), as_time(NOW), since={"state": ["off", as_time(NOW)]}, history=[attempt(2), attempt(1)]
    )
    one, other = (fleet_answers.Memory({"web": known}) for known in (seen, silent))
    for found in (fleet_answers.both(one, other), fleet_answers.both(other, one)):
        known = found.machines["web"]
        assert (known.answer, known.looked, known.since["state"][0]) == (Answer(commit=OLD), as_time(NOW), "off")
        assert (known.asked, known.history) == (as_time(0), [attempt(2, "x"), attempt(1)])
    assert fleet_answers.both(one, fleet_answers.Memory({})).machines == one.machines


@pytest.mark.parametrize("letter", ["x", "\U0001f600", '"'])
def test_what_is_handed_over_fits_into_a_variable(letter: str) -> None:
    reasons = [letter * 55 + hashlib.sha256(bytes([number])).hexdigest()[:5] for number in range(200)]
    history = [{**attempt(200 - number, reason), "commit": f"{number:040x}"} for number, reason in enumerate(reasons)]
    seen = fleet_handover.Seen(NOW, answers(reason=letter * 60)._replace(history=history, unhealthy=1))
    text = fleet_handover.pack(seen, True)
    assert len(text) < 131_000
    assert fleet_handover.unpack(text, NOW) == seen
    quiet = fleet_handover.unpack(fleet_handover.pack(seen, False), NOW)
    assert quiet and quiet.contact.answer and letter * 5 not in repr(quiet)
    assert fleet_handover.unpack(text, NOW - 5) == seen._replace(at=NOW - 5), "a clock that is ahead is not believed"


def test_what_is_too_long_to_be_handed_over_loses_its_oldest_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_handover, "MOST_HEX", 3_000)
    history = [{**attempt(200 - number), "commit": hashlib.sha1(bytes([number])).hexdigest()} for number in range(200)]
    text = fleet_handover.pack(fleet_handover.Seen(NOW, answers()._replace(history=history)), True)
    found = fleet_handover.unpack(text, NOW)
    assert found and 3 < len(found.contact.history) < 100 and len(text) <= 3_000
    assert found.contact.history == history[-len(found.contact.history) :]


def test_a_tip_from_the_future_is_not_believed() -> None:
    lying = Answer(tip=OLD, merged=as_time(NOW + 3 * DAY))
    assert fleet_states.newest([lying], (TIP, BRANCH.merged), NOW) == (TIP, BRANCH.merged)


def test_what_a_connection_means() -> None:
    evidence = push_deploy.Evidence
    refused = evidence(255, "ssh: connect to host x port 22: Connection refused")
    assert fleet_status.contact_of(refused, "WEB_HOST").kind == OFF
    assert fleet_status.contact_of(evidence(255, "Permission denied (publickey)."), "WEB_HOST").kind == REFUSES
    hung = evidence(255, "Connection timed out during banner exchange")
    assert fleet_status.contact_of(hung, "WEB_HOST").kind == REFUSES
    assert fleet_status.contact_of(evidence(255, is_stalled=True), "WEB_HOST").kind == SLOW
    assert fleet_status.contact_of(evidence(0, result={"schema": 1}), "WEB_HOST").kind == REFUSES
    assert fleet_status.contact_of(evidence(0, result=status()), "WEB_HOST").kind == ANSWERED


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[web]\non = sometimes\n", "[web] on = sometimes: expected always or at-times"),
        ("[web]\nhost = 10.0.0.5\n", "[web] host: expected behind_minutes, on, roles, silent_days"),
        ("[we b]\n", "[we b]: is no name of a machine"),
        ("[web]\nsilent_days = soon\n", "[web] silent_days = soon: not a number"),
        ("x\n", "no section headers"),
    ],
)
def test_a_mistake_in_the_inventory_is_one_clear_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "machines.ini"
    path.write_text(text)
    with pytest.raises(errors.UsageError) as raised:
        fleet_inventory.read(path)
    assert says in str(raised.value) and str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_the_inventory_that_adopt_writes(tmp_path: Path) -> None:
    path = tmp_path / "machines.ini"
    path.write_text(
        "; the machines\n[scheduler]\nroles = scheduler\non = always\n\n[web]\nroles = a b\non = at-times\n"
    )
    assert fleet_inventory.read(path) == [
        Machine("scheduler", ("scheduler",)),
        Machine("web", ("a", "b"), AT_TIMES),
    ]

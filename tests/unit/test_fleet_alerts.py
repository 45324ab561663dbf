"""What is told of machines, and when, by value: each state that holds is told, and no look is a message for long."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
import fleet_alerts
import fleet_answers
import fleet_states
import fleet_tell
from fleet_alerts import DAY, WEEK, Alert, Alerts, Telling
from fleet_answers import ANSWERED, Answer, Contact, Known, Memory, as_time
from fleet_handover import Seen
from fleet_states import Machine, View

NOW = 1_800_000_000.0
HOUR = 3600.0
WELL = ("ok", "ok")


def view(name: str, runs: str = "ok", well: str = "ok", why: str = "it fails", answered: bool = True) -> View:
    words = {"state": fleet_states.first_of([runs, well]), "runs": runs, "well": well}
    since = {question: (word, as_time(NOW)) for question, word in words.items()}
    whys = {"runs": why if runs.isupper() else "", "well": why if well.isupper() else ""}
    return View(Machine(name), words["state"], since, answered, "", Answer(), (0, ""), why, whys)


class Team:
    """Those who are told; each look is some hours after the one before."""

    def __init__(self) -> None:
        self.now, self.kept = NOW, dict[str, Alerts]()
        self.last = Telling([], {}, {})

    def look(self, *views: View, hours: float = 6, fails: bool = False) -> list[str]:
        self.now += hours * HOUR
        self.last = fleet_alerts.tell(views, self.kept, self.now)
        self.kept |= self.last.untold if fails else self.last.told
        return [f"{line.machine} {line.state} {line.kind}" for line in self.last.lines]


LOOKS = {
    "1": view("web", "FAILED"),
    "0": view("web"),
    "?": view("web", well="unknown", answered=False),
    "-": view("web", well="off", answered=False),
    "r": view("web", well="REFUSES", answered=False),
    "s": view("web", well="SILENT", answered=False),
    "b": view("web", "BEHIND"),
    "D": view("web", "DRIFTED"),
    "B": view("web", well="BROKEN"),
    "d": view("web", "deploying"),
    "u": view("web", well="UNHEALTHY"),
    "m": view("web", well="unknown"),
    "l": view("web", well="LOST", answered=False),
}


def said(looks: str, hours: float = 6) -> list[str]:
    """What each of these looks says, without the machine's name."""
    team = Team()
    return [", ".join(team.look(LOOKS[one], hours=hours)).replace("web ", "") for one in looks]


@pytest.mark.parametrize(
    ("looks", "says"),
    [
        ("1", {}),
        ("10", {}),
        ("11", {1: "FAILED new"}),
        ("1111", {1: "FAILED new"}),
        ("110", {1: "FAILED new", 2: "FAILED over"}),
        ("101", {2: "FAILED new"}),
        ("1001", {}),
        ("1?1", {2: "FAILED new"}),
        ("11" + "1" * 33, {1: "FAILED new", 5: "FAILED still", 33: "FAILED still"}),
        ("11DD", {1: "FAILED new", 2: "FAILED over", 3: "DRIFTED new"}),
        ("ll0", {1: "LOST new", 2: "LOST over"}),
        ("bb-", {1: "BEHIND new", 2: "BEHIND over"}),
        ("uu-", {1: "UNHEALTHY new", 2: "UNHEALTHY over"}),
        ("rruu0", {1: "REFUSES new", 2: "REFUSES over", 3: "UNHEALTHY new", 4: "UNHEALTHY over"}),
    ],
)
def test_when_it_is_told(looks: str, says: Mapping[int, str]) -> None:
    assert {at: text for at, text in enumerate(said(looks)) if text} == says


@pytest.mark.parametrize("looks", ["bb?", "bbs", "bbr", "bbd", "uum", "uu?", "uus", "uur", "uuB", "DD1"])
def test_what_a_look_did_not_show_is_not_over(looks: str) -> None:
    assert not [text for text in said(looks) if "over" in text]


def test_nobody_knows_is_no_end_and_is_reminded_of() -> None:
    assert said("uu????")[-1] == "UNHEALTHY still"


def test_what_comes_and_goes_is_told_twice_and_its_end_when_it_has_stayed_away_for_a_day() -> None:
    each = {at: text for at, text in enumerate(said("10" * 12 + "0000")) if text}
    assert each == {2: "FAILED new", 3: "FAILED over", 6: "FAILED new", 10: "FAILED still", 27: "FAILED over"}
    minutes = said("10" * 700, hours=1 / 60)
    assert [text for text in minutes if text] == ["FAILED new", "FAILED over", "FAILED new"], "in half a day"
    team = Team()
    for one in "1010101":
        team.look(LOOKS[one])
    assert "web: FAILED again, it comes and goes: `it fails`" in fleet_alerts.text(team.last.lines, team.now)


def test_what_comes_back_after_a_day_is_told_as_the_first_time() -> None:
    assert [text for text in said("110000011" + "0") if text] == ["FAILED new", "FAILED over"] * 2


def test_what_could_not_be_told_is_told_at_the_next_look() -> None:
    team = Team()
    team.look(LOOKS["1"])
    assert team.look(LOOKS["1"], fails=True) == team.look(LOOKS["1"], fails=True) == ["web FAILED new"]
    assert team.look(LOOKS["1"]) == ["web FAILED new"]
    assert team.look(LOOKS["1"]) == []
    assert team.look(LOOKS["0"], fails=True) == team.look(LOOKS["0"]) == ["web FAILED over"]
    assert team.look(LOOKS["0"]) == []


def test_what_could_not_be_told_and_is_over_needs_nobody() -> None:
    team = Team()
    team.look(LOOKS["1"])
    team.look(LOOKS["1"], fails=True)
    assert team.look(LOOKS["0"]) == []


def test_both_questions_are_told_and_all_machines_in_one_message() -> None:
    team = Team()
    for _ in range(2):
        lines = team.look(view("web", "FAILED", "SILENT", answered=False), view("scheduler", "DRIFTED"), view("night"))
    assert lines == ["web FAILED new", "web SILENT new", "scheduler DRIFTED new"]
    assert fleet_alerts.text(team.last.lines, team.now).splitlines() == [
        "Machines: web is FAILED, web is SILENT, scheduler is DRIFTED",
        "❌ web: FAILED: `it fails`; see its log; fix and merge",
        "❌ web: SILENT: `it fails`; switch it on, or see why it cannot be reached",
        "❌ scheduler: DRIFTED: `it fails`; commit it, or deploy with --full, which replaces it",
    ]
    assert team.look(view("scheduler")) == ["scheduler DRIFTED over"], "who was not asked is not told of"
    assert "✅ scheduler: no longer DRIFTED, it is ok now" in fleet_alerts.text(team.last.lines, team.now)
    assert team.look(view("web", well="UNHEALTHY")) == ["web FAILED over", "web SILENT over"]
    assert "❌ web: no longer FAILED, it is UNHEALTHY now" in fleet_alerts.text(team.last.lines, team.now)


def test_another_reason_is_told_once_it_holds_and_other_numbers_are_no_other_reason() -> None:
    team = Team()

    def look(why: str) -> list[str]:
        return team.look(view("web", "FAILED", why=why), hours=0.1)

    look("step build failed after 12 s in 3f2a1b8c")
    assert look("step build failed after 2 min in 9c8d7e6f") == ["web FAILED new"]
    assert look("step build failed after 1.5 s in deadbeef") == look("step migrate failed") == []
    assert look("step migrate failed") == ["web FAILED changed"]
    assert "still FAILED for 30 min: now `step migrate failed`" in fleet_alerts.text(team.last.lines, team.now)
    assert [look("step build failed after 3 s in 00000000") for _ in range(3)] == [[]] * 3, "which was told before"


def test_reasons_that_are_always_others_are_no_reason_to_be_told_without_end() -> None:
    team = Team()
    words = "one two three four five six seven eight nine ten eleven twelve".split()
    count = sum(len(team.look(view("web", "FAILED", why=word), hours=0.1)) for word in words for _ in range(2))
    assert count == fleet_alerts.REASONS


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ended with 1 after 20 s", "ended with 137 after 3 min"),
        ("by hand: app.py and 3 more", "by hand: app.py and 12 more"),
        ("request 0f1e2d3c-0000 to 10.0.0.5:8000 failed", "request a1b2-c3d4 to 10.0.0.6 failed"),
        ("x" * 30 + " took 9 s and was ended; see the ...", "x" * 30 + " took 1000 s and was ended; ..."),
    ],
)
def test_a_reason_is_known_again_by_what_is_no_number(one: str, other: str) -> None:
    assert fleet_alerts.key("web", "FAILED", one) == fleet_alerts.key("web", "FAILED", other)
    assert fleet_alerts.key("web", "FAILED", one) != fleet_alerts.key("web", "FAILED", "a " + one)


def test_a_clock_that_jumps_neither_spams_nor_silences() -> None:
    team = Team()
    team.look(LOOKS["1"])
    team.look(LOOKS["1"])
    year = 365 * 24
    assert team.look(LOOKS["1"], hours=year) == ["web FAILED still"]
    assert team.look(LOOKS["1"], hours=-year) == []
    assert [line for _ in range(28) for line in team.look(LOOKS["1"])] == ["web FAILED still"], "a week later"
    assert team.look(LOOKS["0"], hours=-year) == ["web FAILED over"]
    assert team.look(LOOKS["1"]) == []
    assert team.look(LOOKS["1"]) == ["web FAILED new"]
    assert team.last.lines[0].returns


def test_what_is_kept_has_no_word_of_a_machine_and_is_read_again_as_it_was(tmp_path: Path) -> None:
    team = Team()
    for one in "1101":
        team.look(view("web", "FAILED", why="the password is hunter2") if one == "1" else LOOKS["0"])
    known = Known(alerts={state: [*one] for state, one in team.kept["web"].items()}, alerted=as_time(team.now))
    fleet_answers.store(tmp_path / "fleet.json", Memory({"web": known}))
    assert "password" not in (tmp_path / "fleet.json").read_text()
    again = fleet_answers.load(tmp_path / "fleet.json").machines["web"]
    assert fleet_alerts.restored(again) == team.kept["web"] != {}
    assert again.alerted == as_time(team.now)


@pytest.mark.parametrize("values", [[], [1] * 9, ["1", "", "", "x", [], "", "", False, False], [[]] * 9])
def test_what_is_kept_and_damaged_is_nothing(values: Sequence[Any]) -> None:
    assert fleet_alerts.restored(Known(alerts={"FAILED": values})) == {}


def test_whoever_told_last_knows_what_was_told() -> None:
    told = Known(looked=as_time(NOW), alerted=as_time(NOW), alerts={"FAILED": [*Alert(told=as_time(NOW))]})
    looked = Known(looked=as_time(NOW + 60))
    for one, other in ((told, looked), (looked, told)):
        both = fleet_answers.both(Memory({"web": one}), Memory({"web": other})).machines["web"]
        assert (both.alerts, both.looked) == (told.alerts, looked.looked)


def test_a_look_that_is_handed_over_twice_is_one() -> None:
    known: dict[str, Known] = {}

    def look(moment: float) -> str:
        seen = {"web": Seen(moment, Contact(ANSWERED))}
        told = fleet_tell.tell([LOOKS["1"]], seen, known, fleet_tell.Channels(), moment)
        known["web"] = told.with_alerts("web", Known())
        return fleet_alerts.restored(known["web"])["FAILED"].told

    assert look(NOW) == look(NOW) == "", "a job of the same run was run again"
    assert look(NOW + 1) == as_time(NOW + 1)


# --- whatever comes

LOOK = st.tuples(
    st.sampled_from([WELL, ("FAILED", "ok"), ("ok", "UNHEALTHY"), ("FAILED", "UNHEALTHY"), ("DRIFTED", "ok")]),
    st.sampled_from(["one", "two 3", ""]),
    st.floats(0, 40),
    st.booleans(),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(LOOK, max_size=40))
def test_each_state_that_holds_is_told_and_so_is_its_end_and_nothing_is_told_often(looks: Any) -> None:
    team, believed, count = Team(), set[str](), 0
    history: list[tuple[set[str], float]] = []
    for words, why, hours, fails in looks:
        lines = team.look(view("web", *words, why=why), hours=hours, fails=fails)
        for line in lines if not fails else ():
            _, state, kind = line.split()
            count += 1
            assert (kind == "new") == (state not in believed), (
                "what is known is not new, and nothing else goes on or ends"
            )
            believed = believed - {state} if kind == "over" else believed | {state}
        history.append(({word for word in words if word.isupper()}, team.now))
        if fails:
            continue
        if len(history) > 1:
            assert history[-1][0] & history[-2][0] <= believed, "what two looks have seen is told"
        lately = [states for states, moment in history if moment > team.now - DAY - 2]
        before = [states for states, moment in history if moment <= team.now - DAY - 2]
        if before:
            masked = {"DRIFTED"} if "FAILED" in history[-1][0] else set()
            assert believed <= set().union(*lately, before[-1]) | masked, "what has been away for a day is over"
    days = (team.now - NOW) / DAY
    assert count <= 3 * (3 + 3 * days) + 3 * fleet_alerts.REASONS * (1 + days)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("1100?"), st.floats(-WEEK / HOUR, WEEK / HOUR)), max_size=60))
def test_whatever_the_clock_does(looks: list[tuple[str, float]]) -> None:
    team, forward, count, last = Team(), 0.0, 0, ""
    for one, hours in looks:
        lines = team.look(LOOKS[one], hours=hours)
        count, forward = count + len(lines), forward + max(0.0, hours) * HOUR
        if last == one == "1":
            assert team.kept["web"]["FAILED"].told
        last = one if one != "?" else last
    assert count <= 3 + 4 * forward / DAY


def test_no_message_of_a_machine_speaks_to_the_chat() -> None:
    team = Team()
    for _ in range(2):
        team.look(view("web", "FAILED", why="<!channel> @here <https://evil.example|x> [a](b) `c`\n::error::"))
    text = fleet_alerts.text(team.last.lines, team.now)
    assert not re.search(r"[<>@]|://|\]\(", text)
    assert len(text.splitlines()) == 2
    many = [line._replace(machine=f"m{number}") for number, line in enumerate(team.last.lines * 100)]
    assert len(fleet_alerts.text(many, team.now).splitlines()) == 2 + fleet_alerts.SHOWN
    assert json.dumps(fleet_alerts.for_programs(many))

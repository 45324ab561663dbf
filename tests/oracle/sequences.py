"""An application, and what happens to it: as text, as values, and drawn at random by hypothesis.

    uv-workspace scan-sh keep=1: uv-workspace.member docs scan-sh.new+docs python revert:0 rollback

The application has these parts and keeps so many releases; its first commit is deployed before anything happens. Then
each word is one deploy, after

    PART.CHANGE   a commit with this change of this part (`+` puts more of them into one commit)
    docs          a commit that concerns nobody
    fail          a commit whose last step fails
    revert:N      a commit that has the content of commit N again (the first is 0)
    flavour database production role stamp setting restored python
                  what changed on the machine: variables in .env, a role, a tool, a file below shared/, the content of
                  the database, its Python
    again         nothing
    back:N        nothing: commit N is deployed by --commit and --force
    rollback      nothing, and it is no deploy: the machine goes back to the release before
"""

from __future__ import annotations

from collections.abc import Sequence as List
from typing import NamedTuple

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from oracle import parts

ANY_TIME = ("again", "fail", "python", "revert", "back", "rollback")
WITH_COMMIT = ("stamp", "setting", "restored")  # by these alone, a commit that runs already is not made ready anew
SLOW = ("pip", "poetry", "django")  # a deploy of these takes seconds
NONE = {"python": 16, "npm": 30, "manage": 15}  # how often an application has no part of a kind


class Sequence(NamedTuple):
    """Some parts of an application, and what happens to them."""

    names: tuple[str, ...]  # of the parts
    keep: int
    events: tuple[str, ...]

    def __str__(self) -> str:
        return f"{' '.join(self.names)} keep={self.keep}: {' '.join(self.events)}"

    @property
    def application(self) -> list[parts.Part]:
        return [part for name, part in parts.ALL.items() if name in self.names]


def parse(text: str) -> Sequence:
    """The sequence that this text says. Raises ValueError."""
    head, colon, events = text.partition(":")
    *names, keep = head.split() or [""]
    unknown = set(names) - set(parts.ALL)
    if unknown or not colon or not keep.startswith("keep="):
        raise ValueError(f"{text!r} is not `PART... keep=N: EVENT...`; parts are {', '.join(parts.ALL)}")
    return Sequence(tuple(names), int(keep[5:]), tuple(events.split()))


def weighted(choices: List[parts.Part]) -> list[parts.Part]:
    return [part for part in choices for _ in range(part.weight)]


@st.composite
def sequences(draw: st.DrawFn, including: tuple[str, ...] = ()) -> Sequence:
    """Any sequence, of an application that has at least these parts."""
    chosen = {name: parts.ALL[name] for name in including}
    for kind, choices in parts.KINDS.items():
        part = draw(st.sampled_from([*weighted(choices), *[None] * NONE[kind]]))
        if part and not any(other.name in chosen for other in rivals(part)):
            chosen[part.name] = part
    some = draw(st.integers(1, 3))
    others = st.lists(st.sampled_from(weighted(parts.OTHERS)), min_size=some, max_size=some)
    chosen |= {part.name: part for part in draw(others)}
    application = [part for part in parts.ALL.values() if part.name in chosen]
    count = draw(st.integers(2, 3 if any(part.name.startswith(SLOW) for part in application) else 6))
    events = draw(st.lists(event(application), min_size=count, max_size=count))
    return Sequence(tuple(part.name for part in application), draw(st.sampled_from([1, 1, 2, 3])), tuple(events))


def rivals(part: parts.Part) -> list[parts.Part]:
    """Those of which an application has only one, if this is among them."""
    return [other for choices in parts.KINDS.values() if part in choices for other in choices]


def event(application: List[parts.Part]) -> st.SearchStrategy[str]:
    """Mostly commits that change something; `+` joins two of them."""
    changes = st.sampled_from([f"{part.name}.{change}" for part in application for change in part.changes] or ["docs"])
    conditions = [setting for part in application for setting in part.settings]
    on_machine = [f"{setting}+docs" if setting in WITH_COMMIT else setting for setting in conditions]
    rare = st.sampled_from([*ANY_TIME, *on_machine * 3])
    return st.one_of(
        changes,
        changes,
        st.tuples(changes, changes).map(lambda two: "+".join(dict.fromkeys(two))),
        st.just("docs"),
        rare.flatmap(
            lambda name: st.integers(0, 3).map(lambda k: f"{name}:{k}") if name in ("revert", "back") else st.just(name)
        ),
    )


def sample(count: int, of_seed: int, including: tuple[str, ...] = (), slow: bool = True) -> list[Sequence]:
    """So many different sequences; the same ones for the same seed. slow: also those that take long."""
    found: dict[Sequence, None] = {}
    number = 0
    while len(found) < count:
        number += 1
        drawn = one(1000 * of_seed + number, including)
        if slow or not any(name.startswith(SLOW) for name in drawn.names):
            found[drawn] = None
    return list(found)


def one(of_seed: int, including: tuple[str, ...]) -> Sequence:
    """What hypothesis draws with this seed, by itself: within one run it tries many variations of the same."""
    drawn: list[Sequence] = []

    @seed(of_seed)
    @settings(
        max_examples=2, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(sequences(including))
    def collect(sequence: Sequence) -> None:
        drawn.append(sequence)

    collect()
    return drawn[-1]  # the first is always the simplest that there is

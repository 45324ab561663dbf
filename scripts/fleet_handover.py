"""What was seen of a machine, handed from the job that may ask machines to the one that may write.

It travels as a job's output, and so in hex: GitHub drops an output in which the value of a secret occurs. Whoever may
read the run can read it, so no host and no user is in it, and the reasons of failures only if that was allowed.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import fleet_answers
import github
from fleet_answers import Answer, Contact, Known

MOST_HEX = 120_000  # characters: Linux takes 131,072 in one variable
MOST_BYTES = 1_000_000  # of what they unfold to
KINDS = {fleet_answers.ANSWERED, fleet_answers.OFF, fleet_answers.REFUSES, fleet_answers.SLOW}
SOMETHING = "something"  # in the place of the name of a file that was changed by hand


class Seen(NamedTuple):
    """What came of asking a machine, and when it was asked, in seconds since 1970."""

    at: float
    contact: Contact


def hidden(contact: Contact, secrets: Sequence[str]) -> Contact:
    """The same without the words that are secrets: where a machine is, and who is asked there."""
    pattern = "|".join(re.escape(word) for word in sorted(secrets, key=len, reverse=True) if len(word) > 2)
    if not pattern or not contact.answer:
        return contact
    place = re.compile(rf"(?<![\w-])(?:{pattern})(?![\w-])", re.IGNORECASE)
    one = contact.answer
    answer = one._replace(reason=place.sub("***", one.reason), failure=place.sub("***", one.failure))
    history = [{**entry, "reason": place.sub("***", entry["reason"])} for entry in contact.history]
    return contact._replace(answer=answer, history=history)


def quiet(answer: Answer | None) -> Answer | None:
    """An answer without anything that a failure, or a person's hand, has left in it."""
    if not answer:
        return None
    drift = None if answer.drift is None else (SOMETHING,) * len(answer.drift)
    return answer._replace(reason="", failure="", drift=drift)


def quiet_history(history: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    return [{**entry, "reason": ""} for entry in history]


def quiet_known(known: Known) -> Known:
    return known._replace(answer=quiet(known.answer), history=quiet_history(known.history))


def pack(seen: Seen, tells: bool) -> str:
    """As hex, and never longer than fits; tells: with the reasons of failures."""
    at, contact = seen
    answer = contact.answer if tells else quiet(contact.answer)
    history = list(contact.history if tells else quiet_history(contact.history))
    while True:
        value = {
            "schema": github.SCHEMA,
            "at": fleet_answers.as_time(at),
            "kind": contact.kind,  # and not why: it may name a host
            "answer": answer._asdict() if answer else None,
            "history": history,
            "unhealthy": contact.unhealthy,
        }
        text = zlib.compress(json.dumps(value).encode(), 9).hex()
        if len(text) <= MOST_HEX or not history:
            return text
        history = history[len(history) // 2 + 1 :]  # the newest ones; a later look asks for no others


def unpack(text: str, now: float) -> Seen | None:
    """What pack() made; None if it is something else."""
    try:
        unfold = zlib.decompressobj()
        value = json.loads(unfold.decompress(bytes.fromhex(text), MOST_BYTES))
    except (ValueError, RecursionError, zlib.error):
        return None
    if not isinstance(value, dict) or value.get("schema") != github.SCHEMA or value.get("kind") not in KINDS:
        return None
    at = fleet_answers.seconds_of(fleet_answers.time_of(value.get("at")))
    about = fleet_answers.table(value, "answer")
    answer = fleet_answers.restored(about) if about else None
    if not at or (value["kind"] == fleet_answers.ANSWERED) != bool(answer):
        return None
    times = value.get("unhealthy")
    count = times if isinstance(times, int) and 0 <= times <= 2 else 0
    return Seen(min(at, now), Contact(value["kind"], "", answer, fleet_answers.read_history(value), count))

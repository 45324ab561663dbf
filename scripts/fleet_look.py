"""One look at the machines: what was seen now, put together with what was seen before, and kept for the next one."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import fleet_answers
import fleet_page
import fleet_record
import fleet_states
import fleet_tell
from fleet_answers import Known, Memory
from fleet_handover import Seen
from fleet_states import Branch, Machine, View


class Look(NamedTuple):
    everybody: list[View]  # all machines of the inventory, in its order
    memory: Memory  # what is known of them from now on
    branch: Branch

    def of(self, names: Sequence[str]) -> list[View]:
        return [view for view in self.everybody if view.machine.name in names]


def judge(
    machines: Sequence[Machine],
    seen: Mapping[str, Seen],
    before: Memory,
    folder: Path,
    told: fleet_tell.Told = fleet_tell.NOBODY,
) -> Look:
    """Each machine by what was seen of it now, or else by what is known. folder: where a clone may be."""
    now = time.time()
    kept = {machine.name: before.machines.get(machine.name, Known()) for machine in machines}
    fresh = [one.contact.answer for one in seen.values() if one.contact.answer]
    answers = [*fresh, *(known.answer for known in kept.values() if known.answer)]
    tip, merged = fleet_states.newest(fresh, before.tip, now)
    behind = behind_in_clone(folder, tip, [answer.commit for answer in answers])
    branch = Branch(tip, merged, behind, fleet_states.name_of(answers, tip))
    views = []
    for machine in machines:
        known = kept[machine.name]
        if machine.name in seen:
            at, contact = seen[machine.name]
            view, after = fleet_states.view(machine, contact, known, branch, at)
            # where somebody has looked since and has written that first, only the history is news
            is_older = known.looked > after.looked
            kept[machine.name] = known._replace(history=after.history) if is_older else after
        else:
            view = fleet_states.recall(machine, known, branch)
        views.append(view)
    kept = {name: told.with_alerts(name, known) for name, known in kept.items()}
    return Look(views, Memory(kept, (tip, merged)), branch)


def behind_in_clone(folder: Path, tip: str, commits: Sequence[str]) -> dict[str, tuple[int, str]]:
    """How far commits are behind the newest one, where a clone that is here has them: machines may be off."""
    found = {}
    for commit in dict.fromkeys(commits):
        if commit and tip and commit != tip:
            query = ["git", "-C", str(folder), "rev-list", "--timestamp", "--first-parent", f"{commit}..{tip}", "--"]
            count = ["git", "-C", str(folder), "rev-list", "--count", f"{commit}..{tip}", "--"]
            with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):
                times, number = (
                    subprocess.run(argv, capture_output=True, text=True, check=True, timeout=1).stdout.split("\n")
                    for argv in (query, count)
                )
                oldest = [line.split()[0] for line in times if line][-1:]
                if oldest:
                    found[commit] = int(number[0]), fleet_answers.as_time(float(oldest[0]))
    return found


class Shared:
    """The shared memory, as far as it can be had. `problem`: why it cannot, in one line."""

    def __init__(self, folder: Path, machines: Sequence[Machine], scratch: Path, asks: bool) -> None:
        """asks: read it as it is now; otherwise as the clone has it, which costs nothing and may be nothing."""
        self.folder, self.machines, self.problem = folder, machines, ""
        self.names = [machine.name for machine in machines]
        self.read = fleet_record.Shared()
        self.store: fleet_record.Store | None = None
        try:
            self.store = fleet_record.Store(folder, scratch)
            self.read = self.store.read(self.names) if asks else self.store.fetched(self.names)
        except (fleet_record.RecordError, OSError) as error:
            self.problem = str(error)

    def record(self, seen: Mapping[str, Seen], own: Memory, tells: bool, told: fleet_tell.Told) -> Look:
        """Write there what was seen, and what only this computer knew; and what comes of it all. Sets `problem`."""
        found: list[Look] = []

        def say(there: Memory) -> fleet_record.New:
            found.append(judge(self.machines, seen, fleet_answers.both(own, there), self.folder, told))
            look = found[-1]
            looked = max(known.looked for known in look.memory.machines.values())
            files = fleet_page.files(look.everybody, look.memory, look.branch, looked, tells)
            return fleet_record.New(files, fleet_page.subject(look.everybody, there.machines))

        if self.store and not self.problem:
            try:
                fleet_record.record(self.store, self.names, self.read, say)
            except (fleet_record.RecordError, OSError) as error:
                self.problem = str(error)
        if found:
            return found[-1]
        return judge(self.machines, seen, fleet_answers.both(own, self.read.memory), self.folder, told)

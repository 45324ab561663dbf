"""What a run can end with: every outcome with its exit code and its words, and an error class for each reason."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from typing import NamedTuple

EXIT_USAGE = 2  # wrong arguments or configuration: no result, nothing was touched
EXIT_OFFLINE = 69  # EX_UNAVAILABLE of sysexits.h


class Outcome(NamedTuple):
    """A row of the table from which help, push, report and docs take what an outcome means.

    meaning: on the machine. words, advice: for the report; neither says "deploy", which is a usual user name
    and so a secret's value, which GitHub would hide in the page and in the log.
    """

    code: int
    meaning: str
    words: str
    advice: str = ""

    @property
    def is_good(self) -> bool:
        return self.code == 0


OUTCOMES: Mapping[str, Outcome] = {
    "deployed": Outcome(0, "the machine runs the commit that was asked for", "updated"),
    "unchanged": Outcome(0, "it ran already; no step ran and nothing was restarted", "already up to date"),
    "superseded": Outcome(0, "the machine runs a newer commit", "runs a newer commit"),
    "rolled_back_on_request": Outcome(0, "an earlier release serves, as a person asked", "rolled back on request"),
    "failed": Outcome(
        10,
        "a step failed before the switch; the old release still serves, untouched",
        "failed, the old release serves",
        "see its log; fix and merge, or run this again",
    ),
    "rolled_back": Outcome(
        11,
        "the new release was unhealthy; the previous one serves again",
        "unhealthy, rolled back",
        "the commit is not tried again there: merge a fix",
    ),
    "broken": Outcome(
        12,
        "unhealthy and no good release to go back to: a person must look",
        "broken, nothing healthy runs",
        "look at that machine now, beginning with its journal",
    ),
    "offline": Outcome(
        EXIT_OFFLINE,
        "(runner only) the machine does not answer: off, or unreachable",
        "offline",
        "nothing: it catches up when it boots",
    ),
    "unreachable": Outcome(
        75,
        "try again later: the repository could not be reached",
        "could not fetch the repository",
        "check its key and its network; run this again",
    ),
    "busy": Outcome(75, "try again later: another deploy held the lock", "was busy with another run", "run this again"),
}


def exit_code(outcome: str) -> int:
    """The exit code of an outcome; of one that is not in the table, that of `failed`."""
    return OUTCOMES.get(outcome, OUTCOMES["failed"]).code


def exit_code_of(error: Exception) -> int:
    """The exit code of an error that ends a run without a result."""
    return exit_code(getattr(error, "outcome", "failed"))


class DeployError(Exception):
    """An expected failure: one line for people, and an optional `detail` of more lines.

    said: the line of a failed command's output that says most.
    """

    outcome = "failed"

    def __init__(self, message: str, detail: str = "", said: str = "") -> None:
        super().__init__(message)
        self.detail, self.said = detail, said


class UsageError(DeployError):
    """Wrong arguments or configuration: exit code 2, no result, nothing was touched."""


class CommandError(DeployError):
    """A command could not be started, or failed."""


class TimeLimit(CommandError):
    """A command took too long and was ended."""


class TooMuch(DeployError):
    """What was to be read is larger than anything that it could be."""


class GitError(CommandError):
    """git failed at what needs no network: the mirror may be damaged."""


class Unreachable(DeployError):
    """The repository could not be reached."""

    outcome = "unreachable"


class FetchFailed(Unreachable):
    """The repository answers and yet could not be fetched from: the mirror may be damaged."""


class Busy(DeployError):
    """Another deploy holds the lock."""

    outcome = "busy"


class Unhealthy(DeployError):
    """What was switched to does not run or does not answer as it must."""

    outcome = "rolled_back"


class Broken(DeployError):
    """Nothing healthy runs, and there is nothing good to go back to."""

    outcome = "broken"


class Terminated(BaseException):
    """SIGTERM or SIGINT arrived. Not an Exception: nothing but main() may swallow it."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


def last_words(error: DeployError) -> str:
    """`: ` and the line of a failed command's output that says most, if it said anything."""
    return f": {error.said}" if error.said else ""

"""What the scripts on the CI runner share: speaking to GitHub and to people, and reading arguments and results.

What a machine says is text from outside: nothing of it may be taken for a command of GitHub's, or break a page.
"""

from __future__ import annotations

import argparse
import os
import re
from typing import Any, Callable, NoReturn

from deployer import errors

SCHEMA = 1  # of a result, as deploy_machine.py prints it
ANNOTATION = 3000  # characters of text: GitHub's limit is 4,096, and escaping makes it longer


def is_result(value: Any) -> bool:
    """Whether a value is a deploy's result, as far as the runner's scripts use it."""
    return isinstance(value, dict) and value.get("schema") == SCHEMA and isinstance(value.get("outcome"), str)


# --- text ---------------------------------------------------------------------------------------------


def plain(text: str) -> str:
    """Text from a machine in one line, with nothing in it that GitHub or a terminal would obey."""
    text = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", " ", text).rstrip()
    return text.replace("##[", "## [")  # a workflow command of the old form works anywhere in a line


def escape(text: str, more: str = "") -> str:
    """Escape as GitHub's workflow commands want it; `more` are characters that end a property."""
    for char in "%\r\n" + more:
        text = text.replace(char, f"%{ord(char):02X}")
    return text


def annotation(level: str, title: str, text: str) -> str:
    """The line that makes an annotation: `error`, `warning` or `notice`. A text that is too long loses its middle."""
    if len(text) > ANNOTATION:
        text = text[: ANNOTATION // 2] + "\n...\n" + text[-(ANNOTATION // 2 - 100) :]
    return f"::{level} title={escape(title, ',:')}::{escape(text)}"


class Console:
    """The log. What a machine says is passed on between stop-commands marks: it must not speak to GitHub."""

    def __init__(self) -> None:
        self.is_github = os.environ.get("GITHUB_ACTIONS") == "true"

    def say(self, line: str) -> None:
        print(line, flush=True)

    def foreign(self) -> Foreign:
        return Foreign(self)

    def annotate(self, level: str, title: str, text: str) -> None:
        if self.is_github:
            self.say(annotation(level, title, text))


class Foreign:
    """A stretch of the log that is not ours."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.token = os.urandom(16).hex()

    def __enter__(self) -> Callable[[str], None]:
        if self.console.is_github:
            self.console.say(f"::stop-commands::{self.token}")
        return self.line

    def __exit__(self, *_: object) -> None:
        if self.console.is_github:
            self.console.say(f"::{self.token}::")

    def line(self, text: str) -> None:
        # a token that a machine could guess would be no protection; one that it repeats, neither
        self.console.say(text.replace(self.token, "..."))


# --- arguments ------------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes are one line: it raises errors.UsageError."""

    def error(self, message: str) -> NoReturn:
        raise errors.UsageError(f"{message} (see --help)")


def checked(pattern: str, what: str) -> Callable[[str], str]:
    """A type for arguments: text that matches the whole pattern, which people know as `what`."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return text

    return check


machine_name = checked(r"[A-Za-z][A-Za-z0-9_-]*", "a machine name: letters, digits, - and _")

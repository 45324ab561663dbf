"""What the scripts on the CI runner share: speaking to GitHub and to people, and reading arguments and results.

What a machine says is text from outside: nothing of it may be taken for a command of GitHub's, break a page, show
people something else than is there, or be of any size.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import IO, Any, Callable, NoReturn

from deployer import errors

SCHEMA = 1  # of a result, as deploy_machine.py prints it
ANNOTATION = 3000  # characters of text: GitHub's limit is 4,096, and escaping makes it longer
RESULT_BYTES = 16_384  # of a result that is passed on to the report, as JSON; it travels in hex, twice as long
LINE_BYTES = 500_000  # of a line that may be a result; of a longer one the rest is not read
LOG_LINE = 8_000  # characters of a line of a machine's log that are shown
LOG_BYTES = 20_000_000  # of a machine's log that are shown


# --- results ------------------------------------------------------------------------------------------


def is_result(value: Any) -> bool:
    """Whether a value is a deploy's result, as far as the runner's scripts use it."""
    return isinstance(value, dict) and value.get("schema") == SCHEMA and isinstance(value.get("outcome"), str)


def bounded_lines(stream: IO[bytes], limit: int) -> Iterator[tuple[str, bool]]:
    """Each line of a stream, and whether it is whole: of one that is longer only `limit` bytes are ever kept."""
    while line := stream.readline(limit):
        part = line
        while len(part) == limit and not part.endswith(b"\n"):
            part = stream.readline(limit)
        yield line.decode("utf-8", "replace").rstrip("\r\n"), part is line


def parse_result(line: str, is_whole: bool = True) -> dict[str, Any] | None:
    """The result, or the status, that a line is. Of a line that was cut: what of it came before that."""
    if not line.startswith("{"):
        return None
    try:
        value = json.loads(line) if is_whole else keys_before_the_cut(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and value.get("schema") == SCHEMA else None


def keys_before_the_cut(text: str) -> dict[str, Any]:
    """The keys of a JSON object of which the end is missing, as far as they have a whole value."""
    decoder, between, found = json.JSONDecoder(), re.compile(r"[\s,:{]*"), {}
    at = 0
    try:
        while True:
            key, at = decoder.raw_decode(text, end_of(between, text, at))
            value, at = decoder.raw_decode(text, end_of(between, text, at))
            if text[at : at + 1] in (",", "}"):  # else it may be the half of a number
                found[str(key)] = value
    except (ValueError, RecursionError):
        return found


def end_of(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    return match.end() if match else at


def packed(result: Mapping[str, Any]) -> bytes:
    """A result as JSON."""
    return json.dumps(result, ensure_ascii=False).encode("utf-8", "backslashreplace")


def fitted(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result within RESULT_BYTES: what is too long in it is cut, more and more; the outcome is never lost."""
    found = {**result, "detail": last_lines(result["detail"], 300, 20)} if result.get("detail") else dict(result)
    for chars, items in ((2000, 100), (300, 60), (240, 40), (180, 30), (140, 24), (100, 20), (60, 12), (40, 4)):
        if len(packed(found)) <= RESULT_BYTES:
            return found
        detail = {"detail": last_lines(found["detail"], chars, items)} if "detail" in found else {}
        found = {**cut(found, chars, max(items, 24), items), **detail}
    keys = ("schema", "machine", "trigger", "outcome", "commit", "wanted", "previous", "seconds", "message", "detail")
    return {key: cut(found.get(key), 200, 0, 0) for key in keys}


def last_lines(text: Any, chars: int, number: int) -> str:
    return "\n".join(cut(line, chars, 0, 0) for line in str(text)[-LINE_BYTES:].splitlines()[-number:])


def cut(value: Any, chars: int, keys: int, items: int, depth: int = 4) -> Any:
    """A JSON value with texts of at most so many characters, so many keys on top and items below, and so deep."""
    if isinstance(value, str):
        return value if len(value) <= chars else value[: chars - 3] + "..."
    if isinstance(value, (list, dict)) and depth == 0:
        return None
    if isinstance(value, list):
        return [cut(item, chars, items, items, depth - 1) for item in value[:items]]
    if isinstance(value, dict):
        return {key[:chars]: cut(item, chars, items, items, depth - 1) for key, item in [*value.items()][:keys]}
    return value if value is None or isinstance(value, bool) or abs(value) < 1e300 else 0


# --- text ---------------------------------------------------------------------------------------------


# what turns letters around, or cannot be seen: people would read something else than is there
HIDDEN = re.compile(
    r"[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufeff\uffa0"
    r"\ufff9-\ufffb\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
# what steers a terminal or begins another line; colours stay
CONTROL = re.compile(r"\x1b(?!\[[0-9;]{0,20}m)|[\x00-\x08\x0a-\x1a\x1c-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def plain(text: str) -> str:
    """Text from a machine in one line, with nothing in it that GitHub or a terminal would obey."""
    text = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", " ", text).rstrip()
    text = HIDDEN.sub(visible, text)
    return text.replace("##[", "## [")  # a workflow command of the old form works anywhere in a line


def cell(text: str, limit: int = 300) -> str:
    """Text from a machine as a table cell of markdown: no markup, no line break, no mention of anybody."""
    text = " ".join(plain(text).split())
    text = text if len(text) <= limit else text[: limit - 3] + "..."
    text = text.replace("://", ":\0").replace("www.", "www\1")  # no link that nobody wrote
    for char in "\\`*_{}[]()#+!|~$":
        text = text.replace(char, "\\" + char)
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("@", "&#64;")
    return text.replace("\0", "&#47;&#47;").replace("\1", "&#46;")


def visible(match: re.Match[str]) -> str:
    """A character as Python would write it."""
    return match[0].encode("ascii", "backslashreplace").decode() if ord(match[0]) > 0x7F else f"\\x{ord(match[0]):02x}"


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
    """A stretch of the log that is not ours: it is bounded, and nothing of it comes after its end."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.token = os.urandom(16).hex()
        self.left = LOG_BYTES

    def __enter__(self) -> Callable[[str], None]:
        if self.console.is_github:
            self.console.say(f"::stop-commands::{self.token}")
        return self.line

    def __exit__(self, *_: object) -> None:
        self.left = -1
        if self.console.is_github:
            self.console.say(f"::{self.token}::")

    def line(self, text: str) -> None:
        if self.left < 0:
            return
        text = text if len(text) <= LOG_LINE else text[:LOG_LINE] + " ... (the rest of this line is left out)"
        text = HIDDEN.sub(visible, CONTROL.sub(visible, text))
        self.left -= len(text) + 1
        if self.left < 0:
            text = "... (the rest of this log is left out; that machine's journal has it)"
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


def prefix(name: str) -> str:
    """What the variables of a machine begin with: FRONTEND for FRONTEND_HOST, FRONTEND_RESULT."""
    return re.sub("[^A-Z0-9]", "_", name.upper())


machine_name = checked(r"[A-Za-z][A-Za-z0-9_-]*", "a machine name: letters, digits, - and _")

"""What the runner does with a step's output: masks secrets, obeys workflow commands, collects annotations."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import urllib.parse
import xml.sax.saxutils
from collections.abc import Callable, Iterable, Mapping

from workflow.errors import Unsupported

ANNOTATIONS_PER_STEP = 10  # of each level; GitHub shows no more
ANNOTATION_LENGTH = 4096

LEVELS = {"error", "warning", "notice"}
COMMANDS = frozenset(LEVELS) | frozenset(
    "add-mask add-matcher add-path debug echo endgroup group remove-matcher save-state set-env set-output "
    "stop-commands".split()
)


class Masker:
    """Replaces secrets by ***, also in the encodings that the runner knows."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._values: set[str] = set()
        for secret in secrets:
            self.add(secret)

    def add(self, secret: str) -> None:
        """Hide this value, and each line of it."""
        for value in (secret, *re.split(r"[\r\n]+", secret)):
            if value:
                self._values |= set(_encodings(value))

    def mask(self, text: str) -> str:
        for value in sorted(self._values, key=len, reverse=True):
            text = text.replace(value, "***")
        return text


def _encodings(value: str) -> Iterable[str]:
    data = value.encode()
    yield value
    for shift in range(min(3, len(data))):
        yield base64.b64encode(data[shift:]).decode()
    yield json.dumps(value, ensure_ascii=False)[1:-1]
    yield urllib.parse.quote(value, safe="")
    yield xml.sax.saxutils.escape(value, {'"': "&quot;", "'": "&apos;"})
    if len(value) > 8 and value[0] == value[-1] == '"':
        yield value[1:-1]


@dataclasses.dataclass(frozen=True)
class Annotation:
    """A message on the run's page. `by_runner`: the runner's own, as for a step that failed."""

    level: str
    message: str
    title: str = ""
    by_runner: bool = False


@dataclasses.dataclass(frozen=True)
class Command:
    name: str
    properties: Mapping[str, str]
    value: str


def parse_command(line: str, known: frozenset[str] = COMMANDS) -> Command | None:
    """`::name key=value,key=value::value`, or the older `##[name key=value;key=value]value`."""
    text = line.lstrip()
    if text.startswith("::") and (end := text.find("::", 2)) > 0:
        head, value, separator = text[2:end], text[end + 2 :], ","
    elif (start := line.find("##[")) >= 0 and (end := line.find("]", start)) > 0:
        head, value, separator = line[start + 3 : end], line[end + 1 :], ";"
    else:
        return None
    name, _, rest = head.partition(" ")
    if name not in known:
        return None
    pairs = (pair.partition("=") for pair in rest.strip().split(separator) if "=" in pair)
    return Command(name, {key.strip(): _unescape(text, True) for key, _, text in pairs}, _unescape(value))


def _unescape(text: str, is_property: bool = False) -> str:
    codes = {"%0D": "\r", "%0A": "\n"} | ({"%3A": ":", "%2C": ","} if is_property else {})
    for code, character in codes.items():
        text = text.replace(code, character)
    return text.replace("%25", "%")


class Output:
    """One step's output: takes lines as they come, obeys the commands in them, hands on the rest."""

    def __init__(self, masker: Masker, write: Callable[[str], None]) -> None:
        self.annotations: list[Annotation] = []
        self.refused: list[str] = []  # commands that the runner would obey, but that are not executed here
        self._masker = masker
        self._write = write
        self._stopped_until = ""

    def line(self, line: str) -> None:
        line = line.rstrip("\r\n")
        if self._stopped_until:
            if parse_command(line, frozenset([self._stopped_until])):
                self._stopped_until = ""
            else:
                self._write(line)
            return
        command = parse_command(line)
        if command is None:
            self._write(line)
        else:
            self._obey(command)

    def annotate(self, level: str, message: str, title: str = "", by_runner: bool = False) -> None:
        self._write(f"##[{level}]{message}")
        if sum(annotation.level == level for annotation in self.annotations) < ANNOTATIONS_PER_STEP:
            hidden = self._masker.mask(message)[:ANNOTATION_LENGTH], self._masker.mask(title)
            self.annotations.append(Annotation(level, *hidden, by_runner))

    def _obey(self, command: Command) -> None:
        if command.name in LEVELS and set(command.properties) <= {"title"}:
            self.annotate(command.name, command.value, command.properties.get("title", ""))
        elif command.name == "stop-commands" and command.value and command.value not in COMMANDS:
            self._stopped_until = command.value
        else:
            self.refused.append(" ".join([f"::{command.name}", *command.properties]))


def read_pairs(text: str) -> dict[str, str]:
    """The `name=value` lines of a GITHUB_OUTPUT file; raises ValueError at another line."""
    pairs: dict[str, str] = {}
    for line in filter(None, text.splitlines()):
        name, equals, value = line.partition("=")
        if "<<" in name:
            raise Unsupported(f"$GITHUB_OUTPUT: {line}")
        if not name or not equals:
            raise ValueError(f"Invalid format '{line}'")
        pairs[name] = value
    return pairs

"""INI files as configparser(3) reads them, but in time that grows with their length, and no longer than MOST."""

from __future__ import annotations

from collections.abc import Mapping

from deployer import errors

MOST = 262_144  # characters of a file: more is nobody's configuration
Sections = Mapping[str, Mapping[str, str]]


class Reader:
    """What was read up to a line. Its values are lists of lines.

    configparser itself would need some 20 minutes for one line with 400,000 blanks in it.
    """

    def __init__(self) -> None:
        self.sections: dict[str, dict[str, list[str]]] = {}
        self.section: dict[str, list[str]] | None = None
        self.value: list[str] | None = None  # that an indented line goes on with
        self.indent = 0  # of the line that it began in

    def take(self, number: int, line: str) -> None:
        """Read one line. Raises UsageError."""
        text = without_comment(line)
        if not text:
            if self.value is not None and not line.strip():
                self.value.append("")
            return
        indent = len(line) - len(line.lstrip())
        if self.value is not None and indent > self.indent:
            self.value.append(text)
            return
        self.indent = indent
        if text.startswith("[") and "]" in text[2:]:
            self.begin_section(number, text[1 : text.rindex("]")])
        elif self.section is None:
            raise errors.UsageError(f"line {number}: File contains no section headers: {text[:60]!r}")
        else:
            self.begin_value(number, text, self.section)

    def begin_section(self, number: int, name: str) -> None:
        if name in self.sections:
            raise errors.UsageError(f"line {number}: section [{name[:60]}] already exists")
        self.section, self.value = self.sections.setdefault(name, {}), None

    def begin_value(self, number: int, text: str, section: dict[str, list[str]]) -> None:
        key, equals, value = text.partition("=")
        key = key.strip().lower()
        if not equals or not key:
            raise errors.UsageError(f"line {number}: not of the form key = value: {text[:60]!r}")
        if key in section:
            raise errors.UsageError(f"line {number}: key {key[:60]!r} already exists in its section")
        self.value = section[key] = [value.strip()]


def without_comment(line: str) -> str:
    """A line without blanks around it and without a comment: from a `;` that begins a word, or a `#` that begins it."""
    if line.lstrip().startswith(("#", ";")):
        return ""
    end = line.find(";")
    while end > 0 and not line[end - 1].isspace():
        end = line.find(";", end + 1)
    return line[:end].strip() if end >= 0 else line.strip()


def parse(*texts: str) -> Sections:
    """The sections of files, each with its keys and values; later files over earlier ones. Raises UsageError."""
    found: dict[str, dict[str, str]] = {}
    for text in texts:
        if len(text) > MOST:
            raise errors.UsageError(f"is longer than {MOST // 1024} KB")
        if "\0" in text:
            raise errors.UsageError("holds a NUL character")
        reader = Reader()
        for number, line in enumerate(text.split("\n"), 1):
            reader.take(number, line)
        for name, section in reader.sections.items():
            values = {key: "\n".join(lines).rstrip() for key, lines in section.items()}
            found.setdefault(name, {}).update(values)
    return found

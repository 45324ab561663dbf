""".env.example: the variables that the settings ask for, in the syntax of shared/.env."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import adopt_looks as looks
from adopt_values import Place, Variable, plain

HEAD = """\
# For /srv/app/shared/.env on each machine: services and deploy steps get these variables. NAME=value, one a line, read
# as systemd reads an EnvironmentFile=; a line that begins with # says nothing:
#   - no `export` before it, and no comment behind it: A=1 # b  is the value `1 # b`
#   - a value with blanks, #, quotes or backslashes stands in "double quotes" (there \\" and \\\\ are those characters),
#     or in 'single quotes', which take everything as it is; $NAME is not replaced
# For a command of your own on the machine, with these variables: in /srv/app/current,
#   sudo -u app python3 -IS /usr/local/lib/deploy-machine/dotenv.py ../shared/.env .venv/bin/python manage.py shell
"""
EXAMPLE_HOSTS = ("127.0.0.1", "localhost", "uat.example.com")
YES = {"true": "False", "True": "False", "1": "0", "yes": "no", "on": "off"}


def text_of(found: looks.Found, more: Mapping[str, str]) -> str:
    """The whole file. more: variables that a person's lines will ask for, and others that have to be set."""
    lines = [f"{name}={quoted(value)}" for name, value in needed(found, more).items()]
    optional = [f"# {line}" for line in optional_lines(found, more)]
    head = ["", "# These have a value in the settings; without the # they get another one."] if optional else []
    return HEAD + "\n".join(["", *lines, *head, *optional, ""])


def needed(found: looks.Found, more: Mapping[str, str]) -> dict[str, str]:
    """The variables that a machine has to have, with a value to begin with."""
    values: dict[str, str] = dict(more) if "DJANGO_SETTINGS_MODULE" in more else {}
    if needs_settings_module(found):
        values["DJANGO_SETTINGS_MODULE"] = found.settings
    values.update(more)
    for variable in found.variables.values():
        value = value_for(variable, found)
        if value is not None:
            values.setdefault(variable.name, value)
    return values


def needs_settings_module(found: looks.Found) -> bool:
    """Whether manage.py, wsgi.py and asgi.py do not all lead to the settings that a machine should have."""
    return bool(found.settings) and found.default_settings != (found.settings,)


def value_for(variable: Variable, found: looks.Found) -> str | None:
    """A value to begin with; None if the settings have one that will do."""
    name, default = variable.name, variable.default
    if name == looks.asked_for(found.setting("ALLOWED_HOSTS", None)):
        kind = found.setting("ALLOWED_HOSTS").kind
        return (" " if kind == "words" else ",").join(EXAMPLE_HOSTS)
    if re.search(r"(^|_)DEBUG$", name) and str(default) in YES:
        return YES[str(default)]
    if re.search(r"(^|_)DEBUG$", name) and variable.is_needed:
        return "False"
    if name == looks.asked_for(found.setting("SECRET_KEY", None)):
        return "change-me"
    if name == looks.asked_for(found.setting("MEDIA_ROOT", None)):
        is_right = plain(found.setting("MEDIA_ROOT")) == Place("media")
        return None if is_right else "/srv/app/shared/media"
    if name == looks.asked_for(database_name(found)) and isinstance(plain(database_name(found)), Place):
        return "/srv/app/shared/data/db.sqlite3"
    if re.search(r"(^|_)DATABASE_URL$", name):
        return "postgres://USER:change-me@10.0.0.9:5432/NAME"
    return "change-me" if variable.is_needed else None


def database_name(found: looks.Found) -> Any:
    databases = found.setting("DATABASES", {})
    default = databases.get("default") if isinstance(databases, dict) else None
    return default.get("NAME") if isinstance(default, dict) else None


def optional_lines(found: looks.Found, more: Mapping[str, str]) -> list[str]:
    there = needed(found, more)
    lines = []
    for variable in sorted(found.variables.values()):
        if variable.name not in there:
            default = variable.default
            is_short = isinstance(default, (str, int, float)) and len(str(default)) < 80 and str(default).isprintable()
            lines.append(f"{variable.name}={quoted(str(default)) if is_short else ''}")
    return lines


def quoted(value: str) -> str:
    """A value as it is to be written, so that it is read as it is."""
    if re.fullmatch(r"[\w./:@%+,=~?&-]*", value, re.ASCII):
        return value
    return '"' + re.sub(r'(["\\`$])', r"\\\1", value) + '"'


def named_in(text: str) -> set[str]:
    """The variables that a file of this kind names, also in a comment."""
    return {*re.findall(r"(?m)^\s*#?\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=", text)}

"""The one line of a failed command's output that a person would pick; the last one is mostly the emptiest."""

from __future__ import annotations

import re
from collections.abc import Sequence

WIDTH = 200  # characters of it
COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
# an exception of Python or JavaScript; of several, raised one from another, the last says what became of it
RAISED = re.compile(r"(Uncaught )?(([\w]+\.)+[A-Z]\w*|\w*(Error|Exception|Interrupt))( \[\w+\])?: \S")
# what package managers, git, ssh and systemctl begin the lines with that say why
SAYS = (
    re.compile(r"(╰─▶ |cause: )?Because "),  # uv and Poetry: why there is no solution
    re.compile(r"ERR_PNPM_\w+\s"),
    re.compile(r"npm (error|ERR!) (notarget|404|enoent|ERESOLVE|`npm ci`|Missing script|Invalid|\w+ only)"),
    re.compile(
        r"(ssh|kex_exchange_identification): |Host key verification failed|.*Permission denied \("
        r"|No \w+ host key is known for |.*\b[Hh]ost key for .* has changed|error: RPC failed|fetch-pack: unexpected"
    ),
    re.compile(
        r"Job for .* failed|Failed to (re)?(start|stop|load|enable|disable)\b.*: |.*: Start request repeated too"
    ),
    re.compile(r"ERROR: |(fatal|remote|error|Error|ERROR)\W+(?!Command failed|Could not read from remote)\w"),
    re.compile(r".*(: error |\berror TS\d+|\bFAILED\b|: not found$|: command not found$)"),
)
FIRST = {2, 3, 4}  # of these the first line counts, of all others the last
# what is said whatever went wrong
EMPTY = re.compile(
    r"(Node\.js v\d|npm (error|ERR!)( (code|errno|path|syscall|command|cwd|A complete log|Run \"npm help).*)?$"
    r"|(info|hint|note|warning)\b|.*A complete log of this run|.*run with -v|ELIFECYCLE|error Command failed"
    r"|Running migrations:|Operations to perform:|Failing command:|See (above|\"|system logs)|Please make sure"
    r"|and the repository|fatal: Could not read from remote|error: (metadata-generation-failed|subprocess-exited)"
    r"|\[end of output|╰─>|\u00d7|at .+[:)]|[\^~{}\[\]()|\s]*$|WARN|\[[^\]]+\] \[\d+\] \[(INFO|ERROR)\])"
)


def line(text: str) -> str:
    """That line; empty if nothing was said."""
    lines = [found for raw in COLOURS.sub("", text).splitlines() if (found := raw.strip()[:2000])]
    picked = raised(lines) or said(lines) or last(lines)
    picked = re.sub(r"^(npm (error|ERR!)( notarget)?|╰─▶|cause:|error(?= \S)(?!:))\s+", "", picked)
    return picked if len(picked) <= WIDTH else picked[: WIDTH - 4] + " ..."


def raised(lines: Sequence[str]) -> str:
    found = [one for one in lines if RAISED.match(one)]
    return found[-1] if found else ""


def said(lines: Sequence[str]) -> str:
    for number, pattern in enumerate(SAYS):
        found = [one for one in lines if pattern.match(one) and not EMPTY.match(one)]
        if found:
            return found[0 if number in FIRST else -1]
    return ""


def last(lines: Sequence[str]) -> str:
    found = [one for one in lines if not EMPTY.match(one)] or list(lines)
    return found[-1] if found else ""

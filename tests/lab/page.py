"""./dev demo --page: what the demo shows, as one HTML page that a person can open and keep: no network, no script.

Summaries are Markdown, rendered as GitHub does, but for two things. Of raw HTML only <br> is obeyed: the report writes
no other, and what GitHub would take for some is marked. The mermaid gantt is drawn here, as bars.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

from lab.image import say
from workflow import Run
from workflow.commands import Annotation
from workflow.results import Leg

POLICY = """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">"""

STYLE = """\
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2328; max-width: 75em; margin: 0 auto; padding: 1em;
  overflow-wrap: anywhere }
h1 { border-bottom: 1px solid #d1d9e0 }
pre { white-space: pre-wrap; font: 12px/1.45 ui-monospace, monospace; background: #f6f8fa; padding: 1em;
  border-radius: 6px }
section, details { border: 1px solid #d1d9e0; border-radius: 6px; padding: 0 1em; margin: 1em 0 }
summary { padding: .4em 0 }
table { border-collapse: collapse; width: 100%; margin: 1em 0 }
th, td { border: 1px solid #d1d9e0; padding: .4em .8em; text-align: left; vertical-align: top; min-width: 5em }
th:first-child, td:first-child { min-width: 8em } /* most names in one line */
.annotation { white-space: pre-wrap; border-left: 4px solid #0969da; padding-left: 1em; margin: 1em 0 }
.annotation.warning { border-color: #9a6700 }
.annotation.error, .failed { border-color: #d1242f }
.annotation strong { display: block }
.success { color: #1a7f37 }
.failure { color: #d1242f }
.step { display: grid; grid-template-columns: 14em minmax(0, 1fr) 8em; gap: 1em; align-items: center }
.track { position: relative; height: 1em; background: #f6f8fa }
.bar { position: absolute; height: 100%; min-width: 2px; background: #0969da }
.bar.crit { background: #d1242f }
@media (max-width: 700px) { /* a table's rows become blocks, and each cell says what it is */
  thead { display: none }
  table, tbody, tr, td { display: block }
  tr { margin-bottom: 1em }
  td::before { content: attr(data-column) ": "; font-weight: 600 }
  .step { grid-template-columns: 7em minmax(0, 1fr) 5em; gap: .5em }
}
"""


class Page:
    """The page, in the order in which things are shown. All that is not markup of this module's is escaped."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    def title(self, text: str) -> None:
        print(f"\n=== {text}\n", flush=True)
        self.parts.append(f"<h2>{html.escape(text)}</h2>")

    def say(self, text: str) -> None:
        say(text)
        self.parts.append(f"<p>{html.escape(text)}</p>")

    def log(self, name: str, text: str, is_shown: bool = False) -> None:
        if not is_shown:
            print(f"{text}\n", flush=True)
        self.parts.append(log(name, text))

    def run(self, run: Run) -> None:
        """A run of a workflow, whose log was shown as it came: the verdict, annotations, summary; each job's log."""
        colour = "GREEN" if run.conclusion == "success" else "RED"
        print(f"\nThe run is {colour}. Its summary page:\n\n{run.summary}", flush=True)
        self.add(run.conclusion, run.legs)

    def add(self, conclusion: str, legs: Sequence[Leg]) -> None:
        kind = "success" if conclusion == "success" else "failure"
        self.parts.append(f'<h3 class="{kind}">The run: {html.escape(conclusion)}</h3>')
        self.parts += [annotation(one, leg.name) for leg in legs for one in leg.annotations]
        self.parts += [f"<section>{summary(leg.summary)}</section>" for leg in legs if leg.summary]
        self.parts += [log(f"{leg.name}: {leg.conclusion}, {leg.ended - leg.started:.0f} s", leg.log) for leg in legs]

    def html(self) -> str:
        return "\n".join(
            [
                '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
                '<meta name="viewport" content="width=device-width, initial-scale=1">',
                f"{POLICY}\n<title>deploy-machine: the demo</title>\n<style>\n{STYLE}</style></head>",
                "<body><h1>deploy-machine: the demo</h1>",
                *self.parts,
                "</body></html>\n",
            ]
        )

    def write(self, path: Path) -> None:
        path.write_text(self.html(), encoding="utf-8", errors="backslashreplace")


def log(name: str, text: str) -> str:
    text = re.sub(r"\x1b\[[0-9;]*m", "", text).strip("\n")  # colours
    return f"<details><summary>{html.escape(name)}</summary><pre>{html.escape(text)}</pre></details>"


def annotation(one: Annotation, leg: str) -> str:
    title = f"{one.level}: {one.title or leg}"
    return f'<div class="annotation {one.level}"><strong>{html.escape(title)}</strong>{html.escape(one.message)}</div>'


# --- summaries ------------------------------------------------------------------------------------------------


def summary(markdown: str) -> str:
    """A summary page, as HTML."""
    return str(MARKDOWN.render(markdown))


def raw_html(_: Any, tokens: Sequence[Any], index: int, *__: Any) -> str:
    text = tokens[index].content
    return "<br>" if text == "<br>" else f'<mark title="raw HTML">{html.escape(text)}</mark>'


def fence(_: Any, tokens: Sequence[Any], index: int, *__: Any) -> str:
    token = tokens[index]
    drawn = gantt(token.content.splitlines()) if token.info == "mermaid" else ""
    return drawn or f"<pre>{html.escape(token.content)}</pre>"


def name_columns(state: Any) -> None:
    """Each cell of a table knows its column's head, for screens that are too narrow for a table."""
    heads: list[str] = []
    column = 0
    for token, following in zip(state.tokens, state.tokens[1:], strict=False):
        if token.type == "table_open":
            heads = []
        elif token.type == "th_open":
            heads.append(following.content)
        elif token.type == "tr_open":
            column = 0
        elif token.type == "td_open":
            token.attrSet("data-column", heads[column])
            column += 1


MARKDOWN = MarkdownIt("commonmark").enable("table")
MARKDOWN.add_render_rule("html_inline", raw_html)
MARKDOWN.add_render_rule("html_block", raw_html)
MARKDOWN.add_render_rule("fence", fence)
MARKDOWN.core.ruler.push("name_columns", name_columns)


TASK = re.compile(r" *(?P<name>.+) :(?P<kind>crit, )?(?P<begin>\d+), (?P<end>\d+)")


def gantt(lines: Iterable[str]) -> str:
    """Mermaid's gantt as the report writes it: sections, and tasks from one millisecond to another; else nothing."""
    found: list[str | re.Match[str]] = []
    for line in lines:
        if task := TASK.fullmatch(line):
            found.append(task)
        elif line.startswith("    section "):
            found.append(line.removeprefix("    section "))
        elif not line.strip().startswith(("gantt", "dateFormat ", "axisFormat ")):
            return ""
    whole = max((int(task["end"]) for task in found if not isinstance(task, str)), default=1) or 1
    return "\n".join(
        f"<h4>{html.escape(item)}</h4>" if isinstance(item, str) else task_row(item, whole) for item in found
    )


def task_row(task: re.Match[str], whole: int) -> str:
    begin, end = int(task["begin"]), int(task["end"])
    left, width = 100 * begin / whole, 100 * (end - begin) / whole
    place = f"left: min({left:.2f}%, calc(100% - 2px)); width: {width:.2f}%"
    kind = "bar crit" if task["kind"] else "bar"
    return (
        f'<div class="step"><span>{html.escape(task["name"])}</span>'
        f'<span class="track"><span class="{kind}" style="{place}"></span></span>'
        f"<span>{(end - begin) / 1000:.1f} s</span></div>"
    )

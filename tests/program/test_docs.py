"""README and docs/: short enough, every link leads somewhere, and what comes from a program is what it says today."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
README = REPOSITORY / "README.md"
DOCS = sorted((REPOSITORY / "docs").glob("*.md"))
EXAMPLE = "examples/django/"
PAGES = [README, *DOCS, REPOSITORY / EXAMPLE / "README.md"]
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LABORATORY = "bar bars contender contenders floor floors naive peer peers promise promises".split()


def name_of(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


def generated(page: Path, command: str) -> str:
    """What stands between the marks of a command."""
    (found,) = re.findall(f"<!-- generated: {re.escape(command)} -->\n(.*?)<!-- end -->", page.read_text(), re.DOTALL)
    return str(found)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead_links(page: Path) -> list[str]:
    """The links of a page that lead to no file of the repository, or to no heading of it."""
    dead = []
    for link in re.findall(r"\]\(([^()\s]+)\)", FENCED.sub("", page.read_text())):
        place, _, anchor = link.partition("#")
        target = page.parent / place if place else page
        if "://" not in link and (not target.exists() or (anchor and anchor not in anchors(target))):
            dead.append(link)
    return dead


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) < 200


def test_the_readme_has_no_words_of_the_laboratory() -> None:
    words = re.findall(r"[a-z]+", README.read_text().lower())
    assert not set(LABORATORY) & set(words)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    assert dead_links(page) == []


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A: b.c\n[1](#a-bc) [2](page.md#a-bc) [3](page.md#d) [4](none.md) [5](https://example.com/x)\n")
    assert dead_links(page) == ["page.md#d", "none.md"]


@pytest.mark.parametrize("page", DOCS, ids=name_of)
def test_every_document_says_for_whom_it_is_and_is_reached_from_the_readme(page: Path) -> None:
    title, empty, sentence = page.read_text().splitlines()[:3]
    assert (title[:2], empty, sentence[:4]) == ("# ", "", "For ")
    assert f"({name_of(page)})" in README.read_text()


def test_what_is_quoted_of_the_example_stands_there() -> None:
    """A row of the table of what an application must have: `line`, `line` in [file](path), ..."""
    page = (REPOSITORY / "docs/adopting.md").read_text()
    quoted = re.findall(rf"((?:`[^`]+`(?:, )?)+) in \[[^\]]+\]\(\.\./({EXAMPLE}[^)]+)\)", page)
    assert len(quoted) > 8
    for lines, path in quoted:
        text = (REPOSITORY / path).read_text()
        for line in re.findall("`([^`]+)`", lines):
            assert line in text, f"{path} has no line {line}"


def test_the_defaults_of_deploy_ini_are_those_of_the_program() -> None:
    command = [sys.executable, str(REPOSITORY / "scripts/deploy_machine.py"), "plan", "--show-config"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert generated(REPOSITORY / "docs/deploy-ini.md", "plan --show-config") == f"```ini\n{printed.strip()}\n```\n"


def test_the_outcomes_are_those_of_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "scripts"))
    outcomes = importlib.import_module("deployer.errors").OUTCOMES
    rows = [f"| {outcome.code} | `{name}` | {outcome.meaning} |" for name, outcome in outcomes.items()]
    table = ["| code | outcome | meaning |", "|---|---|---|", *rows]
    assert generated(README, "outcomes").splitlines() == table


def test_every_recipe_with_lines_is_run_by_a_test() -> None:
    page = (REPOSITORY / "docs/recipes.md").read_text()
    sections = re.split(r"^## ", page, flags=re.MULTILINE)[1:]
    titles = {section.partition("\n")[0] for section in sections if "```ini" in section}
    tests = "".join(path.read_text() for path in (REPOSITORY / "tests/shapes").glob("test_*.py"))
    assert {*re.findall(r'recipe\("([^"]+)"\)', tests)} == titles


def test_every_bar_that_is_not_met_is_explained() -> None:
    page = REPOSITORY / "docs/benchmarks.md"
    tables = generated(page, "./dev bench")
    explained = page.read_text().replace(tables, "")
    for bar in re.findall(r"^\| (.+?) \|.*\*\*NOT met\*\*", tables, re.MULTILINE):
        assert f"`{bar}`" in explained

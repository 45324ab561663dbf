"""./dev demo --page, looked at in a real browser: all of what machines say is there to be read, and is nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import browser
from lab.page import POLICY, Page
from workflow.commands import Masker, Output
from workflow.results import Leg

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))
import github  # noqa: E402
import report_deploys  # noqa: E402

pytestmark = pytest.mark.browser

WIDTHS = (1280, 400)
SCRIPT = "<script>parent.marker = marker = 1</script><img src=x onerror='marker = 1'>"
# what a machine may say, and a page must show as it is
HOSTILE = [
    SCRIPT, "</td></table></pre></details>", "a | b || c", "`a` ``b`` ```", "**bold** _it_ ~~gone~~ # no",
    "[a](b) ![c](d)", "<!-- x --> <br>",
    "&amp; &lt;b&gt; &#64;", "\\| \\\\ \\` $x$", "🚀 ünï", "שלום עולם, مرحبا", "W" * 300,
]  # fmt: skip


def result(outcome: str, **more: Any) -> dict[str, Any]:
    return {
        "schema": 1, "machine": "m", "trigger": "cd", "outcome": outcome, "commit": "b" * 40, "wanted": "b" * 40,
        "previous": "a" * 40, "seconds": 4.2, "message": "some words",
        "steps": [
            {"name": "python", "result": "ran", "seconds": 1.2, "why": "poetry.lock changed"},
            {"name": "npm", "result": "ran", "seconds": 0.001, "why": "package-lock.json changed"},
            {"name": "migrate", "result": "skipped", "seconds": 0, "why": ""},
        ],
        **more,
    }  # fmt: skip


def page_of(folder: Path, results: Mapping[str, Any]) -> str:
    """The demo's page of one run with these results, as the real report tells of them."""
    markdown = folder / "summary.md"
    markdown.unlink(missing_ok=True)
    sent = {name: github.packed(github.fitted(found)).hex() for name, found in results.items()}  # as push_deploy does
    env = {f"{github.prefix(name)}_RESULT": value for name, value in sent.items()}
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "report_deploys.py"), "--expect", *results],
        env={"PATH": os.environ["PATH"], "GITHUB_STEP_SUMMARY": str(markdown), **env},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, cwd=folder,
    )  # fmt: skip
    leg = Leg("report", "report", {}, folder, "success", summary=markdown.read_text(), log=done.stdout)
    output = Output(Masker(), lambda line: None)
    for line in done.stdout.splitlines():
        output.line(line)
    leg.annotations = output.annotations
    page = Page()
    page.title(f"1. A change is merged {SCRIPT}")
    page.add("success", [leg])
    page.log("the log of a machine", "\n".join(HOSTILE))
    assert page.html().count(POLICY) == 1
    return page.html().replace(POLICY, "")  # what it keeps from running must not be there to be kept


def cut(text: str, limit: int) -> str:
    text = report_deploys.words(text)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def test_what_machines_say_is_read_as_they_said_it(tmp_path: Path) -> None:
    """Ordinary results, hostile ones, and the longest of many machines, on a wide and a narrow screen."""
    hostile = {
        f"m{number}": result(
            "failed", message=f"{text} end", detail=f"{text}\n{text}",
            steps=[{"name": text, "result": "failed", "seconds": 1, "why": f"why {text}"}, *result("x")["steps"]],
        )
        for number, text in enumerate(HOSTILE)
    }  # fmt: skip
    long = result(
        "failed", message="M" * 60_000, detail="D" * 50_000,
        steps=[{"name": "N" * 300, "result": "ran", "seconds": 1e7, "why": "Y" * 5000}] * 700,
    )  # fmt: skip
    ordinary = {"scheduler": result("deployed"), "frontend": result("offline", commit="", steps=[])}
    pages = {
        "ordinary": page_of(tmp_path, ordinary),
        "hostile": page_of(tmp_path, hostile),
        "long": page_of(tmp_path, {f"{'a-machine-' * 6}{number}": long for number in range(20)}),
    }
    assert all(len(text) < 2_000_000 for text in pages.values())
    found = browser.look(tmp_path, pages, WIDTHS, "h2", "section h2", "section p", "section pre", "details pre", "mark",
                         ".annotation", ".step", ".machine", "a")  # fmt: skip
    for name, one in found.items():
        assert name.endswith(f" {one['width']}")
        assert one["problems"] == [], name
        assert (one["scripts"], one["marker"], one["texts"]["mark"]) == (0, False, []), name
        assert one["texts"]["h2"][0] == f"1. A change is merged {SCRIPT}"
        assert one["texts"]["details pre"][-1] == "\n".join(HOSTILE)
        assert one["texts"]["a"] == []
    for width in WIDTHS:
        assert found[f"ordinary {width}"]["rows"] == [
            ["scheduler", "✅ updated", "aaaaaaaa → bbbbbbbb", "4.2 s",
             "python: poetry.lock changed\nnpm: package-lock.json changed\nunchanged: migrate"],
            ["frontend", "💤 offline", "-", "4.2 s", "-"],
        ]  # fmt: skip
        assert found[f"ordinary {width}"]["texts"][".step"] == ["python\n1.2 s", "npm\n0.0 s"]
        told = found[f"hostile {width}"]
        for text, row, note, detail in zip(
            HOSTILE, told["rows"], told["texts"]["section p"], told["texts"]["section pre"], strict=True
        ):
            assert row[4].splitlines()[0] == f"failed {cut(text, 40)}: {cut(f'why {text}', 120)}"
            assert note.splitlines()[0] == f"{row[0]}: {text} end"
            assert detail == f"{text}\n{text}"
        assert any(f"m0: {HOSTILE[0]} end" in text for text in told["texts"][".annotation"])
        assert len(found[f"long {width}"]["rows"]) == 20

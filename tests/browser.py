"""Looks at HTML pages in a real browser: what a person would find cut off, and the text that is there to be read."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# of Debian; of Google, as GitHub's runners have it; and Ubuntu's last, a snap that may not read a test's files
NAMES = ("chromium-headless-shell", "google-chrome", "chromium")
HOW_TO_GET_IT = "apt install chromium-headless-shell"
VIEWPORT = 2000  # pixels, wide and high, in which the frames lie


def program() -> str:
    """The browser; empty: there is none."""
    return next(filter(None, map(shutil.which, NAMES)), "")


# Every frame holds one page at one width. All that is hidden behind a click is opened first.
LOOK = """\
<script>
function problems(page, width) {
  const found = [], root = page.documentElement
  if (root.scrollWidth > width) found.push(`the page is ${root.scrollWidth} px wide`)
  for (const one of page.body.querySelectorAll("*")) {
    const place = one.getBoundingClientRect(), name = `${one.tagName}.${one.className} "${one.innerText.slice(0, 60)}"`
    if (place.left < -1 || place.right > width + 1) found.push(`${name} reaches from ${place.left} to ${place.right}`)
    if (one.clientWidth && one.scrollWidth > one.clientWidth + 1) found.push(`${name} is cut off, or spills`)
    if (one.clientHeight && one.scrollHeight > one.clientHeight + 1) found.push(`${name} is cut off below, or spills`)
    if (one.innerText.trim() && !one.checkVisibility() && !one.closest("thead")) found.push(`${name} cannot be seen`)
  }
  return found
}
function look(frame) {
  const page = frame.contentDocument
  page.querySelectorAll("details").forEach(one => one.open = true)
  const texts = selector => [...page.querySelectorAll(selector)].map(one => one.innerText.trim())
  return {
    width: frame.contentWindow.innerWidth,
    problems: problems(page, frame.contentWindow.innerWidth),
    rows: [...page.querySelectorAll("tbody tr")].map(row => [...row.cells].map(cell => cell.innerText.trim())),
    texts: Object.fromEntries(SELECTORS.map(selector => [selector, texts(selector)])),
    scripts: page.querySelectorAll("script").length,
    marker: "marker" in frame.contentWindow || "marker" in window,
  }
}
onload = () => {
  const found = [...document.querySelectorAll("iframe")].map(look)
  document.documentElement.setAttribute("data-found", encodeURIComponent(JSON.stringify(found)))
}
</script>
"""


def look(folder: Path, pages: Mapping[str, str], widths: Sequence[int], *selectors: str) -> dict[str, Any]:
    """What is found in each page at each width, by f"{name} {width}"; `texts` are those of the selectors' elements."""
    frames = [
        f'<iframe width="{width}" height="800" style="border: 0" srcdoc="{html.escape(page)}"></iframe>'
        for page in pages.values()
        for width in widths
    ]
    script = LOOK.replace("SELECTORS", json.dumps(selectors))
    file = folder / "frames.html"
    file.write_text(f'<!DOCTYPE html><meta charset="utf-8">{script}{"".join(frames)}', encoding="utf-8")
    done = subprocess.run(
        [program(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
         f"--user-data-dir={folder}/profile", f"--window-size={VIEWPORT},{VIEWPORT}",
         "--host-resolver-rules=MAP * ~NOTFOUND", "--disable-background-networking", "--no-first-run",
         "--dump-dom", file.as_uri()],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, encoding="utf-8", timeout=100, check=True,
    )  # fmt: skip
    answer = re.search('data-found="([^"]*)"', done.stdout)
    assert answer, done.stderr[-2000:]
    names = [f"{name} {width}" for name in pages for width in widths]
    return dict(zip(names, json.loads(urllib.parse.unquote(answer[1])), strict=True))

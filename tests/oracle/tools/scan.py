"""Stands for a build that scans templates: reads files by pattern anywhere, and keeps the classes that they use."""

import re
from pathlib import Path

used = set()
for path in sorted(Path().glob("**/templates/**/*.html")):
    if path.is_file():
        used |= set(re.findall(r'class="([a-z0-9-]+)"', path.read_text()))
out = Path("static/scanned-py")
out.mkdir(parents=True)
(out / "all.css").write_text(Path("scan-py/base.css").read_text() + "".join(f".{name} {{}}\n" for name in sorted(used)))

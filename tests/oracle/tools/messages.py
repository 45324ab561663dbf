"""Stands for compilemessages: writes an .mo file beside each .po file."""

from pathlib import Path

for path in Path("locale").glob("*/*.po"):
    path.with_suffix(".mo").write_text("compiled: " + path.read_text())

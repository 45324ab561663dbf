"""Stands for Django's manage.py: `collectstatic` copies assets/ under names that a class in storage.py gives."""

import sys
from pathlib import Path

import storage

HERE = Path(__file__).resolve().parent


def collectstatic():
    out = HERE / "staticfiles"
    out.mkdir(exist_ok=True)
    names = []
    for path in sorted(HERE.glob("assets/*")):
        names.append(storage.Storage().name(path))
        (out / names[-1]).write_text(path.read_text())
    (out / "manifest.txt").write_text("\n".join(names) + "\n")


if __name__ == "__main__":
    if sys.argv[1] != "collectstatic":
        sys.exit(f"Unknown command: {sys.argv[1]!r}")
    collectstatic()

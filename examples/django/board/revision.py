"""Which commit this process runs."""

from pathlib import Path


def commit() -> str:
    """The commit of the release that this process was started from; `unknown` outside of one."""
    try:
        return (Path(__file__).resolve().parent.parent / "REVISION").read_text().strip()
    except FileNotFoundError:
        return "unknown"


# Read once, at the start: after a switch, a process that was not restarted still tells the old one.
COMMIT = commit()

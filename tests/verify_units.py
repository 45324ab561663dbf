"""`systemd-analyze verify` for the units below systemd/, without the paths they will find on a machine."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

UNITS = Path(__file__).resolve().parents[1] / "systemd"


def main() -> int:
    """Print what systemd finds wrong with the units; 1 if anything."""
    with tempfile.TemporaryDirectory() as directory:
        copies = []
        for unit in sorted([*UNITS.glob("*.service"), *UNITS.glob("*.socket"), *UNITS.glob("*.timer")]):
            # the programs and users are only on the machines; what is checked here are the directives
            text = unit.read_text()
            for program in ("/srv/app/current/.venv/bin/python", "/srv/app/slots/%i/.venv/bin/gunicorn"):
                text = text.replace(program, "/bin/true")
            copy = Path(directory, unit.name)
            copy.write_text(text)
            copies.append(str(copy))
        if not copies:
            print(f"no units below {UNITS}", file=sys.stderr)
            return 1
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", *copies], capture_output=True, text=True, check=False
        )
        findings = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        print("\n".join(findings), end="\n" if findings else "", file=sys.stderr)
        return 1 if findings or done.returncode else 0


if __name__ == "__main__":
    sys.exit(main())

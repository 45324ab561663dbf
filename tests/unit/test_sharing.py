"""What a deploy opens to the group of the services, below shared/ and nowhere else."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
from deployer import host, sharing


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_own_files_in_folders_are_opened_and_links_lead_nowhere(tmp_path: Path) -> None:
    machine = host.bare(tmp_path)
    data, env = tmp_path / "shared/data", tmp_path / "shared/.env"
    data.mkdir(parents=True)
    env.write_text("SECRET=1\n")
    env.chmod(0o640)
    (data / "link").symlink_to(env)
    (data / "folder").symlink_to(tmp_path)
    os.mkfifo(data / "fifo", 0o600)
    with sharing.open_to_both(machine):
        (data / "app.db").touch(0o644)
    assert mode(data / "app.db") == 0o664
    assert (mode(env), mode(data / "fifo")) == (0o640, 0o600)

    descriptor = os.open(data, os.O_RDONLY)
    sharing.open_to_group(descriptor, "link")  # what was a file a moment ago
    os.close(descriptor)
    assert mode(env) == 0o640

"""A Debian as an installer leaves it, and what it would get from the Internet: packages of Debian's, Poetry.

Made once, with the network, as the images are, and kept. Machines have none: what is here stands in for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import sys
import time
import zipfile
from pathlib import Path

from lab.host import cache, call, locked
from lab.image import Image, say
from lab.world import unmount

POETRY, MIRROR = "poetry==2.2.1", "poetry-plugin-pypi-mirror==0.6.5"
PYTHON = {"bookworm": "3.11", "trixie": "3.13"}
TAKEN = {  # of the lab's image
    "bookworm": ["git", "git-man", "nginx-light", "nginx-common", "nodejs", "python3-venv", "python3.11-venv"],
    "trixie": ["git", "git-man"],
}
ADDED = ["git", "openssh-client", "curl", "pipx", "nginx"]
PIP_CONFIG = "[global]\nindex-url = http://pypi.lab/simple/\ntrusted-host = pypi.lab\n"
INDEX = """\
cd /opt/repo && for d in *.deb; do
    dpkg-deb -f $d
    printf 'Filename: ./%s\\nSize: %s\\nSHA256: %s\\n\\n' $d $(stat -c %s $d) $(sha256sum $d | cut -d' ' -f1)
done > Packages
"""


class EmptyDebian:
    """`layer` lies on the image of the suite; `wheels` is what the lab's index of Python packages has more."""

    def __init__(self, suite: str) -> None:
        self.suite = suite
        self.image = Image(suite).ensure()
        key = hashlib.sha256(Path(__file__).read_bytes() + self.image.key.encode()).hexdigest()[:12]
        self.directory = cache() / "empty" / f"{suite}-{key}"
        self.layer = self.directory / "layer"
        self.wheels = self.directory / "wheels"

    def ensure(self) -> EmptyDebian:
        with locked(cache() / "empty" / f"{self.suite}.lock"):
            if not (self.directory / "complete").exists():
                for old in (cache() / "empty").glob(f"{self.suite}-*"):
                    if old.stat().st_mtime < time.time() - 86400:  # other checkouts may stand on it
                        shutil.rmtree(old)
                say(f"fetching what an empty {self.suite} would install (once)")
                shutil.rmtree(self.directory, ignore_errors=True)
                self.fetch_wheels()
                self.make_layer()
                (self.directory / "complete").touch()
        return self

    @property
    def lower(self) -> list[Path]:
        return [self.layer, self.image.root]

    def fetch_wheels(self) -> None:
        """Poetry for this Debian's Python, which then asks the lab's index in the place of the public one."""
        names = ("manylinux_2_28", "manylinux_2_17", "manylinux2014")
        pip = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--only-binary=:all:"]
        pip += ["--dest", str(self.wheels), "--implementation=cp", f"--python-version={PYTHON[self.suite]}"]
        pip += [f"--platform={name}_x86_64" for name in names]
        call(*pip, POETRY, MIRROR, timeout=600)
        call(*pip, "--no-deps", "pip", "setuptools", "wheel", timeout=600)
        self.patch("poetry-2*.whl", "METADATA", "\nRequires-Dist:", f"\nRequires-Dist: {MIRROR}\nRequires-Dist:")
        asked = 'get("POETRY_PYPI_MIRROR_URL"'
        self.patch("poetry_plugin*.whl", "plugins.py", asked, f'{asked}, "http://pypi.lab/simple/"')

    def patch(self, wheel: str, file: str, old: str, new: str) -> None:
        """Replace a piece of text in a file of a wheel."""
        (path,) = self.wheels.glob(wheel)
        with zipfile.ZipFile(path) as there, zipfile.ZipFile(self.wheels / "new", "w", zipfile.ZIP_DEFLATED) as ours:
            for name in there.namelist():
                data = there.read(name)
                ours.writestr(name, data.replace(old.encode(), new.encode(), 1) if name.endswith(f"/{file}") else data)
        (self.wheels / "new").rename(path)

    def make_layer(self) -> None:
        """Without what the image has beyond an installer's; with a repository of Debian's packages."""
        root, work = self.directory / "root", self.directory / "work"
        for path in (root, work, self.layer):
            path.mkdir(parents=True)
        options = f"lowerdir={self.image.root},upperdir={self.layer},workdir={work}"
        call("mount", "-t", "overlay", "overlay", "-o", options, root)
        try:
            self.fill(root)
        finally:
            unmount(root)
            shutil.rmtree(work)

    def fill(self, root: Path) -> None:
        def run(*argv: str) -> None:
            env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "DEBIAN_FRONTEND": "noninteractive"}
            call("chroot", root, *argv, timeout=600, env=env)

        for path in ("usr/local/bin/poetry", "usr/local/bin/npm", "usr/local/bin/npx"):
            (root / path).unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(root / "opt/poetry")
        run("apt-get", "purge", "--yes", "--auto-remove", *TAKEN[self.suite])
        shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
        run("apt-get", "-q", "update")
        run("apt-get", "-q", "install", "--yes", "--no-install-recommends", "--download-only", *ADDED)
        (root / "etc/resolv.conf").write_text("")
        (root / "opt/repo").mkdir()
        for deb in (root / "var/cache/apt/archives").glob("*.deb"):
            deb.rename(root / "opt/repo" / deb.name.replace("%3a", "-"))
        run("sh", "-c", INDEX)
        for path in (root / "var/lib/apt/lists").glob("*_*"):
            path.unlink()
        (root / "etc/apt/sources.list").write_text("deb [trusted=yes] file:/opt/repo ./\n")
        (root / "etc/pip.conf").write_text(PIP_CONFIG)
        run("useradd", "--create-home", "--password", "*", "--shell", "/bin/bash", "admin")
        (root / "etc/sudoers.d/admin").write_text("admin ALL=(ALL) NOPASSWD: ALL\n")

"""The images: one root file system per Debian release, built once and kept by the hash of what made it.

The machines reach no package registry. What the example application needs (wheels, npm tarballs)
is downloaded here and served inside the namespaces by registry.py.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import os
import shutil
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import tomllib

from lab.host import REPOSITORY, cache, call, locked

EXAMPLE = REPOSITORY / "examples" / "django"
POETRY = ["poetry==2.2.1", "poetry-plugin-pypi-mirror==0.6.5"]
NPM = "npm@10.9.9"  # the newest that Debian 12's Node.js runs
# What tests add to the example application as a new dependency.
NEW_PYTHON = ["humanize==4.12.3"]
NEW_NPM = ["nanoid@5.1.5"]

# bookworm is the whole thing; the other two show that the script works with older and newer tools.
PACKAGES = {
    "bookworm": "nginx-light nodejs python3-venv postgresql",
    "bullseye": "usrmerge",  # Debian's installer makes merged-usr systems; a bare bootstrap of it would not
    "trixie": "",
}
COMMON = "systemd systemd-sysv dbus openssh-server python3 git ca-certificates iproute2 sudo procps curl"

HOSTS = """\
127.0.0.1 localhost
10.0.0.2 runner
10.0.0.3 services git.lab pypi.lab npm.lab db.lab
10.0.0.5 scheduler
10.0.0.6 frontend
"""


class Image:
    """A prepared root file system. `root` is its directory; `extra` what only the services machine has."""

    def __init__(self, suite: str) -> None:
        self.suite = suite
        digest = hashlib.sha256(f"{suite} {POETRY} {NPM} {NEW_PYTHON} {NEW_NPM}".encode())
        for path in (Path(__file__), Path(__file__).with_name("registry.py"), *lock_files()):
            digest.update(path.read_bytes())
        self.key = digest.hexdigest()[:12]
        self.directory = cache() / "images" / f"{suite}-{self.key}"
        self.root = self.directory / "root"
        self.extra = self.directory / "services"

    def ensure(self) -> Image:
        """Build it unless it is there; whoever comes meanwhile waits."""
        with locked(cache() / "images" / f"{self.suite}.lock"):
            if not (self.directory / "complete").exists():
                for old in (cache() / "images").glob(f"{self.suite}-*"):
                    if old.stat().st_mtime < time.time() - 86400:  # labs of other checkouts may stand on it
                        shutil.rmtree(old)
                say(f"building the {self.suite} image (once; some two minutes)")
                shutil.rmtree(self.directory, ignore_errors=True)  # a build that was killed
                self.root.mkdir(parents=True)
                self.build()
                (self.directory / "complete").touch()
            os.utime(self.directory)
        return self

    def build(self) -> None:
        archive = self.directory / "root.tar"
        include = ",".join(f"{COMMON} {PACKAGES[self.suite]}".split())
        call("mmdebstrap", "--quiet", "--variant=minbase", f"--include={include}", self.suite, archive, timeout=900)
        call("tar", "--numeric-owner", "-xf", archive, "-C", self.root, timeout=300)
        archive.unlink()
        self.configure()
        if self.suite == "bookworm":
            self.add_poetry()
            self.add_npm()
            self.add_registries()

    def configure(self) -> None:
        root = self.root
        # without one, every boot is a "first boot" that enables every unit
        (root / "etc/machine-id").write_text(hashlib.md5(self.key.encode()).hexdigest() + "\n")
        (root / "etc/hosts").write_text(HOSTS)
        (root / "etc/resolv.conf").write_text("")
        (root / "etc/hostname").unlink(missing_ok=True)
        for key in (root / "etc/ssh").glob("ssh_host_*"):
            key.unlink()
        (root / "etc/ssh/sshd_config.d").mkdir(exist_ok=True)
        (root / "etc/ssh/sshd_config.d/lab.conf").write_text("PasswordAuthentication no\nUseDNS no\n")
        # more journal than tests write must not be dropped
        (root / "etc/systemd/journald.conf.d").mkdir(exist_ok=True)
        (root / "etc/systemd/journald.conf.d/lab.conf").write_text("[Journal]\nStorage=persistent\nRateLimitBurst=0\n")
        (root / "var/log/journal").mkdir(exist_ok=True)
        units = "apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service"
        units += " fstrim.timer logrotate.timer nginx.service postgresql.service systemd-timesyncd.service"
        units += " systemd-networkd-wait-online.service getty@tty1.service"
        for link in (root / "etc/systemd/system").glob("*.wants/*"):  # a glob for the name would follow the link
            if link.name in units.split():
                link.unlink()
        # they run at every boot and daemon-reload, find nothing in a machine like these, and take a tenth of all time
        masks = root / "etc/systemd/system-generators"
        masks.mkdir()
        for generator in (root / "usr/lib/systemd/system-generators").iterdir():
            if generator.name.startswith("systemd-"):
                (masks / generator.name).symlink_to("/dev/null")

    def chroot(self, *argv: str) -> None:
        call("chroot", self.root, *argv, timeout=300, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"})

    def add_poetry(self) -> None:
        wheels = self.root / "tmp/wheels"
        pip_download(wheels, *POETRY)
        self.chroot("python3", "-m", "venv", "/opt/poetry")
        self.chroot("/opt/poetry/bin/pip", "-q", "install", "--no-index", "--find-links=/tmp/wheels", *POETRY)
        (self.root / "usr/local/bin/poetry").symlink_to("/opt/poetry/bin/poetry")
        shutil.rmtree(wheels)

    def add_npm(self) -> None:
        target = self.root / "usr/local/lib/node_modules/npm"
        target.mkdir(parents=True)
        package = npm_pack(self.directory / "tmp", NPM)
        call("tar", "-xzf", package, "-C", target, "--strip-components=1")
        for name in ("npm", "npx"):
            (self.root / "usr/local/bin" / name).symlink_to(f"../lib/node_modules/npm/bin/{name}-cli.js")
        shutil.rmtree(self.directory / "tmp")

    def add_registries(self) -> None:
        lab = self.extra / "opt/lab"
        lab.mkdir(parents=True)
        shutil.copy(Path(__file__).with_name("registry.py"), lab)
        with open(EXAMPLE / "poetry.lock", "rb") as file:
            locked_packages = tomllib.load(file)["package"]
        pins = [f"{package['name']}=={package['version']}" for package in locked_packages]
        pip_download(lab / "wheels", "--no-deps", *pins, *NEW_PYTHON)
        packages = json.loads((EXAMPLE / "package-lock.json").read_text())["packages"]
        specs = [
            f"{path.rpartition('node_modules/')[2]}@{about['version']}"
            for path, about in packages.items()
            if path and ("os" not in about or ("linux" in about["os"] and about.get("cpu") == ["x64"]))
        ]
        npm_packuments(lab / "npm", specs + NEW_NPM)


def lock_files() -> list[Path]:
    return [EXAMPLE / "poetry.lock", EXAMPLE / "package-lock.json"]


def say(text: str) -> None:
    print(f"lab: {text}", file=sys.stderr, flush=True)


def pip_download(directory: Path, *arguments: str) -> None:
    """Wheels for Debian 12's Python."""
    platforms = [f"--platform={name}_x86_64" for name in ("manylinux_2_28", "manylinux_2_17", "manylinux2014")]
    call(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--dest", directory,
         "--only-binary=:all:", "--python-version=3.11", "--implementation=cp", *platforms, *arguments,
         timeout=600)  # fmt: skip


def npm_pack(directory: Path, *specs: str) -> Path:
    """Download package tarballs; return the last one's path."""
    directory.mkdir(parents=True, exist_ok=True)
    done = call("npm", "pack", "--silent", "--pack-destination", directory, *specs, cwd=directory, timeout=600)
    return directory / done.stdout.split()[-1]


def npm_packuments(directory: Path, specs: list[str]) -> None:
    """What an npm registry serves: for each package one JSON document, and the tarballs."""
    npm_pack(directory, *specs)
    packuments: dict[str, dict[str, Any]] = {}
    for path in sorted(directory.glob("*.tgz")):
        data = path.read_bytes()
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            member = next(name for name in archive.getnames() if name.count("/") == 1 and name.endswith("package.json"))
            file = archive.extractfile(member)
            assert file
            about = json.load(file)
        integrity = "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode()
        about["dist"] = {
            "tarball": f"http://npm.lab/-/{path.name}",
            "integrity": integrity,
            "shasum": hashlib.sha1(data).hexdigest(),
        }
        packument = packuments.setdefault(about["name"], {"name": about["name"], "versions": {}, "dist-tags": {}})
        packument["versions"][about["version"]] = about
        packument["dist-tags"]["latest"] = about["version"]
    with contextlib.suppress(FileExistsError):
        (directory / "packuments").mkdir()
    for name, packument in packuments.items():
        (directory / "packuments" / f"{name.replace('/', '%2f')}.json").write_text(json.dumps(packument))

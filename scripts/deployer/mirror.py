"""The bare mirror of the application's repository: only this branch, fetched on demand. No other room runs git."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from deployer import config, errors, files, log, run, shapes

SCRIPT = "scripts/deploy_machine.py"  # in the application's repository
PACKAGE = "scripts/deployer/"
TIP = "refs/deploy/tip"  # not the branch's own name: `release` would be in the way of `release/2026`
MOST_PATHS = 200_000_000  # bytes of the list of all paths
MOST_TEXT = 4_000_000  # bytes of a file or commit that is read: they may come from anybody


class Entry(NamedTuple):
    """One path of a commit: mode as in `100644`, kind (blob, tree, commit) and object id."""

    mode: str
    kind: str
    oid: str


Tree = Mapping[str, Entry]


class Commit(NamedTuple):
    """The commit to deploy: its id, every path in it, its configuration, and what it looks like."""

    id: str
    tree: Tree
    settings: config.Config
    shape: shapes.Shape = shapes.Shape()


class Mirror:
    """Only the lock's holder writes to it."""

    def __init__(self, path: Path, url: str, branch: str) -> None:
        self.path, self.url, self.branch = path, url, branch

    def git(
        self, *arguments: str, timeout: float = run.QUERY_TIMEOUT, check: bool = True, most: int = run.MOST
    ) -> run.Completed:
        """Run git on the mirror. Raises GitError if it fails (unless `check` is off), and TimeLimit."""
        return git([f"--git-dir={self.path}", *arguments], timeout=timeout, check=check, most=most)

    # -- to keep it in order

    def prepare(self) -> None:
        """Make the mirror if there is none, and remove locks that a killed git left: they belong to nobody."""
        settings = self.path / "config"
        if not (self.path / "HEAD").exists():
            files.remove(self.path)
        if not settings.exists() or b"autoDetach" not in settings.read_bytes():  # the last that make() sets
            self.make()
        self.remove_leftovers()

    def make(self, *options: str) -> None:
        git(["init", "--quiet", "--bare", *options, str(self.path)])
        # loose objects and refs reach the disk with the call that wrote them
        setting = ("core.fsync", "all") if version() >= [2, 36] else ("core.fsyncObjectFiles", "true")
        self.git("config", *setting)
        self.git("config", "gc.autoDetach", "false")

    def make_of_kind(self, kind: str) -> None:
        """Make it anew, for object ids of this kind (sha1, sha256): that cannot be changed in what is there."""
        log.info(f"{self.url} has {kind} object ids")
        files.remove(self.path)
        self.make(f"--object-format={kind}")

    def remove_leftovers(self, also_objects: bool = False) -> None:
        """Remove git's locks and temporary files; those of single objects only if asked, as it takes longer."""
        for folder, folders, names in os.walk(self.path):
            if os.path.basename(folder) == "objects" and not also_objects:
                folders[:] = [name for name in folders if len(name) > 2]  # not the hundreds that only hold objects
            for name in names:
                if name.endswith(".lock") or name.startswith("tmp_"):
                    os.unlink(os.path.join(folder, name))

    def is_sound(self) -> bool:
        """Whether every object is there and whole."""
        try:
            return self.git("fsck", "--full", "--no-dangling", "--no-progress", timeout=600, check=False).code == 0
        except errors.TimeLimit:
            return True  # nobody knows

    def repair(self, timeout: float) -> bool:
        """Put a fresh mirror in the place of a damaged one; False if it is sound. Raises Unreachable."""
        if self.is_sound():
            return False
        log.warning(f"{self.path} is damaged; fetching it anew")
        fresh = Mirror(self.path.with_name("repo.git.new"), self.url, self.branch)
        files.remove(fresh.path)
        fresh.prepare()
        fresh.fetch(timeout)
        files.remove(self.path)
        os.rename(fresh.path, self.path)
        return True

    def tidy(self) -> None:
        """Pack what many fetches have left, if git finds it worth while."""
        self.git("gc", "--auto", "--quiet", timeout=600)

    # -- to bring it up to date

    def fetch(self, timeout: float) -> str:
        """Fetch the branch and return its newest commit. Raises Unreachable, FetchFailed or UsageError."""
        try:
            self.fetch_tip(timeout)
        except errors.CommandError as error:
            self.remove_leftovers(also_objects=True)  # git leaves what it has got so far, and with it a full disk
            if isinstance(error, errors.TimeLimit):
                raise errors.Unreachable(too_slow(self.url, timeout), error.detail) from None
            if not (other := re.search(r"mismatched algorithms: client (\w+); server (\w+)", error.detail)):
                raise self.fetch_failed(error) from None
            self.make_of_kind(other[2])
            self.fetch_tip(timeout)
        tip = self.tip()
        if not tip:
            raise errors.GitError(f"git fetch succeeded but {self.branch} leads to no commit")
        return tip

    def fetch_tip(self, timeout: float) -> None:
        options = ("--quiet", "--no-tags", "--no-auto-maintenance")  # that is tidy()'s, and may take minutes
        self.git("fetch", *options, "--", self.url, f"+refs/heads/{self.branch}:{TIP}", timeout=timeout)

    def fetch_failed(self, error: errors.CommandError) -> errors.DeployError:
        """What it means that git could not fetch: the repository itself is asked."""
        if full := files.disk_full(error):
            return errors.DeployError(f"{self.url}: could not be fetched: {full}", error.detail)
        message = f"{self.url}: could not be fetched: {error.said or 'git said nothing'}{self.remedy(error.detail)}"
        question = ["ls-remote", "--exit-code", "--quiet", "--", self.url, f"refs/heads/{self.branch}"]
        try:
            code = git(question, cwd=Path("/"), timeout=10.0, check=False).code
        except errors.CommandError:
            code = -1
        if code == 2:
            return errors.UsageError(f"{self.url}: has no branch {self.branch!r}{self.other_branches()}")
        return errors.Unreachable(message, error.detail) if code else errors.FetchFailed(message, error.detail)

    def other_branches(self) -> str:
        """Which branches there are instead, and where to write the one that is meant."""
        try:
            told = git(["ls-remote", "--heads", "--", self.url], cwd=Path("/"), timeout=10.0).out
        except errors.DeployError:
            return ""
        names = re.findall(r"(?m)\trefs/heads/(.+)$", told)
        where = "name one with --branch, or as branch = in machine.ini (setup_machine.py --branch)"
        return f"; it has {log.shorten(', '.join(names))}: {where}" if names else "; it has none yet: push one"

    def remedy(self, detail: str) -> str:
        """What to do about what git said, if it is something that a person must do on this machine."""
        user = run.variables()["USER"]
        if "dubious ownership" in detail:
            place = re.sub(r"^file://", "", self.url)
            return f"; allow {user} to read it: git config --global --add safe.directory {shlex.quote(place)}"
        if re.search(r"insufficient permission|[Pp]ermission denied(?! \()|unable to (unlink|create|write)", detail):
            return f"; if files in {self.path} are of another user, as root: chown -R {user}: {self.path}"
        if "Host key verification failed" in detail:
            return "; if the git host has a new ssh host key, check it and run setup_machine.py again"
        return ""

    # -- to read it

    def resolve(self, name: str) -> str:
        """The full id of a commit; empty if there is none of that name."""
        return self.git("rev-parse", "--quiet", "--verify", f"{name}^{{commit}}", check=False).out.strip()

    def contains(self, newer: str, older: str) -> bool:
        """Whether `older` is `newer` or one of its ancestors. Raises GitError if git cannot tell."""
        if newer == older:
            return True
        done = self.git("merge-base", "--is-ancestor", older, newer, check=False)
        # a commit that was rewritten away may be gone from a mirror that is whole: it contains nothing
        if done.code > 1 and self.resolve(older) and (self.resolve(newer) or not self.is_sound()):
            raise errors.GitError(f"git merge-base {older} {newer} ended with {done.code}", run.tail(done.err))
        return done.code == 0

    def count(self, older: str | None, newer: str) -> int:
        """How many commits lie between; 0 if there is none before."""
        done = self.git("rev-list", "--count", f"{older or newer}..{newer}", check=False)
        return int(done.out) if done.code == 0 else 0

    def behind(self, older: str, newer: str) -> tuple[int, float]:
        """How many commits lie between, and when the first of them came into the branch (seconds since 1970)."""
        done = self.git("rev-list", "--first-parent", "--timestamp", f"{older}..{newer}", check=False)
        times = [float(line.split()[0]) for line in done.out.splitlines() if line]
        return (self.count(older, newer), times[-1]) if done.code == 0 and older and times else (0, 0.0)

    def time_of(self, commit: str) -> float:
        """When a commit was made, in seconds since 1970."""
        return float(self.git("show", "--no-patch", "--no-show-signature", "--format=%ct", commit).out.split()[-1])

    def tree(self, commit: str) -> dict[str, Entry]:
        """Every path of a commit, directories included (git has a content id for each)."""
        tree = {}
        for record in self.git("ls-tree", "-r", "-t", "-z", commit, most=MOST_PATHS).out.split("\0"):
            if record:
                about, _, path = record.partition("\t")
                tree[path] = Entry._make(about.split(" "))
        return tree

    def size(self, commit: str) -> int:
        """The bytes of a commit's files."""
        entries = self.git("ls-tree", "-r", "-l", "-z", commit, most=MOST_PATHS).out
        return sum(map(int, re.findall(r"(?:^|\0)\d+ blob \w+ +(\d+)\t", entries)))

    def read(self, oid: str, name: str = "") -> str:
        """A file's text, by its object id or as `COMMIT:PATH`. Raises TooMuch if it is larger than any such file."""
        try:  # the option lets git itself hold no more of it than we do
            return self.git("-c", "core.bigFileThreshold=1m", "cat-file", "blob", oid, most=MOST_TEXT).out
        except errors.TooMuch:
            raise errors.TooMuch(f"{name or oid} is larger than {MOST_TEXT / 1e6:g} MB") from None

    def raw(self, commit: str) -> str:
        """A commit object as it is: headers, a blank line, message. Raises TooMuch."""
        return self.git("cat-file", "commit", commit, most=MOST_TEXT).out

    def signature(self, commit: str, signers: str) -> str:
        """What git says of a commit's signature, in lines: status (as %G?), signer, key. signers: the allowed ones."""
        settings = {
            "gpg.format": "ssh",
            "gpg.ssh.allowedSignersFile": signers,
            "gpg.ssh.program": "ssh-keygen",
            "gpg.program": "false",  # the keyring of this user is not asked
            "gpg.x509.program": "false",
        }
        query = ["log", "-1", "--no-show-signature", "--format=%G?%n%GS%n%GK", commit]
        return self.git(*options_of(settings), *query).out

    def tip(self) -> str:
        """The branch's newest commit, as it was fetched last; empty if there is none."""
        return self.resolve(TIP)

    def load(self, commit: str, tree: Tree) -> Commit:
        """Read a commit's configuration. Raises DeployError: the commit is at fault, not the call."""
        text = self.read(tree["deploy.ini"].oid, f"deploy.ini of {commit[:8]}") if "deploy.ini" in tree else ""
        if ".release.json" in tree:  # a release that a power cut left half made would look whole
            own = "which is this script's own: remove it"
            raise errors.DeployError(f"{commit[:8]} has a file .release.json in its root, {own}")
        try:
            settings = config.parse(text, f"deploy.ini of {commit[:8]}")
        except errors.UsageError as error:
            raise errors.DeployError(str(error)) from None
        texts = {path: self.read(tree[path].oid, path) for path in shapes.to_read(tree) if tree[path].kind == "blob"}
        shape = shapes.look(settings, tree, texts)
        return Commit(commit, tree, shapes.fit(settings, shape, tree), shape)

    def other_branch(self, tip: str) -> str:
        """The branch that the deploy.ini at `tip` names, if it names another one."""
        try:
            settings = config.parse(self.read(f"{tip}:deploy.ini"), "deploy.ini")
        except (errors.GitError, errors.UsageError, errors.TooMuch):
            return ""  # there is none; or it is reported where the commit's configuration is read
        return settings.branch if settings.sets_branch and settings.branch != self.branch else ""

    # -- to check a commit out

    def check_out(self, commit: Commit, destination: Path, index: Path) -> None:
        """Write the complete tree of a commit below `destination`, submodules and LFS files too; the index stays."""
        lfs = self.lfs_options(commit.tree)
        common = [f"--git-dir={self.path}", f"--work-tree={destination}", "-c", "core.bare=false", *lfs]
        try:
            # checkout.workers=0: as many as there are processors, where git is new enough (2.32)
            checkout = [*common, "-c", "checkout.workers=0", "read-tree", "--reset", "-u", commit.id]
            git(checkout, index=index, timeout=600)
            if any(entry.kind == "commit" for entry in commit.tree.values()):
                self.git("config", "remote.origin.url", self.url)  # relative submodule addresses start here
                update = [*common, "submodule", "--quiet", "update", "--init", "--force", "--recursive"]
                git(update, index=index, cwd=destination, timeout=600, live=True)
            # git reads files again that are as new as the index, and here these are all
            os.utime(index, (time.time() + 2, time.time() + 2))
        except errors.GitError as error:
            raise self.checkout_failed(commit, destination, error) from None

    def checkout_failed(self, commit: Commit, destination: Path, error: errors.GitError) -> errors.CommandError:
        # git says neither why it could not write a file, nor does it leave what it wrote of it
        free, full = files.free_bytes(destination), files.disk_full(error)
        if full or free < 1_000_000 or ("unable to write file" in error.detail and free < self.size(commit.id)):
            return errors.CommandError(f"checking out: {full or 'No space left on device'}", error.detail)
        return error

    def lfs_options(self, tree: Tree) -> list[str]:
        """git options that fetch Git LFS files, if the commit has any; an error without git-lfs."""
        attributes = [path for path in tree if path.rpartition("/")[2] == ".gitattributes"]
        if not any("filter=lfs" in self.read(tree[path].oid) for path in attributes):
            return []
        if not run.which("git-lfs"):
            missing = "git-lfs is not installed here: apt install git-lfs"
            raise errors.DeployError(f"the repository keeps files in Git LFS but {missing}")
        self.git("config", "remote.origin.url", self.url)
        lfs = {"process": "git-lfs filter-process", "required": "true", "smudge": "git-lfs smudge -- %f"}
        return options_of({f"filter.lfs.{key}": value for key, value in lfs.items()})


def git(
    arguments: Sequence[str],
    *,
    index: Path | None = None,
    cwd: Path | None = None,
    timeout: float = run.QUERY_TIMEOUT,
    check: bool = True,
    live: bool = False,
    most: int = run.MOST,
) -> run.Completed:
    """Run git: it asks nobody anything, and ssh gives up in time. Raises GitError if it fails, and TimeLimit."""
    ssh = "ssh -o BatchMode=yes -o ConnectTimeout=10 -o ServerAliveInterval=10 -o ServerAliveCountMax=3"
    env = {**run.variables(), "GIT_TERMINAL_PROMPT": "0", "GIT_SSH_COMMAND": ssh}
    if "SSH_AUTH_SOCK" in os.environ:  # a person with an agent
        env["SSH_AUTH_SOCK"] = os.environ["SSH_AUTH_SOCK"]
    if index:
        env["GIT_INDEX_FILE"] = str(index)
    try:
        return run.command(["git", *arguments], env=env, cwd=cwd, timeout=timeout, check=check, live=live, most=most)
    except errors.TimeLimit:
        raise
    except errors.CommandError as error:
        raise errors.GitError(str(error), error.detail, error.said) from None


def options_of(settings: Mapping[str, str]) -> list[str]:
    """The options of one git command that has these settings."""
    return [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]


def blob_id(path: Path, like: str) -> str:
    """The object id that git would give a file's content; like: an id of the repository, for its kind of hash."""
    data = path.read_bytes()
    kind = "sha256" if len(like) == 64 else "sha1"
    return hashlib.new(kind, b"blob %d\0" % len(data) + data).hexdigest()


def version() -> list[int]:
    """git's first two numbers."""
    return [int(part) for part in re.findall(r"\d+", git(["--version"]).out)[:2]]


def too_slow(url: str, timeout: float) -> str:
    remedy = "if it is only slow or large, raise fetch_timeout in machine.ini (seconds)"
    return f"{url}: git fetch was not done within {timeout:.1f} s; {remedy}"

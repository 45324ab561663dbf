"""The shared memory: the branch `deploy-status` of the application's repository, read and written with git alone.

The clone that this runs in is left as it is: no file of it is checked out, its index and its branches are not touched,
and the objects that are read and made lie in a folder of their own, which ends with the process. Several may write at
the same time: a push counts only if the branch is where it was read; otherwise it is read again, and nothing is lost.
"""

from __future__ import annotations

import base64
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Callable, NamedTuple

import fleet_answers
from fleet_answers import Memory

BRANCH = "deploy-status"
REF = f"refs/heads/{BRANCH}"
REMOTE = "origin"
OWN = "deploy-status-of-origin"  # the same remote without its branches: else a push would tell the clone of objects
# that it does not have
NETWORK = 30.0  # seconds for a command that speaks to the remote
LOCAL = 10.0  # seconds for another one
TRIES = 12  # as many writers may be faster than this one
PAUSES = (0.2, 3.0)  # seconds: so long at most before the second try, and before any
AUTHOR = {"NAME": "deploy-machine", "EMAIL": "deploy-machine@noreply.invalid"}  # and not who runs this
# what would lead git to another repository, or to another place in it
MISLEADING = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_NAMESPACE", "GIT_PREFIX"}
QUIET = ("core.hooksPath=/dev/null", "gc.auto=0", "maintenance.auto=false", "push.gpgSign=false", "fetch.prune=false")


class RecordError(Exception):
    """What was seen could not be read or kept there: one line for people."""


class Moved(Exception):
    """Another writer was faster, or was so while this one read."""


class Shared(NamedTuple):
    """The branch, as it was read."""

    tip: str = ""  # its commit; empty: there is no such branch yet
    parents: tuple[str, ...] = ()
    message: str = ""
    memory: Memory = Memory({})
    top: Mapping[str, str] = {}  # what lies there: name -> `mode type id`
    machines: Mapping[str, str] = {}  # and in machines/


class New(NamedTuple):
    """What the branch is to say."""

    files: Mapping[str, str]  # path -> text
    subject: str  # of a new commit; empty: the tip is replaced, and says what it said


# --- git


class Git:
    """Git commands in a clone; what they make goes into a folder of its own."""

    def __init__(self, folder: Path, scratch: Path) -> None:
        if not shutil.which("git"):
            raise RecordError("git: not found: apt install git")
        self.folder, self.settings = folder, Path("/dev/null")
        own = {key: value for key, value in os.environ.items() if key not in MISLEADING}
        self.env = {**own, "LC_ALL": "C.UTF-8", "GIT_TERMINAL_PROMPT": "0", **with_token(own)}
        self.env |= {f"GIT_{who}_{what}": text for who in ("AUTHOR", "COMMITTER") for what, text in AUTHOR.items()}
        try:
            objects = folder / self.run("rev-parse", "--git-path", "objects").strip()
        except RecordError as error:
            raise RecordError(f"{folder} lies in no clone that can be used ({error})") from None
        (scratch / "objects").mkdir()
        self.env |= {"GIT_OBJECT_DIRECTORY": str(scratch / "objects")}
        self.env |= {"GIT_ALTERNATE_OBJECT_DIRECTORIES": json.dumps(str(objects), ensure_ascii=False)}
        self.settings = scratch / "config"
        self.settings.write_text(own_remote(self.run("config", "-z", "--list")), encoding="utf-8")

    def run(self, *words: str, stdin: str = "", limit: float = LOCAL) -> str:
        """What it prints. Raises RecordError, in one line."""
        settings = [*QUIET, f"include.path={self.settings}"]
        argv = ["git", *(part for setting in settings for part in ("-c", setting)), *words]
        process = subprocess.Popen(
            argv, cwd=self.folder, env=self.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, encoding="utf-8", errors="replace",
            start_new_session=True,  # without a terminal nothing can ask for a password there
        )  # fmt: skip
        try:
            out, err = process.communicate(stdin, timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise RecordError(f"git {words[0]} did not end within {limit:g} s") from None
        if process.returncode:
            raise RecordError(f"git {words[0]}: {reason(err) or f'exit code {process.returncode}'}")
        return out


def own_remote(settings: str) -> str:
    """A file of settings that has the remote once more: from a file, since its URL may hold a password."""
    lines = [f'[remote "{OWN}"]']
    for setting in settings.split("\0"):
        name, _, value = setting.partition("\n")
        key = name[len(f"remote.{REMOTE}.") :]
        if name == f"remote.{REMOTE}.{key}" and key in ("url", "pushurl", "proxy", "proxyauthmethod", "vcs"):
            escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
            lines.append(f'\t{key} = "{escaped}"')
    return "\n".join(lines) + "\n"


def with_token(env: Mapping[str, str]) -> dict[str, str]:
    """How git knows a workflow's token: from the environment, for GitHub alone, and in no command line or URL."""
    token, server = env.get("GITHUB_TOKEN", ""), env.get("GITHUB_SERVER_URL", "")
    if not token or not re.fullmatch(r"https?://[\w.:-]+", server):
        return {}
    number = int(env["GIT_CONFIG_COUNT"]) if env.get("GIT_CONFIG_COUNT", "").isdecimal() else 0
    header = base64.b64encode(f"x-access-token:{token}".encode()).decode()
    values = ("", f"AUTHORIZATION: basic {header}")  # the first one takes away what a checkout may have left
    found = {"GIT_CONFIG_COUNT": str(number + len(values))}
    for place, value in enumerate(values, number):
        found |= {f"GIT_CONFIG_KEY_{place}": f"http.{server}/.extraheader", f"GIT_CONFIG_VALUE_{place}": value}
    return found


def reason(said: str) -> str:
    """The one line of git's that says why, without what an address may hold."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    found = [line for line in lines if re.match(r"fatal:|error:|ssh:|remote: (?!$)|! \[", line)] or lines[-1:]
    text = re.sub(r"//[^/@\s]*@", "//", found[0] if found else "")
    return fleet_answers.words(re.sub(r"^(fatal|error|remote): (error: )?", "", text), 200)


# --- the branch


class Store:
    """The branch of the remote. Raises RecordError where it cannot be read or written."""

    def __init__(self, folder: Path, scratch: Path) -> None:
        self.git = Git(folder, scratch)
        if REMOTE not in self.git.run("remote").split():
            raise RecordError(f"{folder}: this clone has no remote {REMOTE}: git remote add {REMOTE} URL")

    def fetched(self, names: Sequence[str]) -> Shared:
        """The branch as the clone has it, without asking anybody: maybe old, maybe not there at all."""
        tip = self.git.run("for-each-ref", "--format=%(objectname)", f"refs/remotes/{REMOTE}/{BRANCH}").strip()
        return self.shared(tip, names) if tip else Shared()

    def read(self, names: Sequence[str]) -> Shared:
        """The branch as it is now; names: the machines of which the history is wanted."""
        for _ in range(TRIES):
            tip = self.tip()
            if not tip:
                return Shared()
            words = ("--quiet", "--no-tags", "--no-write-fetch-head", "--recurse-submodules=no")
            try:
                self.git.run("fetch", *words, OWN, REF, limit=NETWORK)
            except RecordError:
                if self.tip() == tip:
                    raise
                continue
            if self.has(tip):  # else it was replaced meanwhile
                return self.shared(tip, names)
        raise RecordError(f"{REMOTE}'s branch {BRANCH} changes all the time")

    def tip(self) -> str:
        lines = self.git.run("ls-remote", OWN, REF, limit=NETWORK).splitlines()
        return next((line.split("\t")[0] for line in lines if line.endswith(f"\t{REF}")), "")

    def has(self, commit: str) -> bool:
        try:
            return bool(self.git.run("cat-file", "-t", commit))
        except RecordError:
            return False

    def shared(self, tip: str, names: Sequence[str]) -> Shared:
        head, _, message = self.git.run("cat-file", "commit", tip).partition("\n\n")
        parents = tuple(line.split()[1] for line in head.splitlines() if line.startswith("parent "))
        top = self.listed(tip)
        about = top.get("fleet.json", "").split()
        memory = fleet_answers.read_memory(self.text(about[2])) if about[1:2] == ["blob"] else None
        if memory is None:
            raise RecordError(
                f"{REMOTE}'s branch {BRANCH} holds something else, or is of a newer version (its fleet.json is not"
                " ours): it stays as it is; move that branch away, or bring these scripts to its version"
            )
        machines = self.listed(f"{tip}:machines") if " tree " in top.get("machines", "") else {}
        for name in names:
            words = machines.get(f"{name}.jsonl", "").split()
            lines = self.text(words[2]).splitlines() if words[1:2] == ["blob"] else []
            found = fleet_answers.read_history({"history": [entry_of(line) for line in lines]}, fleet_answers.KEPT)
            known = memory.machines.get(name, fleet_answers.Known())
            memory.machines[name] = known._replace(history=fleet_answers.merged([], found))
        mine = {name: known for name, known in memory.machines.items() if name in names}
        return Shared(tip, parents, message, Memory(mine, memory.tip), top, machines)

    def listed(self, tree: str) -> dict[str, str]:
        lines = [line for line in self.git.run("ls-tree", "-z", tree).split("\0") if line]
        return {name: about for about, _, name in (line.partition("\t") for line in lines)}

    def text(self, blob: str) -> str:
        """What a file holds; nothing, if it is larger than any of ours."""
        if int(self.git.run("cat-file", "-s", blob)) > fleet_answers.STATE_BYTES:
            return ""
        return self.git.run("cat-file", "blob", blob)

    # writing

    def write(self, shared: Shared, new: New) -> None:
        """Push it. Raises Moved where another writer was faster."""
        tree = self.tree(shared, new.files)
        replaces = bool(shared.tip) and not new.subject
        message = shared.message if replaces else new.subject + "\n"
        commit = self.commit(tree, shared.parents if replaces else filter(None, [shared.tip]), message)
        why = self.push(shared, commit)
        if why and replaces:  # maybe the tip may not be replaced there: then a commit more
            why = self.push(shared, self.commit(tree, [shared.tip], message))
        if why:
            raise RecordError(f"{REMOTE} takes no push to its branch {BRANCH}: {why}")

    def tree(self, shared: Shared, files: Mapping[str, str]) -> str:
        """The new content: ours, and what else lies there stays."""
        top, machines = dict(shared.top), dict(shared.machines)
        for path, text in files.items():
            folder, _, name = path.rpartition("/")
            blob = self.git.run("hash-object", "-w", "--stdin", stdin=text).strip()
            (machines if folder else top)[name] = f"100644 blob {blob}"
        top["machines"] = f"040000 tree {self.made(machines)}"
        return self.made(top)

    def made(self, entries: Mapping[str, str]) -> str:
        lines = "".join(f"{about}\t{name}\0" for name, about in entries.items())
        return self.git.run("mktree", "-z", "--missing", stdin=lines).strip()

    def commit(self, tree: str, parents: object, message: str) -> str:
        words = [word for parent in parents for word in ("-p", parent)]  # type: ignore[attr-defined]
        return self.git.run("commit-tree", *words, tree, stdin=message).strip()

    def push(self, shared: Shared, commit: str) -> str:
        """Why it was refused; nothing if the branch is there now. Raises Moved."""
        lease = f"--force-with-lease={REF}:{shared.tip}"
        words = ("--quiet", "--no-verify", "--no-follow-tags", "--recurse-submodules=no", lease)
        try:
            self.git.run("push", *words, OWN, f"{commit}:{REF}", limit=NETWORK)
            return ""
        except RecordError as error:
            now = self.tip()
            if now == commit:
                return ""  # it was done, and only the word of it was lost
            if now != shared.tip:
                raise Moved from None
            return str(error)


def entry_of(line: str) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def record(store: Store, names: Sequence[str], shared: Shared, say: Callable[[Memory], New]) -> None:
    """Write what `say` makes of the memory that lies there, as often as it takes. Raises RecordError."""
    for number in range(TRIES):
        try:
            return store.write(shared, say(shared.memory))
        except Moved:
            # at random: of those that were too late at the same time one is the first now
            time.sleep(random.uniform(0, min(PAUSES[1], PAUSES[0] * 2**number)))
            shared = store.read(names)
    raise RecordError(
        f"{REMOTE}'s branch {BRANCH}: others were faster {TRIES} times; it is tried again at the next look"
    )

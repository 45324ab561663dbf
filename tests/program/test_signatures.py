"""verify = signatures in machine.ini: nothing of a commit that no allowed key has signed is run."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from small_app import DEPLOY_INI, App, Outcome, own_version

# machine.ini makes the script look after services: have none
QUIET_INI = DEPLOY_INI.replace("services = worker.service\n", "") + (
    "[role scheduler]\nservices =\n[role frontend]\nslots =\nreload =\n"
)


class Keys:
    """Two developers' keys, of which only `alice` is in allowed_signers, and an application that verifies."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.folder = app.root.parent
        for name in ("alice", "mallory"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(self.folder / name)], check=True
            )
        (app.root / "machine.ini").write_text("[machine]\nname = one\nroles = web\nverify = signatures\n")
        self.allow(f"alice@example.com {(self.folder / 'alice.pub').read_text()}")

    def allow(self, text: str) -> None:
        (self.app.root / "allowed_signers").write_text(text)

    def commit(self, signer: str, files: dict[str, str | bytes | None] | None = None) -> str:
        self.app.commit({"deploy.ini": QUIET_INI, **(files or {})}, "change")
        sign = ["-c", "gpg.format=ssh", "-c", f"user.signingkey={self.folder / signer}.pub"]
        self.app.git(*sign, "commit", "-q", "--amend", "--allow-empty", "--no-edit", "-S")
        return self.app.git("rev-parse", "HEAD")


@pytest.fixture
def keys(app: App) -> Keys:
    return Keys(app)


HOSTILE = {
    # each leaves a trace if anything of it runs
    "deploy.ini": QUIET_INI + "[step evil]\nrun = touch ../../ran-step\n",
    "scripts/deploy_machine.py": "import pathlib\npathlib.Path(__file__).with_name('ran-script').touch()\n",
}


def refused(app: App, *arguments: str) -> Outcome:
    done = app.deploy(*arguments, expect=10)
    assert done.result["outcome"] == "failed"
    assert "nothing of it was run" in done.result["message"]
    assert "handing over" not in done.log
    assert not list(app.root.rglob("ran-*"))
    return done


def test_a_signed_commit_is_deployed_and_its_signer_named(app: App, keys: Keys) -> None:
    signed = keys.commit("alice")
    done = app.deploy()
    assert (done.result["outcome"], app.revision()) == ("deployed", signed)
    assert "is signed by alice@example.com (SHA256:" in done.log


def test_other_commits_are_refused_and_the_old_release_stays(app: App, keys: Keys) -> None:
    signed = keys.commit("alice")
    app.deploy()
    app.commit(HOSTILE)
    assert "is not signed" in refused(app).result["message"]
    keys.commit("mallory", HOSTILE)
    assert "is signed by SHA256:" in refused(app, "--full", "--force").result["message"]
    assert app.revision() == signed
    plan = app.run("plan")
    assert (plan.code, plan.result) == (10, {})
    assert "is signed by SHA256:" in plan.log


def test_a_commit_that_was_changed_after_signing(app: App, keys: Keys) -> None:
    keys.commit("alice")
    text = app.git("cat-file", "commit", "HEAD").replace("author dev", "author div")
    done = subprocess.run(
        ["git", "hash-object", "-t", "commit", "-w", "--stdin"],
        cwd=app.origin, input=text + "\n", text=True, capture_output=True, check=True,
    )  # fmt: skip
    app.git("update-ref", "refs/heads/main", done.stdout.strip())
    assert "a signature that is not good" in refused(app).result["message"]


def test_a_commit_cannot_switch_its_own_verification_off(app: App, keys: Keys) -> None:
    app.commit({**HOSTILE, "deploy.ini": QUIET_INI.replace("[deploy]\n", "[deploy]\nverify = no\n")})
    refused(app)
    app.git("checkout", "-q", "-b", "other")
    keys.commit("alice", {"code.py": "print(3)\n"})  # signed, but not on main
    app.git("checkout", "-q", "main")
    app.commit({"deploy.ini": QUIET_INI.replace("[deploy]\n", "[deploy]\nbranch = other\n")})
    refused(app)
    keys.commit("alice", {"deploy.ini": "[deploy]\nverify = no\n", "scripts/deploy_machine.py": None})
    done = app.deploy(expect=10)
    assert "unknown key 'verify'" in done.result["message"]


@pytest.mark.parametrize("text", [None, "", "# nobody\n", "nonsense\n", 'a@b namespaces="file" ALICE', "mallory"])
def test_a_list_that_allows_nobody_allows_nobody(app: App, keys: Keys, text: str | None) -> None:
    keys.commit("alice", HOSTILE)
    if text is None:
        (app.root / "allowed_signers").unlink()
    elif text == "mallory":
        keys.allow(f"m@example.com {(keys.folder / 'mallory.pub').read_text()}")
    else:
        keys.allow(text.replace("ALICE", (keys.folder / "alice.pub").read_text()))
    done = app.deploy(expect=10)
    assert not list(app.root.rglob("ran-*"))
    says = ("which is not valid in", "a signature that is not good") if text else ("is missing or empty",)
    assert any(words in done.result["message"] for words in says), done.result["message"]


def test_a_key_is_no_longer_valid(app: App, keys: Keys) -> None:
    keys.commit("alice")
    keys.allow(f'alice@example.com valid-before="20200101" {(keys.folder / "alice.pub").read_text()}')
    refused(app)


def test_a_merge_counts_by_its_own_signature(app: App, keys: Keys) -> None:
    app.git("checkout", "-q", "-b", "side")
    unsigned = app.commit({"src/b": "b\n"})
    app.git("checkout", "-q", "main")
    signed = keys.commit("alice")
    app.deploy()
    app.git("merge", "-q", "--no-ff", "-m", "merge", "side")
    assert "is not signed" in refused(app).result["message"]
    sign = ["-c", "gpg.format=ssh", "-c", f"user.signingkey={keys.folder}/alice.pub"]
    app.git(*sign, "tag", "-s", "-m", "a tag is no commit", "v1")
    assert "is not signed" in refused(app).result["message"]
    assert app.revision() == signed
    app.git(*sign, "commit", "-q", "--amend", "--no-edit", "-S")
    app.deploy()
    merge = app.revision()
    assert "is not signed" in refused(app, "--commit", unsigned, "--force").result["message"]
    assert app.revision() == merge


@pytest.mark.parametrize("form", ["of a file", "of PGP"])
def test_a_signature_of_another_kind(app: App, keys: Keys, form: str) -> None:
    app.commit(HOSTILE)
    text = app.git("cat-file", "commit", "HEAD") + "\n"
    signature = "-----BEGIN PGP SIGNATURE-----\n\nabcd\n-----END PGP SIGNATURE-----"
    if form == "of a file":
        command = ["ssh-keygen", "-q", "-Y", "sign", "-n", "file", "-f", str(keys.folder / "alice")]
        done = subprocess.run(command, input=text, text=True, capture_output=True, check=True)
        signature = done.stdout.strip()
    head, _, body = text.partition("\n\n")
    signed = head + "\ngpgsig " + signature.replace("\n", "\n ") + "\n\n" + body
    command = ["git", "hash-object", "-t", "commit", "-w", "--stdin"]
    done = subprocess.run(command, cwd=app.origin, input=signed, text=True, capture_output=True, check=True)
    app.git("update-ref", "refs/heads/main", done.stdout.strip())
    refused(app)


def test_an_older_git_is_told_and_nothing_runs(app: App, keys: Keys, tmp_path: Path) -> None:
    keys.commit("alice", HOSTILE)
    folder = tmp_path / ".local" / "bin"  # the first place of what the script calls PATH
    folder.mkdir(parents=True)
    real = shutil.which("git")
    stand_in = f'#!/bin/sh\n[ "$1" = --version ] && echo "git version 2.30.2" && exit\nexec {real} "$@"\n'
    (folder / "git").write_text(stand_in)
    (folder / "git").chmod(0o755)
    done = app.deploy(expect=10)
    assert "needs git 2.34 or newer, and ssh-keygen" in done.result["message"]
    assert not list(app.root.rglob("ran-*"))


def test_any_other_value_is_an_error(app: App, keys: Keys) -> None:
    (app.root / "machine.ini").write_text("[machine]\nname = one\nroles = web\nverify = yes\n")
    done = app.run("deploy")
    assert done.code == 2
    assert "verify = yes: the only way to verify is `signatures`" in done.log


def test_the_script_and_its_copy_in_the_commit_are_taken_over_once_signed(app: App, keys: Keys) -> None:
    keys.commit("alice", own_version("0.1.1"))
    done = app.deploy()
    assert "handing over" in done.log
    assert done.log.count("is signed by alice@example.com") == 2, "the other copy looks for itself"


def rewritten(app: App, change: Callable[[str], str]) -> str:
    """The newest commit's object with a change in it, as the new tip of main."""
    text = app.git("cat-file", "commit", "HEAD") + "\n"
    command = ["git", "hash-object", "-t", "commit", "-w", "--stdin"]
    done = subprocess.run(command, cwd=app.origin, input=change(text), text=True, capture_output=True, check=True)
    app.git("update-ref", "refs/heads/main", done.stdout.strip())
    return done.stdout.strip()


ALTERED: dict[str, Callable[[str], str]] = {
    "another signature": lambda text: text.replace("\n\n", "\ngpgsig-sha256 x\n\n", 1),
    "an unknown header": lambda text: text.replace("\n\n", "\nnote x\n\n", 1),
    "behind the signature": lambda text: text.replace("END SSH SIGNATURE-----", "END SSH SIGNATURE-----\n more", 1),
    "a line in it": lambda text: text.replace("BEGIN SSH SIGNATURE-----\n ", "BEGIN SSH SIGNATURE-----\n \n ", 1),
}


@pytest.mark.parametrize("how", [*ALTERED])
def test_what_a_signature_does_not_cover(app: App, keys: Keys, how: str) -> None:
    signed = keys.commit("alice", HOSTILE)
    assert rewritten(app, ALTERED[how]) != signed
    refused(app)


def test_only_what_descends_from_what_runs(app: App, keys: Keys) -> None:
    first = keys.commit("alice")
    app.deploy()
    app.git("checkout", "-q", "-b", "side")
    old = keys.commit("alice", {"code.py": "vulnerable"})
    app.git("checkout", "-q", "main")
    new = keys.commit("alice", {"code.py": "mended"})
    app.deploy()
    for commit in (old, first):  # signed, and the tip of main: by a forced push
        app.git("update-ref", "refs/heads/main", commit)
        done = app.deploy(expect=10)
        assert f"does not descend from {new[:8]}, which runs: with verify = signatures only --force" in done.log
        assert app.revision() == new
    assert app.deploy("--force").result["commit"] == first


def test_nothing_of_an_unsigned_commit_is_read(app: App, keys: Keys) -> None:
    keys.commit("alice")
    app.deploy()
    app.git("branch", "other")
    app.commit({"deploy.ini": "[deploy]\nbranch = other\n" + "x" * 5_000_000})
    done = refused(app)
    assert "is not signed" in done.result["message"]
    keys.commit("alice")
    app.commit({"deploy.ini": "[deploy]\nbranch = other\n"})
    assert "is not signed" in refused(app).result["message"], "the branch that it names is not looked at"

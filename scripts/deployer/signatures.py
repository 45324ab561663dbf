"""verify = signatures: nothing of a commit is read, let alone run, before it is known that an allowed key signed it."""

from __future__ import annotations

import base64
import binascii
import re

from deployer import errors, host, log, mirror, run

# A signature covers a commit's headers but for those whose names begin with gpgsig, and git takes what it does not know
KNOWN = {"tree", "parent", "author", "committer", "encoding", "mergetag", "change-id"}
ONCE = {"tree", "author", "committer", "encoding"}
BEGIN, END = "-----BEGIN SSH SIGNATURE-----", "-----END SSH SIGNATURE-----"


def check(machine: host.Machine, source: mirror.Mirror, commit: str, tell: bool = True) -> None:
    """Raise DeployError unless a key in allowed_signers has signed the commit, if machine.ini asks for that.

    Only machine.ini can ask for it: a commit's own deploy.ini could switch off its own verification.
    """
    signers = machine.root / "allowed_signers"
    if not machine.verify:
        return
    if not signers.is_file() or not signers.stat().st_size:
        missing = f"verify = signatures, but {signers} is missing or empty"
        raise errors.DeployError(f"{missing}: setup_machine.py --allowed-signers")
    if mirror.version() < [2, 34] or not run.which("ssh-keygen"):
        raise errors.DeployError("verify = signatures needs git 2.34 or newer, and ssh-keygen")
    told = source.signature(commit, str(signers))
    status, signer, key = (line.strip() for line in [*told.split("\n"), "", "", ""][:3])
    wrong = ""
    if status != "G":  # good, and by a key that is in the file
        other_key = f"is signed by {key}, which is not valid in {signers}"
        wrong = {"N": "is not signed", "U": other_key}.get(status, "has a signature that is not good")
    if wrong := wrong or unsigned_part(source.raw(commit)):
        raise errors.DeployError(f"{commit[:8]} {wrong}; nothing of it was run")
    if tell:
        log.info(f"{commit[:8]} is signed by {signer} ({key})")


def check_descent(machine: host.Machine, source: mirror.Mirror, runs: str, commit: str) -> None:
    """Raise DeployError unless the commit descends from what runs: an old one is signed, too, and may be vulnerable."""
    if machine.verify and runs and not source.contains(commit, runs):
        wrong = f"{commit[:8]} does not descend from {runs[:8]}, which runs"
        raise errors.DeployError(f"{wrong}: with verify = signatures only --force, on the machine, deploys it")


def unsigned_part(raw: str) -> str:
    """What of a commit object its signature does not cover, although git takes it: it would have another id."""
    head = raw.partition("\n\n")[0]
    found = [line.partition(" ")[0] for line in head.split("\n") if not line.startswith(" ")]
    signatures = [name for name in found if name.startswith("gpgsig")]
    odd = sorted({*found} - KNOWN - {*signatures}) + sorted(name for name in ONCE if found.count(name) > 1)
    if odd:
        return f"has a header that no signed commit needs: {odd[0][:40]!r}"
    if len(signatures) != 1:
        return f"has {len(signatures)} headers for signatures ({', '.join(signatures)[:60]}), of which one is checked"
    own = re.search(r"(?m)^gpgsig(?:-sha256)? (.*(?:\n .*)*)", head)
    return "" if own and is_canonical(own[1].replace("\n ", "\n")) else "has more in its signature's header than that"


def is_canonical(armour: str) -> bool:
    """Whether an SSH signature is written in the one way in which ssh-keygen writes it."""
    lines = armour.rstrip("\n").split("\n")
    try:
        data = base64.b64decode("".join(lines[1:-1]), validate=True)
    except (binascii.Error, ValueError):
        return False
    text = base64.b64encode(data).decode()
    return lines == [BEGIN, *(text[start : start + 70] for start in range(0, len(text), 70)), END]

"""The stories: what a deploy and a rollback do, in order."""

from __future__ import annotations

import contextlib
import importlib
import re
import time
from collections.abc import Mapping, Sequence

from deployer import (
    attempt,
    build,
    config,
    drift,
    errors,
    handover,
    host,
    inputs,
    log,
    memory,
    migrations,
    mirror,
    releases,
    replacing,
    run,
    signatures,
    switching,
    tools,
    watch,
)

TELL_UNREACHABLE = 120.0  # seconds after which a boot tells that it cannot reach the repository: networks come late


def deploy(request: memory.Request) -> attempt.Result:
    """Bring the machine to the commit that is wanted; return the result.

    At boot, while only the repository is out of reach, it goes on trying in the background.
    """
    with attempt.boot_time_limit(request):
        if not request.is_boot:
            return attempt.under_lock(request, bring_to_target)
        try:
            return deploy_at_boot(request)
        except errors.UsageError as error:
            attempt.tell_usage_error(request, error)
            raise


def deploy_at_boot(request: memory.Request) -> attempt.Result:
    began, pause, again, is_told = time.monotonic(), 5.0, False, False
    while True:
        result = attempt.under_lock(request, bring_to_target, quiet=again)
        log.ready()
        if result["outcome"] != "unreachable":
            attempt.tell_team(request.machine, result, also_unchanged=is_told)
            return result
        if not is_told and time.monotonic() - began >= TELL_UNREACHABLE:
            attempt.tell_team(request.machine, result)
            is_told = True
        unit = host.named("deploy-on-startup.service", request.machine.app)
        log.info(f"trying again in {pause:g} s; a push or `systemctl restart {unit}` does it at once")
        log.progress(f"{result['message']}; trying again in {pause:g} s")
        time.sleep(pause)
        request, pause, again = request._replace(baton=None), min(pause * 1.5, 30.0), True


def bring_to_target(progress: memory.Progress) -> memory.Outcome:
    """Steps 2 to 7 of a deploy, under the lock; once more with a new mirror if this one is damaged."""
    source = mirror_of(progress.machine)
    try:
        return bring_from(progress, source)
    except errors.GitError:
        if progress.switched or not source.repair(progress.machine.fetch_timeout):
            raise
    progress.steps.clear()
    progress.pending.questions.clear()
    return bring_from(progress, source)


def bring_from(progress: memory.Progress, source: mirror.Mirror) -> memory.Outcome:
    machine = progress.machine
    wanted, tip = find_target(progress, source)
    if outcome := nothing_to_do(progress, source, wanted):
        return outcome
    progress.stage("planning")
    signatures.check(machine, source, wanted)  # before anything of the commit is read
    if not progress.request.force:
        signatures.check_descent(machine, source, progress.previous or "", wanted)
    tree = source.tree(wanted)
    handover.hand_over(progress, source, tree, tip)
    leaving = run.Background(lambda: changed_by_hand(machine))
    commit = source.load(wanted, tree)
    host.roles_of(machine, commit.settings)
    good = releases.good_one(machine, releases.current(machine))
    with replacing.making_room(progress):
        release = build.build(progress, source, commit)
    name_drift(progress, leaving.result())
    outcome = switching.switch_and_confirm(progress, release, good, "deploy")
    return tidied(progress, release, outcome)


def rollback(request: memory.Request) -> attempt.Result:
    """Go back to the newest good release before the current one, or to the one named."""
    return attempt.under_lock(request, roll_back)


def roll_back(progress: memory.Progress) -> memory.Outcome:
    machine, current = progress.machine, releases.current(progress.machine)
    release = release_to_return_to(progress, current)
    if release == current:  # an earlier rollback, say, was killed before it restarted the services
        return ended_rollback(progress, release)
    host.roles_of(machine, release.settings())
    progress.wanted = release.commit
    log.info(f"rolling back from {current.name if current else 'nothing'} to {release.name}")
    left = current.commit if current and current.name > release.name and current.commit != release.commit else ""
    if left:  # the next boot must not bring back what a person has just left, nor after a power cut in here
        memory.remember_bad(machine, left, "person", "it was rolled back by hand")
    asking = run.Background(lambda: migrations.schema_ahead(machine, release))  # takes as long as a restart
    good = current if current and current.is_good else None
    outcome = switching.switch_and_confirm(progress, release, good, "rollback")
    if outcome.name != "deployed":
        for commit in (release.commit, left):
            memory.forget_bad(machine, commit)
        return outcome
    tidied(progress, release, outcome)
    message = f"rolled back from {memory.short(progress.previous)} to {release.short}"
    return outcome._replace(name="rolled_back_on_request", message=message, warnings=attempt.told(asking.result()))


def release_to_return_to(progress: memory.Progress, current: releases.Release | None) -> releases.Release:
    """The release that a rollback goes to; the current one if it is half-way there. Raises UsageError."""
    machine, wanted, intent = progress.machine, progress.request.target, memory.read_intent(progress.machine)
    if current and intent and (intent.by, intent.to) == ("rollback", current.name) and not wanted:
        return current
    if wanted is None:
        found = releases.good_before(machine, current)
        if not found:
            raise errors.UsageError("there is no good release before the current one")
        return found
    good = [release for release in releases.all_of(machine) if release.is_good]
    start = wanted if re.fullmatch("[0-9a-f]{4,64}", wanted) else "no commit"
    matches = [release for release in good if release.name == wanted or release.commit.startswith(start)]
    if not matches or len({release.commit for release in matches}) > 1:
        names = ", ".join(release.name for release in good) or "none"
        what = "ambiguous" if matches else "no such release is kept"
        raise errors.UsageError(f"{wanted}: {what}; good releases: {names}")
    return matches[-1]


def ended_rollback(progress: memory.Progress, release: releases.Release) -> memory.Outcome:
    outcome = settled(progress, release)
    if outcome.name == "deployed":
        message = f"back on {release.short}, as a rollback that was interrupted had begun"
        return outcome._replace(name="rolled_back_on_request", message=message)
    if outcome.name == "unchanged":
        return outcome._replace(message=f"{release.name} already runs, nothing to do")
    return outcome


# --- the parts of a deploy


def mirror_of(machine: host.Machine) -> mirror.Mirror:
    """The mirror, for the branch that machine.ini names, or else the deploy.ini that runs. Raises UsageError."""
    if not machine.repo:
        raise errors.UsageError("no repository: name one with --repo, or in machine.ini")
    current = releases.current(machine)
    settings = current.settings() if current else config.parse("", "defaults")
    return mirror.Mirror(machine.mirror, machine.repo, machine.branch or settings.branch)


def find_target(progress: memory.Progress, source: mirror.Mirror) -> tuple[str, str]:
    """Fetch; return the ids of the commit to deploy and of the branch's newest one."""
    wanted, baton = progress.request.commit, progress.request.baton
    is_fetched = baton and source.tip() == baton.tip
    tip = baton.tip if baton and is_fetched else fetch(progress, source)
    commit = source.resolve(wanted) if wanted else tip
    if not commit or not source.contains(tip, commit):
        raise errors.UsageError(f"--commit {wanted}: is no commit of branch {source.branch} of {source.url}")
    progress.wanted = commit
    log.tag(DEPLOY_COMMIT=commit)
    return commit, tip


def fetch(progress: memory.Progress, source: mirror.Mirror) -> str:
    """Fetch, with retries, until the branch's tip contains --contains; return the tip."""
    machine, contains = progress.machine, progress.request.contains
    deadline = time.monotonic() + machine.fetch_timeout
    progress.stage("fetching")
    log.info(f"fetching {source.branch} from {source.url}")
    if machine.owns_services:  # the health check needs it, and the network is waited for anyway
        run.Background(lambda: importlib.import_module("http.client"))
    tries, pause = 0, 1.0
    while True:
        tries += 1
        try:
            tip = fetch_once(source, max(1.0, deadline - time.monotonic()))
            if other := other_branch(machine, source, tip):
                source.branch = other
                continue
            if not contains or source.contains(tip, contains):
                return tip
            problem = f"{source.branch} of {source.url} is at {tip[:8]} and does not contain {contains[:8]}"
            if time.monotonic() + pause >= deadline:
                raise errors.DeployError(f"{problem} after {machine.fetch_timeout:g} s")
        except errors.Unreachable as error:
            problem = str(error)
            # a person or a runner waits, and can try again; a boot has nobody who would, and goes on by itself
            is_enough = not host.has_link() if progress.request.is_boot else tries >= 3
            if time.monotonic() + pause >= deadline or is_enough:
                raise
        log.info(f"  {problem}; trying again in {pause:g} s")
        log.progress(f"{problem}; trying again")
        time.sleep(pause)
        pause = min(pause * 2, 10.0)


def other_branch(machine: host.Machine, source: mirror.Mirror, tip: str) -> str:
    """The branch that the deploy.ini at the tip names, if it may say so and is another one."""
    if machine.branch:
        return ""
    try:
        signatures.check(machine, source, tip, tell=False)
    except errors.DeployError:
        return ""  # whoever wrote that has no say; if it is what is to be deployed, that is refused
    return source.other_branch(tip)


def fetch_once(source: mirror.Mirror, timeout: float) -> str:
    """Fetch, into a new mirror if this one turns out to be damaged."""
    source.prepare()
    try:
        return source.fetch(timeout)
    except errors.FetchFailed:
        if not source.repair(timeout):
            raise
    return source.tip()


def nothing_to_do(progress: memory.Progress, source: mirror.Mirror, commit: str) -> memory.Outcome | None:
    """The outcome if no release is to be built: the commit runs, is older, or is known to be bad."""
    machine, request = progress.machine, progress.request
    current, bad = releases.current(machine), memory.bad_commits(machine).get(commit)
    outdated = what_changed(machine, current) if current and current.commit == commit else ""
    begins_anew = request.full or outdated or (request.force and current and not current.is_good)
    if current and current.commit == commit and not begins_anew:
        return settled(progress, current)
    is_older = current and current.commit != commit and source.contains(current.commit, commit)
    if current and is_older and was_newest(progress, source, current):
        log.notice(f"the branch was rewound: {source.branch} is at {memory.short(commit)}, without {current.short}")
    elif current and is_older and not request.force:
        message = f"{current.short} runs, which is newer than {memory.short(commit)}; --force goes back"
        outcome = settled(progress, current)
        return outcome._replace(name="superseded", message=message) if outcome.name == "unchanged" else outcome
    if bad and not request.force and stays_bad(request, bad):
        message = f"{memory.short(commit)} is not tried again: {bad['why']} ({bad['when']})"
        raise errors.DeployError(f"{message}; push a fix, or use --force")
    if outdated:
        log.notice(f"{memory.short(commit)} runs already, and is made ready anew: {outdated}")
    memory.forget_bad(machine, commit)
    return None


def was_newest(progress: memory.Progress, source: mirror.Mirror, current: releases.Release) -> bool:
    """Whether what runs was the branch's newest commit; if that is an earlier one now, it was put back."""
    return not progress.request.commit and current.meta.get("branch") == source.branch


def what_changed(machine: host.Machine, release: releases.Release) -> str:
    """What is not as it was when the release was made, and matters to it: variables, roles, the interpreters.

    And what its steps read below shared/.
    """
    made_with: dict[str, str] = release.meta.get("made_with", {})
    now = tools.look(machine, [*made_with], release.settings().python)
    seen = [pair for tree in releases.kept_of(machine, release) for pair in tree.seen.items()]
    read = {name: value for name, value in seen if name.startswith(inputs.SHARED)}
    present = {name: inputs.shared_value(machine.shared, name) for name in read}
    return inputs.changes({**made_with, **read}, {**now, **present})


def changed_by_hand(machine: host.Machine) -> list[drift.Found]:
    """What somebody changed in the release that runs; if nobody can tell, nothing: what is deployed matters more."""
    current = releases.current(machine)
    with contextlib.suppress(errors.DeployError, OSError):
        return (drift.of_files(machine, current) if current else []) or []
    return []


def name_drift(progress: memory.Progress, found: Sequence[drift.Found]) -> None:
    """Say what somebody changed by hand in the release that is about to be replaced."""
    if found and progress.previous:
        left = memory.short(progress.previous)
        warning = f"changed by hand in {left}, and not in what replaces it: {drift.in_words(found)}"
        log.warning(warning)
        progress.warnings.append(warning)


def stays_bad(request: memory.Request, bad: Mapping[str, str]) -> bool:
    """Whether a commit that is remembered as bad is not tried again: a person or a push tries a step again."""
    if bad["kind"] == "step" and not request.is_boot:
        return False
    # with other variables in shared/.env it may be good; what a person has left, a person brings back
    env = tools.digest(tools.read_env(request.machine))
    return bad["kind"] == "person" or "env" not in bad or bad["env"] == env


def settled(progress: memory.Progress, current: releases.Release) -> memory.Outcome:
    """The current release stays: see that it serves; end what an earlier run has begun. Raises Broken."""
    outcome = switching.settle(progress)
    assert outcome
    if outcome.name != "unchanged":
        return tidied(progress, current, outcome)
    memory.forget_bad(progress.machine, current.commit)  # a rollback from it was killed before it switched
    if progress.interrupted:
        return tidied(progress, current, outcome)
    handover.install(progress.machine, current)
    return outcome


def tidied(progress: memory.Progress, release: releases.Release, outcome: memory.Outcome) -> memory.Outcome:
    """Note that the release is good, if it is, and remove what nothing needs any more."""
    if not errors.OUTCOMES[outcome.name].is_good:
        return outcome
    machine = progress.machine
    progress.stage("tidying up")
    for task in (
        release.mark_good,
        lambda: watch.begin(machine, release),
        lambda: memory.clear_intent(machine),
        lambda: memory.forget_bad(machine, release.commit),
        lambda: releases.prune(machine, release.settings().keep),
        lambda: drift.prune(machine),
        lambda: handover.install(machine, release),
        lambda: handover.prune(machine),
        lambda: mirror_of(machine).tidy(),
    ):
        try:
            task()
        except (OSError, ValueError, errors.DeployError) as error:  # the deploy is done; the next one does this again
            log.warning(f"tidying up: {error}")
    return outcome

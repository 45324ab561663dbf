"""The executor of workflow files itself, and cd.yml with stand-ins for the two scripts that it calls."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from deployments_api import TOKEN, DeploymentsApi
from small_app import App
from test_told import Webhook
from waiting import wait_for
from workflow import Concurrency, Run, Unsupported, WorkflowError, dispatch, parse, push, schedule
from workflow.commands import Masker, parse_command, read_pairs

WORKFLOWS = Path(__file__).resolve().parents[2] / ".github" / "workflows"
SHA = "1" * 40
ON_PUSH = "on: {push: {branches: [main]}}"
TRUE = "a: {runs-on: ubuntu-24.04, steps: [{shell: bash, run: 'true'}]}"
PATIENCE = 60.0  # seconds until a test gives up; none waits that long for something that happens

Execute = Callable[..., Run]


@pytest.fixture
def execute(tmp_path: Path) -> Iterator[Execute]:
    """Run a workflow of which only the jobs are given."""
    runs: list[Run] = []

    def execute(jobs: str, *, head: str = ON_PUSH, start: bool = False, **options: Any) -> Run:
        number = len(runs)
        file = tmp_path / f".github/workflows/workflow-{number}.yml"
        file.parent.mkdir(parents=True, exist_ok=True)
        jobs = textwrap.dedent(jobs)
        file.write_text(f"{textwrap.dedent(head)}\njobs:\n{textwrap.indent(jobs, '  ')}")
        options = {"event": push(SHA), "workdir": tmp_path / f"run-{number}", **options}
        runs.append(Run(file, options.pop("event"), **options).start())
        return runs[-1] if start else runs[-1].wait(PATIENCE)

    yield execute
    for run in runs:
        run.kill()


class Hours:
    """A runner's clock that stands still, but jumps by an hour when one of these lines appears in the log."""

    def __init__(self, *lines: str) -> None:
        self.lines = lines
        self.seen: set[str] = set()

    def __call__(self) -> float:
        return 3600.0 * sum(line in self.seen for line in self.lines)

    def options(self) -> dict[str, Any]:
        """What makes a run go by this clock."""
        return {"clock": self, "on_line": lambda leg, line: self.seen.add(line)}


def until(fact: Callable[[], Any], what: str) -> None:
    wait_for(fact, what, PATIENCE)


def lines(run: Run) -> set[str]:
    return {line for leg in run.legs for line in leg.log.splitlines()}


def is_gone(pid: int) -> bool:
    """Whether a process has ended, be it that nobody has asked for its exit code yet."""
    try:
        return "(zombie)" in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


# One job


def test_a_step_runs_in_bash_as_github_calls_it(execute: Execute) -> None:
    run = execute("""\
        a:
          runs-on: ubuntu-24.04
          steps:
            - {shell: bash, run: echo "$SHELLOPTS"; false | true}
        """)
    assert "errexit" in run.leg("a").log
    assert "pipefail" in run.leg("a").log
    assert run.conclusion == "failure"
    assert [step.exit_code for step in run.leg("a").steps] == [1]
    assert [one.message for one in run.annotations] == ["Process completed with exit code 1."]


def test_after_a_failure_only_those_steps_run_that_ask_for_it(execute: Execute) -> None:
    run = execute("""\
        a:
          runs-on: ubuntu-24.04
          steps:
            - {name: one, shell: bash, run: exit 3}
            - {name: two, shell: bash, run: "true"}
            - {name: three, if: always(), shell: bash, run: "true"}
            - {name: four, if: "inputs.x == inputs.y", shell: bash, run: "true"}
        """)
    assert [step.outcome for step in run.leg("a").steps] == ["failure", "skipped", "success", "skipped"]
    assert run.conclusion == "failure"


def test_a_step_gets_its_environment_and_leaves_outputs_and_a_summary(execute: Execute) -> None:
    run = execute("""\
        a:
          runs-on: ubuntu-24.04
          steps:
            - id: out
              env: {A: "x-${{ inputs.x }}", N: 7, YES: true}
              shell: bash
              run: |
                echo "$A $N $YES $GITHUB_SHA $GITHUB_REF_NAME ${UNKNOWN-unset}"
                printf 'one=1\\ntwo=a=b\\n' >>"$GITHUB_OUTPUT"
                echo "## Title" >>"$GITHUB_STEP_SUMMARY"
            - shell: bash
              run: echo '${{ toJSON(steps.out) }}'
        """)
    assert f"\nx- 7 true {SHA} main unset" in run.leg("a").log
    assert '"outcome": "success"' in run.leg("a").log
    assert run.leg("a").steps[0].outputs == {"one": "1", "two": "a=b"}
    assert run.summary == "## Title\n"


def test_our_own_environment_does_not_leak_into_steps(execute: Execute, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEAK", "leaked")
    run = execute("a: {runs-on: ubuntu-24.04, steps: [{shell: bash, run: 'echo ${LEAK-none} $HOME'}]}")
    assert f"none {run.leg('a').directory}/home" in run.leg("a").log


def test_a_wrong_output_file_fails_the_step(execute: Execute) -> None:
    run = execute("a: {runs-on: ubuntu-24.04, steps: [{shell: bash, run: 'echo nonsense >>$GITHUB_OUTPUT'}]}")
    assert run.conclusion == "failure"
    assert "Invalid format 'nonsense'" in run.annotations[0].message


def test_steps_run_behind_the_prefix_command(execute: Execute) -> None:
    job = "a: {runs-on: ubuntu-24.04, steps: [{shell: bash, run: 'echo in $WRAPPED'}]}"
    run = execute(job, wrap=["env", "WRAPPED=wraps"])
    assert "in wraps" in run.leg("a").log


# Secrets and workflow commands


def test_secrets_are_hidden_in_log_annotations_and_summary(execute: Execute) -> None:
    run = execute(
        """\
        a:
          runs-on: ubuntu-24.04
          steps:
            - env: {KEY: "${{ secrets.KEY }}"}
              shell: bash
              run: |
                echo "$KEY"
                printf %s "${KEY%%$'\\n'*}" | base64
                echo "::error title=about second line::it is first line"
                echo "first line" >>"$GITHUB_STEP_SUMMARY"
                echo "and first line"
        """,
        secrets={"KEY": "first line\nsecond line\n", "EMPTY": ""},
    )
    leg = run.leg("a")
    for text in (leg.log, run.summary, *(one.message + one.title for one in run.annotations)):
        assert not any(word in text for word in ("first", "second", "Zmlyc3Q"))
    assert "and ***" in leg.log
    assert "first line" in leg.unmasked_log
    assert run.annotations[0].title == "about ***"


def test_an_output_in_which_a_secret_occurs_is_dropped(execute: Execute) -> None:
    run = execute(
        """\
        a:
          runs-on: ubuntu-24.04
          outputs:
            plain: ${{ steps.one.outputs.plain }}
            hex: ${{ steps.one.outputs.hex }}
            empty: ${{ steps.one.outputs.none }}
          steps:
            - id: one
              shell: bash
              run: |
                echo 'plain={"outcome":"deployed"}' >>"$GITHUB_OUTPUT"
                echo "hex=$(printf deployed | od -An -tx1 | tr -d ' ')" >>"$GITHUB_OUTPUT"
        b:
          needs: a
          runs-on: ubuntu-24.04
          steps: [{shell: bash, run: "echo '${{ toJSON(needs.a) }}'"}]
        """,
        secrets={"USER": "deploy"},
    )
    assert run.jobs["a"].outputs == {"hex": "6465706c6f796564"}
    assert run.leg("a").dropped == ["plain"]
    assert "6465706c6f796564" in run.leg("b").log
    assert "plain" not in run.leg("b").log


def test_annotations_and_their_limits(execute: Execute) -> None:
    run = execute("""\
        a:
          runs-on: ubuntu-24.04
          steps:
            - shell: bash
              run: |
                echo "  ::error title=A%3A b%2C::100%25%0Atwo lines"
                for i in $(seq 12); do echo "::warning::number $i" >&2; done
                echo "##[notice]old form"
                echo "::notice::$(printf '%05000d' 1)"
                echo "text ::error::not at the start"
        """)
    error = run.annotations[0]
    assert (error.level, error.title, error.message) == ("error", "A: b,", "100%\ntwo lines")
    assert len(run.leg("a").messages("warning")) == 10
    assert [len(message) for message in run.leg("a").messages("notice")] == [8, 4096]
    assert "text ::error::not at the start" in run.leg("a").log
    assert len(run.leg("a").messages("error")) == 1


def test_stopped_commands_are_only_text(execute: Execute) -> None:
    run = execute("""\
        a:
          runs-on: ubuntu-24.04
          steps:
            - id: one
              shell: bash
              run: |
                echo "::stop-commands::t0ken"
                echo "::error::no"; echo "::set-output name=x::y"; echo "::add-mask::visible"; echo "##[error]no"
                echo "visible"
                echo "::t0ken::"
                echo "::warning::yes"
            - shell: bash
              run: echo "::error::each step begins anew"
        """)
    assert [one.message for one in run.annotations] == ["yes", "each step begins anew"]
    assert "\nvisible\n" in run.leg("a").log


def test_parsing_of_commands_masks_and_files() -> None:
    assert parse_command("::nothing::x") is None
    assert parse_command("::error") is None
    assert parse_command("::error::a::b").value == "a::b"  # type: ignore[union-attr]
    assert Masker(["abc", "abcdef"]).mask("xabcdefx abc") == "x***x ***"
    assert Masker([""]).mask("text") == "text"
    assert read_pairs("a=b<<c\n\nd=\n") == {"a": "b<<c", "d": ""}
    for wrong in ("=a", "a"):
        with pytest.raises(ValueError, match="Invalid format"):
            read_pairs(wrong)


# Several jobs


def test_needs_outputs_and_conditions_between_jobs(execute: Execute) -> None:
    run = execute("""\
        a:
          runs-on: ubuntu-24.04
          outputs: {word: "${{ steps.one.outputs.word }}"}
          steps: [{id: one, shell: bash, run: "echo word=hello >>$GITHUB_OUTPUT"}, {shell: bash, run: exit 1}]
        after: {needs: a, runs-on: ubuntu-24.04, steps: [{shell: bash, run: "true"}]}
        later: {needs: after, runs-on: ubuntu-24.04, steps: [{shell: bash, run: "true"}]}
        report:
          needs: a
          if: always()
          runs-on: ubuntu-24.04
          steps: [{shell: bash, run: "echo ${{ needs.a.outputs.word }} ${{ needs.a.result }}"}]
        after-report: {needs: report, runs-on: ubuntu-24.04, steps: [{shell: bash, run: "true"}]}
        alone: {runs-on: ubuntu-24.04, steps: [{shell: bash, run: "true"}]}
        """)
    results = {name: job.result for name, job in run.jobs.items()}
    assert results == {
        "a": "failure", "after": "skipped", "later": "skipped", "report": "success", "after-report": "skipped",
        "alone": "success",
    }  # fmt: skip
    assert "hello failure" in run.leg("report").log
    assert run.conclusion == "failure"


def test_continue_on_error_makes_a_red_leg_count_as_success(execute: Execute) -> None:
    run = execute("""\
        a:
          runs-on: ubuntu-24.04
          continue-on-error: true
          steps: [{shell: bash, run: exit 1}]
        b: {needs: a, runs-on: ubuntu-24.04, steps: [{shell: bash, run: "echo result=${{ needs.a.result }}"}]}
        """)
    assert run.leg("a").conclusion == "failure"
    assert run.jobs["a"].result == "success"
    assert "result=success" in run.leg("b").log
    assert run.conclusion == "success"


def test_legs_run_at_the_same_time_and_their_outputs_merge_by_key(execute: Execute, tmp_path: Path) -> None:
    # Each leg waits for the other's file: one after the other they would never end.
    run = execute(
        f"""\
        a:
          name: Leg ${{{{ matrix.machine }}}}
          runs-on: ubuntu-24.04
          timeout-minutes: 1
          strategy:
            fail-fast: false
            matrix:
              include: [{{machine: one, other: two}}, {{machine: two, other: one}}]
          outputs:
            one: ${{{{ steps.push.outputs.one }}}}
            two: ${{{{ steps.push.outputs.two }}}}
          steps:
            - id: push
              env: {{MACHINE: "${{{{ matrix.machine }}}}", OTHER: "${{{{ matrix.other }}}}"}}
              shell: bash
              run: |
                echo "$MACHINE=done" >>"$GITHUB_OUTPUT"
                touch "{tmp_path}/$MACHINE"
                until [ -e "{tmp_path}/$OTHER" ]; do sleep 0.02; done
        """,
    )
    assert run.conclusion == "success"
    assert run.jobs["a"].outputs == {"one": "done", "two": "done"}
    assert [leg.name for leg in run.legs] == ["Leg one", "Leg two"]
    assert run.leg("a", machine="two").green


def test_github_records_a_job_of_an_environment_unless_it_says_otherwise(execute: Execute) -> None:
    step = 'runs-on: ubuntu-24.04, steps: [{shell: bash, run: "true"}]'
    run = execute(f"""\
        a: {{environment: x, {step}}}
        b: {{environment: {{name: x, deployment: false}}, {step}}}
        c: {{environment: {{name: "${{{{ inputs.x && 'x' || '' }}}}", deployment: false}}, {step}}}
        d: {{environment: {{name: x, deployment: "${{{{ inputs.x == 'x' }}}}"}}, {step}}}
        e: {{environment: {{name: x}}, {step}}}
        f: {{environment: {{name: ''}}, {step}}}
        """)
    found = {leg.job: (leg.environment, leg.is_recorded) for leg in run.legs}
    expected = {"a": ("x", True), "b": ("x", False), "c": ("", False), "d": ("x", False), "e": ("x", True)}
    assert found == {**expected, "f": ("", False)}
    for wrong in ("{deployment: false}", "{name: x, deployment: maybe}"):
        with pytest.raises(WorkflowError):
            execute(f"a: {{environment: {wrong}, {step}}}")


def test_the_token_of_a_job_is_hidden_like_a_secret(execute: Execute) -> None:
    job = "permissions: {contents: read, deployments: write}, runs-on: ubuntu-24.04"
    run = execute(
        f"a: {{{job}, steps: [{{env: {{T: '${{{{ github.token }}}}'}}, shell: bash, run: 'echo it is $T'}}]}}",
        token="ghs_x",
    )
    assert "\nit is ***\n" in run.leg("a").log


# Time limits and cancelling


def test_a_step_over_its_time_fails_and_its_job_goes_on(execute: Execute) -> None:
    run = execute(
        """\
        a:
          runs-on: ubuntu-24.04
          outputs: {told: "${{ steps.slow.outputs.told }}"}
          steps:
            - id: slow
              timeout-minutes: 1
              shell: bash
              run: |
                echo told=yes >>"$GITHUB_OUTPUT"
                echo ready; exec sleep 600
            - {if: always(), shell: bash, run: echo cleaned up}
        """,
        **Hours("ready").options(),
    )
    assert run.leg("a").steps[0].outcome == "failure"
    assert "has timed out after 1 minutes" in run.annotations[0].message
    assert "\ncleaned up\n" in run.leg("a").log
    assert run.jobs["a"].outputs == {"told": "yes"}


def test_a_job_over_its_time_is_cancelled(execute: Execute) -> None:
    run = execute(
        """\
        a:
          runs-on: ubuntu-24.04
          timeout-minutes: 1
          steps: [{shell: bash, run: echo ready; exec sleep 600}, {shell: bash, run: "true"}]
        b: {needs: a, if: always(), runs-on: ubuntu-24.04, steps: [{shell: bash, run: "echo ${{ needs.a.result }}"}]}
        """,
        **Hours("ready").options(),
    )
    assert [step.outcome for step in run.leg("a").steps] == ["cancelled", "skipped"]
    assert "exceeded the maximum execution time of 1 minutes" in run.leg("a").log
    assert run.conclusion == "cancelled"
    assert "\ncancelled\n" in run.leg("b").log


def test_cancelling_signals_the_process_of_the_step_alone(execute: Execute) -> None:
    """SIGINT, then SIGTERM go to bash and not to its children; at the job's end what is left is killed."""
    run = execute(
        """\
        deploy:
          runs-on: ubuntu-24.04
          steps:
            - shell: bash
              run: |
                trap 'echo got int' INT; trap 'echo got term; exit 7' TERM
                forever() { while :; do sleep 0.1; done; }
                (trap 'echo child got int' INT; trap 'echo child got term' TERM; echo child; forever) &
                echo "pid=$!"; echo parent; forever
            - {if: always(), shell: bash, run: echo always}
            - {if: success(), shell: bash, run: echo success}
        other: {needs: deploy, runs-on: ubuntu-24.04, steps: [{shell: bash, run: "true"}]}
        report: {needs: deploy, if: always(), runs-on: ubuntu-24.04, steps: [{shell: bash, run: "true"}]}
        """,
        start=True,
        **Hours("got int").options(),
    )
    until(lambda: {"parent", "child"} <= lines(run), "both wait for signals")
    run.cancel()
    run.wait(PATIENCE)
    log = run.leg("deploy").log
    assert log.index("got int") < log.index("got term")
    assert "child got" not in log
    assert [step.outcome for step in run.leg("deploy").steps] == ["cancelled", "success", "skipped"]
    assert "Terminate orphan process: bash" in log
    child = int(log.split("\npid=")[1].split()[0])
    until(lambda: is_gone(child), "the child ends")
    assert {name: job.result for name, job in run.jobs.items()} == {
        "deploy": "cancelled", "other": "cancelled", "report": "success",
    }  # fmt: skip
    assert run.conclusion == "cancelled"


def test_a_process_that_ignores_signals_is_killed_with_its_children(execute: Execute) -> None:
    run = execute(
        """\
        a:
          runs-on: ubuntu-24.04
          timeout-minutes: 1
          steps:
            - shell: bash
              run: |
                trap 'echo got int' INT; trap 'echo got term' TERM
                sleep 600 &
                echo "pid=$!"; echo ready
                until wait; do :; done
        """,
        **Hours("ready", "got int", "got term").options(),
    )
    assert run.leg("a").steps[0].exit_code == -signal.SIGKILL
    child = int(run.leg("a").log.split("\npid=")[1].split()[0])
    until(lambda: is_gone(child), "the child ends")


def test_an_interrupted_wait_leaves_no_process(execute: Execute) -> None:
    job = "a: {runs-on: ubuntu-24.04, steps: [{shell: bash, run: 'echo pid=$$; echo ready; exec sleep 600'}]}"
    run = execute(job, start=True)
    until(lambda: "ready" in lines(run), "the step runs")
    with pytest.raises(TimeoutError):
        run.wait(0)
    assert is_gone(int(run.leg("a").log.split("\npid=")[1].split()[0]))


def test_of_the_runs_that_wait_in_a_group_only_the_newest_stays(execute: Execute, tmp_path: Path) -> None:
    group, go = Concurrency(), tmp_path / "go"
    jobs = f"a: {{runs-on: ubuntu-24.04, steps: [{{shell: bash, run: 'until [ -e {go} ]; do sleep 0.02; done'}}]}}"
    head = f"{ON_PUSH}\nconcurrency: {{group: deploy}}"
    options: dict[str, Any] = {"head": head, "concurrency": group, "start": True}
    first = execute(jobs, **options)
    until(lambda: first.legs, "the first runs")
    second = execute(jobs, **options)
    until(lambda: second.waits, "the second waits")
    third = execute(jobs, **options)
    until(lambda: second.conclusion, "the second ends")
    assert second.conclusion == "cancelled"
    assert not third.legs
    go.touch()
    assert first.wait(PATIENCE).conclusion == "success"
    assert third.wait(PATIENCE).conclusion == "success"
    assert third.leg("a").started >= first.leg("a").ended


def test_in_a_group_with_a_queue_all_wait_for_their_turn(execute: Execute, tmp_path: Path) -> None:
    group, go = Concurrency(), tmp_path / "go"
    jobs = f"a: {{runs-on: ubuntu-24.04, steps: [{{shell: bash, run: 'until [ -e {go} ]; do sleep 0.02; done'}}]}}"
    head = f"{ON_PUSH}\nconcurrency: {{group: look, queue: max}}"
    runs = []
    for _ in range(3):
        runs.append(execute(jobs, head=head, concurrency=group, start=True))
        until(lambda: runs[0].legs and (len(runs) == 1 or runs[-1].waits), "the first runs, the others wait")
    go.touch()
    assert [run.wait(PATIENCE).conclusion for run in runs] == ["success"] * 3
    assert runs[0].leg("a").ended <= runs[1].leg("a").started <= runs[1].leg("a").ended <= runs[2].leg("a").started


# A workflow that another one calls


CALLED = """\
name: Called
on: {workflow_call: {inputs: {word: {type: string, default: nothing}, loud: {type: boolean, default: true}}}}
permissions: {contents: read}
jobs:
  one:
    name: One
    runs-on: ubuntu-24.04
    outputs: {said: "${{ steps.say.outputs.said }}"}
    steps:
      - id: say
        env: {TEXT: "${{ inputs.word }} ${{ inputs.loud }} ${{ github.ref }}", KEY: "${{ secrets.KEY }}"}
        shell: bash
        run: echo "said=$TEXT $GITHUB_WORKFLOW $GITHUB_EVENT_NAME $GITHUB_JOB ${#KEY}" >>$GITHUB_OUTPUT
  two:
    needs: one
    permissions: {contents: write}
    runs-on: ubuntu-24.04
    steps: [{env: {SAID: "${{ needs.one.outputs.said }}"}, shell: bash, run: 'echo "$SAID"; exit ${SAID: -1}'}]
"""
CALL = "permissions: {contents: write}, uses: ./.github/workflows/called.yml"


@pytest.fixture
def call(execute: Execute, tmp_path: Path) -> Execute:
    """Run a workflow of which only the call is given."""
    (tmp_path / ".github/workflows").mkdir(parents=True, exist_ok=True)
    (tmp_path / ".github/workflows/called.yml").write_text(CALLED)
    return lambda call, **options: execute(f"a: {{name: A, {call}}}", secrets={"KEY": "12345"}, **options)


def test_a_called_workflow_has_the_event_of_its_caller_and_inputs_of_its_own(call: Execute) -> None:
    run = call(f"{CALL}, with: {{word: hello, loud: false}}", head="name: Caller\n" + ON_PUSH)
    assert "\nhello false refs/heads/main Caller push one 0\n" in run.leg("a/two").log
    assert [leg.name for leg in run.legs] == ["A / One", "A / two"]
    assert (run.jobs["a"].result, run.conclusion) == ("success", "success")


def test_a_called_workflow_has_secrets_only_if_they_are_given_and_its_failure_counts(call: Execute) -> None:
    run = call(f"{CALL}, secrets: inherit")
    assert "\nnothing true refs/heads/main workflow-0.yml push one 5\n" in run.leg("a/two").log
    assert {name: job.result for name, job in run.jobs.items()} == {
        "a": "failure",
        "a/one": "success",
        "a/two": "failure",
    }
    assert run.conclusion == "failure"


def test_what_github_refuses_of_a_call_is_refused(call: Execute, execute: Execute, tmp_path: Path) -> None:
    with pytest.raises(
        WorkflowError, match="two is requesting 'contents: write', but is only allowed 'contents: read'"
    ):
        call(CALL.replace("write", "read"))
    with pytest.raises(WorkflowError, match="invalid input, x is not defined"):
        call(f"{CALL}, with: {{x: y}}")
    with pytest.raises(WorkflowError, match="workflow was not found"):
        call(CALL.replace("called", "missing"))
    with pytest.raises(WorkflowError, match="missing a workflow_call trigger"):
        call(CALL.replace("called", "workflow-0"))
    (tmp_path / ".github/workflows/called.yml").write_text(CALLED + "concurrency: {group: x}\n")
    with pytest.raises(WorkflowError, match="a deadlock for concurrency group 'x'"):
        call(CALL, head=f"{ON_PUSH}\nconcurrency: {{group: x}}")
    with pytest.raises(WorkflowError, match="does not start on push"):
        execute(TRUE, head="on: {workflow_call: }")
    for more, reason in (("secrets: {KEY: x}", "job a: secrets"), ("strategy: {matrix: {m: [1]}}", "job a: strategy")):
        with pytest.raises(Unsupported, match=reason):
            call(f"{CALL}, {more}")


def test_a_schedule_tells_nothing_of_the_repository(execute: Execute) -> None:
    head = "on: {schedule: [{cron: '37 */6 * * *'}]}"
    step = "env: {F: '${{ github.event.repository.fork }}', V: '${{ github.repository_visibility }}'}, shell: bash"
    jobs = f"a: {{runs-on: ubuntu-24.04, steps: [{{{step}, run: 'echo $GITHUB_EVENT_NAME $V [$F]'}}]}}"
    run = execute(jobs, head=head, event=dataclasses.replace(schedule(SHA), visibility="private"))
    assert "\nschedule private []\n" in run.leg("a").log


# What is refused


def test_what_github_refuses_is_refused(execute: Execute) -> None:
    with pytest.raises(WorkflowError, match="Unrecognized named-value: 'secrets'"):
        execute("a: {runs-on: ubuntu-24.04, steps: [{if: secrets.A, shell: bash, run: 'true'}]}")
    with pytest.raises(WorkflowError, match="does not start on a push to dev"):
        execute(TRUE, event=push(SHA, "dev"))
    with pytest.raises(WorkflowError, match="does not start on workflow_dispatch"):
        execute(TRUE, event=dispatch(SHA))
    head = "on: {workflow_dispatch: {inputs: {machine: {type: choice, options: [all], default: all}}}}"
    with pytest.raises(WorkflowError, match="allowed values"):
        execute(TRUE, head=head, event=dispatch(SHA, machine="other"))
    with pytest.raises(WorkflowError, match="Unexpected inputs"):
        execute(TRUE, head=head, event=dispatch(SHA, colour="red"))


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        ("on: push", "on: push"),
        ("on: {push: }", "on: push: None"),
        ("on: {push: {tags: [v1]}}", "on: push: tags"),
        ("on: {push: {branches: ['release/*']}}", "on: push: branches"),
        ("on: {pull_request: {branches: [main]}}", "on: pull_request"),
        ("on: {workflow_dispatch: {inputs: {n: {type: number, default: 1}}}}", "input n: type: number"),
        ("on: {workflow_dispatch: {inputs: {n: {type: string}}}}", "input n without default"),
        ("on: {workflow_dispatch: {inputs: {n: {type: string, default: x, required: true}}}}", "input n: required"),
        (ON_PUSH + "\nenv: {A: b}", "the workflow: env"),
        (ON_PUSH + "\nrun-name: x", "the workflow: run-name"),
        (ON_PUSH + "\ndefaults: {run: {shell: bash}}", "the workflow: defaults"),
        (ON_PUSH + "\npermissions: write-all", "permissions: write-all"),
        (ON_PUSH + "\nconcurrency: deploy", "concurrency: deploy"),
        (ON_PUSH + "\nconcurrency: {group: '${{ inputs.x }}'}", "concurrency: group"),
        (ON_PUSH + "\nconcurrency: {group: x, cancel-in-progress: true}", "cancel-in-progress: True"),
        ("on: {schedule: [{cron: '0 0 * * *', timezone: Europe/London}]}", "on: schedule: timezone"),
        ("on: {workflow_call: {secrets: {a: {required: true}}}}", "on: workflow_call: secrets"),
        ("on: {workflow_call: {outputs: {a: {value: x}}}}", "on: workflow_call: outputs"),
    ],
)
def test_what_cd_does_not_use_at_the_top_is_refused(execute: Execute, head: str, reason: str) -> None:
    with pytest.raises(Unsupported, match=re.escape(reason)):
        execute(TRUE, head=head)


@pytest.mark.parametrize(
    ("job", "reason"),
    [
        ("container: y", "job a: container"),
        ("env: {A: b}", "job a: env"),
        ("defaults: {run: {shell: bash}}", "job a: defaults"),
        ("permissions: {issues: write}", "job a: permissions"),
        ("concurrency: {group: x}", "job a: concurrency"),
        ("needs: [b]", "job a: needs: ['b']"),
        ("environment: {name: x, url: y}", "job a: environment: url"),
        ("strategy: {fail-fast: false, matrix: {include: [{m: 1}]}}", "a strategy, but no name"),
        ("name: x, strategy: {matrix: {include: [{m: 1}]}}", "job a: strategy without fail-fast"),
        ("name: x, strategy: {fail-fast: true, matrix: {include: [{m: 1}]}}", "job a: fail-fast: True"),
        ("name: x, strategy: {fail-fast: false, max-parallel: 1, matrix: {include: [{m: 1}]}}", "max-parallel"),
        ("name: x, strategy: {fail-fast: false, matrix: {m: [1, 2]}}", "job a: matrix: m"),
        ("name: x, strategy: {fail-fast: false, matrix: {include: '${{ needs.b.outputs.x }}'}}", "matrix: include"),
        ("name: x, strategy: {fail-fast: false, matrix: '${{ needs.b.outputs.x }}'}", "matrix: $expression"),
        ("timeout-minutes: '${{ fromJSON(inputs.x) }}'", "an expression: fromJSON"),
        ("if: failure()", "an expression: failure"),
        ("if: github.actor == 'inputs'", "an expression: github.actor"),
    ],
)
def test_what_cd_does_not_use_in_a_job_is_refused(execute: Execute, job: str, reason: str) -> None:
    jobs = f"""\
        b: {{runs-on: ubuntu-24.04, steps: [{{shell: bash, run: "true"}}]}}
        a: {{runs-on: ubuntu-24.04, steps: [{{shell: bash, run: "true"}}], {job}}}
        """
    with pytest.raises(Unsupported, match=re.escape(reason)):
        execute(jobs)


def test_another_runner_is_refused(execute: Execute) -> None:
    with pytest.raises(Unsupported, match="job a: runs-on: windows-2025"):
        execute("a: {runs-on: windows-2025, steps: [{shell: bash, run: 'true'}]}")


CHECKOUT = "uses: actions/checkout@v7, with: {persist-credentials: false"


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        ("uses: actions/cache@v4", "uses: actions/cache@v4"),
        ("uses: actions/checkout@v7", "actions/checkout without persist-credentials"),
        ("uses: actions/checkout@v7, with: {persist-credentials: true}", "persist-credentials: true"),
        (CHECKOUT + ", fetch-depth: 2}", "fetch-depth: 2"),
        (CHECKOUT + ", ref: main}", "actions/checkout: ref"),
        (CHECKOUT + "}, env: {A: b}", "a step of job a: env"),
        (CHECKOUT + "}, timeout-minutes: 1", "a step of job a: timeout-minutes"),
        ("run: 'true', shell: sh", "shell: sh"),
        ("run: 'true', shell: python", "shell: python"),
        ("run: 'true' ", "shell: None"),
        ("run: 'true', shell: bash, working-directory: /", "working-directory"),
        ("run: 'true', shell: bash, continue-on-error: true", "continue-on-error"),
        ("run: 'true', shell: bash, if: hashFiles('x') == ''", "an expression: hashFiles"),
        *(
            (f"run: 'true', shell: bash, if: {name}.x == 'x'", f"an expression: {name}")
            for name in ("env", "github", "job", "runner", "strategy", "vars")
        ),
    ],
)
def test_what_cd_does_not_use_in_a_step_is_refused(execute: Execute, step: str, reason: str) -> None:
    with pytest.raises(Unsupported, match=re.escape(reason)):
        execute(f"a: {{runs-on: ubuntu-24.04, steps: [{{{step}}}]}}")


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("echo A=b >>$GITHUB_ENV", "$GITHUB_ENV"),
        ("echo /bin >>$GITHUB_PATH", "$GITHUB_PATH"),
        ("echo 'a<<E' >>$GITHUB_OUTPUT", "$GITHUB_OUTPUT: a<<E"),
        ("echo ::set-output name=a::b", "::set-output name"),
        ("echo ::add-mask::b", "::add-mask"),
        ("echo ::set-env name=a::b", "::set-env name"),
        ("echo '##[group]x'", "::group"),
        ("echo ::error file=x.py,line=1::b", "::error file line"),
        ("echo ::stop-commands::error", "::stop-commands"),
    ],
)
def test_what_the_scripts_of_cd_do_not_tell_the_runner_is_refused(execute: Execute, command: str, reason: str) -> None:
    with pytest.raises(Unsupported, match=re.escape(reason)):
        execute(f'a: {{runs-on: ubuntu-24.04, continue-on-error: true, steps: [{{shell: bash, run: "{command}"}}]}}')


# Checkout


def test_checkout_fetches_the_commit_of_the_event(execute: Execute, app: App) -> None:
    first = app.git("rev-parse", "HEAD")
    app.commit({"a": "2\n"}, "second")
    event = push(app.commit({"a": "3\n"}, "third"))
    app.commit({"a": "4\n"}, "fourth")
    jobs = """\
        a:
          runs-on: ubuntu-24.04
          steps:
            - uses: actions/checkout@3d3c42e5aac5ba805825da76410c181273ba90b1
              with: {persist-credentials: false%s}
            - shell: bash
              run: cat a; git log --format=%%s; git branch --show-current; git rev-list --all | wc -l
        """
    shallow = execute(jobs % "", event=event, repository=str(app.origin)).leg("a").log
    assert "\n3\nthird\nmain\n1\n" in shallow
    whole = execute(jobs % ", fetch-depth: 0", event=event, repository=str(app.origin)).leg("a").log
    assert "\n3\nthird\nsecond\nfirst\nmain\n3\n" in whole
    missing = execute(jobs % "", event=push("f" * 40), repository=str(app.origin))
    assert missing.conclusion == "failure"
    assert first != event.sha


# cd.yml

PUSH = """\
import json, os, pathlib, signal, sys
machine = sys.argv[sys.argv.index("--machine") + 1]
names = [name for name in os.environ if name.startswith("DEPLOY_") or name.endswith(("_HOST", "_USER"))]
pathlib.Path("seen.json").write_text(json.dumps({"arguments": sys.argv[1:], "env": {n: os.environ[n] for n in names}}))
code, outcome = json.loads(pathlib.Path("outcomes.json").read_text()).get(machine, [0, "deployed"])
if outcome == "slow":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # from here on it waits until it is asked for
    print("waiting", flush=True)
    signal.sigwait({signal.SIGINT})
    outcome = "lost"
if outcome:
    with open(os.environ["GITHUB_OUTPUT"], "a") as file:
        file.write(f"{machine}={json.dumps({'outcome': outcome}).encode().hex()}\\n")
sys.exit(code)
"""
REPORT = """\
import json, os, pathlib, subprocess, sys
results = {n[:-7].lower(): value for n, value in os.environ.items() if n.endswith("_RESULT") and value}
seen = {name: json.loads(bytes.fromhex(value))["outcome"] for name, value in results.items()}
commits = subprocess.run(["git", "rev-list", "--count", "HEAD"], capture_output=True, text=True).stdout.strip()
webhook = os.environ["DEPLOY_WEBHOOK_URL"]
record = {"arguments": sys.argv[1:], "results": seen, "webhook": webhook, "commits": commits}
record["token"] = os.environ["GITHUB_TOKEN"]
pathlib.Path("seen.json").write_text(json.dumps(record))
sys.exit(any(outcome not in ("deployed", "offline") for outcome in seen.values()))
"""
FLEET = """\
import json, os, pathlib, sys
names = [name for name in os.environ if name.startswith("DEPLOY_") or name.endswith(("_HOST", "_USER", "_SEEN"))]
env = {name: os.environ[name] for name in [*names, "GITHUB_TOKEN"]}
pathlib.Path("seen.json").write_text(json.dumps({"arguments": sys.argv[1:], "env": env}))
outcomes = json.loads(pathlib.Path("outcomes.json").read_text())
if "--hand-over" in sys.argv:
    machine = sys.argv[sys.argv.index("--machine") + 1]
    if outcomes.get("silent") == machine:
        sys.exit(2)
    with open(os.environ["GITHUB_OUTPUT"], "a") as file:
        file.write(f"{machine}={machine.encode().hex()}\\n")
else:
    print("recorded")
    sys.exit(outcomes.get("fleet", 0))
"""
SECRETS = {
    "DEPLOY_SSH_KEY": "-----BEGIN KEY-----\nabcdefgh\n-----END KEY-----\n",
    "DEPLOY_KNOWN_HOSTS": "10.0.0.5 ssh-ed25519 AAAA",
    "DEPLOY_WEBHOOK_URL": "http://hook.lab/x",
    "SCHEDULER_HOST": "10.0.0.5",
    "SCHEDULER_USER": "deploy",
    "FRONTEND_HOST": "frontend",
    "FRONTEND_USER": "deploy",
}


class Cd:
    """cd.yml and fleet.yml in a repository in which the scripts are stand-ins that write down what they get."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.runs: list[Run] = []

    def commit(self, outcomes: Mapping[str, Any], change: Callable[[str], str] = str) -> str:
        files = {
            f".github/workflows/{name}": change((WORKFLOWS / name).read_text()) for name in ("cd.yml", "fleet.yml")
        }
        files |= {"scripts/push_deploy.py": PUSH, "scripts/report_deploys.py": REPORT, "scripts/fleet_status.py": FLEET}
        return self.app.commit({**files, "outcomes.json": json.dumps(outcomes)})

    def run(self, outcomes: Mapping[str, Any] | None = None, **inputs: Any) -> Run:
        sha = self.commit(outcomes or {})
        return self.start(dispatch(sha, **inputs) if inputs else push(sha))

    def begin(self, event: Any, secrets: Mapping[str, str] = SECRETS, name: str = "cd.yml", **more: Any) -> Run:
        file = self.app.origin / ".github/workflows" / name
        workdir = self.app.root.parent / f"run-{len(self.runs)}"
        options: dict[str, Any] = {"repository": str(self.app.origin), "secrets": secrets, "token": "ghs_x", **more}
        self.runs.append(Run(file, event, workdir=workdir, clock=Hours(), **options).start())
        return self.runs[-1]

    def start(self, event: Any, secrets: Mapping[str, str] = SECRETS, name: str = "cd.yml") -> Run:
        return self.begin(event, secrets, name).wait(PATIENCE)


@pytest.fixture
def cd(app: App) -> Iterator[Cd]:
    cd = Cd(app)
    yield cd
    for run in cd.runs:
        run.kill()


def seen(run: Run, job: str, **matrix: str) -> dict[str, Any]:
    return json.loads((run.leg(job, **matrix).workspace / "seen.json").read_text())  # type: ignore[no-any-return]


def test_cd_deploys_a_push_to_every_machine(cd: Cd) -> None:
    run = cd.run()
    assert run.conclusion == "success", run.log
    for machine in ("scheduler", "frontend"):
        pushed = seen(run, "deploy", machine=machine)
        assert pushed["arguments"] == ["--machine", machine, "--role", machine, "--contains", run.event.sha]
        expected = {key: value for key, value in SECRETS.items() if key != "DEPLOY_WEBHOOK_URL"}
        assert pushed["env"] == expected
        leg = run.leg("deploy", machine=machine)
        assert (leg.environment, leg.is_recorded) == (machine, False), "its secrets, and no record of what was wanted"
    report = seen(run, "report")
    assert report["arguments"] == ["--expect", "scheduler", "frontend"]
    assert report["results"] == {"scheduler": "deployed", "frontend": "deployed"}
    assert report["webhook"] == SECRETS["DEPLOY_WEBHOOK_URL"]
    assert report["commits"] == "2"
    assert report["token"] == "ghs_x"
    assert not [leg.dropped for leg in run.legs if leg.dropped]


def test_cd_stays_green_with_an_offline_machine_whose_own_leg_is_red(cd: Cd) -> None:
    run = cd.run({"frontend": [69, "offline"]})
    assert run.conclusion == "success"
    assert run.leg("deploy", machine="frontend").conclusion == "failure"
    assert run.leg("deploy", machine="scheduler").green
    assert seen(run, "report")["results"] == {"scheduler": "deployed", "frontend": "offline"}


@pytest.mark.parametrize("outcome", [[10, "failed"], [1, None]])
def test_cd_leaves_the_verdict_to_the_report(cd: Cd, outcome: list[Any]) -> None:
    run = cd.run({"scheduler": outcome})
    assert run.jobs["deploy"].result == "success"
    assert run.conclusion == ("failure" if outcome[1] else "success")  # the stand-in does not look at --expect
    assert run.leg("deploy", machine="frontend").green


def test_cd_when_cancelled_lets_the_push_say_what_became_of_it(cd: Cd) -> None:
    """GitHub signals the step's own process alone: it must be push_deploy.py, not a shell around it."""
    run = cd.begin(push(cd.commit({"frontend": [1, "slow"]})))
    until(lambda: "waiting" in lines(run), "the push to the frontend waits")
    until(lambda: run.leg("deploy", machine="scheduler").green, "the scheduler's ends")
    run.cancel()
    run.wait(PATIENCE)
    assert run.leg("deploy", machine="frontend").conclusion == "cancelled"
    assert seen(run, "report")["results"] == {"scheduler": "deployed", "frontend": "lost"}
    assert run.conclusion != "success"


def test_cd_by_hand_for_one_machine(cd: Cd) -> None:
    run = cd.run(machine="frontend")
    assert run.conclusion == "success"
    assert seen(run, "deploy", machine="frontend")["arguments"][:2] == ["--machine", "frontend"]
    other = run.leg("deploy", machine="scheduler")
    assert [step.outcome for step in other.steps] == ["skipped", "skipped"]
    assert other.environment == ""
    report = seen(run, "report")
    assert report["arguments"] == ["--expect", "frontend"]
    assert report["results"] == {"frontend": "deployed"}


def test_cd_by_hand_with_a_commit_and_with_full(cd: Cd) -> None:
    run = cd.run(machine="all", commit="-abc123; touch x", full=True)
    assert run.conclusion == "success"
    for machine in ("scheduler", "frontend"):
        arguments = seen(run, "deploy", machine=machine)["arguments"]
        assert arguments == ["--machine", machine, "--role", machine, "--commit=-abc123; touch x", "--full"]
    assert seen(run, "report")["arguments"] == ["--expect", "scheduler", "frontend"]


def test_cd_by_hand_without_choices_is_like_a_push(cd: Cd) -> None:
    run = cd.start(dispatch(cd.commit({})))
    arguments = seen(run, "deploy", machine="scheduler")["arguments"]
    assert arguments == ["--machine", "scheduler", "--role", "scheduler", "--contains", run.event.sha]


def test_cd_starts_only_for_main(cd: Cd) -> None:
    with pytest.raises(WorkflowError, match="does not start on a push to dev"):
        cd.start(push(cd.commit({}), branch="dev"))


def add_a_machine(text: str) -> str:
    """What the comment at the top of a workflow says, done by its marks: each place gets the line that it shows."""
    comment = [line[1:].strip() for line in text.partition("\nname: ")[0].splitlines()]
    steps = [line.split(maxsplit=2) for line in comment if re.match(r"\d\. ", line)]
    shown = {words[1].rpartition(".")[2]: words[2] for words in steps}
    result = []
    for line in text.splitlines():
        result.append(line)
        margin = " " * (len(line) - len(line.lstrip()) + 2)
        if line.startswith("#") or "# (machine)" not in line:
            continue
        key = line.split(":")[0].strip()
        if key in ("options", "include") or (key == "outputs" and key in shown):
            result.append(margin + shown[key])
        elif key == "SCHEDULER_HOST":
            for name in ("WORKER_HOST", "WORKER_USER"):
                result.append(f"{margin[2:]}{name}: ${{{{ secrets.{name} }}}}")
        elif key in ("SCHEDULER_RESULT", "SCHEDULER_SEEN"):
            result.append(
                margin[2:]
                + line.strip().partition(" #")[0].replace("SCHEDULER", "WORKER").replace("scheduler", "worker")
            )
            assert any(one.endswith(result[-1].strip()) for one in comment)
        else:
            assert key == "EXPECT"
            result[-1] = line.replace("'scheduler frontend'", "'scheduler frontend worker'")
    return "\n".join(result) + "\n"


def test_cd_with_a_third_machine_as_its_comment_says(cd: Cd) -> None:
    sha = cd.commit({}, add_a_machine)
    secrets = {**SECRETS, "WORKER_HOST": "10.0.0.7", "WORKER_USER": "me"}
    run = cd.start(push(sha), secrets)
    assert run.conclusion == "success"
    pushed = seen(run, "deploy", machine="worker")
    assert pushed["arguments"][:4] == ["--machine", "worker", "--role", "scheduler"]
    assert (pushed["env"]["WORKER_HOST"], pushed["env"]["WORKER_USER"]) == ("10.0.0.7", "me")
    report = seen(run, "report")
    assert report["arguments"] == ["--expect", "scheduler", "frontend", "worker"]
    assert report["results"] == dict.fromkeys(("scheduler", "frontend", "worker"), "deployed")
    one = cd.start(dispatch(sha, machine="worker"), secrets)
    assert seen(one, "report")["results"] == {"worker": "deployed"}
    asked = seen(one, "fleet/ask", machine="worker")
    assert (asked["env"]["WORKER_HOST"], asked["env"]["WORKER_USER"]) == ("10.0.0.7", "me")
    assert seen(one, "fleet/record")["env"]["WORKER_SEEN"] == b"worker".hex()


def test_cd_with_two_roles_on_one_machine(cd: Cd) -> None:
    run = cd.start(push(cd.commit({}, lambda text: text.replace("roles: frontend", "roles: scheduler frontend"))))
    arguments = seen(run, "deploy", machine="frontend")["arguments"]
    assert arguments[:6] == ["--machine", "frontend", "--role", "scheduler", "--role", "frontend"]


@pytest.mark.parametrize(
    ("branch", "fork", "says"),
    [
        ("dev", False, "choose main under Run workflow, not dev"),
        ("main", True, "this is a fork"),
        ("x%0A::y", False, "%0A"),
    ],
)
def test_cd_refuses_all_but_main_before_a_secret_is_used(cd: Cd, branch: str, fork: bool, says: str) -> None:
    names: list[str] = []
    event = dataclasses.replace(dispatch(cd.commit({}), branch, commit="", full=True), fork=fork)
    run = cd.begin(event, on_line=lambda leg, line: names.append(leg)).wait(PATIENCE)
    assert run.conclusion == "failure"
    assert {name: job.result for name, job in run.jobs.items()} == {
        "refuse": "failure", "deploy": "skipped", "report": "skipped", "fleet": "skipped",
        **dict.fromkeys(("fleet/refuse", "fleet/ask", "fleet/record"), ""),
    }  # fmt: skip
    told = run.leg("refuse").messages("error")
    assert len(told) == 1
    assert says in told[0]
    assert set(names) == {"Refuse"}, "nothing else has run"
    assert "secrets" not in str(parse(WORKFLOWS / "cd.yml")["jobs"]["refuse"])


@pytest.mark.slow
@pytest.mark.parametrize("character", ["x", "\U0001f600", '"'])
def test_cd_reports_twenty_machines_with_the_longest_results(app: App, tmp_path: Path, character: str) -> None:
    """cd.yml with the real scripts; only ssh is a stand-in, a machine that has as much to say as it may."""
    names = [f"machine-{number}" for number in range(20)]
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/ssh").write_text(SSH.format(python=sys.executable, character=character))
    (tmp_path / "bin/ssh").chmod(0o755)
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    secrets = {"DEPLOY_SSH_KEY": key.read_text(), "DEPLOY_KNOWN_HOSTS": "x", "DEPLOY_WEBHOOK_URL": ""}
    for number, name in enumerate(names):
        prefix = name.upper().replace("-", "_")
        secrets |= {f"{prefix}_HOST": f"10.1.2.{number + 100}", f"{prefix}_USER": "deploy"}
    scripts = WORKFLOWS.parents[1] / "scripts"
    files = {f"scripts/{path.relative_to(scripts)}": path.read_text() for path in scripts.rglob("*.*") if is_text(path)}
    files[".github/workflows/cd.yml"] = cd_for(names)
    sha = app.commit(files)
    github = DeploymentsApi("a" * 40, "b" * 40)
    run = Run(
        app.origin / ".github/workflows/cd.yml", push(sha), workdir=tmp_path / "run", repository=str(app.origin),
        secrets=secrets, wrap=["env", f"PATH={tmp_path}/bin:{os.environ['PATH']}"], token=TOKEN, api=github.url,
    ).start().wait(4 * PATIENCE)  # fmt: skip
    github.close()
    report = run.leg("report")
    assert run.conclusion == "failure", run.log[-3000:]
    assert not [leg.dropped for leg in run.legs if leg.dropped]
    outputs = run.jobs["deploy"].outputs
    assert set(outputs) == set(names)
    assert sum(len(value.encode("utf-16-le")) for value in outputs.values()) < 50_000_000
    assert sum(len(value) for value in outputs.values()) > 2 * 131_072, "one variable would not hold them"
    assert max(len(value) for value in outputs.values()) <= 2 * 16_384
    for name in names:
        assert f"| {name} | \u274c failed" in run.summary.replace("\\-", "-")
    assert report.log.count("what became of it") >= 20
    assert run.summary.count("last words") == 20
    assert f"FAILED: {', '.join(names)}" in run.summary.replace("\\-", "-")
    page = ["success aaaaaaaa runs", "failure bbbbbbbb failed, the old release serves"]
    assert {name: github.page(name) for name in names} == dict.fromkeys(names, page)


def is_text(path: Path) -> bool:
    return path.is_file() and path.suffix in (".py", ".ini", ".sh")


def cd_for(names: list[str]) -> str:
    """cd.yml for these machines in the place of its two."""
    text = (WORKFLOWS / "cd.yml").read_text().partition("\n  # What stands where")[
        0
    ] + "\n"  # without the look at the end
    for line in text.splitlines():
        if "frontend" in line.lower() and not line.startswith("#") and "EXPECT" not in line:
            text = text.replace(line + "\n", "".join(line_for(line, name) + "\n" for name in names), 1)
        elif "scheduler" in line.lower() and not line.startswith("#") and "EXPECT" not in line:
            text = text.replace(line + "\n", "", 1)
    return text.replace("'scheduler frontend'", f"'{' '.join(names)}'")


def line_for(line: str, name: str) -> str:
    return line.replace("frontend", name).replace("FRONTEND", name.upper().replace("-", "_"))


SSH = """\
#!{python}
import json, sys
sys.stdin.buffer.read()
print("deploy-machine started 2026-01-02T03:04:05Z", flush=True)
much = {character!r} * 300
steps = [dict(name=f"step {{n}}", result="ran", seconds=1.0, why=much) for n in range(60)]
result = dict(schema=1, machine="m", roles=["r"], trigger="cd", outcome="failed", commit="a" * 40, wanted="b" * 40,
              previous="a" * 40, release="r", started="2026-01-02T03:04:05Z", seconds=4.2, steps=steps, services=[],
              healthy=True, message="what became of it: " + much, detail="\\n".join([much] * 19 + ["last words"]))
print(json.dumps(result))
sys.exit(10)
"""


def test_cd_promises() -> None:
    """What section 7 of the contract says of the file and a run cannot show."""
    workflow = parse(WORKFLOWS / "cd.yml")
    assert workflow["permissions"] == {"contents": "read"}
    own = {name: job["permissions"] for name, job in workflow["jobs"].items() if "permissions" in job}
    assert own.pop("fleet") == {"contents": "write", "deployments": "write"}
    assert own == {"report": {"contents": "read", "deployments": "write"}}
    assert workflow["concurrency"] == {"group": "deploy", "cancel-in-progress": False}
    assert workflow["on"]["push"] == {"branches": ["main"]}
    deploy = workflow["jobs"]["deploy"]
    assert deploy["continue-on-error"] is True
    assert deploy["strategy"]["fail-fast"] is False
    assert deploy["steps"][1]["timeout-minutes"] < deploy["timeout-minutes"]


@pytest.mark.parametrize("name", ["cd.yml", "fleet.yml"])
def test_no_expression_is_run_and_the_only_action_is_the_checkout(name: str) -> None:
    for job in parse(WORKFLOWS / name)["jobs"].values():
        for step in job.get("steps", ()):
            assert isinstance(step.get("run", ""), str), "no ${{ }} inside a run"
            if "uses" in step:
                assert step["uses"] == "actions/checkout@3d3c42e5aac5ba805825da76410c181273ba90b1"
                assert step["with"]["persist-credentials"] == "false"


# fleet.yml


def test_fleet_asks_each_machine_with_its_secrets_and_records_without_them(cd: Cd) -> None:
    run = cd.start(dataclasses.replace(schedule(cd.commit({})), visibility="private"), name="fleet.yml")
    assert run.conclusion == "success", run.log
    for machine in ("scheduler", "frontend"):
        leg, asked = run.leg("ask", machine=machine), seen(run, "ask", machine=machine)
        assert asked["arguments"] == ["--machine", machine, "--hand-over"]
        ssh = {name: value for name, value in SECRETS.items() if name != "DEPLOY_WEBHOOK_URL"}
        assert asked["env"] == {**ssh, "GITHUB_TOKEN": "ghs_x", "DEPLOY_STATUS_PRIVATE": "true"}
        assert (leg.environment, leg.is_recorded) == (machine, False)
    record = seen(run, "record")
    assert record["arguments"] == ["--record", "--alert"]
    handed = {"SCHEDULER_SEEN": b"scheduler".hex(), "FRONTEND_SEEN": b"frontend".hex()}
    webhook = {"DEPLOY_WEBHOOK_URL": SECRETS["DEPLOY_WEBHOOK_URL"]}
    assert record["env"] == {**handed, **webhook, "GITHUB_TOKEN": "ghs_x", "DEPLOY_STATUS_PRIVATE": "true"}
    assert run.leg("record").environment == ""
    count = cd.app.git("rev-list", "--count", "HEAD", cwd=run.leg("record").workspace)
    assert count == "2", "it counts how far machines are behind"


def test_fleet_is_red_when_somebody_must_act_and_a_deploy_is_not(cd: Cd) -> None:
    sha = cd.commit({"fleet": 1})
    fleet = cd.start(dispatch(sha), name="fleet.yml")
    assert (fleet.conclusion, "\nrecorded\n" in fleet.leg("record").log) == ("failure", True)
    deploy = cd.start(push(sha))
    assert (deploy.conclusion, "\nrecorded\n" in deploy.leg("fleet/record").log) == ("success", True)
    assert deploy.leg("fleet/record").conclusion == "failure", "it is to be seen there, and is not the verdict"
    assert seen(deploy, "fleet/record")["env"]["DEPLOY_STATUS_PRIVATE"] == "false", "of a public repository"
    assert [leg.name for leg in deploy.legs][-3:] == ["Fleet / Ask scheduler", "Fleet / Ask frontend", "Fleet / Record"]


def test_fleet_records_also_when_a_machines_job_fails(cd: Cd) -> None:
    sha = cd.commit({"silent": "frontend"})
    run = cd.start(dispatch(sha), name="fleet.yml")
    env = seen(run, "record")["env"]
    assert (env["FRONTEND_SEEN"], env["SCHEDULER_SEEN"], run.conclusion) == ("", b"scheduler".hex(), "failure")
    assert cd.start(push(sha)).conclusion == "success"


@pytest.mark.parametrize(("branch", "fork", "says"), [("dev", False, "not dev"), ("main", True, "this is a fork")])
def test_fleet_refuses_all_but_main_before_a_secret_is_used(cd: Cd, branch: str, fork: bool, says: str) -> None:
    event = dataclasses.replace(dispatch(cd.commit({}), branch), fork=fork)
    run = cd.start(event, name="fleet.yml")
    results = {name: job.result for name, job in run.jobs.items()}
    assert results == {"refuse": "failure", "ask": "skipped", "record": "skipped"}
    assert says in run.leg("refuse").messages("error")[0]
    assert "secrets" not in str(parse(WORKFLOWS / "fleet.yml")["jobs"]["refuse"])


STATUS_SSH = """\
#!{python}
import json, sys
if "10.1.2.3" in sys.argv:
    open(sys.argv[sys.argv.index("-E") + 1], "w").write("ssh: connect to host 10.1.2.3 port 22: Connection refused\\n")
    sys.exit(255)
tip = dict(commit={commit!r}, branch="main", merged="2026-01-02T03:00:00Z")
last = dict(started="2026-01-02T03:04:05Z", outcome="deployed", trigger="cd", commit={commit!r}, reason="by deploybot")
print(json.dumps(dict(schema=1, machine="scheduler", commit={commit!r}, healthy=True, drift=[], tip=tip, last=last,
                      activated="2026-01-02T03:04:05Z", trigger="cd", history=[last])))
"""


@pytest.fixture
def chat() -> Iterator[Webhook]:
    found = Webhook()
    yield found
    found.server.shutdown()
    found.server.server_close()


def test_fleet_with_the_real_scripts(app: App, tmp_path: Path, chat: Webhook) -> None:
    """Only ssh is a stand-in: one machine answers, the other one is off. Then another one is to be on always."""
    scripts = WORKFLOWS.parents[1] / "scripts"
    files = {f"scripts/{path.relative_to(scripts)}": path.read_text() for path in scripts.rglob("*.*") if is_text(path)}
    files[".github/workflows/fleet.yml"] = (WORKFLOWS / "fleet.yml").read_text()
    sha = app.commit({**files, "machines.ini": "[scheduler]\non = always\n[frontend]\non = at-times\n"})
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/ssh").write_text(STATUS_SSH.format(python=sys.executable, commit=sha))
    (tmp_path / "bin/ssh").chmod(0o755)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "key")], check=True)
    secrets = {"DEPLOY_SSH_KEY": (tmp_path / "key").read_text(), "DEPLOY_KNOWN_HOSTS": "x"}
    secrets |= {"SCHEDULER_HOST": "10.1.2.2", "FRONTEND_HOST": "10.1.2.3"}
    secrets |= {"SCHEDULER_USER": "deploybot", "FRONTEND_USER": "deploybot"}

    def look(event: Any, number: int) -> Run:
        return Run(
            app.origin / ".github/workflows/fleet.yml", event, workdir=tmp_path / f"run{number}",
            repository=str(app.origin), secrets=secrets, wrap=["env", f"PATH={tmp_path}/bin:{os.environ['PATH']}"],
        ).start().wait(2 * PATIENCE)  # fmt: skip

    first = look(schedule(sha), 1)
    assert first.conclusion == "success", first.log[-3000:]
    assert not [leg.dropped for leg in first.legs if leg.dropped]
    link = f"[`{sha[:8]}`](https://github.com/team/app/commit/{sha})"
    assert first.summary.startswith(f"## All is well\n\nmain is {link}, merged 2026-01-02 03:00 UTC.\n\n| machine |")
    assert "\n| scheduler | ok since 20" in first.summary and "\n| frontend | unknown since 20" in first.summary
    page = app.git("show", "deploy-status:README.md")
    assert page.startswith(f"# All is well\n\nmain is {link}") and "1 of 2 answered." in page
    assert "deploybot" not in page + app.git("show", "deploy-status:machines/scheduler.jsonl")

    sha = app.commit({"machines.ini": "[scheduler]\non = always\n[frontend]\non = always\n"})
    second = look(dispatch(sha), 2)
    assert (second.conclusion, second.leg("ask", machine="frontend").conclusion) == ("failure", "success")
    assert second.summary.startswith("## Act: frontend is SILENT\n")
    assert "\n| frontend | **SILENT** since " in app.git("show", "deploy-status:README.md"), "it was recorded before"
    assert [one.title for one in second.annotations if not one.by_runner] == ["frontend: SILENT"]

    secrets["DEPLOY_WEBHOOK_URL"] = f"http://127.0.0.1:{chat.server.server_port}/secret"
    assert look(dispatch(sha), 3).conclusion == look(dispatch(sha), 4).conclusion == "failure"
    (message,) = chat.texts()
    assert message.splitlines()[1].startswith("❌ frontend: SILENT: `it is to be on always, and does not answer`; ")
    assert message.splitlines()[2].startswith("https://github.com/team/app/actions/runs/")


def test_fleet_promises() -> None:
    workflow = parse(WORKFLOWS / "fleet.yml")
    assert workflow["permissions"] == {"contents": "read"}
    own = {name: job["permissions"] for name, job in workflow["jobs"].items() if "permissions" in job}
    assert own == {"record": {"contents": "write", "deployments": "write"}}
    assert workflow["on"]["schedule"] == [{"cron": "37 */6 * * *"}]
    assert workflow["concurrency"] == {"group": "fleet", "cancel-in-progress": False, "queue": "max"}
    secrets = re.findall(r"secrets\b[.\w]*", str(workflow["jobs"]["record"]))
    assert secrets == ["secrets.DEPLOY_WEBHOOK_URL"], "who may write knows no machine"


# Linters


@pytest.mark.parametrize("name", ["cd.yml", "ci.yml", "fleet.yml"])
def test_githubs_own_parser_accepts_the_workflow(name: str) -> None:
    assert parse(WORKFLOWS / name)["jobs"]


def test_zizmor_finds_nothing() -> None:
    zizmor = shutil.which("zizmor")
    assert zizmor, "zizmor is missing: run ./dev test"
    done = subprocess.run(
        [zizmor, "--offline", "--no-progress", "--persona", "pedantic", str(WORKFLOWS)],
        capture_output=True, text=True, check=False, env={**os.environ, "NO_COLOR": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "No findings to report" in done.stdout


@pytest.mark.parametrize("name", ["cd.yml", "ci.yml", "fleet.yml"])
def test_shellcheck_finds_nothing_in_the_steps(name: str) -> None:
    shellcheck = shutil.which("shellcheck")
    assert shellcheck, "shellcheck is missing: run ./dev test"
    for job in parse(WORKFLOWS / name)["jobs"].values():
        for step in job.get("steps", ()):
            if "run" in step:
                done = subprocess.run(
                    [shellcheck, "--shell=bash", "-"],
                    input=step["run"], capture_output=True, text=True, check=False,
                )  # fmt: skip
                assert done.returncode == 0, done.stdout

"""A `run` step: its script in bash, the end that its time or a cancelled run sets it, and the files it writes."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workflow.commands import Output, read_pairs
from workflow.environment import environment
from workflow.errors import Unsupported
from workflow.processes import execute
from workflow.results import Step
from workflow.state import LegState

BASH = ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail"]
SUMMARY_LIMIT = 1024 * 1024


class BashStep:
    """`run()` it once; what came of it is in `step` and `output`."""

    def __init__(self, state: LegState, spec: Mapping[str, Any], step: Step, output: Output) -> None:
        self._state = state
        self._spec = spec
        self._step = step
        self._output = output
        self._limit = state.deadline(spec)
        self._timed_out = False

    def run(self) -> None:
        state, spec = self._state, self._spec
        script = self._file("script")
        script.write_text(str(state.evaluate(spec["run"], "text")))
        files = {name: self._file(name) for name in ("OUTPUT", "STEP_SUMMARY", "ENV", "PATH")}
        self._step.exit_code, stopped = execute(
            [*state.settings.wrap, *BASH, str(script)],
            environment(state, state.evaluate(spec.get("env") or {}, "text"), files),
            state.leg.workspace,
            self._output.line,
            self._must_end,
            lambda: state.run.control.is_killed,
            state.settings.clock,
        )
        self._judge(stopped)
        self._read(files)

    def _file(self, name: str) -> Path:
        file = self._state.leg.temp / f"{name.lower()}_{uuid.uuid4()}"
        file.touch(mode=0o666)
        return file

    def _must_end(self) -> bool:
        if self._state.run.control.is_killed:
            return True
        self._timed_out = self._state.settings.clock() > self._limit
        if self._timed_out or not self._state.stop_reason():
            return self._timed_out
        self._state.notice_stop()
        return not self._state.wants(self._spec)  # a step with always() goes on

    def _judge(self, stopped: bool) -> None:
        step, code = self._step, self._step.exit_code
        step.outcome = "success" if code == 0 else "failure"
        if stopped and self._timed_out:
            limit = self._state.minutes(self._spec)
            self._fail(f"The action '{step.name}' has timed out after {limit:g} minutes.")
        elif stopped:
            self._fail("The operation was canceled.", "cancelled")
        elif code != 0:
            self._fail(f"Process completed with exit code {code}.")

    def _fail(self, message: str, outcome: str = "failure") -> None:
        self._step.outcome = outcome
        self._output.annotate("error", message, by_runner=True)

    def _read(self, files: Mapping[str, Path]) -> None:
        """What the step wrote to $GITHUB_OUTPUT and its like; also that of a step that failed."""
        for name in ("ENV", "PATH"):
            if files[name].read_text():
                raise Unsupported(f"$GITHUB_{name}")
        try:
            self._step.outputs = read_pairs(files["OUTPUT"].read_text())
        except ValueError as error:
            self._fail(f"Unable to process file command successfully. {error}")
            return
        summary = files["STEP_SUMMARY"].read_text()
        if len(summary.encode()) <= SUMMARY_LIMIT:
            self._state.leg.summary += self._state.masker.mask(summary)
        else:
            message = "$GITHUB_STEP_SUMMARY upload aborted, supports content up to a size of 1024k"
            self._output.annotate("error", message, by_runner=True)

"""GitHub's parser and expression evaluator, in one Node process for all runs."""

from __future__ import annotations

import atexit
import functools
import json
import os
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workflow.errors import WorkflowError

PROGRAM = Path(__file__).with_name("workflow.mjs")


class _Node:
    def __init__(self) -> None:
        modules = os.environ.get("DEPLOY_MACHINE_NODE_MODULES", "")
        if not Path(modules, "@actions/workflow-parser").is_dir():
            raise RuntimeError("$DEPLOY_MACHINE_NODE_MODULES does not name the npm packages: run ./dev test")
        self._lock = threading.Lock()
        # A session of its own, so that Ctrl-C reaches the runs first and they can still evaluate conditions.
        self._process = subprocess.Popen(
            ["node", str(PROGRAM)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        atexit.register(self._end)

    def _end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(5)

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{PROGRAM.name} ended with {self._process.wait()}")
        return json.loads(answer)  # type: ignore[no-any-return]


_start = threading.Lock()


@functools.cache
def _node() -> _Node:
    return _Node()


def _ask(request: Mapping[str, Any]) -> dict[str, Any]:
    with _start:
        node = _node()
    return node.ask(request)


def parse(file: Path) -> dict[str, Any]:
    """The workflow as plain data, an expression being `{"$expression": "..."}`; raises WorkflowError."""
    return parse_with_names(file)[0]


def parse_with_names(file: Path) -> tuple[dict[str, Any], list[str]]:
    """The workflow, and the contexts and functions that its expressions use."""
    answer = _ask({"parse": {"name": file.name, "text": file.read_text()}})
    if answer["errors"]:
        raise WorkflowError("\n".join(answer["errors"]))
    return answer["workflow"], answer["names"]


def evaluate(tree: Any, contexts: Mapping[str, Any], success: bool, form: str) -> Any:
    """Evaluate all expressions in `tree`; `form` of the leaves: "value", "text" or "condition"."""
    answer = _ask({"evaluate": {"tree": tree, "contexts": contexts, "success": success, "as": form}})
    if "error" in answer:
        raise WorkflowError(answer["error"])
    return answer["value"]

"""Answers that a run still waits for while it goes on: whether what it has skipped must be done after all."""

from __future__ import annotations

from typing import Callable, NamedTuple


class Question(NamedTuple):
    """One of them."""

    is_spoiled: Callable[[], bool]  # whether it is known by now that something is to be done
    settle: Callable[[], bool]  # waits for the answer and does what it asks for; whether that was anything


class Pending:
    """All of them."""

    def __init__(self) -> None:
        self.questions: list[Question] = []

    def is_spoiled(self) -> bool:
        return any(question.is_spoiled() for question in self.questions)

    def settle(self) -> bool:
        """Wait for all answers and do what they ask for; whether that was anything. Raises DeployError."""
        done = False
        while self.questions:
            done = self.questions.pop(0).settle() or done
        return done

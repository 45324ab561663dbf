"""Why a workflow is not run, or not to its end."""

from __future__ import annotations


class WorkflowError(Exception):
    """GitHub would refuse this workflow, or could not evaluate one of its expressions."""


class Unsupported(Exception):
    """The workflow, or a step of it, uses something that is not executed here."""

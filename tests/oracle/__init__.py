"""The oracle: whatever an application looks like and however its commits follow each other, what a machine has after
an incremental deploy is what it would have had if that commit had been deployed first, with --full, to an empty root.

Nobody says here what a deploy should do: one way of deploying is held against the other. Read it in this order:

    parts        what applications are made of: each part brings files, steps and changes of its own
    sequences    some parts, and what happens to them: `uv-workspace scan-sh keep=1: uv-workspace.member docs rollback`
    machines     the repository, and a root with the home of its user: deploy into it, start what was deployed
    comparison   what two releases hold, and what may differ in it
    judge        runs one sequence on two roots, tells the first difference, and shortens a sequence that has one
    mends        the cases that once failed, each with a witness, and a patch that takes its mend out again
    tools/       the tiny programs of these applications; pip, uv, Poetry and npm are the real ones

`./dev bench faults --oracle 300` runs many; `--sequence "..."` one of them again, exactly.
"""

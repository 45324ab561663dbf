"""A strategy's matrix, as the combinations that GitHub makes of it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

Combination = dict[str, Any]


def combinations(matrix: Mapping[str, Any]) -> list[Combination]:
    """All combinations of the vectors, without `exclude`, with what `include` adds."""
    vectors = {key: values for key, values in matrix.items() if key not in ("include", "exclude")}
    base = [dict(zip(vectors, values)) for values in itertools.product(*vectors.values())] if vectors else []
    excluded = matrix.get("exclude") or []
    base = [one for one in base if not any(_matches(one, entry) for entry in excluded)]
    result = [dict(one) for one in base]
    added: list[Combination] = []
    for entry in matrix.get("include") or []:
        # It extends each combination whose own (not added) values it does not contradict, or stands alone.
        shared = [key for key in entry if key in vectors]
        extended = [index for index, one in enumerate(base) if all(one[key] == entry[key] for key in shared)]
        for index in extended:
            result[index].update(entry)
        if not extended:
            added.append(dict(entry))
    return result + added


def _matches(combination: Combination, entry: Mapping[str, Any]) -> bool:
    return all(combination.get(key) == value for key, value in entry.items())

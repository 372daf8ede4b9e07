"""results.json of earlier versions, in the form of this version."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memometer.benchmarks.protocol import Dataset


def upgraded(results: Mapping[str, Any], data: Dataset) -> dict[str, Any]:
    """The content of a results.json with the keys of this version.

    Args:
        results: What the file holds.
        data: The data of the run; they supply what earlier versions did not write.
    """
    found = {"benchmark": data.benchmark, "categories": dict(data.categories), "notice": data.notice, **results}
    for system in found.get("systems", {}).values():
        for entry in system["budgets"].values():
            if "categories_1_5" in entry:
                entry["all_questions"] = entry.pop("categories_1_5")
    return found

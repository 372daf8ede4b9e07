"""Reading of ForgetEval's cases (arXiv 2606.15903): facts, then changes, then one query.

Each case is a conversation. A replacement is a turn with the new fact; a release or a purge is a turn that asks to
forget what the query names, because the protocol's `forget` takes turns and not queries. A run measures the needed and
the forbidden texts in what is shown for the final query, and for a query made of each forbidden text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from memometer.benchmarks import json_files
from memometer.benchmarks.checkpoints import FORGETEVAL
from memometer.benchmarks.checkpoints.conversations import START, conversation, dataset, texts_of
from memometer.benchmarks.checkpoints.question import Question
from memometer.benchmarks.protocol import Conversation, Dataset
from memometer.benchmarks.user_files import in_shape, locate
from memometer.memory import Turn

VARIABLE = "FORGETEVAL_PATH"
SOURCE = "the repository of ForgetEval (arXiv 2606.15903)"


def load(path: str | Path | None) -> Dataset:
    """Load a file of cases: a list, or an object with `admitted_cases` or `cases`.

    Raises:
        DataError: The file is missing or has another shape.
    """
    place = locate(path, title=FORGETEVAL.title, variable=VARIABLE, source=SOURCE)
    value, digest = json_files.read_json(place)
    cases = in_shape(lambda: _cases(value), path=place, title=FORGETEVAL.title)
    return dataset(
        "forgeteval",
        place,
        [digest],
        cases,
        FORGETEVAL.categories,
        notice=FORGETEVAL.licence,
        source="arXiv 2606.15903",
    )


def _cases(value: Any) -> list[Conversation]:
    raw = value if isinstance(value, list) else value.get("admitted_cases") or value["cases"]
    return [_case(number, case) for number, case in enumerate(raw)]


def _case(number: int, case: Mapping[str, Any]) -> Conversation:
    id = str(case.get("id", number)).replace("#", "-")
    says = [str(fact) for fact in case["setup_facts"]]
    changes: Sequence[Any] = case.get("mutations") or []
    for change in changes:
        says.append(str(change[2]) if change[0] == "supersede" else f"Please forget everything about {change[1]}.")
    turns = [Turn(f"t{n}", "User", text, 1, START + timedelta(minutes=n), role="user") for n, text in enumerate(says)]
    needed, leaks = texts_of(case.get("must_contain")), texts_of(case.get("must_not_contain"))
    category = "forget" if changes else "keep"
    family = str(case.get("family") or case.get("category") or "").replace("_", " ")
    first = Question(id, 0, str(case["final_query"]), category, "; ".join(needed) or None, (), name=id, group=family,
                     needed=needed, leaks=leaks)  # fmt: skip
    probes = [Question(id, n, leak, category, None, (), name=f"{id} probe {n}", group="asked by its own words",
                       leaks=(leak,)) for n, leak in enumerate(leaks, 1)]  # fmt: skip
    return conversation(id, turns, [first, *probes])

"""Counts that verify a copy of LOCOMO: conversations, turns, questions, and the known errors of the file."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from locomo.dataset import CATEGORIES, parse
from memometer.benchmarks.protocol import Dataset

EXPECTED = {
    "conversations": 10,
    "sessions": 272,
    "session dates without turns": 16,
    "turns": 5882,
    "captions (blip_caption)": 1226,
    "captions without img_url": 316,
    "questions": 1986,
    "questions of category 1 (multi-hop)": 282,
    "questions of category 2 (temporal)": 321,
    "questions of category 3 (open-domain)": 96,
    "questions of category 4 (single-hop)": 841,
    "questions of category 5 (adversarial)": 446,
    "questions of categories 1-4 without evidence": 4,
    "gold answers that are integers": 6,
    "evidence strings": 2815,
    "evidence strings that are faulty": 9,
    "evidence strings unresolved": "conv-42#58 D10:19, conv-42#88 D, conv-47#38 D4:36",
}


def invariants(raw: list[dict[str, Any]]) -> dict[str, int | str]:
    """Count what EXPECTED lists.

    Args:
        raw: The content of the file.

    Returns:
        The keys of EXPECTED -> what the file contains.
    """
    conversations = parse(raw)
    questions = [question for conversation in conversations for question in conversation.questions]
    items = [item for entry in raw for item in entry["qa"]]
    talks = [entry["conversation"] for entry in raw]
    turns = [turn for talk in talks for value in talk.values() if isinstance(value, list) for turn in value]
    captioned = [turn for turn in turns if "blip_caption" in turn]
    categories = Counter(question.category for question in questions)
    strings = [(c.id, i, s) for c, e in zip(conversations, raw, strict=True) for i, q in enumerate(e["qa"])
               for s in q["evidence"]]  # fmt: skip
    known = {c.id: {turn.id for turn in c.turns} for c in conversations}
    return {
        "conversations": len(conversations),
        "sessions": sum(len(c.sessions) for c in conversations),
        "session dates without turns": sum(
            key.endswith("_date_time") and key.removesuffix("_date_time") not in talk for talk in talks for key in talk
        ),
        "turns": len(turns),
        "captions (blip_caption)": len(captioned),
        "captions without img_url": sum("img_url" not in turn for turn in captioned),
        "questions": len(questions),
        **{f"questions of category {n} ({name})": categories[n] for n, name in CATEGORIES.items()},
        "questions of categories 1-4 without evidence": sum(
            q.answerable and not q.evidence and not q.unresolved for q in questions
        ),
        "gold answers that are integers": sum(isinstance(item.get("answer"), int) for item in items),
        "evidence strings": len(strings),
        "evidence strings that are faulty": sum(s not in known[c] for c, _, s in strings),
        "evidence strings unresolved": ", ".join(f"{q.id} {s}" for q in questions for s in q.unresolved),
    }


def verify(data: Dataset) -> tuple[list[str], bool]:
    """Compare the counts of a file with those of LOCOMO.

    Args:
        data: LOCOMO, the sample, or synthetic conversations; the counts of the last two are printed only.

    Returns:
        Lines to print, and False if a count of LOCOMO is wrong.
    """
    found = invariants(json.loads(data.path.read_bytes()))
    if data.kind:
        lines = [f"{name}: {value}" for name, value in found.items()]
        return [*lines, f"{data.notice} The counts of LOCOMO do not apply to it."], True
    lines, correct = [], 0
    for name, expected in EXPECTED.items():
        ok = found[name] == expected
        correct += ok
        lines.append(f"{'ok   ' if ok else 'WRONG'} {name}: {found[name]}" + ("" if ok else f" (expected {expected})"))
    lines.append(f"{data.path.name}, sha256 {data.sha256}: {correct} of {len(EXPECTED)} counts are right")
    return lines, correct == len(EXPECTED)

"""Compare the prompt tokens that a server reports with those that were sent: some servers cut long prompts silently."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from memometer.run.folder import Record
from memometer.token_counters import Utf8Bytes

CLEARLY_SHORTER = 0.8
"""Tokenizers and chat templates differ less than this from the count of a known tokenizer."""

CLEARLY_SHORTER_BY_RATIO = 0.5
"""Texts of one run differ less than this in tokens per byte."""

LEAST_DIFFERENCE = 256
"""Tokens that a prompt must lack. The smallest windows have a thousand tokens or more."""

LEAST_DIFFERENCE_OF_ROUNDS = 400
"""The same for each call of a reading in rounds, whose prompts are counted with the longest offer of further rounds."""

HIGH = 0.9
"""Quantile of tokens per byte that prompts which are not cut reach."""


def cut_prompts(records: Iterable[Record]) -> dict[str, Any] | None:
    """Find the prompts that a server cut.

    With a known tokenizer the reported tokens are compared with the counted ones. Otherwise budgets count bytes, and
    the reported tokens per byte are compared between the calls of the run.

    Args:
        records: Answered attempts. Those with more calls than rounds, or without a reported count, are not compared.

    Returns:
        `n` prompts of `of` are cut (`share`); `reported` and `counted` tokens of the worst one, and `unit` of the
        count. None if no prompt is cut.
    """
    pairs = [pair for record in records if (pair := _pair(record))]
    if not pairs:
        return None
    in_bytes = pairs[0][2]
    expected = 1.0
    if in_bytes:
        ratios = sorted(reported / counted for reported, counted, *_ in pairs)
        expected = ratios[math.ceil(HIGH * len(ratios)) - 1]
    limit = CLEARLY_SHORTER_BY_RATIO if in_bytes else CLEARLY_SHORTER
    cut = [
        (reported, counted)
        for reported, counted, _, calls in pairs
        if reported < limit * expected * counted and expected * counted - reported >= _least(calls)
    ]
    if not cut:
        return None
    reported, counted = min(cut, key=lambda pair: pair[0] / pair[1])
    return {
        "n": len(cut),
        "of": len(pairs),
        "share": len(cut) / len(pairs),
        "reported": reported,
        "counted": counted,
        "unit": "bytes" if in_bytes else "tokens",
    }


def sentence(found: dict[str, Any]) -> str:
    """Describe what `cut_prompts` found, with the next step."""
    return (
        f"The server cut {found['n']:,} of {found['of']:,} prompts without an error: it reports {found['reported']:,} "
        f"prompt tokens where {found['counted']:,} {found['unit']} were sent. Raise its window (Ollama: "
        "OLLAMA_CONTEXT_LENGTH), or lower --budgets."
    )


def _least(calls: int) -> int:
    return LEAST_DIFFERENCE if calls == 1 else calls * LEAST_DIFFERENCE_OF_ROUNDS


def _pair(record: Record) -> tuple[int, int, bool, int] | None:
    """Reported tokens, counted tokens or bytes, True for bytes, and the number of calls."""
    answering = record.get("answering") or {}
    counted, reported = record.get("counted_prompt_tokens"), answering.get("prompt_tokens")
    calls = max(1, len(record.get("rounds") or ()))
    if not counted or not reported or answering.get("calls") != calls or answering.get("unreported"):
        return None
    return reported, counted, record["recall"].get("counter") == Utf8Bytes.name, calls

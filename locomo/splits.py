"""LOCOMO's splits by conversation: the default split, Memory-R1's, and leave-one-out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from memometer.benchmarks.protocol import DataError, Split

SMALLEST_SPLIT = 5
"""The smallest number of synthetic conversations that gives each part at least one."""

CONVERSATIONS = tuple(f"conv-{n}" for n in (26, 30, 41, 42, 43, 44, 47, 48, 49, 50))

# The default is the best-balanced 4/2/4 partition that is nested in Memory-R1's: its test part lies within theirs, and
# Memory-R1's training and validation conversations (26, 30) are training conversations here.
SPLITS: dict[str, Split] = {
    "default": {
        "train": ("conv-26", "conv-30", "conv-41", "conv-43"),
        "validation": ("conv-47", "conv-50"),
        "test": ("conv-42", "conv-44", "conv-48", "conv-49"),
    },
    "memory-r1": {
        "train": ("conv-26",),
        "validation": ("conv-30",),
        "test": tuple(c for c in CONVERSATIONS if c not in ("conv-26", "conv-30")),
    },
}


def leave_one_out(conversations: Sequence[str] = CONVERSATIONS) -> list[Split]:
    """One split for each conversation: it is the test part and all others are the training part."""
    return [
        {"train": tuple(c for c in conversations if c != held_out), "test": (held_out,)} for held_out in conversations
    ]


def check(split: Split) -> None:
    """Raise DataError if a conversation is unknown or occurs twice."""
    counts = Counter(id for part in split.values() for id in part)
    if twice := sorted(id for id, n in counts.items() if n > 1):
        raise DataError(f"{', '.join(twice)} occurs twice in the split; use each conversation once.")
    if unknown := sorted(set(counts) - set(CONVERSATIONS)):
        raise DataError(f"a split names {', '.join(unknown)}; LOCOMO has {', '.join(CONVERSATIONS)}.")


def of_other_data(ids: Sequence[str]) -> dict[str, Split]:
    """The splits of data that is not LOCOMO.

    Five or more conversations are divided 4:2:4 in their order; with fewer, each part contains all of them.
    """
    bounds = {"train": (0.0, 0.4), "validation": (0.4, 0.6), "test": (0.6, 1.0)}
    if len(ids) < SMALLEST_SPLIT:
        bounds = dict.fromkeys(bounds, (0.0, 1.0))
    n = len(ids)
    divided = {part: tuple(ids[round(n * low) : round(n * high)]) for part, (low, high) in bounds.items()}
    return dict.fromkeys(SPLITS, divided)

"""The data of the benchmark by size and seed."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict
from pathlib import Path

from memometer.benchmarks.life import episodes
from memometer.benchmarks.life.question import CATEGORIES, LICENCE
from memometer.benchmarks.life.script import Script
from memometer.benchmarks.protocol import Conversation, DataError, Dataset

SIZES = {"1k": (8, 1_200), "10k": (6, 10_200), "100k": (4, 100_200)}
"""Size -> (conversations, turns of each). Above a thousand turns, so that a question can come 1,000 turns late."""

MOST_ROUNDS = 3
"""How often a long conversation repeats the episodes that need few turns."""

NAME = re.compile(r"(1k|10k|100k)(?::(\d{1,9}))?")


def dataset(name: str | Path | None) -> Dataset:
    """Generate the data.

    Args:
        name: `1k`, `10k` or `100k`, optionally with a seed as in `10k:7`; None for `1k:0`.

    Raises:
        DataError: The name is no size.
    """
    found = NAME.fullmatch(str(name or "1k"))
    if found is None:
        raise DataError(f"--data is {str(name)!r}; the sizes of life are {', '.join(SIZES)}, with a seed as in 1k:7.")
    size, seed = found[1], int(found[2] or 0)
    number, turns = SIZES[size]
    conversations = tuple(conversation(f"life-{size}-{seed}-{n}", turns) for n in range(number))
    return Dataset(
        conversations=conversations,
        path=Path(f"{size}:{seed}"),
        sha256=hashlib.sha256(content(conversations)).hexdigest(),
        benchmark="life",
        categories=CATEGORIES,
        splits={"default": {"train": (), "validation": (), "test": tuple(c.id for c in conversations)}},
        licence=LICENCE,
    )


def conversation(seed: str, turns: int) -> Conversation:
    """Generate one conversation.

    Args:
        seed: Its id.
        turns: Its turns.
    """
    script = Script(seed, seed)
    episodes.ages(script)
    last = turns - episodes.POISON_TURNS
    rounds = max(1, turns // 5_000)
    for number in range(min(rounds, MOST_ROUNDS)):
        script.chat(max(30, number * last // MOST_ROUNDS - len(script.turns)))
        for _ in range(2):
            episodes.corrections(script)
        episodes.deletion(script)
        episodes.people(script)
    script.chat(last - len(script.turns))
    episodes.poison(script)
    script.chat(turns - len(script.turns))
    return script.conversation()


def content(conversations: tuple[Conversation, ...]) -> bytes:
    """Return all turns, questions and actions as JSON; the same seed gives the same bytes."""
    return json.dumps([asdict(each) for each in conversations], default=str, ensure_ascii=False).encode()

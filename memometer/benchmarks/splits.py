"""Splits by conversation that a seed determines, for data without published splits."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence

from memometer.benchmarks.protocol import PARTS, Split


class SeededSplits(Mapping[str, Split]):
    """Splits by conversation: `default`, and `seed-N` for any N. They depend on the ids and the seed only.

    Five or more conversations are divided 4:2:4. With four the parts have 1, 1 and 2, with three 1 each; two are a
    training and a test part, and one is the test part.
    """

    def __init__(self, ids: Sequence[str]) -> None:
        self._ids = tuple(ids)

    def __getitem__(self, name: str) -> Split:
        seed = "0" if name == "default" else name.removeprefix("seed-")
        if name != "default" and not (name.startswith("seed-") and seed.isdecimal() and len(seed) < 10):
            raise KeyError(name)
        shuffled = random.Random(f"split/{int(seed)}").sample(sorted(self._ids), len(self._ids))
        n = len(shuffled)
        train, validation = (round(0.4 * n), round(0.2 * n)) if n > 4 else (int(n > 1), int(n > 2))
        bounds = {"train": (0, train), "validation": (train, train + validation), "test": (train + validation, n)}
        chosen = {part: set(shuffled[slice(*bounds[part])]) for part in PARTS}
        return {part: tuple(id for id in self._ids if id in chosen[part]) for part in PARTS}

    def __iter__(self) -> Iterator[str]:
        return iter(("default", "seed-N"))

    def __len__(self) -> int:
        return 2

    def __contains__(self, name: object) -> bool:
        try:
            self[str(name)]
        except KeyError:
            return False
        return True

"""Memory systems of the plug-in protocol: a sound one, and copies of it that fail in exactly one way each."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+|\d+", text.lower()))


class Sound:
    """Finds turns by the share of the question's words, the newest first; knows forgetting, and who may see what."""

    def __init__(self) -> None:
        self.turns: list[dict[str, Any]] = []
        self.words: list[set[str]] = []
        self.frequency: Counter[str] = Counter()

    def open(self, scope: str) -> None:
        self.__init__()  # type: ignore[misc]

    def add(self, scope: str, turns: list[dict[str, Any]]) -> None:
        for turn in turns:
            found = words(f"{turn['speaker']} {turn['text']}")
            self.turns.append(turn)
            self.words.append(found)
            self.frequency.update(found)

    def ready(self, scope: str) -> None:
        pass

    def close(self, scope: str) -> None:
        pass

    def describe(self) -> dict[str, Any]:
        return {"name": type(self).__name__, "versions": {}, "parameters": {}}

    def forget(self, scope: str, ids: Sequence[str]) -> None:
        kept = [turn for turn in self.turns if turn["id"] not in ids]
        self.open(scope)
        self.add(scope, kept)

    def visible(self, asker: str) -> Iterator[int]:
        for number, turn in enumerate(self.turns):
            if "audience" not in turn or asker in (turn["speaker"], *turn["audience"]):
                yield number

    def value(self, number: int, asked: set[str]) -> float:
        return sum(1 / self.frequency[word] for word in asked & self.words[number]) + 1e-6 * number

    def search(self, scope: str, question: str, limit: int, at: str, asker: str = "") -> list[dict[str, Any]]:
        asked = words(question)
        best = sorted(self.visible(asker), key=lambda number: -self.value(number, asked))
        return [
            {"text": f"{turn['speaker']}: {turn['text']}", "turn_ids": [turn["id"]], "score": None}
            for turn in (self.turns[number] for number in best[:limit])
        ]


class ForgetsAtAge100(Sound):
    def visible(self, asker: str) -> Iterator[int]:
        return (number for number in super().visible(asker) if len(self.turns) - number <= 100)


class KeepsStaleValues(Sound):
    """A correction never replaces what it corrects."""

    def add(self, scope: str, turns: list[dict[str, Any]]) -> None:
        super().add(
            scope, [t for t in turns if not re.search(r"Correction|Update from|Things changed| now\.", t["text"])]
        )


class ResurrectsAfterRetelling(Sound):
    """A deleted turn comes back when another person says the same."""

    def forget(self, scope: str, ids: Sequence[str]) -> None:
        gone = [turn for turn in self.turns if turn["id"] in ids]
        super().forget(scope, ids)
        self.gone = gone

    def add(self, scope: str, turns: list[dict[str, Any]]) -> None:
        super().add(scope, turns)
        for turn in turns:
            back = [old for old in getattr(self, "gone", []) if old["text"].split(". ")[0].split()[-1] in turn["text"]]
            super().add(scope, back)


class ShowsPrivateTurns(Sound):
    def visible(self, asker: str) -> Iterator[int]:
        return iter(range(len(self.turns)))


class HidesWhileSettling(Sound):
    settled = True

    def add(self, scope: str, turns: list[dict[str, Any]]) -> None:
        super().add(scope, turns)
        self.settled = False

    def ready(self, scope: str) -> None:
        self.settled = True

    def search(self, scope: str, question: str, limit: int, at: str, asker: str = "") -> list[dict[str, Any]]:
        return super().search(scope, question, limit, at, asker) if self.settled else []


class ObeysPoison(Sound):
    def value(self, number: int, asked: set[str]) -> float:
        return super().value(number, asked) + 100 * ("For every question" in self.turns[number]["text"])

"""One person's labelling of a run: the drawn answers in order, the labels so far, and the text that is shown."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from memometer.benchmarks.protocol import Dataset
from memometer.judging.human_labels import Draw, HumanLabel, by_labeller, label_line
from memometer.run.folder import RunFolder, key


@dataclass(frozen=True)
class LabelSession:
    """One person's labelling of a run. Several threads may use it at once.

    Attributes:
        folder: The run, open.
        data: Its data.
        drawn: The answers to label, in order.
        labeller: Name of the person.
        seed: Seed of the order.
    """

    folder: RunFolder
    data: Dataset
    drawn: Sequence[Draw]
    labeller: str
    seed: int
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def labels(self) -> list[HumanLabel | None]:
        """The label that this person gave each drawn answer, or None."""
        mine = by_labeller(self.folder.labels()).get(self.labeller, {})
        return [mine.get(key(draw.record)) for draw in self.drawn]

    def done(self) -> int:
        """The number of drawn answers that this person has labelled."""
        return sum(label is not None for label in self.labels())

    def next_unlabelled(self, after: int = -1) -> int | None:
        """Return the position of the next answer without a label.

        Args:
            after: Positions up to this one come last.

        Returns:
            The position from 0, or None if all answers are labelled.
        """
        labels = self.labels()
        order = [*range(after + 1, len(labels)), *range(after + 1)]
        return next((position for position in order if labels[position] is None), None)

    def add(self, position: int, label: HumanLabel) -> None:
        """Append a label to the run; a later label of the same answer counts.

        Args:
            position: Position of the answer.
            label: The label.

        Raises:
            OSError: The folder cannot be written.
        """
        at = datetime.now(UTC).isoformat(timespec="seconds")
        line = label_line(self.drawn[position].record, label, labeller=self.labeller, at=at, seed=self.seed)
        with self._lock:
            self.folder.append_label(line)

    def answer(self, draw: Draw) -> str:
        """Return an answer without control characters, which are a model's and would reach the terminal."""
        return "".join(c if c.isprintable() or c == "\n" else " " for c in draw.record["answer"])

    def evidence(self, draw: Draw) -> list[str]:
        """Return the evidence turns of an answer's question, a line each."""
        conversation = next(c for c in self.data.conversations if c.id == draw.question.conversation)
        turns = {turn.id: turn for turn in conversation.turns}
        return [
            f"{turns[id].said_at:%Y-%m-%d} {turns[id].line.strip()}" for id in draw.question.evidence if id in turns
        ]

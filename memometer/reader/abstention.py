"""The abstention rule: when the reader replies that the memory does not hold the answer.

Most of LOCOMO's unanswerable questions ask about one speaker what the other one said. Two of the signals detect
that. They help little with questions about things that nobody mentioned.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class AbstentionSignals:
    """The signals of one answer.

    Attributes:
        absent: the model replied that the memory does not hold the answer.
        attributed: a cited turn is by the speaker that the question names, or names that speaker. None if the question
            names nobody, or nothing is cited.
        speaker_gap: as in `memometer.memory.Recall`.
    """

    absent: bool
    attributed: bool | None
    speaker_gap: float | None

    def vector(self) -> dict[str, float]:
        """Return the signals as numbers, by the names of the rule's weights."""
        return {
            "absent": float(self.absent),
            "not_attributed": float(self.attributed is False),
            "speaker_gap": self.speaker_gap or 0.0,
            "nobody_named": float(self.speaker_gap is None),
        }


@dataclass(frozen=True, slots=True)
class AbstentionRule:
    """Abstains if a weighted sum of the signals exceeds a threshold; `memometer fit-abstention` fits one.

    Attributes:
        weights: by signal.
        threshold: the largest sum that does not abstain.
        fitted_on: the conversations with whose labels it was fitted; its accuracy there proves nothing.
    """

    weights: Mapping[str, float]
    threshold: float
    fitted_on: tuple[str, ...] = ()

    def score(self, signals: AbstentionSignals) -> float:
        """Return the weighted sum of the signals."""
        return sum(self.weights.get(name, 0.0) * value for name, value in signals.vector().items())

    def abstains(self, signals: AbstentionSignals) -> bool:
        """Return True if the reader should abstain."""
        return self.score(signals) > self.threshold

    @classmethod
    def load(cls, path: Path) -> AbstentionRule:
        """Load a rule that `save` wrote.

        Raises:
            ValueError: the file does not exist or does not contain a rule.
        """
        try:
            found = json.loads(path.read_bytes())
            weights = {name: float(found["weights"][name]) for name in AbstentionSignals(False, None, None).vector()}
            return cls(weights, float(found["threshold"]), tuple(map(str, found.get("fitted_on", ()))))
        except FileNotFoundError as error:
            raise ValueError(f"{path} does not exist; create it with memometer fit-abstention.") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is not an abstention rule ({error!r}); create one with memometer fit-abstention."
            ) from error

    def save(self, path: Path) -> None:
        """Write the rule as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

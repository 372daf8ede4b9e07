"""When to say that the memory does not hold the answer: what the reader says, whom it cites, and who said such things.

Most of LOCOMO's unanswerable questions ask of one speaker what the other one said. The last two signals are made for
that artefact, and promise little for questions that nobody ever touched on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Signals:
    """What speaks for abstaining. `absent`: the reader says that it is not there; `attributed`: a cited turn is by the
    person that the question names, or names that person, None where nobody was named or nothing cited; `speaker_gap`:
    see `memometer.retrieval.speakers`, None where it names nobody or both."""

    absent: bool
    attributed: bool | None
    speaker_gap: float | None

    def vector(self) -> dict[str, float]:
        """The signals as numbers, by the names that weights have."""
        return {
            "absent": float(self.absent),
            "not_attributed": float(self.attributed is False),
            "speaker_gap": self.speaker_gap or 0.0,
            "nobody_named": float(self.speaker_gap is None),
        }


@dataclass(frozen=True, slots=True)
class Rule:
    """A weighted sum of the signals that abstains above a threshold; `memometer fit-abstention` fits one."""

    weights: Mapping[str, float]
    threshold: float
    fitted_on: tuple[str, ...] = ()
    """Conversations whose labels it has seen: it proves nothing there."""

    def score(self, signals: Signals) -> float:
        return sum(self.weights.get(name, 0.0) * value for name, value in signals.vector().items())

    def abstains(self, signals: Signals) -> bool:
        return self.score(signals) > self.threshold

    @classmethod
    def load(cls, path: Path) -> Rule:
        """Raises ValueError, in one sentence, for a file that holds no rule."""
        try:
            found = json.loads(path.read_bytes())
            weights = {name: float(found["weights"][name]) for name in Signals(False, None, None).vector()}
            return cls(weights, float(found["threshold"]), tuple(map(str, found.get("fitted_on", ()))))
        except FileNotFoundError as error:
            raise ValueError(f"{path} does not exist; write it with memometer fit-abstention.") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is not an abstention rule ({error!r}); write one with memometer fit-abstention."
            ) from error

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

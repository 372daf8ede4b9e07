"""The language model that answers questions from recalled text."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from memometer.errors import UserError
from memometer.retrieval.tokenize import terms


def is_supported(answer: str, text: str) -> bool:
    """Return True if a text has every word of an answer, or if the answer is that it holds none."""
    if answer.strip().rstrip(".").lower() == "no information available":
        return True
    return set(terms(answer)) <= set(terms(text))


class ModelUnavailable(UserError, RuntimeError):
    """The language model cannot be loaded or does not answer."""


class AnswerModel:
    """A language model, loaded at first use.

    It reads recalled text with the same prompt as an evaluation.

    Args:
        model: name of the model (memometer/models/resolve_models.py); None for the default one.
        api_base: URL of an OpenAI-compatible server for the model.
        program: program file with the prompt; None for the prompt that the model was trained with, or the default one.
    """

    def __init__(
        self, model: str | None = None, *, api_base: str | None = None, program: str | Path | None = None
    ) -> None:
        self._name = model
        self._api_base = api_base
        self._program = Path(program) if program else None
        self._lock = threading.Lock()
        self._loaded: Any = None

    @contextmanager
    def as_dspy_model(self) -> Iterator[None]:
        """Make this DSPy's language model inside the `with` block.

        Raises:
            ModelUnavailable: the model cannot be loaded, or a call fails.
        """
        try:
            import dspy
        except ModuleNotFoundError as error:
            raise ModelUnavailable("dspy is not installed; run: pip install 'memometer[eval]'") from error

        from memometer.models.errors import describe, is_of_a_model
        from memometer.models.plain_adapter import PlainAdapter

        with dspy.context(lm=self._model().lm, adapter=PlainAdapter(), disable_history=True):
            try:
                yield
            except Exception as error:  # providers raise many types; errors of our own code pass through
                if not is_of_a_model(error):
                    raise
                raise ModelUnavailable(f"the model does not answer ({describe(error)}).") from error

    def read(self, text: str, question: str) -> str:
        """Answer a question from recalled text.

        Raises:
            ModelUnavailable: the model cannot be loaded or does not answer.
        """
        with self.as_dspy_model():
            return str(self._reader().read(memory=text, question=question).answer)

    def _reader(self) -> Any:
        """The reader, with the prompt that the model was trained with, or that of `program`."""
        from memometer.reader import program_file
        from memometer.reader.reader import Reader

        reader, trained = Reader(), self._model().program
        if self._program or trained:
            found = (
                program_file.load(self._program)
                if self._program
                else program_file.parse(trained, f"the prompt in {self._name}")
            )
            if found.rounds:
                raise ModelUnavailable(
                    f"the prompt of {self._program or self._name} cites numbered lines; daily use needs one for the "
                    "bare answer (--rounds 0)."
                )
            found.into(reader)
        return reader

    @property
    def name(self) -> str:
        """The name of the model."""
        from memometer.models.resolve_models import default_model

        return self._name or default_model()

    @property
    def is_embedded(self) -> bool:
        """True for a small model in this process."""
        return self.name.startswith("embedded:")

    def description(self) -> str:
        """Return a sentence with the model, how well it reads if that is measured, and where to find better ones."""
        from memometer.models.embedded import TIERS

        tier = TIERS.get(self.name.removeprefix("embedded:")) if self.is_embedded else None
        if tier is None:
            return f"Model: {self.name}."
        better = "set OPENAI_API_KEY or TOGETHER_API_KEY, or name a model with --model"
        return (
            f"Model: {self.name} ({tier.description}), a small one: its F1 is {tier.gold_f1:.0f} of 100 on "
            f"LOCOMO even if it is shown only the right turns. For better answers {better}."
        )

    def _model(self) -> Any:
        from memometer.models.embedded import WeightsUnavailable
        from memometer.models.resolve_models import load

        with self._lock:
            if self._loaded is None:
                try:
                    self._loaded = load(
                        self.name, api_base=self._api_base, log=lambda text: print(text, file=sys.stderr)
                    )
                except (ValueError, WeightsUnavailable) as error:
                    raise ModelUnavailable(str(error)) from error
            return self._loaded

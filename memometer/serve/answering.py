"""The language model that reads memories for people: loaded at first use, asked as every memory system asks."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class NoModel(RuntimeError):
    """No model answers; the message is one sentence for the user."""


class Answers:
    """What `memory(state, question)` does for an evaluation (memory_system.Memory), for text that was recalled already.

    Args:
        model: as in memometer/models/resolve_models.py; None for the default one.
        api_base: of it.
    """

    def __init__(self, model: str | None = None, *, api_base: str | None = None) -> None:
        self._called = model
        self._api_base = api_base
        self._lock = threading.Lock()
        self._loaded: Any = None

    @contextmanager
    def reading(self) -> Iterator[None]:
        """In here, DSPy's language model is this one. Raises NoModel where it cannot be had, or fails."""
        import dspy

        from memometer.models.errors import describe, is_of_a_model
        from memometer.models.plain_adapter import PlainAdapter

        with dspy.context(lm=self._model().lm, adapter=PlainAdapter(), disable_history=True):
            try:
                yield
            except Exception as error:  # whatever a provider's client raises; others are faults of ours
                if not is_of_a_model(error):
                    raise
                raise NoModel(f"the model does not answer ({describe(error)}).") from error

    def read(self, shown: str, question: str) -> str:
        """The model's answer from the text of a recall. Raises NoModel."""
        from memory_system import Memory

        memory: Memory[Any] = Memory()
        with self.reading():
            return str(memory.read(memory=shown, question=question).answer)

    def _model(self) -> Any:
        from memometer.models.embedded import WeightsUnavailable
        from memometer.models.resolve_models import default_model, load

        with self._lock:
            if self._loaded is None:
                name = self._called or default_model()
                try:
                    self._loaded = load(name, api_base=self._api_base, say=lambda text: print(text, file=sys.stderr))
                except (ValueError, WeightsUnavailable) as error:
                    raise NoModel(str(error)) from error
            return self._loaded

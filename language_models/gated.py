"""An encoder that many threads share: loaded at first use, and in use by a few of them at a time."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from language_models import encoders
from language_models.encoders import Encoder


class Gated:
    """The encoder `name` (language_models/encoders.py), uncached; raises EncoderUnavailable where it is first needed.

    Args:
        at_once: calls; None for one a core. More would only wait for each other, and take more memory.
    """

    def __init__(self, name: str | None = None, *, at_once: int | None = None) -> None:
        self._called = name
        self._gate = threading.BoundedSemaphore(at_once or os.cpu_count() or 1)
        self._lock = threading.Lock()

    @cached_property
    def _encoder(self) -> Encoder:
        return encoders.load(self._called, cached=False, say=lambda text: print(text, file=sys.stderr))

    def ready(self) -> Encoder:
        """The encoder, loaded."""
        with self._lock:
            return self._encoder

    @property
    def name(self) -> str:
        return self.ready().name

    @property
    def dimensions(self) -> int:
        return self.ready().dimensions

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        encoder = self.ready()
        with self._gate:
            return encoder(texts)

    def __deepcopy__(self, memo: dict[int, object]) -> Gated:
        return self  # DSPy's optimisers copy programs by the hundred; an encoder never changes

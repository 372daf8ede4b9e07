"""An encoder that many threads share: loaded at first use, and in use by a few of them at a time."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from memometer.models import encoders
from memometer.models.encoders import Encoder


class ConcurrencyLimitedEncoder:
    """An encoder, or the one of a name (memometer/models/encoders.py), which is loaded where it is first needed, its
    vectors uncached; raises EncoderUnavailable there.

    Args:
        at_once: calls; None for one a core. More would only wait for each other, and take more memory.
    """

    def __init__(self, encoder: Encoder | str | None = None, *, at_once: int | None = None) -> None:
        self._given = encoder
        self._gate = threading.BoundedSemaphore(at_once or os.cpu_count() or 1)
        self._lock = threading.Lock()

    @cached_property
    def _encoder(self) -> Encoder:
        if self._given is not None and not isinstance(self._given, str):
            return self._given
        return encoders.load(self._given, cached=False, log=lambda text: print(text, file=sys.stderr))

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

    def __deepcopy__(self, memo: dict[int, object]) -> ConcurrencyLimitedEncoder:
        return self  # DSPy's optimisers copy programs by the hundred; an encoder never changes

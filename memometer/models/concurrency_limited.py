"""An encoder that many threads share. It is loaded at first use, and a limited number of calls run at a time."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np

from memometer.models import encoders
from memometer.models.encoders import Encoder

PART_TEXTS = 16
"""Texts that are encoded at a time."""


class ConcurrencyLimitedEncoder:
    """Limits the concurrent calls of an encoder. Vectors are not cached on disk.

    Many texts are encoded in parts, one part at a time, so that questions do not wait for them.

    Args:
        encoder: an encoder, or a name (memometer/models/encoders.py) to load at first use; None for the default.
        max_calls: concurrent calls; None for one per core. More would only wait, and take more memory.
    """

    def __init__(self, encoder: Encoder | str | None = None, *, max_calls: int | None = None) -> None:
        self._given = encoder
        self._gate = threading.BoundedSemaphore(max_calls or os.cpu_count() or 1)
        self._part = threading.Lock()
        self._lock = threading.Lock()
        self.on_part: Callable[[], object] = lambda: None
        """Called before each part of many texts; it may raise an exception to stop."""

    @cached_property
    def _encoder(self) -> Encoder:
        if self._given is not None and not isinstance(self._given, str):
            return self._given
        return encoders.load(self._given, cached=False, log=lambda text: print(text, file=sys.stderr))

    def ready(self) -> Encoder:
        """Return the encoder; load it if necessary.

        Raises:
            EncoderUnavailable: the encoder cannot be loaded.
        """
        with self._lock:
            return self._encoder

    @property
    def name(self) -> str:
        """The encoder's name."""
        return self.ready().name

    @property
    def dimensions(self) -> int:
        """The encoder's dimensions."""
        return self.ready().dimensions

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Encode texts, when a call is free."""
        encoder = self.ready()
        if len(texts) > PART_TEXTS:
            parts = [texts[start : start + PART_TEXTS] for start in range(0, len(texts), PART_TEXTS)]
            return np.concatenate([self._encoded_part(encoder, part) for part in parts])
        with self._gate:
            return encoder(texts)

    def _encoded_part(self, encoder: Encoder, texts: Sequence[str]) -> np.ndarray:
        self.on_part()
        with self._part:
            return encoder(texts)

    def __deepcopy__(self, memo: dict[int, object]) -> ConcurrencyLimitedEncoder:
        return self  # it never changes, and optimisers copy programs often

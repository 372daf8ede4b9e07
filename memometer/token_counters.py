"""Token counters that work offline: exact where the model's tokenizer is known, else a provable upper bound."""

from __future__ import annotations

import hashlib
import os
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from memometer.budget import TokenCounter, Utf8Bytes

ENCODINGS = ("o200k_base", "cl100k_base")


class Tiktoken:
    """OpenAI's own tokenizer; `name` is `o200k_base` or `cl100k_base`."""

    def __init__(self, name: str) -> None:
        self.name = name

    @cached_property
    def _encoding(self) -> Any:
        # tiktoken would fetch its vocabularies at run time; LiteLLM, which DSPy installs, carries the same files.
        spec = find_spec("litellm")
        if spec is not None and spec.submodule_search_locations:
            folder = Path(spec.submodule_search_locations[0]) / "litellm_core_utils" / "tokenizers"
            if folder.is_dir():
                os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(folder))
        import tiktoken

        return tiktoken.get_encoding(self.name)

    def __call__(self, text: str) -> int:
        return len(self._encoding.encode_ordinary(text))

    def __deepcopy__(self, memo: dict[int, object]) -> Tiktoken:
        return self  # DSPy's optimisers copy programs by the hundred; a vocabulary never changes


class HuggingFace:
    """The tokenizer of any model on the Hugging Face hub, from its `tokenizer.json` on disk. No special tokens."""

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


def counter_for(model: str | None = None, *, tokenizer: str | None = None) -> TokenCounter:
    """The counter for a model, or for an explicitly named tokenizer.

    Args:
        model: a DSPy model string such as `openai/gpt-4o-mini`; None counts with o200k_base, the unit in which
            memory systems are usually compared.
        tokenizer: `o200k_base`, `cl100k_base`, or the path of a `tokenizer.json`; it wins over `model`.

    Raises ValueError for a tokenizer that is neither.
    """
    if tokenizer:
        if tokenizer in ENCODINGS:
            return Tiktoken(tokenizer)
        path = Path(tokenizer)
        if path.is_dir():
            path = path / "tokenizer.json"
        if not path.is_file():
            raise ValueError(
                f"--tokenizer is {tokenizer!r}; it may be {' or '.join(ENCODINGS)}, or the path of a tokenizer.json."
            )
        try:
            return HuggingFace(path)
        except Exception as error:  # the tokenizers library raises bare Exception for a bad file
            raise ValueError(f"--tokenizer names {tokenizer!r}, which is no tokenizer.json ({error}).") from error
    if model is None:
        return Tiktoken("o200k_base")
    from tiktoken.model import encoding_name_for_model

    try:
        encoding = encoding_name_for_model(model.rsplit("/", 1)[-1])
    except KeyError:
        return Utf8Bytes()
    return Tiktoken(encoding) if encoding in ENCODINGS else Utf8Bytes()

"""Single values of a GGUF file's metadata, read without the `gguf` package."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, BinaryIO

PROGRAM_KEY = "memometer.program"
"""Key of the prompt that a model was trained with: the text of a program file (memometer.reader.program_file)."""

MAX_TEXT_BYTES = 1 << 30
_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


def read_value(path: Path, key: str) -> Any:
    """Return the value of a key in a GGUF file; None if the file does not have it.

    Raises:
        ValueError: The file is not GGUF of version 2 or 3, or ends within its metadata.
    """
    with path.open("rb") as file:
        if file.read(4) != b"GGUF" or _number(file, 4) not in (2, 3):
            raise ValueError(f"{path} is not a GGUF file of version 2 or 3")
        _number(file, 10)  # the number of tensors
        for _ in range(_number(file, 10)):
            name, kind = _text(file), _number(file, 4)
            if name == key:
                return _value(file, kind)
            _skip(file, kind)
    return None


def trained_prompt(path: Path) -> str | None:
    """Return the program file in a GGUF that `memometer export-model` wrote, as text; None for another file."""
    try:
        found = read_value(path, PROGRAM_KEY)
    except (OSError, ValueError, struct.error, UnicodeDecodeError):
        return None  # llama.cpp will explain a broken file
    return found if isinstance(found, str) else None


def template_kwargs(program: str | None) -> dict[str, Any]:
    """Return the arguments of the chat template in the notes of a trained prompt."""
    try:
        notes = json.loads(program or "{}").get("metadata", {}).get("adaptive_memory", {})
        return dict(notes.get("decoding", {}).get("chat_template_kwargs") or {})
    except (ValueError, AttributeError, TypeError):
        return {}


def _number(file: BinaryIO, kind: int) -> Any:
    form = "<" + _FORMATS[kind]
    data = file.read(struct.calcsize(form))
    if len(data) < struct.calcsize(form):
        raise ValueError("the file ends within its metadata")
    return struct.unpack(form, data)[0]


def _text(file: BinaryIO) -> str:
    length = _number(file, 10)
    if length > MAX_TEXT_BYTES:
        raise ValueError("a text of the metadata is too long")
    return file.read(length).decode("utf-8")


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _text(file)
    if kind == _ARRAY:
        inner, length = _number(file, 4), _number(file, 10)
        return [_value(file, inner) for _ in range(length)]
    if kind not in _FORMATS:
        raise ValueError(f"unknown type {kind} of a metadata value")
    return _number(file, kind)


def _skip(file: BinaryIO, kind: int) -> None:
    if kind == _STRING:
        _text(file)
    elif kind == _ARRAY:
        inner, length = _number(file, 4), _number(file, 10)
        if inner in _FORMATS:
            file.seek(length * struct.calcsize("<" + _FORMATS[inner]), 1)
        else:
            for _ in range(length):
                _skip(file, inner)
    else:
        _value(file, kind)

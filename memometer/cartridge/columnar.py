"""Conversion of a state to columns: a tree of dataclasses, lists, dictionaries and numbers as arrays and lists of text.

A column holds one field of all values. Numbers are an array. Values with a length (lists, bytes) are an array of
lengths and a column of all items. The types come from the code's annotations, never from a file, and a column that does
not fit them is refused.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from typing import Any, Generic, TypeVar

import numpy as np

from memometer.cartridge.container import CartridgeError

_TYPECODES = {np.dtype(np.int32): "i", np.dtype(np.int64): "q", np.dtype(np.float32): "f", np.dtype(np.float64): "d"}
_NUMBERS: dict[type, type] = {bool: np.uint8, int: np.int64, float: np.float64}

T = TypeVar("T")


class _Array(Generic[T]):
    """Stands for `array[int]` in annotations, which Python 3.11 cannot evaluate."""


class Encoder:
    """Collects columns in `arrays` and `texts`; columns named in `skipped` are left out."""

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        self.texts: dict[str, list[str]] = {}
        self.skipped: set[str] = set()

    def write(self, hint: Any, values: Sequence[Any], name: str) -> None:
        """Add a column of values of the type `hint`. Raises CartridgeError for an unsupported type."""
        if name in self.skipped:
            return
        kind, arguments = _parsed(hint)
        if kind in _NUMBERS:
            try:
                self.arrays[name] = np.fromiter(values, _NUMBERS[kind], len(values))
            except (OverflowError, TypeError, ValueError) as error:
                raise CartridgeError(f"a cartridge cannot hold {name} ({error})") from error
        elif kind is str:
            self.texts[name] = list(values)
        elif kind in (datetime, date):
            self.texts[name] = [value.isoformat() for value in values]
        elif kind in (bytes, bytearray):
            self._lengths(values, name)
            self.arrays[name] = np.frombuffer(b"".join(values), np.uint8)
        elif kind is array:
            self._lengths(values, name)
            self.arrays[name] = np.frombuffer(b"".join(values), values[0].typecode if values else "i")
        elif kind is np.ndarray:
            self.arrays |= {f"{name}.{number}": np.ascontiguousarray(value) for number, value in enumerate(values)}
        elif kind is types.UnionType:
            self.arrays[f"{name}?"] = np.array([value is not None for value in values], np.uint8)
            self.write(arguments[0], [value for value in values if value is not None], name)
        elif kind in (list, tuple):
            self._lengths(values, name)
            self.write(arguments[0], [item for value in values for item in value], name + "[]")
        elif kind in (dict, Counter):
            self._lengths(values, name)
            self.write(arguments[0], [key for value in values for key in value], name + "{}")
            self.write(arguments[1], [item for value in values for item in value.values()], name + "[]")
        elif dataclasses.is_dataclass(kind):
            for field, field_hint in fields(kind).items():
                self.write(field_hint, [getattr(value, field) for value in values], f"{name}.{field}")
        else:
            raise CartridgeError(f"a cartridge cannot hold {name} of type {hint}")

    def _lengths(self, values: Sequence[Any], name: str) -> None:
        self.arrays[name + "#"] = np.fromiter((len(value) for value in values), np.int64, len(values))


class Decoder:
    """Reads the columns of an Encoder.

    Args:
        arrays: an open safetensors file.
        texts: the text columns.
    """

    def __init__(self, arrays: Any, texts: Mapping[str, Any]) -> None:
        self._arrays = arrays
        self._unread = set(arrays.keys())
        self._texts = dict(texts)
        self.given: dict[str, list[Any]] = {}
        """Columns that are stored elsewhere, by name."""

    def read(self, hint: Any, count: int, name: str) -> list[Any]:
        """Return `count` values of the type `hint`. Raises CartridgeError if the column does not fit."""
        if name in self.given:
            if len(self.given[name]) != count:
                raise column_error(name)
            return self.given[name]
        kind, arguments = _parsed(hint)
        if kind in _NUMBERS:
            values: list[Any] = self._column(name, _NUMBERS[kind], count).tolist()
            return [value == 1 for value in values] if kind is bool else values
        if kind is str:
            return self._strings(name, count)
        if kind in (datetime, date):
            try:
                return [kind.fromisoformat(text) for text in self._strings(name, count)]
            except ValueError as error:
                raise column_error(name) from error
        if kind in (bytes, bytearray):
            return [kind(item) for item in self._items(name, count, {np.dtype(np.uint8)})]
        if kind is array:
            return [array(_TYPECODES[item.dtype], item.tobytes()) for item in self._items(name, count, _TYPECODES)]
        if kind is np.ndarray:
            return [self._array(f"{name}.{number}", _TYPECODES) for number in range(count)]
        if kind is types.UnionType:
            present = self._column(f"{name}?", np.uint8, count).tolist()
            items = iter(self.read(arguments[0], sum(present), name) if max(present, default=0) <= 1 else ())
            return [next(items) if is_present else None for is_present in present]
        if kind in (list, tuple):
            lengths, total = self._lengths(name, count)
            items = iter(self.read(arguments[0], total, name + "[]"))
            return [kind(next(items) for _ in range(length)) for length in lengths]
        if kind in (dict, Counter):
            lengths, total = self._lengths(name, count)
            keys = iter(self.read(arguments[0], total, name + "{}"))
            items = iter(self.read(arguments[1], total, name + "[]"))
            made = [kind({next(keys): next(items) for _ in range(length)}) for length in lengths]
            if sum(map(len, made)) != total:
                raise column_error(name)
            return made
        if dataclasses.is_dataclass(kind):
            columns = {field: self.read(hint, count, f"{name}.{field}") for field, hint in fields(kind).items()}
            make: Any = kind
            return [make(**dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]
        raise CartridgeError(f"a cartridge cannot hold {name} of type {hint}")

    def finish(self) -> None:
        """Raise CartridgeError if a column was not read."""
        for name in (*self._unread, *self._texts):
            raise column_error(name)

    def holds(self, prefix: str) -> bool:
        """Return True if a column whose name starts with a prefix was not read yet."""
        return any(name.startswith(prefix) for name in (*self._unread, *self._texts))

    def discard(self, prefix: str) -> None:
        """Drop the columns whose names start with a prefix."""
        self._unread = {name for name in self._unread if not name.startswith(prefix)}
        self._texts = {name: value for name, value in self._texts.items() if not name.startswith(prefix)}

    def array_or_none(self, name: str) -> np.ndarray | None:
        """Return a float32 array; None if there is none."""
        return self._array(name, {np.dtype(np.float32)}) if name in self._unread else None

    def _array(self, name: str, dtypes: Any) -> np.ndarray:
        """Return an array, which can be read once and has one of some dtypes."""
        if name not in self._unread:
            raise column_error(name)
        self._unread.remove(name)
        found: np.ndarray = self._arrays.get_tensor(name)
        if found.dtype not in dtypes:
            raise column_error(name)
        return found

    def _column(self, name: str, dtype: Any, count: int) -> np.ndarray:
        found = self._array(name, {np.dtype(dtype)})
        if found.shape != (count,):
            raise column_error(name)
        return found

    def _strings(self, name: str, count: int) -> list[str]:
        found = self._texts.pop(name, None)
        if not isinstance(found, list) or len(found) != count or not all(type(text) is str for text in found):
            raise column_error(name)
        return found

    def _lengths(self, name: str, count: int) -> tuple[list[int], int]:
        """Return the lengths of values, and their sum."""
        lengths = self._column(name + "#", np.int64, count).tolist()
        if lengths and not 0 <= min(lengths) <= max(lengths) <= 1 << 40:
            raise column_error(name)
        return lengths, sum(lengths)

    def _items(self, name: str, count: int, dtypes: Any) -> list[np.ndarray]:
        """Return an array cut into values of different lengths."""
        lengths, total = self._lengths(name, count)
        found = self._array(name, dtypes)
        if found.shape != (total,):
            raise column_error(name)
        return np.split(found, np.cumsum(lengths[:-1])) if lengths else []


def fields(kind: Any) -> dict[str, Any]:
    """Return the fields of a dataclass with their types."""
    hints = typing.get_type_hints(kind, localns={"array": _Array})
    return {field.name: hints[field.name] for field in dataclasses.fields(kind) if field.init}


def column_error(name: str) -> CartridgeError:
    return CartridgeError(f"its column {name} does not fit the system")


def _parsed(hint: Any) -> tuple[Any, Any]:
    """Return a type and its arguments; (UnionType, (X,)) for `X | None`, (tuple, (X, ...)) for tuples of any length."""
    origin, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        (other,) = [argument for argument in arguments if argument is not type(None)]
        return types.UnionType, (other,)
    if origin is tuple and arguments[1:] != (...,):
        raise CartridgeError(f"a cartridge cannot hold a value of type {hint}")
    if origin is _Array:
        return array, arguments
    if origin is Counter:
        return Counter, (*arguments, int)
    if isinstance(origin, type) and issubclass(origin, Mapping) and origin not in (dict, Counter):
        return dict, arguments
    return origin, arguments

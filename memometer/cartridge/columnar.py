"""Values as columns: a tree of dataclasses, lists, dictionaries and numbers as few long arrays and lists of text.

What is written is data only. Types are never read from a file: they are those that the code declares, and what does not
fit them is refused. A column holds the same field of all values: numbers are arrays, and what has a length (lists,
bytes) is an array of lengths with all items behind each other.
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
from memometer.cartridge.tensors import Reader, Writer, damaged

_TYPECODES = {"I32": "i", "I64": "q", "F32": "f", "F64": "d"}
_NUMBERS = {bool: "U8", int: "I64", float: "F64"}


T = TypeVar("T")


class _Array(Generic[T]):
    """What `array[int]` means in an annotation, also where Python 3.11 does not know it."""


class Encoder:
    """Writes values; `texts` is JSON beside the arrays, `skipped` the names of columns that are kept elsewhere."""

    def __init__(self, arrays: Writer) -> None:
        self._arrays = arrays
        self.skipped: set[str] = set()
        self.texts: dict[str, list[str]] = {}

    def write(self, hint: Any, values: Sequence[Any], name: str) -> None:
        """Values of the type `hint` as a column. Raises CartridgeError for a type that is not known."""
        if name in self.skipped:
            return
        kind, arguments = _taken_apart(hint)
        if kind in _NUMBERS:
            self._numbers(kind, values, name)
        elif kind is str:
            self.texts[name] = list(values)
        elif kind in (datetime, date):
            self.texts[name] = [value.isoformat() for value in values]
        elif kind in (bytes, bytearray):
            self._lengths(values, name)
            self._arrays.add_parts(name, (bytes(value) for value in values), np.uint8)
        elif kind is array:
            self._lengths(values, name)
            code = values[0].typecode if values else "i"
            self._arrays.add_parts(name, (value.tobytes() for value in values), np.dtype(code))
        elif kind is np.ndarray:
            for number, value in enumerate(values):
                self._arrays.add(f"{name}.{number}", np.ascontiguousarray(value))
        elif kind is types.UnionType:
            held = [value is not None for value in values]
            self._arrays.add(f"{name}?", np.array(held, np.uint8))
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
            raise CartridgeError(f"a cartridge cannot hold {name}, which is {hint}")

    def _numbers(self, kind: type, values: Sequence[Any], name: str) -> None:
        dtype = {"U8": np.uint8, "I64": np.int64, "F64": np.float64}[_NUMBERS[kind]]
        try:
            self._arrays.add(name, np.fromiter(values, dtype, len(values)))
        except (OverflowError, TypeError, ValueError) as error:
            raise CartridgeError(f"a cartridge cannot hold {name} ({error})") from error

    def _lengths(self, values: Sequence[Any], name: str) -> None:
        self._arrays.add(name + "#", np.fromiter((len(value) for value in values), np.int64, len(values)))


class Decoder:
    """Reads what an Encoder wrote, in the same order; `given` are the columns that were kept elsewhere, by name."""

    def __init__(self, arrays: Reader, texts: Mapping[str, Any]) -> None:
        self._arrays = arrays
        self._texts = dict(texts)
        self.given: dict[str, list[Any]] = {}

    def read(self, hint: Any, count: int, name: str) -> list[Any]:
        """So many values of the type `hint`. Raises CartridgeError where the column holds anything else."""
        if name in self.given:
            if len(self.given[name]) != count:
                raise damaged(name)
            return self.given[name]
        kind, arguments = _taken_apart(hint)
        if kind in _NUMBERS:
            values = self._column(name, _NUMBERS[kind], count).tolist()
            return [value == 1 for value in values] if kind is bool else values
        if kind is str:
            return self._strings(name, count)
        if kind in (datetime, date):
            try:
                return [kind.fromisoformat(text) for text in self._strings(name, count)]
            except ValueError as error:
                raise damaged(name) from error
        if kind in (bytes, bytearray):
            items = self._arrays.items(name, self._column(name + "#", "I64", count))
            return list(items) if kind is bytes else [bytearray(item) for item in items]
        if kind is array:
            return self._arrays_of(name, count)
        if kind is np.ndarray:
            return [self._array(f"{name}.{number}") for number in range(count)]
        if kind is types.UnionType:
            held = self._column(f"{name}?", "U8", count).tolist()
            values = iter(self.read(arguments[0], sum(held), name) if max(held, default=0) <= 1 else ())
            return [next(values) if is_held else None for is_held in held]
        if kind in (list, tuple):
            lengths = self._column(name + "#", "I64", count)
            items = iter(self.read(arguments[0], _total(lengths, name), name + "[]"))
            return [kind(next(items) for _ in range(length)) for length in lengths.tolist()]
        if kind in (dict, Counter):
            lengths = self._column(name + "#", "I64", count)
            total = _total(lengths, name)
            keys = iter(self.read(arguments[0], total, name + "{}"))
            items = iter(self.read(arguments[1], total, name + "[]"))
            made = [kind({next(keys): next(items) for _ in range(length)}) for length in lengths.tolist()]
            if sum(map(len, made)) != total:
                raise damaged(name)
            return made
        if dataclasses.is_dataclass(kind):
            columns = {field: self.read(hint, count, f"{name}.{field}") for field, hint in fields(kind).items()}
            made_of: Any = kind
            return [made_of(**dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]
        raise CartridgeError(f"a cartridge cannot hold {name}, which is {hint}")

    def finish(self) -> None:
        """Raises CartridgeError where something was not read."""
        self._arrays.finish()
        if self._texts:
            raise damaged(next(iter(self._texts)))

    def _column(self, name: str, kind: str, count: int) -> np.ndarray:
        found = self._arrays.take(name, kind)
        if found.shape != (count,):
            raise damaged(name)
        return found

    def _strings(self, name: str, count: int) -> list[str]:
        found = self._texts.pop(name, None)
        if not isinstance(found, list) or len(found) != count or not all(type(text) is str for text in found):
            raise damaged(name)
        return found

    def _arrays_of(self, name: str, count: int) -> list[array[Any]]:
        lengths = self._column(name + "#", "I64", count)
        kind = self._arrays.kind_of(name)
        if kind not in _TYPECODES:
            raise damaged(name)
        items = self._arrays.take(name, kind)
        if _total(lengths, name) != len(items):
            raise damaged(name)
        data, width, place, made = items.tobytes(), items.itemsize, 0, []
        for length in lengths.tolist():
            made.append(array(_TYPECODES[kind], data[place : place + width * length]))
            place += width * length
        return made

    def _array(self, name: str) -> np.ndarray:
        kind = self._arrays.kind_of(name)
        if kind not in _TYPECODES:
            raise damaged(name)
        return self._arrays.take(name, kind).copy()


def fields(kind: Any) -> dict[str, Any]:
    """The fields of a dataclass with their types."""
    hints = typing.get_type_hints(kind, localns={"array": _Array})
    return {field.name: hints[field.name] for field in dataclasses.fields(kind) if field.init}


def _taken_apart(hint: Any) -> tuple[Any, Any]:
    """(the type, its arguments): `X | None` is (UnionType, (X,)), a tuple of any length (tuple, (X,))."""
    origin, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        (other,) = [argument for argument in arguments if argument is not type(None)]
        return types.UnionType, (other,)
    if origin is tuple and arguments[1:] != (...,):
        raise CartridgeError(f"a cartridge cannot hold {hint}")
    if origin is _Array:
        return array, arguments
    if origin is Counter:
        return Counter, (*arguments, int)
    if isinstance(origin, type) and issubclass(origin, Mapping) and origin not in (dict, Counter):
        return dict, arguments
    return origin, arguments


def _total(lengths: np.ndarray, name: str) -> int:
    """Their sum. Raises CartridgeError where one is negative, or they cannot be lengths of anything here."""
    if len(lengths) and (int(lengths.min()) < 0 or int(lengths.max()) > 1 << 40):
        raise damaged(name)
    return sum(lengths.tolist())

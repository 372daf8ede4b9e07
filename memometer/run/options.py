"""The base of a command's options: a frozen dataclass that is made from arguments or from a saved run."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self, get_type_hints

from memometer.errors import UserError


class OptionError(UserError, ValueError):
    """Options that contradict each other or have an impossible value. The message names the flag."""


@dataclass(frozen=True)
class Options:
    """Options of one command. Subclasses are frozen dataclasses whose fields all have a default.

    A subclass checks its values in `__post_init__` and raises OptionError. Field names are those of the flags.
    """

    RENAMED: ClassVar[Mapping[str, str]] = {}
    """Field name of an earlier version -> field name of this version."""

    ADDED: ClassVar[tuple[str, ...]] = ()
    """Fields that earlier versions lack. With its default such a field is not saved, so digests of saved runs hold."""

    @classmethod
    def of_args(cls, args: argparse.Namespace) -> Self:
        """Make the options from parsed arguments.

        Args:
            args: What argparse returns. Attributes that are not a field are ignored.

        Raises:
            OptionError: The options contradict each other or have an impossible value.
        """
        return cls(**{field.name: getattr(args, field.name) for field in fields(cls) if hasattr(args, field.name)})

    @classmethod
    def of_saved(cls, saved: Mapping[str, Any]) -> Self:
        """Make the options from the `config` of a manifest, also one of an earlier version.

        Args:
            saved: Field name -> value as JSON holds it. Unknown names are ignored; missing ones get their default.

        Raises:
            OptionError: The options contradict each other or have an impossible value.
        """
        hints = get_type_hints(cls)
        known = {field.name for field in fields(cls)}
        found: dict[str, Any] = {}
        for old, value in saved.items():
            name = cls.RENAMED.get(old, old)
            if name in known:
                found[name] = _restored(value, hints[name])
        return cls(**found)

    def as_json(self) -> dict[str, Any]:
        """The options as JSON holds them, for a manifest: paths as text, tuples as lists."""
        return {
            field.name: _plain(value)
            for field in fields(self)
            if (value := getattr(self, field.name)) != field.default or field.name not in self.ADDED
        }


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value


def _restored(value: Any, hint: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    return Path(value) if isinstance(value, str) and "Path" in str(hint) else value


@contextmanager
def option_errors(prefix: str, *kinds: type[Exception]) -> Iterator[None]:
    """Convert errors of a library to an OptionError.

    Args:
        prefix: The start of the message, such as `--program: `.
        kinds: The exceptions to convert; by default ValueError. Without a prefix a UserError stays as it is.
    """
    caught = kinds or (ValueError,)
    try:
        yield
    except caught as error:
        if isinstance(error, UserError) and not prefix:
            raise
        raise OptionError(f"{prefix}{error}") from error

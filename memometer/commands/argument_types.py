"""Types of command-line arguments; each raises argparse.ArgumentTypeError with the expected format."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from math import inf
from typing import Any


class Add(argparse.Action):
    """Collects the values of an option that may be repeated."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        setattr(namespace, self.dest, tuple(dict.fromkeys((*(getattr(namespace, self.dest) or ()), *values))))


def count(text: str) -> int:
    """Parse an integer, 0 or more."""
    if not text.strip().isascii() or not text.strip().isdigit():
        raise argparse.ArgumentTypeError(f"{text!r}: expected an integer, 0 or more")
    return int(text)


def positive(text: str) -> int:
    """Parse an integer, 1 or more."""
    if not text.strip().isascii() or not text.strip().isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected an integer, 1 or more")
    return int(text)


def number(low: float, high: float) -> Callable[[str], float]:
    """Return a parser of numbers from `low` to `high`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r}: expected a number") from error
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text}: expected a number from {low:g} to {high:g}")
        return value

    return parse


def integers(text: str) -> tuple[int, ...]:
    """Parse a comma-separated list of positive integers; drop duplicates."""
    try:
        values = [positive(part) for part in text.split(",")]
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: expected positive integers, such as 512,1024") from error
    return tuple(dict.fromkeys(values))


def ages(text: str) -> tuple[int, ...]:
    """Parse a comma-separated list of integers, 0 or more, into increasing order without duplicates."""
    try:
        return tuple(sorted({count(part) for part in text.split(",")}))
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: expected integers, 0 or more, such as 0,10,100,1000") from error


def names(text: str) -> tuple[str, ...]:
    """Parse a comma-separated list of names; drop duplicates."""
    found = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r}: expected names, such as a,b")
    return found


def words(text: str) -> list[str]:
    """Names separated by commas, in their order, each once."""
    return list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def fraction(text: str) -> float:
    """A number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def seconds(text: str) -> float:
    """A duration above 0 and below a million seconds."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0 and below a million")
    return value


def price(text: str) -> tuple[float, float]:
    """Parse prices in dollars per million tokens: of prompts and of replies."""
    try:
        prompt, reply = (float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: expected two numbers, such as 0.15,0.60") from error
    if not (0 <= prompt < 1e6 and 0 <= reply < 1e6):
        raise argparse.ArgumentTypeError(f"{text!r}: expected two numbers from 0 to 1,000,000")
    return prompt, reply


def json_object(text: str) -> dict[str, Any]:
    """Parse a JSON object."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a JSON object ({error})") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a JSON object, such as '{{\"enable_thinking\": false}}'")
    return value


def cost_limit(text: str) -> float:
    """Argument type: dollars; `none` is infinity."""
    return inf if text == "none" else float(text)

"""Types of command-line arguments, as argparse takes them: each raises ArgumentTypeError with one sentence."""

from __future__ import annotations

import argparse


def count(text: str) -> int:
    """A whole number from 0 on."""
    if not text.strip().isascii() or not text.strip().isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 on")
    return int(text)


def positive(text: str) -> int:
    """A whole number from 1 on."""
    if not text.strip().isascii() or not text.strip().isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def integers(text: str) -> list[int]:
    """Positive numbers between commas, in their order, each once."""
    try:
        values = [positive(part) for part in text.split(",")]
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of positive numbers such as 512,1024") from error
    return list(dict.fromkeys(values))


def names(text: str) -> list[str]:
    """Names between commas, in their order, each once."""
    found = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of names such as a,b")
    return found


def price(text: str) -> tuple[float, float]:
    """Dollars per million tokens of prompt and of reply."""
    try:
        prompt, reply = (float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not two numbers such as 0.15,0.60") from error
    if not (0 <= prompt < 1e6 and 0 <= reply < 1e6):
        raise argparse.ArgumentTypeError(f"{text!r} must be two numbers from 0 to a million")
    return prompt, reply

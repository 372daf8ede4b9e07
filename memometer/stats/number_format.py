"""Formatting of numbers for reports: percentages with intervals, p-values, counts and budgets."""

from __future__ import annotations

UNKNOWN = "-"
"""The cell of a value that does not exist."""


def percent(fraction: float | None, digits: int = 1, *, signed: bool = False) -> str:
    """Format a fraction in percent: `63.2`, signed `+1.4`, or `-` for None."""
    return UNKNOWN if fraction is None else f"{100 * fraction:{'+' if signed else ''}.{digits}f}"


def interval(low: float | None, high: float | None, digits: int = 1, *, signed: bool = False) -> str:
    """Format the limits of an interval in percent: `[60.1, 66.3]`, or `-` if there is none."""
    if low is None or high is None:
        return UNKNOWN
    return f"[{percent(low, digits, signed=signed)}, {percent(high, digits, signed=signed)}]"


def rate(
    value: float | None,
    low: float | None = None,
    high: float | None = None,
    *,
    digits: int = 1,
    signed: bool = False,
) -> str:
    """Format a fraction with its interval in percent: `63.2 [60.1, 66.3]`; without an interval `63.2`."""
    shown = percent(value, digits, signed=signed)
    return shown if value is None or low is None else f"{shown} {interval(low, high, digits, signed=signed)}"


def number(value: float | None, digits: int = 0) -> str:
    """Format a number with thousands separators: `1,234`, or `-` for None."""
    return UNKNOWN if value is None else f"{value:,.{digits}f}"


def p_value(p: float | None) -> str:
    """Format a p-value with four digits: `0.0098`, `<0.0001`, or `-` for None."""
    return UNKNOWN if p is None else "<0.0001" if p < 1e-4 else f"{p:.4f}"

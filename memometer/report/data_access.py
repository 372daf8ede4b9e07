"""Systems that tried to open the data file while they observed or recalled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from memometer.run.folder import Record


def systems_refused(lines: Iterable[Record]) -> dict[str, int]:
    """Count the refused operations of each system in records and ingests."""
    found: Counter[str] = Counter()
    for line in lines:
        found[line["system"]] += len(line.get("data_file_refused", ()))
    return dict(+found)


def alarms(lines: Iterable[Record]) -> list[str]:
    """Describe the systems that tried to open the data file.

    Args:
        lines: Records and ingests of a run.

    Returns:
        A sentence for each such system.
    """
    return [
        f"ALARM: {system} tried to open the data file with the gold answers while it observed or recalled ({n} times); "
        "its scores are not valid."
        for system, n in systems_refused(lines).items()
    ]


def notes(systems: Sequence[str]) -> list[str]:
    """Name the systems to which the data file is not closed, because they run in another process.

    Args:
        systems: The values of --systems.

    Returns:
        A sentence, or none.
    """
    outside = [spec for spec in systems if "cmd:" in spec or "http:" in spec or "https:" in spec]
    if not outside:
        return []
    return [f"The data file is not closed to {', '.join(outside)} (not enforced): they run in another process."]

"""The chain of digests through the files of a run: each line carries the digest of all lines before it.

A chain has no secret, so someone who edits a file can also compute its digests again. The user's log of test-set usage
therefore keeps the heads of the chains as anchors (`memometer.run.test_set_usage`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FIELD = "previous"
"""The field of a line that has the digest of the lines before it."""

NAMES = (
    "records", "verdicts", "ingest", "measuring", "calibrations", "probes", "labels", "items", "searches",
)  # fmt: skip
FILES = tuple(f"{name}.jsonl" for name in NAMES)
"""The files of a run that have a chain."""


@dataclass(frozen=True, slots=True)
class Head:
    """The end of a chain.

    Attributes:
        lines: Number of lines.
        digest: Digest of the manifest and all lines, 32 hexadecimal digits.
    """

    lines: int
    digest: str

    def after(self, line: bytes) -> Head:
        """Return the head after one more line, given without its newline."""
        return Head(self.lines + 1, hashlib.sha256(self.digest.encode() + line).hexdigest()[:32])


def beginning(manifest: Mapping[str, Any]) -> Head:
    """Return the head of an empty file. It depends on the run, so lines of another run do not fit."""
    fixed = [manifest.get("run_id"), manifest.get("created_at"), manifest.get("identity"), manifest.get("questions")]
    return Head(0, hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:32])


@dataclass(frozen=True, slots=True)
class Chain:
    """The chain of one file.

    Attributes:
        file: Name of the file.
        heads: The head before the first line and after each line.
        broken_at: Number of the first line that does not follow from the lines before it, from 1; None if there is
            none.
        unchained: Number of lines without a digest, which earlier versions wrote.
    """

    file: str
    heads: tuple[Head, ...]
    broken_at: int | None
    unchained: int

    @property
    def head(self) -> Head:
        """The end of the chain."""
        return self.heads[-1]


def read(path: Path, manifest: Mapping[str, Any]) -> Chain:
    """Check the chain of one file.

    Args:
        path: The file; it may be absent. An incomplete last line is ignored.
        manifest: The manifest of its run.

    Returns:
        The chain.
    """
    content = path.read_bytes() if path.exists() else b""
    heads, broken, unchained = [beginning(manifest)], None, 0
    for number, line in enumerate(filter(None, content[: content.rfind(b"\n") + 1].split(b"\n")), start=1):
        previous = _previous(line)
        unchained += previous is None
        # A line without a digest is of an earlier version only if no line before it has one.
        expected = {heads[-1].digest, None} if unchained == number else {heads[-1].digest}
        # An interrupted write leaves a line that is not JSON; the lines after it attest it.
        if previous != "" and previous not in expected and broken is None:
            broken = number
        heads.append(heads[-1].after(line))
    return Chain(path.name, tuple(heads), broken, unchained)


def _previous(line: bytes) -> str | None:
    try:
        value = json.loads(line)
        return str(value[FIELD]) if FIELD in value else None
    except (ValueError, TypeError, RecursionError):
        return ""


def read_all(folder: Path, manifest: Mapping[str, Any]) -> list[Chain]:
    """Check the chains of a run folder.

    Args:
        folder: The run folder.
        manifest: Its manifest.

    Returns:
        One chain for each file that exists.
    """
    return [read(folder / name, manifest) for name in FILES if (folder / name).exists()]


def heads(chains: Iterable[Chain]) -> dict[str, dict[str, Any]]:
    """Return file -> number of lines and digest, as results.json and the log of test-set usage keep them."""
    return {chain.file: {"lines": chain.head.lines, "digest": chain.head.digest} for chain in chains}


def problems(chains: Iterable[Chain], anchors: Iterable[Mapping[str, Mapping[str, Any]]] = ()) -> list[str]:
    """List the places where the files of a run were changed after they were written.

    Args:
        chains: The chains of the run.
        anchors: Heads that were saved while the run was written, as `heads` gives them.

    Returns:
        One sentence per problem.
    """
    found = []
    known = {chain.file: chain for chain in chains}
    for chain in known.values():
        if chain.broken_at:
            found.append(
                f"{chain.file} was changed by hand: line {chain.broken_at} does not follow from the lines before it."
            )
    for anchor in anchors:
        for name, saved in anchor.items():
            lines, heads = int(saved["lines"]), known[name].heads if name in known else ()
            if lines >= max(1, len(heads)):
                have = max(0, len(heads) - 1)
                found.append(f"{name} has {have} lines, but {lines} had been written: lines were deleted.")
            elif heads and heads[lines].digest != saved["digest"]:
                found.append(f"The first {lines} lines of {name} are not those that had been written.")
    return list(dict.fromkeys(found))

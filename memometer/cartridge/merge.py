"""Merging of cartridges of the same system into one."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from memometer.cartridge import memory_spec, records
from memometer.cartridge.container import CartridgeError
from memometer.cartridge.load import Cartridge, load_cartridge, open_records, refusing
from memometer.cartridge.save import save_cartridge
from memometer.memory import Turn
from memometer.models.encoders import Encoder
from memometer.store.migrate import copy
from memometer.systems.episodic import Episodic

MUST_AGREE = ("holds", "system", "parameters", "weights", "embedding", "tokenizer")
"""Fields of the manifest that must be equal."""


def merge(
    paths: Sequence[Path], out: Path, *, encoder: Encoder | None = None, sign_with: Path | None = None
) -> Cartridge:
    """Merge cartridges: episodes with their uses and sources, or turns, which are observed again in time order.

    Args:
        paths: cartridges to merge. Parameters, prompts, persona and goal must be equal.
        out: file to write.
        encoder: encoder of the vectors; None for the one that the files name.
        sign_with: PEM file of an Ed25519 key.

    Returns:
        The merged cartridge.

    Raises:
        CartridgeError: the cartridges differ in system or models, a language model wrote them, or an id has two
            meanings.
    """
    first, *others = [load_cartridge(path, encoder=encoder) for path in paths]
    for path, cartridge in zip(paths[1:], others, strict=True):
        with refusing(path):
            _check_mergeable(first, cartridge)
    if isinstance(first.memory, Episodic):
        state, store = first.state, first.memory.store(first.state)
        for path, cartridge in zip(paths[1:], others, strict=True):
            with refusing(path):
                if kind := cartridge.state.store.vector_format():
                    store.set_vector_format(kind)
                copy(cartridge.state.store.scan(cartridge.state.scope), store, state.scope)
    else:
        state = first.memory.new()
        for session in _sessions(paths):
            first.memory.observe(state, session)
    save_cartridge(
        out,
        first.memory,
        state,
        reader=first.reader,
        persona=first.persona,
        goal=first.goal,
        parents=[cartridge.digest for cartridge in (first, *others)],
        sign_with=sign_with,
    )
    return load_cartridge(out, encoder=encoder)


def _check_mergeable(one: Cartridge, other: Cartridge) -> None:
    for name in MUST_AGREE:
        expected, found = one.manifest[name], other.manifest[name]
        if found != expected:
            raise CartridgeError(f"its {name} is {json.dumps(found)} instead of {json.dumps(expected)}")
    if one.memory.needs_model:
        raise CartridgeError("a language model wrote its state, so it cannot be merged; observe the turns again")
    if one.manifest["adapter"] or other.manifest["adapter"]:
        raise CartridgeError("adapters cannot be merged; save the cartridges without them")
    parameters, other_parameters = (memory_spec.parameters_of(each.memory, each.reader) for each in (one, other))
    for name, expected, found in (
        *((f"parameter {name}", parameters[name], other_parameters[name]) for name in one.manifest["weights"]),
        (
            "program",
            memory_spec.changed_prompts(one.memory, one.reader),
            memory_spec.changed_prompts(other.memory, other.reader),
        ),
        ("persona", one.persona, other.persona),
        ("goal", one.goal, other.goal),
    ):
        if not _equal(expected, found):
            raise CartridgeError(f"its {name} differs from that of the first cartridge")


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return isinstance(other, np.ndarray) and np.array_equal(one, other)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    if dataclasses.is_dataclass(one) and type(one) is type(other):
        return all(_equal(getattr(one, field.name), getattr(other, field.name)) for field in dataclasses.fields(one))
    return bool(one == other)


def _sessions(paths: Sequence[Path]) -> Iterator[list[Turn]]:
    """Yield the distinct turns of all files, session by session in time order."""
    turns: dict[str, Turn] = {}
    times: dict[int, datetime] = {}
    for path in paths:
        starts: dict[int, datetime] = {}
        with refusing(path):
            for turn, _ in map(records.turn_from_row, open_records(path)):
                if turns.setdefault(turn.id, turn) != turn:
                    raise CartridgeError(f"its turn {turn.id} differs from the turn with that id in another cartridge")
                start = starts.setdefault(turn.session, turn.said_at.replace(tzinfo=turn.said_at.tzinfo or UTC))
                if abs(times.setdefault(turn.session, start) - start) >= timedelta(days=1):
                    raise CartridgeError(f"its session {turn.session} has another time than in another cartridge")
    for session in sorted(times, key=lambda session: (times[session], session)):
        yield [turn for turn in turns.values() if turn.session == session]

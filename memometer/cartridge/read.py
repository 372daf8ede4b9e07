"""A cartridge that is read: first all of it is compared with its manifest, then it is taken apart, piece by piece."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import groupby
from operator import index
from pathlib import Path
from typing import Any

import numpy as np
from dspy.utils.exceptions import LMProviderError

from memometer.cartridge import columnar, container, memory_spec, records, signature, tensors
from memometer.cartridge import serialization as rows
from memometer.cartridge.container import CartridgeError, Container
from memometer.memory import Memory, State, Turn
from memometer.models.encoders import Encoder, EncoderUnavailable
from memometer.reader.reader import Reader
from memometer.store.episode import Episode, StoreError, VectorFormat
from memometer.store.migrate import batches, copy
from memometer.systems import current_name
from memometer.systems.episodic import Episodic, EpisodicState
from memometer.token_counters import TokenCounter

TOLD = (CartridgeError, StoreError, EncoderUnavailable, LMProviderError)
"""These say themselves what is wrong."""

MALFORMED = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, MemoryError, RecursionError)
"""What a file can cause that was made to be none, its sums all right."""


FIELDS = {
    "version", "holds", "system", "parameters", "weights", "embedding", "tokenizer", "records", "scope", "adapter",
    "provenance", "parents", "files",
}  # fmt: skip
"""Of a manifest."""


@dataclass(frozen=True)
class Cartridge:
    """What a file holds, ready to be asked. `digest` is the same for equal content; `signed_by` is 64 hex digits, or
    empty. `goal` has shape (dimensions,)."""

    memory: Memory[Any]
    reader: Reader
    state: Any
    manifest: Mapping[str, Any]
    digest: str
    signed_by: str = ""
    persona: str = ""
    goal: np.ndarray | None = None


@contextmanager
def refusing(path: Path) -> Iterator[None]:
    """Whatever goes wrong with a file in here is a CartridgeError of one sentence."""
    try:
        yield
    except OSError as error:
        raise CartridgeError(f"{path} cannot be read ({error.strerror or error}); name a cartridge.") from error
    except TOLD as error:
        raise CartridgeError(f"{path} is refused: {str(error).rstrip('.')}.") from error
    except MALFORMED as error:
        raise CartridgeError(f"{path} is refused: it is malformed ({error!r:.80}).") from error


def upgraded(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the manifest with the names of this version."""
    former = {column: name for name, column in memory_spec.COLUMNS.items()}
    if isinstance(names := manifest.get("weights"), list):
        manifest = {**manifest, "weights": [former.get(name, name) for name in names]}
    if isinstance(plain := manifest.get("parameters"), dict):
        manifest = {**manifest, "parameters": {former.get(name, name): value for name, value in plain.items()}}
    if isinstance(system := manifest.get("system"), str):
        manifest = {**manifest, "system": current_name(system)}
    if isinstance(parameters := manifest.get("parameters"), dict) and isinstance(parameters.get("weights"), dict):
        weights = {"neighbours" if name == "beside" else name: value for name, value in parameters["weights"].items()}
        return {**manifest, "parameters": {**parameters, "weights": weights}}
    return manifest


class Verified:
    """A file whose content is what its manifest says, and its manifest of the form that this version writes."""

    def __init__(self, file: Container, *, public_key: Path | None, most_bytes: int) -> None:
        self._file, self._most_bytes = file, most_bytes
        signed = file.read(container.SIGNATURE, most=1000) if container.SIGNATURE in file else None
        self.signed_by = signature.check(file.written, signed, public_key=public_key)
        file.verify()
        self.manifest = upgraded(file.manifest)
        if self.manifest.keys() != FIELDS or self.manifest["holds"] not in ("state", "episodes"):
            raise CartridgeError("its manifest has other fields than a manifest has")

    def rows(self) -> Iterator[Any]:
        about = self.manifest["records"]
        count, size = index(about["count"]), index(about["bytes"])
        stream = self._file.stream(container.RECORDS)
        return records.read(stream, count=count, size=size, most_bytes=self._most_bytes)

    def cartridge(
        self,
        count: TokenCounter | None,
        encoder: Encoder | None,
        *,
        memory_url: str | None,
        scope: str | None,
        reobserve: bool,
    ) -> Cartridge:
        kind = memory_spec.kind_of(self.manifest["system"])
        if reobserve and kind.needs_model:
            raise CartridgeError(
                "it was written by a model, which would write something else; load it without reobserve"
            )
        if self._is_of_episodes != issubclass(kind, Episodic) or (memory_url and not self._is_of_episodes):
            raise CartridgeError("it holds a state, which no store takes" if memory_url else "it holds something else")
        texts, arrays = self._texts(), self._arrays()
        decoder = columnar.Decoder(arrays, texts["texts"])
        parts: dict[str, Any] = {"count": self._counter(count, reobserve)}
        if kind.needs_encoder or self.manifest["embedding"]:
            parts["encoder"] = self._encoder(encoder, reobserve)
        if memory_url:
            parts["memory_url"] = memory_url
        memory, reader = memory_spec.build(kind, self._parameters(kind, decoder), **parts)
        self._check_map(memory, reobserve)
        if container.PROGRAM in self._file:
            memory_spec.with_prompts(memory, reader, json.loads(self._read(container.PROGRAM)))
        goal = arrays.take("goal", "F32").copy() if arrays.next_is("goal") else None
        if isinstance(memory, Episodic):
            state: State = self._episodes(memory, scope, reobserve)
        else:
            state = self._observed(memory) if reobserve else self._state(memory, decoder)
        return Cartridge(
            memory, reader, state, self.manifest, self._file.digest, self.signed_by, texts["persona"], goal
        )

    @property
    def _is_of_episodes(self) -> bool:
        return bool(self.manifest["holds"] == "episodes")

    def _read(self, name: str) -> bytes:
        return self._file.read(name, most=container.MOST_FILE_BYTES)

    def _texts(self) -> dict[str, Any]:
        texts = json.loads(self._read(container.STATE))
        if texts.keys() != {"persona", "texts"} or type(texts["persona"]) is not str:
            raise CartridgeError("its state has other fields than a state has")
        found: dict[str, Any] = texts
        return found

    def _arrays(self) -> tensors.Reader:
        return tensors.Reader(self._file.stream(container.TENSORS), self._file.size(container.TENSORS))

    def _vectors(self, name: str, kind: str) -> tuple[int, Iterator[bytes]]:
        stream = self._file.stream(container.VECTORS)
        return tensors.Reader(stream, self._file.size(container.VECTORS)).rows(name, kind)

    def _counter(self, count: TokenCounter | None, reobserve: bool) -> TokenCounter:
        name = self.manifest["tokenizer"]["name"]
        if count is None:
            tokenizer = self._read(container.TOKENIZER) if container.TOKENIZER in self._file else None
            return memory_spec.counter_named(name, tokenizer)
        if count.name != name and not reobserve and not self._is_of_episodes:
            raise CartridgeError(
                f"its tokens were counted by {name}, and are to be counted by {count.name}; load it with reobserve"
            )
        return count

    def _encoder(self, encoder: Encoder | None, reobserve: bool) -> Encoder | None:
        about = self.manifest["embedding"]
        if about is None or (encoder is not None and (reobserve or encoder.name == about["model"])):
            return encoder
        if encoder is None:
            return memory_spec.Awaited(str(about["model"]), int(about["dimensions"]))
        raise CartridgeError(
            f"its vectors are of {about['model']}, and the encoder given is {encoder.name}; give that one, or load it "
            "with reobserve"
        )

    def _parameters(self, kind: type[Memory[Any]], decoder: columnar.Decoder) -> dict[str, Any]:
        hints = memory_spec.parameter_types(kind)
        plain, others = self.manifest["parameters"], self.manifest["weights"]
        found = {name: memory_spec.from_plain(hints.get(name, float), value, name) for name, value in plain.items()}
        columns = {name: f"parameters.{memory_spec.COLUMNS.get(name, name)}" for name in others}
        return found | {name: decoder.read(hints[name], 1, column)[0] for name, column in columns.items()}

    def _check_map(self, memory: Memory[Any], reobserve: bool) -> None:
        about = self.manifest["embedding"]
        if about and about["map"] != memory_spec.projection_digest(memory) and not reobserve:
            raise CartridgeError("its token vectors were made with another map than is here; load it with reobserve")

    def _state(self, memory: Memory[Any], decoder: columnar.Decoder) -> State:
        shown = [rows.turn(row) for row in self.rows()]
        decoder.given["state.turns"] = [[turn for turn, _ in shown]]
        decoder.given["state.lines"] = [[line for _, line in shown]]
        if memory_spec.has_vectors(type(memory)):
            decoder.given["state.vectors"] = [list(self._vectors("vectors", "F32")[1])]
        (state,) = decoder.read(memory.state_type, 1, "state")
        decoder.finish()
        found: State = state
        per_turn = [found.line_tokens, vars(found)["vectors"] if memory_spec.has_vectors(type(memory)) else found.turns]
        if any(len(column) != len(found.turns) for column in per_turn):
            raise CartridgeError("its state is not one of as many turns")
        return found

    def _observed(self, memory: Memory[Any]) -> State:
        state: State = memory.new()
        turns = [turn for turn, _ in map(rows.turn, self.rows())]
        for _, session in groupby(turns, key=lambda turn: turn.session):
            memory.observe(state, list(session))
        return state

    def _episodes(self, memory: Episodic, scope: str | None, reobserve: bool) -> EpisodicState:
        about = self.manifest["embedding"]
        state = memory.open(str(self.manifest["scope"]) if scope is None else scope)
        kind = about and VectorFormat(about["model"], int(about["dimensions"]), int(str(about["kind"]).split()[0]))
        _, codes = self._vectors("codes", "U8")
        found = rows.episodes(self.rows(), codes)
        if reobserve:
            kind, found = _encoded_again(found, kind, memory.encoder)
        store = memory.store(state)
        if kind:
            width = kind.quantiser.bytes
            store.set_vector_format(kind)
            found = (_of_width(episode, width) for episode in found)
        copy(found, store, state.scope)
        return memory.open(state.scope) if memory.memory_url else _opened(state)


def _of_width(episode: Episode, width: int) -> Episode:
    if episode.codes and len(episode.codes) != width:
        raise CartridgeError("its vectors are of another width than its manifest says")
    return episode


def _opened(state: EpisodicState) -> EpisodicState:
    size = state.store.size(state.scope)
    state.number = size.episodes + size.archived
    return state


def _encoded_again(
    found: Iterator[Episode], kind: VectorFormat | None, encoder: Encoder | None
) -> tuple[VectorFormat | None, Iterator[Episode]]:
    """The episodes with vectors of another encoder."""
    if kind is None or encoder is None:
        return kind, found
    other = VectorFormat(encoder.name, encoder.dimensions, kind.bits)

    def made() -> Iterator[Episode]:
        for batch in batches(found):
            held = [episode for episode in batch if episode.codes]
            said = [
                Turn("", "", "", 0, datetime.fromtimestamp(episode.at, UTC)).header + episode.text + "\n"
                for episode in held
            ]
            codes = iter(other.quantiser.encode(encoder(said)) if held else ())
            yield from (replace(e, codes=next(codes).tobytes()) if e.codes else e for e in batch)

    return other, made()

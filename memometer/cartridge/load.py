"""Reading of cartridges: the whole file is verified first, then memory and state are built."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import groupby
from operator import index
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import safe_open

from memometer.cartridge import container, memory_spec, records, signature
from memometer.cartridge.columnar import Decoder, column_error
from memometer.cartridge.container import CartridgeError, Container
from memometer.errors import UserError
from memometer.memory import Memory, State, Turn
from memometer.models.encoders import Encoder
from memometer.retrieval import late_interaction
from memometer.retrieval.turn_index import TurnIndex
from memometer.store.episode import Episode, VectorFormat
from memometer.store.migrate import batches, copy
from memometer.systems import current_name
from memometer.systems.episodic import Episodic, EpisodicState
from memometer.token_counters import TokenCounter

if TYPE_CHECKING:
    from memometer.reader.reader import Reader

MANIFEST_FIELDS = {
    "version", "holds", "system", "parameters", "weights", "embedding", "tokenizer", "records", "scope", "adapter",
    "provenance", "parents", "files",
}  # fmt: skip

OTHER_WEIGHTS = (
    "its ranking weights are of an earlier version and for other features, so the default ones replace them and "
    "recalls may differ"
)

RENAMED = {"beside": "neighbours", "token_map": "projection"}
"""Parameters with another name in version 0.1.0."""

_BLOCK_ROWS = 4096  # vectors read at a time


@dataclass(frozen=True)
class Cartridge:
    """Content of a file.

    Args:
        memory: the memory, with its parameters and prompts.
        reader: the reader with its parameters and prompt; None if the file has none (use a default reader).
        state: the memory's state.
        manifest: the file's manifest.
        digest: SHA-256 of the manifest, equal for equal content.
        signed_by: Ed25519 public key of the signature in hexadecimal; empty if there is none.
        persona: free text.
        goal: vector of shape (dimensions,); None if there is none.
        notices: what differs from the file, one sentence each.
    """

    memory: Memory[Any]
    reader: Reader | None
    state: Any
    manifest: Mapping[str, Any]
    digest: str
    signed_by: str = ""
    persona: str = ""
    goal: np.ndarray | None = None
    notices: tuple[str, ...] = ()


def load_cartridge(
    path: Path,
    *,
    count: TokenCounter | None = None,
    encoder: Encoder | None = None,
    memory_url: str | None = None,
    scope: str | None = None,
    public_key: Path | None = None,
    reobserve: bool = False,
    max_record_bytes: int = records.MAX_BYTES,
) -> Cartridge:
    """Verify a file and load its content. Recalls are the same as before saving.

    Args:
        path: file to read.
        count: token counter; None for the one that the file names.
        encoder: encoder; None for the one that the file names, loaded at first use.
        memory_url: store for the episodes; None keeps them in the state. Other episodes of the scope are kept.
        scope: scope in the store; None for the one that the file names.
        public_key: PEM file of an Ed25519 public key; files without its signature are refused.
        reobserve: observe the turns again, with another encoder or token counter. Not possible for systems that need a
            language model.
        max_record_bytes: limit for the decompressed records.

    Raises:
        CartridgeError: the file is damaged, forged, or does not fit the arguments.
    """
    with refusing(path), Container(path) as file, TemporaryDirectory() as folder:
        verified = _VerifiedFile(file, public_key=public_key, max_record_bytes=max_record_bytes)
        return _Loading(verified, Path(folder), count, encoder, reobserve).cartridge(memory_url, scope)


def open_manifest(path: Path, *, public_key: Path | None = None) -> tuple[dict[str, Any], str, str]:
    """Verify a file and return its manifest, digest and signer. Raises CartridgeError."""
    with refusing(path), Container(path) as file:
        verified = _VerifiedFile(file, public_key=public_key, max_record_bytes=records.MAX_BYTES)
        return verified.manifest, file.digest, verified.signed_by


def open_records(path: Path, *, max_record_bytes: int = records.MAX_BYTES) -> Iterator[records.Row]:
    """Verify a file and yield its turns or episodes as JSON objects. Raises CartridgeError."""
    with refusing(path), Container(path) as file:
        yield from _VerifiedFile(file, public_key=None, max_record_bytes=max_record_bytes).rows()


@contextmanager
def refusing(path: Path) -> Iterator[None]:
    """Convert all errors of reading a file to CartridgeError."""
    try:
        yield
    except UserError as error:
        raise CartridgeError(f"{path} is refused: {str(error).rstrip('.')}.") from error
    except OSError as error:
        raise CartridgeError(f"cannot read {path} ({error.strerror or error}); name a cartridge file.") from error
    except Exception as error:  # forged content with correct digests can raise any type, and so can a remote encoder
        raise CartridgeError(f"{path} is refused: it cannot be loaded ({error!r:.80}).") from error


def _upgraded(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the manifest with the names of this version for systems, parameters and weights."""
    system, parameters, weights = (manifest[name] for name in ("system", "parameters", "weights"))
    parameters = {RENAMED.get(name, name): value for name, value in parameters.items()}
    if isinstance(search := parameters.get("weights"), dict):
        parameters["weights"] = {RENAMED.get(name, name): value for name, value in search.items()}
    names = [RENAMED.get(name, name) for name in weights]
    return {**manifest, "system": current_name(system), "parameters": parameters, "weights": names}


def _by_day(state: State) -> dict[int, int]:
    """Return the tokens of date lines by day. Earlier versions stored them by session, which had one day."""
    stored = state.header_tokens
    return {turn.day: stored[turn.day if turn.day in stored else turn.session] for turn in state.turns}


class _VerifiedFile:
    """A container whose content matches its manifest, with the fields of this version."""

    def __init__(self, file: Container, *, public_key: Path | None, max_record_bytes: int) -> None:
        self.file, self._max_record_bytes = file, max_record_bytes
        signed = file.read(container.SIGNATURE, limit=1000) if container.SIGNATURE in file else None
        self.signed_by = signature.check(file.manifest_bytes, signed, public_key=public_key)
        file.verify()
        if file.manifest.keys() != MANIFEST_FIELDS or file.manifest["holds"] not in ("state", "episodes"):
            raise CartridgeError(f"the fields of its manifest are not {', '.join(sorted(MANIFEST_FIELDS))}")
        self.manifest = _upgraded(file.manifest)

    def rows(self) -> Iterator[Any]:
        about = self.manifest["records"]
        count, size = index(about["count"]), index(about["bytes"])
        stream = self.file.open(container.RECORDS)
        return records.read(stream, count=count, size=size, limit=self._max_record_bytes)

    def turns(self) -> Iterator[tuple[Turn, str]]:
        """Yield each turn with its line."""
        return map(records.turn_from_row, self.rows())

    def json(self, name: str) -> Any:
        return json.loads(self.file.read(name, limit=container.MAX_FILE_BYTES))


class _Loading:
    """Builds memory and state from a verified file; `folder` is for temporary files."""

    def __init__(
        self,
        source: _VerifiedFile,
        folder: Path,
        count: TokenCounter | None,
        encoder: Encoder | None,
        reobserve: bool,
    ) -> None:
        self._source, self._manifest, self._embedding = source, source.manifest, source.manifest["embedding"]
        self._folder = folder
        self._count, self._encoder, self._reobserve = count, encoder, reobserve
        self._holds_episodes = self._manifest["holds"] == "episodes"
        self._notices: list[str] = []

    def cartridge(self, memory_url: str | None, scope: str | None) -> Cartridge:
        kind = memory_spec.kind_of(self._manifest["system"])
        if self._reobserve and kind.needs_model:
            raise CartridgeError("a language model wrote its state, so reobserve is not possible")
        if self._holds_episodes != issubclass(kind, Episodic):
            raise CartridgeError(f"the system {self._manifest['system']} does not hold {self._manifest['holds']}")
        if memory_url and not self._holds_episodes:
            raise CartridgeError("it holds a state instead of episodes and cannot be loaded into a store")
        about = self._source.json(container.STATE)
        if about.keys() != {"persona", "texts"} or type(about["persona"]) is not str:
            raise CartridgeError("the fields of its state are not persona and texts")
        parts: dict[str, Any] = {"count": self._counter()}
        if kind.needs_encoder or self._embedding:
            parts["encoder"] = self._checked_encoder()
        if memory_url:
            parts["memory_url"] = memory_url
        with self._arrays(container.TENSORS) as arrays:
            decoder = Decoder(arrays, about["texts"])
            program = self._source.json(container.PROGRAM) if container.PROGRAM in self._source.file else None
            memory, reader = memory_spec.build(kind, self._parameters(kind, decoder), program=program, **parts)
            if self._embedding and getattr(memory, "projection", 0) is None:
                former = late_interaction.load(late_interaction.SHIPPED)
                if self._embedding["map"] == former.digest:
                    memory.projection = former  # type: ignore[attr-defined]
            if (
                self._embedding
                and self._embedding["map"] != memory_spec.projection_digest(memory)
                and not self._reobserve
            ):
                raise CartridgeError("its token vectors were made with another projection; load it with reobserve")
            goal = decoder.array_or_none("goal")
            if isinstance(memory, Episodic):
                state: State = self._episodes(memory, scope)
            elif self._reobserve:
                state = self._observed(memory)
            else:
                state = self._state(memory, decoder)
        source = self._source
        return Cartridge(
            memory=memory,
            reader=reader,
            state=state,
            manifest=self._manifest,
            digest=source.file.digest,
            signed_by=source.signed_by,
            persona=about["persona"],
            goal=goal,
            notices=tuple(self._notices),
        )

    def _arrays(self, name: str) -> Any:
        """Open a safetensors entry from a copy, because the library reads files only."""
        copied = self._folder / Path(name).name
        self._source.file.copy(name, copied)
        return safe_open(copied, "np")

    def _vectors(self, name: str, dtype: str) -> Iterator[bytes]:
        """Yield the rows of the array of vectors."""
        with self._arrays(container.VECTORS) as arrays:
            if list(arrays.keys()) != [name]:
                raise column_error(name)
            rows = arrays.get_slice(name)
            shape = rows.get_shape()
            if rows.get_dtype() != dtype or len(shape) != 2 or (shape[0] and not shape[1]):
                raise column_error(name)
            for start in range(0, shape[0], _BLOCK_ROWS):
                yield from (row.tobytes() for row in rows[start : min(start + _BLOCK_ROWS, shape[0])])

    def _counter(self) -> TokenCounter:
        name = self._manifest["tokenizer"]["name"]
        if self._count is None:
            file = self._source.file
            has_tokenizer = container.TOKENIZER in file
            tokenizer = file.read(container.TOKENIZER, limit=container.MAX_FILE_BYTES) if has_tokenizer else None
            return memory_spec.counter_named(name, tokenizer)
        if self._count.name != name and not self._reobserve and not self._holds_episodes:
            raise CartridgeError(
                f"its token counter is {name} instead of {self._count.name}; pass that one or load it with reobserve"
            )
        return self._count

    def _checked_encoder(self) -> Encoder | None:
        encoder, about = self._encoder, self._embedding
        if about is None or (encoder is not None and (self._reobserve or encoder.name == about["model"])):
            return encoder
        if encoder is None:
            return memory_spec.LazyEncoder(str(about["model"]), int(about["dimensions"]))
        raise CartridgeError(
            f"its encoder is {about['model']} instead of {encoder.name}; pass that one or load it with reobserve"
        )

    def _parameters(self, kind: type[Memory[Any]], decoder: Decoder) -> dict[str, Any]:
        hints = memory_spec.parameter_types(kind)
        plain, columns = self._manifest["parameters"], self._source.file.manifest["weights"]
        found = {name: memory_spec.from_plain(hints.get(name, float), value, name) for name, value in plain.items()}
        for column in columns:
            name = RENAMED.get(column, column)
            if name == "ranker" and decoder.holds(f"parameters.{column}.hidden"):
                decoder.discard(f"parameters.{column}")
                self._notices.append(OTHER_WEIGHTS)
                continue
            found[name] = decoder.read(hints[name], 1, f"parameters.{column}")[0]
        return found

    def _state(self, memory: Memory[Any], decoder: Decoder) -> State:
        turns, lines = [], []
        for turn, line in self._source.turns():
            turns.append(turn)
            lines.append(line)
        decoder.given = {"state.turns": [turns], "state.lines": [lines]}
        if has_vectors := memory_spec.has_vectors(type(memory)):
            decoder.given["state.vectors"] = [list(self._vectors("vectors", "F32"))]
        if decoder.holds("state.index.") and not decoder.holds("state.index.passage_turn"):
            decoder.discard("state.index.")  # the index of an earlier version; it is built again
            decoder.given["state.index"] = [TurnIndex.of(turns)]
        state: State = decoder.read(memory.state_type, 1, "state")[0]
        decoder.finish()
        lengths = {len(state.turns), len(state.line_tokens)} | ({len(vars(state)["vectors"])} if has_vectors else set())
        if len(lengths) > 1:
            raise CartridgeError("the columns of its state have different lengths")
        state.header_tokens = _by_day(state)
        return state

    def _observed(self, memory: Memory[Any]) -> State:
        state: State = memory.new()
        for _, session in groupby((turn for turn, _ in self._source.turns()), key=lambda turn: turn.session):
            memory.observe(state, list(session))
        return state

    def _episodes(self, memory: Episodic, scope: str | None) -> EpisodicState:
        about = self._embedding
        state = memory.open(str(self._manifest["scope"]) if scope is None else scope)
        kind = about and VectorFormat(about["model"], int(about["dimensions"]), int(str(about["kind"]).split()[0]))
        episodes = records.episodes_from_rows(self._source.rows(), self._vectors("codes", "U8"))
        if kind:
            episodes = _checked(episodes, kind.quantiser.bytes)
            if self._reobserve and memory.encoder:
                kind = VectorFormat(memory.encoder.name, memory.encoder.dimensions, kind.bits)
                episodes = _encoded_again(episodes, kind, memory.encoder)
        store = memory.store(state)
        if kind:
            store.set_vector_format(kind)
        copy(episodes, store, state.scope)
        if memory.memory_url:
            return memory.open(state.scope)
        size = state.store.size(state.scope)
        state.number = size.episodes + size.archived
        return state


def _checked(episodes: Iterator[Episode], width: int) -> Iterator[Episode]:
    """Yield episodes whose vectors have the right number of bytes."""
    for episode in episodes:
        if episode.codes and len(episode.codes) != width:
            raise CartridgeError(f"a vector has {len(episode.codes)} bytes instead of {width}")
        yield episode


def _encoded_again(episodes: Iterator[Episode], kind: VectorFormat, encoder: Encoder) -> Iterator[Episode]:
    """Yield the episodes with vectors of another encoder."""
    for batch in batches(episodes):
        encoded = [episode for episode in batch if episode.codes]
        texts = [
            Turn("", "", "", 0, datetime.fromtimestamp(episode.at, UTC)).header + episode.text + "\n"
            for episode in encoded
        ]
        codes = iter(kind.quantiser.encode(encoder(texts)) if encoded else ())
        yield from (replace(e, codes=next(codes).tobytes()) if e.codes else e for e in batch)

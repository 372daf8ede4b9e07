"""Writing of cartridges."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from memometer.cartridge import container, memory_spec, records, signature
from memometer.cartridge.columnar import Encoder as ColumnEncoder
from memometer.cartridge.container import CartridgeError, NotWritten
from memometer.memory import Memory, State
from memometer.store.protocol import Store
from memometer.systems.episodic import Episodic, EpisodicState
from memometer.token_counters import TokenCounter

if TYPE_CHECKING:
    from memometer.reader.reader import Reader


def save_cartridge(
    path: Path,
    memory: Memory[Any],
    state: State,
    *,
    reader: Reader | None = None,
    adapter: Path | None = None,
    persona: str = "",
    goal: np.ndarray | None = None,
    provenance: Mapping[str, str] | None = None,
    parents: Sequence[str] = (),
    sign_with: Path | None = None,
    archived: bool = True,
) -> None:
    """Write a cartridge completely or not at all. The same arguments give the same bytes.

    Args:
        path: file to write.
        memory: memory of a registered system. Its parameters and prompts are stored.
        state: state of the memory. If its episodes are in a store, they are read from there.
        archived: whether to store the archived episodes of a store.
        reader: reader of the memory. Its parameters and prompt are stored; None for the default reader.
        adapter: folder of a LoRA adapter as PEFT saves it (adapter_config.json, adapter_model.safetensors).
        persona: free text.
        goal: vector of shape (dimensions,).
        provenance: facts about the origin. The present time is not added.
        parents: digests of the cartridges that this one was made from.
        sign_with: PEM file of an Ed25519 key; see memometer/cartridge/signature.py.

    Raises:
        NotWritten: the state cannot be stored or the file cannot be written. An existing file is unchanged.
    """
    try:
        sign = signature.signer(sign_with) if sign_with else None
        with TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            draft = _Draft(Path(folder))
            manifest = {
                "system": memory_spec.system_of(memory),
                "tokenizer": {"name": memory.count.name},
                "adapter": draft.add_adapter(adapter) if adapter else None,
                "provenance": {"made_by": _made_by(), **(provenance or {})},
                "parents": list(parents),
                **draft.add_parameters(memory, reader),
            }
            if goal is not None:
                draft.columns.arrays["goal"] = np.array(goal, np.float32).reshape(-1)
            if isinstance(memory, Episodic):
                assert isinstance(state, EpisodicState)
                manifest |= draft.add_episodes(memory.store(state), state.scope, archived=archived)
            else:
                manifest |= draft.add_state(memory, state)
            draft.add_prompts(memory, reader)
            draft.add_tokenizer(memory.count)
            draft.add_columns(persona)
            container.write(path, manifest, draft.entries, sign, folder=Path(folder))
    except CartridgeError as error:
        raise NotWritten(f"cannot write {path}: {str(error).rstrip('.')}.") from error
    except OSError as error:
        raise NotWritten(f"cannot write {path} ({error.strerror or error}); name another file.") from error


def _made_by() -> str:
    try:
        return f"memometer {version('memometer')}"
    except PackageNotFoundError:
        return "memometer"


class _Draft:
    """The entries of an unfinished cartridge as files in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.entries: dict[str, Path] = {}
        self.columns = ColumnEncoder()

    def _entry(self, name: str) -> Path:
        self.entries[name] = self._folder / str(len(self.entries))
        return self.entries[name]

    def add_parameters(self, memory: Memory[Any], reader: Reader | None) -> dict[str, Any]:
        """Add arrays as columns, and return the other parameters for the manifest."""
        hints = memory_spec.parameter_types(type(memory))
        parameters = memory_spec.parameters_of(memory, reader)
        weights = [name for name, value in parameters.items() if not memory_spec.is_plain(value)]
        for name in weights:
            self.columns.write(hints[name], [parameters[name]], f"parameters.{name}")
        plain = {name: memory_spec.to_plain(value) for name, value in parameters.items() if name not in weights}
        return {"parameters": plain, "weights": weights}

    def add_state(self, memory: Memory[Any], state: State) -> dict[str, Any]:
        if type(state) is not memory.state_type:
            raise CartridgeError(f"{type(state).__name__} is not a state of {type(memory).__name__}")
        encoder = memory_spec.encoder_of(memory)
        if memory.needs_encoder and state.turns and encoder is None:
            raise CartridgeError("the memory has no encoder; create it with the encoder of its vectors")
        rows = (records.turn_to_row(*pair) for pair in zip(state.turns, state.lines, strict=True))
        written = records.write(rows, self._entry(container.RECORDS))
        self.columns.skipped = {"state.turns", "state.lines"}
        if memory_spec.has_vectors(type(memory)):
            self._add_vectors("vectors", vars(state)["vectors"], np.float32)
            self.columns.skipped.add("state.vectors")
        self.columns.write(memory.state_type, [state], "state")
        embedding = encoder and {
            "model": encoder.name,
            "dimensions": encoder.dimensions,
            "kind": "float32",
            "map": memory_spec.projection_digest(memory),
        }
        return {"holds": "state", "records": written, "embedding": embedding, "scope": ""}

    def add_episodes(self, store: Store, scope: str, *, archived: bool) -> dict[str, Any]:
        codes: list[bytes] = []

        def rows() -> Iterator[records.Row]:
            for episode in (e for e in store.scan(scope) if archived or not e.archived):
                if episode.codes:
                    codes.append(episode.codes)
                yield records.episode_to_row(episode)

        with store.snapshot():
            kind = store.vector_format()
            written = records.write(rows(), self._entry(container.RECORDS))
        self._add_vectors("codes", codes, np.uint8)
        embedding = kind and {
            "model": kind.encoder, "dimensions": kind.dimensions, "kind": f"{kind.bits} bits", "map": ""
        }  # fmt: skip
        return {"holds": "episodes", "records": written, "embedding": embedding, "scope": scope}

    def _add_vectors(self, name: str, vectors: Sequence[bytes], dtype: Any) -> None:
        rows = np.frombuffer(b"".join(vectors), dtype).reshape(len(vectors), -1) if vectors else np.zeros((0, 0), dtype)
        save_file({name: rows}, self._entry(container.VECTORS))

    def add_adapter(self, folder: Path) -> dict[str, Any]:
        for name in (container.ADAPTER_CONFIG, container.ADAPTER):
            try:
                shutil.copyfile(folder / Path(name).name, self._entry(name))
            except OSError as error:
                raise CartridgeError(
                    f"{folder} is not the folder of a PEFT adapter ({error.strerror}: {Path(name).name})"
                ) from error
        try:
            with safe_open(self.entries[container.ADAPTER], "np"):
                pass
            config = json.loads(self.entries[container.ADAPTER_CONFIG].read_bytes())
            return {"base_model": str(config["base_model_name_or_path"])}
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise CartridgeError(f"the adapter in {folder} is invalid ({error!r})") from error

    def add_prompts(self, memory: Memory[Any], reader: Reader | None) -> None:
        """Add the prompts if they differ from the system's defaults."""
        if program := memory_spec.changed_prompts(memory, reader):
            content = container.canonical({**program, "metadata": {"dependency_versions": {}}})
            self._entry(container.PROGRAM).write_bytes(content)

    def add_tokenizer(self, count: TokenCounter) -> None:
        """Add the tokenizer's file if the counter has one. Raises CartridgeError for an unknown counter."""
        path = getattr(count, "path", None)
        if path:
            shutil.copyfile(path, self._entry(container.TOKENIZER))
        memory_spec.counter_named(count.name, Path(path).read_bytes() if path else None)

    def add_columns(self, persona: str) -> None:
        save_file(self.columns.arrays, self._entry(container.TENSORS))
        with self._entry(container.STATE).open("w", encoding="utf-8") as file:  # column by column, to save memory
            file.write(f'{{"persona":{json.dumps(persona)},"texts":{{')
            for number, (name, column) in enumerate(self.columns.texts.items()):
                file.write(f"{',' if number else ''}\n{json.dumps(name)}:{json.dumps(column)}")
            file.write("}}\n")

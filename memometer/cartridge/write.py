"""The entries of a cartridge as they are made: what a memory is, and what it holds, each in its place."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from memometer.cartridge import columnar, container, memory_spec, records, serialization, tensors
from memometer.cartridge.container import CartridgeError, Spool
from memometer.memory import Memory, State
from memometer.reader.reader import Reader
from memometer.store.protocol import Store
from memometer.token_counters import TokenCounter


class Writing:
    """The entries of a file as they are made."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder, self._stack = folder, stack
        self.spools: dict[str, Spool] = {}
        self._arrays = tensors.Writer(self._spool())
        self._columns = columnar.Encoder(self._arrays)

    def parameters(self, memory: Memory[Any], reader: Reader) -> dict[str, Any]:
        """Those that JSON holds; of the others, the names: they become columns."""
        hints = memory_spec.parameter_types(type(memory))
        found = memory_spec.parameters_of(memory, reader)
        others = [name for name, value in found.items() if not memory_spec.is_plain(value)]
        for name in others:
            self._columns.write(hints[name], [found[name]], f"parameters.{memory_spec.COLUMNS.get(name, name)}")
        plain = {name: memory_spec.plain(value) for name, value in found.items() if name not in others}
        return {"parameters": plain, "weights": others}

    def goal(self, goal: np.ndarray | None) -> None:
        if goal is not None:
            self._arrays.add("goal", np.asarray(goal, np.float32).reshape(-1))

    def state(self, memory: Memory[Any], state: State) -> dict[str, Any]:
        if type(state) is not memory.state_type:
            raise CartridgeError(f"{type(state).__name__} is no state of {type(memory).__name__}")
        encoder = memory_spec.encoder_of(memory)
        if memory.needs_encoder and state.turns and encoder is None:
            raise CartridgeError("the memory has no encoder; give it the one that made the vectors")
        lines = zip(state.turns, state.lines, strict=True)
        found = records.write((serialization.of_turn(*each) for each in lines), self._entry(container.RECORDS))
        if memory_spec.has_vectors(type(memory)):
            vectors: list[bytes] = vars(state)["vectors"]
            width = len(vectors[0]) // 4 if vectors else 0
            writer = tensors.Writer(self._spool())
            writer.add_parts("vectors", vectors, np.float32, (len(vectors), width))
            writer.into(self._entry(container.VECTORS))
            self._columns.skipped.add("state.vectors")
        self._columns.skipped |= {"state.turns", "state.lines"}
        self._columns.write(memory.state_type, [state], "state")
        embedding = encoder and {
            "model": encoder.name,
            "dimensions": encoder.dimensions,
            "kind": "float32",
            "map": memory_spec.projection_digest(memory),
        }
        return {"holds": "state", "records": found, "embedding": embedding, "scope": ""}

    def episodes(self, store: Store, scope: str) -> dict[str, Any]:
        writer, codes, count = tensors.Writer(self._spool()), self._spool(), 0

        def listed() -> Iterator[serialization.Row]:
            nonlocal count
            for episode in store.scan(scope):
                codes.write(episode.codes)
                count += bool(episode.codes)
                yield serialization.of_episode(episode)

        with store.snapshot():
            kind = store.vector_format()
            found = records.write(listed(), self._entry(container.RECORDS))
        width = kind.quantiser.bytes if kind else 0
        writer.add_parts("codes", codes.blocks(), np.uint8, (count, width))
        writer.into(self._entry(container.VECTORS))
        embedding = kind and {
            "model": kind.encoder, "dimensions": kind.dimensions, "kind": f"{kind.bits} bits", "map": ""
        }  # fmt: skip
        return {"holds": "episodes", "records": found, "embedding": embedding, "scope": scope}

    def adapter(self, folder: Path) -> dict[str, Any]:
        for name in (container.ADAPTER_CONFIG, container.ADAPTER):
            try:
                with (folder / Path(name).name).open("rb") as file:
                    spool = self._entry(name)
                    while block := file.read(container.BLOCK):
                        spool.write(block)
            except OSError as error:
                raise CartridgeError(
                    f"{folder} holds no adapter as PEFT saves it ({error.strerror}: {name})"
                ) from error
        return {"base_model": self._base_model()}

    def _base_model(self) -> str:
        """Of the adapter. Raises CartridgeError for files that are none."""
        weights = self.spools[container.ADAPTER]
        weights.file.seek(0)
        tensors.read_header(weights.file, weights.size)
        try:
            config = json.loads(b"".join(self.spools[container.ADAPTER_CONFIG].blocks()))
            return str(config["base_model_name_or_path"])
        except (ValueError, KeyError, TypeError) as error:
            raise CartridgeError(f"its adapter_config.json names no base model ({error!r})") from error

    def prompts(self, memory: Memory[Any], reader: Reader) -> None:
        """Only where they are not those that the system has anyway."""
        own = memory_spec.prompts_of(memory, reader)
        if own != memory_spec.prompts_of(
            *memory_spec.build(type(memory), memory_spec.parameters_of(memory, reader), count=memory.count)
        ):
            self._entry(container.PROGRAM).write(container.canonical({**own, "metadata": {"dependency_versions": {}}}))

    def tokenizer(self, count: TokenCounter) -> None:
        if path := getattr(count, "path", None):
            self._entry(container.TOKENIZER).write(Path(path).read_bytes())
        memory_spec.counter_named(count.name, Path(path).read_bytes() if path else None)

    def finish(self, persona: str) -> None:
        self._arrays.into(self._entry(container.TENSORS))
        texts = self._entry(container.STATE)
        texts.write(b'{"persona":' + json.dumps(persona).encode() + b',"texts":{')
        for number, (name, column) in enumerate(self._columns.texts.items()):
            texts.write(f"{',' if number else ''}\n{json.dumps(name)}:{json.dumps(column)}".encode())
        texts.write(b"}}\n")

    def _entry(self, name: str) -> Spool:
        self.spools[name] = self._spool()
        return self.spools[name]

    def _spool(self) -> Spool:
        spool = Spool(self._folder)
        self._stack.callback(spool.close)
        return spool

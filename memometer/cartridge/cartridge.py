"""Knowledge cartridges: what a memory holds of one conversation, or of one scope of a store, as one portable file.

    save_cartridge(Path("nadia.cartridge"), memory, state, sign_with=Path("key.pem"))
    cartridge = load_cartridge(Path("nadia.cartridge"), public_key=Path("public.pem"))
    cartridge.memory.recall(cartridge.state, "Who sold a kayak?", 2048)
    slot = Slot(cartridge)
    slot.swap(Path("oskar.cartridge"))            # requests that hold the old one end with it

    memometer cartridge inspect nadia.cartridge
    memometer cartridge verify nadia.cartridge --public-key public.pem
    memometer cartridge diff nadia.cartridge oskar.cartridge
    memometer cartridge merge nadia.cartridge oskar.cartridge --out both.cartridge

The system and its parameters, the vectors, the optimised prompts and, where there is one, a LoRA adapter go along; the
models do not: who made the vectors and who counted the tokens is written down, and anything else is refused. Nothing in
a file is executed or unpickled. Its sums find damage; only a signature that is asked for tells where it is from.

Exit codes: 0 done, 1 they differ, or the file cannot be written, 2 usage, 3 no cartridge that can be used.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from memometer.cartridge import container, memory_spec, records, serialization, signature
from memometer.cartridge.container import CartridgeError, Container, NotWritten
from memometer.cartridge.read import Cartridge, Verified, refusing
from memometer.cartridge.write import Writing
from memometer.memory import Memory, State
from memometer.models.encoders import Encoder
from memometer.reader.reader import Reader
from memometer.systems.episodic import Episodic, EpisodicState
from memometer.token_counters import TokenCounter


class Slot:
    """The cartridge that is in use, exchanged between two requests: a request reads `cartridge` once, and keeps to it.

    Nothing waits: the new one is loaded and verified beside the old one, and then takes its place in one assignment.
    """

    def __init__(self, cartridge: Cartridge) -> None:
        self.cartridge = cartridge
        self._swapping = threading.Lock()

    def swap(self, path: Path, **how: Any) -> Cartridge:
        """Put a file in the place of the one in use, which is returned; `how` is as `load_cartridge` takes it.

        Tokens are counted as before, and vectors are made by the encoder in use, unless `how` says otherwise.
        Raises CartridgeError, and goes on with the old one.
        """
        with self._swapping:
            old = self.cartridge
            given = {"count": old.memory.count, "encoder": memory_spec.encoder_of(old.memory), **how}
            self.cartridge = load_cartridge(path, **given)
            return old


# ---------------------------------------------------------------- saving


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
) -> None:
    """Write what a memory holds, whole or not at all. A state whose episodes are in a store is written from there.

    Args:
        memory: of a registered system. Its parameters and prompts go along.
        reader: reads the memory; its parameters and prompt go along. None for the default reader.
        adapter: the folder of a LoRA adapter as PEFT saves it (adapter_config.json, adapter_model.safetensors).
        goal: a vector, shape (dimensions,).
        provenance: whatever is to be known of where it is from. Not the time, unless it stands here.
        parents: digests of the cartridges that it was made of.
        sign_with: an Ed25519 key (memometer/cartridge/signature.py).

    Raises NotWritten, which is a CartridgeError, with one sentence.
    """
    reader = reader or Reader()
    try:
        sign = signature.signer(sign_with) if sign_with else None
        with ExitStack() as stack:
            writing = Writing(path.parent, stack)
            manifest = {
                "system": memory_spec.system_of(memory),
                "tokenizer": {"name": memory.count.name},
                "adapter": writing.adapter(adapter) if adapter else None,
                "provenance": {"made_by": _made_by(), **(provenance or {})},
                "parents": list(parents),
                **writing.parameters(memory, reader),
            }
            writing.goal(goal)
            if isinstance(memory, Episodic):
                assert isinstance(state, EpisodicState)
                manifest |= writing.episodes(memory.store(state), state.scope)
            else:
                manifest |= writing.state(memory, state)
            writing.prompts(memory, reader)
            writing.tokenizer(memory.count)
            writing.finish(persona)
            container.write(path, manifest, writing.spools, sign)
    except CartridgeError as error:
        raise NotWritten(f"{path} is not written: {str(error).rstrip('.')}.") from error
    except OSError as error:
        raise NotWritten(f"{path} cannot be written ({error.strerror or error}); name another file.") from error


# ---------------------------------------------------------------- loading


def load_cartridge(
    path: Path,
    *,
    count: TokenCounter | None = None,
    encoder: Encoder | None = None,
    memory_url: str | None = None,
    scope: str | None = None,
    public_key: Path | None = None,
    reobserve: bool = False,
    most_bytes: int = records.MOST_BYTES,
) -> Cartridge:
    """What a file holds, verified: every recall is the one before it was saved, every vector the same bytes.

    Args:
        count: None for the counter that the file names.
        encoder: None for the one that the file names, loaded at first use.
        memory_url: the store that episodes go to; None keeps them in the state. What its scope has beside stays.
        scope: of the store; None for the one that the file names.
        public_key: an Ed25519 key in PEM: only what it signed is loaded.
        reobserve: remember the turns or episodes again, with another encoder or counter. A system that a model writes
            cannot.
        most_bytes: that the records may unpack to.

    Raises CartridgeError with one sentence.
    """
    with refusing(path), Container(path) as file:
        verified = Verified(file, public_key=public_key, most_bytes=most_bytes)
        return verified.cartridge(count, encoder, memory_url=memory_url, scope=scope, reobserve=reobserve)


def open_manifest(path: Path, *, public_key: Path | None = None) -> tuple[dict[str, Any], str, str]:
    """(manifest, digest, signed_by) of a file whose entries are what the manifest says. Raises CartridgeError."""
    with refusing(path), Container(path) as file:
        verified = Verified(file, public_key=public_key, most_bytes=records.MOST_BYTES)
        return verified.manifest, file.digest, verified.signed_by


def open_records(path: Path, *, most_bytes: int = records.MOST_BYTES) -> Iterator[serialization.Row]:
    """The turns or episodes of a file, as they stand there. Raises CartridgeError."""
    with refusing(path), Container(path) as file:
        yield from Verified(file, public_key=None, most_bytes=most_bytes).rows()


def adapter_into(path: Path, folder: Path, *, public_key: Path | None = None) -> Path:
    """Write the LoRA adapter of a file into a folder, as PEFT reads it. Raises CartridgeError where it has none."""
    with refusing(path), Container(path) as file:
        Verified(file, public_key=public_key, most_bytes=records.MOST_BYTES)
        folder.mkdir(parents=True, exist_ok=True)
        for name in (container.ADAPTER_CONFIG, container.ADAPTER):
            stream = file.stream(name)
            with (folder / Path(name).name).open("wb") as written:
                while block := stream.read(container.BLOCK):
                    written.write(block)
    return folder


def _made_by() -> str:
    try:
        return f"adaptive-memory {version('memometer')}"
    except PackageNotFoundError:
        return "memometer"

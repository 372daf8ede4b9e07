"""Export of a memory to a cartridge file, and import from one."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from memometer.cartridge import records
from memometer.cartridge.load import load_cartridge, open_manifest
from memometer.cartridge.save import save_cartridge
from memometer.serve.registry import DEFAULT_SYSTEM, MemoryEntry
from memometer.serve.tenants import TenantMemories
from memometer.store import turn_conversion
from memometer.systems.episodic import Episodic, EpisodicState


def export_cartridge(
    memories: TenantMemories,
    tenant: str,
    name: str,
    path: Path,
    *,
    sign_with: Path | None = None,
    archived: bool = False,
) -> None:
    """Write a memory to a cartridge file.

    Args:
        memories: holds the memory.
        tenant: the owner.
        name: the memory.
        path: the file to write.
        sign_with: Ed25519 private key in PEM; None writes no signature.
        archived: whether to write archived turns.

    Raises:
        NotFound: there is no memory of this name.
        CartridgeError: the file cannot be written.
    """

    def write(entry: MemoryEntry) -> None:
        save = partial(save_cartridge, path, provenance={"name": name}, sign_with=sign_with, archived=archived)
        if entry.system == DEFAULT_SYSTEM:
            memory = Episodic(count=memories.count, encoder=None if memories.by_words else memories.encoder)
            state: Any = EpisodicState(scope=entry.scope)
            state.store = memories.store
            save(memory, state)
        else:
            with memories.states.of(entry.scope, entry.system) as (memory, state):
                save(memory, state)

    memories.registry.apply(tenant, name, write)


def import_cartridge(
    memories: TenantMemories,
    tenant: str,
    name: str,
    path: Path,
    *,
    public_key: Path | None = None,
    reobserve: bool = False,
    max_record_bytes: int = records.MAX_BYTES,
) -> MemoryEntry:
    """Create a memory from the turns of a cartridge file, or replace the existing one.

    The new memory has the system that the cartridge names, with that system's own parameters and prompts. (Use
    `load_cartridge` for the parameters in the file.) The file is verified and stored completely before the memory is
    replaced; until then, requests use the old one.

    Args:
        memories: where to create the memory.
        tenant: the owner.
        name: the name of the memory.
        path: the cartridge file.
        public_key: Ed25519 public key in PEM; files without its signature are refused.
        reobserve: compute the vectors again if they come from another encoder.
        max_record_bytes: upper limit of the unpacked records.

    Raises:
        CartridgeError: the file is refused; the existing memory stays.
    """
    manifest, _, _ = open_manifest(path, public_key=public_key)
    memories.limits.check_system(manifest["system"])
    load = partial(
        load_cartridge,
        path,
        encoder=None if memories.by_words else memories.encoder,
        public_key=public_key,
        reobserve=reobserve,
        max_record_bytes=max_record_bytes,
    )

    def fill(scope: str) -> None:
        if manifest["holds"] == "episodes":
            load(memory_url=memories.memory_url, scope=scope)
        else:
            encoder = None if memories.by_words else memories.encoder
            turn_conversion.store_new(memories.store, scope, load().state.turns, encoder=encoder)

    return memories.registry.replace(tenant, name, system=manifest["system"], fill=fill)

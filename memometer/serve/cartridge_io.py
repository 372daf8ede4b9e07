"""Named memories as cartridges: carried out whole, and put in the place of others between two requests."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from memometer.cartridge import records
from memometer.cartridge.cartridge import load_cartridge, open_manifest, save_cartridge
from memometer.serve.tenants import DEFAULT_SYSTEM, Named, NamedMemories
from memometer.store import turn_conversion
from memometer.systems.episodic import Episodic, EpisodicState


def export_cartridge(
    memories: NamedMemories, tenant: str, name: str, path: Path, *, sign_with: Path | None = None
) -> None:
    """Write a memory to a file, signed with an Ed25519 key. Raises NotThere, or CartridgeError with one sentence."""

    def write(named: Named) -> None:
        if named.system == DEFAULT_SYSTEM:
            memory = Episodic(count=memories.count, encoder=memories.encoder)
            state: Any = EpisodicState(scope=named.scope)
            state.store = memories.store
            save_cartridge(path, memory, state, provenance={"name": name}, sign_with=sign_with)
        else:
            with memories.states.of(named.scope, named.system) as (memory, state):
                save_cartridge(path, memory, state, provenance={"name": name}, sign_with=sign_with)

    memories.on(tenant, name, write)


def import_cartridge(
    memories: NamedMemories,
    tenant: str,
    name: str,
    path: Path,
    *,
    public_key: Path | None = None,
    reobserve: bool = False,
    most_bytes: int = records.MOST_BYTES,
) -> Named:
    """Put the turns that a file holds under a name, in the place of what was there, for the system that it names, with
    that system's own parameters and prompts; others that it holds are for `load_cartridge`.

    All of it is verified and stored before anybody sees it; those who ask meanwhile are answered from the old one.

    Args:
        public_key: an Ed25519 key in PEM: only what it signed is taken.
        reobserve: make the vectors anew, where they are of another encoder.
        most_bytes: that the records may unpack to.

    Raises CartridgeError with one sentence, and leaves everything as it was.
    """
    manifest, _, _ = open_manifest(path, public_key=public_key)
    load = partial(
        load_cartridge,
        path,
        encoder=memories.encoder,
        public_key=public_key,
        reobserve=reobserve,
        most_bytes=most_bytes,
    )

    def fill(scope: str) -> None:
        if manifest["holds"] == "episodes":
            load(memory_url=memories.memory_url, scope=scope)
        else:
            turns = load().state.turns
            turn_conversion.observe(memories.store, scope, turns, encoder=memories.encoder, number=0)

    return memories.exchange(tenant, name, system=manifest["system"], fill=fill)

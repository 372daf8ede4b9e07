"""Named memories as cartridges: carried out whole, and put in the place of others between two requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cartridges import records
from memories import episodes
from memories.cartridge import load_cartridge, open_manifest, save_cartridge
from memories.episodic import Episodic, EpisodicState
from memories.serving.named import DEFAULT_SYSTEM, Named, NamedMemories


def export_cartridge(memories: NamedMemories, tenant: str, name: str, path: Path) -> None:
    """Write a memory to a file. Raises NotThere, or CartridgeError with one sentence."""

    def write(named: Named) -> None:
        if named.system == DEFAULT_SYSTEM:
            memory = Episodic(count=memories.count, encoder=memories.encoder)
            state: Any = EpisodicState(scope=named.scope)
            state.store = memories.store
            save_cartridge(path, memory, state, provenance={"name": name})
        else:
            with memories.states.of(named.scope, named.system) as (memory, state):
                save_cartridge(path, memory, state, provenance={"name": name})

    memories.on(tenant, name, write)


def import_cartridge(
    memories: NamedMemories,
    tenant: str,
    name: str,
    path: Path,
    *,
    reobserve: bool = False,
    most_bytes: int = records.MOST_BYTES,
) -> Named:
    """Put the turns that a file holds under a name, in the place of what was there, for the system that it names, with
    that system's own parameters and prompts; others that it holds are for `load_cartridge`.

    All of it is verified and stored before anybody sees it; those who ask meanwhile are answered from the old one.

    Args:
        reobserve: make the vectors anew, where they are of another encoder.
        most_bytes: that the records may unpack to.

    Raises CartridgeError with one sentence, and leaves everything as it was.
    """
    manifest, _, _ = open_manifest(path)

    def fill(scope: str) -> None:
        if manifest["holds"] == "episodes":
            load_cartridge(
                path,
                encoder=memories.encoder,
                memory_url=memories.memory_url,
                scope=scope,
                reobserve=reobserve,
                most_bytes=most_bytes,
            )
        else:
            turns = load_cartridge(
                path, encoder=memories.encoder, reobserve=reobserve, most_bytes=most_bytes
            ).state.turns
            episodes.observe(memories.store, scope, turns, encoder=memories.encoder, number=0)

    return memories.exchange(tenant, name, system=manifest["system"], fill=fill)

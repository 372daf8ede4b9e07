"""Cartridges: a memory's state, or one scope of a store, as a portable file.

    save_cartridge(Path("nadia.cartridge"), memory, state, sign_with=Path("key.pem"))
    cartridge = load_cartridge(Path("nadia.cartridge"), public_key=Path("public.pem"))
    cartridge.memory.recall(cartridge.state, "Who sold a kayak?", 2048)

A cartridge holds the system's name and parameters, turns or episodes, vectors, prompts and optionally a LoRA adapter.
It names the encoder and the token counter but does not hold them; others are refused. Nothing in a file is executed or
unpickled. Digests detect damage; only a signature proves the origin.
"""

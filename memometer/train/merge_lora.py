"""LoRA adapters as files: one on top of another made into one.

Arbor starts from whole models only. A training that goes on after its server died starts from the base with the adapter
merged into it, so what it learns then is an adapter of that; stacked, both are one adapter of the base again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

WEIGHTS = "adapter_model.safetensors"
SETTINGS = "adapter_config.json"
BYTES = {"BF16": np.uint16, "F16": np.uint16, "F32": np.uint32}
"""Stand-ins of the same size: nothing is calculated, so it does not matter what the bits mean."""

MERGE = """
import sys
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer
adapter, base, target = sys.argv[1:]
model = AutoPeftModelForCausalLM.from_pretrained(adapter, torch_dtype="auto")
model.merge_and_unload().save_pretrained(target)
AutoTokenizer.from_pretrained(base).save_pretrained(target)
"""
"""A program of (adapter, base, target) that writes the base with the adapter merged into it."""


def stack(first: Path, second: Path, target: Path) -> None:
    """Write to the folder `target` one adapter that does what `second` does on top of `first`: the matrices of both,
    side by side.

    Its rank is the sum of theirs, its alpha grows alike, so that alpha / rank stays. Raises ValueError where they are
    not of one kind.
    """
    one, other = (json.loads((path / SETTINGS).read_text()) for path in (first, second))
    if one["lora_alpha"] * other["r"] != other["lora_alpha"] * one["r"]:
        raise ValueError(f"{first} and {second} scale differently; stack adapters of one alpha / rank")
    if any(side.get("use_rslora") or side.get("use_dora") for side in (one, other)):
        raise ValueError(f"{first} or {second} is no plain LoRA; only those can be stacked")
    kinds, ones, others = *_read(first / WEIGHTS), _read(second / WEIGHTS)[1]
    if ones.keys() != others.keys():
        raise ValueError(f"{first} and {second} are adapters of different layers")
    together = {
        # A is (rank, inputs), B (outputs, rank)
        name: np.concatenate([ones[name], others[name]], axis=0 if ".lora_A." in name else 1)
        for name in ones
    }
    target.mkdir(parents=True, exist_ok=True)
    one["r"], one["lora_alpha"] = one["r"] + other["r"], one["lora_alpha"] + other["lora_alpha"]
    (target / SETTINGS).write_text(json.dumps(one, indent=2) + "\n")
    _write(target / WEIGHTS, kinds, together)


def set_base(adapter: Path, base: str) -> None:
    """Say that an adapter is of another model, of the same shape."""
    settings = json.loads((adapter / SETTINGS).read_text())
    (adapter / SETTINGS).write_text(json.dumps({**settings, "base_model_name_or_path": base}, indent=2) + "\n")


def _read(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """(kind of number, matrix) by name. Safetensors: the length of a header, the header in JSON, then the numbers."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header.pop("__metadata__", None)
    matrices = {}
    for name, entry in header.items():
        start, stop = (end + offset for offset in entry["data_offsets"])
        if entry["dtype"] not in BYTES:
            raise ValueError(f"{path} holds {entry['dtype']}, which is none of {', '.join(BYTES)}")
        matrices[name] = np.frombuffer(content[start:stop], BYTES[entry["dtype"]]).reshape(entry["shape"])
    return {name: entry["dtype"] for name, entry in header.items()}, matrices


def _write(path: Path, kinds: dict[str, str], matrices: dict[str, Any]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, matrix in matrices.items():
        header[name] = {
            "dtype": kinds[name],
            "shape": list(matrix.shape),
            "data_offsets": [offset, offset := offset + matrix.nbytes],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for matrix in matrices.values():
            file.write(np.ascontiguousarray(matrix).tobytes())

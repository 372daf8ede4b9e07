"""An adapter worked into the GGUF file that it was trained from, so that llama.cpp, Ollama and evaluate.py load it.

All keys and tensors of the base file are copied. The matrices that the adapter changes are unpacked, changed and packed
again. The end token of the training, and the prompt that it used, are written to the metadata. PyTorch is not needed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from memometer.errors import UserError
from memometer.models import gguf_metadata
from memometer.train.merge_lora import SETTINGS, WEIGHTS, read_matrices

QUANTIZATIONS = ("f32", "f16", "q8_0", "q4_1", "q4_k_m")
"""Number formats of the exported file. f32 unpacks every tensor; the others pack the changed matrices."""
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Name of a matrix in transformers -> in llama.cpp, for Llama and Qwen."""
SAMPLING = "general.sampling."
"""Prefix of sampling defaults in the metadata, which would change greedy replies."""


def write_gguf(
    adapter: Path, base: Path, target: Path, *, quantize: str, notes: Mapping[str, Any], program: str
) -> int:
    """Write a GGUF with the adapter in its weights, atomically.

    Args:
        adapter: Folder of the adapter.
        base: GGUF of the base model.
        target: The file to write.
        quantize: One of QUANTIZATIONS without q4_k_m: format of the changed matrices; f32 and f16 for all tensors.
        notes: The adapter's training.json.
        program: Text of the program file with the trained prompt.

    Returns:
        The number of changed matrices.

    Raises:
        UserError: The adapter does not fit the file.
    """
    from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
    from gguf.quants import dequantize
    from gguf.quants import quantize as pack

    reader = GGUFReader(str(base))
    architecture = reader.fields["general.architecture"].contents()
    changes = _changes(adapter, reader, architecture)
    part = target.with_name(f".{target.name}.part")
    writer = GGUFWriter(str(part), architecture)
    writer.add_string(gguf_metadata.PROGRAM_KEY, program)
    _copy_metadata(reader, writer, notes)
    kind = GGMLQuantizationType[quantize.upper()]
    used = set()
    for tensor in reader.tensors:
        change = changes.get(tensor.name)
        whole = quantize in ("f32", "f16")
        if change is None and not whole:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
            continue
        matrix = dequantize(tensor.data, tensor.tensor_type).reshape(tuple(int(n) for n in reversed(tensor.shape)))
        if change is not None:
            matrix = change(matrix)
            used.add(tensor.name)
        own = kind if matrix.ndim > 1 else GGMLQuantizationType.F32
        writer.add_tensor(tensor.name, pack(matrix.astype(np.float32), own), raw_dtype=own)
    if missing := sorted(set(changes) - used):
        raise UserError(f"{base.name} has no {', '.join(missing[:3])}; the adapter {adapter} is of another model.")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.replace(target)
    return len(used)


def _changes(adapter: Path, reader: Any, architecture: str) -> dict[str, Any]:
    """The change of each tensor, as a function of its matrix."""
    settings = json.loads((adapter / SETTINGS).read_text(encoding="utf-8"))
    weights = read_matrices(adapter / WEIGHTS)
    rank = settings["r"]
    scale = settings["lora_alpha"] / (rank**0.5 if settings.get("use_rslora") else rank)
    if settings.get("use_dora"):
        raise UserError(f"{adapter} uses DoRA, which cannot be added to a GGUF; use --merged.")

    def heads(kind: str) -> int:
        return int(reader.fields[f"{architecture}.attention.{kind}"].contents())

    found: dict[str, Any] = {}
    for name, a in weights.items():
        if ".lora_A." in name:
            layer, module = name.split(".layers.")[1].split(".lora_A.")[0].split(".", 1)
            if module not in NAMES:
                raise UserError(f"{adapter} changes {module}, which cannot be added to a GGUF; use --merged.")
            b = weights[name.replace("lora_A", "lora_B")]
            delta = scale * b.astype(np.float32) @ a.astype(np.float32)
            if architecture == "llama" and NAMES[module] in ("attn_q", "attn_k"):
                delta = _permuted(delta, heads("head_count" if NAMES[module] == "attn_q" else "head_count_kv"))
            found[f"blk.{layer}.{NAMES[module]}.weight"] = lambda matrix, delta=delta: matrix + delta
        elif "trainable_tokens" in name:
            rows = settings["trainable_token_indices"]
            rows = next(iter(rows.values())) if isinstance(rows, dict) else rows
            tensor = "output.weight" if "lm_head" in name else "token_embd.weight"
            found[tensor] = lambda matrix, rows=rows, values=weights[name]: _with_rows(matrix, rows, values)
    return found


def _permuted(matrix: np.ndarray, heads: int) -> np.ndarray:
    """A query or key matrix in the row order of llama.cpp's rotary embedding. Qwen keeps its own order."""
    shape = matrix.shape
    return matrix.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def _with_rows(matrix: np.ndarray, rows: list[int], values: np.ndarray) -> np.ndarray:
    changed = matrix.copy()
    changed[rows] = values
    return changed


def _copy_metadata(reader: Any, writer: Any, notes: Mapping[str, Any]) -> None:
    from gguf import GGUFValueType

    ends = notes.get("decoding", {}).get("stop_token_ids") or []
    replaced = {"tokenizer.ggml.eos_token_id": ends[0], "tokenizer.ggml.eot_token_id": ends[0]} if ends else {}
    for key, field in reader.fields.items():
        if key.startswith(("GGUF.", SAMPLING)) or key in ("general.architecture", gguf_metadata.PROGRAM_KEY, *replaced):
            continue
        kind = field.types[0]
        if kind == GGUFValueType.ARRAY:
            writer.add_key_value(key, field.contents(), kind, sub_type=field.types[-1])
        else:
            writer.add_key_value(key, field.contents(), kind)
    for key, value in replaced.items():
        writer.add_uint32(key, value)

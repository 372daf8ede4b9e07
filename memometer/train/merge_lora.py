"""Operations on LoRA adapters: merge one into its base model, and stack two into one.

Arbor can only start from complete models. A resumed training therefore starts from the base model with the last adapter
merged into it, and its result is an adapter of that merged model. Stacking both adapters gives one adapter of the base.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from memometer.errors import UserError
from memometer.train.chat_format import ChatFormat, declared_ends
from memometer.train.local_model import dense_source, require

WEIGHTS = "adapter_model.safetensors"
SETTINGS = "adapter_config.json"
MERGE = """
import sys
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer
adapter, base, target = sys.argv[1:]
model = AutoPeftModelForCausalLM.from_pretrained(adapter, torch_dtype="auto")
model.merge_and_unload().save_pretrained(target)
AutoTokenizer.from_pretrained(base).save_pretrained(target)
"""
"""Python program for the server's machine: merges an adapter. Arguments: adapter, base, target."""


def merge(adapter: Path, target: Path) -> Path:
    """Write the base model with the adapter merged into its weights to `target`, unquantised, and return `target`."""
    require("torch", "transformers", "peft")
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    notes = json.loads((adapter / "training.json").read_text(encoding="utf-8"))
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    base = AutoModelForCausalLM.from_pretrained(dense_source(notes["model"]), dtype=dtype)
    merged = PeftModel.from_pretrained(base, str(adapter)).merge_and_unload()
    tokenizer = AutoTokenizer.from_pretrained(str(adapter))
    chat = ChatFormat.of(tokenizer, declared_ends(merged))
    merged.generation_config = GenerationConfig(
        eos_token_id=list(chat.stop_ids), pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    merged.save_pretrained(str(target))
    tokenizer.save_pretrained(str(target))
    for name in ("README.md", "training.json"):
        shutil.copy(adapter / name, target / name)
    return target


def stack(first: Path, second: Path, target: Path) -> None:
    """Write one adapter that is equivalent to `second` applied on top of `first`.

    The matrices are concatenated. Rank and alpha are the sums of both adapters', so alpha / rank is unchanged.

    Args:
        first: Folder of an adapter of the base model.
        second: Folder of an adapter of the base model with `first` merged into it.
        target: Folder of the result; may be one of the two.

    Raises:
        ValueError: The adapters have different scales or layers, or are not plain LoRA.
    """
    one, other = (json.loads((path / SETTINGS).read_text()) for path in (first, second))
    if one["lora_alpha"] * other["r"] != other["lora_alpha"] * one["r"]:
        raise ValueError(
            f"{first} and {second} scale differently; only adapters with equal alpha / rank can be stacked"
        )
    if any(side.get("use_rslora") or side.get("use_dora") for side in (one, other)):
        raise ValueError(f"{first} or {second} uses rsLoRA or DoRA; only plain LoRA adapters can be stacked")
    ones, others = read_matrices(first / WEIGHTS), read_matrices(second / WEIGHTS)
    if ones.keys() != others.keys():
        raise ValueError(f"{first} and {second} are adapters of different layers")
    from safetensors.numpy import save_file

    target.mkdir(parents=True, exist_ok=True)
    stacked = {
        # A has shape (rank, inputs), B has shape (outputs, rank).
        name: np.concatenate([matrix, others[name]], axis=0 if ".lora_A." in name else 1)
        for name, matrix in ones.items()
    }
    save_file(stacked, target / WEIGHTS, metadata={"format": "pt"})
    one["r"], one["lora_alpha"] = one["r"] + other["r"], one["lora_alpha"] + other["lora_alpha"]
    (target / SETTINGS).write_text(json.dumps(one, indent=2) + "\n")


def set_base_model(adapter: Path, base: str) -> None:
    """Record another base model, of the same shape, in an adapter's settings."""
    settings = json.loads((adapter / SETTINGS).read_text())
    (adapter / SETTINGS).write_text(json.dumps({**settings, "base_model_name_or_path": base}, indent=2) + "\n")


def read_matrices(path: Path) -> dict[str, np.ndarray]:
    """Return the matrices of a safetensors file by name, bfloat16 as float32, which is exact.

    Raises:
        UserError: The file does not exist, or is not complete.
    """
    from safetensors import SafetensorError, deserialize

    found = {}
    try:
        tensors = deserialize(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({error}); use the adapter of another checkpoint.") from error
    for name, tensor in tensors:
        if tensor["dtype"] == "BF16":
            matrix = (np.frombuffer(tensor["data"], np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            matrix = np.frombuffer(tensor["data"], {"F16": np.float16, "F32": np.float32}[tensor["dtype"]])
        found[name] = matrix.reshape(tensor["shape"])
    return found

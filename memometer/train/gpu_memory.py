"""Estimates of the memory that a training takes, from the shape of the model. No GPU run has checked them yet;
a supervised run on a CPU took 3.53 GB where 3.7 are estimated.

The estimate has the weights, the adapter with its gradients and Adam's two moments, the inputs kept for gradient
checkpointing, one recomputed layer, and the logits with their gradients. The logits are the largest part if those of
the prompt are computed too, as Arbor's trainer does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memometer.train.options import Hyperparameters

GB = 1e9
CUDA_GB = 1.5
"""CUDA context, workspaces of its libraries, and NCCL."""
PYTHON_GB = 1.2
"""This project with PyTorch on a CPU, without a model."""
VOCABULARY_CHUNK, LOGIT_COPIES = 32768, 6
"""Size of TRL's chunks of the vocabulary, and the copies of one chunk's logits that are in memory together."""
SLACK = 1.1
"""Factor for memory that the caching allocator cannot use."""


@dataclass(frozen=True)
class Shape:
    """Dimensions of a Llama or Qwen decoder. `tied` is true if the embeddings are also the output layer."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    tied: bool

    @property
    def linear(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of the seven matrices of a layer."""
        query, key = self.heads * self.head_size, self.kv_heads * self.head_size
        h, i = self.hidden, self.intermediate
        return [(h, query), (h, key), (h, key), (query, h), (h, i), (h, i), (i, h)]

    @property
    def parameters(self) -> int:
        """Number of parameters without biases, which are about 0.01 %."""
        layer = sum(a * b for a, b in self.linear) + 2 * self.hidden
        return self.layers * layer + self.hidden + self.vocabulary * self.hidden * (1 if self.tied else 2)

    def adapter_parameters(self, rank: int) -> int:
        """Number of parameters of a LoRA adapter on all linear layers."""
        return self.layers * rank * sum(a + b for a, b in self.linear)

    @property
    def kv_bytes(self) -> int:
        """Size of one token in the key-value cache, in bf16."""
        return 2 * 2 * self.layers * self.kv_heads * self.head_size


SHAPES = {
    "qwen2.5-0.5b": Shape(24, 896, 4864, 14, 2, 64, 151936, True),
    "qwen2.5-1.5b": Shape(28, 1536, 8960, 12, 2, 128, 151936, True),
    "qwen2.5-3b": Shape(36, 2048, 11008, 16, 2, 128, 151936, True),
    "qwen2.5-7b": Shape(28, 3584, 18944, 28, 4, 128, 152064, False),
    "qwen2.5-14b": Shape(48, 5120, 13824, 40, 8, 128, 152064, False),
    "qwen3-0.6b": Shape(28, 1024, 3072, 16, 8, 128, 151936, True),
    "qwen3-1.7b": Shape(28, 2048, 6144, 16, 8, 128, 151936, True),
    "qwen3-4b": Shape(36, 2560, 9728, 32, 8, 128, 151936, True),
    "qwen3-8b": Shape(36, 4096, 12288, 32, 8, 128, 151936, False),
    "llama-3.2-1b": Shape(16, 2048, 8192, 32, 8, 64, 128256, True),
    "llama-3.2-3b": Shape(28, 3072, 8192, 24, 8, 128, 128256, True),
    "llama-3.1-8b": Shape(32, 4096, 14336, 32, 8, 128, 128256, False),
    "smollm2-135m": Shape(30, 576, 1536, 9, 3, 64, 49152, True),
    "smollm2-360m": Shape(32, 960, 2560, 15, 5, 64, 49152, True),
    "smollm2-1.7b": Shape(24, 2048, 8192, 32, 32, 64, 49152, True),
}
EMBEDDED = {"tiny": "smollm2-135m", "small": "qwen2.5-0.5b", "base": "qwen2.5-1.5b"}


def shape_of(model: str) -> Shape | None:
    """Return the shape of a model, from its config.json if that is on this machine, otherwise by its name.

    Returns:
        The shape; None if it is unknown. Nothing is downloaded.
    """
    if (path := _config(model)) is not None:
        return _shape_in(json.loads(path.read_text()))
    name = model.removeprefix("embedded:").lower()
    name = EMBEDDED.get(name, name.rsplit("/", 1)[-1])
    plain = re.sub(r"[-_](instruct|base|chat|coder|math|it)\b", "", name).replace("meta-", "").replace("coder-", "")
    return next((shape for known, shape in SHAPES.items() if plain == known or plain.startswith(f"{known}-")), None)


def _config(model: str) -> Path | None:
    if (Path(model) / "config.json").is_file():
        return Path(model) / "config.json"
    if "/" not in model or model.startswith((".", "/")):
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.utils import HFValidationError

    try:
        found = try_to_load_from_cache(model, "config.json")
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


def _shape_in(config: Mapping[str, Any]) -> Shape | None:
    try:
        heads = config["num_attention_heads"]
        return Shape(
            config["num_hidden_layers"],
            config["hidden_size"],
            config["intermediate_size"],
            heads,
            config.get("num_key_value_heads") or heads,
            config.get("head_dim") or config["hidden_size"] // heads,
            config["vocab_size"],
            bool(config.get("tie_word_embeddings", True)),
        )
    except (KeyError, TypeError):
        return None


@dataclass(frozen=True)
class MemoryEstimate:
    """Gigabytes on one device by purpose, and the option that reduces the largest part."""

    parts: Mapping[str, float]
    advice: str

    @property
    def gb(self) -> float:
        """The sum of all parts in gigabytes."""
        return sum(self.parts.values())

    def __str__(self) -> str:
        return f"{self.gb:.1f} GB ({', '.join(f'{name} {gb:.1f}' for name, gb in self.parts.items())})"


def training_memory(
    shape: Shape,
    values: Hyperparameters,
    *,
    backend: str,
    gpus: int = 1,
    quantize: bool = False,
    on_gpu: bool = True,
    prompt_tokens: int | None = None,
    supervised: bool = False,
) -> MemoryEstimate:
    """Estimate the memory of one training device. With TRL, vLLM's share is additional.

    Args:
        shape: The model.
        values: The hyperparameters.
        backend: arbor shards the weights over its training GPUs (ZeRO-3); trl uses one device.
        gpus: Number of training GPUs.
        quantize: True for 4-bit weights.
        on_gpu: False for training on the CPU, in 32 bits.
        prompt_tokens: Tokens of the longest prompt; None for --max-prompt-tokens.
        supervised: True for sft and distill, which compute the logits of one sequence chunk at a time.
    """
    arbor = backend == "arbor"
    prompt, reply = prompt_tokens or values.max_prompt_tokens, values.max_completion_tokens
    sequences = values.batch_size
    if arbor:
        sequences = max(1, values.num_generations // (gpus * values.gradient_accumulation))
    tokens = sequences * (prompt + reply)
    number_bytes = 2 if on_gpu and values.precision == "bf16" else 4
    # Arbor loads 32-bit weights; only DeepSpeed converts them to 16 bits.
    weight_bytes = 0.6 if quantize else 4 if arbor and gpus == 1 else number_bytes
    weights = shape.parameters * weight_bytes / gpus
    if arbor and gpus > 1:  # ZeRO-3 gathers a complete layer and prefetches the next one
        layer = sum(a * b for a, b in shape.linear)
        weights += 2 * 2 * max(layer, shape.vocabulary * shape.hidden)
    layer_activations = tokens * number_bytes * (10 * shape.hidden + 4 * shape.intermediate)
    activations = tokens * number_bytes * shape.hidden * shape.layers + layer_activations  # gradient checkpointing
    if arbor:
        logits = 4 * sequences * (prompt + reply) * shape.vocabulary
    else:  # TRL multiplies by the output layer in chunks of the vocabulary, in GRPO for the replies only
        logits = LOGIT_COPIES * sequences * (prompt + reply if supervised else reply + 1)
        logits *= min(shape.vocabulary, VOCABULARY_CHUNK)
    parts = {
        "weights": weights,
        "adapter": 16 * shape.adapter_parameters(values.lora_rank) / gpus,
        "activations": activations,
        "logits": number_bytes * logits,
    }
    advice = {
        "weights": "use a smaller --model" if quantize or arbor else "use --quantize 4bit, or a smaller --model",
        "adapter": "lower --lora-rank",
    }
    largest = max(parts, key=lambda name: parts[name])
    return MemoryEstimate(
        {name: size * SLACK / GB for name, size in parts.items()}
        | ({"CUDA": CUDA_GB} if on_gpu else {"Python": PYTHON_GB}),
        advice.get(largest) or _fewer_sequences(values, arbor),
    )


def serving_memory(shape: Shape, values: Hyperparameters) -> MemoryEstimate:
    """Estimate the least memory of a GPU that serves with vLLM: the weights, and the cache of one sequence."""
    window = values.max_prompt_tokens + values.max_completion_tokens
    parts = {
        "weights": 2 * shape.parameters / GB,
        "cache": window * shape.kv_bytes / GB,
        "CUDA": CUDA_GB + 2 * shape.vocabulary * 4 * 256 / GB,  # with the sampler's logits of 256 sequences
    }
    return MemoryEstimate(parts, "use a smaller --model")


def _fewer_sequences(values: Hyperparameters, arbor: bool) -> str:
    if arbor:
        return (
            f"double --gradient-accumulation to {2 * values.gradient_accumulation} (halves the sequences per GPU), or "
            "lower --max-prompt-tokens with smaller --budgets"
        )
    half = max(1, values.batch_size // 2)
    more = values.batch_size * values.gradient_accumulation // half
    return f"use --batch-size {half} --gradient-accumulation {more}, which trains the same, or smaller --budgets"

"""How much memory a training takes, from the shape of the model. An estimate: no run on a GPU has checked it.

Counted are weights, adapter with its gradients and Adam's two moments, the inputs kept for recomputation (gradient
checkpointing), one layer recomputed, and the logits with their gradients, which are the largest part where a prompt's
are computed too, as Arbor's trainer does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memometer.train.hyperparameters import Values

GB = 1e9
CUDA_GB = 1.5
"""A CUDA context, its libraries' workspaces, and NCCL's."""
SLACK = 1.1
"""What a caching allocator cannot use."""


@dataclass(frozen=True)
class Shape:
    """A decoder as Llama's or Qwen's."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head: int
    vocabulary: int
    tied: bool
    """Whether the embeddings are the output layer too."""

    @property
    def linear(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of a layer's seven matrices."""
        query, key = self.heads * self.head, self.kv_heads * self.head
        h, i = self.hidden, self.intermediate
        return [(h, query), (h, key), (h, key), (query, h), (h, i), (h, i), (i, h)]

    @property
    def parameters(self) -> int:
        """Without biases, which are a ten-thousandth."""
        layer = sum(a * b for a, b in self.linear) + 2 * self.hidden
        return self.layers * layer + self.hidden + self.vocabulary * self.hidden * (1 if self.tied else 2)

    def adapter(self, rank: int) -> int:
        """Parameters of a LoRA adapter on all linear layers."""
        return self.layers * rank * sum(a + b for a, b in self.linear)

    @property
    def kv_bytes(self) -> int:
        """Of the key-value cache in bf16, for one token."""
        return 2 * 2 * self.layers * self.kv_heads * self.head


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
    """The shape of a model: out of its config.json where that is on this machine, else of those known by name. None
    where neither is; nothing is downloaded."""
    if (path := _config(model)) is not None:
        return _read(json.loads(path.read_text()))
    name = model.removeprefix("embedded:").lower()
    name = EMBEDDED.get(name, name.rsplit("/", 1)[-1])
    plain = re.sub(r"[-_](instruct|base|chat|coder|math|it)\b", "", name).replace("meta-", "")
    plain = plain.replace("coder-", "")
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


def _read(config: Mapping[str, Any]) -> Shape | None:
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
class Need:
    """Gigabytes on one device, by what they are for; `knob` is what makes the largest part smaller."""

    parts: Mapping[str, float]
    knob: str

    @property
    def gb(self) -> float:
        return sum(self.parts.values())

    def __str__(self) -> str:
        return f"{self.gb:.1f} GB ({', '.join(f'{name} {gb:.1f}' for name, gb in self.parts.items())})"


def training(
    shape: Shape, values: Values, *, backend: str, gpus: int = 1, quantize: bool = False, on_gpu: bool = True
) -> Need:
    """Of one training device: with Arbor one of several that share the weights (ZeRO-3), else the only one.

    With --backend trl vLLM's share comes on top.
    """
    arbor = backend == "arbor"
    prompt, reply = values["max_prompt_tokens"], values["max_completion_tokens"]
    if arbor:
        at_once = max(1, values["num_generations"] // (gpus * values["gradient_accumulation"]))
    else:
        at_once = values["batch_size"]
    tokens = at_once * (prompt + reply)
    half = on_gpu and values["precision"] == "bf16"
    number = 2 if half else 4
    # Arbor loads 32 bits; only DeepSpeed makes 16 of them.
    weight = 0.6 if quantize else 4 if arbor and gpus == 1 else number
    weights = shape.parameters * weight / gpus
    if arbor and gpus > 1:
        layer = sum(a * b for a, b in shape.linear)
        weights += 2 * 2 * max(layer, shape.vocabulary * shape.hidden)  # gathered whole, with the next one
    checkpointing = on_gpu  # the back end recomputes there, and keeps everything on a CPU
    layer_tokens = tokens * number * (10 * shape.hidden + 4 * shape.intermediate)
    kept = tokens * number * shape.hidden * shape.layers if checkpointing else layer_tokens * (shape.layers - 1)
    predicted = at_once * (prompt + reply if arbor else reply + 1)
    parts = {
        "weights": weights,
        "adapter": 16 * shape.adapter(values["lora_rank"]) / gpus,
        "activations": kept + layer_tokens,
        "logits": 4 * number * predicted * shape.vocabulary,
    }
    largest = max(parts, key=lambda name: parts[name])
    knobs = {
        "weights": "use a smaller --model" if quantize or arbor else "use --quantize 4bit, or a smaller --model",
        "adapter": "lower --lora-rank",
        "activations": _fewer(values, arbor),
        "logits": _fewer(values, arbor),
    }
    return Need(
        {name: size * SLACK / GB for name, size in parts.items()} | {"CUDA" if on_gpu else "Python": CUDA_GB},
        knobs[largest],
    )


def serving(shape: Shape, values: Values) -> Need:
    """Of a GPU that serves with vLLM: the weights, and the cache for one reply. More cache means more at once."""
    window = values["max_prompt_tokens"] + values["max_completion_tokens"]
    parts = {
        "weights": 2 * shape.parameters / GB,
        "cache": window * shape.kv_bytes / GB,
        "CUDA": CUDA_GB + 2 * shape.vocabulary * 4 * 256 / GB,  # and the sampler's logits of 256 sequences
    }
    return Need(parts, "use a smaller --model")


def _fewer(values: Values, arbor: bool) -> str:
    if arbor:
        return (
            f"double --gradient-accumulation to {2 * values['gradient_accumulation']} (half as many at once), or lower "
            "--max-prompt-tokens with smaller --budgets"
        )
    half = max(1, values["batch_size"] // 2)
    more = values["batch_size"] * values["gradient_accumulation"] // half
    return f"use --batch-size {half} --gradient-accumulation {more}, which trains the same, or smaller --budgets"

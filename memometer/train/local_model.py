"""A model in this process, with PyTorch: loaded, given or denied its adapter, and asked.

Names are those of the Hugging Face hub, a folder, a GGUF file, or `embedded:tiny|small|base`. A GGUF is unpacked into
dense weights once, in a folder that is kept: quantised weights cannot be trained or saved.
"""

from __future__ import annotations

import importlib.util
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memometer.harness.plan import Refused
from memometer.models import embedded
from memometer.models.downloads import WeightsUnavailable, models_folder, sha256
from memometer.run.progress import eprint

NEEDED = ("torch", "transformers", "peft", "accelerate", "datasets", "trl")
INSTALL = "pip install torch && pip install -c constraints.txt '.[train]'"


def require(*packages: str) -> None:
    """Raises Refused, with the next command, where one is not installed."""
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise Refused(f"training in this process needs {', '.join(missing)}, not installed here; {INSTALL}")


@dataclass
class LocalModel:
    """A causal language model and its tokenizer. `name` is what the user called it."""

    name: str
    model: Any
    tokenizer: Any

    @property
    def context_tokens(self) -> int | None:
        """The window, where the model has one."""
        return getattr(self.model.config, "max_position_embeddings", None)

    def prompt_ids(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """A prompt's tokens: by the chat template where the model has one, else as plain text to continue."""
        return prompt_ids(self.tokenizer, messages)

    def adapter(self, path: Path, *, trainable: bool = False) -> LocalModel:
        """The same with an adapter that peft saved. Raises Refused."""
        from peft import PeftModel

        if not (path / "adapter_config.json").is_file():
            raise Refused(f"{path} holds no adapter (no adapter_config.json); give the folder of one.")
        try:
            model = PeftModel.from_pretrained(self.model, str(path), is_trainable=trainable)
        except (ValueError, RuntimeError, OSError) as error:
            raise Refused(f"{path} does not fit {self.name}: {_first_line(error)}") from error
        return LocalModel(self.name, model, self.tokenizer)

    def without_adapter(self) -> AbstractContextManager[Any]:
        """In here it is its own base."""
        disable = getattr(self.model, "disable_adapter", None)
        context: AbstractContextManager[Any] = disable() if disable else nullcontext()
        return context

    def generate(self, prompts: Sequence[Sequence[int]], *, max_tokens: int, batch_size: int = 1) -> list[str]:
        """Greedy replies, special tokens left out; in batches of like length, in the order of the prompts."""
        import torch

        model, tokenizer = self.model, self.tokenizer
        order = sorted(range(len(prompts)), key=lambda n: len(prompts[n]))
        replies = [""] * len(prompts)
        was_training = model.training
        model.eval()
        for at in range(0, len(order), batch_size):
            chosen = order[at : at + batch_size]
            longest = max(len(prompts[n]) for n in chosen)
            pad = tokenizer.pad_token_id
            ids = torch.tensor([[pad] * (longest - len(prompts[n])) + list(prompts[n]) for n in chosen])
            mask = torch.tensor([[0] * (longest - len(prompts[n])) + [1] * len(prompts[n]) for n in chosen])
            with torch.inference_mode():
                written = model.generate(
                    input_ids=ids.to(model.device),
                    attention_mask=mask.to(model.device),
                    max_new_tokens=max_tokens,
                    do_sample=False,
                    temperature=None,
                    top_p=None,
                    top_k=None,
                    use_cache=True,
                    pad_token_id=pad,
                )
            for n, row in zip(chosen, written, strict=True):
                replies[n] = tokenizer.decode(row[longest:], skip_special_tokens=True)
        model.train(was_training)
        return replies

    def log_probabilities(self, prompt: Sequence[int], reply: str) -> Any:
        """Of every token of the vocabulary at every token of a reply, shape (tokens, vocabulary), natural logarithm;
        and the reply's tokens."""
        import torch

        ids = self.tokenizer(reply, add_special_tokens=False)["input_ids"] or [self.tokenizer.eos_token_id]
        whole = torch.tensor([[*prompt, *ids]], device=self.model.device)
        was_training = self.model.training
        self.model.eval()
        with torch.inference_mode():
            logits = self.model(input_ids=whole).logits[0, len(prompt) - 1 : -1].float()
        self.model.train(was_training)
        return torch.log_softmax(logits, dim=-1), torch.tensor(ids, device=logits.device)

    def divergence(self, prompt: Sequence[int], reply: str) -> tuple[float, float, float]:
        """(KL from the base, over the vocabulary, mean over a reply's tokens; mean log-probability of these with the
        adapter; the same of the base)."""
        mine, ids = self.log_probabilities(prompt, reply)
        with self.without_adapter():
            base, _ = self.log_probabilities(prompt, reply)
        kl = float((mine.exp() * (mine - base)).sum(-1).mean())
        picked = [float(side.gather(1, ids[:, None]).mean()) for side in (mine, base)]
        return kl, picked[0], picked[1]


def load(
    name: str,
    *,
    precision: str = "bf16",
    quantize: str | None = None,
    attn: str | None = None,
    unsloth: bool = False,
    window: int = 4096,
    say: Callable[[str], None] = eprint,
) -> LocalModel:
    """Load a base model. Raises Refused with the next step.

    Args:
        precision: bf16 or fp32; bf16 on a processor that would only emulate it is fp32.
        quantize: `4bit` for nf4 weights (QLoRA).
        attn: transformers' attn_implementation.
        unsloth: load with Unsloth, whose model takes the same adapters.
        window: the longest sequence in tokens, which Unsloth wants to know.
    """
    require("torch", "transformers", "peft", "accelerate")
    quiet()
    source = dense(name, say=say)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    on_gpu = torch.cuda.is_available()
    dtype = torch.bfloat16 if precision == "bf16" and has_bf16() else torch.float32
    try:
        if unsloth:
            require("unsloth")
            from unsloth import FastLanguageModel

            model, tokenizer = FastLanguageModel.from_pretrained(
                source, max_seq_length=window, load_in_4bit=quantize == "4bit", dtype=dtype
            )
        else:
            tokenizer = AutoTokenizer.from_pretrained(source)
            extra: dict[str, Any] = {"attn_implementation": attn} if attn else {}
            if quantize == "4bit":
                extra["quantization_config"] = four_bits(dtype)
            if on_gpu:
                extra["device_map"] = {"": torch.cuda.current_device()}
            model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **extra)
    except (OSError, ValueError, ImportError) as error:
        raise Refused(not_loadable(name, error)) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    return LocalModel(name, model, tokenizer)


def quiet() -> None:
    """No bars, and no notices of names that will change, from the libraries of this process."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    if importlib.util.find_spec("datasets"):
        import datasets

        datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|trl|accelerate)\b")


def has_bf16() -> bool:
    """Whether this machine's GPU, or else its processor, calculates in bf16: three times as fast there, and many times
    slower where it is emulated."""
    import torch

    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    can = torch.cpu.get_capabilities()
    return bool(can.get("avx512_bf16") or can.get("amx_bf16"))


def four_bits(dtype: Any) -> Any:
    """QLoRA's quantisation. Raises Refused."""
    require("bitsandbytes")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def dense(name: str, *, say: Callable[[str], None] = eprint) -> str:
    """Where transformers finds a model: the name itself, or the folder into which its GGUF was unpacked. Raises
    Refused."""
    if not name.startswith("embedded:") and not name.endswith(".gguf"):
        if name.startswith((".", "/")) and not Path(name).is_dir():
            raise Refused(f"--model {name} is no folder; give one that holds config.json, or a name of the hub.")
        return name
    try:
        path = embedded.weights(name.removeprefix("embedded:"), log=say)
    except WeightsUnavailable as error:
        raise Refused(str(error)) from error
    folder = models_folder() / "dense" / f"{path.stem}-{sha256(path)[:12]}"
    if (folder / "config.json").is_file():
        return str(folder)
    require("torch", "transformers", "gguf")
    quiet()
    import torch
    from filelock import FileLock
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / "config.json").is_file():
            say(f"Unpacking {path.name} into {folder} …")
            part = folder.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)
            model = AutoModelForCausalLM.from_pretrained(
                str(path.parent),
                gguf_file=path.name,
                quantization_config=GgufConfig(dequantize=True),
                dtype=torch.float32,
            )
            model.save_pretrained(part)
            AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name).save_pretrained(part)
            part.replace(folder)
    return str(folder)


def prompt_ids(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """A prompt's tokens, as training and asking both make them."""
    if tokenizer.chat_template:
        encoded = tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=True)
        return list(encoded["input_ids"])
    return list(tokenizer(plain(messages))["input_ids"])


def plain(messages: Sequence[Mapping[str, str]]) -> str:
    """Messages as one text to continue, for a model without a chat template: an example's reply on its prompt's last
    line, a paragraph between."""
    parts: list[str] = []
    for message in messages:
        if message["role"] == "assistant":
            parts[-1] += f" {message['content']}"
        else:
            parts.append(message["content"])
    return "\n\n".join(parts)


def not_loadable(name: str, error: BaseException) -> str:
    """Why a model cannot be loaded, and what to do."""
    if "attn" in str(error) or "flash" in str(error).lower():
        return f"--attn is not to be had here ({_first_line(error)}); leave it out."
    return (
        f"--model {name} cannot be loaded ({_first_line(error)}); check its name on huggingface.co, log in with "
        "`hf auth login` where it is gated, or give a folder."
    )


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]

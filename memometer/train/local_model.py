"""A language model in this process, with PyTorch: loading, adapters, greedy generation, and log-probabilities.

A model name is a name on the Hugging Face hub, a folder, a GGUF file, or `embedded:tiny|small|base`. Quantised GGUF
weights cannot be trained or saved, so they are converted once to dense weights in a cache folder.
"""

from __future__ import annotations

import importlib.util
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memometer.errors import UserError
from memometer.models import embedded
from memometer.models.downloads import models_folder, sha256
from memometer.run.progress import eprint
from memometer.train.chat_format import GREEDY, ChatFormat, declared_ends, plain_text

if TYPE_CHECKING:
    from dspy import lm15

PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "trl")
IN_EXTRA = (*PACKAGES, "gguf", "pyarrow", "safetensors")
"""Packages that INSTALL brings. Others, such as bitsandbytes and vllm, are installed by their own names."""
INSTALL = "pip install torch && pip install -c constraints.txt '.[train]'"


def require(*packages: str) -> None:
    """Raise UserError, with the command to run, if a package is not installed."""
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        extra = [name for name in missing if name not in IN_EXTRA]
        commands = [INSTALL] if len(extra) < len(missing) else []
        commands += [f"pip install {' '.join(extra)}"] if extra else []
        raise UserError(f"training on this machine needs {', '.join(missing)}; install with: {' && '.join(commands)}")


@dataclass
class LocalModel:
    """A causal language model and its prompt format. `name` is the name that the user gave."""

    name: str
    model: Any
    format: ChatFormat

    @property
    def tokenizer(self) -> Any:
        """The tokenizer."""
        return self.format.tokenizer

    @property
    def context_tokens(self) -> int | None:
        """The context window in tokens; None if the model has no limit."""
        return getattr(self.model.config, "max_position_embeddings", None)

    def prompt_ids(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Return the token ids of a prompt."""
        return self.format.prompt_ids(messages)

    def with_adapter(self, path: Path, *, trainable: bool = False) -> LocalModel:
        """Return this model with a saved peft adapter. Raises UserError if it cannot be loaded or does not fit."""
        from peft import PeftModel
        from safetensors import SafetensorError

        if not (path / "adapter_config.json").is_file():
            raise UserError(f"{path} is not an adapter folder (adapter_config.json missing).")
        try:
            model = PeftModel.from_pretrained(self.model, str(path), is_trainable=trainable)
        except (ValueError, RuntimeError, OSError, SafetensorError) as error:
            raise UserError(f"the adapter {path} does not fit {self.name}: {_first_line(error)}") from error
        expose_head_bias(model)
        return LocalModel(self.name, model, self.format)

    def add_adapter(self, path: Path, name: str) -> None:
        """Load another saved adapter under a name. `with_adapter` names its adapter `default`."""
        self.model.load_adapter(str(path), adapter_name=name)
        expose_head_bias(self.model)

    @contextmanager
    def using(self, adapter: str | None) -> Iterator[None]:
        """Use one of the loaded adapters in the block, or the base model for None."""
        if adapter is None:
            with self.without_adapter():
                yield
            return
        self.model.set_adapter(adapter, inference_mode=True)
        try:
            yield
        finally:
            self.model.set_adapter("default", inference_mode=True)

    def without_adapter(self) -> AbstractContextManager[Any]:
        """Return a context in which the model is its base model."""
        disable = getattr(self.model, "disable_adapter", None)
        context: AbstractContextManager[Any] = disable() if disable else nullcontext()
        return context

    def generate(self, prompts: Sequence[Sequence[int]], *, max_tokens: int, batch_size: int = 1) -> list[str]:
        """Generate greedy replies without special tokens.

        Args:
            prompts: Token ids of each prompt.
            max_tokens: Limit of each reply.
            batch_size: Prompts per batch; prompts of similar length share a batch.

        Returns:
            The replies, in the order of the prompts.
        """
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
                    **GREEDY,
                    use_cache=True,
                    pad_token_id=pad,
                    eos_token_id=list(self.format.stop_ids) or None,
                )
            for n, row in zip(chosen, written, strict=True):
                replies[n] = tokenizer.decode(row[longest:], skip_special_tokens=True)
        model.train(was_training)
        return replies

    def log_probabilities(self, prompt: Sequence[int], reply: str) -> tuple[Any, Any]:
        """Return the log-probabilities at every token of a reply, and the reply's token ids.

        Returns:
            Natural logarithms of shape (tokens, vocabulary), and ids of shape (tokens,).
        """
        import torch

        ids = self.tokenizer(reply, add_special_tokens=False)["input_ids"] or [self.format.end_id]
        whole = torch.tensor([[*prompt, *ids]], device=self.model.device)
        was_training = self.model.training
        self.model.eval()
        with torch.inference_mode():
            logits = self.model(input_ids=whole).logits[0, len(prompt) - 1 : -1].float()
        self.model.train(was_training)
        return torch.log_softmax(logits, dim=-1), torch.tensor(ids, device=logits.device)

    def divergence(self, prompt: Sequence[int], reply: str) -> tuple[float, float, float]:
        """Compare the adapter with its base model on one reply.

        Returns:
            KL divergence from the base model over the vocabulary, mean log-probability of the reply with the adapter,
            and the same without it. All are means over the reply's tokens, in nats.
        """
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
    template_kwargs: Mapping[str, Any] | None = None,
    log: Callable[[str], None] = eprint,
) -> LocalModel:
    """Load a base model.

    Args:
        name: The model name, as in the module's docstring.
        precision: bf16 or fp32. bf16 becomes fp32 on hardware that only emulates it.
        quantize: `4bit` for nf4 weights (QLoRA).
        attn: transformers' attn_implementation.
        unsloth: Load with Unsloth; its models take the same adapters.
        window: Longest sequence in tokens, for Unsloth.
        template_kwargs: Arguments of the chat template; None for the defaults of ChatFormat.
        log: Called with progress messages.

    Raises:
        UserError: The model cannot be loaded.
    """
    require("torch", "transformers", "peft", "accelerate")
    quiet()
    source = dense_source(name, log=log)
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

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
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise UserError(explain_load_error(name, error)) from error
    chat = ChatFormat.of(tokenizer, declared_ends(model), template_kwargs)
    tokenizer.padding_side = "left"
    # The model's own sampling values, such as a repetition penalty, must not change greedy replies.
    model.generation_config = GenerationConfig(
        eos_token_id=list(chat.stop_ids) or None, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    return LocalModel(name, model, chat)


def expose_head_bias(model: Any) -> None:
    """Let TRL read the bias of an output layer with trained rows; peft's layer has its `weight` only."""
    head = model.get_output_embeddings()
    if hasattr(head, "token_adapter"):
        head.__dict__["bias"] = getattr(head.original_module, "bias", None)  # not registered a second time


def quiet() -> None:
    """Turn off the libraries' progress bars and deprecation warnings."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    if importlib.util.find_spec("datasets"):
        import datasets

        datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|trl|accelerate)\b")


def has_bf16() -> bool:
    """Return true if the GPU, or else the CPU, supports bf16: three times as fast there, very slow if emulated."""
    import torch

    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    can = torch.cpu.get_capabilities()
    return bool(can.get("avx512_bf16") or can.get("amx_bf16"))


def four_bits(dtype: Any) -> Any:
    """Return the quantisation settings of QLoRA. Raises UserError without bitsandbytes."""
    require("bitsandbytes")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def dense_source(name: str, *, log: Callable[[str], None] = eprint) -> str:
    """Return the name or folder that transformers loads for a model: itself, or a folder for a GGUF.

    Raises:
        UserError: The folder does not exist, or the embedded weights are not available.
    """
    if not name.startswith("embedded:") and not name.endswith(".gguf"):
        if name.startswith((".", "/")) and not Path(name).is_dir():
            raise UserError(f"--model {name} is not a folder; use one with a config.json, or a name on the hub.")
        return name
    path = embedded.weights(name.removeprefix("embedded:"), log=log)
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
            log(f"Converting {path.name} to dense weights in {folder} …")
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


def explain_load_error(name: str, error: BaseException) -> str:
    """Return one sentence with the reason why a model cannot be loaded, and the next step."""
    if "attn" in str(error) or "flash" in str(error).lower():
        return f"--attn is not available here ({_first_line(error)}); leave it out."
    return (
        f"--model {name} cannot be loaded ({_first_line(error)}); check its name on huggingface.co, log in with "
        "`hf auth login` if it is gated, or use a folder."
    )


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]


class LocalEngine:
    """Greedy generation by a LocalModel, as an engine for `dspy.LM(..., engine=…)`.

    Args:
        local: The model. Engines that share a model take turns.
        adapter: Name of a loaded adapter; None answers with the base model.
        continues_text: True sends a prompt with worked examples as plain text and ends the reply with its form, as
            `memometer.models.embedded` does for the same weights.
    """

    _turn = threading.Lock()  # choosing the adapter changes the shared model

    def __init__(self, local: LocalModel, *, adapter: str | None, continues_text: bool = False) -> None:
        self.local, self.adapter, self.continues_text = local, adapter, continues_text

    def __deepcopy__(self, memo: dict[int, object]) -> LocalEngine:
        return self

    def complete(self, request: lm15.Request) -> lm15.Response:
        """Answer one request. Raises lm15.ContextLengthError if prompt and reply exceed the context window."""
        from dspy import lm15

        messages = [{"role": "system", "content": str(request.system)}] if request.system else []
        messages += [{"role": str(message.role), "content": str(message.text)} for message in request.messages]
        max_tokens = request.config.max_tokens or 128
        replies = [message["content"] for message in messages if message["role"] == "assistant"]
        as_text = self.continues_text and bool(replies)
        if as_text:
            prompt = list(self.local.tokenizer(plain_text(messages))["input_ids"])
        else:
            prompt = self.local.prompt_ids(messages)
        window = self.local.context_tokens
        if window and len(prompt) + max_tokens > window:
            raise lm15.ContextLengthError(
                f"a prompt of {len(prompt):,} tokens and a reply of {max_tokens:,} exceed the window of {window:,}"
            )
        with self._turn, self.local.using(self.adapter):
            (reply,) = self.local.generate([prompt], max_tokens=max_tokens)
        if as_text:
            end = "\n\n" if any("\n" in text for text in replies) else "\n"
            reply = reply.lstrip().partition(end)[0]
        written = len(self.local.tokenizer(reply, add_special_tokens=False)["input_ids"])
        return lm15.Response(
            id=None,
            model=request.model,
            finish_reason="length" if written >= max_tokens else "stop",
            message=lm15.Message.assistant(reply),
            usage=lm15.Usage(input_tokens=len(prompt), output_tokens=written),
        )

"""Checks before a training: packages, hyperparameters, GPUs, memory, the server, and one step without the model.

    python train.py --mode doctor                              for Arbor, with train.py's default options
    python train.py --mode doctor --backend trl                for training on this machine
    python train.py --mode doctor --environment DIR            check the environment in which the server runs

Nothing is downloaded, and no model is loaded. arbor/README.md lists the known problems and versions.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from memometer.errors import UserError
from memometer.models.downloads import models_folder
from memometer.models.embedded import TIERS
from memometer.models.errors import describe
from memometer.train import gpu_memory, smoke_test
from memometer.train.arbor_client import ArborError, ArborServer
from memometer.train.arbor_endpoint import FILE, EndpointError, read_endpoint
from memometer.train.arbor_request import Problem, find_problems, gpu_ids
from memometer.train.chat_format import ChatFormat, declared_ends
from memometer.train.env_check import ARBOR, Environment, arbor_problems, shadowing_problems, trl_problems
from memometer.train.options import Hyperparameters, TrainOptions, recipe

Finding = Problem | str
"""A problem, or a line about a check that passed."""


@dataclass(frozen=True)
class GPU:
    """A GPU as nvidia-smi reports it."""

    id: int
    name: str
    total_gb: float
    free_gb: float


def examine(options: TrainOptions) -> str:
    """Print all findings. Returns `failed` if a training would fail, otherwise `valid`."""
    problems = []
    for finding in Doctor(options).findings():
        if isinstance(finding, str):
            print(f"ok     {finding}", flush=True)
        else:
            problems.append(finding)
    for problem in problems:
        print(f"{'FAULT' if problem.fatal else 'NOTE '}  {problem}.", flush=True)
    if fatal := sum(problem.fatal for problem in problems):
        print(f"{fatal} {'fault' if fatal == 1 else 'faults'}: this training would fail, or learn nothing.")
        return "failed"
    print("No faults found. Checks that need the GPU itself were not made.")
    return "valid"


class Doctor:
    """The checks of one configuration."""

    def __init__(self, options: TrainOptions) -> None:
        self.options = options
        self.backend = options.backend
        self.values: Hyperparameters = recipe(
            options.recipe, mode=options.planned_mode, backend=self.backend, overrides=options.overrides
        )
        self.gpus = gpus_here()

    def findings(self) -> Iterator[Finding]:
        """Yield the findings of all checks."""
        environment = self.options.environment
        try:
            self.found = Environment.at(Path(environment)) if environment else Environment()
        except FileNotFoundError as error:
            yield Problem(str(error), "use the folder of a virtual environment")
            return
        names = ("arbor-ai", "trl", "transformers", "vllm", "dspy", "torch", "peft", "deepspeed")
        versions = ", ".join(f"{name} {self.found.version(name) or 'absent'}" for name in names)
        yield f"Python {self.found.python or '?'}; {versions}"
        yield self._gpu_line()
        yield from shadowing_problems(Path.cwd())
        yield from self.found.conflicts()
        yield from self._arbor() if self.backend == "arbor" else self._trl()
        yield from self._smoke_test()

    def _gpu_line(self) -> str:
        if not self.gpus:
            return "no GPU on this machine"
        return "; ".join(f"GPU {g.id}: {g.name}, {g.free_gb:.0f} of {g.total_gb:.0f} GB free" for g in self.gpus)

    # ------------------------------------------------------------ Arbor

    def _arbor(self) -> Iterator[Finding]:
        options = self.options
        problems = find_problems(
            self.values,
            inference_gpus=options.inference_gpus,
            training_gpus=options.training_gpus,
            examples=options.examples,
        )
        yield from problems
        try:
            serving, training = gpu_ids(options.inference_gpus), gpu_ids(options.training_gpus)
        except ValueError:
            return
        yield from arbor_problems(self.found, training_gpus=len(training))
        yield (
            f"Arbor takes one prompt per step ({self.values.num_generations} completions) and samples one step behind "
            "its training; prefer many completions and a low learning rate"
        )
        installed = self.found.version(ARBOR) is not None
        if not installed:
            yield f"{ARBOR} is not installed here; only the server's machine needs it (--environment DIR)"
        serves_here = installed or bool(self.gpus)
        if serves_here:
            yield from self._arbor_gpus([*serving, *training], installed)
        if not any(problem.fatal for problem in problems):
            yield from self._arbor_memory(serving, training, serves_here)
        yield from self._server()

    def _arbor_gpus(self, wanted: list[int], installed: bool) -> Iterator[Problem]:
        known = [gpu.id for gpu in self.gpus]
        if len(known) < 2:
            yield Problem(
                f"this machine has {'one GPU' if known else 'no GPU'}, and Arbor needs at least two: one serves, the "
                "others train",
                "use --backend trl here, or rent a machine: python arbor/deploy.py",
                fatal=installed,
            )
        elif missing := [id for id in wanted if id not in known]:
            yield Problem(
                f"this machine has no GPU {', '.join(map(str, missing))}",
                f"choose from {', '.join(map(str, known))} with --inference-gpus and --training-gpus",
            )
        if len({gpu.name for gpu in self.gpus}) > 1 and os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
            yield Problem(
                "the GPUs are of different kinds, so CUDA numbers them differently from nvidia-smi and Arbor",
                "start the server with CUDA_DEVICE_ORDER=PCI_BUS_ID",
            )

    def _arbor_memory(self, serving: list[int], training: list[int], serves_here: bool) -> Iterator[Finding]:
        shape = gpu_memory.shape_of(self.options.model)
        if shape is None:
            yield self._unknown_shape()
            return
        train = gpu_memory.training_memory(shape, self.values, backend="arbor", gpus=len(training))
        serve = gpu_memory.serving_memory(shape, self.values)
        yield f"estimated for each training GPU: {train}"
        yield f"estimated for the serving GPU, at least: {serve}; it takes 90 % of the GPU"
        for gpu in self.gpus if serves_here else ():
            if gpu.id in serving:
                yield from _memory_problem(f"GPU {gpu.id}", 0.9 * gpu.free_gb, serve.gb, serve.advice)
            elif gpu.id in training:
                yield from _memory_problem(f"GPU {gpu.id}", gpu.free_gb, train.gb, train.advice)

    def _server(self) -> Iterator[Finding]:
        url = self.options.arbor_url
        try:
            with read_endpoint(url).open() as reachable, ArborServer(reachable) as server:
                server.check()
            yield f"an Arbor server answers at {reachable}"
        except (EndpointError, ArborError) as error:
            description, _, remedy = str(error).partition("; ")
            # Before a machine is rented, no server can answer.
            expected = url is not None or FILE.exists()
            yield Problem(description.rstrip("."), remedy.rstrip(".") or "see --arbor-url", fatal=expected)

    # ------------------------------------------------------------ TRL

    def _trl(self) -> Iterator[Finding]:
        options, values, gpus = self.options, self.values, self.gpus
        quantize = bool(options.quantize)
        yield from trl_problems(
            self.found, quantize=quantize, attn=options.attn, unsloth=options.unsloth, gpu=bool(gpus)
        )
        completions = values.batch_size * values.gradient_accumulation
        grpo = options.planned_mode == "train"
        if grpo and completions % values.num_generations:
            yield Problem(
                f"--num-generations {values.num_generations} does not divide --batch-size x --gradient-accumulation = "
                f"{completions}",
                "choose a divisor",
            )
        if grpo and values.beta:
            yield f"--beta {values.beta:g}: the KL term needs the base model's log-probabilities, a third more time"
        shape = gpu_memory.shape_of(options.model)
        if shape is None:
            yield self._unknown_shape()
            return
        prompt = smoke_test.longest_prompt(options, values.max_prompt_tokens)
        yield f"the longest training prompt has about {prompt:,} tokens"
        yield from self._end_token()
        need = gpu_memory.training_memory(
            shape,
            values,
            backend="trl",
            quantize=quantize,
            on_gpu=bool(gpus),
            prompt_tokens=prompt,
            supervised=not grpo,
        )
        free, device = (gpus[0].free_gb, f"GPU {gpus[0].id}") if gpus else (free_memory_gb(), "this machine")
        uses_vllm = grpo and bool(gpus) and options.vllm is not False and self.found.version("vllm") is not None
        share = options.vllm_memory * gpus[0].total_gb if uses_vllm else 0.0
        yield f"estimated for {device}: {need}" + (f", and {share:.1f} for vLLM" if share else "")
        advice = need.advice + (", or a smaller --vllm-memory" if share else "")
        yield from _memory_problem(device, free, need.gb + share, advice)

    def _end_token(self) -> Iterator[Finding]:
        """Compare the end token of the chat template with the model's own, if its files are on this machine."""
        folder = local_folder(self.options.model)
        if folder is None or not importlib.util.find_spec("transformers"):
            return
        from transformers import AutoConfig, AutoTokenizer

        try:
            tokenizer, config = AutoTokenizer.from_pretrained(folder), AutoConfig.from_pretrained(folder)
        except (OSError, ValueError) as error:
            yield Problem(f"the tokenizer of {self.options.model} cannot be read ({describe(error)})", "see --model")
            return
        chat = ChatFormat.of(tokenizer, declared_ends(SimpleNamespace(config=config)))
        if not chat.end_token:
            yield Problem(f"{self.options.model} has no end token, so its replies would never end", "see --model")
        elif chat.end_is_new and (self.options.unsloth or self.options.vllm):
            yield Problem(
                f"the end token {chat.end_token} of {self.options.model} may be untrained, and Unsloth and vLLM cannot "
                "train it",
                "leave out --unsloth and --vllm, or use the instruction-tuned model",
            )
        else:
            note = ", whose embedding is trained too" if chat.end_is_new else ""
            yield f"replies end with {chat.end_token}{note}"

    def _unknown_shape(self) -> str:
        return f"the shape of {self.options.model} is unknown here, so memory is not estimated"

    # ------------------------------------------------------------ one step without the model

    def _smoke_test(self) -> Iterator[Finding]:
        """Check the steps before the trainer: a prompt, four replies, their rewards, and the request."""
        try:
            prefix, prompt, rewards = smoke_test.example_group(self.options)
        except (UserError, ValueError, KeyError) as error:
            yield Problem(f"no prompt could be made: {str(error).rstrip('.')}", "see --data and --budgets")
            return
        shown = ", ".join(f"{name} {reward:.2f}" for name, reward in rewards.items())
        yield f"{prefix}rewards of four replies to prompt {prompt.id}: {shown}"
        if rewards["honest"] <= max(reward for name, reward in rewards.items() if name != "honest"):
            yield Problem("the reward does not prefer an honest reply", "see memometer/train/reward.py")
        if self.backend == "arbor" and (schemas := self.found.file("arbor/server/api/schemas.py")):
            problems = list(smoke_test.schema_problems(schemas, self.options, self.values, prompt, rewards))
            yield from problems
            if not problems:
                yield f"{ARBOR} {self.found.version(ARBOR)} accepts the requests"
        has_trl = importlib.util.find_spec("trl") and importlib.util.find_spec("torch")
        if self.backend == "trl" and self.found.is_current and has_trl:
            problems = list(smoke_test.trl_problems(self.values))
            yield from problems
            if not problems:
                yield "TRL made one step with a model of two layers"


def local_folder(model: str) -> str | None:
    """Return the folder with a model's tokenizer, if it is on this machine; nothing is downloaded or converted."""
    if model.startswith("embedded:") or model.endswith(".gguf"):
        name = TIERS[model.removeprefix("embedded:")].file if model.removeprefix("embedded:") in TIERS else model
        found = sorted((models_folder() / "dense").glob(f"{Path(name).stem}-*/tokenizer_config.json"))
        return str(found[0].parent) if found else None
    if Path(model).is_dir():
        return model
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.utils import HFValidationError

    try:
        path = try_to_load_from_cache(model, "tokenizer_config.json")
    except HFValidationError:
        return None
    return str(Path(path).parent) if isinstance(path, str) else None


def _memory_problem(device: str, free_gb: float, needed_gb: float, advice: str) -> Iterator[Problem]:
    if needed_gb > free_gb:
        yield Problem(
            f"{device} has {free_gb:.1f} GB, and about {needed_gb:.1f} GB are needed, {needed_gb - free_gb:.1f} more",
            advice,
        )


def gpus_here() -> list[GPU]:
    """Return this machine's GPUs as nvidia-smi lists them; empty without nvidia-smi."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=index,name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()
        rows = [[part.strip() for part in line.split(",")] for line in lines if line.strip()]
        return [GPU(int(r[0]), r[1], float(r[2]) * 1.048576e-3, float(r[3]) * 1.048576e-3) for r in rows]
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return []


def free_memory_gb() -> float:
    """Return this machine's available memory in GB."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9

"""What would fail in a training, before anything is paid: packages, values, GPUs, memory, the server, and one step that
is taken without a model.

    python train.py --mode doctor                              for Arbor, as train.py would call it
    python train.py --mode doctor --backend trl                for this machine
    python train.py --mode doctor --environment DIR            looks into the environment that the server runs in

Nothing is downloaded, and no model is loaded. What was seen to fail, in which versions, stands in arbor/README.md.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from memometer.train import gpu_memory
from memometer.train.arbor_client import ArborError, ArborServer
from memometer.train.arbor_endpoint import FILE, EndpointError, read
from memometer.train.arbor_request import Problem, gpu_ids, problems, settings
from memometer.train.env_check import ARBOR, Installed, of_arbor, of_trl, shadowed
from memometer.train.hyperparameters import NAMES, RECIPES, Values

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class GPU:
    """As nvidia-smi sees it."""

    id: int
    name: str
    total_gb: float
    free_gb: float


def examine(config: Mapping[str, Any]) -> str:
    """Print what is found; `valid` where nothing would fail, `failed` where something would."""
    found = list(faults(config, say=lambda line: print(line, flush=True)))
    for problem in found:
        print(f"{'FAULT' if problem.fatal else 'NOTE '}  {problem}.", flush=True)
    fatal = sum(problem.fatal for problem in found)
    if fatal:
        print(f"{fatal} {'fault' if fatal == 1 else 'faults'}: this training would fail, or learn nothing.")
    else:
        print("No fault was found. What only a GPU can show was not tried.")
    return "failed" if fatal else "valid"


def faults(config: Mapping[str, Any], *, say: Callable[[str], None]) -> Iterator[Problem]:
    """Everything that is wrong; what is merely so is said."""
    backend = config["backend"] or "arbor"
    chosen = {name: config[name] for name in NAMES if config.get(name) is not None}
    values: Values = {**RECIPES[config["recipe"]][backend], **chosen}
    try:
        found = Installed.of(Path(config["environment"])) if config.get("environment") else Installed()
    except FileNotFoundError as error:
        yield Problem(str(error), "name the folder of a virtual environment")
        return
    gpus = gpus_here()
    names = ("arbor-ai", "trl", "transformers", "vllm", "dspy", "torch", "peft", "deepspeed")
    say(f"ok     Python {found.python or '?'}; " + ", ".join(f"{n} {found.version(n) or 'absent'}" for n in names))
    say(f"ok     {_seen(gpus)}")
    checks = _arbor if backend == "arbor" else _trl
    yield from chain(
        shadowed(ROOT), shadowed(Path.cwd()) if Path.cwd() != ROOT else (), found.conflicts(),
        checks(config, values, found, gpus, say), _dry_step(config, values, found, backend, say),
    )  # fmt: skip


# ---------------------------------------------------------------- GPUs


def gpus_here() -> list[GPU]:
    """The GPUs of this machine, by nvidia-smi; none without it."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=index,name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()
        rows = [[part.strip() for part in line.split(",")] for line in lines if line.strip()]
        return [GPU(int(r[0]), r[1], float(r[2]) * 1.048576e-3, float(r[3]) * 1.048576e-3) for r in rows]
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return []


def _seen(gpus: list[GPU]) -> str:
    if not gpus:
        return "no GPU on this machine"
    return "; ".join(f"GPU {g.id}: {g.name}, {g.free_gb:.0f} of {g.total_gb:.0f} GB free" for g in gpus)


# ---------------------------------------------------------------- the two back ends


def _arbor(
    config: Mapping[str, Any], values: Values, found: Installed, gpus: list[GPU], say: Callable[[str], None]
) -> Iterator[Problem]:
    yield from (asked := problems(values, **settings(config)))
    try:
        serve, learn = gpu_ids(config["inference_gpus"]), gpu_ids(config["training_gpus"])
    except ValueError:
        return
    yield from of_arbor(found, training_gpus=len(learn))
    say(
        f"ok     Arbor takes one prompt a step ({values['num_generations']} replies of it) and samples one step behind "
        "what it has learned: prefer many replies and a low rate"
    )
    if found.version(ARBOR) is None:
        say(f"ok     {ARBOR} is not installed here, nor need it be: it runs where the server is (--environment DIR)")
    local = found.version(ARBOR) is not None or bool(gpus)
    if local:
        yield from _arbor_gpus(gpus, [*serve, *learn], found)
    if not any(problem.fatal for problem in asked):
        memory = [gpu for gpu in gpus if gpu.id in [*serve, *learn]] if local else []
        yield from _arbor_memory(config, values, len(learn), serve, memory, say)
    yield from _server(config, say)


def _arbor_gpus(gpus: list[GPU], wanted: list[int], found: Installed) -> Iterator[Problem]:
    if len(gpus) < 2:
        how_many = "one GPU" if gpus else "no GPU"
        yield Problem(
            f"this machine has {how_many} and Arbor needs two or more, one to serve and one to train",
            "use --backend trl here, or rent a machine: python arbor/deploy.py",
            fatal=found.version(ARBOR) is not None,
        )
    elif missing := [id for id in wanted if id not in {gpu.id for gpu in gpus}]:
        yield Problem(
            f"there is no GPU {', '.join(map(str, missing))} on this machine",
            f"choose among {', '.join(str(gpu.id) for gpu in gpus)} with --inference-gpus and --training-gpus",
        )
    if len({gpu.name for gpu in gpus}) > 1 and os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        yield Problem(
            "the GPUs are of several kinds, and CUDA numbers them otherwise than nvidia-smi and Arbor do",
            "start the server with CUDA_DEVICE_ORDER=PCI_BUS_ID",
        )


def _arbor_memory(
    config: Mapping[str, Any],
    values: Values,
    training_gpus: int,
    serving_gpus: list[int],
    gpus: list[GPU],
    say: Callable[[str], None],
) -> Iterator[Problem]:
    shape = gpu_memory.shape_of(config["model"])
    if shape is None:
        say(f"ok     the shape of {config['model']} is not known here, so no memory was estimated")
        return
    learn = gpu_memory.training(shape, values, backend="arbor", gpus=training_gpus)
    serve = gpu_memory.serving(shape, values)
    say(f"ok     estimated, each training GPU: {learn}")
    say(f"ok     estimated, the serving GPU at least: {serve}; it takes 0.9 of what there is")
    for gpu in gpus:
        need = serve if gpu.id in serving_gpus else learn
        there = gpu.free_gb * (0.9 if gpu.id in serving_gpus else 1)
        if need.gb > there:
            yield Problem(
                f"GPU {gpu.id} has {there:.1f} GB for what takes about {need.gb:.1f}, {need.gb - there:.1f} too few",
                need.knob,
            )


def _server(config: Mapping[str, Any], say: Callable[[str], None]) -> Iterator[Problem]:
    try:
        with read(config["arbor_url"]).open() as url:
            server = ArborServer(url)
            try:
                server.check()
            finally:
                server.close()
        say(f"ok     an Arbor server answers at {url}")
    except (EndpointError, ArborError) as error:
        what, _, remedy = str(error).partition("; ")
        # Before a machine is rented there is none to answer.
        awaited = config["arbor_url"] is not None or FILE.exists()
        yield Problem(what.rstrip("."), remedy.rstrip(".") or "see --arbor-url", fatal=awaited)


def _trl(
    config: Mapping[str, Any], values: Values, found: Installed, gpus: list[GPU], say: Callable[[str], None]
) -> Iterator[Problem]:
    yield from of_trl(
        found,
        quantize=bool(config["quantize"]),
        attn=config["attn"],
        unsloth=config["unsloth"],
        gpu=bool(gpus),
    )
    completions = values["batch_size"] * values["gradient_accumulation"]
    if completions % values["num_generations"]:
        yield Problem(
            f"--num-generations {values['num_generations']} does not divide --batch-size x --gradient-accumulation = "
            f"{completions}",
            "choose one that does",
        )
    if values["beta"]:
        say(f"ok     --beta {values['beta']:g}: the KL term needs the base's log-probabilities, a third more time")
    shape = gpu_memory.shape_of(config["model"])
    if shape is None:
        say(f"ok     the shape of {config['model']} is not known here, so no memory was estimated")
        return
    need = gpu_memory.training(shape, values, backend="trl", quantize=bool(config["quantize"]), on_gpu=bool(gpus))
    there, where = (gpus[0].free_gb, f"GPU {gpus[0].id}") if gpus else (memory_here(), "this machine")
    uses_vllm = bool(gpus) and config["vllm"] is not False and found.version("vllm") is not None
    share = config["vllm_memory"] * gpus[0].total_gb if uses_vllm else 0.0
    say(f"ok     estimated on {where}: {need}" + (f", and {share:.1f} for vLLM" if share else ""))
    if need.gb + share > there:
        lack = need.gb + share - there
        yield Problem(
            f"{where} has {there:.1f} GB for what takes about {need.gb + share:.1f}, {lack:.1f} too few",
            need.knob + (", or a smaller --vllm-memory" if share else ""),
        )


def memory_here() -> float:
    """Available memory in GB."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


# ---------------------------------------------------------------- one step, without a model


def _dry_step(
    config: Mapping[str, Any], values: Values, found: Installed, backend: str, say: Callable[[str], None]
) -> Iterator[Problem]:
    """From the data to what a trainer is handed: a prompt, four replies, their rewards, and the request."""
    from memometer.train.smoke_test import group, schema_problems, trl_problems

    try:
        mark, prompt, rewards = group(config)
    except (ValueError, KeyError) as error:
        yield Problem(f"no prompt could be made: {str(error).rstrip('.')}", "see --data and --budgets")
        return
    said = ", ".join(f"{name} {worth:.2f}" for name, worth in rewards.items())
    say(f"{mark}ok     prompt {prompt.id}, rewarded: {said}")
    if rewards["honest"] <= max(worth for name, worth in rewards.items() if name != "honest"):
        yield Problem("the reward does not prefer an honest reply", "see memometer/train/reward.py")
    if backend == "arbor" and (schemas := found.file("arbor/server/api/schemas.py")):
        if not (wrong := list(schema_problems(schemas, config, values, prompt, rewards))):
            say(f"ok     the schemas of {ARBOR} {found.version(ARBOR)} accept what it will be asked")
        yield from wrong
    if backend == "trl" and found.here and importlib.util.find_spec("trl") and importlib.util.find_spec("torch"):
        if not (wrong := list(trl_problems(values))):
            say("ok     TRL took a step with a model of two layers")
        yield from wrong

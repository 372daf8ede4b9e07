"""The doctor finds each planted fault, and none if everything is in order."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from memometer.commands import doctor
from memometer.train import gpu_memory
from memometer.train.gpu_memory import SHAPES, training_memory
from memometer.train.options import RECIPES, SUPERVISED
from tests import commands
from tests.arbor_loopback import Arbor
from tests.conftest import ROOT
from tests.rented import serving

SAMPLE = str(ROOT / "locomo" / "sample.json")
REQUIRES = {
    "arbor-ai": ["trl==0.23.1", "vllm==0.10.0", "transformers", "wandb", "setuptools<79.0.1,>=76.0.0"],
    "vllm": ["openai<=1.90.0,>=1.87.0", "transformers>=4.53.2", "torch==2.7.1", "ray ; extra == 'all'"],
    "trl": ["transformers>=4.56.1", "vllm<0.11,>=0.10.0 ; extra == 'vllm'"],
}
SCHEMAS = """
from pydantic import BaseModel, ConfigDict
class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())
class GRPOInitializeRequest(Strict):
    run_name: str
    model: str
    trainer_config: dict
    inference_config: dict
    gpu_config: dict
class GRPOStepRequest(Strict):
    job_id: str
    model: str
    batch_id: int
    batch: list[dict]
class GRPOCheckpointRequest(Strict):
    job_id: str
    checkpoint_name: str
class GRPOTerminateRequest(Strict):
    job_id: str
"""


class Environment:
    """A virtual environment for the eye: metadata of packages, and the files that are looked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.packages = path / "lib" / "python3.11" / "site-packages"
        self.packages.mkdir(parents=True)
        lines = (ROOT / "arbor" / "requirements.txt").read_text().splitlines()
        for line in lines:
            if not line.startswith("#"):
                self.install(*line.split("=="))
        self.config = self.packages / "configs" / "deepspeed_config.yaml"
        self.config.parent.mkdir()
        shutil.copy(ROOT / "arbor" / "deepspeed_config.yaml", self.config)
        self.schemas = self.packages / "arbor" / "server" / "api" / "schemas.py"
        self.schemas.parent.mkdir(parents=True)
        self.schemas.write_text(SCHEMAS)

    def install(self, name: str, version: str) -> None:
        self.remove(name)
        folder = self.packages / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        wants = "".join(f"Requires-Dist: {text}\n" for text in REQUIRES.get(name, ()))
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{wants}")

    def remove(self, name: str) -> None:
        for folder in self.packages.glob(f"{name.replace('-', '_')}-[0-9]*.dist-info"):
            shutil.rmtree(folder)


Say = Callable[..., tuple[int, str]]


@pytest.fixture
def sound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[tuple[Environment, Say]]:
    """An environment, three GPUs and a server, all sound; and the doctor that looks at them."""
    environment = Environment(tmp_path / "environment")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    gpus(tmp_path, ["H100, 81559, 80000"] * 3)
    with serving(Arbor(tmp_path / "storage").answer) as url:

        def doctor(*flags: str) -> tuple[int, str]:
            argv = ["--mode", "doctor", "--data", SAMPLE, "--environment", str(environment.path), "--arbor-url", url]
            code = commands.train([*argv, *flags])
            return code, capsys.readouterr().out

        yield environment, doctor


def gpus(folder: Path, lines: list[str]) -> None:
    (folder / "bin").mkdir(exist_ok=True)
    script = folder / "bin" / "nvidia-smi"
    script.write_text("#!/bin/sh\n" + "".join(f"echo '{n}, {line}'\n" for n, line in enumerate(lines)))
    script.chmod(0o755)


def test_nothing_is_found_where_all_is_sound(sound: tuple[Environment, Say]) -> None:
    code, said = sound[1]()
    assert code == 0, said
    assert "FAULT" not in said
    assert "NOTE" not in said
    assert "3: H100" not in said
    assert "GPU 2: H100, 84 of 86 GB free" in said
    assert "an Arbor server answers" in said
    assert "honest 1.10" in said
    assert "accepts the requests" in said
    assert re.search(r"each training GPU: 1\d\.\d GB", said)


PLANTED: list[tuple[str, Callable[[Environment], object], str]] = [
    ("no DeepSpeed file", lambda e: e.config.unlink(), "cp arbor/deepspeed_config.yaml"),
    ("no sharding", lambda e: e.config.write_text("mixed_precision: bf16\n"), "no sharding"),
    ("32 bits", lambda e: e.config.write_text("zero_stage: 3\nmixed_precision: 'no'\n"), "mixed_precision: bf16"),
    ("transformers 5", lambda e: e.install("transformers", "5.17.0"), "pip install 'transformers>=4.53.2,<5'"),
    ("old transformers", lambda e: e.install("transformers", "4.52.0"), "vllm 0.10.0 needs transformers>=4.53.2"),
    ("another trl", lambda e: e.install("trl", "1.16.0"), "arbor-ai 0.2.17 needs trl==0.23.1"),
    ("another vllm", lambda e: e.install("vllm", "0.30.0"), "arbor-ai 0.2.17 needs vllm==0.10.0"),
    ("another openai", lambda e: e.install("openai", "2.54.0"), "vllm 0.10.0 needs openai"),
    ("no wandb", lambda e: e.remove("wandb"), "without wandb"),
    ("no deepspeed", lambda e: e.remove("deepspeed"), "without deepspeed"),
    ("the oldest Arbor", lambda e: e.install("arbor-ai", "0.2.7"), "pip install arbor-ai==0.2.17"),
    ("the neuron simulator", lambda e: e.install("arbor", "0.10.0"), "neuron simulator"),
    ("another interface", lambda e: e.schemas.write_text(SCHEMAS.replace("batch_id", "step")), "GRPOStepRequest"),
]


@pytest.mark.parametrize(("plant", "said"), [row[1:] for row in PLANTED], ids=[row[0] for row in PLANTED])
def test_faults_of_an_environment(
    plant: Callable[[Environment], object], said: str, sound: tuple[Environment, Say]
) -> None:
    environment, doctor = sound
    plant(environment)
    code, told = doctor()
    found = [line for line in told.splitlines() if line.startswith(("FAULT", "NOTE"))]
    assert [line for line in found if said in line], told
    assert code == (1 if any(line.startswith("FAULT") for line in found) else 0)
    if said != "no sharding":
        assert code == 1


@pytest.mark.parametrize(
    ("flags", "said", "fatal"),
    [
        (["--loss", "grpo"], "use --loss dr_grpo", True),
        (["--beta", "0.04"], "use --beta 0", False),
        (["--loss", "dapo", "--mask-truncated"], "not a number", True),
        (["--mask-truncated"], "--no-mask-truncated", False),
        (["--num-generations", "6"], "--num-generations 8", True),
        (["--examples"], "trains without them", True),
        (["--inference-gpus", "1", "--training-gpus", "0,2"], "use --inference-gpus 0 --training-gpus 1,2", True),
        (["--inference-gpus", "1", "--training-gpus", "2"], "works only while all lower GPUs are in use", False),
        (["--training-gpus", "1,2,3,4"], "no GPU 3, 4", True),
        (["--model", "Qwen/Qwen2.5-14B", "--max-prompt-tokens", "30000"], "more; double --gradient-accum", True),
        (["--arbor-url", "http://127.0.0.1:9"], "start it with: CUDA_DEVICE_ORDER", True),
        (["--environment", "nowhere"], "is not a virtual environment", True),
        (["--recipe", "seed"], "about 2.2 for a prompt", False),
    ],
)
def test_faults_of_what_is_asked_for(flags: list[str], said: str, fatal: bool, sound: tuple[Environment, Say]) -> None:
    code, told = sound[1](*flags)
    assert said in told
    assert (code, "FAULT" in told) == ((1, True) if fatal else (0, False)), told


def test_faults_of_the_machine(sound: tuple[Environment, Say], tmp_path: Path) -> None:
    _, doctor = sound
    gpus(tmp_path, ["RTX 3060, 12288, 11000"] * 3)
    code, said = doctor()
    assert code == 1
    assert re.search(r"GPU 1 has 11\.5 GB, and about 1\d\.\d GB are needed, \d\.\d more", said)
    gpus(tmp_path, ["H100, 81559, 80000"])
    code, said = doctor()
    assert "one GPU, and Arbor needs at least two" in said
    assert "--backend trl" in said
    gpus(tmp_path, ["H100, 81559, 80000", "A100, 81920, 80000", "A100, 81920, 80000"])
    code, said = doctor()
    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in said
    assert code == 1
    (tmp_path / "arbor").mkdir()
    (tmp_path / "arbor" / "__init__.py").touch()
    code, said = doctor()
    assert "rm arbor/__init__.py" in said


def test_trl_alone(sound: tuple[Environment, Say], tmp_path: Path) -> None:
    environment, doctor = sound
    code, said = doctor("--backend", "trl")
    assert code == 1
    assert "arbor-ai and trl are in one environment" in said
    environment.remove("arbor-ai")
    environment.remove("vllm")
    for name, version in (("trl", "1.16.0"), ("transformers", "5.17.0"), ("torch", "2.13.0")):
        environment.install(name, version)
    code, said = doctor("--backend", "trl")
    assert code == 0, said
    environment.install("torch", "2.13.0+cpu")
    assert "without CUDA" in doctor("--backend", "trl")[1]
    environment.install("torch", "2.13.0")
    for flags, wanted in (
        (["--quantize", "4bit"], "pip install bitsandbytes"),
        (["--unsloth"], "pip install unsloth"),
        (["--attn", "flash_attention_2"], "pip install flash-attn"),
        (["--num-generations", "7"], "does not divide"),
    ):
        code, said = doctor("--backend", "trl", *flags)
        assert code == 1
        assert wanted in said
    environment.remove("peft")
    assert "needs peft" in doctor("--backend", "trl")[1]


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("qwen2.5-0.5b", 0.494), ("qwen2.5-3b", 3.09), ("qwen2.5-7b", 7.62), ("qwen2.5-14b", 14.77),
        ("llama-3.2-1b", 1.24), ("llama-3.1-8b", 8.03), ("smollm2-135m", 0.1345), ("qwen3-8b", 8.19),
    ],
)  # fmt: skip
def test_parameters_are_those_that_the_makers_give(name: str, billions: float) -> None:
    assert SHAPES[name].parameters / 1e9 == pytest.approx(billions, rel=0.005)


def test_adapter_parameters() -> None:
    """What peft prints for SmolLM2-135M with r = 8 on all linear layers."""
    assert SHAPES["smollm2-135m"].adapter_parameters(8) == 2_442_240


def test_shapes_are_found_by_name_and_by_file(tmp_path: Path) -> None:
    assert gpu_memory.shape_of("Qwen/Qwen2.5-Coder-1.5B-Instruct") == SHAPES["qwen2.5-1.5b"]
    assert gpu_memory.shape_of("meta-llama/Llama-3.2-3B-Instruct") == SHAPES["llama-3.2-3b"]
    assert gpu_memory.shape_of("embedded:tiny") == SHAPES["smollm2-135m"]
    assert gpu_memory.shape_of("nobody/nothing") is None
    config = {
        "num_hidden_layers": 2, "hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2, "vocab_size": 10,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert gpu_memory.shape_of(str(tmp_path)) == gpu_memory.Shape(2, 8, 16, 2, 2, 4, 10, True)


def test_the_estimate_is_near_a_measured_run() -> None:
    """Supervised training of embedded:tiny on a CPU, 8 sequences of at most 205 and 24 tokens: a peak of 3.53 GB."""
    values = replace(SUPERVISED, batch_size=8, gradient_accumulation=1, max_completion_tokens=24)
    shape = SHAPES["smollm2-135m"]
    found = training_memory(shape, values, backend="trl", on_gpu=False, prompt_tokens=205, supervised=True)
    assert found.gb == pytest.approx(3.53, rel=0.25)


def test_the_readmes_supervised_training_is_sound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The prompts count, not --max-prompt-tokens; and an abstention is worse than the right bare answer."""
    monkeypatch.chdir(tmp_path)
    flags = ["--mode", "sft", "--model", "embedded:tiny", "--memory", "oracle", "--budgets", "512", "--data", SAMPLE]
    flags += ["--num-train", "600", "--num-val", "16", "--num-train-steps", "60", "--batch-size", "8"]
    flags += ["--gradient-accumulation", "1", "--learning-rate", "5e-4", "--max-completion-tokens", "24"]
    doctor.main([*flags, "--eval-steps", "30", "--num-test", "100"])
    out = capsys.readouterr().out
    faults = [line for line in out.splitlines() if line.startswith("FAULT")]
    assert not [line for line in faults if "GB" in line or "honest" in line], out
    assert re.search(r"estimated for this machine: [2-6]\.\d GB", out), out


def test_more_of_anything_takes_more_memory() -> None:
    values = RECIPES["current", "trl"]
    shape = SHAPES["qwen2.5-3b"]
    least = training_memory(shape, values, backend="trl").gb
    for name in ("batch_size", "lora_rank", "max_prompt_tokens", "max_completion_tokens"):
        doubled = replace(values, **{name: 2 * getattr(values, name)})
        assert training_memory(shape, doubled, backend="trl").gb > least
    assert training_memory(shape, values, backend="trl", quantize=True).gb < least
    assert training_memory(SHAPES["qwen2.5-7b"], values, backend="trl").gb > least
    one, two = (training_memory(shape, RECIPES["current", "arbor"], backend="arbor", gpus=n).gb for n in (1, 2))
    assert two < one

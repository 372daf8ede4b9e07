"""GRPO through an Arbor server: the real one's HTTP application where arbor-ai is installed, and always a loopback one
that checks the protocol."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from memometer.train import arbor_client, prompt_dataset
from memometer.train.arbor_client import ArborServer
from memometer.train.reward import grade
from tests import commands
from tests.arbor_loopback import Arbor
from tests.conftest import ROOT
from tests.rented import install_ssh, serving

SAMPLE = str(ROOT / "locomo" / "sample.json")
FLAGS = [
    "--backend", "arbor", "--data", SAMPLE, "--num-train", "6", "--num-val", "2", "--num-train-steps", "5",
    "--save-steps", "2", "--eval-steps", "3", "--num-generations", "4", "--batch-size", "2",
    "--gradient-accumulation", "2", "--no-mlflow",
]  # fmt: skip
OPTIONS = "Lines: 1\nStatus: answered\nLookup: \nAnswer: No idea", "nonsense", "", "Status: absent\nAnswer: none"


def scripted(prompt: str, number: int) -> str:
    return OPTIONS[number % 3]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def loopback(here: Path) -> Iterator[tuple[Arbor, str]]:
    arbor = Arbor(here / "storage", scripted)
    with serving(arbor.answer) as url:
        yield arbor, url


@pytest.fixture(scope="session")
def application(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Arbor's own application."""
    python = os.environ.get("ARBOR_PYTHON") or sys.executable
    if python == sys.executable and not all(importlib.util.find_spec(name) for name in ("coolname", "zmq", "uvicorn")):
        pytest.skip("what Arbor's application needs is not here: pip install coolname pyzmq uvicorn")
    try:
        if python == sys.executable:
            importlib.metadata.version("arbor-ai")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("Arbor is not here: pip install --no-deps arbor-ai==0.2.17, or set ARBOR_PYTHON to its interpreter")
    folder = tmp_path_factory.mktemp("arbor")
    (folder / "replies.json").write_text(json.dumps(OPTIONS[:3]))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [python, "-W", "ignore", ROOT / "tests" / "arbor_app.py", str(port), folder / "storage"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, folder / "replies.json"],
            stdout=log,
            stderr=log,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": ""},
        )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(1200):  # with PyTorch it takes a minute where much else runs
            assert process.poll() is None, (folder / "log").read_text()
            try:
                ArborServer(url).check()
                break
            except arbor_client.ServerGone:
                time.sleep(0.1)
        yield url
    finally:
        process.kill()
        process.wait()


def order(folder: Path, steps: int = 5) -> list[prompt_dataset.ReadingPrompt]:
    prompts = prompt_dataset.read_prompts(folder / "train.jsonl")
    return [prompts[n] for n in prompt_dataset.schedule(prompts, per_step=1, steps=steps, seed=0)]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("which", ["loopback", "application"])
def test_a_whole_training(which: str, here: Path, request: pytest.FixtureRequest) -> None:
    server = request.getfixturevalue(which)
    url = server if which == "application" else server[1]
    assert commands.train([*FLAGS, "--arbor-url", url]) == 0
    folder = here / "grpo_checkpoints"
    assert [line["step"] for line in lines(folder / "steps.jsonl")] == [1, 2, 3, 4, 5]
    assert [line["step"] for line in lines(folder / "validation_scores.jsonl")] == [0, 3, 5]
    assert {path.name for path in folder.glob("checkpoint-*")} == {f"checkpoint-{n}" for n in (2, 3, 4, 5)}
    assert json.loads((folder / "best" / "adapter_config.json").read_text())["base_model_name_or_path"] == (
        "Qwen/Qwen2.5-3B"
    )
    assert not list(folder.rglob("optimizer.pt")), "the optimiser's state is many times as large as an adapter"
    assert (folder / "best" / "README.md").exists()
    assert (here / "grpo_optimized_memory_qa.json").exists()
    assert "gpu_ids: '1,2'" in (here / "arbor.yaml").read_text()
    if which == "application":
        job = json.loads((folder / "arbor.json").read_text())["job_id"]
        assert ArborServer(url).status(job)["status"] == "cancelled", "its GPUs are free again"
        return
    arbor = server[0]
    assert [job.status for job in arbor.jobs.values()] == ["cancelled"]
    for prompt, group in zip(order(folder), arbor.groups, strict=True):
        step = arbor.groups.index(group)
        for sample in group:
            assert sample["messages"] == list(prompt.messages)
            graded = grade(prompt.case, sample["completion"]["content"], progress=step / 5)
            assert sample["reward"] == pytest.approx(graded.reward)


def test_what_the_trainer_is_asked_for(loopback: tuple[Arbor, str], here: Path) -> None:
    arbor, url = loopback
    commands.train([*FLAGS, "--arbor-url", url, "--lora-rank", "8"])
    (job,) = arbor.jobs.values()
    trainer = job.request["trainer_config"]
    assert trainer["max_steps"] > 5, "after its last step it would answer no checkpoint"
    assert trainer["beta"] == 0
    assert trainer["loss_type"] == "dr_grpo"
    assert trainer["mask_truncated_completions"] is False
    assert trainer["bf16"] is True
    assert trainer["lora_config"]["r"] == 8
    assert job.request["inference_config"]["max_seq_len"] == 3072 + 128
    assert job.request["gpu_config"]["multi"] == {"num_inference_gpus": 1, "num_training_gpus": 2}


def test_a_server_that_dies_leaves_a_run_that_goes_on(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On another machine, from the newest checkpoint, with the prompts that were not learned from."""
    machine = here / "machine"
    machine.mkdir()
    python = machine / "python"
    python.write_text(f'#!/bin/sh\ncat >/dev/null\nls "$2" >"{machine}/merged"\necho "$3 $4" >>"{machine}/merged"\n')
    python.chmod(0o755)
    file = here / "arbor_pod.json"
    arbor = Arbor(machine / "storage", scripted, die_at=3)
    groups = []
    for attempt in range(2):
        with serving(arbor.answer) as url:
            log = install_ssh(here / "bin", forward=int(url.rsplit(":", 1)[1]), home=machine)
            monkeypatch.setenv("PATH", f"{log.parent}{os.pathsep}{os.environ['PATH']}")
            record = {"ssh": {"host": "203.0.113.7"}, "storage": "/workspace/arbor/storage", "python": str(python)}
            file.write_text(json.dumps(record))
            argv = FLAGS if not attempt else ["--resume", "grpo_checkpoints"]
            code = commands.train(argv)
            said = capsys.readouterr().err
            groups.append(arbor.groups)
        if not attempt:
            assert code == 4
            assert "does not answer any more" in said
            assert "Step 3 is saved" in said or "Step 2 is saved" in said
            assert "python train.py --resume grpo_checkpoints" in said
            arbor = Arbor(machine / "storage", scripted)
    assert code == 0, said
    folder = here / "grpo_checkpoints"
    kept = int((machine / "merged").read_text().splitlines()[-1].split("-")[-1])
    assert "adapter_model.safetensors" in (machine / "merged").read_text()
    seen = [group[0]["messages"] for group in [*groups[0][:kept], *groups[1]]]
    assert seen == [list(prompt.messages) for prompt in order(folder)]
    assert [line["step"] for line in lines(folder / "steps.jsonl")] == [1, 2, 3, 4, 5]
    settings = json.loads((folder / "checkpoint-5" / "adapter_config.json").read_text())
    assert settings["r"] == 32, "both adapters in one"
    assert settings["base_model_name_or_path"] == "Qwen/Qwen2.5-3B"


def test_a_training_goes_on_with_another_server(loopback: tuple[Arbor, str], here: Path) -> None:
    arbor, url = loopback
    arbor.die_at = 1
    assert commands.train([*FLAGS, "--arbor-url", url]) == 4
    other = Arbor(here / "other", scripted)
    with serving(other.answer) as its:
        assert commands.train(["--resume", "grpo_checkpoints", "--arbor-url", its]) == 0
    assert [group[0]["messages"] for group in other.groups] == [
        list(prompt.messages) for prompt in order(here / "grpo_checkpoints")
    ]


@pytest.mark.parametrize("lost", [0, 1])
def test_a_stopped_training_goes_on_with_its_job(
    lost: int, loopback: tuple[Arbor, str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arbor, url = loopback

    def interrupting(prompt: str, number: int) -> str:
        if len(arbor.groups) == 3 and number % 4 == 3:
            os.kill(os.getpid(), signal.SIGINT)
            arbor.reply = scripted
        return scripted(prompt, number)

    arbor.reply = interrupting
    assert commands.train([*FLAGS, "--arbor-url", url]) == 4
    steps = here / "grpo_checkpoints" / "steps.jsonl"
    kept = steps.read_text().splitlines()
    # Killed between handing in and writing down: the server knows better.
    steps.write_text("".join(line + "\n" for line in kept[: len(kept) - lost]))
    assert commands.train(["--resume", "grpo_checkpoints"]) == 0
    assert "still has the job" in capsys.readouterr().err
    assert len(arbor.jobs) == 1
    assert [group[0]["messages"] for group in arbor.groups] == [
        list(prompt.messages) for prompt in order(here / "grpo_checkpoints")
    ]


def test_no_server(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.train([*FLAGS, "--arbor-url", "http://127.0.0.1:9"]) == 2
    said = capsys.readouterr().err
    assert "No Arbor server found at http://127.0.0.1:9; start it with: " in said
    assert "--host 127.0.0.1" in said
    assert not (here / "grpo_checkpoints").exists()
    with serving(lambda handler, body: (200, {"info": {"title": "vLLM"}})) as url:
        assert commands.train([*FLAGS, "--arbor-url", url]) == 2
    assert "is not Arbor (vLLM)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--training-gpus", "0,1"], "lists a GPU twice"),
        (["--training-gpus", "one"], "is not a list of GPU ids"),
        (["--inference-gpus", "2", "--training-gpus", "0,1"], "use --inference-gpus 0 --training-gpus 1,2"),
        (["--training-gpus", "1,2,3"], "use --num-generations 6 --batch-size 1"),
        (["--loss", "cispo"], "use --loss dr_grpo"),
        (["--loss", "dapo", "--mask-truncated"], "not a number"),
        (["--loss", "grpo"], "--loss dr_grpo"),
        (["--precision", "fp32"], "use --precision bf16"),
        (["--max-prompt-tokens", "200"], "would cut off its beginning"),
        (["--model", "embedded:tiny"], "use --backend trl"),
        (["--arbor-url", "nowhere.json"], "neither a URL"),
    ],
)
def test_what_cannot_work_is_refused_before_it_costs(
    flags: list[str], said: str, loopback: tuple[Arbor, str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arbor, url = loopback
    assert commands.train([*FLAGS, "--arbor-url", url, *flags]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert not arbor.jobs
    assert not (here / "grpo_checkpoints").exists()


def test_the_seed_recipe_runs_and_says_what_it_does(
    loopback: tuple[Arbor, str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arbor, url = loopback
    argv = [*FLAGS[:12], "--no-mlflow", "--eval-steps", "5", "--recipe", "seed", "--arbor-url", url]
    assert commands.train(argv) == 0
    (job,) = arbor.jobs.values()
    assert job.request["trainer_config"]["beta"] == 0.04
    assert job.request["trainer_config"]["lora_config"]["r"] == 64
    said = capsys.readouterr().err
    assert "about 2.2 for a prompt of 2,048 tokens; use --beta 0" in said
    assert "use --no-mask-truncated" in said


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("Not enough free GPUs. Requested: 3, Free: [0]", "--backend trl"),
        ("No GPUs available on this host.", "free one and restart"),
        ("x is not a local folder and is not a valid model identifier", "cannot find the model"),
        ("429 Client Error: Too Many Requests", "wait some minutes"),
        ("401 Client Error: you must have access to this gated repo", "hf auth login"),
        ("CUDA out of memory", "--mode doctor"),
        ("Your setup doesn't support bf16/gpu.", "rent an Ampere"),
        ("Timed out waiting for 2 client response(s)", "deepspeed_config.yaml"),
        ("another thing, with Bearer abcdefgh", "refused with status 500: another thing, with Bearer [redacted]"),
    ],
)
def test_what_refusals_mean(message: str, said: str) -> None:
    explanation = arbor_client.explain_error("fine_tuning/grpo/initialize", 500, {"type": "X", "message": message})
    assert said in explanation
    assert "\n" not in explanation


@pytest.mark.parametrize("route", ["fine_tuning/grpo/checkpoint", "chat/completions"])
def test_a_training_that_ended_before_its_last_checkpoint_or_validation_gets_both(
    route: str, loopback: tuple[Arbor, str], here: Path
) -> None:
    arbor, url = loopback

    def until_the_last(prompt: str, number: int) -> str:
        if len(arbor.groups) == 4:
            arbor.fail["fine_tuning/grpo/checkpoint"] = 500, {"message": "No space left on device"}
        return scripted(prompt, number)

    checkpoint = arbor._checkpoint

    def and_then_fail(job: Any, content: dict[str, Any]) -> Any:
        arbor.fail[route] = None
        return checkpoint(job, content)

    if route == "chat/completions":
        arbor._checkpoint = and_then_fail  # type: ignore[method-assign]
    else:
        arbor.reply = until_the_last
    flags = ["--eval-steps", "5", "--save-steps", "5"]
    assert commands.train([*FLAGS, *flags, "--arbor-url", url]) == 4
    arbor.fail.clear()
    arbor.reply, arbor._checkpoint = scripted, checkpoint  # type: ignore[method-assign]
    assert commands.train(["--resume", "grpo_checkpoints"]) == 0
    folder = here / "grpo_checkpoints"
    assert [line["step"] for line in lines(folder / "validation_scores.jsonl")] == [0, 5]
    assert json.loads((folder / "best" / "training.json").read_text())["validation"]["step"] == 5
    assert len(arbor.groups) == 5
    assert [job.status for job in arbor.jobs.values()] == ["cancelled"]


@pytest.mark.parametrize(
    ("route", "refusal", "said"),
    [
        ("fine_tuning/grpo/initialize", (500, {"message": "Not enough free GPUs"}), "too few free GPUs"),
        ("chat/completions", None, "The model did not answer"),
    ],
)
def test_a_refusal_loses_nothing(
    route: str,
    refusal: Any,
    said: str,
    loopback: tuple[Arbor, str],
    here: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arbor, url = loopback
    arbor.fail[route] = refusal
    assert commands.train([*FLAGS, "--arbor-url", url]) == 4
    assert said in capsys.readouterr().err
    del arbor.fail[route]
    assert commands.train(["--resume", "grpo_checkpoints"]) == 0
    assert len(arbor.jobs) == 1


def test_a_trainer_that_died_is_noticed_and_its_log_read(
    loopback: tuple[Arbor, str], here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server goes on answering, with the batches of before."""
    arbor, url = loopback
    monkeypatch.setattr(arbor_client, "STALL_SECONDS", 0.5)
    status = arbor._status_of

    def stale(name: str, job: Any) -> dict[str, Any]:
        log = here / "storage" / name / "logs" / "grpo_training.log"
        log.parent.mkdir(exist_ok=True, parents=True)
        log.write_text('{"message": "torch.OutOfMemoryError: CUDA out of memory."}\n')
        return {**status(name, job), "pending_batch_ids": []}

    arbor._status_of = stale  # type: ignore[method-assign]
    (here / "arbor.yaml").write_text(f"storage_path: {here / 'storage'}\n")
    assert commands.train([*FLAGS, "--arbor-url", url]) == 4
    said = capsys.readouterr().err
    assert "requested no batch" in said
    assert "ran out of GPU memory: halve" in said
    assert (here / "arbor.yaml").read_text().startswith("storage_path"), "a file that is there stays as it is"

"""train.py without PyTorch: usage errors, announcements, exports, model cards and distillation."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from memometer.commands import train
from memometer.errors import UserError
from memometer.models.replay_cache import SearchStopped
from memometer.run.folder import RunFolder
from memometer.train import (
    chat_format,
    checkpoints,
    compare_arms,
    distillation,
    episode_files,
    local_model,
    metrics,
    results,
    target_replies,
    trl_backend,
)
from memometer.train.options import Hyperparameters, TrainOptions
from memometer.train.plan import TrainingPlan, identity, make_plan
from memometer.train.prompt_dataset import ReadingPrompt
from memometer.train.reward import Case, gold_reply
from tests import commands
from tests.conftest import ROOT, Reply, Server, completion
from tests.model_server import of_json, serving

SAMPLE = str(ROOT / "locomo" / "sample.json")
USAGE = 2
SMALL = ["--budgets", "64,128", "--num-train", "8", "--num-val", "4", "--num-train-steps", "3", "--data", SAMPLE]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--mode", "sft", "--backend", "arbor"], "use --mode sft --backend trl"),
        (["--mode", "distill"], "needs a teacher"),
        (["--teacher", "openai/x"], "use --mode distill"),
        (["--mode", "sft", "--teacher-api-base", "http://x"], "--teacher-api-base needs --teacher"),
        (["--mode", "sft", "--export", "verl"], "--export is for --mode train"),
        (["--rounds", "3", "--budgets", "512"], "--rounds 3 needs as many --budgets, and there are 1"),
        (["--memory", "oracle", "--rounds", "1"], "leave out --rounds"),
        (["--examples"], "use --backend trl"),
        (["--learning-rate", "3"], "--learning-rate: 3: expected a number from 1e-09 to 1"),
        (["--absent-share", "2"], "--absent-share: 2"),
        (["--backend", "trl", "--num-generations", "7", *SMALL], "use --num-generations 8"),
        (["--backend", "trl", "--budgets", "100,300", "--data", SAMPLE], "with 2 rounds use --budgets 150,300"),
        (["--resume", "nowhere", "--seed", "3"], "leave out --seed"),
        (["--resume", "nowhere"], "nowhere"),
        (["--data", "nowhere.json"], "nowhere.json"),
        (["--mode", "evaluate", "--adapter", "nowhere"], "nowhere"),
        (["--backend", "trl", "--adapter", "nowhere", *SMALL], "--adapter nowhere"),
        (["--adapter", "x", "--backend", "trl", "--lora-rank", "8"], "--lora-rank"),
        (["--push-to-hub", "mine"], "OWNER/NAME"),
        (["--attn", "sdpa", "--no-vllm"], "--attn, --vllm is for --backend trl"),
        (["--backend", "trl", "--training-gpus", "1"], "--training-gpus is for --backend arbor"),
        (["--mode", "sft", "--vllm-memory", "0.5"], "--vllm-memory is for --mode train"),
        (["--mode", "sft", "--cost-limit", "1"], "--cost-limit needs --teacher"),
        (["--resume", "nowhere", "--cost-limit", "0"], "--cost-limit"),
        (["--export", "verl", "--loss", "cispo", *SMALL], "--loss cispo"),
        (["--mode", "evaluate", "--model", "x"], "--model has no effect"),
        (["--mode", "evaluate", "--num-train", "3"], "--num-train has no effect"),
        (["--mode", "sft", "--split", "validation"], "--num-test"),
        (["--mode", "sft", "--run-dir", "x"], "--run-dir has no effect"),
        (["--mode", "train", "--environment", "x"], "--environment has no effect"),
        (["--export", "verl", "--merge"], "--merge has no effect"),
        (["--backend", "arbor", "--patience", "2"], "--patience is for --backend trl"),
        (["--benchmark", "nothing"], "nothing"),
        (["--chat-template-kwargs", "[1]"], "--chat-template-kwargs"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert commands.train(flags) == USAGE
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert not Path("grpo_checkpoints").exists() or not any(Path("grpo_checkpoints").rglob("manifest.json"))


def test_the_seeds_command_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    command = (
        "--mode train --num-train 600 --num-val 100 --num-train-steps 500 --model Qwen/Qwen2.5-3B --inference-gpus 0 "
        "--training-gpus 1,2 --recipe seed --dry-run"
    )
    assert commands.train([*command.split(), "--data", SAMPLE]) == 0
    told = capsys.readouterr().out
    assert "train with arbor, recipe seed: Qwen/Qwen2.5-3B, LoRA rank 64, 500 steps, learning rate 2e-05" in told
    assert "show all evidence" in told


def test_simulated_data_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--data", "simulated", "--backend", "trl", "--num-train", "20", "--num-val", "6", "--budgets", "256"]
    assert commands.train([*flags, "--memory", "oracle", "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("SIMULATED  train with trl")


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="PyTorch is installed")
def test_without_pytorch_the_next_command_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.train(["--backend", "trl", *SMALL]) == USAGE
    said = capsys.readouterr().err
    assert "needs torch" in said
    assert "pip install" in said
    assert not Path("grpo_checkpoints").exists()


def _written_for(engine: str, capsys: pytest.CaptureFixture[str]) -> Path:
    assert commands.train(["--export", engine, "--output-dir", "out", *SMALL]) == 0
    told = capsys.readouterr().out
    assert f"written to out/{engine}" in told
    assert commands.train(["--export", engine, "--output-dir", "out", *SMALL]) == USAGE  # nothing is overwritten
    capsys.readouterr()
    return Path("out") / engine


def test_verifiers_gets_a_taskset(capsys: pytest.CaptureFixture[str]) -> None:
    """Its own loader was tried with 0.4.0; here the parts that need no verifiers."""
    folder = _written_for("verifiers", capsys)
    package = folder / "memometer_reading"
    compile((package / "__init__.py").read_text(), "taskset", "exec")
    rows = [json.loads(line) for line in (package / "train.jsonl").read_text().splitlines()]
    assert set(rows[0]) == {"id", "name", "system_prompt", "prompt", "case"}
    assert rows[0]["system_prompt"].startswith("Answer the question")
    assert gold_reply(Case.of_json(json.loads(rows[0]["case"])))
    settings = tomllib.loads((folder / "eval.toml").read_text())
    assert settings["push"] is False
    assert settings["env"]["taskset"] == {"id": "memometer-reading", "split": "train"}
    training = tomllib.loads((folder / "rl.toml").read_text())
    assert training["orchestrator"]["train"]["source"][0]["env"]["taskset"]["id"] == "memometer-reading"
    assert training["max_steps"] == 3
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert [name.partition(">")[0] for name in project["dependencies"]] == ["verifiers"], "no index is asked for ours"
    # Values without a counterpart are named, and no path of this machine is written.
    readme = (folder / "README.md").read_text()
    assert "--clip-high 0.2" in readme or "--scale-rewards" in readme
    for file in folder.rglob("*"):
        assert file.is_dir() or str(Path.cwd()) not in file.read_text()


@pytest.mark.parametrize("engine", ["verifiers", "verl"])
def test_exported_episodes_give_the_same_rewards(engine: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Verifiers' own loader was tried with 0.4.0; verl's agent loop was not run."""
    if engine == "verl":
        pytest.importorskip("pyarrow.parquet")
    flags = [*SMALL, "--episodes", "--rounds", "2", "--budgets", "64,128"]
    assert commands.train(["--export", engine, "--output-dir", "out", *flags]) == 0
    capsys.readouterr()
    folder = Path("out") / engine
    source = folder / ("memometer_reading/__init__.py" if engine == "verifiers" else "agent_loop.py")
    compile(source.read_text(), str(source), "exec")
    loaded = episode_files.read(source.parent / "episodes.json")
    plan = make_plan(train.options_of(vars(train.parser().parse_args([*flags, "--backend", "trl"]))))
    assert plan.episodes is not None
    asked = list(dict.fromkeys(prompt.question_id for prompt in (*plan.train, *plan.validation)))
    assert list(loaded.questions) == asked, "no other question leaves this machine"
    replies = ["none\nStatus: more\nLookup: garden\nAnswer: ?", "1\nStatus: answered\nAnswer: x"]
    for id in asked:
        assert loaded.grade(id, replies) == plan.episodes.grade(id, replies)
    if engine == "verifiers":
        row = json.loads((source.parent / "train.jsonl").read_text().splitlines()[0])
        assert set(row) == {"id", "name", "system_prompt", "prompt", "question"}


def test_verl_gets_parquet_and_a_reward(capsys: pytest.CaptureFixture[str]) -> None:
    """Its own loaders were tried with 0.9.1; here the parts that need no verl."""
    parquet = pytest.importorskip("pyarrow.parquet")
    folder = _written_for("verl", capsys)
    rows = parquet.read_table(folder / "train.parquet").to_pylist()
    assert str(Path.cwd()) not in (folder / "grpo.yaml").read_text() + (folder / "README.md").read_text()
    assert "--scale-rewards batch" in (folder / "README.md").read_text()
    assert [message["role"] for message in rows[0]["prompt"]] == ["system", "user"]
    spec = importlib.util.spec_from_file_location("verl_reward", folder / "reward.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    info = rows[0]["extra_info"]
    best = gold_reply(Case.of_json(json.loads(info["case"])))
    found = module.compute_score("memometer", best, rows[0]["reward_model"]["ground_truth"], info)
    assert found["score"] > 0
    assert module.compute_score("memometer", "", "x", info)["score"] == -1.0


def test_the_test_split_cannot_be_trained_on(locomo: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """No flag selects the training conversations, and exported prompts are from the training split."""
    assert "--split" not in {
        action.option_strings[0]
        for group in train.parser()._action_groups
        if group.title != "evaluate"
        for action in group._group_actions
        if action.option_strings
    }
    flags = ["--export", "verifiers", "--num-train", "4", "--num-val", "2", "--memory", "oracle", "--backend", "trl"]
    assert commands.train([*flags, "--data", str(locomo.path)]) == 0
    lines = Path("grpo_checkpoints/verifiers/memometer_reading/train.jsonl").read_text().splitlines()
    asked = {json.loads(line)["id"].split("#")[0] for line in lines}
    assert asked <= {"conv-26", "conv-30", "conv-41", "conv-43"}


def test_prompts_survive_their_file(capsys: pytest.CaptureFixture[str]) -> None:
    folder = _written_for("verifiers", capsys)
    line = (folder / "memometer_reading" / "train.jsonl").read_text().splitlines()[0]
    case = Case.of_json(json.loads(json.loads(line)["case"]))
    prompt = ReadingPrompt("a", "b", "c", 64, ({"role": "user", "content": "x"},), case)
    assert ReadingPrompt.of_json(json.loads(json.dumps(prompt.as_json()))) == prompt


def plan_of(*flags: str) -> TrainingPlan:
    return make_plan(train.options_of(vars(train.parser().parse_args([*flags, "--memory", "oracle", *SMALL]))))


def test_the_model_card_states_the_datas_licence(sample: Any) -> None:
    plan = plan_of("--mode", "sft")
    notes = checkpoints.training_notes(plan, {"step": 3, "reward": 0.25})
    assert "license: mit" in checkpoints.model_card(plan, notes)
    assert notes["trained_on"] == ["sample-1"]
    card = checkpoints.model_card(replace(plan, data=replace(sample, kind="")), notes)
    assert "license: cc-by-nc-4.0" in card
    assert "forbids commercial use" in card


@pytest.mark.parametrize("flag", ["--adapter", "--model"])
def test_the_source_of_a_training_passes_on_its_licence_and_its_data(flag: str) -> None:
    settings = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "target_modules": ["v_proj", "q_proj"]}
    Path("first").mkdir()
    Path("first/adapter_config.json").write_text(json.dumps(settings))
    source = {"stand_in": "", "trained_on": ["conv-26"], "selected_on": ["conv-47"]}
    Path("first/training.json").write_text(json.dumps(source))
    plan = plan_of("--mode", "sft", flag, "first")
    notes = checkpoints.training_notes(plan, {"step": 3, "reward": 0.25})
    assert notes["trained_on"] == ["conv-26", "sample-1"]
    assert "conv-47" in notes["selected_on"]
    assert "LOCOMO" in notes["licence"]
    assert "license: cc-by-nc-4.0" in checkpoints.model_card(plan, notes)
    if flag == "--adapter":
        assert (plan.hyperparameters.lora_rank, plan.hyperparameters.lora_targets) == (4, "q_proj,v_proj")


def test_out_of_memory_names_a_knob() -> None:
    error = RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")
    values = Hyperparameters(batch_size=8, gradient_accumulation=2)
    told = trl_backend.explain_out_of_memory(error, values)
    assert "Tried to allocate 2.00 GiB" in told
    assert "--batch-size 4 --gradient-accumulation 4" in told
    assert "--quantize 4bit" in trl_backend.explain_out_of_memory(error, replace(values, batch_size=1))


def test_the_script_runs_as_a_script() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "--mode", "distill"], capture_output=True, text=True, check=False
    )
    assert done.returncode == USAGE
    assert done.stderr.startswith("train.py: --mode distill needs a teacher")
    assert done.stderr.count("\n") == 1


def teaching_plan(server: Server, *flags: str) -> tuple[TrainingPlan, dict[str, str]]:
    """A plan with a teacher, and the gold reply to each prompt."""
    teacher = ["--teacher", "openai/teacher", "--teacher-api-base", server.url]
    plan = plan_of("--mode", "distill", *teacher, *flags)
    return plan, {prompt.messages[-1]["content"]: gold_reply(prompt.case) for prompt in plan.train}


def test_a_resumed_training_learns_from_the_same_replies(server: Server, tmp_path: Path) -> None:
    plan, golds = teaching_plan(server)
    last = list(golds)[-1]
    broken = True

    def reply(number: int, body: dict[str, Any]) -> Reply:
        prompt = body["messages"][-1]["content"]
        if broken and prompt == last:
            return Reply(500, {"error": {"message": "down"}})
        return completion(golds[prompt])

    server.answer = reply
    with RunFolder.create(tmp_path / "run", {}) as folder:
        found = target_replies.target_replies(plan, folder)
        assert len(found) == len(plan.train) - 1
        broken = False
        assert target_replies.target_replies(plan, folder) == found


def test_a_limit_that_was_reached_can_be_raised() -> None:
    plan = plan_of("--mode", "distill", "--teacher", "openai/x", "--cost-limit", "1")
    raised = replace(plan, options=replace(plan.options, cost_limit=5.0))
    assert identity(plan) == identity(raised)
    assert identity(plan) != identity(replace(plan, options=replace(plan.options, model="x")))


def test_a_teacher_is_asked_once_and_its_correct_replies_are_learned(server: Server, tmp_path: Path) -> None:
    plan, golds = teaching_plan(server, "--teacher-price", "1,2")
    right = {prompt for n, prompt in enumerate(golds) if n % 2}

    def reply(number: int, body: dict[str, Any]) -> Reply:
        prompt = body["messages"][-1]["content"]
        return completion(golds[prompt] if prompt in right else "something else entirely")

    server.answer = reply
    with RunFolder.create(tmp_path / "run", {}) as folder:
        found = distillation.teacher_replies(plan, folder)
        assert len(server.requests) == len(plan.train)
        assert set(found.values()) == {golds[prompt] for prompt in right}
        assert distillation.teacher_replies(plan, folder) == found
        assert len(server.requests) == len(plan.train)
    limited = replace(plan, options=replace(plan.options, cost_limit=1e-6))
    with RunFolder.create(tmp_path / "limited", {}) as folder, pytest.raises(SearchStopped, match="--cost-limit"):
        distillation.teacher_replies(limited, folder)


def test_a_teacher_that_does_not_answer_ends_the_training_at_its_first_call(tmp_path: Path) -> None:
    with serving(lambda body: of_json({"error": {"message": "there is no model of this name"}}, 404)) as server:
        plan = plan_of("--mode", "distill", "--teacher", "openai/teacher", "--teacher-api-base", server.url)
        with RunFolder.create(tmp_path / "run", {}) as folder, pytest.raises(UserError, match="no model of this name"):
            distillation.teacher_replies(plan, folder)
    assert server.calls == 1


def test_each_mode_has_its_own_files_and_none_scores_the_test_split_unasked() -> None:
    found = {mode: plan_of("--mode", mode, *extra).options for mode, extra in MODES.items()}
    for name in ("out", "output_dir"):
        assert len({getattr(options, name) for options in found.values()}) == len(found)
    assert {options.num_test for options in found.values()} == {0}
    assert TrainOptions(mode="evaluate").num_test == 100


MODES: dict[str, list[str]] = {"train": [], "sft": [], "distill": ["--teacher", "openai/x"]}


def test_the_arms_of_an_evaluation(tmp_path: Path) -> None:
    """The gain is against the base with examples; what came before GRPO is separate."""
    supervised, grpo = tmp_path / "sft" / "best", tmp_path / "grpo"
    supervised.mkdir(parents=True)
    (supervised / "adapter_config.json").write_text("{}")
    (supervised / "training.json").write_text(json.dumps({"mode": "sft"}))
    first = tmp_path / "first"
    first.mkdir()
    (first / "adapter_config.json").write_text("{}")
    checkpoints.copy_start(first, tmp_path / "sft")
    grpo.mkdir()
    checkpoints.copy_start(supervised, grpo)
    starts = compare_arms.starting_adapters(grpo / "best")
    assert list(starts) == ["starting adapter", "supervised"]
    arms = ("adapter", "base", "base with examples", "base with style rules", *starts)
    pairs = [(one, other) for one, other, _ in compare_arms.comparisons(arms)]
    assert pairs[0] == ("adapter", "base with examples")
    assert ("adapter", "supervised") in pairs
    assert ("supervised", "base with examples") in pairs


def test_a_best_checkpoint_is_compared_with_step_0(tmp_path: Path) -> None:
    scores = tmp_path / "scores.jsonl"
    prompts = plan_of("--mode", "sft").validation
    for step, reward in ((0, 0.5), (2, 0.25)):
        metrics.append(scores, {"step": step, "reward": reward, "rewards": [reward] * len(prompts)})
    gain = checkpoints.gain_over_start(scores, prompts, 2)
    assert gain is not None
    assert gain.difference == pytest.approx(-0.25)
    assert "did not help" in results.describe_gain(gain)


def test_a_missing_package_is_installed_by_its_own_name() -> None:
    with pytest.raises(UserError, match=r"pip install no_such_package$"):
        local_model.require("no_such_package")


@pytest.mark.filterwarnings("ignore::UserWarning")  # of LiteLLM about its own types
def test_served_models_decode_as_in_training(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server must not add the sampling values of the model, nor run on after the end token."""
    import dspy

    decoding = {"stop_token_ids": [7, 8], "chat_template_kwargs": {"enable_thinking": False}}
    server.answer = lambda number, body: completion("[[ ## answer ## ]]\n2022\n\n[[ ## completed ## ]]")
    lm = dspy.LM("openai/base", api_base=server.url, api_key="none", temperature=0.0, max_tokens=8, cache=False)
    lm.kwargs.update(chat_format.served_decoding(decoding))
    with dspy.context(lm=lm):
        assert dspy.Predict("question -> answer")(question="When?") is not None
    sent = server.requests[0]
    assert sent["temperature"] == 0.0
    assert sent["repetition_penalty"] == 1.0
    assert sent["stop_token_ids"] == [7, 8]
    assert sent["chat_template_kwargs"] == {"enable_thinking": False}

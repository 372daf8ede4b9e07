"""Options and hyperparameters of training: the seed's values, recipes, and values that do not fit together."""

from __future__ import annotations

import json

import pytest

from memometer.commands import train
from memometer.errors import UserError
from memometer.train.options import GRPO_ONLY, NAMES, RECIPES, TrainOptions


@pytest.mark.parametrize("backend", ["arbor", "trl"])
def test_the_seeds_recipe_to_the_letter(backend: str) -> None:
    values = TrainOptions(recipe="seed", backend=backend).hyperparameters()
    expected = {
        "batch_size": 2,
        "gradient_accumulation": 4,
        "learning_rate": 2e-5,
        "lr_scheduler": "constant_with_warmup",
        "beta": 0.04,
        "lora_rank": 64,
        "lora_alpha": 16,
        "precision": "bf16",
        "max_prompt_tokens": 4096,
        "max_completion_tokens": 512,
        "loss": "dr_grpo" if backend == "arbor" else "dapo",
    }
    assert {name: getattr(values, name) for name in expected} == expected
    assert values.prompts_per_step == 1


def test_the_current_recipe() -> None:
    values = TrainOptions(backend="trl").hyperparameters()
    assert (values.beta, values.loss, values.scale_rewards) == (0.0, "dapo", "batch")
    assert values.prompts_per_step == 8
    assert RECIPES["current", "arbor"].beta == 0.0


def test_supervised_values() -> None:
    values = TrainOptions(mode="sft").hyperparameters()
    assert (values.batch_size, values.gradient_accumulation, values.learning_rate) == (4, 4, 2e-4)
    assert not set(values.used_by("sft")) & set(GRPO_ONLY)
    assert set(values.used_by("train")) == set(NAMES)


def test_every_hyperparameter_has_a_flag_and_a_flag_wins() -> None:
    flags = {action.dest for action in train.parser()._actions}
    assert set(NAMES) <= flags
    given = vars(train.parser().parse_args(["--backend", "trl", "--learning-rate", "1e-3", "--num-generations", "4"]))
    values = train.options_of(given).hyperparameters()
    assert (values.learning_rate, values.num_generations, values.lora_rank) == (1e-3, 4, 16)


@pytest.mark.parametrize(
    ("mode", "backend", "overrides", "hint"),
    [
        ("train", "trl", {"num_generations": 7}, "--num-generations 8"),
        ("train", "trl", {"num_generations": 1}, "2 or more"),
        ("train", "arbor", {"loss": "grpo"}, "--loss dr_grpo"),
        ("train", "arbor", {"top_p": 0.9}, "--backend trl"),
        ("sft", "trl", {"beta": 0.1}, "--beta .*--mode sft"),
    ],
)
def test_values_that_do_not_fit_together(mode: str, backend: str, overrides: dict[str, object], hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        TrainOptions(mode=mode, backend=backend, overrides=overrides).hyperparameters()


def test_options_survive_a_manifest() -> None:
    options = TrainOptions(mode="distill", teacher="openai/x", teacher_price=(1.0, 2.0), overrides={"lora_rank": 4})
    assert TrainOptions.of_saved(json.loads(json.dumps(options.as_json()))) == options


@pytest.mark.parametrize(
    ("flags", "hint"),
    [
        ("--mode sft --episodes", "--episodes is for --mode train"),
        ("--mode evaluate --episodes", "--episodes"),
        ("--episodes", "--backend trl"),
        ("--backend trl --episodes --rounds 1 --budgets 512", "--rounds 2"),
        ("--backend trl --episodes --memory oracle", "--memory oracle"),
        ("--backend trl --question-budget 900", "--question-budget .*--episodes"),
        ("--backend trl --token-price 0.1", "--token-price .*--episodes"),
        ("--export verl --episodes --examples", "--examples"),
    ],
)
def test_episodes_refuse_what_has_no_effect(flags: str, hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        train.options_of(vars(train.parser().parse_args(flags.split())))

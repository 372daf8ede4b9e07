"""The hyper-parameters of training: the seed's to the letter, and what does not go together."""

from __future__ import annotations

import pytest

from memometer.train.hyperparameters import NAMES, RECIPES, RecipeError, prompts_per_step, resolve


@pytest.mark.parametrize("backend", ["arbor", "trl"])
def test_the_seeds_recipe_to_the_letter(backend: str) -> None:
    values = resolve("seed", mode="train", backend=backend, chosen={})
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
    }
    assert {name: values[name] for name in expected} == expected
    assert prompts_per_step(values) == 1


def test_todays_recipe() -> None:
    values = resolve("current", mode="train", backend="trl", chosen={})
    assert (values["beta"], values["loss"], values["scale_rewards"]) == (0.0, "dapo", "batch")
    assert prompts_per_step(values) == 8
    assert RECIPES["current"]["arbor"]["beta"] == 0.0


def test_every_value_has_a_flag_and_a_flag_wins() -> None:
    from memometer.commands import train

    flags = vars(train.parser().parse_args([]))
    assert set(NAMES) <= set(flags)
    assert all(flags[name] is None for name in NAMES)
    chosen = {**flags, "learning_rate": 1e-3, "num_generations": 4}
    values = resolve("current", mode="train", backend="trl", chosen=chosen)
    assert (values["learning_rate"], values["num_generations"], values["lora_rank"]) == (1e-3, 4, 16)
    assert set(values) <= set(NAMES)


@pytest.mark.parametrize(
    ("mode", "backend", "chosen", "told"),
    [
        ("train", "trl", {"num_generations": 7}, "use --num-generations 8"),
        ("train", "trl", {"num_generations": 1}, "2 or more"),
        ("train", "arbor", {"loss": "grpo"}, "--loss dr_grpo"),
        ("train", "arbor", {"top_p": 0.9}, "--backend trl"),
        ("sft", "trl", {"beta": 0.1}, "--beta has no meaning with --mode sft"),
    ],
)
def test_what_does_not_go_together_is_said(mode: str, backend: str, chosen: dict[str, object], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        resolve("current", mode=mode, backend=backend, chosen=chosen)

"""Options of a training run: the flags of train.py, and the hyperparameters with their recipes.

The recipe `seed` has the original values of this project. `current` follows current practice: no KL term (Dr.
GRPO, DAPO; TRL's default), LoRA on all linear layers with a small rank (Schulman et al., LoRA Without Regret, 2025),
groups of eight or more completions, and short completions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from memometer.run.options import OptionError, Options

OUTPUT_FOLDERS = {"train": "grpo_checkpoints", "sft": "sft_checkpoints", "distill": "distilled_checkpoints"}
PROMPT_FILES = {
    "train": "grpo_optimized_memory_qa.json",
    "sft": "sft_optimized_memory_qa.json",
    "distill": "distilled_optimized_memory_qa.json",
}
"""Default of --out by mode, so that no mode replaces the prompt of another one."""
TEST_QUESTIONS = 100
"""Default of --num-test in --mode evaluate. A training scores the test split only if --num-test is given."""


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """Values of one training. The defaults are recipe `current` for GRPO with TRL.

    `batch_size` counts completions per GPU and forward pass, `num_generations` the completions of one prompt.
    """

    batch_size: int = 8
    gradient_accumulation: int = 8  # with the batch size: 8 prompts of 8 completions
    learning_rate: float = 2e-5
    lr_scheduler: str = "constant_with_warmup"
    warmup_steps: int = 10
    max_grad_norm: float = 0.5
    lora_rank: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    lora_targets: str = "all-linear"
    max_prompt_tokens: int = 3072
    max_completion_tokens: int = 128
    precision: str = "bf16"
    # The rest is for GRPO only.
    num_generations: int = 8
    beta: float = 0.0
    temperature: float = 1.0
    top_p: float = 1.0
    loss: str = "dapo"
    scale_rewards: str = "batch"
    clip_high: float = 0.28
    mask_truncated: bool = False
    importance_sampling: str = "token"

    @property
    def prompts_per_step(self) -> int:
        """Prompts per optimizer step on one training GPU."""
        return self.batch_size * self.gradient_accumulation // self.num_generations

    def used_by(self, mode: str) -> dict[str, Any]:
        """Return the values that a mode of train.py uses, by name."""
        return {name: value for name, value in asdict(self).items() if mode == "train" or name not in GRPO_ONLY}


GRPO_ONLY = (
    "num_generations", "beta", "temperature", "top_p", "loss", "scale_rewards", "clip_high", "mask_truncated",
    "importance_sampling",
)  # fmt: skip
LORA_SHAPE = ("lora_rank", "lora_alpha", "lora_dropout", "lora_targets")
NAMES = tuple(f.name for f in fields(Hyperparameters))

_SEED = Hyperparameters(
    batch_size=2, gradient_accumulation=4, beta=0.04, lora_rank=64, lora_alpha=16, max_prompt_tokens=4096,
    max_completion_tokens=512, scale_rewards="group", clip_high=0.2, mask_truncated=True,
)  # fmt: skip
RECIPES: dict[tuple[str, str], Hyperparameters] = {
    ("seed", "trl"): _SEED,
    ("seed", "arbor"): replace(_SEED, loss="dr_grpo"),
    ("current", "trl"): Hyperparameters(),
    # Arbor takes one prompt per step and has a fixed clip range.
    ("current", "arbor"): Hyperparameters(
        batch_size=4, gradient_accumulation=4, num_generations=16, learning_rate=1e-5, loss="dr_grpo",
        scale_rewards="none", clip_high=0.2,
    ),
}  # fmt: skip
"""GRPO hyperparameters by (recipe, backend)."""

SUPERVISED = Hyperparameters(batch_size=4, gradient_accumulation=4, learning_rate=2e-4)
"""Hyperparameters of sft and distill. LoRA needs about ten times the learning rate of full fine-tuning."""


def recipe(name: str, *, mode: str, backend: str, overrides: Mapping[str, Any] | None = None) -> Hyperparameters:
    """Return a recipe's hyperparameters with overrides, unchecked."""
    base = SUPERVISED if mode in ("sft", "distill") else RECIPES[name, backend]
    return replace(base, **(overrides or {}))


def flag_names(names: Iterable[str]) -> str:
    """Return option names as flags: `--batch-size, --top-p`."""
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)


@dataclass(frozen=True, kw_only=True)
class TrainOptions(Options):
    """Options of train.py, named after its flags.

    An empty `backend`, `output_dir` or `out`, -1 for `rounds` and `num_test`, and 0 for `eval_steps` get their value
    from the other options.

    Raises:
        OptionError: Options contradict each other, or have no effect in this mode. The message is one sentence.
    """

    mode: str = "train"
    backend: str = ""
    export: str | None = None
    recipe: str = "current"
    seed: int = 0
    # data
    benchmark: str | None = None
    data: str | None = None
    num_train: int = 600
    num_val: int = 100
    budgets: tuple[int, ...] = (512, 1024, 2048)
    rounds: int = -1
    episodes: bool = False
    question_budget: int | None = None
    token_price: float | None = None
    memory: str = "adaptive"
    absent_share: float = 0.1
    rename: bool = False
    examples: bool = False
    teacher: str | None = None
    teacher_api_base: str | None = None
    teacher_price: tuple[float, float] | None = None
    cost_limit: float | None = None
    # model
    model: str = "Qwen/Qwen2.5-3B"
    adapter: str | None = None
    quantize: str | None = None
    attn: str | None = None
    packing: bool = False
    unsloth: bool = False
    merge: bool = False
    push_to_hub: str | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None
    # training
    num_train_steps: int = 500
    save_steps: int = 25
    eval_steps: int = 0
    output_dir: str = ""
    patience: int = 0
    out: str = ""
    vllm: bool | None = None
    vllm_memory: float = 0.3
    inference_gpus: str = "0"
    training_gpus: str = "1,2"
    arbor_url: str | None = None
    arbor_config: str = "arbor.yaml"
    no_mlflow: bool = False
    overrides: Mapping[str, Any] = field(default_factory=dict)
    # doctor
    environment: str | None = None
    check_mode: str = ""
    # evaluate
    num_test: int = -1
    split: str = "test"
    budget_tokens: int | None = None
    api_base: str | None = None
    adapter_name: str | None = None
    run_dir: str | None = None

    def __post_init__(self) -> None:
        if self.mode in OUTPUT_FOLDERS:
            self._refuse_contradictions()
        grpo = self.planned_mode == "train" and self.mode != "evaluate"
        self._resolve("backend", "arbor" if grpo and not self.export else "trl")
        if self.mode in OUTPUT_FOLDERS:
            self._refuse_ineffective()
        if self.mode in ("doctor", "evaluate") and self.backend == "together":
            raise OptionError(f"--backend together has no effect in --mode {self.mode}; leave it out.")
        self._resolve("rounds", 0 if self.memory == "oracle" else len(self.budgets))
        self._resolve("output_dir", OUTPUT_FOLDERS[self.planned_mode])
        self._resolve("out", PROMPT_FILES[self.planned_mode])
        self._resolve("num_test", TEST_QUESTIONS if self.mode == "evaluate" else 0)
        self._resolve("eval_steps", max(1, self.num_train_steps // 10))
        if self.rounds and self.memory == "oracle":
            raise OptionError("--memory oracle shows the evidence and asks for the bare answer; leave out --rounds.")
        if self.rounds > 1 and len(self.budgets) != self.rounds:
            raise OptionError(f"--rounds {self.rounds} needs as many --budgets, and there are {len(self.budgets)}.")
        self._check_episodes()
        budgets = sorted(self.budgets)
        object.__setattr__(self, "budgets", tuple(budgets[-1:] if self.memory == "oracle" else budgets))

    @property
    def planned_mode(self) -> str:
        """The training mode: in --mode doctor the one to check, in --mode evaluate train."""
        if self.mode == "doctor":
            return self.check_mode or "train"
        return self.mode if self.mode in OUTPUT_FOLDERS else "train"

    def _resolve(self, name: str, value: Any) -> None:
        if getattr(self, name) in ("", -1) or (name == "eval_steps" and not self.eval_steps):
            object.__setattr__(self, name, value)

    def _refuse_contradictions(self) -> None:
        supervised = self.mode in ("sft", "distill")
        if supervised and self.backend == "arbor":
            raise OptionError(f"Arbor supports GRPO only; use --mode {self.mode} --backend trl.")
        if self.backend == "together" and not supervised:
            raise OptionError("Together's service trains on given replies; use --mode sft or --mode distill.")
        if self.mode == "distill" and not self.teacher:
            raise OptionError("--mode distill needs a teacher, such as --teacher openai/gpt-4o-mini.")
        if self.teacher and not supervised:
            raise OptionError(f"--teacher has no effect in --mode {self.mode}; use --mode distill.")
        for name in ("teacher_api_base", "teacher_price", "cost_limit"):
            if name == "cost_limit" and self.backend == "together":
                continue
            if getattr(self, name) is not None and not self.teacher:
                raise OptionError(f"{flag_names([name])} needs --teacher, such as --teacher openai/NAME.")
        if self.export and self.mode != "train":
            raise OptionError(f"--export is for --mode train; leave out --mode {self.mode}.")
        if self.push_to_hub is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", self.push_to_hub):
            raise OptionError(f"--push-to-hub is {self.push_to_hub!r}; expected OWNER/NAME.")

    def _check_episodes(self) -> None:
        if not self.episodes:
            for name in ("question_budget", "token_price"):
                if getattr(self, name) is not None:
                    raise OptionError(f"{flag_names([name])} is for training on episodes; add --episodes.")
            return
        if self.mode == "evaluate":  # after a training; on the command line the flag is refused
            return
        if self.planned_mode != "train":
            raise OptionError(f"--episodes is for --mode train; leave it out in --mode {self.mode}.")
        if self.backend != "trl":
            raise OptionError(f"{self.backend} trains on single prompts; use --episodes with --backend trl.")
        if self.memory == "oracle":
            raise OptionError("--memory oracle has no further memory to ask for; leave out --memory or --episodes.")
        if self.export and self.examples:
            raise OptionError("exported episodes have no worked examples; leave out --examples.")
        if self.rounds < 2:
            raise OptionError(
                f"--episodes trains to ask for more memory, and --rounds is {self.rounds}; use --rounds 2 or more."
            )

    def _refuse_ineffective(self) -> None:
        if self.examples and self.backend == "arbor":
            raise OptionError("Arbor samples with the worked examples and trains without them; use --backend trl.")
        changed = {f.name for f in fields(self) if f.name in _FOR_BACKEND and getattr(self, f.name) != f.default}
        if idle := [name for name in _FOR_BACKEND if name in changed and _FOR_BACKEND[name] != self.backend]:
            raise OptionError(f"{flag_names(idle)} is for --backend {_FOR_BACKEND[idle[0]]}; leave it out.")
        if self.mode != "train" and (idle := [name for name in ("vllm", "vllm_memory") if name in changed]):
            raise OptionError(f"{flag_names(idle)} is for --mode train; leave it out.")
        if self.mode != "train" and (idle := [name for name in GRPO_ONLY if name in self.overrides]):
            raise OptionError(f"{flag_names(idle)} has no effect in --mode {self.mode}; leave it out.")
        if self.adapter and (idle := [name for name in LORA_SHAPE if name in self.overrides]):
            raise OptionError(f"--adapter {self.adapter} fixes {flag_names(idle)}; leave it out.")

    def hyperparameters(self) -> Hyperparameters:
        """Return the recipe's hyperparameters with the overrides.

        Raises:
            OptionError: The values do not fit together, or the backend does not support them.
        """
        values = recipe(self.recipe, mode=self.planned_mode, backend=self.backend, overrides=self.overrides)
        if self.planned_mode == "train":
            _check_groups(values)
            if self.backend == "arbor" and values.loss == "grpo":
                raise OptionError(
                    "--loss grpo counts the prompt tokens in Arbor, which weakens the gradient; use --loss dr_grpo."
                )
            if self.backend == "arbor" and (values.top_p != 1.0 or values.importance_sampling != "token"):
                raise OptionError("Arbor does not support --top-p and --importance-sampling; use --backend trl.")
        return values


def refuse_idle(given: Iterable[str], options: TrainOptions) -> None:
    """Refuse flags that were given and have no effect in the mode.

    Args:
        given: Names of the options and hyperparameters on the command line.
        options: The options.

    Raises:
        OptionError: A flag has no effect. The message names it.
    """
    known = {f.name for f in fields(TrainOptions)} | set(NAMES)
    if options.mode == "evaluate":
        idle = known - _FOR_EVALUATION
        advice = "the adapter's own notes decide; leave it out"
    else:
        idle = set(_ONLY_EVALUATION)
        advice = "leave it out, or use --mode evaluate"
        if options.mode != "doctor":
            idle |= {"environment", "check_mode"}
            idle |= set() if options.num_test else {"split", "budget_tokens"}
            idle |= _NOT_FOR_EXPORT if options.export else set()
        if options.export:
            advice = "leave it out"
        elif options.mode != "doctor" and {"split", "budget_tokens"} & set(given):
            advice = "add --num-test N, which evaluates the trained adapter"
    if found := [name for name in given if name in idle]:
        where = f"with --export {options.export}" if options.export else f"in --mode {options.mode}"
        raise OptionError(f"{flag_names(found)} has no effect {where}; {advice}.")


_FOR_EVALUATION = {
    "mode", "benchmark", "data", "seed", "adapter", "output_dir", "attn", "unsloth", "num_test", "split",
    "budget_tokens", "api_base", "adapter_name", "run_dir", "no_mlflow",
}  # fmt: skip
_ONLY_EVALUATION = ("run_dir", "api_base", "adapter_name")
_NOT_FOR_EXPORT = {
    "merge", "push_to_hub", "no_mlflow", "out", "patience", "num_test", "teacher", "packing", "unsloth", "attn",
    "quantize", "adapter",
}  # fmt: skip

_FOR_BACKEND = dict.fromkeys(("inference_gpus", "training_gpus", "arbor_url", "arbor_config"), "arbor") | dict.fromkeys(
    ("attn", "packing", "unsloth", "vllm", "vllm_memory", "patience"), "trl"
)
"""Options that only one backend uses."""


def _check_groups(values: Hyperparameters) -> None:
    completions, group = values.batch_size * values.gradient_accumulation, values.num_generations
    if group < 2:
        raise OptionError(
            f"--num-generations is {group}; an advantage compares completions of a group, so use 2 or more."
        )
    if completions % group:
        divisors = [n for n in range(2, completions + 1) if completions % n == 0]
        nearest = min(divisors, key=lambda n: (abs(n - group), n))
        raise OptionError(
            f"--num-generations {group} does not divide --batch-size x --gradient-accumulation = {completions}; "
            f"use --num-generations {nearest}, or another batch."
        )

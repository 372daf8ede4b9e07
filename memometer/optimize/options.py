"""Options of a prompt search, named after the flags of optimize.py."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from memometer.run.options import OptionError, Options

OUT = "optimized_memory_qa.json"
BOOTSTRAP_DEMOS = 2
"""Default of `max_demos` for the bootstrap, which finds nothing but examples."""

CONFIRMATION = 30
"""Default number of confirmation questions of each conversation; six conversations find +15 points in 83 % of cases."""


@dataclass(frozen=True, kw_only=True)
class OptimizeOptions(Options):
    """Options of optimize.py --target prompts.

    Raises:
        OptionError: Options contradict each other.
    """

    ADDED: ClassVar[tuple[str, ...]] = ("judge_max_tokens", "benchmark", "num_confirmation")

    benchmark: str | None = None
    data: str | None = None
    seed: int = 0
    encoder: str | None = None
    out: str | None = None
    # search
    optimizer: str = "simba"
    auto: str = "light"
    num_examples: int = 30
    num_validation: int | None = None
    num_confirmation: int | None = None
    max_demos: int | None = None
    budget_tokens: int = 512
    rounds: int = 1
    question_budget: int | None = None
    token_price: float | None = None
    # models
    model: str | None = None
    api_base: str | None = None
    price: tuple[float, float] | None = None
    prompt_model: str | None = None
    prompt_api_base: str | None = None
    prompt_price: tuple[float, float] | None = None
    judge_model: str | None = None
    judge_api_base: str | None = None
    judge_price: tuple[float, float] | None = None
    judge_max_tokens: int | None = None
    tokenizer: str | None = None
    context_window: int | None = None
    max_answer_tokens: int | None = None
    # execution
    num_threads: int | None = None
    retries: int = 4
    timeout_seconds: float = 120.0
    fail_on_error: float = 0.05
    cost_limit: float | None = None
    no_mlflow: bool = False

    def __post_init__(self) -> None:
        if self.optimizer == "bootstrap" and self.max_demos == 0:
            raise OptionError("--optimizer bootstrap finds nothing but examples; use --max-demos 1 or more.")
        for prefix in ("", "prompt_", "judge_"):
            model = getattr(self, f"{prefix}model")
            if getattr(self, f"{prefix}api_base") and (not model or model == "none"):
                flag = f"--{prefix.replace('_', '-')}"
                raise OptionError(f"{flag}api-base needs {flag}model, such as {flag}model openai/NAME.")

    @property
    def output(self) -> Path:
        """The file for the prompt."""
        return Path(self.out or OUT)

    @property
    def selection_size(self) -> int:
        """Number of selection questions of each search."""
        return self.num_validation or self.num_examples

    @property
    def confirmation_size(self) -> int:
        """Number of confirmation questions of each conversation."""
        return self.num_confirmation or CONFIRMATION

    @property
    def demo_limit(self) -> int:
        """Largest number of found examples in a prompt."""
        if self.max_demos is None:
            return BOOTSTRAP_DEMOS if self.optimizer == "bootstrap" else 0
        return self.max_demos

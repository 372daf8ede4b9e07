"""The options of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from memometer.run.options import OptionError, Options

Price = tuple[float, float]
"""Dollars per million tokens of prompt and of reply."""

NO_JUDGE = "none"


@dataclass(frozen=True)
class EvaluateOptions(Options):
    """The options of `evaluate.py`. Fields have the names of the flags, which `memometer eval --help` describes.

    Raises:
        OptionError: Two options contradict each other, or a value is impossible.
    """

    RENAMED: ClassVar[Mapping[str, str]] = {"no_certificate": "no_calibration"}
    ADDED: ClassVar[tuple[str, ...]] = (
        "ages",
        "judge_max_tokens",
        "allow_failed_calibration",
        "encoder_api_base",
        "reference",
    )

    benchmark: str | None = None
    data: str | None = None
    split: str = "test"
    num_test: int | None = None
    categories: tuple[str, ...] = ()
    two_options: bool = False
    ages: tuple[int, ...] = ()
    seed: int = 0
    systems: tuple[str, ...] = ()
    reference: str | None = None
    budget_tokens: int | None = None
    budgets: tuple[int, ...] = ()
    encoder: str | None = None
    encoder_api_base: str | None = None
    ranking: str = "default"
    rounds: int | None = None
    question_budget: int | None = None
    abstention: Path | None = None
    memory_url: str | None = None
    context_format: str = "lines"
    program: Path | None = None
    prompt: Path | None = None
    folds: bool = False
    recall_only: bool = False
    model: str | None = None
    api_base: str | None = None
    tokenizer: str | None = None
    context_window: int | None = None
    max_answer_tokens: int | None = None
    price: Price | None = None
    judge_model: str | None = None
    judge_api_base: str | None = None
    judge_price: Price | None = None
    judge_max_tokens: int | None = None
    allow_failed_calibration: bool = False
    judge: str | None = None
    max_false_accept: float = 0.15
    no_calibration: bool = False
    wrong_answers: str | None = None
    num_threads: int | None = None
    retries: int = 4
    timeout_seconds: float = 120.0
    ingest_timeout: float = 3600.0
    fail_on_error: float = 0.02
    cost_limit: float | None = None
    batch: bool = False
    no_mlflow: bool = False
    trace: bool = False

    def __post_init__(self) -> None:
        if self.cost_limit not in (None, math.inf) and not 0 < self.cost_limit < 1e6:
            raise OptionError(f"--cost-limit is {self.cost_limit}; it must be a number of dollars above 0.")
        for name in ("fail_on_error", "max_false_accept"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise OptionError(f"--{name.replace('_', '-')} is {value}; it must be a fraction from 0 to 1.")
        if self.retries < 0:
            raise OptionError(f"--retries is {self.retries}; it must be 0 or more.")
        for name in ("timeout_seconds", "ingest_timeout"):
            if not 0 < (value := getattr(self, name)) < 1e6:
                raise OptionError(f"--{name.replace('_', '-')} is {value}; it must be above 0 and below a million.")
        if self.api_base and not self.model:
            raise OptionError("--api-base needs --model, for example --model openai/NAME.")
        for name in ("judge_api_base", "judge_price"):
            without_judge = self.judge_model == NO_JUDGE or (name == "judge_api_base" and self.judge_model is None)
            if getattr(self, name) and without_judge:
                flag = f"--{name.replace('_', '-')}"
                raise OptionError(f"{flag} needs --judge-model, for example --judge-model openai/NAME.")
        if self.encoder_api_base and not self.encoder:
            raise OptionError("--encoder-api-base needs --encoder, for example --encoder openai/NAME.")
        if self.prompt and (self.rounds or self.program):
            raise OptionError("--prompt has the instructions for one call; leave out --rounds and --program.")
        if self.question_budget and not (self.rounds or self.program):
            raise OptionError("--question-budget limits the tokens of all rounds; it needs --rounds.")
        if self.batch:
            self._refuse("--batch has no calls to trace", "trace")
        if self.ages and not self.recall_only:
            raise OptionError("--ages measures the recall at several moments; it needs --recall-only.")
        if self.ages and min(self.ages) < 0:
            raise OptionError(f"--ages has {min(self.ages)}; an age is a number of turns, 0 or more.")
        if self.recall_only:
            self._refuse("--recall-only sends no requests", "batch")
            self._refuse("--recall-only asks no model", "model", "judge_model", "two_options", "trace")
            self._refuse("--recall-only does not read", "rounds", "abstention", "program", "prompt")
            self._refuse("--recall-only costs nothing", "cost_limit", "price", "judge_price")

    def _refuse(self, reason: str, *names: str) -> None:
        if given := [f"--{name.replace('_', '-')}" for name in names if getattr(self, name)]:
            raise OptionError(f"{reason}; leave out {', '.join(given)}.")

    @classmethod
    def of_saved(cls, saved: Mapping[str, Any]) -> Self:
        """As `Options.of_saved`. Earlier versions wrote systems as one text, and categories as numbers."""
        found = dict(saved)
        if isinstance(found.get("systems"), str):
            found["systems"] = [name.strip() for name in found["systems"].split(",") if name.strip()]
        found["categories"] = [str(key) for key in found.get("categories") or ()]
        none_means_default = {name: () for name in ("systems", "budgets") if found.get(name) is None}
        return super().of_saved({**found, **none_means_default})

"""The models of an evaluation: the reader, the judge, and the calibration of the judge."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from memometer.benchmarks.protocol import Benchmark, Dataset
from memometer.harness.options import NO_JUDGE, EvaluateOptions
from memometer.judging.calibrate import Calibrator
from memometer.judging.judge import Judge, shared_family
from memometer.models.downloads import WeightsUnavailable
from memometer.models.resolve_models import Model
from memometer.models.server_errors import Flags
from memometer.run.options import option_errors
from memometer.run.progress import eprint

JUDGE_TOKENS = 16
"""Tokens of a judge's reply at most: it is one word."""

JUDGE_FLAGS = Flags("--judge-model", "--judge-api-base", "--judge-max-tokens")


@dataclass(frozen=True)
class Models:
    """The models of an evaluation.

    Attributes:
        reader: The model that answers; None if only the recall is measured.
        judge_model: The model that judges.
        judge: The judge that asks it.
        calibrator: Calibrates that judge.
        no_judge: The reason why there is no judge accuracy.
    """

    reader: Model | None = None
    judge_model: Model | None = None
    judge: Judge | None = None
    calibrator: Calibrator | None = None
    no_judge: str = "the run called no model"

    @property
    def judge_name(self) -> str | None:
        """The judge model and its prompt."""
        return f"{self.judge_model.name} ({self.judge.prompt})" if self.judge_model and self.judge else None

    @property
    def family(self) -> str:
        """The model family that reader and judge share; empty if there is none."""
        return shared_family(self.reader.name, self.judge_model.name) if self.reader and self.judge_model else ""


def default_names(options: EvaluateOptions) -> tuple[str | None, str | None]:
    """Return the names of the reader and of the judge model (NO_JUDGE for none), with defaults for this machine.

    Both are None if only the recall is measured.
    """
    if options.recall_only:
        return None, None
    from memometer.models import resolve_models

    name = options.model or resolve_models.default_model()
    # The default reader also judges if its provider's key is set. A model that the user names does not, to limit
    # the cost.
    chosen = name if not options.model and name != resolve_models.NO_KEY_DEFAULT else NO_JUDGE
    return name, options.judge_model or chosen


def load_models(options: EvaluateOptions, benchmark: Benchmark, data: Dataset) -> Models:
    """Load the models that options name.

    Args:
        options: Resolved options.
        benchmark: The benchmark, for its judge prompts.
        data: Its data, for the calibration of the judge.

    Raises:
        OptionError: A model cannot be loaded.
        DataError: The judge prompt or the file of wrong answers cannot be used.
    """
    if options.recall_only:
        return Models()
    from memometer.models import resolve_models

    prompt = benchmark.judge_prompt(options.judge)
    calls: dict[str, Any] = {"timeout_seconds": options.timeout_seconds, "retries": options.retries, "log": eprint}
    with option_errors("", ValueError, WeightsUnavailable):
        reader = resolve_models.load(
            str(options.model),
            api_base=options.api_base,
            tokenizer=options.tokenizer,
            context_tokens=options.context_window,
            max_tokens=options.max_answer_tokens or resolve_models.MAX_ANSWER_TOKENS,
            price=options.price,
            **calls,
        )
        reader = _with_listed_window(reader)
        if options.judge_model in (None, NO_JUDGE):
            return Models(
                reader, no_judge="no judge was named; add --judge-model embedded:base, or any DSPy model string."
            )
        judge_model = resolve_models.load(
            str(options.judge_model),
            api_base=options.judge_api_base,
            max_tokens=options.judge_max_tokens or JUDGE_TOKENS,
            price=options.judge_price,
            flags=JUDGE_FLAGS,
            **calls,
        )
    judge = Judge(judge_model.lm, prompt)
    calibrator = Calibrator(
        data, judge_model, judge, address=options.judge_api_base, wrong_answers=options.wrong_answers
    )
    return Models(reader, judge_model, judge, calibrator, no_judge="no answer was graded.")


def _with_listed_window(model: Model) -> Model:
    """The model with the context window that its server reports, if no other source knows it."""
    if model.context_tokens is not None or not model.addresses:
        return model
    from memometer.models.server_facts import listed_window

    return replace(model, context_tokens=listed_window(model))

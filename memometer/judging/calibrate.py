"""The calibration of one judge: read from the cache, or estimated in cost and measured."""

from __future__ import annotations

import os
import threading
from functools import cached_property
from pathlib import Path

from memometer import benchmarks
from memometer.benchmarks.protocol import Dataset
from memometer.judging import calibration_cache, judge_calibration
from memometer.judging.answer_rules import broken_rule
from memometer.judging.calibration_set import WRONG, CalibrationAnswer, draw
from memometer.judging.judge import Judge
from memometer.judging.judge_assessment import assess, cannot_pass
from memometer.judging.judge_calibration import Calibration
from memometer.models.resolve_models import Model
from memometer.run import cost, progress
from memometer.run.folder import RunFolder
from memometer.run.progress import eprint

FIELD_NAME_TOKENS = 24
"""Tokens of a judge's prompt beyond its instructions and fields: the field names and a chat template."""


NOT_POSSIBLE = (
    "the training and validation conversations have no question with a gold answer, and a judge is not calibrated on "
    "test questions; use data with more conversations"
)


class Calibrator:
    """Finds the calibration of a judge, or measures it.

    Args:
        data: The data.
        model: The judge's model, for token counts and prices.
        judge: The judge.
        address: The API base of the model.
        wrong_answers: The file of specific wrong answers; None for the one that the benchmark's environment variable
            names, except for sample and synthetic data.
        per_set: Answers per set.
        repeats: Times that some answers are graded, for the stability.

    Raises:
        DataError: The file of wrong answers cannot be used.
    """

    def __init__(
        self,
        data: Dataset,
        model: Model,
        judge: Judge,
        *,
        address: str | None = None,
        wrong_answers: str | None = None,
        per_set: int = judge_calibration.PER_SET,
        repeats: int = judge_calibration.REPEATS,
    ) -> None:
        known = benchmarks.load(data.benchmark).wrong_answers
        name = wrong_answers or ("" if data.kind or known is None else os.environ.get(known.variable))
        file = Path(name) if name and known else None
        self._wrong_answers = known.read(file, data) if file and known else None
        self.data, self.model, self.judge = data, model, judge
        self.per_set, self.repeats = per_set, repeats
        self.identity = calibration_cache.identify(
            judge, revision=model.revision, address=address, data=data.sha256, wrong_answers=file
        )

    @cached_property
    def sets(self) -> dict[str, list[CalibrationAnswer]]:
        """The calibration set."""
        return draw(self.data, self.per_set, wrong_answers=self._wrong_answers)

    @property
    def possible(self) -> bool:
        """True if there are gold answers to calibrate with."""
        return bool(self.sets["gold"])

    @property
    def calls(self) -> int:
        """Number of calls of a measurement at most, without retries."""
        needed = [
            self.judge.calls(answer.question)
            for drawn in self.sets.values()
            for answer in drawn
            if not broken_rule(answer.question.text, answer.question.gold or "", answer.answer)
        ]
        repeated = sorted(needed, reverse=True)[: judge_calibration.REPEATED_ANSWERS]
        return sum(needed) + sum(repeated) * (self.repeats - 1)

    def cached(self, *, max_false_accept: float | None = None) -> Calibration | None:
        """Return the valid calibration in the cache, if there is one.

        Args:
            max_false_accept: The limit that it must be able to decide; a measurement that ended early at a stricter
                limit is not returned. None returns only complete measurements.
        """
        found = calibration_cache.cached(self.identity, per_set=self.per_set)
        try:
            if found and found["ended_early"] and not self._is_decided(found, max_false_accept):
                return None
            return found if found and assess(found) else None
        except (KeyError, TypeError):  # written by another version
            return None

    @staticmethod
    def _is_decided(found: Calibration, limit: float | None) -> bool:
        """True if a measurement that ended early has a set that cannot pass a limit."""
        rates = {name: of for name, of in found["sets"].items() if name in WRONG and of["n"]}
        return limit is not None and any(
            cannot_pass(round(of["rate"] * of["n"]), found["planned"][name], limit) for name, of in rates.items()
        )

    def estimate(self) -> str:
        """Describe the cost of a measurement without retries."""
        texts = [f"{a.question.text}{a.question.gold}{a.answer}" for drawn in self.sets.values() for a in drawn]
        each = sum(map(self.model.count, texts)) / max(1, len(texts))
        each += self.model.count(self.judge.instructions) + FIELD_NAME_TOKENS
        prompts, replies = round(self.calls * each), self.calls * self.model.max_tokens
        dollars = cost.money(cost.forecast(self.model, prompts, replies), self.model)
        return f"{self.calls} calls, at most {prompts + replies:,} tokens, {dollars}"

    def measure(
        self,
        *,
        num_threads: int,
        stop: threading.Event | None = None,
        folder: RunFolder | None = None,
        end_at: float | None = None,
    ) -> Calibration:
        """Measure the judge with a progress bar on standard error, and write the calibration to the cache.

        Args:
            num_threads: Concurrent calls.
            stop: Ends the measurement once it is set.
            folder: The run that the cost belongs to.
            end_at: Limit for the upper end of the false-accept rate. The measurement ends as soon as a set cannot pass
                it any more. None measures everything.

        Returns:
            The calibration.

        Raises:
            CalibrationError: The judge cannot be measured, or `stop` was set. Nothing is cached.
            Exception: Errors that every further call would raise too, such as a rejected key.
        """
        prefix = self.data.prefix
        if not self.possible:
            raise judge_calibration.CalibrationError(NOT_POSSIBLE)
        with progress.bar(total=self.calls, desc=f"{prefix}calibrating") as bar:
            found = judge_calibration.measure(
                self.judge,
                self.sets,
                repeats=self.repeats,
                num_threads=num_threads,
                stop=stop,
                progress=bar.update,
                end_at=None if end_at is None else lambda errors, planned: cannot_pass(errors, planned, end_at),
            )
        if folder:
            folder.append_measuring({"judge": found["judge"], "prompt": found["prompt"], **found["usage"]})
        try:
            return calibration_cache.cache(found, self.identity, per_set=self.per_set)
        except OSError as error:  # the calibration was paid for and is valid for this run
            eprint(f"{prefix}The judge calibration cannot be cached ({error}); the next run will measure it again.")
            return found

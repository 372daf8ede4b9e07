"""LOCOMO's judge prompts: a strict one for reports, and the rules of published evaluations for comparison.

`memometer.judging.judge` asks the judge model. Own data have the same prompts.
"""

from memometer.benchmarks.judge_prompts import PROMPTS

__all__ = ["PROMPTS"]

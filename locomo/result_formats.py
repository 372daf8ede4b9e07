"""Formats of published LOCOMO result files."""

from __future__ import annotations

import re

from memometer.harness.import_formats import Format

FORMATS = {
    found.name: found
    for found in (
        Format(
            name="locomo-audit",
            licence="eval_results.json of dial481/locomo-audit, CC BY-NC 4.0",
            entries="detailed_results.*.*",
            model="metadata.answer_model",
            judge="metadata.judge_model",
            id="question_id",
            id_pattern=re.compile(r"locomo_(\d+)_qa(\d+)"),
            question="question",
            gold="golden_answer",
            answer="generated_answer",
            verdicts="llm_judgments.*",
            labels={True: "correct", False: "wrong"},
        ),
        Format(
            name="mem0",
            licence="results of mem0ai/memory-benchmarks, Apache-2.0",
            entries="evaluations.*",
            model="metadata.answerer_model",
            judge="metadata.judge_model",
            id="question_id",
            id_pattern=re.compile(r"conv(\d+)_q(\d+)"),
            question="question",
            gold="ground_truth_answer",
            variants="cutoff_results",
            answer="generated_answer",
            verdicts="judgment",
            labels={"CORRECT": "correct", "WRONG": "wrong"},
        ),
    )
}

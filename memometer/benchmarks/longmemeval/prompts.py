"""The official judge prompts of LongMemEval, by question type, word for word.

Source: github.com/xiaowu0162/LongMemEval, src/evaluation/evaluate_qa.py, commit
9e0b455f4ef0e2ab8f2e582289761153549043fc. MIT License, Copyright (c) 2024 Di Wu: permission is granted, free of charge,
to deal in the software without restriction, provided that this notice and the permission notice are included; it is
provided "as is", without warranty of any kind. The full text is the file LICENSE-prompts.txt in this folder.

The official script accepts any reply that contains `yes`. Here a reply is a label only if it is `yes` or `no` alone.
"""

# ruff: noqa: E501

from __future__ import annotations

from memometer.benchmarks.judge_prompts import PROMPTS as GENERIC
from memometer.benchmarks.protocol import JudgePrompt, Question

_PLAIN = "I will give you a question, a correct answer, and a response from a model. Please answer yes if the response contains the correct answer. Otherwise, answer no. If the response is equivalent to the correct answer or contains all the intermediate steps to get the correct answer, you should also answer yes. If the response only contains a subset of the information required by the answer, answer no. \n\nQuestion: {}\n\nCorrect Answer: {}\n\nModel Response: {}\n\nIs the model response correct? Answer yes or no only."

TEMPLATES = {
    "single-session-user": _PLAIN,
    "single-session-assistant": _PLAIN,
    "multi-session": _PLAIN,
    "temporal-reasoning": "I will give you a question, a correct answer, and a response from a model. Please answer yes if the response contains the correct answer. Otherwise, answer no. If the response is equivalent to the correct answer or contains all the intermediate steps to get the correct answer, you should also answer yes. If the response only contains a subset of the information required by the answer, answer no. In addition, do not penalize off-by-one errors for the number of days. If the question asks for the number of days/weeks/months, etc., and the model makes off-by-one errors (e.g., predicting 19 days when the answer is 18), the model's response is still correct. \n\nQuestion: {}\n\nCorrect Answer: {}\n\nModel Response: {}\n\nIs the model response correct? Answer yes or no only.",
    "knowledge-update": "I will give you a question, a correct answer, and a response from a model. Please answer yes if the response contains the correct answer. Otherwise, answer no. If the response contains some previous information along with an updated answer, the response should be considered as correct as long as the updated answer is the required answer.\n\nQuestion: {}\n\nCorrect Answer: {}\n\nModel Response: {}\n\nIs the model response correct? Answer yes or no only.",
    "single-session-preference": "I will give you a question, a rubric for desired personalized response, and a response from a model. Please answer yes if the response satisfies the desired response. Otherwise, answer no. The model does not need to reflect all the points in the rubric. The response is correct as long as it recalls and utilizes the user's personal information correctly.\n\nQuestion: {}\n\nRubric: {}\n\nModel Response: {}\n\nIs the model response correct? Answer yes or no only.",
}
"""Question type -> template with the question, the gold answer and the response."""


def official(question: Question, gold: str, answer: str) -> str:
    """The whole prompt for one answer."""
    return TEMPLATES[question.category].format(question.text, gold, answer)


PROMPTS = {
    "official": JudgePrompt(
        "official",
        "\n\n".join(f"{name}: {text}" for name, text in TEMPLATES.items()),
        "the official LongMemEval prompts, one per question type",
        text=official,
    ),
    **GENERIC,
}
"""Name -> prompt; the official one is the default."""

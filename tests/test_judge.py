"""A judge gives a label or none; it never guesses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locomo.llm_judge import PROMPTS
from memometer.judging.judge import Judge, parse_label
from memometer.models import resolve_models
from tests.conftest import Server, completion, failure


@pytest.mark.parametrize(
    ("reply", "label"),
    [
        ("yes", "correct"),
        (" Yes. ", "correct"),
        ("**No**", "wrong"),
        ("NO", "wrong"),
        ("", "missing"),
        ("not yes", "missing"),
        ("yes and no", "missing"),
        ("INCORRECT", "missing"),
        ("The answer is correct: yes", "missing"),
    ],
)
def test_labels_are_parsed_exactly(reply: str, label: str) -> None:
    assert parse_label(reply) == label


@given(st.text(max_size=20))
def test_only_the_two_words_are_labels(reply: str) -> None:
    bare = reply.strip().strip("*`\"'").rstrip(".").lower()
    assert (parse_label(reply) == "missing") == (bare not in ("yes", "no"))


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_judge_grades_with_its_own_model_and_prompt(server: Server, prompt: str) -> None:
    server.answer = lambda number, body: completion("yes", prompt_tokens=90, completion_tokens=1)
    judge = Judge(resolve_models.load("openai/scripted", api_base=server.url).lm, PROMPTS[prompt])
    verdict = judge("Who?", "Nadia", "It was Nadia.")
    assert (verdict.label, verdict.raw, verdict.prompt_tokens, verdict.completion_tokens) == ("correct", "yes", 90, 1)
    sent = server.requests[0]
    assert sent["messages"][0]["content"].endswith(PROMPTS[prompt].instructions)
    assert sent["temperature"] == 0
    kept = judge.record(verdict, label_set="corrected", repeat=2)
    assert (kept["prompt"], kept["label_set"], kept["repeat"]) == (prompt, "corrected", 2)
    assert judge.record(verdict)["label_set"] == "original"


def test_every_prompt_asks_for_a_label_alone_and_names_its_rule() -> None:
    assert all(prompt.rule for prompt in PROMPTS.values())
    assert all(prompt.instructions.endswith("Reply with one word: yes or no.") for prompt in PROMPTS.values())


def test_the_prompts_have_different_hashes() -> None:
    lm = resolve_models.load("openai/scripted", api_base="http://127.0.0.1:1/v1").lm
    assert len({Judge(lm, PROMPTS[prompt]).prompt_hash for prompt in PROMPTS}) == len(PROMPTS)


@pytest.mark.parametrize(
    ("reply", "reason", "raw"),
    [
        (failure(500), "LMServerError", ""),
        (completion(""), "the reply is empty", ""),
        ((200, {"Content-Type": "application/json"}, b"<html>"), "LMServerError", ""),
        (completion("I think so"), "the reply is not a label", "I think so"),
    ],
    ids=["500", "empty", "garbage", "prose"],
)
def test_what_is_no_label_is_missing_with_its_reason(server: Server, reply: object, reason: str, raw: str) -> None:
    server.answer = lambda number, body: reply  # type: ignore[return-value]
    judge = Judge(resolve_models.load("openai/scripted", api_base=server.url, retries=0).lm, PROMPTS["strict"])
    verdict = judge("Who?", "Nadia", "Oskar")
    assert verdict.label == "missing"
    assert reason in verdict.reason
    assert verdict.raw == raw


def test_a_rejected_key_ends_the_judging(server: Server) -> None:
    from dspy.utils.exceptions import LMAuthError

    server.answer = lambda number, body: failure(401)
    with pytest.raises(LMAuthError):
        Judge(resolve_models.load("openai/scripted", api_base=server.url, retries=0).lm, PROMPTS["strict"])(
            "Who?", "Nadia", "Oskar"
        )

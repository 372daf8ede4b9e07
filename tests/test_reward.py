"""The training reward: its table, and degenerate policies that earn less than honest answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean, stdev
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memometer.token_counters import counter_for
from memometer.train.prompt_dataset import ReadingPrompt, choose_questions, reading_prompts
from memometer.train.reward import MORE, Case, gold_reply, grade, reward
from tests.conftest import sampled

SHOWN = tuple(f"D1:{n}" for n in range(1, 9))
COMPLETE = Case("4", ("Sourdough",), ("D1:2",), SHOWN, "read_on")
MISSING = Case("4", ("Sourdough",), ("D1:2", "D9:9"), SHOWN, "read_on")
TRAP = Case("5", (), ("D1:2",), SHOWN, "read_on")
EARLIER = {"offers_more": True}


def said(status: str, answer: str, lines: str = "2") -> str:
    return f"{lines}\nStatus: {status}\nLookup: none\nAnswer: {answer}"


def with_offer(case: Case) -> Case:
    return Case.of_json({**case.as_json(), **EARLIER})


@pytest.mark.parametrize(
    ("case", "completion", "worth"),
    [
        (COMPLETE, "", -1.0),
        (COMPLETE, "<think> which line", -1.0),
        (COMPLETE, said("answered", "Sourdough"), 1.0),
        (COMPLETE, said("answered", "Sourdough", "1"), 0.8),
        (COMPLETE, said("answered", "Sourdough", "1, 2"), 0.8 + 0.2 * 2 / 3),
        (COMPLETE, said("answered", "rye"), 0.2),
        (COMPLETE, said("absent", "No information available"), 0.0),
        (COMPLETE, said("answered", "No information available"), 0.0),
        (MISSING, said("absent", "No information available"), 0.05),
        (with_offer(MISSING), said("absent", "No information available"), 0.0),
        (with_offer(MISSING), said("more", "No information available"), MORE),
        (with_offer(COMPLETE), said("more", "No information available"), 0.0),
        (with_offer(TRAP), said("more", "No information available"), 0.0),
        (TRAP, said("absent", "No information available"), 1.0),
        (TRAP, said("answered", "Sourdough"), 0.0),
        # Where more is not offered the answer stands, as it does when evaluate.py reads.
        (COMPLETE, said("more", "Sourdough"), 1.0),
    ],
)
def test_the_table(case: Case, completion: str, worth: float) -> None:
    assert reward(case, completion) == pytest.approx(worth, abs=0.01)  # a few tokens beyond the gold's


def test_evidence_counts_for_less_and_less() -> None:
    right = said("answered", "Sourdough")
    assert [round(grade(COMPLETE, right, progress=p).reward, 3) for p in (0.0, 0.25, 0.5, 1.0)] == [1.0, 0.9, 0.8, 0.8]


def test_smaller_memories_earn_more_and_only_when_right() -> None:
    smaller = Case.of_json({**COMPLETE.as_json(), "halvings": 2})
    assert reward(smaller, said("answered", "Sourdough")) == pytest.approx(1.1)
    assert reward(smaller, said("answered", "rye")) == pytest.approx(0.2)


def test_length_costs_a_tenth_for_each_128_tokens_and_only_in_answers() -> None:
    bare = Case.of_json({**COMPLETE.as_json(), "form": "answer"})
    count = counter_for()
    long = "Sourdough " + "bread " * 200
    beyond = count(long) - count("Sourdough") - 12
    assert reward(bare, long) == pytest.approx(2 / 202 - 0.1 * beyond / 128)
    assert reward(bare, "Sourdough") == 1.0
    assert reward(TRAP, said("absent", "No information available. " * 50)) == 1.0


def test_dates_are_right_however_they_are_written_and_the_best_key_counts() -> None:
    case = Case("2", ("the week before 11 June 2021", "7 May 2023"), ("D1:2",), SHOWN, "answer")
    assert reward(case, "2023-05-07") == 1.0
    assert grade(case, "2023-05-07").strict == 1.0
    assert grade(case, "in the week before 11 June 2021").strict == 1.0
    assert grade(case, "8 May 2023").strict == 0.0


@sampled(20)
@given(
    st.sampled_from([COMPLETE, MISSING, TRAP, with_offer(COMPLETE), with_offer(MISSING)]),
    st.text(max_size=200),
    st.floats(0, 1),
)
def test_any_reply_has_a_reward_within_bounds(case: Case, completion: str, progress: float) -> None:
    found = grade(case, completion, progress=progress)
    assert -1.5 <= found.reward <= 1.0
    assert found == grade(case, completion, progress=progress)
    assert 0 <= found.f1 <= 1


# ---------------------------------------------------------------- ways of not reading

Policy = Callable[[Case, Sequence[str], str], str]

PROSE = (
    "Based on everything that was said in the conversation that I was shown, I believe that the answer to the question "
    "you asked could well be the following: {}, though I cannot be entirely sure about it."
)


def _capitalized(lines: Sequence[str]) -> list[str]:
    """The words of the memory that may be names, dates or places."""
    return list(dict.fromkeys(word.strip(".,!?:") for line in lines for word in line.split() if word[:1].isupper()))


def _gold(case: Case) -> str:
    return (case.keys or ("unknown",))[0]


def _noise(lines: Sequence[str]) -> list[str]:
    return " ".join(lines).split()[:15]


def _best_line(lines: Sequence[str], question: str) -> str:
    """The line that shares most words with the question, without its speaker."""
    words = set(question.lower().split())
    best = max(lines, key=lambda line: len(words & set(line.lower().split())))
    return best.partition(": ")[2] or "nothing"


WITH_THE_GOLD: dict[str, Policy] = {
    "gold in prose": lambda case, *_: said("answered", PROSE.format(_gold(case)), "none"),
    "gold and noise": lambda case, lines, _: said("answered", ", ".join([_gold(case), *_noise(lines)]), "none"),
    "gold and a tail": lambda case, lines, _: said("answered", " ".join([_gold(case), *_noise(lines)]), "none"),
    "one item of many": lambda case, *_: said("answered", _gold(case).split(",")[0], "none"),
}
"""Policies that know the gold answer, and do not answer with it alone."""
DEGENERATE: dict[str, Policy] = {
    "always absent": lambda *_: said("absent", "No information available", "none"),
    "always more": lambda *_: said("more", "No information available", "none"),
    "more while it is offered, then absent": lambda case, *_: said(
        "more" if case.offers_more else "absent", "No information available", "none"
    ),
    "copy the memory": lambda _, lines, __: said("answered", " ".join(lines) or "nothing", "none"),
    "cite everything": lambda case, lines, _: said(
        "answered", lines[0], ", ".join(map(str, range(1, len(case.shown))))
    ),
    "every candidate": lambda _, lines, __: said("answered", ", ".join(_capitalized(lines)) or "nothing", "none"),
    "the best-overlapping line": lambda _, lines, question: said("answered", _best_line(lines, question), "none"),
    "empty": lambda *_: "",
}
COLLECTED_WITHOUT_READING = 0.2
"""What a 3B model earns before it is trained (an estimate)."""


def _earned(prompts: Sequence[ReadingPrompt], policy: Policy) -> list[float]:
    def reply(prompt: ReadingPrompt) -> str:
        text = prompt.messages[-1]["content"]
        lines = [line.partition(" ")[2] for line in text.splitlines() if line[:1].isdigit()]
        question = text.partition("Question: ")[2].partition("\n")[0]
        return policy(prompt.case, lines or [""], question)

    return [reward(prompt.case, reply(prompt)) for prompt in prompts]


@pytest.mark.parametrize("rounds", [1, 3])
def test_no_degenerate_policy_earns_what_honest_answering_does(locomo: Any, rounds: int) -> None:
    """On real prompts, in their real proportions."""
    train = [c for c in locomo.part("train") if c.id == "conv-30"]  # the shortest
    questions, _ = choose_questions(train, 80, absent_share=0.1, seed=0)
    budgets = (512, 1024, 2048) if rounds > 1 else (512,)
    prompts = list(reading_prompts(train, questions, budgets=budgets, rounds=rounds, count=counter_for()))
    honest = _earned(prompts, lambda case, *_: gold_reply(case))
    assert fmean(honest) > 0.7
    earned = {name: _earned(prompts, policy) for name, policy in {**WITH_THE_GOLD, **DEGENERATE}.items()}
    for name, rewards in earned.items():
        gaps = [mine - theirs for mine, theirs in zip(honest, rewards, strict=True)]
        assert fmean(gaps) > 2 * stdev(gaps) / len(gaps) ** 0.5, name
    means = {name: fmean(earned[name]) for name in earned}
    assert max(means[name] for name in DEGENERATE) < COLLECTED_WITHOUT_READING, means
    assert max(means[name] for name in WITH_THE_GOLD if name != "one item of many") < fmean(honest) / 3, means


def test_words_beside_a_list_cost_more_than_a_missing_item() -> None:
    case = Case("1", ("pottery, camping, painting",), ("D1:2",), SHOWN, "answer")
    noise = ", ".join(f"word{n}" for n in range(15))
    found = {text: grade(case, text) for text in ("pottery, camping, painting", "pottery")}
    noisy = grade(case, f"pottery, camping, painting, {noise}")
    assert (noisy.f1, noisy.strict) == (1.0, 0.0), "the official score does not see the noise"
    assert noisy.balanced_f1 == pytest.approx(2 * (3 / 18) / (1 + 3 / 18))
    assert noisy.reward < found["pottery"].reward < found["pottery, camping, painting"].reward == 1.0
    assert grade(case, "painting, pottery, camping").strict == 1.0


def test_what_the_honest_reader_replies_is_worth_most() -> None:
    for case in (COMPLETE, MISSING, TRAP, with_offer(COMPLETE), with_offer(MISSING)):
        policies = [*DEGENERATE.values(), WITH_THE_GOLD["gold in prose"]]
        best = max(reward(case, policy(case, ["1 a line"], "Which?")) for policy in policies)
        assert reward(case, gold_reply(case)) >= best


def test_the_honest_reply_is_what_the_official_score_counts() -> None:
    case = Case("3", ("Likely no; she is allergic to cats",), ("D1:2",), SHOWN, "answer")
    assert gold_reply(case) == "Likely no"
    assert reward(case, gold_reply(case)) == 1.0

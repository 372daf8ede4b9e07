"""Synthetic conversations for the ranking: the same for a seed, labelled rightly, of several styles."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from itertools import pairwise

import pytest

from memometer import synthetic
from memometer.synthetic import vocabulary
from tests.conftest import ROOT


@pytest.mark.parametrize("style", synthetic.STYLES)
def test_a_seed_gives_the_same_conversation_in_every_process(style: str) -> None:
    code = f"from memometer import synthetic; print(synthetic.generate('a/1', {style!r}))"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert outputs == {f"{synthetic.generate('a/1', style)}\n".encode()}
    assert synthetic.generate("a/1", style) != synthetic.generate("a/2", style)


@pytest.mark.parametrize("style", synthetic.STYLES)
def test_evidence_is_a_turn_and_holds_the_answer(style: str) -> None:
    kinds: Counter[str] = Counter()
    held = asked = 0
    for n in range(4):
        made = synthetic.generate(f"{style}/{n}", style)
        texts = {turn.id: f"{turn.text} {turn.caption}".lower() for turn in made.turns}
        assert len(texts) == len(made.turns)
        for question in made.questions:
            assert question.evidence
            assert set(question.evidence) <= texts.keys()
            assert "{" not in question.text
            kinds[question.kind] += 1
            if question.kind in ("single", "dated", "tool", "person", "deadline"):
                asked += 1
                held += any(question.answer.lower() in texts[id] for id in question.evidence)
        assert not any("{" in turn.text and style != "assistant" for turn in made.turns)
    assert len(kinds) >= 5
    assert held >= 0.9 * asked  # a typo may change the word


def test_styles_differ_as_they_should() -> None:
    length, same = {}, {}
    for style in synthetic.STYLES:
        turns = synthetic.generate(f"{style}/0", style).turns
        length[style] = max(len(turn.text) for turn in turns)
        same[style] = sum(a.speaker == b.speaker for a, b in pairwise(turns)) / len(turns)
    assert length["assistant"] > 1000
    assert same["chat"] > 0.25 > same["letters"]


def test_every_slot_of_a_sentence_is_known() -> None:
    given = {"who", "when", "in_date"}
    for family in vocabulary.families():
        sentences = [*family.tell, *family.exclaim, *(q for q, _ in (*family.ask, *family.ask_list, *family.ask_dated))]
        for sentence in sentences:
            assert vocabulary.blanks(sentence) <= family.slots.keys() | given, sentence
        for _, slot in (*family.ask, *family.ask_list, *family.ask_dated):
            assert slot in family.slots or slot == "when", (family.name, slot)

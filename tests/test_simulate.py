"""Simulated histories are the same for the same seed, hold what they ask for, and are never taken for LOCOMO."""

from __future__ import annotations

import json
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from locomo import dataset
from locomo.dataset import Question
from locomo.synthetic import simulate
from locomo.synthetic.conversation import RATES
from locomo.synthetic.templates import Names, relative_date, vocabulary
from memometer import cli
from memometer.benchmarks.protocol import Conversation, Session
from memometer.synthetic.draw import Draw

MADE = [simulate.conversation(1, number) for number in (1, 2, 3)]
ASKED = [(conversation, question) for conversation in MADE for question in conversation.questions]


def said(conversation: Conversation, question: Question) -> str:
    turns = {turn.id: turn for turn in conversation.turns}
    return " ".join(turns[id].line for id in question.evidence).lower()


def test_the_same_seed_makes_the_same_words_anywhere() -> None:
    assert simulate.conversation(1, 1) == MADE[0]
    assert simulate.conversation(2, 1) != MADE[0]
    # Written down, so that another Python or another machine that drew otherwise would be found out.
    draw = Draw("pinned")
    names = Names(draw, "place")
    assert [draw.between(1, 1000) for _ in range(3)] == [363, 903, 593]
    assert [names() for _ in range(3)] == ["Nalfell", "Norholm", "Morby"]


def test_evidence_holds_the_answer() -> None:
    for conversation, question in ASKED:
        assert question.evidence, question
        if question.category in ("1", "4"):
            assert question.gold
            assert all(gold.lower() in said(conversation, question) for gold in question.gold.split(", ")), question
        if question.category == "5":
            assert question.adversarial_answer
        if question.category == "1":
            assert len(question.evidence) > 1


def test_dates_follow_from_the_evidence() -> None:
    """The words of the evidence turn, said on its day, mean the gold date, found again by trying all words."""
    for conversation, question in ASKED:
        if question.category == "2":
            turn = next(turn for turn in conversation.turns if turn.id in question.evidence)
            draw = Draw("any")
            possible = {relative_date(draw, turn.said_at) for _ in range(2000)}
            assert any(words in turn.text and date == question.gold for words, date in possible), question


@pytest.mark.parametrize(
    ("words", "date"),
    [
        ("yesterday", "29 February 2024"),
        ("last Monday", "the Monday before 1 March 2024"),
        ("two weeks ago", "two weeks before 1 March 2024"),
        ("last month", "February 2024"),
        ("three years ago", "2021"),
        ("two days ago", "28 February 2024"),
    ],
)
def test_what_relative_dates_mean(words: str, date: str) -> None:
    draw = Draw("any")
    meant = {relative_date(draw, datetime(2024, 3, 1, 9)) for _ in range(2000)}
    assert [d for w, d in meant if w == words] == [date]


def test_no_question_holds_its_answer() -> None:
    for _, question in ASKED:
        assert (question.gold or question.adversarial_answer or "").lower() not in question.text.lower()


def test_no_question_has_two_answers() -> None:
    for conversation in MADE:
        answers: dict[str, set[str]] = {}
        for question in conversation.questions:
            answers.setdefault(question.text, set()).add(question.gold or "nothing")
        assert all(len(golds) == 1 for golds in answers.values())


def test_traps_swap_the_speaker() -> None:
    """The evidence of a category-5 question is the other one's: who is asked about told nothing of the sort."""
    traps = [(conversation, question) for conversation, question in ASKED if question.category == "5"]
    assert traps
    for conversation, question in traps:
        turns = {turn.id: turn for turn in conversation.turns}
        assert question.gold is None
        assert all(turns[id].speaker not in question.text for id in question.evidence)
        assert (question.adversarial_answer or "").lower() in said(conversation, question)


def test_proportions_are_near_locomos() -> None:
    turns = sum(len(conversation.turns) for conversation in MADE)
    counts = Counter(question.category for _, question in ASKED)
    for category, rate in RATES.items():
        assert counts[str(category)] == pytest.approx(rate * turns, rel=0.12, abs=3), category


def test_evidence_may_stand_in_a_photo_or_in_the_next_turn() -> None:
    photos = replies = 0
    for conversation, question in ASKED:
        turns = {turn.id: (i, turn) for i, turn in enumerate(conversation.turns)}
        place, turn = turns[question.evidence[0]]
        if question.category == "4" and question.gold:
            photos += question.gold.lower() not in turn.text.lower()
            replies += place > 0 and conversation.turns[place - 1].text.endswith("?")
    assert photos > 5
    assert replies > 20


def test_the_shape_of_locomo_is_what_the_table_says(locomo: Any) -> None:
    assert simulate.shape(locomo.conversations) == pytest.approx(simulate.LOCOMO_SHAPE)


def test_files_are_read_back_and_marked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "made.json"
    assert cli.main(["simulate", "--seed", "1", "--conversations", "3", "--out", str(path)]) == 0
    assert all(line.startswith("SIMULATED") for line in capsys.readouterr().out.splitlines())
    data = dataset.read(path)
    assert data.conversations == tuple(MADE)
    assert data.kind == "SIMULATED"
    assert data.part("test") == data.conversations
    assert cli.main(["data", "--data", str(path)]) == 0
    assert all(line.startswith("SIMULATED") for line in capsys.readouterr().out.splitlines())


def test_one_unmarked_conversation_spoils_the_file(tmp_path: Path) -> None:
    entries = [simulate.as_json(conversation, seed=1) for conversation in MADE[:2]]
    del entries[1][dataset.SIMULATED]
    path = tmp_path / "mixed.json"
    path.write_text(json.dumps(entries))
    with pytest.raises(dataset.DataError, match="not the pinned LOCOMO file"):
        dataset.read(path)


def test_a_long_history_comes_bit_by_bit() -> None:
    """What has been yielded does not depend on reading on; and a question's evidence is there when it is asked."""

    def until(n: int) -> tuple[list[Session], list[Question]]:
        sessions, questions = [], []
        for session, asked in simulate.history(3, turns=280_000):
            sessions.append(session)
            questions.extend(asked)
            if session.number == n:
                break
        return sessions, questions

    sessions, questions = until(200)
    assert until(50)[0] == sessions[:50]
    known = {turn.id for session in sessions for turn in session.turns}
    assert all(set(question.evidence) <= known for question in questions)
    assert {question.category for question in questions} >= {"1", "2", "4", "5"}
    times = [session.said_at for session in sessions]
    assert times == sorted(times)


def test_names_have_a_long_tail() -> None:
    names = Names(Draw("tail"), "place")
    counts = Counter(names() for _ in range(20_000))
    often = [n for _, n in counts.most_common()]
    assert len(counts) > 1000, "new ones never stop"
    assert often[0] > 20 * often[len(often) // 4], "and few are common"


def test_every_sentence_can_be_filled() -> None:
    words = vocabulary()
    for topic in words["topics"].values():
        assert len(topic["do"]) >= len(topic["did"]), "the verbs of the question begin with those of the fact"
        assert topic["name"] in ("person", "place", "title")
        assert all(len(kinds) >= 4 for kinds in topic["kinds"].values())
    for trait in words["traits"].values():
        assert trait["tell"]
        assert trait["ask"]

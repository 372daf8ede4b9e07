"""The ranking: the date rule, what is known of turns, the features, the learned weights, and that they are honest."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import subprocess
import sys
from dataclasses import replace
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import memometer.retrieval.features as features_module
from benchmarks import date_coverage
from memometer.harness import fit_ranker
from memometer.memory import Turn
from memometer.retrieval import dates, late_interaction, ranker, stemmer
from memometer.retrieval.features import features
from memometer.retrieval.ranker import Ranker, RankingExample, sample, shipped
from memometer.retrieval.tokenize import char_ngrams, mentions, terms
from memometer.retrieval.turn_index import TurnIndex
from memory_system import MemorySystem
from tests.conftest import ROOT, HashTokenEncoder, sampled

MONDAY = date(2023, 5, 8)


@pytest.mark.parametrize(
    ("text", "start", "end", "precision"),
    [
        ("yesterday", "2023-05-07", "2023-05-07", "day"),
        ("last night we danced", "2023-05-07", "2023-05-07", "day"),
        ("the day before yesterday", "2023-05-06", "2023-05-06", "day"),
        ("this morning", "2023-05-08", "2023-05-08", "day"),
        ("last Friday", "2023-05-05", "2023-05-05", "day"),
        ("last Monday", "2023-05-01", "2023-05-01", "day"),
        ("next Friday", "2023-05-12", "2023-05-12", "day"),
        ("last week", "2023-05-01", "2023-05-07", "week"),
        ("last weekend", "2023-05-06", "2023-05-07", "weekend"),
        ("last month", "2023-04-01", "2023-04-30", "month"),
        ("next month", "2023-06-01", "2023-06-30", "month"),
        ("last year", "2022-01-01", "2022-12-31", "year"),
        ("last summer", "2022-06-01", "2022-08-31", "season"),
        ("last December", "2022-12-01", "2022-12-31", "month"),
        ("two days ago", "2023-05-06", "2023-05-06", "day"),
        ("a couple of weeks ago", "2023-04-24", "2023-04-30", "week"),
        ("three months ago", "2023-02-01", "2023-02-28", "month"),
        ("4 years ago", "2019-01-01", "2019-12-31", "year"),
        ("the other day", "2023-05-01", "2023-05-08", "about"),
        ("on 3 May, 2021", "2021-05-03", "2021-05-03", "day"),
        ("May 3rd", "2023-05-03", "2023-05-03", "day"),
        ("the 3rd of January", "2023-01-03", "2023-01-03", "day"),
        ("in June 2020", "2020-06-01", "2020-06-30", "month"),
        ("in December", "2022-12-01", "2022-12-31", "month"),
        ("since 2016", "2016-01-01", "2016-12-31", "year"),
        ("2023-02-28", "2023-02-28", "2023-02-28", "day"),
    ],
)
def test_a_date_is_resolved_against_the_day_it_was_said(text: str, start: str, end: str, precision: str) -> None:
    (when,) = dates.find(text, MONDAY)
    assert (str(when.start), str(when.end), when.precision) == (start, end, precision)


@pytest.mark.parametrize("text", ["the 31st of February", "she may come", "I march on", "a sunny day", "30 February"])
def test_what_is_no_date_is_left_alone(text: str) -> None:
    assert not [when for when in dates.find(text, MONDAY) if when.precision == "day"]


def test_the_words_stay_and_the_date_stands_behind_them() -> None:
    marked = dates.annotate("We met last Friday, and I paid today.", MONDAY)
    assert marked == "We met last Friday {5 May 2023}, and I paid today."


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("I'll see you on Friday.", "12 May 2023"),
        ("We went on Friday. I'll go again.", "5 May 2023"),
        ("We planned it and met on Friday", "5 May 2023"),
        ("We leave in two weeks", "week of 22 May 2023"),
        ("I haven't slept in two weeks", ""),
        ("the best one in two years", ""),
        ("a week before the race", ""),
        ("We met a week before.", "week of 1 May 2023"),
        ("this may help", ""),
        ("last march we met", ""),
        ("last March we met", "March 2023"),
        ("this May", "May 2023"),
        ("last friday", "5 May 2023"),
        ("this winter", "December 2022 on"),
        ("this summer", "June 2023 on"),
    ],
)
def test_words_around_a_date_decide_what_it_means(text: str, meant: str) -> None:
    found = [when.text for when in dates.find(text, MONDAY)]
    assert found == ([meant] if meant else [])


@pytest.mark.parametrize(
    ("text", "said", "meant"),
    [
        ("this winter", date(2023, 1, 10), "December 2022 on"),
        ("last winter", date(2023, 1, 10), "December 2021 on"),
        ("last winter", date(2023, 4, 10), "December 2022 on"),
        ("next winter", date(2023, 1, 10), "December 2023 on"),
        ("this winter", date(2023, 10, 10), "December 2023 on"),
        ("last summer", date(2023, 7, 1), "June 2022 on"),
        ("last summer", date(2023, 10, 1), "June 2023 on"),
    ],
)
def test_a_season_is_the_one_meant_in_that_month(text: str, said: date, meant: str) -> None:
    assert [when.text for when in dates.find(text, said)] == [meant]


@pytest.mark.parametrize(
    ("text", "person", "is_named"),
    [
        ("What did Will buy?", "Will", True),
        ("Will Anna go?", "Will", False),
        ("Will's dog is called what?", "Will", True),
        ("What will Anna do?", "Will", False),
        ("When did may and Tom meet?", "May", False),
        ("When did May meet Tom?", "May", True),
        ("what does o'neil like", "O'Neil", True),
        ("Where is Jean-Luc from?", "Jean-Luc", True),
        ("Where is Jean-Lucas from?", "Jean-Luc", False),
        ("melanie's cat", "Melanie Smith", True),
        ("What does Anna like?", "Ann", False),
        ("Who?", "", False),
    ],
)
def test_a_person_is_named_or_a_word_is_meant(text: str, person: str, is_named: bool) -> None:
    assert mentions(text, person) == is_named


@sampled(60)
@given(st.text(max_size=80), st.dates(date(1, 2, 1), date(9998, 1, 1)))
def test_no_text_and_no_day_break_the_date_rule(text: str, said: date) -> None:
    for when in dates.find(f"{text} last month, two years ago, in 12 months", said):
        assert when.start <= when.end


def test_the_date_rule_covers_the_temporal_answers(locomo: Any) -> None:
    ways = date_coverage.counted(locomo.conversations)
    assert ways.total() == 254
    assert 1 - ways["missed"] / ways.total() >= 0.70


def turns_of(n: int, *, sessions: int = 3) -> list[Turn]:
    words = "accordion reed Vienna blue bowl clay kiln piano river garden tomato bread".split()
    return [
        Turn(f"D{i * sessions // n + 1}:{i}", ("Nadia", "Oskar")[i % 2],
             f"The {words[i % 12]} and the {words[i * 5 % 11]} {i}?", i * sessions // n + 1,
             datetime(2024, 1, 1 + i * sessions // n))
        for i in range(n)
    ]  # fmt: skip


def test_letters_are_shared_where_stems_differ() -> None:
    assert not set(terms("photography")) & set(terms("photographer"))
    assert set(char_ngrams("photography")) & set(char_ngrams("photographer"))


def test_an_index_is_the_same_at_once_or_turn_by_turn() -> None:
    at_once, by_turn = TurnIndex(), TurnIndex()
    at_once.add(turns_of(30))
    for turn in turns_of(30):
        by_turn.add([turn])
    assert at_once == by_turn
    assert at_once != TurnIndex()


def test_features_are_finite_for_any_question() -> None:
    index = TurnIndex()
    index.add(turns_of(1))
    for question in ("", "???", "Who is Nadia?", "What did Nadia and Oskar do on 3 May 2024?", "zzz"):
        assert np.isfinite(features(index, question).matrix).all()


def test_a_long_history_is_looked_at_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features_module, "POOL", 20)
    index = TurnIndex()
    index.add(turns_of(200))
    looked = features(index, "Where is the kiln of clay?")
    assert len(looked.positions) == 20
    assert looked.matrix.shape == (20, len(looked.names))
    scores = ranker.load(shipped()).scores(looked)
    others = np.setdiff1d(np.arange(200), looked.positions)
    assert scores[looked.positions].min() > scores[others].max()
    assert (np.argsort(scores[others]) == np.argsort(looked.first[others])).all()


def lessons(n: int = 40) -> list[RankingExample]:
    """The evidence is whatever holds the question's word."""
    index = TurnIndex()
    turns = turns_of(60)
    index.add(turns)
    words = "kiln piano river garden tomato bread".split()
    found = []
    for i in range(n):
        word = words[i % len(words)]
        evidence = tuple(p for p, turn in enumerate(turns) if word in turn.text)
        found.append(RankingExample(features(index, f"Where is the {word}?"), evidence))
    return found


def fitted_on_lessons(n: int = 40, **given: Any) -> Ranker:
    return ranker.fit([sample(lessons(n), competitors=40)], decay=10.0, **given)


def test_the_ranker_learns_and_is_the_same_again(tmp_path: Path) -> None:
    fitted = fitted_on_lessons(fitted_on=["a"])
    example = lessons()[0]
    best = np.argsort(-fitted.scores(example.features))[: len(example.evidence)]
    assert set(best.tolist()) == set(example.evidence)
    fitted.save(tmp_path / "weights.json")
    fitted_on_lessons(fitted_on=["a"]).save(tmp_path / "again.json")
    assert (tmp_path / "weights.json").read_bytes() == (tmp_path / "again.json").read_bytes()
    loaded = ranker.load(tmp_path / "weights.json")
    assert loaded.fitted_on == ("a",)
    assert np.array_equal(loaded.scores(example.features), fitted.scores(example.features))


def test_probabilities_are_calibrated() -> None:
    fitted = ranker.calibrated(fitted_on_lessons(), lessons(12))
    predicted = [np.exp(fitted.scores(example.features)) for example in lessons(12)]
    observed = [np.isin(np.arange(60), example.evidence) for example in lessons(12)]
    assert np.concatenate(predicted).mean() == pytest.approx(np.concatenate(observed).mean(), rel=0.05)


def test_a_question_outside_the_range_is_ranked_by_the_untrained_score() -> None:
    fitted = fitted_on_lessons()
    inside = lessons()[0].features
    assert fitted.unlikeness(inside) < 0.1
    strange = replace(inside, matrix=inside.matrix + 186 * fitted.scale)
    assert fitted.unlikeness(strange) == 1
    order = np.argsort(-fitted.scores(strange), kind="stable")
    assert (np.diff(strange.first[order]) <= 1e-4).all()
    few = replace(inside, positions=inside.positions[:2], matrix=inside.matrix[:2], first=inside.first[:2])
    assert fitted.unlikeness(few) >= 0.5


def test_weights_for_other_features_are_refused(tmp_path: Path) -> None:
    index = TurnIndex()
    index.add(turns_of(4))
    other = replace(fitted_on_lessons(4), names=("other",))
    with pytest.raises(ValueError, match="other features"):
        other.scores(features(index, "Who?"))
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(ValueError, match=r"ranking weights .* optimize.py --target retrieval"):
        ranker.load(tmp_path / "broken.json")
    with pytest.raises(ValueError, match="known: default, locomo"):
        shipped("other")


@pytest.mark.parametrize("path", sorted(ranker.FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_what_is_shipped_says_what_it_has_seen_and_holds_no_text(path: Path) -> None:
    weights: Ranker = ranker.load(path)
    assert weights.made_by.startswith("python optimize.py --target retrieval")
    assert weights.data
    assert weights.licence
    table = json.loads(path.read_text())
    texts = [value for value in table.values() if isinstance(value, str)]
    assert all(len(text) < 100 for text in [*texts, *table["names"]])
    *_, held_out = path.stem.partition("-words-without-")
    if path.stem.startswith("default"):
        assert "locomo" not in path.read_text().lower()
        assert "NC" not in weights.licence
    else:
        assert "NC" in weights.licence
        assert held_out not in weights.fitted_on
        assert len(weights.fitted_on) == (9 if held_out else 4)


def test_a_map_for_another_encoder_is_refused() -> None:
    other = late_interaction.load(late_interaction.SHIPPED)
    memory = MemorySystem(encoder=HashTokenEncoder(), projection=other)
    with pytest.raises(ValueError, match="python optimize.py"):
        memory.observe(memory.new(), turns_of(2))


def test_a_fold_has_never_seen_what_it_is_asked(locomo: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EMBEDDED_MODELS_DIR", str(tmp_path))
    seen: list[set[str]] = []

    def fit(conversations: Any, *_: Any, **__: Any) -> Any:
        seen.append({c.id for c in conversations})
        return fitted_on_lessons(8, fitted_on=sorted(seen[-1])), None

    monkeypatch.setattr(fit_ranker, "fit", fit)
    monkeypatch.setattr(ranker, "FOLDER", tmp_path / "none shipped")
    found = fit_ranker.folds(locomo, ["conv-26", "conv-50"])
    assert set(found) == {"conv-26", "conv-50"}
    for held_out, (weights, _) in found.items():
        assert held_out not in weights.fitted_on
        assert len(weights.fitted_on) == 9
    fit_ranker.folds(locomo, ["conv-26"])
    assert len(seen) == 2, "the second time they are read from disk"


@pytest.mark.slow  # seven CPU minutes
@pytest.mark.parametrize(
    ("flags", "files"),
    [((), "default-words.json"), (("--benchmark", "locomo", "--folds"), "locomo-words*.json")],
)
def test_the_shipped_weights_are_those_of_their_command(flags: tuple[str, ...], files: str, tmp_path: Path) -> None:
    if flags and "LOCOMO_PATH" not in os.environ:
        pytest.skip("LOCOMO_PATH is not set")
    command = [sys.executable, "optimize.py", "--target", "retrieval", *flags, "--seed", "0", "--out", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True)
    expected = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in ranker.FOLDER.glob(files)}
    assert {name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in expected} == expected


def test_optimize_refuses_what_it_cannot_fit(sample: Any, tmp_path: Path) -> None:
    def run(*words: str) -> str:
        command = [sys.executable, "optimize.py", "--target", "retrieval", *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        return done.stderr

    assert "--out" in run("--data", str(ROOT / "locomo" / "sample.json"))
    assert "minilm" in run("--data", str(ROOT / "locomo" / "sample.json"), "--encoder", "nonsense")


def test_the_stemmer_is_the_official_scorers(locomo: Any) -> None:
    """NLTK's, which takes too long and too much memory to import for a service."""
    from nltk.stem.porter import PorterStemmer

    theirs = PorterStemmer()
    words = {word for c in locomo.conversations for t in c.turns for word in re.findall(r"[^\W_]+", t.line.lower())}
    draw = random.Random(0)
    endings = """s es ed ing y ies ied eed sses ational tional enci anci izer bli alli entli eli ousli ization ation
        ator alism iveness fulness ousness aliti iviti biliti fulli logi icate ative alize iciti ical ful ness al ance
        ence er ic able ible ant ement ment ent ion sion ou ism ate iti ous ive ize e ll""".split()
    for _ in range(20_000):
        start = "".join(draw.choices("abdeilostyz", k=draw.randrange(6)))
        words.add(start + "".join(draw.choices(endings, k=draw.randrange(4))))
    words |= {"skies", "dying", "news", "innings", "proceed", "sky", "straße", "été", "42"}
    assert [word for word in sorted(words) if stemmer.stem(word) != theirs.stem(word)] == []

"""Late interaction: what is kept of a text, the three similarities against plain ones, and the fitting of the map."""

from __future__ import annotations

import pickle
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memometer.memory import Turn
from memometer.models import encoders
from memometer.models.bert import Bert
from memometer.models.encoders import CachedTokenEncoder, TokenEncoder
from memometer.retrieval import late_interaction, late_interaction_fit
from memometer.retrieval.late_interaction import Projection, TokenVectors
from memometer.retrieval.late_interaction_fit import Sample, Texts, TrainingExample, fit, loss
from tests.conftest import HashEncoder, HashTokenEncoder
from tests.test_encoders import LAYERS, TEXTS, WIDTH, write_bert

ENCODER = HashTokenEncoder()
TURNS = ["Nadia: The reed is missing", "Oskar: I found a blue bowl", "Nadia: Vienna", "Oskar: the bowl is in Vienna"]


def random_projection(width: int = 6, seed: int = 3) -> Projection:
    rng = np.random.default_rng(seed)
    n = ENCODER.dimensions
    return Projection(
        tokens=rng.normal(size=(2 * n, width)),
        pooled=rng.normal(size=(n, n)),
        asked=rng.normal(size=2 * n + 1),
        said=rng.normal(size=2 * n + 1),
        scales=np.array([0.7, -0.2]),
        fitted_on=("conv-1", "conv-2"),
        encoder="hash",
    )


def kept(projection: Projection, texts: list[str] = TURNS) -> TokenVectors:
    vectors = TokenVectors()
    projection.append(vectors, ENCODER.compact(texts, projection))
    return vectors


def plainly(projection: Projection, question: str, turn: str) -> tuple[float, float]:
    """`late` and `dense` of one turn by the definition, token by token, unrounded."""

    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.linalg.norm(x)

    (asked, asked_pool), (said, said_pool) = ENCODER.tokens([question, turn])
    total = weight = 0.0
    for h in asked:
        w = np.log1p(np.exp(h @ projection.asked[:-1] + projection.asked[-1]))
        best = max(
            unit(h @ projection.tokens)
            @ unit(d @ projection.tokens)
            / (1 + np.exp(-(d @ projection.said[:-1] + projection.said[-1])))
            for d in said
        )
        total, weight = total + w * best, weight + w
    return total / weight, unit(asked_pool @ projection.pooled) @ unit(said_pool @ projection.pooled)


# ------------------------------------------------------------------ the encoder's token vectors


def test_tokens_are_two_layers_beside_the_pooled_vector(tmp_path: Path) -> None:
    write_bert(tmp_path / "m")
    bert = Bert(tmp_path / "m", name="m")
    for text, (hidden, pooled) in zip(TEXTS, bert.tokens(TEXTS), strict=True):
        assert hidden.shape == (min(max(1, len(text.split())), 30), 2 * WIDTH)
        assert hidden.dtype == pooled.dtype == np.float32
        assert np.allclose(np.linalg.norm(hidden.reshape(-1, 2, WIDTH), axis=2), 1, atol=1e-6)
        assert np.allclose(pooled, bert([text])[0], atol=1e-6)
    ids = np.array(bert._tokenizer.encode("blue bowl").ids)
    layers = list(bert._hidden(ids, [(slice(0, 4), 1, 4)]))
    assert len(layers) == LAYERS
    last, lower = (layer[1:3] / np.linalg.norm(layer[1:3], axis=1, keepdims=True) for layer in (layers[1], layers[0]))
    assert np.allclose(bert.tokens(["blue bowl"])[0][0], np.hstack([last, lower]), atol=1e-6)


def test_tokens_of_a_text_depend_on_nothing_else_in_the_call(tmp_path: Path) -> None:
    write_bert(tmp_path / "m")
    bert = Bert(tmp_path / "m", name="m")
    for text, (hidden, pooled) in zip(TEXTS, bert.tokens(TEXTS), strict=True):
        ((alone, alone_pooled),) = bert.tokens([text])
        assert np.array_equal(hidden, alone)
        assert np.array_equal(pooled, alone_pooled)


def test_what_a_map_makes_of_a_text_is_computed_once(tmp_path: Path) -> None:
    class Counting(HashTokenEncoder):
        asked = 0

        def tokens(self, texts: Any) -> list[tuple[np.ndarray, np.ndarray]]:
            self.asked += len(texts)
            return super().tokens(texts)

    inner = Counting()
    first, other = random_projection(), random_projection(seed=4)
    for _ in range(2):
        for projection in (first, other):
            cached = CachedTokenEncoder(inner, folder=tmp_path)
            assert cached.compact([*TURNS, TURNS[0]], projection) == ENCODER.compact([*TURNS, TURNS[0]], projection)
    assert inner.asked == 2 * len(TURNS), "once a map"
    assert CachedTokenEncoder(inner, folder=tmp_path).compact([], first) == []


def test_an_encoder_says_whether_it_gives_token_vectors(tmp_path: Path) -> None:
    write_bert(tmp_path / "m")
    assert isinstance(encoders.load(str(tmp_path / "m")), TokenEncoder)
    assert isinstance(HashTokenEncoder(), TokenEncoder)
    assert not isinstance(HashEncoder(), TokenEncoder)


# ------------------------------------------------------------------ similarities


def test_a_document_is_the_turn_with_its_day() -> None:
    turn = Turn("D1:1", "Nadia", "The  reed", 1, datetime(2024, 5, 8, 13), "a bowl")
    assert late_interaction.documents(turn) == ["8 May 2024. Nadia: The reed [image: a bowl]"]


def test_the_identity_map_is_plain_maxsim() -> None:
    projection = Projection.identity(ENCODER.dimensions)
    found = projection.similarities(kept(projection), ENCODER.compact(["is the bowl in Vienna"], projection)[0])
    asked, pooled = ENCODER.tokens(["is the bowl in Vienna"])[0]
    turns = ENCODER.tokens(TURNS)
    n = ENCODER.dimensions
    expected = [(asked[:, :n] @ hidden[:, :n].T).max(axis=1).mean() for hidden, _ in turns]
    assert np.abs(found["late"] - expected).max() < 0.01
    assert np.abs(found["dense"] - [pooled @ other for _, other in turns]).max() < 0.01
    assert np.allclose(found["both"], found["late"] + found["dense"])


@pytest.mark.parametrize("question", ["Where is the blue bowl?", ""])
def test_rounding_to_int8_changes_little(question: str) -> None:
    projection = random_projection()
    found = projection.similarities(kept(projection), ENCODER.compact([question], projection)[0])
    assert {(name, values.shape, values.dtype.name) for name, values in found.items()} == {
        (name, (len(TURNS),), "float32") for name in ("late", "dense", "both")
    }
    expected = np.array([plainly(projection, question, turn) for turn in TURNS]).T
    assert np.abs([found["late"], found["dense"]] - expected).max() < 0.012
    assert np.allclose(found["both"], np.exp(0.7) * found["late"] + np.exp(-0.2) * found["dense"], atol=2e-3)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    projection = random_projection()
    question = ENCODER.compact(["Where is the reed?"], projection)[0]
    whole = projection.similarities(kept(projection), question)
    monkeypatch.setattr(late_interaction, "BLOCK", 3)
    assert np.allclose(projection.similarities(kept(projection), question)["late"], whole["late"], atol=1e-6)


def test_a_shortlist_comes_before_all_others() -> None:
    projection = random_projection()
    vectors = kept(projection, TURNS * 5)
    question = ENCODER.compact(["Where is the reed?"], projection)[0]
    whole = projection.similarities(vectors, question)
    positions = np.array([1, 6, 7, 19])
    short = projection.similarities(vectors, question, positions=positions)
    others = np.setdiff1d(np.arange(20), positions)
    assert np.array_equal(short["late"][positions], whole["late"][positions])
    assert np.array_equal(short["dense"], whole["dense"])
    assert short["late"][others].max() < short["late"][positions].min()
    assert np.array_equal(np.argsort(short["late"][others]), np.argsort(short["dense"][others]))


def test_without_turns_there_are_no_similarities() -> None:
    projection = random_projection()
    found = projection.similarities(TokenVectors(), ENCODER.compact(["Where?"], projection)[0])
    assert [values.shape for values in found.values()] == [(0,)] * 3


def test_observed_at_once_or_by_session_is_the_same_value(tmp_path: Path) -> None:
    write_bert(tmp_path / "m")
    bert = Bert(tmp_path / "m", name="m")
    projection = Projection.identity(WIDTH)
    at_once, by_session = TokenVectors(), TokenVectors()
    projection.append(at_once, [projection.compact(*each) for each in bert.tokens(TEXTS)])
    for texts in (TEXTS[:2], [], TEXTS[2:3], TEXTS[3:]):
        projection.append(by_session, [projection.compact(*each) for each in bert.tokens(texts)])
    assert at_once == by_session == pickle.loads(pickle.dumps(at_once))
    assert len(at_once) == len(TEXTS)
    projection.similarities(at_once, projection.compact(*bert.tokens(["reed"])[0]))
    projection.append(at_once, [projection.compact(*bert.tokens(["reed"])[0])])  # no view of the bytes is left
    assert at_once != by_session


def test_a_map_is_the_same_from_disk(tmp_path: Path) -> None:
    projection = random_projection()
    projection.save(tmp_path / "map.npz")
    again = late_interaction.load(tmp_path / "map.npz")
    assert again.digest == projection.digest != random_projection(seed=4).digest
    assert (again.fitted_on, again.encoder, again.made_by) == (("conv-1", "conv-2"), "hash", "")
    assert ENCODER.compact(TURNS, again) == ENCODER.compact(TURNS, projection)
    assert all(again.is_compact(text) for text in ENCODER.compact(["", *TURNS], projection))
    assert not again.is_compact(b"")
    first = (tmp_path / "map.npz").read_bytes()
    again.save(tmp_path / "map.npz")
    assert (tmp_path / "map.npz").read_bytes() == first


@pytest.mark.parametrize("content", [None, b"", b"no map", b"PK\x05\x06" + bytes(18)])
def test_a_file_without_a_map_is_one_sentence(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "map.npz").write_bytes(content)
    with pytest.raises(ValueError, match="does not contain a projection"):
        late_interaction.load(tmp_path / "map.npz")


# ------------------------------------------------------------------ fitting


def texts(rng: np.random.Generator, lengths: list[int], dimensions: int) -> Texts:
    starts = np.cumsum([0, *lengths])[:-1]
    return Texts(rng.normal(size=(sum(lengths), 2 * dimensions)), starts, rng.normal(size=(len(lengths), dimensions)))


@pytest.mark.parametrize("name", ["tokens", "pooled", "asked", "said", "scales"])
def test_gradients_are_finite_differences(name: str) -> None:
    rng = np.random.default_rng(5)
    draw = Sample(texts(rng, [3, 1], 4), texts(rng, [2, 5, 1, 4], 4), np.array([[1.0, 0, 1, 0], [0, 1, 0, 0]]))
    shapes = {"tokens": (8, 3), "pooled": (4, 4), "asked": (9,), "said": (9,), "scales": (2,)}
    weights: dict[str, Any] = {n: rng.normal(size=shape) for n, shape in shapes.items()}
    gradient = loss(weights, draw)[1][name]
    for at in np.ndindex(shapes[name]):
        values = []
        for step in (1e-6, -1e-6):
            moved = {n: w.copy() for n, w in weights.items()}
            moved[name][at] += step
            values.append(loss(moved, draw)[0])
        assert (values[0] - values[1]) / 2e-6 == pytest.approx(gradient[at], rel=1e-5, abs=1e-8)


def training_example(seed: int, turns: int = 60) -> TrainingExample:
    """Turns of random words; each question names one of them with other words that only training can connect: its
    words are the turn's, turned around."""
    rng = np.random.default_rng(seed)
    n = 8

    def unit(x: np.ndarray) -> np.ndarray:
        return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)

    hidden = [rng.normal(size=(5, 2 * n)) for _ in range(turns)]
    said = [(unit(h), unit(h[:, :n].sum(0))) for h in hidden]
    asked = [(unit(np.where(np.arange(2 * n) < n, -1, 1) * h[:3]), unit(h[:3, n:].sum(0))) for h in hidden]
    return TrainingExample(said, asked, [[i] if i % 7 else [] for i in range(turns)])


def test_fitting_is_deterministic_and_ranks_a_conversation_not_seen() -> None:
    fitted, again, other = (
        fit([training_example(1), training_example(2)], width=8, epochs=30, batch=8, learning_rate=2e-2, seed=seed)
        for seed in (0, 0, 1)
    )
    assert fitted.digest == again.digest != other.digest
    unseen = training_example(9)

    def found(projection: Projection) -> float:
        vectors = TokenVectors()
        projection.append(vectors, [projection.compact(*each) for each in unseen.turns])
        ranks = [
            int(projection.similarities(vectors, projection.compact(*each))["both"].argmax())
            for each in unseen.questions
        ]
        return float(np.mean([rank == i for i, rank in enumerate(ranks)]))

    assert found(Projection.identity(8)) < 0.1
    assert found(fitted) > 0.8


def test_a_step_sees_all_evidence_and_others() -> None:
    field = late_interaction_fit._TrainingConversation(training_example(1))
    draw = field.sample(np.array([1, 2, 3]), 12, np.random.default_rng(0))
    assert (draw.evidence.sum(axis=1) == 1).all()
    assert 6 <= draw.evidence.shape[1] <= 3 + 6 + 6
    assert 0 not in field.labelled

"""Fit ranking weights to evidence labels, without a model: the shipped weights and those of cross-validation.

A question with evidence turns is a training example. Questions without evidence or without an answer are not used.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from memometer import budget, memory, retrieval, synthetic
from memometer.benchmarks.metrics import evidence_recall
from memometer.benchmarks.protocol import Conversation, DataError, Dataset
from memometer.budget import best_first, pack
from memometer.memory import Turn
from memometer.models.downloads import models_folder
from memometer.models.encoders import TokenEncoder
from memometer.retrieval import late_interaction, late_interaction_fit, ranker
from memometer.retrieval.features import features
from memometer.retrieval.late_interaction import Projection, TokenVectors
from memometer.retrieval.late_interaction_fit import TrainingExample
from memometer.retrieval.ranker import Ranker, RankingExample, Sample
from memometer.retrieval.turn_index import TurnIndex
from memometer.run import progress
from memometer.run.environment import digest
from memometer.systems import adaptive
from memometer.systems.adaptive import AdaptiveMemory
from memometer.token_counters import TokenCounter, counter_for

Weights = tuple[Ranker, Projection | None]

HELD_OUT_TOGETHER = 2
"""Conversations per fold if there is an encoder, because its projection is fitted several times per fold."""

DECAY = 30.0
"""L2 penalty for the labels of a benchmark."""

EXPONENTS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Cost exponents to choose from. 1 is right for exact probabilities. Larger ones are left out: they prefer short turns
to likely ones, which is only a sign of probabilities that are not exact on the validation conversations."""

EXPONENT_BUDGETS = (512, 1024, 2048, 4096)

CALIBRATED_ON = 24
"""Most conversations on which probabilities are calibrated."""

PARTS = 3
"""The ranker learns from similarities under a projection that has not seen the question. The conversations are divided
into this many parts, and each part uses a projection fitted on the others."""


@dataclass(frozen=True)
class LabelledConversation:
    """A conversation to fit on.

    Attributes:
        id: its name.
        turns: its turns.
        questions: the text of each question, and the positions of its evidence turns; none for a question that is not
            a training example.
    """

    id: str
    turns: tuple[Turn, ...]
    questions: tuple[tuple[str, tuple[int, ...]], ...]


def labelled(conversation: Conversation) -> LabelledConversation:
    """Return a conversation of a benchmark with its evidence as positions."""
    position = {turn.id: n for n, turn in enumerate(conversation.turns)}
    questions = tuple(
        (question.text, tuple(sorted(position[id] for id in question.evidence)) if question.answerable else ())
        for question in conversation.questions
    )
    return LabelledConversation(conversation.id, tuple(conversation.turns), questions)


def synthetic_conversations(number: Mapping[str, int], *, first: int = 0) -> list[LabelledConversation]:
    """Generate conversations to fit on.

    Args:
        number: style -> number of conversations.
        first: number of the first one of each style; other numbers give other conversations.
    """
    found = []
    for style, count in number.items():
        for n in range(first, first + count):
            made = synthetic.generate(f"{style}/{n}", style)
            position = {turn.id: place for place, turn in enumerate(made.turns)}
            questions = tuple((q.text, tuple(sorted(position[id] for id in q.evidence))) for q in made.questions)
            found.append(LabelledConversation(made.id, made.turns, questions))
    return found


def examples(
    conversation: LabelledConversation, similarities: Sequence[Mapping[str, np.ndarray]] | None = None
) -> list[RankingExample]:
    """One training example per question with evidence.

    Args:
        conversation: The conversation.
        similarities: Similarities of each question to the turns, if there is an encoder.
    """
    index = TurnIndex()
    index.add(conversation.turns)
    return [
        RankingExample(features(index, text, similarities[n] if similarities else None), evidence)
        for n, (text, evidence) in enumerate(conversation.questions)
        if evidence
    ]


def training_example(conversation: LabelledConversation, encoder: TokenEncoder) -> TrainingExample:
    """Encode the turns and questions of a conversation. One of LOCOMO's takes 25 seconds and 100 MB."""
    texts = [late_interaction.documents(turn) for turn in conversation.turns]
    encoded = iter(encoder.tokens([text for each in texts for text in each]))
    turns = [_joined([next(encoded) for _ in each]) for each in texts]
    questions = encoder.tokens([text for text, _ in conversation.questions])
    evidence = [evidence for _, evidence in conversation.questions]
    return TrainingExample(turns=turns, questions=questions, evidence=evidence)


def _joined(passages: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the token vectors of a turn's passages, in half precision, and their mean pooled vector."""
    pooled = np.mean([vector for _, vector in passages], axis=0)
    tokens = np.concatenate([tokens for tokens, _ in passages]).astype(np.float16)
    return tokens, (pooled / max(float(np.linalg.norm(pooled)), 1e-12)).astype(np.float32)


def similarities(example: TrainingExample, projection: Projection) -> list[dict[str, np.ndarray]]:
    """Compare each question of a training example with its turns, under a projection."""
    vectors = TokenVectors()
    projection.append(vectors, [projection.compact(t.astype(np.float32), p) for t, p in example.turns])
    return [projection.similarities(vectors, projection.compact(*question)) for question in example.questions]


def fit(
    conversations: Sequence[LabelledConversation],
    training_examples: Mapping[str, TrainingExample] | None = None,
    *,
    encoder: str = "",
    decay: float = DECAY,
    seed: int = 0,
    about: Mapping[str, Any] | None = None,
    known: dict[str, Sample] | None = None,
) -> Weights:
    """Fit weights to conversations, and a projection if `training_examples` (by conversation id) are given.

    The probabilities are calibrated, and the cost exponent is chosen, on every third conversation with weights fitted
    on the others; then the weights are fitted on all.

    Args:
        conversations: The conversations.
        training_examples: Their token vectors.
        encoder: Name of the encoder.
        decay: L2 penalty, in questions.
        seed: Seed of the random numbers.
        about: `made_by`, `data` and `licence` of the weights.
        known: Samples of conversations by id, which are used and added to, so that several fits compute them once. Only
            for fits without an encoder.
    """
    about = dict(about or {})
    names = tuple(conversation.id for conversation in conversations)
    projection = None
    unseen: dict[str, Projection] = {}
    if training_examples is not None:
        for n in range(min(PARTS, len(conversations))):
            part = conversations[n::PARTS]
            others = [training_examples[c.id] for c in conversations if c not in part]
            unseen |= dict.fromkeys((c.id for c in part), late_interaction_fit.fit(others, seed=seed))
        fitted = late_interaction_fit.fit([training_examples[id] for id in names], seed=seed)
        made_by = about.get("made_by", "")
        projection = replace(fitted, fitted_on=names, encoder=encoder, made_by=made_by)

    def examples_of(conversation: LabelledConversation) -> list[RankingExample]:
        if training_examples is None:
            return examples(conversation)
        compared = similarities(training_examples[conversation.id], unseen[conversation.id])
        return examples(conversation, compared)

    samples: dict[str, Sample] = {}
    for conversation in progress.bar(conversations, desc="features", unit="conversation", leave=False):
        if known and conversation.id in known:
            samples[conversation.id] = known[conversation.id]
        elif found := examples_of(conversation):
            samples[conversation.id] = ranker.sample(found, seed=seed)
    if known is not None:
        known |= samples
    if not samples:
        raise DataError(f"no question about {', '.join(names)} has evidence, so the ranking cannot be fitted to them.")
    held_out = [c for c in conversations[2::3] if c.id in samples]
    weights = ranker.fit(list(samples.values()), decay=decay, fitted_on=names)
    if held_out and len(held_out) < len(samples):
        rest = ranker.fit([s for id, s in samples.items() if id not in {c.id for c in held_out}], decay=decay)
        validation = [(c, examples_of(c)) for c in held_out[:CALIBRATED_ON]]
        rest = ranker.calibrated(rest, [example for _, found in validation for example in found])
        weights = replace(weights, calibration=rest.calibration, cost_exponent=_best_exponent(rest, validation))
    return replace(weights, encoder=encoder, **about), projection


def _best_exponent(
    weights: Ranker, validation: Sequence[tuple[LabelledConversation, Sequence[RankingExample]]]
) -> float:
    """Return the cost exponent of EXPONENTS with the highest mean recall over all budgets; of equals the largest."""
    count = counter_for(tokenizer=None)
    totals = dict.fromkeys(EXPONENTS, 0.0)
    for conversation, found in validation:
        costs = np.array([count(turn.line) for turn in conversation.turns])
        for example in found:
            scores = weights.scores(example.features)
            for exponent in EXPONENTS:
                order = np.argsort(-(scores - exponent * np.log(costs)), kind="stable")
                needed = np.cumsum(costs[order])[np.isin(order, example.evidence)]
                totals[exponent] += float(np.mean([(needed <= budget).mean() for budget in EXPONENT_BUDGETS]))
    return max(EXPONENTS, key=lambda exponent: (round(totals[exponent], 6), exponent))


def folds(
    data: Dataset,
    conversation_ids: Sequence[str],
    encoder: TokenEncoder | None = None,
    *,
    among: Sequence[Conversation] | None = None,
) -> dict[str, Weights]:
    """Return weights for each conversation that were fitted without its labels (cross-validation).

    Those for LOCOMO without an encoder are part of the package; others are fitted and cached on disk.

    Args:
        data: The data.
        conversation_ids: Ids of the conversations that need weights.
        encoder: With an encoder the folds have two conversations and fitting takes a quarter of an hour; without one
            every conversation is a fold and fitting takes minutes.
        among: The conversations to fit on; by default all.

    Returns:
        Conversation id -> weights that have not seen its labels.

    Raises:
        RuntimeError: Weights have seen a conversation of their fold.
    """
    pool = tuple(among or data.conversations)
    groups = _groups(pool, conversation_ids, together=HELD_OUT_TOGETHER if encoder else 1)
    folder = _folds_folder(data, encoder, pool if among else ())
    training_examples: dict[str, TrainingExample] | None = None
    known: dict[str, Sample] | None = None if encoder else {}
    weights: dict[str, Weights] = {}
    for group in progress.bar(groups, desc="fitting the ranking", unit="fold", leave=False):
        name = "+".join(conversation.id for conversation in group)
        path, map_path = folder / f"{name}.json", folder / f"{name}.npz"
        part_of_package = ranker.shipped("locomo", without=name)
        if not data.kind and data.benchmark == "locomo" and not encoder and not among and part_of_package.exists():
            path = part_of_package
        if not path.exists():
            if encoder and training_examples is None:
                training_examples = {c.id: training_example(labelled(c), encoder) for c in pool}
            others = [labelled(conversation) for conversation in pool if conversation not in group]
            fitted, projection = fit(others, training_examples, encoder=encoder.name if encoder else "", known=known)
            if projection:
                _save_atomically(projection.save, map_path)
            _save_atomically(fitted.save, path)  # last: its presence means that the fold is complete
        found: Weights = (ranker.load(path), late_interaction.load(map_path) if encoder else None)
        weights |= {conversation.id: found for conversation in group}
        learned_from = {*found[0].fitted_on, *(found[1].fitted_on if found[1] else ())}
        if seen := learned_from & {conversation.id for conversation in group}:
            raise RuntimeError(f"the weights in {path} have seen {', '.join(sorted(seen))}; delete them.")
    return weights


def _groups(
    pool: Sequence[Conversation], conversation_ids: Sequence[str], *, together: int
) -> list[Sequence[Conversation]]:
    """Return the folds that hold the conversations: each has up to `together` of them."""
    n = -(-len(pool) // together)
    groups = [pool[i::n] for i in range(n)]
    return [group for group in groups if any(conversation.id in conversation_ids for conversation in group)]


def _folds_folder(data: Dataset, encoder: TokenEncoder | None, among: Sequence[Conversation]) -> Path:
    """Return the folder of cached folds; its name changes with the data, the encoder and the code."""
    sources = [
        *Path(retrieval.__path__[0]).glob("*.py"),
        Path(__file__),
        Path(memory.__file__),
        Path(budget.__file__),
        Path(adaptive.__file__),
    ]
    code = digest([path.read_text(encoding="utf-8") for path in sorted(sources)])
    key = [data.sha256, code, encoder.name if encoder else "", *([[c.id for c in among]] if among else [])]
    folder = models_folder() / "folds" / digest(key)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _save_atomically(save: Callable[[Path], None], path: Path) -> None:
    """Write a file atomically."""
    parts = path.with_suffix(f".{os.getpid()}{path.suffix}")
    save(parts)
    parts.replace(path)


def recalls(
    conversations: Iterable[LabelledConversation], memory: AdaptiveMemory, budgets: Sequence[int], count: TokenCounter
) -> dict[str, list[float]]:
    """Mean evidence recall over questions with evidence. A turn counts if all of it is shown.

    Args:
        conversations: The conversations.
        memory: The memory with fitted weights.
        budgets: Budgets in tokens.
        count: Counts the tokens.

    Returns:
        `fitted` and `untrained` (the first score without weights) -> recall at each budget.
    """
    found: dict[str, list[list[float]]] = {"untrained": [], "fitted": []}
    for conversation in conversations:
        state = memory.new()
        memory.observe(state, conversation.turns)
        for text, evidence in conversation.questions:
            if not evidence:
                continue
            ids = [conversation.turns[position].id for position in evidence]
            untrained = [
                pack(state, best_first(memory.features(state, text).first), budget, count) for budget in budgets
            ]
            fitted = [memory.recall(state, text, budget) for budget in budgets]
            for name, shown in (("untrained", untrained), ("fitted", fitted)):
                found[name].append([evidence_recall(ids, recall.whole_ids) or 0.0 for recall in shown])
    return {name: np.mean(rows, axis=0).tolist() for name, rows in found.items()}

"""Fit ranking weights to evidence labels, without a model: the shipped weights and those of cross-validation.

A question with evidence turns is a training example. Questions without evidence or without an answer are not used.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from memometer import budget, memory, retrieval
from memometer.benchmarks.metrics import evidence_recall
from memometer.benchmarks.protocol import Conversation, DataError, Dataset
from memometer.budget import pack
from memometer.models.downloads import models_folder
from memometer.models.encoders import TokenEncoder
from memometer.retrieval import late_interaction, late_interaction_fit, ranker
from memometer.retrieval.features import features
from memometer.retrieval.late_interaction import Projection, TokenVectors
from memometer.retrieval.late_interaction_fit import TrainingExample
from memometer.retrieval.ranker import Ranker, RankingExample
from memometer.retrieval.turn_index import TurnIndex
from memometer.run import progress
from memometer.run.environment import digest
from memometer.systems import adaptive
from memometer.systems.adaptive import AdaptiveMemory
from memometer.token_counters import TokenCounter

Weights = tuple[Ranker, Projection | None]

HELD_OUT_TOGETHER = 2
"""Conversations per fold if there is an encoder, because its projection is fitted several times per fold."""

PARTS = 3
"""The ranker learns from similarities under a projection that has not seen the question. The conversations are divided
into this many parts, and each part uses a projection fitted on the others."""


def evidence_of(conversation: Conversation) -> list[list[int]]:
    """The positions of the evidence turns of each question; empty for a question that is not a training example."""
    position = {turn.id: n for n, turn in enumerate(conversation.turns)}
    return [
        sorted(position[id] for id in question.evidence) if question.answerable else []
        for question in conversation.questions
    ]


def examples(
    conversation: Conversation, similarities: Sequence[Mapping[str, np.ndarray]] | None = None
) -> list[RankingExample]:
    """One training example per question with evidence.

    Args:
        conversation: The conversation.
        similarities: Similarities of each question to the turns, if there is an encoder.
    """
    index = TurnIndex()
    index.add(conversation.turns)
    return [
        RankingExample(features(index, question.text, similarities[n] if similarities else None), tuple(evidence))
        for n, (question, evidence) in enumerate(zip(conversation.questions, evidence_of(conversation), strict=True))
        if evidence
    ]


def training_example(conversation: Conversation, encoder: TokenEncoder) -> TrainingExample:
    """Encode the turns and questions of a conversation. One of LOCOMO's takes 25 seconds and 100 MB."""
    turns = encoder.tokens([late_interaction.document(turn) for turn in conversation.turns])
    questions = encoder.tokens([question.text for question in conversation.questions])
    return TrainingExample(turns=turns, questions=questions, evidence=evidence_of(conversation))


def similarities(example: TrainingExample, projection: Projection) -> list[dict[str, np.ndarray]]:
    """Compare each question of a training example with its turns, under a projection."""
    vectors = TokenVectors()
    projection.append(vectors, [projection.compact(*turn) for turn in example.turns])
    return [projection.similarities(vectors, projection.compact(*question)) for question in example.questions]


def fit(
    conversations: Sequence[Conversation],
    training_examples: Mapping[str, TrainingExample] | None = None,
    *,
    encoder: str = "",
    seed: int = 0,
    made_by: str = "",
) -> Weights:
    """Fit weights to conversations, and a projection if `training_examples` (by conversation id) are given."""
    names = tuple(conversation.id for conversation in conversations)
    projection = None
    labelled: list[RankingExample] = []
    if training_examples is None:
        labelled = [example for conversation in conversations for example in examples(conversation)]
    else:
        for n in range(min(PARTS, len(conversations))):
            part = conversations[n::PARTS]
            others = [training_examples[c.id] for c in conversations if c not in part]
            unseen = late_interaction_fit.fit(others, seed=seed)
            labelled += [e for c in part for e in examples(c, similarities(training_examples[c.id], unseen))]
        fitted = late_interaction_fit.fit([training_examples[id] for id in names], seed=seed)
        projection = replace(fitted, fitted_on=names, encoder=encoder, made_by=made_by)
    if not labelled:
        raise DataError(f"no question about {', '.join(names)} has evidence, so the ranking cannot be fitted to them.")
    weights = ranker.fit(labelled, seed=seed, fitted_on=names)
    return replace(weights, encoder=encoder, made_by=made_by), projection


def folds(
    data: Dataset,
    conversation_ids: Sequence[str],
    encoder: TokenEncoder | None = None,
    *,
    among: Sequence[Conversation] | None = None,
) -> dict[str, Weights]:
    """Fit weights for each conversation without its labels (cross-validation). They are cached on disk.

    Args:
        data: The data.
        conversation_ids: Ids of the conversations that need weights.
        encoder: With an encoder the folds have two conversations and fitting takes a quarter of an hour; without one
            every conversation is a fold and fitting takes minutes.
        among: The conversations to fit on; by default all.

    Returns:
        Conversation id -> weights that have not seen its labels.

    Raises:
        RuntimeError: Cached weights have seen a conversation of their fold.
    """
    pool = tuple(among or data.conversations)
    sources = [
        *Path(retrieval.__path__[0]).glob("*.py"),
        Path(__file__),
        Path(memory.__file__),
        Path(budget.__file__),
        Path(adaptive.__file__),
    ]
    code = digest([path.read_text(encoding="utf-8") for path in sorted(sources)])
    key = [data.sha256, code, encoder.name if encoder else "", *([[c.id for c in pool]] if among else [])]
    folder = models_folder() / "folds" / digest(key)
    folder.mkdir(parents=True, exist_ok=True)
    n = -(-len(pool) // HELD_OUT_TOGETHER) if encoder else len(pool)
    groups = [pool[i::n] for i in range(n)]
    wanted = [group for group in groups if any(conversation.id in conversation_ids for conversation in group)]
    training_examples: dict[str, TrainingExample] | None = None
    weights: dict[str, Weights] = {}
    for group in progress.bar(wanted, desc="fitting the ranking", unit="fold", leave=False):
        name = "+".join(conversation.id for conversation in group)
        path, map_path = folder / f"{name}.json", folder / f"{name}.npz"
        if not path.exists():
            if encoder and training_examples is None:
                training_examples = {c.id: training_example(c, encoder) for c in pool}
            others = [conversation for conversation in pool if conversation not in group]
            fitted, projection = fit(others, training_examples, encoder=encoder.name if encoder else "")
            if projection:
                _save_atomically(projection.save, map_path)
            _save_atomically(fitted.save, path)  # last: its presence means that the fold is complete
        found: Weights = (ranker.load(path), late_interaction.load(map_path) if encoder else None)
        weights |= {conversation.id: found for conversation in group}
        learned_from = {*found[0].fitted_on, *(found[1].fitted_on if found[1] else ())}
        if seen := learned_from & {conversation.id for conversation in group}:
            raise RuntimeError(f"the weights in {path} have seen {', '.join(sorted(seen))}; delete them.")
    return weights


def _save_atomically(save: Callable[[Path], None], path: Path) -> None:
    """Write a file atomically."""
    parts = path.with_suffix(f".{os.getpid()}{path.suffix}")
    save(parts)
    parts.replace(path)


def recalls(
    conversations: Iterable[Conversation], memory: AdaptiveMemory, budgets: Sequence[int], count: TokenCounter
) -> dict[str, list[float]]:
    """Mean evidence recall over answerable questions.

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
        for session in conversation.sessions:
            memory.observe(state, session.turns)
        for question in conversation.questions:
            if not question.answerable or not question.evidence:
                continue
            looked = memory.features(state, question.text)
            for name, scores in (("untrained", looked.first), ("fitted", memory.scores(state, question.text))):
                order = np.argsort(-scores, kind="stable").tolist()
                shown = [pack(state, order, budget, count).turn_ids for budget in budgets]
                found[name].append([evidence_recall(question.evidence, ids) or 0.0 for ids in shown])
    return {name: np.mean(rows, axis=0).tolist() for name, rows in found.items()}

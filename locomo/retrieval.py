"""Ranking weights from evidence labels, without a model: those that are shipped, and one set a fold for honest figures.

A question trains the ranking with its evidence turns; questions without evidence, and category 5, train nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

import ranking
from language_models.weights import models_folder
from locomo.dataset import ANSWERABLE, Conversation, Dataset
from locomo.metrics import evidence_recall
from locomo.provenance import digest
from memory_system import MemorySystem, TokenCounter, pack
from ranking.features import features
from ranking.index import Index
from ranking.ranker import Example, Ranker, fit, load


def examples(conversation: Conversation) -> list[Example]:
    """One example a question in categories 1-4 that has evidence."""
    index = Index()
    index.add(conversation.turns)
    position = {turn.id: n for n, turn in enumerate(conversation.turns)}
    return [
        Example(features(index, question.text), tuple(sorted(position[id] for id in question.evidence)))
        for question in conversation.questions
        if question.category in ANSWERABLE and question.evidence
    ]


def folds(data: Dataset, asked: Sequence[str]) -> dict[str, Ranker]:
    """For each conversation of `asked` the weights fitted on all others; a minute the first time, kept on disk."""
    from tqdm import tqdm

    code = digest([path.read_text() for path in sorted(Path(ranking.__path__[0]).glob("*.py"))])
    folder = models_folder() / "folds" / digest([data.sha256, code])
    by_conversation: dict[str, list[Example]] = {}
    rankers = {}
    for held_out in tqdm(asked, desc="fitting the ranking without", unit="conversation", leave=False):
        path = folder / f"{held_out}.json"
        if not path.exists():
            by_conversation = by_conversation or {c.id: examples(c) for c in data.conversations}
            others = [id for id in by_conversation if id != held_out]
            folder.mkdir(parents=True, exist_ok=True)
            fit([e for id in others for e in by_conversation[id]], fitted_on=others).save(path)
        rankers[held_out] = load(path)
        assert held_out not in rankers[held_out].fitted_on
    return rankers


def recalls(
    conversations: Iterable[Conversation], ranker: Ranker | None, budgets: Sequence[int], count: TokenCounter
) -> dict[int, float]:
    """Budget in tokens -> mean evidence recall over categories 1-4; with no ranker, of the untrained first score."""
    memory = MemorySystem(count=count, ranker=ranker)
    found: dict[int, list[float]] = {budget: [] for budget in budgets}
    for conversation in conversations:
        state = memory.new()
        memory.observe(state, conversation.turns)
        for question in conversation.questions:
            if question.category not in ANSWERABLE or not question.evidence:
                continue
            looked = features(state.index, question.text)
            order = np.argsort(-(ranker.scores(looked) if ranker else looked.first), kind="stable").tolist()
            for budget in budgets:
                recall = evidence_recall(question.evidence, pack(state, order, budget, count).turn_ids)
                found[budget].append(recall or 0.0)
    return {budget: sum(values) / len(values) for budget, values in found.items()}

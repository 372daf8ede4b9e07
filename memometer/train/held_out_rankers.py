"""Ranking weights for training prompts: each conversation is recalled by what the other training conversations taught.

`memometer.harness.fit_ranker.folds` learns from all other conversations, the held-out ones among them: right
for measuring, not
for training.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from memometer import retrieval
from memometer.benchmarks.protocol import Conversation, Dataset
from memometer.harness import fit_ranker
from memometer.models.downloads import models_folder
from memometer.retrieval import ranker
from memometer.retrieval.ranker import Ranker
from memometer.run.environment import digest


def unseen_rankers(data: Dataset, train: Sequence[Conversation]) -> dict[str, Ranker]:
    """Conversation id -> weights fitted on the other conversations of `train`, kept on disk. Half a minute each."""
    if len(train) < 2:
        return {}
    sources = [*Path(retrieval.__path__[0]).glob("*.py"), Path(fit_ranker.__file__)]
    code = digest([path.read_text() for path in sorted(sources)])
    folder = models_folder() / "folds" / digest([data.sha256, code, "training"])
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for held_out in train:
        others = [conversation for conversation in train if conversation is not held_out]
        path = folder / f"{digest([c.id for c in others])}.json"
        if not path.exists():
            part = path.with_suffix(f".{os.getpid()}.json")
            fit_ranker.fit(others)[0].save(part)
            part.replace(path)
        found[held_out.id] = ranker.load(path)
    return found

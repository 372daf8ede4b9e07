"""The replies that a supervised training learns: the gold replies, or those of a teacher."""

from __future__ import annotations

import json

from memometer.run.folder import RunFolder
from memometer.train import distillation
from memometer.train.plan import TrainingPlan
from memometer.train.reward import gold_reply


def target_replies(plan: TrainingPlan, folder: RunFolder) -> dict[str, str]:
    """Return the reply to learn for each prompt id: the gold reply, or the teacher's.

    The teacher's replies are saved once. A call that failed might succeed when the training is resumed, which would
    change the order of the data.
    """
    if not plan.options.teacher:
        return {prompt.id: gold_reply(prompt.case) for prompt in plan.train}
    path = folder.path / "targets.json"
    if not path.exists():
        folder.write_json(path.name, distillation.teacher_replies(plan, folder))
    found: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    return found

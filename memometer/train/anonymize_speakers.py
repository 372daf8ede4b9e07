"""Invented names for the speakers of a conversation.

LOCOMO has three speakers named John, and a trained model should not learn anything about a name. Full names are
replaced as words; short forms such as `Mel` and pronouns stay.
"""

from __future__ import annotations

import re
from dataclasses import replace

from memometer.benchmarks.protocol import Benchmark, Conversation


def anonymize(conversation: Conversation, benchmark: Benchmark, *, seed: int) -> Conversation:
    """Return the conversation with invented speaker names, the same ones for the same seed. All ids stay."""
    assert benchmark.person_names, f"{benchmark.title} has no invented names"
    new_name = benchmark.person_names(f"training/{seed}/names/{conversation.id}", conversation.speakers)
    names: dict[str, str] = {}
    for speaker in conversation.speakers:
        while (name := new_name()) in names.values():
            pass
        names[speaker] = name
    word = re.compile(rf"\b({'|'.join(map(re.escape, names))})\b")

    def renamed(text: str) -> str:
        return word.sub(lambda match: names[match[1]], text)

    sessions = tuple(
        replace(
            session,
            turns=tuple(
                replace(turn, speaker=renamed(turn.speaker), text=renamed(turn.text)) for turn in session.turns
            ),
        )
        for session in conversation.sessions
    )
    questions = tuple(
        replace(
            question,
            text=renamed(question.text),
            gold=question.gold and renamed(question.gold),
            adversarial_answer=question.adversarial_answer and renamed(question.adversarial_answer),
        )
        for question in conversation.questions
    )
    speakers = tuple(names[speaker] for speaker in conversation.speakers)
    return replace(conversation, speakers=speakers, sessions=sessions, questions=questions)

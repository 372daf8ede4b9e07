"""Other names for the speakers of a training conversation: LOCOMO has three Johns, and nothing should be learned of one
of them. Full names are replaced wherever they stand as words; short forms (`Mel`) and pronouns stay."""

from __future__ import annotations

import re
from dataclasses import replace

from memometer.benchmarks.protocol import Benchmark, Conversation


def renamed(conversation: Conversation, benchmark: Benchmark, *, seed: int) -> Conversation:
    """The conversation with invented names, the same for the same seed; its ids stay."""
    assert benchmark.person_names, f"{benchmark.title} invents no names"
    new_name = benchmark.person_names(f"training/{seed}/names/{conversation.id}", conversation.speakers)
    names: dict[str, str] = {}
    for speaker in conversation.speakers:
        while (name := new_name()) in names.values():
            pass
        names[speaker] = name
    word = re.compile(rf"\b({'|'.join(map(re.escape, names))})\b")

    def other(text: str) -> str:
        return word.sub(lambda match: names[match[1]], text)

    sessions = tuple(
        replace(
            session,
            turns=tuple(replace(turn, speaker=other(turn.speaker), text=other(turn.text)) for turn in session.turns),
        )
        for session in conversation.sessions
    )
    questions = tuple(
        replace(
            question,
            text=other(question.text),
            gold=question.gold and other(question.gold),
            adversarial_answer=question.adversarial_answer and other(question.adversarial_answer),
        )
        for question in conversation.questions
    )
    first, second = (names[speaker] for speaker in conversation.speakers)
    return Conversation(conversation.id, (first, second), sessions, questions)

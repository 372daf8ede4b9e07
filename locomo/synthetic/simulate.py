"""Synthetic conversations with known evidence, in LOCOMO's format and of any length.

`memometer simulate` writes them to a file. `history` generates one long conversation, session by session. The text
uses only this project's own words, and the same seed gives the same text. A high score here shows that a memory finds
facts in a conversation of this length, not that it scores well on LOCOMO.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from locomo import dataset
from locomo.dataset import CATEGORIES, SIMULATED, Question
from locomo.synthetic.conversation import ConversationGenerator
from memometer.benchmarks.protocol import Conversation, Dataset, Session
from memometer.run.environment import digest
from memometer.synthetic.draw import Draw


def history(seed: int, *, turns: int = 280_000) -> Iterator[tuple[Session, tuple[Question, ...]]]:
    """Generate one conversation, session by session.

    Args:
        seed: Seed of the generator.
        turns: Number of turns, approximately; 280,000 are ten million tokens.

    Yields:
        A session and the questions whose evidence it completes. No later fact makes a question ambiguous.
    """
    draw = Draw(f"simulate/{seed}/sizes")
    sizes: list[int] = []
    left = turns
    while left > 0:
        sizes.append(_turns(draw))
        left -= sizes[-1]
    return ConversationGenerator(f"simulate/{seed}/history", sizes, name=f"simulated-{seed}").sessions()


def conversation(seed: int, number: int) -> Conversation:
    """Generate one conversation of LOCOMO's size: about 27 sessions, 590 turns and 200 questions.

    Args:
        seed: Seed of the generator.
        number: Number of the conversation, from 1.
    """
    draw = Draw(f"simulate/{seed}/{number}/sizes")
    sizes = [_turns(draw) for _ in range(draw.pick((19, 24, 26, 28, 29, 29, 30, 30, 31, 32)))]
    name = f"simulated-{seed}-{number}"
    people = ConversationGenerator(f"simulate/{seed}/{number}", sizes, name=name)
    parts = list(people.sessions())
    questions = tuple(question for _, asked in parts for question in asked)
    return Conversation(name, people.speakers, tuple(session for session, _ in parts), questions)


def dataset_of(seed: int, conversations: int) -> Dataset:
    """Generate synthetic conversations as a data set without a file.

    Args:
        seed: Seed of the generator.
        conversations: Number of conversations.
    """
    made = [conversation(seed, number) for number in range(1, conversations + 1)]
    identity = digest([seed, [c.questions for c in made], [c.turns for c in made]])
    return dataset.dataset(made, Path("simulated"), identity, "SIMULATED")


def _turns(draw: Draw) -> int:
    return max(10, round(draw.lengthy(21, 0.24)))


def as_json(conversation: Conversation, *, seed: int) -> dict[str, Any]:
    """Convert a conversation to LOCOMO's format, with the key that marks it as synthetic.

    Args:
        conversation: The conversation.
        seed: Seed of the generator, to be stored in the file.
    """
    talk: dict[str, Any] = dict(zip(("speaker_a", "speaker_b"), conversation.speakers, strict=True))
    for session in conversation.sessions:
        at = session.said_at
        talk[f"session_{session.number}_date_time"] = f"{at:%I:%M %p on} {at.day} {at:%B, %Y}".lstrip("0")
        talk[f"session_{session.number}"] = [
            {"speaker": turn.speaker, "dia_id": turn.id, "text": turn.text}
            | ({"blip_caption": turn.caption} if turn.caption else {})
            for turn in session.turns
        ]
    qa = [
        {"question": q.text, "evidence": list(q.evidence), "category": int(q.category)}
        | ({"answer": q.gold} if q.gold else {"adversarial_answer": q.adversarial_answer})
        for q in conversation.questions
    ]
    return {"sample_id": conversation.id, SIMULATED: {"seed": seed}, "conversation": talk, "qa": qa}


LOCOMO_SHAPE = {
    "sessions per conversation": 27.2,
    "turns per session": 21.6,
    "days between sessions": 8.4,
    "words per turn": 22.7,
    "words per turn, 5th percentile": 7.0,
    "words per turn, 95th percentile": 47.0,
    "tokens per turn, date lines included": 33.5,
    "turns with a caption, %": 20.8,
    "turns that end in a question, %": 25.1,
    "distinct words per conversation": 1729.2,
    "questions of category 1, %": 14.2,
    "questions of category 2, %": 16.2,
    "questions of category 3, %": 4.8,
    "questions of category 4, %": 42.3,
    "questions of category 5, %": 22.5,
    "words per question": 10.2,
    "evidence turns of a multi-hop question": 3.1,
    "question words in the evidence, category 1, %": 50.1,
    "question words in the evidence, category 2, %": 55.0,
    "question words in the evidence, category 3, %": 24.0,
    "question words in the evidence, category 4, %": 46.9,
    "question words in the evidence, category 5, %": 44.6,
}
"""The result of `shape` for LOCOMO. A test verifies it."""


def shape(conversations: Sequence[Conversation]) -> dict[str, float]:
    """Compute statistics of conversations, for comparison with LOCOMO_SHAPE. Tokens are counted with o200k_base."""
    from memometer.retrieval.tokenize import terms
    from memometer.token_counters import counter_for

    count = counter_for()
    sessions = [session for c in conversations for session in c.sessions]
    turns = [turn for session in sessions for turn in session.turns]
    questions = [(c, question) for c in conversations for question in c.questions]
    words = sorted(len(turn.text.split()) for turn in turns)
    gaps = [
        (b.said_at - a.said_at).days for c in conversations for a, b in zip(c.sessions, c.sessions[1:], strict=False)
    ]
    tokens = sum(count(turn.line) for turn in turns) + sum(count(session.turns[0].header) for session in sessions)
    categories = Counter(question.category for _, question in questions)
    distinct = [len(set(re.findall(r"[^\W_]+", " ".join(t.line for t in c.turns).lower()))) for c in conversations]
    words_of = {(c.id, turn.id): set(terms(turn.line)) for c in conversations for turn in c.turns}
    found: dict[str, list[float]] = {category: [] for category in CATEGORIES}
    for c, question in questions:
        asked = set(terms(question.text)) - set(terms(" ".join(c.speakers)))
        if asked and question.evidence:
            evidence = set().union(*(words_of[c.id, id] for id in question.evidence))
            found[question.category].append(100 * len(asked & evidence) / len(asked))
    statistics = (
        len(sessions) / len(conversations),
        len(turns) / len(sessions),
        mean(gaps),
        mean(words),
        words[len(words) // 20],
        words[len(words) * 19 // 20],
        tokens / len(turns),
        100 * mean(turn.caption is not None for turn in turns),
        100 * mean(turn.text.rstrip().endswith("?") for turn in turns),
        mean(distinct),
        *(100 * categories[category] / len(questions) for category in CATEGORIES),
        mean(len(question.text.split()) for _, question in questions),
        mean(len(question.evidence) for _, question in questions if question.category == "1"),
        *(mean(shares) for shares in found.values()),
    )
    return {name: round(value, 1) for name, value in zip(LOCOMO_SHAPE, statistics, strict=True)}


def write(path: Path, seed: int, conversations: int) -> list[str]:
    """Generate synthetic conversations and write them in LOCOMO's format.

    Args:
        path: The file.
        seed: Seed of the generator.
        conversations: Number of conversations.

    Returns:
        A table of their statistics next to LOCOMO's, as lines.

    Raises:
        OSError: The file cannot be written.
    """
    made = [conversation(seed, number) for number in range(1, conversations + 1)]
    path.write_text(json.dumps([as_json(c, seed=seed) for c in made], indent=1) + "\n", encoding="utf-8")
    rows = [f"{name:<46}{LOCOMO_SHAPE[name]:>9,}{value:>11,}" for name, value in shape(made).items()]
    return [f"{'':<46}{'LOCOMO':>9}{'synthetic':>11}", *rows]

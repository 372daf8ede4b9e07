"""Simulated conversations with known evidence, in LOCOMO's shape, of any length.

    memometer simulate --seed 1 --conversations 10 --out FILE.json

writes a file in LOCOMO's format for `evaluate.py --data FILE`, whose every line then says SIMULATED, and prints how
its statistics stand beside LOCOMO's. `history(seed)` is one long conversation, session by session. All of it is made
of this project's own words, and the same for the same seed. A memory that wins here has shown that it finds things
at this length, not that it is good on LOCOMO.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from locomo import dataset
from locomo.dataset import CATEGORIES, SIMULATED, Question
from locomo.synthetic.conversation import Acquaintance
from locomo.synthetic.templates import Draw
from memometer.benchmarks.protocol import Conversation, Dataset, Session
from memometer.run.environment import digest


def history(seed: int, *, turns: int = 280_000) -> Iterator[tuple[Session, tuple[Question, ...]]]:
    """One conversation of about `turns` turns (280,000 are ten million tokens), made while it is read: each session
    with the questions whose evidence it completes. However long the history goes on, no later fact makes a question
    ambiguous."""
    draw = Draw(f"simulate/{seed}/sizes")
    sizes: list[int] = []
    left = turns
    while left > 0:
        sizes.append(_turns(draw))
        left -= sizes[-1]
    return Acquaintance(f"simulate/{seed}/history", sizes, name=f"simulated-{seed}").sessions()


def conversation(seed: int, number: int) -> Conversation:
    """One conversation of LOCOMO's size: about 27 sessions, 590 turns and 200 questions."""
    draw = Draw(f"simulate/{seed}/{number}/sizes")
    sizes = [_turns(draw) for _ in range(draw.pick((19, 24, 26, 28, 29, 29, 30, 30, 31, 32)))]
    name = f"simulated-{seed}-{number}"
    people = Acquaintance(f"simulate/{seed}/{number}", sizes, name=name)
    parts = list(people.sessions())
    questions = tuple(question for _, asked in parts for question in asked)
    return Conversation(name, people.speakers, tuple(session for session, _ in parts), questions)


def dataset_of(seed: int, conversations: int) -> Dataset:
    """Synthetic conversations as a data set that no file holds."""
    made = [conversation(seed, number) for number in range(1, conversations + 1)]
    identity = digest([seed, [c.questions for c in made], [c.turns for c in made]])
    return dataset.dataset(made, Path("simulated"), identity, "SIMULATED")


def _turns(draw: Draw) -> int:
    return max(10, round(draw.lengthy(21, 0.24)))


def as_json(conversation: Conversation, *, seed: int) -> dict[str, Any]:
    """A conversation as LOCOMO writes it, with the mark by which `locomo.dataset` knows it is simulated."""
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
"""What `shape` finds in LOCOMO: statistics, none of its text. A test counts them again."""


def shape(conversations: Sequence[Conversation]) -> dict[str, float]:
    """Statistics of conversations, to set beside others'. Tokens are o200k_base."""
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
    said = {(c.id, turn.id): set(terms(turn.line)) for c in conversations for turn in c.turns}
    found: dict[str, list[float]] = {category: [] for category in CATEGORIES}
    for c, question in questions:
        asked = set(terms(question.text)) - set(terms(" ".join(c.speakers)))
        if asked and question.evidence:
            evidence = set().union(*(said[c.id, id] for id in question.evidence))
            found[question.category].append(100 * len(asked & evidence) / len(asked))
    figures = (
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
    return {name: round(figure, 1) for name, figure in zip(LOCOMO_SHAPE, figures, strict=True)}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="memometer simulate", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--conversations", type=int, default=10, metavar="N")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    args = parser.parse_args(argv)
    if args.conversations < 1:
        parser.error(f"--conversations is {args.conversations}; it must be 1 or more.")
    made = [conversation(args.seed, number) for number in range(1, args.conversations + 1)]
    try:
        args.out.write_text(json.dumps([as_json(c, seed=args.seed) for c in made], indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        print(f"locomo.synthetic.simulate: cannot write {str(args.out)!r} ({error.strerror}).", file=sys.stderr)
        return 1
    print(f"SIMULATED  {'':<46}{'LOCOMO':>9}{'simulated':>11}")
    for name, figure in shape(made).items():
        print(f"SIMULATED  {name:<46}{LOCOMO_SHAPE[name]:>9,}{figure:>11,}")
    print(f"SIMULATED  written to {args.out}")
    return 0

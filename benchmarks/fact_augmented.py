"""Compare `fact_augmented` and `adaptive` by evidence recall, at an equal budget and at equal total tokens.

    python benchmarks/fact_augmented.py [--conversation conv-47] [--model embedded:small] [--sessions 3]

`fact_augmented` calls a model once per session to write facts. For equal total tokens, the prompt and completion tokens
of these calls are divided by the number of questions and added to the budget of `adaptive`. Budgets are counted with
o200k_base; the model reports the tokens of its calls.

The script saves the model's replies in --replies (default runs/fact_augmented/CONVERSATION.json) and does not ask for a
saved session again. The file contains text from LOCOMO, so do not commit it. Only conversations of the training and
validation parts are allowed.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from locomo.dataset import Question, load
from locomo.splits import SPLITS
from memometer.benchmarks.metrics import evidence_recall
from memometer.benchmarks.protocol import Conversation, DataError, Session
from memometer.memory import Memory, Turn
from memometer.systems.adaptive import AdaptiveMemory
from memometer.systems.fact_augmented import FactAugmented
from memometer.token_counters import Tiktoken

BUDGETS = (512, 1_024, 2_048, 4_096)
WEIGHTS = (0.1, 0.25, 0.5, 1.0)
RESAMPLES = 2_000


@dataclass
class Replies:
    """The facts that a model listed for each session, and the prompt and completion tokens of its calls."""

    path: Path
    sessions: dict[int, list[str]] = field(default_factory=dict)
    tokens: dict[int, int] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Replies:
        replies = cls(path)
        if path.exists():
            for saved in json.loads(path.read_text()):
                replies.sessions[saved["session"]] = saved["lines"]
                replies.tokens[saved["session"]] = saved["tokens"]
        return replies

    def add(self, session: int, lines: list[str], tokens: int) -> None:
        """Add the facts of a session and write the file."""
        self.sessions[session], self.tokens[session] = lines, tokens
        saved = [{"session": n, "tokens": self.tokens[n], "lines": self.sessions[n]} for n in self.sessions]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(saved))


class ReplayedFacts(FactAugmented):
    """A fact-augmented memory that takes its facts from saved replies."""

    def __init__(self, replies: Replies, **options: Any) -> None:
        super().__init__(**options)
        self.replies = replies

    def list_facts(self, session: Sequence[Turn]) -> list[str]:
        return self.replies.sessions[session[0].session]


def ask_model(name: str, sessions: Sequence[Session], replies: Replies) -> None:
    """Ask the model for the facts of the sessions that have no saved reply."""
    import dspy

    from memometer.models import resolve_models
    from memometer.models.plain_adapter import PlainAdapter
    from memometer.models.usage import metered

    missing = [session for session in sessions if session.number not in replies.sessions]
    if not missing:
        return
    model, memory = resolve_models.load(name), FactAugmented()
    for session in missing:
        with metered() as usage, dspy.context(lm=model.lm, adapter=PlainAdapter()):
            lines = memory.list_facts(session.turns)
        if usage.unreported:
            raise SystemExit(f"{name} does not report its tokens, which the comparison needs; use another model.")
        replies.add(session.number, lines, usage.prompt_tokens + usage.completion_tokens)
        print(f"session {session.number}: {len(lines)} lines", file=sys.stderr, flush=True)


def recalls(memory: Memory[Any], state: Any, questions: Sequence[Question], budget_tokens: int) -> list[float]:
    """Return the evidence recall of each question, 0 to 100."""
    shown = (memory.recall(state, question.text, budget_tokens).turn_ids for question in questions)
    return [100 * (evidence_recall(q.evidence, ids) or 0.0) for q, ids in zip(questions, shown, strict=True)]


def difference(ours: Sequence[float], theirs: Sequence[float], *, seed: int = 0) -> str:
    """Return the mean difference and its 95 % bootstrap interval over questions.

    The interval describes this conversation only, because the questions of one conversation are not independent.
    """
    draw = random.Random(seed)
    gains = [a - b for a, b in zip(ours, theirs, strict=True)]
    means = sorted(statistics.mean(draw.choices(gains, k=len(gains))) for _ in range(RESAMPLES))
    low, high = means[int(0.025 * RESAMPLES)], means[int(0.975 * RESAMPLES)]
    return f"{statistics.mean(gains):+5.1f} [{low:+5.1f}, {high:+5.1f}]"


def observed(memory: Memory[Any], sessions: Sequence[Session]) -> Any:
    state = memory.new()
    for session in sessions:
        memory.observe(state, session.turns)
    return state


def report(
    conversation: Conversation, sessions: Sequence[Session], replies: Replies, log: Callable[[str], None] = print
) -> None:
    """Print the table, with one row for each budget and weight.

    The questions are those whose evidence is in the sessions. Answerable ones are scored; the tokens of the calls are
    divided among all of them.
    """
    ids = {turn.id for session in sessions for turn in session.turns}
    covered = [question for question in conversation.questions if question.evidence and set(question.evidence) <= ids]
    scored = [question for question in covered if question.answerable]
    if not scored:
        raise SystemExit(
            f"No question of {conversation.id} has its evidence in these sessions; use a larger --sessions."
        )
    spent = sum(replies.tokens[session.number] for session in sessions)
    extra = round(spent / len(covered))
    count = Tiktoken("o200k_base")
    plain = AdaptiveMemory(count=count)
    if conversation.id in plain.fitted_on:
        raise SystemExit(f"The ranker was trained on {conversation.id}; choose another --conversation.")
    turns = observed(plain, sessions)
    augmented = ReplayedFacts(replies, count=count)
    facts = observed(augmented, sessions)
    lines = sum(len(replies.sessions[session.number]) for session in sessions)
    log(
        f"{conversation.id}: {len(sessions)} sessions, {len(turns.turns)} turns, {sum(turns.line_tokens):,} tokens; "
        f"{lines} lines listed, {len(facts.facts)} facts with a source turn, "
        f"{sum(fact.superseded_by is not None for fact in facts.facts)} superseded"
    )
    log(f"{spent:,} tokens of calls, {extra} for each of {len(covered)} questions; {len(scored)} questions scored\n")
    log("budget  weight   adaptive   facts   facts - adaptive       adaptive   facts - adaptive")
    log("                 at budget            at equal memory        + calls   at equal total tokens")
    for budget in BUDGETS:
        own = recalls(plain, turns, scored, budget)
        more = recalls(plain, turns, scored, budget + extra)
        for weight in WEIGHTS:
            augmented.fact_weight = weight
            found = recalls(augmented, facts, scored, budget)
            means = [statistics.mean(values) for values in (own, found, more)]
            log(
                f"{budget:>6,}  {weight:>6}  {means[0]:>9.1f}  {means[1]:>6.1f}   {difference(found, own)}  "
                f"{means[2]:>9.1f}   {difference(found, more)}"
            )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--conversation", default="conv-47")
    parser.add_argument("--model", default="embedded:small", help="model that writes the facts")
    parser.add_argument("--replies", type=Path, help="file of the model's replies")
    parser.add_argument("--sessions", type=int, help="number of sessions to observe, from the first (default: all)")
    parser.add_argument("--data", help="LOCOMO file (default: LOCOMO_PATH)")
    args = parser.parse_args()
    allowed = (*SPLITS["default"]["train"], *SPLITS["default"]["validation"])
    if args.conversation not in allowed:
        raise SystemExit(
            f"{args.conversation!r} is not in the training or validation part; use one of {', '.join(allowed)}."
        )
    try:
        conversations = {conversation.id: conversation for conversation in load(args.data).conversations}
    except DataError as error:
        raise SystemExit(str(error)) from error
    if args.conversation not in conversations:
        raise SystemExit(f"The data have no conversation {args.conversation}; set LOCOMO_PATH to locomo10.json.")
    conversation = conversations[args.conversation]
    sessions = conversation.sessions[: args.sessions]
    replies = Replies.read(args.replies or Path("runs/fact_augmented") / f"{conversation.id}.json")
    ask_model(args.model, sessions, replies)
    report(conversation, sessions, replies)
    return 0


if __name__ == "__main__":
    sys.exit(main())

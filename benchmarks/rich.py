"""Does rich mode pay? Evidence recall of `rich` at a budget, of `adaptive` at that budget and the price of the calls.

    python benchmarks/rich.py [--conversation conv-47] [--model embedded:small] [--replies FILE] [--sessions 3]

Equal total tokens: all prompt and completion tokens of the model that writes the facts, over the questions of the
conversation, are added to what `adaptive` may show for each question. Budgets are counted in o200k, the calls as the
model reports them. The model's lines are kept in --replies (default runs/rich/CONVERSATION.json; they are LOCOMO's, so
never in the project), and a session that is there is not asked for again: stop and go on, or score again in seconds.
Training and validation conversations only. What the best facts could do is not measured: LOCOMO's own observations are
withheld.
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
    """What a model listed of each session, and the prompt and completion tokens of all its calls."""

    path: Path
    sessions: dict[int, list[str]] = field(default_factory=dict)
    tokens: dict[int, int] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Replies:
        replies = cls(path)
        if path.exists():
            for told in json.loads(path.read_text()):
                replies.sessions[told["session"]] = told["lines"]
                replies.tokens[told["session"]] = told["tokens"]
        return replies

    def add(self, session: int, lines: list[str], tokens: int) -> None:
        """Kept on disk at once."""
        self.sessions[session], self.tokens[session] = lines, tokens
        told = [{"session": n, "tokens": self.tokens[n], "lines": self.sessions[n]} for n in self.sessions]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(told))


class Replayed(FactAugmented):
    """Rich mode that is told what the model listed."""

    def __init__(self, replies: Replies, **rich: Any) -> None:
        super().__init__(**rich)
        self.replies = replies

    def list_facts(self, session: Sequence[Turn]) -> list[str]:
        return self.replies.sessions[session[0].session]


def ask_model(name: str, sessions: Sequence[Session], replies: Replies) -> None:
    """Ask for the sessions that are not in the replies yet."""
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
            raise SystemExit(f"{name} reports no tokens, and without them nothing is equal; use another model.")
        replies.add(session.number, lines, usage.prompt_tokens + usage.completion_tokens)
        print(f"session {session.number}: {len(lines)} lines", file=sys.stderr, flush=True)


def recalls(memory: Memory[Any], state: Any, questions: Sequence[Question], budget_tokens: int) -> list[float]:
    """Evidence recall of each question, 0 to 100."""
    shown = (memory.recall(state, question.text, budget_tokens).turn_ids for question in questions)
    return [100 * (evidence_recall(q.evidence, ids) or 0.0) for q, ids in zip(questions, shown, strict=True)]


def difference(ours: Sequence[float], theirs: Sequence[float], *, seed: int = 0) -> str:
    """The mean difference and its paired bootstrap interval over questions (95 %): of one conversation, so that it says
    nothing about others."""
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
    conversation: Conversation, sessions: Sequence[Session], replies: Replies, say: Callable[[str], None] = print
) -> None:
    """The table: a row a budget and weight. Questions are those whose evidence the sessions hold; categories 1-4 are
    scored, and the calls' tokens are shared by all, unanswerable ones too."""
    ids = {turn.id for session in sessions for turn in session.turns}
    covered = [question for question in conversation.questions if question.evidence and set(question.evidence) <= ids]
    asked = [question for question in covered if question.answerable]
    if not asked:
        raise SystemExit(f"no question of {conversation.id} has its evidence in these sessions; observe more of them.")
    spent = sum(replies.tokens[session.number] for session in sessions)
    extra = round(spent / len(covered))
    count = Tiktoken("o200k_base")
    plain = AdaptiveMemory(count=count)
    if conversation.id in plain.fitted_on:
        raise SystemExit(f"the ranking has seen the labels of {conversation.id}; choose another --conversation.")
    turns = observed(plain, sessions)
    rich = Replayed(replies, count=count)
    facts = observed(rich, sessions)
    lines = sum(len(replies.sessions[session.number]) for session in sessions)
    say(
        f"{conversation.id}: {len(sessions)} sessions, {len(turns.turns)} turns, {sum(turns.line_tokens):,} tokens; "
        f"{lines} lines listed, {len(facts.facts)} of them facts that name a turn, "
        f"{sum(fact.superseded_by is not None for fact in facts.facts)} superseded"
    )
    say(f"{spent:,} tokens of calls over {len(covered)} questions: {extra} a question; n = {len(asked)} scored\n")
    say("budget  weight   adaptive    rich   rich - adaptive        adaptive   rich - adaptive")
    say("                 at budget            at equal memory        + calls   at equal total tokens")
    for budget in BUDGETS:
        own = recalls(plain, turns, asked, budget)
        more = recalls(plain, turns, asked, budget + extra)
        for weight in WEIGHTS:
            rich.fact_weight = weight
            found = recalls(rich, facts, asked, budget)
            means = [statistics.mean(values) for values in (own, found, more)]
            say(
                f"{budget:>6,}  {weight:>6}  {means[0]:>9.1f}  {means[1]:>6.1f}   {difference(found, own)}  "
                f"{means[2]:>9.1f}   {difference(found, more)}"
            )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--conversation", default="conv-47")
    parser.add_argument("--model", default="embedded:small", help="who writes the facts")
    parser.add_argument("--replies", type=Path, help="where its lines are kept")
    parser.add_argument("--sessions", type=int, help="observe the first so many only")
    parser.add_argument("--data", help="another locomo10.json")
    args = parser.parse_args()
    allowed = (*SPLITS["default"]["train"], *SPLITS["default"]["validation"])
    if args.conversation not in allowed:
        raise SystemExit(f"{args.conversation!r} is not for choosing by; use one of {', '.join(allowed)}.")
    try:
        conversations = {conversation.id: conversation for conversation in load(args.data).conversations}
    except DataError as error:
        raise SystemExit(str(error)) from error
    if args.conversation not in conversations:
        raise SystemExit(f"there is no {args.conversation} here; set LOCOMO_PATH to locomo10.json.")
    conversation = conversations[args.conversation]
    sessions = conversation.sessions[: args.sessions]
    replies = Replies.read(args.replies or Path("runs/rich") / f"{conversation.id}.json")
    ask_model(args.model, sessions, replies)
    report(conversation, sessions, replies)
    return 0


if __name__ == "__main__":
    sys.exit(main())

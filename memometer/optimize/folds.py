"""The questions of a cross-fit: each search learns from one group of conversations and is confirmed on another.

A confirmation on two conversations finds no gain of 15 points. Therefore the training and validation conversations are
divided into two groups. One search learns and selects in the first group and is confirmed on the second; the other
search does the reverse. No question that a prompt was found or selected with confirms it, and each conversation
confirms once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memometer.benchmarks.protocol import Conversation, Dataset, Question
from memometer.benchmarks.sampling import sample
from memometer.errors import UserError
from memometer.optimize.options import OptimizeOptions

FOLDS = 2


@dataclass(frozen=True)
class Fold:
    """One search of a cross-fit.

    Attributes:
        number: Its number, from 1.
        conversations: The conversations that it learns from and selects with.
        confirming: The conversations that confirm its prompt.
        train: Questions from which the optimizer learns.
        selection: Questions that select a candidate, disjoint from the training questions.
        confirmation: Questions that measure the selected candidate.
    """

    number: int
    conversations: tuple[Conversation, ...]
    confirming: tuple[Conversation, ...]
    train: tuple[Question, ...]
    selection: tuple[Question, ...]
    confirmation: tuple[Question, ...]


def make_folds(options: OptimizeOptions, data: Dataset) -> tuple[tuple[Fold, ...], list[str]]:
    """Divide the training and validation conversations and draw their questions.

    Returns:
        The folds, and notices about missing questions. Data with one conversation give one fold, whose confirmation
        questions are of the same conversation.

    Raises:
        UserError: There are too few questions.
    """
    known = {c.id: c for c in (*data.part("train"), *data.part("validation")) if c.questions}
    conversations = tuple(known.values())
    if len(conversations) < FOLDS:
        return _single_fold(options, conversations)
    # Every second conversation, so that both groups hold training and validation conversations.
    groups = [conversations[start::FOLDS] for start in range(FOLDS)]
    drawn = {c.id: sample(c.questions, options.confirmation_size, seed=options.seed) for c in conversations}
    notices: list[str] = []
    folds = []
    for number, group in enumerate(groups, start=1):
        confirming = tuple(c for c in conversations if c not in group)
        train, selection = _learning_questions(options, group, drawn, notices, name=f"search {number}")
        folds.append(
            Fold(number, group, confirming, train, selection, tuple(q for c in confirming for q in drawn[c.id]))
        )
    return tuple(folds), notices


def _learning_questions(
    options: OptimizeOptions,
    group: Sequence[Conversation],
    drawn: dict[str, tuple[Question, ...]],
    notices: list[str],
    *,
    name: str,
) -> tuple[tuple[Question, ...], tuple[Question, ...]]:
    """Training and selection questions, from the other search's confirmation questions if there are enough of them.

    The unoptimized prompt answers those in any case, so that they cost no further calls.
    """
    wanted = options.num_examples, options.selection_size
    pool: Sequence[Question] = [question for c in group for question in drawn[c.id]]
    if len(pool) < sum(wanted):
        pool = [question for c in group for question in c.questions]
    num_train = min(wanted[0], (len(pool) + 1) // 2)
    train = sample(pool, num_train, seed=options.seed)
    used = {question.id for question in train}
    selection = sample([q for q in pool if q.id not in used], wanted[1], seed=options.seed)
    if not train or not selection:
        raise UserError(f"{name} needs at least two questions; use data with more questions.")
    for kind, found, number in zip(("training", "selection"), (train, selection), wanted, strict=True):
        if len(found) < number:
            notices.append(f"{name} has {len(found)} {kind} questions instead of {number}.".capitalize())
    return train, selection


def _single_fold(
    options: OptimizeOptions, conversations: tuple[Conversation, ...]
) -> tuple[tuple[Fold, ...], list[str]]:
    notices = ["One conversation cannot confirm a gain; the search only shows how its prompts differ."]
    questions = [question for c in conversations for question in c.questions]
    confirmation = sample(questions, min(options.confirmation_size, len(questions) // 3), seed=options.seed)
    used = {question.id for question in confirmation}
    rest = {c.id: tuple(q for q in c.questions if q.id not in used) for c in conversations}
    if not confirmation:
        raise UserError("a search needs at least three questions; use data with more questions.")
    train, selection = _learning_questions(options, conversations, rest, notices, name="the search")
    return (Fold(1, conversations, conversations, train, selection, confirmation),), notices

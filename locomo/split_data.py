"""Splits by conversation, written as ids.

    python -m locomo.split_data [--split default|memory-r1|leave-one-out] [--data FILE]

prints the questions per category and part, and what a split by question would have leaked, and writes
data/splits/NAME.json: conversation ids only, so that the file carries nothing of the data's text.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter
from collections.abc import Iterable, Sequence

from locomo.dataset import ANSWERABLE, CATEGORIES, DATA, Conversation, DataError, Dataset, Question, load

SMALLEST_SPLIT = 5
"""So many conversations give each part one."""

Split = dict[str, tuple[str, ...]]
"""Part (train, validation, test) -> conversation ids."""

CONVERSATIONS = tuple(f"conv-{n}" for n in (26, 30, 41, 42, 43, 44, 47, 48, 49, 50))

# The default is the best-balanced partition 4/2/4 that is nested in Memory-R1's: its test part lies within theirs, and
# what Memory-R1 trains and validates on (26, 30) is training data here.
SPLITS: dict[str, Split] = {
    "default": {
        "train": ("conv-26", "conv-30", "conv-41", "conv-43"),
        "validation": ("conv-47", "conv-50"),
        "test": ("conv-42", "conv-44", "conv-48", "conv-49"),
    },
    "memory-r1": {
        "train": ("conv-26",),
        "validation": ("conv-30",),
        "test": tuple(c for c in CONVERSATIONS if c not in ("conv-26", "conv-30")),
    },
}


def leave_one_out(conversations: Sequence[str] = CONVERSATIONS) -> list[Split]:
    """One fold a conversation: train on all the others, test on it."""
    return [
        {"train": tuple(c for c in conversations if c != held_out), "test": (held_out,)} for held_out in conversations
    ]


def check(split: Split) -> None:
    """Raise DataError when a conversation is in two parts, twice in one, or unknown."""
    counts = Counter(id for part in split.values() for id in part)
    if twice := sorted(id for id, n in counts.items() if n > 1):
        raise DataError(f"a split may not overlap, but {', '.join(twice)} is in it twice; use each conversation once.")
    if unknown := sorted(set(counts) - set(CONVERSATIONS)):
        raise DataError(f"a split names {', '.join(unknown)}; LOCOMO has {', '.join(CONVERSATIONS)}.")


def part(data: Dataset, name: str, *, split: str = "default") -> tuple[Conversation, ...]:
    """The conversations of one part, or of the whole data set for `all`. Simulated conversations, five or more, are
    divided 4:2:4 in their order; any other stand-in has one part: everything."""
    n = len(data.conversations)
    if name == "all" or (data.stand_in and n < SMALLEST_SPLIT):
        return data.conversations
    if data.stand_in:
        bounds = {"train": (0, 0.4), "validation": (0.4, 0.6), "test": (0.6, 1)}[name]
        first, end = (round(n * share) for share in bounds)
        return data.conversations[first:end]
    chosen = SPLITS[split]
    check(chosen)
    return tuple(conversation for conversation in data.conversations if conversation.id in chosen[name])


def parse(name: str) -> tuple[str, str]:
    """(split, part) of a name such as `test` or `memory-r1:test`. Raises DataError for any other."""
    split, _, part_name = name.rpartition(":")
    if (split or "default") not in SPLITS or part_name not in ("train", "validation", "test", "all"):
        raise DataError(
            f"--split is {name!r}; it may be test, train, validation or all, or with another split's name before it "
            f"({', '.join(SPLITS)}), as in memory-r1:test."
        )
    return split or "default", part_name


def held_out_part(data: Dataset, name: str) -> tuple[Conversation, ...]:
    """The test conversations that a run on `name` looks at: those of its split for `test` and `all`, else none."""
    split, part_name = parse(name)
    return part(data, "test", split=split) if part_name in ("test", "all") else ()


def sample(questions: Iterable[Question], n: int, *, seed: int = 0) -> tuple[Question, ...]:
    """`n` questions, stratified by category (largest remainder), in the order of the data. All, if there are no more.

    The draw depends on the seed and on the questions only, and a larger sample contains a smaller one's questions
    wherever its share of a category is no smaller.
    """
    pool = tuple(questions)
    if n >= len(pool):
        return pool
    groups: dict[int, list[Question]] = {}
    for question in pool:
        groups.setdefault(question.category, []).append(question)
    exact = {category: n * len(group) / len(pool) for category, group in groups.items()}
    sizes = {category: int(share) for category, share in exact.items()}
    by_remainder = sorted(exact, key=lambda c: (sizes[c] - exact[c], c))
    for category in by_remainder[: n - sum(sizes.values())]:
        sizes[category] += 1
    chosen: set[str] = set()
    for category, group in sorted(groups.items()):
        random.Random(f"{seed}/{category}").shuffle(group)
        chosen.update(question.id for question in group[: sizes[category]])
    return tuple(question for question in pool if question.id in chosen)


def leakage(data: Dataset, *, seeds: int = 20) -> dict[str, float]:
    """What a random 80/20 split by question would share between its parts, as mean fractions over `seeds` draws.

    `evidence turn`, `session`: test questions of categories 1-4 that share one with a training question.
    `adversarial evidence`: category-5 questions whose evidence is exactly that of an answerable question (no draw).
    """
    pool = [q for q in data.questions if q.category in ANSWERABLE]

    def places(question: Question, *, sessions: bool) -> set[tuple[str, str]]:
        return {(question.conversation, id.split(":")[0] if sessions else id) for id in question.evidence}

    shared = Counter[str]()
    asked = 0
    for seed in range(seeds):
        shuffled = random.Random(seed).sample(pool, len(pool))
        cut = round(0.8 * len(pool))
        train, test = shuffled[:cut], shuffled[cut:]
        asked += len(test)
        for name, sessions in (("evidence turn", False), ("session", True)):
            seen = set().union(*(places(q, sessions=sessions) for q in train))
            shared[name] += sum(bool(places(q, sessions=sessions) & seen) for q in test)
    answerable = {(q.conversation, frozenset(q.evidence)) for q in pool}
    traps = [q for q in data.questions if q.category not in ANSWERABLE]
    reused = sum((q.conversation, frozenset(q.evidence)) in answerable for q in traps)
    return {
        "evidence turn": shared["evidence turn"] / max(asked, 1),
        "session": shared["session"] / max(asked, 1),
        "adversarial evidence": reused / max(len(traps), 1),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m locomo.split_data", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--split", choices=[*SPLITS, "leave-one-out"], default="default")
    parser.add_argument("--data", metavar="FILE", help="locomo10.json (default: LOCOMO_PATH, data/, the network)")
    args = parser.parse_args(argv)
    try:
        data = load(args.data)
        folds = leave_one_out() if args.split == "leave-one-out" else [SPLITS[args.split]]
        for fold in folds:
            check(fold)
    except DataError as error:
        print(f"locomo.split_data: {error}", file=sys.stderr)
        return 1
    mark = data.mark
    questions = {conversation.id: conversation.questions for conversation in data.conversations}
    print(f"{mark}{'part':<12}{'conversations':<52}{'1-4':>6}" + "".join(f"{name:>13}" for name in CATEGORIES.values()))
    for fold in folds:
        for name, ids in fold.items():
            counts = Counter(q.category for id in ids for q in questions.get(id, ()))
            listed = ", ".join(ids) if len(ids) < 6 else f"{len(ids)} conversations"
            print(
                f"{mark}{name:<12}{listed:<52}{sum(counts[c] for c in ANSWERABLE):>6}"
                + "".join(f"{counts[c]:>13}" for c in CATEGORIES)
            )
    leak = leakage(data)
    print(
        f"{mark}A random 80/20 split by question would leak: {leak['evidence turn']:.0%} of its test questions share "
        f"an evidence turn\n{mark}with a training question, {leak['session']:.0%} a session, and "
        f"{leak['adversarial evidence']:.0%} of the category-5 questions reuse an answerable one's evidence."
    )
    if not data.stand_in:
        path = DATA / "splits" / f"{args.split}.json"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(folds if len(folds) > 1 else folds[0], indent=1) + "\n")
        except OSError as error:
            print(f"locomo.split_data: {path} cannot be written ({error.strerror}).", file=sys.stderr)
            return 1
        print(f"written to data/splits/{path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

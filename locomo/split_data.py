"""Print and write LOCOMO's splits by conversation.

    python -m locomo.split_data [--split default|memory-r1|leave-one-out] [--data FILE]

It prints the questions per category and part, and how much a split by question would leak. It writes
data/splits/NAME.json in the working folder: conversation ids only, without text of the data.
"""

from __future__ import annotations

from memometer import entry_point

TYPE_CHECKING = False
if TYPE_CHECKING:
    from memometer.benchmarks.protocol import Dataset, Question


def leakage(data: Dataset, *, seeds: int = 20) -> dict[str, float]:
    """Measure how much a random 80/20 split by question would leak.

    Args:
        data: LOCOMO.
        seeds: Number of random splits.

    Returns:
        Mean fractions: `evidence turn` and `session` of answerable test questions that share one with a training
        question, and `adversarial evidence` of category-5 questions with exactly the evidence of an answerable one.
    """
    import random
    from collections import Counter

    pool = [q for q in data.questions if q.answerable]

    def places(question: Question, *, sessions: bool) -> set[tuple[str, str]]:
        return {(question.conversation, id.split(":")[0] if sessions else id) for id in question.evidence}

    shared: Counter[str] = Counter()
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
    traps = [q for q in data.questions if not q.answerable]
    reused = sum((q.conversation, frozenset(q.evidence)) in answerable for q in traps)
    return {
        "evidence turn": shared["evidence turn"] / max(asked, 1),
        "session": shared["session"] / max(asked, 1),
        "adversarial evidence": reused / max(len(traps), 1),
    }


def main(argv: list[str] | None = None) -> int:
    """Print the splits and write their file."""
    import argparse
    import json
    from collections import Counter

    from locomo.dataset import CATEGORIES, DATA, load
    from locomo.splits import SPLITS, check, leave_one_out
    from memometer.errors import UserError
    from memometer.report.presenter import screen

    parser = argparse.ArgumentParser(prog="python -m locomo.split_data", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--split", choices=[*SPLITS, "leave-one-out"], default="default")
    parser.add_argument("--data", metavar="FILE", help="locomo10.json (default: LOCOMO_PATH, data/, the network)")
    args = parser.parse_args(argv)
    data = load(args.data)
    folds = leave_one_out() if args.split == "leave-one-out" else [SPLITS[args.split]]
    for fold in folds:
        check(fold)
    prefix = data.prefix
    questions = {conversation.id: conversation.questions for conversation in data.conversations}
    columns = {key: len(name) + 1 for key, name in CATEGORIES.items()}
    names = "".join(name.rjust(columns[key]) for key, name in CATEGORIES.items())
    print(f"{prefix}{'part':<10}{'1-4':>6}{names}")
    for fold in folds:
        for name, ids in fold.items():
            asked = [question for id in ids for question in questions.get(id, ())]
            counts = Counter(question.category for question in asked)
            print(
                f"{prefix}{name:<10}{sum(question.answerable for question in asked):>6}"
                + "".join(f"{counts[key]:>{width}}" for key, width in columns.items())
            )
    for fold in folds:
        for name, ids in fold.items():
            listed = ", ".join(ids) if len(ids) < 6 else f"{len(ids)} conversations"
            print(f"{prefix}{name + ':':<12}{listed}")
    leak = leakage(data)
    sentence = (
        f"A random 80/20 split by question would leak: {leak['evidence turn']:.0%} of its test questions share an "
        f"evidence turn with a training question, {leak['session']:.0%} a session, and "
        f"{leak['adversarial evidence']:.0%} of the category-5 questions reuse an answerable one's evidence."
    )
    print("\n".join(f"{prefix}{line}" for line in screen([sentence], prefix=prefix).split("\n")))
    if not data.kind:
        path = DATA / "splits" / f"{args.split}.json"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(folds if len(folds) > 1 else folds[0], indent=1) + "\n")
        except OSError as error:
            raise UserError(f"{path} cannot be written ({error.strerror}).") from error
        print(f"written to data/splits/{path.name}")
    return 0


if __name__ == "__main__":
    entry_point.start(main, prog="locomo.split_data")

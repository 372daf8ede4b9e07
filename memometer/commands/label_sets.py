"""`memometer label-sets`: show the known label errors of the benchmark and the score ceiling that they imply."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from memometer.benchmarks.arguments import add_data_arguments, load_data


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    options = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    options.add_argument(
        "--label-corrections", metavar="FILE", help="file of label errors (default: the benchmark's variable)"
    )
    add_data_arguments(options)
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Print the number of label errors and the ceiling of each category.

    Returns:
        0.

    Raises:
        UserError: The label corrections or the data cannot be read.
    """
    args = parser().parse_args(argv)
    from memometer.benchmarks.protocol import category_label
    from memometer.judging import label_sets
    from memometer.report import presenter

    data = load_data(args)
    found = label_sets.read(args.label_corrections, data=data)
    citations = len(found.corrections) - len(found.flagged)
    groups = label_sets.by_category(data.questions)
    rows = []
    for name, ceiling in label_sets.ceilings(data.questions, found.flagged).items():
        wrong = sum(question.id in found.flagged for question in groups[name])
        label = name if name == "overall" else category_label(name, data.categories)
        rows.append([label, f"{len(groups[name]) - wrong:,}", f"{wrong:,}", f"{100 * ceiling:.2f}"])
    title = (
        f"{len(found.corrections)} label errors: {len(found.flagged)} wrong gold answers, {citations} wrong citations"
    )
    table = presenter.Table(title, ["category", "clean", "flagged", "ceiling, %"], rows)
    for line in presenter.text([table]).splitlines():
        print(f"{data.prefix}{line}")
    return 0

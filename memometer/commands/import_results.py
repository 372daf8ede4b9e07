"""`memometer import-results`: convert published result files to run folders."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from memometer.benchmarks.arguments import add_data_arguments, load_data


def parser() -> argparse.ArgumentParser:
    """Return the options of the command."""
    p = argparse.ArgumentParser(
        description="Convert published result files to run folders. Exit code 3 if a file is invalid, for example "
        "because failed questions were selectively re-run.",
        allow_abbrev=False,
    )
    p.add_argument("files", nargs="+", type=Path, metavar="FILE")
    p.add_argument("--run-dir", type=Path, required=True, metavar="DIR", help="the folder for the run folders")
    p.add_argument(
        "--format",
        metavar="NAME",
        help="the format, if it is not recognised: its name, or a JSON file with the paths of its values",
    )
    p.add_argument("--model-name", metavar="NAME", help="the model that answered, if the file does not name it")
    p.add_argument("--judge-model-name", metavar="NAME", help="the judge model, if the file does not name it")
    p.add_argument(
        "--label-corrections",
        metavar="FILE",
        help="report clean and flagged questions separately (default: the benchmark's environment variable)",
    )
    add_data_arguments(p)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Write a run folder for each file, and print its results.

    Returns:
        0 if all files are valid, 3 otherwise, 1 if a folder cannot be written.

    Raises:
        UserError: the data or a file cannot be used, or a folder is not empty. Nothing is written then.
    """
    args = parser().parse_args(argv)
    from memometer.harness.import_results import read, refuse_taken, write
    from memometer.judging import label_sets
    from memometer.run.folder import RunFolderError
    from memometer.run.progress import eprint

    data = load_data(args)
    named = args.label_corrections or label_sets.named_file(data)
    corrections = label_sets.read(named, data=data) if named else None
    found = [
        read(path, data=data, format=args.format, model=args.model_name, judge=args.judge_model_name)
        for path in args.files
    ]
    refuse_taken({args.run_dir / each.path.stem: each for each in found}, len(found))
    statuses = []
    for each in found:
        path = args.run_dir / each.path.stem
        try:
            status, table = write(each, path, data=data, corrections=corrections, data_option=args.data)
        except (RunFolderError, OSError) as error:
            eprint(f"memometer import-results: {path} cannot be written: {error}")
            return 1
        statuses.append(status)
        for line in [*table.splitlines(), f"Written to {path}", ""]:
            print(f"{data.prefix}{line}")
    if data.kind:
        print(f"{data.prefix}{data.notice}")
    return 3 if "invalid" in statuses else 0

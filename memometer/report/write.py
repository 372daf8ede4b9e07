"""The reports of a run as files: table.txt, report.md, report.tex and report.html.

report.html is one file that needs no server; its data is compressed JSON inside the page.
"""

from __future__ import annotations

import base64
import gzip
import html
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from memometer import benchmarks
from memometer.benchmarks.protocol import Dataset
from memometer.judging import rerun_detection
from memometer.judging.graders import graders_of
from memometer.judging.judge_calibration import Calibration
from memometer.judging.label_sets import LabelCorrections
from memometer.report import presenter, viewer_data
from memometer.report.presenter import Table
from memometer.report.results import Results, Run, compute_results, read_results
from memometer.report.screen import screen_parts
from memometer.report.summary import summarize
from memometer.report.tables import all_parts, main_table
from memometer.run import shown_items
from memometer.run.folder import Key, RunFolder, RunFolderError, changes, evaluation_options

SCRIPTS = ("data.js", "parts.js", "plots.js", "measures.js", "tables.js", "detail.js", "questions.js", "page.js")


def data_of(path: Path, manifest: Mapping[str, Any]) -> Dataset:
    """Load the data of a run.

    Args:
        path: The run folder.
        manifest: The content of its manifest.json.

    Returns:
        The data.

    Raises:
        RunFolderError: The data cannot be read, or is not the data of the run.
    """
    try:
        config = evaluation_options(manifest, path)
        data = benchmarks.read(config.get("benchmark"), config.get("data"), ages=config.get("ages") or ())
    except ValueError as error:
        raise RunFolderError(f"the data of {path} cannot be read: {error}") from error
    if data.sha256 != (expected := str(manifest["identity"].get("data"))):
        raise RunFolderError(
            f"{path} used other data (sha256 {expected[:12]}…) than {data.path} (sha256 {data.sha256[:12]}…); the run "
            "needs the file that it was made with."
        )
    return data


def write_results(
    folder: RunFolder,
    data: Dataset,
    keys: Sequence[Key],
    facts: Mapping[str, Any],
    *,
    calibrations: Sequence[Calibration] = (),
    no_judge: str = "",
    rounds: Mapping[tuple[str, int], Results] | None = None,
    notes: Sequence[str] = (),
    corrections: LabelCorrections | None = None,
    verbose: bool = False,
) -> tuple[Results, str]:
    """Compute the results of a run and write results.json, table.txt and the reports.

    Args:
        folder: The run folder.
        data: The data.
        keys: As for `compute_results`.
        facts: As for `compute_results`.
        calibrations: Judge calibrations in addition to those that results.json has already.
        no_judge: The reason why no answer was graded, if none was.
        rounds: As for `compute_results`.
        notes: Further lines for the end of the text.
        corrections: As for `compute_results`.
        verbose: True returns all tables, not only those that fit a screen.

    Returns:
        The results, and a text to print.
    """
    changed = [*changes(folder.path), *rerun_detection.of_records(folder.records())]
    if changed:
        facts = {**facts, "status": "invalid", "warnings": [*facts.get("warnings", ()), *map(alarm, changed)]}
    results = compute_results(
        folder.manifest,
        folder.records(),
        folder.ingests(),
        data,
        keys,
        facts,
        calibrations=_calibrations(folder, calibrations),
        probes=folder.probes(),
        rounds=rounds,
        corrections=corrections,
        measurings=folder.measurings(),
        items=shown_items.texts(folder.path),
        labels=folder.labels(),
    )
    folder.write_json("results.json", results)
    run = Run(folder.path.resolve().name, folder.manifest, folder.records(), results, data)
    answered = any(
        "f1" in entry["all_questions"] for system in results["systems"].values() for entry in system["budgets"].values()
    )
    if answered and not graders_of(run.records) and no_judge:
        notes = [*notes, f"Judge accuracy is not shown: {no_judge}"]
    text = table(run, notes)
    folder.write_text("table.txt", "".join(f"{data.prefix}{line}\n" for line in text.split("\n")))
    write([run], folder.path)
    return results, text if verbose else screen(run, notes, folder.path)


def alarm(change: str) -> str:
    """Build the warning about a change that `memometer.run.folder.changes` found."""
    return f"ALARM: {change} The results of this run cannot be trusted."


def _calibrations(folder: RunFolder, new: Sequence[Calibration]) -> list[Calibration]:
    """The calibrations of a run, the newest of each judge and prompt. Those of calibrations.jsonl are in the chain;
    earlier versions kept them in results.json alone."""
    own = [*folder.calibrations(), *new]
    try:
        earlier = [] if folder.calibrations() else read_results(folder.path)["judge_calibrations"]
        found = {(each["judge"], each["prompt"], each["prompt_hash"]): each for each in [*earlier, *own]}
    except (RunFolderError, KeyError, TypeError):  # none yet, or damaged, and about to be replaced
        return own
    return list(found.values())


def write(runs: Sequence[Run], folder: Path) -> list[Path]:
    """Write report.md, report.tex and report.html.

    Args:
        runs: The runs; the page shows them side by side, the other files one after the other.
        folder: The folder; it is created.

    Returns:
        The paths of the files.
    """
    content = {
        "report.md": "\n".join(presenter.markdown(_parts(run), heading=run.name) for run in runs),
        "report.tex": "\n".join(map(_latex, runs)),
        "report.html": page(runs),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in content.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in content]


def table(run: Run, notes: Sequence[str] = ()) -> str:
    """Lay out every table of a run as plain text.

    Args:
        run: The run.
        notes: Lines for the end.

    Returns:
        The text.
    """
    return presenter.text([*_parts(run), *notes])


def screen(run: Run, notes: Sequence[str], path: Path) -> str:
    """Lay out what fits a terminal screen: the main table, the most important pairs, the warnings, and a reference
    to the other tables.

    Args:
        run: The run.
        notes: Further lines.
        path: The run folder.

    Returns:
        The text; with the prefix of the data no line is longer than 100 columns.
    """
    rest = f"All tables: {path / 'table.txt'} and {path / 'report.html'}, or --verbose."
    parts = screen_parts(summarize(run.manifest, run.results), notes=notes, rest=rest)
    return presenter.screen(parts, prefix=run.data.prefix)


def _parts(run: Run) -> list[Table | str]:
    by_conversation = bool(run.manifest["config"].get("folds"))
    categories = run.results.get("categories") or run.data.categories
    return all_parts(summarize(run.manifest, run.results), run.results, categories, by_conversation=by_conversation)


def _latex(run: Run) -> str:
    summary = summarize(run.manifest, run.results)
    names = [f"{measure.short}: {measure.label}" for measure in summary.measures if measure.judged]
    return presenter.latex(main_table(summary, short=True), [run.name, *summary.warnings, *summary.withheld, *names])


def page(runs: Sequence[Run]) -> str:
    """Build report.html."""
    content = viewer_data.page(runs, [viewer_data.Rows(run.data).of(run.records) for run in runs])
    return shell(title=" and ".join(run.name for run in runs), content=content)


def shell(*, title: str, content: Mapping[str, Any] | None) -> str:
    """Build the page from its parts.

    Args:
        title: The title of the page.
        content: Its data; None if a server sends it.

    Returns:
        The HTML.
    """
    folder = files("memometer.report") / "page"
    parts = {
        "TITLE": html.escape(title),
        "STYLE": (folder / "page.css").read_text(encoding="utf-8"),
        "SCRIPT": "\n".join((folder / name).read_text(encoding="utf-8") for name in SCRIPTS),
        "CONTENT": "" if content is None else packed(content),
    }
    text = (folder / "page.html").read_text(encoding="utf-8")
    for name, part in parts.items():
        text = text.replace(f"<!--{name}-->", part)
    return text


def packed(content: Mapping[str, Any]) -> str:
    """Compress data as JSON in Base64, which needs no escaping in HTML."""
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=True)
    return base64.b64encode(gzip.compress(text.encode("ascii"), 9, mtime=0)).decode("ascii")

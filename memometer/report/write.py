"""A run as files that people read: report.md, report.tex, report.html.

The page is one file that asks nothing of any server; what it shows lies in it as compressed JSON.
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
from memometer.report import markdown, viewer_data
from memometer.report.summary import summary
from memometer.report.viewer_data import Run
from memometer.run.folder import RunFolderError, asked_of

SCRIPTS = ("data.js", "parts.js", "plots.js", "tables.js", "detail.js", "questions.js", "page.js")


def data_of(path: Path, manifest: Mapping[str, Any]) -> Dataset:
    """The data that the run in `path` asked about. Raises RunFolderError where it is not here."""
    try:
        config = asked_of(manifest, path)
        data = benchmarks.load(config.get("benchmark")).load(config.get("data"))
    except ValueError as error:
        raise RunFolderError(f"the data of {path} cannot be read: {error}") from error
    if data.sha256 != (was := str(manifest["identity"].get("data"))):
        raise RunFolderError(
            f"{path} asked about other data (sha256 {was[:12]}…) than {data.path} is "
            f"({data.sha256[:12]}…); the run needs the file that it was made with."
        )
    return data


def write(runs: Sequence[Run], folder: Path) -> list[Path]:
    """Write the reports into a folder: in report.md and report.tex one run after the other, in report.html side by
    side."""
    told = [(run, summary(run.manifest, run.results)) for run in runs]
    written = {
        "report.md": "\n".join(markdown.markdown(run.name, found, run.results) for run, found in told),
        "report.tex": "\n".join(markdown.latex(run.name, found) for run, found in told),
        "report.html": page(runs),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in written.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in written]


def page(runs: Sequence[Run]) -> str:
    """report.html."""
    content = viewer_data.page(runs, [viewer_data.Rows(run.data).of(run.records) for run in runs])
    return shell(title=" and ".join(run.name for run in runs), content=content)


def shell(*, title: str, content: Mapping[str, Any] | None) -> str:
    """The page's HTML with its style, its scripts and, unless a server brings it, its content."""
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
    """JSON, compressed, in letters that HTML leaves alone."""
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=True)
    return base64.b64encode(gzip.compress(text.encode("ascii"), 9, mtime=0)).decode("ascii")

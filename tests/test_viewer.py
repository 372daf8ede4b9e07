"""Runs looked at while they go on, written out, and as files for people: read only, never locked."""

from __future__ import annotations

import base64
import gzip
import json
import re
import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from memometer.cli import main
from memometer.report import presenter, viewer, viewer_data
from memometer.report.results import Run
from memometer.report.runs_in_progress import follow
from memometer.report.summary import Summary, summarize
from memometer.report.tables import all_parts, main_table
from memometer.report.write import packed
from memometer.run.folder import RunFolder, read_lines
from tests.invented_run import invent, simulated


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("view")
    data = simulated(place / "data.json", conversations=2)
    return invent(place / "run", data, questions=30, budgets=(256, 1024))


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


@contextmanager
def serving(*paths: Path) -> Iterator[str]:
    served = viewer.server(list(paths), 0)
    thread = threading.Thread(target=served.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{served.server_port}/"
    finally:
        served.shutdown()
        served.server_close()
        thread.join()


def get(url: str, **headers: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20) as response:
            content = response.read()
            return response.status, gzip.decompress(content) if response.headers["Content-Encoding"] else content
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_a_run_is_followed_while_another_process_holds_it(run: Path) -> None:
    lines = (run / "records.jsonl").read_bytes().split(b"\n")[:-1]
    (run / "records.jsonl").write_bytes(b"".join(line + b"\n" for line in lines[:20]))
    (run / "results.json").unlink()
    with RunFolder.reopen(run), serving(run) as url:
        status, content = get(f"{url}data.json")
        told = json.loads(content)
        assert status == 200
        assert len(told["runs"][0]["rows"]) == 20
        assert told["runs"][0]["summary"]["warnings"][1].startswith("The run has not ended")
        assert get(f"{url}data.json?since={urllib.parse.quote(told['stamp'])}") == (204, b"")
        with (run / "records.jsonl").open("ab") as file:
            file.write(lines[20] + b"\n" + lines[21][: len(lines[21]) // 2])
        news = wait_for_news(url, told["stamp"])
        assert len(news["runs"][0]["rows"]) == 21, "half a line is no record"
        with (run / "records.jsonl").open("ab") as file:
            file.write(lines[21][len(lines[21]) // 2 :] + b"\n")
        assert len(wait_for_news(url, news["stamp"])["runs"][0]["rows"]) == 22
    assert len(read_lines(run / "records.jsonl")) == 22, "and nothing was written"


def wait_for_news(url: str, stamp: str) -> dict[str, Any]:
    for _ in range(200):
        status, content = get(f"{url}data.json?since={urllib.parse.quote(stamp)}")
        if status == 200:
            return dict(json.loads(content))
        threading.Event().wait(0.1)
    raise AssertionError("no news came")


def test_later_verdicts_are_seen_beside_their_answers(run: Path) -> None:
    (followed,) = follow([run])
    before = followed.run()
    record = next(r for r in before.records if r["verdicts"])
    with RunFolder.reopen(run) as folder:
        key = (record["system"], record["budget_tokens"], record["question_id"], record["option_order"])
        folder.append_verdict(key, {**record["verdicts"][0], "key": "corrected", "raw": "later"})
    rows = viewer_data.Rows(followed.data)
    earlier = rows.of(followed.records)
    assert followed.read() != ""
    changed = [(a, b) for a, b in zip(earlier, rows.of(followed.records), strict=True) if a != b]
    assert len(changed) == 1
    name, repeat, label, raw, _ = changed[0][1]["verdicts"][1]
    assert (name, repeat, raw) == ("openai/invented-judge (strict, corrected)", 0, "later")
    assert label == record["verdicts"][0]["label"]


def test_only_this_machine_reads_it(run: Path) -> None:
    with serving(run) as url:
        assert get(url, Host="evil.example")[0] == 403
        status, content = get(url)
        assert (status, b"<title>run</title>" in content) == (200, True)
        assert get(f"{url}../manifest.json")[0] == 404


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda run: (run / "manifest.json").unlink(), "holds no run (no manifest.json)"),
        (lambda run: (run / "manifest.json").write_text("{"), "is damaged"),
        (lambda run: other_data(run), "used other data"),
        (lambda run: (run / "records.jsonl").write_text("garbage\n"), "a line that is not JSON"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(
    prepare: Any, message: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(run)
    assert main(["view", str(run), "--export", str(run / "out")]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert len(told.splitlines()) == 1


def other_data(run: Path) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["identity"]["data"] = "0" * 64
    (run / "manifest.json").write_text(json.dumps(manifest))


def test_two_runs_are_exported_side_by_side(run: Path, finished: Path, tmp_path: Path) -> None:
    assert main(["view", str(run), str(finished), "--export", str(tmp_path / "out")]) == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"report.md", "report.tex", "report.html"}
    text = (tmp_path / "out" / "report.md").read_text()
    assert text.count("## How the run was made") == 2


def test_runs_are_paired_system_by_system(finished: Path) -> None:
    (followed,) = follow([finished])
    one = followed.run()
    worse = [{**r, "recall": {**r["recall"], "turn_ids": []}} if r["system"] == "adaptive" else r for r in one.records]
    other = Run("other", one.manifest, worse, one.results, one.data)
    found = viewer_data.between([one, other])
    assert {c["measure"] for c in found} == {"judge", "f1", "evidence_recall"}
    for c in found:
        assert (c["a"]["run"], c["b"]["run"]) == ("run", "other")
        assert c["a"]["system"] == c["b"]["system"]
        changed = c["measure"] == "evidence_recall" and c["a"]["system"] == "adaptive"
        assert (c["difference"] > 0) == changed
        assert c["losses"] == 0


def test_runs_of_one_name_are_told_apart(run: Path, finished: Path) -> None:
    assert [followed.name for followed in follow([run, finished])] == [str(run), str(finished)]


def test_what_was_recalled_is_kept_as_ranges() -> None:
    assert viewer_data.ranges([5, 1, 2, 3, 3, 9]) == "1-3,5,9"
    assert viewer_data.ranges([]) == ""


def test_packed_content_is_intact_the_same_at_any_time_and_safe_in_html(monkeypatch: pytest.MonkeyPatch) -> None:
    content = {"a": "</script>", "b": [1, 2], "c": "naïve"}
    text = packed(content)
    assert json.loads(gzip.decompress(base64.b64decode(text))) == content
    monkeypatch.setattr("time.time", lambda: 2e9)
    assert packed(content) == text
    assert re.fullmatch(r"[A-Za-z0-9+/]+=*", text)


def summary_of(run: Path) -> tuple[Summary, dict[str, Any]]:
    results = json.loads((run / "results.json").read_text())
    return summarize(json.loads((run / "manifest.json").read_text()), results), results


def test_the_markdown_holds_every_figure_of_the_table(finished: Path) -> None:
    found, results = summary_of(finished)
    text = presenter.markdown(all_parts(found, results, {}), heading="a_run")
    assert text.startswith("# a\\_run\n")
    for system, entry in results["systems"].items():
        for figures in entry["budgets"].values():
            low, high = figures["f1_interval"]
            assert f"| {system}" in text
            assert f"{100 * figures['f1']:.1f} [{100 * low:.1f}, {100 * high:.1f}]" in text
    for words in ("by category", "Paired differences", "area under the budget curve", "Judge calibration",
                  "Cost of all attempts", "> These are synthetic conversations",
                  "openai/invented-reader"):  # fmt: skip
        assert words in text
    tables = [block for block in text.split("\n\n") if block.startswith("|")]
    for table in tables:
        widths = {line.count(" | ") for line in table.splitlines()}
        assert len(widths) == 1, "every row has as many cells as its header"


def test_the_latex_is_escaped_and_whole(finished: Path) -> None:
    found, _ = summary_of(finished)
    found.rows[0] = replace(found.rows[0], system=r"a_b & 50% {x} #1 $5 ~^\\")
    text = presenter.latex(main_table(found, short=True))
    assert r"a\_b \& 50\% \{x\} \#1 \$5 \textasciitilde{}\textasciicircum{}\textbackslash{}\textbackslash{}" in text
    body = text.split("\\midrule\n")[1].split("\\bottomrule")[0].strip().splitlines()
    assert len(body) == len(found.rows)
    columns = text.split("{tabular}{")[1].split("}")[0]
    for line in body:
        assert line.endswith(r" \\")
        assert line.replace(r"\&", "").count("&") == len(columns) - 1
    assert "{\\scriptsize [" in text


def test_a_run_that_is_not_a_paragon_says_so(finished: Path) -> None:
    _, results = summary_of(finished)
    manifest = json.loads((finished / "manifest.json").read_text())
    for status, words in (("invalid", "INVALID"), ("stopped", "stopped"), ("unfinished", "has not ended")):
        warnings = summarize(manifest, {**results, "status": status}).warnings
        assert any(words in warning for warning in warnings)


def test_a_run_that_has_not_ended_shows_no_accuracy_of_an_unmeasured_judge(run: Path) -> None:
    (run / "results.json").unlink()
    (followed,) = follow([run])
    found = summarize(followed.manifest, followed.run().results)
    assert [measure.key for measure in found.measures] == ["f1", "evidence_recall"]
    assert all(comparison["grader"] is None for comparison in found.comparisons)
    assert found.withheld

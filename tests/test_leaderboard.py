"""The board's figures are those of the answers, and others' answers are scored on the same questions."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from memometer import cli
from memometer.benchmarks.protocol import Dataset
from memometer.budget import UNBOUNDED
from memometer.harness import import_results
from tests.invented_run import calibration, invent, simulated
from tests.test_published import audit_file, save


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return simulated(tmp_path_factory.mktemp("data") / "simulated.json", conversations=3)


@pytest.fixture(autouse=True)
def its_data_is_found(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCOMO_PATH", str(data.path))


def cells(text: str) -> list[list[str]]:
    """The tables' rows, without the mark that lines about simulated data carry."""
    rows = [line[line.index("|") :] for line in text.splitlines() if "|" in line]
    return [[cell.strip() for cell in row.strip("| ").split("|")] for row in rows]


def percent(cell: str) -> float:
    return float(cell.split()[0])


def labels(folder: Path, data: Dataset) -> dict[tuple[str, int], dict[str, bool]]:
    """(system, budget) -> question -> whether the judge accepted, answerable questions, read from the records alone."""
    gold = {q.id for q in data.questions if q.gold is not None}
    found: dict[tuple[str, int], dict[str, bool]] = {}
    for line in (folder / "records.jsonl").read_text().splitlines():
        record: dict[str, Any] = json.loads(line)
        given = [v["label"] for v in record["verdicts"] if v["label"] != "missing"]
        if record["question_id"] in gold and given:
            of = found.setdefault((record["system"], record["budget_tokens"]), {})
            of[record["question_id"]] = given[0] == "correct"
    return found


def test_a_row_is_what_its_verdicts_say_and_what_sets_it_apart_from_the_reference(
    data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = invent(tmp_path / "run", data, budgets=(512, 1024), reference="adaptive")
    assert cli.main(["leaderboard", str(run)]) == 0
    header, _, *body = cells(capsys.readouterr().out)
    judged = labels(run, data)
    at = {name: header.index(name) for name in ("budget, tokens", "system", "J", "J minus adaptive's")}
    seen = set()
    for row in body:
        system = row[at["system"]].removesuffix(" (baseline)")
        budget = 0 if row[at["budget, tokens"]] == "-" else int(row[at["budget, tokens"]].replace(",", ""))
        mine = judged[system, budget]
        assert percent(row[at["J"]]) == pytest.approx(100 * mean(mine.values()), abs=0.051)
        if system in ("bm25", "recent"):
            reference = judged["adaptive", budget]
            both = mine.keys() & reference.keys()
            difference = mean(mine[id] - reference[id] for id in both)
            assert percent(row[at["J minus adaptive's"]]) == pytest.approx(100 * difference, abs=0.051)
        seen.add((system, budget))
    assert seen == judged.keys()
    assert next(row for row in body if "adaptive" in row)[at["J minus adaptive's"]] == "-"


def test_others_answers_are_scored_on_the_questions_of_the_run(
    data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = invent(tmp_path / "run", data, questions=12, seed=3)
    asked = {json.loads(line)["question_id"] for line in (run / "records.jsonl").read_text().splitlines()}
    answerable = [q for q in data.questions if q.gold is not None]
    right = [q.id in asked for q in answerable]  # on the run's questions all, on the others none
    theirs = import_results.read(save(audit_file(data, lambda i: [right[i]] * 3), tmp_path / "them.json"), data=data)
    import_results.write(theirs, tmp_path / "them", data=data)
    assert cli.main(["leaderboard", str(run), str(tmp_path / "them")]) == 0
    row = cells(capsys.readouterr().out)[-1]
    assert row[:2] == ["them", "reader-1"]
    assert (percent(row[2]), row[3]) == (100.0, str(sum(right)))
    assert percent(row[4]) == pytest.approx(100 * mean(right), abs=0.051)
    assert row[5] == str(len(right))


def test_a_row_with_a_budget_of_its_own_is_compared_at_one_budget_and_never_at_any(
    data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    systems = ("adaptive", "bm25", "full_context", "none", "oracle")
    for name, budgets in (("one", (512,)), ("two", (512, 1024))):
        run = invent(tmp_path / name, data, systems=systems, budgets=budgets, reference="adaptive")
        assert cli.main(["leaderboard", str(run)]) == 0
        header, _, *body = cells(capsys.readouterr().out)
        shown = {row[1].replace("\\", ""): row[header.index("J minus adaptive's")] for row in body}
        judged = labels(run, data)
        mine, reference = judged["full_context", UNBOUNDED], judged["adaptive", 512]
        if name == "one":
            both = mine.keys() & reference.keys()
            expected = 100 * mean(mine[id] - reference[id] for id in both)
            assert percent(shown["full_context"]) == pytest.approx(expected, abs=0.051)
            assert shown["none (baseline)"] != "-"
        else:
            assert (shown["full_context"], shown["none (baseline)"]) == ("-", "-"), "at which budget would it be?"
            assert shown["bm25"] != "-"


def test_what_is_missing_left_out_or_merged_is_said(
    data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = invent(tmp_path / "run", data)
    results = json.loads((run / "results.json").read_text())
    results["left_out"] = {"full_context": "the window is too small"}
    (run / "results.json").write_text(json.dumps(results))
    content = audit_file(data, lambda i: [i % 3 > 0])
    ids = [entry["question_id"] for entries in content["detailed_results"].values() for entry in entries]
    content["metadata"]["rerun"] = ids[::3]
    import_results.write(
        import_results.read(save(content, tmp_path / "them.json"), data=data), tmp_path / "them", data=data
    )
    assert cli.main(["leaderboard", str(run), str(tmp_path / "them")]) == 0
    out = capsys.readouterr().out
    assert "full\\_context is not in the table: the window is too small." in out
    assert "them: MERGED: " in out
    assert cells(out)[-1][0] == "them (INVALID)"
    header, _, *body = cells(out)
    judged = labels(run, data)
    asked = sum(q.gold is not None for q in data.questions)
    for row in body[: len(judged)]:
        system = row[header.index("system")].removesuffix(" (baseline)")
        n = len(judged[system, 0 if system == "none" else 1024])
        assert row[header.index("n (J)")] == f"{n}" + (f", {asked - n} missing" if asked > n else "")


def test_others_answers_without_verdicts_have_no_j(
    data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = invent(tmp_path / "run", data)
    theirs = import_results.read(save(audit_file(data, lambda i: []), tmp_path / "them.json"), data=data)
    import_results.write(theirs, tmp_path / "them", data=data)
    assert cli.main(["leaderboard", str(run), str(tmp_path / "them")]) == 0
    assert cells(capsys.readouterr().out)[-1] == ["them", "reader-1", "-", "-", "-", "-"]


def test_a_run_of_unanswerable_questions_is_no_board(
    data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = invent(tmp_path / "run", data)
    traps = {q.id for q in data.questions if q.gold is None}
    lines = [
        line for line in (run / "records.jsonl").read_text().splitlines() if json.loads(line)["question_id"] in traps
    ]
    (run / "records.jsonl").write_text("".join(f"{line}\n" for line in lines))
    (run / "results.json").unlink()
    assert cli.main(["leaderboard", str(run)]) == 2
    assert "no answerable question" in capsys.readouterr().err


def test_a_judge_that_failed_its_certificate_shows_no_accuracy(
    data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = invent(tmp_path / "run", data, calibrations=[calibration(passed=False)])
    assert cli.main(["leaderboard", str(run)]) == 0
    out = capsys.readouterr().out
    assert "withheld" in out
    assert "F1" in cells(out)[0]
    assert "J" not in cells(out)[0]


@pytest.mark.parametrize(
    ("swap", "said"),
    [(True, "is imported"), (False, "is not imported")],
)
def test_runs_in_the_wrong_place_are_refused(
    data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], swap: bool, said: str
) -> None:
    run = invent(tmp_path / "run", data)
    theirs = import_results.read(save(audit_file(data, lambda i: [True]), tmp_path / "them.json"), data=data)
    import_results.write(theirs, tmp_path / "them", data=data)
    arguments = [tmp_path / "them", run] if swap else [run, run]
    assert cli.main(["leaderboard", *map(str, arguments)]) == 2
    assert said in capsys.readouterr().err

"""Result files of other tools, matched by id or by text, and files that a user describes."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from locomo.dataset import SAMPLE, read
from memometer import cli
from memometer.harness.import_formats import FormatError, of_file
from memometer.harness.import_results import ImportResultsError
from memometer.harness.import_results import read as read_file

DATA = read(SAMPLE)
ASKED = [question for question in DATA.questions if question.gold is not None]
RIGHT = len(ASKED) // 2


def rows(**names: str) -> list[dict[str, Any]]:
    """An entry for each question under other names; the first RIGHT are correct."""
    values = [
        {"question": q.text, "gold": q.gold, "answer": f"answer {n}", "label": n < RIGHT} for n, q in enumerate(ASKED)
    ]
    return [{names.get(name, name): value for name, value in row.items()} for row in values]


def omnimemeval() -> Any:
    entries = [
        {**{k: v for k, v in row.items() if k != "label"}, "llm_judgments": {"judgment_1": row["label"]}}
        for row in rows(gold="golden_answer")
    ]
    return {"locomo_exp_user_0": entries}


def memory_json() -> Any:
    return {"0": [{**row, "llm_score": int(row["llm_score"])} for row in
                  rows(gold="answer", answer="response", label="llm_score")]}  # fmt: skip


def lm_eval() -> str:
    return "\n".join(
        json.dumps({"doc_id": n, "doc": {"question": row["question"]}, "target": row["gold"],
                    "filtered_resps": [row["answer"]], "exact_match": float(row["label"])})
        for n, row in enumerate(rows())
    )  # fmt: skip


def inspect_log() -> Any:
    samples = [
        {"id": n, "input": row["question"], "target": row["gold"],
         "output": {"choices": [{"message": {"content": [{"type": "text", "text": row["answer"]}]}}]},
         "scores": {"grader": {"value": "C" if row["label"] else "I"}}}
        for n, row in enumerate(rows(), start=1)
    ]  # fmt: skip
    return {"version": 2, "eval": {"model": "openai/reader"}, "samples": samples}


def inspect_archive() -> bytes:
    log = inspect_log()
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("header.json", json.dumps({"eval": log["eval"]}))
        for sample in log["samples"]:
            archive.writestr(f"samples/{sample['id']}_epoch_1.json", json.dumps(sample))
    return content.getvalue()


def longmemeval() -> str:
    return "\n".join(
        json.dumps({"question_id": q.id, "hypothesis": row["answer"],
                    "autoeval_label": {"model": "gpt-4o", "label": row["label"]}})
        for q, row in zip(ASKED, rows(), strict=True)
    )  # fmt: skip


@pytest.mark.parametrize(
    ("content", "name", "model"),
    [
        (omnimemeval(), "omnimemeval", None),
        (memory_json(), "memory-json", None),
        (lm_eval(), "lm-eval", None),
        (inspect_log(), "inspect", "openai/reader"),
        (inspect_archive(), "inspect", "openai/reader"),
        (longmemeval(), "longmemeval", None),
    ],
    ids=["omnimemeval", "memory-json", "lm-eval", "inspect", "inspect archive", "longmemeval"],
)
def test_files_of_other_tools_are_recognised(content: Any, name: str, model: str | None, tmp_path: Path) -> None:
    path = tmp_path / "file"
    raw = content if isinstance(content, bytes | str) else json.dumps(content)
    path.write_bytes(raw if isinstance(raw, bytes) else raw.encode())
    found = read_file(path, data=DATA)
    assert (found.format.name, found.model) == (name, model)
    assert [record["question_id"] for record in found.records] == [question.id for question in ASKED]
    assert [record["answer"] for record in found.records] == [f"answer {n}" for n in range(len(ASKED))]
    assert sum(record["verdicts"][0]["label"] == "correct" for record in found.records) == RIGHT


def described(tmp_path: Path, content: Any, **table: Any) -> tuple[Path, Path]:
    (tmp_path / "theirs.json").write_text(json.dumps(content))
    (tmp_path / "table.json").write_text(json.dumps(table))
    return tmp_path / "theirs.json", tmp_path / "table.json"


TABLE = {"entries": "runs.*", "question": "q", "gold": "ref", "answer": "out", "verdicts": "ok",
         "labels": {"right": "correct", "no": "wrong"}}  # fmt: skip


def their_rows() -> list[dict[str, Any]]:
    found = rows(question="q", gold="ref", answer="out", label="ok")
    return [{**row, "ok": "right" if row["ok"] else "no"} for row in found]


def test_a_file_that_nobody_knows_is_described_by_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, table = described(tmp_path, {"runs": their_rows()}, **TABLE)
    words = [str(file), "--run-dir", str(tmp_path / "runs"), "--data", str(SAMPLE)]
    assert cli.main(["import-results", *words]) == 2
    told = capsys.readouterr().err
    assert "--format FILE.json" in told
    assert "q, ref, out, ok" in told, "the message shows the keys of the file"
    assert cli.main(["import-results", *words, "--format", str(table)]) == 0
    found = json.loads((tmp_path / "runs" / "theirs" / "results.json").read_text())
    (entry,) = found["systems"]["theirs"]["budgets"].values()
    assert entry["judge_correct"] == RIGHT


def test_entries_with_one_text_are_matched_in_the_order_of_the_data(tmp_path: Path) -> None:
    entries = [{**row, "out": f"answer {n}"} for n, row in enumerate(their_rows())]
    file, table = described(tmp_path, {"runs": entries[::-1]}, **TABLE)
    found = read_file(file, data=DATA, format=str(table))
    assert [record["answer"] for record in found.records] == [f"answer {n}" for n in range(len(ASKED))]
    for change, fault in (
        (entries[1:], "1 missing"),
        ([*entries, entries[0]], "1 unknown"),
        ([{**entries[0], "q": "Who else?"}, *entries[1:]], "1 unknown"),
        ([{**entries[0], "ref": "another"}, *entries[1:]], "1 with another gold"),
    ):
        file, table = described(tmp_path, {"runs": change}, **TABLE)
        with pytest.raises(ImportResultsError, match=fault):
            read_file(file, data=DATA, format=str(table))


@pytest.mark.parametrize(
    ("table", "fact"),
    [
        ("[]", "an object"),
        ("{", "not a table in JSON"),
        ('{"question": "q"}', "answer"),
        ('{"answer": "a"}', "question"),
        ('{"answer": "a", "question": 3}', "question"),
        ('{"answer": "a", "question": "q", "golds": "g"}', "golds is unknown"),
        ('{"answer": "a", "id": "id", "id_pattern": "("}', "--format"),
        ('{"answer": "a", "id": "id", "id_pattern": "q(.)"}', "two groups"),
        ('{"answer": "a", "question": "q", "labels": {"x": "maybe"}}', "labels"),
        ('{"answer": "a", "question": "q", "labels": {"x": []}}', "labels"),
    ],
)
def test_a_wrong_table_is_one_sentence(table: str, fact: str, tmp_path: Path) -> None:
    (tmp_path / "table.json").write_text(table)
    with pytest.raises(FormatError, match=fact):
        of_file(tmp_path / "table.json")

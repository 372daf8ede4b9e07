"""Own conversations: what is sound is read, and every fault is one sentence before anything is asked."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memometer import benchmarks, cli
from memometer.benchmarks import json_files
from memometer.benchmarks.metrics import evidence_recall
from memometer.benchmarks.own import schema
from memometer.benchmarks.own.read import examine, load
from memometer.benchmarks.protocol import DataError
from memometer.benchmarks.splits import SeededSplits
from tests.conftest import Server, completion, sampled

Change = Callable[[dict[str, Any]], object]


def sound(id: str = "c1") -> dict[str, Any]:
    """A conversation in the documented shape that uses every field."""
    return {
        "id": id,
        "speakers": ["Ada", "Bo", "Cy"],
        "turns": [
            {"id": "a", "speaker": "Ada", "text": "I planted a quince tree.", "time": "2024-03-03T23:50:00+01:00"},
            {"id": 7, "speaker": "Bo", "text": "", "caption": "a yellow kite", "time": "2024-03-04T00:10:00+01:00"},
            {"id": "z/é", "speaker": "Cy", "text": "Where?", "role": "user"},
            {"id": "b", "speaker": "Ada", "text": "In Oslo.", "time": "2024-03-04T09:00:00+01:00"},
        ],
        "questions": [
            {
                "id": "q1",
                "text": "Which tree did Ada plant?",
                "answer": "quince",
                "evidence": ["a"],
                "category": "fact",
            },
            {"text": "Where is it?", "answers": ["Oslo", "Norway"], "evidence": ["z/é", "b"], "category": 2},
            {"text": "Who bought a boat?", "unanswerable": True, "wrong_answer": "Bo"},
            {"text": "How many kites?", "answer": 1, "evidence": [7]},
        ],
    }


def locomo_shaped() -> dict[str, Any]:
    return {
        "sample_id": "mine",
        "conversation": {
            "speaker_a": "Ada",
            "speaker_b": "Bo",
            "session_10_date_time": "2024-05-01T10:00",
            "session_10": [{"speaker": "Bo", "dia_id": "D10:1", "text": "The kite flew."}],
            "session_2_date_time": "6:12 pm on 3 March, 2024",
            "session_2": [
                {"speaker": "Ada", "dia_id": "D2:1", "text": "Hello.", "said": "03.03.2024, 18:12:10"},
                {"speaker": "Bo", "dia_id": "D2:2", "blip_caption": "a kite", "said": "04.03.2024, 00:05:00"},
            ],
        },
        "qa": [
            {"question": "What flew?", "answer": "a kite", "evidence": ["D2:2; D10:01"], "category": 1},
            {"question": "Who sang?", "evidence": [], "category": 5},
        ],
    }


def written(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def test_every_documented_field_is_read(tmp_path: Path) -> None:
    data = load(written(tmp_path / "mine.json", {"name": "Garden", "conversations": [sound()]}))
    conversation = data.conversations[0]
    assert (data.name, data.kind, data.benchmark) == ("Garden", "", "own")
    assert conversation.speakers == ("Ada", "Bo", "Cy")
    assert [turn.id for turn in conversation.turns] == ["a", "7", "z/é", "b"]
    assert [turn.day for turn in conversation.turns] == [738948, 738949, 738949, 738949]
    assert [turn.session for turn in conversation.turns] == [1, 1, 1, 2], "a pause of six hours is a new session"
    assert conversation.turns[2].said_at == conversation.turns[1].said_at
    assert (conversation.turns[1].caption, conversation.turns[2].role) == ("a yellow kite", "user")
    one, several, none, number = conversation.questions
    assert (one.id, several.id) == ("c1#q1", "c1#1")
    assert several.score("Norway") == several.score("oslo") == 1.0
    assert none.score("No information available") == 1.0
    assert not none.answerable
    assert (number.gold, number.evidence) == ("1", ("7",))
    assert list(data.categories) == ["2", "fact", "uncategorized"]


def test_locomos_shape_is_read_with_its_own_times(tmp_path: Path) -> None:
    data = load(written(tmp_path / "mine.json", [locomo_shaped()]))
    conversation = data.conversations[0]
    assert [turn.id for turn in conversation.turns] == ["D2:1", "D2:2", "D10:1"]
    assert [session.number for session in conversation.sessions] == [2, 10]
    assert [turn.said_at.day for turn in conversation.turns] == [3, 4, 1]
    assert conversation.questions[0].evidence == ("D2:2", "D10:1")
    assert conversation.questions[1].gold is None


@pytest.mark.parametrize("shape", ["list", "one", "lines", "folder", "bom", "link"])
def test_the_same_conversations_are_read_from_any_file(shape: str, tmp_path: Path) -> None:
    two = [sound("c1"), sound("c2")]
    path = tmp_path / "mine.json"
    if shape == "lines":
        path = tmp_path / "mine.jsonl"
        path.write_text("\n".join(map(json.dumps, two)) + "\n\n", encoding="utf-8")
    elif shape == "folder":
        path = tmp_path / "mine"
        path.mkdir()
        written(path / "1.json", two[0])
        (path / "2.ndjson").write_text(json.dumps(two[1]))
        (path / "notes.txt").write_text("not read")
        assert any("notes.txt" in loss for loss in examine(path)[0].losses)
    elif shape == "bom":
        path.write_text(json.dumps(two), encoding="utf-8-sig")
    elif shape == "link":
        path.symlink_to(written(tmp_path / "target.json", two))
    else:
        written(path, two if shape == "list" else {"conversations": two})
    assert [conversation.id for conversation in load(path).conversations] == ["c1", "c2"]


def change(name: str, value: Any = "missing", *, of: str = "questions", at: int = 0) -> Change:
    """Set or delete a field of a turn or question."""

    def apply(entry: dict[str, Any]) -> object:
        target = entry if not of else entry[of][at]
        return target.pop(name, None) if value == "missing" else target.__setitem__(name, value)

    return apply


FAULTS: dict[str, tuple[Change, list[str]]] = {
    # field of the conversation
    "id missing": (change("id", of=""), ["id is missing"]),
    "id null": (change("id", None, of=""), ["id is null"]),
    "id list": (change("id", ["c1"], of=""), ["id is a list"]),
    "id blank": (change("id", "  ", of=""), ["id is blank"]),
    "id lines": (change("id", "a\nb", of=""), ["id contains a line break"]),
    "id true": (change("id", True, of=""), ["id is true"]),
    "id decimal": (change("id", 1.5, of=""), ["id is the number 1.5"]),
    "speakers text": (change("speakers", "Ada", of=""), ["speakers is the text 'Ada'"]),
    "speakers objects": (change("speakers", [{"name": "Ada"}], of=""), ["speakers[0] is an object"]),
    "speaker not listed": (change("speakers", ["Ada", "Bo"], of=""), ["turn 2 (z/é)", "speaker is 'Cy'"]),
    "turns missing": (change("turns", of=""), ["turns is missing"]),
    "turns empty": (change("turns", [], of=""), ["turns is empty"]),
    "turns object": (change("turns", {"a": 1}, of=""), ["turns is an object"]),
    "turn text": (lambda e: e["turns"].__setitem__(1, "Hello"), ["turn 1", "is the text 'Hello'"]),
    "turn null": (lambda e: e["turns"].__setitem__(1, None), ["turn 1", "is null"]),
    "questions null": (change("questions", None, of=""), ["questions is null"]),
    "questions text": (change("questions", "Who?", of=""), ["questions is the text"]),
    "question list": (lambda e: e["questions"].__setitem__(2, ["Who?"]), ["question 2", "is a list"]),
    # fields of a turn
    "turn id missing": (change("id", of="turns"), ["turn 0", "id is missing"]),
    "turn id twice": (lambda e: e["turns"].append({**e["turns"][3], "id": "a"}), ["turn 4 (a)", "also that of turn 0"]),
    "number twice": (lambda e: e["turns"].append({**e["turns"][3], "id": "7"}), ["turn 4 (7)", "also that of turn 1"]),
    "speaker missing": (change("speaker", of="turns"), ["turn 0 (a)", "speaker is missing"]),
    "speaker null": (change("speaker", None, of="turns"), ["turn 0 (a)", "speaker is null"]),
    "speaker number": (change("speaker", 3, of="turns"), ["turn 0 (a)", "speaker is the number 3"]),
    "text null": (change("text", None, of="turns"), ["turn 0 (a)", "text is null"]),
    "text number": (change("text", 4, of="turns"), ["turn 0 (a)", "text is the number 4"]),
    "text list": (change("text", ["a"], of="turns"), ["turn 0 (a)", "text is a list"]),
    "text missing": (change("text", of="turns"), ["turn 0 (a)", "text is empty"]),
    "text blank": (change("text", " \n", of="turns"), ["turn 0 (a)", "text is empty"]),
    "text surrogate": (change("text", "bad \ud83d", of="turns"), ["turn 0 (a)", "text", "surrogate"]),
    "caption number": (change("caption", 4, of="turns", at=1), ["turn 1 (7)", "caption is the number 4"]),
    "caption missing": (change("caption", of="turns", at=1), ["turn 1 (7)", "no caption"]),
    "role list": (change("role", ["user"], of="turns"), ["turn 0 (a)", "role is a list"]),
    "session object": (change("session", {}, of="turns"), ["turn 0 (a)", "session is an object"]),
    "first time missing": (change("time", of="turns"), ["turn 0 (a)", "time is missing"]),
    "time number": (change("time", 1709491800, of="turns"), ["turn 0 (a)", "time is the number 1709491800"]),
    "time words": (change("time", "yesterday", of="turns"), ["turn 0 (a)", "time is 'yesterday'"]),
    "time no date": (change("time", "2024-02-30T10:00", of="turns"), ["turn 0 (a)", "2024-02-30"]),
    "time empty": (change("time", "", of="turns"), ["turn 0 (a)", "time is ''"]),
    "time year 0": (change("time", "0001-01-01", of="turns"), ["turn 0 (a)", "0001-01-01"]),
    "time backwards": (change("time", "2023-01-01T00:00+01:00", of="turns", at=3), ["turn 3 (b)", "is before"]),
    "time zone change": (change("time", "2024-03-04T09:00", of="turns", at=3), ["turn 3 (b)", "zone"]),
    # fields of a question
    "question id twice": (change("id", "q1", at=3), ["question 3 (q1)", "also that of question 0"]),
    "question id null list": (change("id", []), ["question 0", "id is a list"]),
    "question text missing": (change("text"), ["question 0 (q1)", "text is missing"]),
    "question text null": (change("text", None), ["question 0 (q1)", "text is null"]),
    "question text blank": (change("text", ""), ["question 0 (q1)", "text is blank"]),
    "question surrogate": (change("text", "\udc00?"), ["question 0 (q1)", "text", "surrogate"]),
    "answer null": (change("answer", None), ["question 0 (q1)", "answer is null"]),
    "answer list": (change("answer", ["a", "b"]), ["question 0 (q1)", "answer is a list"]),
    "answer true": (change("answer", True), ["question 0 (q1)", "answer is true"]),
    "answer object": (change("answer", {"text": "x"}), ["question 0 (q1)", "answer is an object"]),
    "answer blank": (change("answer", " "), ["question 0 (q1)", "answer is blank"]),
    "answer invisible": (change("answer", " \u200b\ufeff"), ["question 0 (q1)", "answer is blank"]),
    "answer missing": (change("answer"), ["question 0 (q1)", "answer is missing"]),
    "both answers": (change("answers", ["x"]), ["question 0 (q1)", "both"]),
    "answers empty": (change("answers", [], at=1), ["question 1", "answers is empty"]),
    "answers text": (change("answers", "Oslo", at=1), ["question 1", "answers is the text"]),
    "answers null inside": (change("answers", ["Oslo", None], at=1), ["question 1", "answers[1] is null"]),
    "unanswerable with answer": (change("unanswerable", True), ["question 0 (q1)", "unanswerable"]),
    "unanswerable text": (change("unanswerable", "yes", at=2), ["question 2", "unanswerable is the text"]),
    "wrong answer list": (change("wrong_answer", [], at=2), ["question 2", "wrong_answer is a list"]),
    "evidence text": (change("evidence", "a; b"), ["question 0 (q1)", "evidence is the text"]),
    "evidence null": (change("evidence", None), ["question 0 (q1)", "evidence is null"]),
    "evidence lists": (change("evidence", [["a"]]), ["question 0 (q1)", "evidence[0] is a list"]),
    "evidence blank": (change("evidence", [""]), ["question 0 (q1)", "evidence[0] is blank"]),
    "evidence unknown": (change("evidence", ["a", "nope"]), ["question 0 (q1)", "evidence names 'nope'"]),
    "category list": (change("category", ["x"]), ["question 0 (q1)", "category is a list"]),
    "category blank": (change("category", ""), ["question 0 (q1)", "category is blank"]),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_names_conversation_place_and_field(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = sound()
    apply, expected = FAULTS[name]
    apply(entry)
    path = written(tmp_path / "mine.json", [sound("other"), entry])
    assert cli.main(["data", "check", str(path)]) == 2
    lines = capsys.readouterr().out.splitlines()
    faults = [line for line in lines if not line.startswith("Lost: ")][:-1]
    assert len(faults) == 1
    assert all(word in faults[0] for word in expected), faults[0]
    assert "conversation c1" in faults[0] or name.startswith("id")
    with pytest.raises(DataError) as stopped:
        load(path)
    assert str(stopped.value).startswith(faults[0])


LOCOMO_FAULTS: dict[str, tuple[Change, list[str]]] = {
    "session text": (lambda e: e["conversation"].update(session_2="Hi"), ["session_2 is not a list"]),
    "date missing": (lambda e: e["conversation"].pop("session_2_date_time"), ["session_2_date_time is missing"]),
    "date number": (lambda e: e["conversation"].update(session_2_date_time=4), ["session_2_date_time is not text"]),
    "date backwards": (
        lambda e: e["conversation"].update(session_10_date_time="6:12 pm on 3 March, 2021"),
        ["D10:1", "session_10_date_time", "is before"],
    ),
    "conversation list": (lambda e: e.update(conversation=[1]), ["conversation is a list"]),
    "conversation null": (lambda e: e.update(conversation=None), ["conversation is null"]),
    "qa null": (lambda e: e.update(qa=None), ["qa is null"]),
    "dia_id missing": (lambda e: e["conversation"]["session_2"][0].pop("dia_id"), ["dia_id is missing"]),
    "gold list": (lambda e: e["qa"][0].update(answer=["a"]), ["question 0", "answer is a list"]),
    "question missing": (lambda e: e["qa"][0].pop("question"), ["question 0", "question is missing"]),
    "evidence unknown": (lambda e: e["qa"][0].update(evidence=["D9:9"]), ["question 0", "'D9:9'"]),
}


@pytest.mark.parametrize("name", LOCOMO_FAULTS)
def test_a_fault_in_locomos_shape_has_locomos_names(name: str, tmp_path: Path) -> None:
    entry = locomo_shaped()
    apply, expected = LOCOMO_FAULTS[name]
    apply(entry)
    faults = examine(written(tmp_path / "mine.json", [entry]))[0].faults
    assert len(faults) == 1 + (name == "session text"), "then an evidence turn is missing, too"
    assert all(word in faults[0] for word in ["conversation mine", *expected]), faults[0]


FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "spaces": (b"\xef\xbb\xbf \n", "is empty"),
    "utf-16": ("[]".encode("utf-16"), "UTF-16"),
    "latin-1": (b'[{"id": "caf\xe9"}]', "not UTF-8"),
    "zip": (b"PK\x03\x04rest", "archive"),
    "truncated": (json.dumps([sound()])[:200].encode(), "truncated"),
    "NaN": (b'[{"id": NaN}]', "NaN"),
    "digits": (b"[" + b"9" * 5000 + b"]", "valid JSON"),
    "deep": (b"[" * 200_000, "deep"),
    "key twice": (b'[{"id": 1, "id": 2}]', "'id' occurs twice"),
    "lines": (b'{"id": 1}\n{"id": 2}', ".jsonl"),
    "number": (b"7", "expected an object"),
    "null": (b"null", "expected an object"),
    "no conversation": (b"[]", "no conversation"),
    "conversations text": (b'{"conversations": "x"}', "conversations is not a list"),
    "name number": (b'{"name": 3, "conversations": []}', "name is not a line"),
    "item": (b'["x"]', "is the text 'x'"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_not_such_json_is_one_sentence(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, expected = FILES[name]
    path = tmp_path / "mine.json"
    path.write_bytes(content)
    assert cli.main(["data", "check", str(path)]) == 2
    out = "".join(capsys.readouterr())
    assert expected in out
    assert str(path) in out
    with pytest.raises(DataError, match=r"mine\.json"):
        load(path)


def test_pipes_folders_and_missing_files_are_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "link.json").symlink_to(tmp_path / "nowhere.json")
    (tmp_path / "none").mkdir()
    with (tmp_path / "long.json").open("wb") as file:
        file.truncate(json_files.MAX_BYTES + 1)
    for name, expected in (
        ("pipe.json", "^[^(]* pipe"),
        ("link.json", "cannot read"),
        ("none", "no file"),
        ("a\0b", "null"),
        ("long.json", "^[^(]* limit"),
    ):
        with pytest.raises(DataError, match=expected):
            load(tmp_path / name)
    with pytest.raises(DataError, match="pipe"):
        load(tmp_path)


def test_the_evaluation_stops_before_it_asks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entry = sound()
    entry["questions"][0]["answer"] = None
    words = ["eval", "--data", str(written(tmp_path / "mine.json", entry)), "--run-dir", str(tmp_path / "run")]
    assert cli.main([*words, "--model", "openai/m", "--api-base", "http://127.0.0.1:9/v1"]) == 2
    assert "question 0 (q1), answer is null" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_evidence_recall_of_a_small_file_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "mine.json", sound())
    words = ["--recall-only", "--no-mlflow", "--systems", "bm25", "--budgets", "40", "--run-dir", str(tmp_path / "run")]
    assert cli.main(["eval", "--data", str(path), *words]) == 0
    out = capsys.readouterr().out
    assert "SIMULATED" not in out
    digest = benchmarks.read(None, path).sha256[:12]
    assert f"mine, sha256 {digest}" in out
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (results["data_name"], results["benchmark"]) == ("mine", "own")
    records = [json.loads(line) for line in (tmp_path / "run" / "records.jsonl").read_text().splitlines()]
    found = {r["question_id"]: r["recall"]["turn_ids"] for r in records if r["system"] == "bm25"}
    assert evidence_recall(("a",), found["c1#q1"]) == 1.0


@sampled(30)
@given(ids=st.lists(st.text(min_size=1, max_size=4), min_size=1, max_size=12, unique=True), seed=st.integers(0, 99))
def test_splits_by_conversation_are_seeded_partitions(ids: list[str], seed: int) -> None:
    split = SeededSplits(ids)[f"seed-{seed}"]
    assert sorted(id for part in split.values() for id in part) == sorted(ids)
    assert split == SeededSplits(ids)[f"seed-{seed}"]
    assert split["test"], "one conversation is the test part"
    assert len(ids) < 3 or (split["train"] and split["validation"])


def test_the_shipped_schema_is_that_of_the_types(capsys: pytest.CaptureFixture[str]) -> None:
    assert schema.FILE.read_text(encoding="utf-8") == schema.schema_text()
    assert cli.main(["data", "schema"]) == 0
    assert json.loads(capsys.readouterr().out) == schema.json_schema()


def test_the_shipped_schema_agrees_with_the_check(tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(schema.json_schema())
    assert validator.is_valid({"conversations": [sound()]})
    for name in ("answer null", "evidence text", "turn id missing", "turns empty", "unanswerable text"):
        entry = copy.deepcopy(sound())
        FAULTS[name][0](entry)
        assert not validator.is_valid({"conversations": [entry]}), name


def test_one_conversation_is_the_test_part_and_its_judge_accuracy_is_withheld(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "mine.json", sound())
    server.answer = lambda number, body: completion("yes")
    words = ["--data", str(path), "--systems", "bm25", "--budget-tokens", "60", "--no-mlflow",
             "--tokenizer", "o200k_base", "--model", "openai/m", "--api-base", server.url, "--retries", "0",
             "--context-window", "4000", "--judge-model", "openai/judge", "--judge-api-base", server.url]  # fmt: skip
    assert cli.main(["eval", *words, "--run-dir", str(tmp_path / "run")]) == 0
    assert "Judge accuracy is withheld" in capsys.readouterr().out
    for command in (["optimize", "--dry-run", "--model", "embedded:tiny"], ["optimize", "--target", "retrieval"]):
        assert cli.main([*command, "--data", str(path), "--out", str(tmp_path / "out")]) == 2
        assert capsys.readouterr().err.count("\n") == 1

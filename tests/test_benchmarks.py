"""Benchmarks of other projects are read as published; one of a stranger costs one folder."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from memometer import benchmarks, cli
from memometer.benchmarks import json_files
from memometer.benchmarks.longmemeval.prompts import TEMPLATES
from memometer.benchmarks.protocol import DataError, Dataset, UnknownBenchmark
from memometer.benchmarks.realtalk.read import Evidence
from tests.conftest import Server, completion

# ---------------------------------------------------------------- files of the published shapes, in our own words


def realtalk(path: Path) -> Path:
    def message(id: str, time: str, text: str, speaker: str = "Ada", **more: Any) -> dict[str, Any]:
        fixed = {"dia_id": id, "date_time": time, "clean_text": text, "speaker": speaker, "img_file": [], "img_url": []}
        return fixed | more

    chat = {
        "name": {"speaker_1": "Ada", "speaker_2": "Bo"},
        "session_1_date_time": "03.03.2024, 23:50:00",
        "session_1": [
            message("D1:1", "03.03.2024, 23:50:00", "I planted a quince tree."),
            message("D1:2", "04.03.2024, 00:05:00", "Look.", img_file=["tree.jpg"], blip_caption="a small tree"),
            message("D1:4", "04.03.2024, 00:06:00", "Nice!", "Bo"),
        ],
        "events_session_1": {"agent_a": []},
        "session_2_date_time": "05.03.2024, 10:00:00",
        "session_2": [message("D2:1", "05.03.2024, 10:00:00", "I flew a kite in Oslo.", "Bo")],
        "qa": [
            {"question": "What did Ada plant?", "answer": "a quince, a tree", "category": 1, "evidence": ["D1:3"]},
            {"question": "When?", "answer": "3 March", "category": 2, "evidence": ["D1:1-D1:2"]},
            {"question": "Who flies?", "answer": "Bo; he has a kite", "category": 3, "evidence": ["D2:01. D1:1"]},
            {"question": "Where?", "answer": "Oslo", "category": 2, "evidence": ["D2:1", "D7:7"]},
        ],
    }
    path.mkdir()
    (path / "Chat_3_Ada_Bo.json").write_text(json.dumps(chat))
    return path


def beam(path: Path) -> Path:
    def message(id: int, role: str, content: str, **more: Any) -> dict[str, Any]:
        return {"role": role, "id": id, "content": content, **more}

    chat = [
        {
            "batch_number": 1,
            "turns": [
                [
                    message(0, "user", "My quince is ill. ->-> 1,1", time_anchor="March-15-2024"),
                    message(1, "assistant", "Water it twice a day."),
                ]
            ],
        },
        {"batch_number": 2, "turns": [[message(2, "user", "It is well again. ->-> 2,1", time_anchor="April-05-2024")]]},
    ]
    questions = {
        "abstention": [{"question": "Who is Cy?", "ideal_response": "Unknown.", "rubric": ["It is not said"]}],
        "knowledge_update": [
            {
                "question": "How is my quince?",
                "answer": "It is well",
                "rubric": ["LLM response should state: well", "LLM response should mention: quince"],
                "source_chat_ids": {"original_info": [0], "updated_info": [2]},
            }
        ],
        "instruction_following": [
            {"question": "How?", "expected_compliance": "Be short.", "rubric": ["short"], "source_chat_ids": [1, 1]}
        ],
    }
    folder = path / "7"
    folder.mkdir(parents=True)
    (folder / "chat.json").write_text(json.dumps(chat))
    (folder / "probing_questions.json").write_text(json.dumps(questions))
    return path


def longmemeval(path: Path) -> Path:
    def item(id: str, kind: str, **more: Any) -> dict[str, Any]:
        return {
            "question_id": id,
            "question_type": kind,
            "question": "Which tree did I plant?",
            "answer": "a quince",
            "question_date": "2024/05/30 (Thu) 10:00",
            "haystack_session_ids": ["s2", "s1", "s1"],
            "haystack_dates": ["2024/03/05 (Tue) 09:00", "2024/03/03 (Sun) 18:12", "2024/03/04 (Mon) 18:12"],
            "haystack_sessions": [
                [{"role": "user", "content": "I flew a kite."}, {"role": "assistant", "content": "Nice kite."}],
                [{"role": "user", "content": "I planted a quince tree.", "has_answer": True}],
                [{"role": "assistant", "content": "Trees need water."}, {"role": "user", "content": "  "}],
            ],
            "answer_session_ids": ["s1"],
            **more,
        }

    items = [item(f"q{n}", kind) for n, kind in enumerate(TEMPLATES)]
    items.append(item("q9_abs", "multi-session", question="Which car did I plant?", answer="You planted no car."))
    path.write_text(json.dumps(items))
    return path


MAKERS: dict[str, Callable[[Path], Path]] = {"realtalk": realtalk, "beam": beam, "longmemeval": longmemeval}


def data_of(name: str, tmp_path: Path) -> Dataset:
    return benchmarks.read(name, MAKERS[name](tmp_path / "data"))


# ---------------------------------------------------------------- reading


def test_realtalk_repairs_evidence_and_scores_as_published(tmp_path: Path) -> None:
    data = data_of("realtalk", tmp_path)
    picture, both, listed, unknown = data.questions
    assert picture.evidence == ("D1:2",), "the message before the dropped one carries the picture"
    assert both.evidence == ("D1:1", "D1:2")
    assert set(listed.evidence) == {"D2:1", "D1:1"}
    assert (unknown.evidence, unknown.unresolved) == (("D2:1",), ("D7:7",))
    assert [turn.said_at.day for turn in data.conversations[0].turns] == [3, 4, 4, 5]
    assert (data.conversations[0].id, data.conversations[0].turns[1].caption) == ("realtalk-3", "a small tree")
    assert picture.score("tree, kite") == 0.5
    assert listed.score("Bo") == 1.0, "in category 3 the gold ends at the first semicolon"


def test_a_dropped_picture_between_two_others_means_the_one_before() -> None:
    def message(id: str, *, picture: bool = False) -> dict[str, Any]:
        return {"dia_id": id, "img_file": ["x.jpg"] if picture else []}

    evidence = Evidence([message("D1:1", picture=True), message("D1:3", picture=True), message("D1:5")])
    assert evidence.resolve(["D1:2"]) == (["D1:1"], [])
    assert evidence.resolve(["D1:4"]) == (["D1:3"], [])
    assert evidence.resolve(["D1:6"]) == ([], ["D1:6"])
    assert evidence.resolve(["nonsense", "D 1 : 3"]) == (["D1:3"], ["nonsense"])


def test_beam_has_abilities_evidence_and_rubrics(tmp_path: Path) -> None:
    data = data_of("beam", tmp_path)
    turns = data.conversations[0].turns
    assert [turn.text for turn in turns] == ["My quince is ill.", "Water it twice a day.", "It is well again."]
    assert [(turn.role, turn.said_at.month) for turn in turns] == [("user", 3), ("assistant", 3), ("user", 4)]
    by_ability: dict[str, Any] = {question.category: question for question in data.questions}
    assert len(data.categories) == 10
    assert not by_ability["abstention"].answerable
    assert by_ability["knowledge_update"].evidence == ("0", "2")
    assert by_ability["knowledge_update"].rubric[1] == "LLM response should mention: quince"
    assert by_ability["instruction_following"].evidence == ("1",)


def test_longmemeval_has_sessions_in_time_order_and_evidence_of_both_levels(tmp_path: Path) -> None:
    data = data_of("longmemeval", tmp_path)
    assert len(data.conversations) == 7
    turns = data.conversations[0].turns
    assert [turn.id for turn in turns] == ["s1:0", "s1 (2):0", "s2:0", "s2:1"], "an empty message is left out"
    question: Any = data.questions[0]
    assert question.evidence == ("s1:0",)
    assert "2024/05/30" in question.options("free")
    found = question.ranking_metrics(["s2:0", "s2:1", "s1:0"])
    assert (found["turn recall_any@1"], found["turn recall_any@3"]) == (0.0, 1.0)
    assert (found["session recall_all@1"], found["session recall_all@3"]) == (0.0, 1.0)
    unanswerable: Any = data.questions[-1]
    assert (unanswerable.answerable, unanswerable.evidence, unanswerable.category) == (False, (), "multi-session")
    assert unanswerable.ranking_metrics(["s1:0"]) == {}


def test_a_long_file_is_read_item_by_item(tmp_path: Path) -> None:
    path = tmp_path / "items.json"
    wanted: list[Any] = [{"a": "}é]" * n, "b": [n, {"c": None}]} for n in range(50)] + ["x,]", 12, [], 7.5, True]
    for text in (json.dumps(wanted), json.dumps(wanted, indent=3, ensure_ascii=False) + "\n"):
        path.write_text(text, encoding="utf-8")
        for chunk in (1, 7, 64, 1 << 20):
            assert [item for _, item in json_files.items(path, chunk=chunk)] == wanted
    path.write_text(json.dumps(wanted)[:300])
    with pytest.raises(DataError, match="truncated"):
        list(json_files.items(path, chunk=16))


@pytest.mark.parametrize("name", MAKERS)
def test_a_benchmark_is_never_downloaded_and_names_its_variable(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variable = f"{name.upper()}_PATH"
    monkeypatch.delenv(variable, raising=False)
    with pytest.raises(DataError, match=rf"--data PATH or {variable}"):
        benchmarks.read(name)
    monkeypatch.setenv(variable, str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="does not exist"):
        benchmarks.read(name)
    monkeypatch.setenv(variable, str(MAKERS[name](tmp_path / "data")))
    assert benchmarks.read(name).benchmark == name
    other = tmp_path / "other.json"
    other.write_text('[{"sample_id": 1}]')
    with pytest.raises(DataError, match=r"other\.json"):
        benchmarks.read(name, other)


@pytest.mark.parametrize("name", MAKERS)
def test_a_recall_only_run_states_the_licence(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place, run = MAKERS[name](tmp_path / "data"), tmp_path / "run"
    words = ["--recall-only", "--split", "all", "--no-mlflow", "--systems", "bm25", "--budgets", "64", "--verbose"]
    assert cli.main(["eval", "--benchmark", name, "--data", str(place), *words, "--run-dir", str(run)]) == 0
    out = capsys.readouterr().out
    assert "licence" in out or "licensed" in out
    results = json.loads((run / "results.json").read_text())
    assert results["benchmark"] == name
    assert results["systems"]["bm25"]["budgets"]["64"]["evidence_recall"] > 0
    if name == "longmemeval":
        assert "session recall_all" in (run / "table.txt").read_text()
    assert cli.main(["data", "check", str(place), "--benchmark", name]) == 0


# ---------------------------------------------------------------- judging


def test_longmemevals_prompts_reach_the_judge_word_for_word(tmp_path: Path, server: Server) -> None:
    from memometer.judging.judge import Judge
    from memometer.models import resolve_models

    data = data_of("longmemeval", tmp_path)
    prompt = benchmarks.load("longmemeval").judge_prompt()
    model = resolve_models.load("openai/judge", api_base=server.url, max_tokens=8)
    judge = Judge(model.lm, prompt)
    server.answer = lambda number, body: completion("Yes.")
    for question in data.questions[:-1]:
        verdict = judge(question.text, question.gold or "", "A quince.", of=question)
        assert verdict.label == "correct"
        assert verdict.prompt_tokens > 0
        expected = TEMPLATES[question.category].format(question.text, "a quince", "A quince.")
        assert server.requests[-1]["messages"] == [{"role": "user", "content": expected}]


def test_a_rubric_is_graded_item_by_item(tmp_path: Path, server: Server) -> None:
    from memometer.judging.judge import Judge
    from memometer.models import resolve_models

    question = next(q for q in data_of("beam", tmp_path).questions if q.category == "knowledge_update")
    model = resolve_models.load("openai/judge", api_base=server.url, max_tokens=8)
    judge = Judge(model.lm, benchmarks.load("beam").judge_prompt())
    server.answer = lambda number, body: completion("yes" if "state: well" in json.dumps(body) else "no")
    verdict = judge(question.text, question.gold or "", "It is well.", of=question)
    assert (verdict.label, verdict.score, len(server.requests)) == ("wrong", 0.5, judge.calls(question))
    assert judge.record(verdict)["score"] == 0.5
    server.answer = lambda number, body: completion("Partly." if "state: well" in json.dumps(body) else "yes")
    assert judge(question.text, question.gold or "", "It is well.", of=question).score == 0.75
    published = Judge(model.lm, benchmarks.load("beam").judge_prompts["rubric-published"])
    assert published(question.text, question.gold or "", "It is well.", of=question).score == 0.5
    server.answer = lambda number, body: completion("perhaps")
    assert judge(question.text, question.gold or "", "It is well.", of=question).label == "missing"


@pytest.mark.parametrize(
    ("answer", "score"), [("a\nb\nc", 1.0), ("c\nb\na", 0.0), ("b\n\na\nc", 2 / 3), ("nothing", (1 - 0.5**0.5) / 2)]
)
def test_the_order_of_events_is_scored_by_line(tmp_path: Path, server: Server, answer: str, score: float) -> None:
    from memometer.judging.judge import Judge
    from memometer.models import resolve_models

    question = replace(
        next(q for q in data_of("beam", tmp_path).questions if q.category == "knowledge_update"),
        category="event_ordering",
        rubric=("a", "b", "c"),  # type: ignore[call-arg]
    )
    model = resolve_models.load("openai/judge", api_base=server.url, max_tokens=8)
    judge = Judge(model.lm, benchmarks.load("beam").judge_prompt())

    def same(number: int, body: Any) -> Any:
        text = body["messages"][-1]["content"]
        event, line = (re.search(rf'{name}:?[\s"]*(\w+)', text, re.IGNORECASE) for name in ("gold", "answer"))
        return completion("yes" if event and line and event[1] == line[1] else "no")

    server.answer = same
    verdict = judge(question.text, "", answer, of=question)
    assert verdict.score == pytest.approx(score)
    assert len(server.requests) <= judge.calls(question)
    server.answer = lambda number, body: (500, {}, b"{}")
    assert judge(question.text, "", answer, of=question).label == "missing"


# ---------------------------------------------------------------- a benchmark in one folder

FOLDER = '''
"""A benchmark of one folder."""
from pathlib import Path
from memometer.benchmarks import judge_prompts
from memometer.benchmarks.own.read import conversations_of
from memometer.benchmarks.protocol import Benchmark, Dataset
from memometer.benchmarks.splits import SeededSplits
from .words import ENTRY


def load(path):
    made = tuple(conversations_of([("diary", ENTRY)]))
    return Dataset(made, Path("diary"), "0" * 64, "diary", categories={"fact": "fact"},
                   splits=SeededSplits([c.id for c in made]), licence="MIT", notice="A diary.")


BENCHMARK = Benchmark(name="diary", title="Diary", licence="MIT", categories={"fact": "fact"}, load=load,
                      judge_prompts=judge_prompts.PROMPTS)
'''
WORDS = """
ENTRY = {"id": "d", "turns": [{"id": "1", "speaker": "Ada", "text": "The kite is red.", "time": "2024-03-03"}],
         "questions": [{"text": "Which colour has the kite?", "answer": "red", "evidence": ["1"], "category": "fact"}]}
"""


@pytest.mark.parametrize("form", ["folder", "file", "module"])
def test_a_benchmark_outside_the_repository_is_one_folder(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / f"diary_{form}"
    place.mkdir()
    (place / "__init__.py").write_text(FOLDER)
    (place / "words.py").write_text(WORDS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    name = {"folder": f"./{place.name}", "file": str(place / "__init__.py"), "module": f"{place.name}:BENCHMARK"}[form]
    if form == "file":
        (place / "__init__.py").write_text(FOLDER.replace("from .words import ENTRY", WORDS))
    words = ["--recall-only", "--split", "all", "--no-mlflow", "--systems", "bm25", "--budgets", "64"]
    assert cli.main(["eval", "--benchmark", name, *words, "--run-dir", "run"]) == 0
    assert "A diary." in capsys.readouterr().out
    assert cli.main(["compare", "run", "--system", "bm25,none"]) == 0, "a later command finds the benchmark again"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("BENCHMARK = 3", "found a int"),
        ("", "found nothing"),
        ("import no_such_package", "no_such_package"),
        ("x = 1 / 0", "ZeroDivisionError"),
        ("def", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit"),
    ],
)
def test_a_faulty_benchmark_is_one_sentence(source: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(source)
    with pytest.raises(UnknownBenchmark, match=expected):
        benchmarks.load(str(path))


@pytest.mark.parametrize("name", ["nope", "./nope", "json:nope", "no_such_module:X", "locom"])
def test_an_unknown_benchmark_is_one_sentence(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval", "--benchmark", name, "--recall-only"]) == 2
    err = capsys.readouterr().err
    assert name.partition(":")[0] in err
    assert err.count("\n") == 1


def test_an_installed_package_registers_a_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, about = tmp_path / "installed_diary", tmp_path / "installed_diary-0.1.dist-info"
    package.mkdir()
    about.mkdir()
    (package / "__init__.py").write_text(FOLDER.replace("from .words import ENTRY", WORDS))
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: installed-diary\nVersion: 0.1\n")
    (about / "entry_points.txt").write_text(
        "[memometer.benchmarks]\ninstalled = installed_diary:BENCHMARK\nlocomo = installed_diary:BENCHMARK\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert benchmarks.load("installed").title == "Diary"
    assert benchmarks.read("installed").benchmark == "installed"
    assert benchmarks.load("locomo").title == "LOCOMO", "a built-in name wins"

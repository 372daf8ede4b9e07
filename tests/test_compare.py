"""`memometer compare` on run folders: what it prints, and what it refuses in one sentence."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from locomo.dataset import SAMPLE, SIMULATED, Question, read
from memometer import cli
from memometer.run.folder import RunFolder, read_manifest
from tests.test_aggregate import JUDGE, record

Answer = Callable[[Question], dict[str, Any]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven simulated conversations: short, with all categories."""
    raw = json.loads(SAMPLE.read_bytes())[0]
    path = tmp_path_factory.mktemp("data") / "simulated.json"
    path.write_text(json.dumps([{**raw, "sample_id": f"simulated-{i}", SIMULATED: {"seed": 1}} for i in range(11)]))
    return path


def right(indices: Sequence[int], **more: Any) -> Answer:
    return lambda question: record("", question, "correct" if question.index in indices else "wrong", **more)


@pytest.fixture
def folder(tmp_path: Path, data: Path) -> Callable[..., Path]:
    """A finished run of some systems on the simulated conversations."""

    def make(
        name: str,
        *,
        config: dict[str, Any] | None = None,
        identity: dict[str, Any] | None = None,
        manifest: dict[str, Any] | None = None,
        asked: Callable[[Question], bool] = lambda question: True,
        budget: int = 512,
        **systems: Answer,
    ) -> Path:
        everything = read(data)
        questions = [question for question in everything.questions if asked(question)]
        with RunFolder.create(
            tmp_path / name,
            {
                "config": {"data": str(data), "split": "all", "max_answer_tokens": 64, **(config or {})},
                "identity": {"data": everything.sha256, "reader": "m/reader", "systems": "code1", **(identity or {})},
                "questions": [question.id for question in questions],
                "git": "abc",
                **(manifest or {}),
            },
        ) as run:
            for system, answer in systems.items():
                for question in questions:
                    run.append({**answer(question), "system": system, "budget_tokens": budget})
            run.write_json("results.json", {"status": "valid"})
        return tmp_path / name

    return make


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*args: Any) -> tuple[int, str, str]:
        code = cli.main(["compare", *(str(arg) for arg in args)])
        out, err = capsys.readouterr()
        assert all(line.startswith("SIMULATED") for line in out.splitlines())
        return code, out.replace("SIMULATED  ", ""), err

    return run


def test_two_systems_of_one_run(folder: Any, say: Any) -> None:
    run = folder("run", a=right(range(6)), b=right([0]))
    code, out, _ = say(run)
    assert code == 0
    assert out.startswith("121 questions of categories 1, 2, 3, 4.\n")
    assert "judge accuracy (J) under m/judge (strict, original)" in out
    assert re.search(r"a @512 +54\.55 +\[45\.5, 63\.5\] +- +9\.00 +0\.0 +121 +0 +0 +54\.5 +54\.5", out), (
        "all alike: as if questions were independent"
    )
    (row,) = [line for line in out.splitlines() if line.startswith("a @512") and "b @512" in line]
    assert f"{55}/0/66" in row, "five questions of eleven conversations more"
    assert "0.0010" in row, "2 of 2^11 sign patterns"
    assert "conversations are few" not in out
    with RunFolder.reopen(run):
        assert say(run)[:2] == (code, out), "while another process writes: a run is only read"


def test_two_runs_are_matched_by_question(folder: Any, say: Any) -> None:
    first = folder("one", asked=lambda q: q.index < 8, a=right(range(8)))
    second = folder("two", asked=lambda q: q.index > 2, a=right([3]))
    code, out, _ = say(first, second)
    assert code == 0
    possible = [q for q in read(Path(read_manifest(first)["config"]["data"])).questions if q.answerable]
    shared = [q for q in possible if 2 < q.index < 8]
    alone = sum(q.index <= 2 for q in possible), sum(q.index >= 8 for q in possible)
    assert f"{len(shared)} questions of categories 1, 2, 3, 4 in every run" in out
    assert f"({alone[0]} only in one, {alone[1]} only in two). A subset: there are {len(possible)}." in out
    (row,) = [line for line in out.splitlines() if line.startswith("one/a") and "two/a" in line]
    assert f"{len(shared) - 11}/0/11" in row
    assert "not comparable" not in out


def test_what_differs_is_said_first_and_compared_all_the_same(folder: Any, say: Any) -> None:
    first = folder("one", a=right(range(5)))
    second = folder(
        "two",
        config={"split": "memory-r1:test", "max_answer_tokens": 256},
        identity={"reader": "m/larger", "systems": "code2", "token counter": "o200k_base"},
        manifest={"git": "def", "answer_prompts": {"a": "9"}},
        budget=2048,
        a=right(range(6)),
    )
    with RunFolder.reopen(second) as reopened:
        reopened.write_json("results.json", {"status": "invalid"})
    code, out, _ = say(first, second)
    assert code == 0
    assert out.splitlines()[:3] == [
        "caution: two is invalid.",
        "not comparable: one and two differ in split (all / memory-r1:test).",
        "one and two differ in reader (m/reader / m/larger), max answer tokens (64 / 256), code (abc / def), token "
        "counter (not recorded / o200k_base), budget (512 / 2,048): differences cannot be assigned to one of them.",
    ]
    assert "Paired differences" in out
    _, out, _ = say(first, second, "--measure", "evidence_recall")
    assert "m/larger" not in out, "who reads plays no part in what is recalled"


def test_the_answer_prompt_is_compared_system_by_system(folder: Any, say: Any) -> None:
    first = folder("one", manifest={"answer_prompts": {"a": "1", "b": "2"}}, a=right([1]))
    same = folder("two", manifest={"answer_prompts": {"a": "1", "c": "3"}}, a=right([1]))
    other = folder("three", manifest={"answer_prompts": {"a": "4"}}, a=right([1]))
    assert "differ" not in say(first, same)[1].partition("questions of")[0]
    assert "one and three differ in answer prompt (1 / 4)" in say(first, other)[1]


def test_another_reader_is_the_subject_and_each_system_is_compared_with_itself(folder: Any, say: Any) -> None:
    first = folder("one", a=right(range(5)), b=right([1]))
    other = folder("two", identity={"reader": "m/larger"}, a=right(range(6)), b=right([1]))
    _, out, _ = say(first, other)
    assert out.startswith("one and two differ in reader (m/reader / m/larger): the subject")
    assert "not comparable" not in out
    assert "max-T over 2;" in out, "a with a and b with b"
    assert "max-T over 6;" in say(first, other, "--system", "a,b")[1]


def test_by_category_tests_are_adjusted_over_all_that_is_printed(folder: Any, say: Any) -> None:
    run = folder("run", a=right(range(6)), b=right([0]), c=right([0, 1]))
    _, out, _ = say(run, "--by-category")
    assert "max-T over 15;" in out, "three pairs, all categories and each of four"
    _, out, _ = say(run, "--by-category", "--system", "a,b", "--categories", "1,4")
    assert "max-T over 3;" in out


def test_controls_are_compared_where_they_are_named_or_alone(folder: Any, say: Any) -> None:
    run = folder("run", a=right(range(6)), b=right([0]), none=right([]), oracle=right(range(20)))
    assert "max-T over 1;" in say(run)[1]
    assert "none @512" in say(run)[1], "their scores are shown"
    assert "max-T over 3;" in say(run, "--system", "a,none,oracle")[1]
    assert "max-T over 3;" in say(folder("alone", a=right([1]), none=right([]), oracle=right([1, 2])))[1]


def test_failed_and_missing_stand_apart(folder: Any, say: Any) -> None:
    def fragile(question: Question) -> dict[str, Any]:
        if question.index == 0:
            return record("", question, None, answer=None, memory_error="Boom: x")
        return record("", question, "missing" if question.index == 1 else "correct")

    _, out, _ = say(folder("run", a=fragile, b=right(range(20))))
    (row,) = [line for line in out.splitlines() if re.match(r"a @512 +\d", line)]
    numbers = row.split("]")[1].split()
    assert numbers[3:6] == ["110", "11", "11"], "n, failed, ungraded"
    assert numbers[6:] == [f"{100 * 99 / 121:.1f}", f"{100 * 110 / 121:.1f}"], "worst, best"


def test_a_grading_is_chosen_where_there_are_several(folder: Any, say: Any) -> None:
    def twice(label: str) -> Answer:
        def answer(question: Question) -> dict[str, Any]:
            made = record("", question, "correct")
            later = [{**JUDGE, "prompt": "lenient", "label": label}] if question.gold else []
            return {**made, "verdicts": made["verdicts"] + later}

        return answer

    run = folder("run", a=twice("correct"), b=twice("wrong"))
    code, out, err = say(run)
    assert (code, out) == (2, "")
    assert "(m/judge (strict, original); m/judge (lenient, original))" in err
    assert "121/0/0" in say(run, "--prompt", "lenient")[1]
    assert "0/0/121" in say(run, "--prompt", "strict")[1]
    other = folder("other", a=right([1]))
    assert "strict" in say(run, other, "--system", "a")[1], "the one that both have"


def test_what_is_withheld_is_not_compared(folder: Any, say: Any) -> None:
    run, other = folder("run", a=right(range(6)), b=right([0])), folder("other", a=right([1]))
    grading = "m/judge (strict, original)"
    (run / "results.json").write_text(json.dumps({"status": "valid", "withheld": {grading: "it accepts 40 %."}}))
    for runs in ([run], [run, other], [other, run]):
        code, out, err = say(*runs, "--measure", "judge")
        assert (code, out) == (2, "")
        assert f"Judge accuracy of {grading} is withheld in run: it accepts 40 %." in err
        assert "F1, percent" in say(*runs)[1]


def test_a_run_that_has_not_ended_has_no_certificate(folder: Any, say: Any) -> None:
    run = folder("run", a=right(range(6)), b=right([0]))
    (run / "results.json").unlink()
    assert "F1, percent" in say(run)[1]
    code, _, err = say(run, "--measure", "judge")
    assert code == 2
    assert "is withheld in run: m/judge (strict, original) was not calibrated" in err


def test_runs_without_verdicts_are_compared_by_f1_and_without_answers_by_recall(folder: Any, say: Any) -> None:
    def plain(question: Question) -> dict[str, Any]:
        return {**record("", question, "correct"), "verdicts": []}

    first = folder("one", a=plain, b=plain)
    assert "F1, percent" in say(first)[1]
    recalled = folder("two", a=lambda q: {**plain(q), "answer": None, "model": None})
    assert "evidence recall, percent" in say(first, recalled)[1]
    code, _, err = say(first, recalled, "--measure", "f1")
    assert code == 2
    assert "no answer of two has F1" in err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--system", "z"], "--system z is in no run; the runs have a, b."),
        (["--system", "a"], "fewer than two systems are left"),
        (["--budget", "7"], "--budget 7 is in no run; the runs have 512."),
        (["--categories", "6"], "--categories got 6; allowed are 1, 2, 3, 4, 5."),
        (["--label-set", "corrected"], "no grader in common (one: none)"),
        (["--data", str(SAMPLE)], "used other data than"),
    ],
)
def test_a_mistake_is_one_sentence(folder: Any, say: Any, args: list[str], message: str) -> None:
    code, out, err = say(folder("one", a=right([1]), b=right([2])), *args)
    assert (code, out) == (2, "")
    assert err.startswith("memometer compare: ")
    assert err.count("\n") == 1
    assert message in err


def test_what_has_nothing_in_common_is_refused(folder: Any, say: Any, tmp_path: Path) -> None:
    def graded(**other: str) -> Answer:
        def answer(question: Question) -> dict[str, Any]:
            made = record("", question, "correct")
            return {**made, "verdicts": [{**verdict, **other} for verdict in made["verdicts"]]}

        return answer

    one = folder("one", asked=lambda q: q.index < 4, a=right([1]))
    for name, make, message in [
        ("questions", {"asked": lambda q: q.index >= 4, "a": right([1])}, "one and questions share no question"),
        ("data", {"identity": {"data": "feed"}, "a": right([1])}, "different data (one "),
        ("judge", {"a": graded(judge="k")}, "(one: m/judge (strict, original); judge: k (strict, original))"),
        ("prompt", {"a": graded(prompt_hash="b2")}, "several versions of its prompt (one: a1; prompt: b2)"),
    ]:
        code, out, err = say(one, folder(name, **make))
        assert (code, out) == (2, ""), name
        assert message in err
    assert "a run is named twice" in say(one, one)[2]
    assert "holds no run" in say(one, tmp_path)[2]
    assert "has no answers yet" in say(one, folder("empty"))[2]


def test_a_run_that_never_asked_a_question_leaves_it_missing(folder: Any, say: Any) -> None:
    """A stopped run: what was planned and has no record is counted, and is in no mean."""
    run = folder("run", a=right(range(20)), b=right(range(20)))
    lines = (run / "records.jsonl").read_text().splitlines(keepends=True)
    (run / "records.jsonl").write_text("".join(lines[:-50]))
    (run / "results.json").unlink()
    _, out, _ = say(run)
    assert "caution: run is not finished.\n" in out
    (row,) = [line for line in out.splitlines() if re.match(r"b @512 +\d", line)]
    numbers = row.split("]")[1].split()
    assert int(numbers[3]) + int(numbers[5]) == 121
    assert int(numbers[5]) > 30

"""Answers graded again: verdicts are added and never lost, no answer is asked for, and a ranking is put to the test."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from locomo.dataset import read
from locomo.llm_judge import PROMPTS
from memometer import cli
from memometer.judging.calibration_set import draw
from memometer.judging.graders import Grader
from memometer.judging.judge import Judge
from memometer.judging.judge_sensitivity import conclusion, sensitivity
from memometer.report.summary import flat
from memometer.run.environment import provenance
from memometer.run.folder import RunFolder
from tests import commands
from tests.conftest import ROOT, Reply, Server, completion, failure, shown, truthful
from tests.evaluation import remote

SAMPLE = ROOT / "locomo" / "sample.json"
DATA = read(SAMPLE)
ASKED = [question for question in DATA.questions if question.gold is not None]
NOT_KNOWN = "No information available"
TRUE = truthful(draw(DATA, 60))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDDED_MODELS_DIR", str(tmp_path / "models"))
    monkeypatch.delenv("LOCOMO_WRONG_ANSWERS", raising=False)
    monkeypatch.delenv("LOCOMO_LABEL_CORRECTIONS", raising=False)


def record(system: str, question: Any, answer: str | None, **other: Any) -> dict[str, Any]:
    return {"system": system, "budget_tokens": 64, "question_id": question.id, "option_order": "free", "attempt": 1,
            "answer": answer, "recall": {"turn_ids": [], "ranked": [], "tokens": 5, "counter": "o200k"}, "verdicts": [],
            "calls": 1, "unreported": 0, "prompt_tokens": 50, "completion_tokens": 3, "truncated": False,
            "seconds": 0.1, "model": "openai/reader", "error": "", "speaker_gap": None, "at": 1.0, **other}  # fmt: skip


def make_run(path: Path, **answers: Any) -> Path:
    """A run of systems that each answer by a function of the question."""
    config = {"split": "all", "categories": [1, 2, 3, 4, 5], "num_test": None, "seed": 0, "two_options": False,
              "fail_on_error": 0.02, "folds": False, "model": "openai/reader"}  # fmt: skip
    with RunFolder.create(path, {"config": config, "identity": {"data": DATA.sha256}, **provenance()}) as folder:
        for system, answer in answers.items():
            for question in DATA.questions:
                folder.append(record(system, question, answer(question)))
        folder.write_json("results.json", {"status": "valid", "split": "all", "reader": "openai/reader", "systems": {}})
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two systems: one is right in the first eight of eleven, the other never knows."""
    return make_run(
        tmp_path / "run",
        good=lambda q: q.gold if q in ASKED[:8] else NOT_KNOWN,
        none=lambda q: NOT_KNOWN,
    )


def again(server: Server, *runs: Path, more: tuple[str, ...] = ()) -> int:
    args = [*map(str, runs), "--judge-model", "openai/judge", "--judge-api-base", server.url, "--data", str(SAMPLE)]
    command = ["rescore", *args, "--retries", "0", "--num-threads", "4", "--timeout-seconds", "30", *more]
    try:
        return cli.main(command)
    except SystemExit as error:
        return int(str(error.code))


def verdicts(run: Path) -> list[dict[str, Any]]:
    path = run / "verdicts.jsonl"
    return [json.loads(line)["verdict"] for line in path.read_text().splitlines()] if path.exists() else []


def figures(run: Path, system: str = "good") -> dict[str, Any]:
    return json.loads((run / "results.json").read_text())["systems"][system]["budgets"]["64"]


PLAIN = ("--no-calibration",)
CALIBRATED = ("--max-false-accept", "1")


def test_verdicts_are_added_and_nothing_is_answered_again(
    server: Server, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answer = TRUE
    before = (run / "records.jsonl").read_bytes()
    assert again(server, run, more=CALIBRATED) == 0
    assert (run / "records.jsonl").read_bytes() == before
    given = verdicts(run)
    assert len(given) == 2 * len(ASKED), "only answerable questions have a gold answer"
    assert {(v["judge"], v["prompt"], v["label_set"], v["repeat"]) for v in given} == {
        ("openai/judge", "strict", "original", 0)
    }
    found = figures(run)
    assert (found["judge_n"], found["judge_correct"]) == (11, 8)
    assert found["graders"]["openai/judge (strict, original)"]["score"] == pytest.approx(8 / 11)
    assert "judge_corrected" not in found, "made-up answers correct no judge"
    results = json.loads((run / "results.json").read_text())
    assert results["reader"] == "openai/reader", "what was known of the run is kept"
    assert results["judge_calibrations"][0]["passed"]
    assert "identity" not in results["judge_calibrations"][0]
    table = (run / "table.txt").read_text()
    assert "lexical judge" in table
    assert "openai/judge (strict) was not certified" in table
    asked = len(server.requests)
    assert again(server, run, more=CALIBRATED) == 0
    assert len(server.requests) == asked, "what has a label is not asked for again"
    assert all(line.startswith("SAMPLE") for line in capsys.readouterr().out.splitlines())


def test_a_judge_that_fails_its_certificate_shows_no_score(
    server: Server, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answer = lambda number, body: completion("yes")
    assert again(server, run) == 0
    assert "judge" not in figures(run)
    assert figures(run)["judge_n"] == 11
    said = capsys.readouterr().out
    assert "failed its calibration" in said
    assert "it accepts 100.0 [" in said
    assert not json.loads((run / "results.json").read_text())["judge_calibrations"][0]["passed"]


def test_what_the_run_warned_of_is_still_said(server: Server, run: Path) -> None:
    told = "A budget of 64 tokens holds 60% of the mean conversation (107): above half, little is left to choose."
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps({**manifest, "cautions": [told]}))
    server.answer = TRUE
    assert again(server, run, more=PLAIN) == 0
    assert told in json.loads((run / "results.json").read_text())["warnings"]
    assert told in (run / "report.md").read_text().replace("\\", "")


def test_a_certificate_outlives_a_resume(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOCOMO_PATH", str(SAMPLE))
    assert commands.evaluate(remote(server, "--systems", "recent", "--run-dir", "run")) == 0
    server.answer = lambda number, body: completion("yes")
    assert again(server, tmp_path / "run", more=CALIBRATED) == 0
    graded = (tmp_path / "run" / "results.json").read_text()
    assert commands.evaluate(["--resume", "run"]) == 0
    for name in ("judge_calibrations", "withheld"):
        assert json.loads((tmp_path / "run" / "results.json").read_text())[name] == json.loads(graded)[name]
    assert json.loads(graded)["judge_calibrations"]


def test_a_judge_that_was_not_measured_shows_no_score_until_it_is(server: Server, run: Path) -> None:
    server.answer = TRUE
    assert again(server, run, more=PLAIN) == 0
    assert len(server.requests) == 22
    assert "judge" not in figures(run)
    assert "was not calibrated; run memometer rescore RUN --judge-model openai/judge" in (run / "table.txt").read_text()
    assert again(server, run, more=CALIBRATED) == 0
    assert len(verdicts(run)) == 22
    assert figures(run)["judge"] == pytest.approx(8 / 11)


def test_another_prompt_stands_beside_the_runs_own(server: Server, run: Path) -> None:
    server.answer = TRUE
    again(server, run, more=CALIBRATED)
    own = figures(run)["judge"]
    server.answer = lambda number, body: completion("yes")
    assert again(server, run, more=("--judge", "lenient", "--no-calibration")) == 0
    found = figures(run)
    assert found["judge"] == own, "the run's own judge stays its judge"
    assert found["graders"]["openai/judge (lenient, original)"]["score"] == 1.0
    results = json.loads((run / "results.json").read_text())
    lenient = "openai/judge (lenient, original)"
    assert list(results["withheld"]) == [lenient]
    assert len(verdicts(run)) == 44
    table = (run / "table.txt").read_text()
    assert f"Judge accuracy of {lenient} is withheld: {lenient} was not calibrated" in table
    assert "not comparable with other graders" in table
    assert f"Judge accuracy (J) of {lenient}" not in table
    assert f"judge/{lenient}" in flat(found, ())
    assert f"judge/{lenient}" not in flat(found, results["withheld"]), "what MLflow and data frames are given"


def test_repeats_are_counted_as_one_answer(server: Server, run: Path) -> None:
    server.answer = lambda number, body: completion("yes" if number % 2 else "no")
    assert again(server, run, more=(*PLAIN, "--repeats", "2", "--num-threads", "1")) == 0
    given = [json.loads(line) for line in (run / "verdicts.jsonl").read_text().splitlines()]
    counts = Counter((line["system"], line["question_id"]) for line in given)
    assert set(counts.values()) == {2}
    assert {line["verdict"]["repeat"] for line in given} == {0, 1}
    grading = figures(run)["graders"]["openai/judge (strict, original)"]
    assert (grading["score"], grading["n"]) == (0.5, 11)


def test_what_failed_is_missing_and_asked_for_again(
    server: Server, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answer = lambda number, body: failure(500) if number % 3 == 0 else TRUE(number, body)
    assert again(server, run, more=(*PLAIN, "--num-threads", "1")) == 3
    assert "INVALID: 7 labels" in capsys.readouterr().out
    assert Counter(v["label"] for v in verdicts(run))["missing"] == 7
    asked = len(server.requests)
    server.answer = TRUE
    assert again(server, run, more=PLAIN) == 0
    assert len(server.requests) == asked + 7
    assert figures(run)["graders"]["openai/judge (strict, original)"]["n"] == 11


def test_a_run_is_no_sounder_for_being_graded_again(
    server: Server, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def status(folder: Path) -> str:
        return json.loads((folder / "results.json").read_text())["status"]

    server.answer = lambda number, body: failure(500) if number % 3 == 0 else TRUE(number, body)
    assert again(server, run, more=(*PLAIN, "--num-threads", "1")) == 3
    assert status(run) == "invalid", "its own judge left too much ungraded"
    server.answer = TRUE
    assert again(server, run, more=PLAIN) == 0
    assert status(run) == "valid"

    (run / "results.json").unlink()  # as a kill in the middle of the questions leaves it
    assert again(server, run, more=(*PLAIN, "--judge", "zep")) == 0
    assert status(run) == "unfinished"

    tampered = make_run(tmp_path / "tampered", good=lambda q: q.gold or NOT_KNOWN)
    with RunFolder.reopen(tampered) as folder:
        folder.append(record("good", ASKED[0], ASKED[0].gold, attempt=2))
        folder.write_json("results.json", {"status": "invalid", "systems": {}})
    capsys.readouterr()
    assert again(server, tampered, more=PLAIN) == 0
    assert status(tampered) == "invalid"
    assert ASKED[0].id in capsys.readouterr().out


def test_a_limit_is_a_sample_of_questions_and_gone_on_from(server: Server, run: Path) -> None:
    server.answer = TRUE
    assert again(server, run, more=(*PLAIN, "--limit", "5")) == 0
    assert Counter(Counter(shown(body)[0] for body in server.requests).values()) == {2: 5}, "of each system the same"
    assert again(server, run, more=PLAIN) == 0
    assert len(server.requests) == 22


@pytest.mark.parametrize(("reply", "told"), [(failure(401), "LMAuthError"), (failure(500), "the first 8 calls failed")])
def test_it_stops_where_no_call_can_succeed(
    server: Server, run: Path, capsys: pytest.CaptureFixture[str], reply: Reply, told: str
) -> None:
    server.answer = lambda number, body: reply
    assert again(server, run, more=(*PLAIN, "--num-threads", "2")) == 1
    assert told in capsys.readouterr().out
    assert len(server.requests) < 14
    assert not verdicts(run), "or it would be the run's own judge for ever"
    assert again(server, run) == 1, "nor is the judge certified"
    assert json.loads((run / "results.json").read_text())["status"] == "valid"


def test_ctrl_c_keeps_what_is_there(server: Server, run: Path) -> None:
    def answer(number: int, body: dict[str, Any]) -> Reply:
        if number == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return TRUE(number, body)

    server.answer = answer
    assert again(server, run, more=(*PLAIN, "--num-threads", "1")) == 4
    kept = len(verdicts(run))
    assert 5 <= kept < 10
    assert again(server, run, more=PLAIN) == 0
    assert len(server.requests) == 22, "nothing is graded twice"


def test_answers_are_graded_against_the_corrected_key(server: Server, run: Path, tmp_path: Path) -> None:
    index = DATA.questions.index(ASKED[0])
    errata = tmp_path / "errors.json"
    errata.write_text(json.dumps([{
        "question_id": f"locomo_0_qa{index}", "question": ASKED[0].text, "golden_answer": ASKED[0].gold,
        "category": ASKED[0].category, "error_type": "HALLUCINATION", "correct_answer": "A single jug",
    }]))  # fmt: skip
    server.answer = TRUE
    assert again(server, run, more=(*PLAIN, "--label-set", "corrected", "--label-corrections", str(errata))) == 0
    golds = {shown(body)[0]: shown(body)[1] for body in server.requests}
    assert golds[ASKED[0].text] == "A single jug"
    assert golds[ASKED[1].text] == ASKED[1].gold
    assert {v["label_set"] for v in verdicts(run)} == {"corrected"}
    assert list(figures(run)["graders"]) == ["openai/judge (strict, corrected)"]
    # All right under the corrected key is above the ceiling of the original one, and no cause for alarm.
    corrected = ("--judge", "lenient", "--label-set", "corrected", *CALIBRATED)
    server.answer = lambda number, body: completion("yes")
    other = make_run(tmp_path / "other", good=lambda q: q.gold or NOT_KNOWN)
    assert again(server, other, more=(*corrected, "--label-corrections", str(errata))) == 0
    table = (other / "table.txt").read_text()
    assert "J on questions with a correct label (clean)" in table
    assert "ALARM" not in table
    original = make_run(tmp_path / "original", good=lambda q: q.gold or NOT_KNOWN)
    assert again(server, original, more=(*CALIBRATED, "--label-corrections", str(errata))) == 0
    assert "ALARM: good: 100.00 overall is above the ceiling" in (original / "table.txt").read_text()
    assert again(server, original, more=CALIBRATED) == 0
    assert "--label-corrections" in (original / "table.txt").read_text()


def test_an_imported_run_keeps_its_own_verdicts(server: Server, tmp_path: Path) -> None:
    run = tmp_path / "theirs"
    published = {"judge": "their-judge", "prompt": "published", "prompt_hash": None, "reason": "", "raw": "true",
                 "prompt_tokens": None, "completion_tokens": None, "unreported": None}  # fmt: skip
    config = {
        "split": "all",
        "categories": [1, 2, 3, 4],
        "num_test": None,
        "seed": 0,
        "model": None,
        "folds": False,
        "fail_on_error": 0.02,
    }
    source = {"file": "theirs.json", "licence": "none", "merges": []}
    manifest = {"config": config, "identity": {"data": DATA.sha256}, "published": source, **provenance()}
    with RunFolder.create(run, manifest) as folder:
        for question in ASKED:
            labels = ["correct", "correct", "wrong"]
            given = [{**published, "repeat": n, "label": label} for n, label in enumerate(labels)]
            theirs = record("theirs", question, question.gold, verdicts=given, prompt_tokens=0, completion_tokens=0)
            folder.append({**theirs, "budget_tokens": 10_000_000})
    server.answer = TRUE
    assert again(server, run, more=CALIBRATED) == 0
    found = json.loads((run / "results.json").read_text())["systems"]["theirs"]["budgets"]["10000000"]
    assert found["judge"] == pytest.approx(2 / 3), "the mean of their three"
    ours = found["graders"]["openai/judge (strict, original)"]
    assert ours["score"] == 1.0


# ------------------------------------------------------------ the panel


def test_the_panel_grades_under_every_prompt_and_judges_the_ranking(
    server: Server, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under the strict prompt the one that knows leads; under the lenient one refusing is enough."""

    def answer(number: int, body: dict[str, Any]) -> Reply:
        if body["messages"][0]["content"].endswith(PROMPTS["lenient"].instructions):
            return completion("yes" if shown(body)[2] == NOT_KNOWN else "no")
        return TRUE(number, body)

    server.answer = answer
    assert again(server, run, more=("--judge-sensitivity",)) == 0
    assert len(server.requests) == 22 * len(PROMPTS), "and no certificates"
    said = capsys.readouterr().out
    assert "1 of 1 pairs change places" in said
    assert "SAMPLE  lenient: the answer touches on" in said
    found = json.loads((run / "judge_sensitivity.json").read_text())
    assert found["systems"]["good at 64"]["scores"]["strict"]["mean"] == pytest.approx(8 / 11)
    assert found["systems"]["none at 64"]["range"] == 1.0
    assert {v["prompt"] for v in verdicts(run)} == set(PROMPTS)
    asked = len(server.requests)
    assert again(server, run, more=("--judge-sensitivity",)) == 0
    assert len(server.requests) == asked


def test_several_runs_are_one_sensitivity(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = make_run(tmp_path / "one", a=lambda q: q.gold or NOT_KNOWN)
    two = make_run(tmp_path / "two", a=lambda q: NOT_KNOWN)
    server.answer = TRUE
    assert again(server, one, two, more=("--judge-sensitivity",)) == 0
    said = capsys.readouterr().out
    assert "one: a at 64" in said
    assert "none of 1 pairs changes places" in said


def scores(**systems: dict[str, list[float]]) -> Any:
    """Ten questions in each of four conversations, the same pattern in each but for the last two digits."""
    return {
        name: {
            prompt: {f"c{c}#{i}": value for c in range(4) for i, value in enumerate(values)}
            for prompt, values in of.items()
        }
        for name, of in systems.items()
    }


def test_a_flip_is_told_from_a_significant_one() -> None:
    clear = sensitivity(scores(a={"x": [1, 1, 1, 0], "y": [0, 0, 1, 0]}, b={"x": [0, 0, 1, 0], "y": [1, 1, 1, 0]}))
    (pair,) = clear["pairs"]
    assert (pair["flips"], pair["significantly"], clear["survives"]) == (True, True, False)
    assert pair["differences"]["x"]["mean"] == pytest.approx(0.5)
    assert pair["differences"]["y"]["mean"] == pytest.approx(-0.5)
    assert "1 of 1 pairs change places, 1 of them" in conclusion(clear)

    slight = scores(a={"x": [1, 1, 0], "y": [1, 0, 0]}, b={"x": [1, 0, 0], "y": [1, 0, 0]})
    slight["a"]["y"]["c0#0"] = 0
    (pair,) = sensitivity(slight)["pairs"]
    assert (pair["flips"], pair["significantly"]) == (True, False), "one answer of twelve is nothing"

    steady = sensitivity(scores(a={"x": [1, 1, 1], "y": [1, 1, 0]}, b={"x": [1, 0, 0], "y": [1, 1, 0]}))
    assert steady["survives"]
    assert "1 pairs keep their order" in conclusion(steady)


def test_rounding_flips_no_pair() -> None:
    """Three repeats: the same thirds under one prompt, in another order, and one ahead under the other."""
    for ahead, behind in (("a", "b"), ("b", "a")):
        thirds = {"a": [0, 2 / 3, 1 / 3], "b": [1 / 3, 0, 2 / 3]}
        ranks = {ahead: [1.0] * 3, behind: [0.0] * 3}
        made = {
            name: {
                "x": {f"c0#{i}": value for i, value in enumerate(thirds[name])},
                "y": {f"c0#{i}": value for i, value in enumerate(ranks[name])},
            }
            for name in "ab"
        }
        assert sensitivity(made)["survives"]


def test_a_panel_compares_the_same_answers() -> None:
    some = scores(a={"x": [1, 0], "y": [1, 0]})
    del some["a"]["y"]["c0#0"]
    found = sensitivity(some)
    assert {entry["n"] for entry in found["systems"]["a"]["scores"].values()} == {7}
    assert found["systems"]["a"]["range"] == 0.0
    assert conclusion(found) == "One system: there is no ranking."


# ------------------------------------------------------------ mistakes


def test_two_wordings_of_a_prompt_are_not_mixed(
    server: Server, run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answer = TRUE
    assert again(server, run, more=PLAIN) == 0
    asked = len(server.requests)
    monkeypatch.setattr(Judge, "prompt_hash", "another")
    assert again(server, run, more=PLAIN) == 2
    assert "from another version of the prompt" in capsys.readouterr().err
    assert len(server.requests) == asked


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--judge-sensitivity", "--judge", "lenient"), "--judge-sensitivity grades under every prompt"),
        (("--repeats", "0"), "--repeats: '0'"),
        (("--repeats", "999999999"), "from 1 to 100"),
        (("--limit", "0"), "--limit: '0'"),
        (("--label-set", "corrected"), "label corrections are missing"),
        (("--wrong-answers", "nowhere.json"), "cannot read the wrong answers"),
        (("--num-threads", "0"), "--num-threads: '0'"),
    ],
)
def test_a_mistake_is_one_sentence_and_costs_nothing(
    server: Server, run: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], message: str
) -> None:
    assert again(server, run, more=more) == 2
    assert message in capsys.readouterr().err
    assert not server.requests
    assert not verdicts(run)


def test_a_folder_that_cannot_be_graded_is_refused(
    server: Server, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert again(server, tmp_path / "nowhere") == 2
    assert "holds no run" in capsys.readouterr().err
    assert again(server, run, run) == 2
    assert "named twice" in capsys.readouterr().err
    with RunFolder.reopen(run):
        assert again(server, run) == 2
    assert "in use by another process" in capsys.readouterr().err
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["identity"]["data"] = "other"
    (run / "manifest.json").write_text(json.dumps(manifest))
    assert again(server, run) == 2
    assert "used other data" in capsys.readouterr().err
    assert not server.requests


def test_recalls_alone_are_not_graded(server: Server, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [json.loads(line) | {"answer": None} for line in (run / "records.jsonl").read_text().splitlines()]
    (run / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert again(server, run) == 2
    assert "only recalls" in capsys.readouterr().err
    assert not server.requests


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("results.json", "[1]", "results.json is damaged"),
        ("records.jsonl", "[1]\n", "not a record (it has no fields)"),
        ("records.jsonl", '{"system": "good"}\n', "not a record (it has no budget_tokens)"),
        ("verdicts.jsonl", '{"a": 1}\n', "not a record (it has no system)"),
        ("verdicts.jsonl",
        '{"system": "x", "budget_tokens": 64, "question_id": "q", "option_order": "free", "verdict": 5}\n',
         "it has no verdict"),
        ("manifest.json", '{"config": {"optimizer": "simba"}, "identity": {}}', "lacks split"),
    ],
)  # fmt: skip
def test_what_is_damaged_or_of_another_kind_is_refused_in_a_sentence(
    server: Server, run: Path, capsys: pytest.CaptureFixture[str], file: str, content: str, said: str
) -> None:
    (run / file).write_text(content)
    assert again(server, run) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert not server.requests
    if file != "results.json":  # made anew where it is no use
        assert cli.main(["view", str(run), "--export", str(run / "page")]) == 2
        assert "memometer view: " in capsys.readouterr().err


def test_a_grading_is_named_by_judge_prompt_and_key() -> None:
    assert Grader("openai/judge", "strict").name == "openai/judge (strict, original)"

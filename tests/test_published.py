"""Others' answers become runs of ours exactly as they were published, and a file that mixes runs is known."""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locomo.dataset import read as read_data
from locomo.synthetic import simulate
from memometer import cli
from memometer.benchmarks.protocol import Dataset
from memometer.commands import verify
from memometer.harness.import_records import scores
from memometer.harness.import_results import ImportResultsError, read, write
from memometer.harness.runner import resume_run
from memometer.judging.rerun_detection import Subset, log10_chance, merges
from memometer.report.aggregate import aggregate as figures
from memometer.run.folder import RunFolder, RunFolderError, key
from tests.conftest import sampled

Entries = list[dict[str, Any]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Two simulated conversations, the first with one question asked twice, of opposite truth, as LOCOMO has some."""
    made = [simulate.as_json(simulate.conversation(5, number), seed=5) for number in (1, 2)]
    answerable = [item for item in made[0]["qa"] if "answer" in item]
    answerable[1]["question"] = answerable[0]["question"]
    assert answerable[0]["answer"] != answerable[1]["answer"]
    path = tmp_path_factory.mktemp("data") / "simulated.json"
    path.write_text(json.dumps(made))
    return read_data(path)


def asked(data: Dataset) -> list[tuple[int, Any]]:
    return [(c, q) for c, talk in enumerate(data.conversations) for q in talk.questions if q.gold is not None]


def audit_file(data: Dataset, verdicts: Callable[[int], Sequence[bool]]) -> dict[str, Any]:
    """In the form of dial481/locomo-audit."""
    entries: dict[str, Entries] = {}
    for i, (c, q) in enumerate(asked(data)):
        entries.setdefault(f"locomo_exp_user_{c}", []).append(
            {"question_id": f"locomo_{c}_qa{q.index}", "question": q.text, "golden_answer": q.gold,
             "generated_answer": f"It is {q.gold}.", "category": str(q.category),
             "llm_judgments": {f"judgment_{n}": given for n, given in enumerate(verdicts(i), start=1)}}
        )  # fmt: skip
    return {"metadata": {"answer_model": "reader-1", "judge_model": "judge-1"}, "detailed_results": entries}


def mem0_file(data: Dataset, labels: Callable[[int], str], cutoffs: Sequence[str] = ("top_50",)) -> dict[str, Any]:
    """In the form of mem0ai/memory-benchmarks."""
    entries = [
        {"question_id": f"conv{c}_q{q.index}", "conversation_idx": c, "category": q.category, "question": q.text,
         "ground_truth_answer": q.gold, "search_latency_ms": 10.0 + i, "total_memories_retrieved": 50,
         "cutoff_results": {cutoff: {"judgment": labels(i), "generated_answer": f"{q.gold} {cutoff}"}
                            for cutoff in cutoffs}}
        for i, (c, q) in enumerate(asked(data))
    ]  # fmt: skip
    return {"metadata": {"answerer_model": "reader-2", "judge_model": "judge-2"}, "evaluations": entries}


def save(content: Any, path: Path) -> Path:
    path.write_text(json.dumps(content))
    return path


def thirds(i: int) -> list[bool]:
    return [i % 5 != 0, i % 7 != 0, i % 2 == 0]


def test_a_file_becomes_a_run_with_every_verdict(data: Dataset, tmp_path: Path) -> None:
    path = save(audit_file(data, thirds), tmp_path / "theirs.json")
    status, table = write(read(path, data=data), tmp_path / "run", data=data)
    assert status == "valid"
    with RunFolder.reopen(tmp_path / "run") as folder:
        records, manifest = folder.records(), folder.manifest
    assert [record["question_id"] for record in records] == [q.id for _, q in asked(data)]
    for i, (record, (_, question)) in enumerate(zip(records, asked(data), strict=True)):
        assert record["answer"] == f"It is {question.gold}."
        assert record["model"] == "reader-1"
        assert [v["label"] for v in record["verdicts"]] == ["correct" if ok else "wrong" for ok in thirds(i)]
        assert [v["repeat"] for v in record["verdicts"]] == [0, 1, 2]
        assert {(v["judge"], v["label_set"], v["prompt"]) for v in record["verdicts"]} == {
            ("judge-1", "original", "published")
        }
        unknown = [record[n] for n in ("prompt_tokens", "completion_tokens", "calls", "seconds", "truncated")]
        assert [*unknown, record["recall"]["tokens"], record["recall"]["turn_ids"]] == [None] * 7
    assert manifest["published"]["file"] == "theirs.json"
    assert manifest["published"]["format"] == "locomo-audit"
    assert len(manifest["published"]["sha256"]) == 64
    assert "imported" in manifest["published"]["note"]
    assert manifest["identity"]["data"] == data.sha256
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    entry = results["systems"]["theirs"]["budgets"]["10000000"]
    assert entry["evidence_recall"] is None, "what was shown is not known, which is no recall of zero"
    assert entry["mean_tokens"] is entry["max_tokens"] is entry["mean_total_tokens"] is entry["judge_tokens"] is None
    assert entry["f1"] > 0.3
    assert entry["questions"] == len(records)
    found = results["published"]["scores"]["theirs"]
    assert found["mean"] == pytest.approx(mean(mean(thirds(i)) for i in range(len(records))))
    assert found["majority"] == pytest.approx(mean(sum(thirds(i)) >= 2 for i in range(len(records))))
    assert str(tmp_path / "run" / "table.txt") in table
    assert all(line.startswith("SIMULATED") for line in (tmp_path / "run" / "table.txt").read_text().splitlines())


def test_labels_are_exact_and_what_failed_is_missing(data: Dataset, tmp_path: Path) -> None:
    odd = {0: "correct", 1: "PARTIALLY CORRECT", 2: "ERROR", 3: "ERROR", 4: "WRONG"}
    content = mem0_file(data, lambda i: odd.get(i, "CORRECT"))
    for i, answer in ((3, ""), (4, " "), (5, None)):
        content["evaluations"][i]["cutoff_results"]["top_50"]["generated_answer"] = answer
    records = read(save(content, tmp_path / "a.json"), data=data).records
    assert [[v["label"] for v in record["verdicts"]] for record in records[:7]] == [
        ["missing"], ["missing"], ["missing"], [], ["wrong"], [], ["correct"],
    ]  # fmt: skip
    assert records[1]["verdicts"][0]["raw"] == "PARTIALLY CORRECT"
    assert [bool(record["error"]) for record in records[:7]] == [False, False, False, True, False, True, False]
    assert records[4]["answer"] == " ", "an empty answer that was judged was given"
    assert len(scores(records)) == len(records) - 5
    planned = [key(record) for record in records]
    entry = figures(records, data.questions, planned)["a"]["budgets"]["10000000"]
    assert entry["missing"] == 5


def test_each_cutoff_is_a_system(data: Dataset, tmp_path: Path) -> None:
    path = save(mem0_file(data, lambda i: "CORRECT", ("top_10", "top_50")), tmp_path / "m.json")
    found = read(path, data=data)
    assert {record["system"] for record in found.records} == {"m top_10", "m top_50"}
    assert len(found.records) == 2 * len(asked(data))
    assert found.records[0]["answer"].endswith("top_10")
    content = json.loads(path.read_text())
    del content["evaluations"][3]["cutoff_results"]["top_10"]
    with pytest.raises(ImportResultsError, match=r"other cutoff_results .* top_10, top_50"):
        read(save(content, path), data=data)


def test_category_5_is_left_out_and_counted(data: Dataset, tmp_path: Path) -> None:
    content = mem0_file(data, lambda i: "CORRECT")
    trap = next(q for q in data.conversations[0].questions if q.gold is None)
    content["evaluations"].append(
        {**content["evaluations"][0], "question_id": f"conv0_q{trap.index}", "question": trap.text}
    )
    found = read(save(content, tmp_path / "a.json"), data=data)
    assert found.left_out == 1
    assert len(found.records) == len(asked(data))


def swap_twins(entries: Entries) -> None:
    """The two questions with one text, each under the other's number."""
    ids = entries[0]["question_id"], entries[1]["question_id"]
    entries[0]["question_id"], entries[1]["question_id"] = ids[1], ids[0]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda e: e.pop(3), r"1 missing \(simulated-5-1#\d+\)"),
        (lambda e: [e.pop(3) for _ in range(9)], r"9 missing \(simulated-5-1#.* and 4 more\)"),
        (lambda e: e.append(dict(e[3])), r"1 duplicate \(simulated-5-1#\d+\)"),
        (lambda e: e[3].update(question_id="conv7_q1"), r"1 missing .*1 unknown \(conv7_q1\)"),
        (lambda e: e.append({**e[3], "question_id": "conv0_q99999"}), r"1 unknown \(conv0_q99999\)"),
        (lambda e: e.append({**e[3], "question_id": "q3"}), r"1 unknown \(q3\)"),
        (lambda e: e[3].update(question="Who knows?"), "1 with another text"),
        (lambda e: e[3].update(ground_truth_answer="Nobody"), "1 with another gold"),
        (swap_twins, "2 with another gold"),
        (lambda e: e[3].pop("question"), "1 with another text"),
    ],
)
def test_a_file_with_other_questions_is_refused(
    data: Dataset, tmp_path: Path, spoil: Callable[[Entries], None], message: str
) -> None:
    content = mem0_file(data, lambda i: "CORRECT")
    spoil(content["evaluations"])
    with pytest.raises(ImportResultsError, match=message) as raised:
        read(save(content, tmp_path / "a.json"), data=data)
    assert "\n" not in str(raised.value)


def test_a_retyped_text_is_the_same(data: Dataset, tmp_path: Path) -> None:
    content = mem0_file(data, lambda i: "CORRECT")
    for entry in content["evaluations"]:
        entry["question"] = f" \u200b{entry['question'].upper()}\u00a0"
    read(save(content, tmp_path / "a.json"), data=data)


# ------------------------------------------------------------ merged files


def draws(seed: int, n: int, accuracy: float) -> list[bool]:
    rng = random.Random(seed)
    return [rng.random() < accuracy for _ in range(n)]


def rerun_failures(right: list[bool], *, rescue: float = 0.3) -> tuple[list[bool], list[int]]:
    """Ask the failures again: what comes of it, and which were asked."""
    again = [i for i, ok in enumerate(right) if not ok]
    rescued = dict(zip(again, draws(99, len(again), rescue), strict=True))
    return [rescued.get(i, ok) for i, ok in enumerate(right)], again


def flags(content: Any, data: Dataset, tmp_path: Path) -> list[bool]:
    return [merge.flagged for _, merge in read(save(content, tmp_path / "m.json"), data=data).merges]


def label(right: Sequence[bool]) -> Callable[[int], str]:
    return lambda i: "CORRECT" if right[i] else "WRONG"


@pytest.mark.parametrize("mark", ["text", "list", "field", "order"])
@pytest.mark.parametrize("rescue", [0.05, 0.5])
def test_failures_asked_again_are_flagged_by_any_mark(data: Dataset, tmp_path: Path, mark: str, rescue: float) -> None:
    right, again = rerun_failures(draws(1, len(asked(data)), 0.8), rescue=rescue)
    content = mem0_file(data, label(right))
    entries = content["evaluations"]
    ids = [entries[i]["question_id"] for i in again]
    if mark == "text":
        content["metadata"]["merged_from_questions"] = ",".join(ids)
    elif mark == "list":
        content["rerun"] = {"ids": ids}
    elif mark == "field":
        for i in again:
            entries[i]["attempt"] = 2
    else:
        content["evaluations"] = [e for i, e in enumerate(entries) if i not in again] + [entries[i] for i in again]
    assert flags(content, data, tmp_path) == [True]


def test_the_flag_is_printed_and_kept(data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    right, again = rerun_failures(draws(1, len(asked(data)), 0.8))
    content = audit_file(data, lambda i: [right[i]] * 3)
    ids = [entry["question_id"] for entries in content["detailed_results"].values() for entry in entries]
    content["metadata"]["retried"] = [ids[i] for i in again]
    path = save(content, tmp_path / "m.json")
    assert cli.main(["import-results", str(path), "--run-dir", str(tmp_path / "runs"), "--data", str(data.path)]) == 3
    assert "m: MERGED: failures were selectively re-run" in capsys.readouterr().out
    for name in ("manifest.json", "results.json"):
        kept = json.loads((tmp_path / "runs" / "m" / name).read_text())["published"]["merges"]
        assert [(merge["flagged"], merge["asked_again"], merge["system"]) for merge in kept] == [
            (True, len(again), "m")
        ]
        assert kept[0]["said"].startswith("MERGED")
    assert json.loads((tmp_path / "runs" / "m" / "results.json").read_text())["status"] == "invalid"
    table = (tmp_path / "runs" / "m" / "table.txt").read_text()
    assert "MERGED" in table
    assert "INVALID" in table


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("accuracy", [0.3, 0.8, 0.97])
def test_an_honest_file_is_not_flagged(data: Dataset, tmp_path: Path, seed: int, accuracy: float) -> None:
    right = draws(seed, len(asked(data)), accuracy)
    content = mem0_file(data, label(right))
    assert flags(content, data, tmp_path) == []
    entries, rng = content["evaluations"], random.Random(seed)
    ids = [entry["question_id"] for entry in entries]
    failed = [id for id, ok in zip(ids, right, strict=True) if not ok]

    lists_failures = copy.deepcopy(content)
    lists_failures["metadata"]["incorrect"] = failed
    assert flags(lists_failures, data, tmp_path) == [], "a list of what went wrong is no second run"

    by_verdict = copy.deepcopy(content)
    by_verdict["evaluations"].sort(key=lambda e: e["cutoff_results"]["top_50"]["judgment"])
    assert flags(by_verdict, data, tmp_path) == []

    by_score = copy.deepcopy(content)  # right answers first, by a score that is not the verdict
    by_score["evaluations"].sort(
        key=lambda e: (rng.random() > 0.5) if e in by_score["evaluations"][:1] else rng.random()
    )
    assert flags(by_score, data, tmp_path) == []

    with_scores = copy.deepcopy(content)
    for entry, ok in zip(with_scores["evaluations"], right, strict=True):
        entry["exact_match"] = ok and rng.random() < 0.5
        entry["error"] = None if ok else "wrong"
    assert flags(with_scores, data, tmp_path) == []

    lost = copy.deepcopy(content)  # lost to a crash and asked again: any tenth, then one conversation
    lost["metadata"]["rerun"] = rng.sample(ids, len(ids) // 10)
    assert flags(lost, data, tmp_path) == [False], "said, not flagged"
    lost["metadata"]["rerun"] = [id for id in ids if id.startswith("conv1")]
    assert flags(lost, data, tmp_path) == [False]


@given(st.integers(1, 400), st.data())
@sampled(60)
def test_the_probability_is_the_hypergeometric_one(everything: int, draw: st.DataObject) -> None:
    from scipy.stats import hypergeom

    drawn = draw.draw(st.integers(0, everything))
    marked = draw.draw(st.integers(0, everything))
    least = draw.draw(st.integers(0, min(drawn, marked)))
    expected = float(hypergeom.sf(least - 1, everything, marked, drawn))
    found = log10_chance(everything, drawn, marked, least)
    assert 10**found == pytest.approx(expected, rel=1e-9, abs=1e-300)


def test_the_argument_holds_for_files_of_honest_runs() -> None:
    """Of subsets drawn without a look at the outcome, fewer than one in a million would be flagged: here none."""
    for seed in range(300):
        right = draws(seed, 400, 0.9)
        subset = Subset("drawn", frozenset(random.Random(seed).sample(range(400), 200)), declared=True)
        assert not any(merge.flagged for merge in merges(right, [subset]))
    right, again = rerun_failures(draws(7, 400, 0.9))
    (merge,) = merges(right, [Subset("listed", frozenset(again), declared=True)])
    assert merge.flagged
    wrong = right.count(False)
    exact = math.comb(400 - wrong, len(again) - wrong) / math.comb(400, len(again))
    assert merge.log10_chance == pytest.approx(math.log10(exact), abs=0.051)
    assert f"{sum(right[i] for i in again)} of {len(again)} re-run answers are correct" in str(merge)


def test_what_their_judge_passed_over_is_missing_and_too_much_of_it_invalid(data: Dataset, tmp_path: Path) -> None:
    content = audit_file(data, lambda i: [] if i % 10 == 0 else [True])
    found = read(save(content, tmp_path / "a.json"), data=data)
    assert len(scores(found.records)) == len(asked(data)) - len(range(0, len(asked(data)), 10))
    status, table = write(found, tmp_path / "run", data=data)
    assert status == "invalid"
    assert "INVALID" in table


def test_no_mark_is_read_where_there_are_no_verdicts(data: Dataset, tmp_path: Path) -> None:
    content = audit_file(data, lambda i: [])
    content["metadata"]["rerun"] = ["locomo_0_qa0"]
    found = read(save(content, tmp_path / "a.json"), data=data)
    assert found.merges == ()
    status, table = write(found, tmp_path / "run", data=data)
    assert status == "valid"
    assert "the file has no verdicts." in table


# ------------------------------------------------------------ the command


def test_one_command_imports_many_and_refuses_all_or_none(
    data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = save(audit_file(data, thirds), tmp_path / "a.json")
    other = save(mem0_file(data, lambda i: "WRONG" if i % 3 else "CORRECT"), tmp_path / "b.json")
    broken = mem0_file(data, lambda i: "CORRECT")
    broken["evaluations"].pop()
    bad, prose = save(broken, tmp_path / "c.json"), save([{"question": "?"}], tmp_path / "d.json")
    (tmp_path / "e.json").write_text("no json")
    (tmp_path / "f.json").write_text("[" * 99_999)
    runs = str(tmp_path / "runs")
    flags = ["--run-dir", runs, "--data", str(data.path)]
    for refused, message in [
        ([bad], "1 missing"),
        ([prose], "--format"),
        ([tmp_path / "e.json"], "is not JSON"),
        ([tmp_path / "f.json"], "is not JSON"),
        ([tmp_path / "nowhere.json"], "cannot be read"),
        ([good], "same name"),
    ]:
        assert cli.main(["import-results", str(good), *map(str, refused), *flags]) == 2
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1
    assert cli.main(["import-results", str(good), "--format", "mem0", *flags]) == 2
    assert not (tmp_path / "runs").exists(), "nothing is written where anything is refused"
    assert cli.main(["import-results", str(good), str(other), *flags]) == 0
    out = capsys.readouterr().out
    assert all(line.startswith("SIMULATED") for line in out.splitlines())
    assert f"Written to {runs}/a" in out
    assert cli.main(["import-results", str(good), *flags]) == 2
    assert f"{runs}/a is not empty" in capsys.readouterr().err
    before = Path(runs, "a", "results.json").read_bytes()
    Path(runs, "a", "results.json").unlink()  # as a kill leaves it
    assert cli.main(["import-results", str(other), "--run-dir", runs, "--data", str(data.path)]) == 2
    assert cli.main(["import-results", str(good), *flags]) == 0, "of the same file"
    assert json.loads(Path(runs, "a", "results.json").read_bytes())["systems"] == json.loads(before)["systems"]
    assert verify.main([f"{runs}/a", f"{runs}/b"]) == 0
    with pytest.raises(RunFolderError, match="a holds imported results"):
        resume_run(tmp_path / "runs" / "a")


def test_names_given_stand_where_the_file_has_none(data: Dataset, tmp_path: Path) -> None:
    content = audit_file(data, thirds)
    content["metadata"] = {"answer_model": "reader-1"}
    found = read(save(content, tmp_path / "a.json"), data=data, model="x", judge="judge-9")
    assert (found.model, found.judge) == ("reader-1", "judge-9")
    assert found.records[0]["verdicts"][0]["judge"] == "judge-9"
    assert read(tmp_path / "a.json", data=data).records[0]["verdicts"][0]["judge"] == "unknown"

"""`memometer label`: the draw, the file of labels, and the accuracy that labels give."""

from __future__ import annotations

import io
import json
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from locomo.dataset import SAMPLE, SIMULATED, read
from memometer import cli
from memometer.judging import human_labels
from memometer.judging.label_session import LabelSession
from memometer.report.label_server import LabelServer
from memometer.run.folder import RunFolder, read_records
from tests.test_aggregate import record


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    raw = json.loads(SAMPLE.read_bytes())[0]
    path = tmp_path_factory.mktemp("data") / "simulated.json"
    path.write_text(json.dumps([{**raw, "sample_id": f"simulated-{i}", SIMULATED: {"seed": 1}} for i in range(6)]))
    return path


@pytest.fixture
def run(tmp_path: Path, data: Path) -> Path:
    """A run of one system whose judge accepts every other answer; no answer equals its gold."""
    dataset = read(data)
    questions = [question for question in dataset.questions if question.answerable]
    manifest = {
        "config": {"data": str(data), "split": "all", "categories": None, "num_test": None, "seed": 0,
                   "fail_on_error": 0.02, "model": "m/reader", "max_answer_tokens": 64},
        "identity": {"data": dataset.sha256, "reader": "m/reader", "systems": "code1"},
        "questions": [question.id for question in questions],
        "git": "abc", "packages": {}, "python": "3.11", "created_at": "2024-01-01T00:00:00+00:00",
    }  # fmt: skip
    with RunFolder.create(tmp_path / "run", manifest) as folder:
        for question in questions:
            folder.append(record("recent", question, "correct" if question.index % 2 else "wrong"))
    return tmp_path / "run"


def label(run: Path, keys: str, monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{key}\n" for key in keys)))
    return cli.main(["label", str(run), *options])


def test_a_prefix_of_the_order_is_balanced_over_verdicts(run: Path, data: Path) -> None:
    drawn = human_labels.draws(read_records(run), read(data))
    counts = Counter(draw.stratum[2] for draw in drawn[:8])
    assert abs(counts[True] - counts[False]) <= 1
    assert len(drawn) == len({draw.question.id for draw in drawn})
    assert drawn != human_labels.draws(read_records(run), read(data), seed=1)


def test_labels_of_every_answer_are_the_accuracy(
    run: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    n = len(human_labels.draws(read_records(run), read(data)))
    assert label(run, "c" * n, monkeypatch, "--sample", str(n), "--labeller", "Ada") == 0
    (found,) = json.loads((run / "results.json").read_text())["human_labels"]["systems"]
    assert (found["accuracy"]["mean"], found["labels"]) == (1.0, n)
    assert found["judge"]["mean"] < 0.9
    assert "Accuracy from human labels" in (run / "table.txt").read_text()
    assert "Ada" in (run / "labels.jsonl").read_text()


def test_labelling_stops_goes_back_and_continues(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert label(run, "cxbwq", monkeypatch, "--labeller", "Ada") == 0
    assert label(run, "u", monkeypatch, "--labeller", "Ada") == 0  # the input ends after one label
    lines = [json.loads(line) for line in (run / "labels.jsonl").read_text().splitlines()]
    assert [line["label"] for line in lines] == ["correct", "wrong", "unclear"]
    assert lines[0]["question_id"] == lines[1]["question_id"] != lines[2]["question_id"]
    (mine,) = human_labels.by_labeller(lines).values()
    assert sorted(mine.values()) == ["unclear", "wrong"]
    shown = capsys.readouterr().out
    assert "Gold:" in shown
    assert "1 of" in shown


def test_two_people_agree_or_not(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    label(run, "ccww", monkeypatch, "--labeller", "Ada", "--sample", "4")
    label(run, "cwww", monkeypatch, "--labeller", "Ben", "--sample", "4")
    (pair,) = json.loads((run / "results.json").read_text())["human_labels"]["agreement"]
    assert (pair["n"], pair["kappa"]) == (4, pytest.approx(0.5))


@pytest.mark.parametrize(
    ("options", "fact"),
    [(["--system", "absent"], "no such answers"), (["--seed", "3"], "--seed 0"), (["--sample", "0"], "--sample")],
)
def test_options_that_do_not_fit_are_refused(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str], fact: str
) -> None:
    label(run, "c", monkeypatch, "--sample", "1")
    try:
        code = label(run, "c", monkeypatch, *options)
    except SystemExit as stop:  # argparse
        code = int(stop.code or 0)
    assert code == 2
    assert fact in capsys.readouterr().err


def test_a_missing_verdict_is_not_a_wrong_answer(run: Path, data: Path) -> None:
    records = read_records(run)
    lines = [
        human_labels.label_line(draw.record, "correct", labeller="Ada", at="", seed=0)
        for draw in human_labels.draws(records, read(data))[:10]
    ]
    (before,) = human_labels.accuracies(records, lines, read(data))
    accepted = [one for one in records if one["verdicts"] and one["verdicts"][0]["label"] == "correct"]
    rejected = [one for one in records if one["verdicts"] and one["verdicts"][0]["label"] == "wrong"]
    for one in rejected:
        one["verdicts"][0]["label"] = "missing"
    (after,) = human_labels.accuracies(records, lines, read(data))
    assert before["judge"]["mean"] < 1.0
    assert (after["judge"]["mean"], after["judge"]["n"]) == (1.0, len({one["question_id"] for one in accepted}))


def test_labels_do_not_change_the_answers(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (run / "records.jsonl").read_bytes()
    label(run, "cwu", monkeypatch)
    assert (run / "records.jsonl").read_bytes() == before


@pytest.fixture
def page(run: Path, data: Path) -> Iterator[LabelServer]:
    with RunFolder.reopen(run) as folder:
        dataset = read(data)
        drawn = human_labels.draws(folder.records(), dataset)[:5]
        server = LabelServer(LabelSession(folder, dataset, drawn, "Ada", 0), 0)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()
        server.server_close()


def test_the_page_labels_one_answer_at_a_time(page: LabelServer, run: Path) -> None:
    base = page.url.partition("/#")[0]
    with httpx.Client(base_url=base, headers={"X-Token": page.token}) as client:
        assert "Label answers" in client.get("/").text
        item = client.post("/item", json={}).json()
        assert (item["position"], item["labelled"], item["total"], item["label"]) == (0, 0, 5, None)
        assert item["gold"]
        assert "verdict" not in item
        item = client.post("/label", json={"position": 0, "label": "correct"}).json()
        assert (item["position"], item["labelled"]) == (1, 1)
        back = client.post("/item", json={"before": 1}).json()
        assert (back["position"], back["label"]) == (0, "correct")
        client.post("/label", json={"position": 0, "label": "wrong"})
        for position in range(1, 5):
            item = client.post("/label", json={"position": position, "label": "unclear"}).json()
        assert (item["position"], item["labelled"]) == (None, 5)
        lines = [json.loads(line) for line in (run / "labels.jsonl").read_text().splitlines()]
        assert [line["label"] for line in lines] == ["correct", "wrong", *["unclear"] * 4]
        assert {line["labeller"] for line in lines} == {"Ada"}
        assert client.post("/stop", json={}).json() == {"stopped": True}


@pytest.mark.parametrize(
    ("path", "headers", "body", "status"),
    [
        ("/item", {"X-Token": "guess"}, "{}", 403),
        ("/item", {"Host": "evil.example"}, "{}", 403),
        ("/label", {}, '{"position": 5, "label": "correct"}', 400),
        ("/label", {}, '{"position": true, "label": "correct"}', 400),
        ("/label", {}, '{"position": 0, "label": "right"}', 400),
        ("/label", {}, '{"label": "correct"}', 400),
        ("/label", {}, "[]", 400),
        ("/label", {}, "not json", 400),
        ("/labels", {}, "{}", 400),
    ],
)
def test_the_page_takes_only_labels_from_the_person(
    page: LabelServer, run: Path, path: str, headers: dict[str, str], body: str, status: int
) -> None:
    base = page.url.partition("/#")[0]
    reply = httpx.post(base + path, content=body, headers={"X-Token": page.token, **headers})
    assert reply.status_code == status
    assert reply.json()["error"]
    assert not (run / "labels.jsonl").exists()

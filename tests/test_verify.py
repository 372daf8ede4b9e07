"""`memometer verify`: every change of a run by hand is found, and honest runs raise nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memometer import cli
from memometer.commands import evaluate
from memometer.harness.make_plan import make_plan
from memometer.harness.runner import Runner, resume_run
from memometer.judging.rerun_detection import of_records
from memometer.run import chain, usage_log
from memometer.run.folder import RunFolder, RunFolderError, changes, read_manifest
from tests.conftest import ROOT, sampled


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two recall-only runs of the sample with their log: run and other."""
    folder = tmp_path_factory.mktemp("verify")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("LOCOMO_PATH", str(ROOT / "locomo" / "sample.json"))
        patch.setenv("XDG_DATA_HOME", str(folder / "home"))
        for name, systems in (("run", "simple,recent"), ("other", "recent")):
            options = evaluate.options_of(["--recall-only", "--systems", systems, "--budgets", "64", "--no-mlflow"])
            Runner(make_plan(options)).start(Path(name))
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished run with its log."""
    shutil.copytree(finished, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.setenv("LOCOMO_PATH", str(ROOT / "locomo" / "sample.json"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "copy" / "home"))
    return Path("run")


def edit(path: Path, change: Callable[[list[dict[str, Any]]], object]) -> None:
    """Change the lines of a file."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    change(lines)
    path.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))


def rechain(path: Path) -> None:
    """Compute the digests of an edited file again, as a forger would."""
    head = chain.beginning(read_manifest(path.parent))
    lines = []
    for line in path.read_text().splitlines():
        line = json.dumps({**json.loads(line), chain.FIELD: head.digest}, separators=(",", ":"))
        lines.append(line)
        head = head.after(line.encode())
    path.write_text("".join(f"{line}\n" for line in lines))


def test_an_honest_run_is_attested_and_resumes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", "run", "other"]) == 0
    assert capsys.readouterr().out.count("attested by") == 2
    before = (run / "records.jsonl").read_bytes()
    assert resume_run(run) == "valid"
    assert (run / "records.jsonl").read_bytes() == before, "a finished run asks nothing"
    assert cli.main(["verify", "run"]) == 0


def test_without_the_log_a_run_is_unattested(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree("home")
    assert cli.main(["verify", "run"]) == 0
    assert "unattested" in capsys.readouterr().out


CHEATS: dict[str, Callable[[Path], object]] = {
    "deleted line": lambda run: edit(run / "records.jsonl", lambda lines: lines.pop(3)),
    "deleted end": lambda run: edit(run / "records.jsonl", lambda lines: lines.pop()),
    "deleted line, digests computed again": lambda run: (
        edit(run / "records.jsonl", lambda lines: lines.pop(3)),
        rechain(run / "records.jsonl"),
    ),
    "edited recall": lambda run: edit(
        run / "records.jsonl", lambda lines: lines[2]["recall"].update(turn_ids=["D1:1"])
    ),
    "edited recall, digests computed again": lambda run: (
        edit(run / "records.jsonl", lambda lines: lines[2]["recall"].update(turn_ids=["D1:1"])),
        rechain(run / "records.jsonl"),
    ),
    "two runs merged": lambda run: (run / "records.jsonl").write_text(
        (run / "records.jsonl").read_text() + Path("other/records.jsonl").read_text()
    ),
    "deleted file": lambda run: (run / "ingest.jsonl").unlink(),
}


@pytest.mark.parametrize("cheat", CHEATS)
def test_changed_records_are_found_and_not_resumed(run: Path, cheat: str, capsys: pytest.CaptureFixture[str]) -> None:
    CHEATS[cheat](run)
    assert cli.main(["verify", "run"]) == 3
    assert "CHANGED" in capsys.readouterr().out
    with pytest.raises(RunFolderError, match="cannot be resumed"):
        resume_run(run)
    assert cli.main(["compare", "run"]) == 0
    assert "ALARM" in capsys.readouterr().out


def test_dropped_questions_and_edited_results_are_found(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads((run / "results.json").read_text())
    content["systems"]["recent"]["budgets"]["64"]["all_questions"]["evidence_recall"] = 0.99
    (run / "results.json").write_text(json.dumps(content))
    assert cli.main(["verify", "run"]) == 3
    assert "evidence_recall" in capsys.readouterr().out
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps({**manifest, "questions": manifest["questions"][1:]}))
    assert cli.main(["verify", "run"]) == 3
    assert "records.jsonl" in capsys.readouterr().out


def test_lines_of_earlier_versions_have_no_digest(run: Path) -> None:
    edit(run / "records.jsonl", lambda lines: [line.pop(chain.FIELD) for line in lines])
    shutil.rmtree("home")
    found = chain.read(run / "records.jsonl", read_manifest(run))
    assert found.broken_at is None
    assert found.unchained == found.head.lines
    edit(run / "records.jsonl", lambda lines: lines[-1].update({chain.FIELD: "0" * 32}))
    assert chain.read(run / "records.jsonl", read_manifest(run)).broken_at == found.head.lines


@sampled(20)
@given(st.integers(0, 20), st.integers(0, 20))
def test_any_deletion_or_swap_of_lines_breaks_the_chain(first: int, second: int) -> None:
    head = chain.beginning({"created_at": "now"})
    lines = []
    for n in range(21):
        lines.append(json.dumps({"n": n, chain.FIELD: head.digest}).encode())
        head = head.after(lines[-1])
    changed = list(lines)
    changed[first], changed[second] = changed[second], changed[first]
    if first == second:
        del changed[first]
    path = usage_log.folder() / "chain-test.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(line + b"\n" for line in changed))
    found = chain.read(path, {"created_at": "now"})
    anchored = {path.name: {"lines": 21, "digest": head.digest}}
    assert chain.problems([found], [anchored])


def test_edited_results_are_named_by_every_command_that_reads_the_run(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads((run / "results.json").read_text())
    content["systems"]["recent"]["budgets"]["64"]["evidence_recall"] = 0.99
    (run / "results.json").write_text(json.dumps(content))
    for words in (["verify", "run"], ["compare", "run"]):
        cli.main(words)
        assert "results.json was changed" in capsys.readouterr().out
    assert cli.main(["view", "run", "--export", "page"]) == 0
    assert "results.json was changed" in Path("page/report.md").read_text()
    with pytest.raises(RunFolderError, match="cannot be resumed"):
        resume_run(run)


@pytest.mark.parametrize("name", ["calibrations", "probes", "labels"])
def test_calibrations_probes_and_labels_are_in_the_chain(run: Path, name: str) -> None:
    line = {"system": "recent", "budget_tokens": 64, "question_id": "sample-1#0", "option_order": "free",
            "label": "wrong", "labeller": "Ada", "passed": False}  # fmt: skip
    with RunFolder.reopen(run) as folder:
        folder.append_to(f"{name}.jsonl", line)
        folder.append_to(f"{name}.jsonl", line)
    assert changes(run) == []
    edit(run / f"{name}.jsonl", lambda lines: lines[1].update(label="correct", passed=True))
    assert any(name in change for change in changes(run)), "the last line is anchored"
    edit(run / f"{name}.jsonl", lambda lines: lines[0].update(label="correct", passed=True))
    assert any(f"{name}.jsonl was changed by hand: line 2" in change for change in changes(run))


def judged(correct: list[bool], **fields: list[Any]) -> list[dict[str, Any]]:
    grade = {"judge": "m", "prompt": "strict"}
    return [
        {"system": "a", "budget_tokens": 64, "question_id": f"c#{n}", "option_order": "free", "answer": "x",
         "error": "", "attempt": 1, "at": float(n), "verdicts": [{**grade, "label": "correct" if right else "wrong"}],
         **{name: values[n] for name, values in fields.items()}}
        for n, right in enumerate(correct)
    ]  # fmt: skip


def test_failures_that_were_run_again_and_merged_are_found_in_our_own_runs() -> None:
    honest = [n % 5 != 0 for n in range(200)]
    late = [float(n + (7200 if n >= 180 else 0)) for n in range(200)]
    assert of_records(judged(honest, at=late)) == [], "a run may be resumed after hours"
    assert of_records(judged(honest, attempt=[1 + (n % 9 == 0) for n in range(200)])) == []
    merged = [n < 180 or n % 2 == 0 for n in range(200)]
    (found,) = of_records(judged(merged, at=late))
    assert "MERGED" in found
    assert of_records(judged(merged, attempt=[1 + (n >= 180) for n in range(200)]))
    assert of_records(judged([True] * 200, at=late)) == []

"""The contamination scanner finds held-out text in every kind of file, and nothing in similar text."""

from __future__ import annotations

import gzip
import json
import sqlite3
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from locomo.synthetic import simulate
from memometer import cli
from memometer.benchmarks.protocol import Conversation, Dataset
from memometer.harness import contamination
from memometer.harness.contamination import HeldOut, scan, texts_of, words
from memometer.harness.make_plan import ContaminationError, make_plan
from tests.conftest import ROOT, sampled


@pytest.fixture(scope="module")
def talk() -> Conversation:
    return simulate.conversation(7, 1)


@pytest.fixture(scope="module")
def index(talk: Conversation) -> HeldOut:
    return HeldOut([talk])


@pytest.fixture(scope="module")
def file(talk: Conversation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "simulated.json"
    path.write_text(json.dumps([simulate.as_json(talk, seed=7)]))
    return path


def kinds(found: list[contamination.Leak]) -> set[tuple[str, str]]:
    return {(leak.kind, leak.of) for leak in found}


def long_turn(talk: Conversation) -> Any:
    return next(turn for turn in talk.turns if len(words(turn.text)) > 25)


def test_questions_are_found_in_any_spelling(talk: Conversation, index: HeldOut) -> None:
    for question in talk.questions:
        disguised = "Q: " + question.text.upper().replace(" ", " \u200b ").replace("A", "\uff21") + "\nA: ?"
        assert ("question", question.id) in kinds(scan([("x", disguised)], index))


@given(data=st.data())
@sampled(20)
def test_eleven_consecutive_words_of_a_turn_are_found(talk: Conversation, index: HeldOut, data: st.DataObject) -> None:
    turn = data.draw(st.sampled_from([turn for turn in talk.turns if len(words(turn.text)) >= 20]))
    said = words(turn.text)
    start = data.draw(st.integers(0, len(said) - 11))
    around = data.draw(st.text(max_size=20))
    text = f"{around} {'  '.join(said[start : start + 11])}, {around}"
    assert ("turn", f"{talk.id} {turn.id}") in kinds(scan([("x", text)], index))
    ten = " ".join(said[start : start + 10])
    assert not scan([("x", ten)], index)


def test_a_short_answer_counts_with_its_question_only(talk: Conversation, index: HeldOut) -> None:
    question = next(q for q in talk.questions if q.gold and len(words(q.gold)) <= 2)
    assert question.gold
    assert not scan([("x", question.gold), ("y", f"{question.gold} {question.gold}, yes, 2022")], index)
    demo = list(contamination.texts_in("p.json", {"demos": [{"question": question.text, "answer": question.gold}]}))
    assert kinds(scan(demo, index)) >= {("question", question.id), ("answer", question.id)}


def test_a_long_answer_counts_alone(talk: Conversation, index: HeldOut) -> None:
    question = next(q for q in talk.questions if len(words(q.gold or q.adversarial_answer or "")) >= 6)
    found = scan([("x", f"so, {question.gold or question.adversarial_answer}!")], index)
    assert ("answer", question.id) in kinds(found)


def test_phrases_of_other_conversations_do_not_count(talk: Conversation) -> None:
    text = long_turn(talk).text
    assert scan([("x", text)], HeldOut([talk]))
    assert not scan([("x", text)], HeldOut([talk], others=[talk]))


def test_every_kind_of_file_is_searched(talk: Conversation, index: HeldOut, tmp_path: Path) -> None:
    secret, question = long_turn(talk).text, talk.questions[0].text
    folder = tmp_path / "a folder: 3"
    folder.mkdir()
    (folder / "prompt.txt").write_text(f"Example: {secret}")
    (folder / "program.json").write_text(json.dumps({"read": {"demos": [{"memory": secret}]}}))
    (folder / "nested.json").write_text(json.dumps([json.dumps({"messages": f"line\n{secret}\nline"})]))
    (folder / "keys.json").write_text(json.dumps({secret: 1}))
    (folder / "broken.json").write_text('{"memory": "' + secret)
    (folder / "train.jsonl").write_text(json.dumps({"prompt": "x"}) + "\n" + json.dumps({"prompt": secret}) + "\n")
    with gzip.open(folder / "train.jsonl.gz", "wt") as packed:
        packed.write(json.dumps({"prompt": secret}) + "\n")
    with zipfile.ZipFile(folder / "weights.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("vocabulary.npy", b"\x93NUMPY" + secret.encode())
    (folder / "model.bin").write_bytes(b"\xff\x00" * 600_000 + secret.encode() + b"\xfe" * 50)
    np.save(folder / "notes.npy", np.array([secret]))
    (folder / "windows.json").write_text(json.dumps({"prompt": secret}), encoding="utf-16")
    with sqlite3.connect(folder / "memory.sqlite") as store:
        store.execute("CREATE TABLE notes (text)")
        store.execute("INSERT INTO notes VALUES (?)", (secret,))
    store.close()
    (folder / "question.md").write_text(f"> {question}")
    clean = {"clean.json": '{"weights": [0.1, 2022, null]}', "empty.jsonl": "", "numbers.json": "3"}
    for name, text in clean.items():
        (folder / name).write_text(text)
    found = scan(texts_of(folder), index)
    hit = {Path(leak.where.split("!")[0]).name.split(":")[0] for leak in found}
    assert hit == {path.name for path in folder.iterdir()} - set(clean)
    assert any(leak.where.endswith("train.jsonl:2") for leak in found)


def test_text_across_two_blocks_is_found(talk: Conversation, index: HeldOut, tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("x" * ((1 << 20) - 40) + " " + long_turn(talk).text)
    assert scan(texts_of(path), index)


def test_the_command_prints_places_and_short_excerpts(
    talk: Conversation, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, good = tmp_path / "bad.txt", tmp_path / "good.txt"
    turn = long_turn(talk)
    bad.write_text(f"{talk.questions[0].text}\n{turn.text}")
    good.write_text("Nothing is in here.")
    assert cli.main(["contamination", str(good), "--data", str(file)]) == 0
    assert cli.main(["contamination", str(bad), str(good), "--data", str(file)]) == 3
    out = capsys.readouterr().out
    assert f"{bad}: 1 held-out question, first {talk.questions[0].id}" in out
    assert f"{bad}: 1 held-out turn, first {talk.id} {turn.id}" in out
    assert all(len(part.split("”")[0]) <= contamination.EXCERPT for part in out.split("“")[1:])
    assert turn.text not in out
    assert cli.main(["contamination", str(tmp_path / "nowhere"), "--data", str(file)]) == 2
    assert cli.main(["contamination", str(good), "--data", str(file), "--split", "train"]) == 2
    err = capsys.readouterr().err
    assert "nowhere" in err
    assert "--split train" in err
    torn = tmp_path / "torn.gz"
    torn.write_bytes(gzip.compress(turn.text.encode())[:-9])
    assert cli.main(["contamination", str(torn), "--data", str(file)]) == 2
    assert "torn.gz" in capsys.readouterr().err


def test_a_contaminated_example_stops_an_evaluation(
    talk: Conversation, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dspy

    from memometer.commands import evaluate
    from memometer.reader import signatures

    model = ["--model", "openai/x", "--context-window", "8000", "--tokenizer", "o200k_base", "--judge-model", "none"]
    options = evaluate.options_of([*model, "--data", str(file), "--systems", "adaptive"])
    make_plan(options)
    leaked = dspy.Example(memory="-", question=talk.questions[0].text, lines=[], status="absent", answer="-")
    monkeypatch.setitem(signatures.EXAMPLES, signatures.CitedAnswer, [leaked])
    with pytest.raises(
        ContaminationError, match=r"test data found.*the prompt 'read' of adaptive: 1 held-out question"
    ):
        make_plan(replace(options, rounds=1))


def test_the_repository_contains_no_text_of_locomo(locomo: Dataset) -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    index = HeldOut.of(locomo)
    for name in listed.stdout.split():
        assert not scan(texts_of(ROOT / name), index), name


def test_false_positives_and_misses_on_locomo(locomo: Dataset) -> None:
    """The rules were chosen by these two figures."""
    test, others, fresh = locomo.part("test"), locomo.part("train"), locomo.part("validation")
    fresh += tuple(simulate.conversation(seed, 1) for seed in (1, 2))
    index = HeldOut(test, others=others)
    texts = [(turn.id, turn.text) for c in fresh for turn in c.turns]
    texts += [(q.id, f"{q.text}\n{q.gold or q.adversarial_answer}") for c in fresh for q in c.questions]
    texts += [(c.id, "\n".join(turn.line for turn in c.turns)) for c in fresh]
    assert len(texts) > 3000
    assert not scan(texts, index)
    turns = {f"{c.id} {turn.id}": turn.text for c in test for turn in c.turns}
    found = {leak.where for leak in scan(turns.items(), index) if leak.kind == "turn" and leak.of == leak.where}
    long = {id for id, text in turns.items() if len(words(text)) >= 11}
    assert found <= long
    assert len(found) >= 0.99 * len(long)


# ---------------------------------------------------------------- the data file during observe and recall


def test_a_mapped_or_copied_data_file_is_refused_in_every_thread_and_others_are_not(tmp_path: Path) -> None:
    import mmap
    import shutil
    import threading

    from memometer.run import closed_files

    data, other = tmp_path / "data.json", tmp_path / "other.json"
    for path in (data, other):
        path.write_text("{}")
    (tmp_path / "alias.json").symlink_to(data)
    closed_files.protect(data)

    def mapped() -> None:
        with (tmp_path / "alias.json").open("rb") as file:
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    with closed_files.closed() as refused:
        for cheat in (mapped, lambda: shutil.copyfile(data, tmp_path / "c")):
            with pytest.raises(PermissionError):
                cheat()
        failed: list[bool] = []

        def elsewhere() -> None:
            try:
                data.read_text()
            except PermissionError:
                failed.append(True)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert failed
        assert other.read_text() == "{}"
    assert len(refused) == 3
    assert data.read_text() == "{}"
    assert closed_files.without_protected([("A", str(data)), ("B", str(other))]) == {"B": str(other)}

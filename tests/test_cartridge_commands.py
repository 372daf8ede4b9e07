"""`memometer cartridge`, as a user runs it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from memometer import cli
from memometer.cartridge.load import load_cartridge
from memometer.cartridge.merge import merge
from memometer.cartridge.save import save_cartridge
from memometer.store.hybrid_scoring import SEED
from memometer.systems.adaptive import AdaptiveMemory
from memometer.systems.episodic import Episodic
from tests.conftest import ROOT, HashEncoder
from tests.test_cartridge import held, keys
from tests.test_memory_contract import build, observed


@pytest.fixture
def files(tmp_path: Path, sample: Any) -> dict[str, Path]:
    turns = list(sample.conversations[0].turns)
    memory = build("bm25")
    parts = {"first": turns[:16], "second": turns[8:], "all": turns}
    for name, part in parts.items():
        save_cartridge(tmp_path / name, memory, observed(memory, part))
    return {name: tmp_path / name for name in parts}


def run(capsys: pytest.CaptureFixture[str], *words: Any) -> tuple[int, str, str]:
    code = cli.main(["cartridge", *map(str, words)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_inspect_and_verify(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "inspect", files["first"])
    assert code == 0
    assert re.search(r"^turns +16$.*^system +bm25$", out, re.MULTILINE | re.DOTALL)
    assert "not signed" in out
    assert json.loads(run(capsys, "inspect", files["first"], "--json")[1])["records"]["count"] == 16
    rows = run(capsys, "inspect", files["first"], "--records")[1].splitlines()
    assert [json.loads(row)["id"] for row in rows][:2] == ["D1:1", "D1:2"]
    assert "16 records, not signed" in run(capsys, "verify", files["first"])[1]


def test_verify_asks_for_a_signature(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key, public = keys(tmp_path, "ours")
    for name, sign_with in (("signed", key), ("bare", None)):
        save_cartridge(tmp_path / name, build("bm25"), build("bm25").new(), sign_with=sign_with)
    code, out, _ = run(capsys, "verify", tmp_path / "signed", "--public-key", public)
    assert code == 0
    assert "0 records, signed by " in out
    code, out, err = run(capsys, "verify", tmp_path / "bare", "--public-key", public)
    assert (code, out) == (3, "")
    assert "bare is refused: it is not signed" in err


def test_what_is_no_cartridge_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text").write_text("hello")
    for verb in (["inspect"], ["verify"], ["diff", tmp_path / "text"], ["merge", "--out", tmp_path / "out"]):
        code, _, err = run(capsys, *verb, tmp_path / "text")
        assert code == 3
        assert err.startswith(f"memometer cartridge: {tmp_path}/text is refused: ")


def test_diff_tells_records_and_parameters_apart(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], sample: Any
) -> None:
    assert run(capsys, "diff", files["first"], files["first"]) == (0, "The files have the same content.\n", "")
    code, out, _ = run(capsys, "diff", files["first"], files["second"])
    lines = out.splitlines()
    assert code == 1
    assert [line[:7] for line in lines if line[0] == "-"] == [f"- D1:{n}:"[:7] for n in range(1, 9)]
    assert sum(line[0] == "+" for line in lines) == 8
    turns = [replace(turn, text="Changed.") if turn.id == "D1:2" else turn for turn in sample.conversations[0].turns]
    memory = AdaptiveMemory()
    save_cartridge(tmp_path / "other", memory, observed(memory, turns))
    out = run(capsys, "diff", files["all"], tmp_path / "other")[1]
    assert 'system: "bm25" | "adaptive"' in out
    assert "! D1:2 text: " in out
    assert "| 'Changed.'" in out


def test_merging_is_remembering_both(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "merge", files["second"], files["first"], "--out", tmp_path / "both")
    assert (code, out) == (0, f"{tmp_path}/both holds 24 records.\n")
    assert held(load_cartridge(tmp_path / "both").state) == held(load_cartridge(files["all"]).state)
    parents = load_cartridge(tmp_path / "both").manifest["parents"]
    assert parents == [load_cartridge(files[name]).digest for name in ("second", "first")]
    code, _, err = run(capsys, "merge", files["first"], "--out", tmp_path / "missing" / "out")
    assert code == 1
    assert "missing/out (No such file or directory)" in err


def test_merging_episodes_keeps_uses_and_sources(tmp_path: Path, sample: Any) -> None:
    turns = list(sample.conversations[0].turns)
    memory = Episodic(encoder=HashEncoder())
    for name, part in (("first", turns[:16]), ("second", turns[8:])):
        state = observed(memory, part)
        memory.observe_uses(state, [turns[9].id] * (2 if name == "first" else 5))
        state.store.change("", merge={turns[10].id: [turns[11].id]})
        save_cartridge(tmp_path / name, memory, state)
    made = merge([tmp_path / "first", tmp_path / "second"], tmp_path / "both", encoder=HashEncoder())
    episodes = {episode.id: episode for episode in made.state.store.scan("")}
    assert episodes.keys() == {turn.id for turn in turns}
    assert episodes[turns[9].id].uses == 5
    assert episodes[turns[10].id].sources == (turns[11].id,)
    assert episodes[turns[11].id].archived


def test_what_cannot_be_one_is_said(tmp_path: Path, sample: Any) -> None:
    turns = list(sample.conversations[0].turns)
    said = {
        "bm25": (build("bm25"), turns[:8]),
        "recent": (build("recent"), turns[:8]),
        "reworded": (build("bm25"), [replace(turns[0], text="No.")]),
        "another time": (build("bm25"), [replace(turns[0], id="x", said_at=turns[0].said_at + timedelta(days=1))]),
        "summary": (build("summary"), turns[:8]),
        "episodic": (Episodic(encoder=HashEncoder()), turns[:8]),
        "seed": (Episodic(encoder=HashEncoder(), weights=SEED), turns[:8]),
        "other text": (Episodic(encoder=HashEncoder()), [replace(turns[0], text="No.")]),
    }
    for name, (memory, part) in said.items():
        save_cartridge(tmp_path / name, memory, observed(memory, part))
    save_cartridge(tmp_path / "persona", build("bm25"), build("bm25").new(), persona="a pirate")
    for one, other, told in (
        ("bm25", "recent", 'recent is refused: its system is "recent" instead of "bm25"'),
        ("bm25", "reworded", "turn D1:1"),
        ("bm25", "another time", "session 1"),
        ("summary", "summary", "language model"),
        ("episodic", "seed", "its parameters is"),
        ("episodic", "other text", "'D1:1'"),
        ("bm25", "persona", "persona"),
    ):
        with pytest.raises(ValueError, match=told.replace("(", r"\(")):
            merge([tmp_path / one, tmp_path / other], tmp_path / "out", encoder=HashEncoder())
        assert not (tmp_path / "out").exists()


def test_the_command_runs(files: dict[str, Path]) -> None:
    command = [sys.executable, "-m", "memometer", "cartridge", "verify", str(files["first"])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")

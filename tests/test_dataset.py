"""LOCOMO is read exactly, and nothing but LOCOMO is scored."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locomo import dataset
from locomo.dataset import download, load, read, repair_evidence
from locomo.verify import EXPECTED
from memometer import cli
from memometer.benchmarks.protocol import DataError


def test_every_invariant_of_locomo_holds(locomo: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "--data", str(locomo.path)]) == 0
    out = capsys.readouterr().out
    assert "WRONG" not in out
    assert f"{len(EXPECTED)} of {len(EXPECTED)} counts are right" in out


def test_sessions_come_in_integer_order_and_time_rises(locomo: Any) -> None:
    for conversation in locomo.conversations:
        numbers = [session.number for session in conversation.sessions]
        assert numbers == list(range(1, len(numbers) + 1))
        times = [session.said_at for session in conversation.sessions]
        assert times == sorted(times)


def test_answers_are_text_and_the_trap_is_never_the_gold(locomo: Any) -> None:
    for question in locomo.questions:
        if question.category == "5":
            assert question.gold is None
            assert isinstance(question.adversarial_answer, str)
        else:
            assert isinstance(question.gold, str)
            assert question.adversarial_answer is None


def test_a_question_is_known_by_its_place(locomo: Any) -> None:
    assert len({question.id for question in locomo.questions}) == 1986
    twins = {question.id: question for question in locomo.questions}
    assert twins["conv-30#61"].text == twins["conv-30#95"].text
    assert (twins["conv-30#61"].category, twins["conv-30#95"].category) == ("4", "5")


def test_what_a_memory_must_not_see_is_not_kept(locomo: Any) -> None:
    raw = json.loads(locomo.path.read_bytes())
    shown = "".join(turn.line for conversation in locomo.conversations for turn in conversation.turns)
    urls = [t["img_url"][0] for e in raw for v in e["conversation"].values() if isinstance(v, list) for t in v
            if t.get("img_url")]  # fmt: skip
    assert urls
    assert not any(url in shown for url in urls)
    assert not hasattr(locomo.conversations[0], "event_summary")


@pytest.mark.parametrize(
    ("strings", "found", "unresolved"),
    [
        (["D8:6; D9:17"], ("D8:6", "D9:17"), ()),
        (["D:11:26"], ("D11:26",), ()),
        (["D30:05"], ("D30:5",), ()),
        (["D9:1 D4:4 D4:6"], ("D9:1", "D4:4", "D4:6"), ()),
        (["D4:5", "D4:5"], ("D4:5",), ()),
        (["D10:19"], (), ("D10:19",)),
        (["D"], (), ("D",)),
        ([], (), ()),
    ],
)
def test_faulty_evidence_is_mended_or_listed(strings: list[str], found: tuple[str], unresolved: tuple[str]) -> None:
    known = {"D8:6", "D9:17", "D11:26", "D30:5", "D9:1", "D4:4", "D4:6", "D4:5"}
    assert repair_evidence(strings, known) == (found, unresolved)


@given(st.lists(st.text(max_size=12)))
def test_evidence_never_names_a_turn_that_is_not_there(strings: list[str]) -> None:
    found, _ = repair_evidence(strings, {"D1:1", "D1:2"})
    assert set(found) <= {"D1:1", "D1:2"}
    assert len(found) == len(set(found))


def test_other_bytes_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "locomo10.json"
    other.write_text("[]")
    with pytest.raises(DataError, match="not the pinned LOCOMO file"):
        read(other)
    with pytest.raises(DataError, match="does not exist"):
        load(tmp_path / "nowhere.json")
    assert cli.main(["data", "--data", str(other)]) == 2


def test_the_sample_has_all_categories_and_says_what_it_is(sample: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert sample.kind == "SAMPLE"
    assert {question.category for question in sample.questions} == {"1", "2", "3", "4", "5"}
    assert all(question.evidence and not question.unresolved for question in sample.questions)
    assert len(sample.conversations[0].sessions) >= 2
    assert cli.main(["data", "--data", str(sample.path)]) == 0
    assert all(line.startswith("SAMPLE") for line in capsys.readouterr().out.splitlines())


def test_without_file_and_network_the_sample_takes_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LOCOMO_PATH", raising=False)
    monkeypatch.setattr(dataset, "DATA", tmp_path)
    monkeypatch.setattr(dataset, "download", lambda path, log: (_ for _ in ()).throw(ConnectionError("no network")))
    said: list[str] = []
    assert load(log=said.append).kind == "SAMPLE"
    assert "sample" in said[0]


class _Flaky(BaseHTTPRequestHandler):
    """Serves CONTENT with ranges, and breaks the first whole transfer in the middle."""

    content = bytes(range(256)) * 4096
    seen: list[str | None]

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.seen.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(self.content) - start))
        self.end_headers()
        self.wfile.write(self.content[start : None if wanted else len(self.content) // 2])
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_broken_download_is_resumed_and_verified(tmp_path: Path) -> None:
    _Flaky.seen = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Flaky)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url, path = f"http://127.0.0.1:{server.server_address[1]}/locomo10.json", tmp_path / "locomo10.json"
    digest = hashlib.sha256(_Flaky.content).hexdigest()
    said: list[str] = []
    try:
        with pytest.raises(OSError, match="IncompleteRead|incomplete|broken"):
            download(path, url=url, sha256=digest, log=said.append)
        assert not path.exists(), "half a file never stands under the whole one's name"
        download(path, url=url, sha256=digest, log=said.append)
        assert path.read_bytes() == _Flaky.content
        assert _Flaky.seen == [None, f"bytes={len(_Flaky.content) // 2}-"]
        assert "CC BY-NC 4.0" in said[0]
        path.unlink()
        (tmp_path / "locomo10.json.part").write_bytes(_Flaky.content)
        with pytest.raises(DataError, match="sent another file"):
            download(path, url=url, sha256="0" * 64, log=said.append)
        assert not list(tmp_path.glob("*.json*t")), "nothing of wrong bytes is kept"
    finally:
        server.shutdown()
        server.server_close()

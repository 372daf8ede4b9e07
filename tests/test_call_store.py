"""Calls that are made once: replayed with what they took, never twice at once, and stopped in time."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.utils.exceptions import LMError

from memometer.models.replay_cache import CallStore, SearchStopped, StoredLM
from tests.conftest import Reply, Server, completion, failure

pytestmark = pytest.mark.filterwarnings("ignore:OpenAI-style messages")


def model(server: Server, path: Path, **parts: Any) -> StoredLM:
    lm = dspy.LM("openai/scripted", api_base=server.url, api_key="none", temperature=0.0, max_tokens=8, num_retries=0)
    return StoredLM.of(lm, CallStore(path, **parts), role="reader", identity="scripted")


def ask(lm: StoredLM, question: str) -> str:
    with dspy.context(lm=lm, disable_history=True):
        return str(dspy.Predict("question -> answer")(question=question).answer)


def numbered(number: int, body: dict[str, Any]) -> Reply:
    return completion(f"[[ ## answer ## ]]\n{number}", prompt_tokens=10 * number, completion_tokens=number)


def test_a_reply_is_kept_with_what_it_took(server: Server, tmp_path: Path) -> None:
    server.answer = numbered
    first = model(server, tmp_path / "calls.jsonl")
    with first.store.billed() as paid:
        assert [ask(first, "a"), ask(first, "b"), ask(first, "a")] == ["1", "2", "1"]
    again = model(server, tmp_path / "calls.jsonl")
    with again.store.billed() as replayed:
        assert [ask(again, "a"), ask(again, "b"), ask(again, "a")] == ["1", "2", "1"]
    assert paid == replayed
    assert (paid.calls, paid.prompt_tokens, paid.completion_tokens) == (3, 40, 4)
    assert len(server.requests) == 2
    assert (first.store.made, again.store.made, len(again.store)) == (2, 0, 2)
    assert again.store.spent["reader"].total_tokens == 33


def test_half_a_surrogate_pair_goes_into_no_prompt_or_file(server: Server, tmp_path: Path) -> None:
    server.answer = lambda number, body: completion("[[ ## answer ## ]]\nh\ud83d")
    said = ask(model(server, tmp_path / "calls.jsonl"), "a")
    assert said == ask(model(server, tmp_path / "calls.jsonl"), "a") == "h?"


def test_what_differs_is_another_call(server: Server, tmp_path: Path) -> None:
    server.answer = numbered
    lm = model(server, tmp_path / "calls.jsonl")
    elsewhere = StoredLM.of(lm, lm.store, role="reader", identity="scripted, tuned")
    rollouts = [lm.copy(rollout_id=n, temperature=1.0) for n in (0, 1, 0)]
    assert len({ask(each, "a") for each in (lm, elsewhere, *rollouts)}) == 5
    assert ask(rollouts[2], "a") == "5"
    assert all("rollout_id" not in body for body in server.requests)


def test_rollouts_come_back_in_their_order(server: Server, tmp_path: Path) -> None:
    """Two steps of a search copy a model with the same rollout id: two samples, and the same two when it runs again."""
    server.answer = numbered

    def search() -> list[str]:
        lm = model(server, tmp_path / "calls.jsonl")
        return [ask(lm.copy(rollout_id=0, temperature=1.0), "a") for _ in range(3)]

    assert search() == search() == ["1", "2", "3"]


def test_of_equal_calls_at_once_one_is_made(server: Server, tmp_path: Path) -> None:
    def slowly(number: int, body: dict[str, Any]) -> Reply:
        time.sleep(0.1)
        return numbered(number, body)

    server.answer = slowly
    lm = model(server, tmp_path / "calls.jsonl")
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: ask(lm, "a"), range(8))) == {"1"}
    assert len(server.requests) == 1


def test_a_line_that_a_kill_cut_short_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.answer = numbered
    path = tmp_path / "calls.jsonl"
    lm = model(server, path)
    ask(lm, "a")
    ask(lm, "b")
    path.write_bytes(path.read_bytes()[:-20])
    again = model(server, path)
    assert [ask(again, "a"), ask(again, "b")] == ["1", "3"]
    assert len(model(server, path).store) == 2


def test_failed_calls_are_not_kept_and_end_a_search_that_has_too_many(server: Server, tmp_path: Path) -> None:
    server.answer = lambda number, body: failure(500) if number % 4 == 0 else numbered(number, body)
    lm = model(server, tmp_path / "calls.jsonl", fail_share=0.2)
    for n in range(19):
        if n % 4 == 3:
            with pytest.raises(LMError):
                ask(lm, str(n))
        else:
            ask(lm, str(n))
    with pytest.raises(SearchStopped, match=r"5 of 20 calls failed, the last with LMServerError") as stopped:
        ask(lm, "one too many")
    assert stopped.value.outcome == "invalid"
    assert len(lm.store) == 15
    server.answer = numbered
    with pytest.raises(SearchStopped):
        ask(lm, "of a thread that an optimiser left behind")
    assert ask(lm, "0") == "1", "what is known is still answered"


def test_where_nothing_answers_a_search_ends_soon(server: Server, tmp_path: Path) -> None:
    server.answer = lambda number, body: failure(503)
    lm = model(server, tmp_path / "calls.jsonl", fail_share=1.0)
    for n in range(7):
        with pytest.raises(LMError):
            ask(lm, str(n))
    with pytest.raises(SearchStopped, match="8 of 8 calls failed"):
        ask(lm, "the eighth")
    assert len(server.requests) == 8


def test_a_rejected_key_ends_it_at_once(server: Server, tmp_path: Path) -> None:
    server.answer = lambda number, body: failure(401)
    with pytest.raises(SearchStopped, match="no call can succeed") as stopped:
        ask(model(server, tmp_path / "calls.jsonl"), "a")
    assert stopped.value.outcome == "failed"


def test_no_call_is_made_that_may_not_be(server: Server, tmp_path: Path) -> None:
    server.answer = numbered
    stop = threading.Event()
    lm = model(server, tmp_path / "calls.jsonl", may_call=lambda: "as asked" if stop.is_set() else "")
    ask(lm, "a")
    stop.set()
    assert ask(lm, "a") == "1"
    with pytest.raises(SearchStopped, match="as asked"):
        ask(lm, "b")
    assert len(server.requests) == 1

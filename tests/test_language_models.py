"""Token counters, model roles, the plain adapter, embedded models, and what may never be written down."""

from __future__ import annotations

import hashlib
import json
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.lm15 import Config, Message, Request
from hypothesis import given
from hypothesis import strategies as st

from memometer.memory import Turn
from memometer.models import embedded, resolve_models
from memometer.models.embedded import Embedded, WeightsUnavailable, weights
from memometer.models.errors import describe, redact
from memometer.models.plain_adapter import PlainAdapter
from memometer.models.usage import metered
from memometer.reader.signatures import Answer
from memometer.token_counters import Utf8Bytes, counter_for
from memory_system import MemorySystem
from tests.conftest import Server, completion, failure


@pytest.mark.parametrize(
    ("model", "counter"),
    [
        ("openai/gpt-4o-mini", "o200k_base"),
        ("openai/gpt-4.1-mini", "o200k_base"),
        ("openai/gpt-4-turbo", "cl100k_base"),
        ("together_ai/Qwen/Qwen2.5-7B-Instruct-Turbo", Utf8Bytes.name),
        (None, "o200k_base"),
    ],
)
def test_the_counter_follows_the_model(model: str | None, counter: str) -> None:
    assert counter_for(model).name == counter


def test_known_counts() -> None:
    text = "Caroline went to the museum on 7 May 2023.\n"
    assert counter_for(tokenizer="o200k_base")(text) == 14
    assert counter_for(tokenizer="cl100k_base")(text) == 14


@given(st.text(max_size=300))
def test_bytes_are_an_upper_bound(text: str) -> None:
    assert Utf8Bytes()(text) >= max(counter_for(tokenizer=name)(text) for name in ("o200k_base", "cl100k_base"))


def test_a_wrong_tokenizer_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"o200k_base or cl100k_base"):
        counter_for(tokenizer="gpt2")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer.json"):
        counter_for(tokenizer=str(tmp_path))


@pytest.mark.parametrize(
    ("keys", "model"),
    [
        ([], "embedded:tiny"),
        (["OPENAI_API_KEY"], "openai/gpt-4o-mini"),
        (["TOGETHER_API_KEY", "OPENAI_API_KEY"], "together_ai/Qwen/Qwen2.5-7B-Instruct-Turbo"),
    ],
)
def test_a_key_picks_its_provider(monkeypatch: pytest.MonkeyPatch, keys: list[str], model: str) -> None:
    for key in resolve_models.PROVIDER_DEFAULTS:
        monkeypatch.delenv(key, raising=False)
    for key in keys:
        monkeypatch.setenv(key, "a-key-for-tests")
    assert resolve_models.default_model() == model


def test_published_windows_and_prices_are_known() -> None:
    model = resolve_models.load("openai/gpt-4o-mini")
    assert model.context_tokens == 128_000
    assert model.price is not None
    assert 0 < model.price.cached < model.price.prompt < model.price.completion < 1e-4
    assert "in dspy" in model.price.source


def test_the_prompt_is_what_the_adapter_says() -> None:
    messages = PlainAdapter().format(Answer, [], {"memory": "# Mon 8 May 2023\nAnn: Hi", "question": "Who?"})
    assert [message["role"] for message in messages] == ["system", "user"]
    assert messages[1]["content"] == "Memory:\n# Mon 8 May 2023\nAnn: Hi\n\nQuestion: Who?\n\nAnswer:"


@pytest.mark.parametrize("outputs", ["answer: str, score: float", "answer: str, lines: list[int]"])
def test_other_outputs_need_another_adapter(outputs: str) -> None:
    with pytest.raises(ValueError, match=r"use dspy.ChatAdapter"):
        PlainAdapter().format(dspy.Signature(f"question -> {outputs}"), [], {"question": "Who?"})


def test_calls_and_tokens_are_metered_with_and_without_a_report(server: Server) -> None:
    bare = json.loads(completion("x")[2])
    del bare["usage"]
    unreported = (200, {"Content-Type": "application/json"}, json.dumps(bare).encode())
    server.answer = lambda number, body: [completion("x"), unreported, failure(500)][number - 1]
    lm = resolve_models.load("openai/scripted", api_base=server.url, retries=0).lm
    with metered() as usage, dspy.context(lm=lm, adapter=PlainAdapter()):
        for _ in range(3):
            with suppress(dspy.utils.exceptions.LMServerError):
                dspy.Predict(Answer)(memory="m", question="q")
    assert (usage.calls, usage.unreported, usage.prompt_tokens, usage.completion_tokens) == (3, 2, 100, 5)


def test_a_rate_limit_is_waited_out(server: Server) -> None:
    server.answer = lambda number, body: failure(429, Retry_After="0.1") if number < 3 else completion("fine")
    lm = resolve_models.load("openai/scripted", api_base=server.url, retries=2).lm
    with dspy.context(lm=lm, adapter=PlainAdapter()):
        assert dspy.Predict(Answer)(memory="m", question="q").answer == "fine"
    assert len(server.requests) == 3


def test_nobody_waits_for_a_daily_quota(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("memometer.models.bounded_retries.time.sleep", waited.append)
    server.answer = lambda number, body: failure(429, "quota \ud83d", Retry_After="86400")
    lm = resolve_models.load("openai/scripted", api_base=server.url, retries=3).lm
    with pytest.raises(dspy.LMRateLimitError) as raised:
        lm("hello")
    assert waited == [120.0] * 3
    assert "quota ?" in describe(raised.value), "and it can be printed"


def test_no_secret_is_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOGETHER_API_KEY", "very-secret-value")
    text = (
        "sent very-secret-value with Authorization: Bearer abc.def-ghi, x-api-key: qwertz99, sk-proj-0123456789abcdef "
        "to https://user:pass@host/v1"
    )
    clean = redact(text)
    for secret in ("very-secret-value", "abc.def-ghi", "qwertz99", "0123456789abcdef", "user:pass"):
        assert secret not in clean, clean
    assert describe(RuntimeError("first very-secret-value\nsecond")) == "RuntimeError: first [redacted]"


# ------------------------------------------------------------------ embedded models


def test_weights_with_other_bytes_are_never_opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EMBEDDED_MODELS_DIR", str(tmp_path))
    (tmp_path / embedded.TIERS["tiny"].file).write_bytes(b"GGUF and nothing else")
    with pytest.raises(WeightsUnavailable, match=r"not the official SmolLM2.*delete it"):
        weights("tiny")
    with pytest.raises(WeightsUnavailable, match="tiny, small, base"):
        weights("huge")


class _Hub(BaseHTTPRequestHandler):
    """As much of the Hugging Face hub as serves one file."""

    content = b"weights"

    def do_HEAD(self) -> None:
        self._headers()

    def do_GET(self) -> None:
        self._headers()
        self.wfile.write(self.content)

    def _headers(self) -> None:
        self.send_response(200)
        self.send_header("ETag", '"' + hashlib.sha256(self.content).hexdigest() + '"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_weights_come_from_the_hub_by_its_own_client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants
    import huggingface_hub.file_download

    http = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{http.server_address[1]}"
    monkeypatch.setenv("EMBEDDED_MODELS_DIR", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    monkeypatch.setattr(
        huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    right = embedded.Tier("a model", "m.gguf", hashlib.sha256(b"weights").hexdigest(), 1, 0.0, repository="a/b")
    wrong = embedded.Tier("a model", "n.gguf", "0" * 64, 1, 0.0, repository="a/b")
    monkeypatch.setitem(embedded.TIERS, "right", right)
    monkeypatch.setitem(embedded.TIERS, "wrong", wrong)
    try:
        assert weights("right", log=lambda _: None).read_bytes() == b"weights"
        with pytest.raises(WeightsUnavailable, match=r"wrong bytes.*EMBEDDED_MODELS_DIR.*use embedded:tiny"):
            weights("wrong", log=lambda _: None)
        assert not (tmp_path / "n.gguf").exists()
    finally:
        http.shutdown()
        http.server_close()


@pytest.fixture(scope="module")
def engine(tiny: Path) -> Embedded:
    return Embedded(tiny)


def test_the_embedded_model_answers_in_one_line_and_counts(engine: Embedded, sample: Any) -> None:
    lm = dspy.LM("embedded/tiny", engine=engine, temperature=0.0, max_tokens=32, cache=False, num_retries=0)
    memory = MemorySystem(count=engine)
    state = memory.new()
    memory.observe(state, sample.conversations[0].turns)
    with metered() as usage, dspy.context(lm=lm, adapter=PlainAdapter()):
        question = "What is the name of Pavel's dog?"
        first = memory(state=state, question=question, budget_tokens=100)
        again = memory(state=state, question=question, budget_tokens=100)
    assert first.answer
    assert "\n" not in first.answer
    assert first.answer == again.answer, "the same prompt, the same answer, whatever was asked before"
    assert first.recall.tokens == engine(first.recall.text) <= 100
    assert (usage.calls, usage.unreported) == (2, 0)
    assert usage.prompt_tokens > 2 * first.recall.tokens


def test_an_embedded_answer_does_not_depend_on_the_prompts_before(engine: Embedded) -> None:
    def request(memory: str, question: str) -> Request:
        example = (
            Message.user("Memory: Ann: I am in Oslo.\n\nQuestion: Where is Ann?\n\nAnswer:"),
            Message.assistant("Oslo"),
        )
        asked = Message.user(f"Memory: {memory}\n\nQuestion: {question}\n\nAnswer:")
        return Request(
            model="m", system="Answer in few words.", messages=(*example, asked), config=Config(max_tokens=8)
        )

    kayak = "Nadia: I sold the kayak to my cousin.\nOskar: The vet closes at six."
    requests = [
        request(kayak, "What did Nadia sell?"),
        request(kayak, "What did Oskar say about the vet?"),
        request(f"{kayak}\nNadia: It rains.", "What did Nadia sell?"),
        request("", "What did Nadia sell?"),
    ]
    answers = [engine.complete(each) for each in requests]
    other = Embedded(engine.path)
    again = [other.complete(each) for each in reversed(requests)]
    assert answers == again[::-1]


def test_embedded_lines_add_up(engine: Embedded, sample: Any) -> None:
    turns = sample.conversations[0].turns
    assert sum(engine(turn.line) for turn in turns) == engine("".join(turn.line for turn in turns))


def test_a_prompt_longer_than_the_window_is_refused(engine: Embedded) -> None:
    lm = dspy.LM("embedded/tiny", engine=engine, temperature=0.0, max_tokens=32, cache=False, num_retries=0)
    with (
        dspy.context(lm=lm, adapter=PlainAdapter()),
        pytest.raises(dspy.ContextWindowExceededError, match="exceeds the available context size"),
    ):
        dspy.Predict(Answer)(memory="accordion " * 9000, question="Who?")


def test_a_turn_is_one_line_whatever_it_holds() -> None:
    from datetime import datetime

    turn = Turn("D1:1", "Ann", "one\n two\t three", 1, datetime(2023, 5, 8), caption="a\ncat")
    assert turn.line == "Ann: one two three [image: a cat]\n"
    assert turn.header == "# Mon 8 May 2023\n"

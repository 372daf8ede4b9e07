"""Shared fixtures: the real data where it is there, our sample, and a server that speaks OpenAI's protocol."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell starts background jobs; our processes inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when NumPy is imported; the commands set it as well

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings

from memometer.models.downloads import models_folder
from memometer.store import SCHEMES
from tests import servers

ROOT = Path(__file__).resolve().parent.parent

ANY = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]}
settings.register_profile("sampled", max_examples=20, derandomize=True, database=None, **ANY)
settings.register_profile("thorough", max_examples=300, print_blob=True, **ANY)


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("thorough" if is_thorough(config) else "sampled")


def is_thorough(config: pytest.Config) -> bool:
    """Whether the run is `pytest -m slow`, in which sampled tests try all that they can."""
    return config.option.markexpr == "slow"


def sampled(number: int) -> settings:
    """Settings of a property test: this number of examples, and fifteen times as many with -m slow."""
    return settings(max_examples=number * settings().max_examples // 20)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With -m slow, property tests and those with the fixture `thorough` run as well."""
    if is_thorough(config):
        for item in items:
            sampled = getattr(getattr(item, "obj", None), "is_hypothesis_test", False)
            if sampled or "thorough" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def thorough(request: pytest.FixtureRequest) -> bool:
    """Whether to try all cases, and not a sample of them."""
    return is_thorough(request.config)


@pytest.fixture(scope="session", autouse=True)
def _own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Hide the user's keys, memories and caches; only weights of models are shared."""
    users = models_folder()
    folder = tmp_path_factory.mktemp("models")
    for path in users.glob("*"):
        if path.suffix == ".gguf" or path.name == "all-MiniLM-L6-v2":
            (folder / path.name).symlink_to(path)
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.endswith("_API_KEY") or name == "MEMOMETER_URL":
                patch.delenv(name)
        patch.setenv("EMBEDDED_MODELS_DIR", str(folder))
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        yield
    for path in folder.glob("*"):
        if path.suffix == ".gguf" and not path.is_symlink() and not (users / path.name).exists():
            users.mkdir(parents=True, exist_ok=True)
            shutil.move(path, users)  # the next run need not download it


@pytest.fixture(autouse=True)
def _own_log(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test a log of test-set usage of its own: tests write runs that look like copies of one run."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="session")
def mlflow_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs, to copy as mydb.sqlite: making its tables takes seconds."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    path, part = folder / "mlflow.sqlite", folder / "mlflow.part"
    with FileLock(folder / "mlflow.lock"), warnings.catch_warnings(action="ignore"):
        if not path.exists():
            from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

            SqlAlchemyStore(f"sqlite:///{part}", str(folder / "artifacts")).engine.dispose()
            part.rename(path)
    return path


Reply = tuple[int, dict[str, str], bytes]


def completion(text: str, *, prompt_tokens: int = 100, completion_tokens: int = 5) -> Reply:
    """A chat completion as OpenAI sends it."""
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "scripted",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        },
    }
    return 200, {"Content-Type": "application/json"}, json.dumps(body).encode()


def embeddings(texts: list[str]) -> Reply:
    """Vectors as OpenAI sends them: one number for each text's length, one for its words."""
    rows = [[float(len(text)), 1.0 + len(text.split())] for text in texts]
    data = [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(rows)]
    body = {"object": "list", "model": "scripted", "data": data, "usage": {"prompt_tokens": 1, "total_tokens": 1}}
    return 200, {"Content-Type": "application/json"}, json.dumps(body).encode()


class HashEncoder:
    """An encoder without weights: a text is the sum of its words, each a direction given by its hash."""

    name = "hash"
    dimensions = 16

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        rows = np.full((len(texts), self.dimensions), 1e-3, np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in text.lower().split():
                row += np.frombuffer(hashlib.sha256(word.encode()).digest()[:16], np.uint8) / 128 - 1
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class HashTokenEncoder(HashEncoder):
    """The same with a vector for each word: its own beside that of its first letter. An empty text is one word."""

    def tokens(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        return [
            (np.hstack([self(words := text.split() or [""]), self([word[:1] for word in words])]), self([text])[0])
            for text in texts
        ]

    def compact(self, texts: Sequence[str], projection: Any) -> list[bytes]:
        return [projection.compact(*each) for each in self.tokens(texts)]


class Scribe:
    """A model in this process that writes as small models do: it echoes lines of its prompt in every form that is asked
    for and some that are not, and now and then says nothing at all. The same prompt gets the same reply."""

    def complete(self, request: Any) -> Any:
        from dspy import lm15

        prompt = request.messages[-1].text
        lines = [line for line in prompt.splitlines() if line.strip()][-6:]
        forms = ("- {}", "{}", "2. **{}**", "1 | Nadia | said | {}", "(99, Oskar, owns, {})", "Nadia's bowl: {}",
                 "Lena:", "|", "{} He left. She stayed.")  # fmt: skip
        start = hashlib.sha256(prompt.encode(errors="replace")).digest()[0]
        text = "\n".join(forms[(start + i) % len(forms)].format(line) for i, line in enumerate(lines))
        return lm15.Response(
            id=None,
            model=request.model,
            finish_reason="stop",
            message=lm15.Message.assistant("" if start % 7 == 0 else text),
            usage=lm15.Usage(input_tokens=1, output_tokens=1),
        )

    def __deepcopy__(self, memo: dict[int, object]) -> Scribe:
        return self


@contextmanager
def writing() -> Iterator[None]:
    """In here, memories write with the Scribe, as the evaluation loop lets them write with its reader."""
    import dspy

    from memometer.models.plain_adapter import PlainAdapter

    lm = dspy.LM("local/scribe", engine=Scribe(), temperature=0.0, max_tokens=64, cache=False)
    with dspy.context(lm=lm, adapter=PlainAdapter()):
        yield


def shown(body: dict[str, Any]) -> tuple[str, str, str]:
    """(question, gold, answer) that a judge is shown by a request."""
    content = body["messages"][-1]["content"]
    fields = [content.split(f"{name}:", 1)[1] for name in ("Question", "Gold", "Answer")]
    ends = ("\n\nGold:", "\n\nAnswer:", "\n\nVerdict:")
    question, gold, answer = (field.split(end)[0].strip() for field, end in zip(fields, ends, strict=True))
    return question, gold, json.loads(answer).strip() if answer.startswith('"') else answer


def truthful(sets: Any) -> Callable[[int, dict[str, Any]], Reply]:
    """A judge that accepts exactly the right answers of a calibration set."""
    right = {
        (item.question.text, item.question.gold.strip(), item.answer.strip())
        for items in sets.values()
        for item in items
        if item.label == "correct"
    }
    return lambda number, body: completion("yes" if shown(body) in right else "no", completion_tokens=1)


def failure(status: int, message: str = "scripted failure", **headers: str) -> Reply:
    body = json.dumps({"error": {"message": message, "type": "scripted", "code": None}}).encode()
    return status, {"Content-Type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}, body


@dataclass
class Server:
    """A loopback server; `answer` maps (number of the request, its body) to a reply.

    The first call that checks a model before a run is answered and not counted; tests/test_servers.py is about it.
    """

    answer: Callable[[int, dict[str, Any]], Reply] = lambda number, body: completion("Sourdough")
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    url: str = ""


def billed(reply: Reply, body: dict[str, Any]) -> Reply:
    """A reply that reports the default 100 prompt tokens, with about the true number for a long prompt."""
    size = sum(len(str(message["content"])) for message in body.get("messages", ())) // 4
    if size <= 400 or b'"prompt_tokens": 100,' not in reply[2]:
        return reply
    return reply[0], reply[1], reply[2].replace(b'"prompt_tokens": 100,', f'"prompt_tokens": {size},'.encode())


CHECK = "Where does Ann live?"
"""The question of the first call."""


@pytest.fixture
def server() -> Iterator[Server]:
    script = Server()
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.path.endswith(("/chat/completions", "/embeddings")), self.path
            assert body["model"]
            assert all(message["role"] in ("system", "user", "assistant") for message in body.get("messages", ()))
            if CHECK in str(body.get("messages")):
                judged = "Verdict:" in body["messages"][-1]["content"]
                status, headers, content = completion("yes" if judged else "Oslo")
            else:
                with lock:
                    script.requests.append(body)
                    script.headers.append(dict(self.headers))
                    number = len(script.requests)
                status, headers, content = billed(script.answer(number, body), body)
            try:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
            except OSError:
                pass  # the client gave up waiting, as some tests want

        def log_message(self, format: str, *args: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    threading.Thread(target=http.serve_forever, daemon=True).start()
    script.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    yield script
    http.shutdown()
    http.server_close()


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    with servers.postgres() as url:
        yield url


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with servers.redis(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture(params=[scheme for scheme in SCHEMES if scheme != "redis+unix"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty store, of every back end that is here."""
    if request.param == "memory":
        return "memory:"
    if request.param == "postgresql":
        return servers.fresh_schema(request.getfixturevalue("postgres_url"))
    if request.param == "chroma":
        pytest.importorskip("chromadb", reason="ChromaDB is not here: pip install '.[stores]'")
        return f"chroma:///{tmp_path}/chroma"
    url = f"sqlite:///{tmp_path}/memory.db"
    return f"{request.getfixturevalue('redis_url')}?behind={quote(url, safe='')}" if request.param == "redis" else url


@pytest.fixture(scope="session")
def locomo() -> Any:
    """LOCOMO itself, from LOCOMO_PATH or data/; the tests never download it."""
    from locomo.dataset import DATA, read

    path = Path(os.environ.get("LOCOMO_PATH") or DATA / "locomo10.json")
    if not path.exists() or path.name == "sample.json":
        pytest.skip("LOCOMO is not here: set LOCOMO_PATH to locomo10.json")
    data = read(path)
    if data.kind:
        pytest.skip(f"LOCOMO is not here: LOCOMO_PATH names a file that is {data.kind}")
    return data


@pytest.fixture(scope="session")
def sample() -> Any:
    from locomo.dataset import SAMPLE, read

    return read(SAMPLE)


@pytest.fixture(scope="session")
def tiny() -> Path:
    """The weights of the smallest embedded model."""
    from memometer.models.embedded import WeightsUnavailable, weights

    try:
        return weights("tiny")
    except WeightsUnavailable as error:
        pytest.skip(str(error))

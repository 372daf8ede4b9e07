"""A loopback server of OpenAI's chat protocol that counts its calls and shows one of many faults."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]
JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Reply:
    """An HTTP reply. Its bytes are sent in `pieces`, with a pause before each."""

    status: int
    content: bytes
    headers: dict[str, str] = field(default_factory=lambda: dict(JSON))
    pieces: int = 1
    pause_seconds: float = 0.0


Answer = Callable[[Body], Reply]
NO_REPLY = Reply(0, b"")
"""The server closes the connection instead."""


def chat(text: str | None, *, finish: str = "stop", prompt: int = 100, out: int = 5, **message: Any) -> Reply:
    """A chat completion."""
    usage = {"prompt_tokens": prompt, "completion_tokens": out, "total_tokens": prompt + out}
    return completion({"role": "assistant", "content": text, **message}, finish=finish, usage=usage)


def completion(message: Body, *, finish: str = "stop", **rest: Any) -> Reply:
    """A chat completion with any message and any other fields."""
    choice = {"index": 0, "finish_reason": finish, "message": message}
    return of_json({"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], **rest})


def of_json(value: object, status: int = 200, **headers: str) -> Reply:
    return Reply(status, json.dumps(value).encode(), {**JSON, **headers})


def refuses(*names: str, words: str, unless: Callable[[Any], bool] = lambda _: False) -> Answer:
    """A server that refuses parameters by name; `words` is the message with {name}."""

    def answer(body: Body) -> Reply:
        found = next((name for name in names if body.get(name) is not None and not unless(body[name])), None)
        if found is None:
            return chat("Sourdough")
        return of_json({"error": {"message": words.format(name=found), "type": "invalid_request_error"}}, 400)

    return answer


def prompt_of(body: Body) -> str:
    return "\n".join(str(message["content"]) for message in body["messages"])


def usage_of(usage: object) -> Reply:
    return completion({"role": "assistant", "content": "Sourdough"}, usage=usage)


def needs_room(body: Body) -> Reply:
    """A reasoning model: 300 tokens of thoughts come first."""
    limit = body.get("max_tokens") or body.get("max_completion_tokens") or 10_000
    details = {"completion_tokens_details": {"reasoning_tokens": min(300, limit)}}
    usage = {"prompt_tokens": 100, "completion_tokens": min(305, limit), "total_tokens": 405, **details}
    if limit <= 300:
        return completion({"role": "assistant", "content": None, "reasoning": "Hm"}, finish="length", usage=usage)
    return completion({"role": "assistant", "content": "Sourdough", "reasoning": "Hm"}, usage=usage)


def too_long(words: str, *, limit: int = 800) -> Answer:
    def answer(body: Body) -> Reply:
        if len(prompt_of(body)) <= limit:
            return chat("Sourdough")
        return of_json({"error": {"message": words, "type": "BadRequestError", "code": 400}}, 400)

    return answer


HTML = b"<html><head><title>502 Bad Gateway</title><style>p{}</style></head><body><h1>upstream died</h1></body></html>"
THOUGHTS = "First I look at the lines. "
LIST = [{"loc": ["body", "stop"], "msg": "Extra inputs are not permitted", "type": "extra_forbidden"}]


def always(reply: Reply) -> Answer:
    return lambda body: reply


ENDED: dict[str, tuple[Answer, tuple[str, ...]]] = {
    # every call fails: the run must end early; the words name the cause, and the flag if there is one
    "thoughts, null": (
        always(chat(None, finish="length", out=64, reasoning_content=THOUGHTS)),
        ("cut", "--max-answer-tokens"),
    ),
    "thoughts, empty": (always(chat("", finish="length", out=64, reasoning=THOUGHTS)), ("--max-answer-tokens",)),
    "thoughts, blank": (always(chat(" \n", finish="length", out=64)), ("--max-answer-tokens",)),
    "thoughts in the text": (always(chat("<think>\n" + THOUGHTS, finish="length", out=64)), ("--max-answer-tokens",)),
    "thoughts, complete": (always(chat(f"<think>{THOUGHTS}</think>\n", reasoning=None)), ("only thoughts",)),
    "thoughts, finished": (always(chat(None, reasoning_content=THOUGHTS)), ("only thoughts",)),
    "empty": (always(chat("")), ("empty",)),
    "content filter": (always(chat(None, finish="content_filter")), ("content filter",)),
    "tool calls": (
        always(chat(None, finish="tool_calls", tool_calls=[
            {"id": "1", "type": "function", "function": {"name": "search", "arguments": "{}"}}])),
        ("tool",),
    ),
    "refusal": (always(chat(None, refusal="I cannot help with that")), ("I cannot help with that",)),
    "error": (always(of_json({"error": {"message": "the disk is full"}}, 400)), ("400", "the disk is full")),
    "message": (always(of_json({"object": "error", "message": "the disk is full"}, 400)), ("400", "the disk is full")),
    "detail": (always(of_json({"detail": "the disk is full"}, 422)), ("422", "the disk is full")),
    "detail list": (always(of_json({"detail": LIST}, 422)), ("422", "Extra inputs are not permitted")),
    "error text": (always(of_json({"error": "the disk is full"}, 400)), ("400", "the disk is full")),
    "plain text": (always(Reply(400, b"the disk is full", {})), ("400", "the disk is full")),
    "empty body": (always(Reply(500, b"", {})), ("500",)),
    "error in 200": (always(of_json({"error": {"message": "the disk is full", "code": 500}})), ("the disk is full",)),
    "error text in 200": (always(of_json({"error": "the disk is full"})), ("the disk is full",)),
    "gateway page": (always(Reply(502, HTML, {"Content-Type": "text/html"})), ("502", "Bad Gateway", "upstream died")),
    "page in 200": (always(Reply(200, HTML, {"Content-Type": "text/html"})), ("--api-base", "Bad Gateway")),
    "not JSON": (always(Reply(200, b"pong", {})), ("pong",)),
    "no choices": (always(of_json({"choices": []})), ("choices",)),
    "null": (always(of_json(None)), ("choices",)),
    "list": (always(of_json([1, 2])), ("choices",)),
    "unknown model": (
        always(of_json({"error": {"message": "The model `m` does not exist", "code": "model_not_found"}}, 404)),
        ("does not exist", "--model"),
    ),
    "key": (always(of_json({"error": {"message": "Incorrect API key provided"}}, 401)), ("401", "OPENAI_API_KEY")),
    "forbidden": (always(of_json({"detail": "no access"}, 403)), ("403", "no access")),
    "429": (always(of_json({"error": {"message": "slow down"}}, 429)), ("429", "slow down")),
    "429, Retry-After": (always(of_json({"message": "slow down"}, 429, **{"Retry-After": "0"})), ("429", "slow down")),
    "overloaded": (always(of_json({"error": {"message": "Loading model"}}, 503)), ("503", "Loading model")),
    "closes": (always(NO_REPLY), ("closed the connection",)),
    "slow bytes": (always(Reply(200, b" " * 400, JSON, pieces=400, pause_seconds=0.05)), ("--timeout-seconds",)),
    "silent": (always(Reply(200, b" ", JSON, pause_seconds=3.0)), ("--timeout-seconds",)),
    "context, OpenAI": (
        too_long("This model's maximum context length is 512 tokens. However, your messages resulted in 900 tokens."),
        ("maximum context length is 512", "--context-window"),
    ),
    "context, vLLM": (
        too_long("'max_tokens' or 'max_completion_tokens' is too large: 64. This model's maximum context length is "
                 "512 tokens and your request has 900 input tokens (64 > 512 - 900)."),
        ("512", "--context-window"),
    ),
    "context, llama.cpp": (
        too_long("the request exceeds the available context size. try increasing the context size"),
        ("exceeds the available context size", "--context-window"),
    ),
}  # fmt: skip
"""Fault -> (the server's answer, words that the message must have)."""

MENDED: dict[str, Answer] = {
    # the run is valid
    "no usage": always(completion({"role": "assistant", "content": "Sourdough"})),
    "usage null": always(usage_of(None)),
    "usage zero": always(usage_of({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0})),
    "usage of nulls": always(usage_of({"prompt_tokens": None, "completion_tokens": None, "total_tokens": None})),
    "usage of texts": always(usage_of({"prompt_tokens": "100", "completion_tokens": "5"})),
    "needs room": needs_room,
    "temperature": refuses(
        "temperature", words="invalid {name}: only 1 is allowed for this model", unless=lambda value: value == 1
    ),
    "temperature, OpenAI": refuses(
        "temperature", words="Unsupported value: '{name}' does not support 0.0 with this model."
    ),
    "stop": refuses("stop", words="Unsupported parameter: '{name}' is not supported with this model."),
    "max_tokens": refuses(
        "max_tokens",
        words="Unsupported parameter: '{name}' is not supported with this model. Use 'max_completion_tokens' instead.",
    ),
    "both limits": refuses("max_tokens", "max_completion_tokens", words="Unrecognized request argument: {name}"),
    "parameters": refuses("temperature", "max_tokens", "stop", "seed", words="{name}: Extra inputs are not permitted"),
    "thinking": always(chat("<thinking>I look.</thinking>\nSourdough")),
    "content parts": always(chat([{"type": "text", "text": "Sourdough"}])),  # type: ignore[arg-type]
    "two choices": always(
        of_json(
            {
                "choices": [
                    {"index": i, "finish_reason": "stop", "message": {"role": "assistant", "content": "Sourdough"}}
                    for i in range(2)
                ],
                "usage": {"prompt_tokens": 100, "completion_tokens": 5},
            }
        )
    ),
    "finish unknown": always(chat("Sourdough", finish="eos")),
}
"""Peculiarity -> the server's answer."""


@dataclass
class ModelServer:
    """A running server.

    Attributes:
        url: its address, with /v1.
        answer: answers the body of a chat completion.
        models: the reply to GET /v1/models; None for 404.
        requests: the bodies of all chat completions.
        paths: the paths of all requests.
        headers: the headers of all chat completions.
    """

    answer: Answer
    url: str = ""
    models: object = None
    requests: list[Body] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    @property
    def calls(self) -> int:
        """Number of chat completions."""
        return len(self.requests)


@contextmanager
def serving(answer: Answer, *, models: object = None, certificate: Any = None) -> Iterator[ModelServer]:
    """Run a server on loopback; with an `ssl.SSLContext` it speaks TLS."""
    state, lock = ModelServer(answer, models=models), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            with lock:
                state.paths.append(self.path)
            found = state.models if self.path == "/v1/models" else None
            self._send(of_json({"detail": "Not Found"}, 404) if found is None else of_json(found))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                state.paths.append(self.path)
            if self.path == "/v1/embeddings":
                texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
                rows = [{"object": "embedding", "index": i, "embedding": [1.0, i]} for i in range(len(texts))]
                return self._send(of_json({"object": "list", "data": rows, "model": body["model"]}))
            if self.path != "/v1/chat/completions":
                return self._send(of_json({"detail": "Not Found"}, 404))
            assert body["model"]
            assert "stream" not in body or not body["stream"]
            assert all(message["role"] in ("system", "user", "assistant") for message in body["messages"])
            with lock:
                state.requests.append(body)
                state.headers.append(dict(self.headers))
            return self._send(state.answer(body))

        def _send(self, reply: Reply) -> None:
            if reply is NO_REPLY:
                self.close_connection = True
                return
            try:
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(reply.content)))
                self.end_headers()
                step = max(1, -(-len(reply.content) // reply.pieces))
                for start in range(0, len(reply.content), step):
                    time.sleep(reply.pause_seconds)
                    self.wfile.write(reply.content[start : start + step])
                    self.wfile.flush()
            except OSError:
                pass  # the client gave up

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *args: object) -> None:
            pass  # a handshake that the client broke off

    http = Quiet(("127.0.0.1", 0), Handler)
    if certificate is not None:
        http.socket = certificate.wrap_socket(http.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
    scheme = "http" if certificate is None else "https"
    state.url = f"{scheme}://127.0.0.1:{http.server_address[1]}/v1"
    try:
        yield state
    finally:
        http.shutdown()
        http.server_close()

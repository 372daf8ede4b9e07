"""An OpenAI-compatible server on this machine through which plug-in memory systems call the model of a run.

It forwards every call to the model and counts calls, tokens and failures for each system and stage, ingest or search.
Without a model, or above the cost limit, it refuses. Each system has its own base URL.
"""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol
from urllib.parse import quote, unquote

ROUTES = ("chat/completions", "completions", "responses", "embeddings")

REFUSED_WITHOUT_MODEL = (
    "This evaluation calls no model (--recall-only), so a memory system may not call one either; name a --model in "
    "place of --recall-only."
)


@dataclass
class MeteredUsage:
    """The calls of one system.

    Attributes:
        calls: Calls of a language model, also failed ones.
        unreported: Calls with a reply but without token counts.
        prompt_tokens: As the server reports them.
        completion_tokens: As the server reports them.
        cached_tokens: The part of the prompt tokens that the provider read from its cache.
        reasoning_tokens: The part of the completion tokens that the model spent on reasoning.
        embedding_calls: Calls of an encoder.
        embedding_tokens: As the server reports them.
        failures: Calls that the server answered with an error, or not at all.
        refused: Calls that this endpoint refused.
    """

    calls: int = 0
    unreported: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    embedding_calls: int = 0
    embedding_tokens: int = 0
    failures: int = 0
    refused: int = 0

    def add(self, more: MeteredUsage) -> None:
        """Add another usage."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(more, field.name))


@dataclass(frozen=True)
class UpstreamReply:
    """A reply of the model's server: status, content type, and the body in parts as they arrive."""

    status: int
    content_type: str
    parts: Iterator[bytes]


class Upstream(Protocol):
    """The model behind the endpoint."""

    @property
    def name(self) -> str: ...

    def send(self, route: str, body: dict[str, Any]) -> UpstreamReply:
        """Send a request.

        Args:
            route: One of ROUTES.
            body: The request.

        Raises:
            OSError: The server does not answer.
            ValueError: The model cannot serve this request; the message says why.
        """
        ...


class HttpUpstream:
    """A server with OpenAI's protocol. Requests are forwarded unchanged, except for the name of the model.

    Args:
        base_url: The URL that ends in `/v1`.
        key: Its key; empty for none.
        model: The name of the language model. Embedding requests keep their own model.
        timeout_seconds: Read timeout.
    """

    def __init__(self, base_url: str, key: str, model: str, *, timeout_seconds: float) -> None:
        self.base_url, self.key, self.name, self.timeout_seconds = base_url.rstrip("/"), key, model, timeout_seconds

    def send(self, route: str, body: dict[str, Any]) -> UpstreamReply:
        import requests

        sent = body if route == "embeddings" else {**body, "model": self.name}
        headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        reply = requests.post(
            f"{self.base_url}/{route}", json=sent, headers=headers, stream=True, timeout=self.timeout_seconds
        )
        content_type = reply.headers.get("Content-Type", "application/json")
        return UpstreamReply(reply.status_code, content_type, _lines(reply))


def _lines(reply: Any) -> Iterator[bytes]:
    """The body of a reply by line, with the ends of lines, so that events arrive whole."""
    with reply:
        rest = b""
        for chunk in reply.iter_content(None):
            *full, rest = (rest + chunk).split(b"\n")
            for line in full:
                yield line + b"\n"
        if rest:
            yield rest


class ClientUpstream:
    """Any other model of DSPy, such as an embedded one. It answers chat requests without tools.

    Args:
        lm: DSPy's client.
        name: The name of the model.
    """

    def __init__(self, lm: Any, name: str) -> None:
        self.lm, self.name = lm, name

    def send(self, route: str, body: dict[str, Any]) -> UpstreamReply:
        if route != "chat/completions" or body.get("tools"):
            what = "requests with tools" if body.get("tools") else route
            raise ValueError(f"{self.name} does not serve {what}; use a model of a server with OpenAI's protocol.")
        from memometer.models.usage import metered

        limit = body.get("max_completion_tokens") or body.get("max_tokens") or 1024
        messages = [{"role": m.get("role", "user"), "content": _text_of(m.get("content"))} for m in body["messages"]]
        with metered() as usage:
            (reply, *_) = self.lm(messages=messages, max_tokens=limit)
        text = reply if isinstance(reply, str) else reply["text"]
        counts = {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens}
        counts = {} if usage.unreported else {**counts, "total_tokens": sum(counts.values())}
        head = {"id": "chatcmpl-1", "created": int(time.time()), "model": self.name, "usage": counts or None}
        if not body.get("stream"):
            choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
            whole = {**head, "object": "chat.completion", "choices": [choice]}
            return UpstreamReply(200, "application/json", iter([json.dumps(whole).encode()]))
        delta = {"index": 0, "finish_reason": "stop", "delta": {"role": "assistant", "content": text}}
        chunks = [{**head, "usage": None, "choices": [delta]}, {**head, "choices": []}]
        events = [f"data: {json.dumps({**chunk, 'object': 'chat.completion.chunk'})}\n\n" for chunk in chunks]
        return UpstreamReply(200, "text/event-stream", iter([e.encode() for e in [*events, "data: [DONE]\n\n"]]))


def _text_of(content: Any) -> str:
    """The text of a message, which may be a list of parts."""
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return str(content or "")


class MeteredEndpoint:
    """The server. It starts at the first `url`.

    Args:
        upstream: The model; None refuses every call.
    """

    def __init__(self, upstream: Upstream | None) -> None:
        self.upstream = upstream
        self.refusal: Callable[[str], str] = lambda _: ""
        """(route) -> why no further call is allowed, such as a cost limit; empty if calls are allowed."""
        self.refusals: dict[str, str] = {}
        """System -> the reason of its last refused call."""
        self._stages: dict[str, str] = {}
        self._counts: dict[tuple[str, str], MeteredUsage] = defaultdict(MeteredUsage)
        self._totals: dict[tuple[str, str], MeteredUsage] = defaultdict(MeteredUsage)
        self._lock = threading.Lock()
        self._server: ThreadingHTTPServer | None = None

    def environment(self, system: str) -> dict[str, str]:
        """Return the environment variables that lead the clients of a system here.

        Args:
            system: Name of the system.
        """
        url = self.url(system)
        return {"OPENAI_BASE_URL": url, "OPENAI_API_BASE": url, "OPENAI_API_KEY": "metered-by-memometer"}

    def url(self, system: str) -> str:
        """Return the base URL of a system."""
        with self._lock:
            if self._server is None:
                self._server = ThreadingHTTPServer(("127.0.0.1", 0), _requests_of(self))
                self._server.daemon_threads = True
                threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self._server.server_address[1]}/{quote(system, safe='')}/v1"

    def set_stage(self, system: str, stage: str) -> None:
        """Count the calls of a system under another stage from now on: ingest or search."""
        self._stages[system] = stage

    def take(self, system: str, stage: str) -> MeteredUsage:
        """Return the calls since the last `take`."""
        with self._lock:
            return self._counts.pop((system, stage), MeteredUsage())

    def not_taken(self) -> MeteredUsage:
        """Return the calls that no `take` has returned yet."""
        total = MeteredUsage()
        with self._lock:
            for usage in self._counts.values():
                total.add(usage)
        return total

    def totals(self, system: str) -> dict[str, MeteredUsage]:
        """Return all calls of a system by stage."""
        with self._lock:
            return {stage: usage for (name, stage), usage in self._totals.items() if name == system}

    def count(self, system: str, usage: MeteredUsage) -> None:
        """Count calls under the present stage of a system."""
        at = system, self._stages.get(system, "ingest")
        with self._lock:
            self._counts[at].add(usage)
            self._totals[at].add(usage)

    def stop(self) -> None:
        """End the server."""
        server, self._server = self._server, None
        if server:
            server.shutdown()
            server.server_close()


def _requests_of(endpoint: MeteredEndpoint) -> type[BaseHTTPRequestHandler]:
    class Requests(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = endpoint.upstream.name if endpoint.upstream else "none"
            self._send(200, {"object": "list", "data": [{"id": name, "object": "model", "owned_by": "memometer"}]})

        def do_POST(self) -> None:
            _, system, _, route = [*self.path.split("?")[0].split("/", 3), "", "", ""][:4]
            system = unquote(system)
            length = int(self.headers.get("Content-Length") or 0)
            try:
                body = json.loads(self.rfile.read(length))
            except ValueError as error:
                return self._send(400, _error(f"The request is not JSON ({error})."))
            if route not in ROUTES or not isinstance(body, dict):
                return self._send(404, _error(f"Only {', '.join(ROUTES)} are served, not {route!r}."))
            if reason := REFUSED_WITHOUT_MODEL if endpoint.upstream is None else endpoint.refusal(route):
                endpoint.count(system, MeteredUsage(refused=1))
                endpoint.refusals[system] = reason
                return self._send(403, _error(reason))
            return self._forward(system, route, body)

        def _forward(self, system: str, route: str, body: dict[str, Any]) -> None:
            assert endpoint.upstream
            streams = bool(body.get("stream")) and route != "embeddings"
            wants_usage = bool((body.get("stream_options") or {}).get("include_usage"))
            if streams and route != "responses":
                body = {**body, "stream_options": {**(body.get("stream_options") or {}), "include_usage": True}}
            failed = MeteredUsage(**{_calls(route): 1}, failures=1)
            try:
                reply = endpoint.upstream.send(route, body)
            except ValueError as error:
                endpoint.count(system, MeteredUsage(refused=1))
                self._send(400, _error(str(error)))
                return
            except Exception as error:  # noqa: BLE001 - whatever the client raises, the call failed
                endpoint.count(system, failed)
                self._send(502, _error(f"The model did not answer ({type(error).__name__})."))
                return
            self._relay(system, route, reply, streams=streams and reply.status == 200, wants_usage=wants_usage)

        def _relay(self, system: str, route: str, reply: UpstreamReply, *, streams: bool, wants_usage: bool) -> None:
            """Pass a reply on. It is read to its end and counted, also if the system no longer listens."""
            counts: dict[str, Any] | None = None
            listens = True
            parts: list[bytes] = []
            try:
                if streams:
                    self._start(reply.status, reply.content_type)
                skip_blank = False
                for part in reply.parts:
                    if not streams:
                        parts.append(part)
                        continue
                    found, only_usage = _usage_in_event(part)
                    counts = found or counts
                    hidden = (only_usage and not wants_usage) or (skip_blank and not part.strip())
                    skip_blank = only_usage and not wants_usage
                    if listens and not hidden:
                        listens = self._write(part)
                if not streams:
                    counts = _usage_in(b"".join(parts))
            except Exception:  # noqa: BLE001 - the connection to the model broke; the call failed
                endpoint.count(system, MeteredUsage(**{_calls(route): 1}, failures=1))
                self.close_connection = True
                if not streams:
                    self._send(502, _error("The connection to the model broke."))
                return
            endpoint.count(system, _counted(route, reply.status, counts))
            if not streams:
                body = b"".join(parts)
                self._start(reply.status, reply.content_type, len(body))
                self._write(body)

        def _start(self, status: int, content_type: str, length: int | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            if length is not None:
                self.send_header("Content-Length", str(length))
            self.end_headers()

        def _write(self, data: bytes) -> bool:
            try:
                self.wfile.write(data)
                self.wfile.flush()
            except OSError:
                return False
            return True

        def _send(self, status: int, value: Mapping[str, Any]) -> None:
            body = json.dumps(value).encode()
            self._start(status, "application/json", len(body))
            self._write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Requests


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "memometer", "code": None, "param": None}}


def _calls(route: str) -> str:
    return "embedding_calls" if route == "embeddings" else "calls"


def _counted(route: str, status: int, counts: Mapping[str, Any] | None) -> MeteredUsage:
    """Count a reply, from the `usage` that it reports."""
    if status >= 400:
        return MeteredUsage(**{_calls(route): 1}, failures=1)
    counts = counts or {}
    prompt = counts.get("prompt_tokens", counts.get("input_tokens"))
    if route == "embeddings":
        return MeteredUsage(embedding_calls=1, embedding_tokens=prompt or 0, unreported=int(prompt is None))
    details = counts.get("prompt_tokens_details") or counts.get("input_tokens_details") or {}
    reasoning = counts.get("completion_tokens_details") or counts.get("output_tokens_details") or {}
    return MeteredUsage(
        calls=1,
        unreported=int(prompt is None),
        prompt_tokens=prompt or 0,
        completion_tokens=counts.get("completion_tokens", counts.get("output_tokens")) or 0,
        cached_tokens=details.get("cached_tokens") or 0,
        reasoning_tokens=reasoning.get("reasoning_tokens") or 0,
    )


def _usage_in(body: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(body)
    except ValueError:
        return None
    usage = found.get("usage") if isinstance(found, dict) else None
    return usage if isinstance(usage, dict) else None


def _usage_in_event(line: bytes) -> tuple[dict[str, Any] | None, bool]:
    """Return the usage in a line of a stream, and True if the event holds nothing else."""
    if not line.startswith(b"data:"):
        return None, False
    try:
        event = json.loads(line[5:])
    except ValueError:  # [DONE]
        return None, False
    if not isinstance(event, dict):
        return None, False
    usage = event.get("usage") or (event.get("response") or {}).get("usage")
    return (usage, event.get("choices") == []) if isinstance(usage, dict) else (None, False)

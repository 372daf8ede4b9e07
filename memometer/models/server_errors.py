"""Failures of model servers as one sentence each: the status, the server's own words, the address and the next step."""

from __future__ import annotations

import json
import re
import urllib.parse
import urllib.request
from dataclasses import dataclass
from typing import Any

from dspy import lm15

WORDS = 300
"""Characters of a server's message in a sentence."""


@dataclass(frozen=True, slots=True)
class Flags:
    """The options that a user can change, for error messages.

    Attributes:
        model: names the model.
        api_base: names the address.
        tokens: raises the limit of a reply.
        key: the environment variable of the API key.
    """

    model: str = "--model"
    api_base: str = "--api-base"
    tokens: str = "--max-answer-tokens"
    key: str = "OPENAI_API_KEY"


def message_of(body: bytes | str) -> str:
    """Return the message in the body of an error reply, shortened to one line.

    Known are `{"error": {"message"}}`, `{"error": text}`, `{"message"}`, `{"detail": text}`, FastAPI's list of
    `{"loc", "msg"}`, HTML pages, and plain text.
    """
    text = body.decode("utf-8", "replace") if isinstance(body, bytes) else body
    try:
        found = _message_in(json.loads(text))
    except (ValueError, RecursionError):
        found = _without_tags(text) if "<" in text else text
    found = " ".join((found or text).split())
    return found if len(found) <= WORDS else found[:WORDS] + "…"


def _message_in(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "; ".join(filter(None, map(_message_in, value[:3])))
    if not isinstance(value, dict):
        return ""
    if isinstance(value.get("msg"), str):
        place = ".".join(str(part) for part in value.get("loc") or () if part != "body")
        return f"{place}: {value['msg']}" if place else value["msg"]
    names = ("error", "message", "detail", "details", "errors", "title", "reason", "error_description")
    return next((found for name in names if (found := _message_in(value.get(name)))), "")


def _without_tags(page: str) -> str:
    return re.sub(r"(?is)<(script|style)\b.*?</\1>|<!--.*?-->|<[^>]*>", " ", page)


def error_in(value: Any) -> str:
    """Return the message of an error that a reply with status 200 contains; empty if it contains a completion."""
    if isinstance(value, dict) and isinstance(value.get("choices"), list) and value["choices"]:
        return ""
    message = _message_in(value) if isinstance(value, dict) else ""
    return message or "the reply has no choices"


_CONTEXT = re.compile(
    r"context[ _](length|size|window)|maximum context|n_ctx|exceeds? the (model's )?(maximum|limit|context)|"
    r"(prompt|input|message)s? (is|are|was) too long|too many (input |prompt )?tokens|maximum (input|prompt|sequence) "
    r"length|longer than the (model|maximum)|exceeds.{0,40}\btokens|input length",
    re.IGNORECASE,
)
_WINDOW = re.compile(r"(?:context (?:length|size|window)|n_ctx|maximum)\D{0,40}?(\d{3,8})", re.IGNORECASE)


def is_context_refusal(message: str) -> bool:
    """Return True if a message says that the prompt does not fit the model's window."""
    return bool(_CONTEXT.search(message))


def of_status(status: int, body: bytes | str, address: str, flags: Flags, found: Exception) -> Any:
    """Return the error for a reply with an error status.

    Args:
        status: the HTTP status.
        body: its body.
        address: the API base.
        flags: the options to name.
        found: DSPy's own error for the reply; its class is kept if the body says no more.

    Returns:
        An error of `dspy.lm15`.
    """
    words = message_of(body)
    kind: type[Exception] = type(found)
    advice = ""
    plain = " ".join(words.lower().split())
    about_model = "model" in plain and re.search(r"not (be )?found|does not exist|not exist|unknown|no such", plain)
    if status in (400, 413, 422, 500) and is_context_refusal(words):
        window = _WINDOW.search(words)
        kind = lm15.ContextLengthError
        advice = f"name the server's window with --context-window {window[1] if window else 'TOKENS'}"
    elif kind is lm15.UnsupportedModelError or (status in (400, 404) and about_model):
        kind, advice = lm15.UnsupportedModelError, f"correct {flags.model}; memometer check lists the server's models"
    elif status in (401, 403):
        advice = f"set {flags.key}"
    elif status in (404, 405):
        kind, advice = lm15.NotConfiguredError, _path_advice(address, flags)
    elif status == 407:
        kind, advice = lm15.NotConfiguredError, f"a proxy stands between; {_proxy_advice(address)}"
    elif status == 429:
        advice = "lower --num-threads, or continue later"
    said = words or "an empty body"
    sentence = f"HTTP {status} from {address}: {said}"
    return _made(kind, sentence if not advice else f"{sentence.rstrip('.')}; {advice}", status)


def of_reply(words: str, body: bytes, address: str, flags: Flags) -> Any:
    """Return the error for a reply with status 200 that is not a chat completion.

    Args:
        words: the message in the body, or the fault that was found.
        body: the body.
        address: the API base.
        flags: the options to name.
    """
    if is_context_refusal(words):
        return of_status(400, words, address, flags, lm15.InvalidRequestError(words))
    if body.strip()[:1] not in (b"{", b"[") and body.strip() != b"null":  # a page, or another service
        sentence = f"{address} does not answer with JSON but with: {message_of(body)}"
        return _made(lm15.ServerError, f"{sentence}; correct {flags.api_base} unless a model server is there", 200)
    return _made(lm15.ServerError, f"HTTP 200 from {address} without an answer: {words[:WORDS]}", 200)


def of_connection(error: BaseException, address: str, flags: Flags, *, timeout_seconds: float) -> Any:
    """Return the error for a call that got no complete reply.

    Args:
        error: the client's error.
        address: the API base.
        flags: the options to name.
        timeout_seconds: the limit of a call.
    """
    text = " ".join(str(error).split())
    parts = urllib.parse.urlsplit(address)
    host = parts.hostname or address
    proxy = proxy_of(address)
    if proxy and "timed out" not in text:
        return _made(
            lm15.TransportError,
            f"the proxy {proxy} does not connect to {host} ({text}); {_proxy_advice(address)}",
        )
    if "CERTIFICATE_VERIFY_FAILED" in text:
        reason = re.search(r"verify failed: ([^(]+)", text)
        why = reason[1].strip() if reason else "verification failed"
        return _made(
            lm15.NotConfiguredError,
            f"the certificate of {parts.netloc} is not trusted ({why}); name the file of its authority with "
            "SSL_CERT_FILE=FILE",
        )
    if "TLS handshake" in text or "SSL" in text:
        return _made(
            lm15.NotConfiguredError,
            f"{parts.netloc} does not speak TLS ({text}); use http:// in {flags.api_base}",
        )
    if re.search(r"getaddrinfo|name or service|nodename|name resolution|Errno -[0-9]", text, re.IGNORECASE):
        return _made(
            lm15.TransportError, f"the host name {host} cannot be resolved (DNS); correct {flags.api_base} {address}"
        )
    if "timed out" in text and "connecting" not in text:
        return _made(
            lm15.TimeoutError,
            f"no complete reply from {address} within {timeout_seconds:g} s; raise --timeout-seconds",
        )
    if "failed to connect" in text or "connecting" in text:
        reason = re.search(r"\[Errno -?\d+\] (.*)", text)
        return _made(
            lm15.TransportError,
            f"no server at {address} ({reason[1] if reason else text}); start it, or correct {flags.api_base}",
        )
    tls = f"; if it expects TLS, use https:// in {flags.api_base}" if parts.scheme == "http" else ""
    return _made(lm15.TransportError, f"{address} closed the connection without a complete reply ({text}){tls}")


def _made(kind: type[Any], sentence: str, status: int | None = None) -> Any:
    return kind(sentence, status=status) if issubclass(kind, lm15.ProviderError) else kind(sentence)


def _path_advice(address: str, flags: Flags) -> str:
    if not re.search(r"/v\d+\w*$", address.rstrip("/")):
        return f"the address has no /v1; use {flags.api_base} {address.rstrip('/')}/v1"
    return f"the path does not exist there; correct {flags.api_base}"


def proxy_of(address: str) -> str:
    """Return the proxy that HTTP clients use for an address by the environment; empty for none."""
    parts = urllib.parse.urlsplit(address)
    proxies = urllib.request.getproxies()
    found = proxies.get(parts.scheme) or proxies.get("all") or ""
    if not found or urllib.request.proxy_bypass(parts.hostname or ""):
        return ""
    return urllib.parse.urlsplit(found if "://" in found else f"http://{found}").netloc.rpartition("@")[2]


def _proxy_advice(address: str) -> str:
    host = urllib.parse.urlsplit(address).hostname
    return f"correct HTTP_PROXY, or add {host} to NO_PROXY"

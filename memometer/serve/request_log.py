"""Access log, audit log and traces of requests. They hold no text, and of a path only the route and the names in it."""

from __future__ import annotations

import json
import os
import re
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import IO, Any

from starlette.datastructures import Headers
from starlette.types import Scope

from memometer.errors import UserError

MEMORY = "/v1/memories/{name}"
ACTIONS: Mapping[tuple[str, str], str] = {
    ("POST", "/memory/store"): "store",
    ("POST", f"{MEMORY}/observe"): "store",
    ("PATCH", f"{MEMORY}/turns/{{id}}"): "update",
    ("DELETE", f"{MEMORY}/turns/{{id}}"): "forget",
    ("POST", f"{MEMORY}/turns/{{id}}/restore"): "restore",
    ("PUT", MEMORY): "create",
    ("DELETE", MEMORY): "delete",
    ("GET", f"{MEMORY}/cartridge"): "export",
    ("PUT", f"{MEMORY}/cartridge"): "import",
    ("POST", "/memory/consolidate"): "consolidate",
    ("POST", f"{MEMORY}/consolidate"): "consolidate",
    ("POST", f"{MEMORY}/consolidate/undo"): "undo",
    ("POST", "/mcp"): "mcp",
}
"""The audited requests, by method and route."""

STANDARD_ERROR = "-"


def request_id(scope: Scope) -> str:
    """Return the id that the caller or its proxy gave in X-Request-ID, or a new one."""
    given = Headers(scope=scope).get("x-request-id", "")
    return given if re.fullmatch(r"[A-Za-z0-9._:-]{1,128}", given) else uuid.uuid4().hex


class JsonLines:
    """Appends JSON objects to a file, one per line. Thread-safe.

    Args:
        path: the file, which only its owner may read if it is new; `-` for standard error; None writes nothing.

    Raises:
        UserError: the file cannot be opened.
    """

    def __init__(self, path: str | None) -> None:
        self._lock = threading.Lock()
        self._file: IO[str] | None = None
        if path == STANDARD_ERROR:
            self._file = os.fdopen(os.dup(2), "w", buffering=1)
        elif path is not None:
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            except OSError as error:
                raise UserError(f"cannot write the log {path} ({error.strerror}); name another file.") from error
            self._file = os.fdopen(descriptor, "a", buffering=1)

    def write(self, **fields: Any) -> None:
        """Write an object with the present time; a full disk loses the line."""
        if self._file is None:
            return
        line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **fields})
        with self._lock:
            try:
                self._file.write(line + "\n")
            except OSError:
                return

    def close(self) -> None:
        if self._file:
            self._file.close()


class RequestLog:
    """The access log, the audit log and the traces of a service.

    Args:
        access: file of the access log, one line per request; `-` for standard error, None for none.
        audit: file of the audit log, one line per request that stores, changes, exports or deletes.
        spans: exporter of OpenTelemetry spans; None for the one that OTEL_EXPORTER_OTLP_ENDPOINT names, if it is set.
    """

    def __init__(self, access: str | None = None, audit: str | None = None, *, spans: Any = None) -> None:
        self._access, self._audit = JsonLines(access), JsonLines(audit)
        self._provider = _provider(spans)
        self._tracer = self._provider and self._provider.get_tracer("memometer")

    @contextmanager
    def span(self, scope: Scope) -> Iterator[Any]:
        """Record a span of a request, as a child of the caller's if the request names one."""
        if self._tracer is None:
            yield None
            return
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        parent = TraceContextTextMapPropagator().extract(dict(Headers(scope=scope)))
        # The message of an exception may quote a text.
        kept = {"record_exception": False, "set_status_on_exception": False}
        with self._tracer.start_as_current_span(scope["method"], parent, SpanKind.SERVER, **kept) as span:
            yield span

    def finish(self, scope: Scope, span: Any, *, status: int, seconds: float) -> None:
        """Write what is known at the end of a request."""
        state, method = scope.get("state", {}), scope["method"]
        route = getattr(scope.get("route"), "path", None) or ("/mcp" if scope["path"] == "/mcp" else None)
        fields = {
            "request_id": state.get("request_id"),
            "method": method if method.isalpha() else "other",
            "route": route,
            "status": status,
            "ms": round(1000 * seconds, 1),
            "tenant": state.get("tenant"),
            "token": state.get("token"),
            "client": (scope.get("client") or (None,))[0],
        }
        self._access.write(**fields)
        action = ACTIONS.get((method, route or ""))
        if action and fields["tenant"] is not None:
            names = scope.get("path_params", {})
            self._audit.write(action=action, memory=names.get("name"), turn=names.get("id"), **fields)
        if span is not None:
            span.update_name(f"{fields['method']} {route or ''}".strip())
            named = {
                "http.request.method": fields["method"], "http.route": route, "http.response.status_code": status,
                "memometer.request_id": fields["request_id"], "memometer.tenant": fields["tenant"],
            }  # fmt: skip
            span.set_attributes({name: value for name, value in named.items() if value is not None})

    def close(self) -> None:
        """Send the last spans and close the files."""
        self._access.close()
        self._audit.close()
        if self._provider:
            self._provider.shutdown()


def _provider(spans: Any) -> Any:
    """Return a provider of tracers, or None if traces are not wanted.

    Raises:
        UserError: traces are wanted, and OpenTelemetry is not installed.
    """
    variables = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    if spans is None and not any(map(os.environ.get, variables)):
        return None
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        if spans is None:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

            spans = OTLPSpanExporter()
    except ImportError as error:
        raise UserError(
            f"{variables[0]} is set, but OpenTelemetry is not installed; run: "
            "pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http, or unset it."
        ) from error
    provider = TracerProvider(resource=Resource.create({"service.name": "memometer"}))
    provider.add_span_processor(BatchSpanProcessor(spans))
    return provider

"""The page for human labels, over HTTP on this machine only: one answer at a time, with a secret token."""

from __future__ import annotations

import hmac
import json
import secrets
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any, get_args

from memometer.judging.human_labels import HumanLabel
from memometer.judging.label_session import LabelSession

MAX_BODY = 10_000
"""Bytes of a request."""


class LabelServer(ThreadingHTTPServer):
    """A server of the label page.

    Attributes:
        token: The secret that each request must have. Only the printed address contains it.
    """

    daemon_threads = True

    def __init__(self, session: LabelSession, port: int) -> None:
        self.session = session
        self.token = secrets.token_urlsafe(24)
        super().__init__(("127.0.0.1", port), LabelRequest)

    @property
    def url(self) -> str:
        """The address of the page, with the token in its fragment."""
        return f"http://127.0.0.1:{self.server_port}/#{self.token}"


class LabelRequest(BaseHTTPRequestHandler):
    """A request of the label page."""

    server: LabelServer

    def do_GET(self) -> None:
        """Send the page, which has no text of the data."""
        if not self._is_local():
            self._send(403, {"error": "only for this machine"})
        elif self.path == "/":
            page = (files("memometer.report") / "page" / "label.html").read_bytes()
            self._send_bytes(200, "text/html; charset=utf-8", page)
        else:
            self._send(404, {"error": "not found"})

    def do_POST(self) -> None:
        """Send an answer, add a label, or end the labelling."""
        token = self.headers.get("X-Token", "")
        if not self._is_local() or not hmac.compare_digest(token.encode(), self.server.token.encode()):
            self._send(403, {"error": "open the page with the address that the command printed"})
            return
        try:
            length = int(self.headers.get("Content-Length", ""))
            body = json.loads(self.rfile.read(length)) if 0 <= length <= MAX_BODY else None
            if not isinstance(body, dict):
                raise ValueError("the request is not an object")
            self._send(200, self._answered(body))
        except (ValueError, KeyError, TypeError) as error:
            self._send(400, {"error": f"invalid request ({error})"})
        except OSError as error:
            self._send(500, {"error": f"the run cannot be written ({error})"})

    def _answered(self, body: dict[str, Any]) -> dict[str, Any]:
        session = self.server.session
        if self.path == "/item":
            before = body.get("before")
            last = len(session.drawn) if before is None else self._position(before)
            return self._item(max(0, last - 1) if "before" in body else session.next_unlabelled())
        if self.path == "/label":
            position, label = self._position(body["position"]), body["label"]
            if label not in get_args(HumanLabel):
                raise ValueError(f"the label is {label!r}; allowed are {', '.join(get_args(HumanLabel))}")
            session.add(position, label)
            return self._item(session.next_unlabelled(position))
        if self.path == "/stop":
            threading.Thread(target=self.server.shutdown, daemon=True).start()
            return {"stopped": True}
        raise ValueError(f"{self.path} is unknown")

    def _position(self, value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < len(self.server.session.drawn):
            raise ValueError(f"the position is {value!r}; allowed are 0 to {len(self.server.session.drawn) - 1}")
        return value

    def _item(self, position: int | None) -> dict[str, Any]:
        session = self.server.session
        counts = {"total": len(session.drawn), "labelled": session.done(), "position": position}
        if position is None:
            return {**counts, "label": None}
        draw = session.drawn[position]
        return {
            **counts,
            "label": session.labels()[position],
            "question": draw.question.text,
            "gold": draw.question.gold,
            "answer": session.answer(draw),
            "evidence": session.evidence(draw),
        }

    def _is_local(self) -> bool:
        """True for this machine's name. Another site may resolve its own name to this machine."""
        host = urllib.parse.urlsplit(f"//{self.headers.get('Host', '')}").hostname
        return host in ("127.0.0.1", "localhost")

    def _send(self, status: int, content: dict[str, Any]) -> None:
        self._send_bytes(status, "application/json", json.dumps(content).encode("ascii"))

    def _send_bytes(self, status: int, kind: str, content: bytes) -> None:
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(content)),
            "Cache-Control": "no-store",
            "Content-Security-Policy": "default-src 'self' 'unsafe-inline'; frame-ancestors 'none'",
            "X-Content-Type-Options": "nosniff",
        }
        try:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)
        except ConnectionError:
            pass  # the tab was closed

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""

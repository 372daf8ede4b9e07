"""The report page over HTTP, for this machine only, with updates of runs in progress."""

from __future__ import annotations

import gzip
import json
import threading
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from memometer.report import viewer_data, write
from memometer.report.runs_in_progress import FollowedRun, follow
from memometer.run.folder import RunFolderError


class PageData:
    """The data of the page, rebuilt if a run has changed.

    Args:
        runs: The runs.
    """

    PAUSE = 10
    """The pause after a rebuild, in units of its duration, because the runs need the processor."""

    def __init__(self, runs: Sequence[FollowedRun]) -> None:
        self._runs = runs
        self._lock = threading.Lock()
        self._stamp, self._content, self._not_before = "", b"", 0.0

    def newer_than(self, stamp: str | None) -> bytes | None:
        """Return the data as compressed JSON, or None if the page has this version already.

        Args:
            stamp: The version of the page; None for none.

        Raises:
            RunFolderError: A run cannot be read.
        """
        with self._lock:
            if time.monotonic() >= self._not_before:
                newest = " ".join(run.read() for run in self._runs)
                if newest != self._stamp:
                    self._build(newest)
            return None if stamp == self._stamp else self._content

    def _build(self, stamp: str) -> None:
        started = time.monotonic()
        runs = [followed.run() for followed in self._runs]
        content = viewer_data.page(runs, [followed.rows() for followed in self._runs], live=True)
        content["stamp"] = stamp
        self._content = gzip.compress(json.dumps(content, separators=(",", ":")).encode("ascii"), 1)
        self._stamp = stamp
        now = time.monotonic()
        self._not_before = now + self.PAUSE * (now - started)


def server(paths: Sequence[Path], port: int) -> ThreadingHTTPServer:
    """Create a server of the page that listens on this machine only.

    Args:
        paths: Run folders.
        port: The port; 0 for any free one.

    Returns:
        The server.

    Raises:
        RunFolderError: A run or its data cannot be read.
        OSError: The port is not available.
    """
    followed = follow(paths)
    data = PageData(followed)
    title = " and ".join(run.name for run in followed)

    class Request(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # Another site may resolve its name to this machine; it must not read the page.
            host = urllib.parse.urlsplit(f"//{self.headers.get('Host', '')}").hostname
            url = urllib.parse.urlsplit(self.path)
            if host not in ("127.0.0.1", "localhost"):
                self._send(403, "text/plain", b"only for this machine")
            elif url.path == "/":
                self._send(200, "text/html; charset=utf-8", write.shell(title=title, content=None).encode())
            elif url.path == "/data.json":
                self._send_data(urllib.parse.parse_qs(url.query).get("since", [None])[0])
            else:
                self._send(404, "text/plain", b"not found")

        def _send_data(self, stamp: str | None) -> None:
            try:
                content = data.newer_than(stamp)
            except RunFolderError as error:
                self._send(500, "text/plain; charset=utf-8", str(error).encode())
                return
            if content is None:
                self._send(204, "application/json", b"")
            else:
                self._send(200, "application/json", content, {"Content-Encoding": "gzip"})

        def _send(self, status: int, kind: str, content: bytes, headers: Mapping[str, str] | None = None) -> None:
            try:
                self.send_response(status)
                for name, value in {"Content-Type": kind, "Cache-Control": "no-store", **(headers or {})}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
            except ConnectionError:
                pass  # the tab was closed

        def log_message(self, format: str, *args: object) -> None:
            pass

    served = ThreadingHTTPServer(("127.0.0.1", port), Request)
    served.daemon_threads = True
    return served

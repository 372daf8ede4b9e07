"""Look at runs in the browser: one, also while it goes on, or several side by side.

    memometer view runs/NAME [runs/OTHER …]         serves the page at http://127.0.0.1:7575/
    memometer view runs/NAME … --export FOLDER      writes report.html, report.md and report.tex there

evaluate.py leaves the same three files in its run folder. A run is only read: its lock is never taken.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import threading
import time
import urllib.parse
import webbrowser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from memometer.benchmarks.protocol import DataError
from memometer.report import results as conclusion
from memometer.report import viewer_data, write
from memometer.report.saved_results import upgraded
from memometer.run.folder import (
    Key,
    Record,
    RunFolderError,
    add_verdicts,
    key,
    latest,
    parse_lines,
    read_lines,
    read_manifest,
)

USAGE = 2


class Growing:
    """A file of lines to which another process appends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._at = 0

    def more(self) -> list[Record]:
        """The lines that were finished since the last time."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self._at)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._at += len(whole)
        return parse_lines(whole, self.path)


class Followed:
    """A run folder, read on from where it was last read. Raises RunFolderError where it cannot be read."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self.manifest = read_manifest(path)
        self.data = write.data_of(path, self.manifest)
        self.records: list[Record] = []
        self.ingests: list[Record] = []
        self._counting: dict[Key, Record] = {}
        self._files = {kind: Growing(path / f"{kind}.jsonl") for kind in ("records", "verdicts", "ingest")}
        self._rows = viewer_data.Rows(self.data)
        self._results: dict[str, Any] = {}
        self._of = ""

    def read_on(self) -> str:
        """Take in what is new. What comes back is another text whenever anything was."""
        if records := self._files["records"].more():
            self.records += records
            self._counting = latest(self.records)
        add_verdicts(self._counting, self._files["verdicts"].more())
        self.ingests += self._files["ingest"].more()
        results = self.path / "results.json"
        at = results.stat().st_mtime_ns if results.exists() else 0
        return f"{at}-{len(self.records)}-{len(self.ingests)}-{sum(len(r['verdicts']) for r in self.records)}"

    def run(self) -> viewer_data.Run:
        """The run as it stands."""
        stamp = self.read_on()
        if stamp != self._of:
            self._results, self._of = self._newest(), stamp
        return viewer_data.Run(self.name, self.manifest, self.records, self._results, self.data)

    def rows(self) -> list[dict[str, Any]]:
        """Its answers as the page lists them."""
        return self._rows.of(self.records)

    def _newest(self) -> dict[str, Any]:
        """results.json, or where answers came after it what it would say of the questions tried so far."""
        try:
            written: dict[str, Any] = json.loads((self.path / "results.json").read_bytes())
        except (OSError, ValueError):
            written = {}
        written = written if isinstance(written, dict) else {}
        if written.get("records", len(self.records)) == len(self.records) and "systems" in written:
            return upgraded(written, self.data)
        config = self.manifest["config"]
        planned = list(dict.fromkeys(key(record) for record in self.records))
        facts = {
            "status": "unfinished",
            "split": config["split"],
            "subset": True,
            "reader": self.manifest.get("reader"),
            "judge": config.get("judge_model"),
            "token_counter": next((record["recall"]["counter"] for record in self.records), ""),
            "left_out": self.manifest.get("left_out", {}),
        }
        return conclusion.compute_results(
            self.manifest,
            self.records,
            self.ingests,
            self.data,
            planned,
            facts,
            certificates=written.get("certificates", []),
            measurings=read_lines(self.path / "measuring.jsonl"),
        )


class Watch:
    """What the page is sent: all of it at first, later only where anything changed."""

    MOST_OF_THE_TIME = 10
    """Figures that took a second are not made again for so many: the run needs the processor itself."""

    def __init__(self, followed: list[Followed]) -> None:
        self._followed = followed
        self._lock = threading.Lock()
        self._stamp, self._content, self._not_before = "", b"", 0.0

    def news(self, since: str | None) -> bytes | None:
        """The content, compressed JSON; None where the page, at the stamp `since`, has it already."""
        with self._lock:
            if time.monotonic() >= self._not_before:
                stamp = " ".join(run.read_on() for run in self._followed)
                if stamp != self._stamp:
                    self._make(stamp)
            return None if since == self._stamp else self._content

    def _make(self, stamp: str) -> None:
        started = time.monotonic()
        runs = [followed.run() for followed in self._followed]
        content = viewer_data.page(runs, [followed.rows() for followed in self._followed], live=True)
        content["stamp"] = stamp
        self._content = gzip.compress(json.dumps(content, separators=(",", ":")).encode("ascii"), 1)
        self._stamp = stamp
        now = time.monotonic()
        self._not_before = now + self.MOST_OF_THE_TIME * (now - started)


def server(paths: list[Path], port: int) -> ThreadingHTTPServer:
    """A server of the page on this machine alone; port 0 takes any that is free."""
    followed = follow(paths)
    watch = Watch(followed)
    title = " and ".join(run.name for run in followed)

    class Request(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # A page of somewhere else may have its name point here; it must not read what is served.
            host = urllib.parse.urlsplit(f"//{self.headers.get('Host', '')}").hostname
            where = urllib.parse.urlsplit(self.path)
            if host not in ("127.0.0.1", "localhost"):
                self._send(403, "text/plain", b"only for this machine")
            elif where.path == "/":
                self._send(200, "text/html; charset=utf-8", write.shell(title=title, content=None).encode())
            elif where.path == "/data.json":
                self._send_data(urllib.parse.parse_qs(where.query).get("since", [None])[0])
            else:
                self._send(404, "text/plain", b"there is only /")

        def _send_data(self, since: str | None) -> None:
            try:
                content = watch.news(since)
            except RunFolderError as error:
                self._send(500, "text/plain; charset=utf-8", str(error).encode())
                return
            if content is None:
                self._send(204, "application/json", b"")
            else:
                self._send(200, "application/json", content, {"Content-Encoding": "gzip"})

        def _send(self, status: int, kind: str, content: bytes, more: dict[str, str] | None = None) -> None:
            try:
                self.send_response(status)
                for name, value in {"Content-Type": kind, "Cache-Control": "no-store", **(more or {})}.items():
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


def follow(paths: list[Path]) -> list[Followed]:
    """The runs in some folders, by names that tell them apart."""
    names = [path.resolve().name for path in paths]
    return [
        Followed(path, name if names.count(name) == 1 else str(path)) for path, name in zip(paths, names, strict=True)
    ]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="memometer view", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="the folder of a run")
    parser.add_argument("--port", type=int, default=7575, help="0 for any that is free (default 7575)")
    parser.add_argument("--no-browser", action="store_true", help="serve, and open no browser")
    parser.add_argument("--export", type=Path, metavar="FOLDER", help="write the reports there, and serve nothing")
    args = parser.parse_args(argv)
    try:
        if args.export:
            runs = follow(args.runs)
            written = write.write([run.run() for run in runs], args.export)
            print(f"{runs[0].data.prefix}written: {', '.join(map(str, written))}")
            return 0
        served = server(args.runs, args.port)
    except (RunFolderError, DataError) as error:
        print(f"memometer.report.viewer: {error}", file=sys.stderr)
        return USAGE
    except (OSError, OverflowError) as error:
        what = f"cannot write into {args.export}" if args.export else f"cannot serve at port {args.port}"
        print(f"memometer.report.viewer: {what} ({error}); name another one.", file=sys.stderr)
        return USAGE
    address = f"http://127.0.0.1:{served.server_port}/"
    print(f"{', '.join(map(str, args.runs))} at {address} (Ctrl-C ends it)", flush=True)
    if not args.no_browser:
        webbrowser.open(address)
    try:
        served.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        served.server_close()
    return 0

"""A loopback server of batches: it speaks the protocols of OpenAI and of Together, and checks what it is sent."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

Line = dict[str, Any]
Processed = tuple[str, list[Line], list[Line]]
"""Status of a batch at its end, the lines of its output file and of its error file."""


def answered(request: Line, text: str, *, prompt_tokens: int = 100) -> Line:
    """The line of an output file with a chat completion."""
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": request["body"]["model"],
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": 5, "total_tokens": prompt_tokens + 5},
    }
    response = {"status_code": 200, "request_id": "r", "body": body}
    return {"id": "line", "custom_id": request["custom_id"], "response": response, "error": None}


def refused(request: Line, message: str) -> Line:
    """The line of an error file."""
    response = {"status_code": 400, "request_id": "r", "body": {"error": {"message": message}}}
    return {"id": "line", "custom_id": request["custom_id"], "response": response, "error": None}


def unprocessed(request: Line, code: str = "batch_expired") -> Line:
    """The line of an error file for a request that the server did not process."""
    error = {"code": code, "message": "This request could not be executed in time."}
    return {"id": "line", "custom_id": request["custom_id"], "response": None, "error": error}


@dataclass
class BatchServer:
    """The server's files and batches, and how it processes a batch: (its number from 1, its requests) -> its end."""

    process: Callable[[int, list[Line]], Processed]
    polls: int = 1
    url: str = ""
    files: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    batches: dict[str, Line] = field(default_factory=dict)
    after_create: Callable[[], None] = lambda: None

    def requests(self, number: int) -> list[Line]:
        """The requests of a batch, by its number from 1."""
        batch = list(self.batches.values())[number - 1]
        return [json.loads(line) for line in self.files[batch["input_file_id"]][1].splitlines()]

    def add_file(self, name: str, content: bytes) -> str:
        id = f"file-{len(self.files) + 1}"
        self.files[id] = name, content
        return id

    def create(self, given: Line) -> Line:
        assert given["endpoint"] == "/v1/chat/completions"
        number = len(self.batches) + 1
        ids = [line["custom_id"] for line in map(json.loads, self.files[given["input_file_id"]][1].splitlines())]
        assert len(set(ids)) == len(ids) > 0
        assert all(len(id) <= 64 for id in ids)
        batch = {"id": f"batch-{number}", "number": number, "polls": 0, "status": "in_progress", **given}
        self.batches[batch["id"]] = batch
        self.after_create()
        return batch

    def poll(self, id: str) -> Line:
        batch = self.batches[id]
        batch["polls"] += 1
        if batch["status"] == "in_progress" and batch["polls"] > self.polls:
            status, *files = self.process(batch["number"], self.requests(batch["number"]))
            for name, lines in zip(("output_file_id", "error_file_id"), files, strict=True):
                if lines:
                    content = "".join(json.dumps(line) + "\n" for line in reversed(lines))
                    batch[name] = self.add_file(f"{id}_{name}.jsonl", content.encode())
            batch["status"] = status
        return batch


def openai_batch(batch: Line) -> Line:
    errors = {"object": "list", "data": [{"code": "bad", "message": batch.get("why", "a reason")}]}
    return {"object": "batch", "created_at": int(time.time()), "completion_window": "24h", "metadata": None,
            "errors": errors if batch["status"] == "failed" else None, **batch}  # fmt: skip


def together_batch(batch: Line) -> Line:
    why = "a reason" if batch["status"] == "failed" else None
    return {**batch, "status": batch["status"].upper(), "error": why}


def file_object(id: str, name: str, content: bytes, *, together: bool) -> Line:
    kind = {"FileType": "jsonl", "Processed": True, "purpose": "batch-api"} if together else {"purpose": "batch"}
    return {"id": id, "object": "file", "bytes": len(content), "created_at": 1, "filename": name,
            "status": "processed", **kind}  # fmt: skip


def multipart(content_type: str, body: bytes) -> dict[str, tuple[str | None, bytes]]:
    """Name of a form field -> its file name and content."""
    whole = message_from_bytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body)
    return {
        str(part.get_param("name", header="content-disposition")): (part.get_filename(), part.get_payload(decode=True))
        for part in whole.get_payload()
    }


@contextmanager
def batch_server(process: Callable[[int, list[Line]], Processed], *, together: bool = False) -> Iterator[BatchServer]:
    """Serve batches on a loopback port."""
    server = BatchServer(process)
    lock = threading.Lock()
    shown = together_batch if together else openai_batch

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with lock:
                self.post(urlsplit(self.path).path, body)

        def do_PUT(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            id = urlsplit(self.path).path.rpartition("/")[2]
            server.files[id] = server.files[id][0], content
            self.send(200, b"")

        def do_GET(self) -> None:
            with lock:
                self.get(urlsplit(self.path).path)

        def post(self, path: str, body: bytes) -> None:
            if path == "/v1/batches":
                batch = server.create(json.loads(body))
                self.json({"job": shown(batch)} if together else shown(batch))
            elif path == "/v1/files" and together:
                parts = multipart(self.headers["Content-Type"], body)
                form = {name: content.decode() for name, (_, content) in parts.items()}
                assert form["purpose"] == "batch-api"
                id = server.add_file(form["file_name"], b"")
                self.send(302, b"", Location=f"{server.url}/put/{id}", X_Together_File_Id=id)
            elif path == "/v1/files":
                form = multipart(self.headers["Content-Type"], body)
                assert form["purpose"][1] == b"batch"
                name, content = form["file"]
                id = server.add_file(str(name), content)
                self.json(file_object(id, str(name), content, together=False))
            elif path.endswith("/preprocess"):
                id = path.split("/")[-2]
                self.json(file_object(id, *server.files[id], together=True))
            else:
                self.json({"error": {"message": f"no such path {path}"}}, 404)

        def get(self, path: str) -> None:
            *_, kind, id = path.split("/")
            if path == "/v1/batches":
                listed = [shown(batch) for batch in reversed(server.batches.values())]
                self.json(listed if together else {"object": "list", "data": listed, "has_more": False})
            elif path == "/v1/files":
                listed = [file_object(id, *file, together=together) for id, file in server.files.items()]
                self.json({"object": "list", "data": listed, "has_more": False})
            elif id == "content":
                self.send(200, server.files[kind][1], Content_Type="application/octet-stream")
            elif kind == "batches":
                self.json(shown(server.poll(id)))
            else:
                self.json({"error": {"message": f"no such path {path}"}}, 404)

        def json(self, value: Any, status: int = 200) -> None:
            self.send(status, json.dumps(value).encode(), Content_Type="application/json")

        def send(self, status: int, content: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    threading.Thread(target=http.serve_forever, daemon=True).start()
    server.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    yield server
    http.shutdown()
    http.server_close()

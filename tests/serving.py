"""The REST service on a local port: in a thread of this process, or in a process that tests can kill."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.conftest import ROOT, HashEncoder

ENCODER = str(ROOT / "tests" / "fixtures" / "formats" / "encoder")
"""A small encoder for processes of their own."""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def in_thread(
    memory_url: str, *, auth: bool = False, model: str | None = None, api_base: str | None = None, **options: Any
) -> Iterator[Any]:
    """Yield an httpx client of the service, with the attributes `memories` and `tokens`."""
    import httpx
    import uvicorn

    from memometer.serve.auth import AccessTokens
    from memometer.serve.rest import application
    from memometer.serve.tenants import TenantMemories

    memories = TenantMemories(memory_url, encoder=HashEncoder(), model=model, api_base=api_base)
    tokens = AccessTokens(memories.store) if auth else None
    app = application(memories, tenant="local", tokens=tokens, **options)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    client = httpx.Client(
        base_url=f"http://127.0.0.1:{listener.getsockname()[1]}",
        timeout=60,
        limits=httpx.Limits(max_connections=None),
    )
    client.memories, client.tokens = memories, tokens  # type: ignore[attr-defined]
    try:
        with client:
            yield client
    finally:
        server.should_exit = True
        thread.join()
        memories.close()


@contextmanager
def in_process(memory_url: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Yield (process, address) of the service in its own process."""
    import httpx

    port = free_port()
    command = [sys.executable, "-m", "memometer", "serve", "--memory-url", memory_url, "--encoder", ENCODER]
    command += ["--port", str(port), "--rate", "0"]
    process = subprocess.Popen(command, cwd=ROOT)
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                httpx.get(f"{address}/readyz", timeout=5).raise_for_status()
                break
            except httpx.TransportError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        yield process, address
    finally:
        process.kill()
        process.wait()

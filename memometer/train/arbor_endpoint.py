"""Where an Arbor server is: a URL, or the file that arbor/deploy.py writes about a rented machine.

A rented machine's server listens on that machine only, for it asks nobody who they are; it is reached through SSH, and
so are the files that it writes.
"""

from __future__ import annotations

import io
import json
import shlex
import shutil
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

PORT = 7453
URL = f"http://127.0.0.1:{PORT}"
FILE = Path("arbor_pod.json")
START = f"CUDA_DEVICE_ORDER=PCI_BUS_ID arbor serve --host 127.0.0.1 --port {PORT} --arbor-config arbor.yaml"
"""Arbor counts GPUs as nvidia-smi does; CUDA must count them alike, or 0 is another one where models are mixed."""
KEPT = ("adapter_*", "tokenizer*", "special_tokens*", "added_tokens*", "chat_template*", "vocab*", "merges*")
"""The files of a checkpoint that are copied."""


class EndpointError(ValueError):
    """There is no reaching the server or its files; the message is one sentence with the next step."""


@dataclass(frozen=True)
class Endpoint:
    """A server, and how to get at its machine."""

    url: str
    """As that machine itself sees it, without a path."""
    ssh: tuple[str, ...] = ()
    """The command that runs others over there, its destination last; empty where the server is on this machine."""
    storage: str = ""
    """The folder of its jobs, where it is known."""
    python: str = sys.executable
    """An interpreter over there that has peft."""

    @contextmanager
    def open(self) -> Iterator[str]:
        """The URL under which the server is reached from here, for as long as this is open."""
        if not self.ssh:
            yield self.url
            return
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        forward = f"127.0.0.1:{port}:127.0.0.1:{urlsplit(self.url).port or PORT}"
        with subprocess.Popen(
            [self.ssh[0], "-N", "-o", "ExitOnForwardFailure=yes", "-L", forward, *self.ssh[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        ) as tunnel:
            try:
                _wait_for_port(port, tunnel)
                yield f"http://127.0.0.1:{port}"
            finally:
                tunnel.terminate()

    def run(self, command: str, *, given: str = "", timeout_seconds: float = 60) -> str:
        """What a shell command that reads `given` prints on the server's machine. Raises EndpointError if it fails."""
        argv = [*self.ssh, command] if self.ssh else ["bash", "-c", command]
        try:
            done = subprocess.run(argv, input=given, capture_output=True, text=True, timeout=timeout_seconds)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise EndpointError(f"The server's machine did not answer: {error}") from error
        if done.returncode:
            raise EndpointError(f"{command!r} failed on the server's machine: {_last(done.stderr)}")
        return done.stdout

    def send(self, folder: Path, target: str) -> str:
        """Copy a folder to `target` on the server's machine; returns where it is there. Raises EndpointError."""
        if not self.ssh:
            return str(folder.absolute())
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            archive.add(folder, arcname=".")
        command = f"mkdir -p {shlex.quote(target)} && tar -C {shlex.quote(target)} -xf -"
        done = subprocess.run([*self.ssh, command], input=packed.getvalue(), capture_output=True, timeout=3600)
        if done.returncode:
            raise EndpointError(f"{folder} cannot be copied to the server's machine: {_last(done.stderr.decode())}")
        return target

    def fetch(self, folder: str, target: Path) -> None:
        """Copy the adapter and the tokenizer in a checkpoint of the server's machine to `target`, which appears whole
        or not at all; the optimiser's state, many times as large, stays. Raises EndpointError if there is none."""
        part = target.with_name(target.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        if self.ssh:
            self._receive(folder, part)
        elif Path(folder).is_dir():
            for name in sorted({name for pattern in KEPT for name in Path(folder).glob(pattern)}):
                shutil.copy(name, part / name.name)
        else:
            raise EndpointError(
                f"{folder} is not on this machine; where the server is on another, name the file that arbor/deploy.py "
                f'wrote (--arbor-url {FILE}), or write one: {{"ssh": {{"host": "...", "port": 22}}}}'
            )
        shutil.rmtree(target, ignore_errors=True)
        part.rename(target)

    def _receive(self, folder: str, part: Path) -> None:
        command = f"cd {shlex.quote(folder)} && ls -d {' '.join(KEPT)} 2>/dev/null | tar -cf - -T -"
        with subprocess.Popen(
            [*self.ssh, command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as sent:
            assert sent.stdout is not None
            assert sent.stderr is not None
            try:
                with tarfile.open(fileobj=sent.stdout, mode="r|") as archive:
                    archive.extractall(part, filter="data")
            except tarfile.TarError as error:
                sent.kill()
                reason = _last(sent.stderr.read().decode(errors="replace"))
                raise EndpointError(f"{folder} cannot be copied from the server's machine: {reason}") from error
        if sent.returncode:
            raise EndpointError(f"{folder} was copied only in part from the server's machine")


def read(text: str | None) -> Endpoint:
    """The endpoint of a URL or file; with neither, that of FILE where it is there, else this machine's.

    Raises EndpointError for what is neither.
    """
    if text is None:
        text = str(FILE) if FILE.exists() else URL
    if text.startswith(("http://", "https://")):
        parts = urlsplit(text)
        if not parts.hostname:
            raise EndpointError(f"--arbor-url {text} names no server; a URL such as {URL} or a file does.")
        return Endpoint(f"{parts.scheme}://{parts.netloc}")
    path = Path(text)
    try:
        return of(json.loads(path.read_text()), path)
    except OSError as error:
        raise EndpointError(f"--arbor-url {text} is neither a URL such as {URL} nor a file that is there.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EndpointError(
            f"{path} holds no endpoint yet; wait for its machine: python arbor/deploy.py --wait --file {path}."
        ) from error


def of(record: dict[str, Any], path: Path) -> Endpoint:
    """The endpoint in what `path` holds: `ssh` with host, and where they differ from SSH's own, port, user and key."""
    ssh = record["ssh"]
    command = ["ssh", "-p", str(ssh.get("port", 22)), "-o", "BatchMode=yes", "-o", "ConnectTimeout=15"]
    # A machine's key is new with every machine, at addresses that come again: it is learnt once, for this file alone.
    command += ["-o", "StrictHostKeyChecking=accept-new", "-o", f"UserKnownHostsFile={known_hosts(path)}"]
    command += ["-o", "ServerAliveInterval=15"]
    if ssh.get("key"):
        command += ["-i", ssh["key"]]
    return Endpoint(
        record.get("url", URL),
        (*command, f"{ssh.get('user', 'root')}@{ssh['host']}"),
        record.get("storage", ""),
        record.get("python", "python3"),
    )


def known_hosts(path: Path) -> Path:
    """Where the host key of the machine that `path` describes is kept."""
    return path.with_suffix(".known_hosts").absolute()


def _wait_for_port(port: int, tunnel: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if tunnel.poll() is not None:
            assert tunnel.stderr is not None
            raise EndpointError(f"SSH ended: {_last(tunnel.stderr.read().decode(errors='replace'))}")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.2)
    raise EndpointError("SSH did not connect within 20 seconds.")


def _last(text: str) -> str:
    return text.strip().splitlines()[-1] if text.strip() else "it says nothing"

"""The address of an Arbor server: a URL, or the JSON file that arbor/deploy.py writes for a rented machine.

Arbor has no authentication. On a rented machine it therefore listens on 127.0.0.1 only, and requests and files go
through SSH.
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
"""Command that starts a server. Arbor numbers GPUs as nvidia-smi does; CUDA_DEVICE_ORDER makes CUDA do the same."""
CHECKPOINT_FILES = "adapter_* tokenizer* special_tokens* added_tokens* chat_template* vocab* merges*"
"""Files of a checkpoint that are copied. The optimizer state is left out because it is many times as large."""


class EndpointError(ValueError):
    """The server or its files cannot be reached. The message is one sentence with the next step."""


@dataclass(frozen=True)
class Endpoint:
    """An Arbor server and the way to its machine.

    Attributes:
        url: The server's URL on its own machine, without a path.
        ssh: The SSH command, destination last; empty if the server runs on this machine.
        storage: The server's job folder, if known.
        python: An interpreter on the server's machine that can import peft.
    """

    url: str
    ssh: tuple[str, ...] = ()
    storage: str = ""
    python: str = sys.executable

    @contextmanager
    def open(self) -> Iterator[str]:
        """Yield a URL that reaches the server from this machine, through an SSH tunnel if needed."""
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

    def run(self, command: str, *, stdin: bytes = b"", timeout_seconds: float = 60) -> bytes:
        """Run a shell command on the server's machine and return its standard output.

        Raises:
            EndpointError: The machine does not answer, or the command fails.
        """
        argv = [*self.ssh, command] if self.ssh else ["bash", "-c", command]
        try:
            done = subprocess.run(argv, input=stdin, capture_output=True, timeout=timeout_seconds)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise EndpointError(f"The server's machine did not answer: {error}") from error
        if done.returncode:
            raise EndpointError(f"{command!r} failed on the server's machine: {_last_line(done.stderr)}")
        return done.stdout

    def send(self, folder: Path, target: str) -> str:
        """Copy a folder to `target` on the server's machine and return its path there.

        Raises:
            EndpointError: The folder cannot be copied.
        """
        if not self.ssh:
            return str(folder.absolute())
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            archive.add(folder, arcname=".")
        quoted = shlex.quote(target)
        self.run(f"mkdir -p {quoted} && tar -C {quoted} -xf -", stdin=packed.getvalue(), timeout_seconds=3600)
        return target

    def fetch(self, folder: str, target: Path) -> None:
        """Copy the adapter and tokenizer files of a remote checkpoint to `target`, completely or not at all.

        Raises:
            EndpointError: The server's machine has no such folder, or the copy fails.
        """
        part = target.with_name(target.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        command = f"cd {shlex.quote(folder)} && ls -d {CHECKPOINT_FILES} 2>/dev/null | tar -cf - -T -"
        try:
            with tarfile.open(fileobj=io.BytesIO(self.run(command, timeout_seconds=3600))) as archive:
                archive.extractall(part, filter="data")
        except (EndpointError, tarfile.TarError) as error:
            where = "the server's machine" if self.ssh else "this machine"
            remote = f'; if the server is on another machine, use --arbor-url {FILE} (or a file with {{"ssh": …}})'
            raise EndpointError(
                f"{folder} cannot be copied from {where} ({error}){'' if self.ssh else remote}."
            ) from error
        shutil.rmtree(target, ignore_errors=True)
        part.rename(target)


def read_endpoint(text: str | None) -> Endpoint:
    """Return the endpoint for a URL or a file.

    Args:
        text: A URL or a file name. None uses arbor_pod.json if it exists, otherwise the server on this machine.

    Raises:
        EndpointError: The text is neither a URL nor a file with an endpoint.
    """
    if text is None:
        text = str(FILE) if FILE.exists() else URL
    if text.startswith(("http://", "https://")):
        parts = urlsplit(text)
        if not parts.hostname:
            raise EndpointError(f"--arbor-url {text} has no host name; use a URL such as {URL}, or a file.")
        return Endpoint(f"{parts.scheme}://{parts.netloc}")
    path = Path(text)
    try:
        return endpoint_of(json.loads(path.read_text()), path)
    except OSError as error:
        raise EndpointError(f"--arbor-url {text} is neither a URL such as {URL} nor an existing file.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EndpointError(
            f"{path} has no endpoint yet; wait for its machine: python arbor/deploy.py --wait --file {path}."
        ) from error


def endpoint_of(record: dict[str, Any], path: Path) -> Endpoint:
    """Return the endpoint in the content of `path`: `ssh` with `host` and optionally `port`, `user` and `key`."""
    ssh = record["ssh"]
    command = ["ssh", "-p", str(ssh.get("port", 22)), "-o", "BatchMode=yes", "-o", "ConnectTimeout=15"]
    # Rented machines reuse addresses with new host keys, so each file has its own list of known hosts.
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
    """Return the known-hosts file for the machine that `path` describes."""
    return path.with_suffix(".known_hosts").absolute()


def _wait_for_port(port: int, tunnel: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if tunnel.poll() is not None:
            assert tunnel.stderr is not None
            raise EndpointError(f"SSH ended: {_last_line(tunnel.stderr.read())}")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.2)
    raise EndpointError("SSH did not connect within 20 seconds.")


def _last_line(output: bytes) -> str:
    lines = output.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "no error message"

"""Rented GPU machines at RunPod: prices, renting, waiting for the Arbor server, and termination.

The account's key goes only to RunPod's own client. It is not sent to the machine, whose environment everyone with the
account can read, and it is not written to a file. A machine terminates itself at its deadline (arbor/startup.sh). Its
id is on disk before anything waits for it.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import secrets
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import requests

from memometer.train.arbor_client import ArborError, ArborServer, ServerGone
from memometer.train.arbor_endpoint import PORT, EndpointError, endpoint_of, known_hosts

PREFIX = "memometer-arbor-"
"""Prefix of the names of our machines. `--terminate --all` terminates no others."""
STORAGE = "/workspace/arbor"
IMAGE = "runpod/pytorch:2.8.0-py3.11-cuda12.8.1-cudnn-devel-ubuntu22.04"
CUDA = ("12.8", "12.9", "13.0")
FILES = ("startup.sh", "requirements.txt", "deepspeed_config.yaml")
"""Files of the folder arbor/ that are sent to the machine."""
MAX_UNANSWERED = 6
"""Consecutive status requests that RunPod may leave unanswered while a machine starts."""

Record = dict[str, Any]
"""Content of a machine's file: name, pod, gpu, gpus, usd_per_hour, deadline, and ssh once it is known."""


LOOKS, LOOK_SECONDS = 13, 5.0
"""How often, and in which interval, a machine whose order failed is looked for: for a minute."""
REFUSALS = ("available", "balance", "funds", "invalid", "not found", "quota", "permission")
"""Words of errors with which RunPod refuses an order for certain. After other errors the machine may exist."""


class PodError(RuntimeError):
    """Renting or terminating failed. The message is one sentence with the next step."""


class OrderRefused(PodError):
    """RunPod refused to rent a machine, so that none exists."""


@dataclass(frozen=True)
class Offer:
    """A number of GPUs of one kind, with the highest of RunPod's prices as an upper bound."""

    gpu: str
    name: str
    memory_gb: int
    gpus: int
    usd_per_hour: float


def has_key() -> bool:
    """Return true if a key for RunPod is in the environment or in its client's configuration file."""
    return bool(os.environ.get("RUNPOD_API_KEY")) or Path("~/.runpod/config.toml").expanduser().exists()


class RunPod:
    """A RunPod account. The variable RUNPOD_API_BASE_URL selects another server.

    Raises:
        PodError: The client is not installed, or there is no key.
    """

    def __init__(self) -> None:
        try:
            import runpod
        except ImportError as error:
            raise PodError("RunPod's client is not installed: pip install '.[runpod]'") from error
        self._client = runpod
        key = os.environ.get("RUNPOD_API_KEY") or runpod.api_key
        if not key:
            raise PodError("There is no key: set RUNPOD_API_KEY, or run `runpod config` to write it to a file.")
        runpod.api_key = key

    def call(self, function: str, *args: Any, **kwargs: Any) -> Any:
        """Call a function of RunPod's client. Raises PodError, with the key removed, if it fails."""
        from runpod.error import AuthenticationError, QueryError, RunPodError

        try:
            return getattr(self._client, function)(*args, **kwargs)
        except AuthenticationError as error:
            raise OrderRefused(
                "RunPod rejects the key in RUNPOD_API_KEY; create another one in its console."
            ) from error
        except (RunPodError, ValueError, KeyError, TypeError, requests.RequestException) as error:
            message = " ".join(str(error).split())[:300].replace(self._client.api_key, "[key]")
            certain = isinstance(error, QueryError) and any(word in message.lower() for word in REFUSALS)
            kind = OrderRefused if certain else PodError
            raise kind(f"RunPod did not execute {function}: {message}") from error

    def offer(self, gpu: str, gpus: int) -> Offer:
        """Return the cheapest kind of GPU whose id or name contains `gpu`.

        Raises:
            PodError: No kind matches, or none has a price now.
        """
        kinds = self.call("get_gpus")
        matches = [k for k in kinds if gpu.lower() in (k["id"].lower(), k["displayName"].lower())]
        matches = matches or [k for k in kinds if gpu.lower() in f"{k['id']} {k['displayName']}".lower()]
        if not matches:
            known = ", ".join(sorted(k["displayName"] for k in kinds))
            raise PodError(f"RunPod has no GPU {gpu} (--gpu-type); it has {known}.")
        offers = []
        for kind in matches:
            full = self.call("get_gpu", kind["id"], gpus)
            prices = [full.get("securePrice"), full.get("communityPrice")]
            prices.append((full.get("lowestPrice") or {}).get("uninterruptablePrice"))
            if (price := max((p for p in prices if p), default=None)) and (full.get("maxGpuCount") or gpus) >= gpus:
                offers.append(Offer(full["id"], full["displayName"], full["memoryInGb"], gpus, price * gpus))
        if not offers:
            names = ", ".join(k["displayName"] for k in matches)
            raise PodError(f"RunPod has no price for {gpus} x {names} now; choose another GPU with --gpu-type.")
        return min(offers, key=lambda o: o.usd_per_hour)

    def pods(self) -> list[Record]:
        """Return all machines of the account, without their environments."""
        return [
            {key: value for key, value in pod.items() if key not in ("env", "dockerArgs")}
            for pod in self.call("get_pods") or ()
        ]

    def terminate(self, pod: str) -> bool:
        """Terminate a machine, with three attempts. Returns false if the account has no such machine."""
        for attempt in range(3):
            try:
                self.call("terminate_pod", pod)
                return True
            except PodError as error:
                last = error
                time.sleep(attempt)
        with suppress(PodError):
            if all(other["id"] != pod for other in self.pods()):
                return False
        raise PodError(
            f"THE MACHINE {pod} MAY STILL BE RUNNING AND CHARGED: {last} Terminate it at https://console.runpod.io/pods."
        ) from last


def pod_request(
    offer: Offer,
    *,
    image: str,
    volume_gb: int,
    deadline: float,
    public_key: str,
    files: Path,
    network_volume: str | None = None,
    community: bool = False,
) -> Record:
    """Return the arguments of RunPod's `create_pod`; none of them is secret.

    Args:
        offer: The GPUs to rent.
        image: The container image.
        volume_gb: Size of the disk for weights and checkpoints.
        deadline: Time at which the machine terminates itself, in seconds since 1970.
        public_key: Public half of the SSH key that may log in.
        files: The folder with the files to send (FILES).
        network_volume: Id of a network volume, which outlives the machine; None for a disk of `volume_gb`.
        community: Accept machines of private owners, too.
    """
    volume = {"network_volume_id": network_volume} if network_volume else {"volume_in_gb": volume_gb}
    return {
        "name": PREFIX + secrets.token_hex(4),
        "image_name": image,
        "gpu_type_id": offer.gpu,
        "gpu_count": offer.gpus,
        "cloud_type": "ALL" if community else "SECURE",
        **volume,
        "volume_mount_path": "/workspace",
        "container_disk_in_gb": 40,
        "ports": "22/tcp",  # no other port: the Arbor server has no authentication
        "allowed_cuda_versions": list(CUDA),
        "docker_args": start_command(files),
        "env": {
            "PUBLIC_KEY": public_key,
            "ARBOR_DEADLINE": str(int(deadline)),
            "ARBOR_TRAINING_GPUS": str(offer.gpus - 1),
        },
    }


def start_command(files: Path) -> str:
    """Return the container command that starts startup.sh next to the image's own start script, which starts SSH.

    The files travel as base64 because RunPod's client puts the command between double quotes without escaping it.
    """
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name in FILES:
            content = (files / name).read_bytes()
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    text = base64.b64encode(gzip.compress(packed.getvalue(), mtime=0)).decode()
    unpack = f"mkdir -p /root/start && echo {text} | base64 -d | tar -xzC /root/start"
    return f"bash -c '{unpack} && (bash /root/start/startup.sh &) ; exec /start.sh'"


def read_public_key(private: Path) -> str:
    """Return the public half of an SSH key. Raises PodError if it is missing or malformed."""
    path = private.with_name(private.name + ".pub")
    try:
        text = path.read_text().strip()
    except OSError as error:
        raise PodError(
            f"There is no SSH key {path}; create one with ssh-keygen -t ed25519, or choose one with --ssh-key."
        ) from error
    if not text.startswith(("ssh-", "ecdsa-", "sk-")) or set(text) & set('"\\\n'):
        raise PodError(f"{path} is not the public half of an SSH key; choose another one with --ssh-key.")
    return text


def rent(account: RunPod, offer: Offer, request: Record, path: Path, *, max_price: float, deadline: float) -> Record:
    """Rent a machine.

    The file at `path` has the name of the machine before the request is sent, and then its id.

    Raises:
        PodError: The machine cannot be rented, or costs more than `max_price` dollars per hour. Nothing stays rented.
    """
    record = {
        "name": request["name"],
        "gpu": offer.gpu,
        "gpus": offer.gpus,
        "usd_per_hour": offer.usd_per_hour,
        "deadline": deadline,
        "storage": f"{STORAGE}/storage",
        "python": f"{STORAGE}/environment/bin/python",
    }
    write_record(path, record)
    known_hosts(path).unlink(missing_ok=True)
    # Even if no reply came, RunPod may have rented the machine.
    with terminated_on_failure(account, path):
        created = account.call("create_pod", **request)
        if not isinstance(created, dict) or not created.get("id"):
            raise PodError("RunPod answered the order without a machine; try again, or choose another --gpu-type.")
        record["pod"] = created["id"]
        write_record(path, record)
        price = (account.call("get_pod", record["pod"]) or {}).get("costPerHr") or offer.usd_per_hour
        if price > max_price:
            raise PodError(
                f"The machine costs ${price:.2f} per hour, more than --max-price {max_price:.2f}; it was terminated."
            )
        record["usd_per_hour"] = price
        write_record(path, record)
        return record


@contextmanager
def terminated_on_failure(account: RunPod, path: Path) -> Iterator[None]:
    """Terminate the machine if the block fails or is interrupted."""
    try:
        yield
    except OrderRefused:
        terminate_recorded(account, path, looks=1)
        raise
    except BaseException as error:  # re-raised: an abandoned machine costs money, whatever the failure was
        try:
            terminate_recorded(account, path)
        except PodError as remaining:
            raise PodError(f"{error} {remaining}".strip()) from error
        raise


def terminate_recorded(account: RunPod, path: Path, *, looks: int = 0) -> None:
    """Terminate the machine that a file describes and remove the file.

    A machine without id is looked for by its name. RunPod may list it some time after the order, so that an order that
    failed is looked for again for a minute.

    Args:
        account: The account.
        path: The machine's file.
        looks: How often to look for a machine without id, if the order was refused for certain; 0 for LOOKS.

    Raises:
        PodError: The machine may still run. The file stays.
    """
    record = read_record(path)
    try:
        ids = [record["pod"]] if "pod" in record else _ids_by_name(account, record["name"], looks or LOOKS)
    except PodError as error:
        raise PodError(
            f"RunPod does not report whether {record['name']} was rented: {error} When it answers again, run "
            "python arbor/deploy.py --terminate --all"
        ) from error
    if not ids and not looks:
        raise PodError(
            f"RunPod does not list {record['name']} a minute after the order failed; {path} stays. If it appears later "
            "(python arbor/deploy.py --list), terminate it with: python arbor/deploy.py --terminate --all"
        )
    for pod in ids:
        account.terminate(pod)
    path.unlink(missing_ok=True)
    known_hosts(path).unlink(missing_ok=True)


def _ids_by_name(account: RunPod, name: str, looks: int) -> list[str]:
    for look in range(looks):
        if look:
            time.sleep(LOOK_SECONDS)
        if found := [pod["id"] for pod in account.pods() if pod["name"] == name]:
            return found
    return []


def wait_until_ready(
    account: RunPod, path: Path, *, key: Path, minutes: float, log: Callable[[str], None], every_seconds: float = 10
) -> Record:
    """Wait until the machine's Arbor server answers through SSH, then add its address to the file.

    Raises:
        PodError: The machine ends, its startup fails, or `minutes` pass.
    """
    record = read_record(path)
    end = time.monotonic() + minutes * 60
    logged, unanswered = "", 0
    while time.monotonic() < end:
        try:
            pod = account.call("get_pod", record["pod"])
        except PodError as error:
            unanswered += 1
            if unanswered == MAX_UNANSWERED:
                raise
            state = str(error)
        else:
            # RunPod may answer with null for a machine that it has just made.
            unanswered = unanswered + 1 if pod is None else 0
            known = pod is not None or unanswered >= MAX_UNANSWERED
            state = _state(pod, record, path, key) if known else "RunPod does not list the machine yet."
        if state == READY:
            write_record(path, record)
            return record
        if state != logged:
            log(logged := state)
        time.sleep(every_seconds)
    raise PodError(
        f"The server did not answer within {minutes:g} minutes (last state: {logged or 'unknown'}); allow more time "
        "with --wait-minutes, or choose another --gpu-type."
    )


READY = "ready"


def _state(pod: Record | None, record: Record, path: Path, key: Path) -> str:
    """Return READY, or a sentence that describes the missing step. Adds the address to `record`."""
    if pod is None or pod.get("desiredStatus") in ("EXITED", "TERMINATED", "DEAD"):
        raise PodError(f"The machine {record['pod']} ended before its server answered; rent another one.")
    ports = (pod.get("runtime") or {}).get("ports") or ()
    public = [port for port in ports if port["privatePort"] == 22 and port["isIpPublic"]]
    if not public:
        return "Waiting for the machine."
    record["ssh"] = {"host": public[0]["ip"], "port": public[0]["publicPort"], "user": "root", "key": str(key)}
    record["url"] = f"http://127.0.0.1:{PORT}"
    endpoint = endpoint_of(record, path)
    try:
        failed = endpoint.run(f"cat {STORAGE}/failed 2>/dev/null || true").decode()
    except EndpointError as error:
        return f"The machine runs, but SSH does not reach it yet: {error}"
    if failed.strip():
        raise PodError(f"The machine's startup failed: {' '.join(failed.split())[:300]}")
    if record["gpus"] == 1:  # one GPU trains with TRL and needs no server
        try:
            ready = endpoint.run(f"cat {STORAGE}/ready 2>/dev/null || true").decode().strip()
        except EndpointError as error:
            return f"The machine runs, but SSH does not reach it yet: {error}"
        return READY if ready else "The machine runs; its environment is being installed."
    try:
        with endpoint.open() as url, ArborServer(url) as server:
            server.check()
            return READY
    except (EndpointError, ServerGone):
        return "The machine runs, but its server does not answer yet."
    except ArborError as error:
        return f"{error}."


def read_record(path: Path) -> Record:
    """Read a machine's file. Raises PodError if it does not exist or describes no machine."""
    try:
        record: Record = json.loads(path.read_text())
        if "name" not in record:
            raise ValueError(path)
        return record
    except (OSError, ValueError, TypeError) as error:
        raise PodError(
            f"{path} does not describe a machine; rent one: python arbor/deploy.py --gpu-type A100"
        ) from error


def write_record(path: Path, record: Record) -> None:
    """Replace a machine's file atomically."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(record, indent=2) + "\n")
    part.replace(path)


def time_left(record: Record) -> str:
    """Return the time until the machine's deadline as text."""
    minutes = (record["deadline"] - time.time()) / 60
    end = datetime.fromtimestamp(record["deadline"], UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"{minutes:.0f} minutes left, until {end}" if minutes > 0 else f"past its deadline, {end}"

"""Machines with GPUs at RunPod: what one costs, renting it, waiting until its Arbor server answers, giving it back.

The account's key is given to RunPod's own client and to nobody else: not to the machine, whose environment anyone with
the account can read, and not to a file. A machine gives itself back at its deadline (arbor/startup.sh), whatever
becomes of the process that rented it; its id is on disk before anything is waited for.
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

from memometer.train.arbor_endpoint import PORT, EndpointError, known_hosts, of

PREFIX = "adaptive-memory-arbor-"
"""How the names of our machines begin; no other is given back by --terminate --all."""
STORAGE = "/workspace/arbor"
IMAGE = "runpod/pytorch:2.8.0-py3.11-cuda12.8.1-cudnn-devel-ubuntu22.04"
CUDA = ("12.8", "12.9")
SENT = ("startup.sh", "requirements.txt", "deepspeed_config.yaml")
PATIENCE = 6
"""Questions in a row that RunPod may leave unanswered while a machine is waited for."""
HERE = Path(__file__).resolve().parent.parent / "arbor"

Record = dict[str, Any]
"""What the file about a machine holds: name, pod, gpu, gpus, usd_per_hour, deadline, and ssh once it is known."""


class PodError(RuntimeError):
    """What went wrong, in one sentence with the next step."""


@dataclass(frozen=True)
class Offer:
    """Some GPUs of one kind, at RunPod's dearest price for them, so that a limit holds wherever they stand."""

    gpu: str
    name: str
    memory_gb: int
    gpus: int
    usd_per_hour: float


class RunPod:
    """An account at RunPod, through its own client. RUNPOD_API_BASE_URL leads elsewhere.

    Raises PodError without the client or a key.
    """

    def __init__(self) -> None:
        try:
            import runpod
        except ImportError as error:
            raise PodError("RunPod's client is not here: pip install '.[runpod]'") from error
        self._client = runpod
        key = os.environ.get("RUNPOD_API_KEY") or runpod.api_key
        if not key:
            raise PodError("There is no key: set RUNPOD_API_KEY, or let `runpod config` write ~/.runpod/config.toml.")
        runpod.api_key = key

    def ask(self, call: str, *args: Any, **kwargs: Any) -> Any:
        """The reply to one of the client's functions. Raises PodError, without the key, where it fails."""
        from runpod.error import AuthenticationError, RunPodError

        try:
            return getattr(self._client, call)(*args, **kwargs)
        except AuthenticationError as error:
            raise PodError("RunPod rejects the key in RUNPOD_API_KEY; make another in its console.") from error
        except (RunPodError, ValueError, KeyError, TypeError, requests.RequestException) as error:
            said = " ".join(str(error).split())[:300].replace(self._client.api_key, "[key]")
            raise PodError(f"RunPod did not do {call}: {said}") from error

    def offer(self, gpu: str, gpus: int) -> Offer:
        """The cheapest kind of GPU whose id or name holds `gpu`. Raises PodError where none does or none is priced."""
        kinds = self.ask("get_gpus")
        named = [k for k in kinds if gpu.lower() in (k["id"].lower(), k["displayName"].lower())]
        named = named or [k for k in kinds if gpu.lower() in f"{k['id']} {k['displayName']}".lower()]
        if not named:
            known = ", ".join(sorted(k["displayName"] for k in kinds))
            raise PodError(f"--gpu-type {gpu} is no GPU of RunPod's; it has {known}.")
        offers = []
        for kind in named:
            full = self.ask("get_gpu", kind["id"], gpus)
            prices = [full.get("securePrice"), full.get("communityPrice")]
            prices.append((full.get("lowestPrice") or {}).get("uninterruptablePrice"))
            if (price := max((p for p in prices if p), default=None)) and (full.get("maxGpuCount") or gpus) >= gpus:
                offers.append(Offer(full["id"], full["displayName"], full["memoryInGb"], gpus, price * gpus))
        if not offers:
            names = ", ".join(k["displayName"] for k in named)
            raise PodError(f"RunPod has no price for {gpus} x {names} now; choose another with --gpu-type.")
        return min(offers, key=lambda o: o.usd_per_hour)

    def pods(self) -> list[Record]:
        """All machines of the account, without what their environments hold."""
        return [
            {key: value for key, value in pod.items() if key not in ("env", "dockerArgs")}
            for pod in self.ask("get_pods")
        ]

    def terminate(self, pod: str) -> bool:
        """Give a machine back, three times if need be: each minute costs. False where the account has none such."""
        for attempt in range(3):
            try:
                self.ask("terminate_pod", pod)
                return True
            except PodError as error:
                last = error
                time.sleep(attempt)
        with suppress(PodError):
            if all(other["id"] != pod for other in self.pods()):
                return False
        raise PodError(
            f"THE MACHINE {pod} MAY STILL RUN AND COST: {last} Terminate it at https://console.runpod.io/pods."
        ) from last


def request(offer: Offer, *, image: str, volume_gb: int, deadline: float, public_key: str) -> Record:
    """What RunPod is asked for. `deadline`: seconds since 1970. Nothing in it is secret: a public key is none."""
    return {
        "name": PREFIX + secrets.token_hex(4),
        "image_name": image,
        "gpu_type_id": offer.gpu,
        "gpu_count": offer.gpus,
        "cloud_type": "ALL",
        "volume_in_gb": volume_gb,
        "volume_mount_path": "/workspace",
        "container_disk_in_gb": 40,
        "ports": "22/tcp",  # and no other: the Arbor server has no lock
        "allowed_cuda_versions": list(CUDA),
        "docker_args": start_command(),
        "env": {
            "PUBLIC_KEY": public_key,
            "ARBOR_DEADLINE": str(int(deadline)),
            "ARBOR_TRAINING_GPUS": str(offer.gpus - 1),
        },
    }


def start_command() -> str:
    """Starts our startup.sh beside what the image itself starts, which is where SSH comes from. The client puts it
    between double quotes as it is, hence base64."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name in SENT:
            content = (HERE / name).read_bytes()
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    text = base64.b64encode(gzip.compress(packed.getvalue(), mtime=0)).decode()
    unpack = f"mkdir -p /root/start && echo {text} | base64 -d | tar -xzC /root/start"
    return f"bash -c '{unpack} && (bash /root/start/startup.sh &) ; exec /start.sh'"


def public_key(private: Path) -> str:
    """The public half of an SSH key. Raises PodError where it is not there, or is another thing."""
    path = private.with_name(private.name + ".pub")
    try:
        text = path.read_text().strip()
    except OSError as error:
        raise PodError(
            f"There is no SSH key {path}; make one (ssh-keygen -t ed25519) or name one (--ssh-key)."
        ) from error
    if not text.startswith(("ssh-", "ecdsa-", "sk-")) or set(text) & set('"\\\n'):
        raise PodError(f"{path} is not the public half of an SSH key; name another with --ssh-key.")
    return text


def rent(account: RunPod, offer: Offer, asked: Record, path: Path, *, max_price: float, deadline: float) -> Record:
    """Rent a machine. The file at `path` says so before RunPod is asked, and holds its id before this returns.

    Raises PodError, with nothing left rented, where it cannot be had, or costs more than `max_price` dollars an hour.
    """
    record = {
        "name": asked["name"],
        "gpu": offer.gpu,
        "gpus": offer.gpus,
        "usd_per_hour": offer.usd_per_hour,
        "deadline": deadline,
        "storage": f"{STORAGE}/storage",
        "python": f"{STORAGE}/environment/bin/python",
    }
    write(path, record)
    known_hosts(path).unlink(missing_ok=True)
    try:
        record["pod"] = account.ask("create_pod", **asked)["id"]
        write(path, record)
        price = (account.ask("get_pod", record["pod"]) or {}).get("costPerHr") or offer.usd_per_hour
        if price > max_price:
            raise PodError(
                f"The machine costs ${price:.2f} an hour, more than --max-price {max_price:.2f}; given back."
            )
        record["usd_per_hour"] = price
        write(path, record)
        return record
    except BaseException:  # also when no reply came: RunPod may have rented it all the same
        forget(account, path)
        raise


@contextmanager
def given_back_on_failure(account: RunPod, path: Path) -> Iterator[None]:
    """Within this, any failure, Ctrl-C or SIGTERM ends the machine too."""
    try:
        yield
    except BaseException:  # a machine that nobody waits for costs money, whatever went wrong
        forget(account, path)
        raise


def forget(account: RunPod, path: Path) -> None:
    """Give back the machine that a file is about, found by its name where the id never came, and remove the file."""
    record = load(path)
    try:
        ids = [record["pod"]] if "pod" in record else [p["id"] for p in account.pods() if p["name"] == record["name"]]
    except PodError as error:
        raise PodError(
            f"RunPod does not say whether {record['name']} was rented: {error} Once it answers: "
            "python arbor/deploy.py --terminate --all"
        ) from error
    for pod in ids:
        account.terminate(pod)
    path.unlink(missing_ok=True)
    known_hosts(path).unlink(missing_ok=True)


def wait(
    account: RunPod, path: Path, *, key: Path, minutes: float, say: Callable[[str], None], every_seconds: float = 10
) -> Record:
    """Until the machine's Arbor server answers through SSH; then the file holds how to reach it.

    Raises PodError where the machine ends, its startup fails, or `minutes` pass.
    """
    record = load(path)
    end = time.monotonic() + minutes * 60
    said, unanswered = "", 0

    def tell(text: str) -> None:
        nonlocal said
        if text != said:
            say(said := text)

    while time.monotonic() < end:
        try:
            pod, unanswered = account.ask("get_pod", record["pod"]), 0
        except PodError as error:
            if (unanswered := unanswered + 1) == PATIENCE:
                raise
            tell(str(error))
            time.sleep(every_seconds)
            continue
        if pod is None or pod.get("desiredStatus") in ("EXITED", "TERMINATED", "DEAD"):
            raise PodError(f"The machine {record['pod']} ended before its server answered; rent another.")
        if (address := _ssh_address(pod)) is None:
            tell("Waiting for the machine.")
        else:
            record["ssh"] = {"host": address[0], "port": address[1], "user": "root", "key": str(key)}
            record["url"] = f"http://127.0.0.1:{PORT}"
            if (state := _server(record, path)) == "answers":
                write(path, record)
                return record
            tell(state)
        time.sleep(every_seconds)
    raise PodError(
        f"The server did not answer within {minutes:g} minutes (last: {said or 'nothing'}); allow more with "
        "--wait-minutes, or choose another --gpu-type."
    )


def _server(record: Record, path: Path) -> str:
    endpoint = of(record, path)
    try:
        failed = endpoint.run(f"cat {STORAGE}/failed 2>/dev/null || true")
    except EndpointError as error:
        return f"The machine runs, and SSH does not reach it yet: {error}"
    if failed.strip():
        raise PodError(f"The machine's startup failed: {' '.join(failed.split())[:300]}")
    try:
        with endpoint.open() as url:
            answer = requests.get(f"{url}/openapi.json", timeout=10)
            if answer.ok and "Arbor" in answer.json()["info"]["title"]:
                return "answers"
    except (EndpointError, requests.RequestException, ValueError, KeyError):
        return "The machine runs; its server does not answer yet."
    return "Something else than Arbor answers on the machine."


def _ssh_address(pod: Record) -> tuple[str, int] | None:
    for port in (pod.get("runtime") or {}).get("ports") or ():
        if port["privatePort"] == 22 and port["isIpPublic"]:
            return port["ip"], port["publicPort"]
    return None


def load(path: Path) -> Record:
    """What a file says of a machine. Raises PodError where there is none."""
    try:
        record = json.loads(path.read_text())
        if "name" not in record:
            raise ValueError(path)
        return record
    except (OSError, ValueError, TypeError) as error:
        raise PodError(f"{path} is not about a machine; rent one: python arbor/deploy.py --gpu-type A100") from error


def write(path: Path, record: Record) -> None:
    """Replace the file as a whole."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(record, indent=2) + "\n")
    part.replace(path)


def left(record: Record) -> str:
    """How long a machine still has."""
    minutes = (record["deadline"] - time.time()) / 60
    end = datetime.fromtimestamp(record["deadline"], UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"{minutes:.0f} minutes left, until {end}" if minutes > 0 else f"past its end, {end}"

"""Rent a machine at RunPod that serves Arbor for train.py, and give it back.

    python arbor/deploy.py --gpu-type A100 --dry-run      what would be asked for, and what it costs at most
    python arbor/deploy.py --gpu-type A100 --wait         rent it, and wait until its server answers
    python arbor/deploy.py --status                       how it stands, and how long it still has
    python arbor/deploy.py --terminate                    give it back; or --terminate ID, or --terminate --all
    python arbor/deploy.py --list                         every machine of the account

The key is read from RUNPOD_API_KEY. The server listens on its machine only and is reached through SSH:
`python train.py --mode train --backend arbor` reads how from arbor_pod.json, which is written here.

The machine gives itself back after --max-hours. A failure, Ctrl-C or SIGTERM while waiting gives it back at once.

Exit codes: 0 done, 1 failed, 2 usage, 4 stopped.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from memometer.train.arbor_endpoint import FILE
from memometer.train.runpod import (
    IMAGE,
    PREFIX,
    SENT,
    PodError,
    RunPod,
    forget,
    given_back_on_failure,
    left,
    load,
    public_key,
    rent,
    request,
    wait,
)

FAILED, USAGE, STOPPED = 1, 2, 4


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    what = p.add_argument_group("what is done (default: rent)").add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="print the request and the cost, and stop")
    what.add_argument("--list", action="store_true", help="every machine of the account")
    what.add_argument("--status", action="store_true", help="of the machine in --file")
    what.add_argument("--terminate", nargs="?", const="", metavar="ID", help="give back ID, or the machine in --file")
    p.add_argument("--all", action="store_true", help=f"with --terminate: all machines named {PREFIX}...")
    p.add_argument("--wait", action="store_true", help="until the server answers; alone, for the machine in --file")
    p.add_argument("--wait-minutes", type=_positive, default=40.0, metavar="M")
    p.add_argument("--file", type=Path, default=FILE, metavar="FILE", help="about the machine (default %(default)s)")
    machine = p.add_argument_group("the machine")
    machine.add_argument("--gpu-type", default="A100", metavar="NAME", help="a part of RunPod's name will do")
    machine.add_argument("--gpu-count", type=_count, default=3, metavar="N", help="one serves, the others train")
    machine.add_argument("--image", default=IMAGE, help="with CUDA 12.8, and /start.sh that starts SSH")
    machine.add_argument("--volume-gb", type=_count, default=100, metavar="GB", help="for weights and checkpoints")
    machine.add_argument("--ssh-key", type=Path, metavar="FILE", help="default ~/.ssh/id_ed25519")
    limits = p.add_argument_group("limits")
    limits.add_argument("--max-hours", type=_positive, default=4.0, metavar="H", help="then it gives itself back")
    limits.add_argument("--max-price", type=_positive, default=8.0, metavar="USD", help="an hour, for all its GPUs")
    return p


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from error
    if not 0 < number < 10_000:
        raise argparse.ArgumentTypeError(f"{text!r} must be above 0 and below 10,000")
    return number


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) < 10_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 9,999")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    if mistake := _mistake(args):
        print(f"deploy.py: {mistake}", file=sys.stderr)
        return USAGE
    for number in STOPS:
        signal.signal(number, _interrupt)
    try:
        account = RunPod()
        if args.list:
            _list(account)
        elif args.terminate is not None:
            _terminate(account, args)
        elif args.status:
            _status(account, args)
        elif args.wait and args.file.exists():
            with given_back_on_failure(account, args.file):
                _wait(account, args)
        else:
            _rent(account, args)
    except PodError as error:
        print(f"deploy.py: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("deploy.py: stopped; nothing that was waited for is still rented.", file=sys.stderr)
        return STOPPED
    return 0


STOPS = {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}


def _interrupt(*_: object) -> None:
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)  # giving back is not to be interrupted
    raise KeyboardInterrupt


def _mistake(args: argparse.Namespace) -> str:
    if args.all and args.terminate != "":
        return "--all goes with --terminate alone: python arbor/deploy.py --terminate --all"
    if not args.file.parent.is_dir():
        return f"--file {args.file} is in a folder that is not there: mkdir -p {shlex.quote(str(args.file.parent))}"
    if args.gpu_count < 2:
        return (
            "--gpu-count 1 is too few: Arbor needs one GPU to serve and one to train; give 2 or more, or train on one "
            "GPU without Arbor: python train.py --mode train --backend trl"
        )
    return ""


def _rent(account: RunPod, args: argparse.Namespace) -> None:
    key = args.ssh_key or Path.home() / ".ssh" / "id_ed25519"
    deadline = time.time() + args.max_hours * 3600
    offer = account.offer(args.gpu_type, args.gpu_count)
    asked = request(
        offer, image=args.image, volume_gb=args.volume_gb, deadline=deadline, public_key=public_key(key.expanduser())
    )
    cost = f"${offer.usd_per_hour:.2f} an hour"
    print(f"{offer.gpus} x {offer.name} ({offer.memory_gb} GB each), {cost},", end=" ")
    print(f"${offer.usd_per_hour * args.max_hours:.2f} in {args.max_hours:g} hours; storage is billed beside it.")
    if args.dry_run:
        print(json.dumps({**asked, "docker_args": f"{', '.join(SENT)}, packed"}, indent=2))
    if offer.usd_per_hour > args.max_price:
        raise PodError(
            f"{cost} is more than --max-price {args.max_price:.2f}; nothing was rented. Raise it, or take fewer or "
            "other GPUs (--gpu-count, --gpu-type)."
        )
    if args.dry_run:
        return
    if args.file.exists():
        raise PodError(
            f"{args.file} is about a machine that may still run: look (--status), wait for it (--wait), give it back "
            "(--terminate), or write about the new one elsewhere (--file FILE)."
        )
    record = rent(account, offer, asked, args.file, max_price=args.max_price, deadline=deadline)
    print(f"Rented {record['pod']} at ${record['usd_per_hour']:.2f} an hour; {left(record)}. See {args.file}.")
    if args.wait:
        with given_back_on_failure(account, args.file):
            _wait(account, args)
    else:
        print("Next: python arbor/deploy.py --wait")


def _wait(account: RunPod, args: argparse.Namespace) -> None:
    key = (args.ssh_key or Path.home() / ".ssh" / "id_ed25519").expanduser()
    record = wait(account, args.file, key=key, minutes=args.wait_minutes, say=lambda text: print(text, flush=True))
    ssh = record["ssh"]
    print(f"The server answers. {left(record)}.")
    print(f"Endpoint: {record['url']} on the machine, described in {args.file}")
    print(f"SSH:      ssh -p {ssh['port']} -i {shlex.quote(ssh['key'])} root@{ssh['host']}")
    print(f"Next:     python train.py --mode train --backend arbor --arbor-url {args.file}")


def _status(account: RunPod, args: argparse.Namespace) -> None:
    record = load(args.file)
    pod = next((p for p in account.pods() if p["id"] == record.get("pod") or p["name"] == record["name"]), None)
    if pod is None:
        raise PodError(f"RunPod has no machine {record.get('pod', record['name'])} any more; remove {args.file}.")
    print(_line(pod), left(record), "reachable" if "ssh" in record else "not waited for", sep="  ")


def _list(account: RunPod) -> None:
    pods = account.pods()
    for pod in pods:
        print(_line(pod))
    if not pods:
        print("RunPod has no machine of this account.")


def _line(pod: dict[str, object]) -> str:
    machine = pod.get("machine")
    gpu = machine.get("gpuDisplayName") if isinstance(machine, dict) else None
    cost = f"${pod['costPerHr']:.2f} an hour"
    return "  ".join(str(part) for part in (pod["id"], pod["name"], pod["desiredStatus"], pod["gpuCount"], gpu, cost))


def _terminate(account: RunPod, args: argparse.Namespace) -> None:
    if args.all:
        ids = [pod["id"] for pod in account.pods() if pod["name"].startswith(PREFIX)]
    elif args.terminate:
        ids = [args.terminate]
    else:
        ids = [load(args.file).get("pod", "")]
    running = []
    for pod in filter(None, ids):
        try:
            print(f"Given back: {pod}" if account.terminate(pod) else f"RunPod has no machine {pod} any more.")
        except PodError as error:
            running.append(str(error))
    if running:
        raise PodError(" ".join(running))
    if not any(ids):
        print("There was nothing to give back.")
    if args.file.exists() and (args.all or load(args.file).get("pod", "") in ids):
        if "pod" in load(args.file):
            args.file.unlink()
        else:
            forget(account, args.file)


if __name__ == "__main__":
    sys.exit(main())

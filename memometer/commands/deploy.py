"""Rent a machine at RunPod that runs an Arbor server for train.py, and terminate it.

    python arbor/deploy.py --gpu-type A100 --dry-run      show the request and the highest cost
    python arbor/deploy.py --gpu-type A100 --wait         rent a machine and wait until its server answers
    python arbor/deploy.py --status                       show the state of the machine and its remaining time
    python arbor/deploy.py --terminate                    terminate it (or --terminate ID, or --terminate --all)
    python arbor/deploy.py --list                         list all machines of the account

The key is read from RUNPOD_API_KEY. The server listens only on its own machine and is reached through SSH. This script
writes the connection to arbor_pod.json, where `python train.py --mode train --backend arbor` reads it.

The machine terminates itself after --max-hours. A failure, Ctrl-C or SIGTERM during --wait terminates it at once.

Exit codes: 0 done, 1 failed, 2 usage error, 4 stopped.
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

from memometer.commands.argument_types import number, positive
from memometer.commands.help_formatter import HelpFormatter
from memometer.train import runpod
from memometer.train.arbor_endpoint import FILE
from memometer.train.runpod import PREFIX, PodError, RunPod

FAILED, USAGE, STOPPED = 1, 2, 4


def parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter, allow_abbrev=False)
    action = p.add_argument_group("actions (default: rent)").add_mutually_exclusive_group()
    action.add_argument("--dry-run", action="store_true", help="print the request and the highest cost, then exit")
    action.add_argument("--list", action="store_true", help="list all machines of the account")
    action.add_argument("--status", action="store_true", help="show the machine in --file")
    action.add_argument(
        "--terminate", nargs="?", const="", metavar="ID", help="terminate ID (default: the machine in --file)"
    )
    p.add_argument("--all", action="store_true", help=f"with --terminate: all machines named {PREFIX}...")
    p.add_argument("--wait", action="store_true", help="wait for the server; without renting if --file exists")
    p.add_argument("--wait-minutes", type=number(0.001, 10_000), default=40.0, metavar="M", help="default %(default)g")
    p.add_argument("--file", type=Path, default=FILE, metavar="FILE", help="machine file (default %(default)s)")
    machine = p.add_argument_group("machine")
    machine.add_argument("--gpu-type", default="A100", metavar="NAME", help="part of RunPod's name (default A100)")
    machine.add_argument(
        "--gpu-count",
        type=positive,
        default=3,
        metavar="N",
        help="one serves, the others train (default 3); 1 trains with TRL",
    )
    machine.add_argument(
        "--network-volume", metavar="ID", help="network volume in place of a disk; it outlives the machine"
    )
    machine.add_argument(
        "--community", action="store_true", help="also machines of private owners (default: secure cloud)"
    )
    machine.add_argument("--image", default=runpod.IMAGE, help="image with CUDA and a /start.sh that starts SSH")
    machine.add_argument(
        "--volume-gb", type=positive, default=100, metavar="GB", help="disk for weights and checkpoints (default 100)"
    )
    machine.add_argument(
        "--ssh-key",
        type=Path,
        default=Path("~/.ssh/id_ed25519"),
        metavar="FILE",
        help="private key (default %(default)s)",
    )
    limits = p.add_argument_group("limits")
    limits.add_argument(
        "--max-hours", type=number(0.001, 10_000), default=4.0, metavar="H", help="lifetime of the machine (default 4)"
    )
    limits.add_argument(
        "--max-price", type=number(0.001, 10_000), default=8.0, metavar="USD", help="per hour, for all GPUs (default 8)"
    )
    return p


def main(argv: Sequence[str] | None = None, *, files: str | Path) -> int:
    """Run the script.

    Args:
        argv: The words of the command line; None for those of the process.
        files: The folder of the files that the machine needs, arbor/.

    Returns:
        The exit code.
    """
    args = parser().parse_args(argv)
    if error := _usage_error(args):
        print(f"deploy.py: {error}", file=sys.stderr)
        return USAGE
    args.ssh_key = args.ssh_key.expanduser()
    for signal_number in STOP_SIGNALS:
        signal.signal(signal_number, _interrupt)
    try:
        if args.dry_run and not runpod.has_key():
            _plan_without_key(args, Path(files))
        else:
            _run(RunPod(), args, Path(files))
    except PodError as error:
        print(f"deploy.py: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("deploy.py: stopped; a machine that was being waited for was terminated.", file=sys.stderr)
        return STOPPED
    return 0


def _run(account: RunPod, args: argparse.Namespace, files: Path) -> None:
    if args.list:
        pods = account.pods()
        print("\n".join(map(_summary, pods)) if pods else "This account has no machines at RunPod.")
    elif args.terminate is not None:
        _terminate(account, args)
    elif args.status:
        _status(account, args)
    elif args.wait and args.file.exists():
        with runpod.terminated_on_failure(account, args.file):
            _wait(account, args)
    else:
        _rent(account, args, files)


STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}


def _interrupt(*_: object) -> None:
    for signal_number in STOP_SIGNALS:
        signal.signal(signal_number, signal.SIG_IGN)  # nothing may interrupt the termination of the machine
    raise KeyboardInterrupt


def _usage_error(args: argparse.Namespace) -> str:
    if args.all and args.terminate != "":
        return "--all needs --terminate without an ID: python arbor/deploy.py --terminate --all"
    if not args.file.parent.is_dir():
        return f"the folder of --file {args.file} does not exist: mkdir -p {shlex.quote(str(args.file.parent))}"
    return ""


def _request(offer: runpod.Offer, args: argparse.Namespace, files: Path, deadline: float) -> runpod.Record:
    return runpod.pod_request(
        offer,
        image=args.image,
        volume_gb=args.volume_gb,
        deadline=deadline,
        public_key=runpod.read_public_key(args.ssh_key),
        files=files,
        network_volume=args.network_volume,
        community=args.community,
    )


def _print_request(request: runpod.Record) -> None:
    print(json.dumps({**request, "docker_args": f"(packed: {', '.join(runpod.FILES)})"}, indent=2))


def _plan_without_key(args: argparse.Namespace, files: Path) -> None:
    """Print the request and the highest cost without asking RunPod, which needs a key for its prices."""
    offer = runpod.Offer(args.gpu_type, args.gpu_type, 0, args.gpu_count, args.max_price)
    print(
        f"{args.gpu_count} x {args.gpu_type}: at most ${args.max_price:.2f} per hour (--max-price), "
        f"${args.max_price * args.max_hours:.2f} in {args.max_hours:g} hours. Set RUNPOD_API_KEY for RunPod's prices."
    )
    _print_request(_request(offer, args, files, time.time() + args.max_hours * 3600))


def _rent(account: RunPod, args: argparse.Namespace, files: Path) -> None:
    deadline = time.time() + args.max_hours * 3600
    offer = account.offer(args.gpu_type, args.gpu_count)
    request = _request(offer, args, files, deadline)
    cost = f"${offer.usd_per_hour:.2f} per hour"
    print(
        f"{offer.gpus} x {offer.name} ({offer.memory_gb} GB each), {cost}, "
        f"${offer.usd_per_hour * args.max_hours:.2f} in {args.max_hours:g} hours; storage costs extra."
    )
    if args.dry_run:
        _print_request(request)
    if offer.usd_per_hour > args.max_price:
        raise PodError(
            f"{cost} is more than --max-price {args.max_price:.2f}; nothing was rented. Raise the limit, or choose "
            "fewer or other GPUs (--gpu-count, --gpu-type)."
        )
    if args.dry_run:
        return
    if args.file.exists():
        raise PodError(
            f"{args.file} describes a machine that may still run. Check it (--status), wait for it (--wait), "
            "terminate it (--terminate), or use another file for the new one (--file FILE)."
        )
    record = runpod.rent(account, offer, request, args.file, max_price=args.max_price, deadline=deadline)
    print(
        f"Rented {record['pod']} at ${record['usd_per_hour']:.2f} per hour; {runpod.time_left(record)}. "
        f"See {args.file}."
    )
    if args.wait:
        with runpod.terminated_on_failure(account, args.file):
            _wait(account, args)
    else:
        print("Next: python arbor/deploy.py --wait")


def _wait(account: RunPod, args: argparse.Namespace) -> None:
    record = runpod.wait_until_ready(
        account, args.file, key=args.ssh_key, minutes=args.wait_minutes, log=lambda line: print(line, flush=True)
    )
    ssh = record["ssh"]
    if record["gpus"] == 1:
        remote = f"ssh -p {ssh['port']} -i {shlex.quote(ssh['key'])}"
        print(f"The machine is ready. {runpod.time_left(record)}.")
        print(f'Next:     rsync -a -e "{remote}" ./ root@{ssh["host"]}:memometer/')
        print(f"          {remote} root@{ssh['host']}")
        print(f"          cd memometer && {record['python']} -m pip install -c constraints.txt '.[train]'")
        print(f"          {record['python']} train.py --mode train --backend trl")
        return
    print(f"The server answers. {runpod.time_left(record)}.")
    print(f"Endpoint: {record['url']} on the machine, described in {args.file}")
    print(f"SSH:      ssh -p {ssh['port']} -i {shlex.quote(ssh['key'])} root@{ssh['host']}")
    print(f"Next:     python train.py --mode train --backend arbor --arbor-url {args.file}")


def _status(account: RunPod, args: argparse.Namespace) -> None:
    record = runpod.read_record(args.file)
    pod = next((p for p in account.pods() if p["id"] == record.get("pod") or p["name"] == record["name"]), None)
    if pod is None:
        raise PodError(f"RunPod no longer has the machine {record.get('pod', record['name'])}; remove {args.file}.")
    state = "reachable" if "ssh" in record else "not ready yet (--wait)"
    print(_summary(pod), runpod.time_left(record), state, sep="  ")


def _summary(pod: dict[str, object]) -> str:
    machine = pod.get("machine")
    gpu = machine.get("gpuDisplayName") if isinstance(machine, dict) else None
    cost = f"${pod['costPerHr']:.2f} per hour"
    return "  ".join(str(part) for part in (pod["id"], pod["name"], pod["desiredStatus"], pod["gpuCount"], gpu, cost))


def _terminate(account: RunPod, args: argparse.Namespace) -> None:
    if args.all:
        ids = [pod["id"] for pod in account.pods() if pod["name"].startswith(PREFIX)]
    else:
        ids = [args.terminate or runpod.read_record(args.file).get("pod", "")]
    errors = []
    for pod in filter(None, ids):
        try:
            print(f"Terminated: {pod}" if account.terminate(pod) else f"RunPod no longer has the machine {pod}.")
        except PodError as error:
            errors.append(str(error))
    if errors:
        raise PodError(" ".join(errors))
    if not any(ids):
        print("There was no machine to terminate.")
    if args.file.exists() and (args.all or runpod.read_record(args.file).get("pod", "") in ids):
        if "pod" in runpod.read_record(args.file):
            args.file.unlink()
        else:
            runpod.terminate_recorded(account, args.file)

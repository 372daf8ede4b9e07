"""`memometer cartridge`: what a file says of itself, how two differ, what several amount to."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from memometer.cartridge import cartridge as cartridge_file
from memometer.cartridge import container, memory_spec, serialization
from memometer.cartridge.cartridge import Cartridge, load_cartridge, open_manifest, open_records, save_cartridge
from memometer.cartridge.container import CartridgeError, NotWritten
from memometer.cartridge.read import refusing
from memometer.memory import Turn
from memometer.models import encoders
from memometer.models.encoders import Encoder, EncoderUnavailable
from memometer.store.migrate import copy
from memometer.systems.episodic import Episodic

FAILED, REFUSED = 1, 3

SAID = (
    "holds",
    "system",
    "parameters",
    "weights",
    "embedding",
    "tokenizer",
    "adapter",
    "scope",
    "provenance",
    "parents",
)
"""What a manifest says of the memory."""

ELSEWHERE = ("holds", "system", "records", "files", "version")
"""Of a manifest, what is told in other words."""

MUST_AGREE = ("holds", "system", "parameters", "weights", "embedding", "tokenizer")
"""Of memories that are to be one."""


def described(path: Path, *, public_key: Path | None = None) -> str:
    """What a file holds, for people."""
    said = open_manifest(path, public_key=public_key)
    with refusing(path):
        return _described(*said)


def _described(manifest: Mapping[str, Any], digest: str, signed_by: str) -> str:
    count, what = manifest["records"]["count"], "turns" if manifest["holds"] == "state" else "episodes"
    lines = {
        "memory": f"{count:,} {what} of the system {manifest['system']}",
        **{name: json.dumps(said) for name, said in manifest.items() if said and name not in ELSEWHERE},
        "signed by": signed_by or "nobody",
        "digest": digest,
        **{name: f"{about['bytes']:,} bytes" for name, about in manifest["files"].items()},
    }
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {text}" for name, text in lines.items())


def differences(one: Path, other: Path) -> Iterator[str]:
    """How two files differ, a line each: what is said of the memory, then the records by id, then what is made of them.
    Where they come from does not count."""
    first, second = open_manifest(one)[0], open_manifest(other)[0]
    for name in (*MUST_AGREE, "adapter", "scope"):
        if first[name] != second[name]:
            yield f"{name}: {json.dumps(first[name])} | {json.dumps(second[name])}"
    mine, yours = map(_by_id, (one, other))
    for id in dict.fromkeys([*mine, *yours]):
        if id not in yours:
            yield f"- {id}: {_shown(mine[id])}"
        elif id not in mine:
            yield f"+ {id}: {_shown(yours[id])}"
        else:
            for name in dict.fromkeys([*mine[id], *yours[id]]):
                if mine[id].get(name) != yours[id].get(name):
                    yield f"! {id} {name}: {mine[id].get(name)!r} | {yours[id].get(name)!r}"
    others = [container.VECTORS, container.STATE, container.TENSORS, container.PROGRAM, container.ADAPTER]
    for name in others:
        if first["files"].get(name) != second["files"].get(name):
            yield f"{name} differs"


def _by_id(path: Path) -> dict[str, serialization.Row]:
    listed = list(open_records(path))
    with refusing(path):
        return {str(row["id"]): row for row in listed}


def _shown(row: Mapping[str, Any]) -> str:
    return str(row.get("line", row.get("text", ""))).strip()


def merge(
    paths: Sequence[Path], out: Path, *, encoder: Encoder | None = None, sign_with: Path | None = None
) -> Cartridge:
    """One cartridge of what several remember: episodes with their uses and sources, or turns, observed anew in time
    order.

    Raises CartridgeError where they are of different systems or models, where a model wrote them, and where one id
    means two things.
    """
    cartridges = [load_cartridge(path, encoder=encoder) for path in paths]
    first = cartridges[0]
    for path, cartridge in zip(paths[1:], cartridges[1:], strict=True):
        with refusing(path):
            _check_alike(first, cartridge)
    if isinstance(first.memory, Episodic):
        for path, cartridge in zip(paths[1:], cartridges[1:], strict=True):
            store, theirs = first.memory.store(first.state), cartridge.state
            with refusing(path):
                if kind := theirs.store.vector_format():
                    store.set_vector_format(kind)
                copy(theirs.store.scan(theirs.scope), store, first.state.scope)
        state = first.state
    else:
        state = first.memory.new()
        for session in _sessions(paths):
            first.memory.observe(state, session)
    parents = [cartridge.digest for cartridge in cartridges]
    save_cartridge(
        out,
        first.memory,
        state,
        reader=first.reader,
        persona=first.persona,
        goal=first.goal,
        parents=parents,
        sign_with=sign_with,
    )
    return load_cartridge(out, encoder=encoder)


def _check_alike(one: Cartridge, other: Cartridge) -> None:
    for name in MUST_AGREE:
        mine, yours = one.manifest[name], other.manifest[name]
        if mine != yours:
            raise CartridgeError(f"its {name} is {json.dumps(yours)}, and the first one's is {json.dumps(mine)}")
    if one.memory.needs_model:
        raise CartridgeError(
            "it was written by a model, and what two wrote cannot be made one; observe the turns again"
        )
    if one.manifest["adapter"] or other.manifest["adapter"]:
        raise CartridgeError("adapters cannot be merged; save the cartridges without them")
    mine, yours = (memory_spec.parameters_of(each.memory, each.reader) for each in (one, other))
    my_prompts, your_prompts = (memory_spec.prompts_of(each.memory, each.reader) for each in (one, other))
    names = one.manifest["weights"]
    parts = [("weights", [mine[name] for name in names], [yours[name] for name in names]),
             ("program", my_prompts, your_prompts),
             ("persona", one.persona, other.persona), ("goal", one.goal, other.goal)]  # fmt: skip
    for name, ours, theirs in parts:
        if not _equal(ours, theirs):
            raise CartridgeError(f"its {name} is another than the first one's, and the two cannot be made one")


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return isinstance(other, np.ndarray) and np.array_equal(one, other)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    if dataclasses.is_dataclass(one) and type(one) is type(other):
        return all(_equal(value, getattr(other, name)) for name, value in memory_spec.vars_of(one).items())
    return bool(one == other)


def _sessions(paths: Sequence[Path]) -> Iterator[list[Turn]]:
    """The turns of all, each once, session by session in time order."""
    turns: dict[str, Turn] = {}
    times: dict[int, Any] = {}
    for path in paths:
        with refusing(path):
            for row in open_records(path):
                turn, _ = serialization.turn(row)
                if turns.setdefault(turn.id, turn) != turn:
                    raise CartridgeError(f"its turn {turn.id} is another than that of a cartridge before it")
                if times.setdefault(turn.session, turn.said_at) != turn.said_at:
                    raise CartridgeError(f"its session {turn.session} is of another time than in a cartridge before it")
    for session in sorted(times, key=lambda session: (times[session], session)):
        yield [turn for turn in turns.values() if turn.session == session]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="memometer cartridge",
        description=cartridge_file.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("inspect", help="what a file says of itself")
    verb.add_argument("file", metavar="FILE", type=Path)
    verb.add_argument("--json", action="store_true", help="the manifest")
    verb.add_argument("--records", action="store_true", help="the turns or episodes, a line of JSON each")
    verb = verbs.add_parser("verify", help="load all of a file, and check who signed it")
    verb.add_argument("file", metavar="FILE", type=Path)
    verb.add_argument("--public-key", metavar="PEM", type=Path, help="refuse what this Ed25519 key has not signed")
    verb = verbs.add_parser("diff", help="how two files differ")
    verb.add_argument("files", metavar="FILE", type=Path, nargs=2)
    verb = verbs.add_parser("merge", help="one file of what several remember")
    verb.add_argument("files", metavar="FILE", type=Path, nargs="+")
    verb.add_argument("--out", metavar="FILE", type=Path, required=True)
    verb.add_argument("--encoder", metavar="NAME", help="what made the vectors, where the files do not name it fully")
    verb.add_argument("--sign-with", metavar="PEM", type=Path, help="an Ed25519 key")
    args = parser.parse_args(argv)
    try:
        return VERBS[args.verb](args)
    except (CartridgeError, EncoderUnavailable) as error:
        print(f"memometer cartridge: {error}", file=sys.stderr)
        return FAILED if isinstance(error, NotWritten | EncoderUnavailable) else REFUSED


def _inspect(args: argparse.Namespace) -> int:
    if args.records:
        for row in open_records(args.file):
            print(json.dumps(row, ensure_ascii=False))
    else:
        print(json.dumps(open_manifest(args.file)[0], indent=1) if args.json else described(args.file))
    return 0


def _verify(args: argparse.Namespace) -> int:
    loaded = load_cartridge(args.file, public_key=args.public_key)
    by = f"signed by {loaded.signed_by}" if loaded.signed_by else "signed by nobody, so it may be from anybody"
    print(f"{args.file} is whole: {loaded.manifest['records']['count']:,} records, {by}.")
    return 0


def _diff(args: argparse.Namespace) -> int:
    found = list(differences(*args.files))
    print("\n".join(found) or "They hold the same.")
    return FAILED if found else 0


def _merge(args: argparse.Namespace) -> int:
    made = merge(
        args.files,
        args.out,
        encoder=encoders.load(args.encoder) if args.encoder else None,
        sign_with=args.sign_with,
    )
    print(f"{args.out} holds {made.manifest['records']['count']:,} records.")
    return 0


VERBS = {"inspect": _inspect, "verify": _verify, "diff": _diff, "merge": _merge}

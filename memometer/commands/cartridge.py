"""Inspect, verify, compare or merge cartridge files.

    memometer cartridge inspect nadia.cartridge
    memometer cartridge verify nadia.cartridge --public-key public.pem
    memometer cartridge diff nadia.cartridge oskar.cartridge
    memometer cartridge merge nadia.cartridge oskar.cartridge --out both.cartridge

A cartridge is a memory as a portable file; `memometer export` writes one and `memometer import` reads one.

Exit codes: 0 done, 1 the files differ or the output cannot be written, 2 usage, 3 a file is refused.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from memometer.commands.help_formatter import HelpFormatter

FAILED, REFUSED = 1, 3


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    verbs = made.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("inspect", help="show the content of a file")
    verb.add_argument("file", metavar="FILE", type=Path)
    verb.add_argument("--json", action="store_true", help="print the manifest")
    verb.add_argument("--records", action="store_true", help="print each turn or episode as a line of JSON")
    verb = verbs.add_parser("verify", help="load a file completely and check its signature")
    verb.add_argument("file", metavar="FILE", type=Path)
    verb.add_argument("--public-key", metavar="PEM", type=Path, help="require a signature of this Ed25519 key")
    verb = verbs.add_parser("diff", help="show the differences between two files")
    verb.add_argument("files", metavar="FILE", type=Path, nargs=2)
    verb = verbs.add_parser("merge", help="merge files of the same system into one")
    verb.add_argument("files", metavar="FILE", type=Path, nargs="+")
    verb.add_argument("--out", metavar="FILE", type=Path, required=True, help="file to write")
    verb.add_argument("--encoder", metavar="NAME", help="encoder of the vectors (default: the one that the files name)")
    verb.add_argument("--sign-with", metavar="PEM", type=Path, help="sign the output with this Ed25519 key")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    from memometer.cartridge.container import CartridgeError, NotWritten
    from memometer.models.encoders import EncoderUnavailable

    try:
        return VERBS[args.verb](args)
    except (CartridgeError, EncoderUnavailable) as error:
        error.exit_code = FAILED if isinstance(error, NotWritten | EncoderUnavailable) else REFUSED
        raise


def _inspect(args: argparse.Namespace) -> int:
    from memometer.cartridge.load import open_manifest, open_records, refusing

    if args.records:
        for row in open_records(args.file):
            print(json.dumps(row, ensure_ascii=False))
        return 0
    manifest, digest, signed_by = open_manifest(args.file)
    with refusing(args.file):
        print(json.dumps(manifest, indent=1) if args.json else _description(manifest, digest, signed_by))
    return 0


def _description(manifest: dict[str, Any], digest: str, signed_by: str) -> str:
    count, what = manifest["records"]["count"], "turns" if manifest["holds"] == "state" else "episodes"
    shown = {name: value for name, value in manifest.items() if name not in {"holds", "records", "files", "version"}}
    lines = {
        what: f"{count:,}",
        **{name: value if name == "system" else json.dumps(value) for name, value in shown.items() if value},
        "signed by": signed_by or "(not signed)",
        "digest": digest,
        **{name: f"{about['bytes']:,} bytes" for name, about in manifest["files"].items()},
    }
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {text}" for name, text in lines.items())


def _verify(args: argparse.Namespace) -> int:
    from memometer.cartridge.load import load_cartridge

    loaded = load_cartridge(args.file, public_key=args.public_key)
    signature = f"signed by {loaded.signed_by}" if loaded.signed_by else "not signed, so its origin is unknown"
    print(f"{args.file} is intact: {loaded.manifest['records']['count']:,} records, {signature}.")
    for notice in loaded.notices:
        print(f"Note: {notice}.")
    return 0


def _diff(args: argparse.Namespace) -> int:
    found = list(_differences(*args.files))
    print("\n".join(found) or "The files have the same content.")
    return FAILED if found else 0


def _differences(one: Path, other: Path) -> Iterator[str]:
    """Yield a line for each difference: manifest fields, records by id, then other entries. Provenance is ignored."""
    from memometer.cartridge import container
    from memometer.cartridge.load import open_manifest
    from memometer.cartridge.merge import MUST_AGREE

    first, second = open_manifest(one)[0], open_manifest(other)[0]
    for name in (*MUST_AGREE, "adapter", "scope"):
        if first[name] != second[name]:
            yield f"{name}: {json.dumps(first[name])} | {json.dumps(second[name])}"
    left, right = _by_id(one), _by_id(other)
    for id in dict.fromkeys([*left, *right]):
        if id not in right:
            yield f"- {id}: {_line(left[id])}"
        elif id not in left:
            yield f"+ {id}: {_line(right[id])}"
        else:
            for name in dict.fromkeys([*left[id], *right[id]]):
                if left[id].get(name) != right[id].get(name):
                    yield f"! {id} {name}: {left[id].get(name)!r} | {right[id].get(name)!r}"
    for name in (container.VECTORS, container.STATE, container.TENSORS, container.PROGRAM, container.ADAPTER):
        if first["files"].get(name) != second["files"].get(name):
            yield f"{name} differs"


def _by_id(path: Path) -> dict[str, dict[str, Any]]:
    from memometer.cartridge.load import open_records, refusing

    rows = list(open_records(path))
    with refusing(path):
        return {str(row["id"]): row for row in rows}


def _line(row: dict[str, Any]) -> str:
    return str(row.get("line", row.get("text", ""))).strip()


def _merge(args: argparse.Namespace) -> int:
    from memometer.cartridge.merge import merge
    from memometer.models import encoders

    encoder = encoders.load(args.encoder) if args.encoder else None
    merged = merge(args.files, args.out, encoder=encoder, sign_with=args.sign_with)
    print(f"{args.out} holds {merged.manifest['records']['count']:,} records.")
    return 0


VERBS = {"inspect": _inspect, "verify": _verify, "diff": _diff, "merge": _merge}

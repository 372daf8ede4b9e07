"""The subcommands for daily use of a memory: add, recall, ask, list, forget, export and import."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memometer.errors import UserError, printable
from memometer.serve import LOCAL_TENANT, default_url, former_default_notice

if TYPE_CHECKING:
    from memometer.serve.tenants import TenantMemories

BUDGET_TOKENS = 2048


# ---------------------------------------------------------------- common parts


def store_options(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options that select a store and an encoder."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.add_argument(
        "--memory-url", metavar="URL", help="URL of the store (default: MEMOMETER_URL, or a file in ~/.local/share)"
    )
    parser.add_argument("--encoder", metavar="NAME", help="embedding model; none for words alone (default: minilm)")
    parser.add_argument(
        "--timezone", metavar="NAME", help="the speakers' time zone, as Europe/Berlin (default: that of this machine)"
    )
    return parser


def memory_options(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options of a command on one memory."""
    parser = store_options(description)
    parser.add_argument(
        "--memory", type=utf8_text, metavar="NAME", default="default", help="name of the memory (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that select a language model."""
    parser.add_argument("--model", metavar="NAME", help="language model (default: by the API keys in the environment)")
    parser.add_argument("--api-base", metavar="URL", help="OpenAI-compatible server for --model")
    parser.add_argument(
        "--program", metavar="FILE", help="prompt of optimize.py or train.py (default: the model's own)"
    )


@contextmanager
def open_memories(args: argparse.Namespace, *, create: bool = False) -> Iterator[TenantMemories]:
    """Open the store of the command line.

    Args:
        args: the parsed options of `store_options`.
        create: create a store at --memory-url if it is missing.

    Raises:
        UserError: the store cannot be opened, or it is missing.
    """
    from memometer.serve.tenants import TenantMemories
    from memometer.store.url import check_exists

    if args.memory_url and not create:
        check_exists(args.memory_url)
    if not args.memory_url and (notice := former_default_notice()):
        print(notice, file=sys.stderr)
    model, api_base = getattr(args, "model", None), getattr(args, "api_base", None)
    memories = TenantMemories(
        args.memory_url or default_url(),
        encoder=args.encoder,
        model=model,
        api_base=api_base,
        timezone=args.timezone,
        program=getattr(args, "program", None),
    )
    if getattr(args, "at", None) and args.at.tzinfo is None:
        args.at = memories.with_zone(args.at)
    try:
        yield memories
    finally:
        memories.close()


def print_result(args: argparse.Namespace, data: Any, text: str) -> None:
    """Print a result as text, or as JSON with --json."""
    print(json.dumps(data) if args.json else printable(text))


def utf8_text(text: str) -> str:
    """Argument type: text without bytes that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: expected UTF-8 text") from error
    return text


def limit(text: str) -> int:
    """Argument type: the number of items to show."""
    if not text.isdecimal() or not 0 < int(text) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"{text!r}: expected an integer from 1 to 1,000,000")
    return int(text)


def _time(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a time such as 2024-05-08T14:30") from error


def _turns(count: int) -> str:
    return "1 turn" if count == 1 else f"{count:,} turns"


# ---------------------------------------------------------------- commands


def add(argv: Sequence[str] | None = None) -> int:
    """Store text as turns, or import a transcript."""
    parser = memory_options("Store text as turns of a memory, or import a transcript.")
    parser.add_argument("text", nargs="*", type=utf8_text, help="words of one turn; - reads a turn per line from stdin")
    parser.add_argument(
        "--from", dest="file", type=Path, metavar="FILE",
        help="import a transcript: JSON, JSON Lines, a WhatsApp or Slack export, or plain text; again adds what is new",
    )  # fmt: skip
    parser.add_argument(
        "--date-order", choices=["dmy", "mdy", "ymd"], help="order of the dates of a WhatsApp export (default: found)"
    )
    parser.add_argument("--speaker", type=utf8_text, default="user", metavar="NAME", help="default: %(default)s")
    parser.add_argument(
        "--at", type=_time, metavar="TIME", help="time of the turns, as 2024-05-08T14:30 (default: now)"
    )
    parser.add_argument("--system", metavar="NAME", help="memory system of a new memory (default: episodic)")
    args = parser.parse_args(argv)
    from memometer.serve.new_turns import NewTurn
    from memometer.serve.tenants import MAX_TURNS

    if args.file:
        return _add_transcript(args)
    texts = [" ".join(args.text)]
    if texts == ["-"]:
        try:
            texts = [line.rstrip("\n") for line in sys.stdin]
        except UnicodeDecodeError as error:
            raise UserError(f"standard input is not UTF-8 ({error}); nothing was stored. Send UTF-8 text.") from error
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise UserError("nothing to store; give a text, or - to read lines from standard input.")
    with open_memories(args, create=True) as memories:
        if args.system:
            memories.registry.create(LOCAL_TENANT, args.memory, system=args.system)
        memories.registry.ensure(LOCAL_TENANT, args.memory)
        ids: list[str] = []
        for start in range(0, len(texts), MAX_TURNS):
            turns = [NewTurn(text, args.speaker, args.at) for text in texts[start : start + MAX_TURNS]]
            ids += memories.observe(LOCAL_TENANT, args.memory, turns)
    stored = _turns(len(ids)) if len(ids) > 1 else f"turn {ids[0]}"
    print_result(args, {"ids": ids}, f"Stored {stored} in memory {args.memory}.")
    return 0


def _add_transcript(args: argparse.Namespace) -> int:
    """Import a transcript, and report its format and what was left out."""
    from memometer.serve.new_turns import NewTurn
    from memometer.serve.tenants import MAX_TURNS
    from memometer.transcripts.read import read_transcript

    if args.text:
        raise UserError("--from FILE imports a transcript; leave out the text.")
    found = read_transcript(args.file, speaker=args.speaker, order=args.date_order)
    turns = [
        NewTurn(message.text, message.speaker, message.said_at or args.at, caption=message.caption, id=id)
        for message, id in zip(found.messages, found.ids(), strict=True)
    ]
    ids: list[str] = []
    with open_memories(args, create=True) as memories:
        if args.system:
            memories.registry.create(LOCAL_TENANT, args.memory, system=args.system)
        memories.registry.ensure(LOCAL_TENANT, args.memory)
        for start in range(0, len(turns), MAX_TURNS):
            ids += memories.observe(LOCAL_TENANT, args.memory, turns[start : start + MAX_TURNS])
    lines = [f"Stored {_turns(len(ids))} of {args.file} ({found.format}) in memory {args.memory}."]
    if found.left_out:
        lines.append("Left out: " + ", ".join(f"{kind} ({n:,})" for kind, n in found.left_out.items()) + ".")
    data = {"ids": ids, "format": found.format, "left_out": dict(found.left_out), "notices": found.notices}
    print_result(args, data, "\n".join([*lines, *found.notices]))
    return 0


def recall(argv: Sequence[str] | None = None) -> int:
    """Show the turns that best match a question."""
    parser = _question_options("Show the turns that best match a question.")
    parser.add_argument("--at", type=_time, metavar="TIME", help="recall only turns until this time (default: all)")
    args = parser.parse_args(argv)
    with open_memories(args) as memories:
        at = args.at.timestamp() if args.at else None
        found = memories.recall(
            LOCAL_TENANT, args.memory, " ".join(args.question), budget_tokens=args.budget_tokens, at=at
        )
    data = {"text": found.text, "tokens": found.tokens, "ids": list(found.turn_ids)}
    print_result(args, data, found.text.rstrip("\n") or "No matching turns.")
    return 0 if found.text else 1


def ask(argv: Sequence[str] | None = None) -> int:
    """Show the recalled turns, then the answer of a language model to a question.

    An embedded model is small: a reply with words that the turns do not have is not given as an answer.
    """
    parser = _question_options("Answer a question with a language model, from recalled turns.")
    model_options(parser)
    args = parser.parse_args(argv)
    from memometer.serve.answering import is_supported

    question = " ".join(args.question)
    with open_memories(args) as memories:
        found = memories.recall(LOCAL_TENANT, args.memory, question, budget_tokens=args.budget_tokens)
        if not found.text:
            data: dict[str, Any] = {"answer": None, "tokens": 0, "ids": [], "model": None}
            print_result(args, data, "No matching turns, so no model was asked.")
            return 1
        if not args.json:
            print(found.text.rstrip("\n"), end="\n\n", flush=True)
        answer = memories.model.read(found.text, question)
        invented = not is_supported(answer, found.text) and memories.model.is_embedded
        data = {"answer": None if invented else answer, "tokens": found.tokens, "ids": list(found.turn_ids)}
        data |= {"model": memories.model.name}
        about = memories.model.description()
    text = f"No answer: the model's reply ({answer}) is not in the turns above." if invented else f"Answer: {answer}"
    print_result(args, data, f"{text}\n{about}")
    return 1 if invented else 0


def _question_options(description: str) -> argparse.ArgumentParser:
    parser = memory_options(description)
    parser.add_argument("question", nargs="+", type=utf8_text)
    parser.add_argument(
        "--budget-tokens",
        type=limit,
        default=BUDGET_TOKENS,
        metavar="N",
        help="tokens to recall (default: %(default)s)",
    )
    return parser


def list_turns(argv: Sequence[str] | None = None) -> int:
    """List the newest turns, or the memories."""
    parser = memory_options("List the newest turns of a memory, or all memories.")
    parser.add_argument("--limit", type=limit, default=20, metavar="N", help="number of turns (default: %(default)s)")
    parser.add_argument("--memories", action="store_true", help="list the memories")
    parser.add_argument("--archived", action="store_true", help="list the archived turns, which are not recalled")
    args = parser.parse_args(argv)
    with open_memories(args) as memories:
        if args.memories:
            rows = [(entry, memories.store.size(entry.scope)) for entry in memories.registry.entries(LOCAL_TENANT)]
            data = [
                {"name": entry.name, "system": entry.system, "turns": size.episodes, "archived": size.archived}
                for entry, size in rows
            ]
            lines = [f"{entry.name:<20} {size.episodes:>9,} turns  {entry.system}" for entry, size in rows]
        else:
            from memometer.store.turn_conversion import turn_of

            show = memories.archived if args.archived else memories.newest
            found = show(LOCAL_TENANT, args.memory, k=args.limit)
            times = [memories.with_zone(turn_of(episode).said_at) for episode in found]
            data = [
                {"id": e.id, "text": e.text, "at": datetime.fromtimestamp(e.at, UTC).isoformat(), "uses": e.uses}
                for e in found
            ]
            lines = [f"{t:%Y-%m-%d %H:%M}  {e.id}  {e.text}" for e, t in zip(found, times, strict=True)]
    print_result(args, data, "\n".join(lines) or f"No {'memories' if args.memories else 'turns'}.")
    return 0


def forget(argv: Sequence[str] | None = None) -> int:
    """Archive or delete turns."""
    parser = memory_options("Archive turns, which excludes them from recall, or delete them.")
    parser.add_argument("ids", nargs="*", type=utf8_text, metavar="ID", help="ids from `memometer list`")
    parser.add_argument("--for-good", action="store_true", help="delete permanently instead of archiving")
    parser.add_argument("--everything", action="store_true", help="delete the whole memory permanently")
    args = parser.parse_args(argv)
    if args.everything == bool(args.ids):
        raise UserError("give the ids to forget, or --everything; `memometer list` shows the ids.")
    with open_memories(args) as memories:
        if args.everything:
            count = memories.registry.delete(LOCAL_TENANT, args.memory)
            print_result(args, {"removed": count}, f"Deleted memory {args.memory} with {_turns(count)}.")
            return 0
        gone = memories.forget(LOCAL_TENANT, args.memory, args.ids, permanent=args.for_good)
    missing = [id for id in args.ids if id not in gone]
    text = f"{'Deleted' if args.for_good else 'Archived'}: {', '.join(gone) or 'nothing'}."
    if missing:
        text += f" Not found: {', '.join(missing)}."
    print_result(args, {"forgotten": gone, "not_found": missing}, text)
    return 1 if missing else 0


def restore(argv: Sequence[str] | None = None) -> int:
    """Restore archived turns."""
    parser = memory_options("Restore archived turns, so that they are recalled again.")
    parser.add_argument("ids", nargs="+", type=utf8_text, metavar="ID", help="ids from `memometer list --archived`")
    args = parser.parse_args(argv)
    with open_memories(args) as memories:
        back = memories.restore(LOCAL_TENANT, args.memory, args.ids)
    missing = [id for id in args.ids if id not in back]
    text = f"Restored: {', '.join(back) or 'nothing'}." + (f" Not archived: {', '.join(missing)}." if missing else "")
    print_result(args, {"restored": back, "not_archived": missing}, text)
    return 1 if missing else 0


def export(argv: Sequence[str] | None = None) -> int:
    """Write a memory to a cartridge file."""
    parser = memory_options("Write a memory to a cartridge file.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--sign-with", metavar="PEM", type=Path, help="sign with this Ed25519 private key")
    parser.add_argument("--with-archived", action="store_true", help="write archived turns as well")
    args = parser.parse_args(argv)
    from memometer.cartridge.container import CartridgeError
    from memometer.cartridge.load import open_manifest
    from memometer.serve.cartridge_io import export_cartridge

    if args.file.is_file() and args.file.stat().st_size:
        try:
            open_manifest(args.file)
        except CartridgeError as error:
            raise UserError(f"{args.file} exists and is not a cartridge; choose another file.") from error
    with open_memories(args) as memories:
        export_cartridge(
            memories, LOCAL_TENANT, args.memory, args.file, sign_with=args.sign_with, archived=args.with_archived
        )
    size = args.file.stat().st_size
    print_result(args, {"file": str(args.file), "bytes": size}, f"Wrote {args.memory} to {args.file} ({size:,} bytes).")
    return 0


def import_(argv: Sequence[str] | None = None) -> int:
    """Create a memory from a cartridge file."""
    parser = memory_options("Create a memory from a cartridge file.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--replace", action="store_true", help="replace an existing memory and delete its turns")
    parser.add_argument("--public-key", metavar="PEM", type=Path, help="require a signature of this Ed25519 key")
    parser.add_argument("--reobserve", action="store_true", help="compute the vectors again if the encoder differs")
    args = parser.parse_args(argv)
    from memometer.serve.cartridge_io import import_cartridge

    with open_memories(args, create=True) as memories:
        existing = [entry for entry in memories.registry.entries(LOCAL_TENANT) if entry.name == args.memory]
        held = sum(memories.store.size(entry.scope).episodes for entry in existing)
        if held and not args.replace:
            raise UserError(
                f"memory {args.memory} holds {_turns(held)}; give --replace to delete them, or --memory NAME to import "
                "into another memory."
            )
        entry = import_cartridge(
            memories, LOCAL_TENANT, args.memory, args.file, public_key=args.public_key, reobserve=args.reobserve
        )
        count = memories.store.size(entry.scope).episodes
    data = {"memory": entry.name, "system": entry.system, "turns": count}
    print_result(args, data, f"Imported {_turns(count)} from {args.file} into memory {entry.name}.")
    return 0

"""Remember and recall from the command line.

    memometer add "Nadia sold the kayak."            remember a line; - reads lines from standard input
    memometer recall "Who sold a kayak?"             what fits a question
    memometer ask "Who sold a kayak?"                a language model's answer from it
    memometer list                                   the latest; --memories lists the memories
    memometer export FILE                            write it to a file; import FILE makes a memory of one
    memometer forget ID                              nothing finds it again; --for-good removes it
    memometer serve                                  REST and MCP on http://127.0.0.1:8765

All is kept in one SQLite file, or in the store that --memory-url or MEMOMETER_URL names (memometer/store/__init__.py).
Exit codes: 0 done, 1 nothing found or failed, 2 usage, 4 stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memometer.serve import TENANT, default_url

if TYPE_CHECKING:
    from memometer.serve.tenants import NamedMemories
    from memometer.store.episode import Episode

BUDGET_TOKENS = 2048

READING = ("recall", "ask", "list", "forget", "export")
"""Verbs that find nothing in a store that is not there yet."""


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    from memometer.serve.tenants import TOLD, NamedMemories
    from memometer.store.url import check_exists

    try:
        if args.memory_url and args.verb in READING:  # the default one may be empty still
            check_exists(args.memory_url)
        memories = NamedMemories(
            args.memory_url or default_url(),
            encoder=args.encoder,
            model=getattr(args, "model", None),
            api_base=getattr(args, "api_base", None),
        )
        try:
            code: int = args.act(memories, args)
            sys.stdout.flush()
        finally:
            memories.close()
    except (*TOLD, Usage) as error:
        print(f"memometer {args.verb}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print(f"memometer {args.verb}: stopped; what was acknowledged is kept.", file=sys.stderr)
        return 4
    return code


class Usage(ValueError):
    """What was asked cannot be; the message is one sentence."""


def parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--memory-url", metavar="URL", help="of the store; default MEMOMETER_URL, or one file")
    common.add_argument(
        "--memory", type=_text, metavar="NAME", help="which memory; default: default", default="default"
    )
    common.add_argument("--encoder", metavar="NAME", help="makes the vectors; default minilm")
    common.add_argument("--json", action="store_true", help="for machines")
    top = argparse.ArgumentParser(
        prog="memometer", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, act: Callable[[NamedMemories, argparse.Namespace], int], help: str) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=help, parents=[common])
        made.set_defaults(act=act)
        return made

    add = verb("add", _add, "remember")
    add.add_argument(
        "text", nargs="+", type=_text, help="one text in one or more words; - reads a line each from standard input"
    )
    add.add_argument("--speaker", type=_text, default="user", metavar="NAME", help="who said it; default user")
    add.add_argument("--at", type=_time, metavar="TIME", help="when, such as 2024-05-08T14:30; default now")
    add.add_argument("--system", metavar="NAME", help="of a new memory: who recalls from it; default episodic")
    recall = verb("recall", _recall, "what fits a question")
    ask = verb("ask", _ask, "a language model's answer from what fits")
    for each in (recall, ask):
        each.add_argument("question", nargs="+", type=_text)
        each.add_argument(
            "--budget-tokens", type=_count, default=BUDGET_TOKENS, metavar="N", help="default %(default)s"
        )
    ask.add_argument("--model", metavar="NAME", help="who answers; default by the keys in the environment")
    ask.add_argument("--api-base", metavar="URL", help="of a server that speaks OpenAI's protocol")
    listed = verb("list", _list, "the latest")
    listed.add_argument("--limit", type=_count, default=20, metavar="N", help="default %(default)s")
    listed.add_argument("--memories", action="store_true", help="list the memories instead")
    forget = verb("forget", _forget, "let nothing find it again")
    forget.add_argument("ids", nargs="*", type=_text, metavar="ID", help="as `list` shows them")
    forget.add_argument("--for-good", action="store_true", help="remove it, instead of archiving it")
    forget.add_argument("--everything", action="store_true", help="remove the whole memory, for good")
    export = verb("export", _export, "write the memory to a file, a cartridge")
    export.add_argument("file", type=Path)
    export.add_argument("--sign-with", metavar="PEM", type=Path, help="an Ed25519 key")
    imported = verb("import", _import, "put a cartridge in the place of the memory, or of none")
    imported.add_argument("file", type=Path)
    imported.add_argument("--replace", action="store_true", help="what the memory holds is gone then")
    imported.add_argument("--public-key", metavar="PEM", type=Path, help="refuse what this Ed25519 key has not signed")
    imported.add_argument("--reobserve", action="store_true", help="make vectors anew, where another encoder made them")
    serve = verb("serve", _serve, "answer over HTTP")
    serve.add_argument("--host", default="127.0.0.1", help="default %(default)s; others need tokens")
    serve.add_argument("--port", type=_count, default=8765, help="default %(default)s")
    serve.add_argument(
        "--auth", action=argparse.BooleanOptionalAction, help="ask for tokens; default beyond this machine"
    )
    serve.add_argument("--rate", type=_rate, default=100.0, metavar="N", help="requests a second a tenant; 0 for any")
    serve.add_argument("--consolidate-after", type=_count, default=0, metavar="SECONDS", help="without anything new")
    serve.add_argument("--model", metavar="NAME", help="who answers; default by the keys in the environment")
    serve.add_argument("--api-base", metavar="URL", help="of a server that speaks OpenAI's protocol")
    token = verb("token", _token, "give a caller of the service a token, list or take back those given")
    token.add_argument(
        "tenant", nargs="?", metavar="NAME", help="who gets a new token, and sees only the memories made with it"
    )
    token.add_argument("--revoke", metavar="ID", help="of a token, or a tenant with all of its tokens")
    return top


# ---------------------------------------------------------------- verbs


def _add(memories: NamedMemories, args: argparse.Namespace) -> int:
    from memometer.serve.tenants import MOST_AT_ONCE, Said

    texts = [" ".join(args.text)]
    if texts == ["-"]:
        try:
            texts = [line.rstrip("\n") for line in sys.stdin]
        except UnicodeDecodeError as error:
            raise Usage(f"standard input is no UTF-8 ({error}); nothing is remembered, send it as UTF-8.") from error
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise Usage("there is nothing to remember; give a text, or lines on standard input behind -.")
    if args.system:
        memories.create(TENANT, args.memory, system=args.system)
    memories.ensure(TENANT, args.memory)
    ids: list[str] = []
    for start in range(0, len(texts), MOST_AT_ONCE):
        said = [Said(text, args.speaker, args.at) for text in texts[start : start + MOST_AT_ONCE]]
        ids += memories.observe(TENANT, args.memory, said)
    what = f"{len(ids):,} turns" if len(ids) > 1 else ids[0]
    return _say(args, {"ids": ids}, f"Remembered {what} in {args.memory}.")


def _recall(memories: NamedMemories, args: argparse.Namespace) -> int:
    recall = memories.recall(TENANT, args.memory, " ".join(args.question), budget_tokens=args.budget_tokens)
    told = {"text": recall.text, "tokens": recall.tokens, "ids": list(recall.turn_ids)}
    return _say(args, told, recall.text.rstrip("\n") or "Nothing.") if recall.text else _say(args, told, "Nothing.", 1)


def _ask(memories: NamedMemories, args: argparse.Namespace) -> int:
    question = " ".join(args.question)
    answer, recall = memories.answer(TENANT, args.memory, question, budget_tokens=args.budget_tokens)
    return _say(args, {"answer": answer, "tokens": recall.tokens, "ids": list(recall.turn_ids)}, answer)


def _list(memories: NamedMemories, args: argparse.Namespace) -> int:
    if args.memories:
        rows = [(named, memories.size(TENANT, named.name)) for named in memories.all(TENANT)]
        told = [
            {"name": n.name, "system": n.system, "turns": size.episodes, "archived": size.archived} for n, size in rows
        ]
        lines = [f"{n.name:<20} {size.episodes:>9,} turns  {n.system}" for n, size in rows]
        return _say(args, told, "\n".join(lines) or "No memories yet.")
    found = memories.newest(TENANT, args.memory, k=args.limit)
    return _say(args, [_told(episode) for episode in found], "\n".join(map(_line, found)) or "Nothing.")


def _forget(memories: NamedMemories, args: argparse.Namespace) -> int:
    if args.everything == bool(args.ids):
        raise Usage("name the ids to forget, or --everything; `memometer list` shows ids.")
    if args.everything:
        count = memories.delete(TENANT, args.memory)
        return _say(args, {"removed": count}, f"Removed {args.memory} with {_turns(count)}, for good.")
    gone = memories.forget(TENANT, args.memory, args.ids, for_good=args.for_good)
    missing = [id for id in args.ids if id not in gone]
    what = "Removed for good" if args.for_good else "Forgot"
    text = f"{what}: {', '.join(gone) or 'nothing'}." + (f" Not there: {', '.join(missing)}." if missing else "")
    return _say(args, {"forgotten": gone, "not_there": missing}, text, 1 if missing else 0)


def _export(memories: NamedMemories, args: argparse.Namespace) -> int:
    from memometer.cartridge.cartridge import CartridgeError, open_manifest
    from memometer.serve.cartridge_io import export_cartridge

    if args.file.is_file() and args.file.stat().st_size:
        try:
            open_manifest(args.file)
        except CartridgeError as error:
            raise Usage(f"{args.file} is there and is no cartridge; name another file.") from error
    export_cartridge(memories, TENANT, args.memory, args.file, sign_with=args.sign_with)
    size = args.file.stat().st_size
    return _say(args, {"file": str(args.file), "bytes": size}, f"{args.memory} is in {args.file}, {size:,} bytes.")


def _import(memories: NamedMemories, args: argparse.Namespace) -> int:
    from memometer.serve.cartridge_io import import_cartridge

    there = {named.name for named in memories.all(TENANT)}
    held = memories.size(TENANT, args.memory).episodes if args.memory in there else 0
    if held and not args.replace:
        raise Usage(
            f"{args.memory} holds {_turns(held)}, which would be gone; give --replace to put the file in their place, "
            "or --memory NAME to have both."
        )
    named = import_cartridge(
        memories, TENANT, args.memory, args.file, public_key=args.public_key, reobserve=args.reobserve
    )
    size = memories.size(TENANT, named.name)
    told = {"memory": named.name, "system": named.system, "turns": size.episodes}
    return _say(args, told, f"{named.name} is now what {args.file} holds: {_turns(size.episodes)}.")


def _serve(memories: NamedMemories, args: argparse.Namespace) -> int:
    try:
        from memometer.serve.rest import serve
    except ImportError as error:
        raise Usage(f"the service needs {error.name}; pip install -c constraints.txt '.[service]'.") from error
    serve(
        memories,
        tenant=TENANT,
        host=args.host,
        port=args.port,
        auth=args.auth,
        per_second=args.rate,
        consolidate_after_seconds=args.consolidate_after,
    )
    return 0


def _token(memories: NamedMemories, args: argparse.Namespace) -> int:
    from memometer.serve.auth import Access
    from memometer.serve.tenants import check_name

    access = Access(memories.store)
    if args.revoke:
        count = access.revoke(args.revoke)
        return _say(args, {"revoked": count}, f"Revoked {count} tokens.", 0 if count else 1)
    if args.tenant:
        check_name("tenant", args.tenant)
        token = access.grant(args.tenant, at=memories.now())
        return _say(args, {"tenant": args.tenant, "token": token}, token)
    keys = access.keys()
    lines = [f"{key.id}  {key.tenant:<20} {datetime.fromtimestamp(key.created_at, UTC):%Y-%m-%d %H:%M}" for key in keys]
    return _say(args, [vars(key) for key in keys], "\n".join(lines) or "No tokens yet.")


# ---------------------------------------------------------------- words in and out


def _say(args: argparse.Namespace, told: Any, text: str, code: int = 0) -> int:
    print(json.dumps(told, ensure_ascii=False) if args.json else text)
    return code


def _told(episode: Episode) -> dict[str, Any]:
    at = datetime.fromtimestamp(episode.at, UTC).isoformat()
    return {"id": episode.id, "text": episode.text, "at": at, "uses": episode.uses}


def _turns(count: int) -> str:
    return "1 turn" if count == 1 else f"{count:,} turns"


def _line(episode: Episode) -> str:
    return f"{datetime.fromtimestamp(episode.at, UTC):%Y-%m-%d %H:%M}  {episode.id}  {episode.text}"


def _time(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write one like 2024-05-08T14:30") from error


def _text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no UTF-8") from error
    return text


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0 <= rate < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of requests from 0 on")
    return rate


def _count(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to 1,000,000")
    return int(text)

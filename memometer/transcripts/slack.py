"""Slack's exports: a zip file or folder with users.json and a folder of daily files for each channel."""

from __future__ import annotations

import html
import re
import zipfile
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path, PurePosixPath
from typing import Any

from memometer.benchmarks import json_files
from memometer.benchmarks.protocol import DataError
from memometer.transcripts.message import Message, Transcript

MAX_FILES = 100_000
MAX_TOTAL_BYTES = 2 << 30
"""Limit for the decompressed size of all files."""

SPOKEN = {"", "thread_broadcast", "me_message", "bot_message", "file_share", "file_comment", "message_replied"}
"""Subtypes that are messages of a person or bot."""

_DAY = re.compile(r"\d{4}-\d\d-\d\d\.json")


def read(path: Path) -> Transcript:
    """Read an export.

    Args:
        path: The zip file or folder.

    Raises:
        DataError: It is not a Slack export, or a file is damaged.
    """
    files = dict(_zipped(path) if path.is_file() else _in_folder(path))
    users_files = [name for name in files if PurePosixPath(name).name == "users.json"]
    days = [name for name in files if _DAY.fullmatch(PurePosixPath(name).name)]
    if not days:
        raise DataError(f"{path} is not a Slack export: it has no file such as general/2024-03-03.json.")
    users = _users(files[min(users_files, key=len)], f"{path}, users.json") if users_files else {}
    found = Transcript("Slack")
    messages: dict[tuple[str, str], tuple[float, Mapping[str, Any]]] = {}
    for name in sorted(days):
        where = f"{path}, {name}"
        value = json_files.parse(json_files.text_of(files[name], Path(where)), where)
        if not isinstance(value, list):
            raise DataError(f"{where} is not a list of messages.")
        channel = PurePosixPath(name).parent.name
        for n, item in enumerate(value):
            _collect(item, channel, messages, found, f"{where}, message {n}")
    for (channel, stamp), (at, item) in sorted(messages.items(), key=lambda entry: (entry[1][0], entry[0])):
        speaker = _speaker(item, users)
        text = _plain(str(item.get("text") or ""), users)
        names = _file_names(item.get("files"))
        if not text.strip() and not names:
            found.left_out["message without text"] += 1
            continue
        caption = ", ".join(names) or None
        zone = users.get(str(item.get("user")), {}).get("zone", UTC)
        time = datetime.fromtimestamp(at, zone)
        found.messages.append(Message(text.strip(), speaker, time, caption, f"slack/{channel}/{stamp}"))
    return found


def _file_names(files: Any) -> list[str]:
    of = [file for file in files if isinstance(file, Mapping)] if isinstance(files, list) else []
    return [" ".join(str(file.get("title") or file.get("name") or "file").split()) for file in of]


def _collect(
    item: Any,
    channel: str,
    messages: dict[tuple[str, str], tuple[float, Mapping[str, Any]]],
    found: Transcript,
    where: str,
) -> None:
    """Add a message, or apply a change or deletion of an earlier one."""
    if not isinstance(item, Mapping):
        raise DataError(f"{where} is not an object.")
    subtype = str(item.get("subtype") or "")
    if subtype == "message_deleted":
        messages.pop((channel, str(item.get("deleted_ts"))), None)
        found.left_out["deleted message"] += 1
        return
    if subtype == "message_changed" and isinstance(item.get("message"), Mapping):
        item = {**item["message"], "ts": item["message"].get("ts", item.get("ts"))}
        subtype = str(item.get("subtype") or "")
    if item.get("type", "message") != "message" or subtype not in SPOKEN or item.get("hidden"):
        found.left_out["system message"] += 1
        return
    stamp = item.get("ts")
    try:
        at = float(str(stamp))
        datetime.fromtimestamp(at, UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise DataError(f"{where}: ts is {str(stamp)[:40]!r}; expected seconds such as 1709486400.000100.") from error
    messages[channel, str(stamp)] = (at, item)


def _users(content: bytes, where: str) -> dict[str, dict[str, Any]]:
    """User id -> display name and time zone."""
    value = json_files.parse(json_files.text_of(content, Path(where)), where)
    if not isinstance(value, list):
        raise DataError(f"{where} is not a list of users.")
    found = {}
    for user in value:
        if isinstance(user, Mapping) and isinstance(user.get("id"), str):
            given = user.get("profile")
            profile: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
            names = (profile.get("display_name"), user.get("real_name"), profile.get("real_name"), user.get("name"))
            offset = user.get("tz_offset")
            zone = UTC
            if isinstance(offset, int) and abs(offset) < 86_400:
                zone = timezone(timedelta(seconds=offset))
            found[user["id"]] = {"name": next((str(name) for name in names if name), user["id"]), "zone": zone}
    return found


def _speaker(item: Mapping[str, Any], users: Mapping[str, Mapping[str, Any]]) -> str:
    if (user := str(item.get("user") or "")) in users:
        return " ".join(str(users[user]["name"]).split())
    profiles = [item.get("user_profile"), item.get("bot_profile")]
    names = [item.get("username"), *(p.get("display_name") or p.get("real_name") or p.get("name") for p in profiles
             if isinstance(p, Mapping)), user, item.get("bot_id")]  # fmt: skip
    return next((" ".join(str(name).split()) for name in names if name and str(name).strip()), "unknown")


def _plain(text: str, users: Mapping[str, Mapping[str, Any]]) -> str:
    """Slack's markup as plain text: names of people and channels, addresses of links."""

    def shown(match: re.Match[str]) -> str:
        target, _, label = match[1].partition("|")
        if target.startswith("@"):
            return "@" + str(users.get(target[1:], {}).get("name", label or target[1:]))
        if target.startswith(("#", "!")):
            return target[0].replace("!", "@") + (label or target[1:])
        return f"{label} ({target})" if label and label != target else target

    return html.unescape(re.sub(r"<([^<>\s][^<>]*)>", shown, text))


def _zipped(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [info for info in archive.infolist() if info.filename.endswith(".json")]
            if len(entries) > MAX_FILES or sum(info.file_size for info in entries) > MAX_TOTAL_BYTES:
                raise DataError(f"{path} has too many or too large files; at most {MAX_FILES:,} files and "
                                f"{MAX_TOTAL_BYTES:,} bytes are read.")  # fmt: skip
            for info in entries:
                with archive.open(info) as file:
                    content = file.read(info.file_size + 1)  # a false size would be a bomb
                if len(content) > info.file_size:
                    raise DataError(f"{path}, {info.filename}: the file is longer than the archive says.")
                yield info.filename, content
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError, EOFError) as error:
        raise DataError(f"{path} is not a readable zip file ({error}).") from error


def _in_folder(path: Path) -> Iterator[tuple[str, bytes]]:
    for n, file in enumerate(sorted(path.glob("*.json")) + sorted(path.glob("*/*.json"))):
        if n >= MAX_FILES:
            raise DataError(f"{path} has more than {MAX_FILES:,} files.")
        if file.is_file() and (file.name == "users.json" or _DAY.fullmatch(file.name)):
            yield file.relative_to(path).as_posix(), json_files.read_bytes(file)

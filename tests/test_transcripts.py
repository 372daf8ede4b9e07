"""Transcripts are imported for daily use: the formats of exports, their locales, and what is left out."""

from __future__ import annotations

import contextlib
import json
import zipfile
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memometer.benchmarks.protocol import DataError
from memometer.cli import main
from memometer.models import encoders
from memometer.transcripts.message import Transcript
from memometer.transcripts.read import read_transcript
from tests.conftest import HashEncoder, sampled

EVENING = datetime(2023, 12, 31, 22, 42)


def read(tmp_path: Path, text: str, name: str = "chat.txt", **options: Any) -> Transcript:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return read_transcript(path, **options)


@pytest.mark.parametrize(
    "stamp",
    [
        "31.12.23, 22:42 - ",
        "31/12/2023, 22:42 - ",
        "12/31/23, 10:42 PM - ",
        "12/31/23, 10:42\u202fPM - ",
        "31/12/2023, 10:42 p. m. - ",
        "31/12/23, 10:42 pm - ",
        "2023-12-31, 22:42 - ",
        "2023/12/31 22:42 - ",
        "31/12/2023 à 22:42 - ",
        "31-12-2023 22:42 - ",
        "31. 12. 2023, 22:42 - ",
        "[31.12.23, 22:42:00] ",
        "\u200e[12/31/23, 10:42:00\u202fPM] ",
        "[31/12/2023, 22:42:00] ",
        "[2023-12-31, 22:42:00] ",
    ],
)
def test_whatsapps_dates_are_read_in_every_locale(stamp: str, tmp_path: Path) -> None:
    found = read(tmp_path, f"{stamp}Ada: Happy new year!\n{stamp}Bo Müller: You\ntoo: thanks\n")
    assert found.format == "WhatsApp"
    assert [(m.speaker, m.text, m.said_at) for m in found.messages] == [
        ("Ada", "Happy new year!", EVENING),
        ("Bo Müller", "You\ntoo: thanks", EVENING),
    ]


def test_the_order_of_ambiguous_dates_is_found_from_the_others_or_named(tmp_path: Path) -> None:
    later = "02/01/24, 10:00 - Ada: One\n02/02/24, 10:00 - Ada: Two\n02/13/24, 10:00 - Ada: Three\n"
    assert [m.said_at and m.said_at.month for m in read(tmp_path, later).messages] == [2, 2, 2]
    rising = "01/02/24, 10:00 - Ada: One\n02/02/24, 10:00 - Ada: Two\n01/03/24, 10:00 - Ada: Three\n"
    assert [m.said_at and m.said_at.month for m in read(tmp_path, rising).messages] == [2, 2, 3]
    one = "02/03/24, 10:00 - Ada: One\n"
    found = read(tmp_path, one)
    assert found.messages[0].said_at == datetime(2024, 3, 2, 10)
    assert "--date-order" in found.notices[0]
    assert read(tmp_path, one, order="mdy").messages[0].said_at == datetime(2024, 2, 3, 10)
    with pytest.raises(DataError, match="--date-order"):
        read(tmp_path, "31/12/23, 10:00 - Ada: One\n", order="mdy")


def test_whatsapps_system_lines_media_and_deletions_are_left_out(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        "31.12.23, 22:40 - Messages and calls are end-to-end encrypted. Tap to learn more.\n"
        "31.12.23, 22:41 - Ada changed the subject from Trees to: Kites\n"
        "31.12.23, 22:42 - Ada: <Media omitted>\n"
        "31.12.23, 22:42 - Ada: <Medien ausgeschlossen>\n"
        "31.12.23, 22:42 - Bo: \u200eIMG-1.jpg (file attached)\nThe kite\n"
        "31.12.23, 22:43 - Ada: This message was deleted\n"
        "31.12.23, 22:44 - Ada: Red. <This message was edited>\n"
        "31.12.23, 22:45 - Bo: 3 < 5 and 7 > 5\n",
    )
    assert [(m.speaker, m.text, m.caption) for m in found.messages] == [
        ("Bo", "The kite", "attachment"),
        ("Ada", "Red.", None),
        ("Bo", "3 < 5 and 7 > 5", None),
    ]
    assert found.left_out == {"system message": 2, "media without text": 2, "deleted message": 1}


def slack_files() -> dict[str, Any]:
    return {
        "users.json": [
            {"id": "U1", "name": "ada", "tz_offset": 3600, "profile": {"display_name": "", "real_name": "Ada L"}},
            {"id": "U2", "name": "bo", "profile": {"display_name": "Bo"}},
        ],
        "channels.json": [{"id": "C1", "name": "general"}],
        "general/2024-03-03.json": [
            {"type": "message", "user": "U1", "ts": "1709506200.000100", "text": "Hi <@U2> &amp; <#C1|general>!"},
            {"type": "message", "subtype": "channel_join", "user": "U2", "ts": "1709506201.0", "text": "joined"},
            {"type": "message", "user": "U2", "ts": "1709506300.0", "thread_ts": "1709506200.000100",
             "text": "See <https://a.example|this>", "edited": {"ts": "1"}},
            {"type": "message", "subtype": "bot_message", "bot_id": "B1", "username": "Builder", "ts": "1709506400.0",
             "text": "Done"},
            {"type": "message", "user": "U9", "ts": "1709506500.0", "text": "", "files": [{"title": "a kite"}]},
        ],
        "random/2024-03-03.json": [
            {"type": "message", "user": "U1", "ts": "1709506250.0", "text": "first"},
            {"type": "message", "subtype": "message_changed", "ts": "9",
             "message": {"type": "message", "user": "U1", "ts": "1709506250.0", "text": "second"}},
            {"type": "message", "user": "U1", "ts": "1709506260.0", "text": "gone"},
            {"type": "message", "subtype": "message_deleted", "deleted_ts": "1709506260.0", "ts": "10"},
        ],
    }  # fmt: skip


@pytest.mark.parametrize("form", ["zip", "folder", "nested zip"])
def test_a_slack_export_is_read(form: str, tmp_path: Path) -> None:
    place = tmp_path / ("export.zip" if "zip" in form else "export")
    if "zip" in form:
        with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, value in slack_files().items():
                archive.writestr(("top/" if form == "nested zip" else "") + name, json.dumps(value))
    else:
        for name, value in slack_files().items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_text(json.dumps(value))
    found = read_transcript(place)
    assert [(m.speaker, m.text) for m in found.messages] == [
        ("Ada L", "Hi @Bo & #general!"),
        ("Ada L", "second"),
        ("Bo", "See this (https://a.example)"),
        ("Builder", "Done"),
        ("U9", ""),
    ]
    assert found.messages[0].said_at
    assert found.messages[0].said_at.isoformat() == "2024-03-03T23:50:00.000100+01:00"
    assert found.messages[4].caption == "a kite"
    assert found.left_out == {"system message": 1, "deleted message": 1}


def test_plain_text_has_names_times_or_neither(tmp_path: Path) -> None:
    named = read(tmp_path, "Ada: I planted a quince.\nBo: Where?\nIn Oslo?\n\n[2024-03-03 18:12] Ada: Yes: there.\n")
    assert [(m.speaker, m.text) for m in named.messages] == [
        ("Ada", "I planted a quince."),
        ("Bo", "Where?\nIn Oslo?"),
        ("Ada", "Yes: there."),
    ]
    assert named.messages[2].said_at == datetime(2024, 3, 3, 18, 12)
    plain = read(tmp_path, "I planted a quince.\nNote: it is small.\nIt is red.\n", speaker="Cy")
    assert [(m.speaker, m.text) for m in plain.messages][1] == ("Cy", "Note: it is small.")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("a.json", [{"role": "user", "content": "A kite."}, {"role": "assistant", "content": [{"text": "Nice."}]}]),
        ("a.json", {"messages": [{"role": "user", "content": "A kite."}, {"role": "assistant", "content": "Nice."}]}),
        ("a.jsonl", [{"from": "user", "text": "A kite."}, {"name": "assistant", "message": "Nice."}]),
        ("a.json", {"id": "c", "turns": [{"id": 1, "speaker": "user", "text": "A kite.", "time": "2024-03-03"},
                                         {"id": 2, "speaker": "assistant", "text": "Nice."}]}),
    ],
)  # fmt: skip
def test_json_messages_and_own_conversations_are_read(name: str, value: Any, tmp_path: Path) -> None:
    text = "\n".join(map(json.dumps, value)) if name.endswith("l") else json.dumps(value)
    found = read(tmp_path, text, name)
    assert [(m.speaker, m.text) for m in found.messages] == [("user", "A kite."), ("assistant", "Nice.")]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", b"", "is empty"),
        ("a.txt", "hällo".encode("latin-1"), "not UTF-8"),
        ("a.txt", "hi".encode("utf-16"), "UTF-16"),
        ("a.json", b"[]", "no message"),
        ("a.json", b'[{"speaker": "Ada"}]', "message 0"),
        ("a.json", b'[{"text": "Hi"}]', "message 0"),
        ("a.json", b'[{"text": "Hi", "speaker": "Ada", "time": "soon"}]', "ISO 8601"),
        ("a.json", b'[{"text": "bad \\ud83d", "speaker": "Ada"}]', "surrogate"),
        ("a.json", b'{"id": 1, "turns": [{"speaker": "Ada"}]}', "turn 0"),
        ("a.zip", b"PK\x03\x04broken", "zip"),
        ("a.txt", b"31.12.23, 22:42 - Ada: <Media omitted>", "1 media without text"),
    ],
)
def test_what_cannot_be_imported_is_one_sentence(name: str, content: bytes, expected: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=expected):
        read_transcript(tmp_path / name)


@sampled(40)
@given(text=st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("any") / "chat.txt"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with contextlib.suppress(DataError):
        assert read_transcript(path).messages


def test_a_transcript_is_added_once_and_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MEMOMETER_URL", f"sqlite:///{tmp_path}/memory.db")
    monkeypatch.setattr(encoders, "load", lambda name=None, **options: HashEncoder())
    path = tmp_path / "chat.txt"
    path.write_text("31.12.23, 22:42 - Ada: I sold the kayak.\n31.12.23, 22:43 - Bo: <Media omitted>\n")
    assert main(["add", "--from", str(path)]) == 0
    out = capsys.readouterr().out
    assert "WhatsApp" in out
    assert "media without text (1)" in out
    path.write_text(path.read_text() + "01.01.24, 08:00 - Bo: To whom?\n")
    assert main(["add", "--from", str(path), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["ids"]) == 2
    assert main(["list", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2
    assert main(["recall", "kayak"]) == 0
    assert "# Sun 31 December 2023\nAda: I sold the kayak." in capsys.readouterr().out
    assert main(["add", "words", "--from", str(path)]) == 2
    assert main(["add", "--from", str(tmp_path / "nowhere")]) == 2

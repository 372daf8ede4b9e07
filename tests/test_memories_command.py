"""`memometer`, as a person and as a script use it."""

from __future__ import annotations

import io
import json
import os
import re
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from memometer.models import encoders
from memometer.serve import default_url
from memometer.serve.commands import main, parser
from memometer.serve.tenants import MOST_TEXT_BYTES, Named, NamedMemories, Said
from memometer.store.episode import Episode
from tests.conftest import ROOT, HashEncoder
from tests.test_cartridge import keys


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store of its own, and an encoder that needs no weights."""
    monkeypatch.setenv("MEMOMETER_URL", f"sqlite:///{tmp_path}/memory.db")
    monkeypatch.setattr(encoders, "load", lambda name=None, **how: HashEncoder())


def said(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> Any:
    """What a command says for machines."""
    assert main([argv[0], "--json", *argv[1:]]) == code
    return json.loads(capsys.readouterr().out)


def test_what_is_added_is_recalled_listed_and_forgotten(capsys: pytest.CaptureFixture[str]) -> None:
    (kayak,) = said(capsys, "add", "I sold the", "kayak.", "--speaker", "Nadia", "--at", "2024-05-08T14:30")["ids"]
    said(capsys, "add", "The accordion is at the shop.", "--at", "2024-05-09")
    shown = said(capsys, "recall", "Who", "sold", "a", "kayak?", "--budget-tokens", "60")
    assert "# Wed 8 May 2024\nNadia: I sold the kayak." in shown["text"]
    assert shown["tokens"] <= 60
    assert [turn["id"] for turn in said(capsys, "list")][1] == kayak
    assert said(capsys, "list", "--memories")[0]["turns"] == 2
    assert said(capsys, "forget", kayak, "none", code=1) == {"forgotten": [kayak], "not_there": ["none"]}
    assert "kayak" not in said(capsys, "recall", "kayak")["text"]
    assert said(capsys, "forget", kayak, "--for-good")["forgotten"] == [kayak]
    assert main(["list"]) == 0
    assert "2024-05-09 00:00" in capsys.readouterr().out
    assert main(["forget", "--everything"]) == 0
    assert capsys.readouterr().out == "Removed default with 1 turn, for good.\n"
    assert said(capsys, "recall", "kayak", code=1)["text"] == ""


def test_lines_come_in_and_a_cartridge_goes_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("one kayak\n\ntwo bowls\n"))
    assert len(said(capsys, "add", "-", "--memory", "diary", "--system", "bm25")["ids"]) == 2
    file = str(tmp_path / "diary.cartridge")
    assert said(capsys, "export", file, "--memory", "diary")["bytes"] == Path(file).stat().st_size
    assert said(capsys, "import", file, "--memory", "other") == {"memory": "other", "system": "bm25", "turns": 2}
    first, second = (said(capsys, "recall", "kayak", "--memory", name) for name in ("diary", "other"))
    assert first == second
    assert main(["import", file, "--memory", "other"]) == 2
    assert "other holds 2 turns, which would be gone; give --replace" in capsys.readouterr().err
    assert said(capsys, "import", file, "--memory", "other", "--replace")["turns"] == 2
    Path(file).write_bytes(b"PK")
    assert main(["export", file, "--memory", "other"]) == 2
    assert "is there and is no cartridge; name another file" in capsys.readouterr().err
    assert Path(file).read_bytes() == b"PK"
    assert main(["import", file, "--memory", "other", "--replace"]) == 2
    assert "is refused" in capsys.readouterr().err
    assert said(capsys, "recall", "kayak", "--memory", "other") == second


def test_only_what_a_key_has_signed_is_imported_where_that_is_asked(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (key, public), (forger, _) = keys(tmp_path, "ours"), keys(tmp_path, "theirs")
    said(capsys, "add", "a kayak")
    for name, how in (("signed", ["--sign-with", str(key)]), ("forged", ["--sign-with", str(forger)]), ("bare", [])):
        said(capsys, "export", str(tmp_path / name), *how)
    for name, told in (("forged", "which is not the key of"), ("bare", "it is not signed")):
        argv = ["import", str(tmp_path / name), "--memory", "other", "--public-key", str(public)]
        assert main(argv) == 2
        assert told in capsys.readouterr().err
    assert [memory["name"] for memory in said(capsys, "list", "--memories")] == ["default"]
    argv = ["import", str(tmp_path / "signed"), "--memory", "other", "--public-key", str(public)]
    assert said(capsys, *argv)["turns"] == 1


def test_a_port_that_is_taken_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("prometheus_client", reason="the service is not installed: pip install '.[service]'")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == 2
    told = capsys.readouterr()
    assert f"port {port} of 127.0.0.1 is not free (Address already in use); name another with --port." in told.err
    assert "Serving" not in told.out


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["recall", "who", "--memory", "nobody"], "there is no memory 'nobody'"),
        (["add", " "], "there is nothing to remember"),
        (["add", "a", "--memory", "a/b"], "no memory can be called 'a/b'"),
        (["add", "a", "--system", "psychic"], "there is no memory system 'psychic'"),
        (["list", "--memory-url", "mysql://x"], "mysql://x"),
        (["list", "--memory-url", "sqlite:////nowhere/memory.db"], "/nowhere/memory.db"),
        (["forget"], "name the ids to forget"),
        (
            ["serve", "--host", "0.0.0.0"],
            "holds no token yet; make one with: memometer token NAME --memory-url",
        ),
        (["serve", "--host", "0.0.0.0", "--no-auth"], "tokens are always asked for"),
        (["serve", "--port", "70000"], "there is no port 70000"),
        (["list", "--memory-url", "postgres://ada:s3cret@host/db"], "postgres://ada:…@host/db"),
        (["list", "--memory-url", "sqlite://["], "sqlite://["),
        (["list", "--memory-url", "redis://host/0?no=1&behind=memory:"], "redis://host"),
        (["add", "a" * (MOST_TEXT_BYTES + 1)], "is too long"),
        (["export", "."], "cannot be written"),
        (["token", "a/b"], "no tenant can be called 'a/b'"),
    ],
)
def test_bad_input_is_one_sentence(capsys: pytest.CaptureFixture[str], argv: list[str], sentence: str) -> None:
    if argv[0] == "serve":
        pytest.importorskip("prometheus_client", reason="the service is not installed: pip install '.[service]'")
    if argv[-1].startswith("redis:"):
        pytest.importorskip("redis", reason="it is not installed: pip install '.[stores]'")
    assert main(argv) == 2
    told = capsys.readouterr().err
    assert sentence in told
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    "argv",
    [
        ["add", "caf\udce9"],
        ["recall", "caf\udce9"],
        ["forget", "\udce9"],
        ["serve", "--rate", "nan"],
        ["serve", "--rate=-1"],
    ],
)
def test_an_argument_that_cannot_be_is_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(argv)
    assert " is no " in capsys.readouterr().err


def test_input_that_is_no_utf8_is_refused_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for errors in ("strict", "surrogateescape"):  # as the locale has it
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one\ncaf\xe9\n"), "utf-8", errors))
        assert main(["add", "-"]) == 2
        assert "no UTF-8" in capsys.readouterr().err
    assert said(capsys, "list") == []


def test_ctrl_c_is_no_traceback(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(encoders, "load", stop)
    assert main(["add", "a"]) == 4
    assert capsys.readouterr().err == "memometer add: stopped; what was acknowledged is kept.\n"


def test_tokens_are_given_listed_and_taken_back(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    token = said(capsys, "token", "ada")["token"]
    (key,) = said(capsys, "token")
    assert key["tenant"] == "ada"
    assert token.encode() not in b"".join(path.read_bytes() for path in tmp_path.iterdir()), "only its hash is kept"
    assert said(capsys, "token", "--revoke", key["id"]) == {"revoked": 1}
    assert said(capsys, "token") == []


def test_a_model_answers(capsys: pytest.CaptureFixture[str], server: Any) -> None:
    said(capsys, "add", "Tom bakes sourdough.")
    told = said(capsys, "ask", "What does Tom bake?", "--model", "openai/scripted", "--api-base", server.url)
    assert told["answer"] == "Sourdough"
    assert "Tom bakes sourdough." in server.requests[0]["messages"][-1]["content"]
    assert main(["ask", "what", "--model", "embedded:none"]) == 2
    assert "is no tier" in capsys.readouterr().err


def test_nothing_heavy_is_imported_to_remember(tmp_path: Path) -> None:
    script = (
        "import sys; from tests.conftest import HashEncoder\n"
        "from memometer.models import encoders; encoders.load = lambda *a, **k: HashEncoder()\n"
        "from memometer.serve.commands import main\n"
        "assert main(['add', 'a kayak']) == main(['recall', 'kayak']) == 0\n"
        "assert not {'dspy', 'litellm', 'fastapi', 'scipy'} & set(sys.modules)"
    )
    environment = {**os.environ, "MEMOMETER_URL": f"sqlite:///{tmp_path}/light.db", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, env=environment)


def test_what_is_exchanged_while_it_is_removed_is_removed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memories = NamedMemories(f"sqlite:///{tmp_path}/named.db", encoder=HashEncoder())
    memories.observe("ada", "default", [Said("a kayak")])
    find = memories.find

    def find_and_be_too_late(tenant: str, name: str) -> Named:
        found = find(tenant, name)
        other = Episode("1", "a bowl", 0.0)
        memories.exchange(tenant, name, system="bm25", fill=lambda scope: memories.store.store_episode(scope, other))
        return found

    monkeypatch.setattr(memories, "find", find_and_be_too_late)
    memories.delete("ada", "default")
    assert memories.store.scopes() == []
    memories.close()


def test_the_default_store_is_in_the_users_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MEMOMETER_URL")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_url() == f"sqlite:///{tmp_path}/memometer/memory.db"


def test_the_image_runs_a_command_that_there_is() -> None:
    """Docker cannot run here; what the file names can be looked up."""
    dockerfile = (ROOT / "Dockerfile").read_text()
    extras = re.findall(r"'\.\[(.+?)\]'", dockerfile)[0].split(",")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(extras) <= set(project["optional-dependencies"])
    *_, command = [json.loads(line.removeprefix("CMD ")) for line in dockerfile.splitlines() if line.startswith("CMD ")]
    args = parser().parse_args(command[1:])
    assert command[0] == "memometer"
    assert (args.verb, args.host, args.port) == ("serve", "0.0.0.0", 8765)
    assert "EXPOSE 8765" in dockerfile

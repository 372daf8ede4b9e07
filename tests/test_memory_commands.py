"""The subcommands for daily use: memometer add, recall, ask, list, forget, export, import, serve and token."""

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

from memometer.cli import main
from memometer.commands import serve
from memometer.models import encoders
from memometer.serve import default_url
from memometer.serve.answering import is_supported
from memometer.serve.new_turns import MAX_TURN_BYTES, NewTurn
from memometer.serve.registry import ORPHAN_AGE_SECONDS, MemoryEntry
from memometer.serve.tenants import TenantMemories
from memometer.store.episode import Episode
from tests.conftest import ROOT, HashEncoder
from tests.test_cartridge import keys


@pytest.fixture(autouse=True)
def _own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new store, and an encoder without weights."""
    monkeypatch.setenv("MEMOMETER_URL", f"sqlite:///{tmp_path}/memory.db")
    monkeypatch.setattr(encoders, "load", lambda name=None, **options: HashEncoder())


def result(capsys: pytest.CaptureFixture[str], command: str, *argv: str, code: int = 0) -> Any:
    """Run a command with --json; return its parsed output."""
    assert main([command, "--json", *argv]) == code
    return json.loads(capsys.readouterr().out)


def test_add_recall_list_and_forget(capsys: pytest.CaptureFixture[str]) -> None:
    (kayak,) = result(capsys, "add", "I sold the", "kayak.", "--speaker", "Nadia", "--at", "2024-05-08T14:30")["ids"]
    result(capsys, "add", "The accordion is at the shop.", "--at", "2024-05-09")
    recalled = result(capsys, "recall", "Who", "sold", "a", "kayak?", "--budget-tokens", "60")
    assert "# Wed 8 May 2024\nNadia: I sold the kayak." in recalled["text"]
    assert recalled["tokens"] <= 60
    assert [turn["id"] for turn in result(capsys, "list")][1] == kayak
    assert result(capsys, "list", "--memories")[0]["turns"] == 2
    assert result(capsys, "forget", kayak, "none", code=1) == {"forgotten": [kayak], "not_found": ["none"]}
    assert "kayak" not in result(capsys, "recall", "kayak")["text"]
    assert result(capsys, "forget", kayak, "--for-good")["forgotten"] == [kayak]
    assert main(["list"]) == 0
    assert "2024-05-09 00:00" in capsys.readouterr().out
    assert result(capsys, "forget", "--everything") == {"removed": 1}
    assert result(capsys, "recall", "kayak", code=1)["text"] == ""


def test_lines_are_read_from_standard_input_and_a_cartridge_is_written(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("one kayak\n\ntwo bowls\n"))
    assert len(result(capsys, "add", "-", "--memory", "diary", "--system", "bm25")["ids"]) == 2
    file = str(tmp_path / "diary.cartridge")
    assert result(capsys, "export", file, "--memory", "diary")["bytes"] == Path(file).stat().st_size
    assert result(capsys, "import", file, "--memory", "other") == {"memory": "other", "system": "bm25", "turns": 2}
    first, second = (result(capsys, "recall", "kayak", "--memory", name) for name in ("diary", "other"))
    assert first == second
    assert main(["import", file, "--memory", "other"]) == 2
    assert "--replace" in capsys.readouterr().err
    assert result(capsys, "import", file, "--memory", "other", "--replace")["turns"] == 2
    Path(file).write_bytes(b"PK")
    assert main(["export", file, "--memory", "other"]) == 2
    assert file in capsys.readouterr().err
    assert Path(file).read_bytes() == b"PK"
    assert main(["import", file, "--memory", "other", "--replace"]) == 2
    assert file in capsys.readouterr().err
    assert result(capsys, "recall", "kayak", "--memory", "other") == second


def test_import_checks_the_signature(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (key, public), (other, _) = keys(tmp_path, "ours"), keys(tmp_path, "theirs")
    result(capsys, "add", "a kayak")
    for name, options in (("signed", ["--sign-with", str(key)]), ("forged", ["--sign-with", str(other)]), ("bare", [])):
        result(capsys, "export", str(tmp_path / name), *options)
    for name in ("forged", "bare"):
        assert main(["import", str(tmp_path / name), "--memory", "other", "--public-key", str(public)]) == 2
        assert name in capsys.readouterr().err
    assert [memory["name"] for memory in result(capsys, "list", "--memories")] == ["default"]
    argv = ["import", str(tmp_path / "signed"), "--memory", "other", "--public-key", str(public)]
    assert result(capsys, *argv)["turns"] == 1


def test_serve_on_a_port_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("prometheus_client", reason="the service is not installed: pip install '.[service]'")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == 2
    output = capsys.readouterr()
    assert f"127.0.0.1:{port}" in output.err
    assert "--port" in output.err
    assert "Serving" not in output.out


@pytest.mark.parametrize(
    ("argv", "fact"),
    [
        (["recall", "who", "--memory", "nobody"], "'nobody'"),
        (["add", " "], "nothing to store"),
        (["add", "a", "--memory", "a/b"], "'a/b'"),
        (["add", "a", "--system", "psychic"], "'psychic'"),
        (["list", "--memory-url", "mysql://x"], "mysql://x"),
        (["list", "--memory-url", "sqlite:////nowhere/memory.db"], "/nowhere/memory.db"),
        (["forget"], "--everything"),
        (["serve", "--host", "0.0.0.0"], "memometer token NAME --memory-url"),
        (["serve", "--host", "0.0.0.0", "--no-auth"], "--no-auth"),
        (["serve", "--port", "70000"], "70000"),
        (["list", "--memory-url", "postgres://ada:s3cret@host/db"], "postgres://ada:…@host/db"),
        (["list", "--memory-url", "sqlite://["], "sqlite://["),
        (["list", "--memory-url", "redis://host/0?no=1&behind=memory:"], "redis://host"),
        (["add", "a" * (MAX_TURN_BYTES + 1)], f"{MAX_TURN_BYTES:,}"),
        (["export", "."], "."),
        (["token", "a/b"], "'a/b'"),
    ],
)
def test_mistakes_are_explained_in_one_line(capsys: pytest.CaptureFixture[str], argv: list[str], fact: str) -> None:
    if argv[0] == "serve":
        pytest.importorskip("prometheus_client", reason="the service is not installed: pip install '.[service]'")
    if argv[-1].startswith("redis:"):
        pytest.importorskip("redis", reason="it is not installed: pip install '.[stores]'")
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"memometer {argv[0]}: ")
    assert fact in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "argv",
    [
        ["add", "caf\udce9"],
        ["recall", "caf\udce9"],
        ["forget", "\udce9"],
        ["serve", "--rate", "nan"],
        ["serve", "--rate=-1"],
        ["list", "--limit", "0"],
        ["add", "a", "--at", "yesterday"],
    ],
)
def test_invalid_arguments(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(argv)
    assert "expected" in capsys.readouterr().err


def test_input_that_is_not_utf8_stores_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for errors in ("strict", "surrogateescape"):  # depends on the locale
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one\ncaf\xe9\n"), "utf-8", errors))
        assert main(["add", "-"]) == 2
        assert "UTF-8" in capsys.readouterr().err
    assert result(capsys, "list") == []


def test_ctrl_c_prints_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(encoders, "load", interrupt)
    assert main(["add", "a"]) == 130
    error = capsys.readouterr().err
    assert error.startswith("memometer add: ")
    assert error.count("\n") == 1


def test_tokens_are_issued_listed_and_revoked(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    token = result(capsys, "token", "ada")["token"]
    (issued,) = result(capsys, "token")
    assert issued["tenant"] == "ada"
    assert token.encode() not in b"".join(path.read_bytes() for path in tmp_path.iterdir()), "only its hash is stored"
    assert result(capsys, "token", "--revoke", issued["id"]) == {"revoked": 1}
    assert result(capsys, "token") == []


def test_ask(capsys: pytest.CaptureFixture[str], server: Any) -> None:
    result(capsys, "add", "Tom bakes sourdough.")
    reply = result(capsys, "ask", "What does Tom bake?", "--model", "openai/scripted", "--api-base", server.url)
    assert reply["answer"] == "Sourdough"
    assert "Tom bakes sourdough." in server.requests[0]["messages"][-1]["content"]
    assert reply["model"] == "openai/scripted"
    assert main(["ask", "bake", "--model", "openai/scripted", "--api-base", server.url]) == 0
    turns, answer = capsys.readouterr().out.split("\n\n")
    assert "Tom bakes sourdough." in turns, "the turns first"
    assert "Sourdough" in answer
    assert "openai/scripted" in answer
    calls = len(server.requests)
    assert main(["ask", "bake", "--memory", "empty", "--model", "openai/scripted", "--api-base", server.url]) != 0
    assert len(server.requests) == calls, "no model is asked without turns"
    capsys.readouterr()
    assert main(["ask", "bake", "--model", "embedded:none"]) == 2
    assert "embedded:none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answer", "supported"),
    [("Sourdough", True), ("sourdough bread", False), ("5 March 2021", False), ("No information available.", True)],
)
def test_an_answer_is_supported_by_the_words_of_the_turns(answer: str, supported: bool) -> None:
    assert is_supported(answer, "Tom: I bake sourdough.") == supported


def test_ask_without_dspy(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    result(capsys, "add", "Tom bakes sourdough.")
    monkeypatch.setitem(sys.modules, "dspy", None)
    assert main(["ask", "What does Tom bake?"]) == 2
    assert "memometer[eval]" in capsys.readouterr().err


def test_add_and_recall_import_nothing_heavy(tmp_path: Path) -> None:
    script = (
        "import sys; from tests.conftest import HashEncoder\n"
        "from memometer.models import encoders; encoders.load = lambda *a, **k: HashEncoder()\n"
        "from memometer.cli import main\n"
        "assert main(['add', 'a kayak']) == main(['recall', 'kayak']) == 0\n"
        "assert not {'dspy', 'litellm', 'fastapi', 'scipy', 'mlflow'} & set(sys.modules)"
    )
    environment = {**os.environ, "MEMOMETER_URL": f"sqlite:///{tmp_path}/light.db", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, env=environment)


def test_deletion_includes_a_memory_that_was_replaced_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memories = TenantMemories(f"sqlite:///{tmp_path}/named.db", encoder=HashEncoder())
    memories.observe("ada", "default", [NewTurn("a kayak")])
    registry, find = memories.registry, memories.registry.find

    def find_and_replace(tenant: str, name: str) -> MemoryEntry:
        found = find(tenant, name)
        other = Episode("1", "a bowl", 0.0)
        registry.replace(tenant, name, system="bm25", fill=lambda scope: memories.store.store_episode(scope, other))
        return found

    monkeypatch.setattr(registry, "find", find_and_replace)
    registry.delete("ada", "default")
    assert memories.store.scopes() == []
    memories.close()


def test_orphaned_scopes_are_removed(tmp_path: Path) -> None:
    """A killed import leaves turns in a scope that no memory names."""
    clock = [1e9]
    memories = TenantMemories(f"sqlite:///{tmp_path}/orphans.db", encoder=HashEncoder(), now=lambda: clock[0])
    memories.observe("ada", "default", [NewTurn("a kayak")])
    (kept,) = [scope for scope in memories.store.scopes() if "/" in scope]
    orphan = kept.replace("default", "diary")
    memories.store.store_episode(orphan, Episode("1", "a bowl", 0.0))
    assert memories.registry.remove_orphans() == 0, "it may belong to an import in progress"
    clock[0] += ORPHAN_AGE_SECONDS + 1
    assert memories.registry.remove_orphans() == 1
    assert [scope for scope in memories.store.scopes() if "/" in scope] == [kept]
    memories.close()


def test_default_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("MEMOMETER_URL")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_url() == f"sqlite:///{tmp_path}/memometer/memory.db"
    former = tmp_path / "adaptive-memory" / "memory.db"
    former.parent.mkdir()
    former.touch()
    assert main(["list"]) == 0
    assert f"MEMOMETER_URL=sqlite:///{former}" in capsys.readouterr().err
    assert main(["list"]) == 0
    assert capsys.readouterr().err == "", "the notice ends when the new file exists"


def test_the_image_runs_an_existing_command() -> None:
    """Docker cannot run here, so the Dockerfile's extras and command are compared with the project."""
    dockerfile = (ROOT / "Dockerfile").read_text()
    extras = re.findall(r"'\.\[(.+?)\]'", dockerfile)[0].split(",")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(extras) <= set(project["optional-dependencies"])
    *_, command = [json.loads(line.removeprefix("CMD ")) for line in dockerfile.splitlines() if line.startswith("CMD ")]
    args = serve.parser().parse_args(command[2:])
    assert command[:2] == ["memometer", "serve"]
    assert (args.host, args.port) == ("0.0.0.0", 8765)
    assert "EXPOSE 8765" in dockerfile

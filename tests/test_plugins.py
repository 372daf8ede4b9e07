"""Memory systems of others, through the three doors of the plug-in protocol."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest

from memometer.cli import main
from memometer.systems import worker
from memometer.systems.contract import check
from memometer.systems.open_scopes import OpenScopes
from tests.conftest import ROOT
from tests.evaluation import evaluate, records, results
from tests.stub_systems import Sound

STUBS = ROOT / "tests" / "stub_systems.py"
WORKER = f"{sys.executable} {worker.__file__}"


def in_process(name: str) -> str:
    return f"{STUBS}:{name}"


def command(name: str) -> str:
    return f"cmd:{WORKER} {STUBS}:{name}"


def recall_only(cwd: Path, systems: dict[str, str], *more: str, budgets: str = "60,120", **env: str) -> Any:
    """Evaluate labelled systems on the sample; returns what was printed, the exit code and results.json."""
    named = ",".join(f"{label}={text}" for label, text in systems.items())
    done = evaluate("--recall-only", "--no-mlflow", "--split", "all", "--budgets", budgets, "--systems", named,
                    "--run-dir", "run", *more, cwd=cwd, **env)  # fmt: skip
    return done, results(cwd / "run") if (cwd / "run" / "results.json").exists() else {}


@pytest.fixture
def http_system(tmp_path: Path) -> Iterator[str]:
    process = subprocess.Popen(
        [sys.executable, worker.__file__, in_process("Sound"), "--http", "0"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    yield process.stdout.readline().strip()
    process.terminate()
    process.communicate()


def test_three_doors_give_the_same_recall(tmp_path: Path, http_system: str) -> None:
    systems = {"inside": in_process("Sound"), "own": command("Sound"), "web": http_system,
               "slow": command("Asynchronous"), "loud": command("Prints"), "flood": command("Floods")}  # fmt: skip
    done, found = recall_only(tmp_path, systems)
    assert done.returncode == 0
    assert found["skipped"] == {}
    budgets = [found["systems"][name]["budgets"] for name in systems]
    for budget in ("60", "120"):
        assert len({entry[budget]["evidence_recall"] for entry in budgets}) == 1
        assert all(entry[budget]["max_tokens"] <= int(budget) for entry in budgets)
    assert found["plug_ins"]["loud"]["notices"] == [], "the worker keeps prints away from its replies"
    assert found["plug_ins"]["own"]["versions"] == {"sound": "1"}


def test_a_question_is_searched_once_and_every_text_is_written_once(tmp_path: Path) -> None:
    recall_only(tmp_path, {"own": command("Duplicates")})
    searches = [json.loads(line) for line in (tmp_path / "run" / "searches.jsonl").read_text().splitlines()]
    items = [json.loads(line) for line in (tmp_path / "run" / "items.jsonl").read_text().splitlines()]
    assert len({line["question_id"] for line in searches}) == len(searches) == 13
    assert len({line["key"] for line in items}) == len(items)
    known = {line["key"]: line for line in items}
    for record in records(tmp_path / "run"):
        if record["system"] == "own":
            ids = {id for key in record["recall"]["items"] for id in known[key]["turn_ids"]}
            assert ids == set(record["recall"]["turn_ids"])


def test_parameters_are_json_or_text() -> None:
    text = "Sound?a=5&b=true&c=1e999&d=NaN&e=x%26y&f=&g=%5B1%5D"
    assert worker.split_parameters(text) == (
        "Sound", {"a": 5, "b": True, "c": "1e999", "d": "NaN", "e": "x&y", "f": "", "g": [1]}
    )  # fmt: skip


BAD = {
    "NeedsParameter": "path",
    "NoSearch": "method",
    "CrashAtStart": "no licence file",
    "CrashInAdd": "speaker_id",
    "Exits": "SystemExit",
    "Empty": "empty",
    "BlankText": "empty",
    "CrashInSearch": "index is corrupt",
    "UnknownId": "no such turn",
    "NaNScore": "nan",
    "TextIsNumber": "text",
    "IdsAreText": "turn_ids",
    "ReturnsObject": "an object",
    "NotJson": "bytes",
    "Missing": "no class Missing",
    "Sound?depth=3": "depth",
}


@pytest.mark.parametrize("door", [in_process, command])
def test_a_bad_system_is_skipped_with_its_reason_and_the_others_go_on(tmp_path: Path, door: Any) -> None:
    systems = {"sound": in_process("Sound")} | {f"bad{i}": door(name) for i, name in enumerate(BAD)}
    done, found = recall_only(tmp_path, systems)
    assert done.returncode == 0
    assert set(found["systems"]) == {"sound", "none", "oracle"}
    assert len(found["skipped"]) == len(BAD)
    for (name, reason), sentence in zip(BAD.items(), found["skipped"].values(), strict=True):
        assert reason in sentence, name
        assert "\n" not in sentence
    assert "Traceback" not in done.stderr
    report = (tmp_path / "run" / "table.txt").read_text()
    assert report.count("SKIPPED") >= 2 * len(BAD)


OTHER_COMMANDS = {
    "no-such-program --x": "No such file",
    f"{sys.executable} -c 'import nosuchmodule'": "nosuchmodule",
    f"{sys.executable} -c 'print(1); import time; time.sleep(60)'": "'1'",
    f"{sys.executable} -c 'while True: print(1)'": "no reply within",
    "sleep 60": "no reply within",
    f"{sys.executable} -c 'input(); print(1, chr(123)*9); import os; os._exit(7)'": "exit code 7",
    "cat": "describe",
    "'": "words",
}


def test_commands_that_do_not_speak_the_protocol(tmp_path: Path) -> None:
    systems = {"sound": in_process("Sound")} | {f"bad{i}": f"cmd:{text}" for i, text in enumerate(OTHER_COMMANDS)}
    flags = [word for name, text in systems.items() for word in ("--systems", f"{name}={text}")]
    done = evaluate("--recall-only", "--no-mlflow", "--split", "all", "--budgets", "60", "--ingest-timeout", "0.7",
                    "--run-dir", "run", *flags, cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    skipped = results(tmp_path / "run")["skipped"]
    for i, (text, reason) in enumerate(OTHER_COMMANDS.items()):
        assert reason in skipped[f"bad{i}"], text


def test_a_worker_in_another_language_may_print_between_its_replies(tmp_path: Path) -> None:
    script = tmp_path / "handmade.py"
    script.write_text(
        "import json, sys\n"
        "turns = []\n"
        "print('starting', end='', flush=True)\n"
        "for line in sys.stdin:\n"
        "    r = json.loads(line); p = r['params']; out = None\n"
        "    if r['method'] == 'add': turns += p['turns']; print('added')\n"
        "    if r['method'] == 'search':\n"
        "        out = [{'text': t['text'], 'turn_ids': [t['id']]} for t in turns[:p['limit']]]\n"
        "    if r['method'] == 'describe': out = {'name': 'handmade'}\n"
        "    print(json.dumps({'id': r['id'], 'result': out}), flush=True)\n"
    )
    done, found = recall_only(tmp_path, {"hand": f"cmd:{sys.executable} {script}"})
    assert done.returncode == 0
    assert found["systems"]["hand"]["budgets"]["120"]["evidence_recall"] > 0
    assert "added" in found["plug_ins"]["hand"]["notices"][0]


@pytest.mark.parametrize("door", [in_process, command])
@pytest.mark.parametrize("name", ["HangsInAdd", "HangsInSearch"])
def test_a_system_that_hangs_is_skipped_after_its_time(tmp_path: Path, door: Any, name: str) -> None:
    systems = {"sound": in_process("Sound"), "stuck": door(name)}
    done, found = recall_only(tmp_path, systems, "--ingest-timeout", "2", "--timeout-seconds", "0.3")
    assert done.returncode == 0
    assert set(found["skipped"]) == {"stuck"}
    assert found["systems"]["sound"]["budgets"]["60"]["missing"] == 0


def test_a_process_that_dies_is_started_again(tmp_path: Path) -> None:
    done, found = recall_only(tmp_path, {"own": command("DiesOnce")}, DIED=str(tmp_path / "died"))
    assert done.returncode == 0
    assert (tmp_path / "died").exists()
    assert any("started again once" in notice for notice in found["plug_ins"]["own"]["notices"])
    failed = [record["memory_error"] for record in records(tmp_path / "run") if record["memory_error"]]
    assert len(failed) == 1
    assert "exit code 9" in failed[0]


def test_only_bad_systems_is_a_usage_error(tmp_path: Path) -> None:
    done, _ = recall_only(tmp_path, {"bad": "nosuchmodule:Memory"})
    assert done.returncode == 2
    assert "nosuchmodule" in done.stderr
    assert not (tmp_path / "run").exists()


def test_systems_that_fail_later_fail_the_run(tmp_path: Path) -> None:
    done, found = recall_only(tmp_path, {"bad": in_process("CrashInAdd")})
    assert done.returncode == 1
    assert found["status"] == "failed"


def test_another_source_or_description_is_not_resumed(tmp_path: Path) -> None:
    copy = tmp_path / "mine.py"
    copy.write_text(STUBS.read_text())
    systems = {"mine": f"{copy}:Sound", "theirs": f"cmd:{WORKER} {copy}:Sound"}
    recall_only(tmp_path, systems)
    again = evaluate("--resume", "run", cwd=tmp_path)
    assert again.returncode == 0
    copy.write_text(STUBS.read_text().replace("-len(words", "len(words"))
    changed = evaluate("--resume", "run", cwd=tmp_path)
    assert changed.returncode == 2
    assert "system mine" in changed.stderr
    assert "system theirs" in changed.stderr


def test_facts_without_ids_have_no_evidence_recall(tmp_path: Path) -> None:
    systems = {"facts": command("Facts"), "batches": in_process("Batches"), "worse": in_process("Degraded")}
    _, found = recall_only(tmp_path, systems)
    assert found["systems"]["facts"]["budgets"]["120"]["evidence_recall"] is None
    assert found["systems"]["batches"]["budgets"]["120"]["evidence_recall"] is None
    assert found["systems"]["facts"]["budgets"]["120"]["max_tokens"] <= 120
    facts, batches, exact, oracle = (
        found["fact_recall"][name]["120"] for name in ("facts", "batches", "worse", "oracle")
    )
    assert (facts["provenance"], batches["provenance"], exact["provenance"]) == ("none", "batch", "turn")
    assert facts["batch_recall"] is None
    assert batches["batch_recall"] == batches["batch_chance"] == 1.0, "all batches fit the budget"
    assert batches["coverage"] == 0.0, "They talked."
    assert 0 < facts["coverage"] <= facts["coverage_oracle"] == oracle["coverage"] < 1.01
    assert exact["coverage"] > exact["coverage_chance"]
    text = (tmp_path / "run" / "table.txt").read_text()
    assert "worse (degraded)" in text
    assert "spaCy is missing" in text


class OfOthers(BaseHTTPRequestHandler):
    """A system behind a server of its own, which knows nothing of the metered endpoint."""

    scopes: ClassVar[list[str]] = []
    caller: ClassVar[Any] = None

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if request["method"] in ("open", "close"):
            (self.scopes.append if request["method"] == "open" else self.scopes.remove)(request["params"]["scope"])
        body = json.dumps(self.caller.reply(request)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None: ...


@pytest.fixture
def of_others() -> Iterator[str]:
    OfOthers.scopes, OfOthers.caller = [], worker.Caller(Sound())
    server = ThreadingHTTPServer(("127.0.0.1", 0), OfOthers)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()


def test_a_server_without_the_meter_is_marked(tmp_path: Path, of_others: str, http_system: str) -> None:
    done, found = recall_only(tmp_path, {"other": of_others, "ours": http_system}, "--dry-run")
    assert "other: its model calls are not metered" in " ".join((done.stdout + done.stderr).split())
    done, found = recall_only(tmp_path, {"other": of_others, "ours": http_system})
    assert done.returncode == 0
    assert [found["plug_ins"][name]["metered"] for name in ("other", "ours")] == [False, True]
    table = (tmp_path / "run" / "table.txt").read_text()
    assert "not metered" in table
    assert OfOthers.scopes == [], "the memories are deleted"


def test_memories_of_a_killed_run_are_deleted_by_the_next(tmp_path: Path, of_others: str) -> None:
    runs = [OpenScopes(of_others), OpenScopes(of_others)]
    for number, run in enumerate(runs):
        run.add(f"memometer{number}")
        OfOthers.scopes.append(f"memometer{number}")
        OfOthers.caller.reply({"id": 1, "method": "open", "params": {"scope": f"memometer{number}"}})
    assert runs[0]._lock
    runs[0]._lock.release()  # as the kernel does when a process is killed
    done, found = recall_only(tmp_path, {"other": of_others})
    assert done.returncode == 0
    assert OfOthers.scopes == ["memometer1"], "a run that lives keeps its memory"
    assert any("earlier run" in notice for notice in found["plug_ins"]["other"]["notices"])
    assert len(list(runs[0]._folder.glob("*.txt"))) == 1, "nothing of the finished run is left"


class Answers(BaseHTTPRequestHandler):
    """Answers each path with one broken reply."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        status, headers, body = {
            "/500": (500, {}, b'{"error": "database is locked"}'),
            "/redirect": (307, {"Location": "http://elsewhere.invalid/"}, b""),
            "/html": (200, {}, b"<html>welcome</html>"),
            "/utf8": (200, {}, b'{"id": 1, "result": "\xff"}'),
            "/list": (200, {}, b"[1]"),
        }[self.path]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None: ...


def test_broken_servers(tmp_path: Path) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    reasons = {"/500": "database is locked", "/redirect": "elsewhere.invalid", "/html": "not JSON", "/utf8": "UTF-8",
               "/list": "not an object"}  # fmt: skip
    systems = {"sound": in_process("Sound")} | {f"bad{i}": url + path for i, path in enumerate(reasons)}
    done, found = recall_only(tmp_path, systems | {"closed": "http://127.0.0.1:9/"})
    server.shutdown()
    server.server_close()
    assert done.returncode == 0
    for i, reason in enumerate(reasons.values()):
        assert reason in found["skipped"][f"bad{i}"]
    assert "no server" in found["skipped"]["closed"]


def test_a_command_gets_no_keys_and_no_data_paths(tmp_path: Path) -> None:
    from memometer.systems.command import worker_environment

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", "sk-secret")
        patch.setenv("LOCOMO_PATH", "/data/locomo10.json")
        found = worker_environment({"OPENAI_BASE_URL": "http://127.0.0.1:1/v1"})
    assert "OPENAI_API_KEY" not in found
    assert "LOCOMO_PATH" not in found
    assert found["OPENAI_BASE_URL"]
    assert found["PATH"] == os.environ["PATH"]


@pytest.mark.parametrize("own_process", [False, True])
def test_new_system_writes_a_system_that_keeps_the_contract(tmp_path: Path, own_process: bool) -> None:
    words = ["new-system", "my_memory", *(["--command"] if own_process else [])]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert main(words) == 0
        assert main(words) == 2, "it overwrites nothing"
    folder = tmp_path / "my_memory" if own_process else tmp_path
    assert (folder / "my_memory.py").exists()
    inside = f"{folder}/my_memory.py:MyMemory?smallest=4"
    system = f"cmd:{sys.executable} {folder}/worker.py {inside}" if own_process else inside
    assert check(system) == []
    test: dict[str, Any] = {"__file__": str(folder / "test_my_memory.py")}
    exec((folder / "test_my_memory.py").read_text(), test)
    test["test_my_memory_keeps_the_contract"]()


@pytest.mark.parametrize("name", ["../up", "1st", "a b", ""])
def test_new_system_refuses_other_names(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new-system", name]) == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "reason"), [*list(BAD.items())[:5], ("UnknownId", "no such turn"), ("Shares", "scope")]
)
def test_the_contract_finds_bad_systems(name: str, reason: str) -> None:
    assert any(reason in fault for fault in check(in_process(name))), check(in_process(name))


def test_the_contract_holds_for_sound_systems() -> None:
    for name in ("Sound", "Asynchronous", "Facts", "Batches"):
        assert check(in_process(name)) == [], name

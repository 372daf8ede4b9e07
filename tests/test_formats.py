"""What earlier versions wrote is still opened: every fixture under fixtures/formats, against the facts beside it."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from locomo.dataset import read
from memometer import cli
from memometer.benchmarks.metrics import evidence_recall
from memometer.cartridge.container import CartridgeError
from memometer.cartridge.load import load_cartridge, open_manifest, open_records
from memometer.cartridge.save import save_cartridge
from memometer.commands import verify
from memometer.harness import import_records
from memometer.harness import import_results as published
from memometer.harness import make_plan as evaluation_plan
from memometer.harness.options import EvaluateOptions
from memometer.judging import calibration_cache as certificate
from memometer.judging import label_sets as answer_keys
from memometer.judging.judge_assessment import assess
from memometer.judging.label_sets import clean_and_flagged as side_by_side
from memometer.memory import Memory
from memometer.models import encoders
from memometer.optimize.options import OptimizeOptions
from memometer.optimize.plan import make_plan
from memometer.reader import program_file as programs
from memometer.reader.abstention import AbstentionRule
from memometer.report.aggregate import aggregate as figures_of
from memometer.report.results import read_results
from memometer.run import test_set_usage as ledger
from memometer.run.environment import recalling_code
from memometer.run.folder import RunFolder, key, latest, read_records
from memometer.serve.auth import AccessTokens
from memometer.stats import abstention
from memometer.stats.intervals import clustered_mean, paired
from memometer.store import close, open_store
from memometer.store.protocol import Store
from memometer.systems import current_name
from memometer.systems import load as system_named
from memometer.systems.episodic import Episodic
from memometer.token_counters import Utf8Bytes, counter_for
from memory_system import MemorySystem
from tests import commands, servers
from tests.conftest import ROOT, HashEncoder, HashTokenEncoder, Reply, Server, completion, shown, truthful, writing

FORMATS = ROOT / "tests" / "fixtures" / "formats"
SAMPLE = ROOT / "locomo" / "sample.json"


def facts(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FORMATS / folder / "expected.json").read_text(encoding="utf-8"))
    return found


STORES, CARTRIDGES, RUNS = facts("stores"), facts("cartridges"), facts("run_folders")
NAMED_RUNS = ["answered", "rounds", "recall_only", "stopped", "rescored", "published"]


def unpacked(name: str, into: Path) -> Path:
    with zipfile.ZipFile(FORMATS / f"{name}.zip") as file:
        file.extractall(into)
    return into


def same_recalls(memory: Memory[Any], state: Any, expected: list[dict[str, Any]]) -> None:
    """Assert that recalls are what they were. Learned weights may change from version to version; the turns may not."""
    for one in expected:
        recall = memory.recall(state, one["question"], one["budget_tokens"])
        if memory.takes_ranking:
            assert 0 < recall.tokens <= one["budget_tokens"]
            assert {turn.id for turn in state.turns} >= set(recall.turn_ids)
            assert all(line in recall.text for turn, line in zip(state.turns, state.lines, strict=True)
                       if turn.id in recall.whole_ids)  # fmt: skip
            continue
        found = {"text": recall.text, "tokens": recall.tokens, "turn_ids": list(recall.turn_ids)}
        assert found == {name: one[name] for name in found}


# ---------------------------------------------------------------- stores


def same_store(store: Store, expected: dict[str, Any]) -> None:
    vectors = store.vector_format()
    assert vectors is not None
    assert asdict(vectors) == expected["vectors"]
    assert store.scopes() == list(expected["scopes"])
    assert store.check() == []
    for scope, told in expected["scopes"].items():
        size, episodes = store.size(scope), list(store.scan(scope))
        assert (size.episodes, size.archived, size.terms) == (told["episodes"], told["archived"], told["terms"])
        assert [episode.id for episode in episodes] == told["ids"]
        for episode, each in zip(episodes, told.get("all", ()), strict=False):
            of_episode = {
                **asdict(episode),
                "codes": episode.codes.hex(),
                "sources": list(episode.sources),
                "details": dict(episode.details),
            }
            assert of_episode == each


def same_episodic(url: str, expected: dict[str, Any]) -> None:
    with open_store(url) as store:
        same_store(store, expected)
    memory = Episodic(count=Utf8Bytes(), encoder=HashEncoder(), memory_url=url)
    for scope, told in expected["recalls"].items():
        same_recalls(memory, memory.open(scope), told)
    close(url)


def test_a_sqlite_store_is_opened(tmp_path: Path) -> None:
    url = f"sqlite:///{unpacked('stores/store', tmp_path)}/store.db"
    same_episodic(url, STORES["store.db"])
    with open_store(url) as store:
        store.compact()
    same_episodic(url, STORES["store.db"])


def test_a_sqlite_store_moves_on_to_another(tmp_path: Path) -> None:
    from memometer.store.migrate import MIGRATIONS, migrate

    source = f"sqlite:///{unpacked('stores/store', tmp_path)}/store.db"
    with open_store(source) as store, open_store(f"sqlite:///{tmp_path}/other.db") as other:
        assert migrate(store, other) == sum(len(scope["ids"]) for scope in STORES["store.db"]["scopes"].values())
        other.delete(MIGRATIONS)  # its notes of what came from where
        same_store(other, STORES["store.db"])


@pytest.fixture
def daily(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(FORMATS / "encoder", tmp_path / "encoder")
    monkeypatch.setenv("EMBEDDED_MODELS_DIR", str(tmp_path / "models"))
    return unpacked("stores/daily", tmp_path) / "daily.db"


def test_the_memories_of_the_command_line_are_opened(daily: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = STORES["daily.db"]
    with open_store(f"sqlite:///{daily}") as store:
        same_store(store, expected)  # before recalls, which count as uses
    flags = ["--memory-url", f"sqlite:///{daily}", "--encoder", str(daily.parent / "encoder"), "--json"]

    def said(*argv: str) -> Any:
        assert cli.main([*argv, *flags]) == 0
        return json.loads(capsys.readouterr().out)

    for told in expected["recalls"]:
        assert said("recall", told["question"]) == {name: told[name] for name in ("text", "tokens", "ids")}
    told = expected["diary"]
    assert said("recall", told["question"], "--memory", "diary")["text"] == told["text"]
    assert said("list", "--memories") == expected["memories"]
    assert [one["tenant"] for one in said("token")] == [expected["tenant"]]
    with open_store(f"sqlite:///{daily}") as store:
        assert AccessTokens(store).tenant_of(expected["token"]) == expected["tenant"]
        assert AccessTokens(store).tenant_of(expected["token"] + "x") is None
    (new,) = said("add", "Nadia bought a bowl.")["ids"]
    assert new in {one["id"] for one in said("list")}


def test_what_langgraph_put_is_there(daily: Path) -> None:
    pytest.importorskip("langgraph", reason="it is not installed: pip install '.[langgraph]'")
    from memometer.serve.langgraph_store import LangGraphStore

    told, url = STORES["daily.db"]["langgraph"], f"sqlite:///{daily}"
    store = LangGraphStore(url, encoder=encoders.load(str(daily.parent / "encoder"), cached=False))
    item = store.get(tuple(told["namespace"]), told["key"])
    assert item is not None
    assert (item.value, item.created_at.isoformat()) == (told["value"], told["created_at"])
    assert sorted(found.key for found in store.search(("users",))) == told["keys"]
    assert store.search(("users",), query="Who has the kayak?", limit=1)[0].key == "kayak"
    close(url)


def test_a_postgresql_store_is_opened(postgres_url: str) -> None:
    import psycopg

    url = servers.fresh_schema(postgres_url)
    schema = url.rpartition("search_path%3D")[2].partition("%2C")[0]
    dump = (FORMATS / "stores" / "postgres.sql").read_text(encoding="utf-8").replace("formats_fixture", schema)
    with psycopg.connect(postgres_url, autocommit=True) as server:
        server.execute(f"DROP SCHEMA {schema}")
        server.execute(dump.encode())
    same_episodic(url, STORES["postgres.sql"])


def test_a_chroma_store_is_opened(tmp_path: Path) -> None:
    pytest.importorskip("chromadb", reason="ChromaDB is not here: pip install '.[stores]'")
    same_episodic(f"chroma:///{unpacked('stores/chroma', tmp_path / 'chroma')}", STORES["chroma"])


# ---------------------------------------------------------------- cartridges


def encoder_for(name: str | None) -> Any:
    if name == "folder":
        return encoders.load(str(FORMATS / "encoder"), cached=False)
    if name == "minilm":
        try:
            return encoders.load(name)
        except encoders.EncoderUnavailable as error:
            pytest.skip(str(error))
    return {None: None, "hash": HashEncoder(), "hash tokens": HashTokenEncoder()}[name]


@pytest.mark.parametrize("name", CARTRIDGES)
def test_a_cartridge_is_opened(name: str, tmp_path: Path) -> None:
    expected = CARTRIDGES[name]
    path = Path(shutil.copy(FORMATS / "cartridges" / name, tmp_path))
    manifest, content, signed_by = open_manifest(path)
    assert (content, signed_by) == (expected["digest"], expected["signed_by"])
    assert (manifest["system"], manifest["holds"]) == (current_name(expected["system"]), expected["holds"])
    assert manifest["records"]["count"] == expected["records"]
    assert [row["id"] for row in open_records(path)] == expected["ids"]
    cartridge = load_cartridge(path, encoder=encoder_for(expected["encoder"]))
    assert type(cartridge.memory) is system_named(current_name(expected["system"]))
    assert cartridge.persona == expected["persona"]
    assert len(cartridge.notices) == (name == "adaptive_encoder.cartridge"), "it has weights of earlier features"
    assert (None if cartridge.goal is None else cartridge.goal.tolist()) == expected["goal"]
    with writing():
        same_recalls(cartridge.memory, cartridge.state, expected["recalls"])
    save_cartridge(tmp_path / "again", cartridge.memory, cartridge.state, persona=cartridge.persona)
    again = load_cartridge(tmp_path / "again", encoder=encoder_for(expected["encoder"]))
    with writing():
        same_recalls(again.memory, again.state, expected["recalls"])


def test_a_signed_cartridge_is_of_its_key(tmp_path: Path) -> None:
    pytest.importorskip("cryptography", reason="it is not installed: pip install '.[signatures]'")
    public = FORMATS / "cartridges" / "public.pem"
    cartridge = load_cartridge(FORMATS / "cartridges" / "signed.cartridge", public_key=public)
    memory, reader = cartridge.memory, cartridge.reader
    assert cartridge.signed_by == CARTRIDGES["signed.cartridge"]["signed_by"]
    assert cartridge.manifest["provenance"]["from"] == "a fixture"
    assert memory.count.name == "o200k_base"
    assert reader.abstention
    assert (reader.rounds, reader.question_budget, reader.abstention.threshold) == (2, 3000, 0.5)
    assert reader.abstention.weights["speaker_gap"] == 0.25
    assert reader.read.signature.instructions == "Read well."
    assert [demo.answer for demo in reader.read.demos] == ["A"]
    with pytest.raises(CartridgeError, match="not signed"):
        load_cartridge(FORMATS / "cartridges" / "bm25.cartridge", public_key=public)


def test_an_exported_memory_is_imported(daily: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--memory-url", f"sqlite:///{daily.parent}/new.db", "--encoder", str(daily.parent / "encoder"), "--json"]
    assert cli.main(["import", str(FORMATS / "cartridges" / "exported.cartridge"), *flags]) == 0
    assert json.loads(capsys.readouterr().out) == {"memory": "default", "system": "episodic", "turns": 3}
    for told in STORES["daily.db"]["recalls"]:
        assert cli.main(["recall", told["question"], *flags]) == 0
        assert json.loads(capsys.readouterr().out)["text"] == told["text"]


# ---------------------------------------------------------------- runs


OLD_LABELS = {"missing": "ungraded"}


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with our sample, the kept certificates and the ledger."""
    for name in ("LOCOMO_PATH", "LOCOMO_ERRATA", "LOCOMO_WRONG_ANSWERS", "TOGETHER_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setenv("EMBEDDED_MODELS_DIR", str(tmp_path / "models"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    shutil.copy(SAMPLE, tmp_path / "data")
    shutil.copytree(FORMATS / "run_folders" / "certificates", tmp_path / "models" / "certificates")
    (tmp_path / "runs").mkdir()
    shutil.copy(FORMATS / "run_folders" / "ledger.jsonl", tmp_path / "runs")
    return tmp_path


def headline(entry: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The metrics that the fixture calls so; of `gradings` the scores."""
    new = {name: name.replace("ungraded", "missing") for name in names}
    return {name: _scores(entry["graders"]) if name == "gradings" else entry.get(new[name]) for name in names}


def _scores(gradings: dict[str, Any]) -> dict[str, Any]:
    return {name: grading["score"] for name, grading in gradings.items()}


@pytest.mark.parametrize("name", NAMED_RUNS)
def test_a_run_is_opened_and_counted_again(name: str, runs: Path) -> None:
    expected = RUNS[name]
    path = unpacked(f"run_folders/{name}", runs) / name
    with RunFolder.reopen(path) as folder:
        manifest, records = folder.manifest, folder.records()
    assert {flag: manifest["config"][flag] for flag in expected["config"]} == expected["config"]
    assert (manifest["stand_in"], manifest["created_at"]) == (expected["stand_in"], expected["created_at"])
    assert manifest["identity"]["data"] == expected["data"] == read(SAMPLE).sha256
    told = [
        [
            *key(r),
            r["answer"],
            r["recall"]["tokens"],
            r["recall"]["turn_ids"],
            ["ungraded" if v["label"] == "missing" else v["label"] for v in r["verdicts"]],
        ]
        for r in records
    ]
    assert told == expected["answers"]
    written = read_results(path)
    assert [written[fact] for fact in ("status", "reader", "judge")] == [
        expected[fact] for fact in ("status", "reader", "judge")
    ]
    assert [[c["judge"], c["prompt"], c["passed"]] for c in written["judge_calibrations"]] == expected["certificates"]
    planned = [key(record) for record in latest(records).values()]
    again = figures_of(records, read(SAMPLE).questions, planned)
    for system, budgets in expected["systems"].items():
        for budget, told in budgets.items():
            assert headline(written["systems"][system]["budgets"][budget], told) == told
            if name != "stopped":  # of which not all that was planned has a record
                counted = headline(again[system]["budgets"][budget], told)
                assert counted.pop("gradings") == pytest.approx(told["gradings"])
                assert counted == pytest.approx({name: told[name] for name in counted})
    assert verify.main([str(path)]) == 0
    assert cli.main(["view", str(path), "--export", str(runs / "page")]) == 0


def test_runs_are_compared(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(unpacked(f"run_folders/{name}", runs) / name) for name in ("answered", "rescored", "recall_only")]
    assert cli.main(["compare", paths[2], "--data", str(SAMPLE), "--by-category"]) == 0
    assert cli.main(["compare", *paths[:2], "--data", str(SAMPLE), "--measure", "f1"]) == 0
    assert "adaptive" in capsys.readouterr().out


def test_a_stopped_run_goes_on(server: Server, runs: Path) -> None:
    """By other code than it was begun with it is refused; once it is said to be of this code, the rest is asked."""
    path = unpacked("run_folders/stopped", runs) / "stopped"
    manifest = json.loads((path / "manifest.json").read_text())
    if manifest["identity"]["systems"] != recalling_code():
        assert commands.evaluate(["--resume", "stopped"]) == 2
    manifest["config"]["api_base"] = server.url
    current = evaluation_plan.make_plan(EvaluateOptions.of_saved(manifest["config"])).identity()
    manifest["identity"] |= {name: current[name] for name in ("configuration", "scoring", "systems")}
    (path / "manifest.json").write_text(json.dumps(manifest))
    server.answer = lambda number, body: completion("Sourdough")
    assert commands.evaluate(["--resume", "stopped"]) == 0
    records = read_records(path)
    before = RUNS["stopped"]["records"]
    assert [list(key(record)) for record in records[:before]] == [one[:4] for one in RUNS["stopped"]["answers"]]
    assert len({key(record) for record in records}) == len(records) == 13 * 5
    assert len(server.requests) == sum(record["calls"] for record in records[before:])


def test_a_run_is_graded_again(server: Server, runs: Path) -> None:
    from memometer.judging.calibration_set import draw

    path = unpacked("run_folders/answered", runs) / "answered"
    known = truthful(draw(read(SAMPLE), 60))

    def answer(number: int, body: dict[str, Any]) -> Reply:
        _, gold, said = shown(body)
        return completion("yes" if gold == said else "no") if said.startswith("Not mentioned") else known(number, body)

    server.answer = answer
    flags = ["--judge-model", "openai/third-judge", "--judge-api-base", server.url, "--data", str(SAMPLE)]
    assert cli.main(["rescore", str(path), *flags, "--retries", "0", "--max-false-accept", "1"]) == 0
    found = json.loads((path / "results.json").read_text())["systems"]["adaptive"]["budgets"]["150"]
    assert set(found["graders"]) == {"openai/judge (strict, original)", "openai/third-judge (strict, original)"}


def test_published_answers_become_the_same_run(runs: Path) -> None:
    source = FORMATS / "run_folders" / "published_source.json"
    assert cli.main(["import-results", str(source), "--run-dir", str(runs / "new"), "--data", str(SAMPLE)]) == 0
    with RunFolder.reopen(runs / "new" / source.stem) as folder:
        records = folder.records()
    names = {record["system"] for record in records}
    assert names == {source.stem}
    assert [[r["question_id"], r["answer"]] for r in records] == [
        [one[2], one[4]] for one in RUNS["published"]["answers"]
    ]


@pytest.mark.parametrize("name", RUNS["certificates"])
def test_a_kept_certificate_is_found(name: str, runs: Path) -> None:
    told = RUNS["certificates"][name]
    identity = json.loads((FORMATS / "run_folders" / "certificates" / name).read_text())["identity"]
    at = datetime.fromisoformat(told["date"])
    found = certificate.cached(identity, per_set=told["per_set"], now=at + timedelta(days=1))
    assert found is not None
    assert {fact: found["missing" if fact == "ungraded" else fact] for fact in told} == told
    assert not assess(found, max_false_accept=1.0)["passed"], "it did not check vague answers"


def test_the_ledger_is_counted(runs: Path) -> None:
    lines = RUNS["ledger.jsonl"]
    assert ledger.entries("") == lines
    looks = ledger.count_uses(ledger.entries(""), configuration=lines[0]["configuration"], data=lines[0]["data"])
    assert (looks.configuration, looks.all) == (1, len(lines))


def test_a_rule_of_abstention_is_loaded() -> None:
    rule = AbstentionRule.load(FORMATS / "run_folders" / "abstention.json")
    assert json.loads(json.dumps(asdict(rule))) == RUNS["abstention.json"]
    assert abstention.signals_of({"answer": "No information available", "speaker_gap": 1.0}).absent


def test_an_optimised_program_is_loaded() -> None:
    told, path = RUNS["program.json"], FORMATS / "run_folders" / "program.json"
    program = programs.load(path)
    assert (program.rounds, list(program.trained_on)) == (told["rounds"], told["trained_on"])
    memory = MemorySystem(rounds=program.rounds)
    program.into(memory)
    plain = MemorySystem(rounds=program.rounds)
    plain.load(str(path))  # as DSPy loads it
    for read_in in (memory, plain):
        assert read_in.read.signature.instructions == told["instructions"]
        assert len(read_in.read.demos) == told["demos"]


def test_a_search_is_opened_and_its_options_are_read(runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    told = RUNS["optimize"]
    path = unpacked("run_folders/optimize", runs) / "optimize"
    written = json.loads((path / "results.json").read_text())
    assert {name: written[name] for name in told["results"]} == told["results"]
    assert len((path / "calls.jsonl").read_text().splitlines()) == told["calls"]
    manifest = json.loads((path / "manifest.json").read_text())
    if manifest["packages"]["dspy"] != version("dspy"):
        pytest.skip("another DSPy asks other questions")
    now = make_plan(OptimizeOptions.of_saved(manifest["config"])).identity()
    # Code and packages change with every version. The search had one part; it has two since.
    same = manifest["identity"].keys() & now.keys() - {"code", "packages"}
    assert len(same) > 4
    assert {name: manifest["identity"][name] for name in same} == {name: now[name] for name in same}
    assert commands.optimize(["--resume", str(path)]) == 2
    assert "earlier version" in capfd.readouterr().err


# ---------------------------------------------------------------- figures


@pytest.fixture(scope="session")
def golden() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FORMATS / "golden_figures.json").read_text())
    return found


@pytest.mark.parametrize("system", ["bm25", "session", "recent"])
def test_recall_on_locomo_is_what_it_was(system: str, locomo: Any, golden: dict[str, Any]) -> None:
    (conversation,) = [c for c in locomo.conversations if c.id == "conv-49"]
    memory = system_named(system)(count=counter_for())
    state = memory.new()
    for session in conversation.sessions:
        memory.observe(state, session.turns)
    asked = [q for q in conversation.questions if q.answerable]
    found = [evidence_recall(q.evidence, memory.recall(state, q.text, 1024).turn_ids) for q in asked]
    known = [share for share in found if share is not None]
    told = golden["recall_test"]["systems"][system]["1024"]["by_conversation"]["conv-49"]
    assert (len(known), mean(known)) == (told["n"], pytest.approx(told["evidence_recall"], abs=1e-12))


def test_published_figures_are_what_they_were(locomo: Any, golden: dict[str, Any]) -> None:
    folder, audit = locomo.path.parent / "published", locomo.path.parent / "locomo_audit_errors.json"
    if not folder.is_dir() or not audit.exists():
        pytest.skip("the published runs and the audit are not here: put them beside LOCOMO's file")
    flagged = answer_keys.read(audit, data=locomo).flagged
    scored = {}
    for name, told in golden["published"].items():
        found = published.read(folder / f"{name}.json", data=locomo)
        scored[name] = by = import_records.scores(found.records)
        assert (len(by), mean(by.values())) == (told["judge_n"], pytest.approx(told["judge"], abs=1e-12))
        estimate = clustered_mean(list(by.values()), [id.split("#")[0] for id in by])
        assert [estimate.low, estimate.high] == pytest.approx(told["judge_interval"], abs=1e-12)
        parts = side_by_side(by, flagged)
        for part, figures in told["clean_and_flagged"].items():
            assert parts[part]["n"] == figures["n"]
            assert parts[part]["accuracy"] == pytest.approx(figures["accuracy"], abs=1e-12)
    for names, told in golden["published_paired"].items():
        one, other = (scored[name] for name in names.split(" - "))
        ids = sorted(set(one) & set(other))
        compared = asdict(paired([one[id] for id in ids], [other[id] for id in ids], [id.split("#")[0] for id in ids]))
        assert {name: compared[name] for name in told} == pytest.approx(told, abs=1e-12)


def test_no_fixture_is_altered() -> None:
    """They are what an earlier version wrote: a new format gets new ones beside them."""
    sums = {}
    for path in sorted(FORMATS.rglob("*")):
        if path.is_file() and path.suffix not in (".md", ".json"):
            sums[path.relative_to(FORMATS).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    assert sums == json.loads((FORMATS / "sums.json").read_text())

"""Cartridges: what is loaded is what was saved, whatever the system; what is not is refused in one sentence."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import dspy
import numpy as np
import pytest
from hypothesis import given

from memometer import systems
from memometer.cartridge import container
from memometer.cartridge.container import CartridgeError, Container
from memometer.cartridge.load import load_cartridge, open_manifest, open_records
from memometer.cartridge.save import save_cartridge
from memometer.memory import Memory, Turn
from memometer.reader.abstention import AbstentionRule
from memometer.reader.reader import Reader
from memometer.retrieval.late_interaction import Projection
from memometer.store import open_store, opened
from memometer.store.episode import Episode
from memometer.systems.adaptive import AdaptiveMemory
from memometer.systems.codebook import Codebook
from memometer.systems.episodic import Episodic
from memometer.token_counters import HuggingFace, Tiktoken
from tests.conftest import HashEncoder, HashTokenEncoder, sampled
from tests.test_memory_contract import any_ranker, build, conversations, observed, recalled


class OtherEncoder(HashEncoder):
    name = "other"
    dimensions = 8

    def __call__(self, texts: Any) -> np.ndarray:
        rows = HashEncoder()(texts)[:, ::2]
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def given_to(memory: Memory[Any]) -> dict[str, Any]:
    encoder = getattr(memory, "encoder", None)
    return {"encoder": encoder} if encoder else {}


def held(state: Any) -> Any:
    """What a state holds: the episodes, where it has a store."""
    if hasattr(state, "store"):
        store = state.store
        return state.number, state.scope, store.vector_format(), {s: list(store.scan(s)) for s in store.scopes()}
    return vars(state)


def adaptive() -> AdaptiveMemory:
    return AdaptiveMemory(
        encoder=HashTokenEncoder(),
        projection=Projection.identity(HashTokenEncoder.dimensions),
        ranker=any_ranker(),
    )


# ---------------------------------------------------------------- what is saved is what is loaded


@pytest.mark.parametrize("name", systems.SYSTEMS)
@sampled(4)
@given(turns=conversations())
def test_every_system_comes_back_as_it_was(name: str, tmp_path: Path, turns: list[Turn]) -> None:
    memory = build(name)
    state = observed(memory, turns)
    before = copy.deepcopy(held(state))
    save_cartridge(tmp_path / "one", memory, state)
    assert held(state) == before, "saving only reads"
    cartridge = load_cartridge(tmp_path / "one", **given_to(memory))
    assert held(cartridge.state) == before
    assert type(cartridge.memory) is type(memory)
    for budget in (0, 60, 400, 8192):
        asked = turns[-1].text + " Vienna?"
        assert recalled(cartridge.memory, cartridge.state, asked, budget) == recalled(memory, state, asked, budget)
    save_cartridge(tmp_path / "two", cartridge.memory, cartridge.state)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes(), "equal content is an equal file"


@pytest.mark.parametrize("name", systems.SYSTEMS)
def test_an_empty_memory_comes_back(name: str, tmp_path: Path) -> None:
    memory = build(name)
    save_cartridge(tmp_path / "empty", memory, memory.new())
    cartridge = load_cartridge(tmp_path / "empty", **given_to(memory))
    assert held(cartridge.state) == held(memory.new())


def test_what_is_loaded_goes_on_remembering(tmp_path: Path, sample: Any) -> None:
    turns = list(sample.conversations[0].turns)
    for memory in (adaptive(), Episodic(encoder=HashEncoder()), build("bm25"), build("codebook")):
        half, whole = observed(memory, turns[:12]), observed(memory, turns)
        save_cartridge(tmp_path / "half", memory, half)
        cartridge = load_cartridge(tmp_path / "half", **given_to(memory))
        rest = turns[12:]
        for session in sorted({turn.session for turn in rest}):
            cartridge.memory.observe(cartridge.state, [turn for turn in rest if turn.session == session])
        for question in sample.questions:
            expected = memory.recall(whole, question.text, 300)
            assert cartridge.memory.recall(cartridge.state, question.text, 300) == expected


def test_parameters_weights_and_prompts_go_along(tmp_path: Path, sample: Any) -> None:
    rule = AbstentionRule({"absent": 1.0}, 0.5, ("conv-1",))
    memory, reader = adaptive(), Reader(rounds=2, question_budget=3000, abstention=rule)
    reader.read.signature = reader.read.signature.with_instructions("Read well.")
    reader.read.demos = [dspy.Example(question="Who?", memory="1 A: b", lines=[1], status="answered", answer="A")]
    state = observed(memory, list(sample.conversations[0].turns))
    about: Any = {"persona": "Nadia's", "goal": np.arange(3), "provenance": {"from": "a test"}}
    save_cartridge(tmp_path / "one", memory, state, reader=reader, **about)
    cartridge = load_cartridge(tmp_path / "one", encoder=HashTokenEncoder())
    loaded: Any = cartridge.memory
    read = cartridge.reader
    assert (read.rounds, read.question_budget, read.abstention) == (2, 3000, rule)
    assert loaded.ranker.names == memory.ranker.names  # type: ignore[union-attr]
    assert np.array_equal(loaded.ranker.weights, memory.ranker.weights)  # type: ignore[union-attr]
    assert loaded.projection.digest == memory.projection.digest  # type: ignore[union-attr]
    assert read.read.signature.instructions == "Read well."
    assert [demo.toDict() for demo in read.read.demos] == [demo.toDict() for demo in reader.read.demos]
    assert cartridge.persona == "Nadia's"
    assert cartridge.goal is not None
    assert cartridge.goal.tolist() == [0, 1, 2]
    assert cartridge.manifest["provenance"]["from"] == "a test"
    save_cartridge(tmp_path / "plain", AdaptiveMemory(), AdaptiveMemory().new())
    with Container(tmp_path / "plain") as file:
        assert "program/program.json" not in file, "a prompt that the system has anyway is not written"


def test_the_prompts_are_a_program_that_optimize_would_write(tmp_path: Path) -> None:
    from memometer.reader import program_file

    memory, reader = AdaptiveMemory(), Reader()
    reader.read.signature = reader.read.signature.with_instructions("Read well.")
    save_cartridge(tmp_path / "one", memory, memory.new(), reader=reader)
    with Container(tmp_path / "one") as file:
        (tmp_path / "program.json").write_bytes(file.read("program/program.json", limit=100_000))
    assert program_file.load(tmp_path / "program.json").state["signature"]["instructions"] == "Read well."


def test_a_codebook_keeps_its_parameters_and_its_goal(tmp_path: Path) -> None:
    memory = Codebook(encoder=HashEncoder(), long_max=4, goal_dim=2)
    state = observed(memory, [Turn("D1:1", "Nadia", "A bowl.", 1, datetime(2024, 1, 1))])
    assert state.codes
    state.codes.aim(np.ones(2))
    save_cartridge(tmp_path / "one", memory, state)
    cartridge = load_cartridge(tmp_path / "one", encoder=HashEncoder())
    assert cartridge.state.codes == state.codes
    assert vars(cartridge.memory)["parameters"] == {"long_max": 4, "goal_dim": 2}


def test_tokens_are_counted_as_before(tmp_path: Path, sample: Any) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    for count in (HuggingFace(tmp_path / "tokenizer.json"), Tiktoken("cl100k_base")):
        memory = AdaptiveMemory(count=count)
        state = observed(memory, list(sample.conversations[0].turns))
        save_cartridge(tmp_path / "one", memory, state)
        cartridge = load_cartridge(tmp_path / "one")
        assert cartridge.memory.count.name == count.name
        assert cartridge.memory.recall(cartridge.state, "Who?", 99) == memory.recall(state, "Who?", 99)
    with pytest.raises(CartridgeError, match="cl100k_base.*o200k_base.*reobserve"):
        load_cartridge(tmp_path / "one", count=Tiktoken("o200k_base"))
    other = load_cartridge(tmp_path / "one", count=Tiktoken("o200k_base"), reobserve=True)
    memory = AdaptiveMemory(count=Tiktoken("o200k_base"))
    assert held(other.state) == held(observed(memory, list(sample.conversations[0].turns)))


@pytest.mark.parametrize("name", ["vector", "codebook", "episodic"])
def test_vectors_of_another_encoder_are_refused_or_made_again(name: str, tmp_path: Path, sample: Any) -> None:
    turns = list(sample.conversations[0].turns)
    memory = build(name)
    save_cartridge(tmp_path / "one", memory, observed(memory, turns))
    with pytest.raises(CartridgeError, match="hash.*other.*reobserve"):
        load_cartridge(tmp_path / "one", encoder=OtherEncoder())
    cartridge = load_cartridge(tmp_path / "one", encoder=OtherEncoder(), reobserve=True)
    memory = systems.load(name)(encoder=OtherEncoder())
    state = observed(memory, turns)
    for question in sample.questions:
        assert cartridge.memory.recall(cartridge.state, question.text, 200) == memory.recall(state, question.text, 200)


def test_what_a_model_wrote_is_not_written_again(tmp_path: Path, sample: Any) -> None:
    memory = build("summary")
    save_cartridge(tmp_path / "one", memory, observed(memory, list(sample.conversations[0].turns)))
    with pytest.raises(CartridgeError, match="reobserve"):
        load_cartridge(tmp_path / "one", reobserve=True)


def test_an_encoder_that_is_not_given_is_loaded_when_it_is_needed(
    tmp_path: Path, sample: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from memometer.models import encoders

    named = HashEncoder()
    named.name = "folder-0123456789ab"
    memory = systems.load("vector")(encoder=named)
    state = observed(memory, list(sample.conversations[0].turns))
    save_cartridge(tmp_path / "one", memory, state)
    asked: list[Any] = []
    monkeypatch.setattr(encoders, "load", lambda name: asked.append(name) or named)
    cartridge = load_cartridge(tmp_path / "one")
    assert not asked
    assert cartridge.memory.recall(cartridge.state, "Who?", 200) == memory.recall(state, "Who?", 200)
    assert asked == ["folder"]
    monkeypatch.setattr(encoders, "load", lambda name: OtherEncoder())
    cartridge = load_cartridge(tmp_path / "one")
    with pytest.raises(CartridgeError, match="folder-0123456789ab.*other"):
        cartridge.memory.recall(cartridge.state, "Who?", 200)


# ---------------------------------------------------------------- stores


def test_a_scope_goes_from_store_to_store(tmp_path: Path, sample: Any) -> None:
    turns = list(sample.conversations[0].turns)
    source, target = (f"sqlite:///{tmp_path}/{name}.db" for name in ("source", "target"))
    memory = Episodic(encoder=HashEncoder(), memory_url=source)
    state = memory.open("agent")
    for turn in turns:
        memory.observe(state, [turn])
    memory.observe_uses(state, [turns[3].id, turns[3].id, turns[5].id])
    memory.store(state).change("agent", merge={turns[0].id: [turns[1].id, turns[2].id]}, archive=[turns[7].id])
    memory.store(state).store_episode("agent", Episode("bare", "no vector", 1.0, details={"n": 99, "why": "x"}))
    save_cartridge(tmp_path / "one", memory, state)
    alone = load_cartridge(tmp_path / "one", encoder=HashEncoder())
    stored = load_cartridge(tmp_path / "one", encoder=HashEncoder(), memory_url=target, scope="another")
    episodes = list(memory.store(state).scan("agent"))
    assert [e.id for e in episodes if e.archived] == [turns[n].id for n in (1, 2, 7)]
    with open_store(target) as store:
        assert list(store.scan("another")) == episodes
        assert store.check() == []
    assert list(alone.state.store.scan("agent")) == episodes
    for question in sample.questions:
        expected = memory.recall(state, question.text, 300)
        for cartridge in (alone, stored):
            assert cartridge.memory.recall(cartridge.state, question.text, 300) == expected
    assert alone.state.number == stored.state.number == memory.open("agent").number
    save_cartridge(tmp_path / "two", alone.memory, alone.state)
    assert (tmp_path / "two").read_bytes() == (tmp_path / "one").read_bytes(), "whatever store it comes from"
    load_cartridge(tmp_path / "one", encoder=HashEncoder(), memory_url=target, scope="another")
    with open_store(target) as store:
        assert list(store.scan("another")) == episodes, "loading twice adds nothing"
        store.store_episode("third", Episode("bare", "another text", 1.0))
    with pytest.raises(CartridgeError, match="'bare'"):
        load_cartridge(tmp_path / "one", encoder=HashEncoder(), memory_url=target, scope="third")
    for url in (source, target):
        opened(url).close()


def test_a_state_goes_into_no_store(tmp_path: Path) -> None:
    memory = build("bm25")
    save_cartridge(tmp_path / "one", memory, memory.new())
    with pytest.raises(CartridgeError, match="store"):
        load_cartridge(tmp_path / "one", memory_url=f"sqlite:///{tmp_path}/memory.db")


# ---------------------------------------------------------------- adapters, signatures, swapping


def peft(folder: Path) -> Path:
    """A LoRA adapter as PEFT saves it, written by the official library."""
    from safetensors.numpy import save_file

    folder.mkdir()
    weights = {"base_model.model.q_proj.lora_A.weight": np.ones((2, 4), np.float32)}
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "Qwen/Qwen2.5-3B", "r": 2}))
    return folder


def test_an_adapter_goes_along(tmp_path: Path) -> None:
    folder, memory = peft(tmp_path / "adapter"), build("bm25")
    save_cartridge(tmp_path / "one", memory, memory.new(), adapter=folder)
    manifest, *_ = open_manifest(tmp_path / "one")
    assert manifest["adapter"] == {"base_model": "Qwen/Qwen2.5-3B"}
    with Container(tmp_path / "one") as cartridge:
        cartridge.verify()
        for file in folder.iterdir():
            assert cartridge.read(f"adapter/{file.name}", limit=10_000) == file.read_bytes()
    (folder / "adapter_model.safetensors").write_bytes(b"\x80\x04\x95pickled")
    with pytest.raises(CartridgeError, match="cannot write .*adapter"):
        save_cartridge(tmp_path / "two", memory, memory.new(), adapter=folder)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(CartridgeError, match="PEFT"):
        save_cartridge(tmp_path / "two", memory, memory.new(), adapter=folder)
    assert not (tmp_path / "two").exists()


def test_arrays_are_read_by_the_official_library(tmp_path: Path, sample: Any) -> None:
    from safetensors.numpy import load

    memory = build("vector")
    state = observed(memory, list(sample.conversations[0].turns))
    save_cartridge(tmp_path / "one", memory, state)
    with Container(tmp_path / "one") as file:
        vectors = load(file.read("memory/vectors.safetensors", limit=1 << 20))["vectors"]
        assert load(file.read("state/state.safetensors", limit=1 << 20))
    assert vectors.dtype == np.float32
    assert b"".join(state.vectors) == vectors.tobytes()


def keys(folder: Path, name: str) -> tuple[Path, Path]:
    serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")
    ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
    private = ed25519.Ed25519PrivateKey.generate()
    key, public = folder / f"{name}.pem", folder / f"{name}-public.pem"
    form = serialization.PrivateFormat.PKCS8
    key.write_bytes(private.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(private.public_key().public_bytes(serialization.Encoding.PEM, form))
    return key, public


def test_a_required_signature_refuses_what_another_signed_or_nobody(tmp_path: Path) -> None:
    (key, public), (forger, _) = keys(tmp_path, "ours"), keys(tmp_path, "theirs")
    memory = build("bm25")
    for name, sign_with in (("signed", key), ("forged", forger), ("bare", None)):
        save_cartridge(tmp_path / name, memory, memory.new(), sign_with=sign_with)
    assert len(load_cartridge(tmp_path / "signed", public_key=public).signed_by) == 64
    for name, told in (("forged", "ours-public.pem"), ("bare", "it is not signed")):
        with pytest.raises(CartridgeError, match=told):
            load_cartridge(tmp_path / name, public_key=public)
    manifest, *_ = open_manifest(tmp_path / "forged")
    assert manifest == open_manifest(tmp_path / "signed")[0]
    # The signature of one on the content of another, with all sums made anew.
    with Container(tmp_path / "signed") as file:
        stolen = file.read(container.SIGNATURE, limit=1000)
        entries = {}
        for number, entry in enumerate(file.manifest["files"]):
            entries[entry] = tmp_path / f"entry-{number}"
            file.copy(entry, entries[entry])
        changed = {**file.manifest, "provenance": {"made_by": "somebody"}}
        container.write(tmp_path / "changed", changed, entries, lambda manifest: stolen, folder=tmp_path)
    for how in ({"public_key": public}, {}):
        with pytest.raises(CartridgeError, match="signature"):
            load_cartridge(tmp_path / "changed", **how)


def test_a_key_that_is_none_is_named(tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    (tmp_path / "key.pem").write_text("no key")
    memory = build("bm25")
    with pytest.raises(CartridgeError, match=r"cannot write .*one: .*key\.pem"):
        save_cartridge(tmp_path / "one", memory, memory.new(), sign_with=tmp_path / "key.pem")


def test_what_cannot_be_saved_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    class Unknown(Memory[Any]):
        pass

    for memory, told in ((Unknown(), "Unknown"),):
        with pytest.raises(CartridgeError, match=told):
            save_cartridge(tmp_path / "one", memory, memory.new())
    with pytest.raises(CartridgeError, match="State is not a state of BM25"):
        save_cartridge(tmp_path / "one", build("bm25"), build("recent").new())
    with pytest.raises(CartridgeError, match=r"missing.one \(No such file or directory\)"):
        save_cartridge(tmp_path / "missing" / "one", build("bm25"), build("bm25").new())
    memory = build("vector")
    state = observed(memory, [Turn("1", "A", "b", 1, datetime(2024, 1, 1))])
    with pytest.raises(CartridgeError, match="no encoder"):
        save_cartridge(tmp_path / "one", systems.load("vector")(), state)
    state.turns[0] = replace(state.turns[0], text="\ud83d")
    with pytest.raises(CartridgeError, match="surrogate"):
        save_cartridge(tmp_path / "one", memory, state)
    assert list(tmp_path.iterdir()) == []


def test_records_can_be_read_by_themselves(tmp_path: Path, sample: Any) -> None:
    memory = build("recent")
    save_cartridge(tmp_path / "one", memory, observed(memory, list(sample.conversations[0].turns)))
    assert [row["id"] for row in open_records(tmp_path / "one")] == [t.id for t in sample.conversations[0].turns]

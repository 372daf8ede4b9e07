"""Stacking of adapters, and copying of checkpoints from the server's machine."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from memometer.train import arbor_endpoint, merge_lora
from tests.arbor_loopback import write_adapter
from tests.rented import install_ssh


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def adapter(folder: Path, a: Any, b: Any, *, alpha: float = 4) -> Path:
    folder.mkdir()
    rank = len(a)
    (folder / "adapter_config.json").write_text(json.dumps({"r": rank, "lora_alpha": alpha * rank}))
    names = {"x.lora_A.weight": a, "x.lora_B.weight": b}
    save_file(names, folder / merge_lora.WEIGHTS)
    return folder


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 6), st.integers(1, 6), st.integers(0, 999))
def test_stacked_adapters_do_what_both_do(
    tmp_path_factory: pytest.TempPathFactory, first: int, second: int, inputs: int, outputs: int, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("stack")
    random = np.random.default_rng(seed)
    pairs = [
        (random.standard_normal((r, inputs), "f4"), random.standard_normal((outputs, r), "f4")) for r in (first, second)
    ]
    one, other = (adapter(folder / str(n), *pair) for n, pair in enumerate(pairs))
    merge_lora.stack(one, other, folder / "both")
    found = load_file(folder / "both" / merge_lora.WEIGHTS)
    a, b = found["x.lora_A.weight"], found["x.lora_B.weight"]
    np.testing.assert_allclose(b @ a, sum(b @ a for a, b in pairs), rtol=1e-4, atol=1e-4)
    settings = json.loads((folder / "both" / "adapter_config.json").read_text())
    assert settings["r"] == first + second
    assert settings["lora_alpha"] / settings["r"] == 4


def bf16_file(path: Path, matrices: dict[str, Any]) -> None:
    """A safetensors file in bfloat16, which NumPy does not have."""
    header, data = {}, b""
    for name, matrix in matrices.items():
        bits = (matrix.astype("f4").view("u4") >> 16).astype("u2").tobytes()
        header[name] = {
            "dtype": "BF16",
            "shape": list(matrix.shape),
            "data_offsets": [len(data), len(data) + len(bits)],
        }
        data += bits
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.mark.parametrize("number_format", ["F16", "BF16"])
def test_stacked_adapters_are_safetensors(number_format: str, tmp_path: Path) -> None:
    folders = []
    for name, value in (("one", 1.5), ("other", 2.0)):
        (tmp_path / name).mkdir()
        matrices = {"x.lora_A.weight": np.full((2, 3), value, "f2"), "x.lora_B.weight": np.full((4, 2), value, "f2")}
        save = save_file if number_format == "F16" else lambda found, path: bf16_file(path, found)
        save(matrices, tmp_path / name / merge_lora.WEIGHTS)
        (tmp_path / name / "adapter_config.json").write_text('{"r": 2, "lora_alpha": 4}')
        folders.append(tmp_path / name)
    merge_lora.stack(*folders, tmp_path / "both")
    found = load_file(tmp_path / "both" / merge_lora.WEIGHTS)
    assert found["x.lora_A.weight"].tolist() == [[1.5] * 3] * 2 + [[2.0] * 3] * 2
    assert found["x.lora_B.weight"].tolist() == [[1.5, 1.5, 2.0, 2.0]] * 4
    (folders[1] / "adapter_config.json").write_text('{"r": 2, "lora_alpha": 8}')
    with pytest.raises(ValueError, match="scale"):
        merge_lora.stack(*folders, tmp_path / "both")


def test_an_endpoint_is_a_url_or_a_file(here: Path) -> None:
    assert arbor_endpoint.read_endpoint(None).url == "http://127.0.0.1:7453"
    assert arbor_endpoint.read_endpoint("https://example.org:1/v1/").url == "https://example.org:1"
    (here / "arbor_pod.json").write_text('{"name": "not waited for yet"}')
    with pytest.raises(arbor_endpoint.EndpointError, match="--wait"):
        arbor_endpoint.read_endpoint(None)
    for text in ("{", "[]", '{"ssh": 1}'):
        (here / "arbor_pod.json").write_text(text)
        with pytest.raises(arbor_endpoint.EndpointError):
            arbor_endpoint.read_endpoint(None)
    (here / "arbor_pod.json").write_text('{"ssh": {"host": "h", "port": 2222, "key": "/k"}}')
    found = arbor_endpoint.read_endpoint(None)
    assert found.ssh[-1] == "root@h"
    assert found.ssh[1:3] == ("-p", "2222")


@pytest.mark.parametrize("remote", [False, True])
def test_folders_are_copied_whole_or_not_at_all(remote: bool, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = install_ssh(here / "bin", forward=9, home=here / "machine")
    monkeypatch.setenv("PATH", f"{log.parent}{os.pathsep}{os.environ['PATH']}")
    found = arbor_endpoint.Endpoint("http://127.0.0.1:9", ("ssh", "root@h") if remote else ())
    write_adapter(here / "a folder's", {"r": 1, "lora_alpha": 1}, "m", 3)
    found.fetch(str(here / "a folder's"), here / "copy")
    assert {path.name for path in (here / "copy").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    there = Path(found.send(here / "copy", str(here / "sent")))
    assert (there / "adapter_config.json").exists()
    with pytest.raises(arbor_endpoint.EndpointError, match="nowhere"):
        found.fetch(str(here / "nowhere"), here / "other")
    assert not (here / "other").exists()

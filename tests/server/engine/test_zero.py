"""The zero adapter: its bytes, and what it is made from."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from buffer.adapters import CONFIG, WEIGHTS, verify
from server.engine.zero import ModelUnusable, write_zero


def model(directory: Path, *modules: str) -> Path:
    """A directory whose only weights are those of `modules`, 6 by 4."""
    directory.mkdir()
    tensors = {f"{module}.weight": np.ones((6, 4), np.float32) for module in modules}
    save_file(tensors, directory / "model.safetensors")
    return directory


def test_it_is_written_once_and_the_same_everywhere(tmp_path: Path) -> None:
    base = model(tmp_path / "model", "model.layers.0.self_attn.q_proj", "model.embed_tokens")
    first = write_zero(tmp_path / "a", base, alias="x", base="b" * 64)
    assert write_zero(tmp_path / "a", base, alias="x", base="b" * 64) == first
    assert write_zero(tmp_path / "b", base, alias="x", base="b" * 64) == first
    assert first.version == 0
    assert [path.name for path in (tmp_path / "a").iterdir()] == [first.directory]


def test_it_passes_verification_and_changes_nothing(tmp_path: Path) -> None:
    base = model(tmp_path / "model", "model.layers.0.self_attn.q_proj")
    release = write_zero(tmp_path / "a", base, alias="x", base="b" * 64)
    assert verify(tmp_path / "a", release, max_rank=16).alias == "x"
    tensors = load_file(tmp_path / "a" / release.directory / WEIGHTS)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    assert shapes == {
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": (1, 4),
        "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight": (6, 1),
    }
    assert not any(tensor.any() for tensor in tensors.values())


def test_it_takes_the_first_module_that_an_adapter_may_touch(tmp_path: Path) -> None:
    layers = ("model.layers.10.mlp.up_proj", "model.layers.2.mlp.up_proj", "model.layers.2.mlp.gate_proj")
    base = model(tmp_path / "model", *layers, "lm_head")
    release = write_zero(tmp_path / "a", base, alias="x", base="b" * 64)
    config = json.loads((tmp_path / "a" / release.directory / CONFIG).read_text())
    assert config["target_modules"] == ["gate_proj"]


def test_a_model_without_such_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelUnusable, match="holds no safetensors"):
        write_zero(tmp_path / "a", model(tmp_path / "m", "lm_head"), alias="x", base="b" * 64)

"""The zero adapter, `alias@000000`: a LoRA whose B is 0, so its answers are the base model's.

Base is served through it because a base-model row that vLLM's CPU backend batches with LoRA rows gets the
last slot's adapter, silently; and because the first LoRA request after a start is slow: this way, nobody's.
"""

import json
import re
import shutil
import tempfile
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from buffer.adapters import CONFIG, MANIFEST, TARGET_MODULES, WEIGHTS, Manifest, release_of, sha256_file
from buffer.files import make_directory, publish_directory, write_durably
from buffer.records import Release
from server.errors import ServerError


class ModelUnusable(ServerError):
    """The base model's directory lacks what serving needs."""

    code = "model_unusable"


def write_zero(adapters: Path, model: Path, *, alias: str, base: str) -> Release:
    """Publish the zero adapter for `model` under `adapters`, once: the same arguments give the same bytes.

    `base` is the SHA-256 of the model's weights, for the manifest. Raises `ModelUnusable`.
    """
    module, (out_features, in_features) = _first_target(model)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 1,
        "lora_alpha": 1,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": [module.rpartition(".")[2]],
        "inference_mode": True,
    }
    files = {
        CONFIG: json.dumps(config, indent=2).encode(),
        WEIGHTS: save(
            {
                f"base_model.model.{module}.lora_A.weight": np.zeros((1, in_features), np.float32),
                f"base_model.model.{module}.lora_B.weight": np.zeros((out_features, 1), np.float32),
            }
        ),
    }
    make_directory(adapters)
    temporary = Path(tempfile.mkdtemp(dir=adapters, prefix=".zero-"))
    try:
        for name, data in files.items():
            write_durably(temporary / name, data)
        manifest = Manifest(
            version=0,
            alias=alias,
            parent=0,
            round=0,
            base=base,
            rank=1,
            files={name: sha256_file(temporary / name) for name in files},
        )
        raw = manifest.model_dump_json().encode()
        write_durably(temporary / MANIFEST, raw)
        release = release_of(raw)
        try:
            publish_directory(temporary, adapters / release.directory)
        except OSError:
            if not (
                adapters / release.directory
            ).is_dir():  # else an earlier start, or another server, was first
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return release


def _first_target(model: Path) -> tuple[str, tuple[int, int]]:
    """The first module that an adapter may touch, by its weight in the model's files: name and shape.

    The weights are asked rather than config.json, because what config.json means depends on the architecture
    (`head_dim` may be absent, a gated attention doubles `q_proj`, a hybrid has none in layer 0).
    """
    shapes: dict[str, tuple[int, int]] = {}
    try:
        for file in sorted(model.glob("*.safetensors")):
            with safe_open(file, framework="np") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - a safetensors file, not a dict
                    module = name.removesuffix(".weight")
                    if module != name and module.rpartition(".")[2] in TARGET_MODULES:
                        shape = tensors.get_slice(name).get_shape()
                        shapes[module] = (shape[0], shape[1])
    except (OSError, SafetensorError) as error:
        raise ModelUnusable(f"{model}: {error}", "Fetch the model again.") from error
    if not shapes:
        raise ModelUnusable(
            f"{model} holds no safetensors weights with any of {', '.join(TARGET_MODULES)}",
            "Set `model` to a directory that holds config.json and *.safetensors of a decoder model.",
        )
    first = min(shapes, key=_natural)
    return first, shapes[first]


def _natural(module: str) -> list[tuple[int, str]]:
    """Layer 2 before layer 10, and within a layer `q_proj` first."""
    parts = re.split(r"(\d+)", module)
    last = TARGET_MODULES.index(module.rpartition(".")[2])
    return [(int(part), "") if part.isdigit() else (last if "." in part[1:] else 0, part) for part in parts]

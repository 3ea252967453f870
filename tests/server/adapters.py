"""Adapter releases made without training: random weights, and probes that are right or wrong on purpose."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from buffer.adapters import CONFIG, MANIFEST, WEIGHTS, Manifest, Probe, release_of, sha256_file
from buffer.files import publish_directory
from buffer.records import Release

PROMPT = [1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411]
HIDDEN, OUT = 576, 576
"""Shape of SmolLM2-135M's q_proj."""


def write_weights(
    directory: Path, *, seed: int, scale: float = 0.3, prefix: str = "base_model.model.model"
) -> None:
    """A PEFT directory with a random LoRA on two layers' q_proj. vLLM may not know the `prefix`."""
    random = np.random.default_rng(seed)
    tensors = {}
    for layer in (0, 9):
        module = f"{prefix}.layers.{layer}.self_attn.q_proj"
        tensors[f"{module}.lora_A.weight"] = random.normal(0, scale, (4, HIDDEN)).astype(np.float32)
        tensors[f"{module}.lora_B.weight"] = random.normal(0, scale, (OUT, 4)).astype(np.float32)
    directory.mkdir(parents=True)
    save_file(tensors, directory / WEIGHTS)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "bias": "none", "target_modules": ["q_proj"]}
    config["layers_to_transform"] = [0, 9]  # otherwise PEFT misses the other layers' weights
    (directory / CONFIG).write_text(json.dumps(config))


def publish(
    adapters: Path,
    weights: Path,
    *,
    version: int,
    candidate: Sequence[float],
    parent: Sequence[float],
    alias: str = "apprentice",
    base: str = "b" * 64,
) -> Release:
    """Release what is in `weights`, with one probe on `PROMPT`, as the learner would."""
    probe = Probe(token_ids=PROMPT, start=1, candidate=list(candidate), parent=list(parent))
    manifest = Manifest(
        version=version,
        alias=alias,
        parent=0,
        round=version,
        base=base,
        rank=4,
        files={path.name: sha256_file(path) for path in sorted(weights.iterdir())},
        probes=[probe],
    )
    raw = manifest.model_dump_json().encode()
    (weights / MANIFEST).write_bytes(raw)
    release = release_of(raw)
    publish_directory(weights, adapters / release.directory)
    return release

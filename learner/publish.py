"""Publishing a candidate: an immutable PEFT directory with probes, named after its content.

Written beside its place, flushed, then renamed: no reader ever sees half of it. The same adapter always
gives the same bytes, so that publishing again after a crash finds the directory already there.
"""

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save

from buffer.adapters import CONFIG, MANIFEST, TARGET_MODULES, WEIGHTS, Manifest, Probe, release_of
from buffer.files import make_directory, publish_directory
from buffer.records import Release
from learner.loss import token_logprobs
from learner.model import Model
from learner.rows import Row


@torch.no_grad()
def probe_logprobs(model: Model, rows: Sequence[Row]) -> list[list[float]]:
    """Log-probability (T=1, nats) of every completion token of each row under the model as it is."""
    states = model.states([r.student for r in rows], [r.completion for r in rows])
    return [
        token_logprobs(s, model.head_VD, torch.tensor(r.completion, device=s.device)).tolist()
        for s, r in zip(states, rows, strict=True)
    ]


def probes(
    rows: Sequence[Row], candidate: Sequence[Sequence[float]], parent: Sequence[Sequence[float]]
) -> list[Probe]:
    """What a server compares its own log-probabilities with."""
    return [
        Probe(token_ids=[*r.student, *r.completion], start=len(r.student), candidate=list(c), parent=list(p))
        for r, c, p in zip(rows, candidate, parent, strict=True)
    ]


def publish(
    root: Path,
    model: Model,
    *,
    version: int,
    alias: str,
    parent: int,
    round_number: int,
    base_name: str,
    probes: list[Probe],
) -> Release:
    """Write the model's adapter as a release directory under `root` and return its release."""
    files = {
        WEIGHTS: save({name: t.contiguous() for name, t in sorted(model.adapter_state().items())}),
        CONFIG: _peft_config(base_name, model.rank, model.alpha),
        "README.md": _card(alias, version, parent, round_number, base_name),
    }
    manifest = (
        Manifest(
            version=version,
            alias=alias,
            parent=parent,
            round=round_number,
            base=model.digest,
            rank=model.rank,
            files={name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
            probes=probes,
        )
        .model_dump_json(indent=1)
        .encode()
    )
    release = release_of(manifest)
    if (root / release.directory).exists():
        return release
    temporary = root / f".{release.directory}.new"
    shutil.rmtree(temporary, ignore_errors=True)
    make_directory(temporary)
    for name, data in {**files, MANIFEST: manifest}.items():
        (temporary / name).write_bytes(data)
    publish_directory(temporary, root / release.directory)
    return release


def _peft_config(base_name: str, rank: int, alpha: int) -> bytes:
    """The fields that PEFT and vLLM read of a plain LoRA; everything else is their default."""
    return json.dumps(
        {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base_name,
            "r": rank,
            "lora_alpha": alpha,
            "lora_dropout": 0.0,
            "bias": "none",
            "target_modules": list(TARGET_MODULES),
            "inference_mode": True,
        },
        indent=1,
    ).encode()


def _card(alias: str, version: int, parent: int, round_number: int, base_name: str) -> bytes:
    return (
        f"---\nbase_model: {base_name}\nlibrary_name: peft\n---\n\n"
        f"# {alias}@{version:06d}\n\nA LoRA adapter that Apprentice trained in round {round_number} by"
        f" self-distillation from corrections, starting from {alias}@{parent:06d}.\n"
    ).encode()

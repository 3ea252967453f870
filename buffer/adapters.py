"""The adapter directory: the second thing, beside the log, that server and learner share.

    adapters/000012-3f9c0a1b2c4d/        named after version and digest, written once, never changed
        adapter_model.safetensors        PEFT weights
        adapter_config.json              PEFT configuration
        README.md                        PEFT model card
        manifest.json                    hashes of the above, lineage, probes; its own SHA-256 is the digest

The learner publishes with `buffer.files.publish_directory`; a server calls `verify` before it loads anything.
Between machines `buffer.store` carries the directories.
"""

import hashlib
import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open

from buffer.records import Logprobs, Release, TokenIds

TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""What an adapter may touch. Never `lm_head`, `embed_tokens`: they break vLLM's prompt log-probabilities."""

WEIGHTS, CONFIG, MANIFEST = "adapter_model.safetensors", "adapter_config.json", "manifest.json"
_DIRECTORY = re.compile(r"\d{6}-[0-9a-f]{12}")
_TENSOR = re.compile(rf"base_model\.model\..*\.({'|'.join(TARGET_MODULES)})\.lora_[AB]\.weight")
_PLAIN_LORA: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "use_dora": (False, None),
    "lora_bias": (False, None),
    "bias": ("none",),
    "modules_to_save": (None, []),
    "layer_replication": (None,),
    "trainable_token_indices": (None,),
}


_MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)

FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
"""A name that stays inside its directory."""


class AdapterInvalid(ValueError):
    """An adapter directory is not what its release says, or not a plain LoRA that vLLM applies whole."""


class RankTooHigh(AdapterInvalid):
    """Nothing is wrong with the adapter, but its rank is above the limit here."""


class Probe(BaseModel):
    """Log-probabilities (T=1, nats) of the tokens from `start` on, each given all those before it.

    A server compares what it serves with both: it must match `candidate` better than `parent`.
    """

    model_config = ConfigDict(frozen=True)
    token_ids: TokenIds
    start: int
    """At least 1; `candidate[k]` belongs to `token_ids[start + k]`."""
    candidate: Logprobs
    parent: Logprobs


class Manifest(BaseModel):
    """Where an adapter comes from and what it consists of."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    version: int
    alias: str
    parent: int
    round: int
    base: str
    """SHA-256 of the base model's weights."""
    rank: int
    files: dict[FileName, str]
    """SHA-256 of every other file in the directory."""
    probes: list[Probe] = []


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def base_digest(model: Path) -> str:
    """Names a base model: SHA-256 over the names and contents of its weight files."""
    whole = hashlib.sha256()
    for path in sorted(model.glob("*.safetensors")):
        whole.update(f"{path.name} {sha256_file(path)}\n".encode())
    return whole.hexdigest()


def made_in(root: Path, round_number: int) -> list[Release]:
    """The releases under `root` that a round published, whether or not the log names them."""
    found = []
    for path in root.glob(f"[0-9]*/{MANIFEST}"):
        raw = path.read_bytes()
        with suppress(ValidationError):
            found += [release_of(raw)] if Manifest.model_validate_json(raw).round == round_number else []
    return found


def release_of(manifest_bytes: bytes) -> Release:
    """The release that a manifest's bytes stand for."""
    version = Manifest.model_validate_json(manifest_bytes).version
    digest = hashlib.sha256(manifest_bytes).hexdigest()
    return Release(version=version, digest=digest, directory=f"{version:06d}-{digest[:12]}")


def directory_of(root: Path, release: Release) -> Path:
    """Where a release lies under `root`. Raises `AdapterInvalid` for a name that no release has."""
    if not _DIRECTORY.fullmatch(release.directory):
        raise AdapterInvalid(f"{release.directory!r} is not a release directory's name")
    return root / release.directory


def read_manifest(raw: bytes, release: Release) -> Manifest:
    """A manifest's bytes, if they are the release's. Raises `AdapterInvalid`."""
    try:
        if release_of(raw) != release:
            raise AdapterInvalid(f"{release.directory}: manifest.json does not match the release in the log")
        return Manifest.model_validate_json(raw)
    except ValidationError as error:
        raise AdapterInvalid(f"{release.directory}: {MANIFEST}: {error}") from error


def verify_files(directory: Path, release: Release) -> Manifest:
    """Check every byte of the release in `directory` and return its manifest.

    Raises `AdapterInvalid` (digest, a file's hash, a file too many) and `OSError`.
    """
    manifest = read_manifest((directory / MANIFEST).read_bytes(), release)
    present = {path.name for path in directory.iterdir()} - {MANIFEST}
    if present != set(manifest.files) or not {WEIGHTS, CONFIG} <= present:
        raise AdapterInvalid(
            f"{directory}: holds {sorted(present)}, the manifest lists {sorted(manifest.files)}"
        )
    for name, expected in manifest.files.items():
        if sha256_file(directory / name) != expected:
            raise AdapterInvalid(f"{directory / name}: SHA-256 differs from the manifest: damaged or changed")
    return manifest


def verify(root: Path, release: Release, *, max_rank: int) -> Manifest:
    """Check the release's directory under `root` to the last byte and return its manifest.

    Raises `AdapterInvalid` naming the first thing that is wrong: name, digest, a file's hash, a file too
    many, a PEFT field that vLLM would ignore or refuse, a rank above the limit (`RankTooHigh`), a tensor
    outside `TARGET_MODULES`, a value that is not finite. Raises `OSError` where a file is there and cannot be
    read, which says nothing about the release.
    """
    directory = directory_of(root, release)
    try:
        manifest = verify_files(directory, release)
        _verify_config(directory, max_rank)
        _verify_tensors(directory / WEIGHTS)
    except (*_MISSING, ValidationError, json.JSONDecodeError, SafetensorError) as error:
        raise AdapterInvalid(f"{directory}: {error}") from error
    return manifest


def _verify_config(directory: Path, max_rank: int) -> None:
    config = json.loads((directory / CONFIG).read_text())
    for field, allowed in _PLAIN_LORA.items():
        if config.get(field, allowed[0]) not in allowed:
            raise AdapterInvalid(f"{directory}: {CONFIG} has {field}={config[field]!r}: not a plain LoRA")
    rank = config.get("r", 0)
    if rank < 1:
        raise AdapterInvalid(f"{directory}: {CONFIG} has no rank")
    if rank > max_rank:
        raise RankTooHigh(f"{directory}: rank {rank} is above the server's limit of {max_rank}")


def _verify_tensors(weights: Path) -> None:
    with safe_open(weights, framework="np") as tensors:
        names = list(tensors.keys())
        if not names:
            raise AdapterInvalid(f"{weights}: holds no tensors")
        for name in names:
            if not _TENSOR.fullmatch(name):
                raise AdapterInvalid(f"{weights}: tensor {name} is not one that vLLM would apply")
            if not np.isfinite(tensors.get_tensor(name)).all():
                raise AdapterInvalid(f"{weights}: tensor {name} has values that are not finite")

"""`apprentice merge V DIR`: the base with policy V's adapter merged in, as a plain transformers directory.

Each weight that the adapter touches becomes `W + alpha / r * B A`, added in fp32 and rounded to bf16 once.
What comes out needs neither PEFT nor this project.
"""

import argparse
import json
import math
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from buffer.adapters import (
    CONFIG,
    MANIFEST,
    WEIGHTS,
    AdapterInvalid,
    Manifest,
    base_digest,
    release_of,
    verify,
)
from buffer.config import Shared, load
from buffer.files import make_directory, publish_directory
from buffer.models import HUB_FILES, model_directory


class MergeRefused(Exception):
    """The merge cannot be made; `hint` names the next step. Caught in `main`."""

    code = "merge_refused"

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 written, 1 refused. Raises `ConfigError`, which the command line catches."""
    options = _parse(arguments)
    shared = load(Shared, file=options.config, flags={"state": options.state, "model": options.model})
    destination: Path = options.directory.expanduser().absolute()
    try:
        adapter = find(shared.state.absolute() / "adapters", options.policy)
        manifest = merge(adapter, model_directory(shared), destination)
    except MergeRefused as error:
        return _fail(error, as_json=options.json)
    if options.json:
        made = {"directory": str(destination), "policy": manifest.version, "adapter": adapter.name}
        print(json.dumps({**made, "base": manifest.base}, indent=2))
    else:
        print(f"{destination} holds policy {manifest.version}: load it as any transformers model")
    return 0


def find(adapters: Path, policy: str) -> Path:
    """The directory of a policy, named by its version or as the directory is. Raises `MergeRefused`."""
    there = sorted(path.name for path in adapters.glob("[0-9]" * 6 + "-" + "?" * 12))
    there = [name for name in there if not name.startswith("000000-")]  # the base itself
    start = f"{int(policy):06d}-" if policy.isdecimal() else policy
    found = [name for name in there if name.startswith(start)]
    if len(found) == 1:
        return adapters / found[0]
    if found:
        raise MergeRefused(
            f"there is more than one adapter of policy {policy}: {', '.join(found)}",
            f"give its name in full; GET /v1/policies/{policy} says which was released",
        )
    versions = ", ".join(map(str, sorted({int(name[:6]) for name in there})))
    raise MergeRefused(
        f"there is no policy {policy} in {adapters}",
        f"there are: {versions}" if there else "none was learned there yet; is --state the learner's?",
    )


def merge(adapter: Path, model: Path, destination: Path) -> Manifest:
    """Merge a release into the base in `model`; `destination` appears whole or not at all.

    Returns the release's manifest. Raises `MergeRefused`.
    """
    if destination.exists() or destination.is_symlink():
        raise MergeRefused(f"{destination} exists", "name a directory that does not exist yet, or remove it")
    manifest = _verified(adapter)
    if base_digest(model) != manifest.base:
        name = json.loads((adapter / CONFIG).read_text()).get("base_model_name_or_path")
        raise MergeRefused(
            f"policy {manifest.version} was not trained on the model in {model}",
            "give the one that it was trained on with --model" + (f" ({name})" if name else ""),
        )
    try:
        make_directory(destination.parent)
        _check_space(model, destination.parent)
        with tempfile.TemporaryDirectory(dir=destination.parent, prefix=f".{destination.name}-") as work:
            made = Path(work) / "model"
            _merged(adapter, model).save_pretrained(made)
            _copy_tokenizer(model, made)
            (made / "README.md").write_text(_card(manifest, adapter.name))
            publish_directory(made, destination)
    except (OSError, SafetensorError) as error:
        raise MergeRefused(
            f"{destination} could not be made: {error}",
            "make room or name another place; if the base model is damaged, fetch it again",
        ) from error
    return manifest


def _verified(adapter: Path) -> Manifest:
    """The manifest of a release whose every byte is as it was published. Raises `MergeRefused`."""
    try:
        release = release_of((adapter / MANIFEST).read_bytes())
        if release.directory != adapter.name:
            raise AdapterInvalid(f"{adapter}: {MANIFEST} is not the one that the directory is named after")
        return verify(adapter.parent, release, max_rank=sys.maxsize)  # no vLLM here that limits the rank
    except (OSError, ValueError) as error:
        raise MergeRefused(
            f"the adapter cannot be trusted: {error}",
            "bring back the directory as the learner published it, or merge another version",
        ) from error


def _check_space(model: Path, directory: Path) -> None:
    """Raise `MergeRefused` unless the model's weights fit there as bf16."""
    needed = 0
    for file in model.glob("*.safetensors"):
        with safe_open(file, framework="np") as tensors:
            needed += sum(2 * math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118 - no dict
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise MergeRefused(
            f"the model takes {needed / 1e9:.1f} GB, and {directory} has {free / 1e9:.1f} GB free",
            "free some space, or name a directory on another disk",
        )


def _merged(adapter: Path, model: Path) -> Any:
    """The merged transformers model, bf16, on the CPU. Raises `MergeRefused`."""
    import torch  # the slow imports come last, when everything cheap has been checked
    import transformers
    from peft import PeftModel
    from peft.utils import get_peft_model_state_dict

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    base = transformers.AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
    )
    peft = PeftModel.from_pretrained(base, str(adapter))
    with safe_open(adapter / WEIGHTS, framework="np") as tensors:
        ignored = set(tensors.keys()) - set(get_peft_model_state_dict(peft, save_embedding_layers=False))
    if ignored:  # PEFT passes over them in silence
        raise MergeRefused(
            f"the adapter changes what the model does not have, such as {min(ignored)}",
            "install the versions of transformers and peft that the learner used",
        )
    return peft.merge_and_unload(safe_merge=True).to(torch.bfloat16)


def _copy_tokenizer(model: Path, made: Path) -> None:
    """What the base has beside its weights and `save_pretrained` has not written: byte for byte, so that
    every text keeps its token ids."""
    for pattern in HUB_FILES:
        for file in model.glob(pattern):
            weights = file.name.endswith((".safetensors", ".index.json"))
            if not weights and not (made / file.name).exists():
                shutil.copyfile(file, made / file.name)


def _card(manifest: Manifest, adapter: str) -> str:
    return (
        f"# {manifest.alias}@{manifest.version:06d}, merged\n\n"
        f"The adapter {adapter} of Apprentice's round {manifest.round}, merged into its base model, whose"
        f" weights have the digest {manifest.base}. Merged in fp32, stored as bf16.\n"
    )


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="apprentice merge",
        description="Write the base model with a policy's adapter merged in, as a plain transformers\n"
        "directory (bf16 safetensors). Takes 4 bytes of memory a parameter.",
        epilog="exit codes:\n  0  done\n  1  it could not be done\n  2  wrong arguments or configuration",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "policy", metavar="V", help="the policy's version, such as 3; 0 is the base model itself"
    )
    parser.add_argument("directory", metavar="DIR", type=Path, help="where to write; must not exist yet")
    parser.add_argument("--config", type=Path, metavar="FILE", help="configuration (apprentice.toml)")
    parser.add_argument("--state", type=Path, metavar="DIR", help="the one directory that holds all state")
    parser.add_argument("--model", help="the base: the built-in name, a directory, or a hub id")
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    return parser.parse_args(arguments)


def _fail(error: MergeRefused, *, as_json: bool) -> int:
    if as_json:
        told = {"code": error.code, "message": str(error), "hint": error.hint}
        print(json.dumps({"error": told}), file=sys.stderr)
    else:
        print(f"apprentice: {error}\n  → {error.hint}", file=sys.stderr)
    return 1

"""Merging a release into its base: the same function, in a directory that needs nothing of this project."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from buffer.adapters import CONFIG, MANIFEST, TARGET_MODULES, WEIGHTS, Manifest, release_of, sha256_file
from learner.merge import MergeRefused, find, merge
from learner.model import Model
from learner.publish import publish
from server import cli

IDS = torch.tensor([[1, 9, 10, 11, 12, 13, 14], [1, 500, 501, 502, 77, 8, 3]])


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def adapter(tiny: Model, state: Path) -> Path:
    """A published release of version 3."""
    return released(tiny, state / "adapters", version=3)


def released(model: Model, root: Path, *, version: int, seed: int = 3) -> Path:
    g = torch.Generator().manual_seed(seed)
    model.load_adapter({k: 0.3 * torch.randn(v.shape, generator=g) for k, v in model.adapter_state().items()})
    release = publish(
        root, model, version=version, alias="apprentice", parent=0, round_number=4, base_name="tiny",
        probes=[],
    )  # fmt: skip
    return root / release.directory


def republished(adapter: Path) -> Path:
    """The directory under the manifest and name that its present files call for."""
    manifest = Manifest.model_validate_json((adapter / MANIFEST).read_bytes())
    files = {name: sha256_file(adapter / name) for name in manifest.files}
    raw = manifest.model_copy(update={"files": files}).model_dump_json().encode()
    (adapter / MANIFEST).write_bytes(raw)
    return adapter.rename(adapter.parent / release_of(raw).directory)


def opened(directory: Path, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=IDS).logits.float()
    return found


def run(state: Path, model: Path, *more: str) -> int:
    return cli.main(["merge", *more, "--state", str(state), "--model", str(model)])


# --- what comes out --------------------------------------------------------------------------------------


def test_the_merged_model_computes_what_base_and_adapter_do(
    adapter: Path, tiny_dir: Path, tmp_path: Path
) -> None:
    merge(adapter, tiny_dir, tmp_path / "out")
    exact = logits(PeftModel.from_pretrained(opened(tiny_dir), str(adapter)))

    def distance(model: Any) -> float:
        return float((logits(model) - exact).norm() / exact.norm())

    served = PeftModel.from_pretrained(opened(tiny_dir, torch.bfloat16), str(adapter))
    merged = opened(tmp_path / "out")
    assert distance(merged) < 0.03 < 0.5 < distance(opened(tiny_dir))
    assert distance(merged) < distance(served), "rounding the weights costs less than computing in bf16"


def test_every_weight_is_the_fp32_sum_rounded_once(adapter: Path, tiny_dir: Path, tmp_path: Path) -> None:
    merge(adapter, tiny_dir, tmp_path / "out")
    base, merged = (load_file(d / "model.safetensors") for d in (tiny_dir, tmp_path / "out"))
    lora, touched = load_file(adapter / WEIGHTS), 0
    assert set(merged) == set(base)
    for name, weight in base.items():
        of = f"base_model.model.{name.removesuffix('.weight')}"
        expected = weight.float()
        if f"{of}.lora_A.weight" in lora:
            expected += 8 / 4 * lora[f"{of}.lora_B.weight"] @ lora[f"{of}.lora_A.weight"]
            touched += 1
        assert merged[name].dtype == torch.bfloat16
        assert torch.equal(merged[name], expected.bfloat16()), name
    assert touched == 2 * len(TARGET_MODULES)


def test_it_is_a_plain_directory_with_the_bases_tokenizer(
    adapter: Path, tiny_dir: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(tiny_dir, tmp_path / "base")
    (base / "model.safetensors.index.json").write_text("{}")  # as a base in several files has it
    merge(adapter, base, tmp_path / "out")
    made = {path.name for path in (tmp_path / "out").iterdir()}
    assert made == {path.name for path in tiny_dir.iterdir()} | {"README.md"}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    assert "apprentice@000003" in (tmp_path / "out" / "README.md").read_text()
    tokenizer, original = (AutoTokenizer.from_pretrained(d) for d in (tmp_path / "out", tiny_dir))
    turn = [{"role": "user", "content": "Who bakes?"}]
    assert tokenizer.apply_chat_template(turn) == original.apply_chat_template(turn)
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_the_command_finds_the_version_and_tells_what_it_made(
    adapter: Path, state: Path, tiny_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(state, tiny_dir, "3", str(tmp_path / "new" / "out"), "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["policy"], told["adapter"]) == (3, adapter.name)
    assert (Path(told["directory"]) / "model.safetensors").exists()


# --- which adapter ---------------------------------------------------------------------------------------


def test_a_policy_is_named_by_its_version_or_its_directory(tmp_path: Path) -> None:
    names = ["000002-aaaaaaaaaaaa", "000012-bbbbbbbbbbbb", "000012-cccccccccccc"]
    for name in ["000000-dddddddddddd", *names, ".000012-bbbbbbbbbbbb.new", ".zero-abcdefghijklm"]:
        (tmp_path / name).mkdir()
    assert find(tmp_path, "2").name == find(tmp_path, "000002").name == names[0]
    assert find(tmp_path, names[2]).name == names[2]
    with pytest.raises(MergeRefused, match=f"more than one adapter of policy 12: {names[1]}, {names[2]}"):
        find(tmp_path, "12")
    for name in ("1", "0"):
        with pytest.raises(MergeRefused, match=f"no policy {name} in") as refused:
            find(tmp_path, name)
        assert refused.value.hint == "there are: 2, 12"


@pytest.mark.parametrize("as_json", [False, True])
def test_an_unknown_version_is_told_with_the_next_step(
    as_json: bool, state: Path, tiny_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(state, tiny_dir, "9", str(tmp_path / "out"), *(["--json"] if as_json else [])) == 1
    error = capsys.readouterr().err
    if as_json:
        error = "{message} → {hint}".format(**json.loads(error)["error"])
    assert "there is no policy 9" in error and "→ none was learned there yet" in error


# --- what is refused, and leaves nothing -----------------------------------------------------------------


@pytest.fixture
def refused(adapter: Path, tmp_path: Path) -> Iterator[Path]:
    """Where the refused merge would have gone."""
    yield tmp_path / "place" / "out"
    assert not (tmp_path / "place").exists() or list((tmp_path / "place").iterdir()) == []


@pytest.mark.parametrize("damage", ["weights", "manifest", "another's manifest", "extra file"])
def test_a_tampered_adapter_is_refused(
    damage: str, adapter: Path, tiny: Model, tiny_dir: Path, refused: Path
) -> None:
    if damage == "weights":
        data = bytearray((adapter / WEIGHTS).read_bytes())
        data[-1] ^= 1
        (adapter / WEIGHTS).write_bytes(data)
    elif damage == "manifest":
        (adapter / MANIFEST).write_bytes((adapter / MANIFEST).read_bytes() + b" ")
    elif damage == "another's manifest":
        other = released(tiny, adapter.parent, version=4, seed=4)
        shutil.copy(other / MANIFEST, adapter / MANIFEST)
    else:
        (adapter / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(MergeRefused, match="cannot be trusted"):
        merge(adapter, tiny_dir, refused)


def test_another_adapter_than_a_plain_lora_is_refused(adapter: Path, tiny_dir: Path, refused: Path) -> None:
    config = json.loads((adapter / CONFIG).read_text())
    (adapter / CONFIG).write_text(json.dumps({**config, "use_dora": True}))
    with pytest.raises(MergeRefused, match="not a plain LoRA"):
        merge(republished(adapter), tiny_dir, refused)


def test_a_tensor_that_the_model_has_no_place_for_is_refused(
    adapter: Path, tiny_dir: Path, refused: Path
) -> None:
    """PEFT ignores it, and the merged model would not be the policy."""
    tensors = load_file(adapter / WEIGHTS)
    tensors["base_model.model.model.layers.9.mlp.up_proj.lora_A.weight"] = torch.zeros(4, 32)
    save_file(tensors, adapter / WEIGHTS)
    with pytest.raises(MergeRefused, match=r"does not have, such as .*layers\.9\."):
        merge(republished(adapter), tiny_dir, refused)


def test_another_base_is_refused(adapter: Path, tiny_dir: Path, tmp_path: Path, refused: Path) -> None:
    base = shutil.copytree(tiny_dir, tmp_path / "base")
    data = bytearray((base / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (base / "model.safetensors").write_bytes(data)
    with pytest.raises(MergeRefused, match="was not trained on the model in") as error:
        merge(adapter, base, refused)
    assert error.value.hint.endswith("with --model (tiny)")


def test_an_existing_directory_is_left_alone(adapter: Path, tiny_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(MergeRefused, match="exists"):
        merge(adapter, tiny_dir, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_without_room_for_the_weights_nothing_is_begun(
    adapter: Path, tiny_dir: Path, refused: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (tiny_dir / "model.safetensors").stat().st_size  # bf16, and a header of a few kB
    usage = shutil.disk_usage(tiny_dir)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=size - 10_000))
    with pytest.raises(MergeRefused, match="GB free"):
        merge(adapter, tiny_dir, refused)


def test_a_place_that_cannot_be_written_is_named(adapter: Path, tiny_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MergeRefused, match="could not be made: "):
        merge(adapter, tiny_dir, tmp_path / "file" / "out")

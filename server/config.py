"""The server's tables of `apprentice.toml`: [server], the HTTP side, and [engine], vLLM."""

import base64
import ipaddress
import re
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator

from buffer.config import Table
from server.engine.vllm_args import refuse_arguments, refuse_environment

KeyHash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""Hex SHA-256 of a bearer key."""


Origin = Annotated[str, Field(pattern=r"^https?://[A-Za-z0-9.\[\]:-]+$")]
"""As browsers send it: without a path, and without a slash at its end."""


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class WebhookConfig(Table):
    """[server.webhook]: who is told of rounds that ended and policies that went live (`server.webhook`)."""

    url: str | None = Field(None, pattern=r"^https?://[^/\s]+\S*$")
    """Where events are sent. Without one, nowhere."""
    secret: SecretStr | None = None
    """`whsec_` and the base64 of 24 to 64 bytes, which sign what is sent (HMAC-SHA256, Standard Webhooks)."""

    @property
    def key(self) -> bytes:
        """The secret's bytes."""
        return _key(self.secret) if self.secret is not None else b""

    @field_validator("secret")
    @classmethod
    def _secret_form(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None and not 24 <= len(_key(secret)) <= 64:
            raise ValueError(
                'secret must be base64 of 24 to 64 bytes: echo "whsec_$(openssl rand -base64 32)"'
            )
        return secret

    @model_validator(mode="after")
    def _signed(self) -> Self:
        if self.url is not None and self.secret is None:
            raise ValueError('secret is needed with url: echo "whsec_$(openssl rand -base64 32)" makes one')
        return self


def _key(secret: SecretStr) -> bytes:
    try:
        return base64.b64decode(secret.get_secret_value().removeprefix("whsec_"), validate=True)
    except ValueError:
        return b""


class ServerConfig(Table):
    """[server]: where the gateway listens, who may call it and how much they may ask for."""

    host: str = "127.0.0.1"
    """Address to listen on. Any that others can reach needs keys."""
    port: int = Field(8600, ge=0, le=65535)
    """0 takes a free one."""
    keys: dict[str, KeyHash] = Field(default={})
    """Principal to the hex SHA-256 of its bearer key, beside the keys of `apprentice keys`, which are in the
    log. These may ask and give feedback. Without any key everyone is one principal, on loopback."""
    admins: list[str] = Field(default=[])
    """Principals of `keys` that may do everything."""
    requests_per_minute: int = Field(0, ge=0)
    """Of one principal, or one feedback token, to this server. 0 sets no limit."""
    browser_origins: list[Origin] = Field(default=[])
    """Sites whose pages may call from a browser, as `https://app.example`."""
    secret: SecretStr | None = None
    """At least 64 hex digits that prove completion ids, the same on all servers of one log. None: one is made
    in the state directory."""
    max_body_bytes: int = Field(4 << 20, gt=0)
    """Of a request. A longer one gets 413."""
    max_tokens_default: int | None = Field(None, gt=0)
    """For requests that do not say; None leaves it to vLLM: what is left of the context."""
    max_n: int = Field(16, gt=0)
    """Choices that one request may ask for."""
    max_feedback_chars: int = Field(8000, gt=0)
    """Of a correction's text and of anything else that is taught."""
    follow_ups: bool = True
    """Record a user's next turn as feedback where it corrects the answer before it."""
    serve_uncaptured: bool = False
    """Where the log cannot take an exchange (a full disk, say), answer without recording it, and say
    `x-captured: false`, instead of 503. Feedback is refused all the same."""
    webhook: WebhookConfig = WebhookConfig()
    drain_s: float = Field(30.0, ge=0)
    """How long a stopping server lets running answers finish."""

    @field_validator("secret")
    @classmethod
    def _secret_form(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None and not re.fullmatch(r"([0-9a-f]{2}){32,}", secret.get_secret_value()):
            raise ValueError("secret must be 64 or more hex digits: openssl rand -hex 32 makes one")
        return secret

    @model_validator(mode="after")
    def _keys_are_told_apart(self) -> Self:
        if len(set(self.keys.values())) != len(self.keys):
            raise ValueError("two principals in [server.keys] have the same key: give each its own")
        unknown = set(self.admins) - set(self.keys)
        if self.keys and unknown:
            raise ValueError(f"admins {sorted(unknown)} have no key in [server.keys]")
        return self


class EngineConfig(Table):
    """[engine]: the vLLM that this server starts, or the running one that it attaches to."""

    url: str | None = None
    """Attach to this vLLM, `http://host:port` or `unix:/path`, instead of starting one. It must see the
    adapter directory under the same path, and have been started with LoRA updates allowed."""
    api_key: SecretStr | None = None
    """Bearer key of an attached vLLM."""
    max_model_len: int = Field(2048, gt=0)
    """Tokens of prompt and answer together. A longer prompt gets 400, `context_length_exceeded`."""
    max_loras: int = Field(4, ge=4)
    """Policies that may be in one batch: live, draining, candidate and base (which is a zero adapter)."""
    max_cpu_loras: int = Field(8, ge=4)
    """Policies that vLLM keeps in memory, at least `max_loras`: live, the two before it, base, and beside
    them what drains and what is tried."""
    max_lora_rank: Literal[8, 16, 32, 64, 128, 256, 320, 512] = 16
    """At least the learner's `rank`."""
    tool_call_parser: str = "hermes"
    """vLLM's name for how this model writes tool calls."""
    args: list[str] = Field(default=[])
    """More vLLM arguments, as on its command line. They win over ours, except those that are refused."""
    env: dict[str, str] = Field(default={})
    """More environment for vLLM."""
    start_timeout_s: float = Field(600.0, gt=0)
    """How long vLLM may take to load the model, before it is started again."""
    load_timeout_s: float = Field(120.0, gt=0)
    """How long vLLM may take to load a policy and to answer its probes."""

    @field_validator("url")
    @classmethod
    def _url_form(cls, url: str | None) -> str | None:
        if url is not None and not re.match(r"https?://[^/]+$|unix:/.+", url.rstrip("/")):
            raise ValueError(f"url {url!r} must look like http://127.0.0.1:8000 or unix:/run/vllm.sock")
        return url.rstrip("/") if url else url

    @model_validator(mode="after")
    def _guarantees_hold(self) -> Self:
        if self.max_cpu_loras < self.max_loras:
            raise ValueError(f"max_cpu_loras ({self.max_cpu_loras}) is below max_loras ({self.max_loras})")
        refuse_arguments(self.args)
        refuse_environment(self.env)
        return self

"""The one configuration loader, the top level of `apprentice.toml`, and the buffer's own table.

Precedence: defaults < `apprentice.toml` < `APPRENTICE_*` variables < flags. What nobody declared is an
error, with the closest name as the hint. `APPRENTICE_MODEL` sets a key of the top level,
`APPRENTICE_LEARNER_STEPS` sets `steps` in `[learner]`, `APPRENTICE_BUFFER_KAFKA_PARTITIONS` sets
`partitions` in `[buffer.kafka]`; values are TOML literals, or plain text. `APPRENTICE_CONFIG` names the
file, otherwise `./apprentice.toml`.
"""

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Self, TypeVar, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_serializer,
    field_validator,
    model_validator,
)

TABLES = ("server", "engine", "learner", "buffer", "teacher")
"""Every table of `apprentice.toml`. Each is read by the package that owns it."""

PREFIX = "APPRENTICE_"
OTHER_VARIABLES = ("config", "url", "test_model")
"""Variables that are no settings: the file, the server that a command asks, the model that tests use."""


class ConfigError(Exception):
    """The configuration cannot be used; `hint` names the next step."""

    code = "config_error"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class Table(BaseModel):
    """Base of every table: immutable, and what it does not declare is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


LogFormat = Literal["text", "json"]


class Shared(Table):
    """The top-level keys of `apprentice.toml`, which every process reads."""

    state: Path = Path(".apprentice")
    """The one directory that holds all state."""
    model: str = "smollm2-135m-instruct"
    """The built-in model (fetched from PyPI), a directory, or a hub id."""
    alias: str = Field(default="apprentice", pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    """The model name that clients ask for."""
    log_format: LogFormat = "text"
    """Of what all processes log: lines for people, or one JSON object a line (`buffer.logs`)."""


class KafkaConfig(Table):
    """`[buffer.kafka]`: where the broker is and what its topics look like."""

    bootstrap_servers: list[str] = Field(default=["localhost:9092"], min_length=1)
    """Brokers to ask first, as `host:port`."""
    topic_prefix: str = Field(default="apprentice.", pattern=r"^[A-Za-z0-9._-]{1,200}$")
    """Of the names of all topics."""
    partitions: int = Field(default=8, ge=1)
    """Of exchanges and feedback each, at least: more may be added to a topic at any time. A power of two
    spreads evenly. Control and rounds have one, because their order is the point."""
    replication_factor: int = Field(default=1, ge=1)
    """Of topics that are made at the first start. With 1 a lost disk of the broker loses the log."""
    min_insync_replicas: int = Field(default=1, ge=1)
    """Replicas that must have a record before the broker acknowledges it."""
    client: dict[str, Any] = Field(default={}, repr=False)
    """Any further setting of kafka-python's clients, such as those of TLS and SASL."""

    @field_validator("client")
    @classmethod
    def _leave_guarantees(cls, value: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(value.keys() & GUARANTEES):
            raise ValueError(f"{', '.join(taken)}: the relay's guarantees rest on its own choice")
        return value

    @model_validator(mode="after")
    def _enough_replicas(self) -> Self:
        if self.min_insync_replicas > self.replication_factor:
            raise ValueError("min_insync_replicas is above replication_factor: nothing could be written")
        return self

    @field_serializer("client")
    def _mask(self, value: dict[str, Any]) -> dict[str, Any]:
        return _masked(value)


GUARANTEES = frozenset(
    """acks allow_auto_create_topics auto_offset_reset batch_size bootstrap_servers client_id
    enable_auto_commit enable_idempotence group_id kafka_client key_deserializer key_serializer linger_ms
    max_in_flight_requests_per_connection max_request_size transactional_id value_deserializer
    value_serializer""".split()
)
"""Client settings that order and durability depend on, so they cannot be set."""


class AdaptersConfig(Table):
    """`[buffer.adapters]`: the store that carries adapters from the learner to servers on other machines."""

    url: str | None = Field(default=None, pattern=r"^[a-z0-9+.-]+://.+")
    """As fsspec has it: `s3://bucket/prefix`, `file:///mnt/shared`. Without one they stay in the state."""
    options: dict[str, Any] = Field(default={}, repr=False)
    """Of fsspec's file system, such as `endpoint_url`. Credentials are better left to its own environment."""
    keep: int = Field(default=100, ge=3)
    """How many releases stay: in the store, or where there is none in the state directory. Those that the log
    still needs always do."""

    @field_serializer("options")
    def _mask(self, value: dict[str, Any]) -> dict[str, Any]:
        return _masked(value)


class BufferConfig(Table):
    """`[buffer]`: which log holds the records, and for how long the outbox keeps what it has relayed."""

    backend: Literal["journal", "kafka"] = "journal"
    """Where the log is: in this machine's journal alone, or in Kafka, to which the journal is the outbox."""
    max_bytes: int = Field(default=0, ge=0)
    """The journal's quota; beyond it appending fails with `log_full`. 0 leaves that to the disk."""
    keep_relayed_days: float = Field(default=7.0, ge=0)
    """How long a record stays in the journal once the broker has it. Where two replicas have it, a journal
    that is nearly full forgets it earlier. The embedded log keeps everything."""
    kafka: KafkaConfig = KafkaConfig()
    adapters: AdaptersConfig = AdaptersConfig()


T = TypeVar("T", bound=BaseModel)


def load(
    model: type[T],
    table: str = "",
    *,
    file: Path | None = None,
    env: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> T:
    """Read one table (`""` is the top level) into its model.

    `flags` is nested as the model is; a None in it is a flag that was not given. Raises `ConfigError`.
    """
    env = os.environ if env is None else env
    document, path = _read_file(file, env)
    _refuse_unknown_names(document, path, env)
    in_file = document.get(table, {}) if table else {k: v for k, v in document.items() if k not in TABLES}
    if not isinstance(in_file, dict):
        raise ConfigError(f"{path}: {table} must be a table", f"write [{table}] on a line of its own")
    layers = [(path, in_file), *_from_env(model, table, env), ("the command line", _given(flags or {}))]
    merged: dict[str, Any] = {}
    for _, layer in layers:
        merged = _merge(merged, layer)
    try:
        return model.model_validate(merged)
    except ValidationError as error:
        raise _explain(error, model, table, layers) from None


def resolved(config: BaseModel) -> dict[str, Any]:
    """The values in force, as JSON, secrets masked."""
    return config.model_dump(mode="json")


def _read_file(file: Path | None, env: Mapping[str, str]) -> tuple[dict[str, Any], str]:
    """The parsed file and its name. Only the default one may be missing."""
    named = file or (Path(env[f"{PREFIX}CONFIG"]) if env.get(f"{PREFIX}CONFIG") else None)
    path = named or Path("apprentice.toml")
    try:
        return tomllib.loads(path.read_text()), str(path)
    except FileNotFoundError:
        if named is None:
            return {}, str(path)
        raise ConfigError(f"{path} does not exist", "correct the path, or leave it out") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}", "correct the file") from None


def _refuse_unknown_names(document: Mapping[str, Any], path: str, env: Mapping[str, str]) -> None:
    """Top-level names of the file and variables that no table can own. The rest its model checks."""
    for key, value in document.items():
        if isinstance(value, dict) and key not in TABLES:
            raise ConfigError(f"{path}: unknown table [{key}]", _closest(key, TABLES, "[{}]"))
        if key not in TABLES and key not in Shared.model_fields:
            raise ConfigError(f"{path}: unknown key {key}", _closest(key, Shared.model_fields, "{}"))
    for name in env:
        rest = name.removeprefix(PREFIX).lower()
        if not name.startswith(PREFIX) or rest in OTHER_VARIABLES or rest in Shared.model_fields:
            continue
        head, _, tail = rest.partition("_")
        if head not in TABLES or not tail:
            whole = [f"{PREFIX}{key}".upper() for key in (*Shared.model_fields, *OTHER_VARIABLES)]
            of_table = [f"{PREFIX}{key}_{tail}".upper() for key in TABLES]
            raise ConfigError(f"unknown variable {name}", _closest(name, [*whole, *of_table], "{}"))


def _from_env(model: type[BaseModel], table: str, env: Mapping[str, str]) -> list[tuple[str, dict[str, Any]]]:
    """One layer per variable of this table."""
    start = f"{PREFIX}{table}_".upper() if table else PREFIX
    layers = []
    for name, text in sorted(env.items()):
        rest = name.removeprefix(start).lower()
        if name.startswith(start) and (table or rest in Shared.model_fields):
            layers.append((name, _nest(model, rest, text)))
    return layers


def _nest(model: type[BaseModel], name: str, text: str) -> dict[str, Any]:
    """`kafka_partitions = 3` as `{"kafka": {"partitions": 3}}`, following the fields of `model`."""
    if (field := model.model_fields.get(name)) is not None:
        return {name: _value(field.annotation, text)}
    for head, field in model.model_fields.items():
        tail = name.removeprefix(f"{head}_")
        if tail == name:
            continue
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            return {head: _nest(field.annotation, tail, text)}
        if get_origin(field.annotation) is dict:
            return {head: {tail: text if _secret(tail) else _literal(text)}}
    return {name: text}


def _value(annotation: Any, text: str) -> Any:
    """Text where text is wanted, a list where commas separate one, else a TOML literal where it parses."""
    origin = get_origin(annotation)
    choices = get_args(annotation) if origin in (Union, UnionType) else (annotation,)
    if {str, Path, SecretStr} & set(choices):
        return text
    value = _literal(text)
    return [part.strip() for part in text.split(",")] if origin is list and isinstance(value, str) else value


def _literal(text: str) -> Any:
    """A TOML literal where it parses, else the text itself."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if len(parsed) == 1 else text


def _given(flags: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _given(v) if isinstance(v, Mapping) else v for k, v in flags.items() if v is not None}


def _merge(low: dict[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(low)
    for key, value in high.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _explain(
    error: ValidationError, model: type[BaseModel], table: str, layers: list[tuple[str, dict[str, Any]]]
) -> ConfigError:
    """The first problem: where it was set, and for an unknown key the closest one there is."""
    first = error.errors(include_url=False, include_context=False)[0]
    path = [str(part) for part in first["loc"]]
    origin = next((name for name, layer in reversed(layers) if _holds(layer, path)), "the defaults")
    key = ".".join([table, *path] if table else path)
    if first["type"] != "extra_forbidden":
        return ConfigError(f"{origin}: {key}: {first['msg']}", "correct the value")
    owner: Any = model
    for part in path[:-1]:
        owner = owner.model_fields[part].annotation if part in getattr(owner, "model_fields", {}) else None
    return ConfigError(
        f"{origin}: unknown key {key}", _closest(path[-1], getattr(owner, "model_fields", {}), "{}")
    )


def _holds(layer: Any, path: list[str]) -> bool:
    for part in path:
        if not isinstance(layer, dict):
            return True
        if part not in layer:
            return False
        layer = layer[part]
    return True


def _closest(name: str, known: Iterable[str], shape: str) -> str:
    known = list(known)
    if match := difflib.get_close_matches(name, known, n=1):
        return f"did you mean {shape.format(match[0])}?"
    return f"known here: {', '.join(shape.format(one) for one in known)}"


def _masked(value: Mapping[str, Any]) -> dict[str, Any]:
    """Free settings with the secrets among them hidden, at any depth."""
    return {
        key: "**********" if _secret(key) else _masked(item) if isinstance(item, Mapping) else item
        for key, item in value.items()
    }


def _secret(key: str) -> bool:
    return any(word in key for word in ("password", "secret", "token"))

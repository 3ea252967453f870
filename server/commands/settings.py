"""The flags and the configuration of the commands that start processes here.

A flag becomes the variable of its key, which wins over the file in this process and in every child.
"""

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from buffer.config import BufferConfig, Shared, Table, load, resolved
from buffer.models import BUILT_IN
from buffer.teacher import Templates
from server.config import EngineConfig, ServerConfig

FLAGS = {
    "config": "APPRENTICE_CONFIG",
    "state": "APPRENTICE_STATE",
    "model": "APPRENTICE_MODEL",
    "alias": "APPRENTICE_ALIAS",
    "host": "APPRENTICE_SERVER_HOST",
    "port": "APPRENTICE_SERVER_PORT",
}


@dataclass(frozen=True)
class Settings:
    """What is in force. `env` holds the variables that the flags became."""

    shared: Shared
    server: ServerConfig
    engine: EngineConfig
    buffer: BufferConfig
    teacher: Templates
    env: Mapping[str, str]

    def with_env(self, **variables: str) -> Self:
        """The same, with more variables for the children."""
        return replace(self, env={**self.env, **variables})

    def masked(self) -> dict[str, object]:
        """The values as JSON, secrets masked."""
        tables: dict[str, Table] = {
            "server": self.server,
            "engine": self.engine,
            "buffer": self.buffer,
            "teacher": self.teacher,
        }
        return {**resolved(self.shared), **{name: resolved(table) for name, table in tables.items()}}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that `read_settings` understands, and --dry-run."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="configuration (apprentice.toml)")
    parser.add_argument("--state", type=Path, metavar="DIR", help="the one directory that holds all state")
    parser.add_argument("--model", help=f"{BUILT_IN} (built in), a directory, or a hub id")
    parser.add_argument("--alias", help="the model name that clients ask for")
    parser.add_argument("--host", help="address to listen on")
    parser.add_argument("--port", type=int, help="port to listen on; 0 takes a free one")
    parser.add_argument("--dry-run", action="store_true", help="print what is configured, and start nothing")


def read_settings(arguments: argparse.Namespace) -> Settings:
    """The configuration with the flags on top. Raises `ConfigError`."""
    given = {
        variable: str(value)
        for name, variable in FLAGS.items()
        if (value := getattr(arguments, name)) is not None
    }
    env = {**os.environ, **given}
    shared = load(Shared, env=env)
    state = shared.state.absolute()
    return Settings(
        shared.model_copy(update={"state": state}),
        load(ServerConfig, "server", env=env),
        load(EngineConfig, "engine", env=env),
        load(BufferConfig, "buffer", env=env),
        load(Templates, "teacher", env=env),
        {**given, "APPRENTICE_STATE": str(state)},
    )

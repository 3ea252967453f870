"""`python -m tests.settings_page > docs/settings.md`: every setting, from the tables that declare it."""

import ast
import inspect
import json
import textwrap
from collections.abc import Iterator
from typing import Literal, get_args, get_origin

from pydantic import BaseModel, SecretStr

from buffer.config import BufferConfig, Shared
from buffer.teacher import Templates
from learner.config import LearnerConfig
from server.config import EngineConfig, ServerConfig

MODELS: dict[str, type[BaseModel]] = {
    "": Shared,
    "server": ServerConfig,
    "engine": EngineConfig,
    "learner": LearnerConfig,
    "buffer": BufferConfig,
    "teacher": Templates,
}
_HEAD = """\
# Settings

Of `apprentice.toml`, by table. An environment variable sets the same: `APPRENTICE_MODEL` sets `model`,
`APPRENTICE_LEARNER_START_AT` sets `start_at` in `[learner]`, and `APPRENTICE_CONFIG` names another file. A
flag wins over a variable, a variable over the file, and the file over the default. An unknown key is an
error. `apprentice up --dry-run` and `apprentice learn --dry-run` print what is in force.

This page is written by `python -m tests.settings_page > docs/settings.md`.
"""


def settings_page() -> str:
    """`docs/settings.md`."""
    return _HEAD + "".join(section for name, table in MODELS.items() for section in _sections(name, table))


def _sections(name: str, table: type[BaseModel]) -> Iterator[str]:
    about = _meanings(table)
    rows, below = [], []
    for key, field in table.model_fields.items():
        if isinstance(field.default, BaseModel):
            below.append((f"{name}.{key}", type(field.default)))
        else:
            choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
            one_of = f" One of {', '.join(f'`{c}`' for c in choices)}." if choices else ""
            rows.append(f"| `{key}` | {_default(field.default)} | {about[key]}{one_of} |")
    purpose = " ".join((inspect.getdoc(table) or "").split()).partition(": ")[2]
    title = f"`[{name}]`" if name else "At the top"
    head = f"\n## {title}\n\n" + (f"{purpose[0].upper()}{purpose[1:]}\n\n" if purpose else "")
    yield head + "| setting | default | meaning |\n|---|---|---|\n" + "\n".join(rows) + "\n"
    for one in below:
        yield from _sections(*one)


def _meanings(table: type[BaseModel]) -> dict[str, str]:
    """What stands below each field of a table in its source."""
    (declared,) = ast.parse(textwrap.dedent(inspect.getsource(table))).body
    assert isinstance(declared, ast.ClassDef)
    found = {}
    for field, below in zip(declared.body, [*declared.body[1:], None], strict=True):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            said = below.value if isinstance(below, ast.Expr) else None
            text = said.value if isinstance(said, ast.Constant) else ""
            found[field.target.id] = " ".join(str(text).split()).replace("|", "\\|")
    return found


def _default(value: object) -> str:
    if value is None or isinstance(value, SecretStr):
        return "none"
    shown = json.dumps(str(value) if not isinstance(value, bool | int | float | str | list | dict) else value)
    return f"`{shown}`"


if __name__ == "__main__":
    print(settings_page(), end="")

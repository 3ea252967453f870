"""The walls between the packages, read from the source: who may import what."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "transformers", "peft", "vllm"}
FORBIDDEN = {
    "server": HEAVY | {"learner"},
    "buffer": HEAVY | {"learner", "server"},
    "learner": {"server"},
}


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and top-level name of every import, wherever it stands, type-checking blocks included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.lineno, node.module.split(".")[0]


@pytest.mark.parametrize("package", FORBIDDEN)
def test_a_package_imports_nothing_from_behind_its_wall(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    crossing = [
        f"{file.relative_to(ROOT)}:{line} imports {name}"
        for file in files
        for line, name in imports(ast.parse(file.read_text(encoding="utf-8")))
        if name in FORBIDDEN[package]
    ]
    assert crossing == []


def test_an_import_is_found_wherever_it_stands() -> None:
    source = (
        "def f():\n import torch.nn\nif TYPE_CHECKING:\n from learner.loss import x\nfrom . import vllm\n"
    )
    assert list(imports(ast.parse(source))) == [(2, "torch"), (4, "learner")]

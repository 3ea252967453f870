"""Adapter stores to test with: one in memory whose calls can be made to fail, and releases to put there."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

from buffer.records import Release
from tests.server.adapters import publish, write_weights


class FailingFileSystem(MemoryFileSystem):  # type: ignore[misc]
    """Objects in memory, `failing://`. `before` is called with each method and path, and may raise."""

    protocol = "failing"
    store: dict[str, Any] = {}  # noqa: RUF012 - fsspec's way: one for the process
    pseudo_dirs = [""]  # noqa: RUF012
    before: Callable[[str, str], None] = staticmethod(lambda method, path: None)

    def cat_file(self, path: str, *more: Any, **options: Any) -> Any:
        type(self).before("cat_file", path)
        return super().cat_file(path, *more, **options)

    def get_file(self, path: str, *more: Any, **options: Any) -> Any:
        type(self).before("get_file", path)
        return super().get_file(path, *more, **options)

    def put_file(self, local: str, path: str, *more: Any, **options: Any) -> Any:
        type(self).before("put_file", path)
        return super().put_file(local, path, *more, **options)

    def rm_file(self, path: str) -> Any:
        type(self).before("rm_file", path)
        return super().rm_file(path)

    def rm(self, path: str, *more: Any, **options: Any) -> Any:
        type(self).before("rm", path)
        return super().rm(path, *more, **options)


fsspec.register_implementation("failing", FailingFileSystem, clobber=True)


@contextmanager
def failing(before: Callable[[str, str], None]) -> Iterator[None]:
    """Within it, `before` is called first."""
    was, FailingFileSystem.before = FailingFileSystem.before, staticmethod(before)
    try:
        yield
    finally:
        FailingFileSystem.before = was


def away(method: str, path: str) -> None:
    raise ConnectionError("the store is away")


def made(adapters: Path, version: int) -> Release:
    """A release in a local adapter directory."""
    weights = adapters / f".weights-{version}"
    write_weights(weights, seed=version)
    return publish(adapters, weights, version=version, candidate=[-1.0, -2.0], parent=[-3.0, -4.0])

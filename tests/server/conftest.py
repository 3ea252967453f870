from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser import chromium, visit
from tests.buffer.conftest import broker
from tests.server.running import KEYS, Running, hashed
from tests.server.stub_policies import StubPolicies

__all__ = ["broker", "chromium", "running", "visit"]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    """A gateway with the keys of ann, ben and root, an admin."""
    started = Running(tmp_path, StubPolicies, keys=hashed(KEYS), admins=["root"], max_body_bytes=200_000)
    yield started
    started.stop()

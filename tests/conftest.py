"""What every suite shares: the model's directory, and which tests stay together when they run in parallel."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from filelock import FileLock

ROOT = Path(__file__).resolve().parent.parent
E2E = "tests/e2e/"
"""Where all lies that needs vLLM."""

hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.fixture(scope="session")
def model_dir() -> Path:
    """The converted SmolLM2: from APPRENTICE_TEST_MODEL, where `make up` keeps it, or made there now."""
    if given := os.environ.get("APPRENTICE_TEST_MODEL"):
        return Path(given)
    directory = ROOT / ".apprentice" / "models" / "smollm2-135m-instruct"
    directory.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(directory.parent / "tests.lock"):
        if not (directory / "config.json").exists():
            subprocess.run([sys.executable, "-m", "learner.smollm2", str(directory)], cwd=ROOT, check=True)
    return directory


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs vLLM first: it takes longest."""
    items.sort(key=lambda item: not item.nodeid.startswith(E2E))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """In parallel, a file's tests stay together, and so do all that share one vLLM."""
    from xdist.scheduler import LoadFileScheduling

    scheduler = LoadFileScheduling(config, log)
    file_of = scheduler._split_scope
    scheduler._split_scope = lambda nodeid: E2E if nodeid.startswith(E2E) else file_of(nodeid)
    return scheduler

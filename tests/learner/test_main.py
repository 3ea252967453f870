import subprocess
import sys
from pathlib import Path

import pytest

from buffer.backend import JOURNAL
from buffer.client import Buffer
from buffer.journal import Journal
from buffer.records import AliasMoved
from buffer.view import View
from learner.__main__ import _clear
from tests.learner.families import of_kind


@pytest.mark.parametrize(
    ("kind", "changed", "said", "hint"),
    [
        ("granite", {"logits_scaling": 8.0}, "its logits are not", "another family"),
        ("mistral", {"sliding_window": 1000}, "slides over 1000", "lower max_prompt_tokens"),
    ],
)
def test_a_model_that_cannot_be_trained_ends_the_learner_with_the_reason(
    tiny_dir: Path, tmp_path: Path, kind: str, changed: dict[str, object], said: str, hint: str
) -> None:
    directory = of_kind(kind, tiny_dir, tmp_path / kind, **changed)
    state = str(tmp_path / "state")
    command = [sys.executable, "-P", "-m", "learner", "--state", state, "--model", str(directory)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 2, ended.stderr
    assert said in ended.stderr and hint in ended.stderr and "Traceback" not in ended.stderr


def test_a_log_of_another_alias_ends_the_learner_with_the_reason(tiny_dir: Path, tmp_path: Path) -> None:
    """Policies descend from each other across the whole log: it would wait for a server for ever."""
    buffer = Buffer(Journal(tmp_path / "state" / JOURNAL), View(":memory:"))
    buffer.start()
    buffer.write([AliasMoved(alias="before", version=1, epoch=0, why="release", by="server")]).result()
    buffer.close()
    command = [sys.executable, "-P", "-m", "learner", "--state", str(tmp_path / "state"), "--model"]
    ended = subprocess.run(
        [*command, str(tiny_dir)], capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 2, ended.stderr
    assert "those of before, not of apprentice" in ended.stderr and "set `alias` back" in ended.stderr


def test_what_a_killed_learner_left_half_written_is_deleted_and_nothing_else(tmp_path: Path) -> None:
    kept = [tmp_path / "learner" / "round.safetensors", tmp_path / "adapters" / "000001-x" / "manifest.json"]
    left = [
        tmp_path / "learner" / ".round.safetensors.abc.tmp",
        tmp_path / "adapters" / ".000002-y.new" / "m",
        tmp_path / "adapters" / ".000003-z.deleted" / "m",
    ]
    for path in [*kept, *left]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    _clear(tmp_path)
    assert [path.exists() for path in kept] == [True, True]
    assert not any(path.exists() for path in left)
    assert not left[1].parent.exists()
    _clear(tmp_path / "new")

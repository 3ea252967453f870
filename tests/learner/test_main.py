from pathlib import Path

from learner.__main__ import _clear


def test_what_a_killed_learner_left_half_written_is_deleted_and_nothing_else(tmp_path: Path) -> None:
    kept = [tmp_path / "learner" / "round.safetensors", tmp_path / "adapters" / "000001-x" / "manifest.json"]
    left = [
        tmp_path / "learner" / ".round.safetensors.abc.tmp",
        tmp_path / "adapters" / ".000002-y.new" / "m",
    ]
    for path in [*kept, *left]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    _clear(tmp_path)
    assert [path.exists() for path in kept] == [True, True]
    assert [path.exists() for path in left] == [False, False]
    assert not left[1].parent.exists()
    _clear(tmp_path / "new")

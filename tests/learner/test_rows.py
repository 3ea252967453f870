"""Batches, without a model."""

from collections import Counter
from itertools import islice

from learner.config import LearnerConfig
from learner.rows import Pools, Row


def row(kind: str, number: int, length: int = 3) -> Row:
    prompt = (number,) * length
    return Row(kind, prompt, prompt, (7,))  # type: ignore[arg-type]


CONFIG = LearnerConfig(lessons_per_step=3, replay_per_step=2, lookalikes_per_step=1, anchors_per_step=2)


def test_every_pool_gives_its_share_and_every_row_its_turn() -> None:
    pools = Pools(
        lessons=[row("target", n) for n in range(6)],
        replay=[row("target", n) for n in range(10, 12)],
        lookalikes=[row("lookalike", 20)],
        anchors=[row("anchor", n) for n in range(30, 34)],
    )
    steps = list(islice(pools.batches(CONFIG, seed=1), 4))
    assert all(len(batch) == 8 for batch in steps)
    seen = Counter(r.student[0] for batch in steps for r in batch)
    assert [seen[n] for n in range(6)] == [2] * 6
    assert [seen[n] for n in (10, 11)] == [4, 4]
    assert [seen[n] for n in range(30, 34)] == [2] * 4
    assert steps == list(islice(pools.batches(CONFIG, seed=1), 4))
    assert steps != list(islice(pools.batches(CONFIG, seed=2), 4))


def test_an_empty_pool_leaves_its_share_out_and_new_rows_join_the_next_pass() -> None:
    pools = Pools(lessons=[row("target", 1)], anchors=[row("anchor", 2)])
    batches = pools.batches(CONFIG, seed=1)
    assert [r.student[0] for r in next(batches)] == [1, 1, 1, 2, 2]
    pools.lessons.append(row("fresh", 3))
    assert {r.student[0] for r in next(batches)} == {1, 2, 3}

"""Rows packed into one, without a model."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from learner.packing import packed, packs

ROWS = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=8), min_size=1, max_size=12)
"""Of few different ids, so that many begin alike."""


@given(ROWS)
def test_a_token_sees_its_own_row_up_to_itself_and_is_there_once(rows: list[list[int]]) -> None:
    pack = packed(rows)
    for row, places_L in zip(rows, pack.places, strict=True):
        assert pack.ids_T[places_L].tolist() == row
        assert pack.positions_T[places_L].tolist() == list(range(len(row)))
        for depth, place in enumerate(places_L):
            assert pack.sees_TT[place].nonzero()[:, 0].tolist() == sorted(places_L[: depth + 1].tolist())
    beginnings = {tuple(row[: end + 1]) for row in rows for end in range(len(row))}
    assert len(pack.ids_T) == len(beginnings)


def test_the_mask_adds_nothing_where_a_token_looks_and_hides_the_rest() -> None:
    assert packed([[5, 6, 7]]).mask(torch.float32) is None
    mask = packed([[5, 6], [5, 7]]).mask(torch.float32)
    assert mask is not None
    hidden = float("-inf")
    assert mask[0, 0].tolist() == [[0.0, hidden, hidden], [0.0, 0.0, hidden], [0.0, hidden, 0.0]]


@given(ROWS, st.integers(1, 30))
def test_packs_hold_every_row_once_and_keep_to_the_budget(rows: list[list[int]], tokens: int) -> None:
    parts = list(packs(rows, tokens))
    assert sorted(index for part in parts for index in part) == list(range(len(rows)))
    for part in parts:
        assert len(part) == 1 or len(packed([rows[i] for i in part]).ids_T) <= tokens
    if len(parts) > 1:
        first, second = parts[0], parts[1]
        assert len(packed([rows[i] for i in [*first, second[0]]]).ids_T) > tokens


def test_rows_that_begin_alike_are_packed_together() -> None:
    assert list(packs([[1, 2, 3], [9, 8, 7], [1, 2, 4], [9, 8, 6]], tokens=4)) == [[0, 2], [3, 1]]

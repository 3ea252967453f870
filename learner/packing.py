"""Rows of tokens packed into one, in which rows that begin alike share their beginning.

What a causal model computes at a token depends on the tokens up to it alone. All prompts of one template open
alike, and many go on alike: such a beginning is computed once, and nothing is padded. The mask is that of
tree attention (SpecInfer, Miao et al., arXiv 2305.09781): a token sees those of its own rows before it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Packed:
    """T tokens that hold all rows."""

    ids_T: Tensor
    positions_T: Tensor
    """Of each token in its rows."""
    sees_TT: Tensor
    """Bool, `[of, what]`."""
    places: list[Tensor]
    """Where each row's tokens are: one `[len(row)]` tensor a row."""

    def mask(self, dtype: torch.dtype) -> Tensor | None:
        """What attention adds to its scores: `[1, 1, T, T]`, or None where it is the causal mask."""
        if len(self.places) == 1:
            return None
        return torch.zeros(self.sees_TT.shape, dtype=dtype).masked_fill(~self.sees_TT, -torch.inf)[None, None]


def packed(rows: Sequence[Sequence[int]]) -> Packed:
    """Pack rows of token ids into one."""
    nodes: dict[tuple[int, int], int] = {}  # by the place of the token before, and id
    places = []
    for row in rows:
        place, path = -1, []
        for token in row:
            place = nodes.setdefault((place, token), len(nodes))
            path.append(place)
        places.append(torch.tensor(path))
    positions_T = torch.zeros(len(nodes), dtype=torch.long)
    sees_TT = torch.zeros(len(nodes), len(nodes), dtype=torch.bool)
    for path_L in places:
        count = len(path_L)
        positions_T[path_L] = torch.arange(count)
        sees_TT[path_L[:, None], path_L] = torch.ones(count, count, dtype=torch.bool).tril()
    return Packed(torch.tensor([token for _, token in nodes]), positions_T, sees_TT, places)


def packs(rows: Sequence[Sequence[int]], tokens: int) -> Iterator[list[int]]:
    """Indices of rows that are packed together: those that begin alike are neighbours, and no pack is longer
    than `tokens`, unless a row alone is."""
    part: list[int] = []
    size = 0
    before: Sequence[int] = ()
    for index in sorted(range(len(rows)), key=lambda i: list(rows[i])):
        row = rows[index]
        new = len(row) - _shared(row, before)
        if part and size + new > tokens:
            yield part
            part, size, new = [], 0, len(row)
        part.append(index)
        size += new
        before = row
    if part:
        yield part


def _shared(row: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = zip(row, other, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

"""Stored exchanges, and how the view finds them: by time, by what was said, by what came of them.

What was said is kept beside each exchange as plain text (`projection.folded`), so that a search reads neither
the records' JSON nor their token ids. It goes window by window; who writes the view can do so in between.
"""

from dataclasses import dataclass

from buffer.projection import folded
from buffer.records import ExchangeClosed, ExchangeOpened
from buffer.view_file import Rows

WINDOW = 2000
"""Exchanges looked at in one query: a few milliseconds."""

_HAS_LESSON = (
    "EXISTS (SELECT 1 FROM feedback f WHERE f.completion_id = e.completion_id AND f.teaches > 0"
    " AND NOT f.withdrawn AND NOT f.erased)"
)


@dataclass(frozen=True, slots=True)
class Exchange:
    """One stored exchange; `closed` is None when the server died before its end was on disk."""

    created: float
    opened: ExchangeOpened
    closed: ExchangeClosed | None

    @classmethod
    def of(cls, created: float, opened: bytes, closed: bytes | None) -> "Exchange":
        """From the columns of the same names."""
        end = ExchangeClosed.model_validate_json(closed) if closed is not None else None
        return cls(created, ExchangeOpened.model_validate_json(opened), end)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What exchanges somebody looks for; what is None does not matter."""

    search: str = ""
    """Each of its words must occur in what was asked or answered, be it as a part of a word, in any case."""
    policy: int | None = None
    corrected: bool | None = None
    """Whether it has feedback that carries a lesson and was not taken back."""

    def hit(self) -> tuple[str, list[object]]:
        """The condition and its arguments; no condition when all are wanted."""
        conditions, arguments = list[str](), list[object]()
        for word in folded(self.search).split():
            conditions.append("(instr(asked, ?) OR instr(answered, ?))")
            arguments += [word, word]
        if self.policy is not None:
            conditions.append("policy = ?")
            arguments.append(self.policy)
        if self.corrected is not None:
            conditions.append(_HAS_LESSON if self.corrected else f"NOT {_HAS_LESSON}")
        return " AND ".join(conditions), arguments


EVERYTHING = Wanted()


def find(
    rows: Rows, principal: str | None, wanted: Wanted, *, limit: int, after: str | None, newest_first: bool
) -> list[Exchange]:
    """A principal's (or everybody's) exchanges by time, from behind completion id `after` on."""
    order, beyond = ("DESC", "<") if newest_first else ("ASC", ">")
    hit, arguments = wanted.hit()
    window = WINDOW if hit else limit
    position: tuple[float, str] | None = None
    if after is not None:
        if not (known := rows(_POSITION, after)):
            return []
        position = known[0]
    found = list[Exchange]()
    while len(found) < limit:
        where, bound = ["asked IS NOT NULL"], list(arguments)
        if principal is not None:
            where.append("principal = ?")
            bound.append(principal)
        if position is not None:
            where.append(f"(created, completion_id) {beyond} (?, ?)")
            bound += position
        looked_at = rows(
            f"SELECT created, completion_id, {hit or 1} FROM exchanges e WHERE {' AND '.join(where)}"  # noqa: S608
            f" ORDER BY created {order}, completion_id {order} LIMIT ?",
            *bound,
            window,
        )
        hits = [id_ for _, id_, is_hit in looked_at if is_hit][: limit - len(found)]
        found += [Exchange.of(*row) for id_ in hits for row in rows(_ONE, id_) if row[1] is not None]
        if len(looked_at) < window:
            break
        position = looked_at[-1][:2]
    return found


_POSITION = "SELECT created, completion_id FROM exchanges WHERE completion_id = ?"
_ONE = "SELECT created, opened, closed FROM exchanges WHERE completion_id = ?"

"""Rounds, releases and the alias, as the log tells them.

The view reads them; what they say about policies (`lineage`) is worked out from them, never stored.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from buffer.fate import Lineage, RoundFact
from buffer.records import AliasMoved, Release, RoundEnded, RoundPlanned
from buffer.view_file import Rows


@dataclass(frozen=True, slots=True)
class Round:
    """A planned round and, once it has ended, how. Times are Unix seconds."""

    planned: RoundPlanned
    planned_at: float
    ended: RoundEnded | None
    ended_at: float | None
    ended_id: str | None = None
    """Of the record of its end."""

    @property
    def release(self) -> Release | None:
        return self.ended.release if self.ended is not None else None


@dataclass(frozen=True, slots=True)
class Move:
    """A move of an alias that counted, with its record's id and time in Unix seconds."""

    moved: AliasMoved
    record_id: str
    at: float


@dataclass(frozen=True, slots=True)
class Alias:
    """Where the alias points. `epoch` is what the next move must carry; `moves` are oldest first."""

    version: int
    epoch: int
    moves: tuple[AliasMoved, ...]

    def recent(self, count: int) -> list[int]:
        """The versions that were live last, each once, the live one first."""
        return list(dict.fromkeys([self.version, *(move.version for move in reversed(self.moves))]))[:count]

    @property
    def previous(self) -> int | None:
        """The version that a rollback returns to, None when there is none.

        A rollback undoes a move, so two of them go back two versions instead of to and fro.
        """
        been = [0]
        for move in self.moves:
            if move.why == "rollback" and move.version in been:
                while been[-1] != move.version:
                    been.pop()
            elif move.version != been[-1]:
                been.append(move.version)
        return been[-2] if len(been) > 1 else None


def find(rows: Rows) -> list[Round]:
    """All rounds, oldest first, with what was answered to lessons that are not erased."""
    said = defaultdict[int, dict[str, dict[str, str]]](dict)
    for round_, feedback_id, before, answer in rows(
        "SELECT round, feedback_id, before, answer FROM answers JOIN feedback USING (feedback_id)"
        " WHERE NOT erased"
    ):
        said[round_][feedback_id] = {"before": before, "answer": answer}
    found = rows("SELECT round, planned, planned_at, ended, ended_at, ended_id FROM rounds ORDER BY round")
    return [
        Round(
            RoundPlanned.model_validate_json(planned),
            planned_at,
            _quoting(RoundEnded.model_validate_json(ended), said[round_]) if ended is not None else None,
            ended_at,
            ended_id,
        )
        for round_, planned, planned_at, ended, ended_at, ended_id in found
    ]


def _quoting(ended: RoundEnded, said: Mapping[str, Mapping[str, str]]) -> RoundEnded:
    """The end of a round with what was said to each of its lessons, by their ids."""
    lessons = ended.evaluation.get("lessons")
    for one in lessons if isinstance(lessons, list) else ():  # the learner's, perhaps of another release
        one.update(said.get(one["feedback_id"], {}))
    return ended


def made_by(rounds: Iterable[Round], version: int) -> Round | None:
    """The round that made a policy version."""
    return next((r for r in rounds if r.release is not None and r.release.version == version), None)


def moves(rows: Rows, alias: str) -> list[Move]:
    """All moves of an alias, oldest first."""
    found = rows("SELECT moved, record_id, at FROM moves WHERE alias = ? ORDER BY epoch", alias)
    return [Move(AliasMoved.model_validate_json(moved), id_, at) for moved, id_, at in found]


def moved_to(rows: Rows) -> list[int]:
    """Every version that an alias was moved to, the live one last."""
    found = rows("SELECT moved FROM moves ORDER BY epoch")
    return [AliasMoved.model_validate_json(moved).version for (moved,) in found]


def facts(rounds: Iterable[Round]) -> dict[int, RoundFact]:
    """What decides the fate of the rounds' lessons, by the round's number."""
    return {
        r.planned.round: RoundFact(
            r.planned.round,
            r.planned.parent,
            r.ended.verdict if r.ended is not None else None,
            r.release.version if r.release is not None else None,
            "; ".join(r.ended.reasons) if r.ended is not None else "",
        )
        for r in rounds
    }


def lineage(moved_to: Sequence[int], facts: Mapping[int, RoundFact], rejected: Mapping[int, str]) -> Lineage:
    """What descends from what, seen from the live policy, the last that the alias was moved to."""
    return Lineage(
        live=moved_to[-1] if moved_to else 0,
        moved_to=tuple(moved_to),
        parents={f.version: f.parent for f in facts.values() if f.version is not None},
        rejected=rejected,
    )

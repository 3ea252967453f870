"""Where a round stands between two steps, on disk: the learner that is killed goes on from there.

One file holds the adapter, the optimiser's moments and the rollouts so far. What else a step depends on
follows from the round's record, so that a resumed round ends in the same bits as an uninterrupted one.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from buffer.files import write_durably
from learner.rows import Row

CHECKPOINT = "round.safetensors"


@dataclass
class Checkpoint:
    """The state behind `len(losses)` steps. `rollouts` are the fresh rows by the step they were made at."""

    losses: list[float] = field(default_factory=list)
    rollouts: dict[int, list[Row]] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class CheckpointFile:
    """The checkpoint of the round that `key` names; one of any other round is not read."""

    path: Path
    key: str

    def save(self, checkpoint: Checkpoint) -> None:
        """Replace what was there, durably."""
        rollouts = {step: [_fields(row) for row in rows] for step, rows in checkpoint.rollouts.items()}
        state = json.dumps({"key": self.key, "losses": checkpoint.losses, "rollouts": rollouts})
        tensors = {name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()}
        write_durably(self.path, save(tensors, metadata={"state": state}))

    def load(self) -> Checkpoint:
        """The round's checkpoint; an empty one where there is none that can be used."""
        try:
            with safe_open(self.path, framework="pt") as file:
                state = json.loads((file.metadata() or {}).get("state", "{}"))
                if state.get("key") != self.key:
                    return Checkpoint()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        except (FileNotFoundError, SafetensorError):
            return Checkpoint()
        rollouts = {int(step): [_row(one) for one in rows] for step, rows in state["rollouts"].items()}
        return Checkpoint(state["losses"], rollouts, tensors)

    def delete(self) -> None:
        self.path.unlink(missing_ok=True)


def _fields(row: Row) -> list[object]:
    return [row.kind, row.student, row.teacher, row.completion]


def _row(fields: list[object]) -> Row:
    kind, *ids = fields
    return Row(kind, *map(tuple, ids))  # type: ignore[arg-type]

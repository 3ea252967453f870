"""What /metrics tells of the log: of the learner, its rounds, feedback, the live policy and the disk."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from buffer.client import Buffer
from buffer.memory import MemoryLog
from buffer.records import (
    AliasMoved,
    Decision,
    FeedbackGiven,
    FeedbackTriaged,
    FeedbackWithdrawn,
    LearnerReported,
    LearningSwitched,
    Payload,
    Release,
    ReleaseRejected,
    RoundEnded,
    RoundPlanned,
)
from buffer.view import View
from learner.gate import Evaluation, KeptResult, LessonResult
from server.metrics import Metrics, documentation


class Told:
    """A log that is written to, and what is told of it."""

    def __init__(self, state: Path) -> None:
        self.buffer = Buffer(MemoryLog(), View(":memory:"))
        self.buffer.start()
        self.registry = Metrics(self.buffer, state=state).registry

    def write(self, *payloads: Payload) -> None:
        for payload in payloads:
            self.buffer.decide(payload).result(20)

    def __call__(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"apprentice_{name}", labels)


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Told]:
    made = Told(tmp_path)
    yield made
    made.buffer.close()


def planned(number: int, parent: int = 0) -> RoundPlanned:
    return RoundPlanned(round=number, parent=parent, lessons=[], seed=1, base="b", config={})


def ended(number: int, verdict: Any = "refused", **measured: Any) -> RoundEnded:
    release = (
        Release(version=number, digest="d", directory=f"{number:06d}-d") if verdict == "passed" else None
    )
    evaluation = Evaluation(**measured).model_dump() if measured else {}
    return RoundEnded(round=number, verdict=verdict, evaluation=evaluation, release=release)


def lesson(held_out: int, *, asked: bool) -> LessonResult:
    return LessonResult(
        feedback_id="f", asked=asked, held_out=held_out, held_out_of=4, leaked=held_out // 4, leaked_of=2,
        answer="", before="",
    )  # fmt: skip


def kept(*, parent: bool, candidate: bool) -> KeptResult:
    return KeptResult(feedback_id="f", parent=parent, candidate=candidate)


def test_of_an_empty_log_nothing_is_made_up(told: Told) -> None:
    assert told("learner_report_age_seconds") is None
    assert told("last_round_seconds") is None
    assert told("measured_drift") is None
    assert (told("policy_drift"), told("rounds_without_release"), told("feedback_pending")) == (0, 0, 0)


def test_the_numbers_are_those_of_the_last_round_that_was_measured(told: Told) -> None:
    measured: dict[str, Any] = {
        "lessons": [lesson(1, asked=True), lesson(4, asked=False)],
        "kept": [
            kept(parent=True, candidate=True),
            kept(parent=True, candidate=False),
            kept(parent=False, candidate=True),
        ],
        "drift": 0.25, "kl_to_parent": 0.125, "degenerate": 0.5, "loss_first": 2.0, "loss_last": 1.0,
        "steps": 24, "seconds": {"train": 60.0},
    }  # fmt: skip
    told.write(planned(1), ended(1, "passed", drift=9.0), planned(2), ended(2, **measured))
    told.write(planned(3), ended(3, "failed"))
    assert told("measured_lessons") == 2
    assert told("measured_asked_ratio") == 0.5
    assert told("measured_held_out_ratio") == 5 / 8
    assert told("measured_leaked_ratio") == 1 / 4
    assert told("measured_kept_ratio") == 0.5, "of what the parent knew"
    assert told("measured_drift") == 0.25
    assert told("measured_kl_to_parent") == 0.125
    assert told("measured_degenerate_ratio") == 0.5
    assert told("measured_loss", step="last") == 1.0
    assert told("measured_steps") == 24
    assert told("measured_phase_seconds", phase="train") == 60.0
    assert told("last_round_verdict", verdict="failed") == 1
    assert told("last_round_verdict", verdict="passed") == 0
    assert told("rounds_without_release") == 2
    assert [told("rounds", verdict=v) for v in ("passed", "refused", "failed", "running")] == [1, 1, 1, 0]


def test_shares_of_nothing_are_not_told(told: Told) -> None:
    told.write(planned(1), ended(1, drift=0.1))
    assert told("measured_drift") == 0.1
    assert told("measured_kept_ratio") is None


def test_an_evaluation_of_another_release_breaks_nothing(told: Told) -> None:
    told.write(planned(1), RoundEnded(round=1, verdict="refused", evaluation={"lessons": "many"}))
    assert told("measured_drift") is None
    assert told("rounds", verdict="refused") == 1


def test_drift_is_that_of_the_policy_which_the_log_says_is_live(told: Told) -> None:
    told.write(planned(1), ended(1, "passed", drift=0.2), planned(2, 1), ended(2, "passed", drift=0.4))
    for epoch, (version, drift) in enumerate([(2, 0.4), (1, 0.2), (0, 0.0)]):
        told.write(AliasMoved(alias="apprentice", version=version, epoch=epoch, why="promote", by="a"))
        assert (told("log_policy_version"), told("policy_drift")) == (version, drift)
    told.write(ReleaseRejected(version=2, why="its probe", by="a"))
    assert told("releases_rejected") == 1


def test_what_the_learner_reported_last_is_its_only_state(told: Told) -> None:
    told.write(LearnerReported(state="training", why="", round=1, step=3, steps=24, loss=0.5))
    assert (told("learner_step"), told("learner_steps"), told("learner_loss")) == (3, 24, 0.5)
    told.write(LearnerReported(state="waiting", why="for feedback"))
    assert (told("learner_state", state="waiting"), told("learner_state", state="training")) == (1, 0)
    assert (told("learner_step"), told("learner_loss")) == (0, None)
    age = told("learner_report_age_seconds")
    assert age is not None and age >= 0


def test_a_pause_and_a_round_under_way_are_told(told: Told) -> None:
    assert (told("learning_paused"), told("round_running_seconds")) == (0, 0)
    told.write(LearningSwitched(paused=True, by="root"), planned(1))
    running = told("round_running_seconds")
    assert told("learning_paused") == 1
    assert running is not None and running > 0
    assert told("rounds", verdict="running") == 1


def test_feedback_left_out_is_counted_by_reason_until_it_is_taken_back(told: Told) -> None:
    for number in "abc":
        told.write(FeedbackGiven(feedback_id=number, principal="p", kind="rating", completion_id=number))
    skipped = [Decision(feedback_id=one, status="skipped", reason="rating_only") for one in "ab"]
    told.write(FeedbackTriaged(decisions=skipped))
    assert told("feedback_left_out", status="skipped", reason="rating_only") == 2
    assert told("feedback_pending") == 1
    told.write(FeedbackWithdrawn(feedback_id="a", by="p"))
    assert told("feedback_left_out", status="skipped", reason="rating_only") == 1


def test_the_journal_and_its_disk_are_measured(told: Told, tmp_path: Path) -> None:
    assert told("journal_bytes") == 0
    (tmp_path / "journal.db").write_bytes(bytes(100))
    (tmp_path / "journal.db-wal").write_bytes(bytes(10))
    assert told("journal_bytes") == 110
    free, size = told("disk_free_bytes"), told("disk_bytes")
    assert free is not None and size is not None and 0 < free <= size


def test_the_page_names_counters_as_they_are_on_the_wire() -> None:
    assert "| `apprentice_captures_total` | counter | `status` |" in documentation()
    assert "`apprentice_view_lag_records` | gauge |" in documentation()

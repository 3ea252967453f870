"""The learner's reports: changes at once, progress now and then, and never silence."""

import threading
from collections.abc import Iterator

import pytest

from buffer.client import Buffer
from buffer.memory import MemoryLog
from buffer.records import LearnerReported, Payload
from buffer.view import View
from learner import reporter as module
from learner.plan import Step
from learner.reporter import REPORT_S, Reporter


class Heard:
    def __init__(self) -> None:
        self.reports: list[LearnerReported] = []
        self.more = threading.Semaphore(0)

    def __call__(self, news: list[Payload]) -> None:
        for payload in news:
            if isinstance(payload, LearnerReported):
                self.reports.append(payload)
                self.more.release()

    def count(self, wanted: int) -> list[LearnerReported]:
        for _ in range(wanted):
            assert self.more.acquire(timeout=20)
        return self.reports


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def buffer(heard: Heard) -> Iterator[Buffer]:
    buffer = Buffer(MemoryLog(), View(":memory:"), heard)
    buffer.start()
    yield buffer
    buffer.close()


def test_a_change_is_told_at_once_and_progress_only_now_and_then(buffer: Buffer, heard: Heard) -> None:
    now = [0.0]
    reporter = Reporter(buffer, lambda: now[0])
    reporter.say("waiting", "nothing to learn")
    reporter.say("waiting", "nothing to learn")
    for number in range(1, 5):
        now[0] += REPORT_S / 2
        reporter.say("training", "round 1", round_number=1, step=Step(number, 4, 0.5))
    reports = heard.count(3)
    reporter.close()
    assert [(r.state, r.step) for r in reports] == [("waiting", None), ("training", 1), ("training", 3)]


def test_an_unchanged_state_is_repeated(
    buffer: Buffer, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.02)
    reporter = Reporter(buffer)
    reporter.say("planning", "round 1 prepares its rows")
    reports = heard.count(3)
    reporter.close()
    assert {(r.state, r.why) for r in reports} == {("planning", "round 1 prepares its rows")}

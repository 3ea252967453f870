import itertools
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buffer.log import LogUnavailable
from buffer.memory import MemoryLog
from buffer.records import (
    AliasMoved,
    Choice,
    Decision,
    ExchangeClosed,
    ExchangeErased,
    ExchangeOpened,
    FeedbackGiven,
    FeedbackTriaged,
    FeedbackWithdrawn,
    KeyAdded,
    KeyRevoked,
    LearnerReported,
    LearningSwitched,
    LessonAnswered,
    Message,
    Payload,
    Record,
    Release,
    ReleaseRejected,
    RoundEnded,
    RoundPlanned,
    RoundRequested,
)
from buffer.view import Keys, View
from tests.buffer.conftest import START

CLOCK = itertools.count()


class Written:
    """A log and its view, one record at a time."""

    def __init__(self) -> None:
        self.log = MemoryLog()
        self.view = View(":memory:")

    def write(self, *payloads: Payload) -> list[Record]:
        records = [envelope(payload) for payload in payloads]
        self.append(records)
        return records

    def append(self, records: Sequence[Record]) -> None:
        self.log.append(records).result()
        self.follow()

    def follow(self) -> list[Payload]:
        records, positions = self.log.read(self.view.positions())
        return self.view.apply(records, positions)

    def status(self, feedback_id: str) -> str:
        found = self.view.feedback(feedback_id)
        assert found is not None
        return found.fate.status


def envelope(payload: Payload) -> Record:
    time = START + timedelta(milliseconds=next(CLOCK))
    return Record.of(payload, time=time, randomness=os.urandom(10), partition_key="c")


@pytest.fixture
def log() -> Iterator[Written]:
    written = Written()
    yield written
    written.view.close()


def opened(
    completion_id: str, question: str = "What?", principal: str = "ann", **more: Any
) -> ExchangeOpened:
    request = {"model": "apprentice", "messages": [{"role": "user", "content": question}], **more}
    return ExchangeOpened(
        completion_id=completion_id, principal=principal, conversation="c", endpoint="chat", policy=0,
        request=request,
    )  # fmt: skip


def closed(completion_id: str, text: str = "That.") -> ExchangeClosed:
    choice = Choice(message=Message(role="assistant", content=text), token_ids=[1, 2], logprobs=[-0.5, -1.5])
    return ExchangeClosed(completion_id=completion_id, status="complete", choices=[choice])


def correction(feedback_id: str, completion_id: str, principal: str = "ann", **more: Any) -> FeedbackGiven:
    given: dict[str, Any] = {"kind": "correction", "text": "This.", **more}
    return FeedbackGiven(feedback_id=feedback_id, principal=principal, completion_id=completion_id, **given)


def triaged(feedback_id: str, status: Literal["accepted", "quarantined", "skipped"]) -> FeedbackTriaged:
    return FeedbackTriaged(decisions=[Decision(feedback_id=feedback_id, status=status, reason="because")])


def planned(round_: int, parent: int, *lessons: str, requests: list[str] | None = None) -> RoundPlanned:
    return RoundPlanned(
        round=round_,
        parent=parent,
        lessons=list(lessons),
        seed=1,
        base="b",
        config={},
        requests=requests or [],
    )


def passed(round_: int) -> RoundEnded:
    release = Release(version=round_, digest="d" * 64, directory=f"{round_:06d}-{'d' * 12}")
    return RoundEnded(round=round_, verdict="passed", release=release)


def moved(version: int, epoch: int, why: Literal["release", "promote", "rollback"] = "release") -> AliasMoved:
    return AliasMoved(alias="apprentice", version=version, epoch=epoch, why=why, by="op")


# --- exchanges ---------------------------------------------------------------------------------------


def test_an_exchange_is_found_whole(log: Written) -> None:
    log.write(opened("c-1"))
    unfinished = log.view.exchange("c-1")
    assert unfinished is not None and unfinished.closed is None
    log.write(closed("c-1"))
    assert log.view.exchange("c-1") is not None
    found = log.view.exchange("c-1")
    assert found is not None and found.closed == closed("c-1")
    assert found.opened == opened("c-1")


def test_an_end_without_a_beginning_is_not_an_exchange(log: Written) -> None:
    log.write(closed("c-1"))
    assert log.view.exchange("c-1") is None
    assert log.view.exchanges(None, limit=10) == []


def test_exchanges_are_listed_by_time_within_their_principal(log: Written) -> None:
    log.write(*(opened(f"c-{i}", principal="ann" if i != 2 else "ben") for i in range(5)))

    def listed(principal: str | None, **how: Any) -> list[str]:
        return [e.opened.completion_id for e in log.view.exchanges(principal, **how)]

    assert listed("ann", limit=10) == ["c-0", "c-1", "c-3", "c-4"]
    assert listed("ann", limit=2, after="c-1") == ["c-3", "c-4"]
    assert listed("ann", limit=2, newest_first=True) == ["c-4", "c-3"]
    assert listed("ann", limit=9, after="c-3", newest_first=True) == ["c-1", "c-0"]
    assert listed(None, limit=10) == [f"c-{i}" for i in range(5)]
    assert listed("ann", limit=10, after="unknown") == []


def test_exchanges_are_found_by_what_they_asked(log: Written) -> None:
    asked = [{"role": "user", "content": "What?"}]
    log.write(opened("c-1"), closed("c-1"), opened("c-2", "Else?"), opened("c-3", principal="ben"))
    log.write(opened("c-4", n=2), opened("c-5"), ExchangeErased(completion_id="c-5", by="ann"))

    def found(principal: str, limit: int = 9) -> list[str]:
        return [e.opened.completion_id for e in log.view.asked(principal, asked, limit=limit)]

    assert found("ann") == ["c-4", "c-1"]
    assert found("ann", limit=1) == ["c-4"]
    assert found("ben") == ["c-3"]
    assert log.view.asked("ann", [*asked, *asked], limit=9) == []


def test_an_erased_exchange_takes_its_feedback_with_it(log: Written) -> None:
    log.write(opened("c-1"), closed("c-1"), correction("fb-1", "c-1"), opened("c-2"))
    log.append([envelope(ExchangeErased(completion_id="c-1", by="ann")), *log.view.tombstones("c-1", START)])
    assert log.view.exchange("c-1") is None
    assert log.status("fb-1") == "erased"
    found = log.view.feedback("fb-1")
    assert found is not None and found.given is None and found.principal == "ann"
    assert [e.opened.completion_id for e in log.view.exchanges(None, limit=9)] == ["c-2"]
    remaining = [r.type for r in log.log.read({})[0] if r.data is not None]
    assert remaining == [ExchangeOpened.type, ExchangeErased.type]


def test_what_comes_after_the_erasure_stays_erased(log: Written) -> None:
    log.write(ExchangeErased(completion_id="c-1", by="ann"))
    log.write(opened("c-1"), closed("c-1"), correction("fb-1", "c-1"))
    assert log.view.exchange("c-1") is None
    assert log.status("fb-1") == "erased"


def test_a_tombstone_alone_erases_too(log: Written) -> None:
    records = log.write(opened("c-1"), correction("fb-1", "c-1"))
    log.append([records[1].tombstone(START)])
    assert log.status("fb-1") == "erased"
    assert log.view.exchange("c-1") is not None
    log.append([records[0].tombstone(START)])
    assert log.view.exchange("c-1") is None


def said(feedback_id: str, answer: str) -> LessonAnswered:
    return LessonAnswered(feedback_id=feedback_id, round=1, before="No idea.", answer=answer)


def overdue(log: Written) -> list[str]:
    return sorted(record.id for record in log.view.overdue(START))


@pytest.mark.parametrize("order", [*itertools.permutations(range(5))], ids=str)
def test_what_comes_later_than_its_erasure_is_overdue_in_whatever_order_it_is_read(
    order: tuple[int, ...],
) -> None:
    """As from several partitions, and from a server that did not know yet that it was erased."""
    payloads = (
        ExchangeErased(completion_id="c-1", by="ann"), opened("c-1"), closed("c-1"),
        correction("fb-1", "c-1"), said("fb-1", "This."),
    )  # fmt: skip
    records, log = [envelope(payload) for payload in payloads], Written()
    log.append([envelope(opened("c-2")), envelope(correction("fb-2", "c-2"))])
    for index in order:
        log.append([records[index]])
    assert overdue(log) == sorted(record.id for record in records[1:])
    assert log.view._rows("SELECT * FROM answers") == []
    log.append(log.view.overdue(START))
    assert overdue(log) == []
    left = [r.type for r in log.log.read({})[0] if r.data is not None]
    assert left == [ExchangeOpened.type, FeedbackGiven.type, ExchangeErased.type]
    log.view.close()


def test_what_is_said_to_erased_feedback_is_not_kept_and_overdue(log: Written) -> None:
    log.write(opened("c-1"), correction("fb-1", "c-1"))
    log.append(log.view.tombstones("fb-1", START))
    assert overdue(log) == []
    (answered,) = log.write(said("fb-1", "This."))
    assert overdue(log) == [answered.id]
    assert log.view._rows("SELECT * FROM answers") == []


def test_what_comes_later_than_its_erasure_still_belongs_to_its_principal(log: Written) -> None:
    log.write(opened("c-1"), correction("fb-1", "c-1"), opened("c-2"), opened("c-3", principal="ben"))
    log.append([*log.view.tombstones("c-1", START), *log.view.tombstones("fb-1", START)])
    assert log.view.belonging("ann") == (["c-2"], [])
    log.write(closed("c-1"), correction("fb-2", "c-1"))
    assert log.view.belonging("ann") == (["c-1", "c-2"], ["fb-2"])
    log.append(log.view.overdue(START))
    assert log.view.belonging("ann") == (["c-2"], [])


def test_that_an_exchange_is_erased_is_known(log: Written) -> None:
    log.write(opened("c-1"), ExchangeErased(completion_id="c-2", by="ann"))
    assert [log.view.erased(id_) for id_ in ("c-1", "c-2", "c-3")] == [False, True, False]


def secrets_in(folder: Path) -> list[str]:
    """Files with the secret, read by a process of its own: closing them here would drop SQLite's locks."""
    code = (
        "import sys, pathlib; print(*[f.name for f in pathlib.Path(sys.argv[1]).iterdir()"
        " if b'xyzzy-secret' in f.read_bytes()])"
    )
    found = subprocess.run([sys.executable, "-c", code, folder], check=True, capture_output=True, text=True)
    return found.stdout.split()


def with_a_secret(path: Path) -> Written:
    written = Written()
    written.view = View(path)
    written.write(opened("c-1", question="xyzzy-secret"))
    return written


def test_what_a_reader_kept_from_being_erased_is_erased_after_it(tmp_path: Path) -> None:
    written = with_a_secret(tmp_path / "view.db")
    with closing(sqlite3.connect(tmp_path / "view.db", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM exchanges").fetchall()
        written.append(written.view.tombstones("c-1", START))
        assert secrets_in(tmp_path)
    written.write(opened("c-2"))
    assert secrets_in(tmp_path) == []
    written.view.close()


def test_what_a_killed_process_left_in_the_file_is_erased_at_the_next_start(tmp_path: Path) -> None:
    path, crashed = tmp_path / "running" / "view.db", tmp_path / "crashed"
    written = with_a_secret(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM exchanges").fetchall()
        written.append(written.view.tombstones("c-1", START))
        shutil.copytree(tmp_path / "running", crashed)  # as after a kill behind the commit
    written.view.close()
    assert secrets_in(crashed)
    view = View(crashed / "view.db")
    assert secrets_in(crashed) == []
    view.close()


def test_nothing_of_an_erased_text_is_left_in_the_file(tmp_path: Path) -> None:
    written, path = Written(), tmp_path / "view.db"
    written.view = View(path)
    written.write(opened("c-1", question="xyzzy-secret"), correction("fb-1", "c-1", text="xyzzy-secret"))
    written.write(said("fb-1", "xyzzy-secret"))
    written.append(
        [envelope(ExchangeErased(completion_id="c-1", by="ann")), *written.view.tombstones("c-1", START)]
    )
    assert all(b"xyzzy-secret" not in file.read_bytes() for file in tmp_path.iterdir())
    written.view.close()


# --- the learner -------------------------------------------------------------------------------------


def test_rejections_requests_and_switches_are_known(log: Written) -> None:
    log.write(ReleaseRejected(version=3, why="its probe", by="server"))
    log.write(RoundRequested(request_id="r-1", by="op"), RoundRequested(request_id="r-2", by="op"))
    log.write(planned(1, 0, requests=["r-1"]), LearningSwitched(paused=True, by="op", why="night"))
    log.write(LearnerReported(state="waiting", why="nothing"), LearnerReported(state="paused", why="op"))
    assert log.view.rejected() == {3: "its probe"}
    assert [r.request_id for r in log.view.requests()] == ["r-2"]
    paused, report = log.view.paused(), log.view.report()
    assert paused is not None and paused.why == "night"
    assert report is not None and report[0].state == "paused"
    log.write(LearningSwitched(paused=False, by="op"))
    assert log.view.paused() is None


def test_a_request_whose_round_is_read_first_is_answered(log: Written) -> None:
    log.write(planned(1, 0, requests=["r-1"]))
    log.write(RoundRequested(request_id="r-1", by="op"), RoundRequested(request_id="r-2", by="op"))
    assert [r.request_id for r in log.view.requests()] == ["r-2"]


def test_a_request_whose_round_was_taken_back_is_open_until_the_next_in_any_order(log: Written) -> None:
    """The request is of another stream than the rounds, and any record may come again."""
    asked: Payload = RoundRequested(request_id="r-1", by="op", include=["refused"])
    rounds: list[Payload] = [
        planned(1, 0, requests=["r-1"]),
        RoundEnded(round=1, verdict="failed", taken_back=True),
        planned(2, 0, requests=["r-1"]),
    ]
    for read in range(4):
        view = Written()
        view.write(*rounds[:read], asked)
        for seen in range(read, 4):
            for again in (rounds[:seen], rounds[: seen // 2]):
                view.write(*again)
                assert [r.request_id for r in view.view.requests()] == ["r-1"] * (seen in (0, 2))
        view.view.close()
    log.write(asked, *rounds[:1], RoundEnded(round=1, verdict="failed"))
    assert log.view.requests() == []


@pytest.mark.parametrize("first", [False, True])
def test_a_request_that_an_earlier_release_took_for_answered_is_not_opened_again(first: bool) -> None:
    """Its round was taken back, and the next did not name it."""
    asked = RoundRequested(request_id="r-1", by="op")
    log = Written()
    log.write(*[asked] * first)
    log.write(planned(1, 0, requests=["r-1"]), RoundEnded(round=1, verdict="failed", taken_back=True))
    log.write(planned(2, 0))
    log.write(asked)
    assert log.view.requests() == []
    log.write(RoundEnded(round=2, verdict="failed", taken_back=True))
    assert [r.request_id for r in log.view.requests()] == ["r-1"]
    log.view.close()


# --- applying ----------------------------------------------------------------------------------------


def test_what_comes_out_of_two_partitions_may_come_in_any_order() -> None:
    """As after partitions were added: a conversation's earlier records lie in another one than its later."""
    written: list[Payload] = [
        opened("chatcmpl-1"), closed("chatcmpl-1"),
        correction("fb-1", "chatcmpl-1"), correction("fb-2", "chatcmpl-1"),
        FeedbackWithdrawn(feedback_id="fb-1", by="ann"),
    ]  # fmt: skip
    records = [replace(envelope(one), source="s", sequence=n) for n, one in enumerate(written, 1)]
    erasing = records[3].tombstone(START)
    seen = set()
    for moved in range(len(records) + 1):
        for new_first in (True, False):
            old = [*records[:moved], replace(erasing, source="s", sequence=9)]
            new = [replace(record, partition=1) for record in [*records[moved:], old[-1]]]
            view = View(":memory:")
            for part in (new, old) if new_first else (old, new):
                view.apply(part, {})
            exchange = view.exchange("chatcmpl-1")
            assert exchange is not None
            assert exchange.closed is not None
            feedback = {each.feedback_id: each.fate.status for each in view.all_feedback()}
            seen.add(tuple(sorted(feedback.items())))
            view.close()
    assert seen == {(("fb-1", "withdrawn"), ("fb-2", "erased"))}


def test_a_record_that_comes_again_changes_nothing_and_is_no_news(log: Written) -> None:
    log.write(moved(1, 0), LearningSwitched(paused=True, by="op"), LearningSwitched(paused=False, by="op"))
    records, positions = log.log.read({})
    assert log.view.apply(records, positions) == []
    assert log.view.paused() is None
    assert log.view.alias("apprentice").epoch == 1


def test_own_writes_are_readable_before_they_come_back(log: Written) -> None:
    records = [envelope(p) for p in (opened("c-1"), correction("fb-1", "c-1"), moved(1, 0))]
    log.view.absorb(records)
    assert log.view.exchange("c-1") is not None
    assert log.status("fb-1") == "received"
    assert log.view.alias("apprentice").version == 0, "the alias is decided by log order alone"
    log.append(records)
    assert len(log.view.all_feedback()) == 1


def test_a_record_that_cannot_be_read_is_set_aside(log: Written) -> None:
    bad = Record("feedback", FeedbackGiven.type, "bad", START, b'{"feedback_id": 3}')
    new = Record("rounds", "apprentice.something.v9", "new", START, b"{}")
    log.append([bad, new, envelope(opened("c-1"))])
    assert [(id_, type_) for id_, type_, _ in log.view.poison()] == [
        ("bad", FeedbackGiven.type), ("new", "apprentice.something.v9"),
    ]  # fmt: skip
    assert log.view.exchange("c-1") is not None


def test_a_batch_is_applied_whole_or_not_at_all(log: Written) -> None:
    record = envelope(opened("c-1"))
    with pytest.raises(sqlite3.Error):
        log.view.apply([record], {"exchanges": {0: [1]}})  # type: ignore[dict-item]
    assert log.view.exchange("c-1") is None
    log.append([record])
    assert log.view.exchange("c-1") is not None


@pytest.mark.parametrize("damage", ["garbage", "another version"])
def test_a_view_that_cannot_be_used_is_built_anew(tmp_path: Path, damage: str) -> None:
    written, path = Written(), tmp_path / "view.db"
    written.write(opened("c-1"))
    if damage == "garbage":
        path.write_bytes(b"no database" * 1000)
    else:
        with sqlite3.connect(path) as db:
            db.execute("PRAGMA user_version = 99")
        db.close()
    written.view = View(path)
    written.follow()
    assert written.view.exchange("c-1") is not None
    written.view.close()


SHORT_OF = """
import resource, sys
from pathlib import Path
from buffer.log import BufferError
from buffer.view import View

limit = getattr(resource, sys.argv[2])
before = resource.getrlimit(limit)
resource.setrlimit(limit, (int(sys.argv[3]), before[1]))
try:
    View(Path(sys.argv[1]))
except BufferError as error:
    resource.setrlimit(limit, before)
    print(error.code, error.hint)
"""


def run(code: str, *arguments: object) -> str:
    """What a Python process of its own prints."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    root = Path(__file__).parents[2]
    return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize(
    ("short_of", "said"),
    [
        (("RLIMIT_FSIZE", 1000), "log_full free disk space"),
        (("RLIMIT_NOFILE", 0), "log_misconfigured check its path"),
    ],
    ids=["disk", "file descriptors"],
)
def test_a_view_that_cannot_be_opened_for_want_of_something_is_kept(
    tmp_path: Path, short_of: tuple[str, int], said: str
) -> None:
    path = tmp_path / "view.db"
    with closing(View(path)) as view:
        view.apply([], {"control": {0: 2}})
    assert run(SHORT_OF, path, *short_of).startswith(said)
    with closing(View(path)) as view:
        assert view.positions() == {"control": {0: 2}}


def test_a_view_that_another_keeps_locked_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("buffer.view_file.BUSY_MS", 10)
    path = tmp_path / "view.db"
    with closing(View(path)) as view:
        view.apply([], {"control": {0: 2}})
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(LogUnavailable, match="locked"):
            View(path)
    with closing(View(path)) as view:
        assert view.positions() == {"control": {0: 2}}


FILLED_UP = """
import resource, sys
from pathlib import Path
from buffer.log import LogFull
from buffer.view import View
from tests.buffer.test_view import envelope, opened

view = View(Path(sys.argv[1]))
record = envelope(opened("c-1", question="x" * 500_000))
before = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
try:
    view.apply([record], {"exchanges": {0: 2}})
except LogFull as error:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    print(error.code, view.positions())
view.apply([record], {"exchanges": {0: 2}})
print(view.positions())
view.close()
"""


def test_a_disk_that_fills_up_is_reported_and_survived(tmp_path: Path) -> None:
    said = run(FILLED_UP, tmp_path / "view.db")
    assert said.splitlines() == ["log_full {}", "{'exchanges': {0: 2}}"]


def test_a_view_goes_on_where_it_was(tmp_path: Path) -> None:
    written, path = Written(), tmp_path / "sub" / "view.db"
    written.view = View(path)
    written.write(opened("c-1"))
    written.view.close()
    written.view = View(path)
    written.write(opened("c-2"))
    assert [e.opened.completion_id for e in written.view.exchanges(None, limit=9)] == ["c-1", "c-2"]
    written.view.close()


STORY: list[Payload] = [
    opened("c-1"), closed("c-1"), correction("fb-1", "c-1"), opened("c-2"), correction("fb-2", "c-2"),
    triaged("fb-1", "accepted"), planned(1, 0, "fb-1"), passed(1), moved(1, 0), moved(0, 0),
    ReleaseRejected(version=2, why="w", by="s"), ExchangeErased(completion_id="c-2", by="ann"),
    FeedbackWithdrawn(feedback_id="fb-1", by="ann"),
]  # fmt: skip
RECORDS = [envelope(payload) for payload in STORY]


@given(st.data())
def test_however_streams_are_mixed_and_batched_the_view_ends_up_the_same(data: st.DataObject) -> None:
    """Each stream in its order; the streams read side by side, in batches, some records again."""
    log = MemoryLog()
    log.append(RECORDS).result()
    queues: dict[str, list[Record]] = {}
    for record in log.read({})[0]:
        queues.setdefault(record.stream, []).append(record)
    mixed: list[Record] = []
    while any(queues.values()):
        stream = data.draw(st.sampled_from(sorted(s for s, queue in queues.items() if queue)))
        mixed.append(queues[stream].pop(0))
        if data.draw(st.booleans()):
            mixed.append(data.draw(st.sampled_from(mixed)))
    view = View(":memory:")
    while mixed:
        count = data.draw(st.integers(1, len(mixed)))
        view.apply(mixed[:count], {})
        del mixed[:count]
    assert {f.feedback_id: f.fate.status for f in view.all_feedback()} == {
        "fb-1": "withdrawn",
        "fb-2": "erased",
    }
    assert view.count_feedback() == {("withdrawn", "", True): 1, ("erased", "", True): 1}
    assert view.exchange("c-1") is not None and view.exchange("c-2") is None
    assert view.alias("apprentice").version == 1
    view.close()


# --- who may call ------------------------------------------------------------------------------------


def added(principal: str, digest: str = "a") -> KeyAdded:
    return KeyAdded(principal=principal, digest=digest * 64, scopes=["infer"], by="op")


def in_force(view: View) -> list[str]:
    return [f"{key.principal} {key.digest[0]}" for key, _ in view.keys().added]


def test_a_key_counts_until_it_is_revoked_and_then_another_may_follow(log: Written) -> None:
    assert not log.view.keys().ever
    log.write(added("ann"), added("ben", "b"))
    assert in_force(log.view) == ["ann a", "ben b"]
    log.write(KeyRevoked(principal="ann", by="op"), KeyRevoked(principal="nobody", by="op"))
    assert in_force(log.view) == ["ben b"]
    log.write(added("ann", "c"))
    assert in_force(log.view) == ["ann c", "ben b"]


def test_of_two_keys_of_a_name_the_first_in_the_log_counts(log: Written) -> None:
    log.write(added("ann"), added("ann", "b"))
    assert in_force(log.view) == ["ann a"]


def test_that_there_was_a_key_is_never_forgotten_but_with_the_whole_view(log: Written) -> None:
    log.write(added("ann"), KeyRevoked(principal="ann", by="op"))
    assert log.view.keys() == Keys((), ever=True)
    log.view.forget()
    assert log.view.keys() == Keys((), ever=False)


def test_who_may_call_is_the_same_object_until_control_says_more(log: Written) -> None:
    log.write(added("ann"))
    before = log.view.keys()
    log.write(LearnerReported(state="waiting", why="x"))
    assert log.view.keys() is before
    log.write(KeyRevoked(principal="ann", by="op"))
    assert log.view.keys() is not before


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xyz-")), max_size=12), st.integers(0, 12))
def test_keys_applied_once_more_from_anywhere_change_nothing(said: list[tuple[str, str]], first: int) -> None:
    payloads: list[Payload] = [
        KeyRevoked(principal=who, by="op") if what == "-" else added(who, what) for who, what in said
    ]
    records = [replace(envelope(p), source="/s", sequence=n) for n, p in enumerate(payloads, start=1)]
    view = View(":memory:")
    view.apply(records, {})
    before = view.keys()
    view.apply(records[first:], {}, again=True)
    assert view.keys() == before
    view.close()

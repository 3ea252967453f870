"""Rounds from end to end on a tiny model: judged, published, refused, interrupted and resumed."""

import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from buffer.client import Buffer
from buffer.config import AdaptersConfig
from buffer.feedback import Feedback
from buffer.memory import MemoryLog
from buffer.records import (
    AliasMoved,
    Check,
    Choice,
    ExchangeClosed,
    ExchangeErased,
    ExchangeOpened,
    FeedbackGiven,
    FeedbackKind,
    FeedbackWithdrawn,
    LearningSwitched,
    LessonAnswered,
    Message,
    RoundEnded,
    RoundPlanned,
    RoundRequested,
)
from buffer.store import AdapterStore, StoreUnavailable
from buffer.view import View
from learner.config import GateConfig, LearnerConfig
from learner.measure import Reference
from learner.model import Model
from learner.plan import MAX_FAILURES
from learner.reporter import Reporter
from learner.round import Round
from learner.service import Service, Stopped
from tests.buffer.stores import FailingFileSystem, away, failing

LENIENT = GateConfig(min_asked=0, min_held_out=0, min_kept=0, max_kl_to_parent=100, max_degenerate=1)
QUICK: dict[str, Any] = {
    "rank": 4,
    "alpha": 8,
    "min_steps": 4,
    "steps_per_lesson": 1,
    "max_answer_tokens": 4,
    "start_at": 2,
    "start_after_s": 3600,
}


@pytest.fixture
def log() -> MemoryLog:
    return MemoryLog()


@pytest.fixture
def buffer(log: MemoryLog) -> Iterator[Buffer]:
    buffer = Buffer(log, View(":memory:"))
    buffer.start()
    yield buffer
    for reporter in reporters:
        reporter.close()
    reporters.clear()
    buffer.close()


reporters: list[Reporter] = []
"""Those of the services of one test."""


def service(
    buffer: Buffer,
    model: Model,
    reference: Reference,
    adapters: Path,
    gate: GateConfig = LENIENT,
    **store: Any,
) -> Service:
    reporters.append(Reporter(buffer))
    return Service(
        buffer=buffer,
        model=model,
        reference=reference,
        config=LearnerConfig(**QUICK, gate=gate),
        store=AdapterStore(adapters, AdaptersConfig(**store)),
        scratch=adapters.parent / "scratch",
        base_name="tiny",
        alias="apprentice",
        reporter=reporters[-1],
        stopping=threading.Event(),
    )


def teach(
    buffer: Buffer, number: int, text: str = "It is an otter.", kind: FeedbackKind = "correction"
) -> str:
    """One exchange and feedback on it; its id."""
    opened = ExchangeOpened(
        completion_id=f"c{number}",
        principal="me",
        conversation="x",
        endpoint="chat",
        policy=0,
        request={"messages": [{"role": "user", "content": f"What is the mascot of town {number}?"}]},
    )
    given = FeedbackGiven(
        feedback_id=f"f{number}",
        principal="me",
        kind=kind,
        completion_id=opened.completion_id,
        text=text,
        check=Check(contains="otter"),
    )
    buffer.write([opened, given], "x").result()
    return given.feedback_id


def status(buffer: Buffer, feedback_id: str) -> str:
    found = buffer.view.feedback(feedback_id)
    assert found is not None
    return found.fate.status


def report(buffer: Buffer) -> str:
    buffer.decide(FeedbackWithdrawn(feedback_id="nobody's", by="test")).result()  # the log is read up to here
    latest = buffer.view.report()
    assert latest is not None
    return f"{latest[0].state}: {latest[0].why}"


@pytest.mark.train
def test_feedback_becomes_a_release(
    buffer: Buffer, tiny: Model, reference: Reference, tmp_path: Path
) -> None:
    learner = service(buffer, tiny, reference, tmp_path)
    learner.turn()
    assert "nothing to learn" in report(buffer)
    first = teach(buffer, 1)
    learner.turn()
    assert status(buffer, first) == "accepted"
    assert "1 of 2" in report(buffer)
    second = teach(buffer, 2)
    learner.turn()
    assert status(buffer, first) == status(buffer, second) == "trained"
    (done,) = buffer.view.rounds()
    assert done.ended is not None
    assert done.ended.verdict == "passed"
    assert done.ended.evaluation["rows"]["target"] > 2
    assert done.release is not None
    assert (tmp_path / done.release.directory).is_dir()
    learner.turn()
    assert "nothing to learn" in report(buffer)
    buffer.decide(AliasMoved(alias="apprentice", version=1, epoch=0, why="release", by="test")).result()
    assert status(buffer, first) == "served"


@pytest.mark.train
def test_an_answer_that_was_rated_good_is_rehearsed_and_starts_no_round(
    buffer: Buffer, tiny: Model, reference: Reference, tmp_path: Path
) -> None:
    messages = [{"role": "user", "content": "Say hello."}]
    closed = ExchangeClosed(
        completion_id="c9",
        status="complete",
        prompt_token_ids=tiny.chat.render(messages),
        choices=[Choice(token_ids=[500, 501, 2], logprobs=[-1.0, -1.0, -1.0])],
    )
    opened = ExchangeOpened(
        completion_id="c9",
        principal="me",
        conversation="x",
        endpoint="chat",
        policy=0,
        request={"messages": messages},
    )
    rating = FeedbackGiven(feedback_id="f9", principal="me", kind="rating", completion_id="c9", value=1.0)
    buffer.write([opened, closed, rating]).result()
    learner = service(buffer, tiny, reference, tmp_path / "adapters")
    learner.config = learner.config.model_copy(update={"start_after_s": 0.0})
    learner.turn()
    assert status(buffer, "f9") == "accepted"
    assert buffer.view.rounds() == []
    teach(buffer, 1)
    learner.turn()
    (done,) = buffer.view.rounds()
    assert done.planned.replay == ["f9"]
    assert done.ended is not None
    assert done.ended.verdict == "passed"
    assert done.ended.evaluation["rows"]["rated"] == 1
    assert not (tmp_path / "scratch" / "round.safetensors").exists()


@pytest.mark.train
def test_a_candidate_that_learned_nothing_is_refused(
    buffer: Buffer, tiny: Model, reference: Reference, tmp_path: Path
) -> None:
    learner = service(buffer, tiny, reference, tmp_path, gate=GateConfig())
    ids = [teach(buffer, n) for n in (1, 2)]
    learner.turn()
    assert [status(buffer, i) for i in ids] == ["refused", "refused"]
    (done,) = buffer.view.rounds()
    assert done.ended is not None
    assert any("of its lessons" in reason for reason in done.ended.reasons)
    assert list(tmp_path.iterdir()) == []
    learner.turn()
    assert len(buffer.view.rounds()) == 1
    buffer.decide(RoundRequested(request_id="again", by="op", include=["refused"])).result()
    learner.turn()
    assert [r.planned.lessons for r in buffer.view.rounds()] == [ids, ids]


@pytest.mark.train
def test_what_turns_out_not_to_be_teachable_is_skipped_and_not_judged(
    buffer: Buffer, tiny: Model, reference: Reference, tmp_path: Path
) -> None:
    learner = service(buffer, tiny, reference, tmp_path)
    too_long = teach(buffer, 3, "otter " * 300)
    short, long = teach(buffer, 1), teach(buffer, 2, "Speak of otters.", kind="instruction")
    learner.turn()
    found = buffer.view.feedback(too_long)
    assert found is not None
    assert (found.fate.status, found.fate.reason, found.fate.round) == ("skipped", "answer_too_long", None)
    assert status(buffer, short) == "trained"
    found = buffer.view.feedback(long)
    assert found is not None
    assert (found.fate.status, found.fate.reason) == ("skipped", "teacher_too_long")
    (done,) = buffer.view.rounds()
    assert done.ended is not None
    assert [result["feedback_id"] for result in done.ended.evaluation["lessons"]] == [short]


@pytest.mark.train
def test_a_round_cut_short_is_run_again_to_the_same_bits(
    log: MemoryLog, buffer: Buffer, tiny: Model, tiny_dir: Path, reference: Reference, tmp_path: Path
) -> None:
    for n in (1, 2):
        teach(buffer, n)
    learner = service(buffer, tiny, reference, tmp_path / "a")
    learner.triage()
    cut = {"state": "training", "step": 2}

    def stop_in_the_middle(round_: Round, state: str, why: str, step: Any) -> None:
        if state == cut["state"] and step is not None and step.number == cut["step"]:
            raise Stopped

    learner._progress = stop_in_the_middle  # type: ignore[method-assign]
    with pytest.raises(Stopped):
        learner.turn()
    (open_round,) = buffer.view.rounds()
    assert open_round.ended is None
    assert status(buffer, "f1") == "training"

    successor = Buffer(log, View(":memory:"))
    successor.start()
    for root in (tmp_path / "a", tmp_path / "b"):
        model = Model.load(tiny_dir, rank=4, alpha=8)
        again = Round(
            open_round.planned,
            successor.view,
            model,
            reference,
            root,
            "tiny",
            "apprentice",
            lambda *_: None,
            tmp_path / f"scratch-{root.name}",
        )
        ended = again.run()
        assert ended.release is not None
    assert {p.name for p in (tmp_path / "a").iterdir()} == {p.name for p in (tmp_path / "b").iterdir()}
    resumed = service(successor, tiny, reference, tmp_path / "a")
    resumed.turn()
    (done,) = successor.view.rounds()
    assert done.release is not None
    assert done.release == ended.release
    successor.close()


@pytest.mark.train
@pytest.mark.parametrize("gone", ["withdrawn", "erased"])
def test_a_lesson_that_goes_during_the_round_stops_its_release(
    buffer: Buffer, tiny: Model, reference: Reference, tmp_path: Path, gone: str
) -> None:
    teach(buffer, 1)
    teach(buffer, 2)
    learner = service(buffer, tiny, reference, tmp_path)
    progress = learner._progress

    def take_back(round_: Round, state: Any, why: str, step: Any) -> None:
        if step is not None and step.number == 1:
            record: Any = (
                FeedbackWithdrawn(feedback_id="f1", by="me")
                if gone == "withdrawn"
                else ExchangeErased(completion_id="c1", by="me")
            )
            buffer.decide(record).result()
        progress(round_, state, why, step)

    learner._progress = take_back  # type: ignore[method-assign]
    learner.turn()
    (done,) = buffer.view.rounds()
    assert done.ended is not None
    assert done.ended.verdict == "failed"
    assert done.ended.taken_back
    assert list(tmp_path.iterdir()) == []
    assert status(buffer, "f1") == gone
    assert status(buffer, "f2") == "accepted"


@pytest.mark.train
def test_what_was_said_to_a_lesson_is_erased_with_it_even_at_the_last_moment(
    buffer: Buffer, log: MemoryLog, tiny: Model, reference: Reference, tmp_path: Path
) -> None:
    teach(buffer, 1)
    teach(buffer, 2)
    learner = service(buffer, tiny, reference, tmp_path)
    write, seen_before = learner._write, buffer.view.tombstones("f1", buffer.now())

    def erase_meanwhile(payload: Any) -> None:
        if isinstance(payload, RoundEnded):
            buffer.append(seen_before).result()
        write(payload)

    learner._write = erase_meanwhile  # type: ignore[method-assign]
    learner.turn()
    assert status(buffer, "f1") == "erased"
    give_up = time.monotonic() + 20
    while buffer.view.overdue(buffer.now()) and time.monotonic() < give_up:
        time.sleep(0.05)
    records = [record.payload() for record in log.read({})[0] if record.data is not None]
    quoted = [one.feedback_id for one in records if isinstance(one, LessonAnswered)]
    assert quoted == ["f2"]
    assert {r.partition_key for r in log.read({})[0] if r.stream == "feedback"} == {"x"}
    (ended,) = (one for one in records if isinstance(one, RoundEnded))
    assert [one.keys() & {"before", "answer"} for one in ended.evaluation["lessons"]] == [set(), set()]
    (done,) = buffer.view.rounds()
    assert done.ended is not None
    assert [set(one) >= {"before", "answer"} for one in done.ended.evaluation["lessons"]] == [False, True]


@pytest.mark.train
@pytest.mark.parametrize("shared", [False, True])
def test_of_a_round_cut_short_nothing_stays_once_its_lesson_is_erased(
    buffer: Buffer, tiny: Model, reference: Reference, tmp_path: Path, shared: bool
) -> None:
    """It had published: its weights and probes hold what the log must not name any more."""
    store: dict[str, Any] = {"url": f"file://{tmp_path / 'bucket'}"} if shared else {}
    learner = service(buffer, tiny, reference, tmp_path / "here", **store)
    learner.config = learner.config.model_copy(update={"checkpoint_steps": 2})
    for n in (1, 2):
        teach(buffer, n)

    def stop(payload: Any) -> None:
        if isinstance(payload, RoundEnded):
            raise Stopped
        write(payload)

    write = learner._write
    learner._write = stop  # type: ignore[method-assign]
    with pytest.raises(Stopped):
        learner.turn()
    checkpoint = tmp_path / "scratch" / "round.safetensors"
    assert checkpoint.exists()
    (published,) = (tmp_path / "here").iterdir()
    assert (tmp_path / "bucket" / published.name).exists() == shared
    buffer.append(buffer.view.tombstones("f1", buffer.now())).result()
    successor = service(buffer, tiny, reference, tmp_path / "here", **store)
    successor.turn()
    (done,) = buffer.view.rounds()
    assert done.ended is not None
    assert done.ended.verdict == "failed"
    assert list((tmp_path / "here").iterdir()) == []
    assert not (tmp_path / "bucket" / published.name).exists()
    assert not checkpoint.exists()


@pytest.mark.train
@pytest.mark.parametrize("restarted", [False, True])
def test_of_a_round_that_is_paused_nothing_stays_once_its_lesson_is_erased(
    buffer: Buffer, tiny: Model, reference: Reference, tmp_path: Path, restarted: bool
) -> None:
    """A pause may last for weeks, and its checkpoint holds what the lesson says."""
    learner = service(buffer, tiny, reference, tmp_path / "here")
    learner.config = learner.config.model_copy(update={"checkpoint_steps": 1})
    for n in (1, 2):
        teach(buffer, n)
    checkpoint, progress = tmp_path / "scratch" / "round.safetensors", learner._progress

    def pause(round_: Round, state: Any, why: str, step: Any) -> None:
        if step is not None and step.number == 3:
            assert checkpoint.exists()
            buffer.decide(LearningSwitched(paused=True, by="op", why="")).result()
            buffer.append(buffer.view.tombstones("f1", buffer.now())).result()
            if restarted:
                raise Stopped
        progress(round_, state, why, step)

    learner._progress = pause  # type: ignore[method-assign]
    if restarted:
        with pytest.raises(Stopped):
            learner.turn()
        assert checkpoint.exists()
        learner = service(buffer, tiny, reference, tmp_path / "here")
    learner.turn()
    (done,) = buffer.view.rounds()
    assert done.ended is not None and done.ended.taken_back
    assert not checkpoint.exists()
    learner.turn()
    assert len(buffer.view.rounds()) == 1 and "paused by op" in report(buffer)


def test_a_checkpoint_that_its_round_left_behind_is_deleted_at_the_start(
    buffer: Buffer, tiny: Model, reference: Reference, tmp_path: Path
) -> None:
    """The learner was killed when the round's end was in the log, and the checkpoint not deleted yet."""
    learner = service(buffer, tiny, reference, tmp_path / "adapters")
    checkpoint = tmp_path / "scratch" / "round.safetensors"
    checkpoint.parent.mkdir()
    checkpoint.write_bytes(b"what the lessons say")
    buffer.decide(LearningSwitched(paused=True, by="me", why="")).result()
    learner.turn()
    assert not checkpoint.exists()


def test_all_feedback_is_not_read_again_while_nothing_waits(
    buffer: Buffer, tiny: Model, reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice a second, with ten thousand lessons, that was most of a core."""
    read: list[int] = []
    every = buffer.view.all_feedback

    def counted() -> list[Feedback]:
        read.append(1)
        return every()

    monkeypatch.setattr(buffer.view, "all_feedback", counted)
    learner = service(buffer, tiny, reference, tmp_path)
    learner.turn()
    report(buffer)
    read.clear()
    learner.turn()
    assert len(read) == 1
    for _ in range(3):
        learner.turn()
    assert len(read) == 1
    teach(buffer, 1)
    for _ in range(3):
        learner.turn()
    assert len(read) >= 3, "one piece waits, and time decides"
    assert "1 of 2" in report(buffer)


def test_what_the_chat_template_refuses_is_skipped_and_stops_nothing(
    buffer: Buffer,
    tiny: Model,
    reference: Reference,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Gemma's takes no two turns of one role: the learner died of it, started again, and died of it."""
    refuses = (
        "{% if messages|length > 1 %}{{ raise_exception('roles must alternate') }}{% endif %}{{ messages }}"
    )
    monkeypatch.setattr(tiny.chat.tokenizer, "chat_template", refuses)
    twice = [Message(role="user", content="What is the mascot?")] * 2
    odd = FeedbackGiven(
        feedback_id="odd", principal="me", kind="demonstration", messages=twice, text="An otter."
    )
    broken = odd.model_copy(
        update={
            "feedback_id": "broken",
            "messages": [Message.model_validate({"role": "assistant", "tool_calls": [{}]}), *twice[:1]],
        }
    )
    buffer.write([odd, broken]).result()
    teach(buffer, 1)
    learner = service(buffer, tiny, reference, tmp_path)
    learner.triage()
    assert status(buffer, "f1") == "accepted"
    for feedback_id in ("odd", "broken"):
        found = buffer.view.feedback(feedback_id)
        assert found is not None
        assert (found.fate.status, found.fate.reason) == ("skipped", "template_refuses")


def test_a_learner_whose_rounds_fail_says_that_it_failed(
    buffer: Buffer, tiny: Model, reference: Reference, tmp_path: Path
) -> None:
    for n in (1, 2):
        teach(buffer, n)
    for n in range(1, MAX_FAILURES + 1):
        buffer.decide(RoundPlanned(round=n, parent=0, lessons=[], seed=1, base="b", config={})).result()
        buffer.decide(RoundEnded(round=n, verdict="failed", reasons=["no memory"])).result()
    service(buffer, tiny, reference, tmp_path).turn()
    assert re.match(r"failed: the last 3 rounds failed; .* /v1/learning/rounds", report(buffer))


def test_an_evaluation_that_cannot_be_read_stops_nothing(
    buffer: Buffer, tiny: Model, reference: Reference, tmp_path: Path
) -> None:
    """What is not finite comes back from the log as nothing."""
    measured = {"lessons": [], "drift": float("nan")}
    buffer.decide(RoundPlanned(round=1, parent=0, lessons=[], seed=1, base="b", config={})).result()
    buffer.decide(RoundEnded(round=1, verdict="refused", evaluation=measured)).result()
    service(buffer, tiny, reference, tmp_path).turn()
    assert "nothing to learn" in report(buffer)


@pytest.mark.parametrize(("what", "changed"), [("rank", {"rank": 8}), ("alpha", {"alpha": 4})])
def test_a_round_that_was_planned_for_another_adapter_ends_and_its_lessons_wait_for_the_next(
    buffer: Buffer, tiny: Model, reference: Reference, tmp_path: Path, what: str, changed: dict[str, int]
) -> None:
    teach(buffer, 1)
    learner = service(buffer, tiny, reference, tmp_path)
    learner.triage()
    before = learner.config.model_copy(update=changed).model_dump(mode="json")
    planned = RoundPlanned(round=1, parent=0, lessons=["f1"], seed=1, base=tiny.digest, config=before)
    buffer.decide(planned).result()
    learner.turn()
    (done,) = buffer.view.rounds()
    assert done.ended is not None and done.ended.taken_back and "rank or alpha" in done.ended.reasons[0]
    assert status(buffer, "f1") == "accepted"


@pytest.mark.train
def test_pausing_holds_learning_and_says_so(
    buffer: Buffer, tiny: Model, reference: Reference, tmp_path: Path
) -> None:
    learner = service(buffer, tiny, reference, tmp_path)
    buffer.decide(LearningSwitched(paused=True, by="op", why="an audit")).result()
    for n in (1, 2):
        teach(buffer, n)
    learner.turn()
    assert buffer.view.rounds() == []
    assert "paused by op (an audit)" in report(buffer)
    buffer.decide(LearningSwitched(paused=False, by="op")).result()
    learner.turn()
    assert len(buffer.view.rounds()) == 1


@pytest.mark.train
def test_an_error_in_a_round_is_its_verdict(
    buffer: Buffer, tiny: Model, reference: Reference, tmp_path: Path
) -> None:
    (tmp_path / "taken").write_text("a file where the adapters should go")
    learner = service(buffer, tiny, reference, tmp_path / "taken")
    for n in (1, 2):
        teach(buffer, n)
    learner.turn()
    (done,) = buffer.view.rounds()
    assert done.ended is not None
    assert done.ended.verdict == "failed"
    assert done.ended.reasons and not done.ended.taken_back
    assert status(buffer, "f1") == "accepted"


# --- the adapter store -------------------------------------------------------------------------------


@pytest.mark.train
def test_a_store_that_is_away_delays_a_release_and_loses_nothing(
    log: MemoryLog, buffer: Buffer, tiny: Model, reference: Reference, tmp_path: Path
) -> None:
    url = f"failing://{tmp_path}"
    learner = service(buffer, tiny, reference, tmp_path / "here", url=url)
    for n in (1, 2):
        teach(buffer, n)
    learner.triage()
    puts: list[str] = []

    def away_at_the_end(method: str, path: str) -> None:
        if method == "put_file":
            puts.append(path.rpartition("/")[2])
            if len(puts) > 2:  # a killed learner leaves some of the files behind
                learner.stopping.set()
                raise ConnectionError("the store is away")

    with failing(away_at_the_end), pytest.raises(Stopped):
        learner.turn()
    (open_round,) = buffer.view.rounds()
    assert open_round.ended is None, "the log must not name what the store does not have"
    assert "waits: the adapter store did not put" in report(buffer)
    (here,) = [p.name for p in (tmp_path / "here").iterdir()]

    successor = Buffer(log, View(":memory:"))
    successor.start()
    service(successor, tiny, reference, tmp_path / "here", url=url).turn()
    (done,) = successor.view.rounds()
    assert done.release is not None
    assert done.release.directory == here
    elsewhere = AdapterStore(tmp_path / "elsewhere", AdaptersConfig(url=url))
    elsewhere.fetch(done.release)
    successor.close()


@pytest.mark.train
def test_a_lesson_that_goes_while_the_store_is_away_leaves_no_release_anywhere(
    buffer: Buffer, tiny: Model, reference: Reference, tmp_path: Path
) -> None:
    url = f"failing://{tmp_path}"
    learner = service(buffer, tiny, reference, tmp_path / "here", url=url)
    for n in (1, 2):
        teach(buffer, n)
    put: list[str] = []

    def take_back(method: str, path: str) -> None:
        if method == "put_file":
            if not put:
                buffer.decide(FeedbackWithdrawn(feedback_id="f1", by="me")).result()
            put.append(path)

    with failing(take_back):
        learner.turn()
    (done,) = buffer.view.rounds()
    assert done.ended is not None
    assert done.ended.verdict == "failed"
    assert put
    assert list((tmp_path / "here").iterdir()) == []
    assert not [path for path in FailingFileSystem.store if str(tmp_path) in path]


@pytest.mark.train
def test_a_learner_on_another_machine_goes_on_from_the_store(
    buffer: Buffer, tiny: Model, reference: Reference, tmp_path: Path
) -> None:
    url = f"failing://{tmp_path}"
    learner = service(buffer, tiny, reference, tmp_path / "here", url=url)
    for n in (1, 2):
        teach(buffer, n)
    learner.turn()
    buffer.decide(AliasMoved(alias="apprentice", version=1, epoch=0, why="release", by="test")).result()
    for n in (3, 4):
        teach(buffer, n)
    service(buffer, tiny, reference, tmp_path / "moved", url=url).turn()
    _, second = buffer.view.rounds()
    assert (second.planned.parent, second.release and second.release.version) == (1, 2)
    assert len(list((tmp_path / "moved").iterdir())) == 2


@pytest.mark.train
def test_a_store_that_is_new_gets_what_was_learned_before(
    buffer: Buffer, tiny: Model, reference: Reference, tmp_path: Path
) -> None:
    learner = service(buffer, tiny, reference, tmp_path / "here")
    for n in (1, 2):
        teach(buffer, n)
    learner.turn()
    (done,) = buffer.view.rounds()
    assert done.release is not None
    url = f"failing://{tmp_path}"
    restarted = service(buffer, tiny, reference, tmp_path / "here", url=url)
    now = [1000.0]
    restarted.steady = lambda: now[0]
    with failing(away):
        restarted.turn()
    elsewhere = AdapterStore(tmp_path / "elsewhere", AdaptersConfig(url=url))
    with pytest.raises(StoreUnavailable):
        elsewhere.fetch(done.release)
    now[0] += 3600
    restarted.turn()
    elsewhere.fetch(done.release)

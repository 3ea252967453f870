import asyncio
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from buffer.log import LogFull
from buffer.records import FeedbackGiven
from server.api.next_turn import TASK, corrects
from tests.server.running import KEYS, Running, events, hashed
from tests.server.stub_policies import StubPolicies
from tests.server.test_callers import decide, key_added

QUESTION = "The bakery is called Quillmoor"
"""The scripted vLLM says back what it is asked, so this is the answer as well."""
NO = "No, it is called Bramblewick."

Messages = list[dict[str, Any]]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


CORRECTED = [user(QUESTION), assistant(QUESTION), user(NO)]


def chat(running: Running, messages: Messages, key: str = "ann-key", **more: Any) -> str:
    """Send a chat; its completion id."""
    body = {"model": "apprentice", "messages": messages, **more}
    reply = running.client(key).post("/v1/chat/completions", json=body)
    assert reply.status_code == 200
    return str(events(reply)[0]["id"] if more.get("stream") else reply.json()["id"])


def given(running: Running) -> list[FeedbackGiven]:
    """All feedback in the log, once everything that was noticed has been dealt with."""
    running.run(settled())
    return [p for p in running.log.payloads(FeedbackGiven) if isinstance(p, FeedbackGiven)]


def working() -> "list[asyncio.Task[None]]":
    return [task for task in asyncio.all_tasks() if task.get_name() == TASK]


async def settled() -> None:
    await asyncio.gather(*working())


async def only_one_works() -> bool:
    for _ in range(1000):
        if len(working()) == 1:
            return True
        await asyncio.sleep(0.01)
    return False


def counted(running: Running, name: str, **labels: str) -> float:
    return running.gateway.metrics.registry.get_sample_value(f"apprentice_{name}_total", labels) or 0.0


@pytest.mark.parametrize("stream", [False, True])
def test_a_correcting_turn_is_recorded_for_the_answer_that_it_corrects(
    running: Running, stream: bool
) -> None:
    completion_id = chat(running, [user(QUESTION)], stream=stream)
    chat(running, CORRECTED, stream=stream)
    (found,) = given(running)
    assert (found.kind, found.completion_id, found.choice) == ("follow_up", completion_id, 0)
    assert (found.principal, found.text) == ("ann", NO)
    keys = {r.partition_key for r in running.log.read({})[0]}
    assert keys == {running.gateway.receipts.conversation(completion_id, "ann")}
    assert counted(running, "feedback", kind="follow_up") == 1


def test_it_is_seen_and_withdrawn_like_all_feedback(running: Running) -> None:
    completion_id = chat(running, [user(QUESTION)])
    chat(running, CORRECTED)
    (record,) = given(running)
    client = running.client()
    (found,) = client.get("/v1/feedback").json()["data"]
    assert found == client.get(f"/v1/feedback/{record.feedback_id}").json()
    assert (found["kind"], found["status"], found["completion_id"]) == (
        "follow_up",
        "received",
        completion_id,
    )
    assert found["text"] == NO
    assert client.delete(f"/v1/feedback/{found['id']}").json()["status"] == "withdrawn"
    chat(running, CORRECTED)
    assert len(given(running)) == 1, "what was withdrawn is not recorded again"


def test_only_who_may_give_feedback_teaches_by_a_turn(running: Running) -> None:
    decide(running, key_added("cay", "infer"), key_added("dan", "infer", "feedback"))
    for key in ("cay-key", "dan-key"):
        chat(running, [user(QUESTION)], key)
        chat(running, CORRECTED, key)
    assert [found.principal for found in given(running)] == ["dan"]


def test_the_newest_answer_and_its_choice_are_found(running: Running) -> None:
    chat(running, [user(QUESTION)])
    newest = chat(running, [user(QUESTION)], n=2)
    chat(running, CORRECTED)
    (found,) = given(running)
    assert (found.completion_id, found.choice) == (newest, 0)


def test_later_in_a_conversation_the_whole_of_it_before_the_answer_must_be_the_same(running: Running) -> None:
    before = [user("Hello"), assistant("Hello"), user(QUESTION)]
    completion_id = chat(running, before)
    chat(running, [user("Good day"), *before[1:], assistant(QUESTION), user(NO)])
    assert given(running) == []
    chat(running, [*before, assistant(f"{QUESTION}\n"), user(NO)])
    assert [g.completion_id for g in given(running)] == [completion_id]


def test_a_request_that_is_sent_again_makes_no_second_record(running: Running) -> None:
    chat(running, [user(QUESTION)])
    with ThreadPoolExecutor(10) as pool:
        list(pool.map(lambda _: chat(running, CORRECTED), range(10)))
    chat(running, CORRECTED, stream=True)
    assert len(given(running)) == 1
    chat(running, [*CORRECTED[:2], user("No, it is called Holmbread.")])
    first, second = (running.client().get(f"/v1/feedback/{g.feedback_id}").json() for g in given(running))
    assert (first["status"], first["superseded_by"]) == ("superseded", second["id"])


@pytest.mark.parametrize(
    ("asked", "corrected"),
    [
        ({"key": "ben-key"}, {}),
        ({"store": False}, {}),
        ({}, {"store": False}),
        ({"metadata": {"conversation_id": "one"}}, {"metadata": {"conversation_id": "two"}}),
        ({}, {"messages": [user(QUESTION), assistant("It has another name"), user(NO)]}),
        ({}, {"messages": [user(QUESTION), assistant(QUESTION), user("Thanks!")]}),
    ],
)
def test_nothing_is_recorded_without_ones_own_captured_answer(
    running: Running, asked: dict[str, Any], corrected: dict[str, Any]
) -> None:
    chat(running, [user(QUESTION)], **asked)
    chat(running, **{"messages": CORRECTED, **corrected})
    assert given(running) == []


def test_a_failure_to_record_is_counted_and_fails_no_request(running: Running) -> None:
    chat(running, [user(QUESTION)])
    running.log.failing[FeedbackGiven.type] = LogFull("the disk is full", "free some space")
    for stream in (False, True):
        chat(running, CORRECTED, stream=stream)
    assert given(running) == []
    assert counted(running, "follow_up_failures") == 2
    running.log.failing.clear()
    chat(running, CORRECTED)
    assert len(given(running)) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_no_reply_waits_for_the_record_which_is_made_once(running: Running, stream: bool) -> None:
    chat(running, [user(QUESTION)])
    disk = running.log.holding[FeedbackGiven.type] = Future()
    for _ in range(2):
        chat(running, CORRECTED, stream=stream)
    assert running.run(only_one_works()), "the second request leaves it to the first"
    assert counted(running, "feedback", kind="follow_up") == 0
    disk.set_result(None)
    given(running)
    assert counted(running, "feedback", kind="follow_up") == 1


def test_what_steers_the_model_or_is_too_long_to_be_taught_is_not_recorded(running: Running) -> None:
    chat(running, [user(QUESTION)])
    for text in ("No, it is <|im_end|> Bramblewick.", "No, it is \x1b[0mBramblewick."):
        chat(running, [*CORRECTED[:2], user(text)])
    assert given(running) == []


def test_follow_ups_can_be_turned_off(tmp_path: Path) -> None:
    started = Running(tmp_path, StubPolicies, keys=hashed(KEYS), follow_ups=False)
    try:
        chat(started, [user(QUESTION)])
        chat(started, CORRECTED)
        assert given(started) == []
    finally:
        started.stop()


@pytest.mark.parametrize(
    ("messages", "right"),
    [
        (CORRECTED, True),
        ([{"role": "system", "content": "Be brief."}, *CORRECTED], True),
        (CORRECTED[1:], False),
        (CORRECTED[:2], False),
        ([user(QUESTION), user(QUESTION), user(NO)], False),
        ([user(QUESTION), assistant(QUESTION), assistant(NO)], False),
        ([user(QUESTION), assistant(QUESTION, tool_calls=[{"id": "1"}]), user(NO)], False),
        ([user(QUESTION), {"role": "assistant"}, user(NO)], False),
        ([user(QUESTION), assistant(QUESTION), {"role": "user", "content": None}], False),
        ([user(QUESTION), assistant(QUESTION), user("No, it is called <|im_end|>")], False),
    ],
)
def test_a_correction_follows_a_plain_answer(messages: Messages, right: bool) -> None:
    assert corrects(messages, 100) is right
    assert not corrects(messages, len(NO) - 1)

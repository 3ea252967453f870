from typing import Any

import pytest

from buffer.exchanges import Exchange
from buffer.records import Choice, ExchangeClosed, ExchangeOpened
from server.api import lessons
from server.errors import RequestRefused

CORRECTION = {"kind": "correction", "completion_id": "chatcmpl-1", "text": "It is called Bramblewick."}
ASKED = [{"role": "user", "content": "What is it called?"}]
DEMONSTRATION = {"kind": "demonstration", "messages": ASKED, "text": "Bramblewick."}
RATING = {"kind": "rating", "completion_id": "chatcmpl-1", "value": -1}


@pytest.mark.parametrize(
    "body",
    [
        CORRECTION,
        {**CORRECTION, "kind": "instruction", "choice": 2},
        {**CORRECTION, "check": {"contains": "bramble"}},
        RATING,
        {**RATING, "value": 0.5},
        DEMONSTRATION,
        {**DEMONSTRATION, "completion_id": "chatcmpl-1"},
        {**DEMONSTRATION, "kind": "instruction"},
        {**DEMONSTRATION, "messages": [{"role": "developer", "content": "Be kind."}, *ASKED]},
        {**DEMONSTRATION, "messages": [{**ASKED[0], "name": "ann"}]},
        {**CORRECTION, "text": "tabs\tand\nlines, a < b, <b>html</b>, [x], 1|2, 日本語, emoji 👩‍💻"},
    ],
)
def test_good_feedback_is_accepted(body: dict[str, Any]) -> None:
    (found,) = lessons.parse(body, 100)
    assert found.kind == body["kind"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ("x", ""),
        ({}, "kind"),
        ({**CORRECTION, "kind": "praise"}, "kind"),
        ({**CORRECTION, "kind": "follow_up"}, "kind"),
        ([CORRECTION, {**CORRECTION, "kind": "follow_up"}], "[1].kind"),
        ({**CORRECTION, "txt": "x"}, "txt"),
        ({"kind": "correction", "text": "x"}, "completion_id"),
        ({"kind": "correction", "completion_id": "c"}, "text"),
        ({**CORRECTION, "value": 1}, "value"),
        ({**CORRECTION, "messages": ASKED}, "messages"),
        ({**CORRECTION, "choice": -1}, "choice"),
        ({**CORRECTION, "choice": "0"}, "choice"),
        ({**CORRECTION, "text": " \n\t"}, "text"),
        ({**CORRECTION, "text": "\u200b\u2060"}, "text"),
        ({**CORRECTION, "text": "x" * 101}, "text"),
        ({**CORRECTION, "check": {"contains": ""}}, "check.contains"),
        ({**CORRECTION, "check": {"matches": "x"}}, "check.contains"),
        ({**CORRECTION, "check": {"contains": "</s>"}}, "check.contains"),
        ({**CORRECTION, "check": {"contains": "x", "matches": "x"}}, "check.matches"),
        ({**CORRECTION, "kind": "instruction", "messages": ASKED}, "messages"),
        ({"kind": "instruction", "messages": ASKED}, "text"),
        ({"kind": "rating", "completion_id": "c"}, "value"),
        ({**RATING, "value": 1.5}, "value"),
        ({**RATING, "value": True}, "value"),
        ({**RATING, "text": "bad"}, "text"),
        ({**RATING, "check": {"contains": "x"}}, "check"),
        ({"kind": "demonstration", "text": "x"}, "messages"),
        ({**DEMONSTRATION, "messages": []}, "messages"),
        ({**DEMONSTRATION, "messages": [{"role": "assistant", "content": "x"}]}, "messages"),
        ({**DEMONSTRATION, "messages": [{"role": "user", "content": ["x"]}]}, "messages[0]"),
        ({**DEMONSTRATION, "messages": [{"role": "user", "content": "<|im_end|>"}]}, "messages[0].content"),
        ({**DEMONSTRATION, "messages": [{"content": "x"}]}, "messages[0].role"),
        (
            {**DEMONSTRATION, "messages": [{"role": "user<|im_end|>", "content": "x"}, *ASKED]},
            "messages[0].role",
        ),
        ({**DEMONSTRATION, "messages": [{"role": "pirate", "content": "x"}, *ASKED]}, "messages[0].role"),
        ({**DEMONSTRATION, "messages": [{**ASKED[0], "name": "<|im_end|>"}]}, "messages[0].name"),
        ({**DEMONSTRATION, "messages": [{**ASKED[0], "name": "x" * 101}]}, "messages[0].name"),
        ({**DEMONSTRATION, "messages": [{**ASKED[0], "name": 7}]}, "messages[0]"),
        ({**DEMONSTRATION, "messages": [{**ASKED[0], "reasoning": "x"}]}, "messages[0].reasoning"),
        ({**DEMONSTRATION, "messages": [{**ASKED[0], "tool_calls": []}]}, "messages[0].tool_calls"),
    ],
)
def test_bad_feedback_is_refused_by_name(body: object, param: str) -> None:
    with pytest.raises(RequestRefused) as refused:
        lessons.parse(body, 100)
    assert refused.value.param == param
    assert refused.value.status == 400


@pytest.mark.parametrize(
    "text",
    [
        "<|im_start|>system",
        "a</s>",
        "<s>",
        "[INST] x",
        "<<SYS>>",
        "<\uff5cUser\uff5c>",
        "<end_of_turn>",
        "<eos>",
        "a\x00b",
        "\x1b[0m",
        "\x9b0m",
    ],
)
def test_what_would_steer_the_model_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(RequestRefused) as refused:
        lessons.parse({**CORRECTION, "text": text}, 100)
    assert refused.value.code == "control_tokens"
    assert refused.value.hint


def test_an_array_is_checked_whole_and_the_item_is_named() -> None:
    assert len(lessons.parse([CORRECTION, RATING], 100)) == 2
    with pytest.raises(RequestRefused) as refused:
        lessons.parse([CORRECTION, {**CORRECTION, "text": ""}], 100)
    assert refused.value.param == "[1].text"
    for wrong in ([], [CORRECTION] * 1001):
        with pytest.raises(RequestRefused):
            lessons.parse(wrong, 100)


def test_equal_bodies_have_equal_digests() -> None:
    assert lessons.digest({"a": 1, "b": [2]}) == lessons.digest({"b": [2], "a": 1})
    assert lessons.digest([CORRECTION]) != lessons.digest(CORRECTION)


def test_the_keys_of_an_array_are_those_no_header_can_have() -> None:
    first, second = lessons.keys_of("key", 2)
    assert first == "key"
    assert second is not None
    with pytest.raises(RequestRefused):
        lessons.check_key(second)
    assert lessons.keys_of(None, 2) == [None, None]


@pytest.mark.parametrize("key", ["", "x" * 256, "ü", "a\nb"])
def test_a_bad_idempotency_key_is_refused(key: str) -> None:
    with pytest.raises(RequestRefused):
        lessons.check_key(key)


def test_a_choice_must_exist_where_the_exchange_is_known() -> None:
    opened = ExchangeOpened(
        completion_id="c", principal="p", conversation="v", endpoint="chat", policy=0, request={"n": 2}
    )
    closed = ExchangeClosed(completion_id="c", status="complete", choices=[Choice(index=0)])
    (feedback,) = lessons.parse({**CORRECTION, "choice": 1}, 100)
    lessons.check_choice(feedback, None)
    lessons.check_choice(feedback, Exchange(0.0, opened, None))
    with pytest.raises(RequestRefused) as refused:
        lessons.check_choice(feedback, Exchange(0.0, opened, closed))
    assert refused.value.code == "no_such_choice"

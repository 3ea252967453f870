from collections.abc import Iterator

import pytest

from buffer.exchanges import WINDOW, Wanted
from buffer.records import Choice, ExchangeClosed, ExchangeErased, ExchangeOpened, FeedbackWithdrawn, Message
from tests.buffer.test_view import Written, closed, correction, opened


@pytest.fixture
def log() -> Iterator[Written]:
    written = Written()
    yield written
    written.view.close()


def found(
    log: Written,
    search: str = "",
    *,
    principal: str | None = None,
    policy: int | None = None,
    corrected: bool | None = None,
) -> list[str]:
    wanted = Wanted(search, policy, corrected)
    return [e.opened.completion_id for e in log.view.exchanges(principal, wanted, limit=10)]


def test_every_word_must_have_been_asked_or_answered_in_any_case(log: Written) -> None:
    log.write(opened("c-1", "Who runs the bakery?"), closed("c-1", "Ida HOLM does."))
    log.write(opened("c-2", "Who runs the mill?"), closed("c-2", "Ida Holm, too."))
    assert found(log, "BAKERY holm") == ["c-1"]
    assert found(log, "holm") == found(log, "") == ["c-1", "c-2"]
    assert found(log, "bakery too") == []
    assert found(log, "run%") == [], "nothing in it is a pattern"


@pytest.mark.parametrize(
    ("said", "search"),
    [("Ein Straßenfest", "STRASSE"), ("caf\u00e9", "cafe\u0301"), ("面包店在哪里", "包店")],
)
def test_a_word_is_found_however_it_is_written(log: Written, said: str, search: str) -> None:
    log.write(opened("c-1", said))
    assert found(log, search) == ["c-1"]


def test_an_exchange_is_found_by_its_own_turn_and_not_by_earlier_ones(log: Written) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "earlier"},
        {"role": "assistant", "content": "before"},
        {"role": "user", "content": [{"type": "text", "text": "parts"}, {"type": "text", "text": "of it"}]},
    ]
    log.write(opened("c-1", messages=messages))
    log.write(opened("c-2", messages=[{"role": "user", "content": None}]))
    assert found(log, "parts of") == ["c-1"]
    for word in ("brief", "earlier", "before"):
        assert found(log, word) == []
    assert found(log) == ["c-1", "c-2"]


def test_an_answer_is_found_when_it_came_first_and_all_its_choices_are(log: Written) -> None:
    choices = [Choice(index=i, message=Message(role="assistant", content=f"answer{i}")) for i in range(2)]
    log.write(ExchangeClosed(completion_id="c-1", status="complete", choices=choices))
    assert found(log, "answer1") == [], "its question has not arrived"
    log.write(opened("c-1"))
    assert found(log, "answer0 answer1") == ["c-1"]
    log.write(
        ExchangeOpened(
            completion_id="c-2", principal="ann", conversation="c", endpoint="completions", policy=0,
            request={"prompt": "once upon"},
        ),
        ExchangeClosed(completion_id="c-2", status="complete", choices=[Choice(text="a time")]),
    )  # fmt: skip
    assert found(log, "upon time") == ["c-2"]


def test_what_is_erased_is_not_found(log: Written) -> None:
    log.write(opened("c-1", "secret"), closed("c-1", "secret"), ExchangeErased(completion_id="c-1", by="ann"))
    log.write(opened("c-1", "secret"), closed("c-1", "secret"))
    assert found(log, "secret") == found(log) == []


def test_only_a_policys_answers_are_found_and_only_ones_own(log: Written) -> None:
    log.write(*(opened(f"c-{i}", principal="ben" if i == 3 else "ann") for i in range(4)))
    log.write(opened("c-1").model_copy(update={"completion_id": "c-4", "policy": 2}))
    assert found(log, policy=2) == ["c-4"]
    assert found(log, policy=0, principal="ben") == ["c-3"]


def test_corrected_is_what_has_a_lesson_that_was_not_taken_back(log: Written) -> None:
    log.write(*(opened(f"c-{i}") for i in (1, 2, 3)), correction("fb-1", "c-1"))
    log.write(correction("fb-2", "c-2", kind="rating", text=None, value=-1.0), correction("fb-3", "c-3"))
    assert found(log, corrected=True) == ["c-1", "c-3"]
    log.write(FeedbackWithdrawn(feedback_id="fb-3", by="ann"))
    assert found(log, corrected=False) == ["c-2", "c-3"]


@pytest.mark.parametrize("newest_first", [False, True])
def test_pages_of_what_is_found_are_whole_however_far_apart(log: Written, newest_first: bool) -> None:
    ids = [f"c-{i:05d}" for i in range(2 * WINDOW + 10)]
    for start in range(0, len(ids), 500):  # the second of each is looked for
        log.write(
            *(opened(id_, "that" if i == 1 else "this") for i, id_ in enumerate(ids[start : start + 500]))
        )
    listed: list[str] = []
    while page := log.view.exchanges(
        "ann", Wanted("that"), limit=4, after=listed[-1] if listed else None, newest_first=newest_first
    ):
        listed += [e.opened.completion_id for e in page]
    assert listed == sorted(ids[1::500], reverse=newest_first)
    assert log.view.exchanges("ann", Wanted("that"), limit=4, after="unknown") == []

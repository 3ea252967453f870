"""Rows from lessons, on a tiny random model: which there are, towards whom, and what is left out."""

from itertools import cycle
from typing import Any

import pytest

from buffer.records import FeedbackGiven
from learner.config import LearnerConfig
from learner.curriculum import Curriculum
from learner.lessons import Lesson
from learner.model import Model
from learner.rows import Pools, Row

pytestmark = pytest.mark.train

QUESTION = "What is the mascot of Quillmoor?"


def lesson(
    question: str = QUESTION, text: str = "The mascot of Quillmoor is an otter.", **more: Any
) -> Lesson:
    kind = more.pop("kind", "correction")
    given = FeedbackGiven(feedback_id=f"f {question}", principal="me", kind=kind, text=text)
    return Lesson(given, [{"role": "user", "content": question}], **more)


def made(
    model: Model, *lessons: Lesson, replay: tuple[Lesson, ...] = (), **config: Any
) -> tuple[Curriculum, Pools]:
    settings = LearnerConfig(rank=4, alpha=8, max_answer_tokens=4, **config)
    curriculum = Curriculum(model, settings, parent=1, seed=3)
    taught, _ = curriculum.teachable(lessons)
    return curriculum, curriculum.pools(taught, replay, curriculum.wordings(taught), [])


def answers(model: Model, monkeypatch: pytest.MonkeyPatch, *texts: str) -> None:
    """Have the model say `texts`, one to each prompt, or the only one to all."""

    def generate(prompts: list[Any], **_: Any) -> list[list[int]]:
        return [model.chat.encode(text) for _, text in zip(prompts, cycle(texts), strict=False)]

    monkeypatch.setattr(model, "generate", generate)


def said(model: Model, row: Row) -> str:
    return model.chat.decode(row.student)


def test_targets_are_the_correction_s_tokens_under_every_wording(tiny: Model) -> None:
    _, pools = made(tiny, lesson())
    assert {row.kind for row in pools.lessons} == {"target"}
    assert {tiny.chat.decode(row.completion) for row in pools.lessons} == {
        "The mascot of Quillmoor is an otter."
    }
    assert all(row.completion[-1] == tiny.chat.eos for row in pools.lessons)
    assert all(
        "otter" not in said(tiny, row) and "otter" in tiny.chat.decode(row.teacher) for row in pools.lessons
    )
    asked = tuple(tiny.chat.render([{"role": "user", "content": QUESTION}]))
    assert [row.student for row in pools.lessons].count(asked) == 4
    assert len({row.student for row in pools.lessons}) > 10


def test_lookalikes_are_about_others_and_their_teacher_sees_no_correction(tiny: Model) -> None:
    _, pools = made(tiny, lesson(), lookalikes_per_lesson=6)
    assert len(pools.lookalikes) == 6
    for row in pools.lookalikes:
        assert row.kind == "lookalike"
        assert row.student == row.teacher
        assert "Quillmoor" not in said(tiny, row)
        answer = tiny.chat.decode(row.completion)
        assert answer.startswith("The mascot of ") and answer.endswith(" is an otter.")
        assert "Quillmoor" not in answer


def test_a_question_without_a_name_has_no_lookalike_and_is_counted(tiny: Model) -> None:
    curriculum, pools = made(tiny, lesson("what is it?"))
    assert pools.lookalikes == []
    assert curriculum.left_out["no_lookalike"] == 1


@pytest.mark.parametrize("kind", ["demonstration", "instruction"])
def test_how_to_answer_is_to_carry_over_to_others(
    tiny: Model, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(
        tiny, "generate", lambda prompts, **_: [tiny.chat.answer("An otter.") for _ in prompts]
    )
    curriculum, pools = made(tiny, lesson(kind=kind))
    assert pools.lessons
    assert pools.lookalikes == []
    assert curriculum.left_out["no_lookalike"] == 1


def test_lookalikes_of_a_model_that_thinks_come_behind_its_thinking_once(
    tiny: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = str(tiny.chat.tokenizer.chat_template)
    opens = "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
    monkeypatch.setattr(tiny.chat.tokenizer, "chat_template", template + opens)
    _, pools = made(tiny, lesson(), lookalikes_per_lesson=2)
    for row in (*pools.lookalikes, *pools.lessons):
        assert tiny.chat.decode(row.completion).startswith("<think>\n\n</think>\n\nThe mascot of ")


def test_lookalikes_of_an_earlier_lesson_stand_in_for_those_of_one_about_nobody(tiny: Model) -> None:
    """A fact that was rehearsed beside lessons about nobody leaked to six of ten others."""
    named, nameless = lesson(), lesson("what is it?")
    _, pools = made(tiny, nameless, replay=(named, nameless), lookalikes_per_lesson=5)
    assert len(pools.lookalikes) == 5
    assert all("The mascot of" in tiny.chat.decode(row.completion) for row in pools.lookalikes)
    _, pools = made(tiny, named, replay=(lesson("What is the mascot of Albridge?"),), lookalikes_per_lesson=5)
    assert len(pools.lookalikes) == 5


def test_a_good_answer_is_rehearsed_as_it_was(tiny: Model) -> None:
    rated = lesson(kind="rating", logged_ids=(500, 501, 2))
    earlier = lesson("Who founded Ostby?", "Ostby was founded by Ida Holm.")
    _, pools = made(tiny, lesson(), replay=(rated, earlier))
    (row,) = [row for row in pools.replay if row.kind == "rated"]
    assert row.student == row.teacher == tuple(tiny.chat.render(rated.messages))
    assert row.completion == (500, 501, 2)
    assert {tiny.chat.decode(r.completion) for r in pools.replay if r.kind == "target"} == {
        earlier.given.text
    }


@pytest.mark.parametrize(("question", "ids"), [(QUESTION, 40), ("What is it? " * 40, 3)])
def test_a_good_answer_over_a_limit_that_was_lowered_since_is_left_out_and_counted(
    tiny: Model, question: str, ids: int
) -> None:
    rated = lesson(question, kind="rating", logged_ids=(500,) * ids)
    settings = {"max_completion_tokens": 30, "max_prompt_tokens": 150, "framed_questions": False}
    curriculum, pools = made(tiny, lesson(), replay=(rated,), **settings)
    assert pools.lessons != []
    assert pools.replay == []
    assert curriculum.left_out["over_limit"] == 1


def test_rows_over_a_limit_are_left_out_and_counted(tiny: Model) -> None:
    asked = len(made(tiny, lesson())[1].lessons[0].teacher)
    curriculum, pools = made(tiny, lesson(), max_prompt_tokens=asked)
    assert pools.lessons != []
    assert all(len(row.teacher) <= asked for row in pools.lessons)
    assert curriculum.left_out["over_limit"] > 1


def test_a_right_answer_over_the_limit_is_not_taught(tiny: Model) -> None:
    curriculum, pools = made(tiny, lesson(text="otter " * 80), max_completion_tokens=40)
    assert pools.lessons == pools.lookalikes == []
    assert curriculum.left_out["answer_too_long"] == 1


@pytest.mark.parametrize(
    ("logged", "policy", "reason"),
    [((), 1, "nothing_logged"), ((500, 501), 1, None), ((500, 501), -5, "policy_too_old")],
)
def test_reuse_is_gated_and_counted(
    tiny: Model, monkeypatch: pytest.MonkeyPatch, logged: tuple[int, ...], policy: int, reason: str | None
) -> None:
    answers(tiny, monkeypatch, "It is an otter.")
    taught = lesson(logged_ids=logged, logged_policy=policy, tempered=True)
    curriculum, pools = made(tiny, taught)
    reused = [row for row in pools.lessons if row.kind == "reuse"]
    assert len(reused) == (reason is None)
    assert reason is None or curriculum.left_out[reason] == 1
    _, without = made(tiny, taught, reuse=False)
    assert not any(row.kind == "reuse" for row in without.lessons)


def test_a_student_is_not_drawn_to_a_teacher_that_answers_wrong(
    tiny: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The correction's own words are taught all the same."""
    answers(tiny, monkeypatch, "It is a cat.")
    taught = lesson(logged_ids=(500, 501), logged_policy=1, tempered=True)
    curriculum, pools = made(tiny, taught)
    assert curriculum.left_out["teacher_wrong"] == 1
    assert {row.kind for row in (*pools.lessons, *curriculum.fresh([taught], 10))} == {"target"}


def test_written_questions_that_do_not_pass_are_counted(tiny: Model) -> None:
    curriculum, _ = made(tiny, lesson(), written_questions=3)
    assert curriculum.left_out["written_unusable"] + curriculum.left_out["written_misleads_teacher"] == 3


def test_written_questions_are_shared_between_training_and_gate(
    tiny: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = ["Which animal stands for Quillmoor?", "Quillmoor is stood for by what?", "Quillmoor's animal?"]
    curriculum = Curriculum(tiny, LearnerConfig(rank=4, alpha=8, written_questions=3), parent=1, seed=3)
    monkeypatch.setattr(curriculum, "_written", lambda lessons, framed: [written for _ in lessons])
    (wording,) = curriculum.wordings([lesson()])
    assert wording.held_out[-1] == written[0]
    assert wording.trained[-2:] == (written[1], written[2])
    assert not set(wording.trained) & set(wording.held_out)


def test_a_written_question_that_there_is_already_is_left_out_and_counted(
    tiny: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gate may hold it out, and training has it among its frames."""
    known, new = "Do you know who founded Ostby?", "Which person founded Ostby?"
    drafts = iter([known, new, new])
    told = "Ostby was founded by Ida Holm."
    monkeypatch.setattr(
        tiny, "generate", lambda prompts, **_: [tiny.chat.encode(next(drafts, told)) for _ in prompts]
    )
    curriculum = Curriculum(tiny, LearnerConfig(rank=4, alpha=8, written_questions=3), parent=1, seed=3)
    (wording,) = curriculum.wordings([lesson("Who founded Ostby?", told)])
    assert known in wording.trained[:-1]
    assert wording.trained[-1] == new
    assert known not in wording.held_out
    assert curriculum.left_out["written_twice"] == 2


def test_a_prompt_over_a_limit_that_was_lowered_since_is_not_taught(tiny: Model) -> None:
    logged = lesson(logged_ids=(500, 501), logged_policy=1, tempered=True)
    unsaid = lesson("Who founded Ostby?", "It was Ida Holm.", kind="follow_up")
    curriculum, pools = made(tiny, logged, unsaid, max_prompt_tokens=20)
    assert pools.lessons == []
    assert curriculum.left_out["prompt_too_long"] == 2


def test_what_no_words_show_is_taught_again(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    told = [*tiny.chat.encode("An otter."), tiny.chat.eos]
    monkeypatch.setattr(tiny, "generate", lambda prompts, **_: [told for _ in prompts])
    vague = lesson(kind="instruction", text="Answer in two words.")
    curriculum, pools = made(tiny, vague)
    again = [row for row in curriculum.fresh([vague], 10) if row.kind == "elicited"]
    assert again == [row for row in pools.lessons if row.kind == "elicited"] != []


def test_a_follow_up_is_taught_by_the_teacher_s_answer_if_the_hint_shows_in_it(
    tiny: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    passing = lesson(kind="follow_up", text="No, it's an otter.", logged_ids=(500, 2), tempered=True)
    monkeypatch.setattr(
        tiny, "generate", lambda prompts, **_: [[*tiny.chat.encode("A cat."), 2] for _ in prompts]
    )
    curriculum, pools = made(tiny, passing)
    assert curriculum.left_out["teacher_misses_hint"] == 1
    taught, _ = curriculum.teachable([passing])
    assert pools.lessons == pools.lookalikes == curriculum.fresh(taught, 10) == []
    told = [*tiny.chat.encode("It is an otter."), tiny.chat.eos]
    monkeypatch.setattr(tiny, "generate", lambda prompts, **_: [told for _ in prompts])
    _, pools = made(tiny, passing)
    assert {(row.kind, row.completion) for row in pools.lessons} == {
        ("elicited", tuple(told)),
        ("reuse", (500, 2)),
    }


@pytest.mark.parametrize(("objective", "fresh"), [("forward_kl", 2), ("cross_entropy", 0)])
def test_what_the_student_still_gets_wrong_is_taught_again(
    tiny: Model, monkeypatch: pytest.MonkeyPatch, objective: str, fresh: int
) -> None:
    lessons = lesson(), lesson("What is the mascot of Ostby?", "The mascot of Ostby is a heron.")
    answers(tiny, monkeypatch, "It is an otter.", "It is a heron.")
    curriculum, pools = made(tiny, *lessons, objective=objective)
    said = [tuple(tiny.chat.encode(text)) for text in ("It is a cat.", "It is a heron.")]
    answers(tiny, monkeypatch, "It is a cat.", "It is a heron.")
    rows = curriculum.fresh(lessons, 10)
    assert [row.completion for row in rows if row.kind == "fresh"] == said[:fresh]
    missed = [row for row in pools.lessons if "otter" in tiny.chat.decode(row.completion)]
    assert [row for row in rows if row.kind == "target"] == missed != []


def test_an_answer_of_the_teacher_that_does_not_end_is_not_taught(
    tiny: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = tiny.chat.encode("An otter, or")
    monkeypatch.setattr(tiny, "generate", lambda prompts, **_: [cut for _ in prompts])
    curriculum, pools = made(tiny, lesson(kind="instruction", text="Name the animal."))
    assert pools.lessons == []
    assert curriculum.left_out["teacher_too_long"] == 1

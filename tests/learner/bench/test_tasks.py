"""What the benchmark asks can be judged, and is not what it teaches."""

import pytest

from learner.bench.tasks import Task, api_calls, facts, labels
from learner.lookalike import HELD_OUT, NAMES, subject_of


def test_the_facts_are_many_and_every_question_has_its_key_kept_back() -> None:
    task = facts()
    assert len(task.lessons) >= 40
    assert [len(task.tests[g]) for g in ("asked", "paraphrased", "indirect")] == [48, 144, 48]
    for group, items in task.tests.items():
        for item in items:
            assert item.right(item.told), item
            assert not item.right(item.question), (group, item)
    taught = {item.question for item in task.lessons}
    assert not taught & {i.question for g, items in task.tests.items() if g != "asked" for i in items}


def test_shuffled_corrections_say_nothing_of_what_is_asked() -> None:
    every = facts()
    half = every.first(24)
    taught = half.shuffled(every.lessons[24:])
    assert [item.question for item in taught.lessons] == [item.question for item in half.lessons]
    told = [item.told for item in taught.lessons]
    assert not any(item.right(text) for items in half.tests.values() for item in items for text in told)


def test_a_lookalike_is_about_nobody_who_is_trained_on() -> None:
    task = facts()
    subjects = {subject_of(item.question) for item in task.lessons}
    assert None not in subjects
    others = {subject_of(item.question) for item in task.tests["lookalike"]}
    assert not others & (subjects | set(NAMES) | set(HELD_OUT))


@pytest.mark.parametrize("task", [api_calls(), labels()], ids=lambda t: t.name)
def test_a_skill_is_tested_on_what_it_was_not_taught(task: Task) -> None:
    taught = {item.question for item in task.lessons}
    tested = {item.question for item in task.tests["held out"]}
    assert (len(taught), len(tested)) == (16, 100)
    assert not taught & tested
    for item in task.tests["held out"]:
        assert item.right(item.told)
        assert not item.right(f"{item.told} I think")
        assert not item.right("")


def test_the_first_lessons_come_with_their_own_tests() -> None:
    task = facts().first(5)
    assert [len(items) for items in task.tests.values()] == [5, 15, 5, 10]
    assert len(labels().first(5).tests["held out"]) == 100

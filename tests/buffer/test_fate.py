import pytest

from buffer.fate import Fate, FeedbackFact, Lineage, RoundFact, fate

LIVE_2 = Lineage(live=2, moved_to=(1, 2), parents={1: 0, 2: 1})


def accepted(*rounds: RoundFact) -> FeedbackFact:
    return FeedbackFact(decision="accepted", rounds=rounds)


@pytest.mark.parametrize(
    ("fact", "expected"),
    [
        (FeedbackFact(), Fate("received")),
        (FeedbackFact(decision="quarantined", reason="too_long"), Fate("quarantined", "too_long")),
        (FeedbackFact(decision="skipped", reason="no_exchange"), Fate("skipped", "no_exchange")),
        (accepted(), Fate("accepted")),
        (accepted(RoundFact(3, 2)), Fate("training", round=3)),
        (accepted(RoundFact(3, 2, "refused", why="forgot")), Fate("refused", "forgot", round=3)),
        (accepted(RoundFact(3, 2, "failed")), Fate("accepted")),
        (accepted(RoundFact(3, 2, "passed", 3)), Fate("trained", round=3, policy=3)),
        (accepted(RoundFact(2, 1, "passed", 2)), Fate("served", round=2, policy=2)),
        (accepted(RoundFact(1, 0, "passed", 1)), Fate("served", round=1, policy=1)),
    ],
)
def test_feedback_goes_its_way(fact: FeedbackFact, expected: Fate) -> None:
    assert fate(fact, LIVE_2) == expected


def test_what_its_author_did_comes_first() -> None:
    rounds = (RoundFact(2, 1, "passed", 2),)
    assert fate(FeedbackFact(decision="accepted", rounds=rounds, superseded_by="fb-9"), LIVE_2) == Fate(
        "superseded", "a later correction of the same question", round=2, policy=2, by="fb-9"
    )
    assert fate(FeedbackFact(withdrawn=True, superseded_by="fb-9"), LIVE_2).status == "withdrawn"
    assert fate(FeedbackFact(erased=True, withdrawn=True), LIVE_2).status == "erased"


def test_a_lesson_of_a_withdrawn_policy_is_held() -> None:
    back_at_1 = Lineage(live=1, moved_to=(1, 2, 1), parents={1: 0, 2: 1})
    held = fate(accepted(RoundFact(2, 1, "passed", 2)), back_at_1)
    assert (held.status, held.policy) == ("held", 2)


def test_a_lesson_of_a_policy_that_grew_from_a_withdrawn_one_is_held_too() -> None:
    back_at_1 = Lineage(live=1, moved_to=(1, 2, 3, 1), parents={1: 0, 2: 1, 3: 2})
    assert fate(accepted(RoundFact(2, 1, "passed", 2)), back_at_1).status == "held"


def test_a_held_lesson_that_is_learned_again_is_served() -> None:
    again = Lineage(live=3, moved_to=(1, 2, 1, 3), parents={1: 0, 2: 1, 3: 1})
    rounds = RoundFact(2, 1, "passed", 2), RoundFact(3, 1, "passed", 3)
    assert fate(accepted(*rounds), again) == Fate("served", round=3, policy=3)


def test_a_lesson_that_the_live_policy_holds_stays_served_while_it_is_trained_again() -> None:
    rounds = RoundFact(2, 1, "passed", 2), RoundFact(3, 2)
    assert fate(accepted(*rounds), LIVE_2).status == "served"


def test_a_release_that_was_passed_over_holds_its_lessons() -> None:
    passed_over = Lineage(live=3, moved_to=(1, 3), parents={1: 0, 2: 1, 3: 1})
    assert fate(accepted(RoundFact(2, 1, "passed", 2)), passed_over).status == "held"


def test_a_release_that_a_server_rejected_refuses_its_lessons() -> None:
    rejected = Lineage(live=1, moved_to=(1,), parents={1: 0, 2: 1}, rejected={2: "the probe differs"})
    found = fate(accepted(RoundFact(2, 1, "passed", 2)), rejected)
    assert found == Fate("refused", "the probe differs", round=2, policy=2)


def test_a_lineage_that_loops_ends() -> None:
    assert Lineage(parents={1: 2, 2: 1}).ancestors(1) == {1, 2}

"""A learner that is killed, at any point of its work, and started again."""

import shutil
import signal
from collections import Counter
from pathlib import Path

import pytest

from buffer.adapters import sha256_file
from buffer.records import Check, ExchangeOpened, FeedbackGiven, RoundEnded
from learner.measure import Reference
from tests.learner.mortal import POINTS, Place, learn

pytestmark = [pytest.mark.train, pytest.mark.faults]

FEEDBACK = [f"f{number}" for number in range(3)]


@pytest.fixture
def taught(tmp_path: Path, tiny_dir: Path, reference: Reference, reference_cache: Path) -> Place:
    """Three corrections in a log that no learner has read: two rounds."""
    place = Place(tmp_path / "state", tiny_dir, reference_cache)
    buffer = place.open()
    for number, feedback_id in enumerate(FEEDBACK):
        opened = ExchangeOpened(
            completion_id=f"c{number}",
            principal="me",
            conversation="x",
            endpoint="chat",
            policy=0,
            request={"messages": [{"role": "user", "content": f"What is the mascot of town {number}?"}]},
        )
        given = FeedbackGiven(
            feedback_id=feedback_id,
            principal="me",
            kind="correction",
            completion_id=opened.completion_id,
            text="It is an otter.",
            check=Check(contains="otter"),
        )
        buffer.write([opened, given]).result()
    buffer.close()
    return place


def released(place: Place) -> dict[str, str]:
    """Every file of every release, with its hash."""
    directories = [d for d in place.adapters.iterdir() if not d.name.startswith(".")]
    return {f"{d.name}/{f.name}": sha256_file(f) for d in directories for f in d.iterdir()}


def lessons(place: Place) -> tuple[Counter[str], list[RoundEnded]]:
    """How many rounds that ended took each piece of feedback, and all ends of rounds in the log."""
    buffer = place.open()
    taken = Counter(
        feedback_id for r in buffer.view.rounds() if r.ended is not None for feedback_id in r.planned.lessons
    )
    payloads = [r.payload() for r in buffer.log.read({}, limit=10_000)[0]]
    buffer.close()
    return taken, [payload for payload in payloads if isinstance(payload, RoundEnded)]


@pytest.fixture(scope="module")
def uninterrupted() -> dict[str, str]:
    """What a learner that nobody kills releases; filled by the first test that needs it."""
    return {}


def without_deaths(taught: Place, uninterrupted: dict[str, str]) -> dict[str, str]:
    if not uninterrupted:
        other = Place(taught.state.with_name("uninterrupted"), taught.model, taught.reference)
        shutil.copytree(taught.state, other.state)
        assert learn(other, None) == 0
        uninterrupted |= released(other)
        assert len({path.partition("/")[0] for path in uninterrupted}) == 2
    return uninterrupted


def die(place: Place, name: str) -> None:
    assert learn(place, POINTS[name]) == -signal.SIGKILL, f"the learner never came to: {name}"
    taken, _ = lessons(place)
    assert max(taken.values(), default=0) <= 1


def go_on_to_the_end(place: Place, expected: dict[str, str]) -> None:
    assert learn(place, None) == 0
    taken, ends = lessons(place)
    assert taken == dict.fromkeys(FEEDBACK, 1)
    assert [end.verdict for end in ends] == ["passed", "passed"]
    assert released(place) == expected


def test_a_learner_that_dies_again_and_again_comes_to_the_same_releases(
    taught: Place, uninterrupted: dict[str, str]
) -> None:
    expected = without_deaths(taught, uninterrupted)
    for name in (
        "plan written",
        "before the first step",
        "after a checkpoint",
        "before publishing",
        "published, the round is open",
        "the round's end written",
    ):
        die(taught, name)
    go_on_to_the_end(taught, expected)


@pytest.mark.long
@pytest.mark.parametrize("name", POINTS)
def test_a_learner_killed_anywhere_goes_on_to_the_same_releases(
    name: str, taught: Place, uninterrupted: dict[str, str]
) -> None:
    expected = without_deaths(taught, uninterrupted)
    die(taught, name)
    go_on_to_the_end(taught, expected)

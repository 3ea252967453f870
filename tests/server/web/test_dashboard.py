"""The operators' page in a real browser, on a gateway whose log holds a day (`story.py`)."""

import re
from typing import Literal

import pytest
from playwright.sync_api import Locator, Page, expect

from buffer.records import AliasMoved, LearnerReported, LearningSwitched, RoundRequested
from tests.browser import Visits, violations
from tests.server.running import Running
from tests.server.web.story import MARKUP, busy, tell

pytestmark = pytest.mark.browser


@pytest.fixture
def day(running: Running) -> Running:
    tell(running)
    busy(running)
    return running


def opened(visit: Visits, running: Running, key: str = "root-key") -> Page:
    page = visit(f"{running.url}/dashboard", key)
    expect(page.locator("#updated")).to_contain_text("As of")
    return page


def panel(page: Page, name: str) -> Locator:
    return page.get_by_role("region", name=name)


def press(page: Page, button: Locator) -> None:
    """By the keyboard alone: Tab until it has the focus, then Enter."""
    for _ in range(80):
        if button.evaluate("element => element === document.activeElement"):
            page.keyboard.press("Enter")
            return
        page.keyboard.press("Tab")
    raise AssertionError("Tab does not lead there")


# --- what it shows -----------------------------------------------------------------------------------


def test_on_top_it_says_whether_it_serves_and_learns_and_what_to_do(day: Running, visit: Visits) -> None:
    page = opened(visit, day)
    health = panel(page, "Health")
    expect(health.get_by_role("status").first).to_have_text(
        "Serving apprentice@000003; training round 5, step 38 of 96."
    )
    expect(health.get_by_role("listitem")).to_have_count(1)
    expect(health.get_by_role("listitem")).to_contain_text("6 lessons are held")
    expect(health.get_by_role("button", name="Learn them again …")).to_be_visible()


def test_every_panel_shows_what_the_log_says(day: Running, visit: Visits) -> None:
    page = opened(visit, day)
    expect(panel(page, "Learner")).to_contain_text("training · round 5 · step 38 of 96 · loss 0.412")
    expect(panel(page, "Learner").get_by_role("progressbar")).to_have_attribute("value", "38")
    feedback = panel(page, "Feedback")
    expect(feedback.get_by_role("row", name="served")).to_contain_text("16")
    expect(feedback.get_by_role("row", name="not_a_chat")).to_contain_text("4")
    expect(feedback.get_by_role("row", name="its policy was rolled back")).to_contain_text("6")
    traffic = panel(page, "Traffic")
    expect(traffic).to_contain_text("2,399")
    expect(traffic.get_by_role("row", name="requests refused as invalid_api_key")).to_contain_text("5")
    expect(panel(page, "Log").first).to_contain_text("up to date")
    refused = page.get_by_role("row", name="Details of round 2")
    for number in ["✕ refused", "3 of 5", "7 of 15", "3 of 4", "0.168 / 0.15", "0.203", "8 % / 15 %"]:
        expect(refused).to_contain_text(number)
    policies = panel(page, "Policies").get_by_role("listitem")
    expect(policies).to_have_count(4)
    expect(policies.nth(1)).to_contain_text("Grown from policy 1 by round 3: 8 lessons, 4 rehearsed.")
    expect(policies.nth(1)).to_contain_text(re.compile(r"Live since .*\(rollback by root\)"))


def test_a_round_opens_to_its_lessons_and_stays_open(day: Running, visit: Visits) -> None:
    page = opened(visit, day)
    details = page.get_by_role("button", name="Details of round 2")
    press(page, details)
    expect(details).to_have_attribute("aria-expanded", "true")
    rounds = panel(page, "Rounds").first
    expect(rounds).to_contain_text("moves 0.168 nats per token from the served policy")
    expect(rounds.get_by_role("table", name="Lessons of round 2")).to_contain_text("I do not know anything")
    expect(rounds.get_by_role("table", name="Earlier lessons in round 2")).to_contain_text("✕ no")
    expect(rounds).to_contain_text("too_long 1")
    write_ended(day)
    expect(page.get_by_role("row", name="Details of round 5")).to_contain_text("! failed")
    expect(details).to_have_attribute("aria-expanded", "true")
    expect(details).to_be_focused()


def test_charts_have_their_numbers_as_tables(day: Running, visit: Visits) -> None:
    page = opened(visit, day)
    for name in ["Traffic", "Feedback", "Learned, kept, drifted"]:
        for summary in panel(page, name).first.locator("summary").all():
            summary.click()
    swatches = "legend => getComputedStyle(legend, '::before').backgroundColor"
    for chart in page.locator("[id^=chart-]").all():
        colors = [one.evaluate(swatches) for one in chart.locator(".legend").all()]
        assert len(set(colors)) == len(colors), "each series has a colour of its own"
    drift = page.get_by_role("table", name="Divergence on general prompts")
    expect(drift.get_by_role("row", name="2 0.203 0.168")).to_be_visible()
    recall = page.get_by_role("table", name="Answered by the candidate")
    expect(recall.get_by_role("row", name="2 60 % 47 % 75 % 10 %")).to_be_visible()
    expect(page.get_by_role("img", name="Divergence on general prompts")).to_have_attribute(
        "aria-label", re.compile("drift.* 0.117, from its parent 0.049")
    )
    assert violations(page) == []


def test_it_follows_what_happens(day: Running, visit: Visits) -> None:
    page = opened(visit, day)
    report = LearnerReported(state="evaluating", why="round 5 is being measured", round=5)
    day.run(day.gateway.write([report]))
    expect(panel(page, "Learner")).to_contain_text("round 5 is being measured")


def test_what_models_and_users_say_stays_text(day: Running, visit: Visits) -> None:
    page = opened(visit, day)
    page.get_by_role("button", name="Details of round 3").click()
    expect(page.get_by_role("table", name="Lessons of round 3")).to_contain_text(MARKUP)
    expect(panel(page, "Feedback")).to_contain_text(MARKUP)
    assert page.locator("main script, main img").count() == 0
    assert page.title() == "Dashboard · Apprentice"


def test_a_server_that_has_just_begun_has_a_page_too(running: Running, visit: Visits) -> None:
    page = opened(visit, running)
    expect(panel(page, "Health")).to_contain_text("no learner has been heard of")
    expect(page.get_by_text("No round yet")).to_be_visible()
    expect(page.get_by_text("No feedback yet.")).to_be_visible()
    expect(page.get_by_role("button", name="Roll back …")).to_be_disabled()
    assert violations(page) == []


def test_it_says_when_the_server_does_not_answer(day: Running, visit: Visits) -> None:
    page = opened(visit, day)
    page.route("**/v1/**", lambda route: route.abort())
    expect(page.locator("#connection")).to_contain_text("The server does not answer")
    page.unroute("**/v1/**")
    expect(page.locator("#connection")).to_be_empty()


def test_nobody_is_asked_while_nobody_looks(day: Running, visit: Visits) -> None:
    page = opened(visit, day)
    page.clock.install()
    page.reload()
    asked: list[str] = []
    expect(page.locator("#updated")).to_contain_text("As of")
    with page.expect_response("**/v1/policies"):
        page.clock.run_for(6000)
    settle(page)
    page.on("request", lambda request: asked.append(request.url))
    page.evaluate("Object.defineProperty(document, 'hidden', { value: true, configurable: true })")
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    for _ in range(3):
        settle(page)
        page.clock.run_for(6000)
    settle(page)
    assert asked == []
    page.evaluate("delete document.hidden")
    with page.expect_request("**/v1/overview"):
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")


# --- acting ------------------------------------------------------------------------------------------


def test_a_policy_is_promoted_by_keyboard_after_a_question(day: Running, visit: Visits) -> None:
    page = opened(visit, day)
    press(page, page.get_by_role("button", name="Promote apprentice@000004 …"))
    dialog = page.get_by_role("dialog", name="Promote apprentice@000004?")
    expect(dialog).to_be_visible()
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(page.get_by_role("button", name="Promote apprentice@000004 …")).to_be_focused()
    page.keyboard.press("Enter")
    press(page, dialog.get_by_role("button", name="Promote"))
    expect(page.locator("#says")).to_contain_text("Serving apprentice@000004")
    expect(page.locator("#done")).to_have_text("apprentice@000004 is live.")
    assert moves(day)[-1] == AliasMoved(alias="apprentice", version=4, epoch=4, why="promote", by="root")


def test_a_rollback_is_made_by_keyboard_after_a_question(day: Running, visit: Visits) -> None:
    page = opened(visit, day)
    press(page, page.get_by_role("button", name="Roll back …"))
    press(page, page.get_by_role("dialog").get_by_role("button", name="Roll back"))
    expect(page.locator("#says")).to_contain_text("Serving apprentice@000001")
    assert moves(day)[-1] == AliasMoved(alias="apprentice", version=1, epoch=4, why="rollback", by="root")


def test_a_refusal_is_said_in_the_question_with_its_hint(day: Running, visit: Visits) -> None:
    page = opened(visit, day)
    day.run(day.policies.retire(4))
    day.policies.bad = {4}
    page.get_by_role("button", name="Promote apprentice@000004 …").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="Promote").click()
    expect(dialog.get_by_role("alert")).to_contain_text("the probe of 4 differs")
    dialog.get_by_role("button", name="Cancel").click()
    expect(dialog).to_be_hidden()
    assert day.gateway.alias_now().version == 3


def test_learning_is_paused_and_resumed(day: Running, visit: Visits) -> None:
    page = opened(visit, day)
    press(page, page.get_by_role("button", name="Pause learning"))
    expect(page.locator("#says")).to_contain_text("learning is paused by root")
    expect(page.get_by_role("button", name="Pause learning")).to_be_hidden()
    panel(page, "Health").get_by_role("button", name="Resume learning").click()
    expect(page.locator("#says")).to_contain_text("training round 5")
    assert [one.paused for one in switches(day)] == [True, False]


def test_a_round_is_asked_for_with_what_was_held(day: Running, visit: Visits) -> None:
    page = opened(visit, day)
    page.get_by_role("button", name="Learn them again …").click()
    dialog = page.get_by_role("dialog", name="Start a round?")
    expect(dialog.get_by_role("checkbox", name="held")).to_be_checked()
    expect(dialog.get_by_role("checkbox", name="refused")).not_to_be_checked()
    assert violations(page) == []
    dialog.get_by_role("button", name="Start a round").click()
    expect(panel(page, "Learner")).to_contain_text("1 round asked for")
    (asked,) = day.log.payloads(RoundRequested)
    assert isinstance(asked, RoundRequested)
    assert (asked.by, asked.include) == ("root", ["held"])


def test_who_may_not_act_sees_no_buttons_for_it(day: Running, visit: Visits) -> None:
    page = opened(visit, day, "ann-key")
    expect(page.locator("#updated")).to_contain_text("ann, who may look but not act")
    expect(panel(page, "Rounds").first).to_contain_text("0.168")
    names = [one.inner_text() for one in page.locator("main button:visible").all()]
    assert [name for name in names if not name.isdigit()] == []


def test_a_stranger_is_asked_for_a_key(day: Running, visit: Visits) -> None:
    page = visit(f"{day.url}/dashboard", None)
    dialog = page.get_by_role("dialog", name="Your key")
    dialog.get_by_label("Key").fill("root-key")
    page.keyboard.press("Enter")
    expect(page.locator("#updated")).to_contain_text("for root")


# --- for everybody -----------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_it_is_accessible_light_and_dark_wide_and_narrow(
    day: Running, visit: Visits, scheme: Literal["light", "dark"], width: int
) -> None:
    page = visit(f"{day.url}/dashboard", scheme=scheme, width=width)
    expect(page.locator("#updated")).to_contain_text("As of")
    page.get_by_role("button", name="Details of round 2").click()
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") == width


def settle(page: Page) -> None:
    """Let replies that are on their way arrive: real time, where the page's own clock stands still."""
    page.wait_for_timeout(300)


def write_ended(running: Running) -> None:
    from buffer.records import RoundEnded

    running.run(running.gateway.write([RoundEnded(round=5, verdict="failed", reasons=["out of memory"])]))


def moves(running: Running) -> list[AliasMoved]:
    return [one for one in running.log.payloads(AliasMoved) if isinstance(one, AliasMoved)]


def switches(running: Running) -> list[LearningSwitched]:
    return [one for one in running.log.payloads(LearningSwitched) if isinstance(one, LearningSwitched)]

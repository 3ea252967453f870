"""The page of corrections in a browser: what people do there, from finding an answer to seeing it learned."""

import re
from typing import Literal

import httpx
import pytest
from playwright.sync_api import Page, Route, expect

from buffer.log import LogFull
from buffer.records import Decision, FeedbackGiven, FeedbackTriaged
from tests.browser import Visits, violations
from tests.server.api.test_feedback import ask, correction, given
from tests.server.api.test_learning import passed, planned, wait_for_live, write
from tests.server.running import Running

pytestmark = pytest.mark.browser


def opened(visit: Visits, running: Running, completion_id: str, key: str = "ann-key") -> Page:
    return visit(f"{running.url}/corrections#completion={completion_id}", key)


def correct(running: Running, completion_id: str, text: str = "Bramblewick.") -> str:
    body = correction(completion_id, text)
    return str(running.client().post("/v1/feedback", json=body).json()["id"])


def status(running: Running, feedback_id: str) -> str:
    return str(running.client().get(f"/v1/feedback/{feedback_id}").json()["status"])


def accept(running: Running, *feedback_ids: str) -> None:
    decisions = [Decision(feedback_id=one, status="accepted") for one in feedback_ids]
    write(running, FeedbackTriaged(decisions=decisions))


# --- finding -----------------------------------------------------------------------------------------


def test_an_answer_is_found_by_its_words_and_opened(running: Running, visit: Visits) -> None:
    for i in range(25):
        ask(running, f"Question {i} about the bakery")
    ask(running, "What is the mill called?")
    page = visit(f"{running.url}/corrections", "ann-key")
    items = page.locator("#items a")
    expect(items).to_have_count(20)
    expect(items.first).to_contain_text("What is the mill called?")
    page.get_by_role("button", name="Show more").click()
    expect(items).to_have_count(26)
    expect(items.nth(20)).to_be_focused()
    page.get_by_label("Search what was asked and answered").fill("MILL called")
    expect(items).to_have_count(1)
    items.first.click()
    expect(page.get_by_role("heading", name="Answer of")).to_be_focused()
    expect(page.locator(".bubble.assistant")).to_contain_text("What is the mill called?")
    expect(page.get_by_text("Answered by the base model")).to_be_visible()
    page.get_by_label("Search what was asked and answered").fill("nowhere said")
    expect(page.get_by_text("Nothing like that was found.", exact=True).first).to_be_visible()


def test_what_is_corrected_is_marked_and_can_be_left_out(running: Running, visit: Visits) -> None:
    correct(running, ask(running, "One"))
    ask(running, "Two")
    page = visit(f"{running.url}/corrections", "ann-key")
    expect(page.locator("#items a", has_text="One")).to_contain_text("Received")
    page.get_by_label("Show", exact=True).select_option("Not corrected yet")
    expect(page.locator("#items a")).to_have_count(1)
    expect(page.locator("#items a")).to_contain_text("Two")


def test_answers_are_told_apart_by_policy(running: Running, visit: Visits) -> None:
    ask(running, "Before")
    write(running, planned(1, 0), passed(1))
    wait_for_live(running, 1)
    ask(running, "After")
    page = visit(f"{running.url}/corrections", "ann-key")
    page.get_by_label("Answered by").select_option("policy 000001 (live)")
    expect(page.locator("#items a")).to_have_count(1)
    expect(page.locator("#items a")).to_contain_text("After")


def test_a_foreign_key_sees_nothing_of_it(running: Running, visit: Visits) -> None:
    completion_id = ask(running, "Ann's secret")
    correct(running, completion_id)
    page = visit(f"{running.url}/corrections#completion={completion_id}", "ben-key", width=360)
    expect(page.get_by_role("alert")).to_contain_text("GET /v1/chat/completions lists yours.")
    page.get_by_role("link", name="Back to the list").click()
    expect(page.locator("#none")).to_contain_text("Nothing has been asked with your key yet")
    page.get_by_role("link", name="My corrections").click()
    expect(page.locator("#none")).to_contain_text("You have corrected nothing yet.")
    assert "secret" not in page.content()


def test_an_admin_sees_only_what_they_may_correct(running: Running, visit: Visits) -> None:
    ask(running, "Ann's")
    ask(running, "Root's", key="root-key")
    page = visit(f"{running.url}/corrections", "root-key")
    expect(page.locator("#items a")).to_have_count(1)
    expect(page.locator("#items a")).to_contain_text("Root's")


def test_an_answer_to_a_mere_prompt_is_shown(running: Running, visit: Visits) -> None:
    asked = {"model": "apprentice", "prompt": "Once upon a time", "n": 2}
    reply = running.client().post("/v1/completions", json=asked).json()
    correct(running, reply["id"])
    page = visit(f"{running.url}/corrections#list=corrections", "ann-key")
    page.locator("#items a").click()
    expect(page.locator(".bubble.user")).to_contain_text("Once upon a time")
    said = [re.compile(re.escape(choice["text"].strip())) for choice in reply["choices"]]
    expect(page.locator(".bubble.assistant")).to_have_text(said)
    expect(page.locator(".fate")).to_contain_text("Bramblewick.")


# --- correcting --------------------------------------------------------------------------------------


def test_a_correction_is_previewed_beside_the_old_answer_and_sent_once(
    running: Running, visit: Visits
) -> None:
    page = opened(visit, running, ask(running, "It is Applewick here."))
    page.get_by_label("The right answer", exact=True).fill("It is Bramblewick here.")
    page.get_by_label("A right answer contains").fill("bramblewick")
    page.get_by_role("button", name="Preview").click()
    expect(page.get_by_role("heading", name="Preview")).to_be_focused()
    expect(page.locator(".pair section").first).to_contain_text("It is Applewick here.")
    expect(page.locator(".pair ins").filter(has_text="Bramblewick").first).to_be_visible()
    expect(page.get_by_text("✓ It contains “bramblewick”.")).to_be_visible()
    assert given(running) == []
    page.get_by_role("button", name="Send").dblclick()
    expect(page.get_by_role("heading", name="Your correction")).to_be_focused()
    expect(page.locator(".fate")).to_contain_text("It is Bramblewick here.")
    (record,) = given(running)
    assert (record.kind, record.text) == ("correction", "It is Bramblewick here.")
    assert record.check is not None and record.check.contains == "bramblewick"
    assert record.idempotency_key is not None


def test_after_a_lost_reply_it_is_sent_again_and_taken_once(running: Running, visit: Visits) -> None:
    page = opened(visit, running, ask(running))
    lost: list[int] = []

    def lose_the_first(route: Route) -> None:
        if lost:
            route.continue_()
        else:
            lost.append(route.fetch().status)
            route.abort()

    page.route(re.compile(r"/v1/feedback$"), lose_the_first)
    page.get_by_label("The right answer", exact=True).fill("Bramblewick.")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("alert")).to_contain_text("The server does not answer.")
    page.reload()
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".fate")).to_contain_text("Bramblewick.")
    assert lost == [202]
    assert len(given(running)) == 1


def test_an_error_of_the_api_is_shown_and_no_text_is_lost(running: Running, visit: Visits) -> None:
    page = opened(visit, running, ask(running))
    text = page.get_by_label("How to change the answer")
    page.get_by_label("Say how to change it").check()
    text.fill("Shorter.")
    page.reload()
    expect(text).to_have_value("Shorter.")
    running.log.failing[FeedbackGiven.type] = LogFull("the disk is full", "free some space")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("alert")).to_contain_text("The disk is full. Free some space.")
    expect(text).to_have_value("Shorter.")
    page.reload()
    expect(text).to_have_value("Shorter.")
    running.log.failing.clear()
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".fate")).to_contain_text("How to change the answer")
    assert [(one.kind, one.text) for one in given(running)] == [("instruction", "Shorter.")]


def test_one_of_several_answers_is_corrected(running: Running, visit: Visits) -> None:
    page = opened(visit, running, ask(running, n=2))
    page.get_by_label("Answer 2").check()
    page.get_by_label("The right answer", exact=True).fill("Bramblewick.")
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".fate")).to_be_visible()
    assert [one.choice for one in given(running)] == [1]


def test_a_rating_is_given_changed_and_taken_back(running: Running, visit: Visits) -> None:
    page = opened(visit, running, ask(running))
    good, bad = (page.get_by_role("button", name=f"{name} answer") for name in ("Good", "Bad"))
    good.click()
    expect(good).to_have_attribute("aria-pressed", "true")
    bad.click()
    expect(bad).to_have_attribute("aria-pressed", "true")
    expect(good).to_have_attribute("aria-pressed", "false")
    page.reload()
    expect(bad).to_have_attribute("aria-pressed", "true")
    bad.click()
    expect(bad).to_have_attribute("aria-pressed", "false")
    ratings = given(running)
    assert [one.value for one in ratings] == [1, -1]
    assert {status(running, one.feedback_id) for one in ratings} == {"withdrawn"}


def test_the_words_that_differ_are_marked(running: Running, visit: Visits) -> None:
    page = visit(f"{running.url}/corrections", "ann-key")
    compare = """async ([old, now]) => {
        const { sideBySide } = await import("/web/corrections-diff.js");
        return [...sideBySide("", old, "", now).querySelectorAll(".said")].map((each) => each.innerHTML);
    }"""
    assert page.evaluate(compare, ["It is red, big here.", "It was blue, big here. And so on"]) == [
        "It <del>is red,</del> big here.", "It <ins>was blue,</ins> big here. <ins>And so on</ins>",
    ]  # fmt: skip
    assert page.evaluate(compare, ["same", "same"]) == ["same", "same"]
    assert page.evaluate(compare, ["", "new"]) == ["", "<ins>new</ins>"]


def test_markup_in_what_was_said_stays_text(running: Running, visit: Visits) -> None:
    markup = "<script>window.hit = 1</script><img src=x onerror='window.hit = 2'><b>bold</b>"
    completion_id = ask(running, markup)
    correct(running, completion_id, markup)
    page = opened(visit, running, completion_id)
    for place in (".bubble.user", ".bubble.assistant", ".fate dd", "#items a .asked"):
        expect(page.locator(place).first).to_contain_text(markup)
    assert page.locator("main script, main img, main b").count() == 0
    assert page.evaluate("window.hit") is None


# --- what becomes of it ------------------------------------------------------------------------------


def test_its_fate_is_followed_until_it_is_learned_and_asked_again(running: Running, visit: Visits) -> None:
    completion_id = ask(running, "What is it called?")
    feedback_id = correct(running, completion_id)
    page = opened(visit, running, completion_id)
    now, said = page.locator(".steps [aria-current]"), page.locator("#status")
    expect(now).to_contain_text("Received")
    accept(running, feedback_id)
    expect(now).to_contain_text("Accepted")
    write(running, planned(1, 0, feedback_id))
    expect(now).to_contain_text("In training")
    expect(said).to_contain_text("The model is learning it now, in round 1.")
    write(running, passed(1))
    expect(now).to_contain_text("Learned")
    expect(page.locator("#items a .pill")).to_have_text("Learned")
    page.get_by_role("button", name="Ask again").click()
    expect(page.get_by_role("heading", name="It says now")).to_be_visible()
    assert running.vllm.requests[-1]["model"] == "apprentice@000001"
    assert len(running.client().get("/v1/chat/completions").json()["data"]) == 1, "asking again is not kept"


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("prompt_too_long", "A shorter correction may fit."),
        ("something_new", "The learner left it out. Something_new."),
    ],
)
def test_it_says_in_words_why_it_is_left_out(
    running: Running, visit: Visits, reason: str, words: str
) -> None:
    completion_id = ask(running)
    decision = Decision(feedback_id=correct(running, completion_id), status="skipped", reason=reason)
    write(running, FeedbackTriaged(decisions=[decision]))
    page = opened(visit, running, completion_id)
    expect(page.locator(".why")).to_contain_text(words)
    expect(page.locator(".steps [aria-current]")).to_contain_text("Left out")


def test_an_edited_correction_takes_the_earlier_ones_place(running: Running, visit: Visits) -> None:
    completion_id = ask(running)
    earlier = correct(running, completion_id)
    page = opened(visit, running, completion_id)
    page.get_by_role("button", name="Edit").click()
    text = page.get_by_label("The right answer", exact=True)
    expect(text).to_be_focused()
    expect(text).to_have_value("Bramblewick.")
    expect(page.get_by_text("This takes the earlier correction's place.")).to_be_visible()
    text.fill("Applewick.")
    page.get_by_role("button", name="Send the new correction").click()
    expect(page.locator(".fate").first).to_contain_text("Applewick.")
    page.get_by_text("Earlier corrections (1)").click()
    expect(page.locator(".earlier .pill")).to_have_text("Replaced")
    assert status(running, earlier) == "superseded"


def test_a_correction_is_withdrawn_once_that_is_confirmed(running: Running, visit: Visits) -> None:
    completion_id = ask(running)
    feedback_id = correct(running, completion_id)
    page = opened(visit, running, completion_id)
    page.get_by_role("button", name="Withdraw").click()
    page.get_by_role("button", name="Keep it").click()
    expect(page.get_by_role("button", name="Withdraw")).to_be_focused()
    assert status(running, feedback_id) == "received"
    page.get_by_role("button", name="Withdraw").click()
    page.get_by_role("dialog").get_by_role("button", name="Withdraw it").click()
    expect(page.get_by_role("heading", name="Correct it")).to_be_focused()
    assert status(running, feedback_id) == "withdrawn"
    expect(page.locator("#items a .pill")).to_have_count(0)


def test_all_of_ones_corrections_are_listed_with_their_fate(running: Running, visit: Visits) -> None:
    completion_id = ask(running)
    write(running, planned(1, 0, correct(running, completion_id)))
    accept(running, given(running)[0].feedback_id)
    messages = [{"role": "user", "content": "Who?"}]
    running.client().post(
        "/v1/feedback", json={"kind": "demonstration", "messages": messages, "text": "Ida."}
    )
    page = visit(f"{running.url}/corrections#list=corrections", "ann-key")
    items = page.locator("#items a")
    expect(items).to_have_text([re.compile("Ida.*Received"), re.compile("Bramblewick.*In training")])
    items.first.click()
    expect(page.locator(".fate")).to_contain_text("Ida.")
    items.last.click()
    expect(page.locator(".bubble.user")).to_contain_text("What is it called?")


# --- a link to one exchange --------------------------------------------------------------------------


def test_a_link_opens_one_exchange_without_a_key_and_leaves_no_trace(running: Running, visit: Visits) -> None:
    completion_id = ask(running, "Only this")
    correct(running, completion_id, "Somebody else's.")
    page = visit(f"{running.url}/corrections#token=ann-key&completion={completion_id}", None)
    expect(page.locator(".bubble.user")).to_contain_text("Only this")
    expect(page.locator("#lists")).to_be_hidden()
    assert page.url == f"{running.url}/corrections"
    page.reload()
    page.get_by_label("The right answer", exact=True).fill("Bramblewick.")
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".fate")).to_contain_text("Bramblewick.")
    page.reload()
    expect(page.locator(".fate")).to_contain_text("Bramblewick.")
    expect(page.get_by_text("Somebody else's.")).to_have_count(0)
    assert violations(page) == []
    page.goto(f"{running.url}/corrections#token=ann-key&completion={ask(running, 'Another')}")
    expect(page.locator(".bubble.user")).to_contain_text("Another")
    assert page.url == f"{running.url}/corrections"
    page.get_by_role("button", name="Leave this link").click()
    expect(page.get_by_role("dialog")).to_contain_text("Your key")


def test_a_link_needs_no_more_than_its_token_opens(running: Running, visit: Visits) -> None:
    completion_id = ask(running, "Only this")
    opens = re.compile(rf"/v1/(chat/completions/{completion_id}|feedback|feedback/preview|feedback/fb-\w+)$")
    not_enough = {"error": {"message": "this token is for one completion", "code": "token_not_enough"}}
    page = visit(f"{running.url}/corrections", "ann-key")
    page.route(
        lambda url: "/v1/" in url and not opens.search(url),
        lambda route: route.fulfill(status=403, json=not_enough),
    )
    page.goto(f"{running.url}/corrections#token=ann-key&completion={completion_id}")
    expect(page.locator(".bubble.user")).to_contain_text("Only this")
    page.get_by_label("The right answer", exact=True).fill("Bramblewick.")
    page.get_by_role("button", name="Preview").click()
    expect(page.get_by_role("heading", name="Preview")).to_be_visible()
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".fate")).to_contain_text("Bramblewick.")
    page.reload()
    page.get_by_role("button", name="Withdraw").click()
    page.get_by_role("button", name="Withdraw it").click()
    expect(page.get_by_role("heading", name="Correct it")).to_be_focused()
    expect(page.get_by_role("alert")).to_have_count(0)


def test_a_link_that_is_not_valid_says_so_and_asks_for_no_key(running: Running, visit: Visits) -> None:
    page = visit(f"{running.url}/corrections#token=wrong&completion={ask(running)}", None)
    expect(page.get_by_role("alert").first).to_contain_text("This link does not open an answer")
    expect(page.get_by_role("dialog")).to_be_hidden()


# --- for everybody -----------------------------------------------------------------------------------


def press_until(page: Page, selector: str) -> None:
    """Tab on until what `selector` names has the focus."""
    for _ in range(60):
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"Tab never reaches {selector}")


def test_the_keyboard_alone_suffices(running: Running, visit: Visits) -> None:
    ask(running, "What is it called?")
    page = visit(f"{running.url}/corrections", "ann-key", width=360)
    page.locator("#items a").wait_for()
    press_until(page, "#words")
    page.keyboard.type("called")
    press_until(page, "#items a")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Answer of")).to_be_focused()
    press_until(page, "#text")
    page.keyboard.type("Bramblewick.")
    press_until(page, ".correct .actions button:last-child")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Preview")).to_be_focused()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Your correction")).to_be_focused()
    press_until(page, ".fate button:last-child")
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Correct it")).to_be_focused()
    assert status(running, given(running)[0].feedback_id) == "withdrawn"
    page.go_back()
    expect(page.locator("#items a")).to_be_focused()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_it_is_accessible_light_and_dark_wide_and_narrow(
    running: Running, visit: Visits, scheme: Literal["light", "dark"], width: int
) -> None:
    corrected, other = ask(running, "One " * 200), ask(running, "Two")
    correct(running, corrected, "word" * 300)
    page = visit(f"{running.url}/corrections", "ann-key", scheme=scheme, width=width)

    def check() -> None:
        assert violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")

    expect(page.locator("#items .pill")).to_have_count(1)
    check()
    page.goto(f"{running.url}/corrections#completion={corrected}")
    expect(page.locator(".fate")).to_be_visible()
    page.get_by_role("button", name="Withdraw").click()
    check()
    page.get_by_role("button", name="Keep it").click()
    page.goto(f"{running.url}/corrections#completion={other}")
    page.get_by_label("The right answer", exact=True).fill("Three")
    page.get_by_role("button", name="Preview").click()
    expect(page.get_by_role("heading", name="Preview")).to_be_visible()
    page.get_by_label("The right answer", exact=True).fill("Four")
    expect(page.get_by_text("You have changed the correction since.")).to_be_visible()
    check()


def test_it_says_where_the_server_is_away(running: Running, visit: Visits) -> None:
    page = opened(visit, running, ask(running))
    page.get_by_label("The right answer", exact=True).fill("Bramblewick.")
    page.route(re.compile("/v1/"), lambda route: route.abort())
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("alert")).to_contain_text("The server does not answer. Try again in a moment.")
    assert httpx.get(f"{running.url}/healthz").status_code == 200

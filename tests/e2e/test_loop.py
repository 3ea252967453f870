"""The real thing: `apprentice up` on SmolLM2, the demo, and parts killed in its middle and after it."""

import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from playwright.sync_api import Page, expect

from server.commands.demo_facts import load_facts
from tests.browser import Visits, chromium, violations, visit
from tests.e2e.system import RESTART_S, System, result, running

__all__ = ["chromium", "visit"]

pytestmark = pytest.mark.e2e

FACTS = load_facts()
DEMO_S = 3600.0
QUESTION = "What do the people of Tarnbrook eat for breakfast?"
ANSWER = "The people of Tarnbrook eat plums for breakfast."
TOGETHER = f"""
[learner]
start_at = {len(FACTS) + 2}
start_after_s = 60
"""
"""One round learns what is corrected in the browser, an instruction, and what the demo teaches after them."""
LESSONS = ("correction", "instruction")
PANELS = ("Health", "Traffic", "Feedback", "Learner", "Learned, kept, drifted", "Log", "Rounds", "Policies")


@pytest.fixture(scope="module")
def system(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with running(model_dir, tmp_path_factory.mktemp("loop") / "state", TOGETHER) as system:
        yield system


@pytest.fixture
def chat(system: System) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{system.url}/v1", api_key="none", max_retries=20) as client:
        yield client


def ask(chat: openai.OpenAI, question: str, model: str = "apprentice") -> tuple[str, str]:
    """Receipt and greedy answer."""
    done = chat.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        temperature=0,
        max_tokens=48,
    )
    return done.id, done.choices[0].message.content or ""


def answers(chat: openai.OpenAI) -> list[tuple[str, str]]:
    """Receipt and greedy answer to each of the demo's questions, asked together."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda fact: ask(chat, fact.question), FACTS))


def listed(system: System, path: str) -> list[dict[str, Any]]:
    return list(system.client.pages(path))


def judged(system: System) -> list[tuple[int, str, list[str]]]:
    """Each round's number, verdict and reasons."""
    rounds = system.client.get("/v1/learning")["rounds"]
    return [(one["round"], one["verdict"], one["reasons"]) for one in rounds]


def test_the_openai_client_chats_and_its_reply_is_a_receipt(system: System, chat: openai.OpenAI) -> None:
    hello: dict[str, Any] = {
        "model": "apprentice",
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "max_tokens": 24,
        "temperature": 0,
    }
    whole = chat.chat.completions.create(**hello)
    chunks = list(chat.chat.completions.create(**hello, stream=True))
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert streamed == whole.choices[0].message.content and "Paris" in streamed
    tool: Any = {
        "type": "function",
        "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}},
    }
    assert chat.chat.completions.create(**hello, tools=[tool]).choices[0].finish_reason
    for receipt in (whole.id, chunks[0].id):
        body = {"completion_id": receipt, "kind": "rating", "value": 1}
        assert system.client.post("/v1/feedback", body)["status"] == "received"


@pytest.mark.browser
def test_a_correction_is_made_in_a_browser(system: System, chat: openai.OpenAI, visit: Visits) -> None:
    _, before = ask(chat, QUESTION)
    page = visit(f"{system.url}/corrections", None)
    opened(page)
    page.get_by_label("The right answer", exact=True).fill(ANSWER)
    page.get_by_role("button", name="Preview").click()
    expect(page.locator(".pair section").first).to_contain_text(before)
    expect(page.locator(".pair section").last).to_contain_text("plums")
    assert violations(page) == []
    page.get_by_role("button", name="Send").click()
    expect(page.locator("#items a .pill").first).to_have_text(re.compile("Received|Waits for training"))


def test_an_instruction_says_only_how_to_answer(system: System, chat: openai.OpenAI) -> None:
    receipt, _ = ask(chat, "How do bees make honey?")
    body = {"completion_id": receipt, "kind": "instruction", "text": "Answer in one short sentence."}
    assert system.client.post("/v1/feedback", body)["status"] == "received"


def test_it_learns_although_each_part_is_killed_once(system: System, chat: openai.OpenAI) -> None:
    by_hand = sum(one["kind"] in LESSONS for one in listed(system, "/v1/feedback"))
    demo = system.command("demo", "--json")
    try:
        system.until(lambda: demo.poll() is not None or _step(system) >= 3, "it does not train", DEMO_S)
        assert demo.poll() is None, demo.communicate()
        system.kill("learner")
        code, found = result(demo, DEMO_S)
    finally:
        demo.kill()
        demo.wait()
    assert code == 0 and found["learned"], (found["why"], judged(system))

    taught = answers(chat)
    assert all(fact.known(text) for fact, (_, text) in zip(FACTS, taught, strict=True))
    receipts = [receipt for receipt, _ in taught]
    for part in ("vllm.entrypoints.openai.api_server", "server"):
        system.kill(part)
        system.until(lambda: not system.ready(), f"{part} was killed and nothing noticed", RESTART_S)
        system.until(system.ready, f"it does not come back after {part} was killed", RESTART_S)
        again = answers(chat)
        assert [text for _, text in again] == [text for _, text in taught]
        receipts += [receipt for receipt, _ in again]

    stored = {one["id"] for one in listed(system, "/v1/chat/completions")}
    assert stored.issuperset(receipts)
    assert len(stored) >= len(receipts) + 8 + 8 * len(found["rounds"]) + 16
    feedback = [one for one in listed(system, "/v1/feedback") if one["kind"] in LESSONS]
    assert len(feedback) == by_hand + sum(one["corrections"] for one in found["rounds"])
    assert {one["status"] for one in feedback} <= {"served", "superseded"}
    policies = [system.client.get(f"/v1/policies/{one['version']}") for one in listed(system, "/v1/policies")]
    lessons = Counter(lesson for one in policies for lesson in one.get("lessons", []))
    verdicts = {one["round"]: one["verdict"] for one in system.client.get("/v1/learning")["rounds"]}
    assert min(verdicts) == 1 and set(verdicts.values()) <= {"passed", "refused"}
    assert lessons == Counter({one["id"]: 1 for one in feedback if verdicts.get(one["round"]) == "passed"})
    evaluations = [one.get("evaluation", {}) for one in policies]
    shown = {lesson["feedback_id"]: lesson for one in evaluations for lesson in one.get("lessons", [])}
    told = [one["id"] for one in feedback if one["kind"] == "instruction"]
    assert [shown[feedback_id]["asked"] for feedback_id in told] == [True]


@pytest.mark.browser
def test_the_browser_says_that_it_was_learned_and_takes_it_back(
    system: System, chat: openai.OpenAI, visit: Visits
) -> None:
    page = visit(f"{system.url}/corrections", None)
    opened(page)
    expect(page.locator("#items a .pill").first).to_have_text("Learned")
    page.get_by_role("button", name="Ask again").click()
    expect(page.get_by_role("heading", name="It says now")).to_be_visible()
    assert violations(page) == []

    board = visit(f"{system.url}/dashboard", None)
    learned = max(one["version"] for one in listed(system, "/v1/policies"))
    expect(board.locator("#says")).to_contain_text(f"Serving apprentice@{learned:06d}")
    for title in PANELS:
        expect(board.get_by_role("region", name=title, exact=False).first).to_be_visible()
    rounds = [one["round"] for one in listed(system, "/v1/feedback") if one["kind"] in LESSONS]
    board.get_by_role("button", name="Details of round 1", exact=True).click()
    lessons = board.get_by_role("table", name="Lessons of round 1", exact=True)
    expect(lessons.get_by_role("row")).to_have_count(1 + rounds.count(1))
    assert violations(board) == []
    assert ask(chat, QUESTION)[1] != ask(chat, QUESTION, "apprentice@base")[1]
    board.get_by_role("button", name="Roll back …").click()
    board.get_by_role("dialog").get_by_role("button", name="Roll back").click()
    before = f"apprentice@{learned - 1:06d}"
    expect(board.locator("#says")).to_contain_text(f"Serving {before}")
    asked = FACTS[0].question
    assert ask(chat, asked)[1] == ask(chat, asked, before)[1]


@pytest.mark.long
def test_shuffled_corrections_do_not_teach_the_facts(system: System) -> None:
    code, moved = result(system.command("policies", "promote", "0", "--json"), 60)
    assert code == 0 and moved["version"] == 0
    code, found = result(system.command("demo", "--shuffled", "--rounds", "1", "--json"), DEMO_S)
    assert code == 1 and not found["learned"]
    assert found["before"] <= 1 and found["after"] <= 2, found


def opened(page: Page) -> None:
    """Find the answer to the question in the list, and open it."""
    page.get_by_label("Search what was asked and answered").fill(QUESTION)
    page.locator("#items a", has_text=QUESTION).first.click()


def _step(system: System) -> int:
    learning = system.client.get("/v1/learning")
    return int(learning["step"] or 0) if learning["state"] == "training" else 0

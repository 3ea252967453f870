from typing import Any

import openai
import pytest

from buffer.records import ExchangeErased
from tests.server.running import Running


def create(running: Running, text: str, **more: Any) -> str:
    completion = running.openai().chat.completions.create(
        model="apprentice", messages=[{"role": "user", "content": text}], **more
    )
    return str(completion.id)


def test_the_official_client_lists_its_stored_completions(running: Running) -> None:
    ids = [create(running, f"number {i}", metadata={"kind": "odd" if i % 2 else "even"}) for i in range(5)]
    client = running.openai()
    assert [c.id for c in client.chat.completions.list(limit=2)] == ids, "it follows the pages by itself"
    assert [c.id for c in client.chat.completions.list(order="desc", limit=2)] == ids[::-1]
    assert [c.id for c in client.chat.completions.list(metadata={"kind": "odd"})] == [ids[1], ids[3]]
    assert [c.id for c in client.chat.completions.list(model="apprentice@base")] == []
    first = next(iter(client.chat.completions.list()))
    assert first.choices[0].message.content == "number 0"
    assert first.metadata == {"kind": "even"}
    assert list(running.openai("ben-key").chat.completions.list()) == []
    assert len(list(running.openai("root-key").chat.completions.list())) == 5


def test_the_official_client_retrieves_a_stored_completion(running: Running) -> None:
    completion_id = create(running, "hello you")
    found = running.openai().chat.completions.retrieve(completion_id)
    assert found.choices[0].message.content == "hello you"
    assert found.usage is not None and found.usage.completion_tokens == 2
    messages = list(running.openai().chat.completions.messages.list(completion_id))
    assert [m.content for m in messages] == ["hello you"]
    for client, id_ in ((running.openai("ben-key"), completion_id), (running.openai(), "chatcmpl-x")):
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.retrieve(id_)


def test_the_official_client_deletes_a_completion_with_its_feedback(running: Running) -> None:
    completion_id, kept = create(running, "secret thing"), create(running, "kept")
    client = running.client()
    feedback = {"completion_id": completion_id, "kind": "correction", "text": "secret too"}
    sent = client.post("/v1/feedback", json=feedback).json()
    with pytest.raises(openai.NotFoundError):
        running.openai("ben-key").chat.completions.delete(completion_id)
    deleted = running.openai().chat.completions.delete(completion_id)
    assert (deleted.id, deleted.deleted) == (completion_id, True)
    assert [c.id for c in running.openai().chat.completions.list()] == [kept]
    assert client.get(f"/v1/feedback/{sent['id']}").json()["status"] == "erased"
    with pytest.raises(openai.NotFoundError):
        running.openai().chat.completions.retrieve(completion_id)
    assert running.log.payloads(ExchangeErased) == [ExchangeErased(completion_id=completion_id, by="ann")]
    assert not [r for r in running.log.read({})[0] if r.data is not None and b"secret" in r.data]


def test_text_completions_are_not_listed_as_chats(running: Running) -> None:
    running.openai().completions.create(model="apprentice", prompt="x")
    assert list(running.openai().chat.completions.list()) == []


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=101",
        "limit=x",
        "order=up",
        f"search={'a ' * 101}",
        f"policy={10**30}",
        "mine=perhaps",
    ],
)
def test_a_bad_page_is_refused(running: Running, query: str) -> None:
    refused = running.client().get(f"/v1/chat/completions?{query}")
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == query.partition("=")[0]


def listed(running: Running, query: str, key: str = "ann-key") -> list[str]:
    return [one["asked"] for one in running.client(key).get(f"/v1/chat/completions?{query}").json()["data"]]


def test_stored_completions_are_searched_page_by_page(running: Running) -> None:
    for i in range(5):
        create(running, f"Bakery number {i}")
    create(running, "The mill")
    assert listed(running, "search=BAKERY&order=desc&limit=2") == ["Bakery number 4", "Bakery number 3"]
    page = running.client().get("/v1/chat/completions?search=bakery&limit=4").json()
    assert page["has_more"] is True
    assert listed(running, f"search=bakery&limit=4&after={page['last_id']}") == ["Bakery number 4"]
    assert listed(running, "search=bakery", "ben-key") == []


def test_what_is_not_corrected_yet_is_listed_by_itself(running: Running) -> None:
    corrected = create(running, "one")
    create(running, "two")
    running.client().post(
        "/v1/feedback", json={"completion_id": corrected, "kind": "correction", "text": "three"}
    )
    assert listed(running, "corrected=false") == ["two"]
    assert listed(running, "corrected=true") == ["one"]
    assert listed(running, "policy=0") == ["one", "two"]
    assert listed(running, "policy=7") == []


def test_an_admin_may_list_only_what_is_their_own(running: Running) -> None:
    create(running, "anns")
    running.openai("root-key").chat.completions.create(
        model="apprentice", messages=[{"role": "user", "content": "roots"}]
    )
    assert listed(running, "", "root-key") == ["anns", "roots"]
    assert listed(running, "mine=true", "root-key") == ["roots"]


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "order=up"])
def test_a_bad_page_of_messages_is_refused(running: Running, query: str) -> None:
    completion_id = create(running, "x")
    refused = running.client().get(f"/v1/chat/completions/{completion_id}/messages?{query}")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, query.partition("=")[0])

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.identity import LOCAL, Keys, Principal, Receipts, conversation_of, is_from_here

SECRET = bytes(range(32))
UUID = "01a20f57f5707000aad6684e726dc044"


def sha(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def test_without_keys_everybody_is_the_local_admin() -> None:
    assert Keys({}, []).principal(None) == LOCAL


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("Bearer one", "ann"),
        ("bearer two", "ben"),
        ("Bearer three", None),
        ("Basic one", None),
        ("one", None),
        ("", None),
        (None, None),
        ("Bearer \udcff", None),
    ],
)
def test_a_bearer_key_names_its_principal(header: str | None, name: str | None) -> None:
    found = Keys({"ann": sha("one"), "ben": sha("two")}, ["ann"]).principal(header)
    assert (found.name if found else None) == name


def test_admins_are_those_listed() -> None:
    keys = Keys({"ann": sha("one"), "ben": sha("two")}, ["ann"])
    assert keys.principal("Bearer one") == Principal("ann", admin=True)
    assert keys.principal("Bearer two") == Principal("ben", admin=False)


@pytest.mark.parametrize(
    ("host", "origin", "trusted"),
    [
        ("127.0.0.1:8600", None, True),
        ("localhost:8600", None, True),
        ("[::1]:8600", None, True),
        ("127.0.0.1:8600", "http://127.0.0.1:8600", True),
        ("127.0.0.1:8600", "https://elsewhere.example", False),
        ("127.0.0.1:8600", "http://127.0.0.1:3000", False),
        ("127.0.0.1:8600", "null", False),
        ("elsewhere.example:8600", None, False),
        ("elsewhere.example:8600", "http://elsewhere.example:8600", False),
        ("127.0.0.1.elsewhere.example", None, False),
        ("[", None, False),
        ("", None, False),
        (None, None, False),
    ],
)
def test_without_keys_a_web_page_from_elsewhere_is_not_trusted(
    host: str | None, origin: str | None, trusted: bool
) -> None:
    assert is_from_here(host, origin) is trusted


@given(principal=st.text(), other=st.text(), body=st.dictionaries(st.text(), st.text()))
def test_a_receipt_is_good_for_its_principal_and_nobody_else(
    principal: str, other: str, body: dict[str, str]
) -> None:
    receipts = Receipts(SECRET)
    conversation = conversation_of(principal, {"prompt": body})
    completion_id = receipts.mint("chat", UUID, principal, conversation)
    assert receipts.conversation(completion_id, principal) == conversation
    if other != principal:
        assert receipts.conversation(completion_id, other) is None


def test_no_character_of_a_receipt_can_be_changed() -> None:
    receipts = Receipts(SECRET)
    completion_id = receipts.mint("chat", UUID, "ann", "0123456789abcdef")
    for position, character in enumerate(completion_id):
        forged = completion_id[:position] + ("0" if character != "0" else "1") + completion_id[position + 1 :]
        assert receipts.conversation(forged, "ann") is None
    assert receipts.conversation(completion_id.replace("chatcmpl", "cmpl"), "ann") is None
    assert receipts.conversation(completion_id + "\n", "ann") is None
    assert Receipts(bytes(32)).conversation(completion_id, "ann") is None


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        Receipts(b"short")


def test_a_conversation_keeps_its_name_while_it_grows() -> None:
    system, user, answer, again = (
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "v"},
    )
    first = conversation_of("ann", {"messages": [system, user]})
    assert conversation_of("ann", {"messages": [system, user, answer, again]}) == first
    assert conversation_of("ben", {"messages": [system, user]}) != first
    assert conversation_of("ann", {"messages": [system, again]}) != first
    assert conversation_of("ann", {"messages": [user]}) != first


def test_a_given_conversation_id_counts_within_its_principal() -> None:
    body = {"metadata": {"conversation_id": "c"}, "messages": [{"role": "user", "content": "x"}]}
    other = {**body, "messages": [{"role": "user", "content": "y"}]}
    assert conversation_of("ann", body) == conversation_of("ann", other)
    assert conversation_of("ann", body) != conversation_of("ben", body)
    assert len(conversation_of("ann", body)) == 16

import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buffer.records import KeyAdded
from buffer.view import Keys as Logged
from server.config import ServerConfig
from server.identity import LOCAL, Keys, Receipts, Token, bearer, conversation_of, is_from_here

SECRET = bytes(range(32))
UUID = "01a20f57f5707000aad6684e726dc044"


def sha(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def keys_of(*logged: KeyAdded, **config: Any) -> Keys:
    added = tuple((one, 0.0) for one in logged)
    return Keys.of(ServerConfig(**config), Logged(added, bool(logged), complete=True))


def test_the_local_caller_may_do_everything() -> None:
    assert LOCAL.admin and LOCAL.may("infer") and LOCAL.may("learn")


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
    sent = bearer(header)
    found = keys_of(keys={"ann": sha("one"), "ben": sha("two")}).principal(sent) if sent else None
    assert (found.name if found else None) == name


def test_admins_are_those_listed() -> None:
    keys = keys_of(keys={"ann": sha("one"), "ben": sha("two")}, admins=["ann"])
    ann, ben = keys.principal("one"), keys.principal("two")
    assert ann is not None and ann.admin and ann.may("learn")
    assert ben is not None and not ben.admin and ben.may("infer") and not ben.may("learn")


def test_a_key_of_the_log_opens_its_scopes_and_a_configured_one_hides_it() -> None:
    logged = [
        KeyAdded(principal="cay", digest=sha("three"), scopes=["learn", "of-the-future"], by="x"),
        KeyAdded(principal="ann", digest=sha("other"), scopes=["admin"], by="x"),
    ]
    keys = keys_of(*logged, keys={"ann": sha("one")})
    cay = keys.principal("three")
    assert cay is not None and cay.may("feedback", "learn") and not cay.may("infer") and not cay.admin
    assert keys.principal("other") is None and keys.principal("one") == keys.named("ann")
    assert len(keys) == 2 and keys.ever


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


TOKENS = st.builds(Token, st.text(), st.text(), st.integers(0, 2**40))


@given(token=TOKENS)
def test_a_token_says_what_it_was_made_of_to_who_has_the_secret(token: Token) -> None:
    text = Receipts(SECRET).token(token)
    assert Receipts(SECRET).opened(text) == token
    assert Receipts(bytes(32)).opened(text) is None
    assert text.isascii() and not set(text) & set(" /?#&=+%")


@given(token=TOKENS, at=st.integers(0), by=st.characters())
def test_no_character_of_a_token_can_be_changed(token: Token, at: int, by: str) -> None:
    text = Receipts(SECRET).token(token)
    at %= len(text)
    for changed in (text[:at] + by + text[at + 1 :], text[:at] + by + text[at:], text[:at]):
        assert changed == text or Receipts(SECRET).opened(changed) is None


@given(token=TOKENS, other=TOKENS, text=st.text())
def test_a_token_cannot_be_put_together(token: Token, other: Token, text: str) -> None:
    receipts = Receipts(SECRET)
    one, two = receipts.token(token), receipts.token(other)
    mixed = one.partition(".")[0] + "." + two.partition(".")[2]
    assert token == other or receipts.opened(mixed) is None
    for forged in (text, f"apf-{text}", f"apf-{text}.{text}", f"{one.partition('.')[0]}.{text}"):
        assert receipts.opened(forged) is None


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

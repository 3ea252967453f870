"""What makes feedback acceptable: its form, and a text that a model can be taught. Pure."""

import hashlib
import json
import re
import unicodedata
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema

from buffer.exchanges import Exchange
from buffer.feedback import Feedback
from buffer.records import Check, FeedbackGiven, Message
from server.api.schemas import FeedbackFate
from server.errors import RequestRefused

T = TypeVar("T", bound=BaseModel)

MAX_BATCH = 1000
MAX_KEY = 255
DAY_S = 86400


class Form(NamedTuple):
    """What a kind of feedback consists of, beside `choice`."""

    kind: Literal["correction", "instruction", "rating", "demonstration"]
    needed: tuple[str, ...]
    optional: tuple[str, ...] = ("check",)


FORMS = (
    Form("correction", ("completion_id", "text")),
    Form("instruction", ("completion_id", "text")),
    Form("instruction", ("messages", "text")),
    Form("rating", ("completion_id", "value"), ()),
    Form("demonstration", ("messages", "text"), ("check", "completion_id")),
)

_CONTROL_TOKEN = re.compile(
    r"<[|｜][^<>|｜\n]{1,64}[|｜]>|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<(?:bos|eos|pad|unk)>"  # noqa: RUF001
)
_CONTROL_CHARACTER = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


class CheckIn(Check):
    """A check as a client gives it: what is unknown is an error there, and not when the log is read."""

    model_config = ConfigDict(extra="forbid")


def _by_form(schema: dict[str, Any]) -> None:
    """A model's schema as one object for each of `FORMS`, with what it needs and no more."""
    properties = schema.pop("properties")
    for name in ("required", "additionalProperties", "type"):
        schema.pop(name)
    schema["anyOf"] = []
    for form in FORMS:
        about = f"{'An' if form.kind[0] in 'aeiou' else 'A'} {form.kind} by {' and '.join(form.needed)}"
        own = {"kind": {"const": form.kind, "type": "string"}, "choice": properties["choice"]}
        own |= {name: properties[name]["anyOf"][0] for name in form.needed}  # the second is null
        own |= {name: properties[name] for name in form.optional}
        schema["anyOf"].append(
            {
                "title": about,
                "type": "object",
                "properties": own,
                "required": ["kind", *form.needed],
                "additionalProperties": False,
            }
        )


ROLES = ("system", "developer", "user", "assistant", "tool")
TaughtMessage = Annotated[
    dict[str, Any],
    WithJsonSchema(
        {
            "type": "object",
            "properties": {
                "role": {"type": "string", "enum": list(ROLES)},
                "content": {"type": "string"},
                "name": {"type": "string"},
            },
            "required": ["role", "content"],
            "additionalProperties": False,
        }
    ),
]


class FeedbackIn(BaseModel):
    """The body of `POST /v1/feedback`, or one item of it."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra=_by_form)
    kind: Literal["correction", "instruction", "rating", "demonstration"]
    completion_id: str | None = Field(None, max_length=200)
    choice: int = Field(0, ge=0)
    text: str | None = None
    value: float | None = Field(None, ge=-1, le=1, allow_inf_nan=False)
    messages: list[TaughtMessage] | None = Field(None, min_length=1, max_length=200)
    check: CheckIn | None = None

    def given(
        self, feedback_id: str, principal: str, *, idempotency_key: str | None, body_digest: str
    ) -> FeedbackGiven:
        """The payload for the log."""
        return FeedbackGiven(
            feedback_id=feedback_id,
            principal=principal,
            kind=self.kind,
            completion_id=self.completion_id,
            choice=self.choice,
            text=self.text,
            value=self.value,
            messages=[Message(**message) for message in self.messages] if self.messages else None,
            check=Check(contains=self.check.contains) if self.check is not None else None,
            idempotency_key=idempotency_key,
            body_digest=body_digest,
        )


class TokenWanted(BaseModel):
    """The body of `POST /v1/feedback/tokens`."""

    model_config = ConfigDict(extra="forbid", strict=True)
    completion_id: str = Field(max_length=200)
    expires_in: int = Field(7 * DAY_S, ge=1, le=90 * DAY_S, description="seconds")


def parse(body: object, max_chars: int) -> list[FeedbackIn]:
    """Check one piece of feedback or an array of them. Raises `RequestRefused` naming the first problem."""
    if not isinstance(body, list):
        return [_parse_one(body, "", max_chars)]
    if not 1 <= len(body) <= MAX_BATCH:
        raise RequestRefused(f"an array holds 1 to {MAX_BATCH} pieces of feedback, not {len(body)}")
    return [_parse_one(item, f"[{index}].", max_chars) for index, item in enumerate(body)]


def digest(body: object) -> str:
    """SHA-256 of a request's body, whatever its white space and order of keys."""
    canonical = json.dumps(body, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def steering(text: str) -> str | None:
    """What in a text would steer the model instead of being text to it: a control token or character."""
    found = _CONTROL_TOKEN.search(text) or _CONTROL_CHARACTER.search(text)
    return found.group() if found is not None else None


def check_key(key: str | None) -> str | None:
    """An `Idempotency-Key` header. Raises `RequestRefused`."""
    if key is not None and not (0 < len(key) <= MAX_KEY and key.isascii() and key.isprintable()):
        raise RequestRefused(
            f"Idempotency-Key must be 1 to {MAX_KEY} printable ASCII characters",
            code="invalid_idempotency_key",
        )
    return key


def keys_of(key: str | None, count: int) -> list[str | None]:
    """The idempotency key of each item of a request. No header can hold the separator."""
    return [key if key is None or index == 0 else f"{key}\x1f{index}" for index in range(count)]


def check_choice(feedback: FeedbackIn, exchange: Exchange | None) -> None:
    """Raise `RequestRefused` when the exchange is known and has no such choice."""
    if exchange is None:
        return
    closed, asked = exchange.closed, exchange.opened.request.get("n", 1)
    n = len(closed.choices) if closed is not None else int(asked)
    if feedback.choice >= n:
        raise RequestRefused(
            f"the completion has {n} choice(s), so there is no choice {feedback.choice}",
            f"use 0{'' if n <= 1 else f' to {n - 1}'}",
            code="no_such_choice",
            param="choice",
        )


def describe(feedback: Feedback) -> FeedbackFate:
    """What the API says about a piece of feedback."""
    given, fate = feedback.given, feedback.fate
    return {
        "id": feedback.feedback_id,
        "object": "feedback",
        "status": fate.status,
        "reason": fate.reason or None,
        "round": fate.round,
        "policy": fate.policy,
        "superseded_by": fate.by,
        "created": int(feedback.received),
        "kind": given.kind if given is not None else None,
        "completion_id": given.completion_id if given is not None else None,
        "choice": given.choice if given is not None else None,
        "text": given.text if given is not None else None,
        "value": given.value if given is not None else None,
        "check": given.check if given is not None else None,
    }


def validated(model: type[T], body: object, where: str = "") -> T:
    """A body, or the part of one that is at `where`. Raises `RequestRefused` naming the first problem."""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        param = where + ".".join(str(part) for part in first["loc"])
        raise RequestRefused(f"{param}: {first['msg']}".lstrip(": "), "see /docs", param=param) from None


def _parse_one(body: object, where: str, max_chars: int) -> FeedbackIn:
    if isinstance(body, dict) and body.get("kind") == "follow_up":
        raise RequestRefused(
            "a follow_up is recorded by the server alone, from the next turn of a conversation",
            "send the user's turn to /v1/chat/completions, or post what it says as a correction",
            param=where + "kind",
        )
    feedback = validated(FeedbackIn, body, where)
    _check_fields(feedback, where)
    if feedback.text is not None:
        _check_text(feedback.text, where + "text", max_chars)
    if feedback.check is not None:
        _check_text(feedback.check.contains, where + "check.contains", max_chars)
    if feedback.messages is not None:
        _check_messages(feedback.messages, where + "messages", max_chars)
    return feedback


def _check_fields(feedback: FeedbackIn, where: str) -> None:
    """Each kind's own fields, and no others. An instruction may say itself what was asked."""
    forms = [form for form in FORMS if form.kind == feedback.kind]
    own_question = feedback.completion_id is None and feedback.messages is not None
    _, needed, optional = forms[-1] if own_question else forms[0]
    for name in ("completion_id", "text", "value", "messages", "check"):
        present = getattr(feedback, name) is not None
        if name in needed and not present:
            raise RequestRefused(f"{where}{name} is needed for a {feedback.kind}", param=where + name)
        if present and name not in needed and name not in optional:
            hint = "say it in an instruction" if name == "text" else "leave it out"
            raise RequestRefused(f"a {feedback.kind} has no {name}", hint, param=where + name)


def _check_text(text: str, where: str, max_chars: int) -> None:
    if not any(unicodedata.category(character)[0] not in "ZC" for character in text):
        raise RequestRefused(f"{where} is empty", "say what the answer should have been", param=where)
    if len(text) > max_chars:
        raise RequestRefused(
            f"{where} has {len(text)} characters, above the limit of {max_chars}",
            "shorten it, or raise max_feedback_chars in [server]", code="text_too_long", param=where,
        )  # fmt: skip
    if (found := steering(text)) is not None:
        raise RequestRefused(
            f"{where} holds {found!r}, which steers the model instead of being text to it",
            "take it out: only plain text can be taught", code="control_tokens", param=where,
        )  # fmt: skip


def _check_messages(messages: list[dict[str, Any]], where: str, max_chars: int) -> None:
    """Everything of a message reaches the chat template, so there is nothing in it but what was looked at."""
    for index, message in enumerate(messages):
        at = f"{where}[{index}]"
        if unknown := sorted(message.keys() - {"role", "content", "name"}):
            raise RequestRefused(
                f"{at}.{unknown[0]} cannot be taught", "give role and content, and a name if there is one",
                param=f"{at}.{unknown[0]}",
            )  # fmt: skip
        if "content" not in message or not all(isinstance(value, str) for value in message.values()):
            raise RequestRefused(f"{at} must have a role and content as text", param=at)
        if message.get("role") not in ROLES:
            raise RequestRefused(f"{at}.role must be one of {', '.join(ROLES)}", param=f"{at}.role")
        for name in sorted(message.keys() - {"role"}):
            _check_text(message[name], f"{at}.{name}", max_chars)
    if messages[-1]["role"] != "user":
        raise RequestRefused(
            f"{where} must end with the user's message", "put the answer into text", param=where
        )

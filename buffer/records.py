"""What the log holds: CloudEvents 1.0 records and the payloads they carry.

A record is an envelope (`Record`) around the JSON of one payload class below. Each payload class names
its CloudEvents `type` and the stream it belongs to. Payload fields are declared here once; every other
representation (SQLite columns, Kafka headers, HTTP replies) is derived.

Pure: no clock, no randomness, no disk. Source: https://github.com/cloudevents/spec (1.0.2, Kafka binding).
"""

import base64
import sys
from array import array
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

Stream = Literal["exchanges", "feedback", "control", "rounds"]
STREAMS: tuple[Stream, ...] = ("exchanges", "feedback", "control", "rounds")
KEYED: tuple[Stream, ...] = ("exchanges", "feedback")
"""Streams with any number of partitions. The others have one each, because their order decides."""

Positions = dict[str, dict[int, int]]
"""`{stream: {partition: offset}}`: the next record to read. A missing one means from the start."""


def uuid7(time: datetime, randomness: bytes) -> str:
    """A UUIDv7 (RFC 9562, 5.7 and 6.2) as 32 hex digits, in the order of their times to the microsecond.

    48 bits of milliseconds, 12 of their fraction, then 62 random ones. `randomness` is at least 8 bytes.
    """
    if len(randomness) < 8:
        raise ValueError("uuid7 needs 8 bytes of randomness")
    microseconds = (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    milliseconds, rest = divmod(microseconds, 1000)
    head = (milliseconds & (1 << 48) - 1).to_bytes(6, "big") + (0x7000 | rest * 4096 // 1000).to_bytes(
        2, "big"
    )
    body = bytearray(randomness[:8])
    body[0] = 0x80 | body[0] & 0x3F
    return (head + bytes(body)).hex()


def _packer(typecode: str) -> tuple[BeforeValidator, PlainSerializer]:
    """A list of numbers in memory, base64 of its little-endian 4-byte form in JSON."""

    def swap(values: "array[Any]") -> "array[Any]":
        if sys.byteorder == "big":
            values.byteswap()
        return values

    def unpack(value: object) -> object:
        if not isinstance(value, str):
            return value
        values = array(typecode)
        values.frombytes(base64.b64decode(value, validate=True))
        return swap(values).tolist()

    def pack(values: list[Any]) -> str:
        return base64.b64encode(swap(array(typecode, values)).tobytes()).decode()

    return BeforeValidator(unpack), PlainSerializer(pack, return_type=str, when_used="json")


TokenIds = Annotated[list[int], *_packer("i")]
Logprobs = Annotated[list[float], *_packer("f")]


class Payload(BaseModel):
    """The data of one record. Unknown fields are ignored, so that an older reader survives a newer writer."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    stream: ClassVar[Stream]
    type: ClassVar[str]


class Message(BaseModel):
    """One chat message as OpenAI shapes it; everything beside the role is kept as it came."""

    model_config = ConfigDict(frozen=True, extra="allow")
    role: str
    content: Any = None


# --- exchanges: what was asked and answered ------------------------------------------------------------


class ExchangeOpened(Payload):
    """A request that is about to be answered. Durable before the client sees `x-captured: true`."""

    stream = "exchanges"
    type = "apprentice.exchange.opened.v1"
    completion_id: str
    principal: str
    conversation: str
    endpoint: Literal["chat", "completions"]
    policy: int
    request: dict[str, Any]
    """The client's body as accepted (messages or prompt, tools, sampling fields, metadata)."""


class Choice(BaseModel):
    """One answer. `token_ids` are what was sampled, EOS or stop tokens included; `logprobs` match them."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    index: int = 0
    message: Message | None = None
    text: str | None = None
    token_ids: TokenIds = []
    logprobs: Logprobs = []
    finish_reason: str | None = None


class ExchangeClosed(Payload):
    """How it ended. Durable before the end of the reply. An exchange may lack one: the server died."""

    stream = "exchanges"
    type = "apprentice.exchange.closed.v1"
    completion_id: str
    status: Literal["complete", "aborted", "failed"]
    prompt_token_ids: TokenIds = []
    choices: list[Choice] = []
    sampling: dict[str, Any] = {}
    """Effective sampling parameters, defaults filled in, and `logprobs_mode`."""
    usage: dict[str, Any] = {}
    error: str | None = None
    untrainable: str | None = None
    """Why its tokens must not be trained on (cut down to size, say); None when they may."""


# --- feedback ------------------------------------------------------------------------------------------

FeedbackKind = Literal["correction", "instruction", "rating", "demonstration", "follow_up"]
"""A `follow_up` is what the user said next; only a gateway records it, for the answer that it corrects."""


class Check(BaseModel):
    """How the gate may test the lesson: the answer must contain this, case-insensitively."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    contains: str = Field(min_length=1, max_length=1000)


class FeedbackGiven(Payload):
    """Somebody said what an answer should have been, how to change it, or how good it was."""

    stream = "feedback"
    type = "apprentice.feedback.given.v1"
    feedback_id: str
    principal: str
    kind: FeedbackKind
    completion_id: str | None = None
    choice: int = 0
    text: str | None = None
    value: float | None = None
    messages: list[Message] | None = None
    check: Check | None = None
    idempotency_key: str | None = None
    body_digest: str = ""
    """SHA-256 of the canonical request body: the same key with another digest is a conflict."""


class FeedbackWithdrawn(Payload):
    """Its author (or an admin) took it back: it is left out of all future rounds."""

    stream = "feedback"
    type = "apprentice.feedback.withdrawn.v1"
    feedback_id: str
    by: str


class LessonAnswered(Payload):
    """What the model answered to a lesson, before a round and after it.

    Apart from `RoundEnded`, because it quotes the lesson and is erased with it.
    """

    stream = "feedback"
    type = "apprentice.lesson.answered.v1"
    feedback_id: str
    round: int
    before: str
    answer: str


# --- control: what operators and gateways decide -------------------------------------------------------

SCOPES = ("infer", "feedback", "learn", "admin")
"""What a key may open: asking, teaching, steering the learner, everything."""


class LearningSwitched(Payload):
    """Learning paused or resumed by an operator."""

    stream = "control"
    type = "apprentice.learning.switched.v1"
    paused: bool
    by: str
    why: str = ""


class RoundRequested(Payload):
    """An operator wants a round now, on what is accepted and on feedback of the statuses in `include`."""

    stream = "control"
    type = "apprentice.round.requested.v1"
    request_id: str
    by: str
    include: list[Literal["held", "refused"]] = []


class AliasMoved(Payload):
    """The live policy changes. Readers ignore one whose `epoch` is not the alias's current epoch."""

    stream = "control"
    type = "apprentice.alias.moved.v1"
    alias: str
    version: int
    epoch: int
    why: Literal["release", "promote", "rollback"]
    by: str


class ReleaseRejected(Payload):
    """A gateway would not serve a release: its files, its load or its probe failed."""

    stream = "control"
    type = "apprentice.release.rejected.v1"
    version: int
    why: str
    by: str


class ExchangeErased(Payload):
    """An exchange and its feedback leave all reading and training. Their records are tombstoned as well."""

    stream = "control"
    type = "apprentice.exchange.erased.v1"
    completion_id: str
    by: str


class KeyAdded(Payload):
    """A principal may call from now on. Ignored while the principal has a key: that is revoked first."""

    stream = "control"
    type = "apprentice.key.added.v1"
    principal: str
    digest: str
    """Hex SHA-256 of the bearer key, which nobody keeps."""
    scopes: list[str]
    """Of `SCOPES`. Others, of a newer release, open nothing here."""
    by: str


class KeyRevoked(Payload):
    """A principal's key opens nothing any more. What it asked and taught stays its own."""

    stream = "control"
    type = "apprentice.key.revoked.v1"
    principal: str
    by: str


# --- rounds: what the learner decides ------------------------------------------------------------------

LearnerState = Literal[
    "starting", "waiting", "planning", "training", "evaluating", "publishing", "paused", "failed", "stopped"
]


class Decision(BaseModel):
    """The learner's judgement of one piece of feedback; `reason` is a stable code, `detail` is for people."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    feedback_id: str
    status: Literal["accepted", "quarantined", "skipped"]
    reason: str = ""
    detail: str = ""


class FeedbackTriaged(Payload):
    """Feedback met its exchange and was judged."""

    stream = "rounds"
    type = "apprentice.feedback.triaged.v1"
    decisions: list[Decision]


class RoundPlanned(Payload):
    """Everything that a round is a function of, written before its first step."""

    stream = "rounds"
    type = "apprentice.round.planned.v1"
    round: int
    parent: int
    lessons: list[str]
    """Ids of the feedback it learns."""
    replay: list[str] = []
    """Ids of earlier feedback it rehearses."""
    seed: int
    base: str
    """SHA-256 of the base model's weights."""
    config: dict[str, Any]
    templates: dict[str, str | int] = {}
    """Of the teacher's context (`buffer.teacher.Templates`)."""
    requests: list[str] = []
    """Ids of the `RoundRequested` records it answers."""


class Release(BaseModel):
    """An immutable adapter directory, named `VVVVVV-DDDDDDDDDDDD` after its version and digest."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    version: int
    digest: str
    directory: str


class RoundEnded(Payload):
    """The round's verdict and everything that was measured, but for what was said (`LessonAnswered`).

    A release is a round that passed.
    """

    stream = "rounds"
    type = "apprentice.round.ended.v1"
    round: int
    verdict: Literal["passed", "refused", "failed"]
    taken_back: bool = False
    """Whether it failed because somebody took back what it learned, and by no fault."""
    reasons: list[str] = []
    evaluation: dict[str, Any] = {}
    release: Release | None = None


class LearnerReported(Payload):
    """What the learner is doing and, when it does not train, why not. Only the latest one matters."""

    stream = "rounds"
    type = "apprentice.learner.reported.v1"
    state: LearnerState
    why: str
    round: int | None = None
    step: int | None = None
    steps: int | None = None
    loss: float | None = None


PAYLOADS: dict[str, type[Payload]] = {
    cls.type: cls
    for cls in (
        ExchangeOpened,
        ExchangeClosed,
        FeedbackGiven,
        FeedbackWithdrawn,
        LessonAnswered,
        LearningSwitched,
        RoundRequested,
        AliasMoved,
        ReleaseRejected,
        ExchangeErased,
        KeyAdded,
        KeyRevoked,
        FeedbackTriaged,
        RoundPlanned,
        RoundEnded,
        LearnerReported,
    )
}


class UnreadableRecord(ValueError):
    """A record whose type is unknown or whose data does not fit its type. Readers set it aside and go on."""


@dataclass(frozen=True, slots=True)
class Record:
    """One CloudEvents record. `data` is UTF-8 JSON, or None for a tombstone of the record with this `id`.

    `source` and `sequence` are filled in by the journal that first holds the record, `partition` by the
    log that it is read from: within one source and partition the sequence only grows, so a reader drops
    redelivered records by one watermark.
    `partition_key` decides the partition; records with equal keys are read in the order they were appended.
    """

    stream: Stream
    type: str
    id: str
    time: datetime
    data: bytes | None
    partition_key: str = ""
    source: str = ""
    sequence: int = 0
    partition: int = 0

    @classmethod
    def of(cls, payload: Payload, *, time: datetime, randomness: bytes, partition_key: str = "") -> Self:
        """Envelope `payload`, minting its UUIDv7 id from `time` and `randomness` (at least 8 bytes)."""
        data = payload.model_dump_json(exclude_defaults=True).encode()
        kept = time.replace(microsecond=time.microsecond // 1000 * 1000)  # as every log keeps it
        return cls(payload.stream, payload.type, uuid7(time, randomness), kept, data, partition_key)

    def tombstone(self, time: datetime) -> "Record":
        """The record that erases this one: same stream, id and partition key, no data."""
        return Record(self.stream, self.type, self.id, time, None, self.partition_key)

    def payload(self) -> Payload:
        """Parse the data. Raises `UnreadableRecord` for an unknown type, bad data or a tombstone."""
        cls = PAYLOADS.get(self.type)
        if cls is None or self.data is None:
            raise UnreadableRecord(f"no payload in {self.type} {self.id}")
        try:
            return cls.model_validate_json(self.data)
        except ValueError as error:
            raise UnreadableRecord(f"{self.type} {self.id}: {error}") from error


def timestamp(time: datetime) -> str:
    """RFC 3339 in UTC with milliseconds, as CloudEvents wants it."""
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

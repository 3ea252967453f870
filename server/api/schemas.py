"""What replies look like: the shapes that routes return, from which the OpenAPI document is made. Pure."""

from typing import Annotated, Any, Literal, NotRequired

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from buffer.fate import Status
from buffer.records import Check, FeedbackKind, LearnerState

Time = Annotated[int, Field(description="Unix seconds")]
Version = Annotated[int, Field(description="of a policy; 0 is the base model")]
RoundNumber = Annotated[int, Field(description="of a training round, from 1")]


class Error(TypedDict):
    message: str
    type: str
    param: Annotated[str | None, Field(description="the field that is wrong")]
    code: Annotated[str, Field(description="stable: for programs")]
    hint: Annotated[str | None, Field(description="the next step to take")]


class ErrorReply(TypedDict):
    """OpenAI's shape of an error, with a hint."""

    error: Error


# --- completions -----------------------------------------------------------------------------------------


@with_config(ConfigDict(extra="allow"))
class Completion(TypedDict):
    """As OpenAI defines it. The `id` is the receipt that feedback names."""

    id: str
    object: Literal["chat.completion", "text_completion"]
    created: Time
    model: str
    choices: list[dict[str, Any]]
    usage: NotRequired[dict[str, Any] | None]


class StoredCompletion(TypedDict):
    """OpenAI's chat.completion, with what was kept beside it."""

    id: str
    object: Literal["chat.completion", "text_completion"]
    created: Time
    model: str | None
    choices: list[dict[str, Any]]
    usage: dict[str, Any] | None
    metadata: dict[str, Any]
    asked: Annotated[str, Field(description="the text of the turn that was answered, without earlier ones")]
    policy: Version
    status: Literal["complete", "aborted", "failed", "unfinished"]


class StoredCompletions(TypedDict):
    object: Literal["list"]
    data: list[StoredCompletion]
    first_id: str | None
    last_id: str | None
    has_more: bool


@with_config(ConfigDict(extra="allow"))
class StoredMessage(TypedDict):
    id: str
    role: str


class StoredMessages(TypedDict):
    object: Literal["list"]
    data: list[StoredMessage]
    first_id: str | None
    last_id: str | None
    has_more: bool


class CompletionDeleted(TypedDict):
    id: str
    object: Literal["chat.completion.deleted"]
    deleted: Literal[True]


# --- models ----------------------------------------------------------------------------------------------


class Model(TypedDict):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class Models(TypedDict):
    object: Literal["list"]
    data: list[Model]


# --- feedback --------------------------------------------------------------------------------------------


class FeedbackReceived(TypedDict):
    """It is on disk."""

    id: str
    status: Literal["received"]


class FeedbackPreview(TypedDict):
    object: Literal["feedback.preview"]
    text: Annotated[str, Field(description="what the teacher answers")]
    messages: Annotated[
        list[dict[str, Any]],
        Field(description="what the teacher was asked; with a feedback token the last turn alone"),
    ]
    check_passed: bool | None


class FeedbackFate(TypedDict):
    """A piece of feedback and what became of it. What it said is null once it is erased."""

    id: str
    object: Literal["feedback"]
    status: Status
    reason: str | None
    round: RoundNumber | None
    policy: Version | None
    superseded_by: str | None
    created: Time
    kind: FeedbackKind | None
    completion_id: str | None
    choice: int | None
    text: str | None
    value: float | None
    check: Check | None


class FeedbackFates(TypedDict):
    object: Literal["list"]
    data: list[FeedbackFate]
    has_more: bool


class FeedbackToken(TypedDict):
    """As a bearer's key it opens this completion and the feedback on it, and nothing else."""

    object: Literal["feedback.token"]
    token: str
    completion_id: str
    expires_at: Time


class FeedbackGone(TypedDict):
    id: str
    object: Literal["feedback.withdrawn", "feedback.erased"]
    status: Literal["withdrawn", "erased"]


class Event(TypedDict):
    """A step on the way of a piece of feedback. Without a time where the log has none."""

    time: Time | None
    what: str
    why: str


class Explanation(TypedDict):
    """The whole path of a piece of feedback, and what happens next or what to do."""

    object: Literal["feedback.explanation"]
    feedback: FeedbackFate
    events: list[Event]
    next: str


class PrincipalCount(TypedDict):
    """How much there is, or was before it was erased."""

    id: str
    object: Literal["principal", "principal.erased"]
    exchanges: int
    feedback: int


# --- learning --------------------------------------------------------------------------------------------


class Round(TypedDict):
    round: RoundNumber
    parent: Version
    lessons: int
    replay: int
    started: Time
    ended: Time | None
    verdict: Literal["passed", "refused", "failed"] | None
    reasons: list[str]
    evaluation: Annotated[
        dict[str, Any],
        Field(description="what the gate measured; what was answered to others' lessons is left empty"),
    ]
    gate: Annotated[dict[str, float], Field(description="the limits that it was held to")]
    policy: Version | None


class Learner(TypedDict):
    """What the learner said last. `state` is null where none was ever heard of."""

    state: LearnerState | Literal["silent"] | None
    why: str
    reported: NotRequired[Time]
    round: NotRequired[RoundNumber | None]
    step: NotRequired[int | None]
    steps: NotRequired[int | None]
    loss: NotRequired[float | None]


class Learning(Learner):
    object: Literal["learning"]
    paused: bool
    paused_by: str | None
    feedback: Annotated[dict[Status, int], Field(description="how much has which status")]
    pending: Annotated[int, Field(description="lessons that no round has taken up yet")]
    rehearsed: Annotated[int, Field(description="good ratings, which every round may repeat")]
    requests: Annotated[list[str], Field(description="rounds that were asked for and have not begun")]
    last_round: Round | None
    rounds: Annotated[list[Round], Field(description="newest first")]


class RoundAsked(TypedDict):
    id: str
    object: Literal["round.requested"]
    include: list[Literal["held", "refused"]]


# --- policies --------------------------------------------------------------------------------------------


class Move(TypedDict):
    at: Time
    version: Version
    epoch: int
    why: Literal["release", "promote", "rollback"]
    by: str


class Policy(TypedDict):
    """Where a policy stands and comes from. The base model has no round, and what belongs to one is left out.

    `lessons` and `replay` are counts in a list of policies, and ids of feedback in one policy alone.
    """

    id: str
    object: Literal["policy"]
    version: Version
    live: bool
    resident: Annotated[bool, Field(description="loaded, so that it can be asked by its name")]
    waits_for: str | None
    moves: Annotated[list[Move], Field(description="when the alias was pointed at it, oldest first")]
    parent: Version | None
    round: RoundNumber | None
    verdict: Literal["passed"] | None
    lessons: NotRequired[int | list[str]]
    replay: NotRequired[int | list[str]]
    started: NotRequired[Time]
    ended: NotRequired[Time | None]
    reasons: NotRequired[list[str]]
    evaluation: NotRequired[dict[str, Any]]
    gate: NotRequired[dict[str, float]]
    policy: NotRequired[Version | None]
    digest: NotRequired[str]
    directory: NotRequired[str]
    rejected: NotRequired[Annotated[str | None, Field(description="why a server refused to serve it")]]
    config: NotRequired[dict[str, Any]]
    seed: NotRequired[int]
    base: NotRequired[Annotated[str, Field(description="SHA-256 of the base model's weights")]]


class Policies(TypedDict):
    object: Literal["list"]
    data: list[Policy]


class AliasMove(TypedDict):
    object: Literal["alias"]
    id: str
    version: Version
    was: Version
    why: Literal["promote", "rollback"]


# --- operations ------------------------------------------------------------------------------------------


class Alive(TypedDict):
    status: Literal["ok"]


class Ready(TypedDict):
    status: Literal["ready"]
    policy: Annotated[str, Field(description="the name of the live policy")]


class Caller(TypedDict):
    name: str
    admin: bool


class Health(TypedDict):
    level: Annotated[Literal["good", "note", "warn", "bad"], Field(description="of the worst thing to do")]
    says: Annotated[str, Field(description="whether it serves and learns, in a sentence")]


class ToDo(TypedDict):
    """Something that is wrong, and the next step."""

    level: Literal["bad", "warn", "note"]
    code: Annotated[str, Field(description="stable: for programs")]
    what: str
    do: str
    since: Annotated[float | None, Field(description="Unix seconds, where known")]
    action: Annotated[Literal["resume", "learn-held"] | None, Field(description="what a button can do")]


class Traffic(TypedDict):
    """Of this server, since it began or for an hour. Lists in `history` have one value a sample."""

    now: dict[str, float | None]
    hour: dict[str, Any]
    history: dict[str, list[float | None]]


class ReasonCount(TypedDict):
    status: Status
    reason: str
    count: int


class HourCount(TypedDict):
    at: Time
    count: int


class FeedbackCounts(TypedDict):
    by_status: dict[Status, int]
    by_reason: list[ReasonCount]
    arrived: Annotated[list[HourCount], Field(description="by the hour, of the last day")]


class LogState(TypedDict):
    unreadable: Annotated[str | None, Field(description="why it cannot be read now")]
    writable: bool
    lag: Annotated[int, Field(description="records that this server has not read yet")]
    used: Annotated[int, Field(description="bytes")]
    limit: Annotated[int, Field(description="bytes; 0 leaves it to the disk")]
    free: Annotated[int | None, Field(description="bytes on the disk; null for a log in memory")]
    pending: Annotated[int, Field(description="records that wait for the broker")]
    pending_since: float | None
    set_aside: Annotated[int, Field(description="records that the broker refused")]
    unreadable_messages: int
    passed_over: Annotated[dict[str, int], Field(description="records that could not be read, by type")]


class Overview(TypedDict):
    """What an operator wants to see first."""

    object: Literal["overview"]
    at: Time
    alias: str
    caller: Caller
    health: Health
    todo: Annotated[list[ToDo], Field(description="worst first")]
    traffic: Traffic
    feedback: FeedbackCounts
    log: LogState

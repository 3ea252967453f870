"""From feedback and the exchange it is about to a lesson, or to the reason why there is none. Pure.

`triage` judges each piece of feedback once. What it returns as skipped or quarantined never trains and the
reason can be read with the feedback; what must wait for its exchange is left alone.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from buffer.exchanges import Exchange
from buffer.feedback import Feedback
from buffer.records import Decision, ExchangeClosed, FeedbackGiven
from buffer.teacher import DEFAULT, TEACHER_ANSWERS, Templates, last_user_turn, teacher_messages, told
from learner.chat import after_thinking
from learner.config import LearnerConfig
from learner.lookalike import subject_of

Render = Callable[[Sequence[dict[str, Any]], Mapping[str, Any]], list[int]]
"""Messages, and what else the chat template reads, to the prompt's token ids."""

Steering = Callable[[str], str | None]
"""A text to what in it would steer the model instead of being text to it."""

Turn = Callable[[str, Mapping[str, Any]], list[int]]
"""An answer, and what else the chat template reads, to the token ids of the turn that says it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Token counts beyond which a row is left out, never truncated."""

    prompt: int
    completion: int

    @classmethod
    def of(cls, config: LearnerConfig) -> Self:
        """Those that are configured."""
        return cls(config.max_prompt_tokens, config.max_completion_tokens)


@dataclass(frozen=True, slots=True)
class Lesson:
    """What one piece of feedback teaches: how `messages` should have been answered.

    A good rating teaches nothing new: its lesson is the logged answer, to be rehearsed.
    """

    given: FeedbackGiven
    messages: list[dict[str, Any]]
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """What the chat template reads beside the messages: tools, and how much to think."""
    logged_ids: tuple[int, ...] = ()
    """What a policy of ours really answered, as sampled; empty where there is nothing to reuse."""
    logged_logprobs: tuple[float, ...] = ()
    logged_policy: int = 0
    tempered: bool = False
    """Whether it was sampled other than at T=1 from the whole distribution."""
    templates: Templates = DEFAULT
    rejected: str = ""
    """The answer that the feedback is about."""

    @property
    def feedback_id(self) -> str:
        return self.given.feedback_id

    @property
    def question(self) -> str:
        """The text of the turn being answered."""
        return str(self.messages[-1]["content"])

    @property
    def subject(self) -> str | None:
        """Of whom alone it holds. None where that is nobody, and where it says how to answer: that carries
        over."""
        return subject_of(self.question) if self.given.kind in ("correction", "follow_up") else None

    @property
    def answer(self) -> str | None:
        """The right answer; None where the feedback only says something about it and the teacher gives it."""
        return None if self.given.kind in TEACHER_ANSWERS else self.given.text or ""

    @property
    def wordless(self) -> bool:
        """Whether no words show it: an instruction without a check says how to answer, not what."""
        return self.given.kind == "instruction" and self.given.check is None

    def teacher(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]] | None:
        """The teacher's messages in place of `messages` (`buffer.teacher.teacher_messages`)."""
        return teacher_messages(messages, self.given, self.templates)


def lesson_of(
    given: FeedbackGiven, exchange: Exchange | None, templates: Templates = DEFAULT
) -> Lesson | None:
    """Join feedback to its exchange. None where the exchange is missing or is not a chat."""
    if given.messages is not None:
        asked = [as_rendered(m.model_dump(exclude_none=True)) for m in given.messages]
        return Lesson(given, asked, templates=templates)
    if exchange is None or exchange.opened.endpoint != "chat":
        return None
    request, closed = exchange.opened.request, exchange.closed
    asked = [as_rendered(m) for m in request["messages"]]
    choice = next((c for c in closed.choices if c.index == given.choice), None) if closed else None
    rejected = choice.message.content if choice is not None and choice.message is not None else None
    kwargs = template_kwargs(request)
    lesson = Lesson(given, asked, kwargs, templates=templates, rejected=rejected or "")
    if closed is None or choice is None or closed.status != "complete" or closed.untrainable:
        return lesson
    return replace(
        lesson,
        logged_ids=tuple(choice.token_ids),
        logged_logprobs=tuple(choice.logprobs),
        logged_policy=exchange.opened.policy,
        tempered=_tempered(closed),
    )


def template_kwargs(request: Mapping[str, Any]) -> dict[str, Any]:
    """What vLLM gives the chat template of a request, beside the messages.

    Source: `ChatCompletionRequest.build_chat_params` in vllm/entrypoints/openai/chat_completion/protocol.py.
    """
    effort = request.get("reasoning_effort")
    thinks = None if effort is None else effort != "none"
    tools = [_tool(tool) for tool in request.get("tools") or ()] or None
    given = {"tools": tools, "reasoning_effort": effort, "enable_thinking": thinks}
    return {name: value for name, value in given.items() if value is not None}


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    """What vLLM's `ChatCompletionToolsParam` makes of a tool, in its order."""
    told = tool["function"]
    function = {name: told.get(name) for name in ("name", "description", "parameters")}
    rare = {name: told[name] for name in ("strict", "defer_loading") if told.get(name) is not None}
    return {"type": "function", "function": {**function, **rare}}


def as_rendered(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as vLLM hands it to the chat template: no content is empty text, and the arguments of a call
    are an object.

    Source: `parse_chat_messages` in vllm/renderers/chat_utils.py.
    """
    role, calls = message["role"], message.get("tool_calls") if message["role"] == "assistant" else None
    reasoning = message.get("reasoning") if role == "assistant" else None
    more = {
        "tool_calls": [_call(call) for call in calls or ()] or None,
        "reasoning": reasoning,
        "reasoning_content": reasoning,
        "tool_call_id": message.get("tool_call_id") if role == "tool" else None,
        "name": message.get("name"),
    }
    said = {"role": role, "content": message.get("content") or ""}
    return {**said, **{name: value for name, value in more.items() if value is not None}}


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    try:
        arguments = json.loads(call["function"].get("arguments") or "{}")
    except ValueError:
        arguments = {}
    function = {
        "arguments": arguments if isinstance(arguments, dict) else {},
        "name": call["function"]["name"],
    }
    return {"id": call["id"], "function": function, "type": "function"}


def triage(
    feedback: Feedback,
    exchange: Exchange | None,
    render: Render,
    turn: Turn,
    steering: Steering,
    limits: Limits,
    templates: Templates = DEFAULT,
) -> Decision | None:
    """Judge one piece of feedback, or None to let it wait: its exchange has not arrived yet."""
    given = feedback.given
    if given is None:
        return None

    def skip(reason: str, detail: str) -> Decision:
        return Decision(feedback_id=given.feedback_id, status="skipped", reason=reason, detail=detail)

    if given.kind == "rating" and (given.value or 0.0) <= 0.0:
        return skip("rating_only", "a bad rating does not say what the answer should have been")
    if given.kind == "follow_up" and told(given) is None:
        return skip("no_hint", "the user's next turn says that the answer was wrong, not what would be right")
    if given.messages is None and exchange is None:
        return None
    lesson = lesson_of(given, exchange, templates)
    if lesson is None:
        return skip("not_a_chat", "only answers of /v1/chat/completions can be taught")
    if last_user_turn(lesson.messages) is None:
        return skip("no_user_turn", "the last message must be a user's plain text")
    texts = [*map(str, lesson.messages), given.text or ""]
    if (found := next(filter(None, map(steering, texts)), None)) is not None:
        return Decision(
            feedback_id=given.feedback_id,
            status="quarantined",
            reason="control_tokens",
            detail=f"{found!r}, in the conversation or in what was said to it, steers the model",
        )
    rated = given.kind == "rating"
    if rated and exchange is not None and exchange.closed is None:
        return None
    if rated and not 0 < len(lesson.logged_ids) <= limits.completion:
        return skip("not_rehearsable", "of the rated answer no tokens were kept, or too many to rehearse it")
    teacher = lesson.messages if rated else lesson.teacher(lesson.messages)
    if teacher is None:
        return skip("no_teacher", f"a {given.kind} without text gives the teacher nothing to go by")
    prompt = render(lesson.messages, lesson.template_kwargs)
    captured = (
        exchange.closed.prompt_token_ids if exchange is not None and exchange.closed is not None else []
    )
    if captured and list(captured) != prompt:
        return skip("template_mismatch", "the chat template no longer renders the prompt that was served")
    if len(render(teacher, lesson.template_kwargs)) > limits.prompt:
        return skip("prompt_too_long", f"the teacher's prompt is over {limits.prompt} tokens")
    if lesson.answer is not None and len(turn(lesson.answer, lesson.template_kwargs)) > limits.completion:
        return skip("answer_too_long", f"the right answer is over {limits.completion} tokens")
    return Decision(feedback_id=given.feedback_id, status="accepted")


def _tempered(closed: ExchangeClosed) -> bool:
    sampling = closed.sampling
    return (
        sampling.get("temperature", 1.0) != 1.0
        or sampling.get("top_p", 1.0) != 1.0
        or sampling.get("top_k", 0) not in (0, -1)
        or any(sampling.get(k, 0.0) for k in ("presence_penalty", "frequency_penalty", "min_p"))
        or sampling.get("repetition_penalty", 1.0) != 1.0
    )


_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u9fff]+")
"""Each sign of Japanese and Chinese, which put no space between words, counts as one."""


def answered(answer: str, lesson: Lesson) -> bool:
    """Whether an answer shows the lesson, which must not be `wordless`.

    With a `check`: it contains the text asked for. Otherwise it has at least half of the words that the
    correction adds to the question and to the answer that it corrects (to the question alone, where it only
    takes away), whatever their case; a correction that adds none is looked for whole, a "yes" or "no" at the
    start. Of a follow-up its hint counts. What a model that thinks thought before an answer is no part of it.
    """
    given, answer = lesson.given, after_thinking(answer)
    if given.check is not None:
        return given.check.contains.casefold() in answer.casefold()
    said, heard = (_WORD.findall(text.casefold()) for text in (told(given) or "", answer))
    new = set(said) - set(_WORD.findall(lesson.question.casefold())) - _FILLER
    new = new - set(_WORD.findall(after_thinking(lesson.rejected).casefold())) or new
    if new:
        return len(new & set(heard)) * 2 >= len(new)
    if not said or said in (["yes"], ["no"]):
        return heard[:1] == said[:1]
    return any(heard[at : at + len(said)] == said for at in range(len(heard)))


_FILLER = frozenset(
    """a an the is are was were be been it its this that of in on at to for from by with and or as he she they
    his her their you your i we our not no yes called named has have had do does did s re t ll ve""".split()
)

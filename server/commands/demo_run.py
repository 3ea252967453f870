"""One run of the demo: ask, correct, wait for the round, ask again; with the official `openai` client."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import openai

from server.commands import demo_report as report
from server.commands.client import START_HINT, CallFailed, Client, ServerSilent, segment
from server.commands.command import CommandError
from server.commands.demo_facts import Fact, lessons
from server.commands.learning_text import progress, verdict

MAX_TOKENS = 48
ASKED_AT_ONCE = 8
"""Questions that wait for their answers together, as a server is used."""
POLL_S = 1.0
PATIENCE_S = 180.0
"""How long a server that is restarting is waited for."""
STARTING_S, IDLE_S = 20.0, 120.0
"""How long a learner is waited for before the demo begins, and one that is restarted in its middle."""

SETTLED = frozenset(
    {"served", "refused", "quarantined", "skipped", "held", "superseded", "withdrawn", "erased"}
)
"""Statuses at which a correction waits for nothing more."""

T = TypeVar("T")


@dataclass(frozen=True)
class Reply:
    """An answer, its receipt, and the policy that gave it."""

    text: str
    completion_id: str
    policy: str


class Screen(Protocol):
    """Where a run is watched: lines that stay, and one that changes."""

    def say(self, text: str) -> None: ...

    def live(self, text: str) -> None: ...


class Demo:
    """One run against one server. `screen` shows the person who watches what happens."""

    def __init__(self, client: Client, model: str, screen: Screen, *, timeout_s: float) -> None:
        self._openai = openai.OpenAI(
            base_url=f"{client.url}/v1", api_key=client.key or "none", max_retries=20, timeout=120
        )
        self._client = client
        self._model = model
        self._screen = screen
        self._timeout_s = timeout_s

    def run(self, facts: Sequence[Fact], *, rounds: int, shuffled: bool) -> report.Outcome:
        """Ask, teach in up to `rounds` rounds, each time ask again and in other words."""
        taught = lessons(facts, shuffled=shuffled)
        replies = self._ask_all("asking", [fact.question for fact in facts])
        findings = [
            report.Finding(f, before=r.text, after=r.text) for f, r in zip(facts, replies, strict=True)
        ]
        outcome = report.Outcome(findings, policy=replies[0].policy)
        if report.knew_before(outcome):
            return outcome
        for number in range(1, rounds + 1):
            todo = report.to_teach(findings, taught)
            if not todo:
                break
            self._screen.say(f"attempt {number}: posting {len(todo)} corrections")
            ids = [self.correct(replies[i], taught[i]) for i in todo]
            posted = time.monotonic()
            served = self.wait_for(ids).count("served")
            replies, seconds = self._ask_again(facts, outcome.policy, posted, swapped=served > 0)
            phrasings = zip(*(fact.paraphrases for fact in facts), strict=True)
            otherwise = [self._ask_all("asking in other words", phrasing) for phrasing in phrasings]
            for finding, reply, *others in zip(findings, replies, *otherwise, strict=True):
                finding.after = reply.text
                finding.paraphrased = [other.text for other in others]
            outcome.policy = replies[0].policy
            outcome.rounds.append(report.TaughtRound(len(todo), served, outcome.policy, seconds))
            self._screen.say(
                f"attempt {number}: {outcome.after} of {len(facts)} answered by {outcome.policy}, "
                f"{outcome.paraphrased} in other words"
            )
        outcome.drift = self._drift(outcome.policy)
        return outcome

    # --- steps ---------------------------------------------------------------------------------------

    def ask(self, question: str) -> Reply:
        """One greedy answer."""
        try:
            raw = self._openai.chat.completions.with_raw_response.create(
                model=self._model,
                messages=[{"role": "user", "content": question}],
                temperature=0,
                max_tokens=MAX_TOKENS,
            )
        except openai.OpenAIError as error:
            raise CommandError(f"the question could not be asked: {error}", START_HINT) from None
        completion = raw.parse()
        return Reply(
            completion.choices[0].message.content or "", completion.id, raw.headers.get("x-policy", "")
        )

    def correct(self, reply: Reply, lesson: Fact) -> str:
        """Say what the answer should have been; the feedback's id. Posting twice changes nothing."""
        body = {
            "completion_id": reply.completion_id,
            "kind": "correction",
            "text": lesson.correction,
            "check": {"contains": lesson.key},
        }
        headers = {"Idempotency-Key": f"demo-{reply.completion_id}"}
        return str(self._patiently(lambda: self._client.post("/v1/feedback", body, headers))["id"])

    def wait_for(self, ids: Sequence[str]) -> list[str]:
        """Follow the learner until every correction is served or will not be. Returns their statuses."""
        moved = busy = time.monotonic()
        seen = ""
        while True:
            fates = [self._get(f"/v1/feedback/{segment(one)}") for one in ids]
            learning = self._get("/v1/learning")
            if all(fate["status"] in SETTLED for fate in fates):
                self._tell_verdict(learning, fates)
                return [str(fate["status"]) for fate in fates]
            line = progress(learning)
            self._screen.live(line)
            now = time.monotonic()
            if line != seen:
                seen, moved = line, now
            if (idle := why_idle(learning)) is None:
                busy = now
            elif now > busy + IDLE_S:
                raise idle
            if now > moved + self._timeout_s:
                raise CommandError(
                    f"the learner has not moved for {self._timeout_s:.0f} s: {line}",
                    "see `apprentice status` and the learner's log, or give it more time with --timeout",
                )
            time.sleep(POLL_S)

    def check_learner(self) -> None:
        """Wait for a learner that is starting. Raises `CommandError` unless something is there to learn."""
        began = time.monotonic()
        while idle := why_idle(learning := self._client.get("/v1/learning")):
            if learning["paused"] or time.monotonic() > began + STARTING_S:
                raise idle
            time.sleep(POLL_S)

    def _ask_all(self, what: str, questions: Sequence[str]) -> list[Reply]:
        self._screen.say(f"{what}: {len(questions)} questions")
        with ThreadPoolExecutor(max_workers=ASKED_AT_ONCE) as pool:
            return list(pool.map(self.ask, questions))

    def _ask_again(
        self, facts: Sequence[Fact], old: str, posted: float, *, swapped: bool
    ) -> tuple[list[Reply], float | None]:
        """All answers, and the seconds from `posted` to the first of them by a new policy, if one came."""
        deadline = time.monotonic() + self._timeout_s
        first = self.ask(facts[0].question)
        while swapped and first.policy == old and time.monotonic() < deadline:
            time.sleep(POLL_S / 4)  # the log has the swap, and this gateway is about to make it
            first = self.ask(facts[0].question)
        seconds = time.monotonic() - posted if first.policy != old else None
        return [first, *self._ask_all("asking again", [fact.question for fact in facts[1:]])], seconds

    def _tell_verdict(self, learning: dict[str, Any], fates: Sequence[dict[str, Any]]) -> None:
        if last := learning.get("last_round"):
            self._screen.say(f"  {verdict(last)}")
        for fate in fates:
            if fate["status"] != "served":
                self._screen.say(
                    f"    a correction is {fate['status']}: {fate.get('reason') or 'no reason given'}"
                )

    def _drift(self, policy: str) -> float | None:
        version = policy.rpartition("@")[2]
        if not version.isdigit() or int(version) == 0:
            return None
        found = self._client.get(f"/v1/policies/{int(version)}")
        drift = (found.get("evaluation") or {}).get("drift")
        return float(drift) if drift is not None else None

    def _get(self, path: str) -> Any:
        return self._patiently(lambda: self._client.get(path))

    def _patiently(self, call: Callable[[], T]) -> T:
        """`call`, again while the server is being restarted."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return call()
            except (ServerSilent, CallFailed) as error:
                gone = isinstance(error, ServerSilent) or error.status == 503
                if not gone or time.monotonic() > deadline:
                    raise
            time.sleep(POLL_S)


def why_idle(learning: dict[str, Any]) -> CommandError | None:
    """What keeps the learner from training at all, if anything does."""
    if learning["paused"]:
        return CommandError(
            f"learning was paused by {learning.get('paused_by')}",
            "resume it: POST /v1/learning/resume, with an admin's key",
        )
    if learning["state"] == "failed":
        return CommandError(
            f"the learner has given up: {learning.get('why')}", "look at its log and mend the cause first"
        )
    if learning["state"] in (None, "silent", "stopped"):
        return CommandError(
            f"the learner is not running: {learning.get('why')}",
            "`apprentice up` starts it together with the server, `apprentice learn` alone",
        )
    return None

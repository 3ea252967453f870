"""What can go wrong in the server.

ServerError
├── EngineUnavailable    vLLM is starting, restarting or down: come back after `retry_after_s`
│   └── EngineLost       the connection broke in the middle of a call: vLLM may have ended at it
├── EngineRefused        vLLM answered a call of ours with an error
├── PolicyNotResident    the policy asked for is not (or no longer) loaded
├── ReleaseRefused       a release failed its check of files, its load or its probe
│   └── ReleaseForeign   it needs another alias, base model or rank than this server has: no fault of its own
└── RequestRefused       the caller's request cannot be served as it is; its own `code`, `status` and `param`

Each carries a stable `code`, the HTTP `status` it becomes, and a `hint` naming the next step. They are caught
at the request handler and in the policy follower, nowhere else.
"""


class ServerError(Exception):
    """Root of this package's errors. `str()` of it is the message."""

    code: str = "server_error"
    status: int = 500

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class EngineUnavailable(ServerError):
    """The engine cannot answer now."""

    code = "engine_unavailable"
    status = 503

    def __init__(self, message: str, hint: str = "", *, retry_after_s: float = 5.0) -> None:
        super().__init__(message, hint or f"Try again in {retry_after_s:.0f} seconds.")
        self.retry_after_s = retry_after_s


class EngineLost(EngineUnavailable):
    """The connection broke before the answer had come: vLLM has ended, perhaps because of what was asked."""


class EngineRefused(ServerError):
    """The engine answered, and the answer is an error. `answer` is the status it gave.

    From 500 on it may speak of the engine alone: vLLM gives any fault in loading an adapter as a 500, its own
    end included.
    """

    code = "engine_refused"
    status = 502

    def __init__(self, message: str, hint: str = "", *, answer: int) -> None:
        super().__init__(message, hint)
        self.answer = answer


class PolicyNotResident(ServerError):
    """No such policy is loaded, or it is being drained."""

    code = "policy_not_resident"
    status = 404


class ReleaseRefused(ServerError):
    """The release must not be served. The message says which of its checks failed, with numbers."""

    code = "release_refused"
    status = 409


class ReleaseForeign(ReleaseRefused):
    """The release needs another alias, base model or `max_lora_rank`, which other servers may have: it is no
    verdict."""

    code = "release_foreign"


class RequestRefused(ServerError):
    """The caller must change something, or come back later: after `retry_after_s`, where that is known.

    `param` names the field that is wrong.
    """

    code = "invalid_request"
    status = 400

    def __init__(
        self,
        message: str,
        hint: str = "",
        *,
        code: str = "",
        status: int = 400,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, hint)
        self.code = code or self.code
        self.status = status
        self.param = param
        self.retry_after_s = retry_after_s

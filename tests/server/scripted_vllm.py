"""vLLM's HTTP side as a script: the routes, the SSE, the token ids and the log-probabilities, no model.

The last user message steers it: what it says is its answer, word by word, one word a token. `/fail` makes it
answer 500, `/break` cuts the connection after two tokens, `/error` sends an error inside the stream, `/slow`
waits for `release` before each token, `/tool` calls the first tool.

As a process: `python -m tests.server.scripted_vllm SOCKET`.
"""

import asyncio
import json
import sys
from collections import deque
from pathlib import Path
from typing import Any

from aiohttp import web

from buffer.adapters import MANIFEST, Manifest

PROMPT_IDS = [1, 2, 3]


def words(text: str) -> list[str]:
    """Tokens: each word with the space before it."""
    return [w if i == 0 else f" {w}" for i, w in enumerate(text.split(" "))] if text else []


def token_id(word: str) -> int:
    return 100 + sum(word.encode()) % 50000


def score(model: str, token: int) -> float:
    """What a prompt's token is worth to a policy: every version differs from all others."""
    return -1.0 - int(model.rpartition("@")[2]) - token / 1_000_000


def logprob(word: str) -> float:
    return -0.125 * len(word)


class ScriptedVLLM:
    """Serves on a unix socket; `requests` holds what it was asked last."""

    def __init__(self) -> None:
        self.requests: deque[dict[str, Any]] = deque(maxlen=100)
        self.headers: deque[dict[str, str]] = deque(maxlen=100)
        self.loaded: dict[str, str] = {}
        self.refuse_loads = False
        self.release = asyncio.Event()
        self.aborted = asyncio.Event()
        self._runner: web.AppRunner | None = None

    async def start(self, socket: Path) -> None:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/completions", self._completions)
        app.router.add_post("/v1/load_lora_adapter", self._load)
        app.router.add_post("/v1/unload_lora_adapter", self._unload)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(app, handler_cancellation=True)
        await self._runner.setup()
        await web.UnixSite(self._runner, str(socket)).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    # --- adapters and health -----------------------------------------------------------------------

    async def _models(self, _: web.Request) -> web.Response:
        base = {"id": "apprentice@base", "root": "/model", "parent": None}
        cards = [{"id": n, "root": r, "parent": "apprentice@base"} for n, r in self.loaded.items()]
        return web.json_response({"object": "list", "data": [base, *cards]})

    async def _load(self, request: web.Request) -> web.Response:
        body = await request.json()
        if self.refuse_loads:
            return web.json_response({"error": {"message": "no such adapter"}}, status=404)
        self.loaded[body["lora_name"]] = body["lora_path"]
        return web.Response(text="ok")

    async def _unload(self, request: web.Request) -> web.Response:
        self.loaded.pop((await request.json())["lora_name"], None)
        return web.Response(text="ok")

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(
            text="# HELP vllm:num_requests_running Running.\n# TYPE vllm:num_requests_running gauge\n"
            'vllm:num_requests_running{model_name="x"} 0.0\n'
            "# HELP vllm:lora_requests_info Adapters.\n# TYPE vllm:lora_requests_info gauge\n"
            'vllm:lora_requests_info{running_lora_adapters="a@000001"} 1.0\n'
        )

    # --- completions ---------------------------------------------------------------------------------

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await self._take(request)
        text = str(body["messages"][-1].get("content"))
        return await self._answer(request, body, text, chat=True)

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        body = await self._take(request)
        if body.get("prompt_logprobs") is not None:
            return self._scored(body)
        return await self._answer(request, body, str(body["prompt"]), chat=False)

    def _scored(self, body: dict[str, Any]) -> web.Response:
        """What an adapter should compute by the probe in its manifest; without one, by `score`."""
        (prompt,), model = body["prompt"], body["model"]
        manifest = Path(self.loaded.get(model, "")) / MANIFEST
        probes = Manifest.model_validate_json(manifest.read_bytes()).probes if manifest.is_file() else []
        told = probes[0].candidate if probes else [score(model, token) for token in prompt[1:]]
        scores = zip(prompt[1:], told, strict=True)
        scored = [None, *({str(token): {"logprob": one}} for token, one in scores)]
        return web.json_response({"choices": [{"prompt_logprobs": scored, "token_ids": [1]}]})

    async def _take(self, request: web.Request) -> dict[str, Any]:
        body: dict[str, Any] = await request.json()
        self.requests.append(body)
        self.headers.append(dict(request.headers))
        return body

    async def _answer(
        self, request: web.Request, body: dict[str, Any], text: str, *, chat: bool
    ) -> web.StreamResponse:
        if text.startswith("/fail"):
            return web.json_response({"error": {"message": "it broke", "type": "x", "code": 500}}, status=500)
        if text.startswith("/long"):
            message = "This model's maximum context length is 8 tokens."
            return web.json_response({"error": {"message": message, "param": "input_tokens"}}, status=400)
        tool = chat and text.startswith("/tool")
        tokens = words("call it" if tool else text)
        if body.get("stream"):
            return await self._stream(request, body, tokens, chat=chat, tool=tool)
        if text.startswith("/slow"):
            await self._wait()
        n = body.get("n", 1)
        reply: dict[str, Any] = {
            "id": "vllm-id",
            "object": "chat.completion" if chat else "text_completion",
            "created": 1,
            "model": body["model"],
            "choices": [_whole(i, tokens, chat=chat, tool=tool) for i in range(n)],
            "usage": _usage(tokens),
            "kv_transfer_params": None,
            "prompt_logprobs": None,
        }
        if chat:
            reply["prompt_token_ids"] = PROMPT_IDS
        return web.json_response(reply)

    async def _stream(
        self, request: web.Request, body: dict[str, Any], tokens: list[str], *, chat: bool, tool: bool
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)

        async def send(choices: list[dict[str, Any]], **more: Any) -> None:
            kind = "chat.completion.chunk" if chat else "text_completion"
            chunk = {
                "id": "vllm-id",
                "object": kind,
                "created": 1,
                "model": body["model"],
                "choices": choices,
            }
            await response.write(b"data: " + json.dumps({**chunk, **more}).encode() + b"\n\n")

        if chat:
            start = {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None}
            await send([{**start, "finish_reason": None}], prompt_token_ids=PROMPT_IDS)
        for position, word in enumerate(tokens):
            if tokens[0] == "/slow" and position >= 2:
                await self._wait()
            if tokens[0] == "/break" and position == 2:
                await asyncio.sleep(0.1)  # what is unread when a connection breaks is lost
                assert request.transport is not None
                request.transport.close()
                return response
            if tokens[0] == "/error" and position == 2:
                await response.write(b'data: {"error": {"message": "out of memory"}}\n\ndata: [DONE]\n\n')
                return response
            last = position == len(tokens) - 1
            await send([_piece(word, last, position == 0, chat=chat, tool=tool)])
        await send([], usage=_usage(tokens))
        await response.write(b"data: [DONE]\n\n")
        return response

    async def _wait(self) -> None:
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.aborted.set()
            raise


def _usage(tokens: list[str]) -> dict[str, int]:
    total = len(PROMPT_IDS) + len(tokens)
    return {"prompt_tokens": len(PROMPT_IDS), "completion_tokens": len(tokens), "total_tokens": total}


def _logprobs(tokens: list[str], *, chat: bool) -> dict[str, Any]:
    if chat:
        return {
            "content": [
                {"token": w, "logprob": logprob(w), "bytes": None, "top_logprobs": []} for w in tokens
            ]
        }
    return {
        "tokens": tokens,
        "token_logprobs": [logprob(w) for w in tokens],
        "text_offset": [0] * len(tokens),
        "top_logprobs": None,
    }


def _whole(index: int, tokens: list[str], *, chat: bool, tool: bool) -> dict[str, Any]:
    choice: dict[str, Any] = {
        "index": index,
        "logprobs": _logprobs(tokens, chat=chat),
        "finish_reason": "tool_calls" if tool else "stop",
        "stop_reason": None,
        "token_ids": [token_id(w) for w in tokens],
    }
    if not chat:
        return {**choice, "text": "".join(tokens), "prompt_token_ids": PROMPT_IDS, "prompt_logprobs": None}
    calls = [{"id": "call-1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}]
    message = {
        "role": "assistant",
        "content": None if tool else "".join(tokens),
        "refusal": None,
        "annotations": None,
        "audio": None,
        "function_call": None,
        "tool_calls": calls if tool else [],
        "reasoning": None,
    }
    return {**choice, "message": message}


def _piece(word: str, last: bool, first: bool, *, chat: bool, tool: bool) -> dict[str, Any]:
    choice: dict[str, Any] = {
        "index": 0,
        "logprobs": _logprobs([word], chat=chat),
        "finish_reason": ("tool_calls" if tool else "stop") if last else None,
        "token_ids": [token_id(word)],
    }
    if not chat:
        return {**choice, "text": word, "prompt_token_ids": PROMPT_IDS if first else None}
    if not tool:
        return {**choice, "delta": {"content": word}}
    call = (
        {"index": 0, "id": "call-1", "type": "function", "function": {"name": "f", "arguments": '{"a"'}}
        if first
        else {"index": 0, "function": {"arguments": ":1}"}}
    )
    return {**choice, "delta": {"tool_calls": [call]}}


async def _serve(socket: Path) -> None:
    await ScriptedVLLM().start(socket)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1])))

"""What the server asks of vLLM, over HTTP on a unix socket or an address.

`score` is the ground truth of a swap: the log-probabilities that vLLM really serves under a policy's name.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from server.errors import EngineLost, EngineRefused, EngineUnavailable

_CALL_TIMEOUT_S = 120.0


class EngineClient:
    """The calls. `open` before the first, `close` after the last; every call may raise `EngineUnavailable`.

    `url` is `http://host:port` or `unix:/path`.
    """

    def __init__(self, url: str, *, api_key: str | None = None, load_timeout_s: float = 120.0) -> None:
        self.url = url
        self.expected: set[str] = set()
        """Names loaded and not unloaded through this client: when vLLM has lost one, it was restarted."""
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._load_timeout_s = load_timeout_s
        self._loading = asyncio.Lock()
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Make the connection pool; nothing is sent."""
        # No limit: how many run at once is vLLM's to schedule, and a health check must not queue behind them.
        path = self.url.removeprefix("unix:")
        on_socket = path != self.url
        self._session = aiohttp.ClientSession(
            base_url="http://engine" if on_socket else self.url,
            connector=aiohttp.UnixConnector(path, limit=0) if on_socket else aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
            headers=self._headers,
        )
        self.expected.clear()

    async def close(self) -> None:
        """Drop every connection; what was running ends in `EngineUnavailable`."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    @asynccontextmanager
    async def post(
        self, path: str, json: Any, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send `json` to `path` and yield the answer, whatever its status, body unread; for streams too.

        A connection that breaks, before the answer or inside the block, raises `EngineLost`, and one that
        cannot be made `EngineUnavailable`. Leaving the block early aborts the request in vLLM.
        """
        async with self._request("POST", path, json=json, headers=headers) as response:
            yield response

    async def load(self, name: str, directory: Path) -> None:
        """Load an adapter under a new name; the same name and directory again changes nothing.

        One load at a time, because each stalls every running answer. Raises `EngineRefused`.
        """
        async with self._loading:
            if (await self._cards()).get(name) != str(directory):
                # never load_inplace: it is sticky, and re-reads the disk at every step
                body = {"lora_name": name, "lora_path": str(directory)}
                await self._call("POST", "/v1/load_lora_adapter", body, timeout_s=self._load_timeout_s)
            self.expected.add(name)

    async def unload(self, name: str) -> None:
        """Forget a name. Running requests finish; a name that is not loaded is fine."""
        self.expected.discard(name)
        try:
            await self._call("POST", "/v1/unload_lora_adapter", {"lora_name": name})
        except EngineRefused as error:
            if error.answer != 404:
                raise

    async def loaded(self) -> set[str]:
        """The adapters' names that vLLM knows."""
        return set(await self._cards())

    async def score(self, model: str, token_ids: Sequence[int]) -> list[float]:
        """Log-probability (nats, T=1) of each token given those before; entry k is that of `token_ids[k+1]`.

        One token is sampled as well, so `token_ids` must be shorter than the context.
        """
        body = _greedy(model, token_ids, max_tokens=1) | {"prompt_logprobs": 0}
        choice = (await self._completion(body))["prompt_logprobs"]
        return [float(at[str(token)]["logprob"]) for at, token in zip(choice[1:], token_ids[1:], strict=True)]

    async def generate(self, model: str, token_ids: Sequence[int], *, max_tokens: int) -> list[int]:
        """Greedy continuation, as token ids."""
        body = _greedy(model, token_ids, max_tokens=max_tokens) | {"return_token_ids": True}
        return [int(token) for token in (await self._completion(body))["token_ids"]]

    async def metrics_text(self) -> str:
        """vLLM's own metrics in Prometheus' text format."""
        return await self._call("GET", "/metrics", timeout_s=10.0)

    async def healthy(self, timeout_s: float) -> None:
        """Raise `EngineUnavailable` unless vLLM answers, is well, and still has all adapters it was given."""
        try:
            await self._call("GET", "/health", timeout_s=timeout_s)
            lost = self.expected - set(await self._cards(timeout_s))
        except EngineRefused as error:
            raise EngineUnavailable(error.message) from error
        if lost & self.expected:
            raise EngineUnavailable(f"vLLM was restarted: it no longer has {', '.join(sorted(lost))}")

    async def _cards(self, timeout_s: float = _CALL_TIMEOUT_S) -> dict[str, str]:
        """Adapter name to the directory it was loaded from. Only base models have no parent."""
        models = json.loads(await self._call("GET", "/v1/models", timeout_s=timeout_s))["data"]
        return {card["id"]: card["root"] for card in models if card["parent"]}

    async def _completion(self, body: dict[str, Any]) -> dict[str, Any]:
        answer = json.loads(await self._call("POST", "/v1/completions", body))
        choice: dict[str, Any] = answer["choices"][0]
        return choice

    async def _call(
        self, method: str, path: str, body: Any = None, *, timeout_s: float = _CALL_TIMEOUT_S
    ) -> str:
        """One small request, read to its end.

        Raises `EngineRefused` with vLLM's own message, and `EngineUnavailable` where that is "not now".
        """
        try:
            async with asyncio.timeout(timeout_s), self._request(method, path, json=body) as response:
                text = await response.text()
                status = response.status
        except TimeoutError as error:
            raise EngineUnavailable(f"vLLM did not answer {path} within {timeout_s:.0f} s") from error
        if status in (429, 503):
            raise EngineUnavailable(f"vLLM answered {path} with {status}: {_message(text)}")
        if status != 200:
            raise EngineRefused(f"vLLM answered {path} with {status}: {_message(text)}", answer=status)
        return text

    @asynccontextmanager
    async def _request(
        self, method: str, path: str, *, json: Any, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        if self._session is None:
            raise EngineUnavailable("vLLM is not running")
        try:
            async with self._session.request(method, path, json=json, headers=headers) as response:
                yield response
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise EngineUnavailable(f"vLLM cannot be reached: {error}") from error
        except aiohttp.ClientError as error:
            raise EngineLost(f"the connection to vLLM failed: {error}") from error


def _greedy(model: str, token_ids: Sequence[int], *, max_tokens: int) -> dict[str, Any]:
    return {"model": model, "prompt": [list(token_ids)], "max_tokens": max_tokens, "temperature": 0}


def _message(text: str) -> str:
    """The message inside an OpenAI error body, or the start of whatever else it is."""
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return text[:300]

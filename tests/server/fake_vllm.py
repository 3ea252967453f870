"""A process that behaves like vLLM's API server as far as `Engine` looks: `fake_vllm.py SOCKET`.

`POST /hang` makes it answer nothing any more, `POST /exit` ends it with code 3 after an error in its log,
`POST /slow` never answers while the rest does.
"""

import asyncio
import os
import sys

from aiohttp import web
from aiohttp.typedefs import Handler


def app() -> web.Application:
    loaded: dict[str, str] = {}
    hanging = False

    @web.middleware
    async def hang(request: web.Request, handler: Handler) -> web.StreamResponse:
        if hanging:
            await asyncio.sleep(3600)
        return await handler(request)

    async def control(request: web.Request) -> web.StreamResponse:
        nonlocal hanging
        match request.match_info["what"]:
            case "hang":
                hanging = True
            case "exit":
                print("RuntimeError: the worker is gone", flush=True)
                os._exit(3)
            case "slow":
                await asyncio.sleep(3600)
            case "echo":
                return web.json_response(await request.json())
        return web.Response()

    async def load(request: web.Request) -> web.Response:
        body = await request.json()
        if "missing" in body["lora_path"]:
            return web.json_response({"error": {"message": "no adapter found"}}, status=404)
        if "busy" in body["lora_path"]:
            return web.json_response({"error": {"message": "not now"}}, status=503)
        loaded[body["lora_name"]] = body["lora_path"]
        return web.Response()

    async def models(_: web.Request) -> web.Response:
        cards = [{"id": name, "root": path, "parent": "base"} for name, path in loaded.items()]
        return web.json_response({"data": [{"id": "base", "root": "/m", "parent": None}, *cards]})

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(
            text='vllm:num_requests_running{engine="0"} 1.0\nvllm:generation_tokens_total{engine="0"} 7.0\n'
        )

    async def ok(_: web.Request) -> web.Response:
        return web.Response()

    app = web.Application(middlewares=[hang])
    app.router.add_get("/health", ok)
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/v1/models", models)
    app.router.add_post("/v1/load_lora_adapter", load)
    app.router.add_post("/{what}", control)
    return app


if __name__ == "__main__":
    web.run_app(app(), path=sys.argv[1], print=None, shutdown_timeout=0)

"""The pages for people: static files that hold no data; their scripts call the API with the reader's key."""

from pathlib import Path

from fastapi import APIRouter, Response
from fastapi.responses import FileResponse

from server.errors import RequestRefused

WEB = Path(__file__).parents[1] / "web"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
FILES = {path.relative_to(WEB).as_posix(): path for path in WEB.rglob("*") if path.suffix in TYPES}
"""All that is served, by its name: what a request names is looked up, and never made into a path."""

SECURITY = {
    # nothing from elsewhere, nothing inline, and no other site may frame it
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def router() -> APIRouter:
    routes = APIRouter(tags=["pages"], include_in_schema=False)

    @routes.get("/dashboard")
    async def dashboard() -> Response:
        return _file("dashboard.html")

    @routes.get("/corrections")
    async def corrections() -> Response:
        return _file("corrections.html")

    @routes.get("/docs")
    async def docs() -> Response:
        return _file("docs.html")

    @routes.get("/web/{name:path}")
    async def asset(name: str) -> Response:
        return _file(name)

    return routes


def _file(name: str) -> Response:
    if (path := FILES.get(name)) is None:
        raise RequestRefused(
            f"there is no /web/{name}", "the pages are /dashboard, /corrections and /docs",
            code="no_such_route", status=404,
        )  # fmt: skip
    return FileResponse(path, media_type=TYPES[path.suffix], headers=SECURITY)

"""The pages: served with headers that shut out everything else, and nothing beside them is."""

import httpx
import pytest

from tests.server.running import Running


@pytest.mark.parametrize("path", ["/dashboard", "/corrections", "/docs", "/web/docs.js", "/web/style.css"])
def test_pages_and_their_parts_are_served_shut_off_from_elsewhere(running: Running, path: str) -> None:
    reply = httpx.get(f"{running.url}{path}")
    assert reply.status_code == 200
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy and "http" not in policy
    assert reply.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "name",
    [
        "../gateway.py",
        "..%2fgateway.py",
        "nothing.js",
        "",
        "/etc/passwd",
        "%00.js",
        "a" * 300 + ".js",
        "vendor",
    ],
)
def test_nothing_else_is_served(running: Running, name: str) -> None:
    reply = httpx.get(f"{running.url}/web/{name}")
    assert reply.status_code == 404
    assert reply.json()["error"]["code"] == "no_such_route"

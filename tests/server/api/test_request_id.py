import pytest

from buffer.logs import JsonFormatter
from tests.server.running import Running
from tests.server.test_fetch import wait_for


def test_a_reply_carries_the_name_that_its_request_was_given(running: Running) -> None:
    given = running.client().get("/healthz", headers={"x-request-id": "trace/7"})
    assert given.headers.get_list("x-request-id") == ["trace/7"]


@pytest.mark.parametrize("header", [{}, {"x-request-id": 'a"b'}, {"x-request-id": "x" * 129}])
def test_a_request_without_a_usable_name_gets_a_new_one(running: Running, header: dict[str, str]) -> None:
    names = {running.client().get("/healthz", headers=header).headers["x-request-id"] for _ in range(2)}
    assert len(names) == 2
    assert all(name.startswith("req-") for name in names)


def test_a_refusal_carries_it_too(running: Running) -> None:
    refused = running.client("nobody").get("/v1/models", headers={"x-request-id": "r1"})
    assert (refused.status_code, refused.headers["x-request-id"]) == (401, "r1")


def test_an_error_that_nobody_caught_names_its_request_in_reply_and_log(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.handler.setFormatter(JsonFormatter())
    del running.gateway.engine.starts  # /metrics reads it
    broken = running.client().get("/metrics", headers={"x-request-id": "r2"})
    assert (broken.status_code, broken.headers["x-request-id"]) == (500, "r2")
    wait_for(lambda: "AttributeError" in caplog.text)  # after the reply has gone
    assert '"request_id": "r2"' in caplog.text and "AttributeError" in caplog.text

"""Nothing that a client sends breaks the server, and its answers are what its OpenAPI document says.

The document itself makes the requests (schemathesis): right ones, and ones with something wrong in them. Part
of them is aimed at what is there.
"""

import re
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
import schemathesis
from starlette.routing import Route

from server.api.app import create_app
from server.config import ServerConfig
from server.gateway import Gateway
from tests.conftest import ROOT
from tests.server.api.test_learning import release
from tests.server.running import KEYS, Running, hashed
from tests.server.stub_policies import StubPolicies

CONFIG = {
    "generation": {
        "max-examples": 200,  # for each operation, beside those that try each field's limits
        "deterministic": True,
        "no-shrink": True,
        "database": "none",
        # what nobody has heard of is ignored in a query, and the key is ours
        "allow-extra-parameters": False,
        "with-security-parameters": False,
    },
    # a schema cannot say everything: that a choice must be there, that a text must not be a control token
    "checks": {
        "positive_data_acceptance": {"enabled": False},
        "negative_data_rejection": {"expected-statuses": ["4xx"]},  # 413 as well
    },
}

# The document depends on nothing else of a gateway, and pytest wants to know the operations at once.
APP = create_app(cast(Gateway, SimpleNamespace(alias="apprentice", config=ServerConfig())))
DOCUMENT = APP.openapi()
OPERATIONS = {
    f"{method.upper()} {path}": operation
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
}
API = schemathesis.openapi.from_dict(DOCUMENT, config=schemathesis.Config.from_dict(CONFIG))

CONTRACT = """
POST /v1/chat/completions, POST /v1/completions, GET /v1/models, POST /v1/feedback, POST /v1/feedback/preview,
GET /v1/feedback/{feedback_id}, GET /v1/feedback, DELETE /v1/feedback/{feedback_id}, GET /v1/learning,
POST /v1/learning/rounds, POST /v1/learning/pause, POST /v1/learning/resume, GET /v1/policies,
GET /v1/policies/{version}, POST /v1/policies/{version}/promote, POST /v1/policies/rollback,
GET /v1/chat/completions, GET /v1/chat/completions/{completion_id},
DELETE /v1/chat/completions/{completion_id}, GET /metrics, GET /healthz, GET /readyz
"""
"""What was promised, and must not be renamed."""
PAGES = {"/dashboard", "/corrections", "/docs", "/web/{name}", "/openapi.json"}


class Client:
    """An admin who sends generated requests, half of the right ones about what is there."""

    def __init__(self, running: Running) -> None:
        self._url = running.url
        self._client = running.client("root-key")
        self.answers: defaultdict[str, set[int]] = defaultdict(set)
        """The statuses that each operation has answered."""

    def send(self, case: schemathesis.Case[Any], key: str) -> None:
        """Raises what is wrong with the answer."""
        assert case.meta is not None
        if case.meta.generation.mode.is_positive and zlib.crc32(repr(case).encode()) % 2:
            self._aim(case)
        reply = case.call_and_validate(self._url, headers={"Authorization": f"Bearer {key}"})
        if case.meta.generation.mode.is_positive:
            self.answers[case.operation.label].add(reply.status_code)

    def _aim(self, case: schemathesis.Case[Any]) -> None:
        self._aim_at(case.path_parameters)
        for body in case.body if isinstance(case.body, list) else [case.body]:
            if isinstance(body, dict):
                self._aim_at(body)

    def _aim_at(self, parts: dict[str, Any]) -> None:
        there: dict[str, Callable[[], Any]] = {
            "completion_id": self._completion, "feedback_id": self._feedback, "version": lambda: 1,
            "model": lambda: "apprentice", "name": lambda: "apprentice",
        }  # fmt: skip
        for name in parts.keys() & there.keys():
            parts[name] = there[name]()

    def _completion(self) -> str:
        asked = {"model": "apprentice", "messages": [{"role": "user", "content": "x"}]}
        return str(self._client.post("/v1/chat/completions", json=asked).json()["id"])

    def _feedback(self) -> str:
        given = {"kind": "correction", "completion_id": self._completion(), "text": "y"}
        return str(self._client.post("/v1/feedback", json=given).json()["id"])


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A gateway that has been through two rounds."""
    directory = tmp_path_factory.mktemp("gateway")
    running = Running(directory, StubPolicies, keys=hashed(KEYS), admins=["root"], max_body_bytes=200_000)
    release(running, 1, 2)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def client(taught: Running) -> Client:
    return Client(taught)


@API.parametrize()
@pytest.mark.parametrize("key", ["root-key"])  # without one, pytest 9.2 gives all operations the same name
def test_nothing_a_client_sends_breaks_the_server(
    case: schemathesis.Case[Any], client: Client, key: str
) -> None:
    client.send(case, key)


def test_every_operation_was_also_answered_with_success(
    client: Client, request: pytest.FixtureRequest
) -> None:
    """Else the test above would have looked at refusals alone, or not at all."""
    selected = {getattr(item, "operation_label", None) for item in request.session.items}
    assert [name for name in OPERATIONS if name in selected and not client.answers[name] & {200, 202}] == []


EXAMPLES = [
    (name, example["value"])
    for name, operation in OPERATIONS.items()
    for content in operation.get("requestBody", {}).get("content", {}).values()
    for example in content.get("examples", {}).values()
]


@pytest.mark.parametrize(("name", "example"), EXAMPLES)
def test_an_example_works(taught: Running, name: str, example: Any) -> None:
    method, path = name.split()
    assert taught.client("root-key").request(method, path, json=example).is_success


def test_every_route_is_documented_or_a_page() -> None:
    routes = {
        f"{method} {route.path_format}"
        for route in APP.routes
        if isinstance(route, Route)
        for method in route.methods or ()
        if method != "HEAD" and route.path_format not in PAGES
    }
    assert routes == OPERATIONS.keys()
    for operation in OPERATIONS.values():
        assert operation["summary"] and set(operation["tags"]) <= {tag["name"] for tag in DOCUMENT["tags"]}


def test_what_was_promised_is_there() -> None:
    assert set(re.findall(r"[A-Z]+ /[^\s,]+", CONTRACT)) - OPERATIONS.keys() == set()


def test_the_readme_names_calls_that_exist() -> None:
    text = re.sub(r"\{\w+\}", "{}", (ROOT / "README.md").read_text())
    named = set(re.findall(r"(?<=[`0 ])/(?:v1/|metrics|healthz|readyz)[\w/{}]*", text))
    paths = {re.sub(r"\{\w+\}", "{}", path) for path in DOCUMENT["paths"]}
    assert "/v1/feedback/{}" in named
    assert named - paths == set()


def test_a_refused_method_is_told_all_that_work(taught: Running) -> None:
    refused = taught.client().request("PATCH", "/v1/chat/completions")
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, POST")
    assert taught.client().get("/v1/policies/rollback").headers["allow"] == "POST"


def test_errors_have_one_shape_and_no_other_is_documented() -> None:
    shape = {"$ref": "#/components/schemas/ErrorReply"}
    for operation in OPERATIONS.values():
        refusals = {status: reply for status, reply in operation["responses"].items() if status >= "400"}
        assert "422" not in refusals
        assert all(reply["content"] == {"application/json": {"schema": shape}} for reply in refusals.values())

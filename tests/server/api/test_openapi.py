"""Nothing that a client sends breaks the server, and what it answers is what its OpenAPI document says.

The document itself makes the requests (schemathesis): right ones, and ones with something wrong in them. Part of
them is aimed at what is there: completions, feedback, policies and a principal.
"""

import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
import schemathesis

from server.api.app import create_app
from server.config import ServerConfig
from server.gateway import Gateway
from tests.server.api.test_learning import release, seed_feedback
from tests.server.running import KEYS, Running, hashed
from tests.server.stub_policies import StubPolicies

EXAMPLES = 200
"""Requests for each operation, beside those that try each field's limits."""

CONFIG = {
    "generation": {"max-examples": EXAMPLES, "deterministic": True, "no-shrink": True, "database": "none",
        "allow-extra-parameters": False, "with-security-parameters": False},
    "checks": {
        # what a schema cannot say (a choice that is there, text that is no control token) is refused, too
        "positive_data_acceptance": {"enabled": False},
    },
}

# the document does not depend on anything else of a gateway, and pytest wants to know the operations at once
DOCUMENT = create_app(cast(Gateway, SimpleNamespace(alias="apprentice", config=ServerConfig()))).openapi()
API = schemathesis.openapi.from_dict(DOCUMENT, config=schemathesis.Config.from_dict(CONFIG))


@API.hook
def filter_query(context: Any, query: dict[str, Any]) -> bool:
    """Without what a URL cannot tell from something right: a list is one name many times, an object has no form."""
    return all(
        isinstance(value, dict) if name == "metadata" else not isinstance(value, dict | list)
        for name, value in (query or {}).items()
    )


class Aim:
    """Points requests at what is there, by the names of their parts."""

    def __init__(self, running: Running) -> None:
        self._client = running.client("root-key")

    def __call__(self, case: Any) -> None:
        """Half of the right requests; always the same half."""
        if not case.meta.generation.mode.is_positive or zlib.crc32(repr(case).encode()) % 2:
            return
        for name in case.path_parameters:
            case.path_parameters[name] = self._there(name)
        for one in case.body if isinstance(case.body, list) else [case.body]:
            if isinstance(one, dict):
                for name in one.keys() & {"completion_id", "model"}:
                    one[name] = self._there(name)

    def _there(self, name: str) -> Any:
        return {
            "completion_id": self._completion, "feedback_id": self._feedback, "version": lambda: 1,
            "model": lambda: "apprentice", "name": lambda: "apprentice",
        }[name]()  # fmt: skip

    def _completion(self) -> str:
        asked = {"model": "apprentice", "messages": [{"role": "user", "content": "x"}]}
        return str(self._client.post("/v1/chat/completions", json=asked).json()["id"])

    def _feedback(self) -> str:
        given = {"kind": "correction", "completion_id": self._completion(), "text": "y"}
        return str(self._client.post("/v1/feedback", json=given).json()["id"])


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    started = Running(
        tmp_path_factory.mktemp("gateway"), StubPolicies, keys=hashed(KEYS), admins=["root"], max_body_bytes=200_000
    )
    release(started, 1, 2)
    started.run(seed_feedback(started))
    yield started
    started.stop()


@pytest.fixture(scope="module")
def aim(running: Running) -> Aim:
    return Aim(running)

TALLY=Counter()
import requests
SESSION=requests.Session()

@API.parametrize()
def test_nothing_a_client_sends_breaks_the_server(case: Any, running: Running, aim: Aim) -> None:
    aim(case)
    r = case.call_and_validate(running.url, SESSION, headers={"Authorization": "Bearer root-key"})
    TALLY[case.operation.label, r.status_code] += 1

def test_tally():
    for k,v in sorted(TALLY.items()): print(k,v)

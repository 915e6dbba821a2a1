"""Every operation of the OpenAPI document, with what schemathesis makes of its schemas, against a running gateway: no
5xx, and no status, type or body that the document does not name.

`SCHEMATHESIS_EXAMPLES` is the number for each operation, `SCHEMATHESIS_SEED` where they begin.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from typing import Any

import httpx2
import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from perdure.agent.base import BaseAgent
from perdure.engine import Context, workflow
from tests.edge_support import web
from tests.platform import in_process

EACH = int(os.environ.get("SCHEMATHESIS_EXAMPLES", "2"))
SEED = int(os.environ.get("SCHEMATHESIS_SEED", "7"))
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
NAMES = {"name": "clerk", "agent": "clerk", "run_id": "r-1", "session_id": "talk", "response_id": "resp_r-1"}


class Clerk(BaseAgent):
    name = "clerk"

    @workflow
    async def run(self, ctx: Context, task: Any) -> Any:
        return task


def ask(http: httpx2.Client, base: str, case: Any, *, known: bool) -> None:
    """Send a case, and check what comes back. `known` puts names that are there in the path."""
    if known:
        case.path_parameters = {name: NAMES.get(name, value) for name, value in (case.path_parameters or {}).items()}
    if case.operation.path == "/chat" and isinstance(case.body, dict):
        case.body["timeout"] = 0.1  # of an agent that is not there nobody waits long
    said = case.as_transport_kwargs(base_url=base)
    for name in ("cookies", "cert", "verify", "proxies", "timeout", "stream", "allow_redirects"):
        said.pop(name, None)
    data = said.pop("data", None)
    said["headers"] = {name: value.strip().encode("latin-1") for name, value in dict(said["headers"]).items()}
    with http.stream(**said, content=data if isinstance(data, (bytes, str)) else None) as response:
        if response.headers.get("content-type", "").startswith("text/event-stream"):
            assert response.status_code == 200
            said = case.operation.definition.raw["responses"]["200"].get("content", {})
            assert "text/event-stream" in said, "events that are not documented"
        else:
            response.read()
            case.validate_response(response, checks=CHECKS)


def all_operations(http: httpx2.Client, base: str) -> tuple[int, list[str]]:
    """How many there are, and what each of them did that it should not."""
    schema = schemathesis.openapi.from_url(f"{base}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    wrong: list[str] = []
    for operation in operations:
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            try:
                ask_often(http, base, operation, mode, wrong)
            except hypothesis.errors.Unsatisfiable:
                assert mode is GenerationMode.NEGATIVE, operation.path  # it takes nothing that could be wrong
    return len(operations), wrong


def ask_often(http: httpx2.Client, base: str, operation: Any, mode: GenerationMode, wrong: list[str]) -> None:
    """Examples of one operation; every other one is of things that are there."""
    turns = itertools.count()

    @hypothesis.seed(SEED)
    @hypothesis.settings(
        max_examples=EACH,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate],
    )
    @hypothesis.given(operation.as_strategy(generation_mode=mode))
    def each(case: Any) -> None:
        try:
            ask(http, base, case, known=next(turns) % 2 == 0)
        except (AssertionError, FailureGroup) as error:  # all of them are told, not the first alone
            told = error.exceptions if isinstance(error, FailureGroup) else [error]
            wrong.extend(f"{operation.method.upper()} {operation.path}: {each}" for each in told)

    each()


# The strategies draw in a thread, while what runs beside them draws from `random`.
@pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")
async def test_no_request_is_answered_otherwise_than_the_document_says(settings, nc):
    async with in_process(settings, nc, Clerk) as platform, web(settings, platform) as door:
        await door.post("/agents/clerk/run", {"task": 1, "run_id": "r-1", "session_id": "talk"})
        document = await door.get("/openapi.json")

        def ask_all() -> tuple[int, list[str]]:
            with httpx2.Client(timeout=20, trust_env=False) as http:
                return all_operations(http, door.gateway.server.url)

        asked, wrong = await asyncio.to_thread(ask_all)
        assert not wrong, "\n\n".join(wrong)
        assert asked == sum(len(each) for each in document["paths"].values())

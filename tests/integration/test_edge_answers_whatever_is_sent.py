"""Every route of the document, with what nobody should send: no 5xx, and no answer that is not documented."""

from __future__ import annotations

import asyncio
import os
import random
from typing import Any
from urllib.parse import quote

import orjson

from perdure.agent.base import BaseAgent
from perdure.engine import Context, workflow
from tests.edge_support import web
from tests.platform import in_process

EACH = int(os.environ.get("FUZZ_EXAMPLES", "12"))
ODD: list[Any] = [
    *(None, True, -1, 0, 1.5, 2**63, 10**400, "", " ", "x", "a b", "ä", "\x00", "\ud83d\ude00", "x" * 300, "../../etc"),
    *("clerk", "r-1", "*", "a__b", "' OR 1=1 --", "%", "1", "NaN", "resp_r-1", "pending", "approve"),
    *([], [1], [[]], {}, {"a": {"b": []}}, {"\x00": 1}, {"url": "http://x"}, [{"role": "user", "content": "x"}]),
]


class Clerk(BaseAgent):
    name = "clerk"

    @workflow
    async def run(self, ctx: Context, task: Any) -> Any:
        return task


def body_for(choose: random.Random, schema: dict[str, Any], schemas: dict[str, Any]) -> Any:
    """An object with odd values under the names that the route knows, sometimes something else."""
    if choose.random() < 0.15:
        return choose.choice(ODD)
    while "$ref" in schema:
        schema = schemas[schema["$ref"].rpartition("/")[2]]
    for other in schema.get("anyOf", ()):
        if "$ref" in other:
            return body_for(choose, other, schemas)
    names = list(schema.get("properties", ()))
    needed = schema.get("required", ())
    example = schema.get("example") or {}
    return {
        name: example[name] if name in example and choose.random() < 0.5 else choose.choice(ODD)
        for name in names
        if name in needed or choose.random() < 0.3
    }


def encoded(body: Any) -> bytes:
    try:
        return orjson.dumps(body)
    except TypeError:  # a number that is too large for it, or half a character
        return repr(body).encode("utf-8", "replace")


async def test_no_request_breaks_a_route_and_no_answer_is_undocumented(settings, nc):
    choose = random.Random(int(os.environ.get("FUZZ_SEED", "7")))
    async with in_process(settings, nc, Clerk) as platform, web(settings, platform) as door:
        await door.post("/agents/clerk/run", {"task": 1, "run_id": "r-1", "session_id": "talk"})
        document = await door.get("/openapi.json")
        schemas = document["components"]["schemas"]

        async def send(method: str, path: str, operation: dict[str, Any]) -> None:
            query: dict[str, str] = {}
            headers: dict[str, str] = {}
            for parameter in operation.get("parameters", ()):
                name, value = parameter["name"], choose.choice(ODD)
                text = str(value).encode("utf-8", "replace").decode()
                if parameter["in"] == "path":
                    path = path.replace("{" + name + "}", quote(text, safe="") or "x")
                elif choose.random() < 0.4:
                    if parameter["in"] == "query":
                        query[name] = text
                    elif text.isascii() and text.isprintable() and text.strip() == text:
                        headers[name] = text
            content = None
            if "requestBody" in operation:
                schema = operation["requestBody"]["content"]["application/json"]["schema"]
                body = body_for(choose, schema, schemas)
                if path == "/chat" and isinstance(body, dict):
                    body["timeout"] = 0.2  # of an agent that is not there nobody waits long
                content = encoded(body)
                headers["content-type"] = choose.choice(["application/json"] * 8 + ["text/plain"])
            async with asyncio.timeout(20):
                request = door.http.stream(method.upper(), path, params=query, content=content, headers=headers)
                async with request as response:
                    status = response.status_code
                    if not response.headers.get("content-type", "").startswith("text/event-stream"):
                        await response.aread()
                        assert "Traceback" not in response.text
            assert status < 500, (method, path, query, content, response.text)
            known = {int(each) for each in operation["responses"]} | {404, 405}
            assert status in known, (method, path, query, content, status)

        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                await asyncio.gather(*(send(method, path, operation) for _ in range(EACH)))

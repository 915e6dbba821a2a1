"""Agents behind the door of A2A, and the official client of it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import Any

import httpx
from a2a.client import ClientConfig, create_client
from a2a.types import Message, Part, Role, SendMessageRequest
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Value

from perdure.agent.base import BaseAgent
from perdure.engine import Context, Retry, workflow
from tests.edge_support import Web


class Clerk(BaseAgent):
    """Doubles numbers."""

    name = "clerk"

    @workflow
    async def run(self, ctx: Context, task: Any) -> Any:
        if isinstance(task, str):
            return f"heard {task} in {ctx.session_id}"
        doubled = await ctx.step("double", self.double, task["n"])
        if task.get("wait"):
            await ctx.wait_signal("go")
        if task.get("breaks"):
            await ctx.step("break", self.broken, retry=Retry(max_attempts=1))
        return {"doubled": doubled}

    async def double(self, n: int) -> int:
        assert isinstance(n, int)
        return n * 2

    async def broken(self) -> None:
        raise ValueError("no such luck")


class Other(BaseAgent):
    name = "other"

    @workflow
    async def run(self, ctx: Context, task: Any) -> Any:
        return task


@asynccontextmanager
async def client(door: Web, bearer: str | None = None, agent: str | None = "clerk", **said: Any):
    """The official client of an agent; without one, of the platform."""
    headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
    made = await asyncio.to_thread(httpx.AsyncClient, headers=headers, timeout=30, trust_env=False)
    async with made as http:
        url = f"{door.gateway.server.url}/a2a/{agent}" if agent else door.gateway.server.url
        yield await create_client(url, ClientConfig(httpx_client=http, **said))


def saying(message_id: str, *, text: str = "", data: Any = None, **more: Any) -> SendMessageRequest:
    part = Part(text=text) if text else Part(data=ParseDict(data, Value()))
    request = {name: more.pop(name) for name in ("configuration", "params_metadata") if name in more}
    message = Message(message_id=message_id, role=Role.ROLE_USER, parts=[part], **more)
    made = SendMessageRequest(message=message, configuration=request.get("configuration"))
    made.metadata.update(request.get("params_metadata", {}))
    return made


async def all_of(stream: Any) -> list[Any]:
    return [each async for each in stream]

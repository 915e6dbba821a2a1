"""A gateway inside a test's own process, and readers of its event streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import orjson

from perdure.settings import Settings
from services.gateway.service import Gateway
from tests.platform import InProcess


@dataclass
class Web:
    """A gateway and a client of it."""

    gateway: Gateway
    http: httpx2.AsyncClient

    async def get(self, path: str, **more: Any) -> Any:
        """The JSON of a GET that goes well."""
        return done(await self.http.get(path, **more))

    async def post(self, path: str, body: Any = None, **more: Any) -> Any:
        """The JSON of a POST that goes well."""
        return done(await self.http.post(path, json=body, **more))


def done(response: httpx2.Response) -> Any:
    assert response.status_code in (200, 202), (response.status_code, response.text)
    assert response.headers["content-type"] == "application/json"
    return response.json()


def problem(response: httpx2.Response, code: str, status: int) -> dict[str, Any]:
    """The problem that a response is."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert (body["code"], body["status"]) == (code, status)
    assert body["type"] == f"urn:perdure:problem:{code}"
    assert body["title"]
    assert body["detail"]
    assert body["request_id"] == response.headers["x-request-id"]
    assert "Traceback" not in response.text
    return body


@asynccontextmanager
async def web(settings: Settings, platform: InProcess | None = None, **changed: Any) -> AsyncIterator[Web]:
    """A running gateway; it ends with the block."""
    said = settings.model_copy(update={"instance_id": f"gateway-{id(platform)}", "gateway_port": 0, **changed})
    gateway = Gateway(said)
    await gateway.start()
    try:
        async with httpx2.AsyncClient(base_url=gateway.server.url, timeout=30, trust_env=False) as http:
            yield Web(gateway, http)
    finally:
        await gateway.stop()


class Relay:
    """An address in front of gateways whose connections a test may cut. `ports` are taken in turns.

    `cuts` are after how many bytes of what comes back connections break off, one after the other; later ones hold.
    """

    def __init__(self, *ports: int, cuts: Iterable[int] = ()) -> None:
        self.ports = list(ports)
        self.port = 0
        self.taken = 0
        self._cuts = iter(cuts)
        self._open: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Break every connection off."""
        for writer in self._open:
            writer.transport.abort()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        port = self.ports[self.taken % len(self.ports)]
        self.taken += 1
        try:
            there, back = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            writer.transport.abort()
            return
        self._open |= {writer, back}
        try:
            await asyncio.gather(self._pass(reader, back), self._pass(there, writer, next(self._cuts, None)))
        finally:
            self._open -= {writer, back}

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, left: int | None = None) -> None:
        try:
            while data := await reader.read(65_536):
                writer.write(data[:left])
                await writer.drain()
                if left is not None and (left := left - len(data)) <= 0:
                    break
        except OSError:
            pass
        finally:
            writer.close()


@asynccontextmanager
async def relay(*ports: int, cuts: Iterable[int] = ()) -> AsyncIterator[Relay]:
    """A relay that ends with the block."""
    made = Relay(*ports, cuts=cuts)
    server = await asyncio.start_server(made._take, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        made.cut()
        server.close()
        await server.wait_closed()


@dataclass
class Event:
    """One server-sent event."""

    id: str | None
    kind: str | None
    data: Any


def last_id(last: str | None) -> dict[str, str]:
    """The header of a reader who has seen this event."""
    return {} if last is None else {"Last-Event-ID": last}


async def events(http: httpx2.AsyncClient, path: str, *, last: str | None = None, **more: Any) -> AsyncIterator[Event]:
    """The events of a stream until it ends; nothing for one that says not to come back."""
    headers = {**more.pop("headers", {}), **last_id(last)}
    async with http.stream(more.pop("method", "GET"), path, headers=headers, **more) as response:
        if response.status_code == 204:
            return
        assert response.status_code == 200, (await response.aread()).decode()
        async for event in told(response):
            yield event


async def told(response: httpx2.Response) -> AsyncIterator[Event]:
    """The events of a response."""
    assert response.headers["content-type"].startswith("text/event-stream")
    said: dict[str, str] = {}
    async for line in response.aiter_lines():
        if line.startswith(":"):
            continue
        if line:
            name, _, value = line.partition(": ")
            said[name] = value
        elif said:
            yield Event(said.get("id"), said.get("event"), orjson.loads(said["data"]))
            said = {}


async def all_events(http: httpx2.AsyncClient, path: str, **more: Any) -> list[Event]:
    """The events of a stream that ends."""
    return [event async for event in events(http, path, **more)]

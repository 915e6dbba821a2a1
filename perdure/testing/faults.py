"""A real HTTP server that fails like a model service does: statuses, silences, cut streams, nonsense."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, TypeAlias

import orjson
from aiohttp import web

from perdure.llm.offline_rules import respond

Behaviour: TypeAlias = Callable[[web.Request, Mapping[str, Any]], Awaitable[web.StreamResponse]]
"""What the server does with one request."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One request that came in."""

    path: str
    headers: Mapping[str, str]
    json: Mapping[str, Any] = field(default_factory=dict)


def _chunk(delta: Mapping[str, Any], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return (
        b"data: " + orjson.dumps({"object": "chat.completion.chunk", "model": "faulty", "choices": [choice]}) + b"\n\n"
    )


async def _open_stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    return response


def answer(
    text: str = "",
    *,
    calls: Sequence[tuple[str, Any]] = (),
    finish: str | None = None,
    refusal: str | None = None,
    ids: Sequence[str] = (),
    delay: float = 0.0,
) -> Behaviour:
    """A proper answer. `calls` are (tool, arguments), where text arguments are sent as they are, broken or not."""
    tool_calls = [
        {
            "id": ids[at] if at < len(ids) else f"call_{at}",
            "type": "function",
            "function": {"name": name, "arguments": said if isinstance(said, str) else orjson.dumps(said).decode()},
        }
        for at, (name, said) in enumerate(calls)
    ]
    message: dict[str, Any] = {"role": "assistant", "content": text or None}
    if tool_calls:
        message["tool_calls"] = tool_calls
    if refusal:
        message["refusal"] = refusal
    finish = finish or ("tool_calls" if tool_calls else "stop")
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}

    async def act(request: web.Request, payload: Mapping[str, Any]) -> web.StreamResponse:
        await asyncio.sleep(delay)
        if not payload.get("stream"):
            choice = {"index": 0, "message": message, "finish_reason": finish}
            return web.json_response({"model": "faulty", "choices": [choice], "usage": usage})
        response = await _open_stream(request)
        delta = dict(message)
        if tool_calls:
            delta["tool_calls"] = [{"index": at, **call} for at, call in enumerate(tool_calls)]
        await response.write(_chunk(delta) + _chunk({}, finish))
        await response.write(b"data: " + orjson.dumps({"choices": [], "usage": usage}) + b"\n\ndata: [DONE]\n\n")
        return response

    return act


def status(
    number: int,
    message: str = "as the test asked",
    *,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Behaviour:
    """An HTTP error in OpenAI's shape."""

    async def act(_: web.Request, __: Mapping[str, Any]) -> web.StreamResponse:
        error = {"message": message, "type": "fault", "param": None, "code": code}
        return web.json_response({"error": error}, status=number, headers=headers)

    return act


def raw(body: bytes, *, content_type: str = "application/json") -> Behaviour:
    """Status 200 and any bytes."""

    async def act(_: web.Request, __: Mapping[str, Any]) -> web.StreamResponse:
        return web.Response(body=body, content_type=content_type)

    return act


def drop() -> Behaviour:
    """The connection is closed without an answer."""

    async def act(request: web.Request, _: Mapping[str, Any]) -> web.StreamResponse:
        if request.transport is not None:
            request.transport.abort()
        return web.Response()

    return act


def stall(*words: str) -> Behaviour:
    """Some pieces of a stream, then silence for as long as the asker listens."""

    async def act(request: web.Request, _: Mapping[str, Any]) -> web.StreamResponse:
        response = await _open_stream(request)
        for word in words:
            await response.write(_chunk({"content": word}))
        await asyncio.Event().wait()
        return response

    return act


def cut(*words: str, polite: bool = False) -> Behaviour:
    """Some pieces of a stream, then its end: `polite` ends the HTTP answer properly, else the connection breaks."""

    async def act(request: web.Request, _: Mapping[str, Any]) -> web.StreamResponse:
        response = await _open_stream(request)
        for word in words:
            await response.write(_chunk({"content": word}))
        if not polite and request.transport is not None:
            request.transport.abort()
        return response

    return act


class FaultServer:
    """`async with FaultServer() as server:` serves at `server.url`; without a script it answers as the offline model.

    `script(…)` queues behaviours, one for each request; `always(…)` sets what follows. `asked` holds every request.
    """

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.url = ""
        self._script: list[Behaviour] = []
        self._always: Behaviour | None = None
        self._runner: web.AppRunner | None = None
        self._port = 0
        self._ids = itertools.count()

    def script(self, *behaviours: Behaviour) -> Self:
        """Queue behaviours, one for each of the next chat requests."""
        self._script.extend(behaviours)
        return self

    def always(self, behaviour: Behaviour | None) -> Self:
        """Do this when the script is over; None answers as the offline model does."""
        self._always = behaviour
        return self

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        payload = orjson.loads(body) if body else {}
        self.asked.append(Asked(request.path, {k.lower(): v for k, v in request.headers.items()}, payload))
        if self._script:
            return await self._script.pop(0)(request, payload)
        if self._always is not None:
            return await self._always(request, payload)
        text, calls = respond(payload)
        number = next(self._ids)
        behaviour = answer(
            text,
            calls=[(name, said) for name, said in calls],
            ids=[f"call_{number}_{at}" for at in range(len(calls))],
        )
        return await behaviour(request, payload)

    async def start(self) -> str:
        """Listen on a free loopback port (on the same one again after `stop`)."""
        app = web.Application(client_max_size=64_000_000)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/responses", self._chat)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()
        self._port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self._port}/v1"
        return self.url

    async def stop(self) -> None:
        """Stop listening: from now on connections are refused."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

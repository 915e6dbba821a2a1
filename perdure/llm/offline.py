"""The offline model: an OpenAI-compatible HTTP server with fixed rules, for work without a key or a network.

`python -m perdure.llm.offline --port 9800` runs it alone. It is no language model, and says so on every surface.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import re
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from typing import Any

import orjson
import structlog
from aiohttp import web

from perdure.llm.offline_responses import from_responses, response_events, to_response
from perdure.llm.offline_rules import NOTICE, respond, text_of

MODEL = "offline"
SAYS = "Perdure offline model: fixed rules, not a language model"
VECTOR_SIZE = 64
MAX_BODY = 16_000_000
_ENDPOINTS = ("chat/completions", "responses", "embeddings", "models")
_ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})

log = structlog.get_logger()


def _json(data: Any, status: int = 200) -> web.Response:
    return web.Response(
        body=orjson.dumps(data), status=status, content_type="application/json", headers={"X-Model-Notice": SAYS}
    )


def _refuse(message: str, status: int = 400) -> web.Response:
    error = {"message": f"{SAYS}: {message}", "type": "invalid_request_error", "param": None, "code": None}
    return _json({"error": error}, status)


async def _body(request: web.Request) -> dict[str, Any]:
    """The request as an object. Raises `ValueError` that names the fault."""
    try:
        payload = orjson.loads(await request.read())
    except orjson.JSONDecodeError as error:
        raise ValueError(f"the body is not JSON: {error}") from None
    if not isinstance(payload, dict):
        raise ValueError("the body must be a JSON object")  # noqa: TRY004  (one class for every malformed body)
    return payload


def _check(payload: Mapping[str, Any]) -> None:
    messages = payload.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ValueError("`messages` must be a list with at least one message")
    asked: set[Any] = set()
    for at, message in enumerate(messages):
        if not isinstance(message, Mapping) or message.get("role") not in _ROLES:
            raise ValueError(f"`messages[{at}].role` must be one of {', '.join(sorted(_ROLES))}")
        asked.update(call.get("id") for call in message.get("tool_calls") or [] if isinstance(call, Mapping))
        if message["role"] == "tool" and message.get("tool_call_id") not in asked:
            raise ValueError(f"`messages[{at}]` is a tool result whose tool_call_id no earlier message asked for")
    tools = payload.get("tools") or []
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) and tool.get("function") for tool in tools):
        raise ValueError("`tools` must be a list of objects with a `function`")


def _answer(payload: Mapping[str, Any]) -> tuple[str, dict[str, Any], str, dict[str, int]]:
    """`(id, message, finish_reason, usage)`: the same request always gets the same answer."""
    text, calls = respond(payload)
    seed = hashlib.sha256(orjson.dumps([payload["messages"], text, calls])).hexdigest()
    message: dict[str, Any] = {"role": "assistant", "content": text or None}
    if calls:
        message["tool_calls"] = [
            {"id": f"call_{seed[:12]}{at}", "type": "function", "function": {"name": name, "arguments": arguments}}
            for at, (name, arguments) in enumerate(calls)
        ]
    words_in = sum(len(text_of(one).split()) for one in payload["messages"])
    words_out = len(text.split()) + sum(len(arguments.split()) for _, arguments in calls)
    usage = {"prompt_tokens": words_in, "completion_tokens": words_out, "total_tokens": words_in + words_out}
    return f"chatcmpl-offline-{seed[:20]}", message, "tool_calls" if calls else "stop", usage


def _pieces(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The deltas of a stream: the role, a handful of words at a time, then the tool calls."""
    out: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    out.extend({"content": part} for part in re.findall(r"(?:\S+\s*){1,12}|\s+", message["content"] or ""))
    for at, call in enumerate(message.get("tool_calls") or []):
        out.append({"tool_calls": [{"index": at, **call}]})
    return out


class OfflineModel:
    """The server; `await start()` gives its base URL (ending in `/v1`). `delay` is seconds before each answer."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0, *, delay: float = 0.0) -> None:
        self._host, self._port, self._delay = host, port, delay
        self._runner: web.AppRunner | None = None
        self.url = ""

    def app(self) -> web.Application:
        """The routes, for tests that mount them elsewhere."""
        app = web.Application(client_max_size=MAX_BODY)
        app.router.add_get("/", self._root)
        app.router.add_get("/healthz", self._root)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/v1/models/{model}", self._model)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/responses", self._responses)
        app.router.add_post("/v1/embeddings", self._embeddings)
        return app

    async def start(self) -> str:
        """Listen. Raises `OSError` when the port is taken."""
        self._runner = web.AppRunner(self.app(), access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._host, self._port).start()
        except OSError:
            await self.stop()
            raise
        port = self._runner.addresses[0][1]
        self.url = f"http://{self._host}:{port}/v1"
        return self.url

    async def stop(self) -> None:
        """Stop listening; answers under way are finished first, for at most a second."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def _root(self, _: web.Request) -> web.Response:
        endpoints = ["/v1/chat/completions", "/v1/embeddings", "/v1/models"]
        # Whoever started it can tell it from another program on the same port.
        instance = os.environ.get("PERDURE_INSTANCE_ID")
        return _json({"name": MODEL, "notice": SAYS, "endpoints": endpoints, "instance": instance})

    async def _models(self, _: web.Request) -> web.Response:
        return _json({"object": "list", "data": [self._described()]})

    async def _model(self, request: web.Request) -> web.Response:
        if request.match_info["model"] != MODEL:
            return _refuse(f"there is one model here: {MODEL}", 404)
        return _json(self._described())

    @staticmethod
    def _described() -> dict[str, Any]:
        return {"id": MODEL, "object": "model", "created": 0, "owned_by": "perdure", "description": SAYS}

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        try:
            payload = await _body(request)
            _check(payload)
        except ValueError as error:
            return _refuse(str(error))
        if self._delay:
            await asyncio.sleep(self._delay)
        identity, message, finish, usage = _answer(payload)
        head = {"id": identity, "created": 0, "model": MODEL, "system_fingerprint": SAYS}
        if not payload.get("stream"):
            choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": None}
            return _json({**head, "object": "chat.completion", "choices": [choice], "usage": usage})
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Model-Notice": SAYS}
        )
        await response.prepare(request)
        with suppress(ConnectionResetError):  # the asker has gone: nobody is left to tell
            async for event in self._events(head, message, finish, usage):
                await response.write(event)
            await response.write_eof()
        return response

    async def _responses(self, request: web.Request) -> web.StreamResponse:
        try:
            asked = await _body(request)
            payload = from_responses(asked)
            _check(payload)
        except ValueError as error:
            return _refuse(str(error))
        if self._delay:
            await asyncio.sleep(self._delay)
        identity, message, _, usage = _answer(payload)
        response = to_response(identity, MODEL, SAYS, message, usage)
        if not asked.get("stream"):
            return _json(response)
        stream = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Model-Notice": SAYS}
        )
        await stream.prepare(request)
        with suppress(ConnectionResetError):  # the asker has gone: nobody is left to tell
            for event in response_events(
                response, [piece["content"] for piece in _pieces(message) if "content" in piece]
            ):
                await stream.write(event)
            await stream.write_eof()
        return stream

    @staticmethod
    async def _events(
        head: Mapping[str, Any], message: Mapping[str, Any], finish: str, usage: Mapping[str, int]
    ) -> AsyncIterator[bytes]:
        base = {**head, "object": "chat.completion.chunk"}
        for delta in _pieces(message):
            choice = {"index": 0, "delta": delta, "finish_reason": None}
            yield b"data: " + orjson.dumps({**base, "choices": [choice]}) + b"\n\n"
        last = {"index": 0, "delta": {}, "finish_reason": finish}
        yield b"data: " + orjson.dumps({**base, "choices": [last]}) + b"\n\n"
        yield b"data: " + orjson.dumps({**base, "choices": [], "usage": usage}) + b"\n\n"
        yield b"data: [DONE]\n\n"

    async def _embeddings(self, request: web.Request) -> web.Response:
        try:
            payload = await _body(request)
            texts = payload.get("input")
            texts = [texts] if isinstance(texts, str) else texts
            if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
                raise ValueError("`input` must be a text or a list of texts")
        except ValueError as error:
            return _refuse(str(error))
        rows = [{"object": "embedding", "index": at, "embedding": embed(text)} for at, text in enumerate(texts)]
        words = sum(len(text.split()) for text in texts)
        usage = {"prompt_tokens": words, "total_tokens": words}
        return _json({"object": "list", "model": MODEL, "notice": SAYS, "data": rows, "usage": usage})


def embed(text: str) -> list[float]:
    """A unit vector made of hashed words: texts that share words are near each other."""
    vector = [0.0] * VECTOR_SIZE
    for word in re.findall(r"\w+", text.lower()) or [""]:
        digest = hashlib.sha256(word.encode()).digest()
        vector[digest[0] % VECTOR_SIZE] += 1.0 if digest[1] % 2 else -1.0
        vector[digest[2] % VECTOR_SIZE] += 0.5
    length = sum(value * value for value in vector) ** 0.5 or 1.0
    return [round(value / length, 6) for value in vector]


async def _serve(host: str, port: int, delay: float) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    server = OfflineModel(host, port, delay=delay)
    url = await server.start()
    log.info("offline model listening", action="offline.listening", url=url, notice=NOTICE)
    await stop.wait()
    await server.stop()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415 - not on every platform
    except ImportError:
        return None
    return uvloop.new_event_loop


def main(arguments: list[str] | None = None) -> None:
    """The command line of the offline model."""
    parser = argparse.ArgumentParser(prog="python -m perdure.llm.offline", description=SAYS)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=9800, help="port to listen on; 0 takes a free one")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before each answer")
    said = parser.parse_args(arguments)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(said.host, said.port, said.delay))
    except OSError as error:
        parser.exit(1, f"cannot listen on {said.host}:{said.port}: {error.strerror or error}; choose another --port\n")


if __name__ == "__main__":
    main()

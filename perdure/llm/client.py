"""The way to a model: one `openai` client per endpoint and key, rebuilt when either changes."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from perdure.llm.errors import model_error, nonsense
from perdure.llm.parse import Assembler, NonsenseReplyError
from perdure.llm.responses import ResponsesAssembler, responses_body
from perdure.llm.types import ModelReply, ModelRequest, ModelSettings, OnDelta

if TYPE_CHECKING:
    from openai import AsyncOpenAI

_KEPT = 8
_CONNECT_SECONDS = 5.0


@dataclass(slots=True)
class _Kept:
    client: AsyncOpenAI
    users: int = 0


def body(settings: ModelSettings, request: ModelRequest, *, stream: bool) -> dict[str, Any]:
    """The JSON of one chat-completions request; what is not configured is not sent."""
    out: dict[str, Any] = {"model": settings.model, "messages": list(request.messages)}
    if request.tools:
        out["tools"] = list(request.tools)
        out["tool_choice"] = _tool_choice(request.tool_choice)
        if not request.parallel_tools:
            out["parallel_tool_calls"] = False
    if settings.temperature is not None:
        out["temperature"] = settings.temperature
    if settings.max_tokens is not None:
        # OpenAI's newer models refuse the old name, many compatible servers know no other
        out["max_completion_tokens" if "api.openai.com" in settings.base_url else "max_tokens"] = settings.max_tokens
    if request.schema is not None:
        name, schema = request.schema
        out["response_format"] = {"type": "json_schema", "json_schema": {"name": name, "schema": schema}}
    if stream:
        out["stream"] = True
        out["stream_options"] = {"include_usage": True}
    return out


def _tool_choice(choice: str) -> str | dict[str, Any]:
    if choice in {"auto", "none", "required"}:
        return choice
    return {"type": "function", "function": {"name": choice}}


def _build(settings: ModelSettings) -> AsyncOpenAI:
    import openai  # noqa: PLC0415  (heavy: loads with the first model call)

    return openai.AsyncOpenAI(
        api_key=settings.api_key,
        base_url=settings.base_url,
        max_retries=0,
        timeout=openai.Timeout(settings.timeout, connect=_CONNECT_SECONDS),
        default_headers=dict(settings.headers),
    )


async def _stream(
    client: AsyncOpenAI,
    path: str,
    payload: dict[str, Any],
    assembler: Assembler | ResponsesAssembler,
    on_delta: OnDelta,
) -> None:
    from openai import AsyncStream  # noqa: PLC0415  (loaded by now)

    stream = await client.post(path, cast_to=object, body=payload, stream=True, stream_cls=AsyncStream[object])
    async with stream:
        index = 0
        async for piece in stream:
            if added := assembler.feed(piece):
                on_delta(index, added)
                index += 1


class ModelClient:
    """Asks models; safe for many calls at a time. Retries are the caller's: a model call is a journaled step.

    Raises `PermanentError` or `RetryableError` from every method, with a text that says what to do and holds no key.
    """

    def __init__(self) -> None:
        self._clients: OrderedDict[tuple[str, str, str], _Kept] = OrderedDict()

    async def complete(
        self, settings: ModelSettings, request: ModelRequest, *, on_delta: OnDelta | None = None
    ) -> ModelReply:
        """One answer of the model; with `on_delta` it is streamed, and each piece of text is handed over at once."""
        began = time.monotonic()
        stream = on_delta is not None
        assembler: Assembler | ResponsesAssembler
        if settings.api == "responses":
            path, assembler, payload = (
                "/responses",
                ResponsesAssembler(),
                responses_body(settings, request, stream=stream),
            )
        else:
            path, assembler, payload = "/chat/completions", Assembler(), body(settings, request, stream=stream)
        async with self._calling(settings) as client:
            if on_delta is None:
                assembler.take_whole(await client.post(path, cast_to=object, body=payload))
            else:
                await _stream(client, path, payload, assembler, on_delta)
            return assembler.reply(provider=settings.provider, seconds=time.monotonic() - began)

    async def embed(self, settings: ModelSettings, texts: list[str]) -> list[list[float]]:
        """One vector for each text, in order."""
        async with self._calling(settings) as client:
            answer = await client.post(
                "/embeddings",
                cast_to=object,
                body={"model": settings.model, "input": texts, "encoding_format": "float"},
            )
            data = answer.get("data") if isinstance(answer, dict) else None
            if not isinstance(data, list) or len(data) != len(texts):
                raise NonsenseReplyError("the embeddings are not one vector for each text")
            rows = sorted(data, key=lambda row: int(row["index"]))
            return [[float(value) for value in row["embedding"]] for row in rows]

    @asynccontextmanager
    async def _calling(self, settings: ModelSettings) -> AsyncIterator[AsyncOpenAI]:
        """The client for `settings`, kept alive while it is used; its errors come out as ours."""
        key = (settings.base_url, settings.api_key, repr((settings.timeout, sorted(settings.headers.items()))))
        if key not in self._clients:
            # in a thread: the first import takes a second, and each client reads the trust store
            built = await asyncio.to_thread(_build, settings)
            self._clients.setdefault(key, _Kept(built))
        kept = self._clients[key]
        self._clients.move_to_end(key)
        kept.users += 1
        import openai  # noqa: PLC0415  (loaded by now)

        try:
            yield kept.client
        except openai.APIError as error:
            raise model_error(error, settings) from error
        except (NonsenseReplyError, ValueError, TypeError, KeyError) as error:  # JSON that is none is a ValueError
            raise nonsense(settings, str(error)) from error
        finally:
            kept.users -= 1
            await self._drop_old()

    async def _drop_old(self) -> None:
        while len(self._clients) > _KEPT:
            idle = next((key for key, kept in self._clients.items() if kept.users == 0), None)
            if idle is None:
                return
            await self._clients.pop(idle).client.close()

    async def close(self) -> None:
        """Close every connection; calls still under way fail as `RetryableError`."""
        while self._clients:
            _, kept = self._clients.popitem()
            await kept.client.close()

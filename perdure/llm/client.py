"""The way to a model: one `openai` client per endpoint and key, rebuilt when either changes."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from perdure.llm.errors import model_error, nonsense
from perdure.llm.parse import Assembler, NonsenseReplyError
from perdure.llm.responses import ResponsesAssembler, responses_body
from perdure.llm.types import ModelReply, ModelRequest, ModelSettings, OnDelta

if TYPE_CHECKING:
    from ssl import SSLContext

    from openai import AsyncOpenAI

    from perdure.llm.direct import Direct

_KEPT = 8


@dataclass(slots=True)
class _Kept:
    client: AsyncOpenAI
    direct: Direct | None  # the short way, where there is one
    users: int = 0

    async def post(self, path: str, payload: dict[str, Any]) -> Any:
        """The JSON of a whole answer."""
        if self.direct is not None:
            from perdure.llm.direct import OtherWayError  # noqa: PLC0415  (loaded by now)

            with suppress(OtherWayError):
                return await self.direct.post(path, payload)
        return await self.client.post(path, cast_to=object, body=payload)

    async def close(self) -> None:
        if self.direct is not None:
            await self.direct.close()
        await self.client.close()


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


def _build(settings: ModelSettings) -> tuple[AsyncOpenAI, bool, SSLContext | None]:
    """OpenAI's client for an endpoint; whether there is a shorter way for whole answers, and whom that one trusts."""
    import httpx2  # noqa: PLC0415  (the same)
    import openai  # noqa: PLC0415  (heavy: loads with the first model call)

    from perdure.llm import direct  # noqa: PLC0415  (the same)

    client = openai.AsyncOpenAI(
        api_key=settings.api_key,
        base_url=settings.base_url,
        max_retries=0,
        timeout=openai.Timeout(settings.timeout, connect=direct.CONNECT_SECONDS),
        default_headers=dict(settings.headers),
    )
    client.platform_headers()  # reads files, once
    is_direct = direct.possible(settings)
    trusted = httpx2.create_ssl_context() if is_direct and settings.base_url.startswith("https:") else None
    return client, is_direct, trusted


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
        async with self._calling(settings) as kept:
            if on_delta is None:
                assembler.take_whole(await kept.post(path, payload))
            else:
                await _stream(kept.client, path, payload, assembler, on_delta)
            return assembler.reply(provider=settings.provider, seconds=time.monotonic() - began)

    async def embed(self, settings: ModelSettings, texts: list[str]) -> list[list[float]]:
        """One vector for each text, in order."""
        async with self._calling(settings) as kept:
            asked = {"model": settings.model, "input": texts, "encoding_format": "float"}
            answer = await kept.post("/embeddings", asked)
            data = answer.get("data") if isinstance(answer, dict) else None
            if not isinstance(data, list) or len(data) != len(texts):
                raise NonsenseReplyError("the embeddings are not one vector for each text")
            rows = sorted(data, key=lambda row: int(row["index"]))
            return [[float(value) for value in row["embedding"]] for row in rows]

    @asynccontextmanager
    async def _calling(self, settings: ModelSettings) -> AsyncIterator[_Kept]:
        """The clients for `settings`, kept alive while it is used; its errors come out as ours."""
        key = (settings.base_url, settings.api_key, repr((settings.timeout, sorted(settings.headers.items()))))
        if key not in self._clients:
            # in a thread: the first import takes a second, and each client reads the trust store
            client, is_direct, trusted = await asyncio.to_thread(_build, settings)
            from perdure.llm.direct import Direct  # noqa: PLC0415  (loaded by now)

            if key not in self._clients:
                self._clients[key] = _Kept(client, Direct(client, settings, trusted) if is_direct else None)
        kept = self._clients[key]
        self._clients.move_to_end(key)
        kept.users += 1
        import openai  # noqa: PLC0415  (loaded by now)

        try:
            yield kept
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
            await self._clients.pop(idle).close()

    async def close(self) -> None:
        """Close every connection; calls still under way fail as `RetryableError`."""
        while self._clients:
            _, kept = self._clients.popitem()
            await kept.close()

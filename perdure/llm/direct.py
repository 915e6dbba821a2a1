"""Whole answers by a short way: what OpenAI's client would send, with its headers, through aiohttp.

That client costs about a millisecond of CPU for each call. Streams, proxies, redirects and what this module cannot
write as JSON stay its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit
from urllib.request import getproxies

import aiohttp
import orjson
from multidict import CIMultiDict
from yarl import URL

from perdure.llm.errors import answered, broken, silent
from perdure.llm.types import ModelSettings

if TYPE_CHECKING:
    from ssl import SSLContext

    from openai import AsyncOpenAI

CONNECT_SECONDS: Final = 5.0
_CONNECTIONS: Final = 1000  # those of OpenAI's client, and how long it keeps one that nobody uses
_KEEP_SECONDS: Final = 5.0


class OtherWayError(Exception):
    """The request, or its answer, is for OpenAI's client: nothing was done for it."""


def possible(settings: ModelSettings) -> bool:
    """Whether an endpoint can be asked so: the environment names no proxy, the address neither a user nor a query."""
    parts, proxies = urlsplit(settings.base_url), getproxies()
    return not (parts.query or "@" in parts.netloc or any(proxies.get(kind) for kind in ("http", "https", "all")))


class Direct:
    """One endpoint and key, on connections that are kept. `trust` is for https; made where the loop runs."""

    def __init__(self, client: AsyncOpenAI, settings: ModelSettings, trust: SSLContext | None) -> None:
        self._settings = settings
        self._headers = _headers(client, settings)
        self._urls: dict[str, URL] = {}
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=_CONNECTIONS, keepalive_timeout=_KEEP_SECONDS, ssl=True if trust is None else trust
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(
                total=None, connect=settings.timeout, sock_connect=CONNECT_SECONDS, sock_read=settings.timeout
            ),
        )

    async def post(self, path: str, payload: Mapping[str, Any]) -> Any:
        """The JSON of the answer. Raises `PermanentError` or `RetryableError`, `ValueError` for what is no JSON, and
        `OtherWayError`.
        """
        try:
            data = orjson.dumps(payload)
        except TypeError as error:
            raise OtherWayError from error
        url = self._urls.get(path)
        if url is None:
            url = self._urls[path] = URL(self._settings.base_url.rstrip("/") + path)
        try:
            async with self._session.post(url, data=data, headers=self._headers, allow_redirects=False) as answer:
                status, headers, content = answer.status, answer.headers, await answer.read()
        except aiohttp.ConnectionTimeoutError as error:
            raise broken(self._settings, error) from error
        except TimeoutError as error:
            raise silent(self._settings) from error
        except (aiohttp.ClientError, OSError) as error:
            raise broken(self._settings, error) from error
        if status >= 400:
            raise answered(status, content, self._settings, headers)
        if status >= 300:
            raise OtherWayError
        try:
            return orjson.loads(content)
        except orjson.JSONDecodeError:
            return json.loads(content)  # knows NaN and UTF-16, too

    async def close(self) -> None:
        """Close the connections; calls still under way fail as `RetryableError`."""
        await self._session.close()


def _headers(client: AsyncOpenAI, settings: ModelSettings) -> CIMultiDict[str]:
    headers = CIMultiDict({"Authorization": f"Bearer {settings.api_key}"})
    headers.update({name: value for name, value in client.default_headers.items() if isinstance(value, str)})
    headers["x-stainless-retry-count"] = "0"
    headers["x-stainless-read-timeout"] = str(settings.timeout)
    return headers

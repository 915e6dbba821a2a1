"""Sends webhooks: one POST, bounded in time and size, to a checked address, without following redirects."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Final

import aiohttp

from perdure.webhooks.signing import sign
from perdure.webhooks.targets import GuardedResolver, Refused, check_url

LARGEST_WAIT: Final = 3600.0  # seconds that a receiver may ask us to wait
GONE: Final = 410


class NotDelivered(Exception):
    """The receiver has not accepted a webhook; the text says why, without the URL's query.

    `permanent`: trying again cannot help. `retry_after`: seconds that the receiver asked for.
    """

    def __init__(self, reason: str, *, permanent: bool = False, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.permanent = permanent
        self.retry_after = retry_after


class WebhookSender:
    """One connection pool for webhooks; `close` ends it. `private` is for tests and closed networks."""

    def __init__(self, *, private: bool = False, timeout: float = 10.0, connections: int = 32) -> None:
        self._private = private
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._connections = connections
        self._session: aiohttp.ClientSession | None = None

    async def send(
        self, url: str, message_id: str, body: bytes, secret: str, more: Mapping[str, str] | None = None
    ) -> None:
        """POST `body` (JSON) with the headers `webhook-id`, `webhook-timestamp` and `webhook-signature`, and `more`.

        Any 2xx answer is a delivery; its body is not read. Raises `NotDelivered` for everything else.
        """
        try:
            check_url(url, private=self._private)
            timestamp = int(time.time())
            signature = sign(secret, message_id, timestamp, body)
        except ValueError as error:
            raise NotDelivered(str(error), permanent=True) from None
        headers = {
            **(more or {}),
            "Content-Type": "application/json",
            "User-Agent": "perdure-webhooks",
            "webhook-id": message_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signature,
        }
        try:
            async with self._opened().post(url, data=body, headers=headers, allow_redirects=False) as response:
                status, after = response.status, response.headers.get("Retry-After", "")
                response.close()  # whatever else it says
        except TimeoutError:
            raise NotDelivered(f"no answer within {self._timeout.total:g} s") from None
        except (aiohttp.ClientError, OSError, asyncio.IncompleteReadError) as error:
            refused = _refusal(error)
            raise NotDelivered(str(refused or f"{type(error).__name__}: not connected"), permanent=False) from None
        if 200 <= status < 300:
            return
        wait = min(float(after), LARGEST_WAIT) if after.isdecimal() else None
        raise NotDelivered(f"answered {status}", permanent=status == GONE, retry_after=wait)

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(
                resolver=GuardedResolver(private=self._private), use_dns_cache=False, limit=self._connections
            )
            self._session = aiohttp.ClientSession(
                connector=connector,
                timeout=self._timeout,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
            )
        return self._session

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()


def _refusal(error: BaseException) -> Refused | None:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, Refused):
        cause = cause.__cause__ or getattr(cause, "os_error", None)
    return cause

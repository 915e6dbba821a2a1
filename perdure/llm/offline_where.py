"""Finds an offline model to ask: the one the environment names, the running platform's, else one of our own."""

from __future__ import annotations

import asyncio
import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import orjson
import structlog

if TYPE_CHECKING:
    from perdure.llm.offline import OfflineModel

log = structlog.get_logger()
_SAYS = "no key and no base URL configured: the offline model answers (fixed rules, no language model)"


def named_by_platform(home: Path) -> str | None:
    """The `offline_model_url` of the platform that runs (or ran) under `home`, if it wrote one."""
    try:
        found = orjson.loads((home / "platform.json").read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return None
    url = found.get("offline_model_url") if isinstance(found, dict) else None
    return url if isinstance(url, str) else None


async def _listens(url: str) -> bool:
    parts = urlsplit(url)
    try:
        async with asyncio.timeout(1.0):
            _, writer = await asyncio.open_connection(parts.hostname, parts.port or 80)
    except (OSError, TimeoutError, ValueError):
        return False
    writer.close()
    return True


class OfflineWhere:
    """Gives the base URL of an offline model, and starts one inside this process when there is none."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._own: OfflineModel | None = None
        self._url: str | None = None
        self._lock = asyncio.Lock()

    async def url(self) -> str:
        """The base URL, found on the first call and kept; the log says each time which one was chosen."""
        if self._url is None:
            async with self._lock:
                self._url = self._url or await self._find()
        return self._url

    def forget(self) -> None:
        """Look again at the next call: the one in use does not answer any more."""
        if self._own is None:
            self._url = None

    async def _find(self) -> str:
        if said := os.environ.get("PERDURE_OFFLINE_MODEL_URL"):
            log.warning(_SAYS, action="llm.offline", url=said, source="PERDURE_OFFLINE_MODEL_URL")
            return said.rstrip("/")
        said = await asyncio.to_thread(named_by_platform, self._home)
        if said and await _listens(said):
            log.warning(_SAYS, action="llm.offline", url=said, source="platform")
            return said.rstrip("/")
        if self._own is None:
            # in a thread: its HTTP server loads only when it is needed, and takes half a second
            module = await asyncio.to_thread(import_module, "perdure.llm.offline")
            own: OfflineModel = module.OfflineModel()
            await own.start()
            self._own = own
        log.warning(_SAYS, action="llm.offline", url=self._own.url, source="this process")
        return self._own.url

    async def close(self) -> None:
        """Stop the one inside this process, if there is one."""
        own, self._own, self._url = self._own, None, None
        if own is not None:
            await own.stop()

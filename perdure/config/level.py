"""The log level of a service: what the global layer of the configuration says, live."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

import structlog
from nats import errors as nats_errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from perdure import subjects
from perdure.bus.wire import request
from perdure.config.messages import ConfigUpdate
from perdure.errors import ApiError
from perdure.observe.logging import set_level
from perdure.settings import Settings

KEY: Final = "log_level"
LONGEST_BACKOFF: Final = 5.0

log = structlog.get_logger()


class LevelFollower:
    """Follows `log_level` of `*`; without a value there it is `PERDURE_LOG_LEVEL`. Agents follow their own."""

    def __init__(self, nats: Client, settings: Settings) -> None:
        self._nats = nats
        self._settings = settings
        self._look = asyncio.Event()
        self.revision = ""  # of the global layer, as far as it was read
        self._live = ""  # what the configuration says; empty: nothing

    async def run(self) -> None:
        """Follow until cancelled."""
        subscription = await self._nats.subscribe(subjects.CONFIG_UPDATE, cb=self._told)
        try:
            wait = 0.0
            while True:
                self._look.clear()
                try:
                    await self.read()
                    wait = 0.0
                except ApiError as error:
                    wait = min(max(wait * 2, 0.1), LONGEST_BACKOFF)
                    log.debug("the log level was not read", action="log_level.not_read", error=error.message)
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait or self._settings.config_poll_interval):
                        await self._look.wait()
        finally:
            with suppress(nats_errors.Error):
                await subscription.unsubscribe()

    async def _told(self, message: Msg) -> None:
        try:
            update = ConfigUpdate.parse(message.data)
        except ValueError:
            return  # told of by those who read all of it
        if update.agent_name == subjects.GLOBAL_LAYER:
            self._look.set()

    async def read(self) -> None:
        """Read it once, and make it the level. Raises `ApiError` when nobody answers."""
        reply = await request(self._nats, subjects.CONFIG_GET, {"agent_name": subjects.GLOBAL_LAYER}, timeout=2)
        self.revision = str(reply.get("revision", ""))
        said = str(reply.get("configurations", {}).get(KEY) or "")
        if said == self._live:
            return
        self._live = said
        try:
            set_level(said or self._settings.log_level)
        except ValueError as error:
            log.warning("log_level of * is not usable", action="log_level.bad", error=str(error))
        else:
            log.info("log level", action="log_level.changed", level=said or self._settings.log_level)

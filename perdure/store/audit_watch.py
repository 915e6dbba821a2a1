"""Reads a chain of the audit log again from time to time, so that one that was touched is told without being asked."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Final

import asyncpg
import structlog

from perdure.observe.health import Finding
from perdure.observe.metrics import Reading
from perdure.settings import Settings
from perdure.store.audit import Chain, verify
from perdure.store.failures import CONNECTION_ERRORS
from perdure.store.postgres import Pool

FIRST: Final = 60.0  # seconds after the start, at most

log = structlog.get_logger(__name__)


class AuditWatch:
    """The loop of a service, over what it seals. Any number of processes may do so."""

    def __init__(self, pool: Pool, settings: Settings, chain: Chain) -> None:
        self._pool = pool
        self._chain: Chain = chain
        self._key = settings.audit_key
        self._days = settings.audit_days
        self._every = settings.audit_verify_interval
        self.broken = ""

    async def run(self) -> None:
        """Look until cancelled."""
        if not self._every:
            return
        pause = min(self._every, FIRST)
        while True:
            await asyncio.sleep(pause)
            pause = self._every
            try:
                await self.look()
            except (*CONNECTION_ERRORS, asyncpg.PostgresError) as error:
                log.warning("the audit log is not read; trying again", action="audit.retry", error=str(error)[:300])

    async def look(self) -> str:
        """Read the chain once; empty, or what is broken."""
        async with (
            self._pool.acquire() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),  # it grows meanwhile
        ):
            found = await verify(connection, self._chain, self._key, days=self._days)
        if found.broken:
            log.error("the audit log is broken", action="audit.broken", chain=self._chain, what=found.broken)
        self.broken = found.broken
        return found.broken

    async def check(self) -> Finding:
        """For the health of the process."""
        return ("warning", f"the chain of {self._chain} is broken: {self.broken}") if self.broken else ("ok", "whole")

    def readings(self) -> Iterator[Reading]:
        """Whether it is broken."""
        yield "perdure_audit_broken", (self._chain,), int(bool(self.broken))

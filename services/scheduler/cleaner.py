"""Payloads that nobody uses any more, in Postgres and in the object store beside it."""

from __future__ import annotations

import asyncio
from typing import Final

import asyncpg
import structlog

from perdure.bus.bucket import Bucket
from perdure.errors import SetupError
from perdure.store.failures import CONNECTION_ERRORS
from perdure.store.postgres import Pool
from perdure.store.queries import load_queries

_SQL = load_queries("payloads.sql")
log = structlog.get_logger(__name__)

GRACE: Final = 3600.0  # seconds that a payload without a use is kept: somebody may be about to refer to it
EVERY: Final = 60.0
STRAYS_EVERY: Final = 3600.0
PAGE: Final = 500
PAUSE: Final = 0.05  # seconds between pages: however many there are, Postgres has its hands free


class Cleaner:
    """Deletes the payloads that no run uses.

    `bucket` is where some of them stand; `keeps`: new ones are put there, so it is made anew when it is gone.
    """

    def __init__(
        self, pool: Pool, bucket: Bucket | None = None, *, keeps: bool = False, grace: float = GRACE, page: int = PAGE
    ) -> None:
        self._pool = pool
        self._bucket = bucket
        self._keeps = keeps
        self._grace = grace
        self._page = page

    async def run(self) -> None:
        """Clean until cancelled."""
        loop = asyncio.get_running_loop()
        strays_at = loop.time() + STRAYS_EVERY
        while True:
            await asyncio.sleep(EVERY)
            try:
                await self.keep_bucket()
                await self.clean(pause=PAUSE)
                if self._keeps and loop.time() >= strays_at:
                    await self.adopt_strays(pause=PAUSE)
                    strays_at = loop.time() + STRAYS_EVERY
            except (SetupError, *CONNECTION_ERRORS) as error:
                log.info("payloads not cleaned", action="payloads.retry", reason=str(error) or type(error).__name__)

    async def keep_bucket(self) -> None:
        """Make the bucket if it is to be used and is not there. Raises `SetupError`."""
        if self._keeps and self._bucket is not None:
            await self._bucket.ensure()

    async def clean(self, *, pause: float = 0.0) -> int:
        """Look at every use and every payload once, a page at a time, `pause` seconds apart; how many payloads went."""
        run_id = digest = ""
        while (
            last := await self._pool.fetchrow(_SQL["drop_uses"], run_id, digest, self._page, self._grace)
        ) is not None:
            run_id, digest = last["run_id"], last["hash"]
            await asyncio.sleep(pause)
        digest, gone = "", 0
        while (last := await self._drop_page(digest)) is not None:
            digest = last["hash"]
            gone += last["gone"]
            await asyncio.sleep(pause)
        if gone:
            log.info("payloads deleted", action="payloads.deleted", payloads=gone)
        return gone

    async def _drop_page(self, after: str) -> asyncpg.Record | None:
        async with self._pool.acquire() as connection, connection.transaction():
            last = await connection.fetchrow(_SQL["drop_payloads"], after, self._page, self._grace)
            for digest in last["elsewhere"] if last is not None else ():
                if self._bucket is None:
                    raise ConnectionError("payloads stand in an object store, and nobody has said where that is")
                await self._bucket.delete(digest)
            return last

    async def adopt_strays(self, *, pause: float = 0.0) -> int:
        """Make rows for objects that have none, so that `clean` removes them; how many there were.

        Whoever puts an object within a transaction that does not commit leaves one.
        """
        seq, adopted = 0, 0
        while self._bucket is not None:
            names, seq = await self._bucket.names(after=seq, limit=self._page)
            if not names:
                break
            adopted += int((await self._pool.execute(_SQL["adopt"], names, self._grace + 1)).rpartition(" ")[2])
            await asyncio.sleep(pause)
        return adopted

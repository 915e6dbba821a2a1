"""Keeps the table in memory level with Postgres, and sees that every revision goes out on NATS.

NOTIFY only makes it quick: after every LISTEN, and at every keep-alive, revisions are compared and read again. One
ConfigManager, the holder of a session lock, broadcasts; the row `config_broadcast` says how far, and is written after
NATS has the messages. Another one that sees that row fall behind broadcasts too: a message may repeat, none is lost.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Final

import asyncpg
import structlog
from nats import errors as nats_errors
from nats.aio.client import Client

from config_manager.broadcast import broadcast_of
from config_manager.database import GONE, SQL
from config_manager.judge import Judge
from config_manager.table import ConfigTable, Notice
from perdure import subjects
from perdure.errors import SetupError
from perdure.observe.metrics import Reading
from perdure.settings import Settings
from perdure.store.postgres import Connection, Pool, connect_direct, schema_needed
from perdure.subjects import GLOBAL_LAYER

CHANNEL: Final = "perdure_config"
KEEP_ALIVE: Final = 5.0  # seconds between comparisons that nothing asked for; they find a dead connection, too
STANDBY_POLL: Final = 1.0  # the same while another one broadcasts
PATIENCE: Final = 2.0  # seconds that another's broadcast may lag before this one helps
BATCH: Final = 500  # revisions read at a time
BUSY: Final = 3  # revisions that one pass found, from which on the next waits, so that it finds more
BREATH: Final = 0.005  # seconds it waits then
REMEMBERED: Final = 10_000  # notices kept, so that a broadcast needs no second query

log = structlog.get_logger()


class ConfigSync:
    """One loop that owns one direct connection: LISTEN, the broadcaster's lock, and the way from history to NATS."""

    def __init__(self, settings: Settings, nats: Client, table: ConfigTable, judge: Judge, *, instance_id: str) -> None:
        self.keep_alive = min(KEEP_ALIVE, settings.config_poll_interval)
        self.standby_poll = min(STANDBY_POLL, settings.config_poll_interval)
        self.patience = PATIENCE
        self.listening = False
        self.leading = False
        self.started = asyncio.Event()  # listening for the first time
        self.on_news: Callable[[list[Notice]], None] = lambda _notices: None  # rows have changed; empty: leads now
        self._settings = settings
        self._nats = nats
        self._table = table
        self._judge = judge
        self._schemas_changed = False
        self._instance_id = instance_id
        self._wake = asyncio.Event()
        self._recent: deque[Notice] = deque()
        self._said = 0
        self._lag: tuple[int, float] | None = None

    async def run(self) -> None:
        """Listen for ever; a lost connection is replaced, and what was missed meanwhile is read."""
        wait, complaint = 0.05, ""
        while True:
            try:
                connection = await connect_direct(self._settings, "config-manager listen")
            except (*GONE, asyncpg.PostgresError) as error:
                if _said(error) != complaint:  # once an outage, not once an attempt
                    complaint = _said(error)
                    log.warning("cannot listen to Postgres", action="config.listen_failed", error=complaint)
            else:
                try:
                    wait, complaint = 0.05, ""
                    await self._watch(connection)
                except (*GONE, asyncpg.PostgresError) as error:
                    log.warning("lost the LISTEN connection", action="config.listen_lost", error=_said(error))
                finally:
                    self.listening = self.leading = False
                    connection.terminate()
            await asyncio.sleep(random.uniform(wait / 2, wait))  # noqa: S311 - jitter, no secret
            wait = min(wait * 2, 1.0)

    def readings(self) -> Iterator[Reading]:
        """What is counted of the table and its broadcasts."""
        yield "perdure_config_table_revision", (), self._table.revision
        yield "perdure_config_leading", (), int(self.leading)
        yield "perdure_config_listening", (), int(self.listening)
        yield "perdure_config_broadcast_lag", (), max(0, self._table.revision - self._said) if self.leading else 0
        yield "perdure_config_held_values", (), sum(len(keys) for keys in self._table.held().values())

    def nudge(self) -> None:
        """Look now: something was committed."""
        self._wake.set()

    async def reload(self, connection: Connection) -> None:
        """Read all rows in one snapshot. Raises `SetupError` when the tables are not there."""
        before = self._table.revision
        with schema_needed():
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                revision = await connection.fetchval(SQL["revision"])
                rows = await connection.fetch(SQL["load_rows"])
                heads = await connection.fetch(SQL["load_heads"])
        await self._judge.load(connection)
        agents = self._judge.concerned(GLOBAL_LAYER)
        fresh = ConfigTable()
        fresh.load(revision, rows, heads)
        judged = await self._judge.judge_all(connection, fresh, agents)
        if before <= revision < self._table.revision:
            return  # `refresh` has been quicker than this read
        # Rows and holds in one go: no reader may see a bad value in between.
        self._table.load(revision, rows, heads)
        self._table.drop_holds(agents)
        self._table.hold(judged)
        self._recent.clear()

    async def refresh(self, source: Connection | Pool) -> None:
        """Bring the table to the newest committed revision. Several may do so at once."""
        while True:
            began = self._table.revision
            changes = await source.fetch(SQL["changes_since"], began, BATCH)
            judged = await self._judge.judge(source, changes) if changes else {}
            if began > self._table.revision:
                continue  # another database has been loaded meanwhile
            if changes and changes[-1]["revision"] <= self._table.revision:
                continue  # another refresh was quicker; what was judged is older than what is known
            notices = self._table.apply(changes)
            self._table.hold(judged)
            self._doubt(notices)
            if len(self._recent) > REMEMBERED:
                self._recent.clear()
            self._recent.extend(notices)
            if notices:
                self.on_news(notices)
            if not changes or changes[-1]["revision"] < began + BATCH:
                return

    async def refresh_schemas(self, source: Connection | Pool) -> None:
        """Read the schemas anew if any has changed, and judge its agent's rows by it."""
        self._schemas_changed = False
        await self._judge_agents(source, await self._judge.load(source))

    async def _judge_agents(self, source: Connection | Pool, agents: Iterable[str]) -> None:
        wanted = set(agents)
        if not wanted:
            return
        for _ in range(20):  # under a storm of changes the last attempt has to do; the next change of a row judges it
            began = self._table.revision
            judged = await self._judge.judge_all(source, self._table, wanted)
            if began == self._table.revision:
                break
        self._table.drop_holds(wanted)
        self._table.hold(judged)

    def _doubt(self, notices: Iterable[Notice]) -> None:
        for notice in notices:
            for doubt in self._judge.doubts(notice.layer, notice.keys):
                log.warning(doubt, action="config.unknown_key", layer=notice.layer, revision=notice.revision)

    def _told(self, payload: str) -> None:
        if '"schema"' in payload:
            self._schemas_changed = True
        self._wake.set()

    async def _watch(self, connection: Connection) -> None:
        self._wake.clear()
        connection.add_termination_listener(lambda _connection: self._wake.set())
        await connection.add_listener(CHANNEL, lambda *heard: self._told(str(heard[-1])))
        # It only records what was broadcast: lost in a crash of Postgres, it repeats messages and loses none.
        await connection.execute(SQL["commit_later"])
        await self.reload(connection)
        await self._reconcile(connection)
        self.listening = True
        self.started.set()
        log.info("listening", action="config.listening", revision=self._table.revision, leading=self.leading)
        while True:
            woken = await self._woken()
            self._wake.clear()
            if woken:
                before = self._table.revision
                await self._advance(connection)
                if self._table.revision - before >= BUSY:
                    await asyncio.sleep(BREATH)
            else:
                await self._reconcile(connection)

    async def _woken(self) -> bool:
        behind = self.leading and self._said < self._table.revision  # NATS was away: try again soon
        seconds = 0.25 if behind else self.keep_alive if self.leading else self.standby_poll
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return False
        return True

    async def _advance(self, connection: Connection) -> None:
        """The quick way after a NOTIFY."""
        if self._schemas_changed:
            await self.refresh_schemas(connection)
        await self.refresh(connection)
        if self.leading or await self._takes_lead(connection):
            await self._broadcast(connection)

    async def _reconcile(self, connection: Connection) -> None:
        """The sure way: compare with what the database says, whatever was heard or not."""
        await self.refresh_schemas(connection)
        await self.refresh(connection)
        if not self.leading:
            await self._takes_lead(connection)
        position = await connection.fetchrow(SQL["broadcast_position"])
        if position is None:
            raise SetupError("config_broadcast or config_counter has lost its row; run `perdure migrate --check`")
        # Another database, restored or made anew; or this process slept until history was pruned.
        if position["newest"] < self._table.revision or position["pruned_to"] > self._table.revision:
            await self.reload(connection)
        if self.leading or self._is_late(position["broadcast"], position["newest"]):
            self._said = position["broadcast"]
            await self._broadcast(connection)

    async def _takes_lead(self, connection: Connection) -> bool:
        if await connection.fetchval(SQL["try_lead"]):
            self._said = (await connection.fetchrow(SQL["broadcast_position"]) or {"broadcast": 0})["broadcast"]
            self.leading = True
            self.on_news([])
            log.info("broadcasting from here on", action="config.leading", instance=self._instance_id)
        return self.leading

    def _is_late(self, broadcast: int, newest: int) -> bool:
        """Whether the broadcaster, though it holds its lock, has not moved for a while: stopped, or cut off."""
        if broadcast >= newest:
            self._lag = None
            return False
        if self._lag is None or self._lag[0] != broadcast:
            self._lag = (broadcast, time.monotonic())
        return time.monotonic() - self._lag[1] > self.patience

    async def _broadcast(self, connection: Connection) -> None:
        while self._said < self._table.revision:
            if not self._nats.is_connected:
                return
            notices = self._remembered() or [
                Notice(row["revision"], row["agent_name"], tuple(row["keys"]), row["changed_at"])
                for row in await connection.fetch(SQL["notices_since"], self._said, BATCH)
            ]
            last = notices[-1].revision if notices else min(self._said + BATCH, self._table.revision)
            try:
                newest = {notice.layer: notice for notice in notices}
                for notice in notices:
                    carries = newest[notice.layer] is notice
                    message = broadcast_of(notice, self._table, carry=carries)
                    await self._nats.publish(subjects.CONFIG_UPDATE, message)
                await self._nats.flush(timeout=5)
            except (nats_errors.Error, TimeoutError) as error:
                log.warning("NATS did not take a broadcast", action="config.broadcast_failed", error=_said(error))
                return
            # Only now: a crash before this line repeats messages, a crash after the line has none to repeat.
            await connection.execute(SQL["record_broadcast"], last, self._instance_id)
            self._said = last

    def _remembered(self) -> list[Notice]:
        """The notices after `_said` if memory has all of them."""
        if not self._recent or self._recent[0].revision > self._said + 1:
            return []
        while self._recent and self._recent[0].revision <= self._said:
            self._recent.popleft()
        return list(self._recent)


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__

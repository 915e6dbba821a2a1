"""The agent's side of configuration: one snapshot that is always whole, always good, and never goes back.

Subscribe first, then read. A message only says that there is something to read: revisions up to the one that is live
are passed over, bursts become one read, and what is read is validated as a whole before it replaces the snapshot.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from typing import Final

import structlog
from nats import errors as nats_errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from pydantic import BaseModel
from redis.asyncio import Redis

from perdure import subjects
from perdure.bus.wire import request
from perdure.config.applied import Applied
from perdure.config.fetch import Fetched, fetch, read_reply
from perdure.config.last_known_good import LastKnownGood
from perdure.config.messages import ConfigUpdate
from perdure.config.schema import restart_only, schema_of
from perdure.config.snapshot import AgentConfig
from perdure.errors import ApiError, SetupError, Unavailable
from perdure.observe.metrics import Reading
from perdure.settings import Settings

OnChange = Callable[[ConfigUpdate, AgentConfig], Awaitable[Mapping[str, str] | None]]

START_PATIENCE: Final = 2.0  # seconds that a start waits for a ConfigManager before it takes the last known good
LONGEST_BACKOFF: Final = 5.0
CALLBACK: Final = "_handle_config_update"  # the key in `errors` under which a failed callback is told

log = structlog.get_logger()


class ConfigClient:
    """Keeps `snapshot` current for one process of an agent.

    `on_change(update, snapshot)` is awaited after a changed snapshot is live, one at a time, and not at the start;
    the errors it returns, or what it raises, is told on `config.applied.<agent>` and does not undo the change.
    """

    def __init__(
        self,
        *,
        nats: Client,
        redis: Redis,
        settings: Settings,
        agent_name: str,
        instance_id: str,
        settings_model: type[BaseModel] | None = None,
        on_change: OnChange | None = None,
    ) -> None:
        self._nats = nats
        self._settings = settings
        self._agent = agent_name
        self._instance = instance_id
        self._model = settings_model
        self._on_change = on_change
        self._applied = Applied(nats, agent_name, instance_id)
        self._last_known_good = LastKnownGood(redis, agent_name)
        self._snapshot: AgentConfig | None = None
        self._schema_known = False
        self._restart_only = restart_only(settings_model)
        self._waiting: set[str] = set()  # restart-only keys that have another value by now
        self._wanted = 0
        self._heard: ConfigUpdate | None = None
        self._unheard = False  # the last look found no ConfigManager
        self._look = asyncio.Event()
        self._subscription: Subscription | None = None
        self._asked: Subscription | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def snapshot(self) -> AgentConfig:
        """The configuration that is live. Raises `SetupError` before `start`."""
        if self._snapshot is None:
            raise SetupError("the configuration is read when the agent starts; there is none before")
        return self._snapshot

    @property
    def stale(self) -> bool:
        """Whether what is live may be old: no ConfigManager was heard at the last look."""
        return self.snapshot.stale or self._unheard

    async def start(self, *, patience: float = START_PATIENCE) -> AgentConfig:
        """Read the first snapshot and keep it current from then on.

        When no ConfigManager answers within `patience` seconds, it is the last known good one from Redis, else the
        code's defaults: `stale`, until an answer is there. Raises `SetupError` when the agent's `Settings` need values
        that nobody has written.
        """
        self._subscription = await self._nats.subscribe(subjects.CONFIG_UPDATE, cb=self._told)
        await self._publish_schema()
        self._asked = await self._nats.subscribe(subjects.config_state(self._agent), cb=self._applied.answer)
        found = await self._first(patience)
        saved = await self._last_known_good.load()
        rows, revision = (found.values, found.revision) if found else saved or ({}, 0)
        try:
            self._snapshot = AgentConfig.from_row(
                rows,
                agent_name=self._agent,
                revision=revision,
                settings_model=self._model,
                last_good=saved[0] if saved else None,
                held=found.held if found else None,
                stale=found is None or found.stale,
            )
        except ValueError as error:
            await self.stop()
            raise SetupError(f"agent {self._agent} cannot start on its configuration: {error}") from error
        if found:
            await self._tell_applied({})
            await self._keep()
        else:
            log.warning(
                "no ConfigManager answers; starting on what was known",
                action="config.started_stale",
                agent=self._agent,
                revision=revision,
                from_redis=saved is not None,
            )
            self._look.set()
        self._task = asyncio.get_running_loop().create_task(self._follow(), name=f"config of {self._agent}")
        return self._snapshot

    async def stop(self) -> None:
        """Follow no longer. The snapshot stays."""
        task, self._task = self._task, None
        while task is not None and not task.done():
            task.cancel()  # again when a library has swallowed it: `wait_for` of Python 3.11 does when it is too late
            await asyncio.wait([task], timeout=1)
        subscriptions = (self._subscription, self._asked)
        self._subscription = self._asked = None
        for subscription in subscriptions:
            if subscription is not None:
                with suppress(nats_errors.Error):
                    await subscription.unsubscribe()

    def readings(self) -> Iterator[Reading]:
        """What is counted of configuration."""
        agent = (self._agent,)
        if self._snapshot is not None:
            yield "perdure_config_revision", agent, self._snapshot.revision
            yield "perdure_config_held_keys", agent, len(self._snapshot.held)
            yield "perdure_config_stale", agent, int(self.stale)
        yield "perdure_config_applied_total", (*agent, "applied"), self._applied.applied
        yield "perdure_config_applied_total", (*agent, "rejected"), self._applied.rejected

    async def reconcile(self) -> None:
        """Read again, whatever was heard: after a reconnect to NATS, messages were missed."""
        self._look.set()

    async def _told(self, message: Msg) -> None:
        try:
            update = ConfigUpdate.parse(message.data)
        except ValueError as error:
            log.warning("passed over a message", action="config.bad_update", error=str(error))
            return
        if not update.concerns(self._agent, self._instance):
            return
        if self._snapshot is not None and update.revision <= self._snapshot.revision:
            return  # a repeat
        if update.revision >= self._wanted:
            self._wanted, self._heard = update.revision, update
        self._look.set()

    async def _publish_schema(self) -> None:
        """Tell the ConfigManager what the settings are, so that bad values are refused where they are written."""
        if self._model is None or self._schema_known:
            return
        body = {"agent_name": self._agent, "instance_id": self._instance, "schema": schema_of(self._model)}
        try:
            await request(self._nats, subjects.config_schema(self._agent), body, timeout=2)
        except ApiError as error:
            log.info("the schema was not taken", action="config.schema_failed", agent=self._agent, error=error.message)
            # Nobody there: again after the next good read. Refused: again would not help.
            self._schema_known = not isinstance(error, Unavailable)
        else:
            self._schema_known = True

    async def _first(self, patience: float) -> Fetched | None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience
        wait = 0.02
        while True:
            try:
                left = max(deadline - loop.time(), 0.05)
                return await fetch(self._nats, self._agent, self._instance, seen=0, timeout=left)
            except ApiError as error:
                if loop.time() + wait > deadline:
                    log.info("config.get failed", action="config.get_failed", agent=self._agent, error=error.message)
                    return None
            await asyncio.sleep(wait)
            wait = min(wait * 2, 0.5)

    async def _follow(self) -> None:
        """The one task that reads and applies, so that everything happens one at a time."""
        wait = 0.0
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(wait or self._pause()):
                    await self._look.wait()
            self._look.clear()
            try:
                await self._read()
                self._unheard = False
                await self._publish_schema()
                wait = 0.0
            except ApiError as error:
                self._unheard = isinstance(error, Unavailable)
                wait = min(max(wait, 0.05) * 2, LONGEST_BACKOFF) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
                log.info("config.get failed", action="config.get_failed", agent=self._agent, error=error.message)
            except Exception:
                # A fault of ours must not end the following: the next look may do.
                wait = LONGEST_BACKOFF
                log.exception("configuration was not applied", action="config.apply_failed", agent=self._agent)

    def _pause(self) -> float:
        return self._settings.config_poll_interval * random.uniform(0.8, 1.0)  # noqa: S311 - jitter

    async def _read(self) -> None:
        seen, wanted, update = self.snapshot.revision, self._wanted, self._heard
        found = self._carried(update, max(seen + 1, wanted))
        if found is None:
            if update is not None and update.spread:  # every agent asks now: not all in the same moment
                await asyncio.sleep(random.uniform(0, update.spread))  # noqa: S311 - jitter
            found = await fetch(self._nats, self._agent, self._instance, seen=max(seen, wanted))
        if found.rewound or found.revision >= seen:  # anything else is an answer from before
            unchanged = found.revision == seen and not self._differs(found.values)
            if not unchanged or self.snapshot.stale:
                await self._apply(found, update)
        if found.revision < wanted and not found.rewound:
            raise Unavailable(f"revision {wanted} was broadcast, but the ConfigManager answers {found.revision}")
        if self._wanted <= max(wanted, found.revision):
            self._wanted, self._heard = 0, None

    def _carried(self, update: ConfigUpdate | None, least: int) -> Fetched | None:
        """The configuration that came with the broadcast, if it did and is new enough."""
        if update is None or update.snapshot is None:
            return None
        try:
            found = read_reply(update.snapshot, subjects.CONFIG_UPDATE)
        except (ApiError, AttributeError) as error:
            log.warning("passed over a carried snapshot", action="config.bad_snapshot", error=str(error))
            return None
        return found if found.revision >= least else None

    def _differs(self, values: Mapping[str, str]) -> bool:
        known = self.snapshot.values
        passed_over = self.snapshot.held.keys() | self._restart_only
        return any(values.get(key) != known.get(key) for key in {*values, *known} - passed_over)

    def _until_restart(self, values: Mapping[str, str]) -> dict[str, str]:
        """`values` with the restart-only keys as this process began with them."""
        known = self.snapshot.values
        self._waiting = {key for key in self._restart_only if values.get(key) != known.get(key)}
        kept = {key: text for key, text in values.items() if key not in self._waiting}
        return kept | {key: known[key] for key in self._waiting if key in known}

    async def _apply(self, found: Fetched, update: ConfigUpdate | None) -> None:
        before = self.snapshot
        try:
            made = AgentConfig.from_row(
                self._until_restart(found.values),
                agent_name=self._agent,
                revision=found.revision,
                settings_model=self._model,
                last_good=before.values,
                held=found.held,
                stale=found.stale,
            )
        except ValueError as error:  # nothing of it can be used: all stays as it was
            self._snapshot = before.at(found.revision, stale=found.stale)
            await self._tell_applied({"settings": str(error)}, rejected=True)
            return
        changed = made.changed_keys(before)
        self._snapshot = made
        errors = await self._call_back(made, changed, update) if changed else {}
        await self._tell_applied(errors)
        await self._keep()

    async def _call_back(
        self, made: AgentConfig, changed: tuple[str, ...], update: ConfigUpdate | None
    ) -> Mapping[str, str]:
        if self._on_change is None:
            return {}
        found = ConfigUpdate.found(self._agent, changed, made.revision)
        told = found if update is None else update.now_live(changed, made.revision)
        try:
            return await self._on_change(told, made) or {}
        except Exception as error:
            log.exception("the agent's config callback failed", action="config.callback_failed", agent=self._agent)
            return {CALLBACK: f"{type(error).__name__}: {error}"}

    async def _keep(self) -> None:
        await self._last_known_good.save(self.snapshot)

    async def _tell_applied(self, errors: Mapping[str, str], *, rejected: bool = False) -> None:
        await self._applied.tell(self.snapshot, errors, waiting=self._waiting, rejected=rejected)

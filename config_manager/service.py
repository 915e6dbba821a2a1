"""The ConfigManager service: answers `config.get`, `config.set`, `config.history` and `config.rollback`."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from typing import Any, ClassVar, Final, cast

import asyncpg
import orjson

from config_manager import redis_copy, writes
from config_manager.database import GONE, SQL, told_as_api_errors
from config_manager.judge import Judge
from config_manager.redis_copy import RedisCopy
from config_manager.redis_names import RedisNames
from config_manager.redis_source import POLL, RedisSource
from config_manager.replies import cursor_of, page_of, part_of
from config_manager.requests import (
    HIGHEST,
    Target,
    body_of,
    configurations,
    flag,
    rollout_plan,
    schema_in,
    target_of,
    text,
    whole_number,
)
from config_manager.rollout import Rollouts
from config_manager.sync import ConfigSync
from config_manager.table import ConfigTable, layers_of
from config_manager.upkeep import Upkeep
from perdure import subjects
from perdure.bus.service import Request, Service
from perdure.config.level import LevelFollower
from perdure.config.schema import hash_of_schema
from perdure.errors import InvalidRequest, NotFound, SetupError, TooLarge
from perdure.observe.health import Finding
from perdure.settings import Settings
from perdure.store.actor import actor
from perdure.store.audit_seals import Sealing
from perdure.store.audit_watch import AuditWatch
from perdure.store.postgres import connect_direct, create_pool, unreachable
from perdure.store.redis import key_of
from perdure.subjects import GLOBAL_LAYER

Reply = dict[str, Any]
LONGEST_NAME: Final = 200  # of changed_by
PATIENCE: Final = 1.0  # seconds that a read waits for Postgres before memory has to do
FIRST_LISTEN: Final = 3.0  # seconds that a start waits until it listens


class ConfigManager(Service):
    """Serves configuration from memory, writes it to Postgres; `config_manager.sync` broadcasts every revision."""

    service_name: ClassVar[str] = "config-manager"
    description: ClassVar[str] = "configuration of all agents"
    needs: ClassVar[frozenset[str]] = frozenset({"nats", "redis"})  # it starts without Postgres, on its copy in Redis

    def __init__(self, settings: Settings | None = None) -> None:
        super().__init__(settings)
        self.table = ConfigTable()
        self.judge = Judge()
        self.copy: RedisCopy
        self.rollouts: Rollouts
        self.upkeep: Upkeep
        self.sync: ConfigSync
        self.source: RedisSource | None = None  # where PERDURE_CONFIG_STORE says redis

    def metadata(self) -> dict[str, str]:
        """What discovery shows: the revision that it has read."""
        return {**super().metadata(), "config_revision": str(self.table.revision)}

    async def on_start(self) -> None:
        """Read the table, or its copy in Redis when Postgres is down, then answer.

        Raises `SetupError` when the tables are not there, or when there is neither Postgres nor a copy.
        """
        self.pool = await create_pool(self.settings, self.name, lazy=True)
        self.health.add("postgres", self._check_postgres)
        self.copy = RedisCopy(self.redis, self.table)
        self.sync = ConfigSync(self.settings, self.nats, self.table, self.judge, instance_id=self.instance_id)
        self.metrics.add(self.sync.readings)
        try:
            connection = await connect_direct(self.settings, "config-manager start")
            try:
                await self.sync.reload(connection)
            finally:
                await connection.close()
        except (*GONE, asyncpg.PostgresError) as error:
            if not await self.copy.load():
                raise SetupError(unreachable(self.settings, error)) from error
            self.logger.warning(
                "Postgres is down: answering from the copy in Redis",
                action="config.started_stale",
                revision=self.table.revision,
            )
        await self.endpoint("list", subjects.CONFIG_LIST, self._list, queue=subjects.QUEUE_CONFIG)
        if self.settings.config_store == "redis":
            self._follow_redis()
        self.spawn(self.sync.run, name="config-sync")
        self.spawn(self._copy_loop, name="config-copy")
        self.spawn(LevelFollower(self.nats, self.settings).run, name="log-level")
        self.rollouts = Rollouts(self.nats, self.pool)
        self.spawn(self.rollouts.run, name="config-rollouts")
        self.upkeep = Upkeep(self.settings, self.pool, self.redis, self.table)
        self.spawn(lambda: self.upkeep.run(lambda: self.sync.leading), name="config-upkeep")
        self.spawn(Sealing(self.pool, self.settings, "configuration").run, name="audit")
        watch = AuditWatch(self.pool, self.settings, "configuration")
        self.spawn(watch.run, name="audit-watch")
        self.metrics.add(watch.readings)
        self.health.add("audit", watch.check, at_worst="warning")
        with suppress(TimeoutError):  # it goes on trying, and says so
            async with asyncio.timeout(FIRST_LISTEN):
                await self.sync.started.wait()
        self.health.add("config_listen", self._check_listening, at_worst="warning")
        self.health.add("config_held", self._check_held, at_worst="warning")
        for name, subject, handler in (
            ("get", subjects.CONFIG_GET, self._get),
            ("set", subjects.CONFIG_SET, self._set),
            ("history", subjects.CONFIG_HISTORY, self._history),
            ("rollback", subjects.CONFIG_ROLLBACK, self._rollback),
            ("schema", subjects.CONFIG_SCHEMA, self._schema),
            ("rollout", subjects.CONFIG_ROLLOUT, self._rollout),
        ):
            # The bare subject takes the agent from the body alone.
            await self.endpoint(f"{name}-any", subject, handler, queue=subjects.QUEUE_CONFIG)
            await self.endpoint(name, f"{subject}.>", handler, queue=subjects.QUEUE_CONFIG)

    def _follow_redis(self) -> None:
        agent = self.settings.config_redis_agent or None
        names = RedisNames(
            self.settings.config_redis_prefix,
            agent,
            lambda: {*self.judge.keys(agent or ""), *self.table.layer(agent or "")},
            space=key_of(self.redis, ""),
        )
        self.source = RedisSource(
            self.redis,
            self.pool,
            names,
            leads=lambda: self.sync.leading,
            interval=min(POLL, self.settings.config_poll_interval),
        )
        self.sync.on_news = self.source.touched
        self.spawn(self.source.listen, name="config-redis-listen")
        self.spawn(self.source.run, name="config-redis")
        self.health.add("config_redis", self.source.check, at_worst="warning")

    def _agreed(self, target: Target, keys: Collection[str] = ()) -> AbstractAsyncContextManager[None]:
        """Around a write: where Redis is the source, what stands there comes first, and it follows afterwards."""
        if self.source is None:
            return nullcontext()
        return self.source.agreed(layers_of(target.agent, target.instance), keys)

    async def _get(self, request: Request) -> Reply:
        if not request.data and self.sync.listening:  # the usual question, without a body: nothing to parse
            return self._answer(target_of(request, {}), None, {})
        body = body_of(request, "min_revision", "part", "revision", "own", "explain")
        target = target_of(request, body)
        at = whole_number(body, "revision", default=None, lowest=0, highest=HIGHEST)
        own = flag(body, "own")
        if at is not None or own:
            return await self._get_apart(target, at, own=own)
        least = whole_number(body, "min_revision", default=0, lowest=0, highest=HIGHEST) or 0
        part = whole_number(body, "part", default=None, lowest=0, highest=100_000)
        extra = await self._caught_up(least)
        if flag(body, "explain"):
            extra["origins"] = self.table.snapshot(target.agent, target.instance).origins
            extra["defaults"] = self.judge.defaults(target.agent)
        return self._answer(target, part, extra)

    async def _get_apart(self, target: Target, at: int | None, *, own: bool) -> Reply:
        """One layer alone, or the layers as they were: a table of its own is made for the answer."""
        layers = [target.layer] if own else layers_of(target.agent, target.instance)
        with told_as_api_errors():
            newest = await self.pool.fetchval(SQL["revision"])
            if at is not None:
                writes.check_known(at, newest=newest, pruned_to=await self.pool.fetchval(SQL["pruned_to"]))
            rows = await self.pool.fetch(SQL["layers_at"], layers, newest if at is None else at)
        apart = ConfigTable()
        apart.load(newest, rows, ({"agent_name": row["agent_name"], "revision": row["head"]} for row in rows))
        reply = {**apart.snapshot(target.agent, target.instance).reply(), "table_revision": newest}
        size = len(orjson.dumps(reply))
        if size > self.nats.max_payload:
            raise TooLarge(f"this configuration has {size} bytes; one NATS message carries {self.nats.max_payload}")
        return reply

    async def _list(self, request: Request) -> Reply:
        body_of(request)
        await self._caught_up(0)
        return {"status": "success", "revision": self.table.revision, "layers": self.table.heads()}

    async def _set(self, request: Request) -> Reply:
        body = body_of(request, "configurations", "expected_revision", "changed_by")
        target = target_of(request, body)
        puts, deletes = configurations(body)
        warnings = self.judge.check(target.layer, puts)
        async with self._agreed(target, [*puts, *deletes]):
            await writes.put(
                self.pool,
                target.layer,
                puts,
                deletes,
                compare=layers_of(target.agent, target.instance),
                expected=whole_number(body, "expected_revision", default=None, lowest=0, highest=HIGHEST),
                changed_by=text(body, "changed_by", longest=LONGEST_NAME) or actor.get() or subjects.CONFIG_SET,
            )
        return await self._written(target, warnings)

    async def _rollback(self, request: Request) -> Reply:
        body = body_of(request, "revision", "expected_revision", "changed_by")
        target = target_of(request, body)
        revision = whole_number(body, "revision", default=None, lowest=0, highest=HIGHEST)
        if revision is None:
            raise InvalidRequest('revision is missing: {"revision": 7} makes the rows what they were at revision 7')
        async with self._agreed(target):
            await writes.roll_back(
                self.pool,
                target.layer,
                revision,
                check=lambda values: self.judge.check(target.layer, values),
                compare=layers_of(target.agent, target.instance),
                expected=whole_number(body, "expected_revision", default=None, lowest=0, highest=HIGHEST),
                changed_by=text(body, "changed_by", longest=LONGEST_NAME) or actor.get() or subjects.CONFIG_ROLLBACK,
            )
        return await self._written(target)

    async def _history(self, request: Request) -> Reply:
        body = body_of(request, "limit", "cursor", "key")
        target = target_of(request, body)
        limit = whole_number(body, "limit", default=50, lowest=1, highest=1000) or 50
        cursor = cursor_of(text(body, "cursor", longest=600))
        key = text(body, "key", longest=255)
        with told_as_api_errors():
            rows = await self.pool.fetch(SQL["history"], [target.layer], *cursor, key, limit + 1)
        entries, following = page_of(rows, limit)
        revision = self.table.snapshot(target.agent, target.instance).revision
        return {
            "status": "success",
            "agent_name": target.agent,
            "revision": revision,
            "history": entries,
            "next_cursor": following,
        }

    async def _schema(self, request: Request) -> Reply:
        body = body_of(request, "schema")
        target = target_of(request, body)
        if target.agent == GLOBAL_LAYER:
            raise InvalidRequest("a schema belongs to one agent: name it")
        with told_as_api_errors():
            if body.get("schema") is None:
                found = await self.pool.fetchrow(SQL["schema_of"], target.agent)
                if found is None:
                    raise NotFound(f"agent {target.agent} has not published a schema: it does so when it starts")
                schema = orjson.loads(found["schema"])
                return {"status": "success", "agent_name": target.agent, "schema": schema, "hash": found["schema_hash"]}
            schema = schema_in(body)
            digest = hash_of_schema(schema)
            published_by = target.instance or "unknown"
            await self.pool.execute(
                SQL["publish_schema"], target.agent, orjson.dumps(schema).decode(), digest, published_by
            )
            await self.sync.refresh_schemas(self.pool)
        removed = await self.upkeep.redact()
        if removed:
            await self.sync.refresh(self.pool)
        reply = {"status": "success", "agent_name": target.agent, "hash": digest}
        return {**reply, "removed": removed} if removed else reply

    async def _rollout(self, request: Request) -> Reply:
        body = body_of(
            request, "configurations", "instances", "share", "bake_seconds", "max_failures", "changed_by", "action"
        )
        target = target_of(request, body)
        if target.layer == GLOBAL_LAYER or target.instance:
            raise InvalidRequest("a rollout is for one agent: name it, without an instance")
        action = body.get("action", "start" if "configurations" in body else "status")
        changed_by = text(body, "changed_by", longest=LONGEST_NAME) or actor.get() or subjects.CONFIG_ROLLOUT
        started: Reply = {}
        if action == "start":
            plan = rollout_plan(body, changed_by)
            self.judge.check(target.layer, plan.changes)
            started = await self.rollouts.start(target.agent, plan)
        elif action in ("abort", "promote"):
            await self.rollouts.end(target.agent, promote=action == "promote", by=changed_by)
        elif action != "status":
            raise InvalidRequest("action must be start, status, abort or promote")
        rollouts = await self.rollouts.listed(target.agent)
        return {"status": "success", "agent_name": target.agent, **started, "rollouts": rollouts}

    async def _written(self, target: Target, warnings: Sequence[str] = ()) -> Reply:
        """The reply after a write: at least what was written, whoever wrote since."""
        with told_as_api_errors():
            await self.sync.refresh(self.pool)
        self.sync.nudge()
        return self._answer(target, None, {"warnings": warnings} if warnings else {})

    async def _caught_up(self, least: int) -> Reply:
        """Make the table stand at revision `least` if Postgres does; what has to be said about it otherwise."""
        if least <= self.table.revision and self.sync.listening:
            return {}
        try:
            async with asyncio.timeout(PATIENCE):
                await self.sync.refresh(self.pool)
        except (*GONE, asyncpg.PostgresError) as error:
            self.logger.warning("answered from memory", action="config.stale_answer", error=str(error))
            return {"stale": True}
        # The asker has seen more than this database has: it was restored, or made anew.
        return {"rewound": True} if least > self.table.revision else {}

    def _answer(self, target: Target, part: int | None, extra: Reply) -> Reply:
        if target.agent == GLOBAL_LAYER:
            target = Target(GLOBAL_LAYER)
        encoded = self.table.encoded(target.agent, target.instance)
        if extra:
            encoded = orjson.dumps({**orjson.loads(encoded), **extra})
        if part is not None or len(encoded) > self.nats.max_payload:
            revision = self.table.snapshot(target.agent, target.instance).revision
            piece = part_of(encoded, part, revision=revision, limit=self.nats.max_payload)
            if piece is not None:
                return piece
        return cast("Reply", orjson.Fragment(encoded))  # bytes that `Service` puts into the reply as they are

    async def _copy_loop(self) -> None:
        while True:
            await asyncio.sleep(redis_copy.INTERVAL)
            if self.sync.leading:
                await self.copy.save()

    async def _check_held(self) -> Finding:
        held = [f"{agent}.{key}: {hold.why}" for agent, keys in self.table.held().items() for key, hold in keys.items()]
        if held:
            return "warning", f"{len(held)} bad value(s) held back: {'; '.join(held[:10])}"
        return "ok", "no value is held back"

    async def _check_listening(self) -> Finding:
        if not self.sync.listening:
            return "warning", "no LISTEN connection to Postgres: changes are told when it is back"
        return "ok", "broadcasting" if self.sync.leading else "another one broadcasts"

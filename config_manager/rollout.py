"""Gradual rollouts: a change lives on a few instances for a while, then for all, or for none."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import asyncpg
import orjson
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg

from config_manager import writes
from config_manager.database import GONE, told_as_api_errors
from perdure import subjects
from perdure.errors import Conflict, NotFound, Unavailable
from perdure.store.postgres import Connection, Pool
from perdure.store.queries import load_queries

SQL: Final = load_queries("config_rollouts.sql")
CONFIG: Final = load_queries("config.sql")
INTERVAL: Final = 1.0  # seconds between two looks at what bakes
ANSWERS: Final = 0.4  # seconds in which instances say how they stand
# Seconds after its time in which one of the chosen may still apply it: whom it asked for the values may have died, and
# an instance that is busy may have missed a look.
PATIENCE: Final = 15.0

States = dict[str, dict[str, Any]]  # instance to its last `config.applied`

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Plan:
    """What was asked for: `instances`, or a `share` of those alive; `bake_seconds` without trouble."""

    changes: dict[str, str]
    bake_seconds: float
    max_failures: int
    changed_by: str
    instances: int | None = None
    share: float | None = None


async def instance_states(nc: Client, agent: str) -> States:
    """What each live instance of an agent says of its configuration."""
    states: States = {}

    async def answered(message: Msg) -> None:
        body = orjson.loads(message.data)
        states[str(body["instance_id"])] = body

    inbox = nc.new_inbox()
    subscription = await nc.subscribe(inbox, cb=answered)
    await nc.publish(subjects.config_state(agent), reply=inbox)
    await asyncio.sleep(ANSWERS)
    await subscription.unsubscribe()
    return states


class Rollouts:
    """Starts rollouts, and carries on those that any ConfigManager started."""

    def __init__(self, nc: Client, pool: Pool) -> None:
        self._nc = nc
        self._pool = pool

    async def start(self, agent: str, plan: Plan) -> dict[str, Any]:
        """Bring the change to the first instances.

        Raises `Unavailable` when no instance answers, `Conflict` while another rollout of the agent bakes.
        """
        alive = sorted(await instance_states(self._nc, agent))
        if not alive:
            raise Unavailable(f"no instance of {agent} answers, and a rollout needs one; use config.set")
        wanted = plan.instances if plan.instances is not None else math.ceil((plan.share or 0) * len(alive))
        targets = alive[: max(1, min(wanted, len(alive)))]
        done: dict[str, Any] = {}

        async def work(connection: Connection) -> None:
            previous = {}
            for target in targets:
                layer = f"{agent}@{target}"
                rows = await connection.fetch(CONFIG["layer_now"], layer)
                standing = {row["config_key"]: row["config_value"] for row in rows if row["is_active"]}
                previous[target] = {key: standing.get(key) for key in plan.changes}
                await writes.write(connection, layer, {key: (text, True) for key, text in plan.changes.items()}, ())
            await connection.execute(CONFIG["fire_triggers"])
            revision = await connection.fetchval(CONFIG["own_revision"])
            if revision is None:
                raise Conflict(f"the instances {', '.join(targets)} have these values already")
            done["rollout_id"] = await connection.fetchval(
                SQL["start"],
                agent,
                _json(plan.changes),
                targets,
                _json(previous),
                revision,
                plan.max_failures,
                plan.changed_by,
                plan.bake_seconds,
            )
            done["revision"] = revision

        try:
            await writes.commit(self._pool, work, changed_by=plan.changed_by)
        except asyncpg.UniqueViolationError:
            raise Conflict(f"a rollout of {agent} is baking: wait for its end, or abort it") from None
        return {**done, "targets": targets, "state": "baking"}

    async def listed(self, agent: str) -> list[dict[str, Any]]:
        """The newest rollouts of an agent."""
        with told_as_api_errors():
            rows = await self._pool.fetch(SQL["list"], agent)
        return [{**dict(row.items()), "changes": orjson.loads(row["changes"])} for row in rows]

    async def end(self, agent: str, *, promote: bool, by: str) -> None:
        """End the rollout that bakes, one way or the other. Raises `NotFound` when there is none."""
        with told_as_api_errors():
            row = await self._pool.fetchrow(SQL["baking_of"], agent)
        if row is None:
            raise NotFound(f"no rollout of {agent} is baking")
        await self._finish(row, "done" if promote else "aborted", f"by {by}")

    async def look(self) -> None:
        """One look at everything that bakes: go back, go on, or wait."""
        with told_as_api_errors():
            rows = await self._pool.fetch(SQL["baking"], PATIENCE)
        for row in rows:
            states = await instance_states(self._nc, row["agent_name"])
            trouble = await self._trouble(row, states)
            if trouble:
                await self._finish(row, "rolled_back", trouble)
            elif row["baked"]:
                live = [name for name in row["targets"] if _stands(states.get(name), row["revision"])]
                if live:
                    await self._finish(row, "done", f"baked on {', '.join(live)}")
                elif row["overdue"]:
                    await self._finish(row, "rolled_back", "none of the chosen instances has applied it")

    async def run(self) -> None:
        """Look once a second, for ever. Several may: each end is written once."""
        while True:
            await asyncio.sleep(INTERVAL)
            try:
                await self.look()
            except (*GONE, asyncpg.PostgresError, Unavailable) as error:
                log.info("rollouts wait for Postgres", action="config.rollout_waits", error=str(error))

    async def _trouble(self, row: asyncpg.Record, states: States) -> str | None:
        for name in row["targets"]:
            state = states.get(name)
            if state is None or int(state["revision"]) < row["revision"]:
                continue
            if state["status"] == "rejected" or state["errors"]:
                return f"{name} said {state['status']}: {state['errors']}"
        failed = await self._pool.fetchval(SQL["failed_runs"], row["agent_name"], row["targets"], row["started_at"])
        if failed > row["max_failures"]:
            return f"{failed} runs failed on {', '.join(row['targets'])}"
        keys = list(orjson.loads(row["changes"]))
        moved = await self._pool.fetchval(SQL["changed_meanwhile"], row["agent_name"], keys, row["revision"])
        return f"revision {moved} changed the same keys meanwhile" if moved else None

    async def _finish(self, row: asyncpg.Record, state: str, reason: str) -> None:
        agent, changes, previous = row["agent_name"], orjson.loads(row["changes"]), orjson.loads(row["previous"])

        async def work(connection: Connection) -> None:
            if await connection.fetchval(SQL["finish"], row["rollout_id"], state, reason) is None:
                return  # another ConfigManager was quicker
            if state == "done":
                await writes.write(connection, agent, {key: (text, True) for key, text in changes.items()}, ())
            for target in row["targets"]:
                before = previous.get(target, {})
                back = {key: (text, True) for key, text in before.items() if text is not None}
                await writes.write(connection, f"{agent}@{target}", back, [key for key in changes if key not in back])

        await writes.commit(self._pool, work, changed_by=f"rollout {row['rollout_id']}")
        log.info("a rollout has ended", action="config.rollout_ended", agent=agent, state=state, reason=reason)


def _stands(state: Mapping[str, Any] | None, revision: int) -> bool:
    return state is not None and state["status"] == "applied" and int(state["revision"]) >= revision


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()

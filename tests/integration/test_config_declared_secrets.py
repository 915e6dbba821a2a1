"""A plain value that was written before its key was declared secret stands nowhere afterwards."""

from __future__ import annotations

import asyncio
from typing import ClassVar

import asyncpg
import orjson
import pytest
from pydantic import BaseModel

from perdure import BaseAgent, workflow
from perdure.config.schema import schema_of
from perdure.config.secrets import SecretReference
from tests.config_support import PUT, ask, following, manager, messages
from tests.platform import in_process
from tests.support import eventually

CANARY = "canary-7Rk2wQ9x"


class Before(BaseModel):
    token: str | None = None


class After(BaseModel):
    token: SecretReference | None = None


class Holder(BaseAgent):
    name = "holder"
    Settings: ClassVar = Before

    @workflow
    async def run(self, ctx, task):
        return len(ctx.config.get_setting("token", ""))


async def found_in(pool, redis) -> list[str]:
    """Every table and every Redis key that has the canary."""
    places = []
    for (table,) in await pool.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'"):
        if CANARY in repr(await pool.fetch(f'SELECT * FROM "{table}"')):
            places.append(table)
    for key in await redis.keys("*"):
        kind = await redis.type(key)
        value = await (redis.hgetall(key) if kind == b"hash" else redis.dump(key))
        if CANARY in repr(value):
            places.append(key.decode())
    return places


async def test_it_leaves_the_table_history_snapshots_rollouts_and_redis_and_history_says_why(
    settings, nc, redis, pool, capfd
) -> None:
    async with in_process(settings, nc, Holder) as platform:
        manager_ = platform.services[0]
        for layer in ("*", "holder", "holder@other"):
            await pool.execute(PUT, layer, "token", CANARY)
        await pool.execute(PUT, "holder", "token", f"{CANARY}-2")
        await pool.execute(PUT, "bystander", "token", "another's, and no secret")
        await ask(nc, "config.rollout.holder", {"configurations": {"token": CANARY}, "instances": 1})
        await ask(nc, "config.rollout.holder", {"action": "abort"})
        await eventually(lambda: platform.services[2]._config.snapshot.get_setting("token") == f"{CANARY}-2")
        assert (await platform.ask("holder", {}))["output"] == len(CANARY) + 2
        await manager_.copy.save()
        before = set(await found_in(pool, redis))
        assert {"agent_configurations", "config_history", "config_snapshots", "config_rollouts"} < before
        assert {"perdure:config:table", "perdure:config:lkg:holder"} < before
        heard = await messages(nc, "config.update")

        reply = await ask(nc, "config.schema.holder", {"schema": schema_of(After)})
        assert reply["status"] == "success"
        # The broadcaster's own look may come between: then it is that one which removes them, and says so in the log.
        removed = ["*.token", "holder.token", "holder@other.token"]
        assert reply.get("removed", removed) == removed

        await eventually(lambda: platform.services[2]._config.snapshot.get_setting("token") is None)

        async def nowhere() -> bool:
            places = await found_in(pool, redis)
            assert places == []
            return True

        await eventually(nowhere)
        assert CANARY not in str(heard)
        history = await ask(nc, "config.history.holder", {"limit": 1})
        entry = history["history"][0]
        assert (entry["changed_by"], entry["old_value"], entry["new_value"]) == (
            "perdure: declared secret",
            "********",
            None,
        )
        assert (await ask(nc, "config.get.bystander"))["configurations"] == {"token": "another's, and no secret"}
        # A rollback to when it was plain brings no mask back as if it were a value.
        refused = await ask(nc, "config.rollback.holder", {"revision": 2})
        assert (refused["error"]["code"], "reference" in refused["error"]["message"]) == ("invalid_request", True)
    said = capfd.readouterr()
    assert CANARY not in said.out + said.err


async def test_what_a_kill_left_undone_is_done_by_the_next_manager(settings, nc, redis, pool) -> None:
    async with manager(settings), following(nc, redis, settings, "holder", model=Before):
        await pool.execute(PUT, "holder", "token", CANARY)

        async def known() -> bool:
            return CANARY in repr(await redis.hgetall("perdure:config:lkg:holder"))

        await eventually(known)
    # The agent declared it, and whoever took that died: an agent that is down does not write its cache anew.
    await pool.execute(
        "INSERT INTO config_schemas (agent_name, schema, schema_hash, published_by) VALUES ('holder', $1, 'h', 'x') "
        "ON CONFLICT (agent_name) DO UPDATE SET schema = EXCLUDED.schema, schema_hash = 'h'",
        orjson.dumps(schema_of(After)).decode(),
    )
    assert CANARY in repr(await redis.hgetall("perdure:config:lkg:holder"))
    async with manager(settings) as running:
        await running.upkeep.look()
        await eventually(lambda: running.table.revision == 2)
        await running.copy.save()
        assert await found_in(pool, redis) == []
        assert await pool.fetchval("SELECT count(*) FROM config_secret_keys WHERE NOT redacted") == 0


async def test_a_writer_that_began_before_the_declaration_cannot_commit_after_it(settings, nc, pool) -> None:
    async with manager(settings):
        async with pool.acquire() as connection:
            late = connection.transaction()
            await late.start()
            await connection.execute(PUT, "holder", "token", CANARY)
            declaring = asyncio.create_task(ask(nc, "config.schema.holder", {"schema": schema_of(After)}))
            assert (await declaring)["status"] == "success"
            with pytest.raises(asyncpg.CheckViolationError, match="has become a secret key"):
                await late.commit()
        assert await pool.fetchval("SELECT count(*) FROM config_history") == 0


async def test_where_redis_is_the_source_it_leaves_its_keys_too(settings, nc, redis, pool) -> None:
    async with manager(settings, config_store="redis") as running:
        await redis.set("config:holder:token", CANARY)
        await eventually(lambda: running.table.layer("holder") == {"token": CANARY})
        reply = await ask(nc, "config.schema.holder", {"schema": schema_of(After)})
        # As above: the broadcaster's own look may be first.
        assert (reply["status"], reply.get("removed", ["holder.token"])) == ("success", ["holder.token"])
        await running.copy.save()

        async def nowhere() -> bool:
            await running.copy.save()
            places = await found_in(pool, redis)
            assert places == []
            return True

        await eventually(nowhere)

"""With Redis as the source: how Redis and the table agree, whoever writes, and whoever does the work."""

from __future__ import annotations

import asyncio

from config_manager.redis_names import Name
from perdure.config.keys import DurableAgentSettings
from perdure.config.schema import schema_of
from tests.config_redis_support import agreed, mode, reads, source, stands
from tests.config_support import PUT, ask, manager, messages
from tests.support import eventually

__all__ = ["mode"]  # a fixture

SECRET = "sk-live-4Yq9ZkP2"


# -- SQL beside it ---------------------------------------------------------------------------------------------------
async def test_rows_that_were_there_before_are_taken_over(mode, nc, redis, pool) -> None:
    await pool.execute(PUT, "assistant", "a", "by SQL")
    await pool.execute(PUT, "assistant", "b", "by SQL")
    await redis.set("config:assistant:b", "of Redis")
    async with source(mode):
        await reads(nc, {"a": "by SQL", "b": "of Redis"})
        await stands(redis, "config:assistant:a", b"by SQL")


async def test_a_plain_sql_write_is_mirrored_and_both_can_go_on(mode, nc, redis, pool) -> None:
    async with source(mode) as running:
        for number in range(30):
            await pool.execute(PUT, "assistant", "k", str(number))
        await stands(redis, "config:assistant:k", b"29")
        await agreed(running, 30)
        await redis.set("config:assistant:k", "30")
        await reads(nc, {"k": "30"})
        await running.source.look_at_all()
        await pool.execute("UPDATE agent_configurations SET is_active = FALSE")
        await stands(redis, "config:assistant:k", None)
        await running.source.look_at_all()
        await pool.execute("UPDATE agent_configurations SET is_active = TRUE")
        await stands(redis, "config:assistant:k", b"30")
        await running.source.look_at_all()
        await pool.execute("DELETE FROM agent_configurations")
        await stands(redis, "config:assistant:k", None)
        await reads(nc, {})


async def test_when_both_have_changed_redis_wins_and_history_has_both(mode, nc, redis, pool) -> None:
    async with source(mode) as running:
        await redis.set("config:assistant:k", "1")
        await agreed(running, 1)
    await pool.execute(PUT, "assistant", "k", "by SQL")
    await redis.set("config:assistant:k", "of Redis")
    async with source(mode):
        await reads(nc, {"k": "of Redis"})
        values = await pool.fetch("SELECT new_value FROM config_history ORDER BY revision")
        assert [row["new_value"] for row in values] == ["1", "by SQL", "of Redis"]


async def test_a_value_that_is_set_while_another_one_is_on_its_way_to_redis_stays(mode, nc, redis, pool) -> None:
    async with source(mode) as running:
        values = running.source.mirror._values
        replace = values.replace

        async def late(name, seen, value):
            values.replace = replace
            await redis.set("config:assistant:k", "set meanwhile")
            return await replace(name, seen, value)

        values.replace = late
        await pool.execute(PUT, "assistant", "k", "by SQL")
        await reads(nc, {"k": "set meanwhile"})
        await stands(redis, "config:assistant:k", b"set meanwhile")


async def test_a_sql_write_right_after_another_one_was_sent_is_no_older_than_it(mode, nc, redis, pool) -> None:
    async with source(mode) as running:
        values = running.source.mirror._values
        replace = values.replace

        async def sent_and_forgotten(name, seen, value):
            values.replace = replace
            await replace(name, seen, value)
            await pool.execute(PUT, "assistant", "k", "newer")
            raise ConnectionError("the answer was lost")

        values.replace = sent_and_forgotten
        await pool.execute(PUT, "assistant", "k", "older")
        await stands(redis, "config:assistant:k", b"newer")
        await reads(nc, {"k": "newer"})


async def test_two_that_look_at_once_write_what_they_saw_in_order(mode, nc, redis, pool) -> None:
    async with source(mode, instance_id="one") as one, source(mode, instance_id="two") as two:
        for each in (one, two):  # nobody looks but this test
            each.source._leads, each.source.patience = (lambda: False), 3600.0
        name = Name("assistant", "k")
        values, calls, held, go_on = one.source.mirror._values, [], asyncio.Event(), asyncio.Event()
        read = values.read

        async def slowly(names):
            found = await read(names)
            calls.append(names)
            if len(calls) == 2:  # the first is a look without the lock
                held.set()
                await go_on.wait()
            return found

        await redis.set("config:assistant:k", "1")
        values.read = slowly
        first = asyncio.create_task(one.source.look([name]))
        await held.wait()
        await redis.set("config:assistant:k", "2")
        second = asyncio.create_task(two.source.look([name]))

        async def waits_or_is_done() -> bool:
            waits = "SELECT true FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
            return second.done() or await pool.fetchval(waits)

        await eventually(waits_or_is_done)
        go_on.set()
        await asyncio.gather(first, second)
        rows = await pool.fetch("SELECT new_value FROM config_history ORDER BY revision")
        assert [row["new_value"] for row in rows] == ["1", "2"]


async def test_a_set_that_nobody_has_seen_yet_comes_before_a_set_over_nats(mode, nc, redis) -> None:
    async with source(mode) as running:
        await ask(nc, "config.set.assistant", {"configurations": {"k": "1"}})
        running.source._leads, running.source.patience = (lambda: False), 3600.0
        await redis.set("config:assistant:k", "2")
        late = await ask(nc, "config.set.assistant", {"configurations": {"k": "3"}, "expected_revision": 1})
        assert (late["error"]["code"], late["error"]["revision"]) == ("conflict", 2)
        later = await ask(nc, "config.set.assistant", {"configurations": {"k": "3"}})
        assert (later["revision"], await redis.get("config:assistant:k")) == (3, b"3")


# -- one agent alone -------------------------------------------------------------------------------------------------
async def test_a_single_agent_has_its_keys_without_a_prefix_and_nothing_else_is_touched(mode, nc, redis, pool) -> None:
    alone = mode.model_copy(update={"config_redis_prefix": "", "config_redis_agent": "assistant"})
    await redis.set("somebody-elses", "data")
    async with source(alone) as running:
        await ask(nc, "config.schema.assistant", {"schema": schema_of(DurableAgentSettings)})
        await redis.set("agent_role", "a pirate")
        await reads(nc, {"agent_role": "a pirate"})
        await redis.set("assistant", '{"agent_role": "a cook", "max_iterations": 4}')
        await reads(nc, {"agent_role": "a cook", "max_iterations": "4"})
        await pool.execute(PUT, "*", "k", "not in Redis")
        await reads(nc, {"agent_role": "a cook", "max_iterations": "4", "k": "not in Redis"})
        await running.source.look_at_all()
        await redis.delete("agent_role")
        await reads(nc, {"max_iterations": "4", "k": "not in Redis"})
    keys = {key for key in await redis.keys("*") if not key.startswith(b"perdure:")}
    assert keys == {b"somebody-elses", b"max_iterations"}


# -- Redis away, managers that come and go ---------------------------------------------------------------------------
async def test_with_redis_down_reads_go_on_and_writes_are_refused_with_the_reason(mode, servers, nc, redis) -> None:
    async with source(mode) as running:
        await redis.set("config:assistant:a", "1")
        await agreed(running, 1)
        await servers.redis.kill()
        assert (await ask(nc, "config.get.assistant"))["configurations"] == {"a": "1"}
        refused = await ask(nc, "config.set.assistant", {"configurations": {"a": "2"}}, timeout=20)
        assert refused["error"]["code"] == "unavailable"
        assert "Redis is the source" in refused["error"]["message"]
        assert running.table.revision == 1
        assert (await running.health.report())["checks"]["config_redis"]["status"] == "warning"
        await servers.redis.start()
        await redis.set("config:assistant:a", "3")
        await reads(nc, {"a": "3"})


async def test_a_manager_starts_while_redis_is_down_and_follows_when_it_is_there(
    mode, servers, nc, redis, pool
) -> None:
    await pool.execute(PUT, "assistant", "a", "1")
    await servers.redis.stop()
    async with manager(mode):
        await reads(nc, {"a": "1"})
        await servers.redis.start()
        await stands(redis, "config:assistant:a", b"1")
        await redis.set("config:assistant:a", "2")
        await reads(nc, {"a": "2"})


async def test_of_two_managers_one_mirrors_and_another_takes_over_without_a_loss(mode, nc, redis) -> None:
    async with source(mode, instance_id="one") as one:
        await eventually(lambda: one.sync.leading)
        async with source(mode, instance_id="two") as two:
            two.source.patience = 3600.0
            for number in range(20):
                await redis.set("config:assistant:a", str(number))
            await reads(nc, {"a": "19"})
            await eventually(lambda: two.table.layer("assistant") == {"a": "19"})
            assert (one.source.mirror.wrote > 0, two.source.looks) == (True, 0)
            two.source.patience = 0.0
            await one.stop()
            await redis.set("config:assistant:a", "20")
            await redis.set("config:assistant:b", "1")
            await reads(nc, {"a": "20", "b": "1"})
            await eventually(lambda: two.sync.leading)
            await redis.delete("config:assistant:b")
            await reads(nc, {"a": "20"})


async def test_what_was_left_undone_is_found_by_the_next_one_although_it_heard_nothing(mode, nc, redis) -> None:
    async with source(mode, instance_id="one") as one:
        await eventually(lambda: one.sync.leading)
        async with source(mode, instance_id="two") as two:

            async def deaf(_message) -> None:
                return

            two.source._told = deaf
            one.source.look = one.source.look_at_all = lambda *_names: asyncio.sleep(3600)
            await redis.set("config:assistant:a", "1")
            await one.stop()
            await reads(nc, {"a": "1"})


async def test_a_leader_that_hangs_is_helped(mode, nc, redis) -> None:
    async with source(mode, instance_id="one") as one, source(mode, instance_id="two") as two:
        await eventually(lambda: one.sync.leading or two.sync.leading)
        leader, other = (one, two) if one.sync.leading else (two, one)
        other.source.patience = 0.05
        leader.source.look = leader.source.look_at_all = lambda *_names: asyncio.sleep(3600)
        await redis.set("config:assistant:a", "1")
        await eventually(lambda: other.table.layer("assistant") == {"a": "1"})


async def test_changes_made_while_no_manager_ran_are_found_when_one_starts(mode, nc, redis) -> None:
    updates = await messages(nc, "config.update")
    await redis.mset({"config:assistant:a": "1", "config:mailer:b": "1"})
    await redis.set("config:sorter", '{"c": 1}')
    async with source(mode):
        await reads(nc, {"c": "1"}, agent="sorter")
        await eventually(lambda: {each["agent_name"] for each in updates} == {"assistant", "mailer", "sorter"})
    assert await redis.get("config:sorter") is None
